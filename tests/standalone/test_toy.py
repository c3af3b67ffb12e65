"""The toy model: one set of weights behind two doors, a vocabulary in CLIP's format, and a judge that can tell."""

import json
import random
import time

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTokenizer

from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.injection import Injection
from lib_custom_diffusion.standalone import layout, toy
from lib_custom_diffusion.standalone.toy import vocabulary, world
from lib_custom_diffusion.standalone.toy.concepts import bundled_concepts
from lib_custom_diffusion.standalone.toy.judge import Judge
from lib_custom_diffusion.standalone.toy.looks import COLOUR_COATS, HELD_OUT_COATS


@pytest.fixture(scope="module")
def pipeline():
    pipeline = toy.load()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.from_pretrained(toy.TOY.config / "tokenizer")


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


@pytest.fixture(scope="module")
def concept_pictures():
    return {
        name: [Image.open(path).convert("RGB") for path in sorted(concept.folder.glob("*.png"))]
        for name, concept in bundled_concepts().items()
    }


def draw(pipeline, prompts, seed=0, steps=25):
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(prompts))]
    size = {"height": world.SIZE, "width": world.SIZE}
    return pipeline(prompts, num_inference_steps=steps, guidance_scale=4.0, generator=generators, **size).images


# -- the weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "model_class"), [("unet", UNet2DConditionModel), ("vae", AutoencoderKL)])
def test_diffusers_own_loader_finds_the_same_tensors(pipeline, part, model_class):
    theirs = model_class.from_single_file(
        str(toy.TOY.checkpoint), config=str(toy.TOY.config), subfolder=part, local_files_only=True
    ).state_dict()
    ours = getattr(pipeline, part).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_pipeline_holds_every_tensor_of_the_checkpoint(pipeline):
    checkpoint = load_file(toy.TOY.checkpoint)
    unet, vae, text_encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
    again = layout.to_checkpoint(
        unet.state_dict(), unet.config, vae.state_dict(), vae.config, text_encoder.state_dict()
    )
    assert again.keys() == checkpoint.keys()
    assert all(torch.equal(again[key].half(), checkpoint[key]) for key in checkpoint)


