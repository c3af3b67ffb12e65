"""Blending: the exact weighted sum, and words that do not clash."""

import pytest
import torch
from torch import Tensor

from lib_custom_diffusion.algebra.blending import Renamed, blend, bundle_words
from lib_custom_diffusion.delta import Delta, Factors, Provenance
from lib_custom_diffusion.errors import UserError

K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
V = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_v.weight"


def factors(seed: int, rank: int = 2) -> Factors:
    torch.manual_seed(seed)
    return Factors(torch.randn(12, rank), torch.randn(rank, 10))


def word(value: float) -> dict[str, Tensor]:
    return {"<new1>": torch.full((1, 10), value)}


def test_it_is_the_weighted_sum_by_hand() -> None:
    a, b = Delta({K: torch.ones(2, 3)}), Delta({K: torch.tensor([[1.0, 2, 3], [4, 5, 6]])})
    found = blend([a, b], [0.5, -2.0]).delta.entries[K]
    assert torch.equal(found, torch.tensor([[-1.5, -3.5, -5.5], [-7.5, -9.5, -11.5]]))


def test_factors_stay_factors_and_are_exact() -> None:
    a, b = factors(1), factors(2, rank=1)
    found = blend([Delta({K: a}), Delta({K: b})], [0.7, 0.3]).delta.entries[K]
    assert isinstance(found, Factors) and found.us.shape == (12, 3)
    assert torch.allclose(found.dense(), 0.7 * (a.us @ a.vh) + 0.3 * (b.us @ b.vh), atol=1e-6)


def test_factors_that_would_be_larger_than_the_matrix_become_it() -> None:
    a, b = factors(1, rank=4), factors(2, rank=4)
    found = blend([Delta({K: a}), Delta({K: b})], [1.0, 1.0]).delta.entries[K]
    assert isinstance(found, Tensor)
    assert torch.allclose(found, a.dense() + b.dense(), atol=1e-5)


def test_layers_that_only_some_have_are_kept() -> None:
    a, b = Delta({K: factors(1)}), Delta({V: torch.ones(12, 10)})
    found = blend([a, b], [2.0, 3.0]).delta.entries
    assert torch.allclose(found[K].dense(), 2 * a.entries[K].dense())
    assert torch.equal(found[V], torch.full((12, 10), 3.0))


def test_clashing_words_are_renamed_to_free_ones_and_told() -> None:
    deltas = [Delta({}, word(float(n)), Provenance(tokens={"<new1>": name})) for n, name in enumerate(["cat", "dog"])]
    deltas.append(Delta({}, {"<new2>": torch.full((1, 10), 9.0)}, Provenance(tokens={"<new2>": "car"})))
    found = blend(deltas, [1.0, 1.0, 1.0])
    assert found.renamed == [Renamed(1, "<new1>", "<new3>")]
    assert {token: vectors[0, 0].item() for token, vectors in found.delta.embeddings.items()} == {
        "<new1>": 0.0, "<new3>": 1.0, "<new2>": 9.0,
    }  # fmt: skip
    assert found.delta.provenance.tokens == {"<new1>": "cat", "<new3>": "dog", "<new2>": "car"}


def test_a_word_takes_the_next_free_number_and_words_of_other_sizes_are_others() -> None:
    a, b = Delta({}, word(1.0)), Delta({}, {"<new1>": torch.ones(2, 10)})
    assert blend([a, b], [1.0, 1.0]).renamed == [Renamed(1, "<new1>", "<new2>")]
    plain = [Delta({}, {"pet": torch.full((1, 4), value)}) for value in (1.0, 2.0)]
    assert blend(plain, [1.0, 1.0]).renamed == [Renamed(1, "pet", "pet2")]


def test_the_class_words_of_a_delta_go_by_the_names_its_words_have_now() -> None:
    deltas = [Delta({}, word(float(n)), Provenance(tokens={"<new1>": name})) for n, name in enumerate(["cat", "dog"])]
    words = bundle_words(deltas)
    assert [words.of(index, delta) for index, delta in enumerate(deltas)] == [{"<new1>": "cat"}, {"<new2>": "dog"}]


def test_provenance_is_what_all_have_in_common() -> None:
    def made(checkpoint: str, steps: int) -> Delta:
        return Delta({}, {}, Provenance("sd1", checkpoint, steps=steps))

    same = blend([made("abc", 250), made("abc", 100)], [1.0, 1.0]).delta.provenance
    assert (same.architecture, same.checkpoint, same.steps) == ("sd1", "abc", 0)
    assert blend([made("abc", 250)], [2.0]).delta.provenance.steps == 250
    assert blend([made("abc", 1), made("xyz", 1)], [1.0, 1.0]).delta.provenance.checkpoint == ""
    unknown = blend([Delta({}), made("abc", 1)], [1.0, 1.0]).delta.provenance
    assert unknown.architecture == "sd1"


def test_the_same_word_in_two_files_is_one_word() -> None:
    found = blend([Delta({}, word(1.0)), Delta({}, word(1.0))], [1.0, 1.0])
    assert list(found.delta.embeddings) == ["<new1>"] and found.renamed == []


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (Delta({}, {}, Provenance("sd1")), Delta({}, {}, Provenance("sd2")), "different models: sd1, sd2"),
        (Delta({K: torch.ones(2, 3)}), Delta({K: torch.ones(2, 4)}), "different models"),
        (Delta({}, {"<a>": torch.ones(1, 3)}), Delta({}, {"<b>": torch.ones(1, 4)}), "different models"),
    ],
)
def test_deltas_of_different_models_are_refused(a: Delta, b: Delta, message: str) -> None:
    with pytest.raises(UserError, match=message):
        blend([a, b], [1.0, 1.0])


def test_a_weight_is_needed_for_each() -> None:
    with pytest.raises(UserError, match="a weight for each"):
        blend([Delta({})], [1.0, 2.0])
