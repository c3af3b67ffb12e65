"""Merging: the constraints hold, little else changes, and what cannot be merged is refused with the reason."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_custom_diffusion.algebra.blending import bundle_words
from lib_custom_diffusion.algebra.merging import (
    _independent_rows,
    _residual,
    authors_skip,
    change_on,
    context_features,
    merge,
    target_features,
)
from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.delta import Delta, Factors, Provenance
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.text_features import (
    OWN_PROMPTS,
    concept_words,
    read_captions,
    second_moment,
    second_moments,
    spoken_features,
)  # fmt: skip
from tiny import WIDTH, TinyBackend

D, OUT = 32, 20
KEYS = [
    f"model.diffusion_model.input_blocks.{n}.1.transformer_blocks.0.attn2.to_{r}.weight" for n in (1, 2) for r in "kv"
]


def random_delta(seed: int, token: str = "<new1>") -> Delta:
    torch.manual_seed(seed)
    return Delta(
        {key: torch.randn(OUT, D) for key in KEYS}, {token: torch.randn(1, D)}, Provenance(tokens={token: "cat"})
    )


def features(seed: int, rows: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(rows, D, dtype=torch.float64)


def moment(rows: Tensor) -> Tensor:
    return rows.T @ rows / len(rows)


def test_each_concepts_words_are_treated_as_its_own_delta_treats_them() -> None:
    deltas, targets = [random_delta(1), random_delta(2)], [features(3, 4), features(4, 3)]
    found = merge(deltas, targets, features(5, 200))
    assert found.residual < 1e-12
    assert found.target_rows == (7, 7)
    for delta, target in zip(deltas, targets):
        for key in KEYS:
            wanted = delta.entries[key].double() @ target.T
            assert torch.allclose(found.delta.entries[key].dense().double() @ target.T, wanted, atol=1e-4)


def test_it_is_the_formula_of_the_paper() -> None:
    """Equation 4 with base weights, solved as it stands: W + v (d)ᵀ with d = C A⁻¹ and v = (V − W Cᵀ)(d Cᵀ)⁻¹."""
    deltas, targets, regularization = (
        [random_delta(1), random_delta(2)],
        [features(3, 2), features(4, 2)],
        features(5, 90),
    )
    found = merge(deltas, targets, regularization).delta.entries[KEYS[0]].dense().double()
    base = features(6, OUT)
    stacked = torch.cat(targets)
    values = torch.cat([(base + delta.entries[KEYS[0]].double()) @ t.T for delta, t in zip(deltas, targets)], dim=1)
    d = torch.linalg.solve(regularization.T @ regularization, stacked.T).T
    merged = base + (values - base @ stacked.T) @ torch.linalg.inv(d @ stacked.T) @ d
    assert torch.allclose(found, merged - base, atol=1e-3)


def test_no_other_delta_that_keeps_the_constraints_changes_captions_less() -> None:
    deltas, targets, regularization = [random_delta(1)], [features(3, 3)], features(5, 200)
    found = merge(deltas, targets, regularization).delta
    least = change_on(found, regularization)
    null = torch.linalg.qr(targets[0].T, mode="complete").Q[:, 3:].T.float()  # moves nothing that is constrained
    for seed in range(5):
        torch.manual_seed(seed)
        other = Delta(
            {key: entry.dense() + 0.1 * torch.randn(OUT, D - 3) @ null for key, entry in found.entries.items()}
        )
        assert change_on(other, regularization) > least


def test_captions_change_less_than_by_the_plain_sum() -> None:
    deltas, regularization = [random_delta(1), random_delta(2)], features(5, 200)
    found = merge(deltas, [features(3, 3), features(4, 3)], regularization).delta
    total = Delta({key: deltas[0].entries[key] + deltas[1].entries[key] for key in KEYS})
    assert change_on(found, regularization) < 0.5 * change_on(total, regularization)
    assert change_on(total, regularization) == pytest.approx(
        sum((e.double() @ regularization.T).square().sum().item() for e in total.entries.values()) ** 0.5, rel=1e-4
    )


def test_the_result_is_stored_as_factors_of_the_number_of_target_rows() -> None:
    found = merge([random_delta(1)], [features(3, 3)], features(5, 200)).delta
    for entry in found.entries.values():
        assert isinstance(entry, Factors)
        assert (entry.us.shape, entry.vh.shape) == ((OUT, 3), (3, D))
    assert len(found.to_bytes()) < 2 * len(KEYS) * 3 * (OUT + D) + 4000


def test_factors_merge_like_the_matrices_they_are() -> None:
    torch.manual_seed(0)
    low = Delta({key: Factors(torch.randn(OUT, 4), torch.randn(4, D)) for key in KEYS})
    full = Delta({key: entry.dense() for key, entry in low.entries.items()})
    targets, regularization = [features(3, 3)], features(5, 200)
    a, b = merge([low], targets, regularization), merge([full], targets, regularization)
    assert torch.allclose(a.delta.entries[KEYS[0]].dense(), b.delta.entries[KEYS[0]].dense(), atol=1e-4)


def test_near_duplicate_targets_that_agree_are_left_out() -> None:
    target = features(3, 3)
    double = torch.cat([target, target * (1 + 1e-9), target[:1] + 1e-7])
    found = merge([random_delta(1)], [double], features(5, 200))
    assert found.target_rows == (3, 7)
    assert found.residual < 1e-10


@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_targets_are_near_or_apart_by_their_length_not_by_its_unit(scale: float) -> None:
    target = features(3, 3)
    regularization = features(5, 200) / scale  # against it the targets are so much longer
    near = torch.cat([target, target[:1] + 1e-5 * features(7, 1)])
    apart = torch.cat([target, target[:1] + 1e-1 * features(7, 1)])
    assert merge([random_delta(1)], [near], regularization).target_rows == (3, 4)
    assert merge([random_delta(1)], [apart], regularization).target_rows == (4, 4)


@pytest.mark.parametrize(("apart", "refused"), [(0.045, False), (0.055, True)])
def test_concepts_may_differ_by_a_twentieth_in_what_they_ask_of_the_same_text(apart: float, refused: bool) -> None:
    first, target = random_delta(1), features(3, 3)
    second = Delta({key: entry / (1 - apart) for key, entry in first.entries.items()}, {}, Provenance())
    with pytest.raises(UserError, match="concept 2 asks") if refused else nullcontext():
        merge([first, second], [target, target], features(5, 200))


def test_two_concepts_that_ask_different_things_of_the_same_text_are_refused() -> None:
    target = features(3, 3)
    with pytest.raises(UserError, match=r"concept 2 asks .* different"):
        merge([random_delta(1), random_delta(2)], [target, target + 1e-9], features(5, 200))


def test_near_duplicate_targets_are_told_and_those_that_nearly_agree_miss_by_what_they_say() -> None:
    """The residual is of the rows that are kept; a row within a thousandth of another's span is not."""
    target = features(3, 3)
    near = torch.cat([target, target[:1] + 1e-4 * features(7, 1)])
    found = merge([random_delta(1)], [near], features(5, 200))
    assert found.target_rows == (3, 4)
    assert found.delta.provenance.settings["merge"]["target_rows"] == 3


