import math

import pytest
import scipy
import torch
from agreement import assert_agrees
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Beta, MultivariateNormal, Normal, Uniform, kl_divergence

from priormatch.divergences import (
    kl_between_gaussians,
    kl_from_prior_per_dimension,
    kl_from_uniform,
    kl_of_beta_from_uniform,
    kl_to_prior_per_dimension,
)
from priormatch.estimate import average

means = st.floats(-5, 5)
log_variances = st.floats(-10, 4)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


@given(means, log_variances)
def test_both_directions_agree_with_torch(mean, log_variance):
    posterior = Normal(doubles(mean), doubles(log_variance / 2).exp())
    prior = Normal(doubles(0.0), doubles(1.0))
    arguments = doubles(mean), doubles(log_variance)
    torch.testing.assert_close(
        kl_from_prior_per_dimension(*arguments),
        kl_divergence(posterior, prior),
        atol=1e-12,
        rtol=1e-9,
    )
    torch.testing.assert_close(
        kl_to_prior_per_dimension(*arguments),
        kl_divergence(prior, posterior),
        atol=1e-12,
        rtol=1e-9,
    )


@given(means, log_variances)
def test_a_divergence_is_never_negative(mean, log_variance):
    arguments = doubles(mean), doubles(log_variance)
    assert kl_from_prior_per_dimension(*arguments) >= 0
    assert kl_to_prior_per_dimension(*arguments) >= 0


def test_zero_at_the_prior_alone():
    assert kl_from_prior_per_dimension(doubles(0.0), doubles(0.0)).item() == 0
    assert kl_to_prior_per_dimension(doubles(0.0), doubles(0.0)).item() == 0
    assert kl_from_prior_per_dimension(doubles(1e-3), doubles(0.0)).item() > 0


def test_small_divergences_keep_their_digits_in_single_precision():
    log_variance = torch.tensor([1e-3])
    exact = 0.5 * (math.expm1(1e-3) - 1e-3)
    assert kl_from_prior_per_dimension(torch.zeros(1), log_variance).item() == pytest.approx(
        exact, rel=1e-3
    )


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 0.3), (1.5, 0.7), (-1.0, 2.0)])
def test_closed_form_is_the_monte_carlo_mean(mean, scale):
    generator = torch.Generator().manual_seed(0)
    posterior, prior = Normal(doubles(mean), doubles(scale)), Normal(doubles(0.0), doubles(1.0))
    noise = torch.randn(100_000, 1, generator=generator, dtype=torch.float64)
    for one, other, closed_form in (
        (posterior, prior, kl_from_prior_per_dimension),
        (prior, posterior, kl_to_prior_per_dimension),
    ):
        draws = one.mean + one.stddev * noise
        estimate = average((one.log_prob(draws) - other.log_prob(draws)).squeeze(1))
        truth = closed_form(doubles(mean), 2 * doubles(scale).log()).item()
        assert_agrees(estimate.value, estimate.standard_error, truth)


def test_doubled_variance_costs_the_stated_nats():
    assert kl_from_prior_per_dimension(doubles(0.0), doubles(math.log(2))).item() == pytest.approx(
        0.5 * (1 - math.log(2)), rel=1e-12
    )


def test_full_covariance_agrees_with_the_diagonal_and_with_torch():
    mean, log_variance = doubles(0.3, -1.0, 2.0), doubles(0.5, -2.0, 0.1)
    zero, identity = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(
        kl_between_gaussians(mean, log_variance.exp().diag(), zero, identity),
        kl_from_prior_per_dimension(mean, log_variance).sum(),
    )
    root = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    covariance = root @ root.T + identity
    torch.testing.assert_close(
        kl_between_gaussians(mean, covariance, zero, 2 * identity),
        kl_divergence(MultivariateNormal(mean, covariance), MultivariateNormal(zero, 2 * identity)),
    )
    with pytest.raises(ValueError, match="covariance is not positive definite"):
        kl_between_gaussians(mean, -identity, zero, identity)


def test_a_share_of_the_prior_costs_its_negative_logarithm():
    assert kl_from_uniform(0.1) == pytest.approx(math.log(10), rel=1e-12)
    assert kl_from_uniform(1.0) == 0
    for share in (0.0, 1.1, -1.0):
        with pytest.raises(ValueError, match="share of mass"):
            kl_from_uniform(share)


@given(st.floats(0.05, 500), st.floats(0.05, 500))
def test_kl_of_a_beta_agrees_with_torch_and_has_no_preferred_end(alpha, beta):
    kl = kl_of_beta_from_uniform(doubles(alpha), doubles(beta))
    expected = kl_divergence(Beta(doubles(alpha), doubles(beta)), Uniform(doubles(0), doubles(1)))
    torch.testing.assert_close(kl, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(kl, kl_of_beta_from_uniform(doubles(beta), doubles(alpha)))
    assert kl >= -1e-9


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 40.0), (3.0, 7.0), (2e4, 6e4)])
def test_kl_of_a_beta_is_an_integral(alpha, beta):
    def integrand(share):
        density = scipy.stats.beta.pdf(share, alpha, beta)
        return scipy.special.xlogy(density, density)

    mean, scale = scipy.stats.beta.mean(alpha, beta), scipy.stats.beta.std(alpha, beta)
    ends = max(0, mean - 20 * scale), min(1, mean + 20 * scale)
    integral, error = scipy.integrate.quad(integrand, *ends, limit=200, epsabs=1e-11)
    assert error < 1e-8
    kl = kl_of_beta_from_uniform(doubles(alpha), doubles(beta))
    assert kl.item() == pytest.approx(integral, abs=1e-7)


def test_kl_of_a_narrow_beta_keeps_its_digits_in_single_precision():
    # Nearly a Gaussian of variance v = ab / (a + b)^3: minus its entropy.
    alpha, beta = torch.tensor([3e6]), torch.tensor([7e6])
    gaussian = -0.5 * math.log(2 * math.pi * math.e * 0.21 / 1e7)
    kl = kl_of_beta_from_uniform(alpha, beta)
    assert kl.dtype == torch.float32
    assert kl.item() == pytest.approx(gaussian, abs=1e-5)
