import math

import pytest
import torch
from agreement import assert_agrees
from small_world import Constant
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from priormatch.distributions import StretchedBeta
from priormatch.estimate import average
from priormatch.models import (
    VAE,
    BernoulliLikelihood,
    Centre,
    FullCovariancePosterior,
    GaussianLikelihood,
    GaussianPosterior,
    IntervalPosterior,
    _CodeLinear,
    convolutional_decoder,
    convolutional_encoder,
    draw,
    encode,
    multilayer_perceptron,
    standard_normal,
    uniform_interval,
)
from priormatch.recipe import Recipe, build


def test_the_vae_of_the_question_has_its_layers():
    model = build(Recipe())
    widths = [
        [
            (layer.in_features, layer.out_features)
            for layer in network
            if isinstance(layer, nn.Linear)
        ]
        for network in (model.encoder.network, model.decoder.network)
    ]
    assert widths == [[(784, 500), (500, 500), (500, 4)], [(2, 500), (500, 500), (500, 784)]]


def test_distributions_in_and_out_have_the_stated_shapes():
    model = build(Recipe(latent_dimension=3, encoder_width=5, decoder_width=5))
    posterior = model.posterior(torch.zeros(4, 784))
    assert (posterior.batch_shape, posterior.event_shape) == ((4,), (3,))
    likelihood = model.likelihood(torch.zeros(4, 2, 3))
    assert (likelihood.batch_shape, likelihood.event_shape) == ((4, 2), (784,))
    assert (model.prior.batch_shape, model.prior.event_shape) == ((), (3,))


def test_the_second_half_of_the_encoders_output_is_the_log_variance():
    posterior = GaussianPosterior(nn.Identity())(torch.tensor([[1.0, -2.0, math.log(4.0), 0.0]]))
    assert posterior.mean.tolist() == [[1.0, -2.0]]
    torch.testing.assert_close(posterior.variance, torch.tensor([[4.0, 1.0]]))


def test_a_full_covariance_is_made_of_its_triangle():
    outputs = torch.tensor([[1.0, -2.0, 3.0, math.log(4.0), 0.0, math.log(9.0), 0.5, -1.0, 0.25]])
    posterior = FullCovariancePosterior(nn.Identity(), 3)(outputs)
    triangle = torch.tensor([[2.0, 0.0, 0.0], [0.5, 1.0, 0.0], [-1.0, 0.25, 3.0]])
    assert posterior.mean.tolist() == [[1.0, -2.0, 3.0]]
    torch.testing.assert_close(posterior.covariance_matrix, (triangle @ triangle.T)[None])


def test_a_full_covariance_without_correlations_is_the_diagonal_posterior():
    outputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    diagonal = GaussianPosterior(nn.Identity())(outputs)
    padded = torch.cat([outputs, torch.zeros(5, 3)], 1)
    full = FullCovariancePosterior(nn.Identity(), 3)(padded)
    codes = torch.ones(5, 3)
    torch.testing.assert_close(full.log_prob(codes), diagonal.log_prob(codes))
    prior = standard_normal(3)
    torch.testing.assert_close(kl_divergence(full, prior), kl_divergence(diagonal, prior))
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    torch.testing.assert_close(draw(full, generators[0]), draw(diagonal, generators[1]))


def test_the_divergence_of_a_full_covariance_is_its_monte_carlo_mean():
    outputs = torch.tensor([[0.5, -1.0, -1.0, 0.3, 0.7]])
    posterior = FullCovariancePosterior(nn.Identity(), 2)(outputs)
    prior = Independent(Normal(torch.tensor([0.2, 0.0]), torch.tensor([1.5, 0.8])), 1)
    codes = draw(posterior.expand((100_000, 1)), torch.Generator().manual_seed(0))
    estimate = average((posterior.log_prob(codes) - prior.log_prob(codes)).squeeze(1))
    assert_agrees(estimate.value, estimate.standard_error, kl_divergence(posterior, prior).item())
    covariance = (codes - codes.mean(0)).squeeze(1).T @ (codes - codes.mean(0)).squeeze(1) / 1e5
    torch.testing.assert_close(covariance, posterior.covariance_matrix[0], rtol=0.03, atol=0)


def test_the_divergence_of_a_full_covariance_from_another_family_is_refused():
    posterior = FullCovariancePosterior(nn.Identity(), 2)(torch.zeros(1, 5))
    with pytest.raises(NotImplementedError, match="Gaussians"):
        kl_divergence(posterior, uniform_interval(2))


def test_the_decoders_output_is_a_logit():
    likelihood = BernoulliLikelihood(nn.Identity())(torch.tensor([[0.0, math.log(3.0)]]))
    torch.testing.assert_close(likelihood.mean, torch.tensor([[0.5, 0.75]]))
    # Ink on both pixels: 0.5 times 0.75.
    torch.testing.assert_close(
        likelihood.log_prob(torch.ones(1, 2)), torch.tensor([math.log(0.375)])
    )


def test_the_likelihood_of_all_pictures_sums_to_one():
    likelihood = BernoulliLikelihood(nn.Identity())(torch.tensor([0.3, -1.0, 2.0]))
    pictures = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    torch.testing.assert_close(likelihood.log_prob(pictures).exp().sum(), torch.tensor(1.0))


def test_draws_have_the_posteriors_mean_and_scale():
    mean, scale = torch.tensor([1.0, -3.0]), torch.tensor([0.1, 2.0])
    batch = Independent(Normal(mean.expand(100_000, 2), scale.expand(100_000, 2)), 1)
    standardised = (draw(batch, torch.Generator().manual_seed(0)) - mean) / scale
    for dimension in range(2):
        first = average(standardised[:, dimension])
        second = average(standardised[:, dimension].square())
        assert_agrees(first.value, first.standard_error, 0.0)
        assert_agrees(second.value, second.standard_error, 1.0)


