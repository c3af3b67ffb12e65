"""Make the toy models and their judge from nothing, by one command:

    python -m lib_custom_diffusion.standalone.toy.make [--work DIR] [--start FILE | --decoder_only]

World, VAE, latents, UNet with text encoder, the same in SDXL's layout, judge, export. On two CPU cores with bfloat16
instructions and nothing else to do this takes some three hours; a GPU is used if there is one. Every part saves its
state into DIR and goes on from there when the command is given again, so it may be stopped at any time. Seeded: one
machine and one set of versions give one model. `--start` begins with the VAE, the UNet and the words of an earlier toy
instead, and with the judge that is there: so were the weights that ship made, in four rounds and a fifth with
`--decoder_only`, which trains the decoder of the toys that are there and leaves all else as it is. From a toy that knew
111 things and no coats, 3,000 steps of the UNet and 1,800 of the decoder; from that one, with 51 things more, 2,300
steps of the UNet (both at a peak rate of 8e-4), 1,900 of the decoder (4e-4) and 1,100 of the judge (1.5e-3); from that
one, whose VAE had a residual block a level less, 2,800 steps of the VAE (5e-4) and 2,500 of the UNet (8e-4); from that
one 1,900 steps more of the UNet (8e-4), on 12,080 of the pictures; then 1,300 of the decoder alone (4e-4), the first
200 of which had a third of the weight of sharpness. The toy in SDXL's layout began with the second round's weights and
had 1,000 steps (8e-4).

The drawings need the font Noto Color Emoji (SIL Open Font License 1.1), Debian's package fonts-noto-color-emoji.
"""

import argparse
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from ..single_file import load_checkpoint
from . import (
    TOY,
    architecture,
    export,
    load,
    train_autoencoder,
    train_diffusion,
    train_judge,
    train_xl,
    vocabulary,
    world,
)


def make(work: Path, device: torch.device, start: Path | None) -> None:
    """Train whatever is not trained yet, then write the model's files."""
    earlier = load_checkpoint(start) if start else None
    work.mkdir(parents=True, exist_ok=True)
    (work / ".gitignore").write_text("*\n")
    vocabulary.write(world.words(), TOY.config / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(TOY.config / "tokenizer")
    if earlier:
        vae = architecture.autoencoder()
        train_autoencoder.start_from(vae, earlier.vae)
    else:
        vae = train_autoencoder.train(work, device)
    vae = train_autoencoder.sharpen(vae, work, device)
    latents = train_diffusion.encode(vae, work, device)
    torch.manual_seed(2)
    denoiser = train_diffusion.Denoiser(tokenizer)
    if earlier:
        train_diffusion.start_from(denoiser, tokenizer, earlier)
    course = train_diffusion.COURSE
    export.export(vae, train_diffusion.train(latents, denoiser, work / "diffusion.pt", course, device))
    torch.manual_seed(3)
    denoiser_xl = train_xl.DenoiserXL(tokenizer)
    train_xl.start_from(denoiser_xl, load())
    course = train_xl.COURSE
    export.export_xl(vae, train_diffusion.train(latents, denoiser_xl, work / "diffusion_xl.pt", course, device))
    export.write_captions()
    train_judge.train(work, device, train_judge.WEIGHTS if start else None)


def make_decoder(work: Path, device: torch.device) -> None:
    """Train the decoder of the toys that are there."""
    work.mkdir(parents=True, exist_ok=True)
    vae = load().vae.requires_grad_(True)
    export.replace_vae(train_autoencoder.sharpen(vae, work, device, decoder_only=True))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("toy-work"), help="where to keep what is in progress")
    begins = parser.add_mutually_exclusive_group()
    begins.add_argument("--start", type=Path, help="an earlier toy's .safetensors to begin with")
    begins.add_argument("--decoder_only", action="store_true", help="train the decoder of the toys that are there")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.decoder_only:
        make_decoder(options.work, device)
    else:
        make(options.work, device, options.start)


if __name__ == "__main__":
    main()
