"""Figures of an audit: SVG that a page can hold in its text, readable on light and dark."""

import io
import math
import re
from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from scipy.stats import chi
from torch import Tensor

from priormatch.checks import log_density
from priormatch.distributions import PaddedDensity
from priormatch.estimate import Estimate
from priormatch.measurement import Measured
from priormatch.models import standard_normal
from priormatch.plotting import AGGREGATED, EXACT, POSTERIOR, PRIOR

# A colour that nothing else has: the page's colour of text takes its place.
_TEXT = "#010203"

_STYLE: Any = {
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
}

_SILENT, _MATCHED = "0.6", EXACT

# Log density in the plane below which nothing is drawn: N(0, I) has 0.0001 of its mass there.
_FAINTEST = math.log(1e-4 / (2 * math.pi))

# Cells of the map along each axis, its half width, and posteriors that it is made of.
_CELLS, _HALF, _POSTERIORS = 81, 4.0, 20_000

# Most latent dimensions that get a bar of their own.
_BARS = 64


class ReportFigure(NamedTuple):
    """A figure of a report.

    Attributes:
        name: ``"seams"``, ``"dimensions"``, ``"holes"`` or ``"radius"``.
        svg: The picture, as an element of a page.
        alt: What it shows, for those who do not see it.
        caption: What to look for.
    """

    name: str
    svg: str
    alt: str
    caption: str


def report_figures(measured: Measured) -> list[ReportFigure]:
    """Draw those figures that the codes and the prior allow.

    Introduced in "Audit your own VAE".
    """
    drawn = (seams(measured), dimensions(measured), holes(measured), radius(measured))
    return [one for one in drawn if one is not None]


def seams(measured: Measured) -> ReportFigure | None:
    """Map where two latent dimensions have more codes than the prior, and where fewer."""
    latent = measured.train.latent
    if latent < 2 or not (measured.prior.is_standard or latent == 2):
        return None
    first, second = _most_telling(measured)
    generator = torch.Generator().manual_seed(0)
    some = measured.train.at_most(_POSTERIORS, generator)
    plane = some.kernel(2).marginal(first, second)
    law = standard_normal(2) if measured.prior.is_standard else measured.prior.law
    centre, half = _window(measured, first, second)
    axes = [torch.linspace(one - half, one + half, _CELLS) for one in centre]
    nodes = torch.cartesian_prod(*axes)
    of_codes, of_prior = log_density(plane, nodes), log_density(law, nodes, "the prior")
    # Where neither has mass worth a look, the ratio is that of two tails.
    seen = torch.maximum(of_codes, of_prior) > _FAINTEST
    ratio = (of_codes - of_prior).clamp(-3, 3).where(seen, torch.tensor(math.nan))
    thin = float((ratio[seen] < -1).double().mean())

    def paint(ax: Axes) -> None:
        mesh = ax.pcolormesh(
            axes[0].numpy(),
            axes[1].numpy(),
            ratio.reshape(_CELLS, _CELLS).T.numpy(),
            cmap="RdBu",
            norm=TwoSlopeNorm(0.0, -3.0, 3.0),
            rasterized=True,
        )
        if measured.prior.is_standard:
            turn = np.linspace(0, 2 * math.pi, 200)
            for mass in (0.5, 0.9, 0.99):
                size = math.sqrt(-2 * math.log1p(-mass))
                ax.plot(size * np.cos(turn), size * np.sin(turn), color="0.35", linewidth=0.9)
        ax.set(xlabel=f"latent dimension {first}", ylabel=f"latent dimension {second}")
        (left, right), (low, high) = (one[[0, -1]].tolist() for one in axes)
        ax.set(xlim=(left, right), ylim=(low, high))
        ax.set_aspect("equal")
        bar = ax.figure.colorbar(mesh, ax=ax, shrink=0.8)
        bar.set_label("ln q − ln p, nats")
        bar.outline.set_visible(False)

    pair = f"latent dimensions {first} and {second}"
    chosen = "" if latent == 2 else ", the two that tell most of the example"
    circles = " Circles hold 50, 90 and 99 % of it." if measured.prior.is_standard else ""
    return ReportFigure(
        "seams",
        _svg(paint, "seams", 3.6),
        f"Map of {pair}: red where codes are rarer than under {measured.prior.name}, blue where "
        f"more frequent. In {100 * thin:.0f} % of the map they are rarer by a factor of e.",
        f"Seams in {pair}{chosen}. A draw of {measured.prior.name} in a red place has few codes "
        f"near it.{circles}",
    )


