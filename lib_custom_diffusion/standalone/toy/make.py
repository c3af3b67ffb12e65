"""Make the toy model and its judge from nothing, by one command:

    python -m lib_custom_diffusion.standalone.toy.make [--work DIR]

World, VAE, latents, UNet with text encoder, judge, export. On two CPU cores with bfloat16 instructions and nothing else
to do this takes about two hours (VAE 17 minutes, its decoder 9, latents 4, UNet 85, judge 9); a GPU is used if there is
one. Every part saves its state into DIR and goes on from there when the command is given again, so it may be stopped at
any time. Seeded: one machine and one set of versions give one model. The weights that ship were made by these parts
but not in one run: the UNet had 2,400 steps with AdamW alone on 12,000 pictures before 3,000 of those below, and the
decoder 600 steps of another loss before those of `polish`.

The drawings need the font Noto Color Emoji (SIL Open Font License 1.1), Debian's package fonts-noto-color-emoji.
"""

import argparse
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from . import CONFIG, export, train_autoencoder, train_diffusion, train_judge, vocabulary, world


def make(work: Path, device: torch.device) -> None:
    """Train whatever is not trained yet, then write the model's files."""
    work.mkdir(parents=True, exist_ok=True)
    (work / ".gitignore").write_text("*\n")
    vocabulary.write(world.words(), CONFIG / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(CONFIG / "tokenizer")
    vae = train_autoencoder.polish(train_autoencoder.train(work, device), work, device)
    latents = train_diffusion.encode(vae, work, device)
    denoiser = train_diffusion.train(latents, tokenizer, work, device)
    export.export(vae, denoiser)
    train_judge.train(work, device)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("toy-work"), help="where to keep what is in progress")
    options = parser.parse_args()
    make(options.work, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


if __name__ == "__main__":
    main()
