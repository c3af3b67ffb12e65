"""Prior preservation in text space, against formulas written out and attention computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from lib_custom_diffusion.attention import projections, recorded_attention
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.text_features import class_prompts, read_captions
from lib_custom_diffusion.training.config import TrainingConfig
from lib_custom_diffusion.training.prior import TextPrior, attention_shares, moments_by_kind, text_prior
from tiny import WIDTH, TinyBackend
from train_tiny import examples, trainer


def latents() -> list[torch.Tensor]:
    return [example.mean for example in examples().instance]


def test_the_form_and_its_gradient_are_those_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(3)
    root, base = torch.randn(5, 5, generator=generator), torch.randn(4, 5, generator=generator)
    moment = root @ root.T
    delta = nn.Parameter(torch.randn(4, 5, generator=generator))
    delta.grad = torch.ones(4, 5)
    form = TextPrior(0.3, moment, {"layer": torch.trace(base @ moment @ base.T).item()})
    value = form.add_gradients({"layer": delta})

    again = delta.detach().clone().requires_grad_()
    expected = 0.3 * torch.trace(again @ moment @ again.T) / torch.trace(base @ moment @ base.T)
    expected.backward()
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(delta.grad, 1 + again.grad)


def test_the_gradient_is_passed_on_to_both_factors() -> None:
    generator = torch.Generator().manual_seed(4)
    root = torch.randn(5, 5, generator=generator)
    us, vh = (nn.Parameter(torch.randn(*size, generator=generator)) for size in ((4, 2), (2, 5)))
    vh.grad = torch.ones(2, 5)
    value = TextPrior(0.3, root @ root.T, {"layer": 7.0}).add_gradients({"layer.US": us, "layer.Vh": vh})

    again = [each.detach().clone().requires_grad_() for each in (us, vh)]
    delta = again[0] @ again[1]
    expected = 0.3 * torch.trace(delta @ root @ root.T @ delta.T) / 7.0
    expected.backward()
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(us.grad, again[0].grad)
    torch.testing.assert_close(vh.grad, 1 + again[1].grad)


def test_a_delta_as_large_as_the_weights_costs_the_weight_once_a_layer() -> None:
    backend = TinyBackend()
    layers = projections(backend.unet, "crossattn_kv")
    prior = text_prior(backend, layers, ["cat"], latents(), weight=0.2)
    parameters = {key: nn.Parameter(layer.module.weight.clone()) for key, layer in layers.items()}
    assert prior.add_gradients(parameters).item() == pytest.approx(0.2 * len(layers), rel=1e-5)


def test_a_quarter_of_it_is_of_the_class_half_as_it_is_written_and_half_as_it_is_asked_for() -> None:
    backend = TinyBackend()
    layers, ordinary = projections(backend.unet, "crossattn_kv"), read_captions(backend.captions)
    asked = moments_by_kind(backend, class_prompts("cat"))
    written = moments_by_kind(backend, ["photo of a cat"])
    kinds = 0.75 * moments_by_kind(backend, ordinary) + 0.25 * (0.5 * written + 0.5 * asked)
    shares = attention_shares(backend, ordinary, latents())
    expected = sum(share * moment for share, moment in zip(shares, kinds))
    found = text_prior(backend, layers, ["photo of a cat", " ", "photo of a cat"], latents(), weight=0.2).moment
    torch.testing.assert_close(found, expected.float())


def test_a_model_that_is_trained_again_with_other_captions_is_held_on_those(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).write_text(f"photo of a {name}\n")
    layers = projections((backend := TinyBackend()).unet, "crossattn_kv")
    first, again = (text_prior(backend, layers, [], latents(), 0.2, tmp_path / name) for name in ("cat", "dog"))
    anew = text_prior(
        other := TinyBackend(), projections(other.unet, "crossattn_kv"), [], latents(), 0.2, tmp_path / "dog"
    )
    assert torch.equal(again.moment, anew.moment) and not torch.equal(again.moment, first.moment)


def test_recorded_attention_is_the_softmax_of_queries_and_keys() -> None:
    backend = TinyBackend()
    layer = backend.unet.middle_block[1].transformer_blocks[0].attn2
    layer.heads = 2
    x, context = torch.randn(1, 3, 8), torch.randn(1, 4, WIDTH)
    seen: list[torch.Tensor] = []
    with recorded_attention(backend.unet, seen):
        layer(x, context)
    query, key = x[0] @ layer.to_q.weight.T, context[0] @ layer.to_k.weight.T
    heads = [slice(0, 4), slice(4, 8)]
    by_hand = sum((query[:, head] @ key[:, head].T / math.sqrt(4)).softmax(dim=1).mean(dim=0) for head in heads) / 2
    torch.testing.assert_close(seen[0], by_hand[None])
    seen.clear()
    layer(x, context)
    assert seen == []


def test_moments_are_means_within_a_caption_and_then_over_captions() -> None:
    backend = TinyBackend()
    moments = moments_by_kind(backend, ["a red cat", "dog"])
    one, two = (backend.encode_captions([caption], {}).crossattn[0].double() for caption in ("a red cat", "dog"))

    def mean(rows: torch.Tensor) -> torch.Tensor:
        return sum(torch.outer(row, row) for row in rows) / len(rows)

    # TinyBackend has neither start nor end token: its first word is where others have the start token.
    torch.testing.assert_close(moments[0], (mean(one[:1]) + mean(two[:1])) / 2)
    torch.testing.assert_close(moments[1], (mean(one[1:4]) + mean(two[1:2])) / 2)
    torch.testing.assert_close(moments[2], (mean(one[4:5]) + mean(two[2:3])) / 2)
    torch.testing.assert_close(moments[3], (mean(one[5:]) + mean(two[3:])) / 2)


def test_shares_of_the_attention_add_up_to_one() -> None:
    backend = TinyBackend()
    shares = attention_shares(backend, ["a red cat", "photo of a dog"], latents())
    assert shares.sum().item() == pytest.approx(1, abs=1e-6)
    assert (shares > 0).all()


def test_attention_that_rests_on_one_position_gives_it_all_the_weight() -> None:
    backend = TinyBackend()
    backend.encode_captions(["x"], {})
    for block in (backend.unet.input_blocks[1][1], backend.unet.middle_block[1], backend.unet.output_blocks[0][1]):
        attention = block.transformer_blocks[0].attn2
        attention.to_q.weight.zero_()
    shares = attention_shares(backend, ["a red cat"], latents())
    # Queries of 0 attend to all 12 positions alike: 1 first, 3 words, 1 end, 7 of padding.
    torch.testing.assert_close(shares, torch.tensor([1, 3, 1, 7], dtype=torch.float64) / 12, atol=1e-6, rtol=0)


def test_only_layers_that_read_text_are_held() -> None:
    backend = TinyBackend()
    layers = projections(backend.unet, "crossattn")
    prior = text_prior(backend, layers, [], latents(), weight=0.1)
    assert set(prior.scales) == {key for key, layer in layers.items() if layer.role in ("k", "v")}


def change_of(captions: list[str], **settings: object) -> float:
    """How far a training moves what the layers return on captions, relative to what they return."""
    backend = TinyBackend()
    run = trainer(Path("unused"), backend=backend, **settings)
    result = run.run()
    features = backend.encode_captions(captions, {}).crossattn.flatten(0, 1)
    moved = base = 0.0
    for key, layer in projections(backend.unet).items():
        moved += (features @ result.delta.entries[key].T).square().sum().item()
        base += (features @ layer.module.weight.T).square().sum().item()
    return math.sqrt(moved / base)


def test_training_moves_ordinary_captions_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    captions = ["photo of a cat", "a red dog", "photo of a dog far away"]
    own = tmp_path / "captions.txt"
    own.write_text("\n".join(captions))
    free = change_of(captions, prior="none")
    held = change_of(captions, prior="text", text_prior_weight=100.0, prior_captions=str(own))
    assert held < free / 5


def test_the_class_is_held_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TinyBackend()
    layers = projections(backend.unet)
    own = tmp_path / "captions.txt"
    own.write_text("a dog\n")
    without, of_cats = (text_prior(backend, layers, [name], latents(), 1.0, own).moment for name in ("", "cat"))
    cat = backend.token_vectors("cat")[0]
    assert cat @ of_cats @ cat > cat @ without @ cat
    assert torch.equal(of_cats, text_prior(backend, layers, ["cat", " cat "], latents(), 1.0, own).moment)


@pytest.mark.parametrize(
    ("noun", "asked"),
    [
        ("cat", {"photo of a cat", "a small cat on a table", "a cat and a dog", "cat in front of the Eiffel tower"}),
        ("owl", {"photo of an owl", "a small owl on a table", "an owl and a dog", "close up of an owl"}),
        ("art", {"photo of art", "small art on a table", "art and a dog", "close up of art", "far away art"}),
        ("modern art", {"photo of modern art", "red modern art"}),
        ("unicorn", {"photo of a unicorn"}),
    ],
)
def test_the_class_is_asked_for_with_the_article_that_it_has(noun: str, asked: set[str]) -> None:
    backend = Listening()
    text_prior(backend, projections(backend.unet), [noun], latents(), 1.0)
    assert asked <= backend.heard


class Listening(TinyBackend):
    """Remembers the captions that it encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: set[str] = set()

    def encode_captions(self, captions, vectors, sizes=()):  # type: ignore[no-untyped-def]
        self.heard |= set(captions)
        return super().encode_captions(captions, vectors, sizes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prior": "pictures"}, "prior is one of text, none, not 'pictures'"),
        ({"text_prior_weight": 0.0}, "text_prior_weight must be above 0, not 0.0"),
        ({"prior_captions": "nowhere.txt"}, "the captions in nowhere.txt cannot be read"),
        ({"text_prior_weight": math.nan}, "text_prior_weight must be above 0, not nan"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingConfig(**settings).check()


def test_large_latents_are_measured_in_parts_to_the_same_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TinyBackend()
    captions, pictures = ["a red cat", "photo of a dog", "two houses"], latents()
    whole = attention_shares(backend, captions, pictures)
    passes: list[int] = []
    predict = backend.predict
    monkeypatch.setattr(backend, "predict", lambda noisy, *rest: passes.append(len(noisy)) or predict(noisy, *rest))
    monkeypatch.setattr("lib_custom_diffusion.training.prior._MEASURED_CELLS", 2 * pictures[0][0].numel())
    torch.testing.assert_close(attention_shares(backend, captions, pictures), whole)
    assert passes == [2, 2, 2, 1, 1, 1]
