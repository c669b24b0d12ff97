"""Measures of sets of activations: pure functions of vectors, one per text, or of Gram matrices, sums over tokens.

Vectors are of shape (n_samples, d), Gram matrices XᵀX of shape (d, d). All is computed in float64 on the CPU. Every
measure of Gram matrices stays the same when a matrix is multiplied by a positive number, so the number of tokens
behind it does not matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cola_lib.errors import DataError, NumericsError, SpecError

SUBSPACE_SHARE = 0.05
"""Share of directions that span the calibration set's main subspace."""

OUTLIER_SHARE = 0.01
"""Share of channels that count as outliers."""


def _float64(vectors: Tensor, what: str, at_least: int = 1) -> Tensor:
    """Vectors in float64 on the CPU, refused if they are not a finite matrix with enough rows."""
    if vectors.ndim != 2 or vectors.shape[0] < at_least or vectors.shape[1] < 1:
        need = f"{at_least} vector{'s' * (at_least > 1)}"
        raise DataError(f"{what}: at least {need} of shape (n_samples, d) are needed, not {tuple(vectors.shape)}")
    if not torch.isfinite(vectors).all():
        raise DataError(f"{what}: the vectors hold NaN or infinity")
    return vectors.detach().to("cpu", torch.float64)


def _two_sets(a: Tensor, b: Tensor, names: tuple[str, str], at_least: int = 1) -> tuple[Tensor, Tensor]:
    """Two sets of vectors of one width."""
    a, b = _float64(a, names[0], at_least), _float64(b, names[1], at_least)
    if a.shape[1] != b.shape[1]:
        raise DataError(f"{names[0]} has vectors of width {a.shape[1]} and {names[1]} of width {b.shape[1]}")
    return a, b


def _directions(vectors: Tensor, what: str) -> Tensor:
    """Vectors scaled to unit length."""
    norms = vectors.norm(dim=1, keepdim=True)
    if (norms == 0).any():
        raise DataError(f"{what}: vector {int((norms == 0).nonzero()[0, 0])} is zero, so it has no direction")
    return vectors / norms


def _energy(gram: Tensor, name: str) -> Tensor:
    """Sum of squares of each channel, in float64 on the CPU: the diagonal, refused if it is of no Gram matrix."""
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] < 1:
        raise DataError(f"{name}: a Gram matrix has shape (d, d), not {tuple(gram.shape)}")
    energy = gram.detach().diagonal().to("cpu", torch.float64)
    if not torch.isfinite(energy).all():
        raise NumericsError(name, "its Gram matrix holds NaN or infinity")
    if energy.min() < 0 or energy.sum() <= 0:
        raise NumericsError(name, "its Gram matrix has a negative mean square, or none above zero: no sum of xxᵀ")
    return energy


def _gram(gram: Tensor, name: str) -> Tensor:
    """Gram matrix in float64 on the CPU, refused if it is none."""
    _energy(gram, name)
    gram = gram.detach().to("cpu", torch.float64)
    if not torch.isfinite(gram).all():
        raise NumericsError(name, "its Gram matrix holds NaN or infinity")
    return gram


def _count(share: float, d: int) -> int:
    """Smallest number of ``d`` that is at least ``share`` of them."""
    if not 0 < share <= 1:
        raise SpecError(f"share must be above 0 and at most 1, and is {share:g}")
    # 0.07 * 100 is 7.000000000000001 in binary; it means 7.
    return math.ceil(round(share * d, 9))


