import math

import pytest
import torch
from small_world import NOISE, Linear, LinearPosterior, sample, seeded
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from priormatch.evidence import Grid, exact_elbo, likeliest_nodes
from priormatch.inference_gap import gaps, refine
from priormatch.models import VAE, GaussianPosterior, standard_normal

WIDE = Grid((-8.0, -8.0), (8.0, 8.0), 0.05)

# Columns that are not orthogonal: the exact posterior is a Gaussian whose dimensions correlate.
WEIGHT = torch.tensor([[1.0, 0.6], [0.2, 1.0], [0.5, 0.5]], dtype=torch.float64)
PRECISION = torch.eye(2, dtype=torch.float64) + WEIGHT.T @ WEIGHT / NOISE**2


def correlated(shift=0.3):
    """Return a linear-Gaussian VAE with a wrong encoder, and some images of its own."""
    encoder = GaussianPosterior(LinearPosterior(WEIGHT, 1.5, shift))
    vae = VAE(encoder, Linear(WEIGHT), standard_normal(2))
    covariance = WEIGHT @ WEIGHT.T + NOISE**2 * torch.eye(3, dtype=torch.float64)
    return vae, sample(MultivariateNormal(torch.ones(3).double(), covariance), 20, seeded(0))


def exact_posterior(images):
    covariance = torch.linalg.inv(PRECISION)
    mean = (images - 1) @ WEIGHT @ covariance / NOISE**2
    return MultivariateNormal(mean, covariance.expand(len(images), 2, 2))


class ExactPosterior(nn.Module):
    def forward(self, images):
        return exact_posterior(images)


def gap_of_the_best_diagonal():
    """Return the KL of the diagonal Gaussian with the variances 1 / P_jj: the least there is."""
    return 0.5 * (PRECISION.diagonal().log().sum() - PRECISION.logdet()).item()


@pytest.mark.slow
def test_a_refined_posterior_is_the_best_of_its_family():
    vae, images = correlated()
    with torch.no_grad():
        start = vae.posterior(images)
    diagonal = refine(vae, images, start, seeded(1), steps=400)
    assert torch.equal(diagonal.scale_tril[:, 1, 0], torch.zeros(20).double())
    torch.testing.assert_close(
        diagonal.variance, (1 / PRECISION.diagonal()).expand(20, 2), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(diagonal.mean, exact_posterior(images).mean, rtol=0, atol=1e-6)
    divergence = kl_divergence(diagonal, exact_posterior(images))
    least = torch.full_like(divergence, gap_of_the_best_diagonal())
    torch.testing.assert_close(divergence, least, rtol=0, atol=1e-9)
    full = refine(vae, images, diagonal, seeded(2), steps=400)
    divergence = kl_divergence(full, exact_posterior(images))
    torch.testing.assert_close(divergence, torch.zeros_like(least), rtol=0, atol=1e-9)


def test_the_gaps_are_known_where_the_exact_posterior_is_gaussian():
    vae, images = correlated()
    found = gaps(vae, images, seeded(3))
    with torch.no_grad():
        truth = kl_divergence(
            MultivariateNormal(
                vae.posterior(images).mean, torch.diag_embed(vae.posterior(images).variance)
            ),
            exact_posterior(images),
        )
    torch.testing.assert_close(found["gap"], truth, rtol=0, atol=1e-5)
    covariance = WEIGHT @ WEIGHT.T + NOISE**2 * torch.eye(3, dtype=torch.float64)
    log_evidence = MultivariateNormal(torch.ones(3).double(), covariance).log_prob(images)
    torch.testing.assert_close(found["log_evidence"], log_evidence, rtol=0, atol=1e-5)
    least = gap_of_the_best_diagonal()
    for name in ("refined_gap", "diagonal_gap"):
        assert least - 1e-5 < found[name].min()
        assert found[name].mean() < least + 0.02
    assert found["full_gap"].min() > -1e-5
    assert found["full_gap"].mean() < 0.02 < least
    assert found["gap"].mean() > 2 * least


@pytest.mark.slow
def test_a_full_covariance_s_own_gaps_start_from_it():
    """An encoder that knows the exact posterior leaves nothing to refine."""
    vae, images = correlated()
    exact = VAE(ExactPosterior(), vae.decoder, vae.prior)
    found = gaps(exact, images, seeded(4))
    for name in ("gap", "refined_gap", "full_gap"):
        torch.testing.assert_close(found[name], torch.zeros(20).double(), rtol=0, atol=1e-5)
    assert found["diagonal_gap"].min() > gap_of_the_best_diagonal() - 1e-5


class Folded(nn.Module):
    """Decoder N(|z_1| - 1, 0.1^2): two modes two units apart, of equal height."""

    def forward(self, codes):
        return Independent(Normal(codes[..., :1].abs() - 1, 0.1), 1)


class Nowhere(nn.Module):
    """Encoder that puts every image at the origin, between the modes."""

    def forward(self, images):
        return torch.cat([torch.zeros(len(images), 2), torch.full((len(images), 2), -8.0)], 1)


def test_the_highest_peak_is_found_where_the_encoder_does_not_look():
    vae = VAE(GaussianPosterior(Nowhere()), Folded(), standard_normal(2))
    found = gaps(vae, torch.full((1, 1), 0.5), seeded(5))
    assert found["gap"] > 20
    # Two narrow modes, of which a Gaussian covers one: the other is ln 2.
    torch.testing.assert_close(
        found["diagonal_gap"], torch.tensor([math.log(2)]).double(), rtol=0, atol=0.03
    )
    assert found["refined_gap"] > found["diagonal_gap"] + 1


@pytest.mark.parametrize("full", [False, True])
def test_the_exact_elbo_is_the_evidence_less_the_divergence(full):
    vae, images = correlated()
    own = exact_posterior(images) if full else vae.posterior(images)
    wrong = MultivariateNormal(
        own.mean + 0.2,
        scale_tril=1.3
        * torch.linalg.cholesky(own.covariance_matrix if full else torch.diag_embed(own.variance)),
    )
    covariance = WEIGHT @ WEIGHT.T + NOISE**2 * torch.eye(3, dtype=torch.float64)
    log_evidence = MultivariateNormal(torch.ones(3).double(), covariance).log_prob(images)
    expected = log_evidence - kl_divergence(wrong, exact_posterior(images))
    torch.testing.assert_close(exact_elbo(vae, images, wrong), expected, rtol=0, atol=1e-9)


def test_the_likeliest_node_is_the_nearest_to_the_peak():
    vae, images = correlated()
    nodes = likeliest_nodes(vae, images, Grid((-6.0, -6.0), (6.0, 6.0), 0.02))
    away = (nodes - exact_posterior(images).mean).abs().amax()
    assert 0 < away < 0.03