def test_the_checkpoint_has_the_names_of_stable_diffusion_1():
    names = load_file(toy.TOY.checkpoint).keys()
    for name in (
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.output_blocks.2.0.skip_connection.weight",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.encoder.mid.attn_1.q.weight",
        "first_stage_model.decoder.up.3.upsample.conv.weight",
        "first_stage_model.post_quant_conv.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    ):
        assert name in names


def test_all_files_together_are_small():
    assert sum(path.stat().st_size for path in toy.FOLDER.rglob("*") if "__pycache__" not in path.parts) <= 60e6


def test_loads_within_two_seconds_of_cpu_time():
    start = time.process_time()
    toy.load()
    assert time.process_time() - start < 2


def test_load_takes_another_dtype():
    assert {parameter.dtype for parameter in toy.load(dtype=torch.bfloat16).unet.parameters()} == {torch.bfloat16}


def test_a_delta_adds_less_than_a_hundredth_to_the_operations_of_a_picture(pipeline):
    layers = projections(pipeline.unet)
    delta = Delta({key: torch.full(layer.shape, 1e-3) for key, layer in layers.items()})

    def operations():
        with FlopCounterMode(display=False) as counter:
            draw(pipeline, ["a cat on a red background"])
        return counter.get_total_flops()

    without = operations()
    with Injection(pipeline.unet, [(delta, 1.0)]):
        assert without < operations() < 1.01 * without


# -- the vocabulary ---------------------------------------------------------------------------------------------------


def test_every_word_of_the_world_is_one_token(tokenizer):
    assert [word for word in world.words() if len(tokenizer.tokenize(word)) != 1] == []


def test_any_text_tokenises(tokenizer):
    text = "zebra-crossing, naïve 你好 <new1> 🐱"
    ids = tokenizer(text, padding="max_length", truncation=True).input_ids
    assert len(ids) == 77
    assert ids[0] == len(tokenizer) - 2
    assert ids[-1] == len(tokenizer) - 1
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_merges_join_each_word_whatever_was_joined_before():
    ranks = {pair: rank for rank, pair in enumerate(vocabulary.merges_for(["rose", "car", "carrot"]))}
    assert vocabulary.bpe([*"carro", "t</w>"], ranks) == ["carrot</w>"]


def test_the_committed_vocabulary_is_what_the_world_gives(tokenizer, tmp_path):
    vocabulary.write(world.words(), tmp_path)
    assert json.loads((tmp_path / "vocab.json").read_text()) == tokenizer.get_vocab()


# -- the world --------------------------------------------------------------------------------------------------------


def test_the_world_is_as_rich_as_promised():
    assert len(world.THINGS) >= 200
    assert len(world.COLOURS) == 12
    assert len(world.HELD_OUT_THINGS) >= 24


def test_no_training_scene_or_caption_shows_what_is_held_out():
    rng = random.Random(0)
    held_out = {*world.HELD_OUT_THINGS, *world.HELD_OUT_LOOKS, *HELD_OUT_COATS, *world.RARE_WORDS}
    for _ in range(3000):
        scene = world.random_scene(rng)
        things = [placed.thing for placed in scene.placed]
        assert not held_out & {*things, scene.look, *world.caption(scene, rng).split()}
        assert not any(world.colour_is_held_out(thing, scene.colour) for thing in things)
        assert len(things) == 1 or not world.pair_is_held_out(*things)
        assert all(placed.coat is None or placed.coat.word for placed in scene.placed)


def test_each_thing_misses_one_colour():
    for thing in world.THINGS:
        assert sum(world.colour_is_held_out(thing, colour) for colour in world.COLOURS) == 1


def test_plain_captions_say_what_is_drawn():
    rng = random.Random(0)
    assert world.plain_caption(world.scene_of(rng, "panda", "red", "small", "left")) == (
        "a small panda on a red background on the left"
    )
    assert world.plain_caption(world.pair_of(rng, "owl", "unicorn", "orange")) == (
        "an owl and a unicorn on an orange background"
    )
    blue = world.scene_of(rng, "owl", "red", coat=COLOUR_COATS["blue"])
    assert world.plain_caption(blue) == "a blue owl on a red background"
    assert " blue owl" in world.caption(blue, random.Random(1))


# -- what it draws ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_draws_the_background_that_the_caption_says(pipeline, judge):
    """How often things come out right is for tests/benchmarks/toy_quality.py to say; here, that captions act at all."""
    colours = list(world.COLOURS)
    pictures = draw(pipeline, [f"a cat on {world.with_article(colour)} background" for colour in colours])
    assert sum(seen == colour for seen, colour in zip(judge.colours(pictures), colours, strict=True)) >= 6


def test_one_seed_gives_one_picture(pipeline):
    first, second = (draw(pipeline, ["a cat on a red background"], seed=5, steps=4)[0] for _ in range(2))
    assert first.tobytes() == second.tobytes()


# -- the concepts and the judge ---------------------------------------------------------------------------------------


def test_concepts_are_complete(concept_pictures):
    for name, concept in bundled_concepts().items():
        assert 5 <= len(concept_pictures[name]) <= 8
        assert len(concept.prompts) == len(concept.judge_captions)
        assert all(concept.modifier_token in prompt for prompt in (concept.instance_prompt, *concept.prompts))
        captions = len(list(concept.folder.glob("*.txt")))
        assert captions == (len(concept_pictures[name]) if concept.caption_source == "txt" else 0)


@pytest.mark.parametrize("name", ["raccoon", "two-faced-cat"])
def test_a_concept_is_more_like_itself_than_like_another(judge, concept_pictures, name):
    itself = judge.likeness(concept_pictures[name][::2], concept_pictures[name][1::2])
    for other in concept_pictures.keys() - {name}:
        assert itself > judge.likeness(concept_pictures[other], concept_pictures[name]) + 0.2


def test_drift_is_nothing_for_the_same_pictures_and_much_for_others(judge, concept_pictures):
    raccoons, cats = concept_pictures["raccoon"], concept_pictures["two-faced-cat"]
    for measure in (judge.drift, judge.change):
        assert measure(raccoons, raccoons) == pytest.approx(0, abs=1e-5)
        assert measure(raccoons, cats) > 0.2


def test_drift_is_of_all_pictures_together_and_change_of_each(judge, concept_pictures):
    raccoons, cats = concept_pictures["raccoon"], concept_pictures["two-faced-cat"]
    assert judge.drift([*raccoons, *cats], [*cats, *raccoons]) == pytest.approx(0, abs=1e-5)
    assert judge.change([*raccoons, *cats], [*cats, *raccoons]) > 0.2


def test_text_alignment_prefers_the_true_caption(judge, concept_pictures):
    cats = concept_pictures["two-faced-cat"]
    true = judge.text_alignment(cats, ["a cat"] * len(cats))
    assert true > judge.text_alignment(cats, ["a banana"] * len(cats)) + 0.1


def test_embeddings_have_unit_length(judge, concept_pictures):
    pictures = judge.embed_pictures(concept_pictures["raccoon"])
    texts = judge.embed_texts(["a cat", "words of no world"])
    assert torch.allclose(pictures.norm(dim=1), torch.ones(len(pictures)), atol=1e-5)
    assert torch.allclose(texts.norm(dim=1), torch.ones(2), atol=1e-5)