def _effective_number(weights: Tensor) -> float:
    """Exponential of the entropy of weights that sum to 1: how many equal ones would be as spread out."""
    return float(torch.special.entr(weights).sum().exp())


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigen-decomposition of a Gram matrix, so that several measures and targets share its cost."""

    values: Tensor
    basis: Tensor

    @classmethod
    def of(cls, gram: Tensor, k: int | None = None, *, name: str = "gram") -> Spectrum:
        """Decompose a Gram matrix."""
        gram = _gram(gram, name)
        d = gram.shape[0]
        k = _count(SUBSPACE_SHARE, d) if k is None else k
        if not 1 <= k <= d:
            raise SpecError(f"{name}: {k} eigenvectors of a {d} x {d} matrix; take 1 to {d}")
        values, vectors = torch.linalg.eigh(gram)  # ascending
        # Sums in float32 leave eigenvalues near -1e-7 of the largest; beyond 1e-3 the matrix is no sum of squares.
        if values[0] < -1e-3 * values[-1]:
            raise NumericsError(name, f"its Gram matrix has the negative eigenvalue {float(values[0]):.3g}: no XᵀX")
        values = values.flip(0).clamp(min=0)
        # flip copies, where a slice would keep all d eigenvectors alive.
        return cls(values / values.sum(), vectors[:, d - k :].flip(1))


def _spectrum(gram: Tensor | Spectrum) -> Spectrum:
    return gram if isinstance(gram, Spectrum) else Spectrum.of(gram)


def coverage(target: Tensor, calibration: Tensor) -> float:
    """How near the calibration set comes to each target text: mean over targets of the cosine to the nearest vector.

    mean_t max_c cos(t, c)

    Parameters
    ----------
    target : Tensor of shape (n_target, d)
        What should be covered.
    calibration : Tensor of shape (n_calibration, d)
        What covers it.

    Returns
    -------
    float
        At most 1, which means that every target vector's direction is in the calibration set.

    Raises
    ------
    DataError
        If a set is empty, the widths differ, or a vector is zero, NaN or infinite.

    Notes
    -----
    Adding calibration texts can only raise it: compare sets of one size. It is the objective of facility location,
    as a mean. Not symmetric in its arguments.

    References
    ----------
    Wei, Iyer and Bilmes, "Submodularity in Data Subset Selection and Active Learning", ICML 2015 (facility location);
    He et al., arXiv 2510.10618, on representativeness in activation space.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.activations import coverage
    >>> target = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> coverage(target, torch.tensor([[2.0, 0.0]])), coverage(target, torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    (0.5, 1.0)
    """
    target, calibration = _two_sets(target, calibration, ("target", "calibration"))
    cosines = _directions(target, "target") @ _directions(calibration, "calibration").T  # (n_target, n_calibration)
    return float(cosines.max(1).values.mean().clamp(max=1.0))


def frechet_distance(a: Tensor, b: Tensor, n_components: int = 16) -> float:
    """Fréchet distance between Gaussians fitted to two sets of vectors, in the pooled set's leading components.

    Notes
    -----
    Deviation from the reference: it fits the Gaussians in all 2048 dimensions to some 50 000 images. Here hundreds
    of texts face thousands of dimensions: a covariance of n vectors has rank n − 1 at most, and the two supports
    hardly meet, so tr (Σ_a Σ_b)^½ is near zero by chance and the distance would mostly measure n. Few shared
    components leave covariances that n texts can estimate. A bias upwards, of order 1/n, remains: compare sets of
    one size. With A and B the centred sets, tr (Σ_a Σ_b)^½ is the sum of singular values of ABᵀ/√((n_a−1)(n_b−1)),
    which is exact and, other than a matrix square root, never complex.

    References
    ----------
    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
    arXiv 1706.08500, eq. 6; Chong and Forsyth, arXiv 1911.07023, on the bias.
    """
    if n_components < 1:
        raise SpecError(f"n_components must be at least 1, and is {n_components}")
    a, b = _two_sets(a, b, ("a", "b"), at_least=2)
    pooled = torch.cat([a, b])
    pooled = pooled - pooled.mean(0)
    # Component scores U·S of the SVD, from the small matrix of inner products: d may be far above n.
    values, vectors = torch.linalg.eigh(pooled @ pooled.T)
    scores = (vectors * values.clamp(min=0).sqrt())[:, -n_components:]  # (n_a + n_b, n_components)
    A, B = scores[: len(a)], scores[len(a) :]
    mean_a, mean_b = A.mean(0), B.mean(0)
    A, B = (A - mean_a) / (len(a) - 1) ** 0.5, (B - mean_b) / (len(b) - 1) ** 0.5
    # The triangular factors have the singular values' product in n_components rows instead of n.
    R_a, R_b = torch.linalg.qr(A, mode="r").R, torch.linalg.qr(B, mode="r").R
    cross = torch.linalg.svdvals(R_a @ R_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + A.square().sum() + B.square().sum() - 2 * cross
    return max(float(distance), 0.0)


def mmd(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy of two sets of vectors, unbiased, with a Gaussian kernel.

    Notes
    -----
    σ is the median distance over the pairs of the pooled set (the median heuristic), so the measure does not change
    when all vectors are scaled, and its values for different pairs of sets come from slightly different kernels.
    Unbiased holds for independent sets: a set against itself comes out below zero.

    References
    ----------
    Gretton et al., "A Kernel Two-Sample Test", JMLR 13, 2012, eq. 3 and sec. 8.
    """
    a, b = _two_sets(a, b, ("a", "b"), at_least=2)
    pooled = torch.cat([a, b])
    inner = pooled @ pooled.T
    squares = inner.diagonal()
    distances = squares[:, None] + squares[None, :] - 2 * inner  # squared, (n_a + n_b, n_a + n_b)
    # A millionth of a vector's length is float32's rounding; it must not pass for a distance, or for a bandwidth.
    distances = torch.where(distances <= 1e-12 * squares.max(), 0.0, distances)
    first, second = torch.triu_indices(len(pooled), len(pooled), offset=1)
    bandwidth = float(np.median(distances[first, second].sqrt().numpy()))
    if bandwidth == 0:
        raise DataError("more than half of the pairs of vectors coincide, so the median heuristic gives no bandwidth")
    kernel = torch.exp(distances / (-2 * bandwidth**2))
    n_a, n_b = len(a), len(b)
    within_a = (kernel[:n_a, :n_a].sum() - n_a) / (n_a * (n_a - 1))  # the diagonal is 1
    within_b = (kernel[n_a:, n_a:].sum() - n_b) / (n_b * (n_b - 1))
    return float(within_a + within_b - 2 * kernel[:n_a, n_a:].mean())


def vendi_score(vectors: Tensor) -> float:
    """Effective number of different texts: the exponential of the entropy of the cosine kernel's eigenvalues.

    exp(−Σ λ_i log λ_i), with λ the eigenvalues of K/n, K_ij = cos(x_i, x_j)

    Parameters
    ----------
    vectors : Tensor of shape (n_samples, d)
        One per text.

    Returns
    -------
    float
        From 1, where all have one direction, to ``n_samples``, where all are orthogonal.

    Raises
    ------
    DataError
        If there is no vector, or one is zero, NaN or infinite.

    Notes
    -----
    It grows with the number of texts: compare sets of one size. Pooled activations share a large common direction,
    so scores are far below ``n_samples``.

    References
    ----------
    Friedman and Dieng, "The Vendi Score: A Diversity Evaluation Metric for Machine Learning", arXiv 2210.02410,
    definition 3.1.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.activations import vendi_score
    >>> round(vendi_score(torch.eye(3)), 3), round(vendi_score(torch.ones(3, 2)), 3)
    (3.0, 1.0)
    """
    X = _directions(_float64(vectors, "vectors"), "vectors")
    n, d = X.shape
    # XXᵀ and XᵀX have the same eigenvalues but for zeros, which add no entropy: take the smaller.
    kernel = X @ X.T if n <= d else X.T @ X
    return _effective_number(torch.linalg.eigvalsh(kernel / n).clamp(min=0))


def effective_rank(gram: Tensor | Spectrum) -> float:
    """Effective number of directions that the inputs fill: the exponential of the entropy of the eigenvalues.

    Notes
    -----
    The reference takes the singular values of X where this takes those of XᵀX, their squares: shares are then
    shares of energy, which is what a layer's output error is weighted by. X is not centred, so the mean input is a
    direction among others, and often the largest.

    References
    ----------
    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, definition 1.
    """
    return _effective_number(_spectrum(gram).values)


def eigen_spectrum(gram: Tensor | Spectrum, n: int = 64) -> Tensor:
    """Leading eigenvalues as shares of the trace.

    References
    ----------
    Jolliffe, "Principal Component Analysis", 2nd ed., 2002, sec. 6.1: the scree of explained shares, here of the
    energy about zero and not of the variance about the mean.
    """
    if n < 1:
        raise SpecError(f"n must be at least 1, and is {n}")
    return _spectrum(gram).values[:n].clone()


def subspace_share(
    calibration_gram: Tensor | Spectrum,
    target_gram: Tensor,
    share: float = SUBSPACE_SHARE,
    *,
    k: int | None = None,
    name: str = "target_gram",
) -> float:
    """Share of the target's energy in the main subspace of the calibration set.

    References
    ----------
    Krzanowski, "Between-Groups Comparison of Principal Components", JASA 74, 1979: how much of one set lies in the
    span of another's leading components.
    """
    target = _gram(target_gram, name)
    d = target.shape[0]
    width = len(calibration_gram.values if isinstance(calibration_gram, Spectrum) else calibration_gram)
    if width != d:
        raise DataError(f"the calibration set's Gram matrix is of width {width} and the target's of width {d}")
    k = _count(share, d) if k is None else k
    if isinstance(calibration_gram, Spectrum):
        spectrum = calibration_gram
    else:
        spectrum = Spectrum.of(calibration_gram, k, name="calibration_gram")
    if not 1 <= k <= spectrum.basis.shape[1]:
        raise SpecError(f"k is {k}, and the spectrum holds {spectrum.basis.shape[1]} of {d} eigenvectors; keep more")
    V = spectrum.basis[:, :k]
    return float(((target @ V) * V).sum() / target.trace())


def outlier_channels(gram: Tensor, share: float = OUTLIER_SHARE) -> Tensor:
    """Channels of the largest mean square.

    References
    ----------
    Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", arXiv 2208.07339, sec. 4.
    The reference takes single magnitudes above 6; a fixed share of channels does not depend on the model's scale.
    """
    energy = _energy(gram, "gram")
    return torch.argsort(energy, descending=True, stable=True)[: _count(share, len(energy))]


def outlier_overlap(calibration_gram: Tensor, target_gram: Tensor, share: float = OUTLIER_SHARE) -> float:
    """Jaccard index of two sets' outlier channels.

    References
    ----------
    Jaccard, "The distribution of the flora in the alpine zone", New Phytologist 11, 1912.
    """
    if calibration_gram.shape != target_gram.shape:
        raise DataError(
            f"the calibration set's Gram matrix is of shape {tuple(calibration_gram.shape)} and the target's of "
            f"shape {tuple(target_gram.shape)}"
        )
    calibration, target = (set(outlier_channels(g, share).tolist()) for g in (calibration_gram, target_gram))
    return len(calibration & target) / len(calibration | target)


def channel_kurtosis(gram: Tensor) -> float:
    """How much a few channels stand out: kurtosis over channels of the root-mean-square activation.

    Notes
    -----
    Moments are about zero, as in the reference, and not about the mean: so a set of equal channels has a value.

    References
    ----------
    He et al., "Understanding and Minimising Outlier Features in Transformer Training", arXiv 2405.19279, eq. 1.
    """
    energy = _energy(gram, "gram")
    energy = energy / energy.mean()  # squares of large sums stay in range
    return float(energy.square().mean())
