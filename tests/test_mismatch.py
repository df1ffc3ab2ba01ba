import math

import pytest
import torch
from agreement import assert_agrees, assert_at_least, assert_at_most
from scipy.stats import binom
from torch.distributions import MultivariateNormal, Normal

from priormatch.aggregated import AggregatedPosterior
from priormatch.divergences import kl_between_gaussians
from priormatch.mismatch import (
    Estimate,
    average,
    held_out_kl,
    hole_share,
    in_sample_kl,
    mean_rate,
    moment_bound,
)
from priormatch.models import draw, standard_normal

# The aggregated posterior of this population is exactly N(shift, spread): its examples have
# Gaussian means and one scale. Its KL from N(0, I) is therefore known.
SCALE = 0.3


def population(latent, spread=1.0, shift=0.0):
    mean = torch.full((latent,), shift)
    covariance = spread * torch.eye(latent)
    truth = kl_between_gaussians(mean, covariance, torch.zeros(latent), torch.eye(latent)).item()
    return MultivariateNormal(mean, covariance - SCALE**2 * torch.eye(latent)), truth


def encoded(examples, examples_wanted):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        means = examples.sample((examples_wanted,))
    return AggregatedPosterior(means, torch.full_like(means, SCALE))


def coverage(estimates, truth):
    """Return how many of the intervals of ± 1.96 standard errors hold the truth."""
    return sum(abs(one.value - truth) <= 1.96 * one.standard_error for one in estimates)


def assert_honest(covered, repetitions=300):
    """A right standard error covers 95 %; demand what 95 % gives but for once in a million."""
    assert binom.cdf(covered, repetitions, 0.95) > 1e-6
    assert binom.sf(covered - 1, repetitions, 0.95) > 1e-6
    assert 0.90 <= covered / repetitions <= 0.98


def test_average_is_the_mean_with_its_standard_error():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    estimate = average(values)
    assert estimate.value == 2.5
    assert estimate.standard_error == pytest.approx(math.sqrt(5 / 3 / 4), rel=1e-12)
    assert str(Estimate(0.11823, 0.0052)) == "0.1182 ± 0.0052"
    assert str(Estimate(1234.5, 120.0)) == "1234 ± 120"


def test_mean_rate_is_the_average_of_the_closed_form():
    aggregated = AggregatedPosterior(torch.tensor([[0.0], [2.0]]), torch.ones(2, 1))
    assert mean_rate(aggregated).item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_in_sample_kl_of_one_mixture_is_its_integral(seed):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(5, 1, generator=generator)
    aggregated = AggregatedPosterior(means, 0.1 + torch.rand(5, 1, generator=generator))
    axis = torch.linspace(-12, 12, 20_001)[:, None]
    log_q = aggregated.log_prob(axis).double()
    log_p = standard_normal(1).log_prob(axis).double()
    truth = torch.trapezoid(log_q.exp() * (log_q - log_p), axis[:, 0].double()).item()
    estimate = in_sample_kl(aggregated, standard_normal(1), 100_000, generator)
    assert_agrees(estimate.value, estimate.standard_error, truth)
    assert estimate.bound == "upper"


def test_standard_errors_of_the_mixture_measures_are_honest():
    generator = torch.Generator().manual_seed(0)
    aggregated = AggregatedPosterior(torch.tensor([[-0.7], [0.4], [1.1]]), torch.full((3, 1), 0.8))
    axis = torch.linspace(-12, 12, 20_001)[:, None]
    log_q = aggregated.log_prob(axis).double()
    log_p = standard_normal(1).log_prob(axis).double()
    truth = torch.trapezoid(log_q.exp() * (log_q - log_p), axis[:, 0].double()).item()
    prior = standard_normal(1)
    inside = [in_sample_kl(aggregated, prior, 500, generator) for _ in range(300)]
    assert_honest(coverage(inside, truth))
    outside = [
        held_out_kl(aggregated, aggregated.sample((500,), generator=generator), prior)
        for _ in range(300)
    ]
    assert_honest(coverage(outside, truth))


