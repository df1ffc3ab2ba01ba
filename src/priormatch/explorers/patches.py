"""Three patches on a line, and what a change of coordinates does to the costs of their codes.

Three images are equally likely, and each has a Gaussian posterior on a line. The decoder knows the
patches: at a code z it names image n with the probability Q(n|z), so that its mean picture is the
average of the images with these weights. All costs are sums over a grid.
"""

import functools
import math
from typing import Final, NamedTuple

import torch
import traitlets
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from priormatch.explorers import assets
from priormatch.explorers.base import Explorer, in_bytes

MEANS: Final = (-2.0, -0.5, 1.0)
SCALES: Final = (0.4, 0.6, 0.3)
DIGITS: Final = (7, 2, 0)
"""The digits whose first test images lie under the patches, from left to right."""

FIRST: Final = -4.4
"""First node of the grid. Beyond its ends lies less than a millionth of the patches' mass."""

STEP: Final = 0.02
NODES: Final = 346


class Change(NamedTuple):
    """A map of the line to itself, at the nodes.

    Attributes:
        carried: Where it carries each node.
        slope: Its derivative, which is positive.
    """

    carried: Float[Tensor, " nodes"]
    slope: Float[Tensor, " nodes"]


class Costs(NamedTuple):
    """Averages over the three images, in nats; information and mismatch add up to the rate.

    Attributes:
        reconstruction: -E log P(X|z).
        information: I[X; z], which no map changes.
        mismatch: KL of the aggregated posterior from N(0, 1).
    """

    reconstruction: float
    information: float
    mismatch: float


def nodes() -> Float[Tensor, " nodes"]:
    """Return the nodes of the grid, in double precision."""
    return FIRST + STEP * torch.arange(NODES, dtype=torch.float64)


@functools.cache
def quilt() -> MixtureSameFamily:
    """Return the aggregated posterior of the three images, in double precision."""
    means, scales = torch.tensor([MEANS, SCALES], dtype=torch.float64)
    return MixtureSameFamily(Categorical(torch.ones_like(means)), Normal(means, scales))


def log_shares(z: Float[Tensor, " codes"]) -> Float[Tensor, "codes patches"]:
    """Return log Q(n|z), the decoder's log probability of each image at each code."""
    return quilt().component_distribution.log_prob(z[:, None]).log_softmax(1)


def bend(amount: float) -> Change:
    r"""Bend the line part of the way to where the aggregated posterior is N(0, 1).

    .. math:: T_t(z) = (1 - t)\, z + t\, \Phi^{-1}(F_q(z)), \quad
              T_t'(z) = 1 - t + t\, \frac{q(z)}{\varphi(\Phi^{-1}(F_q(z)))}

    Args:
        amount: The part t of the way, from 0 to 1.
    """
    z, prior, patches = nodes(), Normal(0.0, 1.0), quilt().component_distribution
    below = patches.cdf(z[:, None]).mean(1)
    # By symmetry; 1 - below would lose its digits.
    above = patches.cdf(2 * patches.mean - z[:, None]).mean(1)
    bent = torch.where(below < above, prior.icdf(below), -prior.icdf(above))
    slope = (quilt().log_prob(z) - prior.log_prob(bent)).exp()
    return Change((1 - amount) * z + amount * bent, 1 - amount + amount * slope)


def stretch(shift: float, factor: float) -> Change:
    """Stretch the line by a factor, then shift it."""
    z = nodes()
    return Change(factor * z + shift, torch.full_like(z, factor))


def best_stretch() -> Change:
    """Return the stretch and the shift with the least mismatch: to mean 0 and mean square 1."""
    factor = quilt().stddev.reciprocal().item()
    return stretch(-factor * quilt().mean.item(), factor)


def costs(change: Change, lens: bool = True) -> Costs:
    """Return the costs of the codes that a map carries along.

    Args:
        change: The map.
        lens: Whether the decoder undoes the map before it looks at a code.
    """
    z, prior = nodes(), Normal(0.0, 1.0)
    density = quilt().log_prob(z).exp()
    joint = density[:, None] * log_shares(z).exp()  # of image and code
    seen = z if lens else change.carried
    log_ratio = quilt().log_prob(z) - change.slope.log() - prior.log_prob(change.carried)
    entropy = -(joint * log_shares(z)).sum() * STEP
    return Costs(
        reconstruction=-(joint * log_shares(seen)).sum().item() * STEP,
        information=math.log(len(MEANS)) - entropy.item(),
        mismatch=(density * log_ratio).sum().item() * STEP,
    )


@functools.cache
def images() -> Float[Tensor, "3 pixels"]:
    """Return the three images."""
    digits = assets.some_digits()
    first = [(digits.labels == digit).nonzero()[0, 0] for digit in DIGITS]
    return digits.images[torch.stack(first)]


def line() -> dict[str, object]:
    """Return what a page must know of the line: the patches, the images, and the bent nodes."""
    return {
        "means": list(MEANS),
        "scales": list(SCALES),
        "first": FIRST,
        "step": STEP,
        "bent": [round(place, 4) for place in bend(1.0).carried.tolist()],
        "pictures": [in_bytes(image) for image in images()],
    }


class LineExplorer(Explorer):
    """Explorer of the line under the three patches.

    Attributes:
        line: The patches, the images, and the nodes of a grid with their places on the bent line.
    """

    line = traitlets.Dict().tag(sync=True)

    @traitlets.default("line")
    def _the_line(self) -> dict[str, object]:
        return line()
