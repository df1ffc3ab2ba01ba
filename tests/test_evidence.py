import itertools
import math

import pytest
import torch
from agreement import assert_agrees, assert_at_least, assert_at_most
from test_mismatch import assert_honest, coverage
from torch import nn
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal

from priormatch.data import binarize, binarized, load_mnist
from priormatch.distributions import AggregatedPosterior
from priormatch.divergences import kl_between_gaussians
from priormatch.estimate import average
from priormatch.evidence import (
    Grid,
    GridError,
    _everywhere,
    _integrate,
    _patches,
    aggregated_exact_posterior,
    average_bounds,
    exact_inference,
    exact_inference_in_the_plane,
    exact_posteriors,
    importance_bounds,
    kl_on_grid,
)
from priormatch.experiments import pretrained
from priormatch.mismatch import held_out_kl
from priormatch.models import (
    VAE,
    BernoulliLikelihood,
    GaussianPosterior,
    draw,
    encode,
    standard_normal,
)
from priormatch.training import Recipe, build

NOISE = 0.5


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """Decoder N(W z + 1, NOISE^2 I), in double precision."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, codes):
        return Independent(Normal(1 + codes @ self.weight.T, NOISE), 1)


class LinearPosterior(nn.Module):
    """Mean and log variance of the exact posterior under N(0, I); wrong if widened or shifted."""

    def __init__(self, weight, widen, shift):
        super().__init__()
        self.precision = 1 + weight.square().sum(0) / NOISE**2
        self.weight, self.widen, self.shift = weight, widen, shift

    def forward(self, images):
        mean = (images - 1) @ self.weight / NOISE**2 / self.precision
        log_variance = 2 * math.log(self.widen) - self.precision.log().expand_as(mean)
        return torch.cat([mean + self.shift, log_variance], -1)


def linear_gaussian(latent, prior=None, widen=1.0, shift=0.0):
    """Return a VAE whose evidence is known, and that evidence as a distribution of images.

    The columns of W are orthogonal, so that the exact posterior is a diagonal Gaussian.
    """
    random = torch.randn(latent + 3, latent, generator=seeded(latent), dtype=torch.float64)
    weight = torch.linalg.qr(random).Q * torch.linspace(0.5, 2.0, latent, dtype=torch.float64)
    encoder = GaussianPosterior(LinearPosterior(weight, widen, shift))
    vae = VAE(encoder, Linear(weight), prior or standard_normal(latent))
    covariance = weight @ torch.diag(vae.prior.variance.double()) @ weight.T
    evidence = MultivariateNormal(
        1 + weight @ vae.prior.mean.double(),
        covariance + NOISE**2 * torch.eye(latent + 3, dtype=torch.float64),
    )
    return vae, evidence


def sample(distribution, count, generator):
    noise = torch.randn(count, *distribution.event_shape, generator=generator, dtype=torch.float64)
    return distribution.mean + noise @ distribution.scale_tril.T


def closed_form_gap(vae, images):
    """Return KL(Q(z|X) || P(z|X)) of each image of a linear-Gaussian model."""
    exact = LinearPosterior(vae.decoder.weight, 1.0, 0.0)
    mean, variance = encode(vae, images)[0], encode(vae, images)[1].square()
    exact_mean, exact_log_variance = exact(images).chunk(2, -1)
    gaussians = zip(mean, variance, exact_mean, exact_log_variance.exp(), strict=True)
    return torch.stack([kl_between_gaussians(m, v.diag(), n, w.diag()) for m, v, n, w in gaussians])


WIDE = Grid(lower=(-8.0, -8.0), upper=(8.0, 8.0), spacing=0.05)
LINE = Grid(lower=(-8.0,), upper=(8.0,), spacing=0.02)


def grid_for(latent):
    return {1: LINE, 2: WIDE}[latent]


@pytest.mark.parametrize("latent", [1, 2, 10, 20, 50])
def test_with_the_exact_posterior_every_draw_tells_the_evidence(latent):
    vae, evidence = linear_gaussian(latent)
    images = sample(evidence, 20, seeded(0))
    bounds = importance_bounds(vae, images, 7, seeded(1))
    truth = evidence.log_prob(images)
    torch.testing.assert_close(bounds.log_evidence, truth, rtol=0, atol=1e-9)
    torch.testing.assert_close(bounds.elbo, truth, rtol=0, atol=1e-9)
    full = torch.full((20,), 7.0, dtype=torch.float64)
    torch.testing.assert_close(bounds.effective_draws, full, rtol=1e-9, atol=0)


@pytest.mark.parametrize("latent", [1, 2, 10, 20])
def test_with_a_wrong_posterior_the_bound_rises_with_the_draws_towards_the_evidence(latent):
    # The gap is some 0.2 nats in each of the models.
    vae, evidence = linear_gaussian(latent, widen=1 + 0.5 / math.sqrt(latent), shift=0.01)
    images = sample(evidence, 2_000, seeded(0))
    missing = []
    for draws in (1, 10, 100):
        bounds = importance_bounds(vae, images, draws, seeded(draws))
        short = average(evidence.log_prob(images) - bounds.log_evidence)
        missing.append(short)
        gap = average(evidence.log_prob(images) - bounds.elbo)
        assert_agrees(gap.value, gap.standard_error, closed_form_gap(vae, images[:1]).item())
        assert (bounds.gap >= -1e-12).all()
    for first, second in itertools.pairwise(missing):
        assert second.value < first.value - 5 * second.standard_error
    assert_at_most(-missing[-1].value, missing[-1].standard_error, 0.0)
    # The bias of the logarithm of a mean falls as 1 / draws.
    assert missing[-1].value < missing[0].value / 20


def test_effective_draws_follow_the_second_moment_of_the_weights():
    vae, evidence = linear_gaussian(1, widen=1.5)
    images = sample(evidence, 200, seeded(0))
    share = average(importance_bounds(vae, images, 3_000, seeded(1)).effective_draws / 3_000)
    # 1 / E w^2 for N(0, 1) drawn from N(0, 1.5^2)
    assert_agrees(share.value, share.standard_error, math.sqrt(2 * 1.5**2 - 1) / 1.5**2)


def test_any_prior_may_stand_in_for_the_models_own():
    prior = MultivariateNormal(
        torch.tensor([0.3, -0.4], dtype=torch.float64),
        torch.tensor([1.3, 0.8], dtype=torch.float64).diag(),
    )
    vae, evidence = linear_gaussian(2, prior, widen=1.2)
    images = sample(evidence, 500, seeded(0))
    bounds = importance_bounds(vae, images, 500, seeded(1))
    error = average(bounds.log_evidence - evidence.log_prob(images))
    assert abs(error.value) < 0.01
    assert_agrees(error.value, error.standard_error, 0.0)


@pytest.mark.parametrize("latent", [2, 20])
def test_the_elbo_gained_by_a_density_is_its_held_out_kl_on_common_draws(latent):
    vae = build(Recipe(latent_dimension=latent, encoder_width=8, decoder_width=8))
    images = torch.bernoulli(torch.full((50, 784), 0.3), generator=seeded(0))
    covariance = 0.7 * torch.eye(latent) + 0.2
    density = MultivariateNormal(torch.full((latent,), 0.2), covariance)
    swapped = VAE(vae.encoder, vae.decoder, density)
    before = importance_bounds(vae, images, 1, seeded(3))
    after = importance_bounds(swapped, images, 1, seeded(3))
    gained = average(after.elbo - before.elbo, "lower")
    with torch.no_grad():
        codes = draw(vae.posterior(images), seeded(3))
    bound = held_out_kl(density, codes, vae.prior)
    assert abs(bound.value) > 0.1
    assert gained.value == pytest.approx(bound.value, abs=1e-4)
    assert gained.standard_error == pytest.approx(bound.standard_error, abs=1e-4)
    torch.testing.assert_close(after.log_evidence, after.elbo)


def test_average_bounds_have_honest_standard_errors():
    vae, evidence = linear_gaussian(2, widen=1.3)
    entropy = evidence.entropy().item()
    gap = closed_form_gap(vae, evidence.mean[None]).item()
    generator = seeded(0)
    elbos = []
    for _ in range(300):
        images = sample(evidence, 200, generator)
        averages = average_bounds(importance_bounds(vae, images, 1, generator))
        assert averages["elbo"].bound == averages["log_evidence"].bound == "lower"
        # One draw sees no gap.
        assert averages["gap"].value == averages["gap"].standard_error == 0
        elbos.append(averages["elbo"])
    assert_honest(coverage(elbos, -entropy - gap))


class Keeper(nn.Module):
    """A decoder that keeps the codes it was given."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder, self.codes = decoder, []

    def forward(self, codes):
        self.codes.append(codes)
        return self.decoder(codes)


