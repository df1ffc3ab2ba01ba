"""Figures of the book: functions that draw their data, compute nothing, and return the axes."""

from collections.abc import Sequence
from importlib.resources import as_file, files
from typing import Final

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from torch import Tensor

PRIOR: Final = "0.45"
"""The grey of N(0, I), in every figure."""

AGGREGATED: Final = "#0072B2"
"""The blue of the aggregated posterior, in every figure."""

POSTERIOR: Final = "#D55E00"
"""The vermillion of a single posterior Q(z|X), in every figure."""

EXACT: Final = "#009E73"
"""The green of an exact posterior P(z|X), in every figure."""

DIGITS: Final = ListedColormap(
    [
        *("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc"),
        *("#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"),
    ],
    name="digits",
)
"""One colour for each digit, 0 to 9, told apart by colour-blind readers too: seaborn's."""

MASSES: Final = (0.5, 0.9, 0.99)
"""The mass of N(0, I) inside the circles that the figures draw."""


def use_style() -> None:
    """Use the book's style for all figures that follow.

    Introduced in "What the KL term costs, and what it buys".
    """
    with as_file(files("priormatch") / "book.mplstyle") as style:
        plt.style.use(style)


def prior_circles(ax: Axes, masses: Sequence[float] = MASSES) -> Axes:
    r"""Draw the circles around the origin that hold the given mass of N(0, I) in two dimensions.

    The radius is :math:`\sqrt{-2 \ln(1 - \text{mass})}`, because the squared radius is
    exponential with mean 2.

    Args:
        ax: Axes with equal scales.
        masses: Shares of the prior's mass inside each circle.

    Introduced in "The latent picture".
    """
    for mass in masses:
        radius = np.sqrt(-2 * np.log1p(-mass))
        ax.add_patch(plt.Circle((0, 0), radius, fill=False, color=PRIOR, linewidth=1.2, zorder=3))
        ax.annotate(
            f"{mass:.0%}",
            (0, radius),
            ha="center",
            va="center",
            color="0.25",
            fontsize="x-small",
            zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
        )
    return ax


def latent_plane(ax: Axes, limit: float = 4.0) -> Axes:
    """Set equal scales, limits and labels on the axes of two latent dimensions.

    Introduced in "The latent picture".
    """
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="$z_1$", ylabel="$z_2$")
    ax.set_aspect("equal")
    return ax


def codes_by_digit(
    ax: Axes, codes: Float[Tensor, "examples 2"], labels: Int[Tensor, " examples"]
) -> Axes:
    """Scatter codes in the colours of their digits, with a legend.

    Args:
        ax: Axes of the latent plane.
        codes: Draws (or, where the figure says so, means), of shape ``(examples, 2)``.
        labels: Their digits.

    Introduced in "The latent picture".
    """
    shuffled = np.random.default_rng(0).permutation(len(codes))  # no digit lies on top of all
    points = ax.scatter(
        codes[shuffled, 0],
        codes[shuffled, 1],
        c=labels[shuffled],
        cmap=DIGITS,
        vmin=-0.5,
        vmax=9.5,
        s=2,
        linewidths=0,
        rasterized=True,
    )
    handles, _ = points.legend_elements(num=list(range(10)), markersize=6)
    ax.legend(
        handles,
        list(map(str, range(10))),
        title="digit",
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        labelspacing=0.3,
    )
    return ax


def images_in_grid(ax: Axes, images: Float[Tensor, "images 784"], columns: int) -> Axes:
    """Draw images of 28 by 28 pixels row by row on one pair of axes.

    Args:
        ax: Axes; their ticks are removed.
        images: Grey values in [0, 1], of shape ``(images, 784)``; 1 is ink.
        columns: Images in a row; the last row is filled up with white.

    Introduced in "What the KL term costs, and what it buys".
    """
    rows = -(-len(images) // columns)
    canvas = np.zeros((rows * columns, 28, 28), dtype=np.float32)
    canvas[: len(images)] = images.numpy().reshape(-1, 28, 28)
    tiles = canvas.reshape(rows, columns, 28, 28).swapaxes(1, 2)
    ax.imshow(tiles.reshape(rows * 28, columns * 28), cmap="gray_r", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax
