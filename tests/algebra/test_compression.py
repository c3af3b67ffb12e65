"""Compression: what is kept, how it is weighed, and how many bytes it takes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from lib_custom_diffusion.algebra.compression import (
    Limit,
    _at_price,
    _entries,
    _quantized,
    _spectra,
    compress,
    functional_error,
)
from lib_custom_diffusion.algebra.factors import QuantizedFactors
from lib_custom_diffusion.algebra.quantization import NOISE
from lib_custom_diffusion.algebra.spectrum import Spectrum, spectrum_of, square_root
from lib_custom_diffusion.delta import Delta, Factors
from lib_custom_diffusion.errors import UserError

WIDTH, OUT = 48, 64
IntArray = npt.NDArray[np.int64]


def key(layer: int, role: str) -> str:
    return f"model.diffusion_model.input_blocks.{layer}.1.transformer_blocks.0.attn2.to_{role}.weight"


def decaying(out: int, scale: float = 1.0) -> Tensor:
    """A full-rank matrix with singular values 1, 1/2, 1/4, … times scale, down to a millionth."""
    u, _ = torch.linalg.qr(torch.randn(out, min(out, WIDTH)))
    v, _ = torch.linalg.qr(torch.randn(WIDTH, min(out, WIDTH)))
    return scale * (u * 0.75 ** torch.arange(min(out, WIDTH))) @ v.T


def random_delta(layers: int = 3) -> Delta:
    torch.manual_seed(0)
    entries = {key(layer, role): decaying(OUT, 0.01 * 4.0**layer) for layer in range(layers) for role in "kv"}
    return Delta(entries, {"<new1>": torch.randn(1, WIDTH)})


def uneven_moment() -> Tensor:
    """E[c cᵀ] of features of which some directions are a thousand times stronger than others."""
    torch.manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH))
    return (basis * 10.0 ** torch.linspace(1, -5, WIDTH)) @ basis.T


def test_at_full_rank_nothing_is_lost() -> None:
    delta = random_delta()
    small = compress(delta, Limit(rank=WIDTH), uneven_moment())
    for name, entry in delta.entries.items():
        assert torch.allclose(small.entries[name].dense(), entry, atol=1e-5 * entry.norm().item())
    assert functional_error(delta, small, uneven_moment()) < 1e-5


def test_without_a_model_it_is_the_truncated_svd() -> None:
    delta = random_delta(1)
    small = compress(delta, Limit(rank=5))
    for name, entry in delta.entries.items():
        u, s, vh = torch.linalg.svd(entry, full_matrices=False)
        assert torch.allclose(small.entries[name].dense(), (u[:, :5] * s[:5]) @ vh[:5], atol=1e-6)


def test_with_text_features_the_error_is_the_best_that_any_matrix_of_the_rank_has() -> None:
    """Eckart and Young for ΔL, L the root of the moment: the least error is that of its truncated SVD."""
    delta, moment = random_delta(1), uneven_moment()
    small = compress(delta, Limit(rank=4), moment)
    missed = total = 0.0
    for entry in delta.entries.values():
        s = torch.linalg.svdvals(entry @ torch.linalg.cholesky(moment))
        missed, total = missed + s[4:].square().sum(), total + s.square().sum()
    assert functional_error(delta, small, moment) == pytest.approx((missed / total).sqrt().item(), rel=0.02)
    plain = compress(delta, Limit(rank=4))
    assert functional_error(delta, small, moment) < 0.7 * functional_error(delta, plain, moment)


@pytest.mark.parametrize("max_bytes", [9_000, 12_000, 20_000, 40_000])
def test_a_byte_limit_is_kept_and_used(tmp_path: Path, max_bytes: int) -> None:
    small = compress(random_delta(), Limit(max_bytes=max_bytes), uneven_moment())
    small.save(tmp_path / "a.delta.safetensors")
    size = (tmp_path / "a.delta.safetensors").stat().st_size
    assert size <= max_bytes
    assert size > 0.9 * max_bytes or functional_error(random_delta(), small, uneven_moment()) < 1e-4


def test_bytes_go_to_the_layers_that_do_most() -> None:
    small = compress(random_delta(), Limit(max_bytes=15_000))
    ranks = [
        small.entries[key(layer, "k")].us.shape[1] if key(layer, "k") in small.entries else 0 for layer in range(3)
    ]
    assert ranks[0] < ranks[1] < ranks[2]


@pytest.mark.parametrize("moment", [None, uneven_moment()], ids=["all directions alike", "of text"])
def test_more_bytes_never_mean_more_error(moment: Tensor | None) -> None:
    """Up to all directions, where a rounded vh still spans everything."""
    delta = random_delta()
    errors = [
        functional_error(delta, compress(delta, Limit(max_bytes=size), moment), moment)
        for size in (9_000, 12_000, 16_000, 24_000, 30_000, 38_000)
    ]
    assert errors == sorted(errors, reverse=True)


def test_an_energy_share_is_kept_and_not_much_more() -> None:
    delta, moment = random_delta(), uneven_moment()
    small = compress(delta, Limit(energy=0.99), moment)
    lost = functional_error(delta, small, moment) ** 2
    assert 0.003 < lost <= 0.0102
    assert len(small.to_bytes()) < 0.3 * len(delta.to_bytes())


def test_quantized_factors_have_half_the_error_of_float16_ones_in_as_many_bytes() -> None:
    delta, moment = random_delta(), uneven_moment()
    few = compress(delta, Limit(max_bytes=14_000), moment)
    all_float16 = compress(delta, Limit(max_bytes=14_000), moment, quantized=False)
    assert all(isinstance(entry, QuantizedFactors) for entry in few.entries.values())
    assert not any(isinstance(entry, QuantizedFactors) for entry in all_float16.entries.values())
    assert functional_error(delta, few, moment) < 0.5 * functional_error(delta, all_float16, moment)


def test_strong_directions_get_more_bits_than_weak_ones() -> None:
    """A direction of half the singular value gets one bit less: s² · 4⁻ᵇ is the same for all."""
    torch.manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(256, WIDTH))
    v, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH))
    delta = Delta({key(0, "k"): (u * 0.5 ** torch.arange(WIDTH)) @ v.T})
    (entry,) = compress(delta, Limit(max_bytes=5_000)).entries.values()
    assert isinstance(entry, QuantizedFactors)
    given = entry.us_bits.int()
    assert (given.diff() <= 0).all() and 0.8 < (given[0] - given[6]) / 6 < 1.2


def test_vh_gets_fewer_bits_where_text_features_are_strong() -> None:
    """There text makes much of little, so the same effect takes small numbers, whose rounding is small as well."""
    torch.manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(OUT, 2))
    delta = Delta({key(0, "k"): u @ torch.eye(WIDTH)[:2] * torch.tensor([0.1] + [1.0] * (WIDTH - 1))})
    moment = torch.diag(torch.tensor([100.0, 1.0] + [0.01] * (WIDTH - 2)))  # both directions have the effect 1
    (entry,) = compress(delta, Limit(energy=0.99999), moment).entries.values()
    assert isinstance(entry, QuantizedFactors)
    strong = int(entry.vh[:, 0].abs().argmax())
    us_bits, vh_bits = entry.us_bits.int(), entry.vh_bits.int()
    assert abs(us_bits[strong] - us_bits[1 - strong]) <= 1
    assert vh_bits[1 - strong] - vh_bits[strong] >= 3  # a hundredth of the noise: log2(100) / 2 = 3.3 bits


def test_vh_keeps_a_bit_even_where_its_rounding_costs_nothing() -> None:
    """One direction that is all of the text: us makes good whatever error vh has, but not a vh of nothing."""
    torch.manual_seed(0)
    delta = Delta({key(0, "k"): torch.outer(torch.randn(OUT), torch.tensor([1e-3] + [0.0] * (WIDTH - 1)))})
    moment = torch.diag(torch.tensor([1e6] + [1e-2] * (WIDTH - 1)))
    small = compress(delta, Limit(energy=0.9), moment)
    assert functional_error(delta, small, moment) < 0.32


def cost_by_hand(spectrum: Spectrum, us_bits: IntArray, vh_bits: IntArray, price: float) -> float:
    """Squared error and the price of the bytes, of a spectrum whose first directions have so many bits each."""
    rank, cost = len(vh_bits), spectrum.tail(len(vh_bits))
    entries = spectrum.parts.sum(axis=1) / spectrum.parts.sum()
    noise = sum(weight * NOISE[bits] for weight, bits in zip(entries, us_bits, strict=True))
    for j in range(rank):
        cost += NOISE[vh_bits[j]] * spectrum.rounding[j] * spectrum.outside(noise[:rank])
        cost += price * vh_bits[j] * spectrum.width / 8
        for entry, out in enumerate(spectrum.outs.values()):
            cost += NOISE[us_bits[entry, j]] * spectrum.parts[entry, j] + price * (us_bits[entry, j] * out / 8 + 6)
    return cost


@pytest.mark.parametrize("entries", [1, 2])
@pytest.mark.parametrize("price", [1e-4, 1e-6, 1e-8])
def test_no_other_bits_are_a_better_bargain(entries: int, price: float) -> None:
    half = square_root(uneven_moment())
    sizes = (OUT, 24)[:entries]
    spectrum = spectrum_of({str(size): decaying(size) for size in sizes}, half)
    choice = _quantized(spectrum, price)
    assert choice.bits is not None and choice.rank > 2
    us_bits, vh_bits = choice.bits
    best = cost_by_hand(spectrum, us_bits, vh_bits, price)
    header = choice.cost(price) - best
    assert 0 < header < price * 1200 * entries
    for bits in (us_bits.reshape(-1), vh_bits):
        for place in range(len(bits)):
            for change in (-1, 1):
                if 0 <= bits[place] + change <= 16 and (bits is not vh_bits or bits[place] + change > 0):
                    bits[place] += change
                    assert cost_by_hand(spectrum, us_bits, vh_bits, price) >= best * 0.999
                    bits[place] -= change
    assert cost_by_hand(spectrum, us_bits[:, :-1], vh_bits[:-1], price) > best * 0.99


@pytest.mark.parametrize("price", [1e-4, 1e-6, 1e-8])
def test_no_other_rank_of_float16_factors_is_a_better_bargain(price: float) -> None:
    spectrum = spectrum_of({key(0, "k"): decaying(OUT)}, None)
    found = _at_price(spectrum, price, quantized=False)
    costs = [spectrum.tail(r) + price * (2 * r * (OUT + WIDTH) + (300 if r else 0)) for r in range(WIDTH + 1)]
    assert found.rank == int(np.argmin(costs))


def test_the_bytes_that_are_reckoned_are_those_of_the_file() -> None:
    delta = random_delta()
    spectra = _spectra(delta.entries, None, shared=True)
    choices = [_at_price(spectrum, 1e-6, quantized=True) for spectrum in spectra]
    small = Delta(_entries(choices), delta.embeddings)
    taken = len(small.to_bytes()) - len(Delta({}, delta.embeddings).to_bytes())
    assert sum(choice.bytes for choice in choices) == pytest.approx(taken, rel=0.03)


@pytest.mark.parametrize("moment", [None, uneven_moment()], ids=["all directions alike", "of text"])
@pytest.mark.parametrize("price", [3e-6, 1e-6, 1e-8])
def test_the_error_that_is_reckoned_is_that_of_the_entries(moment: Tensor | None, price: float) -> None:
    delta = random_delta()
    spectra = _spectra(delta.entries, None if moment is None else square_root(moment), shared=True)
    choices = [_at_price(spectrum, price, quantized=True) for spectrum in spectra]
    lost = functional_error(delta, Delta(_entries(choices)), moment) ** 2
    reckoned = sum(choice.error for choice in choices) / sum(spectrum.tail(0) for spectrum in spectra)
    assert lost == pytest.approx(reckoned, rel=0.4)


def test_later_threads_are_as_many_as_before() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        compress(random_delta(), Limit(max_bytes=9_000))
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_what_is_reckoned_is_what_comes_out() -> None:
    """At few bits and at many; where the reckoning of errors is too hopeful, what is measured counts."""
    delta, moment = random_delta(), uneven_moment()
    for energy in (0.9, 0.99, 0.9999, 0.999999):
        lost = functional_error(delta, compress(delta, Limit(energy=energy), moment), moment) ** 2
        assert 0.3 * (1 - energy) < lost <= 1 - energy


def test_rank_one_can_be_kept_as_exactly_as_float16_does() -> None:
    torch.manual_seed(0)
    delta = Delta({key(0, "k"): torch.outer(torch.randn(OUT), torch.randn(WIDTH))})
    small = compress(delta, Limit(max_bytes=4_000))
    assert functional_error(delta, small) < 3e-4


def test_layers_that_do_not_come_in_whole_bytes_are_kept_in_float16() -> None:
    torch.manual_seed(0)
    delta = Delta({key(0, "k"): torch.randn(OUT + 1, WIDTH), key(1, "k"): torch.randn(OUT, WIDTH)})
    small = compress(delta, Limit(max_bytes=9_000))
    kinds = {name: type(entry) for name, entry in small.entries.items()}
    assert kinds == {key(0, "k"): Factors, key(1, "k"): QuantizedFactors}


def test_k_and_v_that_read_the_same_directions_share_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    directions = torch.randn(12, WIDTH)
    delta = Delta({key(0, role): torch.randn(OUT, 12) @ directions for role in "kv"})
    small = compress(delta, Limit(max_bytes=4_200))
    assert len(small.to_bytes()) > 3_500
    small.save(tmp_path / "a.delta.safetensors")
    read = Delta.load(tmp_path / "a.delta.safetensors")
    assert read.entries[key(0, "v")].vh is read.entries[key(0, "k")].vh
    assert functional_error(delta, read) == pytest.approx(functional_error(delta, small), rel=1e-3)


def test_k_and_v_are_apart_in_float16_and_where_they_read_different_things() -> None:
    delta = Delta({key(0, "k"): decaying(OUT), key(0, "v"): decaying(OUT)})
    halves = compress(delta, Limit(max_bytes=len(delta.to_bytes()) - 1), quantized=False).entries
    assert halves[key(0, "v")].vh is not halves[key(0, "k")].vh
    odd = compress(Delta({key(0, "k"): torch.randn(OUT, 16), key(0, "v"): torch.randn(OUT, 24)}), Limit(energy=0.9))
    assert [tuple(entry.shape) for entry in odd.entries.values()] == [(OUT, 16), (OUT, 24)]


def test_a_direction_that_only_v_has_takes_no_bits_of_k(tmp_path: Path) -> None:
    torch.manual_seed(0)
    (directions, _), (u, _) = (torch.linalg.qr(torch.randn(size, 12)) for size in (WIDTH, OUT))
    us = u * torch.linspace(3, 1, 12)
    delta = Delta({key(0, "k"): us[:, :9] @ directions.T[:9], key(0, "v"): us.flip(0) @ directions.T})
    small = compress(delta, Limit(max_bytes=4_200))
    keys, shared = small.entries[key(0, "k")], small.entries[key(0, "v")]
    assert isinstance(keys, QuantizedFactors) and keys.vh is shared.vh
    assert (keys.us_bits == 0).sum() == 3
    small.save(tmp_path / "a.delta.safetensors")
    assert functional_error(small, Delta.load(tmp_path / "a.delta.safetensors")) < 1e-6


def test_compressing_again_is_exact_on_the_factors() -> None:
    torch.manual_seed(0)
    us, vh = torch.randn(OUT, 6), torch.randn(6, WIDTH)
    again = compress(Delta({key(0, "k"): Factors(us, vh)}), Limit(rank=10), uneven_moment())
    assert again.entries[key(0, "k")].us.shape == (OUT, 6)
    assert torch.allclose(again.entries[key(0, "k")].dense(), us @ vh, atol=1e-4)
    less = compress(Delta({key(0, "k"): Factors(us, vh)}), Limit(rank=3), uneven_moment())
    direct = compress(Delta({key(0, "k"): us @ vh}), Limit(rank=3), uneven_moment())
    assert torch.allclose(less.entries[key(0, "k")].dense(), direct.entries[key(0, "k")].dense(), atol=1e-3)


def test_compressing_again_never_makes_the_dense_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_factors: Factors) -> Tensor:
        raise AssertionError("dense")

    small = compress(random_delta(), Limit(max_bytes=40_000))
    monkeypatch.setattr(Factors, "dense", refuse)
    compress(small, Limit(max_bytes=12_000), uneven_moment())


def test_the_error_is_worked_by_hand() -> None:
    """Δ = (1 2), (2 0) and a picture's (1 1) on features of which the second is three times as large as the first."""
    moment = torch.diag(torch.tensor([1.0, 9.0]))
    query = key(0, "q")
    delta = Delta({
        key(0, "k"): torch.tensor([[1.0, 2.0]]), key(0, "v"): torch.tensor([[2.0, 0.0]]), query: torch.ones(1, 2)
    })  # fmt: skip
    other = Delta({key(0, "k"): torch.tensor([[1.0, 1.0]]), query: torch.tensor([[1.0, 0.0]])})
    # missed: 1 · 9 of k, 4 of v, which is left out, and 1 · 5 of q, which reads no text; of 37 + 4 + 10
    assert functional_error(delta, other, moment) == pytest.approx((18 / 51) ** 0.5)
    assert functional_error(delta, other) == pytest.approx((6 / 11) ** 0.5)


