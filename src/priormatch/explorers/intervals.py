"""Ten intervals on (0, 10), one for each digit, and what uniform posteriors on them cost.

Each digit is a tenth of the images, and its posterior is uniform on its interval. The prior is
uniform on (0, 10). All densities are constant between neighbouring ends, so sums are exact.
"""

from typing import Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from priormatch.distributions import INTERVAL

DIGITS: Final = 10

LEAST: Final = 0.4
"""Least length of an interval."""

APART: Final = tuple(((digit + 9) % 10.0, (digit + 9) % 10.0 + 1) for digit in range(DIGITS))
"""The discussion's arrangement: ones on (0, 1), twos on (1, 2), and zeros last."""

PILE: Final = ((4.5, 5.5),) * DIGITS
"""All digits on one interval of length 1."""


class Costs(NamedTuple):
    """Costs of the ten posteriors, in nats; information and mismatch add up to the rate.

    Attributes:
        rate: Average KL of a posterior from the prior.
        information: I[digit; z].
        mismatch: KL(q || p) of the mixture q from the prior p.
        reverse: KL(p || q), infinite where q misses a part of the interval.
        missed: Share of the prior that no interval covers.
    """

    rate: float
    information: float
    mismatch: float
    reverse: float
    missed: float


class Cells(NamedTuple):
    """The pieces between neighbouring ends of intervals.

    Attributes:
        edges: The ends in order, from 0 to 10.
        density: Joint density of digit and code in each piece.
    """

    edges: Float[Tensor, " edges"]
    density: Float[Tensor, "digits cells"]


def cells(intervals: Float[Tensor, "digits 2"]) -> Cells:
    """Cut (0, 10) at the ends of all intervals."""
    starts, ends = intervals.double().T
    edges = torch.cat([starts, ends, torch.tensor([0.0, INTERVAL]).double()]).unique()
    middles = (edges[1:] + edges[:-1]) / 2
    inside = (starts[:, None] < middles) & (middles < ends[:, None])
    return Cells(edges, inside / (ends - starts)[:, None] / DIGITS)


def costs(intervals: Float[Tensor, "digits 2"]) -> Costs:
    r"""Return the costs of posteriors that are uniform on ten intervals.

    .. math:: \frac1{10} \sum_k \ln \frac{10}{\ell_k} = I[k; z] + D_{KL}(q \| p)

    Args:
        intervals: Start and end of each digit's interval of length l_k, inside (0, 10).
    """
    edges, density = cells(intervals)
    widths, q = edges.diff(), density.sum(0)
    starts, ends = intervals.double().T
    information = torch.xlogy(density, DIGITS * density / q.clamp(min=1e-300)) * widths
    return Costs(
        rate=(INTERVAL / (ends - starts)).log().mean().item(),
        information=information.sum().item(),
        mismatch=(torch.xlogy(q, INTERVAL * q) * widths).sum().item(),
        reverse=-((INTERVAL * q).log() * widths).sum().item() / INTERVAL,
        missed=widths[q == 0].sum().item() / INTERVAL,
    )
