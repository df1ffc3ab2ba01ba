"""Still pictures of the explorers, which a page shows before, or without, JavaScript."""

import io
import math
from typing import Any

import matplotlib.pyplot as plt
import torch
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor
from torch.distributions import Normal

from priormatch import plotting
from priormatch.divergences import kl_from_prior_per_dimension
from priormatch.estimate import Estimate
from priormatch.explorers import intervals, patches
from priormatch.explorers.patches import Change
from priormatch.plotting import POSTERIOR


def png(figure: Figure) -> bytes:
    """Return a figure as a small PNG, and close it."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    plt.close(figure)
    # 64 colours are enough here, and take a third of the bytes.
    Image.open(drawn).convert("RGB").quantize(64).save(small, format="png", optimize=True)
    return small.getvalue()


def kl(mean: float, scale: float) -> bytes:
    """Draw the densities of prior and posterior, and the KL over mean and scale with its pull."""
    with plt.rc_context():
        plotting.use_style()
        figure, (densities, parameters) = plt.subplots(1, 2, figsize=(6.4, 2.9))
        x = torch.linspace(-4.5, 4.5, 901)
        names = {"prior p": (0.0, 1.0, plotting.PRIOR), "posterior Q": (mean, scale, POSTERIOR)}
        for name, (centre, width, colour) in names.items():
            density = Normal(centre, width).log_prob(x).exp()
            densities.plot(x, density, color=colour, label=name)
        densities.set(xlabel="z", ylabel="density")
        densities.legend(loc="upper left")
        log_scale, means = torch.meshgrid(
            torch.linspace(-3, 1.1, 100), torch.linspace(-3, 3, 100), indexing="ij"
        )
        values = kl_from_prior_per_dimension(means, 2 * log_scale)
        levels = [0.5, 1, 2, 3, 4, 6]
        lines = parameters.contour(means, log_scale, values, levels, colors="0.6", linewidths=0.9)
        parameters.clabel(lines, fmt="%g", fontsize=8, colors="0.25")
        parameters.plot(0, 0, "o", color=plotting.PRIOR)
        here = (mean, math.log(scale))
        there = (mean / 2, math.log(scale) + (1 - scale**2) / 2)
        parameters.annotate("", there, here, arrowprops={"arrowstyle": "->", "color": POSTERIOR})
        parameters.plot(*here, "o", color=POSTERIOR)
        ticks = [0.1, 0.3, 1, 3]
        parameters.set_yticks([math.log(tick) for tick in ticks], list(map(str, ticks)))
        parameters.set(xlabel="mean µ", ylabel="scale σ")
        return png(figure)


def quilt(
    log_ratio: Float[Tensor, "nodes nodes"],
    axis: Float[Tensor, " nodes"],
    z: tuple[float, ...],
    pictures: dict[str, Float[Tensor, " pixels"]],
    against_prior: bool = False,
) -> bytes:
    """Draw the quilt's density, or its ratio to the prior's, a mark at z, and pictures."""
    with plt.rc_context():
        plotting.use_style()
        figure = plt.figure(figsize=(6.4, 3.9))
        names = [*pictures]
        layout: list[Any] = [["plane", name] for name in names]
        axes = figure.subplot_mosaic(layout, width_ratios=[3, 1])
        coarse, values = axis[::2], log_ratio[::2, ::2]
        colours: dict[str, Any] = {"cmap": "RdBu", "clim": (-3, 3)}
        if not against_prior:
            squares = coarse[:, None] ** 2 + coarse**2
            values = values - 0.5 * squares - math.log(2 * math.pi)
            colours = {"cmap": "viridis", "clim": (-8, -1)}
        axes["plane"].pcolormesh(coarse.numpy(), coarse.numpy(), values.T.numpy(), **colours)
        plotting.prior_circles(plotting.latent_plane(axes["plane"]))
        for colour, width in (("black", 4), ("white", 2)):
            axes["plane"].plot(*z, "o", ms=9, mfc="none", mec=colour, mew=width)
        for name in names:
            plotting.images_in_grid(axes[name], pictures[name][None], columns=1)
            axes[name].set_xlabel(name, fontsize="small")
        return png(figure)


def twenty(
    log_ratio: Float[Tensor, "nodes nodes"],
    axis: Float[Tensor, " nodes"],
    codes: list[Float[Tensor, "draws 2"]],
    pictures: list[Float[Tensor, "draws pixels"]],
    in_seams: list[Bool[Tensor, " draws"]],
) -> bytes:
    """Draw two lots of codes on the map of seams, and between their decoded pictures."""
    with plt.rc_context():
        plotting.use_style()
        figure, (left, plane, right) = plt.subplots(
            1, 3, figsize=(6.2, 2.6), width_ratios=[4, 5.2, 4]
        )
        x, values = axis[::5].numpy(), log_ratio[::5, ::5].T.numpy()
        plane.pcolormesh(x, x, values, cmap="RdBu", clim=(-3, 3))
        plotting.prior_circles(plotting.latent_plane(plane))
        plane.scatter(*codes[0].T, s=20, facecolors="none", edgecolors="black", linewidths=1.4)
        plane.scatter(*codes[1].T, s=14, color="black", edgecolors="white", linewidths=0.8)
        for ax, digits, thin in zip((left, right), pictures, in_seams, strict=True):
            plotting.images_in_grid(ax, digits, columns=4)
            for i in thin.nonzero().flatten().tolist():
                corner = (28 * (i % 4) - 0.5, 28 * (i // 4) - 0.5)
                ax.add_patch(Rectangle(corner, 28, 28, fill=False, color="#b1182b", linewidth=2))
        left.set_xlabel("draws of N(0, I)")
        right.set_xlabel("draws of the quilt")
        return png(figure)


def squeeze(
    scales: Float[Tensor, " scales"],
    kl: Float[Tensor, " scales"],
    distortion: Float[Tensor, " scales"],
    pictures: Float[Tensor, "columns draws pixels"],
) -> bytes:
    """Draw both prices over the scale, and pictures of draws at evenly spaced scales above them."""
    with plt.rc_context():
        plotting.use_style()
        figure, prices = plt.subplots(figsize=(6.4, 4.4))
        across = -scales.log10()
        prices.stackplot(across, kl, distortion, colors=[POSTERIOR, "0.8"])
        prices.set(xlabel="scale σ of the posterior", ylabel="nats", xlim=(0, 2))
        top = prices.get_ylim()[1]
        prices.set(ylim=(0, 2.4 * top), yticks=[0, 100, 200])
        prices.text(0.1, 0.15 * top, "reconstruction", color="0.25")
        line = {"arrowstyle": "-", "color": POSTERIOR}
        end = (1.9, kl[-1].item() / 2)
        prices.annotate("KL", end, (1.75, 0.15 * top), color=POSTERIOR, arrowprops=line)
        ticks = [1, 0.3, 0.1, 0.03, 0.01]
        prices.set_xticks([-math.log10(tick) for tick in ticks], list(map(str, ticks)))
        # Each column of pictures stands over its scale, those at the ends a little inside.
        columns = len(pictures)
        for column, draws in enumerate(pictures):
            left = min(max(column / (columns - 1) - 0.08, 0), 0.84)
            digits = prices.inset_axes((left, 0.46, 0.16, 0.54))
            plotting.images_in_grid(digits, draws, columns=1)
        return png(figure)


def interval(
    density: Float[Tensor, "digits nodes"], z: float, picture: Float[Tensor, " pixels"]
) -> bytes:
    """Draw the density of each digit along the interval, and the decoder's picture at z."""
    with plt.rc_context():
        plotting.use_style()
        figure, (line, digit) = plt.subplots(1, 2, figsize=(6.4, 2.2), width_ratios=[4, 1])
        nodes = torch.arange(1, density.shape[1] + 1) / 100
        line.stackplot(nodes, *density, colors=plotting.DIGITS.colors)
        line.axhline(0.1, color="black", linestyle="--", linewidth=1)
        line.axvline(z, color="black", linewidth=1)
        line.set(xlabel="z", ylabel="density", xlim=(0, 10), ylim=(0, 0.4))
        plotting.images_in_grid(digit, picture[None], columns=1)
        digit.set_xlabel(f"z = {z:.2f}", fontsize="small")
        return png(figure)


