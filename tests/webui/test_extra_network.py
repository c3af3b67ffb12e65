"""<delta:NAME:weight> acts as it says, says what it leaves out, and leaves the host as it was."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from host import TinyHostModel
from modules import processing, sd_hijack, sd_models, shared
from modules.extra_networks import ExtraNetworkParams
from modules.textual_inversion.textual_inversion import Embedding

from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.webui.delta_library import DeltaLibrary
from lib_custom_diffusion.webui.extra_network import DeltaNetwork
from tiny import WIDTH


class Picture(SimpleNamespace):
    """A stand-in of `p`."""

    def __init__(self, **fields) -> None:
        usual = {"prompts": ["a cat"], "negative_prompts": [""], "extra_generation_params": {}, "comments": {}}
        super().__init__(**usual | fields)

    def comment(self, text: str) -> None:
        self.comments[text] = 1


def predict(model, text: str = "a cat") -> torch.Tensor:
    with torch.no_grad():
        context = model.cond_stage_model([text])
        return model.model.diffusion_model(torch.ones(1, 4, 2, 2), torch.tensor([7]), context)


def save(folder: Path, name: str, model, token: str | None = None, scale: float = 0.3, seed: int = 1) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    layers = projections(model.model.diffusion_model)
    entries = {key: scale * torch.randn(layer.shape, generator=generator) for key, layer in layers.items()}
    embeddings = {} if token is None else {token: torch.randn(2, WIDTH, generator=generator)}
    made = Delta(entries, embeddings)
    made.save(folder / f"{name}.delta.safetensors", dtype=torch.float32)
    return made


def of_another_shape() -> TinyHostModel:
    """A model that the deltas of `save` do not fit."""
    model = TinyHostModel(seed=5)
    model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2.to_k = torch.nn.Linear(WIDTH, 9, bias=False)
    return model


def tags(*items: str) -> list[ExtraNetworkParams]:
    return [ExtraNetworkParams(items=item.split(":")) for item in items]


@pytest.fixture
def network(host, tmp_path) -> DeltaNetwork:
    return DeltaNetwork(DeltaLibrary(tmp_path / "deltas"))


def test_the_model_answers_as_with_weights_to_which_the_delta_was_added(network, host, tmp_path):
    made = save(tmp_path / "deltas", "cat", host)
    edited = TinyHostModel()
    edited.load_state_dict(host.state_dict())
    for key, layer in projections(edited.model.diffusion_model).items():
        layer.module.weight.data += 0.8 * made.entries[key]
    network.activate(Picture(), tags("cat:0.8"))
    assert torch.allclose(predict(host), predict(edited), atol=1e-6)
    assert not torch.allclose(predict(host), predict(TinyHostModel()), atol=1e-3)


def test_afterwards_the_model_and_its_words_are_the_same_to_the_bit(network, host, tmp_path):
    save(tmp_path / "deltas", "cat", host, "<new1>")
    before, spoken = predict(host), predict(host, "a <new1> cat")
    network.activate(Picture(), tags("cat"))
    assert not torch.equal(predict(host), before)
    network.deactivate(Picture())
    assert torch.equal(predict(host), before)
    assert torch.equal(predict(host, "a <new1> cat"), spoken)
    assert sd_hijack.model_hijack.embedding_db.word_embeddings == {}
    assert sd_hijack.model_hijack.embedding_db.ids_lookup == {}


def test_each_call_replaces_the_one_before_without_a_deactivate_between(network, host, tmp_path):
    save(tmp_path / "deltas", "cat", host)
    before = predict(host)
    network.activate(Picture(), tags("cat:0.5"))
    half = predict(host)
    network.activate(Picture(), tags("cat:1"))
    network.activate(Picture(), tags("cat:0.5"))
    assert torch.equal(predict(host), half)
    network.activate(Picture(), [])
    assert torch.equal(predict(host), before)


def test_two_deltas_add_up(network, host, tmp_path):
    save(tmp_path / "deltas", "one", host, seed=1)
    save(tmp_path / "deltas", "two", host, seed=2)
    network.activate(Picture(), tags("one", "two:0"))
    alone = predict(host)
    network.activate(Picture(), tags("one:0.25", "two:0.5", "one:0.75", "two:-0.5"))
    assert torch.allclose(predict(host), alone, atol=1e-6)


def test_tokens_are_known_while_the_delta_is_used_also_before_punctuation(network, host, tmp_path):
    made = save(tmp_path / "deltas", "cat", host, "<new1>")
    network.activate(Picture(), tags("cat"))
    for text, row in (("<new1>", 1), ("a <new1>, red", 2)):
        assert torch.equal(host.cond_stage_model([text])[0, row : row + 2], made.embeddings["<new1>"])


def test_an_embedding_of_the_hosts_own_comes_back(network, host, tmp_path):
    database = sd_hijack.model_hijack.embedding_db
    own = Embedding(torch.ones(1, WIDTH), "mycat")
    own.vectors, own.shape = own.vec.shape
    database.register_embedding_by_name(own, host, "mycat")
    made = save(tmp_path / "deltas", "cat", host, "mycat")
    network.activate(Picture(), tags("cat"))
    assert torch.equal(host.cond_stage_model(["mycat"])[0, 1:3], made.embeddings["mycat"])
    network.activate(Picture(), [])
    assert database.word_embeddings == {"mycat": own}
    assert torch.equal(host.cond_stage_model(["mycat"])[0, 1:2], own.vec)


def test_a_prompt_that_will_not_draw_what_was_learned_is_remarked_on(network, host, tmp_path):
    save(tmp_path / "deltas", "cat", host, "<new1>")
    own = Embedding(torch.ones(1, WIDTH), "<own>")
    own.vectors, own.shape = own.vec.shape
    sd_hijack.model_hijack.embedding_db.register_embedding_by_name(own, host, "<own>")
    said = Picture(prompts=["a <new2> cat"])
    network.activate(said, tags("cat:3"))
    assert list(said.comments) == [
        "Custom Diffusion: <new2> is plain text: no delta in the prompt has that word, and no embedding."
        " Did you mean <new1>?",
        "Custom Diffusion: The prompt has none of its delta's words: <new1>.",
        "Custom Diffusion: A weight of 3 is far from 1, at which the delta was trained: try 0.5 to 1.2.",
    ]
    for fine in (Picture(prompts=["a <NEW1> cat <own>"]), Picture(prompts=["a cat"], is_hr_pass=True)):
        network.activate(fine, tags("cat:1"))
        assert fine.comments == {}


def test_tokens_come_back_when_the_host_has_read_its_folder_again(network, host, tmp_path):
    made = save(tmp_path / "deltas", "cat", host, "<new1>")
    network.activate(Picture(), tags("cat"))
    sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)
    network.activate(Picture(), tags("cat"))
    assert torch.equal(host.cond_stage_model(["<new1>"])[0, 1:3], made.embeddings["<new1>"])


def test_the_delta_follows_when_the_host_changes_its_model_in_mid_picture(network, host, tmp_path, monkeypatch):
    save(tmp_path / "deltas", "cat", host, "<new1>")
    network.activate(Picture(), tags("cat"))
    other = TinyHostModel(seed=5)
    bare, before = predict(other), predict(TinyHostModel())
    monkeypatch.setattr(shared, "sd_model", other)
    monkeypatch.setattr(sd_models.model_data, "sd_model", other)
    network.follow_model(other)
    network.activate(SimpleNamespace(prompts=None), [])  # the host's empty prompt
    assert not torch.equal(predict(other), bare)
    assert torch.equal(predict(host), before)
    network.deactivate(Picture())
    assert torch.equal(predict(other), bare)


def test_a_delta_that_does_not_fit_the_new_model_says_so_and_does_nothing(network, host, tmp_path, monkeypatch):
    save(tmp_path / "deltas", "cat", host)
    p = Picture()
    network.activate(p, tags("cat"))
    other = of_another_shape()
    monkeypatch.setattr(sd_models.model_data, "sd_model", other)
    network.before_step(SimpleNamespace())
    network.before_step(SimpleNamespace())
    assert [text for text in p.comments if "left out from here on" in text and "does not fit" in text]
    assert not any(module._forward_hooks for module in other.modules())


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("dog:1", "there is no delta 'dog'"),
        ("broken:1", "broken.delta.safetensors: it is a text, not tensors"),
        ("other:1", "does not fit this model"),
        ("wide:1", "its word <w> is 5 numbers wide"),
        ("cat:much", "its weight should be a number, not 'much'"),
        ("cat:1e38", "its weight should be below 1,000,000, not '1e38'"),
        ("cat:nan", "its weight should be a number, not 'nan'"),
        ("cat:unet=-inf", "its weight should be a number, not '-inf'"),
        ("cat:0.5:te=1", "te= has no meaning for a delta"),
        ("cat:1:0.5", "it has several weights (1, 0.5)"),
    ],
)
def test_what_cannot_be_used_is_left_out_and_said_and_the_rest_is_used(network, host, tmp_path, tag, said):
    folder = tmp_path / "deltas"
    save(folder, "cat", host)
    (folder / "broken.delta.safetensors").write_bytes(b"nothing of the kind")
    Delta({"model.diffusion_model.input_blocks.99.1.attn2.to_k.weight": torch.ones(2, 2)}).save(
        folder / "other.delta.safetensors"
    )
    Delta({}, {"<w>": torch.ones(1, 5)}).save(folder / "wide.delta.safetensors")
    network.activate(Picture(), tags("cat:0.5"))
    alone = predict(host)
    p = Picture()
    network.activate(p, tags(tag, "cat:0.5"))
    assert torch.equal(predict(host), alone)
    [comment] = p.comments
    assert said in comment and f"<delta:{tag}>" in comment


def test_infotext_names_the_file_by_its_hash_and_finds_it_under_another_name(network, host, tmp_path):
    save(tmp_path / "deltas", "cat, mine", host)
    p = Picture()
    network.activate(p, tags("cat, mine:0.8"))
    [value] = p.extra_generation_params.values()
    assert list(p.extra_generation_params) == ["Delta hashes"]
    assert value == f"cat mine: {network.deltas.find('cat, mine').shorthash}"
    (tmp_path / "deltas" / "cat, mine.delta.safetensors").rename(tmp_path / "deltas" / "kitty.delta.safetensors")
    network.deltas.refresh()
    pasted = {"Prompt": "a cat <delta:cat, mine:0.8> <delta:x:1>", "Delta hashes": value}
    network.restore_names("", pasted)
    assert pasted["Prompt"] == "a cat <delta:kitty:0.8> <delta:x:1>"


def test_without_a_delta_infotext_says_nothing(network, host):
    p = Picture()
    network.activate(p, [])
    assert p.extra_generation_params == {} and p.comments == {}


def test_a_word_of_the_folder_without_its_delta_is_told_and_nothing_else_is(network, host, tmp_path):
    for name, word in (("rac", "<rac>"), ("ordinary", "cat")):
        save(tmp_path / "deltas", name, host, word)
    network.deltas.refresh()
    p = Picture(prompts=["a <Rac>, and a cat with <b>hats</b>, <new7>, __animal__ and <segment:0.5>"])
    network.activate(p, [])
    assert list(p.comments) == [
        "Custom Diffusion: <rac> only means something with its delta: add <delta:rac:1> to the prompt."
    ]
    known = Embedding(torch.ones(1, WIDTH), "<rac>")
    known.vectors, known.shape = known.vec.shape
    sd_hijack.model_hijack.embedding_db.register_embedding_by_name(known, host, "<rac>")
    p = Picture(prompts=["a <rac>"])
    network.activate(p, [])
    assert ["the embedding without its delta: add <delta:rac:1>" in each for each in p.comments] == [True]
    network.activate(p := Picture(prompts=["a <rac>"]), tags("rac"))
    assert not p.comments


def test_of_two_words_the_one_whose_delta_is_not_in_the_prompt_is_told(network, host, tmp_path):
    for name, word in (("rac", "<rac>"), ("robo", "<robo>")):
        save(tmp_path / "deltas", name, host, word)
    p = Picture(prompts=["a <rac>"], negative_prompts=["a <robo>"])
    network.activate(p, tags("rac"))
    assert list(p.comments) == [
        "Custom Diffusion: <robo> only means something with its delta: add <delta:robo:1> to the prompt."
    ]


def test_tags_without_effect_are_told(network, host, tmp_path):
    save(tmp_path / "deltas", "rac", host, "<rac>")
    p = Picture(
        prompts=["a <rac> <delta:rac:1", "a <rac>"], negative_prompts=["ugly <delta:rac:1> <lora:x:1>"],
        extra_network_data={"Delta": [], "delta": [], "lora": []},
    )  # fmt: skip
    network.activate(p, tags("rac:1", "rac:0.5"))
    assert [each.removeprefix("Custom Diffusion: ") for each in p.comments] == [
        "rac is in the prompt several times; its weights add up to 1.5",
        "<Delta:…> is not known; write <delta:…>, in small letters.",
        "<delta:rac:1 is plain text, as it has no > at its end.",
        "<delta:rac:1> has no effect in the negative prompt; write it into the prompt.",
    ]
    save(tmp_path / "deltas", "a mug-9 of mine", host, "mug-9")
    network.deltas.refresh()
    network.activate(p := Picture(negative_prompts=["<delta:a mug-9 of mine:1>"]), [])
    assert len(p.comments) == 1  # the tag's name is not the word


def test_encoded_prompts_are_forgotten_when_a_file_has_changed(network, host, tmp_path):
    save(tmp_path / "deltas", "cat", host, "<new1>")
    p = Picture(cached_c=["key", "conditioning"], cached_uc=["key", "conditioning"])
    network.activate(p, tags("cat"))
    p.cached_c[:], p.cached_uc[:] = ["key", "conditioning"], ["key", "conditioning"]
    network.activate(p, tags("cat:0.5"))
    assert p.cached_c == ["key", "conditioning"]
    save(tmp_path / "deltas", "cat", host, "<new1>", scale=0.5, seed=9)
    network.activate(p, tags("cat"))
    assert p.cached_c == [None, None] and p.cached_uc == [None, None]


def test_a_prompt_encoded_while_its_delta_was_missing_is_encoded_anew_when_the_file_comes(network, host, tmp_path):
    shared_by_pictures = processing.StableDiffusionProcessing.cached_c
    hires = processing.StableDiffusionProcessingTxt2Img.cached_hr_c
    network.activate(Picture(), tags("cat"))
    network.deactivate(Picture())
    shared_by_pictures[:], hires[:] = ["key", "without the word"], ["key", "without the word"]
    network.activate(Picture(), tags("cat"))
    network.deactivate(Picture())
    assert shared_by_pictures == hires == ["key", "without the word"]
    save(tmp_path / "deltas", "cat", host, "<new1>")
    network.activate(Picture(), tags("cat"))
    assert shared_by_pictures == hires == [None, None]


@pytest.mark.parametrize(
    ("tag", "same"), [("cat:unet=0.5", "cat:0.5"), ("cat:0.9:unet= 0.5", "cat:0.5"), ("cat", "cat:1")]
)
def test_the_weight_may_be_named_as_loras_is(network, host, tmp_path, tag, same):
    save(tmp_path / "deltas", "cat", host)
    bare = predict(host)
    network.activate(Picture(), tags(same))
    expected = predict(host)
    network.deactivate(Picture())
    p = Picture()
    network.activate(p, tags(tag))
    assert torch.equal(predict(host), expected) and not torch.equal(expected, bare) and not p.comments


@pytest.mark.parametrize("name", ["a=b", "a=b=c", "unet=2"])
def test_a_name_may_have_an_equals_sign(network, host, tmp_path, name):
    save(tmp_path / "deltas", name, host)
    bare, p = predict(host), Picture()
    network.activate(p, tags(f"{name}:0.5"))
    assert not torch.equal(predict(host), bare) and not p.comments


@pytest.mark.parametrize("between", [True, False], ids=["between pictures", "within one"])
def test_a_delta_that_fitted_the_model_before_is_left_out_of_one_that_it_does_not_fit(
    network, host, tmp_path, monkeypatch, between
):
    save(tmp_path / "deltas", "cat", host)
    network.activate(Picture(), tags("cat"))
    if between:
        network.deactivate(Picture())
    monkeypatch.setattr(sd_models.model_data, "sd_model", of_another_shape())
    p = Picture()
    network.activate(p, tags("cat"))
    [comment] = p.comments
    assert "<delta:cat> was left out" in comment and "does not fit" in comment


def test_the_next_picture_with_the_same_deltas_prepares_nothing_anew(network, host, tmp_path):
    save(tmp_path / "deltas", "cat", host)
    network.activate(Picture(), tags("cat:0.5"))
    first, acting = network.acting._injection, predict(host)
    network.deactivate(Picture())
    network.activate(Picture(), tags("cat:0.5"))
    assert network.acting._injection is first
    assert torch.equal(predict(host), acting)
    network.deactivate(Picture())
    network.activate(Picture(), tags("cat:0.6"))
    assert network.acting._injection is not first
    assert not torch.equal(predict(host), acting)