def test_what_reads_pictures_is_weighed_as_the_mean_of_what_reads_text() -> None:
    """Twins with no direction stronger than others, one of them to_q, beside even features: neither is preferred."""
    torch.manual_seed(0)
    matrix = torch.randn(OUT, WIDTH)
    moment = torch.diag(torch.tensor([4.0] * WIDTH))
    small = compress(Delta({key(0, "k"): matrix, key(0, "q"): matrix.flip(0)}), Limit(max_bytes=5_000), moment)
    ranks = [entry.us.shape[1] for entry in small.entries.values()]
    assert len(ranks) == 2 and abs(ranks[0] - ranks[1]) <= 1


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_float16_factors_keep_small_and_large_deltas(tmp_path: Path, scale: float) -> None:
    delta = Delta({key(0, "k"): decaying(OUT, scale)})
    small = compress(delta, Limit(rank=WIDTH))
    small.save(tmp_path / "a.delta.safetensors")
    assert functional_error(delta, Delta.load(tmp_path / "a.delta.safetensors")) < 1e-3


def test_words_and_their_origin_are_kept() -> None:
    delta = random_delta()
    delta.provenance.tokens = {"<new1>": "cat"}
    small = compress(delta, Limit(rank=2))
    assert torch.equal(small.embeddings["<new1>"], delta.embeddings["<new1>"])
    assert small.provenance == delta.provenance


