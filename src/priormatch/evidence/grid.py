"""The nodes of a quadrature, equally spaced on an interval or on a rectangle."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


class GridError(ValueError):
    """A grid does not reach as far as the exact posteriors do, or is too coarse for them."""


@dataclass(frozen=True)
class Grid:
    """Equally spaced nodes on an interval, or on a rectangle, of the latent space.

    Attributes:
        lower: Lower limits, of one or two latent dimensions.
        upper: Upper limits; the last node of a dimension is the one nearest to its limit.
        spacing: Distance between neighbouring nodes. The trapezoid rule is all but exact for a
            Gaussian posterior whose scale is no smaller than the spacing.

    Raises:
        ValueError: There are not one or two dimensions, or there are fewer than two nodes along one
            of them.

    Introduced in "The estimators on trial".

    >>> Grid(lower=(-1.0,), upper=(1.0,), spacing=0.5).nodes.squeeze(1).tolist()
    [-1.0, -0.5, 0.0, 0.5, 1.0]
    """

    lower: tuple[float, ...] = (-7.0, -7.0)
    upper: tuple[float, ...] = (7.0, 7.0)
    spacing: float = 0.02

    def __post_init__(self) -> None:
        if len(self.lower) != len(self.upper) or len(self.lower) not in (1, 2):
            raise ValueError(f"quadrature is for one or two latent dimensions, not for {self}")
        if self.spacing <= 0 or min(self.shape) < 2:
            raise ValueError(f"a grid has two nodes or more along each dimension, unlike {self}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of nodes along each latent dimension."""
        limits = zip(self.lower, self.upper, strict=True)
        return tuple(round((upper - lower) / self.spacing) + 1 for lower, upper in limits)

    @property
    def cell_volume(self) -> float:
        """Length or area of the latent space that one node stands for."""
        return self.spacing ** len(self.shape)

    @property
    def nodes(self) -> Float[Tensor, "nodes latent"]:
        """All nodes; the last latent dimension runs fastest, so that they reshape to `shape`."""
        return self.nodes_at(product(*(torch.arange(count) for count in self.shape)))

    def nodes_at(self, steps: Int[Tensor, "some latent"]) -> Float[Tensor, "some latent"]:
        """Return the nodes at so many steps from the lower limits, in double precision."""
        return torch.tensor(self.lower, dtype=torch.float64) + self.spacing * steps.double()

    def positions_at(self, steps: Int[Tensor, "some latent"]) -> Int[Tensor, " some"]:
        """Return the indices in `nodes` of the nodes at so many steps from the lower limits."""
        strides = [math.prod(self.shape[later:]) for later in range(1, len(self.shape) + 1)]
        return (steps * torch.tensor(strides)).sum(1)


def product(*axes: Shaped[Tensor, " _"]) -> Shaped[Tensor, "nodes axes"]:
    """Return the Cartesian product of some axes; the last axis runs fastest."""
    return torch.cartesian_prod(*axes).reshape(-1, len(axes))
