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
        note: Why the number says nothing, or less than it seems to; empty for most.
    """

    value: float
    standard_error: float
    bound: Bound = "none"
    floor: float | None = None
    note: str = ""

    def __str__(self) -> str:
        """Return the value and its error, rounded to two digits of the error, and the note."""
        if math.isnan(self.value):
            number = "not measured"
        elif math.isinf(self.value):
            number = "infinite" if self.value > 0 else "minus infinity"
        else:
            finite = 0 < self.standard_error < math.inf
            digits = decimals(self.standard_error, 2) if finite else 4
            number = f"{self.value:.{digits}f} ± {self.standard_error:.{digits}f}"
        return f"{number} ({self.note})" if self.note else number


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

    @property
    def value(self) -> float:
        """The value of the estimate."""
        return self.estimate.value

    @property
    def standard_error(self) -> float:
        """The standard error of the estimate."""
        return self.estimate.standard_error


def average(
    values: Float[Tensor, " draws"],
    bound: Bound = "none",
    floor: float | None = None,
    note: str = "",
) -> Estimate:
    """Return the mean of independent values and its standard error.

    Args:
        values: Independent values; one that is infinite makes the mean infinite.
        bound: Side of the bound.
        floor: Value below which the estimator cannot fall.
        note: What to say about the number.

    Raises:
        TooFewCodesError: There are fewer than two values, which leaves no standard error.
        ValueError: The values are no vector, or one is not a number.

    >>> import torch
    >>> print(average(torch.tensor([0.0, 1.0, 2.0, 3.0])))
    1.50 ± 0.65
    """
    values = values.detach().double()
    if values.ndim != 1:
        raise ValueError(f"an average needs a vector, not values of shape {tuple(values.shape)}")
    if len(values) < 2:
        raise TooFewCodesError(f"a standard error needs two values or more, not {len(values)}")
    if values.isnan().any():
        where = int(values.isnan().nonzero()[0])
        raise ValueError(f"value {where} of {len(values)} is not a number")
    error = values.std() / math.sqrt(len(values))
    return Estimate(values.mean().item(), error.item(), bound, floor, note)


def decimals(size: float, digits: int) -> int:
    """Return the number of decimals that show so many significant digits of a positive number.

    >>> decimals(0.0052, 2), decimals(520.0, 2)
    (4, 0)
    """
    return max(0, digits - 1 - math.floor(math.log10(size)))
