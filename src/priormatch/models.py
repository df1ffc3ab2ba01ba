"""The variational autoencoder: modules that map tensors to `torch.distributions`."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    Uniform,
)
from torch.distributions.kl import kl_divergence, register_kl

from priormatch.distributions import INTERVAL, StretchedBeta

_GLOBAL_GENERATOR = threading.RLock()


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


class FullCovariancePosterior(nn.Module):
    r"""Encoder: images to Gaussians Q(z|X) = N(mean(X), L(X) L(X)^T) whose dimensions correlate.

    The network's outputs are the means, the logarithms of the squared diagonal of the triangular
    matrix L, and its entries below the diagonal, row by row. If all entries below the diagonal are
    zero, this is `GaussianPosterior`.

    Args:
        network: Maps ``(..., pixels)`` to ``(..., latent * (latent + 3) / 2)`` outputs.
        latent_dimension: Number of latent dimensions.

    Source: :cite:t:`kingma2019`.

    Introduced in "A deeper encoder".
    """

    def __init__(self, network: nn.Module, latent_dimension: int) -> None:
        super().__init__()
        self.network = network
        self.latent_dimension = latent_dimension

    def forward(self, images: Float[Tensor, "*batch pixels"]) -> MultivariateNormal:
        """Return the posteriors of the images: batch shape ``batch``, event shape ``(latent,)``."""
        latent = self.latent_dimension
        mean, log_square, below = self.network(images).split(
            [latent, latent, latent * (latent - 1) // 2], dim=-1
        )
        triangle = torch.diag_embed(torch.exp(0.5 * log_square))
        row, column = torch.tril_indices(latent, latent, -1)
        triangle[..., row, column] = below
        return MultivariateNormal(mean, scale_tril=triangle, validate_args=False)


@register_kl(MultivariateNormal, Independent)
def _kl_full_covariance_diagonal(
    posterior: MultivariateNormal, prior: Independent
) -> Float[Tensor, "*batch"]:
    if not isinstance(prior.base_dist, Normal):
        raise NotImplementedError(f"the KL is known from Gaussians only, not from {prior}")
    triangle = torch.diag_embed(prior.stddev)
    return kl_divergence(posterior, MultivariateNormal(prior.mean, scale_tril=triangle))


class IntervalPosterior(nn.Module):
    r"""Encoder: images to posteriors supported on the interval (0, 10), one for each dimension.

    .. math:: z = 10 u, \quad u \sim \mathrm{Beta}(k m, k (1 - m))

    The network's first output is the logit of the mean m, the second is ln(k / 2), so that outputs
    of zero stand for the uniform prior.

    Args:
        network: Maps ``(..., pixels)`` to ``(..., 2 * latent)``: logits of the means, then the
            logarithms of half the concentrations.

    Source: :cite:t:`ferrari2004`, for the parameters.

    Introduced in "The uniform interval".
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Float[Tensor, "*batch pixels"]) -> Independent:
        """Return the posteriors of the images: batch shape ``batch``, event shape ``(latent,)``."""
        logit, log_half = self.network(images).chunk(2, dim=-1)
        concentration = 2 * log_half.exp()
        posterior = StretchedBeta(
            concentration * logit.sigmoid(), concentration * (-logit).sigmoid(), validate_args=False
        )
        return Independent(posterior, 1, validate_args=False)


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
        # Under autocast the network ends in bfloat16, and the pixels' sum would lose its digits.
        logits = self.network(codes).to(codes.dtype)
        return Independent(Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)


class GaussianLikelihood(nn.Module):
    r"""Decoder: codes to Gaussian pixels N(mean(z), scale^2) that share one learned scale.

    A log density of grey values, unlike a Bernoulli's log probability, may be positive.

    Args:
        network: Maps ``(..., latent)`` to ``(..., pixels)`` logits of the means, which lie in
            (0, 1).

    Source: :cite:t:`rybkin2021`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def forward(self, codes: Float[Tensor, "*batch latent"]) -> Independent:
        """Return the likelihoods: batch shape ``batch``, event shape ``(pixels,)``."""
        means = self.network(codes).to(codes.dtype).sigmoid()
        return Independent(Normal(means, self.log_scale.exp(), validate_args=False), 1)


class Centre(nn.Module):
    """Shift codes by the prior's mean.

    The shifted codes lie around zero, near which the units of an untrained decoder bend.

    Args:
        prior: Distribution whose mean is subtracted.

    Introduced in "The uniform interval".
    """

    def __init__(self, prior: Distribution) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, codes: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch latent"]:
        """Return the centred codes."""
        return codes - self.prior.mean


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


def uniform_interval(latent_dimension: int) -> Independent:
    """Return U(0, 10) in each dimension, the prior of the thought experiment.

    >>> uniform_interval(1).log_prob(torch.tensor([5.0]))  # -ln 10
    tensor(-2.3026)
    """
    zeros = torch.zeros(latent_dimension)
    return Independent(Uniform(zeros, zeros + INTERVAL), 1)


class _CodeLinear(nn.Linear):
    """Linear layer from or to codes, in the format of its weights even under autocast.

    A bfloat16 between 2 and 4 is a multiple of 0.016, and posteriors can be narrower than that.
    """

    def forward(self, inputs: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        with torch.autocast("cpu", enabled=False):
            return super().forward(inputs.to(self.weight.dtype))


def multilayer_perceptron(
    widths: Sequence[int], activation: type[nn.Module], dropout: float = 0.0
) -> nn.Sequential:
    """Chain linear layers of the given widths, with an activation between each two of them.

    Under mixed precision the layer at the narrow end, where the codes are, stays in single
    precision. With dropout, each hidden layer loses that share of its units in training mode.

    >>> multilayer_perceptron([784, 500, 4], nn.ReLU)
    Sequential(
      (0): Linear(in_features=784, out_features=500, bias=True)
      (1): ReLU()
      (2): _CodeLinear(in_features=500, out_features=4, bias=True)
    )
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        linear = _CodeLinear if min(inputs, outputs) == min(widths) else nn.Linear
        layers += [linear(inputs, outputs), activation()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers[: -2 if dropout else -1])