def dimensions(measured: Measured) -> ReportFigure | None:
    """Draw the KL of each latent dimension alone, and whether it is active, matched or silent."""
    alone = measured.summary["kl_of_dimensions"]
    if not isinstance(alone, tuple) or not alone:
        return None
    found = [one for one in alone if isinstance(one, Estimate)]
    values = np.array([one.value for one in found])
    errors = np.array([one.standard_error for one in found])
    near = np.abs(values) < 0.01
    colours = np.where(near, _MATCHED, AGGREGATED).astype(object)
    colours[measured.silent] = _SILENT
    order = np.argsort(-values)
    many = len(order) > _BARS
    labels = {AGGREGATED: "active", _MATCHED: "active and matched", _SILENT: "silent"}

    def paint(ax: Axes) -> None:
        places = np.arange(len(order))
        for colour, label in labels.items():
            mine = colours[order] == colour
            if not mine.any():
                continue
            ax.bar(
                places[mine],
                values[order][mine],
                width=1.0 if many else 0.8,
                color=colour,
                label=label,
                yerr=None if many else 2 * errors[order][mine],
                error_kw={"ecolor": _TEXT, "elinewidth": 0.8},
            )
        ax.axhline(0.0, color=_TEXT, linewidth=0.8)
        ax.axhline(0.01, color=PRIOR, linewidth=0.8, linestyle=":")
        if len(order) <= 24:
            ax.set_xticks(places, [str(j) for j in order])
            ax.set_xlabel("latent dimension")
        else:
            ax.set_xlabel("latent dimensions, the worst first")
        ax.set_ylabel("KL from N(0, 1), nats")
        ax.legend(loc="upper right")

    counts = ", ".join(f"{int((colours == one).sum())} {name}" for one, name in labels.items())
    return ReportFigure(
        "dimensions",
        _svg(paint, "dimensions"),
        f"Bars of the mismatch of each latent dimension alone: {counts}. The largest is "
        f"{values.max():.2g} nats, in dimension {int(order[0])}.",
        f"Each latent dimension alone: {counts}. A dimension counts as matched below 0.01 nats, "
        "the dotted line. What dimensions do together does not show here.",
    )


def holes(measured: Measured) -> ReportFigure | None:
    """Draw the log density of held-out codes and of prior draws under the fitted density."""
    if measured.fitted is None or "hole_share" in measured.summary.missing:
        return None
    density, places = measured.fitted.density, [*range(measured.train.latent)]
    if isinstance(density, PaddedDensity):
        places, density = density.dimensions, density.density
    of_codes = log_density(density, measured.unseen[:, places]).numpy()
    of_prior = log_density(density, measured.prior_draws[:, places]).clamp(min=-1e9).numpy()
    threshold, share = float(np.quantile(of_codes, 0.01)), measured.summary["hole_share"]
    low = min(threshold, float(np.quantile(of_prior, 0.02)))
    high = float(max(of_codes.max(), of_prior.max()))
    low = max(low, high - 10 * max(1.0, high - float(np.quantile(of_codes, 0.5))))
    edges = np.linspace(low - 0.05 * (high - low), high, 60).tolist()

    def paint(ax: Axes) -> None:
        bars, law = (
            {"x": np.clip(values, edges[0], None), "weights": np.full(len(values), 1 / len(values))}
            for values in (of_codes, of_prior)
        )
        ax.hist(**bars, bins=edges, color=AGGREGATED, alpha=0.8, label="held-out codes")
        label = f"draws of {measured.prior.name}"
        ax.hist(**law, bins=edges, histtype="step", color=PRIOR, linewidth=1.6, label=label)
        ax.axvline(threshold, color=POSTERIOR, linewidth=1.5, label="99 % of codes lie above")
        ax.set(xlabel="ln r(z), nats", ylabel="share")
        ax.legend(loc="upper left", fontsize=9)

    said = f"{100 * share.value:.1f} %" if isinstance(share, Estimate) else ""
    return ReportFigure(
        "holes",
        _svg(paint, "holes"),
        f"Two histograms of the log density of the {measured.fitted.name}: at held-out codes, and "
        f"at draws of {measured.prior.name}, of which {said} lie below a line that 99 % of the "
        "codes exceed.",
        f"Holes: {said} of the draws of {measured.prior.name} fall where the {measured.fitted.name}"
        " is thinner than at 99 % of the codes. A match has 1 %. The first bar holds all below it.",
    )


