import math

import pytest
import torch
from agreement import assert_agrees, assert_at_most
from small_world import Constant, pictures, seeded
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from priormatch.distributions import AggregatedPosterior
from priormatch.estimate import average
from priormatch.models import (
    VAE,
    BernoulliLikelihood,
    GaussianPosterior,
    draw,
    encode,
    standard_normal,
)
from priormatch.objectives import (
    bound_parts,
    bound_parts_in_chunks,
    penalised_bound_parts,
    squared_mmd_of_batch,
)
from priormatch.recipe import Recipe, build
from priormatch.two_sample import squared_mmd


def test_parts_of_a_model_whose_code_says_nothing_are_known():
    # The decoder ignores z: the distortion is exact, and the bound is loose by the rate alone.
    vae = VAE(
        GaussianPosterior(Constant(1.0, 0.0)),
        BernoulliLikelihood(Constant(0.0, math.log(3.0))),
        standard_normal(1),
    )
    parts = bound_parts(vae, torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.Generator())
    torch.testing.assert_close(parts.rate, torch.tensor([0.5, 0.5]))
    expected = -math.log(0.5 * 0.75)
    torch.testing.assert_close(parts.distortion, torch.tensor([expected, expected]))
    torch.testing.assert_close(parts.elbo, -parts.distortion - parts.rate)


def test_the_bound_is_below_the_evidence_and_tight_for_the_exact_posterior():
    # One pixel, one latent dimension: log P(X) is a one-dimensional integral.
    class Linear(nn.Module):
        def forward(self, codes):
            return 2.0 * codes

    vae = VAE(
        GaussianPosterior(Constant(0.2, -1.0)), BernoulliLikelihood(Linear()), standard_normal(1)
    )
    axis = torch.linspace(-10, 10, 4_001)[:, None]
    joint = vae.likelihood(axis).log_prob(torch.ones(4_001, 1)) + vae.prior.log_prob(axis)
    evidence = torch.trapezoid(joint.double().exp(), axis[:, 0].double()).log().item()
    elbo = average(bound_parts(vae, torch.ones(200_000, 1), torch.Generator().manual_seed(0)).elbo)
    posterior = vae.posterior(torch.ones(1))
    gap = torch.trapezoid(
        (posterior.log_prob(axis).exp() * (posterior.log_prob(axis) - joint + evidence)).double(),
        axis[:, 0].double(),
    ).item()
    assert gap > 0.01
    assert_at_most(elbo.value, elbo.standard_error, evidence)
    assert_agrees(elbo.value, elbo.standard_error, evidence - gap)


def test_chunks_change_nothing():
    vae = build(Recipe(encoder_width=8, decoder_width=8))
    images = torch.bernoulli(torch.full((10, 784), 0.3), generator=torch.Generator().manual_seed(0))
    whole = bound_parts(vae, images, torch.Generator().manual_seed(1))
    in_chunks = bound_parts_in_chunks(vae, images, torch.Generator().manual_seed(1), chunk=3)
    torch.testing.assert_close(in_chunks.rate, whole.rate.detach())
    assert in_chunks.distortion.shape == (10,)
    assert not in_chunks.distortion.requires_grad
    one_chunk = bound_parts_in_chunks(vae, images, torch.Generator().manual_seed(1), chunk=10)
    torch.testing.assert_close(one_chunk.distortion, whole.distortion.detach())


def test_the_rate_without_a_closed_form_is_estimated_from_the_same_draw():
    vae = VAE(
        GaussianPosterior(Constant(0.5, -1.0, -1.0, 0.3)),
        BernoulliLikelihood(Constant(0.0)),
        standard_normal(2),
    )
    # A mixture of one component is N(0, I) without anybody knowing it.
    one = MixtureSameFamily(
        Categorical(torch.ones(1)), MultivariateNormal(torch.zeros(1, 2), torch.eye(2)[None])
    )
    images = torch.zeros(100_000, 1)
    exact = bound_parts(vae, images, torch.Generator().manual_seed(0))
    drawn = bound_parts(
        VAE(vae.encoder, vae.decoder, one), images, torch.Generator().manual_seed(0)
    )
    assert torch.equal(drawn.distortion, exact.distortion)
    estimate = average(drawn.rate)
    assert_agrees(estimate.value, estimate.standard_error, exact.rate[0].item())
    assert drawn.rate.std() > 0.1


