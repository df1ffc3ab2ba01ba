"""Samplers in place of N(0, I), and a map that compares them draw by draw."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from priormatch.checks import FamilyError, check_draws, check_event, rows
from priormatch.data import binarize
from priormatch.densities import fit_flow, fit_gaussian, fit_mixture, mixture_sizes
from priormatch.distributions import AggregatedPosterior, PaddedDensity
from priormatch.models import VAE, globally_seeded


class Sampler(NamedTuple):
    """A distribution to sample in place of the prior.

    Attributes:
        density: Distribution with ``log_prob`` and ``sample``.
        seconds: Time of the fit, on one thread.
    """

    density: Distribution
    seconds: float


def fit_samplers(
    prior: Distribution,
    aggregated: AggregatedPosterior,
    codes: Float[Tensor, "draws latent"],
    validation_codes: Float[Tensor, "others latent"],
    seed: int = 0,
) -> dict[str, Sampler]:
    """Fit each sampler to the training codes, and time each fit.

    Args:
        prior: Prior that the model was trained with.
        aggregated: Aggregated posterior of the training examples.
        codes: Draws of the training posteriors, of shape ``(draws, latent)``.
        validation_codes: Codes on which the state of the flow is chosen.
        seed: Decides the fits.

    Returns:
        Samplers by name, the prior first and the training posteriors last.

    Raises:
        ShapeError: Codes, prior and posteriors do not have one number of dimensions.
        NonFiniteError: A code is infinite or not a number.
        TooFewCodesError: There are too few codes for one of the samplers.
        DegenerateCodesError: The codes have no density.

    Introduced in "Sampling the quilt".
    """
    codes = rows(codes)
    validation_codes = rows(validation_codes, "validation_codes", codes.shape[1])
    check_event(prior, codes.shape[1], "the prior")
    check_event(aggregated, codes.shape[1], "the aggregated posterior")
    fits: dict[str, Callable[[], Distribution]] = {
        "prior": lambda: prior,
        "Gaussian": lambda: fit_gaussian(codes),
        **{
            f"mixture of {size}": functools.partial(fit_mixture, codes, size, seed)
            for size in mixture_sizes(codes.shape[1])
        },
        "flow": lambda: fit_flow(codes, validation_codes, seed),
        "training posteriors": lambda: aggregated,
    }
    samplers = {}
    for name, fit in fits.items():
        start = time.perf_counter()
        density = fit()
        samplers[name] = Sampler(density, time.perf_counter() - start)
    return samplers


def sample(density: Distribution, draws: int, seed: int = 0) -> Float[Tensor, "draws latent"]:
    """Draw from any distribution with a seed, and leave torch's global generator as it was.

    Raises:
        TooFewCodesError: The number of draws is negative.

    Introduced in "Sampling the quilt".
    """
    check_draws(draws, 0)
    with globally_seeded(seed), torch.no_grad():
        return density.sample(torch.Size((draws,)))


@torch.no_grad()
def inverse_rosenblatt(
    density: Distribution, noise: Float[Tensor, "draws latent"]
) -> Float[Tensor, "draws latent"]:
    r"""Map draws of N(0, I) to draws of another distribution, quantile by quantile.

    .. math:: z_j = F^{-1}_j\left(\Phi(\varepsilon_j) \mid z_1, \dots, z_{j-1}\right)

    Here F_j is the distribution function of latent dimension j, given those before it. With the
    same noise, two samplers can be compared picture by picture. A flow has a map of its own, which
    is used instead. The draws follow the density. The map of N(0, I) itself returns the noise.

    Args:
        density: N(0, I), a Gaussian, a mixture of Gaussians, a flow, or one of them padded.
        noise: Draws of N(0, I).

    Raises:
        FamilyError: The density is of another kind.
        ShapeError: Noise and density do not have one number of dimensions.
        NonFiniteError: A number of the noise is infinite or not a number.

    Source: :cite:t:`rosenblatt1952`.

    Introduced in "Sampling the quilt".

    >>> twice = MultivariateNormal(torch.zeros(1), 4 * torch.eye(1))
    >>> inverse_rosenblatt(twice, torch.tensor([[1.5]]))
    tensor([[3.]])
    """
    noise = rows(noise, "noise")
    check_event(density, noise.shape[1])
    if isinstance(density, TransformedDistribution):
        if not hasattr(density.base_dist, "transform"):
            raise FamilyError(f"no map of quantiles is known for {density}")
        standardise: Any = density.transforms[0]
        noise = noise.to(standardise.loc)
        flow: Any = density.base_dist
        codes = flow.transform.inv(noise)
        for transform in density.transforms:
            codes = transform(codes)
        return codes
    if isinstance(density, MultivariateNormal):
        return density.loc + noise.to(density.loc) @ density.scale_tril.mT
    if isinstance(density, Independent) and isinstance(density.base_dist, Normal):
        return density.mean + density.stddev * noise
    if isinstance(density, PaddedDensity):
        codes = noise.clone()
        active = density.dimensions
        codes[:, active] = inverse_rosenblatt(density.density, noise[:, active])
        return codes
    if isinstance(density, MixtureSameFamily) and isinstance(
        density.component_distribution, MultivariateNormal
    ):
        return _mixture_inverse_rosenblatt(density, noise)
    raise FamilyError(f"no map of quantiles is known for {density}")


def _mixture_inverse_rosenblatt(density: MixtureSameFamily, noise: Tensor) -> Tensor:
    parts: Any = density.component_distribution
    means, factors = parts.loc.double(), parts.scale_tril.double()
    # For each component: its weight given the dimensions before, and the draw in its own units.
    log_weights = density.mixture_distribution.logits.double().expand(len(noise), -1)
    own = torch.zeros(len(noise), len(means), 0, dtype=torch.float64)
    codes = []
    for j, levels in enumerate(Normal(0.0, 1.0).cdf(noise.double()).T):
        centres = means[:, j] + (own * factors[:, j, :j]).sum(-1)
        law = Normal(centres, factors[:, j, j].expand_as(centres))
        weights = log_weights.softmax(1)
        low = (law.mean - 10 * law.stddev).amin(1)
        high = (law.mean + 10 * law.stddev).amax(1)
        for _ in range(60):
            middle = (low + high) / 2
            below = (weights * law.cdf(middle[:, None])).sum(1) < levels
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        codes.append(low)
        log_weights = log_weights + law.log_prob(low[:, None])
        own = torch.cat([own, ((low[:, None] - law.mean) / law.stddev)[..., None]], -1)
    return torch.stack(codes, 1).to(noise)


@torch.no_grad()
def pictures_of(
    vae: VAE, codes: Float[Tensor, "draws latent"], seed: int = 0
) -> Float[Tensor, "draws pixels"]:
    """Decode codes and draw their pixels.

    Raises:
        ShapeError: The codes are no matrix.
        NonFiniteError: A code is infinite or not a number.

    Introduced in "Sampling the quilt".
    """
    codes = rows(codes, keep_device=True)
    return binarize(vae.likelihood(codes).mean, torch.Generator().manual_seed(seed))
