"""Draw with a delta on any diffusers pipeline of Stable Diffusion, and leave the pipeline as it was.

python examples/apply_delta.py MODEL_FOLDER new1.delta.safetensors "photo of a <new1> cat" out.png
"""

import sys
from pathlib import Path

from lib_custom_diffusion.backend import Sampling
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.injection import Injection
from lib_custom_diffusion.standalone.models import load_model


def main() -> None:
    model, file, prompt, output = sys.argv[1:]
    backend, delta = load_model(model), Delta.load(Path(file))
    with Injection(backend.unet, [(delta, 0.8)]):  # beside the weights, which are never written
        [picture] = backend.generate([prompt], [42], Sampling(), delta.embeddings)
    picture.save(output)


if __name__ == "__main__":
    main()