def test_the_rate_is_the_monte_carlo_mean_of_its_log_ratio():
    vae = VAE(
        GaussianPosterior(Constant(0.5, -1.0, -1.0, 0.3)),
        BernoulliLikelihood(Constant(0.0)),
        standard_normal(2),
    )
    posterior = vae.posterior(torch.zeros(100_000, 1))
    codes = draw(posterior, torch.Generator().manual_seed(0))
    estimate = average(posterior.log_prob(codes) - vae.prior.log_prob(codes))
    rate = bound_parts(vae, torch.zeros(1, 1), torch.Generator()).rate.item()
    assert_agrees(estimate.value, estimate.standard_error, rate)
    exact = torch.distributions.kl_divergence(
        MultivariateNormal(torch.tensor([0.5, -1.0]), torch.tensor([-1.0, 0.3]).exp().diag()),
        MultivariateNormal(torch.zeros(2), torch.eye(2)),
    )
    assert rate == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize(
    "kind",
    [
        {"posterior": "gaussian"},
        {"posterior": "full covariance"},
        {"posterior": "interval"},
        {"prior": "vamp"},
    ],
)
def test_mixed_precision_is_in_the_layers_alone(kind):
    vae = build(Recipe(**kind, encoder_width=64, decoder_width=64))
    images = torch.bernoulli(torch.full((50, 784), 0.2), generator=torch.Generator().manual_seed(1))

    formats = []
    for layer in vae.modules():
        if type(layer) is nn.Linear:
            layer.register_forward_hook(lambda layer, _, outputs: formats.append(outputs.dtype))

    def parts_and_gradients(number_format):
        vae.zero_grad()
        formats.clear()
        parts = bound_parts(vae, images, torch.Generator().manual_seed(0), number_format)
        # Two layers of each network; the pseudo-inputs of a VampPrior go through the encoder too.
        assert formats == [number_format] * 4 + [torch.float32] * (len(formats) - 4)
        assert len(formats) == (6 if kind == {"prior": "vamp"} else 4)
        (parts.distortion + parts.rate).mean().backward()
        return parts, torch.cat([weights.grad.flatten() for weights in vae.parameters()])

    single, slopes = parts_and_gradients(torch.float32)
    mixed, mixed_slopes = parts_and_gradients(torch.bfloat16)
    again, _ = parts_and_gradients(torch.bfloat16)
    assert torch.equal(mixed.distortion, again.distortion)
    assert not torch.equal(mixed.distortion, single.distortion)
    # bfloat16 has 8 significant bits, 0.2 % each; pixels' errors average out in the sum.
    torch.testing.assert_close(mixed.distortion, single.distortion, rtol=1e-3, atol=0)
    torch.testing.assert_close(mixed.rate, single.rate, rtol=1e-2, atol=1e-3)
    assert (mixed_slopes - slopes).norm() < 0.02 * slopes.norm()


def test_mixed_precision_moves_no_code_by_a_scale_and_sums_pixels_in_single_precision():
    vae = build(Recipe())
    images = torch.bernoulli(torch.full((50, 784), 0.2), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        # Means near 3 with scales of 0.004, as with a rate that weighs 0.01.
        vae.encoder.network[-1].bias.copy_(torch.tensor([3.0, -3.0, -11.0, -11.0]))
        exact, codes = vae.posterior(images), vae.posterior(images).mean
        entered = vae.decoder.network[0](codes)
        with torch.autocast("cpu", torch.bfloat16):
            mixed, likelihood = vae.posterior(images), vae.likelihood(codes)
            assert torch.equal(vae.decoder.network[0](codes), entered)
            assert vae.decoder.network[2](entered).dtype is torch.bfloat16
    assert ((mixed.mean - exact.mean) / exact.stddev).abs().max() < 0.2
    assert (mixed.stddev / exact.stddev - 1).abs().max() < 0.01
    assert likelihood.base_dist.logits.dtype is torch.float32


def test_the_discrepancy_of_a_batch_is_that_of_the_measure():
    means, scales = torch.randn(200, 3, generator=seeded(0)), torch.rand(200, 3) + 0.1
    measured = squared_mmd(AggregatedPosterior(means, scales), seeded(0))
    assert squared_mmd_of_batch(means, scales).item() == pytest.approx(measured.value, abs=1e-5)


def test_the_penalty_is_of_the_posteriors_that_the_parts_are_of():
    vae = build(Recipe(encoder_width=8, decoder_width=8))
    images = pictures(50)
    parts, discrepancy = penalised_bound_parts(vae, images, seeded(0))
    alone = bound_parts(vae, images, seeded(0))
    torch.testing.assert_close(parts.elbo, alone.elbo)
    torch.testing.assert_close(discrepancy, squared_mmd_of_batch(*encode(vae, images)))
    discrepancy.backward()
    assert vae.encoder.network[-1].weight.grad.abs().sum() > 0
