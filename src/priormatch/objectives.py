"""The evidence lower bound (ELBO) and its two parts, per example, in nats."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from priormatch.models import VAE, draw


class BoundParts(NamedTuple):
    """The two parts of the ELBO of each example, in nats.

    Attributes:
        distortion: -E log P(X|z) under Q(z|X), summed over pixels, estimated from one draw.
        rate: KL(Q(z|X) || P(z)), summed over latent dimensions: exact where it is known in closed
            form, as from N(0, I), and otherwise estimated from the same draw.
    """

    distortion: Float[Tensor, " examples"]
    rate: Float[Tensor, " examples"]

    @property
    def elbo(self) -> Float[Tensor, " examples"]:
        """The evidence lower bound: at most log P(X), in expectation over the draw."""
        return -self.distortion - self.rate


def bound_parts(
    vae: VAE,
    images: Float[Tensor, "examples pixels"],
    generator: torch.Generator,
    number_format: torch.dtype = torch.float32,
) -> BoundParts:
    r"""Estimate the parts of the ELBO of each image from one draw of its posterior.

    .. math:: \log P(X) \ge \mathbb E_{Q(z|X)} \log P(X|z) - \mathrm{KL}(Q(z|X) \| P(z))

    Args:
        vae: The model.
        images: Pixels in {0, 1}, of shape ``(examples, pixels)``. Grey values in [0, 1] give the
            cross-entropy that many tutorials train with, which is no likelihood.
        generator: Source of the posterior's draws.
        number_format: Format of the layers' matrix products, ``torch.float32`` or, for mixed
            precision, ``torch.bfloat16``. Layers next to the codes, draws, divergences and the
            layers of a prior are always in single precision.

    Returns:
        Distortion and rate, each of shape ``(examples,)``, in nats.

    Source: :cite:t:`kingma2014`.

    Introduced in "What the KL term costs, and what it buys".
    """
    return _bound_parts(vae, images, generator, number_format)[0]


def _bound_parts(
    vae: VAE,
    images: Float[Tensor, "examples pixels"],
    generator: torch.Generator,
    number_format: torch.dtype,
) -> tuple[BoundParts, Distribution]:
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=number_format is torch.bfloat16)
    with mixed:
        posterior = vae.posterior(images)
    codes = draw(posterior, generator)
    with mixed:
        likelihood = vae.likelihood(codes)
    distortion = -likelihood.log_prob(images)
    try:
        rate = kl_divergence(posterior, vae.prior)
    except NotImplementedError:  # no closed form: for instance a mixture in place of N(0, I)
        rate = posterior.log_prob(codes) - vae.prior.log_prob(codes)
    return BoundParts(distortion, rate), posterior


def penalised_bound_parts(
    vae: VAE,
    images: Float[Tensor, "examples pixels"],
    generator: torch.Generator,
    number_format: torch.dtype = torch.float32,
) -> tuple[BoundParts, Float[Tensor, ""]]:
    """Return `bound_parts`, and the `squared_mmd_of_batch` of the same posteriors.

    Args:
        vae: A model with diagonal Gaussian posteriors and the prior N(0, I).
        images: Pixels, of shape ``(examples, pixels)``.
        generator: Source of the posterior's draws.
        number_format: As in `bound_parts`.

    Source: :cite:t:`zhao2019`, for the penalty.
    """
    parts, posterior = _bound_parts(vae, images, generator, number_format)
    return parts, squared_mmd_of_batch(posterior.mean, posterior.stddev)


def squared_mmd_of_batch(
    means: Float[Tensor, "examples latent"], scales: Float[Tensor, "examples latent"]
) -> Float[Tensor, ""]:
    r"""Return the squared maximum mean discrepancy of a batch's average posterior from N(0, I).

    It is the closed form of `priormatch.two_sample.squared_mmd`, unbiased for the law that the
    examples come from, with gradients and without an error.

    Args:
        means: Means of diagonal Gaussians, of shape ``(examples, latent)``.
        scales: Their standard deviations.

    Source: :cite:t:`gretton2012` for the estimate, :cite:t:`henze1990` for the kernel.

    >>> squared_mmd_of_batch(torch.zeros(2, 1), torch.ones(2, 1)).abs() < 1e-6
    tensor(True)
    """
    number, latent = means.shape
    variances = scales.square()
    with_prior = log_kernel_mean(means, variances + 1, 1 / latent).sum(1).exp()
    pairs = (
        log_kernel_mean(means[:, None] - means, variances[:, None] + variances, 1 / latent)
        .sum(2)
        .exp()
    )
    others = (pairs.sum() - pairs.diagonal().sum()) / (number * (number - 1))
    return others - 2 * with_prior.mean() + (1 + 2 / latent) ** (-latent / 2)


def log_kernel_mean(
    shift: Float[Tensor, "*shape"], variance: Float[Tensor, "*shape"], square: float
) -> Float[Tensor, "*shape"]:
    """Return the log of the mean of exp(-square x^2 / 2) over x of N(shift, variance)."""
    widened = 1 + square * variance
    return -0.5 * (widened.log() + square * shift.square() / widened)


@torch.no_grad()
def bound_parts_in_chunks(
    vae: VAE,
    images: Float[Tensor, "examples pixels"],
    generator: torch.Generator,
    chunk: int = 2_000,
) -> BoundParts:
    """Evaluate `bound_parts` in batches, without gradients, in constant memory."""
    parts = [bound_parts(vae, some, generator) for some in images.split(chunk)]
    return BoundParts(*(torch.cat(part) for part in zip(*parts, strict=True)))
