"""How good the toy model is: python tests/benchmarks/toy_quality.py [--samples 200] [--sheet FILE.png]

Draws captions that were held out of its training with fixed seeds, 25 steps and guidance 4, and lets the judge count
what came out right; reconstructs drawings of the same captions (which needs the font, see world.py) and the bundled
concepts' pictures; and times loading and drawing. Prints one line a figure with its bar. `--sheet` keeps the first
hundred pictures of one thing.
"""

import argparse
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from coats import coat_of

from lib_custom_diffusion.standalone import toy
from lib_custom_diffusion.standalone.toy import looks, world
from lib_custom_diffusion.standalone.toy.concepts import bundled_concepts
from lib_custom_diffusion.standalone.toy.counterfeits import thing_mask
from lib_custom_diffusion.standalone.toy.judge import Judge
from lib_custom_diffusion.standalone.toy.train_autoencoder import to_tensor

STEPS, GUIDANCE, BATCH = 25, 4.0, 25


def held_out_singles(count: int) -> list[tuple[str, str]]:
    """Things on the one colour that the toy never saw each on."""
    pairs = [(thing, colour) for thing in world.THINGS for colour in world.COLOURS]
    return random.Random(0).sample([pair for pair in pairs if world.colour_is_held_out(*pair)] * 4, count)


def held_out_pairs(count: int) -> list[tuple[str, str, str]]:
    """Two things that the toy never saw together, on any colour."""
    rng, found = random.Random(1), []
    while len(found) < count:
        left, right = rng.sample(world.THINGS, 2)
        if world.pair_is_held_out(left, right):
            found.append((left, right, rng.choice(list(world.COLOURS))))
    return found


def caption(things: tuple[str, ...], colour: str) -> str:
    """The plain caption of things on a background."""
    return f"{' and '.join(map(world.with_article, things))} on {world.with_article(colour)} background"


@torch.no_grad()
def draw(pipeline: object, captions: list[str]) -> list[Image.Image]:
    """A picture a caption; the seed is the caption's place."""
    pictures: list[Image.Image] = []
    for start in range(0, len(captions), BATCH):
        prompts = captions[start : start + BATCH]
        generators = [torch.Generator().manual_seed(start + index) for index in range(len(prompts))]
        pictures += pipeline(
            prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators, height=128, width=128
        ).images
        print(f"{len(pictures)}/{len(captions)} pictures", file=sys.stderr)
    return pictures


@dataclass(frozen=True)
class Reconstruction:
    """How pictures came through the VAE and back, as means over them.

    psnr:   in dB, over the whole picture, most of which is flat ground.
    inside: in dB, where the things are alone.
    energy: of the gradient where the things are, as a share of the original's: 1 is as sharp, 0 is flat.
    """

    psnr: float
    inside: float
    energy: float