def training(history: dict[str, Tensor]) -> bytes:
    """Draw the codes at four of the stored epochs."""
    with plt.rc_context():
        plotting.use_style()
        figure, axes = plt.subplots(1, 4, figsize=(6.4, 2.0), sharey=True)
        epochs, labels = history["epochs"].tolist(), history["labels"].long()
        for ax, step in zip(axes, [0, 2, len(epochs) // 2, len(epochs) - 1], strict=True):
            plotting.codes_by_digit(ax, history["codes"][step].float(), labels)
            ax.get_legend().remove()
            plotting.prior_circles(plotting.latent_plane(ax), masses=[0.99])
            ax.set_title(f"epoch {epochs[step]}")
            ax.label_outer()
        return png(figure)


def dimensions(
    codes: dict[int, Float[Tensor, "examples latent"]],
    labels: Int[Tensor, " examples"],
    bounds: dict[int, Estimate],
) -> bytes:
    """Draw codes in their two most used latent dimensions, with the joint bound of all of them."""
    with plt.rc_context():
        plotting.use_style()
        figure, axes = plt.subplots(1, len(codes), figsize=(6.4, 2.7), squeeze=False, sharey=True)
        for ax, latent in zip(axes[0], codes, strict=True):
            plotting.codes_by_digit(ax, codes[latent][:, :2].float(), labels)
            ax.get_legend().remove()
            plotting.prior_circles(plotting.latent_plane(ax))
            ax.set_title(f"d = {latent}: {bounds[latent]} nats", fontsize="small")
            ax.label_outer()
        return png(figure)


def changes(shown: dict[str, Change]) -> bytes:
    """Draw the three patches of a line under several changes of it, pictures and costs below."""
    with plt.rc_context():
        plotting.use_style()
        figure, axes = plt.subplots(
            3, len(shown), figsize=(6.4, 2.9), height_ratios=[4, 2, 2], sharex="row", sharey="row"
        )
        x, z = torch.linspace(-4.5, 4.5, 301), patches.nodes()
        colours = {"mismatch": plotting.AGGREGATED, "information": POSTERIOR}
        for (name, change), (line, digits, bars) in zip(shown.items(), axes.T, strict=True):
            parts = patches.quilt().component_distribution.log_prob(z[:, None]).exp() / 3
            line.plot(x, Normal(0.0, 1.0).log_prob(x).exp(), "--", color=plotting.PRIOR)
            line.plot(change.carried, parts / change.slope[:, None], color=POSTERIOR, linewidth=1)
            line.plot(change.carried, parts.sum(1) / change.slope, color=plotting.AGGREGATED)
            line.set(title=name, xlim=(-4.5, 4.5), yticks=[])
            plotting.images_in_grid(digits, patches.images(), columns=3)
            costs = patches.costs(change)._asdict()
            names = [*costs][::-1]
            colour = [colours.get(each, "0.6") for each in names]
            bars.barh(names, [costs[each] for each in names], color=colour)
            bars.set_xlabel("nats")
        return png(figure)


def ten_intervals(shown: dict[str, tuple[tuple[float, float], ...]]) -> bytes:
    """Draw arrangements of ten intervals, their mixtures and their costs below."""
    with plt.rc_context():
        plotting.use_style()
        figure, axes = plt.subplots(
            3, len(shown), figsize=(6.4, 4.0), height_ratios=[4, 2, 2], sharex="row", sharey="row"
        )
        order = [*range(1, intervals.DIGITS), 0]
        colours = list(plotting.DIGITS(order))
        for (name, pairs), (bars, mixture, costs) in zip(shown.items(), axes.T, strict=True):
            arrangement = torch.tensor(pairs)[order]
            starts, ends = arrangement.T
            bars.barh(list(map(str, order)), ends - starts, left=starts, color=colours)
            bars.set(title=name, xlim=(0, 10))
            edges, density = intervals.cells(arrangement)
            tops = density.cumsum(0)
            for top, part, colour in zip(tops, density, colours, strict=True):
                below = (top - part).numpy()
                mixture.stairs(top, edges, baseline=below, fill=True, color=colour)
            mixture.axhline(0.1, color=plotting.PRIOR, linestyle="--")
            mixture.set(xlim=(0, 10))
            cost = intervals.costs(arrangement)
            costs.barh("rate", cost.rate, color="0.6")
            left = 0.0
            for part, colour in {"information": POSTERIOR, "mismatch": plotting.AGGREGATED}.items():
                nats = getattr(cost, part)
                costs.barh("=", nats, left=left, color=colour)
                if nats > 0.01:
                    costs.text(left + nats + 0.05, 1, part, va="center", fontsize="small")
                left += nats
            costs.set(xlabel="nats", xlim=(0, 3.4))
        axes[2, 0].invert_yaxis()
        axes[0, 0].set_ylabel("digit")
        axes[1, 0].set_ylabel("mixture")
        return png(figure)
