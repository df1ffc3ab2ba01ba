"""The exact posterior P(z|X) on a grid, of one image and averaged over many."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from priormatch.checks import rows, vector
from priormatch.evidence.grid import Grid
from priormatch.evidence.quadrature import patches_with_mass
from priormatch.models import VAE


@torch.no_grad()
def exact_posteriors(
    vae: VAE,
    images: Float[Tensor, "examples pixels"],
    log_evidence: Float[Tensor, " examples"],
    grid: Grid,
) -> Float[Tensor, "examples nodes"]:
    r"""Return the densities of the exact posteriors of a few images at the nodes of a grid.

    .. math:: P(z|X) = \frac{P(X|z) \, p(z)}{P(X)}

    Args:
        vae: The model.
        images: Pixels, of shape ``(examples, pixels)``.
        log_evidence: Their evidence from `exact_inference`, on any grid.
        grid: Nodes at which to evaluate: over the whole latent space or in a window.

    Returns:
        Densities of shape ``(examples, nodes)``, in double precision; those below exp(-20) times
        an image's greatest may be zero.

    Raises:
        ShapeError: The grid has another number of dimensions than the prior, or there is not an
            evidence for each image.
        NonFiniteError: A pixel or an evidence is infinite or not a number.

    Introduced in "Why the mixture nearly matches".
    """
    images, log_evidence = _checked(images, log_evidence)
    densities = torch.zeros(len(images), math.prod(grid.shape), dtype=torch.float64)
    for steps, examples, log_joint in patches_with_mass(vae, images, grid):
        posteriors = torch.exp(log_joint - log_evidence[examples])
        densities[examples[:, None], grid.positions_at(steps)] = posteriors.T
    return densities


@torch.no_grad()
def aggregated_exact_posterior(
    vae: VAE,
    images: Float[Tensor, "examples pixels"],
    log_evidence: Float[Tensor, " examples"],
    grid: Grid,
) -> Float[Tensor, " nodes"]:
    r"""Return the density of the average of the exact posteriors at the nodes of a grid.

    .. math:: \frac1N \sum_{n=1}^N P(z|x_n)

    Its expectation over images that the model itself draws is the prior. The posteriors of all
    images are never in memory at once.

    Args:
        vae: The model.
        images: Pixels, of shape ``(examples, pixels)``.
        log_evidence: Their evidence from `exact_inference`, on any grid.
        grid: Nodes at which to evaluate.

    Returns:
        Density of shape ``(nodes,)``, in double precision.

    Raises:
        ShapeError: The grid has another number of dimensions than the prior, or there is not an
            evidence for each image.
        NonFiniteError: A pixel or an evidence is infinite or not a number.

    Introduced in "The estimators on trial".
    """
    images, log_evidence = _checked(images, log_evidence)
    density = torch.zeros(math.prod(grid.shape), dtype=torch.float64)
    for steps, examples, log_joint in patches_with_mass(vae, images, grid):
        posteriors = torch.exp(log_joint - log_evidence[examples])
        density[grid.positions_at(steps)] += posteriors.sum(1) / len(images)
    return density


def _checked(images: Tensor, log_evidence: Tensor) -> tuple[Tensor, Tensor]:
    images = rows(images, "images", keep_device=True)
    return images, vector(log_evidence, "log_evidence", len(images), keep_device=True)