@pytest.mark.parametrize(
    "limit",
    [{}, {"rank": 0}, {"energy": 1.0}, {"energy": 0.0}, {"energy": float("nan")}, {"rank": 2, "energy": 0.5}],
)
def test_limits_that_make_no_sense_are_refused(limit: dict[str, float]) -> None:
    with pytest.raises(UserError):
        Limit(**limit)  # type: ignore[arg-type]


@pytest.mark.parametrize("entries", [{}, {key(0, "k"): torch.zeros(OUT, WIDTH)}])
def test_a_delta_that_does_nothing_to_text_keeps_its_words(entries: dict[str, Tensor]) -> None:
    small = compress(Delta(entries, {"<new1>": torch.ones(1, WIDTH)}), Limit(max_bytes=5_000))
    assert small.entries == {} and list(small.embeddings) == ["<new1>"]


@pytest.mark.parametrize("room", [-10, 50])
def test_a_limit_that_leaves_no_room_beside_the_words_is_refused(room: int) -> None:
    size = len(Delta({}, random_delta().embeddings).to_bytes()) + room
    with pytest.raises(UserError, match=f"cannot be made as small as {size} bytes"):
        compress(random_delta(), Limit(max_bytes=size))


def test_a_model_of_another_width_is_refused() -> None:
    with pytest.raises(UserError, match="made for another model"):
        compress(random_delta(), Limit(rank=2), torch.eye(WIDTH + 1))