class _OfRows(nn.Sequential):
    """Chain of layers that take one batch dimension, applied to rows with any batch shape."""

    def forward(self, rows: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return super().forward(rows.reshape(-1, rows.shape[-1])).reshape(*rows.shape[:-1], -1)


def convolutional_encoder(outputs: int, channels: int = 32) -> nn.Sequential:
    """Return a small convolutional network from rows of 28 x 28 pixels.

    Args:
        outputs: Numbers for each image: means and log variances.
        channels: Channels of the first layer; the second has twice as many.
    """
    return _OfRows(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, channels, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * channels * 49, 256),
        nn.ReLU(),
        _CodeLinear(256, outputs),
    )


def convolutional_decoder(latent_dimension: int, channels: int = 32) -> nn.Sequential:
    """Return the mirror image of `convolutional_encoder`: from codes to rows of 784 outputs."""
    return _OfRows(
        _CodeLinear(latent_dimension, 256),
        nn.ReLU(),
        nn.Linear(256, 2 * channels * 49),
        nn.ReLU(),
        nn.Unflatten(1, (2 * channels, 7, 7)),
        nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(channels, 1, 4, stride=2, padding=1),
        nn.Flatten(),
    )


def from_noise(
    gaussian: Distribution, noise: Float[Tensor, "*more latent"]
) -> Float[Tensor, "*codes latent"]:
    r"""Turn standard normal noise into draws of Gaussians, so that gradients reach the parameters.

    .. math:: z = \mu + L \epsilon, \quad L L^T = \Sigma

    Args:
        gaussian: Normal distributions, diagonal or with a full covariance.
        noise: Values of shape ``(*batch, latent)``, or of one that it broadcasts with.

    Returns:
        Codes of the shape that mean and noise broadcast to.

    Source: :cite:t:`kingma2014`, the reparameterisation trick.

    Introduced in "The latent picture".

    >>> from_noise(Normal(torch.tensor([5.0, 0.0]), 2.0), torch.tensor([1.0, 0.5]))
    tensor([7., 1.])
    """
    if isinstance(gaussian, MultivariateNormal):
        return gaussian.mean + (gaussian.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
    return gaussian.mean + gaussian.stddev * noise


@contextlib.contextmanager
def globally_seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator for a block that can draw from no other, then restore it.

    Threads take turns: if two ran at once, the seeded draws would be spread over both.
    """
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def draw(distribution: Distribution, generator: torch.Generator) -> Float[Tensor, "*batch latent"]:
    """Draw once from each distribution of a batch, so that gradients reach its parameters.

    For Gaussians see `from_noise`. Draws of other families in `torch.distributions` come from
    torch's global generator only. It is seeded by `generator` for this draw, and then restored.

    Args:
        distribution: Gaussians or others with reparameterised draws, such as posteriors or the
            prior.
        generator: Source of the noise, on any device.

    Returns:
        Draws of shape ``(*batch, latent)``, on the device of the distribution.

    Source: :cite:t:`kingma2014`, the reparameterisation trick; :cite:t:`jankowiak2018` for Betas.

    Introduced in "The latent picture".
    """
    family = distribution.base_dist if isinstance(distribution, Independent) else distribution
    if isinstance(family, Normal | MultivariateNormal):
        mean = distribution.mean
        # A generator draws on its own device only, and posteriors may lie on another one.
        noise = torch.randn(
            mean.shape, generator=generator, dtype=mean.dtype, device=generator.device
        )
        return from_noise(distribution, noise.to(mean.device))
    seed = torch.randint(2**63 - 1, (), generator=generator).item()
    with globally_seeded(int(seed)):
        return distribution.rsample()


@torch.no_grad()
def encode(
    vae: VAE, images: Float[Tensor, "examples pixels"], chunk: int = 2_000
) -> tuple[Float[Tensor, "examples latent"], Float[Tensor, "examples latent"]]:
    """Return the means and scales of the diagonal Gaussian posteriors of many images.

    Args:
        vae: The model.
        images: Pixels, of shape ``(examples, pixels)``.
        chunk: Images encoded at a time.

    Returns:
        Means and scales (standard deviations), each of shape ``(examples, latent)``.

    Raises:
        TypeError: The posteriors have full covariances, which scales do not describe.

    Introduced in "The latent picture".
    """
    posteriors = [vae.posterior(some) for some in images.split(chunk)]
    if isinstance(posteriors[0], MultivariateNormal):
        raise TypeError("means and scales do not describe posteriors with full covariances")
    mean = torch.cat([posterior.mean for posterior in posteriors])
    scale = torch.cat([posterior.stddev for posterior in posteriors])
    return mean, scale
