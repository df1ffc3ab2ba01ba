"""A measured number with its standard error, the side of its bound, and its floor."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

Bound = Literal["none", "lower", "upper"]


class TooFewCodesError(ValueError):
    """There are too few codes for a measure or a density; the message says how many it needs."""


@dataclass(frozen=True)
class Estimate:
    """A measured number.

    Attributes:
        value: The estimate.
        standard_error: Its standard error over draws or held-out examples, in the same unit.
        bound: Whether its expectation is a lower or an upper bound on the population's value.
        floor: Value below which the estimator cannot fall, whatever the truth is; None without one.
    """

    value: float
    standard_error: float
    bound: Bound = "none"
    floor: float | None = None

    def __str__(self) -> str:
        """Return the value and its standard error, rounded to two digits of the error."""
        digits = decimals(self.standard_error, 2) if self.standard_error > 0 else 4
        return f"{self.value:.{digits}f} ± {self.standard_error:.{digits}f}"


class Statistic(NamedTuple):
    """An estimate and its null band: its range where the aggregated posterior is the prior.

    Attributes:
        estimate: The measured number.
        low: The lower end of the null band, which holds 95 % of the estimates under a match.
        high: The upper end.
    """

    estimate: Estimate
    low: float
    high: float


def average(
    values: Float[Tensor, " draws"], bound: Bound = "none", floor: float | None = None
) -> Estimate:
    """Return the mean of independent values and its standard error.

    >>> import torch
    >>> print(average(torch.tensor([0.0, 1.0, 2.0, 3.0])))
    1.50 ± 0.65
    """
    values = values.double()
    error = values.std() / math.sqrt(len(values))
    return Estimate(values.mean().item(), error.item(), bound, floor)


def decimals(size: float, digits: int) -> int:
    """Return the number of decimals that show so many significant digits of a positive number.

    >>> decimals(0.0052, 2), decimals(520.0, 2)
    (4, 0)
    """
    return max(0, digits - 1 - math.floor(math.log10(size)))
