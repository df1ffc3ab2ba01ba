"""Codes that have no density: their law has atoms, or lies in fewer dimensions than it has."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from priormatch.checks import SMALLEST

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
