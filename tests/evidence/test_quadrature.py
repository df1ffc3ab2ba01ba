import math

import pytest
import torch
from agreement import assert_agrees
from small_world import (
    LINE,
    NOISE,
    WIDE,
    Linear,
    LinearPosterior,
    closed_form_gap,
    grid_for,
    linear_gaussian,
    sample,
    seeded,
)
from torch import nn
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal

from priormatch.data import binarized
from priormatch.estimate import average
from priormatch.evidence import (
    Grid,
    GridError,
    exact_inference,
    exact_inference_in_the_plane,
    exact_posteriors,
    importance_bounds,
    kl_on_grid,
    quadrature,
)
from priormatch.experiments import pretrained
from priormatch.models import VAE, BernoulliLikelihood, GaussianPosterior, standard_normal


@pytest.mark.parametrize("latent", [1, 2])
@pytest.mark.parametrize("other_prior", [False, True])
def test_quadrature_is_the_closed_form(latent, other_prior):
    one = torch.ones(latent, dtype=torch.float64)
    prior = MultivariateNormal(0.4 * one, (1.3 * one).diag()) if other_prior else None
    vae, evidence = linear_gaussian(latent, prior, widen=1.3, shift=0.1)
    images = sample(evidence, 10, seeded(0))
    exact = exact_inference(vae, images, grid_for(latent))
    truth = evidence.log_prob(images)
    torch.testing.assert_close(exact.log_evidence, truth, rtol=0, atol=1e-6)
    assert exact.refinement_error.max() < 1e-3
    draws = importance_bounds(vae, images, 20_000, seeded(1))
    error = average(draws.elbo - exact.elbo)
    assert_agrees(error.value, error.standard_error, 0.0)


@pytest.mark.parametrize("latent", [1, 2])
def test_the_inference_gap_is_the_divergence_from_the_exact_posterior(latent):
    vae, evidence = linear_gaussian(latent, widen=1.3, shift=0.1)
    images = sample(evidence, 5, seeded(0))
    exact = exact_inference(vae, images, grid_for(latent))
    torch.testing.assert_close(exact.gap, closed_form_gap(vae, images), rtol=0, atol=1e-6)
    # And the other way: the integral of Q log (Q / P) over the grid.
    codes = grid_for(latent).nodes[:, None]
    log_joint = vae.likelihood(codes).log_prob(images) + vae.prior.log_prob(codes)
    log_q = vae.posterior(images).log_prob(codes)
    integrand = log_q.exp() * (log_q - log_joint + exact.log_evidence)
    integral = integrand.sum(0) * grid_for(latent).cell_volume
    torch.testing.assert_close(integral, exact.gap, rtol=0, atol=1e-6)


def test_kl_on_grid_is_that_of_gaussians():
    density = MultivariateNormal(torch.tensor([0.5, -0.3]), torch.tensor([[0.8, 0.3], [0.3, 0.6]]))
    prior = MultivariateNormal(torch.tensor([0.0, 0.2]), torch.tensor([[1.1, -0.2], [-0.2, 0.9]]))
    values = density.log_prob(WIDE.nodes.float()).double().exp()
    truth = torch.distributions.kl_divergence(density, prior).item()
    assert kl_on_grid(values, prior, WIDE) == pytest.approx(truth, abs=1e-5)


class Folded(nn.Module):
    """A decoder that does not see the sign of its code."""

    def forward(self, codes):
        return Independent(Normal(codes.abs(), 0.1), 1)


class OneMode(nn.Module):
    """Mean and log variance of the posterior of `Folded` that is right of zero."""

    def forward(self, images):
        variance = torch.full_like(images, 1 / (1 + 0.1**-2))
        return torch.cat([images / 0.1**2 * variance, variance.log()], -1)


