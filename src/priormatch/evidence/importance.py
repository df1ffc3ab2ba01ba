"""Lower bounds on the evidence log P(X) from importance weights, in any dimension."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from priormatch.estimate import Estimate, average
from priormatch.models import VAE, draw

# Codes decoded at a time: their 784 pixels take 6 MB in single precision.
_CODES = 2_000


class ImportanceBounds(NamedTuple):
    """Two lower bounds on the evidence of each image, from the same draws, in nats.

    Attributes:
        log_evidence: Logarithm of the mean importance weight.
        elbo: Mean of the logarithms of the weights: an unbiased estimate of the ELBO.
        effective_draws: Effective number of draws, from 1 to the number drawn. Near 1 a single draw
            carries the bound; a large number is no proof that no mode was missed.
    """

    log_evidence: Float[Tensor, " examples"]
    elbo: Float[Tensor, " examples"]
    effective_draws: Float[Tensor, " examples"]

    @property
    def gap(self) -> Float[Tensor, " examples"]:
        """The inference gap as far as the draws see it: never negative, too small on average."""
        return self.log_evidence - self.elbo


def importance_bounds(
    vae: VAE,
    images: Float[Tensor, "examples pixels"],
    draws: int,
    generator: torch.Generator,
) -> ImportanceBounds:
    r"""Bound the evidence of each image by importance weights of draws of its posterior.

    .. math:: \log \frac1K \sum_{k=1}^K w_k, \quad
              w_k = \frac{P(X|z_k) \, p(z_k)}{Q(z_k|X)}, \quad z_k \sim Q(z|X)

    At most log P(X) in expectation, and closer to it with every further draw.

    Args:
        vae: The model, with any prior.
        images: Pixels in {0, 1}, of shape ``(examples, pixels)``.
        draws: Draws K of each posterior.
        generator: Source of the draws.

    Returns:
        Bounds and effective draws, each of shape ``(examples,)``, in double precision.

    Source: :cite:t:`burda2016`.

    Introduced in "Why the mixture nearly matches".
    """
    return importance_bounds_by_prior(vae, {"own": vae.prior}, images, draws, generator)["own"]


@torch.no_grad()
def importance_bounds_by_prior(
    vae: VAE,
    priors: dict[str, Distribution],
    images: Float[Tensor, "examples pixels"],
    draws: int,
    generator: torch.Generator,
    batch: int = _CODES,
) -> dict[str, ImportanceBounds]:
    """Evaluate `importance_bounds` under several priors, with common draws and one decoding.

    Args:
        vae: Encoder and decoder.
        priors: Distributions over codes, by name.
        images: Pixels in {0, 1}, of shape ``(examples, pixels)``.
        draws: Draws of each posterior.
        generator: Source of the draws.
        batch: Codes decoded at a time; which draws an image gets depends on it.

    Returns:
        Bounds by the name of the prior.

    Introduced in "Sampling the quilt".
    """
    blocks: dict[str, list[ImportanceBounds]] = {name: [] for name in priors}
    for some in images.split(max(1, batch // draws)):
        posterior = vae.posterior(some)
        log_weights: dict[str, list[Tensor]] = {name: [] for name in priors}
        for start in range(0, draws, batch):
            count = min(batch, draws - start)
            codes = draw(posterior.expand(torch.Size((count, len(some)))), generator)
            log_likelihood = vae.likelihood(codes).log_prob(some).double()
            log_posterior = posterior.log_prob(codes)
            for name, prior in priors.items():
                log_ratio = prior.log_prob(codes).double() - log_posterior
                log_weights[name].append(log_likelihood + log_ratio)
        for name in priors:
            blocks[name].append(_summarise(torch.cat(log_weights[name])))
    return {
        name: ImportanceBounds(*(torch.cat(part) for part in zip(*parts, strict=True)))
        for name, parts in blocks.items()
    }


def _summarise(log_weights: Float[Tensor, "draws examples"]) -> ImportanceBounds:
    total = log_weights.logsumexp(0)
    effective = torch.exp(2 * total - (2 * log_weights).logsumexp(0))
    return ImportanceBounds(total - math.log(len(log_weights)), log_weights.mean(0), effective)


def average_bounds(bounds: ImportanceBounds) -> dict[str, Estimate]:
    """Return the means over the images by name; the standard errors are over the images.

    The evidence, the ELBO and the gap, in nats, lie below the truth in expectation.
    """
    return {
        "log_evidence": average(bounds.log_evidence, "lower"),
        "elbo": average(bounds.elbo, "lower"),
        "gap": average(bounds.gap, "lower"),
        "effective_draws": average(bounds.effective_draws),
    }
