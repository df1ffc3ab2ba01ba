"""Quadrature in one and two latent dimensions: the evidence and the ELBO, exact up to the grid."""

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent

from priormatch.checks import check_event, check_posteriors, rows, vector
from priormatch.evidence.grid import Grid, GridError, product
from priormatch.models import VAE, from_noise

# Codes decoded at a time: their 784 pixels take 6 MB in single precision.
_CODES = 2_000

# Values of one block of a general likelihood: 64 MB in single precision.
_VALUES = 2**24

# A grid is summed in patches of _PATCH nodes a side. A first pass over every _STRIDE-th node a side
# finds which images have mass in which patch. When a grid is refined every _FINE_STRIDE-th node is
# tried, because a coarser pass can miss the mode of a narrow oblique posterior.
_PATCH, _STRIDE, _FINE_STRIDE = 32, 4, 2

# Nodes this many nats below an image's best are left out: exp(-20) is 2e-9, and a Gaussian is that
# low 6 standard deviations away.
_CUTOFF_NATS = 20.0

# Largest share of an exact posterior on the border of a grid that reaches far enough.
_MAX_BORDER_SHARE = 1e-6

# Largest mean refinement error, in nats, where no tolerance is given.
_MAX_MEAN_ERROR = 0.5

# Largest refinement error of an image, in nats, for means over images. With it, the evidence of 19
# in 20 images of the question's model is right within 0.02 nats, and that of all of fifty within
# 0.04. Errors of images cancel, so that the mean of a thousand is right within 0.001.
_MEAN_TOLERANCE = 0.3

# Most halvings of a spacing: the last makes it a 64th, with 4,096 times the nodes.
_MAX_REFINEMENTS = 6

# Half widths of the squares on which exact posteriors are sought, in prior standard deviations.
_HALF_WIDTHS = (7.0, 14.0, 28.0)

# Gauss-Hermite nodes a side: exact for polynomials up to degree 23. But rectifiers put kinks into
# log P(X|z). Compared with 96 nodes a side, the ELBO of 19 in 20 images of a trained model is right
# within 0.02 nats, and the mean over 200 images is off by 0.0006 ± 0.0007.
_HERMITE = 12


class _BorderError(GridError):
    """A grid does not reach as far as the exact posteriors do."""


class ExactInference(NamedTuple):
    """Evidence and ELBO of each image by quadrature, in nats.

    Attributes:
        log_evidence: log P(X), by the trapezoid rule on a grid.
        elbo: The ELBO, by the Gauss-Hermite rule on nodes around the mean of Q(z|X).
        refinement_error: Largest change of `log_evidence` if only every second node along each
            latent dimension is summed. As a rule it exceeds the error: five to ten times for a
            network of rectifiers, and far more where log P(X|z) is smooth.
    """

    log_evidence: Float[Tensor, " examples"]
    elbo: Float[Tensor, " examples"]
    refinement_error: Float[Tensor, " examples"]

    @property
    def gap(self) -> Float[Tensor, " examples"]:
        """The inference gap KL(Q(z|X) || P(z|X))."""
        return self.log_evidence - self.elbo