def test_rows_are_told_apart_though_each_is_nearly_what_those_before_it_are() -> None:
    """Powers 0 to 39 of numbers from 0 to 1, of which one pass of Gram and Schmidt alone keeps rounding errors."""
    rows = torch.linspace(0, 1, 40, dtype=torch.float64)[:, None] ** torch.arange(40)
    kept = _independent_rows(rows, 1e-3)
    for count, index in enumerate(kept[1:], start=1):
        before = rows[kept[:count]].T
        nearest = before @ torch.linalg.lstsq(before, rows[index][:, None], driver="gelsd").solution
        assert (rows[index] - nearest[:, 0]).norm() > 0.99e-3 * rows[index].norm()
    assert len(kept) > 10


@pytest.mark.parametrize(
    ("class_word", "asked"),
    [
        ("art", ["painting in the style of <new1> art", "<new1> art"]),
        ("cat", ["photo of a <new1> cat", "<new1> cat"]),
        ("artist", ["photo of a <new1> artist", "<new1> artist"]),
    ],
)
def test_a_style_is_asked_for_as_a_style_and_a_thing_as_a_thing(class_word: str, asked: list[str]) -> None:
    delta = Delta({}, {"<new1>": torch.randn(1, WIDTH)}, Provenance(tokens={"<new1>": class_word}))
    backend, words = TinyBackend(), bundle_words([delta])
    (found,), (expected,) = (target_features(backend, [delta], words, prompts) for prompts in ((), [asked]))
    assert torch.equal(found, expected)


