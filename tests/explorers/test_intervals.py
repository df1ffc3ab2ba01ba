import math

import pytest
import torch
from traitlets import TraitError

from priormatch import explorers
from priormatch.explorers import intervals
from priormatch.explorers.intervals import Costs, costs


def of(*pairs: tuple[float, float]) -> Costs:
    return costs(torch.tensor(pairs, dtype=torch.float64))


def test_the_arrangement_of_the_discussion_matches_and_tells_the_digit():
    assert intervals.APART[1] == (0, 1)
    assert intervals.APART[2] == (1, 2)
    now = of(*intervals.APART)
    assert now == pytest.approx((math.log(10), math.log(10), 0, 0, 0))


def test_a_pile_tells_nothing_and_all_of_its_rate_is_mismatch():
    now = of(*intervals.PILE)
    assert now == pytest.approx((math.log(10), 0, math.log(10), math.inf, 0.9))


def test_posteriors_on_everything_cost_nothing():
    assert of(*[(0, 10)] * 10) == pytest.approx((0, 0, 0, 0, 0))


def test_gaps_cost_minus_the_logarithm_of_what_is_covered():
    now = of(*((k + 0.1, k + 0.9) for k in range(10)))
    assert now == pytest.approx((math.log(12.5), math.log(10), -math.log(0.8), math.inf, 0.2))


def test_neighbours_that_overlap():
    # Nine digits have a unit each; the last lies on the first, so one unit is empty.
    now = of(*((k % 9, k % 9 + 1) for k in range(10)))
    two = 0.2 * math.log(2)  # of two digits on one unit a code does not tell which
    assert now == pytest.approx((math.log(10), math.log(10) - two, two, math.inf, 0.1))
    # Half on (0, 10) and half on (0, 5): q is 3/20 on the left and 1/20 on the right.
    now = of(*[(0, 10)] * 5, *[(0, 5)] * 5)
    mismatch = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    reverse = -0.5 * math.log(1.5) - 0.5 * math.log(0.5)
    rate = 0.5 * math.log(2)
    assert now == pytest.approx((rate, rate - mismatch, mismatch, reverse, 0))


def test_ends_lie_on_tenths_and_inside():
    drag = explorers.drag()
    moved = [[0.04, 9.96], *drag.intervals[1:]]
    drag.intervals = moved
    assert drag.intervals[0] == [0.0, 10.0]
    for nonsense in ([[0, 0.3]], [[-1, 3]], [[9, 11]], [[1, 2, 3]], []):
        with pytest.raises(TraitError):
            drag.intervals = [*nonsense, *drag.intervals[1:]]