def radius(measured: Measured) -> ReportFigure | None:
    """Draw the distance of held-out codes from the origin, beside its law under N(0, I)."""
    if not measured.prior.is_standard:
        return None
    codes, latent = measured.unseen.double(), measured.train.latent
    radii = codes.square().sum(1).sqrt().numpy()
    law = chi(latent)
    grid = np.linspace(
        min(law.ppf(1e-4), radii.min()), max(law.ppf(1 - 1e-4), np.quantile(radii, 0.999)), 300
    )

    def paint(ax: Axes) -> None:
        edges = np.linspace(grid[0], grid[-1], 50).tolist()
        weights = np.full(len(radii), 1 / len(radii) / (edges[1] - edges[0]))
        ax.hist(radii, edges, weights=weights, color=AGGREGATED, alpha=0.8, label="held-out codes")
        ax.plot(grid, law.pdf(grid), color=PRIOR, linewidth=2, label=measured.prior.name)
        ax.set(xlabel="|z|", ylabel="density")
        ax.legend(loc="upper right", fontsize=9)

    return ReportFigure(
        "radius",
        _svg(paint, "radius"),
        f"Histogram of the distance of codes from the origin: its median is {np.median(radii):.3g},"
        f" where {measured.prior.name} has {law.median():.3g}.",
        f"Distance from the origin. Its median is {np.median(radii):.3g}, and {law.median():.3g} "
        "under the prior. A shell of the right thickness passes, so this is no verdict.",
    )


def _most_telling(measured: Measured) -> tuple[int, int]:
    """Return the two latent dimensions whose codes vary most with the example."""
    mixture = measured.train.mixture
    if mixture is None:
        alone = measured.summary["kl_of_dimensions"]
        kl = [one.value for one in alone if isinstance(one, Estimate)] if alone else []  # type: ignore[union-attr]
        order = torch.tensor(kl or [0.0] * measured.train.latent).argsort(descending=True)
    else:
        told = mixture.means.double().var(0) / mixture.scales.double().square().mean(0)
        order = told.argsort(descending=True)
    first, second = sorted(order[:2].tolist())
    return first, second


def _window(measured: Measured, first: int, second: int) -> tuple[Float[Tensor, " two"], float]:
    """Return centre and half width of a square that has nearly all codes and prior draws in it."""
    pair = [first, second]
    if measured.prior.is_standard:
        codes = measured.unseen[:, pair].double()
        wide = float(codes.abs().flatten().quantile(0.99)) if codes.numel() < 1e7 else _HALF
        return torch.zeros(2), max(_HALF, min(4 * _HALF, 1.2 * wide))
    both = torch.cat([measured.unseen[:, pair], measured.prior_draws[:, pair]]).double()
    low, high = (both.quantile(level, 0) for level in (0.005, 0.995))
    return ((low + high) / 2).float(), float((high - low).amax() / 2)


def _svg(paint: Callable[[Axes], None], name: str, height: float = 2.9) -> str:
    """Return a picture as an SVG element, with text in the page's colour and names of its own."""
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(4.2, height))
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        ax = figure.add_subplot()
        ax.patch.set_visible(False)
        paint(ax)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(_TEXT, "currentColor")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    return re.sub(r'^<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', svg)


def figure_of_html(figure: ReportFigure) -> str:
    """Return a figure as an element of a page."""
    svg = figure.svg.replace(
        "<svg ", f'<svg role="img" aria-label="{escape(figure.alt, quote=True)}" ', 1
    )
    return f"<figure>{svg}<figcaption>{escape(figure.caption)}</figcaption></figure>"
