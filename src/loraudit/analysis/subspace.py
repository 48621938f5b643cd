"""What an update looks like: the paper's section 7 as functions of matrices.

    Delta W = (alpha/r) B A      A (r, d_in), B (d_out, r)
    phi(M_1, M_2, i, j) = || U_i^T U_j ||_F^2 / min(i, j)      in [0, 1]     Hu et al. 2022, eq. 4

U_i holds the first i singular vectors of M_1 as columns, U_j the first j of M_2: phi is 1 where one
span holds the other and 0 where they are orthogonal. It is the mean squared cosine of the principal
angles between the two spans, one minus the squared projection metric (appendix G).

The paper has two conventions. Section 7.2 takes the *right* singular vectors of A: directions of a
layer's input, which any two A of one layer share, whatever their ranks. Appendix G says *left*.
The left vectors of A have r entries and can't be compared between ranks, so "left" is meant for
matrices of d_out rows: B, or a whole Delta W or W. These are directions of a layer's output.

Everything is computed in float64. No unit: norms are of the weights as they are.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Side = Literal["right", "left"]
ORTHONORMAL = 1e-6
"""Largest entry of U^T U - 1 with which columns still count as orthonormal."""


class SVD(NamedTuple):
    """M = left diag(values) right^T: left (d_out, k), values (k,) falling, right (d_in, k)."""

    left: Float[Tensor, "d_out k"]
    values: Float[Tensor, " k"]
    right: Float[Tensor, "d_in k"]

    def side(self, side: Side) -> Float[Tensor, "d k"]:
        """Return the singular vectors of one side, as columns."""
        if side not in ("right", "left"):
            raise ValueError(f"side must be 'right' or 'left', got {side!r}")
        return self.right if side == "right" else self.left

    def leading(self, count: int) -> "SVD":
        """Keep the first `count` directions, or all where there are fewer; a copy."""
        left, values, right = self
        return SVD(left[:, :count].clone(), values[:count].clone(), right[:, :count].clone())


def svd(matrix: Float[Tensor, "d_out d_in"]) -> SVD:
    """Return the thin singular value decomposition of a matrix.

    Raises:
        ValueError: no matrix, an empty one, or one with NaN or infinity.
    """
    left, values, right = torch.linalg.svd(_matrix("matrix", matrix), full_matrices=False)
    return SVD(left, values, right.mT)


def update_svd(a: Float[Tensor, "r d_in"], b: Float[Tensor, "d_out r"], scaling: float) -> SVD:
    """Return the SVD of Delta W = scaling B A without making Delta W.

    With B = Q_B R_B and A^T = Q_A R_A, Delta W = Q_B (scaling R_B R_A^T) Q_A^T: only the core, at
    most r x r, is decomposed. k is min(r, d_out, d_in).

    Raises:
        ValueError: factors that do not multiply, with NaN or infinity, or a scaling not above 0.
    """
    a, b = _matrix("A", a), _matrix("B", b)
    if a.shape[0] != b.shape[1]:
        raise ValueError(f"A {tuple(a.shape)} and B {tuple(b.shape)} have different ranks")
    if not scaling > 0:
        raise ValueError(f"scaling must be above 0, got {scaling}")
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.mT)
    core = svd(scaling * r_b @ r_a.mT)
    return SVD(q_b @ core.left, core.values, q_a @ core.right)


def leading_left(matrix: Float[Tensor, "d_out d_in"], count: int) -> Float[Tensor, "d_out k"]:
    """Return the first `count` left singular vectors of a matrix, or all where there are fewer.

    They are eigenvectors of the smaller Gram matrix, which takes a fraction of a whole SVD's time.
    """
    matrix = _matrix("matrix", matrix)
    wide = matrix.shape[0] <= matrix.shape[1]
    vectors = torch.linalg.eigh(matrix @ matrix.mT if wide else matrix.mT @ matrix).eigenvectors
    vectors = vectors.flip(1)[:, :count]
    return vectors if wide else torch.nn.functional.normalize(matrix @ vectors, dim=0)


def intruder_cosines(
    basis: Float[Tensor, "d_out n"], trained: Float[Tensor, "d_out d_in"], count: int
) -> Float[Tensor, " k"]:
    """Return how alike each leading direction of a trained W is to some direction of its start.

    A direction below a threshold is an intruder dimension (Shuttleworth et al. 2024, arXiv
    2410.21228): a leading left singular vector of W0 + Delta W that is unlike all those of W0.

    Args:
        basis: all left singular vectors of W0, as columns.
        trained: W0 + Delta W.
        count: k, how many leading directions of `trained` are looked at.

    Returns:
        The largest absolute cosine of each with any column of `basis`, in [0, 1].
    """
    leading = leading_left(trained, count).to(basis.dtype)
    return (basis.mT @ leading).abs().amax(dim=0).clamp(max=1.0)


def stable_rank(values: Float[Tensor, " k"]) -> float:
    """Return ||M||_F^2 / sigma_1^2 from singular values: 1 for rank one, k for k equal values.

    Raises:
        ValueError: a negative value, or none above 0 (a zero matrix has no directions).
    """
    if values.numel() == 0 or not values.min() >= 0 or not values.max() > 0:
        raise ValueError(f"singular values must be at least 0, one above 0, got {values.tolist()}")
    return ((values / values.max()).double() ** 2).sum().item()


def similarity(one: Float[Tensor, "d k1"], two: Float[Tensor, "d k2"]) -> Float[Tensor, "k1 k2"]:
    """Return phi (eq. 4) for all i and j at once: entry [i - 1, j - 1] is phi(i, j).

    Args:
        one, two: orthonormal columns in the order in which they are taken into the spans.

    Raises:
        ValueError: columns of different length, or not orthonormal.
    """
    one, two = _orthonormal("one", one), _orthonormal("two", two)
    if one.shape[0] != two.shape[0]:
        raise ValueError(f"directions of {one.shape[0]} and of {two.shape[0]} entries: no angle")
    squared = (one.mT @ two) ** 2
    counts_one, counts_two = (torch.arange(1, count + 1) for count in squared.shape)
    smaller = torch.minimum(counts_one[:, None], counts_two[None, :])
    return (squared.cumsum(0).cumsum(1) / smaller).clamp(max=1.0)  # above 1 by rounding only


def phi(
    one: Float[Tensor, "rows1 cols1"],
    two: Float[Tensor, "rows2 cols2"],
    side: Side = "right",
) -> Float[Tensor, "k1 k2"]:
    """Return `similarity` of the singular directions of two matrices.

    Args:
        one, two: with side "right" of as many columns (two A of a layer, section 7.2; W and
            Delta W, figure 8); with "left" of as many rows (two B, W and Delta W).
        side: which singular vectors.
    """
    return similarity(svd(one).side(side), svd(two).side(side))


def random_directions(d: int, count: int, generator: torch.Generator) -> Float[Tensor, "d k"]:
    """Draw the random control: the directions of a Gaussian matrix, k = min(count, d) of them.

    The singular vectors of a Gaussian matrix are uniformly distributed orthonormal columns,
    independent of its singular values, and so, up to their signs, are the columns of Q of a
    Gaussian d x count matrix.

    Raises:
        ValueError: d or count below 1.
    """
    if d < 1 or count < 1:
        raise ValueError(f"d and count must be at least 1, got {d} and {count}")
    return torch.linalg.qr(torch.randn(d, count, generator=generator, dtype=torch.float64)).Q


def expected_similarity(i: int, j: int, d: int) -> float:
    """Return phi's expectation for random spans of i and j dimensions in R^d: max(i, j) / d.

    Each of the i x j squared cosines has expectation 1/d, and i j / d / min(i, j) = max(i, j) / d.

    Raises:
        ValueError: i or j outside 1 to d.
    """
    if not (1 <= i <= d and 1 <= j <= d):
        raise ValueError(f"i and j must be in 1 to {d}, got {i} and {j}")
    return max(i, j) / d


def projected_norm(
    weight: Float[Tensor, "d_out d_in"],
    left: Float[Tensor, "d_out k"],
    right: Float[Tensor, "d_in k"],
) -> float:
    """Return ||U^T W V||_F: how much of W lies in the directions U and V (the paper's V is V^T)."""
    weight = _matrix("weight", weight)
    left, right = _orthonormal("left", left), _orthonormal("right", right)
    if weight.shape != (left.shape[0], right.shape[0]):
        sizes = f"{left.shape[0]} and {right.shape[0]}"
        raise ValueError(f"weight {tuple(weight.shape)} does not go with directions of {sizes}")
    return torch.linalg.norm(left.mT @ weight @ right).item()


def amplification(
    weight: Float[Tensor, "d_out d_in"],
    update: SVD,
    base: SVD,
    generator: torch.Generator,
) -> dict[str, float]:
    """Return a column of the paper's Table 7 for one weight matrix and its update.

    Args:
        weight: W.
        update: SVD of Delta W; all its r directions are taken.
        base: SVD of W, or its leading r directions or more.
        generator: of the random control.

    Returns:
        update_norm ||Delta W||_F; weight_norm ||W||_F; projected_update, projected_weight and
        projected_random, ||U^T W V||_F with r directions of Delta W, of W and drawn at random;
        amplification, update_norm / projected_update.

    Raises:
        ValueError: a zero update, or fewer directions of W than of Delta W.
    """
    count = len(update.values)
    if not update.values.max() > 0:
        raise ValueError("the update is zero: it has no directions")
    if len(base.values) < count:
        raise ValueError(f"{len(base.values)} directions of W for {count} of the update")
    drawn = [random_directions(d, count, generator) for d in weight.shape]
    own = projected_norm(weight, update.left, update.right)
    norm = torch.linalg.norm(update.values).item()
    return {
        "update_norm": norm,
        "weight_norm": torch.linalg.norm(weight.double()).item(),
        "projected_update": own,
        "projected_weight": projected_norm(weight, base.left[:, :count], base.right[:, :count]),
        "projected_random": projected_norm(weight, *drawn),
        "amplification": norm / own if own > 0 else float("inf"),
    }


def _matrix(name: str, value: Tensor) -> Tensor:
    """Return a matrix in float64."""
    if value.ndim != 2 or value.numel() == 0:
        raise ValueError(f"{name} must be a matrix with entries, got shape {tuple(value.shape)}")
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} {tuple(value.shape)} has NaN or infinity")
    return value.double()


def _orthonormal(name: str, value: Tensor) -> Tensor:
    """Return orthonormal columns in float64."""
    value = _matrix(name, value)
    gap = (value.mT @ value - torch.eye(value.shape[1], dtype=value.dtype)).abs().max().item()
    if gap > ORTHONORMAL:
        raise ValueError(f"{name}: columns are not orthonormal, U^T U is off by {gap:.2g}")
    return value