@pytest.mark.parametrize(
    ("latent", "spread", "shift"), [(1, 1.0, 0.0), (2, 1.0, 0.0), (2, 1.5, 0.0), (2, 0.6, 0.5)]
)
def test_the_sandwich_holds_the_truth(latent, spread, shift):
    examples, truth = population(latent, spread, shift)
    train = encoded(examples, 20_000)
    generator = torch.Generator().manual_seed(1)
    prior = standard_normal(latent)
    unseen = MultivariateNormal(examples.mean, spread * torch.eye(latent))
    noise = torch.randn(20_000, latent, generator=generator)
    codes = unseen.mean + math.sqrt(spread) * noise
    above = in_sample_kl(train, prior, 20_000, generator)
    below = held_out_kl(train, codes, prior)
    assert_at_least(above.value, above.standard_error, truth)
    assert_at_most(below.value, below.standard_error, truth)
    # And it is narrow at a rate far below log N.
    assert above.value - below.value < 0.1


def test_beyond_log_n_the_in_sample_number_is_its_floor_and_not_the_truth():
    examples, truth = population(latent=20)
    assert truth == pytest.approx(0, abs=1e-6)
    train = encoded(examples, 1_000)
    prior = standard_normal(20)
    above = in_sample_kl(train, prior, 2_000, torch.Generator().manual_seed(0))
    assert above.floor == pytest.approx(mean_rate(train).item() - math.log(1_000), rel=1e-6)
    assert above.floor > 9
    assert above.value == pytest.approx(above.floor, abs=5 * above.standard_error + 0.05)


def test_held_out_kl_of_a_density_misses_exactly_its_own_divergence():
    generator = torch.Generator().manual_seed(0)
    codes = 1.3 * torch.randn(50_000, 1, generator=generator)
    density = standard_normal(1).expand(())
    wide = torch.distributions.Independent(Normal(torch.zeros(1), 1.2 * torch.ones(1)), 1)
    truth, prior = Normal(0.0, 1.3), Normal(0.0, 1.0)
    expected = (
        torch.distributions.kl_divergence(truth, prior)
        - torch.distributions.kl_divergence(truth, Normal(0.0, 1.2))
    ).item()
    estimate = held_out_kl(wide, codes, density)
    assert_agrees(estimate.value, estimate.standard_error, expected)
    assert estimate.bound == "lower"


def test_moment_bound_of_a_gaussian_is_its_divergence_with_an_honest_error():
    generator = torch.Generator().manual_seed(0)
    factor = torch.tensor([[1.2, 0.0], [0.4, 0.8]])
    mean = torch.tensor([0.3, -0.2])
    truth = kl_between_gaussians(mean, factor @ factor.T, torch.zeros(2), torch.eye(2)).item()
    estimates = [
        moment_bound(mean + torch.randn(1_000, 2, generator=generator) @ factor.T)
        for _ in range(300)
    ]
    assert_honest(coverage(estimates, truth))
    assert estimates[0].bound == "lower"


def test_moment_bound_is_unbiased_at_the_prior_even_in_many_dimensions():
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor(
        [moment_bound(torch.randn(5_000, 50, generator=generator)).value for _ in range(50)]
    )
    estimate = average(values)
    # The plug-in estimate alone would be 0.13 nats above the truth of zero.
    assert abs(estimate.value) < 0.01


def test_moment_bound_is_below_the_divergence_of_a_bimodal_law():
    generator = torch.Generator().manual_seed(0)
    aggregated = AggregatedPosterior(torch.tensor([[-0.9], [0.9]]), torch.full((2, 1), 0.2))
    moments = moment_bound(aggregated.sample((20_000,), generator=generator))
    joint = in_sample_kl(aggregated, standard_normal(1), 20_000, generator)
    assert moments.value < 0.05
    assert joint.value > 0.5


def test_a_matching_prior_has_the_stated_share_in_holes():
    generator = torch.Generator().manual_seed(0)
    prior = standard_normal(2)
    shares = [
        hole_share(
            prior,
            torch.randn(2_000, 2, generator=generator),
            torch.randn(2_000, 2, generator=generator),
        )
        for _ in range(300)
    ]
    values = torch.tensor([share.value for share in shares])
    assert_agrees(values.mean().item(), values.std().item() / math.sqrt(300), 0.01)
    errors = torch.tensor([share.standard_error for share in shares])
    assert errors.mean().item() == pytest.approx(values.std().item(), rel=0.15)


def test_a_prior_with_half_of_its_mass_uncovered_has_half_in_holes():
    generator = torch.Generator().manual_seed(0)
    codes = draw(standard_normal(1).expand((5_000,)), generator).abs()
    narrow = AggregatedPosterior(codes, torch.full_like(codes, 0.02))
    share = hole_share(
        narrow,
        draw(standard_normal(1).expand((5_000,)), generator).abs(),
        torch.randn(5_000, 1, generator=generator),
    )
    assert_agrees(share.value, share.standard_error, 0.5 + 0.5 * 0.01)