def test_the_residual_is_relative() -> None:
    """Worked by hand: two layers, wanted (3 4) and 0, reached (3 4.5) and 0: 0.5 of 5."""
    missed, wanted = torch.tensor([[0.0, 0.5]]), torch.tensor([[3.0, 4.0]])
    assert _residual([missed, torch.zeros(1, 2)], [wanted, torch.zeros(1, 2)]) == pytest.approx(0.1)


def test_the_same_delta_twice_is_itself() -> None:
    found = merge([random_delta(1), random_delta(1)], [features(3, 3)] * 2, features(5, 200))
    assert found.target_rows == (3, 6) and found.residual < 1e-10


def test_regularization_without_full_rank_is_handled() -> None:
    few = features(5, 6)  # of 32 directions
    found = merge([random_delta(1)], [features(3, 3)], few)
    assert found.residual < 1e-5
    assert all(torch.isfinite(entry.dense()).all() for entry in found.delta.entries.values())
    assert change_on(found.delta, few) < 1e-3 * change_on(random_delta(1), few)  # there is room beside six captions


def test_a_layer_that_only_one_concept_trained_is_left_alone_by_the_other() -> None:
    a, b = random_delta(1), random_delta(2)
    del b.entries[KEYS[0]]
    targets = [features(3, 2), features(4, 2)]
    found = merge([a, b], targets, features(5, 200)).delta.entries[KEYS[0]].dense().double()
    assert torch.allclose(found @ targets[1].T, torch.zeros(OUT, 2, dtype=torch.float64), atol=1e-4)


def test_with_contexts_it_is_the_constrained_least_squares_of_them_and_captions() -> None:
    """Solved as it stands, by its Lagrangian: [G Cᵀ; C 0] [Δᵀ; μ] = [right-hand side; (Δ_i C_iᵀ)ᵀ]."""
    deltas, targets = [random_delta(1), random_delta(2)], [features(3, 2), features(4, 2)]
    regularization, moments = features(5, 90), [moment(features(6, 40)), moment(features(7, 70))]
    found = merge(deltas, targets, regularization, moments)
    assert found.residual < 1e-10 and found.target_rows == (4, 4)
    for key in KEYS:
        own = [delta.entries[key].double() for delta in deltas]
        gram, stacked = regularization.T @ regularization / 90 + sum(moments), torch.cat(targets)
        system = torch.cat([torch.cat([gram, stacked.T], dim=1), torch.cat([stacked, torch.zeros(4, 4)], dim=1)])
        asked = torch.cat([each @ target.T for each, target in zip(own, targets)], dim=1)
        right = torch.cat([sum(m @ each.T for m, each in zip(moments, own)), asked.T])
        solved = torch.linalg.solve(system, right)[:D].T
        assert torch.allclose(found.delta.entries[key].double(), solved, atol=1e-4)