def log_weights_less_evidence(vae, images, codes):
    """Return log w - log P(X) = log P(z|X) - log Q(z|X) of a linear-Gaussian model."""
    weight = vae.decoder.decoder.weight
    exact = GaussianPosterior(LinearPosterior(weight, 1.0, 0.0))(images)
    return exact.log_prob(codes) - vae.posterior(images).log_prob(codes)


def test_average_bounds_are_the_means_of_what_the_weights_of_many_draws_say():
    draws, examples = 50, 300
    vae, evidence = linear_gaussian(2, widen=1.3, shift=0.05)
    gap = closed_form_gap(vae, evidence.mean[None]).item()
    vae.decoder = keeper = Keeper(vae.decoder)
    images = sample(evidence, examples, seeded(0))
    bounds = importance_bounds(vae, images, draws, seeded(1))
    log_ratio = log_weights_less_evidence(vae, images, torch.cat(keeper.codes, 1))
    assert log_ratio.shape == (draws, examples)
    ratio, truth = log_ratio.exp(), evidence.log_prob(images)
    elbo = truth + log_ratio.mean(0)
    log_evidence = truth + ratio.mean(0).log()
    expected = {
        "log_evidence": (log_evidence, "lower"),
        "elbo": (elbo, "lower"),
        "gap": (log_evidence - elbo, "lower"),
        "effective_draws": (ratio.sum(0).square() / ratio.square().sum(0), "none"),
    }
    averages = average_bounds(bounds)
    assert averages.keys() == expected.keys()
    for name, (values, bound) in expected.items():
        torch.testing.assert_close(getattr(bounds, name), values, rtol=0, atol=1e-9)
        assert averages[name].value == pytest.approx(values.mean().item(), abs=1e-9)
        error = values.std().item() / math.sqrt(examples)
        assert averages[name].standard_error == pytest.approx(error, rel=1e-6)
        assert averages[name].bound == bound
    torch.testing.assert_close(bounds.gap, bounds.log_evidence - bounds.elbo, rtol=0, atol=0)

    # The truth of these images: the evidence, what the ELBO lacks, and the gap.
    short, lacking = average(truth - bounds.log_evidence), average(truth - bounds.elbo)
    assert_at_least(short.value, short.standard_error, 0.0)
    assert short.value < 0.01
    assert_agrees(lacking.value, lacking.standard_error, gap)
    assert_at_most(averages["gap"].value, averages["gap"].standard_error, gap)
    assert averages["gap"].value > gap - 0.03
    assert 0.15 < gap < 0.25


