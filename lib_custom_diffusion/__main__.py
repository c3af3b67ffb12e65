"""`python -m lib_custom_diffusion COMMAND`."""

from .standalone.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
