"""The table of measures of a set of codes: each with its error, side and meaning."""

import math
from collections.abc import Callable
from dataclasses import replace
from html import escape

from priormatch.estimate import Estimate

Measure = Estimate | tuple[Estimate, ...] | tuple[float, ...] | float | int | str

MEANINGS = {
    "rate": "average KL of a training posterior from N(0, I), nats",
    "log_examples": "ln N: the information of a code on its example cannot exceed it",
    "active_units": "latent dimensions whose mean varies with the example",
    "matched_units": "those of them within 0.01 nats of N(0, 1), each seen alone",
    "in_sample_kl": "mismatch by the mixture of training posteriors at its own draws, nats",
    "held_out_kl": "mismatch by that mixture at held-out codes, nats",
    "moment_bound": "mismatch of mean and covariance alone, nats",
    "density": "the fitted density that the next lines use",
    "density_bound": "mismatch by that density: the ELBO it would gain as prior, nats",
    "dimension_wise_kl": "mismatch of each latent dimension alone, summed, nats",
    "total_correlation": "mismatch that no dimension shows alone, nats",
    "reverse_kl": "KL of N(0, I) from that density, nats",
    "thin_share": "prior draws where codes are ten times thinner than N(0, I)",
    "hole_share": "prior draws where codes are thinner than at 99 % of held-out codes",
    "prior_patch_share": "prior draws inside the 99 % ellipsoid of some training posterior",
    "codes_patch_share": "held-out codes inside one",
    "prior_patch_distance": "median distance of a prior draw to the nearest, in its own scales",
    "codes_patch_distance": "the same of held-out codes",
    "classifier_accuracy": "accuracy of a classifier of codes and prior draws; 0.5 is a match",
    "classifier_auc": "its area under the curve; 0.5 is a match",
    "squared_mmd": "squared maximum mean discrepancy from N(0, I); 0 is a match",
    "mean_square_radius": "mean of |z|²; a match has the number of latent dimensions",
    "radius_distance": "Kolmogorov distance of |z|² from chi-square",
    "sliced_wasserstein": "Wasserstein distance of projections from N(0, 1)",
    "slices_p_value": "Epps-Pulley test of projections (SIGReg); a match has a large p-value",
    "ranks_p_value": "Kolmogorov test of single dimensions; a match has a large p-value",
    "shape_p_value": "Henze-Zirkler test; any Gaussian, matching or not, has a large p-value",
    "elbo": "the model's bound on log P(X) at held-out examples, nats",
    "log_evidence": "the same by importance weights, closer to log P(X), nats",
    "reliable_share": "held-out examples whose importance weights have a Pareto k up to 0.7",
}
"""What each measure says, by its name."""


class Summary(dict[str, Measure]):
    """Measures by name, printed as a table.

    Args:
        measures: Measures by name.
        reasons: Why others are missing, by name.
        prior: What the prior is called.
    """

    def __init__(
        self,
        measures: dict[str, Measure],
        reasons: dict[str, str] | None = None,
        prior: str = "N(0, I)",
    ) -> None:
        super().__init__(measures)
        self.missing = dict(reasons or {})
        """Why measures are missing, by name."""
        self.prior = prior

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return name, value with error, side of the bound, and meaning of each printed measure."""
        rows = []
        for name, meaning in MEANINGS.items():
            if name not in self:
                continue
            measure = self[name]
            value, side = f"{measure:.2f}" if isinstance(measure, float) else str(measure), ""
            if name.endswith("_p_value") and isinstance(measure, float):
                value = f"{measure:.2g}"
            if name in self.missing:
                value = "not measured*"
            elif isinstance(measure, Estimate):
                value = str(replace(measure, note="")) + ("*" if measure.note else "")
                side = {"lower": "at least", "upper": "at most", "none": ""}[measure.bound]
                if measure.floor is not None:
                    side += f", never below {measure.floor:.2f}"
            rows.append((name, value, side, meaning.replace("N(0, I)", self.prior)))
        return rows

    @property
    def notes(self) -> dict[str, str]:
        """What the marked measures cannot say, and why, by the name of the measure."""
        said = {
            name: measure.note for name, measure in self.items() if isinstance(measure, Estimate)
        } | self.missing
        return {name: said[name] for name in MEANINGS if said.get(name)}

    def __str__(self) -> str:
        return _table_of_text(self.rows(), self.notes)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return table_of_html(self.rows(), self.notes)


class MeasuresTaken:
    """Measures that are taken one after the other, and the reasons of those that cannot be.

    Args:
        say: Is told what is done next.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.measures: dict[str, Measure] = {}
        self.reasons: dict[str, str] = {}
        self._say = say

    def put(
        self,
        names: tuple[str, ...],
        take: Callable[[], tuple[Measure, ...]],
        unless: str = "",
        saying: str = "",
    ) -> None:
        """Take measures, or keep why the codes do not allow them.

        Args:
            names: Names of the measures.
            take: Returns them, or raises an error.
            unless: Reason for not even trying; empty without one.
            saying: What is said before.
        """
        if unless:
            self._miss(names, unless)
            return
        if saying:
            self._say(saying)
        try:
            found = take()
        # What the package refuses is a ValueError. Linear algebra and memory fail otherwise.
        except (ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
            self._miss(names, str(error) or type(error).__name__)
        else:
            self.measures.update(zip(names, found, strict=True))

    def _miss(self, names: tuple[str, ...], reason: str) -> None:
        for name in names:
            self.reasons[name] = reason
            self.measures[name] = Estimate(math.nan, math.nan, note=reason)
            if name.endswith(("_p_value", "_units")) or name == "log_examples":
                self.measures[name] = math.nan
            if name.endswith("_of_dimensions"):
                self.measures[name] = ()


def _table_of_text(rows: list[tuple[str, str, str, str]], notes: dict[str, str]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines + [f"* {name}: {note}" for name, note in notes.items()])


def table_of_html(rows: list[tuple[str, str, str, str]], notes: dict[str, str]) -> str:
    """Return rows of a summary as an HTML table, with a list of notes under it."""
    body = "".join(
        f'<tr><th scope="row"><code>{escape(name)}</code></th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    head = "".join(
        f'<th scope="col">{cell}</th>' for cell in ("Measure", "Value", "Side", "Meaning")
    )
    listed = "".join(
        f"<li><code>{escape(name)}</code>: {escape(note)}</li>" for name, note in notes.items()
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return table + (f"<ul>{listed}</ul>" if notes else "")
