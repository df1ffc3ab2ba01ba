import pytest
import torch
from small_world import LINE, grid_for, linear_gaussian, sample, seeded
from torch.distributions import Independent, Normal

from priormatch.distributions import AggregatedPosterior
from priormatch.evidence import (
    Grid,
    aggregated_exact_posterior,
    exact_inference,
    exact_posteriors,
    importance_bounds,
    kl_on_grid,
)
from priormatch.models import encode


@pytest.mark.parametrize("latent", [1, 2])
def test_exact_posteriors_and_their_average_are_the_gaussians_they_must_be(latent):
    vae, evidence = linear_gaussian(latent)
    images = sample(evidence, 12, seeded(0))
    grid = grid_for(latent)
    log_evidence = exact_inference(vae, images, grid).log_evidence
    means, scales = encode(vae, images)
    densities = exact_posteriors(vae, images, log_evidence, grid)
    expected = Independent(Normal(means, scales), 1).log_prob(grid.nodes[:, None]).exp().T
    torch.testing.assert_close(densities, expected, rtol=1e-6, atol=1e-7)
    # A window shows the same densities as the whole latent space.
    peak = means[3].tolist()
    window = Grid(tuple(m - 0.1 for m in peak), tuple(m + 0.1 for m in peak), 0.01)
    assert window.shape == (21,) * latent
    expected = Independent(Normal(means[3], scales[3]), 1).log_prob(window.nodes).exp()
    shown = exact_posteriors(vae, images[3:4], log_evidence[3:4], window)[0]
    torch.testing.assert_close(shown, expected, rtol=1e-6, atol=0)
    average_density = aggregated_exact_posterior(vae, images, log_evidence, grid)
    mixture = AggregatedPosterior(means, scales)
    torch.testing.assert_close(
        average_density, mixture.log_prob(grid.nodes).exp(), rtol=1e-4, atol=1e-6
    )
    assert average_density.sum().item() * grid.cell_volume == pytest.approx(1, abs=1e-6)


def test_the_model_s_own_images_have_the_prior_as_their_average_posterior():
    vae, evidence = linear_gaussian(1)
    images = sample(evidence, 5_000, seeded(0))
    log_evidence = exact_inference(vae, images, LINE).log_evidence
    density = aggregated_exact_posterior(vae, images, log_evidence, LINE)
    assert 0 < kl_on_grid(density, vae.prior, LINE) < 0.005
    other = Independent(Normal(torch.full((1,), 0.5), 1.0), 1)
    assert kl_on_grid(density, other, LINE) == pytest.approx(0.125, abs=0.03)


def test_no_gradient_is_kept():
    vae, evidence = linear_gaussian(1)
    images = sample(evidence, 2, seeded(0))
    vae.decoder.weight.requires_grad_()
    exact = exact_inference(vae, images, LINE)
    results = [*importance_bounds(vae, images, 2, seeded(0)), *exact]
    for posterior in (exact_posteriors, aggregated_exact_posterior):
        results.append(posterior(vae, images, exact.log_evidence, LINE))
    assert not any(result.requires_grad for result in results)
