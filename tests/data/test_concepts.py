"""Concepts are read with errors that say where, and their pictures become examples once, told by the seed."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lib_custom_diffusion.backend import LatentDistribution
from lib_custom_diffusion.data.concepts import (
    Concept,
    ConceptExamples,
    Example,
    PictureSettings,
    encode_concept,
    load_concepts_list,
    views_at_once,
)
from lib_custom_diffusion.errors import UserError
from tiny import TinyBackend

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
PLAIN = PictureSettings(resolution=64, noaug=True, center_crop=True)
PROMPT = "photo of a <new1> cat"


def pictures(folder: Path, **named: Image.Image) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in named.items():
        picture.save(folder / f"{name}.png")
    return folder


def solid(color: tuple[int, ...], size: tuple[int, int] = (20, 20)) -> Image.Image:
    return Image.new({3: "RGB", 4: "RGBA"}[len(color)], size, color)


def stripes(*colors: tuple[int, ...], width: int = 64, height: int = 64) -> Image.Image:
    """Upright stripes, from left to right."""
    picture = solid(colors[0], (width * len(colors), height))
    for index, color in enumerate(colors):
        picture.paste(color, (width * index, 0, width * (index + 1), height))
    return picture


def encoded(folder: Path, settings: PictureSettings = PLAIN, seed: int = 0, **concept: Any) -> ConceptExamples:
    return encode_concept(Concept(PROMPT, folder, **concept), TinyBackend(), settings, seed)


def latent(red: float, green: float, blue: float) -> Tensor:
    """What TinyBackend makes of a color: its channels and their mean."""
    return torch.tensor([red, green, blue, (red + green + blue) / 3])


def same(a: list[Example], b: list[Example]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.mean, y.mean) and torch.equal(x.std, y.std) and torch.equal(x.mask, y.mask)
        and x.caption == y.caption
        for x, y in zip(a, b, strict=True)
    )  # fmt: skip


def write(folder: Path, content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "concepts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def entry(**changes: object) -> dict[str, object]:
    whole = {"instance_prompt": PROMPT, "instance_data_dir": "own", "class_prompt": "cat", "class_data_dir": "reg"}
    return {key: value for key, value in {**whole, **changes}.items() if value != "absent"}


def test_concepts_of_a_list_are_read_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    short = entry(instance_prompt="a <new2> dog", class_prompt="absent", class_data_dir=None)
    assert load_concepts_list(write(tmp_path, [entry(), short])) == [
        Concept(PROMPT, tmp_path / "own", "cat", tmp_path / "reg"),
        Concept("a <new2> dog", tmp_path / "own", "", None),
    ]


def test_folders_are_looked_up_from_the_working_directory_then_from_the_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here / "own", there / "own", there / "reg", there / "only"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    absolute = entry(instance_data_dir=str(there / "own"), class_data_dir=str(tmp_path / "new"))
    found = load_concepts_list(
        write(
            there,
            [entry(), entry(class_data_dir="new"), entry(instance_data_dir="only", class_data_dir="new"), absolute],
        )
    )
    assert [(concept.instance_data_dir, concept.class_data_dir) for concept in found] == [
        (Path("own"), there / "reg"),
        (Path("own"), Path("new")),  # to be made where the concept's pictures are
        (there / "only", there / "new"),
        (there / "own", tmp_path / "new"),
    ]


@pytest.mark.parametrize("key", ["instance_prompt", "instance_data_dir"])
@pytest.mark.parametrize("value", ["absent", "", "  "])
def test_missing_key_is_named_with_its_concept(tmp_path: Path, key: str, value: str) -> None:
    (tmp_path / "own").mkdir()
    with pytest.raises(UserError, match=rf"concepts\.json, concept 2: {key} is missing"):
        load_concepts_list(write(tmp_path, [entry(), entry(**{key: value})]))


@pytest.mark.parametrize("key", ["instance_prompt", "instance_data_dir", "class_prompt", "class_data_dir"])
def test_value_that_is_no_text_is_named_with_its_concept_and_key(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=rf"concept 1: {key} must be a text, not \[3\]"):
        load_concepts_list(write(tmp_path, [entry(**{key: [3]})]))


def test_only_the_keys_of_the_class_may_be_null(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="concept 1: instance_prompt must be a text, not null"):
        load_concepts_list(write(tmp_path, [entry(instance_prompt=None)]))


def test_unknown_key_is_refused_with_the_valid_ones(tmp_path: Path) -> None:
    valid = "instance_prompt, instance_data_dir, class_prompt, class_data_dir"
    with pytest.raises(UserError, match=f"concept 1: unknown key 'prompt'; there are {valid}"):
        load_concepts_list(write(tmp_path, [entry(prompt="x")]))


@pytest.mark.parametrize("folder", ["nowhere", "x" * 5000])
def test_instance_folder_that_is_not_there_is_named_with_its_concept_and_key(tmp_path: Path, folder: str) -> None:
    with pytest.raises(UserError, match=rf"concept 1: instance_data_dir points to {folder}, where there is no folder"):
        load_concepts_list(write(tmp_path, [entry(instance_data_dir=folder)]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"instance_prompt": "a",}]', "is not valid JSON: .*line 1 column"),
        ("[" * 100_000, "is not valid JSON"),
        ('[{"instance_prompt": "a <new1>", "class_prompt": "a", "class_prompt": "b"}]', "it says class_prompt twice"),
        ("", "is not valid JSON"),
        ({"instance_prompt": PROMPT}, "must be a list"),
        ([], "must be a list"),
        (["own"], "concept 1 must be an object"),
    ],
)
def test_malformed_list_is_an_error(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_concepts_list(write(tmp_path, content))


def test_missing_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the concepts list .*absent\.json cannot be read: there is no such file"):
        load_concepts_list(tmp_path / "absent.json")


def test_picture_becomes_the_posterior_of_its_latents(tmp_path: Path) -> None:
    examples = encoded(pictures(tmp_path, red=solid(RED)))
    assert examples.prior == []
    (example,) = examples.instance
    assert example.mean.shape == example.std.shape == (4, 8, 8)
    assert torch.allclose(example.mean, latent(1, -1, -1)[:, None, None].expand(4, 8, 8))
    assert torch.equal(example.std, torch.full((4, 8, 8), 0.1))  # TinyBackend's
    assert torch.equal(example.mask, torch.ones(1, 8, 8))
    assert example.caption == PROMPT
    assert {tensor.dtype for tensor in (example.mean, example.std, example.mask)} == {torch.float32}


def test_resolution_is_the_models_own_if_not_given(tmp_path: Path) -> None:
    settings = PictureSettings(noaug=True)
    assert encoded(pictures(tmp_path, red=solid(RED)), settings).instance[0].mean.shape == (4, 2, 2)  # TinyBackend's 16


def test_center_crop_shows_the_middle(tmp_path: Path) -> None:
    folder = pictures(tmp_path, a=stripes(RED, GREEN, BLUE), b=stripes(RED, GREEN, BLUE).rotate(90, expand=True))
    for example in encoded(folder).instance:
        assert torch.allclose(example.mean[:, 4, 4], latent(-1, 1, -1))
        assert torch.allclose(example.mean, example.mean[:, :1, :1])  # green all over


def test_random_crop_shows_every_part(tmp_path: Path) -> None:
    folder = pictures(tmp_path, a=stripes(RED, GREEN, BLUE))
    settings = PictureSettings(resolution=64, noaug=True, variants=40)
    examples = encoded(folder, settings).instance
    left = torch.stack([example.mean[:, 4, 0] for example in examples])
    right = torch.stack([example.mean[:, 4, -1] for example in examples])
    assert len(examples) == 40
    assert (left - latent(1, -1, -1)).abs().sum(dim=1).min() < 0.01
    assert (right - latent(-1, -1, 1)).abs().sum(dim=1).min() < 0.01
    assert len({float(value) for value in left[:, 0]}) > 2


def test_padding_shows_the_whole_picture_and_does_not_weigh(tmp_path: Path) -> None:
    settings = PictureSettings(resolution=64, noaug=True, resize_mode="pad")
    (example,) = encoded(pictures(tmp_path, a=stripes(RED, BLUE)), settings).instance  # 128 x 64, so 16 pixels above
    assert torch.allclose(example.mean[:, 4, 0], latent(1, -1, -1))
    assert torch.allclose(example.mean[:, 4, 7], latent(-1, -1, 1))
    assert not example.mean[:, :2].any()
    assert example.mask[0, :, 4].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]


def test_hflip_mirrors_about_half_of_the_variants(tmp_path: Path) -> None:
    folder = pictures(tmp_path, a=stripes(RED, BLUE, width=32))
    settings = PictureSettings(resolution=64, noaug=True, hflip=True, variants=60)
    red_on_the_left = [example.mean[0, 0, 0].item() > 0 for example in encoded(folder, settings).instance]
    assert 15 < sum(red_on_the_left) < 45


def test_augmented_pictures_show_only_themselves_where_they_weigh_and_captions_say_how(tmp_path: Path) -> None:
    folder = pictures(tmp_path, a=solid(RED))
    examples = encoded(folder, PictureSettings(resolution=128, variants=80)).instance
    prefixes = set()
    for example in examples:
        prefix = example.caption.removesuffix(PROMPT)
        prefixes.add(prefix)
        shown = example.mean[:, example.mask[0].bool()]
        assert torch.allclose(shown, latent(1, -1, -1)[:, None].expand_as(shown))
        bare = (example.mean[0] < 0.99).float().mean()  # cells with some of the neutral canvas
        if prefix in ("a far away ", "very small "):
            assert bare > 1 - 0.6**2 - 0.01
        elif prefix in ("zoomed in ", "close up "):
            assert bare == 0
            assert example.mask.all()
        else:
            assert bare <= 1 - (8 / 16) ** 2  # 0.6 of 16 cells are 9.6, of which at least 8 are whole
    assert prefixes == {"a far away ", "very small ", "", "zoomed in ", "close up "}


def test_same_seed_gives_the_same_examples_to_the_bit_and_another_seed_others(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "own", a=stripes(RED, GREEN), b=stripes(BLUE, RED, GREEN))
    class_data_dir = pictures(tmp_path / "reg", a=stripes(RED, GREEN), b=stripes(RED, GREEN, BLUE))
    settings = PictureSettings(resolution=64, hflip=True)
    first, again, other = (
        encoded(folder, settings, seed, class_data_dir=class_data_dir, class_prompt="cat") for seed in (7, 7, 8)
    )
    assert same(first.instance, again.instance)
    assert same(first.prior, again.prior)
    assert not same(first.instance, other.instance)
    assert not same(first.prior, other.prior)


def test_pictures_concepts_and_variants_are_drawn_independently(tmp_path: Path) -> None:
    one = stripes(RED, GREEN)
    folder = pictures(tmp_path, a=one, b=one)
    settings = PictureSettings(resolution=64, variants=8)
    examples = encoded(folder, settings).instance
    assert not same(examples[:8], examples[8:])
    assert not same(examples[:1], examples[1:2])
    assert same(encoded(folder, PictureSettings(resolution=64, variants=4)).instance, examples[:4] + examples[8:12])
    other = encode_concept(Concept("a <new2> cat", folder), TinyBackend(), settings, 0).instance
    assert [example.mean.sum() for example in other] != [example.mean.sum() for example in examples]


def test_corrupt_picture_is_named_and_skipped_and_changes_nothing_for_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = PictureSettings(resolution=64, variants=4)
    folder = pictures(tmp_path, a=stripes(RED, GREEN), b=solid(BLUE), c=stripes(BLUE, RED, GREEN))
    whole = encoded(folder, settings).instance
    (folder / "b.png").write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING):
        remaining = encoded(folder, settings).instance
    assert same(remaining, whole[:4] + whole[8:])
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [f"skipped {folder / 'b.png'}"]


def test_only_corrupt_pictures_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="none of the pictures can be used"):
        encoded(tmp_path)


def test_missing_and_empty_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*absent"):
        encoded(tmp_path / "absent")
    with pytest.raises(UserError, match="has no pictures"):
        encoded(tmp_path)
    own = pictures(tmp_path / "own", a=solid(RED))
    with pytest.raises(UserError, match=r"no folder .*absent"):
        encoded(own, class_data_dir=tmp_path / "absent", class_prompt="cat")


class CountingBackend(TinyBackend):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def encode_pictures(self, pixels: Tensor) -> LatentDistribution:
        assert not torch.is_grad_enabled()
        self.batches.append(len(pixels))
        return super().encode_pictures(pixels)


@pytest.mark.parametrize(
    ("settings", "examples", "batches"),
    [
        (PictureSettings(resolution=64, noaug=True, center_crop=True), 1, [1]),
        (PictureSettings(resolution=64, noaug=True, resize_mode="pad"), 1, [1]),
        (PictureSettings(resolution=64, noaug=True), 16, [1]),  # square, so a random crop is always the whole
        (PictureSettings(resolution=64, noaug=True, center_crop=True, hflip=True), 16, [2]),
        (PictureSettings(resolution=64, center_crop=True, variants=10), 10, [4, 4, 2]),
    ],
)
def test_what_is_alike_is_encoded_once(
    tmp_path: Path, settings: PictureSettings, examples: int, batches: list[int]
) -> None:
    backend = CountingBackend()
    concept = Concept(PROMPT, pictures(tmp_path, a=solid(RED)))
    assert len(encode_concept(concept, backend, settings, 0).instance) == examples
    assert backend.batches == batches


def test_captions_come_from_the_source_of_the_settings(tmp_path: Path) -> None:
    folder = pictures(tmp_path, a=solid(RED), b=solid(RED))
    (folder / "a.txt").write_text("my <new1> cat")
    template = tmp_path / "template"
    template.write_text("one [filewords]\ntwo [filewords]")

    def captions(**settings: Any) -> list[str]:
        chosen = PictureSettings(resolution=64, noaug=True, center_crop=True, **settings)
        return [example.caption for example in encoded(folder, chosen).instance]

    assert captions(caption_source="txt") == ["my <new1> cat", PROMPT]
    assert captions(caption_source="filename", filename_word_regex="[ab]") == ["a", "b"]
    drawn = captions(caption_source="template", template=template)
    assert set(drawn[:16]) == {"one my <new1> cat", "two my <new1> cat"}
    assert set(drawn[16:]) == {"one b", "two b"}


def test_regularization_pictures_are_plain_and_have_captions_of_their_own(tmp_path: Path) -> None:
    class_data_dir = pictures(tmp_path / "reg", a=solid(GREEN), b=solid(BLUE), c=solid(RED))
    (class_data_dir / "b.txt").write_text("a cat asleep")
    settings = PictureSettings(resolution=64, num_class_images=2, caption_source="filename")
    own = pictures(tmp_path / "own", a=solid(RED))
    prior = encoded(own, settings, class_data_dir=class_data_dir, class_prompt="cat").prior
    assert [example.caption for example in prior] == ["cat", "a cat asleep"]
    for example, color in zip(prior, (latent(-1, 1, -1), latent(-1, -1, 1)), strict=True):
        assert torch.allclose(example.mean, color[:, None, None].expand(4, 8, 8))
        assert example.mask.all()


def test_alpha_weighs_and_every_variant_has_some_weight(tmp_path: Path) -> None:
    corner = solid((0, 0, 0, 0), (64, 64))
    corner.paste((*RED, 255), (56, 56, 64, 64))
    folder = pictures(tmp_path, a=corner)
    (plain,) = encoded(folder, PictureSettings(resolution=64, noaug=True, center_crop=True, use_alpha=True)).instance
    assert plain.mask.sum() == plain.mask[0, 7, 7] == 1
    augmented = encoded(folder, PictureSettings(resolution=64, use_alpha=True, variants=50)).instance
    assert len(augmented) == 50
    assert all(example.mask.sum() > 0 for example in augmented)
    assert not encoded(folder).instance[0].mask.eq(0).any()  # not asked for


def test_transparent_pictures_are_skipped_where_alpha_weighs_and_alone_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = PictureSettings(resolution=64, noaug=True, resize_mode="pad", use_alpha=True)
    edge = solid((0, 0, 0, 0), (128, 64))  # opaque only where padding begins, which does not weigh
    edge.paste((*RED, 255), (0, 0, 128, 8))
    folder = pictures(tmp_path, nothing=solid((*RED, 0)), edge=edge)
    with pytest.raises(UserError, match=f"none of the pictures in {folder}"):
        encoded(folder, settings)
    pictures(folder, good=solid((*RED, 255)))
    caplog.clear()
    assert len(encoded(folder, settings).instance) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"skipped {folder / 'edge.png'}: nearly all of it is transparent",
        f"skipped {folder / 'nothing.png'}: it is completely transparent",
    ]


def test_progress_counts_pictures_to_their_total_with_those_left_out(tmp_path: Path) -> None:
    own = pictures(tmp_path / "own", a=solid(RED), b=solid(RED))
    (own / "c.png").write_bytes(b"no picture")
    reg = pictures(tmp_path / "reg", a=solid(RED), b=solid(RED))
    told: list[tuple[int, int]] = []
    encode_concept(
        Concept(PROMPT, own, "cat", reg), TinyBackend(), PLAIN, 0, lambda done, total: told.append((done, total))
    )
    assert [total for _, total in told] == [5] * len(told)
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert set(done) == {1, 2, 3, 4, 5}


def test_latents_that_are_no_numbers_are_an_error_that_names_the_picture(tmp_path: Path) -> None:
    class HalfPrecision(TinyBackend):
        def encode_pictures(self, pixels: Tensor) -> LatentDistribution:
            whole = super().encode_pictures(pixels)
            return LatentDistribution(whole.mean * torch.nan, whole.std)

    concept = Concept(PROMPT, pictures(tmp_path, a=solid(RED)))
    with pytest.raises(
        UserError, match=r"VAE of the model tiny makes no numbers of .*a\.png; run it in full precision"
    ):
        encode_concept(concept, HalfPrecision(), PLAIN, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PictureSettings(resolution=100), "multiple of 8 pixels, such as 512, not 100"),
        (PictureSettings(resolution=0), "multiple of 8 pixels, such as 512, not 0"),
        (PictureSettings(resize_mode="stretch"), "resize_mode is one of crop, pad, bucket, not 'stretch'"),
        (PictureSettings(variants=0), "variants must be 1 or more, not 0"),
        (PictureSettings(num_class_images=-1), "num_class_images must be 0 or more, not -1"),
        (
            PictureSettings(caption_source="blip"),
            "caption_source is one of prompt, txt, filename, template, not 'blip'",
        ),
    ],
)
def test_settings_that_no_picture_can_have_are_errors(tmp_path: Path, settings: PictureSettings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        encoded(pictures(tmp_path, a=solid(RED)), settings)


BUCKETS = PictureSettings(resolution=64, noaug=True, resize_mode="bucket")


def test_pictures_in_buckets_keep_their_shape_and_are_shown_to_their_edges(tmp_path: Path) -> None:
    folder = pictures(tmp_path, a=stripes(RED, BLUE, width=48, height=64), b=stripes(RED, BLUE, width=31, height=91))
    wide, upright = encoded(folder, BUCKETS).instance[::16]
    assert wide.mean.shape == (4, 6, 10)  # of 96 x 64 pixels; the nearest of about 64² in multiples of 8 is 80 x 48
    assert upright.mean.shape == (4, 10, 6)  # of 62 x 91
    for example in (wide, upright):
        assert example.mask.all() and example.mask.shape[1:] == example.mean.shape[1:]
        assert torch.allclose(example.mean[:, :, 0], latent(1, -1, -1)[:, None].expand(4, example.mean.shape[1]))
        assert torch.allclose(example.mean[:, :, -1], latent(-1, -1, 1)[:, None].expand(4, example.mean.shape[1]))


def test_augmented_pictures_in_buckets_show_only_themselves_where_they_weigh(tmp_path: Path) -> None:
    folder = pictures(tmp_path, a=solid(RED, (300, 150)))
    settings = PictureSettings(resolution=128, resize_mode="bucket", variants=60)
    examples = encoded(folder, settings).instance
    for example in examples:
        assert example.mean.shape == (4, 11, 23)  # 184 x 88
        shown = example.mean[:, example.mask[0].bool()]
        assert torch.allclose(shown, latent(1, -1, -1)[:, None].expand_as(shown))
        close_up = example.caption.startswith(("zoomed in ", "close up "))
        assert bool(example.mask.all()) == close_up or example.caption == PROMPT
    assert len({example.caption for example in examples}) == 5


def test_regularization_pictures_come_in_the_buckets_of_the_concept(tmp_path: Path) -> None:
    own = pictures(tmp_path / "own", a=solid(RED, (60, 40)), b=solid(RED, (40, 60)), c=solid(RED, (40, 61)))
    regularization = pictures(tmp_path / "reg", **{f"{index}": solid(BLUE, (50 + index, 50)) for index in range(6)})
    examples = encoded(own, BUCKETS, class_data_dir=regularization, class_prompt="cat")
    assert [example.mean.shape[1:] for example in examples.prior] == [(10, 6)] * 4 + [(6, 10)] * 2
    assert all(example.mask.all() for example in examples.prior)


def test_a_picture_that_cannot_be_read_has_no_part_in_the_buckets(tmp_path: Path) -> None:
    own = pictures(tmp_path / "own", b=solid(RED, (40, 60)))
    (own / "a.png").write_bytes(b"no picture")
    regularization = pictures(tmp_path / "reg", a=solid(BLUE), b=solid(BLUE))
    examples = encoded(own, BUCKETS, class_data_dir=regularization, class_prompt="cat")
    assert {tuple(example.mean.shape[1:]) for example in examples.instance + examples.prior} == {(10, 6)}


@pytest.mark.parametrize(("canvas", "together"), [((128, 128), 4), ((512, 512), 4), ((768, 768), 1), ((1344, 768), 1)])
def test_large_views_are_encoded_one_by_one(canvas: tuple[int, int], together: int) -> None:
    assert views_at_once(canvas) == together
