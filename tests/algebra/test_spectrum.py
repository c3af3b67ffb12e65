"""The spectrum of a layer: what directions do to text, and what rounding them does."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lib_custom_diffusion.algebra.factors import Factors
from lib_custom_diffusion.algebra.spectrum import Spectrum, spectrum_of, square_root

OUT, WIDTH = 40, 24


def half() -> Tensor:
    """L of features of which some directions are a thousand times stronger than others, and most share one."""
    torch.manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH))
    return square_root((basis * 10.0 ** torch.linspace(1, -2, WIDTH)) @ basis.T)


def matrix() -> Tensor:
    torch.manual_seed(2)
    u, _ = torch.linalg.qr(torch.randn(OUT, WIDTH))
    return (u * 0.7 ** torch.arange(WIDTH)) @ torch.randn(WIDTH, WIDTH)


@pytest.fixture(params=["of text", "of all directions alike"])
def spectrum(request: pytest.FixtureRequest) -> Spectrum:
    return spectrum_of({"k": matrix()}, half() if request.param == "of text" else None)


def effect(error: Tensor, root: Tensor | None) -> float:
    return (error if root is None else error @ root).square().sum().item()


def product(spectrum: Spectrum, rank: int) -> Tensor:
    u, vh = spectrum.factors(rank)
    return u @ vh


@pytest.mark.parametrize("kind", ["dense", "factors", "stacked"])
def test_vectors_that_are_not_kept_are_the_same_worked_out_anew(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {"k": matrix(), "v": matrix().flip(0)[:16]}
    if kind != "dense":
        entries["k"] = Factors(entries["k"], torch.eye(WIDTH))  # type: ignore[assignment]
    if kind == "factors":
        del entries["v"]
    whole = spectrum_of(entries, half())
    monkeypatch.setattr("lib_custom_diffusion.algebra.spectrum._HELD", 3)
    few = spectrum_of(entries, half())
    assert few.held.shape == (len(whole.held), 3) and few.held.untyped_storage().nbytes() == 4 * few.held.numel()
    for rank in (2, 3, 9):
        assert all(torch.equal(*both) for both in zip(few.factors(rank), whole.factors(rank)))


def test_features_of_few_captions_have_a_square_root_too() -> None:
    feature = torch.ones(WIDTH)
    root = square_root(torch.outer(feature, feature))
    assert torch.allclose(root @ root.T, torch.outer(feature, feature), atol=1e-3)
    assert torch.linalg.svdvals(root).min() > 1e-3


def test_tails_are_what_the_best_matrix_of_a_rank_misses(spectrum: Spectrum) -> None:
    assert spectrum.outside(np.zeros(0)) == 1.0
    for rank in (0, 3, 10):
        u, vh = spectrum.factors(rank)
        best = u @ vh
        assert spectrum.tail(rank) == pytest.approx(effect(matrix() - best, spectrum.half), rel=1e-3)


def test_us_is_the_least_squares_best_for_any_vh(spectrum: Spectrum) -> None:
    torch.manual_seed(3)
    vh = spectrum.factors(5)[1] + 0.1 * torch.randn(5, WIDTH)
    read = vh if spectrum.half is None else vh @ spectrum.half
    wanted = matrix() if spectrum.half is None else matrix() @ spectrum.half
    best = torch.linalg.lstsq(read.T, wanted.T).solution.T
    assert torch.allclose(spectrum.us(vh, np.zeros((1, 5)))[0], best, atol=1e-3 * best.abs().max().item())


def test_us_of_rows_that_depend_on_each_other_is_finite_and_as_good(spectrum: Spectrum) -> None:
    vh = spectrum.factors(3)[1]
    twice = torch.cat([vh, vh[:1]])
    missed = effect(matrix() - spectrum.us(twice, np.zeros((1, 4)))[0] @ twice, spectrum.half)
    assert missed == pytest.approx(spectrum.tail(3), rel=1e-2)


def test_rounding_of_vh_does_what_is_reckoned(spectrum: Spectrum) -> None:
    """Rows with errors of a hundredth of them, many times: the squared effect of each, and of all with the best us."""
    rank, times, wanted = 6, 400, matrix()
    torch.manual_seed(4)
    vh = spectrum.factors(rank)[1]
    size = 0.01 * vh.square().mean(dim=1, keepdim=True).sqrt()
    apart, made_good = torch.zeros(rank), 0.0
    for _ in range(times):
        error = size * torch.randn_like(vh)
        seen = error if spectrum.half is None else error @ spectrum.half
        apart += seen.square().sum(dim=1) / times
        best = spectrum.us(vh + error, np.zeros((1, rank)))[0] @ (vh + error)
        made_good += (effect(wanted - best, spectrum.half) - spectrum.tail(rank)) / times
    reckoned = 1e-4 * spectrum.rounding[:rank]
    assert apart.numpy() == pytest.approx(reckoned, rel=0.15)
    outside = 1 - (1 - spectrum.outside(np.zeros(rank))) / 0.9  # of errors as small as these, all in the span is
    assert made_good == pytest.approx(reckoned.sum() * outside, rel=0.3)


def test_us_stays_small_where_its_own_rounding_would_spoil_more_than_it_mends(spectrum: Spectrum) -> None:
    """Of rows that nearly depend on each other: the error, that of the rounding included, is least there."""
    torch.manual_seed(3)
    vh = spectrum.factors(4)[1]
    vh[3] = vh[0] + 1e-3 * vh[3]
    noise = np.array([[0.1, 0.03, 0.01, 0.1]])
    read = vh if spectrum.half is None else vh @ spectrum.half
    spoils = torch.from_numpy(noise / (1 - noise)).float() * read.square().sum(dim=1)

    def lost(us: Tensor) -> float:
        return effect(matrix() - us @ vh, spectrum.half) + (us.square() * spoils).sum().item()

    (best,) = spectrum.us(vh, noise)
    for _ in range(20):
        assert lost(best + 0.05 * torch.randn_like(best)) > lost(best)
    (without,) = spectrum.us(vh, np.zeros((1, 4)))
    assert best.norm() < 0.1 * without.norm()


def test_of_factors_it_is_that_of_the_matrix_they_make() -> None:
    torch.manual_seed(0)
    us, vh = torch.randn(OUT, 5), torch.randn(5, WIDTH)
    of_factors, of_matrix = spectrum_of({"k": Factors(us, vh)}, half()), spectrum_of({"k": us @ vh}, half())
    assert len(of_factors.s) == 5
    assert torch.allclose(of_factors.s, of_matrix.s[:5], rtol=1e-3)
    assert torch.allclose(product(of_factors, 5), us @ vh, atol=1e-4)


@pytest.mark.parametrize("as_factors", [(), (0,), (0, 1)])
def test_of_several_it_is_that_of_the_matrices_on_top_of_each_other(as_factors: tuple[int, ...]) -> None:
    matrices = [matrix(), matrix().flip(0)[:16]]
    entries = [Factors(m, torch.eye(WIDTH)) if n in as_factors else m for n, m in enumerate(matrices)]
    both = spectrum_of(dict(zip("kv", entries)), half())
    assert both.outs == {"k": OUT, "v": 16}
    expected = torch.linalg.svdvals(torch.cat(matrices) @ half())
    assert torch.allclose(both.s[:12], expected[:12], rtol=1e-3)
    assert effect(torch.cat(matrices) - product(both, len(both.s)), half()) < 1e-6 * both.tail(0)
    assert both.tail(0) == pytest.approx(sum(effect(m, half()) for m in matrices), rel=1e-3)
    assert both.parts.sum(axis=1) == pytest.approx([effect(m, half()) for m in matrices], rel=1e-3)


def test_what_stacking_leaves_out_is_in_its_tails() -> None:
    """Of the second, nearly all is negligible beside the first direction of its own."""
    torch.manual_seed(0)
    weak = torch.outer(torch.randn(16), torch.randn(WIDTH)) + 1e-6 * torch.randn(16, WIDTH)
    both = spectrum_of({"k": Factors(matrix(), torch.eye(WIDTH)), "v": weak}, None)
    assert len(both.s) < WIDTH + 16 and both.lost > 0
    assert both.tail(0) == pytest.approx(effect(matrix(), None) + effect(weak, None), rel=1e-6)
    assert both.tail(len(both.s)) == both.lost


def test_a_tall_matrix_has_the_same_spectrum_as_its_halves_on_top_of_each_other() -> None:
    torch.manual_seed(0)
    tall = torch.randn(3 * WIDTH, WIDTH)
    found = spectrum_of({"k": tall}, half())
    assert torch.allclose(found.s, torch.linalg.svdvals(tall @ half()), rtol=1e-4)
    u, vh = found.factors(WIDTH)
    assert torch.allclose(u @ vh, tall, atol=1e-4)
    assert torch.allclose(u.T @ u, torch.eye(WIDTH), atol=1e-5)


def test_directions_without_effect_are_never_above(spectrum: Spectrum) -> None:
    assert 0 < spectrum.above(float(spectrum.squares[3])) <= 3
    torch.manual_seed(5)
    assert spectrum_of({"k": torch.randn(OUT, 3) @ torch.randn(3, WIDTH)}, None).above(0.0) == 3
    flat = spectrum_of({"k": torch.zeros(OUT, WIDTH)}, None)
    assert flat.above(0.0) == 0
