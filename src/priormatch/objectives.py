"""The evidence lower bound (ELBO) and its two parts, per example, in nats."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import kl_divergence

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

    Introduced in "The KL term".
    """
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
    return BoundParts(distortion, rate)


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
