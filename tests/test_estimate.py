import math

import pytest
import torch

from priormatch.estimate import Estimate, average, decimals
from priormatch.reporting import Result


def test_average_is_the_mean_with_its_standard_error():
    estimate = average(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert estimate.value == 2.5
    assert estimate.standard_error == pytest.approx(math.sqrt(5 / 3 / 4), rel=1e-12)
    assert (estimate.bound, estimate.floor) == ("none", None)


def test_average_keeps_the_side_of_a_bound_and_its_floor():
    estimate = average(torch.tensor([1.0, 2.0]), "upper", 0.5)
    assert (estimate.bound, estimate.floor) == ("upper", 0.5)


def test_average_loses_no_digits_of_many_values_in_single_precision():
    estimate = average(torch.full((1_000_000,), 0.1))
    assert estimate.value == pytest.approx(torch.tensor(0.1).item(), rel=1e-12)
    assert estimate.standard_error < 1e-15


def test_an_estimate_shows_the_digits_that_its_error_leaves():
    assert str(Estimate(0.11823, 0.0052)) == "0.1182 ± 0.0052"
    assert str(Estimate(1234.5, 120.0)) == "1234 ± 120"
    assert str(Estimate(0.25, 0.0)) == "0.2500 ± 0.0000"


@pytest.mark.parametrize("error", [12.0, 0.5, 0.0996, 0.0052])
def test_estimates_and_results_show_the_same_digits(error):
    assert str(Estimate(123.456, error)) == str(Result(123.456, "Monte Carlo", error))


@pytest.mark.parametrize(("size", "shown"), [(0.0996, 3), (0.1, 2), (0.99, 2), (1.0, 1), (99.0, 0)])
def test_decimals_show_two_digits_of_a_number(size, shown):
    assert decimals(size, 2) == shown