@torch.no_grad()
def exact_inference(
    vae: VAE,
    images: Float[Tensor, "examples pixels"],
    grid: Grid,
    tolerance: float = math.inf,
) -> ExactInference:
    r"""Compute the evidence of each image, exact up to the spacing of the nodes, and its ELBO.

    .. math:: \log P(X) = \log \int P(X|z) \, p(z) \, dz, \qquad
              \mathrm{KL}(Q(z|X) \| P(z|X)) = \log P(X) - \mathrm{ELBO}

    For each image, only the patches of the grid within 20 nats of its best node are summed. Each
    image takes some ten kilobytes of memory. A thousand images of Bernoulli pixels take seconds;
    other likelihoods are slower, because they are not a matrix product.

    With a tolerance, images with a larger refinement error are summed again at half the spacing,
    and so on. With a tolerance of 0.001, halving further moved no image of our models by as much;
    this takes a fraction of a second per image. The tolerance does not make the ELBO more exact,
    nor, therefore, the gap of a single image.

    Args:
        vae: The model, with any prior over one or two latent dimensions.
        images: Pixels in {0, 1}, of shape ``(examples, pixels)``.
        grid: Nodes, as far out and as close together as the exact posteriors require.
        tolerance: Largest refinement error of an image, in nats.

    Returns:
        Evidence, ELBO and refinement error, each of shape ``(examples,)``, in double precision.

    Raises:
        GridError: An exact posterior reaches the border of the grid, or its refinement error shows
            that it is too narrow for the spacing or the tolerance. A mode between the nodes tried
            goes unnoticed.
        ShapeError: The grid has another number of dimensions than the prior.
        NonFiniteError: A pixel is infinite or not a number.

    Introduced in "Why the mixture nearly matches".
    """
    images = rows(images, "images", keep_device=True)
    everything = torch.arange(len(images))
    patches = _active_patches(vae, images, grid, _all_patches(grid, everything), _STRIDE)
    log_evidence, refinement_error = _integrate(vae, images, grid, patches, everything)
    if tolerance == math.inf:
        change, most, where = refinement_error.mean(), _MAX_MEAN_ERROR, "on average"
    else:
        # A sub-grid that misses a posterior entirely changes the sum by 20 nats or more. Refinement
        # starts from the patches found here, so it could not recover. The worst test digit of three
        # trained models comes to 4.7.
        change, most, where = (
            refinement_error.max(),
            _CUTOFF_NATS,
            f"for image {refinement_error.argmax()}",
        )
    if not change <= most:
        raise GridError(
            f"without every second node of {grid} the evidence would change by {change:.2g} nats "
            f"{where}: make its spacing smaller."
        )
    coarse = (refinement_error > tolerance).nonzero().squeeze(1)
    finer, patches = (
        grid,
        _active_patches(vae, images, grid, _all_patches(grid, coarse), _FINE_STRIDE),
    )
    for _ in range(_MAX_REFINEMENTS):
        if len(coarse) == 0:
            break
        finer = replace(finer, spacing=finer.spacing / 2)
        patches = _active_patches(vae, images, finer, _children(patches, finer), _FINE_STRIDE)
        log_evidence[coarse], refinement_error[coarse] = _integrate(
            vae, images, finer, patches, coarse
        )
        coarse = coarse[refinement_error[coarse] > tolerance]
        patches = [(corner, some[refinement_error[some] > tolerance]) for corner, some in patches]
    if not refinement_error.max() <= tolerance:
        raise GridError(
            f"{grid} and {_MAX_REFINEMENTS} halvings of its spacing leave a refinement error of "
            f"{refinement_error.max():.2g} nats, more than the tolerance of {tolerance:.2g}."
        )
    elbo = [exact_elbo(vae, some, vae.posterior(some)) for some in images.split(_CODES)]
    return ExactInference(log_evidence, torch.cat(elbo), refinement_error)


@torch.no_grad()
def exact_inference_in_the_plane(
    vae: VAE, images: Float[Tensor, "examples pixels"], tolerance: float = _MEAN_TOLERANCE
) -> ExactInference:
    """Evaluate `exact_inference` on a square wide enough for the exact posteriors.

    The less the rate weighed in training, the further out the exact posteriors lie.

    Args:
        vae: A model with two latent dimensions.
        images: Pixels in {0, 1}, of shape ``(examples, pixels)``.
        tolerance: Largest refinement error of an image, in nats. The default suits means over
            images.

    Returns:
        Evidence, ELBO and refinement error, each of shape ``(examples,)``.

    Raises:
        GridError: Exact posteriors lie further out than 28 prior standard deviations, or are too
            narrow.
        ShapeError: The model has other latent dimensions than two.
        NonFiniteError: A pixel is infinite or not a number.

    Introduced in "What the KL term costs, and what it buys".
    """
    grids = [Grid((-reach,) * 2, (reach,) * 2) for reach in _HALF_WIDTHS]
    for grid in grids[:-1]:
        with contextlib.suppress(_BorderError):
            return exact_inference(vae, images, grid, tolerance)
    return exact_inference(vae, images, grids[-1], tolerance)


