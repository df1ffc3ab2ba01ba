import math

import numpy as np
import pytest
import torch
from agreement import assert_agrees
from scipy.stats import binom, kstest
from torch.distributions import Laplace

from priormatch.estimate import TooFewCodesError
from priormatch.goodness_of_fit import henze_zirkler, rank_uniformity, sliced_epps_pulley


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(draws, latent, generator):
    return torch.randn(draws, latent, generator=generator)


def assert_level(rejected, repetitions, level=0.05):
    """A right test rejects at its level; demand what that gives but for once in a million."""
    assert binom.cdf(rejected, repetitions, level) > 1e-6
    assert binom.sf(rejected - 1, repetitions, level) > 1e-6


# Slices


def test_the_epps_pulley_statistic_is_its_integral():
    codes, generator = torch.tensor([[0.3], [-1.2], [2.0], [0.1]] * 3), seeded()
    axis = np.linspace(-3, 3, 33)
    empirical = np.exp(1j * axis[:, None] * codes.numpy()[:, 0]).mean(1)
    integrand = np.abs(empirical - np.exp(-(axis**2) / 2)) ** 2 * np.exp(-(axis**2) / 2)
    found = sliced_epps_pulley(codes, generator, 1).statistic
    assert found.value == pytest.approx(12 * np.trapezoid(integrand, axis), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("latent", "directions"), [(1, 1), (3, 6)])
def test_slices_of_a_match_lie_in_their_null_band(latent, directions):
    generator = seeded()
    found = [
        sliced_epps_pulley(normal(300, latent, generator), generator, directions)
        for _ in range(200)
    ]
    bands = [one.statistic for one in found]
    assert_level(sum(not one.low <= one.value <= one.high for one in bands), 200)
    assert kstest([one.p_value for one in found], "uniform").pvalue > 1e-4


def test_slices_see_a_shift_a_scale_and_tails_that_the_moments_do_not_have():
    generator = seeded()
    codes = normal(2_000, 3, generator)
    tails = Laplace(0.0, math.sqrt(0.5)).icdf(torch.rand(2_000, 1, generator=generator))
    for other in (codes + 0.1, 1.1 * codes, torch.cat([tails, codes[:, 1:]], 1)):
        found = sliced_epps_pulley(other, generator, 30)
        assert found.p_value < 0.001
        assert found.statistic.value > found.statistic.high


@pytest.mark.slow
def test_the_error_of_the_slices_is_that_of_their_spread():
    generator = seeded()
    found = [
        sliced_epps_pulley(0.3 + normal(500, 1, generator), generator, 1).statistic
        for _ in range(200)
    ]
    spread = np.std([one.value for one in found])
    assert 0.9 < np.mean([one.standard_error for one in found]) / spread < 1.2


# Shape


@pytest.mark.parametrize(("draws", "latent"), [(50, 1), (100, 2), (200, 8)])
def test_the_shape_of_gaussian_codes_is_rejected_at_the_level(draws, latent):
    generator = seeded(latent)
    turn = normal(latent, latent, generator) + 2 * torch.eye(latent)
    p_values = [
        henze_zirkler(3 + normal(draws, latent, generator) @ turn, generator).p_value
        for _ in range(300)
    ]
    # The log-normal law is an approximation: hold its level from 2 % to 8 %.
    assert 0.02 * 300 <= sum(one < 0.05 for one in p_values) <= 0.08 * 300


def test_the_shape_of_a_quilt_is_seen_and_its_unit_does_not_matter():
    generator = seeded()
    centres = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [0.0, 1.5]])
    codes = centres[torch.randint(3, (400,), generator=generator)]
    codes = codes + 0.4 * normal(400, 2, generator)
    found = henze_zirkler(codes, seeded())
    assert found.p_value < 1e-6
    moved = henze_zirkler(codes @ torch.tensor([[3.0, 1.0], [0.0, 1e-3]]) + 70, seeded())
    assert moved.statistic == pytest.approx(found.statistic, rel=1e-2)
    few = henze_zirkler(codes, seeded(), most=100)
    assert few.statistic != found.statistic


def test_the_henze_zirkler_statistic_is_its_double_sum():
    codes = normal(30, 2, seeded()).double().numpy()
    centred = codes - codes.mean(0)
    inverse = np.linalg.inv(centred.T @ centred / 30)
    square = 0.5 * (5 * 30 / 4) ** (2 / 6)
    total = 0.0
    for one in centred:
        for other in centred:
            total += math.exp(-0.5 * square * (one - other) @ inverse @ (one - other)) / 30
        total -= 2 * math.exp(-0.5 * square / (1 + square) * one @ inverse @ one) / (1 + square)
    total += 30 / (1 + 2 * square)
    found = henze_zirkler(torch.from_numpy(codes), seeded())
    assert found.statistic == pytest.approx(total, rel=1e-9)


# Ranks


def test_ranks_of_a_match_are_uniform_at_the_level():
    generator = seeded()
    found = [rank_uniformity(normal(200, 3, generator)) for _ in range(200)]
    first = [one.distances[0] for one in found]
    assert_level(sum(not one.low <= one.value <= one.high for one in first), 200)
    assert kstest([one.p_values[1] for one in found], "uniform").pvalue > 1e-4
    assert sum(one.p_value < 0.05 for one in found) <= binom.isf(1e-6, 200, 0.05)


def test_ranks_tell_which_dimension_is_shifted_and_by_how_much():
    codes = normal(20_000, 4, seeded())
    codes[:, 2] += 0.5
    found = rank_uniformity(codes)
    assert found.p_value < 1e-9
    assert [one < 1e-4 for one in found.p_values] == [False, False, True, False]
    # The distribution functions are furthest apart half way between the means.
    truth = 2 * (0.5 * (1 + math.erf(0.25 / math.sqrt(2)))) - 1
    distance = found.distances[2]
    assert_agrees(distance.value, distance.standard_error, truth)


def test_too_few_codes_are_refused():
    for test in (
        lambda: sliced_epps_pulley(torch.zeros(9, 2), seeded()),
        lambda: henze_zirkler(torch.zeros(19, 2), seeded()),
        lambda: henze_zirkler(torch.zeros(90, 50), seeded()),
        lambda: rank_uniformity(torch.zeros(1, 2)),
    ):
        with pytest.raises(TooFewCodesError):
            test()
