"""`python -m lib_custom_diffusion COMMAND`."""

import sys


def main() -> int:
    """Run one command, see `standalone.cli.main`; Ctrl-C while its libraries are imported is told as it tells it."""
    try:
        from .standalone.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
