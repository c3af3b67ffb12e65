"""The judge's training: one network, taught by everything the font can draw."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import counterfeits, world
from .judge import (
    COLOURS,
    GALLERY,
    IDENTITY,
    LOOKS,
    NAMES,
    WEIGHTS,
    Judge,
    JudgeNetwork,
    shrink,
    to_input,
    to_tensor,
    word_counts,
)
from .looks import COLOUR_COATS, NAMED_COATS, Coat, random_coat
from .resumable import Course, run

COURSE = Course(steps=1100, peak=2e-3, warmup=50, ema_decay=0.98, save_every=100)
IDENTITIES, VIEWS, PAIRS, FALSE = 48, 2, 32, 24  # in a step's batch
TEMPERATURE = 0.1
GALLERY_VIEWS = 12  # of each thing
COAT_SHARE, AGAIN_SHARE = 0.45, 0.33
KNOWN_SHARE = 0.55  # of identities: things with names; the others are glyphs without


@dataclass
class Batch:
    """A step's pictures: views of `IDENTITIES` things, `VIEWS` of each in turn, then `PAIRS` pictures of two things.

    An identity is a thing in its coat, if it has one. `false` are spoilt views, which are no identity's. `named` are
    the rows that have captions, `captions` theirs in the same order; `things` (n, names) is 1 where a thing is in the
    picture and all 0 where it has no name.
    """

    pictures: Tensor
    false: Tensor
    looks: Tensor
    colours: Tensor
    things: Tensor
    named: list[int]
    captions: list[str]


def spoil(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Blur some pictures as a small generator does, so that its faults are not all that the judge sees in them."""
    if rng.random() < 0.5:
        return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.8)))
    return picture


def batch(step: int) -> Batch:
    """The batch of a step."""
    rng = random.Random(f"judge {step}")
    scenes: list[world.Scene] = []
    glyph = ""
    for _ in range(IDENTITIES):
        # The last thing again in another coat, a third of the time: told from it by its colours alone.
        if not glyph or rng.random() > AGAIN_SHARE:
            glyph = rng.choice(NAMES if rng.random() < KNOWN_SHARE else world.other_glyphs())
        look = rng.choice(LOOKS[1:]) if rng.random() < 0.3 else None
        coat = None if look else _coat(rng)
        scenes += [_view(rng, glyph, look, coat) for _ in range(VIEWS)]
    for _ in range(PAIRS):
        left, right = rng.sample(NAMES, 2)
        look = rng.choice(LOOKS[1:]) if rng.random() < 0.2 else None
        coats = (None, None) if look else (_coat(rng), _coat(rng))
        scenes.append(world.pair_of(rng, left, right, rng.choice(COLOURS), look, coats))
    things = torch.zeros(len(scenes), len(NAMES))
    for row, scene in zip(things, scenes, strict=True):
        for placed in scene.placed:
            if placed.thing in NAMES:
                row[NAMES.index(placed.thing)] = 1
    # A coat without a word can't be captioned.
    named = [
        index
        for index, scene in enumerate(scenes)
        if all(placed.thing in NAMES and (not placed.coat or placed.coat.word) for placed in scene.placed)
    ]
    drawn = [world.draw(scene) for scene in scenes]
    models = rng.sample(range(0, IDENTITIES * VIEWS, VIEWS), FALSE)
    spoilers = list(counterfeits.SPOILT.values())
    false = [spoilers[index % len(spoilers)](shrink(drawn[model]), rng) for index, model in enumerate(models)]
    return Batch(
        to_input([spoil(picture, rng) for picture in drawn]),
        to_tensor(false),
        torch.tensor([LOOKS.index(scene.look or "plain") for scene in scenes]),
        torch.tensor([COLOURS.index(scene.colour) for scene in scenes]),
        things,
        named,
        [world.caption(scenes[index], rng) for index in named],
    )


def _coat(rng: random.Random) -> Coat | None:
    if rng.random() > COAT_SHARE:
        return None
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(tuple(COLOUR_COATS.values()))
    return rng.choice(tuple(NAMED_COATS.values())) if kind < 0.7 else random_coat(rng)


