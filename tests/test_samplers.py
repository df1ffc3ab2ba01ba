import math

import pytest
import torch
from agreement import assert_agrees
from small_world import corner, drawn
from torch.distributions import Cauchy, Independent, Normal

from priormatch import samplers
from priormatch.densities import fit_flow, fit_gaussian, fit_mixture
from priormatch.distributions import AggregatedPosterior
from priormatch.estimate import average
from priormatch.models import standard_normal
from priormatch.samplers import fit_samplers, inverse_rosenblatt, sample


def noise(draws, latent=2, seed=0):
    return torch.randn((draws, latent), generator=torch.Generator().manual_seed(seed))


# Quantiles


def test_the_prior_gives_the_noise_back():
    assert torch.equal(inverse_rosenblatt(standard_normal(3), noise(5, 3)), noise(5, 3))


def test_a_gaussian_moves_noise_by_its_factor():
    density = fit_gaussian(drawn(corner(2), 500))
    expected = density.mean + noise(50) @ density.scale_tril.T
    torch.testing.assert_close(inverse_rosenblatt(density, noise(50)), expected)


def test_a_mixture_of_one_moves_noise_as_its_gaussian_does():
    law = fit_mixture(drawn(corner(3), 500), 1)
    parts = law.component_distribution
    expected = parts.mean[0] + noise(50, 3) @ parts.scale_tril[0].T
    torch.testing.assert_close(
        inverse_rosenblatt(law, noise(50, 3)), expected, atol=1e-4, rtol=1e-4
    )


def test_quantiles_of_a_mixture_are_those_of_its_marginal_and_its_conditional():
    law = corner(2)
    means, factors = (law.component_distribution.loc, law.component_distribution.scale_tril)
    weights = law.mixture_distribution.probs
    codes = inverse_rosenblatt(law, noise(50))
    levels = Normal(0.0, 1.0).cdf(noise(50))
    # The first dimension by hand; the second by integrating the density along it.
    first = Normal(means[:, 0], factors[:, 0, 0]).cdf(codes[:, :1]) @ weights
    torch.testing.assert_close(first, levels[:, 0], atol=1e-5, rtol=0)
    axis = torch.linspace(-8, 8, 4_001)
    for code, level in zip(codes[:10], levels[:10], strict=True):
        line = torch.stack([code[0].expand_as(axis), axis], 1)
        density = law.log_prob(line).double().exp()
        share = torch.trapezoid(density[axis <= code[1]], axis[axis <= code[1]].double())
        whole = torch.trapezoid(density, axis.double())
        assert (share / whole).item() == pytest.approx(level[1].item(), abs=3e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixture", "flow"])
def test_noise_at_quantiles_follows_the_density(kind):
    codes = drawn(corner(2), 3_000)
    fits = {"mixture": lambda: fit_mixture(codes, 3), "flow": lambda: fit_flow(codes, codes, 0, 90)}
    density = fits[kind]()
    carried, own = inverse_rosenblatt(density, noise(20_000)), drawn(density, 20_000, seed=3)
    for statistic in (
        lambda z: z[:, 0],
        lambda z: z[:, 1],
        lambda z: z.prod(1),
        lambda z: z.square().sum(1),
        density.log_prob,
    ):
        one, other = average(statistic(carried)), average(statistic(own))
        error = math.hypot(one.standard_error, other.standard_error)
        assert_agrees(one.value, error, other.value)


def test_a_density_without_a_map_is_refused():
    with pytest.raises(TypeError, match="quantiles"):
        inverse_rosenblatt(Independent(Cauchy(torch.zeros(2), 1.0), 1), noise(3))


# Draws and fits


def test_a_seed_decides_draws_and_the_global_generator_is_left_alone():
    density = corner(2)
    before = torch.get_rng_state()
    one, again, other = sample(density, 5), sample(density, 5), sample(density, 5, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_samplers_are_fitted_to_the_training_codes_from_the_prior_to_the_posteriors(
    monkeypatch,
):
    def short_fit(codes, validation_codes, seed):
        return fit_flow(codes, validation_codes, seed, steps=15)

    monkeypatch.setattr(samplers, "fit_flow", short_fit)
    codes, unseen = drawn(corner(2), 400), drawn(corner(2), 200, seed=1)
    prior, aggregated = standard_normal(2), AggregatedPosterior(codes, torch.ones_like(codes))
    fitted = fit_samplers(prior, aggregated, codes, unseen, seed=1)
    sizes = ["mixture of 10", "mixture of 200"]
    assert list(fitted) == ["prior", "Gaussian", *sizes, "flow", "training posteriors"]
    assert fitted["prior"].density is prior
    assert fitted["training posteriors"].density is aggregated
    fits = {
        "Gaussian": fit_gaussian(codes),
        "mixture of 10": fit_mixture(codes, 10, seed=1),
        "flow": short_fit(codes, unseen, 1),
    }
    for name, density in fits.items():
        assert torch.equal(fitted[name].density.log_prob(unseen), density.log_prob(unseen))
        assert fitted[name].seconds > 0
