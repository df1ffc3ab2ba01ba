"""Codes in one dimension: their distribution by digit, and their information on the digit.

The prior's distribution function F carries a code z of a model with the prior N(0, 1) to the
position 10 F(z) in (0, 10). This changes no divergence.
"""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Independent

from priormatch.checks import check_event, check_posteriors, rows, vector
from priormatch.evidence import Grid
from priormatch.models import VAE
from priormatch.sample_quality import predict_proba

BINS = 100
"""Number of bins for the mass of each digit; each has an equal share of the prior's mass."""

DIGITS = 10

# Nodes of a block: a few megabytes in double precision for the posteriors of MNIST.
_BLOCK = 8


@torch.no_grad()
def density_by_digit(
    posterior: Independent, labels: Int[Tensor, " examples"], nodes: Float[Tensor, " nodes"]
) -> Float[Tensor, "digits nodes"]:
    r"""Return the joint density of digit and code under the aggregated posterior, in one dimension.

    .. math:: q(k, z) = \frac1N \sum_{n : k_n = k} Q(z|x_n)

    Args:
        posterior: Posteriors of N examples: batch shape ``(examples,)``, event shape ``(1,)``.
        labels: Their digits.
        nodes: Codes, of shape ``(nodes,)``.

    Returns:
        Densities in double precision, of shape ``(10, nodes)``; their sum over digits is q(z).

    Raises:
        ShapeError: There is not a digit for each posterior, or they have other dimensions than one.
        NonFiniteError: A node is infinite or not a number.
        ValueError: A label is no digit.

    Introduced in "The uniform interval".
    """
    shares = _shares(posterior, labels)
    nodes = vector(nodes, "nodes")
    blocks = [
        # Below exp(-700) a processor takes many times as long, and the terms are lost in the sum.
        posterior.log_prob(some[:, None, None]).clamp(min=-700.0).exp() @ shares
        for some in nodes.double().split(_BLOCK)
    ]
    return torch.cat(blocks).T


def mass_by_digit(
    posterior: Independent,
    labels: Int[Tensor, " examples"],
    prior: Independent,
    bins: int = BINS,
) -> Float[Tensor, "digits bins"]:
    r"""Return the joint mass of digit and position, in bins of equal shares of the prior's mass.

    .. math:: \frac1N \sum_{n : k_n = k} \left[F_n(b_{i + 1}) - F_n(b_i)\right],
              \quad F(b_i) = i / \text{bins}

    Exact: F_n is the distribution function of Q(z|x_n), F that of the prior.

    Args:
        posterior: Posteriors of N examples: batch shape ``(examples,)``, event shape ``(1,)``.
        labels: Their digits.
        prior: The prior, with event shape ``(1,)``.
        bins: Number of bins.

    Returns:
        Masses in double precision, of shape ``(10, bins)``; they add up to 1.

    Raises:
        ShapeError: There is not a digit for each posterior, or they have other dimensions than one.
        ValueError: A label is no digit, or there is no bin.

    Introduced in "The uniform interval".
    """
    shares = _shares(posterior, labels)
    check_event(prior, 1, "the prior")
    if bins < 1:
        raise ValueError(f"there are {bins} bins, where one or more are needed")
    inner = prior.base_dist.icdf(torch.arange(1, bins, dtype=torch.float64)[:, None] / bins)
    below = [posterior.base_dist.cdf(edge[:, None])[:, 0].double() for edge in inner]
    nothing = torch.zeros(len(labels), dtype=torch.float64)
    edges = torch.stack([nothing, *below, nothing + 1])
    return (edges.diff(dim=0) @ shares).T


def _shares(posterior: Independent, labels: Int[Tensor, " examples"]) -> Tensor:
    """Return the share of each example in its digit, of shape ``(examples, 10)``."""
    check_posteriors(posterior, len(labels), "labels", (1,))
    whole = vector(labels, "labels", len(labels)).long()
    if not ((whole >= 0) & (whole < DIGITS)).all():
        raise ValueError(f"labels are digits from 0 to 9, not {whole.min()} to {whole.max()}")
    return nn.functional.one_hot(whole, DIGITS).double() / len(labels)


def grid_of(prior: Independent, nodes: int) -> Grid:
    """Return a grid between the prior's quantiles of 1e-15 and 1 - 1e-15.

    Its nodes are the midpoints of cells, so that sums over them approximate integrals.

    Args:
        prior: The prior, with event shape ``(1,)``.
        nodes: Number of nodes.

    Raises:
        ShapeError: The prior has other dimensions than one.

    Introduced in "The uniform interval".

    >>> from priormatch.models import uniform_interval
    >>> grid_of(uniform_interval(1), 4).nodes.squeeze(1)
    tensor([1.2500, 3.7500, 6.2500, 8.7500], dtype=torch.float64)
    """
    check_event(prior, 1, "the prior")
    ends = prior.base_dist.icdf(torch.tensor([1e-15, 1 - 1e-15], dtype=torch.float64))
    low, high = ends.tolist()
    width = (high - low) / nodes
    return Grid((low + width / 2,), (high - width / 2,), width)


def information_on_the_digit(density: Float[Tensor, "digits nodes"], grid: Grid) -> float:
    r"""Return I[k; z], the information of a code on the digit, by the midpoint rule.

    .. math:: \Delta \sum_k \sum_i q(k, z_i) \ln \frac{q(k, z_i)}{q(k)\, q(z_i)}

    Args:
        density: Joint density of digit and code at the nodes, of shape ``(10, nodes)``.
        grid: The nodes, with a spacing of Delta.

    Returns:
        Nats, at most the entropy of the shares of the digits.

    Raises:
        ShapeError: There is not a density for each node.
        NonFiniteError: A density is infinite or not a number.

    Introduced in "The uniform interval".

    >>> apart = torch.eye(10, dtype=torch.float64)  # ten intervals of length 1, density 0.1
    >>> round(information_on_the_digit(0.1 * apart, Grid((0.5,), (9.5,), 1.0)), 4)
    2.3026
    """
    density = rows(density, "density", grid.shape[0]).double()
    width = grid.cell_volume
    entropy_of_codes = torch.special.entr(density.sum(0)).sum() * width
    entropy_of_digits = torch.special.entr(density.sum(1) * width).sum()
    joint_entropy = torch.special.entr(density).sum() * width
    return (entropy_of_codes + entropy_of_digits - joint_entropy).item()


@torch.no_grad()
def decoded_digits(
    vae: VAE, classifier: nn.Module, positions: Float[Tensor, " positions"]
) -> Int[Tensor, " positions"]:
    """Return a classifier's digits of the decoder's means at positions in (0, 1).

    Args:
        vae: A model with one latent dimension.
        classifier: Maps ``(images, 784)`` to ``(images, 10)`` logits.
        positions: Values of the prior's distribution function.

    Raises:
        ShapeError: The positions are no vector.
        NonFiniteError: A position is infinite or not a number.

    Introduced in "The uniform interval".
    """
    positions = vector(positions, "positions", keep_device=True)
    codes = cast("Independent", vae.prior).base_dist.icdf(positions[:, None])
    pictures = vae.likelihood(codes.float()).mean
    return predict_proba(classifier, pictures).argmax(1)
