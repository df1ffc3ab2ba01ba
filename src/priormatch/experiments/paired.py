"""Paired seeds: changes from a baseline, their Student intervals, and equivalence.

Trainings with the same seed see the images in the same order, so each of them is compared with the
baseline of its seed.
"""

from collections.abc import Sequence

import pandas as pd
from scipy import stats


class MissingMeasureError(KeyError):
    """A column is missing from the table."""


class UnpairedSeedsError(ValueError):
    """A cell has a seed twice, or the baseline has no training."""


class TooFewSeedsError(ValueError):
    """A spread needs two pairs of seeds or more."""


def complete(rows: pd.DataFrame, by: Sequence[str], seeds: int = 5) -> pd.DataFrame:
    """Return the rows of the cells with enough different seeds.

    Args:
        rows: A row for each training, with its ``seed``.
        by: Columns that define a cell.
        seeds: Number of different seeds that a cell needs.

    Introduced in "A deeper encoder".

    >>> rows = pd.DataFrame({"depth": [1, 1, 2], "seed": [0, 1, 0]})
    >>> complete(rows, ["depth"], seeds=2).depth.to_list()
    [1, 1]
    """
    _require(rows, [*by, "seed"])
    return rows[rows.groupby(list(by)).seed.transform("nunique") >= seeds]


def changes(rows: pd.DataFrame, by: str, baseline: object, measures: Sequence[str]) -> pd.DataFrame:
    r"""Return the change of each measure from the baseline, seed by seed.

    .. math:: \Delta_s = x_s - x_s^{\text{baseline}}

    Args:
        rows: A row for each training, with its ``seed``.
        by: Column that distinguishes the trainings of a seed.
        baseline: Value of that column in the baseline.
        measures: Columns to compare.

    Returns:
        A column for each measure, in its unit; rows by cell and by seed. Seeds that the baseline
        does not have are left out.

    Raises:
        MissingMeasureError: A column is missing.
        UnpairedSeedsError: A cell has a seed twice, or the baseline has no training.

    Introduced in "A deeper encoder".

    >>> rows = pd.DataFrame({"depth": [1, 1, 2, 2], "seed": [0, 1, 0, 1], "kl": [2, 5, 1, 2]})
    >>> changes(rows, "depth", 2, ["kl"]).loc[1, "kl"].to_list()
    [1, 3]
    """
    _require(rows, [by, "seed", *measures])
    cells = rows.set_index([by, "seed"])[list(measures)].sort_index()
    if cells.index.has_duplicates:
        first = cells.index[cells.index.duplicated()][0]
        raise UnpairedSeedsError(f"{by} {first[0]} has seed {first[1]} twice: choose one row of it")
    own = cells.index.get_level_values(by) == baseline
    base, others = cells[own].droplevel(by), cells[~own]
    if base.empty:
        raise UnpairedSeedsError(f"no {by} is {baseline!r}: choose one of {set(rows[by])}")
    others = others[others.index.isin(base.index, level="seed")]
    return others - base.loc[others.index.get_level_values("seed")].to_numpy()


def intervals(changes: pd.DataFrame, level: float = 0.95, comparisons: int = 1) -> pd.DataFrame:
    r"""Return the mean change of each cell and measure, with its Student interval over n seeds.

    .. math:: \bar\Delta \pm t_{n-1}\!\left(1 - \frac{1 - \text{level}}{2\, \text{comparisons}}
              \right) \frac{\hat\sigma}{\sqrt n}

    Args:
        changes: Changes by cell and by seed, as `changes` returns them.
        level: Probability that all intervals contain the means over infinitely many seeds.
        comparisons: Number of these intervals, for Bonferroni's correction.

    Returns:
        ``mean``, ``standard_error``, ``seeds`` (n), ``low`` and ``high`` by cell and by measure.

    Raises:
        TooFewSeedsError: A cell has fewer than two changes of a measure.

    Introduced in "A deeper encoder".

    >>> cells = pd.MultiIndex.from_product([["deep"], [0, 1]])
    >>> [row] = intervals(pd.DataFrame({"kl": [1.0, 3.0]}, cells), level=0.5).itertuples()
    >>> row.mean, row.standard_error, round(row.low, 6), round(row.high, 6)  # t_1(3/4) = 1
    (2.0, 1.0, 1.0, 3.0)
    """
    values = changes.melt(var_name="measure", ignore_index=False)
    of_cell = values.groupby([values.index.get_level_values(0), "measure"], sort=False)["value"]
    found = of_cell.agg(mean="mean", standard_error="sem", seeds="count")
    if (found.seeds < 2).any():
        cell, measure = found.seeds.idxmin()
        raise TooFewSeedsError(f"{measure} of {cell} has {found.seeds.min()} paired seeds, not 2")
    half = found.standard_error * stats.t.isf((1 - level) / (2 * comparisons), found.seeds - 1)
    found = found.assign(low=found["mean"] - half, high=found["mean"] + half)
    return found.sort_index(level=0, sort_remaining=False, kind="stable")


def excludes_zero(intervals: pd.DataFrame) -> pd.Series:
    """Return a mask of the intervals that lie on one side of zero.

    >>> excludes_zero(pd.DataFrame({"low": [-1, 1, -3], "high": [1, 2, -2]})).to_list()
    [False, True, True]
    """
    return (intervals["low"] > 0) | (intervals["high"] < 0)


def largest_change(changes: pd.DataFrame, level: float = 0.95) -> pd.Series:
    r"""Return the margin of equivalence: the largest mean change that the trainings allow.

    .. math:: \max(|\text{low}|, |\text{high}|) \text{ of the } 2\,\text{level} - 1 \text{ interval}

    It is the smallest margin at which two one-sided t tests, each of level 1 - `level`, both
    reject. One tests whether the change is below minus the margin, the other whether it is above
    the margin.

    Args:
        changes: Changes by cell and by seed, as `changes` returns them.
        level: Confidence of each one-sided test, above one half.

    Raises:
        TooFewSeedsError: A cell has fewer than two changes of a measure.

    Source: the two one-sided tests of Schuirmann (1987).

    >>> cells = pd.MultiIndex.from_product([["deep"], [0, 1]])
    >>> largest_change(pd.DataFrame({"kl": [-3.0, -1.0]}, cells), level=0.75).round(6).to_list()
    [3.0]
    """
    return intervals(changes, 2 * level - 1)[["low", "high"]].abs().max(axis=1)


def _require(rows: pd.DataFrame, columns: Sequence[str]) -> None:
    if missing := [column for column in columns if column not in rows]:
        raise MissingMeasureError(f"there are no columns called {', '.join(missing)}")
