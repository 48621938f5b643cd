"""Closed forms of section 7: spans, spectra, random controls, Table 7."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraudit.analysis.subspace import (
    SVD,
    amplification,
    expected_similarity,
    intruder_cosines,
    leading_left,
    phi,
    projected_norm,
    random_directions,
    similarity,
    stable_rank,
    svd,
    update_svd,
)

pytestmark = pytest.mark.numerics

shapes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(6, 12))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def diagonal(values: list[float], d_out: int, d_in: int) -> torch.Tensor:
    matrix = torch.zeros(d_out, d_in, dtype=torch.float64)
    for place, value in enumerate(values):
        matrix[place, place] = value
    return matrix


@pytest.mark.parametrize("side", ["right", "left"])
def test_phi_is_1_for_equal_matrices(side):
    matrix = gaussian(5, 9)
    grid = phi(matrix, matrix, side)
    assert grid.shape == (5, 5)
    assert torch.allclose(grid, torch.ones(5, 5, dtype=torch.float64))


def test_phi_is_0_for_orthogonal_rows():
    identity = torch.eye(8, dtype=torch.float64)
    assert phi(identity[:3], identity[3:7]).abs().max() == 0


def test_phi_by_hand():
    """Spans of e1 and of (e1 + e2)/sqrt 2: one squared cosine of 1/2; e3 is shared."""
    one = torch.tensor([[2.0, 0, 0], [0, 0, 1.0]])
    two = torch.tensor([[3.0, 3.0, 0], [0, 0, 1.0]])
    assert torch.allclose(phi(one, two), torch.tensor([[0.5, 0.5], [0.5, 0.75]]).double())


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_phi_is_symmetric_and_in_0_to_1(shape, seed):
    r1, r2, d = shape
    one, two = gaussian(r1, d, seed=seed), gaussian(r2, d, seed=seed + 1)
    grid = phi(one, two)
    assert grid.shape == (r1, r2)
    assert grid.min() >= 0 and grid.max() <= 1
    assert torch.allclose(grid, phi(two, one).mT)


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_mixing_the_rows_keeps_the_full_span(shape, seed):
    r1, r2, d = shape
    one, two = gaussian(r1, d, seed=seed), gaussian(r2, d, seed=seed + 1)
    mixing = torch.linalg.qr(gaussian(r1, r1, seed=seed + 2)).Q * torch.linspace(1, 3, r1)
    assert phi(mixing @ one, two)[-1, -1] == pytest.approx(phi(one, two)[-1, -1].item())


def test_left_directions_of_a_transpose_are_the_right_ones():
    one, two = gaussian(4, 9), gaussian(3, 9, seed=1)
    assert torch.allclose(phi(one, two, "right"), phi(one.mT, two.mT, "left"))


@pytest.mark.parametrize(("i", "j"), [(1, 1), (2, 5), (5, 5), (8, 3)])
def test_random_spans_have_similarity_max_over_d(i, j):
    """For the control and for the singular directions of Gaussian matrices, 400 draws each."""
    d, source = 24, generator()
    expected = expected_similarity(i, j, d)
    assert expected == max(i, j) / d
    control = [
        similarity(random_directions(d, i, source), random_directions(d, j, source))[-1, -1]
        for _ in range(400)
    ]
    matrices = [
        phi(*(torch.randn(8, d, generator=source) for _ in range(2)))[i - 1, j - 1]
        for _ in range(400)
    ]
    for draws in (control, matrices):
        error = torch.stack(draws).std() / math.sqrt(len(draws))
        assert abs(torch.stack(draws).mean() - expected) < 4 * error


@pytest.mark.parametrize(
    ("d_out", "d_in", "r"), [(12, 7, 3), (7, 12, 5), (6, 6, 6), (4, 5, 9), (1, 3, 2)]
)
def test_the_factored_svd_is_the_plain_one(d_out, d_in, r):
    a, b = gaussian(r, d_in), gaussian(d_out, r, seed=1)
    found = update_svd(a, b, 2.0)
    kept = min(r, d_out, d_in)
    assert found.left.shape == (d_out, kept)
    assert found.right.shape == (d_in, kept)
    assert torch.allclose(found.values, torch.linalg.svdvals(2.0 * b @ a)[:kept])
    again = found.left * found.values @ found.right.mT
    assert torch.allclose(again, 2.0 * b @ a)
    plain = svd(2.0 * b @ a)
    assert similarity(found.left, plain.left[:, :kept])[-1, -1] == pytest.approx(1)


def test_stable_rank_of_known_spectra():
    assert stable_rank(torch.tensor([3.0])) == 1
    assert stable_rank(torch.tensor([2.0, 2.0, 2.0])) == pytest.approx(3)
    assert stable_rank(torch.tensor([4.0, 2.0, 0.0])) == pytest.approx(1.25)
    matrix = gaussian(5, 8)
    expected = matrix.norm() ** 2 / torch.linalg.matrix_norm(matrix, 2) ** 2
    assert stable_rank(svd(matrix).values) == pytest.approx(expected.item())


def test_table_7_by_hand():
    """W = diag(4, 3, 2, 1), Delta W = 5 e3 e3^T + 2 e4 e4^T: U^T W V = diag(2, 1)."""
    weight = diagonal([4, 3, 2, 1], 5, 6)
    update = diagonal([0, 0, 5, 2], 5, 6)
    found = amplification(weight, svd(update).leading(2), svd(weight), generator())
    assert found["update_norm"] == pytest.approx(math.sqrt(29))
    assert found["weight_norm"] == pytest.approx(math.sqrt(30))
    assert found["projected_update"] == pytest.approx(math.sqrt(5))
    assert found["projected_weight"] == pytest.approx(5)
    assert 0 < found["projected_random"] < 5
    assert found["amplification"] == pytest.approx(math.sqrt(29 / 5))


@pytest.mark.parametrize(("r", "printed"), [(4, 0.02), (64, 0.33)])
def test_random_projections_explain_the_papers_own_control(r, printed):
    """E||U^T W V||_F^2 = r^2 ||W||_F^2 / (d_out d_in), checked small, then at GPT-3's size."""
    weight, source = gaussian(20, 30), generator(1)
    draws = [
        projected_norm(weight, random_directions(20, 3, source), random_directions(30, 3, source))
        for _ in range(400)
    ]
    mean = sum(draw**2 for draw in draws) / len(draws)
    assert mean == pytest.approx(9 * weight.norm().item() ** 2 / 600, rel=0.1)
    width, norm = 12288, 61.95  # of W_q in the 48th layer of GPT-3 (Table 7)
    assert r * norm / width == pytest.approx(printed, abs=0.01)