def test_gradients_reach_mean_and_scale_through_a_draw():
    mean, scale = torch.zeros(1, requires_grad=True), torch.ones(1, requires_grad=True)
    noise = torch.randn(1, generator=torch.Generator().manual_seed(0))
    draw(Normal(mean, scale), torch.Generator().manual_seed(0)).sum().backward()
    assert mean.grad.item() == 1
    torch.testing.assert_close(scale.grad, noise)


def test_encode_returns_means_and_standard_deviations():
    vae = VAE(
        GaussianPosterior(Constant(1.0, math.log(4.0))),
        BernoulliLikelihood(Constant(0.0)),
        standard_normal(1),
    )
    means, scales = encode(vae, torch.zeros(5, 1), chunk=2)
    assert means.tolist() == [[1.0]] * 5
    torch.testing.assert_close(scales, torch.full((5, 1), 2.0))


def test_scales_are_refused_where_they_say_too_little():
    vae = build(Recipe(encoder_width=4, decoder_width=4, posterior="full covariance"))
    with pytest.raises(TypeError, match="covariances"):
        encode(vae, torch.zeros(5, 784))


def test_the_prior_is_the_standard_normal():
    prior = standard_normal(3)
    torch.testing.assert_close(
        prior.log_prob(torch.zeros(3)), torch.tensor(-1.5 * math.log(2 * math.pi))
    )
    other = Independent(Normal(torch.ones(3), torch.ones(3)), 1)
    torch.testing.assert_close(kl_divergence(other, prior), torch.tensor(1.5))


def test_no_activation_after_the_last_layer():
    network = multilayer_perceptron([2, 3, 1], nn.ReLU)
    assert [type(layer) for layer in network] == [nn.Linear, nn.ReLU, _CodeLinear]


def test_draws_of_other_families_depend_on_the_generator_alone():
    posterior = StretchedBeta(torch.full((5,), 3.0), torch.full((5,), 7.0))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    first, second = draw(posterior, generator), draw(posterior, generator)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, second)
    torch.manual_seed(2)
    assert torch.equal(first, draw(posterior, torch.Generator().manual_seed(0)))


def test_gaussian_draws_are_what_they_were():
    batch = Independent(Normal(torch.tensor([[1.0, -3.0]]), torch.tensor([[0.1, 2.0]])), 1)
    noise = torch.randn(1, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor([[1.0, -3.0]]) + torch.tensor([[0.1, 2.0]]) * noise
    assert torch.equal(draw(batch, torch.Generator().manual_seed(0)), expected)


def test_the_encoder_on_the_interval_puts_out_mean_and_concentration():
    posterior = IntervalPosterior(nn.Identity())(
        torch.tensor([[math.log(0.2 / 0.8), math.log(50.0)], [0.0, 0.0]])
    )
    assert (posterior.batch_shape, posterior.event_shape) == ((2,), (1,))
    torch.testing.assert_close(posterior.mean, torch.tensor([[2.0], [5.0]]))
    # The variance of a Beta distribution is m (1 - m) / (k + 1); the second one is uniform.
    torch.testing.assert_close(
        posterior.variance, torch.tensor([[100 * 0.2 * 0.8 / 101], [100 / 12]])
    )
    torch.testing.assert_close(
        kl_divergence(posterior, uniform_interval(1))[1], torch.tensor(0.0), atol=1e-6, rtol=0
    )


def test_the_prior_of_the_thought_experiment_is_uniform_and_centred_for_the_decoder():
    prior = uniform_interval(2)
    torch.testing.assert_close(prior.log_prob(torch.ones(2)), torch.tensor(-2 * math.log(10)))
    codes = draw(prior.expand((100_000,)), torch.Generator().manual_seed(0))
    assert codes.min() >= 0
    assert codes.max() <= 10
    estimate = average(codes[:, 0])
    assert_agrees(estimate.value, estimate.standard_error, 5.0)
    assert torch.equal(Centre(prior)(codes), codes - 5)


def test_convolutional_networks_take_any_batch_and_mirror_each_other():
    encoder, decoder = convolutional_encoder(6), convolutional_decoder(3)
    images = torch.rand(2, 5, 784, generator=torch.Generator().manual_seed(0))
    outputs = encoder(images)
    assert outputs.shape == (2, 5, 6)
    torch.testing.assert_close(outputs[1, 2], encoder(images[1, 2]))
    assert decoder(outputs[..., :3]).shape == (2, 5, 784)


def test_gaussian_pixels_share_a_scale():
    likelihood = GaussianLikelihood(nn.Identity())
    nn.init.constant_(likelihood.log_scale, math.log(0.5))
    pixels = likelihood(torch.zeros(3, 2))
    assert pixels.event_shape == (2,)
    expected = 2 * Normal(0.5, 0.5).log_prob(torch.tensor(1.0))
    torch.testing.assert_close(pixels.log_prob(torch.ones(3, 2)), expected.expand(3))


def test_draws_lie_where_the_posteriors_do_whatever_the_generator():
    parts = (torch.full((3, 2), one, device="meta") for one in (0.0, 1.0))
    law = Independent(Normal(*parts, validate_args=False), 1, validate_args=False)
    found = draw(law, torch.Generator().manual_seed(0))
    assert (found.device.type, found.shape) == ("meta", (3, 2))
