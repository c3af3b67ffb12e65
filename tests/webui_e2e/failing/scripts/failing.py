"""For tests: the model fails once, at its third step after a file `fail.txt` was put into the data folder."""

from pathlib import Path

import torch
from ldm.models.diffusion.ddpm import LatentDiffusion
from modules import paths

REQUEST = Path(paths.data_path, "fail.txt")
KINDS = {"error": RuntimeError("made to fail"), "out of memory": torch.cuda.OutOfMemoryError("made to fail")}
apply_model = LatentDiffusion.apply_model
steps = 0


def failing(self, *args, **kwargs):
    global steps
    steps = steps + 1 if REQUEST.exists() else 0
    if steps == 3:
        kind = REQUEST.read_text()
        REQUEST.unlink()
        raise KINDS[kind]
    return apply_model(self, *args, **kwargs)


LatentDiffusion.apply_model = failing