@torch.no_grad()
def through_vae(pipeline: object, pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (n, 3, height, width) in [-1, 1], as the VAE gives them back."""
    return pipeline.vae.decode(pipeline.vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)


@torch.no_grad()
def pictures_through_vae(pipeline: object, pictures: list[Image.Image]) -> list[Image.Image]:
    """Pictures as the VAE gives them back: what the model could draw at best."""
    pixels = (through_vae(pipeline, to_tensor(pictures)) + 1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(each) for each in pixels]


@torch.no_grad()
def reconstruct(pipeline: object, pictures: list[Image.Image]) -> Reconstruction:
    """Send pictures through the VAE and back."""
    pixels = [np.asarray(picture.convert("RGB")) for picture in pictures]
    masks = torch.from_numpy(np.stack([thing_mask(picture) for picture in pixels]))[:, None].float()
    target = to_tensor(pictures)
    output = through_vae(pipeline, target)
    errors = ((output - target) / 2).square().mean(dim=1, keepdim=True)
    inside = (errors * masks).sum(dim=(1, 2, 3)) / masks.sum(dim=(1, 2, 3))

    def energy(picture: torch.Tensor) -> torch.Tensor:
        down, across = picture.diff(dim=2)[..., 1:], picture.diff(dim=3)[:, :, 1:]
        return (masks[:, :, 1:, 1:] * (down.square() + across.square())).sum(dim=(1, 2, 3))

    return Reconstruction(
        float((-10 * errors.mean(dim=(1, 2, 3)).log10()).mean()),
        float((-10 * inside.log10()).mean()),
        float((energy(output) / energy(target)).mean()),
    )


def held_out_drawings(count: int) -> list[Image.Image]:
    """True drawings of what `held_out_singles` names, in the world's sizes; they need the font."""
    rng, sizes = random.Random(2), list(world.SPAN_SHARES)
    scenes = [
        world.scene_of(rng, thing, colour, rng.choices(sizes, list(world.SPAN_SHARES.values()))[0])
        for thing, colour in held_out_singles(count)
    ]
    return [world.draw(scene) for scene in scenes]


def concept_pictures() -> list[Image.Image]:
    """The bundled concepts' pictures: things and looks that the VAE has not seen."""
    paths = sorted(path for concept in bundled_concepts().values() for path in concept.folder.glob("*.png"))
    return [Image.open(path) for path in paths]


def named_coats(count: int) -> list[tuple[str, str, str]]:
    """Names of coats, each with a thing and a colour of the background."""
    rng, names = random.Random(3), list(looks.NAMED_COATS)
    chosen = [(names[index % len(names)], rng.choice(world.THINGS)) for index in range(count)]
    return [
        (name, thing, rng.choice([colour for colour in world.COLOURS if not world.colour_is_held_out(thing, colour)]))
        for name, thing in chosen
    ]


def right_coats(pictures: list[Image.Image], named: list[tuple[str, str, str]]) -> float:
    """The share of pictures whose thing wears the coat of its name."""
    return float(np.mean([name == coat_of(picture, *on) for picture, (name, *on) in zip(pictures, named, strict=True)]))


def true_coats(pipeline: object, named: list[tuple[str, str, str]]) -> list[Image.Image]:
    """True drawings of things in named coats, sent through the VAE."""
    rng = random.Random(5)
    drawn = [world.draw(world.scene_of(rng, *on, coat=looks.NAMED_COATS[name])) for name, *on in named]
    return pictures_through_vae(pipeline, drawn)


def sheet(pictures: list[Image.Image]) -> Image.Image:
    """Pictures in rows of ten."""
    page = Image.new("RGB", (10 * world.SIZE, (len(pictures) + 9) // 10 * world.SIZE))
    for index, picture in enumerate(pictures):
        page.paste(picture, (index % 10 * world.SIZE, index // 10 * world.SIZE))
    return page


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=200, help="pictures of one thing; half as many of two")
    parser.add_argument("--sheet", type=Path, help="where to keep a contact sheet")
    parser.add_argument("--model", choices=list(toy.TOYS), default="toy", help="which of the toys")
    options = parser.parse_args()
    start = time.perf_counter()
    # Diffusers imports its parts when they are first asked for.
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    imported = time.perf_counter()
    pipeline = toy.load(options.model)
    loading, importing = time.perf_counter() - imported, imported - start
    pipeline.set_progress_bar_config(disable=True)
    judge = Judge.load()

    singles, pairs = held_out_singles(options.samples), held_out_pairs(options.samples // 2)
    start = time.perf_counter()
    draw(pipeline, ["a cat on a red background"])
    drawing = time.perf_counter() - start
    ones = draw(pipeline, [caption((thing,), colour) for thing, colour in singles])
    named = named_coats(options.samples // 2)
    worn = draw(pipeline, [caption((f"{name} {thing}",), colour) for name, thing, colour in named])
    twos = draw(pipeline, [caption((left, right), colour) for left, right, colour in pairs])

    things = np.mean([thing == seen for (thing, _), seen in zip(singles, judge.things(ones), strict=True)])
    colours = np.mean([colour == seen for (_, colour), seen in zip(singles, judge.colours(ones), strict=True)])
    both = np.mean([(left, right) == seen for (left, right, _), seen in zip(pairs, judge.pairs(twos), strict=True)])
    print(f"right thing        {things:6.1%}   bar 85 %   ({len(ones)} pictures)")
    print(f"right colour       {colours:6.1%}   bar 95 %")
    ceiling = right_coats(true_coats(pipeline, named), named)
    print(f"the name's coat    {right_coats(worn, named):6.1%}   bar 80 %   (of true drawings {ceiling:.1%})")
    print(f"both things        {both:6.1%}   bar 70 %   ({len(twos)} pictures)")
    for name, originals in (("of drawings", held_out_drawings(100)), ("of the concepts", concept_pictures())):
        through = reconstruct(pipeline, originals)
        print(f"VAE {name}")
        print(f"  PSNR             {through.psnr:6.1f}   bar 26 dB")
        print(f"  PSNR in things   {through.inside:6.1f}")
        print(f"  gradient energy  {through.energy:6.1%}   bar 90 %   (in things, of the original's)")
    print(f"loading            {loading:6.2f}   bar 2 s   (after {importing:.2f} s of importing diffusers)")
    print(f"one picture        {drawing:6.2f}   bar 3 s")
    if options.sheet:
        sheet(ones[:100]).save(options.sheet)


if __name__ == "__main__":
    main()
