import math

import numpy as np
import pandas as pd
import pytest
from agreement import assert_agrees
from scipy import stats

from priormatch.experiments.paired import (
    MissingMeasureError,
    TooFewSeedsError,
    UnpairedSeedsError,
    changes,
    complete,
    excludes_zero,
    intervals,
    largest_change,
)


@pytest.fixture
def rows():
    """Five seeds of three depths, in no order, with two measures."""
    generator = np.random.default_rng(0)
    table = pd.DataFrame(
        [{"depth": depth, "seed": seed} for depth in (3, 1, 2) for seed in (4, 0, 2, 1, 3)]
    )
    table["elbo"] = -130 + generator.normal(size=15)
    table["gap"] = 5 - 0.8 * table.depth + generator.normal(size=15)
    return table.sample(frac=1, random_state=0)


def of(rows, depth, measure):
    return rows[rows.depth == depth].set_index("seed").sort_index()[measure]


def test_a_change_is_the_difference_of_the_trainings_with_one_seed(rows):
    found = changes(rows, "depth", 2, ["elbo", "gap"])
    assert found.index.unique("depth").to_list() == [1, 3]
    assert list(found) == ["elbo", "gap"]
    for depth in (1, 3):
        expected = of(rows, depth, "gap") - of(rows, 2, "gap")
        pd.testing.assert_series_equal(found.loc[depth, "gap"], expected)


def test_seeds_without_a_partner_are_left_out(rows):
    fewer = rows[~((rows.depth == 2) & (rows.seed == 0)) & ~((rows.depth == 3) & (rows.seed == 4))]
    found = changes(fewer, "depth", 2, ["elbo"])
    assert found.loc[1].index.to_list() == [1, 2, 3, 4]
    assert found.loc[3].index.to_list() == [1, 2, 3]
    seeds = intervals(found).seeds
    assert (seeds[1, "elbo"], seeds[3, "elbo"]) == (4, 3)


def test_intervals_and_their_tests_are_those_of_scipy(rows):
    found = intervals(changes(rows, "depth", 2, ["elbo", "gap"]), level=0.9)
    for (depth, measure), row in found.iterrows():
        paired = stats.ttest_rel(of(rows, depth, measure), of(rows, 2, measure))
        ends = paired.confidence_interval(0.9)
        assert (row.low, row.high) == pytest.approx((ends.low, ends.high), rel=1e-10)
        assert row["mean"] / row.standard_error == pytest.approx(paired.statistic, rel=1e-10)
        assert row.seeds == 5
        assert excludes_zero(found)[depth, measure] == (paired.pvalue < 0.1)
    assert set(excludes_zero(found)) == {True, False}  # or the line above proves little


def test_intervals_stand_by_cell_in_the_order_of_the_measures(rows):
    found = intervals(changes(rows, "depth", 2, ["gap", "elbo"]))
    assert [*found.index] == [(1, "gap"), (1, "elbo"), (3, "gap"), (3, "elbo")]
    assert found.index.names == ["depth", "measure"]


def test_bonferroni_divides_the_error_among_the_comparisons(rows):
    paired = changes(rows, "depth", 2, ["gap"])
    found = intervals(paired, comparisons=20)
    for depth in (1, 3):
        alone = stats.ttest_1samp(paired.loc[depth, "gap"], 0).confidence_interval(1 - 0.05 / 20)
        assert found.low[depth, "gap"] == pytest.approx(alone.low, rel=1e-10)
        assert found.high[depth, "gap"] == pytest.approx(alone.high, rel=1e-10)


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_largest_change_is_where_two_one_sided_tests_begin_to_reject(rows, level):
    paired = changes(rows, "depth", 2, ["elbo", "gap"])
    for (depth, measure), margin in largest_change(paired, level).items():
        values = paired.loc[depth, measure]

        def rejected(margin, values=values):  # the change is smaller in size than the margin
            above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
            below = stats.ttest_1samp(values, margin, alternative="less").pvalue
            return max(above, below) < 1 - level

        assert rejected(1.001 * margin)
        assert not rejected(0.999 * margin)


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(1)
    repetitions, truth, level, comparisons = 20_000, 0.3, 0.9, 2
    # Every repetition is a cell with two measures; an allowance for two is for both together.
    cells = pd.MultiIndex.from_product([range(repetitions), range(5)])
    draws = generator.normal(truth, 2.0, (len(cells), comparisons))
    found = intervals(pd.DataFrame(draws, cells, ["elbo", "gap"]), level, comparisons)
    hit = ((found.low < truth) & (truth < found.high)).groupby(level=0)
    # The two are independent, so Bonferroni's allowance holds a little more than the level.
    both, each = (1 - (1 - level) / comparisons) ** 2, 1 - (1 - level) / comparisons
    for share, expected in ((hit.all().mean(), both), (hit.sum().mean() / 2, each)):
        error = math.sqrt(expected * (1 - expected) / repetitions)
        assert_agrees(share, error, expected)


def test_cells_with_too_few_seeds_are_not_kept(rows):
    fewer = rows[(rows.depth != 3) | (rows.seed > 0)]
    assert sorted(complete(fewer, ["depth"]).depth.unique()) == [1, 2]
    assert sorted(complete(fewer, ["depth"], seeds=4).depth.unique()) == [1, 2, 3]
    # A seed that stands twice, after few epochs and after many, counts once.
    doubled = pd.concat([fewer.assign(stage="early"), fewer.assign(stage="converged")])
    assert sorted(complete(doubled, ["depth"]).depth.unique()) == [1, 2]
    assert complete(doubled, ["depth", "stage"]).groupby("stage").size().to_dict() == {
        "early": 10,
        "converged": 10,
    }


def test_a_doubled_row_is_refused(rows):
    doubled = pd.concat([rows, rows[(rows.depth == 3) & (rows.seed == 4)]])
    with pytest.raises(UnpairedSeedsError, match="depth 3 has seed 4 twice"):
        changes(doubled, "depth", 2, ["elbo"])


def test_a_baseline_that_nobody_trained_is_refused(rows):
    with pytest.raises(UnpairedSeedsError, match="no depth is 7"):
        changes(rows, "depth", 7, ["elbo"])


def test_a_missing_measure_is_named(rows):
    with pytest.raises(MissingMeasureError, match="called rate"):
        changes(rows, "depth", 2, ["elbo", "rate"])
    with pytest.raises(MissingMeasureError, match="called width"):
        complete(rows, ["width"])


def test_one_pair_has_no_spread(rows):
    # The gap was measured in one training of depth 3 alone, the ELBO in all.
    rows.loc[(rows.depth == 3) & (rows.seed > 0), "gap"] = math.nan
    paired = changes(rows, "depth", 2, ["elbo", "gap"])
    with pytest.raises(TooFewSeedsError, match="gap of 3 has 1 "):
        intervals(paired)
    with pytest.raises(TooFewSeedsError):
        largest_change(paired)
    assert len(intervals(paired[["elbo"]])) == 2
