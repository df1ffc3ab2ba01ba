"""Codes that have no density: their law has atoms, or lies in fewer dimensions than it has."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from priormatch.checks import SMALLEST, rows
from priormatch.estimate import TooFewCodesError

# Fewest codes that agree with others before a law counts as having atoms; at least 1 % must.
_FEWEST_ATOMS = 5


class DegenerateCodesError(ValueError):
    """The codes have no density: they have atoms, or lie in fewer dimensions than they have."""


def correlation_factor(
    codes: Float[Tensor, "draws latent"], smallest: float = 1e-6
) -> tuple[Float[Tensor, " latent"], Float[Tensor, "latent latent"]]:
    """Return the scales of codes and the Cholesky factor of their correlations.

    Args:
        codes: Codes that `rows` in `priormatch.checks` has returned, two or more.
        smallest: Least scale of a direction, relative to that of the widest.

    Raises:
        DegenerateCodesError: The codes lie in fewer dimensions than they have.
    """
    double = codes.double()
    scales = double.std(0)
    # The rounding of a constant is no spread.
    constant = scales <= 1e-14 * double.abs().amax(0)
    if constant.any():
        raise DegenerateCodesError(
            f"the codes have scales of {scales.tolist()}: latent dimension "
            f"{int(constant.nonzero()[0])} is constant, and its KL from N(0, 1) is infinite"
        )
    standard = (double - double.mean(0)) / scales
    correlations = (standard.T @ standard / (len(codes) - 1)).reshape(len(scales), len(scales))
    rank = int(torch.linalg.matrix_rank(correlations, hermitian=True, rtol=smallest**2))
    if rank < len(scales):
        raise DegenerateCodesError(
            f"the codes of {len(scales)} dimensions lie in {rank} of them, to within {smallest:g} "
            "of their scale: such codes have no density that can be measured"
        )
    return scales, torch.linalg.cholesky(correlations)


def atoms(codes: Float[Tensor, "draws latent"]) -> str:
    """Return a sentence if codes repeat values that no density would repeat; else nothing.

    Codes of a quantised, rectified or one-hot encoder do. Their law has atoms, so its KL from any
    law with a density is infinite. Codes of a density agree now and then, too, because numbers are
    rounded. So whole codes count if pairs of them agree a hundred times as often as they would by
    chance in all dimensions at once, and single dimensions if one pair in a hundred agrees, and ten
    times as many as the number format alone would make.

    Args:
        codes: Codes that `rows` in `priormatch.checks` has returned.

    Returns:
        A sentence for an error or a note, or an empty string.

    Introduced in "The estimators on trial".

    >>> atoms(torch.eye(4).repeat(25, 1))[:50]
    '100 codes take only 2 values in latent dimension 0'
    """
    if len(codes) < _FEWEST_ATOMS:
        return ""
    double = codes.double()
    # Codes that were stored in a short format lie on its grid in any other one.
    formats = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    eps = next(torch.finfo(one).eps for one in formats if (codes.to(one).to(codes) == codes).all())
    size, spread = double.square().mean(0).sqrt(), double.std(0).clamp(min=SMALLEST)
    by_rounding = (10 * eps * size / spread).clamp(min=0.01)
    alone = [column.unique(return_counts=True)[1] for column in codes.T]
    agreeing = [_agreement(counts) for counts in alone]
    means = "their law has atoms, and its KL from N(0, I) is infinite"
    # Codes that agree do so in every dimension; a search for equal rows takes much longer.
    if codes.shape[1] > 1 and all(agreeing):
        counts = codes.unique(dim=0, return_counts=True)[1]
        if _agreement(counts) > 100 * math.prod(agreeing):
            return f"{len(codes)} codes take only {len(counts)} values: {means}"
    for place, (agreement, limit) in enumerate(zip(agreeing, by_rounding.tolist(), strict=True)):
        if agreement > limit:
            return (
                f"{len(codes)} codes take only {len(alone[place])} values in latent dimension "
                f"{place}: {means}"
            )
    return ""


def _agreement(counts: Tensor) -> float:
    """Return the share of pairs that agree, or zero if less than 1 % of the codes do."""
    draws = counts.sum().item()
    if counts[counts > 1].sum().item() < max(_FEWEST_ATOMS, 0.01 * draws):
        return 0.0
    return (counts * (counts - 1.0)).sum().item() / (draws * (draws - 1.0))


class CodesWithDensity(NamedTuple):
    """Codes that have a density, and their moments in double precision.

    Attributes:
        codes: The codes.
        location: Their mean.
        scales: Their standard deviations.
        correlations: Lower triangular factor of their correlations.
    """

    codes: Float[Tensor, "draws latent"]
    location: Float[Tensor, " latent"]
    scales: Float[Tensor, " latent"]
    correlations: Float[Tensor, "latent latent"]


def codes_with_density(codes: Float[Tensor, "draws latent"], needed: int = 0) -> CodesWithDensity:
    """Return codes with their mean, scales, and factor of correlations, if they have a density.

    Args:
        codes: Codes of any origin, of shape ``(draws, latent)``.
        needed: Least number of codes; there must be more than latent dimensions in any case.

    Raises:
        ShapeError: The codes are no matrix.
        NonFiniteError: A code is infinite or not a number.
        TooFewCodesError: There are fewer codes than that.
        DegenerateCodesError: The codes lie in fewer dimensions, or have atoms.

    >>> codes_with_density(torch.tensor([[-1.0], [0.0], [1.0]])).scales
    tensor([1.], dtype=torch.float64)
    """
    codes = rows(codes)
    needed = max(needed, codes.shape[1] + 1)
    if len(codes) < needed:
        raise TooFewCodesError(f"{needed} codes or more are needed, there are {len(codes)}")
    repeated = atoms(codes)
    if repeated:
        raise DegenerateCodesError(repeated)
    # Fits are in the number format of the codes, which resolves no narrower directions.
    scales, correlations = correlation_factor(codes, 1e-3)
    return CodesWithDensity(codes, codes.double().mean(0), scales, correlations)