def test_targets_that_hardly_differ_are_left_to_the_contexts_where_there_are_any() -> None:
    """Two concepts of one class word: asked for exactly, their delta is wild on all else."""
    deltas, target = [random_delta(1), random_delta(2)], features(3, 1)
    targets = [target, target + 0.01 * features(4, 1)]
    regularization, contexts = features(5, 200), [moment(features(6, 300)), moment(features(7, 300))]
    wild, tame = merge(deltas, targets, regularization), merge(deltas, targets, regularization, contexts)
    assert (wild.target_rows, tame.target_rows) == ((2, 2), (1, 2))
    assert [len(rows) for rows in tame.targets] == [1, 0]
    total = Delta({key: deltas[0].entries[key] + deltas[1].entries[key] for key in KEYS})
    assert change_on(wild.delta, regularization) > 3 * change_on(total, regularization)
    assert change_on(tame.delta, regularization) < change_on(total, regularization)


def test_one_concept_with_contexts_stays_as_it_is_in_them() -> None:
    contexts = features(6, 5000) @ torch.diag(torch.tensor([10.0] * 4 + [0.0] * (D - 4))).double()
    found = merge([random_delta(1)], [contexts[:1]], features(5, 200), [moment(contexts)])
    off = Delta({key: found.delta.entries[key] - random_delta(1).entries[key] for key in KEYS})
    assert change_on(off, contexts) < 0.02 * change_on(random_delta(1), contexts)


def test_with_contexts_factors_and_absent_layers_are_taken_as_the_matrices_they_are() -> None:
    torch.manual_seed(0)
    low = Delta({key: Factors(torch.randn(OUT, 4), torch.randn(4, D)) for key in KEYS[:2]})
    full = Delta({KEYS[0]: low.entries[KEYS[0]].dense(), KEYS[1]: low.entries[KEYS[1]].dense()})
    zero = Delta({**full.entries, KEYS[2]: torch.zeros(OUT, D), KEYS[3]: torch.zeros(OUT, D)})
    targets, contexts = [features(3, 2), features(4, 2)], [moment(features(6, 30)), moment(features(7, 30))]
    for other in (full, zero):
        a, b = (merge([each, random_delta(2)], targets, features(5, 200), contexts).delta for each in (low, other))
        for key in KEYS:
            assert torch.allclose(a.entries[key], b.entries[key], atol=1e-4)


def test_contexts_are_the_concepts_names_in_the_captions_surroundings_at_all_positions() -> None:
    backend = TinyBackend()
    vectors = {"<new1>": torch.full((1, backend.words.shape[1]), 7.0)}
    delta = Delta({}, vectors, Provenance(tokens={"<new1>": "cat"}))
    captions = ["a dog on a chair", "nothing", "a car in {} snow and ice"]
    (found,) = context_features(backend, [delta], bundle_words([delta]), captions, [["two <new1> cats"]])
    prompts = [
        "photo of a <new1> cat", "<new1> cat", "a <new1> cat", "photo of a <new1> cat on a chair",
        "<new1> cat in {} snow and ice", "two <new1> cats",
    ]  # fmt: skip
    rows = backend.encode_captions(prompts, vectors).crossattn.flatten(0, 1).double()
    assert torch.allclose(found, moment(rows), rtol=1e-6)


def test_picture_side_layers_cannot_be_merged() -> None:
    delta = Delta({KEYS[0].replace("to_k", "to_q"): torch.ones(OUT, D)})
    with pytest.raises(UserError, match="blend them instead"):
        merge([delta], [features(3, 2)], features(5, 50))


def test_a_model_of_another_width_is_refused() -> None:
    with pytest.raises(UserError, match=f"reads {D} text features, the model has 8"):
        merge([random_delta(1)], [torch.ones(2, 8)], torch.ones(9, 8))


def test_target_features_are_those_of_the_concepts_words_and_the_end_token() -> None:
    backend = TinyBackend()
    width = backend.words.shape[1]
    vectors = {"<new1>": torch.full((2, width), 7.0)}
    delta = Delta({}, vectors, Provenance(tokens={"<new1>": "cat"}))
    cat = backend.encode_captions(["cat"], {}).crossattn[0, 0].double()
    (found,) = target_features(backend, [delta], bundle_words([delta]))
    # TinyBackend has no start token, so all is one position further on: the first vector is where a model has "a".
    end = torch.zeros(width).double()
    rest = torch.stack([vectors["<new1>"][1].double(), cat, end, end])
    assert torch.allclose(found, torch.cat([rest, rest]))


