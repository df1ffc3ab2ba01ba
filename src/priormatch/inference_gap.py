"""The inference gap, split into the cost of the network and the cost of the Gaussian family."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal
from torch.optim.lr_scheduler import OneCycleLR

from priormatch.checks import FamilyError, check_posteriors, rows
from priormatch.evidence import (
    Grid,
    exact_elbo,
    exact_inference_in_the_plane,
    likeliest_nodes,
)
from priormatch.models import VAE, from_noise

# The square on which the highest peak of an exact posterior is sought.
_COARSE = Grid((-5.0, -5.0), (5.0, 5.0), 0.04)

# Scale of the posteriors that start at a peak: typical of the question's network.
_SCALE = 0.04


def refine(
    vae: VAE,
    images: Float[Tensor, "examples pixels"],
    start: Distribution,
    generator: torch.Generator,
    steps: int = 100,
) -> MultivariateNormal:
    r"""Fit a Gaussian posterior to each image by raising its ELBO: semi-amortised inference.

    The decoder stays as it is. Gradient steps move means and scales, and correlations too if
    `start` has them. A step does not use independent draws. It uses two opposite codes along each
    of d orthogonal directions, turned at random, where d is the number of latent dimensions. These
    codes have exactly the mean and the covariance of the posterior, so that no noise is left where
    the exact posterior is Gaussian.

    Args:
        vae: The decoder and the prior; the encoder is not used.
        images: Pixels, of shape ``(examples, pixels)``.
        start: Gaussian posteriors to start from, such as ``vae.posterior(images)``.
        generator: Source of the directions.
        steps: Gradient steps.

    Returns:
        The refined posteriors; they are diagonal if `start` is.

    Raises:
        FamilyError: The posteriors to start from are not Gaussian.
        ShapeError: There is not a posterior for each image.
        NonFiniteError: A pixel is infinite or not a number.

    Source: :cite:t:`kim2018`.

    Introduced in "A deeper encoder".
    """
    images = rows(images, "images", keep_device=True)
    full = isinstance(start, MultivariateNormal)
    if not full and not isinstance(getattr(start, "base_dist", start), Normal):
        raise FamilyError(f"a Gaussian posterior is refined, and not one of the kind {start}")
    check_posteriors(start, len(images))
    mean = start.mean.detach()
    triangle = torch.diag_embed(start.stddev.detach())
    if isinstance(start, MultivariateNormal):
        triangle = start.scale_tril.detach()
    latent = mean.shape[1]
    row, column = torch.tril_indices(latent, latent, -1)
    # In units of the scales to start from, so that one learning rate suits every image.
    shift, log_stretch = torch.zeros_like(mean), torch.zeros_like(mean)
    shear = torch.zeros(len(images), len(row), dtype=mean.dtype)
    free = [shift, log_stretch, shear] if full else [shift, log_stretch]

    def refined() -> MultivariateNormal:
        inner = torch.diag_embed(log_stretch.exp())
        inner[:, row, column] = shear
        moved = mean + (triangle @ shift.unsqueeze(-1)).squeeze(-1)
        return MultivariateNormal(moved, scale_tril=triangle @ inner, validate_args=False)

    for parameter in free:
        parameter.requires_grad_(True)
    # A short memory: the first gradients, far from the optimum, are much longer than the last.
    optimiser = torch.optim.Adam(free, lr=0.1, betas=(0.9, 0.99))
    schedule = OneCycleLR(optimiser, 0.1, steps, pct_start=0.1, cycle_momentum=False)
    for _ in range(steps):
        posteriors = refined()
        directions = torch.randn((len(images), latent, latent), generator=generator)
        noise = math.sqrt(latent) * torch.linalg.qr(directions).Q.to(mean).transpose(0, 1)
        codes = from_noise(posteriors, torch.cat([noise, -noise]))
        log_joint = vae.likelihood(codes).log_prob(images) + vae.prior.log_prob(codes)
        optimiser.zero_grad()
        (-log_joint.mean(0) - posteriors.entropy()).sum().backward(inputs=free)
        optimiser.step()
        schedule.step()
    for parameter in free:
        parameter.requires_grad_(False)
    return refined()


def gaps(
    vae: VAE, images: Float[Tensor, "examples pixels"], generator: torch.Generator
) -> dict[str, Float[Tensor, " examples"]]:
    r"""Split the inference gap of each image into the encoder's and the Gaussian family's share.

    .. math:: \mathrm{KL}(Q(z|X) \| P(z|X)) \;\ge\; \min_{q \in \mathcal Q} \mathrm{KL}(q \| P(z|X))

    The right side is the approximation gap; the difference of the sides is the amortisation gap.
    The search may miss the minimum, so the gaps of posteriors fitted to single images are upper
    bounds.

    Args:
        vae: A model with two latent dimensions.
        images: Pixels in {0, 1}, of shape ``(examples, pixels)``.
        generator: Source of the draws.

    Returns:
        Nats, each of shape ``(examples,)``: ``log_evidence``; ``gap`` of the encoder's posteriors;
        ``refined_gap`` of the posteriors that `refine` makes of these; ``diagonal_gap`` and
        ``full_gap`` of the best diagonal Gaussian and of the best Gaussian found, with starts at
        the encoder's posterior and at the highest peak of the exact posterior.

    Raises:
        GridError: Exact posteriors lie too far out, or are too narrow.
        ShapeError: The model has other latent dimensions than two.
        NonFiniteError: A pixel is infinite or not a number.

    Source: :cite:t:`cremer2018`.

    Introduced in "A deeper encoder".
    """
    exact = exact_inference_in_the_plane(vae, images)
    with torch.no_grad():
        encoded = vae.posterior(images)
    diagonal = Independent(Normal(encoded.mean, encoded.stddev), 1)
    peaks = likeliest_nodes(vae, images, _COARSE)
    starts = [diagonal, Independent(Normal(peaks, torch.full_like(peaks, _SCALE)), 1)]
    found = [refine(vae, images, start, generator) for start in starts]
    with_correlations = [refine(vae, images, start, generator) for start in found]

    def gap_of(*posteriors: Distribution) -> Float[Tensor, " examples"]:
        elbos = [exact_elbo(vae, images, one) for one in posteriors]
        return exact.log_evidence - torch.stack(elbos).amax(0)

    if isinstance(encoded, MultivariateNormal):
        from_encoder = refine(vae, images, encoded, generator)
        with_correlations += [encoded, from_encoder]
    else:
        from_encoder = found[0]
    return {
        "log_evidence": exact.log_evidence,
        "gap": exact.gap,
        "refined_gap": gap_of(encoded, from_encoder),
        "diagonal_gap": gap_of(diagonal, *found),
        "full_gap": gap_of(diagonal, *found, *with_correlations),
    }
