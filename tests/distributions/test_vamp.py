import math

import pytest
import torch
from small_world import assert_draws_follow, drawn
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily

from priormatch.distributions import VampPrior
from priormatch.models import GaussianPosterior


class Reader(nn.Module):
    """An encoder network of four pixels: means along two of them, scales along the others."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([4.0, 0.4, 1.0, 1.0]))

    def forward(self, images):
        return self.gain * images + torch.tensor([1.0, 2.8, 0.0, 2 * math.log(0.05)])


def vamp(components=6):
    """Return a prior of so many pseudo-inputs, whose posteriors differ in place and size."""
    generator = torch.Generator().manual_seed(0)
    encoder = GaussianPosterior(Reader())
    return VampPrior(encoder, torch.rand(components, 4, generator=generator)), encoder


def written_out(prior, encoder):
    """Return the same mixture, made of torch's own parts."""
    posteriors = encoder(prior.logits.sigmoid())
    return MixtureSameFamily(Categorical(torch.ones(len(prior.logits))), posteriors)


def test_a_vamp_prior_starts_from_its_pictures_and_keeps_pixels_between_0_and_1():
    images = torch.tensor([[0.0, 0.3, 0.7, 1.0]])
    prior = VampPrior(GaussianPosterior(Reader()), images)
    torch.testing.assert_close(prior.pseudo_inputs, torch.tensor([[0.01, 0.3, 0.7, 0.99]]))
    with torch.no_grad():
        prior.logits.add_(torch.tensor([-30.0, 30.0, 0.0, 0.0]))
    assert prior.pseudo_inputs.min() >= 0
    assert prior.pseudo_inputs.max() <= 1


def test_a_vamp_prior_is_the_mixture_of_the_posteriors_of_its_pseudo_inputs():
    prior, encoder = vamp()
    reference = written_out(prior, encoder)
    codes = drawn(prior, 100)
    torch.testing.assert_close(prior.log_prob(codes), reference.log_prob(codes), atol=1e-4, rtol=0)
    torch.testing.assert_close(prior.mean, reference.mean.detach())
    torch.testing.assert_close(prior.variance, reference.variance.detach())


def test_gradients_of_a_vamp_prior_reach_codes_encoder_and_pseudo_inputs():
    prior, encoder = vamp()
    codes = drawn(prior, 20).requires_grad_()

    def gradients(log_prob):
        leaves = (codes, encoder.network.gain, prior.logits)
        return torch.autograd.grad(log_prob(codes).sum(), leaves)

    ours, reference = gradients(prior.log_prob), gradients(written_out(prior, encoder).log_prob)
    for one, other in zip(ours, reference, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_a_vamp_prior_owns_its_pseudo_inputs_and_not_the_encoder():
    prior, _ = vamp()
    assert list(prior.state_dict()) == ["logits"]
    assert isinstance(prior, torch.distributions.Distribution)
    assert (prior.batch_shape, prior.event_shape) == ((), (2,))


def test_draws_of_a_vamp_prior_follow_the_density_that_log_prob_reports():
    prior, _ = vamp()
    with torch.no_grad():
        assert_draws_follow(drawn(prior, 20_000), prior.log_prob, 2)


def test_the_comparison_of_draws_refuses_pseudo_inputs_taken_in_their_order():
    prior, _ = vamp()
    with torch.no_grad():
        first = prior.mixture.posteriors.sample((7_000,))[:, :3].reshape(-1, 2)
        with pytest.raises(AssertionError, match="is not"):
            assert_draws_follow(first, prior.log_prob, 2)


def test_a_generator_decides_the_draws_of_a_vamp_prior():
    prior, _ = vamp()
    before = torch.get_rng_state()
    one, again = (
        prior.sample((5, 3), generator=torch.Generator().manual_seed(0)) for _ in range(2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, again)
    assert one.shape == (5, 3, 2)
    assert not one.requires_grad