def test_averages_over_many_draws_cover_their_expectations():
    draws, widen, latent = 10, 1.3, 2
    vae, evidence = linear_gaussian(latent, widen=widen)
    # P(z|X) / Q(z|X) depends on the noise of the draw alone, whatever the image.
    noise = torch.randn(draws, 200_000, latent, generator=seeded(1), dtype=torch.float64)
    ratio = torch.exp(latent * math.log(widen) - (widen**2 - 1) / 2 * noise.square().sum(-1))
    short = ratio.mean(0).log()
    truths = {
        "log_evidence": short - evidence.entropy(),
        "gap": short - ratio.log().mean(0),
        "effective_draws": ratio.sum(0).square() / ratio.square().sum(0),
    }
    generator = seeded(0)
    repetitions = [
        average_bounds(importance_bounds(vae, sample(evidence, 200, generator), draws, generator))
        for _ in range(300)
    ]
    for name, values in truths.items():
        truth, estimates = average(values), [averages[name] for averages in repetitions]
        # The error of the expectation itself moves the coverage by less than a thousandth.
        assert truth.standard_error < 0.05 * estimates[0].standard_error
        assert_honest(coverage(estimates, truth.value))
    # Each lies on the side of the truth that is stated of it.
    assert truths["log_evidence"].mean() < -evidence.entropy()
    assert truths["gap"].mean() < closed_form_gap(vae, evidence.mean[None]).item()