def test_a_mode_that_the_encoder_does_not_know_is_missed_by_draws_and_found_by_quadrature():
    vae = VAE(GaussianPosterior(OneMode()), Folded(), standard_normal(1))
    images = torch.tensor([[1.0], [1.5], [2.0]], dtype=torch.float64)
    one_mode = Normal(0.0, math.sqrt(1.01)).log_prob(images[:, 0])
    exact = exact_inference(vae, images, LINE)
    torch.testing.assert_close(exact.log_evidence, one_mode + math.log(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(exact.gap, torch.full_like(one_mode, math.log(2)), rtol=0, atol=1e-6)
    bounds = importance_bounds(vae, images, 1_000, seeded(0))
    torch.testing.assert_close(bounds.log_evidence, one_mode, rtol=0, atol=1e-6)


class Hidden(nn.Module):
    """Bernoulli pixels in a wrapper that hides them from the fast path."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, codes):
        pixels = Bernoulli(logits=self.network(codes), validate_args=False)
        return Independent(Independent(pixels, 0), 1)


def test_the_matrix_product_of_bernoulli_pixels_changes_nothing(monkeypatch):
    # The general path takes a few images at a time.
    monkeypatch.setattr(quadrature, "_VALUES", 100_000)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 30)).double()
    encoder = GaussianPosterior(nn.Linear(30, 4).double())
    images = torch.bernoulli(torch.full((8, 30), 0.4, dtype=torch.float64), generator=seeded(0))
    grid = Grid((-7.0, -7.0), (7.0, 7.0), 0.1)
    fast, slow = (
        exact_inference(VAE(encoder, decoder, standard_normal(2)), images, grid)
        for decoder in (BernoulliLikelihood(network), Hidden(network))
    )
    torch.testing.assert_close(fast.log_evidence, slow.log_evidence, rtol=0, atol=1e-9)
    torch.testing.assert_close(fast.elbo, slow.elbo, rtol=0, atol=1e-9)
    assert fast.gap.min() > 0


def test_the_refinement_error_is_what_the_grids_of_twice_the_spacing_say():
    vae, evidence = linear_gaussian(1)
    images = sample(evidence, 30, seeded(0))
    exact = exact_inference(vae, images, Grid((-8.0,), (8.0,), 0.6))
    twice = [
        exact_inference(vae, images, Grid((lower,), (8.0,), 1.2)).log_evidence
        for lower in (-8.0, -7.4)
    ]
    moved = (torch.stack(twice) - exact.log_evidence).abs().amax(0)
    assert moved.max() > 0.001
    torch.testing.assert_close(exact.refinement_error, moved, rtol=1e-6, atol=1e-9)
    # The error itself is far smaller.
    error = (exact.log_evidence - evidence.log_prob(images)).abs()
    assert (error < exact.refinement_error.max() / 20).all()


@pytest.mark.parametrize("latent", [1, 2])
def test_a_grid_that_is_too_small_or_too_coarse_is_refused(latent):
    vae, evidence = linear_gaussian(latent)
    images = sample(evidence, 10, seeded(0))
    with pytest.raises(GridError, match="widen its limits"):
        # Only the last dimension reaches the border.
        exact_inference(vae, images, Grid((-8.0, -1.0)[-latent:], (8.0, 9.0)[-latent:], 0.1))
    with pytest.raises(GridError, match="widen its limits"):
        exact_inference(vae, images, Grid((20.0,) * latent, (30.0,) * latent, 0.1))
    far = 1 + vae.decoder.weight @ torch.full((latent,), 20.0).double()
    three = torch.stack([evidence.mean, far, evidence.mean])
    with pytest.raises(GridError, match="image 1 lies on the border"):
        exact_inference(vae, three, Grid((-8.0,) * latent, (8.0,) * latent, 0.1))
    limits = (-8.3,) * latent, (8.0,) * latent
    with pytest.raises(GridError, match="on average: make its spacing smaller"):
        exact_inference(vae, images, Grid(*limits, 2.0))
    # On average an image changes by less than 20 nats.
    with pytest.raises(GridError, match=r"for image \d: make its spacing smaller"):
        exact_inference(vae, images, Grid(*limits, (6.5, 2.0)[latent - 1]), tolerance=1e-3)
    grid = Grid((-8.0,) * latent, (8.0,) * latent, 0.1)
    density = standard_normal(latent).log_prob(grid.nodes).exp()
    assert kl_on_grid(density, standard_normal(latent), grid) == pytest.approx(0, abs=1e-6)
    with pytest.raises(GridError, match=r"mass of 0\.99"):
        kl_on_grid(0.99 * density, standard_normal(latent), grid)


def test_a_grid_has_one_or_two_dimensions_those_of_the_prior():
    for limits in ((), (7.0, 7.0, 7.0)):
        with pytest.raises(ValueError, match="one or two"):
            Grid(limits, limits)
    with pytest.raises(ValueError, match="two nodes"):
        Grid((0.0,), (1.0,), -0.1)
    with pytest.raises(ValueError, match="two nodes"):
        Grid((0.0,), (0.1,), 1.0)
    vae, evidence = linear_gaussian(2)
    with pytest.raises(ValueError, match="the prior, beside Grid"):
        exact_inference(vae, sample(evidence, 1, seeded(0)), LINE)


@pytest.fixture(scope="module")
def question(digits):
    """The book's model, and test images binarised once."""
    return pretrained.load("question").model, binarized("test").images[:100]


@pytest.fixture(scope="module")
def question_exact(question):
    vae, images = question
    return exact_inference(vae, images, Grid())


class Moments(nn.Module):
    """Means and log variances known beforehand, in place of an encoder's."""

    def __init__(self, means, variances):
        super().__init__()
        self.parameters_known = torch.cat([means, variances.log()], 1).float()

    def forward(self, images):
        assert len(images) == len(self.parameters_known)
        return self.parameters_known


@pytest.mark.slow
def test_draws_and_quadrature_agree_on_trained_digits(question, question_exact):
    vae, images = question
    elbo = importance_bounds(vae, images, 20, seeded(0)).elbo
    error = average(elbo - question_exact.elbo)
    assert_agrees(error.value, error.standard_error, 0.0)
    assert error.standard_error < 0.1
    # Draws of the encoder miss modes. A wide Gaussian with the exact posterior's moments does not.
    few, log_evidence = images[:10], question_exact.log_evidence[:10]
    grid = Grid()
    mass = exact_posteriors(vae, few, log_evidence, grid) * grid.cell_volume
    means = mass @ grid.nodes
    variances = mass @ grid.nodes.square() - means.square()
    wide = VAE(GaussianPosterior(Moments(means, 2 * variances)), vae.decoder, vae.prior)
    draws = 200
    parts = [importance_bounds(wide, few, draws, seeded(seed)) for seed in range(20)]
    stacked = torch.stack([part.log_evidence for part in parts])
    together = stacked.logsumexp(0) - math.log(len(parts))
    relative = (stacked - together).exp().std(0) / math.sqrt(len(parts))
    error = (together - log_evidence).mean().item()
    assert_agrees(error, relative.square().sum().sqrt().item() / 10, 0.0)
    assert relative.max() < 0.1


@pytest.mark.slow
def test_the_evidence_of_trained_digits_is_above_what_draws_find(question, question_exact):
    vae, images = question
    bounds = importance_bounds(vae, images, 50, seeded(0))
    short = average(question_exact.log_evidence - bounds.log_evidence)
    assert short.value > 0
    assert (question_exact.gap > -0.05).all()
    assert question_exact.gap.mean() > bounds.gap.mean()


@pytest.mark.slow
def test_a_finer_grid_changes_the_evidence_of_trained_digits_less_than_was_warned(
    question, question_exact
):
    vae, images = question
    finer = exact_inference(vae, images[:10], Grid(spacing=0.01))
    moved = finer.log_evidence - question_exact.log_evidence[:10]
    assert moved.abs().mean() < question_exact.refinement_error[:10].mean() / 3
    assert finer.refinement_error.mean() < question_exact.refinement_error[:10].mean() / 3


@pytest.mark.parametrize(("latent", "spacing"), [(1, 0.6), (2, 0.45)])
def test_a_tolerance_halves_the_spacing_where_it_must(monkeypatch, latent, spacing):
    vae, evidence = linear_gaussian(latent)
    images = sample(evidence, 30, seeded(0))
    # The limits are no whole number of steps away, nor are the nodes of whole patches.
    grid = Grid((-8.1,) * latent, (8.0,) * latent, spacing)
    truth = evidence.log_prob(images)
    coarse = exact_inference(vae, images, grid)
    finer = exact_inference(vae, images, grid, tolerance=1e-4)
    assert finer.refinement_error.max() <= 1e-4
    torch.testing.assert_close(finer.log_evidence, truth, rtol=0, atol=1e-6)
    middle = coarse.refinement_error.median().item()
    some = exact_inference(vae, images, grid, tolerance=middle)
    moved = coarse.refinement_error > middle
    assert 0 < moved.sum() < len(images)
    torch.testing.assert_close(some.log_evidence[moved], truth[moved], rtol=0, atol=1e-6)
    assert torch.equal(some.log_evidence[~moved], coarse.log_evidence[~moved])
    monkeypatch.setattr(quadrature, "_MAX_REFINEMENTS", 1)
    with pytest.raises(GridError, match=r"1 halvings .* tolerance of 1e-12"):
        exact_inference(vae, images, grid, tolerance=1e-12)


def test_a_tolerance_refines_what_one_grid_is_too_coarse_for():
    vae, evidence = linear_gaussian(2)
    images, grid = sample(evidence, 30, seeded(0)), Grid((-8.1, -8.1), (8.0, 8.0), 0.6)
    with pytest.raises(GridError, match="on average"):
        exact_inference(vae, images, grid)
    finer = exact_inference(vae, images, grid, tolerance=1e-4)
    torch.testing.assert_close(finer.log_evidence, evidence.log_prob(images), rtol=0, atol=1e-6)
    # An image alone as among others.
    alone = exact_inference(vae, images[2:3], grid, tolerance=1e-4)
    torch.testing.assert_close(alone.log_evidence, finer.log_evidence[2:3])


def test_no_patch_is_walked_that_holds_nothing_of_an_image():
    vae, evidence = linear_gaussian(2)
    images = sample(evidence, 2, seeded(0))
    with torch.no_grad():
        peaks = torch.full(
            (len(quadrature._all_patches(WIDE, torch.arange(2))), 2), -math.inf
        ).double()
        walk = quadrature.patches_with_mass(vae, images, WIDE)
        for peak, (_, examples, log_joint) in zip(peaks, walk, strict=False):
            peak[examples] = log_joint.amax(0)
    walked = peaks > -math.inf
    assert ((walked.sum(0) > 1) & (walked.sum(0) < len(peaks) / 2)).all()
    # A look at every fourth node may put the peak a little lower than it is.
    assert (peaks > peaks.amax(0) - 25)[walked].all()


def test_a_tolerance_finds_the_mode_of_a_narrow_oblique_posterior():
    """A tenth as wide as the spacing, its ridge comes nearer to a node far from the mode."""
    angle = 0.0463
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    weight = NOISE * torch.diag(torch.tensor([1 / 0.00223, 1 / 0.3])).double() @ turn.double().T
    vae = VAE(
        GaussianPosterior(LinearPosterior(weight, 1.0, 0.0)), Linear(weight), standard_normal(2)
    )
    covariance = weight @ weight.T + NOISE**2 * torch.eye(2).double()
    evidence = MultivariateNormal(torch.ones(2).double(), covariance)
    codes = torch.tensor([[-0.63, -0.5135], [0.2562, -1.2663]]).double()
    images = 1 + codes @ weight.T
    exact = exact_inference(vae, images, Grid(), tolerance=1e-3)
    torch.testing.assert_close(exact.log_evidence, evidence.log_prob(images), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_square_too_coarse_is_refused_at_once(monkeypatch, question):
    integrate_once = quadrature._integrate

    def integrate(vae, images, grid, *others):
        assert grid.upper == (7.0, 7.0), "a wider square would be as coarse"
        return integrate_once(vae, images, grid, *others)

    monkeypatch.setattr(quadrature, "_integrate", integrate)
    monkeypatch.setattr(quadrature, "_MAX_REFINEMENTS", 0)
    vae, images = question
    with pytest.raises(GridError, match="0 halvings"):
        exact_inference_in_the_plane(vae, images[:4], tolerance=1e-9)


@pytest.mark.slow
def test_a_walk_by_halvings_meets_all_that_the_finer_grid_has(monkeypatch, question):
    vae, images = question
    limits = (-4.0, -4.0), (4.0, 4.0)
    flat = exact_inference(vae, images[:4], Grid(*limits, 0.005))
    seen, integrate_once = {}, quadrature._integrate

    def integrate(vae, images, grid, *others):
        seen[grid.spacing] = integrate_once(vae, images, grid, *others)
        return seen[grid.spacing]

    monkeypatch.setattr(quadrature, "_integrate", integrate)
    monkeypatch.setattr(quadrature, "_MAX_REFINEMENTS", 2)
    # No image stops before the last halving.
    with pytest.raises(GridError, match="2 halvings"):
        exact_inference(vae, images[:4], Grid(*limits, 0.02), tolerance=0.0)
    log_evidence, refinement_error = seen[0.005]
    torch.testing.assert_close(log_evidence, flat.log_evidence, rtol=0, atol=1e-6)
    torch.testing.assert_close(refinement_error, flat.refinement_error, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["question", "d2-seed0"])
def test_a_tolerance_makes_the_evidence_of_each_digit_exact(name):
    vae, images = pretrained.load(name).model, binarized("test").images
    images = images[:: len(images) // 8]
    coarse = exact_inference_in_the_plane(vae, images)
    exact = exact_inference_in_the_plane(vae, images, tolerance=1e-3)
    finer = exact_inference_in_the_plane(vae, images, tolerance=1e-4)
    assert (exact.log_evidence - finer.log_evidence).abs().max() < 0.001
    assert (coarse.log_evidence - finer.log_evidence).abs().max() > 0.001
    assert coarse.refinement_error.max() <= 0.3
    assert exact.refinement_error.max() <= 1e-3


@pytest.mark.slow
def test_the_mean_evidence_of_digits_is_exact_where_that_of_one_digit_is_not():
    vae, images = pretrained.load("d2-seed0").model, binarized("test").images
    images = images[:: len(images) // 400]
    coarse = exact_inference(vae, images, Grid())
    # The nodes of this grid lie in the middles of the first one's cells: both are one finer grid.
    middles = exact_inference(vae, images, Grid((-7.01, -7.01), (7.01, 7.01)))
    finer = torch.logaddexp(coarse.log_evidence, middles.log_evidence) - math.log(2)
    moved = coarse.log_evidence - finer
    mean = average(moved)
    assert abs(mean.value) < 0.001
    # What a grid adds to one image it takes from another.
    assert_agrees(mean.value, mean.standard_error, 0.0)
    assert mean.standard_error < 0.001
    # Nor does a tolerance that suits means, which refines the coarsest images alone, move the mean.
    refined = exact_inference_in_the_plane(vae, images)
    assert abs((refined.log_evidence - finer).mean()) < 0.001
    assert 0 < (refined.log_evidence != coarse.log_evidence).sum() < len(images) / 4
    # In a network of rectifiers log P(X|z) has kinks, which cost single images more.
    assert 0.005 < moved.abs().quantile(0.95) < 0.02
    assert moved.abs().max() < 0.4
