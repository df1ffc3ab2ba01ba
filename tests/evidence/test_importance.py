import itertools
import math

import pytest
import torch
from agreement import assert_agrees, assert_at_least, assert_at_most, assert_honest, coverage
from small_world import (
    TINY,
    LinearPosterior,
    closed_form_gap,
    corner,
    linear_gaussian,
    pictures,
    sample,
    seeded,
)
from torch import nn
from torch.distributions import MultivariateNormal

from priormatch.estimate import average
from priormatch.evidence import (
    average_bounds,
    importance,
    importance_bounds,
    importance_bounds_by_prior,
)
from priormatch.mismatch import held_out_kl
from priormatch.models import VAE, GaussianPosterior, draw
from priormatch.recipe import Recipe, build


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


@pytest.mark.slow
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
    assert averages.keys() == {*expected, "reliable_share"}
    assert averages["reliable_share"].value == (bounds.pareto_k <= 0.7).double().mean().item()
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


def test_blocks_of_draws_are_summed_as_one():
    vae, evidence = linear_gaussian(1, widen=1.3)
    images = sample(evidence, 1, seeded(0))
    bounds = importance_bounds(vae, images, 5_000, seeded(1))
    assert bounds.log_evidence.item() == pytest.approx(evidence.log_prob(images).item(), abs=0.05)
    assert 3_000 < bounds.effective_draws.item() < 5_000


def test_bounds_under_several_priors_are_those_under_each_on_common_draws_and_one_decoding():
    vae = build(TINY).eval()
    images = torch.bernoulli(pictures(7), generator=seeded(0))
    priors = {"prior": vae.prior, "corner": corner(2)}
    vae.decoder = recorder = Keeper(vae.decoder)
    together = importance_bounds_by_prior(vae, priors, images, 30, seeded(1))
    (codes,) = recorder.codes
    assert codes.shape == (30, 7, 2)
    assert together.keys() == priors.keys()
    for name, prior in priors.items():
        alone = VAE(vae.encoder, vae.decoder, prior)
        expected = importance_bounds(alone, images, 30, seeded(1))
        assert torch.equal(recorder.codes[-1], codes)
        for ours, theirs in zip(together[name], expected, strict=True):
            assert torch.equal(ours, theirs)
    moved = together["corner"].log_evidence - together["prior"].log_evidence
    assert moved.abs().mean() > 0.1


def test_a_batch_says_how_many_codes_are_decoded_at_a_time():
    vae = build(TINY).eval()
    images = torch.bernoulli(pictures(7), generator=seeded(0))
    vae.decoder = recorder = Recorder(vae.decoder)
    in_batches = importance_bounds_by_prior(
        vae, {"prior": vae.prior}, images, 400, seeded(1), batch=150
    )["prior"]
    assert recorder.seen == [150, 150, 100] * 7
    whole = importance_bounds(vae, images, 400, seeded(2))
    spread = math.sqrt(2 / whole.effective_draws.min())
    assert (in_batches.log_evidence - whole.log_evidence).abs().max() < 6 * spread


@pytest.mark.parametrize("shape", [0.5, 0.9])
def test_the_shape_of_a_pareto_tail_is_found(shape):
    # Weights of a Pareto law of that shape in place of those of a model.
    uniform = torch.rand(2_000, 50, generator=seeded(0), dtype=torch.float64)
    bounds = importance.bounds_of_weights(-shape * uniform.log())
    found = average(bounds.pareto_k)
    assert found.value == pytest.approx(shape, abs=0.03)


def test_exact_posteriors_have_reliable_weights_and_narrow_ones_have_not():
    vae, evidence = linear_gaussian(2, widen=1.2)
    images = sample(evidence, 40, seeded(0))
    assert (importance_bounds(vae, images, 300, seeded(1)).pareto_k < 0.7).all()
    narrow, evidence = linear_gaussian(2, widen=0.3)
    images = sample(evidence, 40, seeded(0))
    bounds = importance_bounds(narrow, images, 300, seeded(1))
    assert average_bounds(bounds)["reliable_share"].value < 0.5
    assert importance_bounds(vae, images, 24, seeded(1)).pareto_k.isinf().all()
