import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from priormatch.distributions import AggregatedPosterior, PaddedDensity
from priormatch.samplers import inverse_rosenblatt, sample


def correlated():
    covariance = torch.tensor([[2.0, 0.6], [0.6, 0.5]])
    return MultivariateNormal(torch.tensor([1.0, -1.0]), covariance)


def test_a_padded_gaussian_is_the_gaussian_of_all_dimensions():
    padded = PaddedDensity(correlated(), [3, 1], 4)
    mean = torch.tensor([0.0, -1.0, 0.0, 1.0])
    covariance = torch.eye(4)
    covariance[[3, 3, 1, 1], [3, 1, 3, 1]] = torch.tensor([2.0, 0.6, 0.6, 0.5])
    codes = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    whole = MultivariateNormal(mean, covariance)
    torch.testing.assert_close(padded.log_prob(codes), whole.log_prob(codes))


def test_draws_of_a_padded_density_have_its_moments():
    codes = sample(PaddedDensity(correlated(), [2, 0], 3), 100_000)
    mean = torch.tensor([-1.0, 0.0, 1.0])
    covariance = torch.tensor([[0.5, 0.0, 0.6], [0.0, 1.0, 0.0], [0.6, 0.0, 2.0]])
    torch.testing.assert_close(codes.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(torch.cov(codes.T), covariance, atol=0.05, rtol=0)


def test_noise_becomes_draws_of_a_padded_density_and_stays_in_the_silent_dimension():
    noise = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    codes = inverse_rosenblatt(PaddedDensity(correlated(), [0, 2], 3), noise)
    torch.testing.assert_close(codes[:, 1], noise[:, 1])
    torch.testing.assert_close(codes[:, [0, 2]], inverse_rosenblatt(correlated(), noise[:, [0, 2]]))


def test_a_density_of_another_number_of_dimensions_is_refused():
    with pytest.raises(ValueError, match="codes of 3 latent dimensions need"):
        PaddedDensity(correlated(), [0, 1, 2], 5)


def test_the_nearest_posterior_is_found_in_its_own_scales():
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3_000, 5, generator=generator)
    scales = torch.rand(3_000, 5, generator=generator) + 0.001
    codes = torch.randn(300, 5, generator=generator)
    found = AggregatedPosterior(means, scales).distance_to_nearest(codes)
    standard = (codes[:, None] - means).double() / scales.double()
    torch.testing.assert_close(found, standard.norm(dim=2).amin(1).float(), atol=1e-4, rtol=1e-4)


def test_a_code_at_a_mean_is_at_no_distance():
    mixture = AggregatedPosterior(torch.full((1, 2), 3.0), torch.full((1, 2), 1e-3))
    assert mixture.distance_to_nearest(torch.full((1, 2), 3.0)).item() < 1e-3
    far = mixture.distance_to_nearest(torch.full((1, 2), 3.001)).item()
    assert far == pytest.approx(math.sqrt(2), rel=1e-3)