@torch.no_grad()
def exact_elbo(
    vae: VAE, images: Float[Tensor, "examples pixels"], posteriors: Distribution
) -> Float[Tensor, " examples"]:
    r"""Return the ELBO of each image under its own Gaussian posterior, by quadrature.

    .. math:: \mathbb E_{q(z)} \left[\log P(X|z) + \log p(z) - \log q(z)\right]

    The expectation is a sum over the nodes of the Gauss-Hermite rule, 12 along each dimension.

    Args:
        vae: The decoder and any prior, over one or two latent dimensions; the encoder is not used.
        images: Pixels, of shape ``(examples, pixels)``.
        posteriors: A Gaussian for each image, diagonal or with a full covariance, such as
            ``vae.posterior(images)``.

    Returns:
        Nats, of shape ``(examples,)``, in double precision.

    Raises:
        ShapeError: There is not a posterior of one or two dimensions for each image.
        NonFiniteError: A pixel is infinite or not a number.

    Introduced in "A deeper encoder".
    """
    images = rows(images, "images", keep_device=True)
    check_posteriors(posteriors, len(images), latents=(1, 2))
    latent = posteriors.event_shape[0]
    abscissas, weights = np.polynomial.hermite_e.hermegauss(_HERMITE)
    noise = product(*[torch.tensor(abscissas, dtype=images.dtype)] * latent)
    shares = product(*[torch.tensor(weights / weights.sum())] * latent).prod(1)
    codes = from_noise(posteriors, noise[:, None])
    blocks = [
        shares @ (vae.likelihood(block).log_prob(some) + vae.prior.log_prob(block)).double()
        for block, some in zip(
            codes.split(_CODES // len(noise), 1), images.split(_CODES // len(noise)), strict=True
        )
    ]
    return torch.cat(blocks) + posteriors.entropy()


@torch.no_grad()
def likeliest_nodes(
    vae: VAE, images: Float[Tensor, "examples pixels"], grid: Grid
) -> Float[Tensor, "examples latent"]:
    """Return the node of a grid at which the exact posterior of each image is highest.

    Args:
        vae: The model.
        images: Pixels, of shape ``(examples, pixels)``.
        grid: Nodes to search.

    Returns:
        Codes of shape ``(examples, latent)``.

    Raises:
        ShapeError: The grid has another number of dimensions than the prior.
        NonFiniteError: A pixel is infinite or not a number.

    Introduced in "A deeper encoder".
    """
    images = rows(images, "images", keep_device=True)
    check_event(vae.prior, len(grid.shape), "the prior")
    best = torch.full((len(images),), -math.inf)
    codes = torch.empty(len(images), len(grid.shape), dtype=images.dtype)
    for nodes in grid.nodes.to(images.dtype).split(_CODES):
        highest, where = _log_joint(vae, nodes, images).max(0)
        better = highest > best
        best = torch.where(better, highest, best)
        codes[better] = nodes[where[better]]
    return codes


def kl_on_grid(density: Float[Tensor, " nodes"], prior: Distribution, grid: Grid) -> float:
    r"""Return the KL of a density from the prior, with the density given at the nodes of a grid.

    .. math:: \int q(z) \left[\ln q(z) - \ln p(z)\right] dz

    Args:
        density: Density q at the nodes, of shape ``(nodes,)``.
        prior: The prior p.
        grid: The nodes.

    Returns:
        Nats. For an average of N posteriors it is above the population's KL in expectation, like
        `in_sample_kl`. It is then also at least the mean KL of the posteriors from the prior, less
        ln N.

    Raises:
        GridError: The density does not integrate to one on the grid, within 0.001.
        ShapeError: There is not a density for each node, or the prior has other dimensions.
        NonFiniteError: A density is infinite or not a number.

    Introduced in "The estimators on trial".

    >>> grid = Grid(lower=(-9.0,), upper=(11.0,), spacing=0.1)
    >>> one = torch.distributions.Independent(torch.distributions.Normal(torch.ones(1), 1.0), 1)
    >>> prior = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(1), 1.0), 1)
    >>> round(kl_on_grid(one.log_prob(grid.nodes).exp(), prior, grid), 6)
    0.5
    """
    check_event(prior, len(grid.shape), "the prior")
    density = vector(density, "density", math.prod(grid.shape)).double()
    mass = density.sum().item() * grid.cell_volume
    if not abs(mass - 1) <= 1e-3:
        raise GridError(f"the density has a mass of {mass:.4f} on {grid}: widen or refine it.")
    # Nodes in single precision, because a flow's weights are.
    log_prior = prior.log_prob(grid.nodes.float()).double()
    return (torch.xlogy(density, density) - density * log_prior).sum().item() * grid.cell_volume


_ActivePatch = tuple[tuple[int, ...], Tensor]
"""The first node of a patch, and the indices of the images with mass in it."""


class Patch(NamedTuple):
    """A patch of a grid, with log P(X|z) p(z) at its nodes for the images with mass in it."""

    steps: Int[Tensor, "nodes latent"]
    examples: Int[Tensor, " some"]
    log_joint: Float[Tensor, "nodes some"]


def _integrate(
    vae: VAE,
    images: Float[Tensor, "examples pixels"],
    grid: Grid,
    patches: list[_ActivePatch],
    examples: Int[Tensor, " some"],
) -> tuple[Float[Tensor, " some"], Float[Tensor, " some"]]:
    """Return log P(X) of some images and its refinement error, from patches of a grid."""
    latent = len(grid.shape)
    # The grid is made of 2^latent grids of twice the spacing. Their sums give the refinement error.
    sums = torch.full((2**latent, len(images)), -math.inf, dtype=torch.float64)
    border = torch.full((len(images),), -math.inf, dtype=torch.float64)
    last = torch.tensor(grid.shape) - 1
    for steps, some, log_joint in _log_joint_on(vae, images, grid, patches):
        member = _binary(steps % 2)
        for part in range(2**latent):
            sums[part, some] = _accumulate(sums[part, some], log_joint[member == part])
        outermost = ((steps == 0) | (steps == last)).any(1)
        border[some] = _accumulate(border[some], log_joint[outermost])
    sums = sums[:, examples]
    total = sums.logsumexp(0)
    if not total.isfinite().all():
        raise GridError(f"an image has no finite evidence on {grid}.")
    share = (border[examples] - total).exp()
    if not share.max() <= _MAX_BORDER_SHARE:
        raise _BorderError(
            f"{share.max():.1e} of the exact posterior of image {examples[share.argmax()]} lies "
            f"on the border of {grid}: widen its limits."
        )
    refinement_error = (sums + latent * math.log(2) - total).abs().amax(0)
    return total + math.log(grid.cell_volume), refinement_error


def _all_patches(grid: Grid, examples: Int[Tensor, " some"]) -> list[_ActivePatch]:
    """Return all patches of a grid, with the same images in each."""
    corners = itertools.product(*(range(0, count, _PATCH) for count in grid.shape))
    return [(corner, examples) for corner in corners]


def _children(patches: list[_ActivePatch], finer: Grid) -> list[_ActivePatch]:
    """Return the halves or quarters of patches, in a grid of half the spacing."""
    return [
        (part, some)
        for corner, some in patches
        for part in itertools.product(
            *(
                [start for start in (2 * first, 2 * first + _PATCH) if start < count]
                for first, count in zip(corner, finer.shape, strict=True)
            )
        )
    ]


def _active_patches(
    vae: VAE,
    images: Float[Tensor, "examples pixels"],
    grid: Grid,
    patches: list[_ActivePatch],
    stride: int,
) -> list[_ActivePatch]:
    """Return the patches with mass at every ``stride``-th node, and the images whose mass it is."""
    check_event(vae.prior, len(grid.shape), f"the prior, beside {grid},")
    patches = [(corner, some) for corner, some in patches if len(some)]
    # One step further than the patch, so that a mode between two patches is found from both.
    peaks = [
        _log_joint(vae, grid.nodes_at(steps).to(images.dtype), images[some]).amax(0)
        for corner, some in patches
        for steps in (_steps(grid, corner, _PATCH + 1, stride),)
    ]
    best = torch.full((len(images),), -math.inf, dtype=images.dtype)
    for (_, some), peak in zip(patches, peaks, strict=True):
        best[some] = best[some].maximum(peak.to(best))
    return [
        (corner, some[near])
        for (corner, some), peak in zip(patches, peaks, strict=True)
        if (near := peak > best[some] - _CUTOFF_NATS).any()
    ]


def _log_joint_on(
    vae: VAE, images: Float[Tensor, "examples pixels"], grid: Grid, patches: list[_ActivePatch]
) -> Iterator[Patch]:
    """Yield patches of a grid with log P(X|z) p(z) at all their nodes."""
    for corner, some in patches:
        steps = _steps(grid, corner, _PATCH, 1)
        codes = grid.nodes_at(steps).to(images.dtype)
        yield Patch(steps, some, _log_joint(vae, codes, images[some]))


def patches_with_mass(
    vae: VAE, images: Float[Tensor, "examples pixels"], grid: Grid
) -> Iterator[Patch]:
    """Yield the patches of a grid that hold mass, with the joint density at their nodes."""
    everywhere = _all_patches(grid, torch.arange(len(images)))
    return _log_joint_on(vae, images, grid, _active_patches(vae, images, grid, everywhere, _STRIDE))


def _steps(
    grid: Grid, corner: tuple[int, ...], width: int, stride: int
) -> Int[Tensor, "nodes latent"]:
    """Return the nodes of a patch, in steps from the grid's lower limits."""
    ends = (min(start + width, count) for start, count in zip(corner, grid.shape, strict=True))
    return product(*(torch.arange(*span, stride) for span in zip(corner, ends, strict=True)))


def _log_joint(
    vae: VAE, codes: Float[Tensor, "nodes latent"], images: Float[Tensor, "examples pixels"]
) -> Float[Tensor, "nodes examples"]:
    """Return log P(X|z) p(z) of every pair of a code and an image."""
    likelihood = vae.likelihood(codes[:, None])
    match likelihood:
        case Independent(base_dist=Bernoulli(logits=logits), reinterpreted_batch_ndims=1):
            # The sum over pixels of x logit - log(1 + exp(logit)) is a matrix product, some
            # hundred times faster than the pixels of all pairs.
            logits = logits.squeeze(1)
            normaliser = torch.nn.functional.softplus(logits).sum(1, keepdim=True)
            log_likelihood = logits @ images.T - normaliser
        case _:
            few = images.split(max(1, _VALUES // (len(codes) * images.shape[1])))
            log_likelihood = torch.cat([likelihood.log_prob(some) for some in few], 1)
    return log_likelihood + vae.prior.log_prob(codes)[:, None]


def _binary(digits: Int[Tensor, "some digits"]) -> Int[Tensor, " some"]:
    return (digits * 2 ** torch.arange(digits.shape[1])).sum(1)


def _accumulate(
    log_sums: Float[Tensor, " examples"], log_terms: Float[Tensor, "terms examples"]
) -> Float[Tensor, " examples"]:
    return log_sums.logaddexp(log_terms.double().logsumexp(0))