def _view(rng: random.Random, glyph: str, look: str | None, coat: Coat | None) -> world.Scene:
    size = rng.choices(list(world.SPAN_SHARES), list(world.SPAN_SHARES.values()))[0]
    place = rng.choice((None, None, *world.PLACES)) if size in ("far", "small", "medium") else None
    return world.scene_of(rng, glyph, rng.choice(COLOURS), size, place, look, coat)


def contrast_of_views(embeddings: Tensor, false: Tensor) -> Tensor:
    """Supervised contrastive loss of (identities × 2) unit vectors, the views of an identity side by side.

    `false` are vectors that all of them should be far from.
    """
    similarity = embeddings @ embeddings.T / TEMPERATURE
    similarity = similarity.masked_fill(torch.eye(len(similarity), dtype=torch.bool, device=similarity.device), -1e4)
    similarity = torch.cat([similarity, embeddings @ false.T / TEMPERATURE], dim=1)
    other_view = torch.arange(len(embeddings), device=similarity.device) ^ 1
    return F.cross_entropy(similarity, other_view)


def objective(network: JudgeNetwork, data: Batch) -> Tensor:
    """The sum of the heads' losses."""
    everything = network.features(torch.cat([data.pictures, data.false]))
    features, spoilt = everything[: len(data.pictures)], everything[len(data.pictures) :]
    singles = IDENTITIES * VIEWS
    identity = contrast_of_views(
        F.normalize(network.identity(features[:singles]).float(), dim=1),
        F.normalize(network.identity(spoilt).float(), dim=1),
    )
    looks = F.normalize(network.look(features).float(), dim=1) @ F.normalize(network.look_prototypes, dim=1).T
    named = features[data.named]
    meanings = F.normalize(network.meaning(named).float(), dim=1)
    texts = F.normalize(network.words(word_counts(data.captions).to(features.device)).float(), dim=1)
    similarity = meanings @ texts.T * network.log_temperature.exp().clamp(max=50)
    target = torch.arange(len(similarity), device=similarity.device)
    meaning = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2
    shares = data.things[data.named] / data.things[data.named].sum(dim=1, keepdim=True)
    things = F.cross_entropy(network.things(named).float(), shares)
    colours = F.cross_entropy(network.colours(features).float(), data.colours)
    return identity + meaning + things + 0.5 * colours + F.cross_entropy(10 * looks, data.looks)


def remember(judge: Judge) -> None:
    """Fill the judge's gallery with the mean embedding of views of each thing as it is, and write it."""
    rng = random.Random("gallery")
    for index, thing in enumerate(NAMES):
        views = [spoil(world.draw(world.scene_of(rng, thing, rng.choice(COLOURS))), rng) for _ in range(GALLERY_VIEWS)]
        judge.gallery[index] = judge.embed_identities(views).mean(dim=0)
    save_file({"gallery": judge.gallery.half()}, GALLERY)


def start_from(network: JudgeNetwork, earlier: Path) -> None:
    """Give an untrained network all of an earlier judge's weights that fit: not the heads of a world that has grown."""
    fresh = network.state_dict()
    known = {name: tensor.float() for name, tensor in load_file(earlier).items() if tensor.shape == fresh[name].shape}
    network.load_state_dict(fresh | known)


def train(work: Path, device: torch.device, earlier: Path | None = None) -> Judge:
    """Train the judge, from the start, from an `earlier` judge's file or from the last save, and write its weights."""
    torch.manual_seed(3)
    network = JudgeNetwork()
    if earlier:
        start_from(network, earlier)
    network.to(device).train()

    def loss_of_step(step: int) -> Tensor:
        data = batch(step)
        data.pictures, data.false = data.pictures.to(device), data.false.to(device)
        data.looks, data.colours, data.things = (each.to(device) for each in (data.looks, data.colours, data.things))
        with torch.autocast(device.type, torch.bfloat16):
            return objective(network, data)

    run(network, COURSE, loss_of_step, work / "judge.pt", device)
    halves = {name: tensor.to("cpu", torch.float16).contiguous() for name, tensor in network.state_dict().items()}
    save_file({name: tensor for name, tensor in halves.items() if "num_batches" not in name}, WEIGHTS)
    judge = Judge(network.cpu().float(), torch.zeros(len(NAMES), IDENTITY))
    remember(judge)
    return judge