def test_same_class_word_and_renamed_tokens_ask_of_their_own_words() -> None:
    backend = TinyBackend()
    width = backend.words.shape[1]
    deltas = [
        Delta({}, {"<new1>": torch.full((1, width), value)}, Provenance(tokens={"<new1>": "cat"}))
        for value in (1.0, 2.0)
    ]
    words = bundle_words(deltas)
    assert list(words.vectors) == ["<new1>", "<new2>"]
    assert words.of(1, deltas[1]) == {"<new2>": "cat"}
    prompts = [["a <new1> cat"], ["a <new2> cat"]]
    first, second = target_features(backend, deltas, words, prompts)
    assert first.shape == second.shape


def test_a_delta_without_words_needs_prompts() -> None:
    backend = TinyBackend()
    delta = Delta({key: torch.ones(layer.shape) for key, layer in projections(backend.unet).items()})
    with pytest.raises(UserError, match="delta 1 has no modifier token"):
        target_features(backend, [delta], bundle_words([delta]))
    assert target_features(backend, [delta], bundle_words([delta]), [["photo of a cat"]])[0].shape[0] == 5


def test_concepts_are_called_by_token_and_class_however_the_class_was_put() -> None:
    tokens = {
        "<a>": "cat",
        "<b>": "photo of a cat",
        "<c>": "",
        "<d>": "an animal",
        "<e>": "teddy bear",
        "<f>": "painting",
    }
    assert concept_words(tokens) == ["<a> cat", "<b> cat", "<c>", "<d> animal", "<e> teddy bear", "<f> painting"]


@pytest.mark.parametrize(
    ("class_prompt", "noun"),
    [
        ("a photograph of a cat", "cat"), ("Photos of cats", "cats"), ("a high quality photo of the man", "man"),
        ("close-up of an owl", "owl"), ("portrait of a woman", "woman"), ("portrait", "portrait"),
        ("shot glass", "shot glass"), ("a photo album", "photo album"),
    ],
)  # fmt: skip
def test_the_noun_of_a_class_prompt(class_prompt: str, noun: str) -> None:
    assert concept_words({"": class_prompt}) == [noun]


def test_captions_that_windows_saved_begin_without_its_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa cat\r\n\r\na dog\r\n")
    assert read_captions(tmp_path / "a.txt") == ["a cat", "a dog"]


def test_bundled_captions_are_many_and_different() -> None:
    captions = read_captions()
    assert 480 <= len(captions) <= 560 and len(set(captions)) == len(captions)


class Spelled:
    """A text encoder by which the only feature of a caption is how many letters it has, at each of two positions."""

    def encode_captions(self, captions: Sequence[str], vectors: Mapping[str, Tensor]) -> Any:
        return SimpleNamespace(crossattn=torch.tensor([[[float(len(caption))]] * 2 for caption in captions]))


def test_every_fifth_caption_is_held_out_and_the_others_are_fitted() -> None:
    captions = ["x" * (n + 1) for n in range(20)]
    moments = second_moments(Spelled(), captions, {}, {})  # type: ignore[arg-type]
    squares = [float(len(caption)) ** 2 for caption in captions]
    held_out = squares[::5]
    fitted = [square for index, square in enumerate(squares) if index % 5]
    assert moments.held_out.item() == pytest.approx(sum(held_out) / 4)
    assert moments.fitted.item() == pytest.approx(sum(fitted) / 16)


def test_captions_beyond_the_first_batch_count_alike() -> None:
    captions = ["x" * (n + 1) for n in range(40)]
    moment = second_moment(Spelled(), captions, {})  # type: ignore[arg-type]
    assert moment.item() == pytest.approx(sum(float(len(caption)) ** 2 for caption in captions) / 40)