def test_the_control_is_seeded_and_orthonormal():
    one, two = (random_directions(9, 4, generator(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.allclose(one.mT @ one, torch.eye(4, dtype=torch.float64))
    assert random_directions(3, 5, generator()).shape == (3, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: svd(torch.zeros(3)), r"must be a matrix with entries, got shape \(3,\)"),
        (lambda: svd(torch.zeros(0, 3)), r"got shape \(0, 3\)"),
        (lambda: svd(torch.full((2, 2), float("nan"))), r"\(2, 2\) has NaN or infinity"),
        (lambda: phi(torch.ones(2, 3), torch.ones(2, 3), "up"), "'right' or 'left', got 'up'"),
        (lambda: phi(gaussian(2, 3), gaussian(2, 4)), "directions of 3 and of 4 entries"),
        (lambda: similarity(torch.ones(3, 2), torch.eye(3)), "one: columns are not orthonormal"),
        (lambda: update_svd(gaussian(2, 3), gaussian(3, 4), 1.0), r"A \(2, 3\) and B \(3, 4\)"),
        (lambda: update_svd(gaussian(2, 3), gaussian(3, 2), 0.0), "scaling .* above 0, got 0.0"),
        (lambda: stable_rank(torch.zeros(2)), r"one above 0, got \[0.0, 0.0\]"),
        (lambda: stable_rank(torch.tensor([1.0, -2.0])), r"got \[1.0, -2.0\]"),
        (lambda: random_directions(0, 1, generator()), "at least 1, got 0 and 1"),
        (lambda: expected_similarity(1, 9, 8), "in 1 to 8, got 1 and 9"),
        (
            lambda: projected_norm(torch.eye(3), torch.eye(3), torch.eye(4)),
            r"weight \(3, 3\) does not go with directions of 3 and 4",
        ),
        (
            lambda: amplification(
                torch.eye(3), svd(torch.zeros(3, 3)), svd(torch.eye(3)), generator()
            ),
            "the update is zero",
        ),
        (
            lambda: amplification(
                torch.eye(3), svd(torch.eye(3)), svd(torch.eye(3)).leading(2), generator()
            ),
            "2 directions of W for 3 of the update",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_update_orthogonal_to_the_weight_amplifies_without_bound():
    weight = diagonal([1, 0], 2, 2)
    update = svd(diagonal([0, 1], 2, 2)).leading(1)
    found = amplification(weight, update, svd(weight), generator())
    assert found["amplification"] == math.inf
    assert isinstance(update, SVD)


def test_the_leading_left_directions_are_those_of_the_whole_decomposition():
    for shape in ((6, 9), (9, 6), (5, 5)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        leading, whole = leading_left(matrix, 3), svd(matrix).left[:, :3]
        torch.testing.assert_close((leading.mT @ whole).abs(), torch.eye(3).double())


def _with_tail() -> torch.Tensor:
    """Return W0 = diag(90, 80, ..., 10, and 16 small values): its directions are the axes."""
    return torch.diag(torch.cat([torch.arange(9, 0, -1) * 10.0, torch.arange(16, 0, -1) / 100]))


@pytest.mark.parametrize(
    ("size", "entries", "intruders"),
    [
        (100.0, range(9, 25), 1),  # unlike every axis: cosine 1/4 with 16 of them
        (1e-4, range(9, 25), 0),  # the same, too small to lead
        (100.0, range(0, 1), 0),  # along W0's first direction
        (100.0, range(20, 21), 0),  # along one of its last, which now leads
        (100.0, range(9, 12), 0),  # cosine 1/sqrt(3) is above a half
    ],
)
def test_a_planted_update_is_an_intruder_where_it_is_large_and_unlike_all_of_w(
    size, entries, intruders
):
    weight = _with_tail()
    direction = torch.zeros(25)
    direction[list(entries)] = len(entries) ** -0.5
    trained = weight + size * torch.outer(direction, direction)
    cosines = intruder_cosines(svd(weight).left, trained, 10)
    assert int((cosines < 0.5).sum()) == intruders
    if intruders:
        assert cosines.min() == pytest.approx(0.25, abs=1e-3)


def test_two_planted_directions_are_two_intruders_and_no_update_is_none():
    weight = _with_tail()
    one, two = torch.zeros(25), torch.zeros(25)
    one[9:17], two[17:25] = 8**-0.5, 8**-0.5
    trained = weight + 200 * torch.outer(one, one) + 150 * torch.outer(two, two)
    basis = svd(weight).left
    assert int((intruder_cosines(basis, trained, 10) < 0.5).sum()) == 2
    assert intruder_cosines(basis, weight, 10).min() == pytest.approx(1.0)