class Recorder(nn.Module):
    """A decoder that notes how many codes it was given at a time."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder, self.seen = decoder, []

    def forward(self, codes):
        self.seen.append(codes.shape[:-1].numel())
        return self.decoder(codes)


@pytest.mark.parametrize(("examples", "draws"), [(5_000, 1), (300, 70), (1, 5_000)])
def test_codes_are_decoded_in_blocks(examples, draws):
    vae, evidence = linear_gaussian(1, widen=1.2)
    vae.decoder = recorder = Recorder(vae.decoder)
    images = sample(evidence, examples, seeded(0))
    bounds = importance_bounds(vae, images, draws, seeded(1))
    assert sum(recorder.seen) == examples * draws
    assert max(recorder.seen) <= 2_000
    assert {part.shape for part in bounds} == {(examples,)}


def test_no_gradient_is_kept():
    vae, evidence = linear_gaussian(1)
    images = sample(evidence, 2, seeded(0))
    vae.decoder.weight.requires_grad_()
    exact = exact_inference(vae, images, LINE)
    results = [*importance_bounds(vae, images, 2, seeded(0)), *exact]
    for posterior in (exact_posteriors, aggregated_exact_posterior):
        results.append(posterior(vae, images, exact.log_evidence, LINE))
    assert not any(result.requires_grad for result in results)


def test_blocks_of_draws_are_summed_as_one():
    vae, evidence = linear_gaussian(1, widen=1.3)
    images = sample(evidence, 1, seeded(0))
    bounds = importance_bounds(vae, images, 5_000, seeded(1))
    assert bounds.log_evidence.item() == pytest.approx(evidence.log_prob(images).item(), abs=0.05)
    assert 3_000 < bounds.effective_draws.item() < 5_000


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
    integral = integrand.sum(0) * grid_for(latent).cell
    torch.testing.assert_close(integral, exact.gap, rtol=0, atol=1e-6)


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
    assert average_density.sum().item() * grid.cell == pytest.approx(1, abs=1e-6)


def test_the_model_s_own_images_have_the_prior_as_their_average_posterior():
    vae, evidence = linear_gaussian(1)
    images = sample(evidence, 5_000, seeded(0))
    log_evidence = exact_inference(vae, images, LINE).log_evidence
    density = aggregated_exact_posterior(vae, images, log_evidence, LINE)
    assert 0 < kl_on_grid(density, vae.prior, LINE) < 0.005
    other = Independent(Normal(torch.full((1,), 0.5), 1.0), 1)
    assert kl_on_grid(density, other, LINE) == pytest.approx(0.125, abs=0.03)


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
    monkeypatch.setattr("priormatch.evidence._VALUES", 100_000)
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


def test_coarsening_is_what_the_grids_of_twice_the_spacing_say():
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
    with pytest.raises(ValueError, match="does not fit"):
        exact_inference(vae, sample(evidence, 1, seeded(0)), LINE)


@pytest.fixture(scope="module")
def question(digits):
    """The book's model, and test images binarised once."""
    images = binarize(load_mnist("test").images[:100], seeded(0))
    return pretrained.load("question").model, images


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


def test_draws_and_quadrature_agree_on_trained_digits(question, question_exact):
    vae, images = question
    elbo = importance_bounds(vae, images, 20, seeded(0)).elbo
    error = average(elbo - question_exact.elbo)
    assert_agrees(error.value, error.standard_error, 0.0)
    assert error.standard_error < 0.1
    # Draws of the encoder miss modes. A wide Gaussian with the exact posterior's moments does not.
    few, log_evidence = images[:10], question_exact.log_evidence[:10]
    grid = Grid()
    mass = exact_posteriors(vae, few, log_evidence, grid) * grid.cell
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


def test_the_evidence_of_trained_digits_is_above_what_draws_find(question, question_exact):
    vae, images = question
    bounds = importance_bounds(vae, images, 50, seeded(0))
    short = average(question_exact.log_evidence - bounds.log_evidence)
    assert short.value > 0
    assert (question_exact.gap > -0.05).all()
    assert question_exact.gap.mean() > bounds.gap.mean()


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
    monkeypatch.setattr("priormatch.evidence._HALVINGS", 1)
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
        peaks = torch.full((len(_everywhere(WIDE, torch.arange(2))), 2), -math.inf).double()
        for peak, (_, examples, log_joint) in zip(peaks, _patches(vae, images, WIDE), strict=False):
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


def test_a_square_too_coarse_is_refused_at_once(monkeypatch, question):
    def integrate(vae, images, grid, *others):
        assert grid.upper == (7.0, 7.0), "a wider square would be as coarse"
        return _integrate(vae, images, grid, *others)

    monkeypatch.setattr("priormatch.evidence._integrate", integrate)
    monkeypatch.setattr("priormatch.evidence._HALVINGS", 0)
    vae, images = question
    with pytest.raises(GridError, match="0 halvings"):
        exact_inference_in_the_plane(vae, images[:4], tolerance=1e-9)


def test_a_walk_by_halvings_meets_all_that_the_finer_grid_has(monkeypatch, question):
    vae, images = question
    limits = (-4.0, -4.0), (4.0, 4.0)
    flat = exact_inference(vae, images[:4], Grid(*limits, 0.005))
    seen = {}

    def integrate(vae, images, grid, *others):
        seen[grid.spacing] = _integrate(vae, images, grid, *others)
        return seen[grid.spacing]

    monkeypatch.setattr("priormatch.evidence._integrate", integrate)
    monkeypatch.setattr("priormatch.evidence._HALVINGS", 2)
    # No image stops before the last halving.
    with pytest.raises(GridError, match="2 halvings"):
        exact_inference(vae, images[:4], Grid(*limits, 0.02), tolerance=0.0)
    log_evidence, coarsening = seen[0.005]
    torch.testing.assert_close(log_evidence, flat.log_evidence, rtol=0, atol=1e-6)
    torch.testing.assert_close(coarsening, flat.refinement_error, rtol=0, atol=1e-6)


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
