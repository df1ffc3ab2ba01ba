import math

import pytest
import torch
from agreement import assert_agrees
from small_world import seeded
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from priormatch import line
from priormatch.distributions import AggregatedPosterior, StretchedBeta
from priormatch.estimate import average
from priormatch.evidence import kl_on_grid
from priormatch.models import VAE, BernoulliLikelihood, draw, standard_normal, uniform_interval


def on_the_interval(examples=500):
    """Return posteriors of made-up examples, their digits, and the prior."""
    modes = torch.rand(examples, 1, generator=seeded(0))
    sharpness = 1_000 * torch.rand(examples, 1, generator=seeded(1))
    posterior = StretchedBeta(1 + sharpness * modes, 1 + sharpness * (1 - modes))
    labels = torch.randint(10, (examples,), generator=seeded(2))
    return Independent(posterior, 1), labels, uniform_interval(1)


def on_the_line(examples=500):
    means = torch.randn(examples, 1, generator=seeded(0))
    scales = 0.02 + 0.1 * torch.rand(examples, 1, generator=seeded(1))
    labels = torch.randint(10, (examples,), generator=seeded(2))
    return Independent(Normal(means, scales), 1), labels, standard_normal(1)


both = pytest.mark.parametrize("family", [on_the_interval, on_the_line])


def test_the_density_of_the_mixture_is_the_aggregated_posteriors():
    posterior, labels, _ = on_the_line()
    nodes = torch.linspace(-3, 3, 50, dtype=torch.float64)
    mixture = AggregatedPosterior(posterior.base_dist.loc, posterior.base_dist.scale)
    density = line.density_by_digit(posterior, labels, nodes)
    torch.testing.assert_close(
        density.sum(0).log(), mixture.log_prob(nodes[:, None]), atol=1e-4, rtol=0
    )
    threes = labels == 3
    of_threes = AggregatedPosterior(
        posterior.base_dist.loc[threes], posterior.base_dist.scale[threes]
    )
    torch.testing.assert_close(
        density[3],
        threes.double().mean() * of_threes.log_prob(nodes[:, None]).exp(),
        atol=1e-5,
        rtol=1e-3,
    )


@both
def test_density_and_mass_are_of_the_same_distribution(family):
    posterior, labels, prior = family()
    grid = line.grid_of(prior, 4_000)
    nodes, width = grid.nodes.squeeze(1), grid.spacing
    density = line.density_by_digit(posterior, labels, nodes)
    torch.testing.assert_close(
        density.sum(1) * width,
        torch.bincount(labels, minlength=10).double() / 500,
        atol=1e-4,
        rtol=0,
    )
    mass = line.mass_by_digit(posterior, labels, prior, bins=8)
    bins = (prior.base_dist.cdf(nodes) * 8).long()
    expected = torch.stack([density[:, bins == i].sum(1) * width for i in range(8)], 1)
    torch.testing.assert_close(mass, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(mass.sum().item(), 1.0)


@both
def test_the_rate_splits_into_information_and_mismatch(family):
    # I[n; z] by Monte Carlo from its definition, the mismatch by quadrature, the rate closed.
    posterior, labels, prior = family()
    grid = line.grid_of(prior, 4_000)
    density = line.density_by_digit(posterior, labels, grid.nodes.squeeze(1)).sum(0)
    mismatch = kl_on_grid(density, prior, grid)
    many = posterior.expand(torch.Size((40, 500)))
    codes = draw(many, seeded(3))
    density = line.density_by_digit(posterior, labels, codes.flatten()).sum(0)
    log_ratios = many.log_prob(codes).double() - density.log().reshape(40, 500)
    # Each image has as many draws, so that only the spread within images makes an error.
    error = math.sqrt(log_ratios.var(0).mean() / log_ratios.numel())
    rate = kl_divergence(posterior, prior).mean().item()
    assert_agrees(log_ratios.mean().item(), error, rate - mismatch)


@both
def test_the_divergence_is_the_monte_carlo_mean_of_its_log_ratio(family):
    posterior, labels, prior = family()
    grid = line.grid_of(prior, 4_000)
    density = line.density_by_digit(posterior, labels, grid.nodes.squeeze(1)).sum(0)
    codes = draw(posterior.expand(torch.Size((40, 500))), seeded(4)).flatten(0, 1)
    log_ratio = line.density_by_digit(posterior, labels, codes[:, 0]).sum(0).log()
    estimate = average(log_ratio - prior.log_prob(codes).double())
    assert_agrees(
        estimate.value,
        estimate.standard_error,
        kl_on_grid(density, prior, grid),
    )


def test_nodes_reach_as_far_as_double_precision_goes():
    grid = line.grid_of(standard_normal(1), 1_000)
    axis = grid.nodes.squeeze(1)
    assert axis[0].item() == pytest.approx(-axis[-1].item(), abs=0.02)
    assert -8 < axis[0] < -7.9
    density = standard_normal(1).log_prob(axis[:, None]).double().exp()
    assert kl_on_grid(density, standard_normal(1), grid) == pytest.approx(0, abs=1e-6)


def test_a_gaussian_is_as_far_from_the_prior_as_the_closed_form_says():
    grid = line.grid_of(standard_normal(1), 1_000)
    shifted = Normal(1.0, 0.5).log_prob(grid.nodes.squeeze(1)).exp()
    expected = 0.5 * (1 + 0.25 - 1 - math.log(0.25))
    assert kl_on_grid(shifted, standard_normal(1), grid) == pytest.approx(expected, abs=1e-6)


def test_a_code_of_pure_digits_tells_their_entropy_and_an_empty_code_nothing():
    grid = line.grid_of(uniform_interval(1), 1_000)
    nodes = grid.nodes.squeeze(1)
    shares = torch.arange(1, 11, dtype=torch.float64) / 55
    empty = shares[:, None].expand(10, 1_000) / 10
    assert line.information_on_the_digit(empty, grid) == pytest.approx(0, abs=1e-12)
    owner = torch.searchsorted(shares.cumsum(0), nodes / 10).clamp(max=9)
    pure = 0.1 * nn.functional.one_hot(owner, 10).double().T
    entropy = -(shares * shares.log()).sum().item()
    assert line.information_on_the_digit(pure, grid) == pytest.approx(entropy, abs=2e-3)


class Ramp(nn.Module):
    """A decoder that inks as many of the first ten pixels as the code says."""

    def forward(self, codes):
        return torch.cat([50 * (codes - torch.arange(1.0, 11.0)), torch.zeros(len(codes), 774)], 1)


class Count(nn.Module):
    """A classifier whose answer is the number of inked pixels among the first ten."""

    def forward(self, images):
        return -(images[:, :10].sum(1, keepdim=True) - torch.arange(10)).square()


def test_positions_are_decoded_at_the_priors_quantiles():
    on_interval = VAE(nn.Identity(), BernoulliLikelihood(Ramp()), uniform_interval(1))
    on_line = VAE(nn.Identity(), BernoulliLikelihood(Ramp()), standard_normal(1))
    positions = torch.tensor([0.05, 0.35, 0.95])
    assert line.decoded_digits(on_interval, Count(), positions).tolist() == [0, 3, 9]
    # The quantiles of N(0, 1) are -1.6, -0.4 and 1.6.
    assert line.decoded_digits(on_line, Count(), positions).tolist() == [0, 0, 1]