def near_full_rank(width: int = 64) -> tuple[Delta, torch.Tensor]:
    """Deltas whose every direction counts, and text of which few directions are strong."""
    torch.manual_seed(0)
    features = torch.randn(500, width) * torch.logspace(0, -2, width)
    place = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2"
    entries = {f"{place}.{role}.weight": torch.randn(width, width) / width for role in ("to_k", "to_v")}
    return Delta(dict(entries)), features.T @ features / 500


def test_more_bytes_never_lose_more_however_full_the_rank() -> None:
    delta, moment = near_full_rank()
    full = len(delta.to_bytes())
    errors = [
        functional_error(delta, compress(delta, Limit(max_bytes=full * share // 100), moment), moment)
        for share in (30, 40, 50, 60, 80)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.15 and errors[2] < 0.04 and errors[4] < 0.01


@pytest.mark.parametrize("energy", [0.9, 0.99, 0.999])
def test_a_share_of_the_effect_is_kept_however_full_the_rank(energy: float) -> None:
    delta, moment = near_full_rank()
    small = compress(delta, Limit(energy=energy), moment)
    assert 1 - functional_error(delta, small, moment) ** 2 >= energy
    assert len(small.to_bytes()) < len(delta.to_bytes())


def test_what_is_within_the_limit_is_left_as_it_is() -> None:
    delta, moment = near_full_rank(16)
    size = len(delta.to_bytes())
    assert compress(delta, Limit(max_bytes=size), moment) is delta
    assert compress(delta, Limit(energy=1 - 1e-12), moment) is delta
    low = compress(delta, Limit(rank=4), moment)
    assert compress(low, Limit(rank=4), moment) is low
    assert compress(delta, Limit(max_bytes=size - 1), moment) is not delta


def test_what_would_take_more_bytes_than_it_has_is_left_as_it_is() -> None:
    small = compress(random_delta(), Limit(energy=0.99), uneven_moment())
    assert compress(small, Limit(energy=0.999999), uneven_moment()) is small


def test_for_readers_that_know_nothing_of_bits_there_are_none_whatever_there_was() -> None:
    bits = compress(random_delta(), Limit(max_bytes=20_000))
    assert any(isinstance(entry, QuantizedFactors) for entry in bits.entries.values())
    for limit in (Limit(max_bytes=40_000), Limit(rank=WIDTH)):
        plain = compress(bits, limit, quantized=False)
        assert plain.entries.keys() == bits.entries.keys()
        assert not any(isinstance(entry, QuantizedFactors) for entry in plain.entries.values())


def test_the_error_of_factors_is_that_of_the_matrices() -> None:
    torch.manual_seed(1)
    delta, moment = near_full_rank()
    low = compress(delta, Limit(rank=6), moment)
    lower = compress(low, Limit(rank=3), moment)
    dense_low, dense_lower = (Delta({k: e.dense() for k, e in d.entries.items()}) for d in (low, lower))
    for weighed in (None, moment):
        assert functional_error(low, lower, weighed) == pytest.approx(
            functional_error(dense_low, dense_lower, weighed), rel=1e-4
        )
