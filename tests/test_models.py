import math

import torch
from agreement import assert_agrees
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from priormatch.mismatch import average
from priormatch.models import (
    BernoulliLikelihood,
    GaussianPosterior,
    draw,
    multilayer_perceptron,
    standard_normal,
)
from priormatch.training import Recipe, build


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


def test_the_prior_is_the_standard_normal():
    prior = standard_normal(3)
    torch.testing.assert_close(
        prior.log_prob(torch.zeros(3)), torch.tensor(-1.5 * math.log(2 * math.pi))
    )
    other = Independent(Normal(torch.ones(3), torch.ones(3)), 1)
    torch.testing.assert_close(kl_divergence(other, prior), torch.tensor(1.5))


def test_no_activation_after_the_last_layer():
    network = multilayer_perceptron([2, 3, 1], nn.ReLU)
    assert [type(layer) for layer in network] == [nn.Linear, nn.ReLU, nn.Linear]