def test_a_concepts_own_prompts_count_for_one_half() -> None:
    moments = second_moments(Spelled(), ["xx"] * 10, {"<new1>": "cat"}, {})  # type: ignore[arg-type]
    prompts = [prompt.format("<new1> cat") for prompt in OWN_PROMPTS]
    own = [float(len(prompt)) ** 2 for index, prompt in enumerate(prompts) if index % 5]
    assert moments.fitted.item() == pytest.approx((4 + sum(own) / len(own)) / 2)
    assert moments.held_out.item() == pytest.approx((4 + (len(prompts[0]) ** 2 + len(prompts[5]) ** 2) / 2) / 2)


def test_words_to_leave_out_are_those_of_the_caption_at_hand_beyond_the_first_batch() -> None:
    backend = TinyBackend()
    captions = ["cat", *["a cat"] * 19]
    skip = [0, *[1] * 19]
    found = spoken_features(backend, captions, {}, skip)
    one = spoken_features(backend, ["cat"], {})
    other = spoken_features(backend, ["a cat"], {}, [1])
    assert torch.equal(found, torch.cat([one, *[other] * 19]))


def test_moments_weigh_captions_and_own_prompts_alike() -> None:
    backend = TinyBackend()
    width = backend.words.shape[1]
    moments = second_moments(backend, ["a cat"] * 10, {"<new1>": "cat"}, {"<new1>": torch.full((1, width), 100.0)})
    only_captions = second_moments(backend, ["a cat"] * 10, {}, {})
    own = 2 * moments.fitted - only_captions.fitted
    assert torch.allclose(own, own.T) and own.trace() > 100 * only_captions.fitted.trace()
    assert spoken_features(backend, ["a cat"], {}).shape == (3, width)


def test_without_contexts_it_is_the_authors_merge_on_features_as_alike_as_real_ones() -> None:
    """The delta of the paper's eq. 4, solved in float64 by inverses; text features are nearly dependent."""
    turn = torch.linalg.qr(features(9, D))[0]
    spread = torch.logspace(0, -3, D, dtype=torch.float64)[:, None] * turn  # deviations along D directions
    deltas = [random_delta(1), random_delta(2)]
    targets, regularization = [features(3, 2) @ spread, features(4, 2) @ spread], features(5, 2000) @ spread
    found = merge(deltas, targets, regularization).delta
    stacked = torch.cat(targets)
    d = torch.linalg.solve(regularization.T @ regularization, stacked.T).T
    for key in KEYS:
        wanted = torch.cat([delta.entries[key].double() @ target.T for delta, target in zip(deltas, targets)], dim=1)
        exact = wanted @ torch.linalg.inv(d @ stacked.T) @ d
        assert (found.entries[key].dense().double() - exact).norm() < 1e-3 * exact.norm()


def test_prompts_say_the_words_as_each_file_has_them() -> None:
    backend, deltas = TinyBackend(), [random_delta(1), random_delta(2)]
    for delta, seed in zip(deltas, (5, 6)):  # of two vectors: TinyBackend has no start token to skip but a word's first
        delta.embeddings["<new1>"] = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(seed))
    words = bundle_words(deltas)
    assert list(words.vectors) == ["<new1>", "<new2>"]
    prompts = [["a <new1> cat"], ["a <new1> cat"]]
    first, second = target_features(backend, deltas, words, prompts)
    [alone] = target_features(backend, deltas[1:], bundle_words(deltas[1:]), prompts[1:])
    assert torch.equal(second, alone)
    assert not torch.equal(first[0], second[0])


def test_the_authors_leave_out_photo_of_a_where_a_text_begins_with_it() -> None:
    told = {text: authors_skip(text) for text in ("photo of a cat", "a photo of a cat", "here is a photo of a cat")}
    assert list(told.values()) == [3, 3, 0]
