"""Statistical agreement, with one failure rate for the whole suite."""

from scipy.stats import binom, norm

TEST_FAILURE_RATE = 1e-6
"""How often a right program fails one statistical comparison, were its seed drawn anew."""

_DEVIATIONS = norm.isf(TEST_FAILURE_RATE / 2)


def assert_agrees(value: float, standard_error: float, truth: float) -> None:
    """Fail if a value is further from the truth than its standard error explains."""
    assert standard_error > 0
    allowed = _DEVIATIONS * standard_error
    assert abs(value - truth) <= allowed, f"{value} is not {truth} ± {allowed}"


def assert_at_most(value: float, standard_error: float, truth: float) -> None:
    """Fail if a lower bound exceeds the truth by more than its standard error explains."""
    assert value <= truth + _DEVIATIONS * standard_error


def assert_at_least(value: float, standard_error: float, truth: float) -> None:
    """Fail if an upper bound falls short of the truth by more than its error explains."""
    assert value >= truth - _DEVIATIONS * standard_error


def coverage(estimates, truth):
    """Return how many of the intervals of ± 1.96 standard errors hold the truth."""
    return sum(abs(one.value - truth) <= 1.96 * one.standard_error for one in estimates)


def assert_honest(covered, repetitions=300):
    """A right standard error covers 95 %; demand what 95 % gives but for once in a million."""
    assert binom.cdf(covered, repetitions, 0.95) > 1e-6
    assert binom.sf(covered - 1, repetitions, 0.95) > 1e-6
    assert 0.90 <= covered / repetitions <= 0.98
