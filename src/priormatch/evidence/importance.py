"""Lower bounds on the evidence log P(X) from importance weights, in any dimension."""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from arviz_stats.base import array_stats
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from priormatch.checks import check_draws, check_event, rows
from priormatch.estimate import Estimate, average
from priormatch.models import VAE, draw

# Codes decoded at a time: their 784 pixels take 6 MB in single precision.
_CODES = 2_000

# Fewest draws to whose largest weights a Pareto law can be fitted.
_FEWEST_FOR_A_TAIL = 25


class ImportanceBounds(NamedTuple):
    """Two lower bounds on the evidence of each image, from the same draws, in nats.

    Attributes:
        log_evidence: Logarithm of the mean importance weight.
        elbo: Mean of the logarithms of the weights: an unbiased estimate of the ELBO.
        effective_draws: Effective number of draws, from 1 to the number drawn. Near 1 a single draw
            carries the bound. A large number does not prove that no mode was missed.
        pareto_k: Shape of the generalised Pareto law of the largest weights. Up to 0.7 the error of
            the bound is reliable; above, a few draws carry the bound. Infinite with fewer than 25
            draws.
    """

    log_evidence: Float[Tensor, " examples"]
    elbo: Float[Tensor, " examples"]
    effective_draws: Float[Tensor, " examples"]
    pareto_k: Float[Tensor, " examples"]

    @property
    def gap(self) -> Float[Tensor, " examples"]:
        """Estimate of the inference gap: never negative, too small in expectation."""
        return self.log_evidence - self.elbo


def importance_bounds(
    vae: VAE,
    images: Float[Tensor, "examples pixels"],
    draws: int,
    generator: torch.Generator,
) -> ImportanceBounds:
    r"""Bound the evidence of each image from below by importance weights of posterior draws.

    .. math:: \log \frac1K \sum_{k=1}^K w_k, \quad
              w_k = \frac{P(X|z_k) \, p(z_k)}{Q(z_k|X)}, \quad z_k \sim Q(z|X)

    In expectation it is at most log P(X), and closer to it with every further draw.

    Args:
        vae: The model, with any prior.
        images: Pixels in {0, 1}, of shape ``(examples, pixels)``.
        draws: Draws K of each posterior.
        generator: Source of the draws.

    Returns:
        Bounds and their diagnostics, each of shape ``(examples,)``, in double precision.

    Raises:
        ShapeError: The images are no matrix.
        NonFiniteError: A pixel is infinite or not a number.
        TooFewCodesError: There is no draw.

    Source: :cite:t:`burda2016`; :cite:t:`vehtari2024` for the Pareto law, as in arviz-stats.

    Introduced in "The estimators on trial".
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
        batch: Codes decoded at a time; the draws that an image gets depend on it.

    Returns:
        Bounds by the name of the prior.

    Raises:
        ShapeError: The images are no matrix, or a prior has other dimensions than the posteriors.
        NonFiniteError: A pixel is infinite or not a number.
        TooFewCodesError: There is no draw.

    Introduced in "Sampling the quilt".
    """
    check_draws(draws, 1)
    images = rows(images, "images", keep_device=True)
    blocks: dict[str, list[ImportanceBounds]] = {name: [] for name in priors}
    for some in images.split(max(1, batch // draws)):
        posterior = vae.posterior(some)
        for name, prior in priors.items():
            check_event(prior, posterior.event_shape[0], f"the prior {name!r}")
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
            blocks[name].append(bounds_of_weights(torch.cat(log_weights[name])))
    return {
        name: ImportanceBounds(*(torch.cat(part) for part in zip(*parts, strict=True)))
        for name, parts in blocks.items()
    }


def bounds_of_weights(log_weights: Float[Tensor, "draws examples"]) -> ImportanceBounds:
    """Return the bounds and diagnostics of log importance weights, in double precision.

    Args:
        log_weights: log P(X|z) p(z) / Q(z|X) of independent draws of each posterior, in nats.

    Introduced in "Audit your own VAE".

    >>> bounds_of_weights(torch.zeros(3, 1, dtype=torch.float64)).log_evidence
    tensor([0.], dtype=torch.float64)
    """
    total = log_weights.logsumexp(0)
    effective = torch.exp(2 * total - (2 * log_weights).logsumexp(0))
    return ImportanceBounds(
        total - math.log(len(log_weights)),
        log_weights.mean(0),
        effective,
        _pareto_k(log_weights),
    )


def _pareto_k(log_weights: Float[Tensor, "draws examples"]) -> Float[Tensor, " examples"]:
    draws = len(log_weights)
    if draws < _FEWEST_FOR_A_TAIL:
        return torch.full_like(log_weights[0], math.inf)
    # Weights that are all equal, as under the exact posterior, have no tail to fit.
    varied = log_weights.amax(0) - log_weights.amin(0) > 1e-6
    if not varied.all():
        found = torch.full_like(log_weights[0], -math.inf)
        if varied.any():
            found[varied] = _pareto_k(log_weights[:, varied])
        return found
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # The warning of a large k repeats the returned number.
        warnings.simplefilter("ignore", UserWarning)
        # The function expects log-likelihoods, the negatives of log weights.
        _, shapes = array_stats.psislw(-log_weights.numpy(), axis=0)
    return torch.as_tensor(np.atleast_1d(shapes)).double().nan_to_num(nan=-math.inf)


def average_bounds(bounds: ImportanceBounds) -> dict[str, Estimate]:
    """Return the mean of each bound over the images, by name, with its error over the images.

    In expectation the evidence, the ELBO and the gap, in nats, are lower bounds. The reliable share
    is the share of the images whose `pareto_k` is at most 0.7.

    Raises:
        TooFewCodesError: There are fewer than two images.
    """
    return {
        "log_evidence": average(bounds.log_evidence, "lower"),
        "elbo": average(bounds.elbo, "lower"),
        "gap": average(bounds.gap, "lower"),
        "effective_draws": average(bounds.effective_draws),
        "reliable_share": average((bounds.pareto_k <= 0.7).double()),
    }
