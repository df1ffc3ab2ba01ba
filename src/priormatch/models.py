"""The variational autoencoder: modules that map tensors to `torch.distributions`."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal


class GaussianPosterior(nn.Module):
    """Encoder: images to the diagonal Gaussian Q(z|X) = N(mean(X), diag variance(X)).

    Args:
        network: Maps ``(..., pixels)`` to ``(..., 2 * latent)``: means, then log variances.

    Introduced in "The latent picture".
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Float[Tensor, "*batch pixels"]) -> Independent:
        """Return the posteriors of the images: batch shape ``batch``, event shape ``(latent,)``."""
        mean, log_variance = self.network(images).chunk(2, dim=-1)
        scale = torch.exp(0.5 * log_variance)
        return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)


class BernoulliLikelihood(nn.Module):
    """Decoder: codes to independent Bernoulli pixels P(X|z).

    Args:
        network: Maps ``(..., latent)`` to ``(..., pixels)`` logits.

    Introduced in "The latent picture".
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, codes: Float[Tensor, "*batch latent"]) -> Independent:
        """Return the likelihoods: batch shape ``batch``, event shape ``(pixels,)``."""
        logits = self.network(codes)
        return Independent(Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)


class VAE(nn.Module):
    """An encoder, a decoder and a prior.

    Args:
        encoder: Module that maps images to the posterior Q(z|X), a distribution.
        decoder: Module that maps codes to the likelihood P(X|z), a distribution.
        prior: Distribution P(z), with event shape ``(latent,)``.

    Source: :cite:t:`kingma2014`.

    Introduced in "The latent picture".
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, prior: Distribution) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior

    def posterior(self, images: Float[Tensor, "*batch pixels"]) -> Distribution:
        """Return Q(z|X): batch shape ``batch``, event shape ``(latent,)``."""
        return self.encoder(images)

    def likelihood(self, codes: Float[Tensor, "*batch latent"]) -> Distribution:
        """Return P(X|z): batch shape ``batch``, event shape ``(pixels,)``."""
        return self.decoder(codes)


def standard_normal(latent_dimension: int) -> Independent:
    """Return N(0, I), the prior of the question, with event shape ``(latent_dimension,)``."""
    zeros = torch.zeros(latent_dimension)
    return Independent(Normal(zeros, torch.ones_like(zeros)), 1)


def multilayer_perceptron(widths: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Chain linear layers of the given widths, with an activation between each two of them.

    >>> multilayer_perceptron([784, 500, 4], nn.ReLU)
    Sequential(
      (0): Linear(in_features=784, out_features=500, bias=True)
      (1): ReLU()
      (2): Linear(in_features=500, out_features=4, bias=True)
    )
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def draw(distribution: Distribution, generator: torch.Generator) -> Float[Tensor, "*batch latent"]:
    """Draw once from each diagonal Gaussian of a batch, so that gradients reach its parameters.

    ``z = mean + scale * noise``, which `torch.distributions` offers without a generator only.

    Args:
        distribution: Diagonal Gaussians, such as a posterior or the prior.
        generator: Source of the noise.

    Returns:
        Draws of shape ``(*batch, latent)``.

    Source: :cite:t:`kingma2014`, the reparameterisation trick.

    Introduced in "The KL term".
    """
    mean, scale = distribution.mean, distribution.stddev
    return mean + scale * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
