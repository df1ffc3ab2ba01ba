import pytest
import scipy
import torch
from agreement import assert_agrees
from torch.distributions import Independent, Uniform, kl_divergence

from priormatch.distributions import StretchedBeta
from priormatch.estimate import average
from priormatch.models import draw, uniform_interval

FLAT, ALPHA, BETA = 1.0, 3.0, 7.0
SHAPES = [(FLAT, FLAT), (ALPHA, BETA), (0.5, 300.0), (2e4, 6e4)]


def stretched(alpha, beta, batch=(1,), dtype=torch.float32):
    shape = torch.Size(batch)
    return StretchedBeta(
        torch.full(shape, alpha, dtype=dtype), torch.full(shape, beta, dtype=dtype)
    )


@pytest.mark.parametrize(("alpha", "beta"), SHAPES)
def test_a_stretched_beta_has_the_density_of_a_beta_ten_times_as_wide(alpha, beta):
    posterior = stretched(alpha, beta, dtype=torch.float64)
    law = scipy.stats.beta(alpha, beta, scale=10)
    values = torch.from_numpy(law.ppf([0.001, 0.3, 0.5, 0.9, 0.999]))
    for ours, theirs in [
        (posterior.log_prob(values), law.logpdf(values)),
        (posterior.cdf(values), law.cdf(values)),
        (posterior.mean, [law.mean()]),
        (posterior.variance, [law.var()]),
    ]:
        torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-8, atol=1e-8)


def test_densities_of_narrow_posteriors_keep_their_digits_in_single_precision():
    value = torch.tensor([2.51])
    exact = stretched(2e4, 6e4, dtype=torch.float64).log_prob(value.double())
    assert stretched(2e4, 6e4).log_prob(value).item() == pytest.approx(exact.item(), abs=1e-5)


@pytest.mark.parametrize(("alpha", "beta"), SHAPES)
def test_draws_of_a_stretched_beta_follow_its_law(alpha, beta):
    draws = draw(stretched(alpha, beta, (100_000,)), torch.Generator().manual_seed(0))
    law = scipy.stats.beta(alpha, beta, scale=10)
    for values, truth in [(draws, law.mean()), ((draws - law.mean()).square(), law.var())]:
        estimate = average(values)
        assert_agrees(estimate.value, estimate.standard_error, truth)
    assert 0 < draws.min() < draws.max() < 10


def test_draws_at_the_very_ends_have_a_finite_density():
    posterior = stretched(0.1, 1e9, (1_000,))
    mirrored = stretched(1e9, 0.1, (1_000,))
    for narrow in (posterior, mirrored):
        draws = draw(narrow, torch.Generator().manual_seed(0))
        assert narrow.log_prob(draws).isfinite().all()
        assert uniform_interval(1).log_prob(draws[:, None]).isfinite().all()


def test_gradients_of_draws_are_those_of_quantiles():
    # For a fixed level of the distribution function the draw moves with the parameter.
    alpha = torch.tensor([3.0, 30.0, 300.0], dtype=torch.float64, requires_grad=True)
    beta = torch.tensor([7.0, 30.0, 2.0], dtype=torch.float64)
    codes = draw(StretchedBeta(alpha, beta), torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(codes.sum(), alpha)
    below, above = (alpha.detach() * factor for factor in (0.9999, 1.0001))
    level = scipy.stats.beta.cdf(codes.detach() / 10, alpha.detach(), beta)
    moved = scipy.stats.beta.ppf(level, above, beta) - scipy.stats.beta.ppf(level, below, beta)
    torch.testing.assert_close(
        gradient, 10 * torch.from_numpy(moved) / (above - below), rtol=1e-3, atol=0
    )


def test_the_divergence_from_the_uniform_prior_is_the_monte_carlo_mean():
    posterior = Independent(stretched(ALPHA, BETA, (100_000, 1)), 1)
    prior = uniform_interval(1)
    codes = draw(posterior, torch.Generator().manual_seed(0))
    estimate = average(posterior.log_prob(codes) - prior.log_prob(codes))
    rate = kl_divergence(posterior, prior)
    assert rate.shape == (100_000,)
    assert_agrees(estimate.value, estimate.standard_error, rate[0].item())


def test_the_divergence_from_another_interval_is_refused():
    with pytest.raises(NotImplementedError, match=r"U\(0, 10\)"):
        kl_divergence(stretched(ALPHA, BETA), Uniform(torch.zeros(1), torch.ones(1)))


def test_a_stretched_beta_expands_as_torchs_distributions_do():
    posterior = Independent(stretched(ALPHA, BETA, (3, 1)), 1).expand(torch.Size((5, 3)))
    codes = draw(posterior, torch.Generator().manual_seed(0))
    assert codes.shape == (5, 3, 1)
    assert len(codes.unique()) == 15
    assert posterior.log_prob(codes).shape == (5, 3)
