"""The report of an audit: in a terminal, in a notebook, and as a page of its own."""

import json
import math
import textwrap
from dataclasses import asdict
from functools import cached_property
from html import escape
from typing import Any

from torch.distributions import Distribution

from priormatch.advice import Advice
from priormatch.estimate import Estimate
from priormatch.measurement import Measured
from priormatch.report_figures import ReportFigure, figure_of_html, report_figures
from priormatch.summaries import Measure, Summary, table_of_html

# Columns of a terminal, and the numbers of an estimate.
_WIDTH, _NUMERIC = 88, ("value", "standard_error", "floor")

_CSS = """
.priormatch { font: 1rem/1.5 system-ui, sans-serif; max-width: 70rem; overflow-wrap: anywhere; }
.priormatch .verdict { font-size: 1.2rem; font-weight: 600; margin: 0.5em 0; }
.priormatch .part { font-size: 1.1rem; font-weight: 600; margin: 1.5em 0 0.4em; }
.priormatch .of { opacity: 0.85; margin: 0.3em 0; }
.priormatch table { border-collapse: collapse; width: 100%; font-size: 0.9rem; margin: 0; }
.priormatch th, .priormatch td { text-align: left; vertical-align: top;
  padding: 0.3em 0.8em 0.3em 0;
  border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent); font-weight: 400; }
.priormatch thead th { font-weight: 600; }
.priormatch td:nth-child(2) { white-space: nowrap; font-variant-numeric: tabular-nums; }
.priormatch code { font-size: 0.9em; background: none; color: inherit; padding: 0; border: 0; }
.priormatch ul { padding-left: 1.2em; margin: 0.4em 0; }
.priormatch li { margin: 0.3em 0; }
.priormatch .figures { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.priormatch figure { margin: 0; }
.priormatch svg { width: 100%; height: auto; }
.priormatch figcaption { font-size: 0.9rem; }
@media (max-width: 40rem) {
  .priormatch thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px;
    overflow: hidden; }
  .priormatch tr { display: block; padding: 0.4em 0;
    border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
  .priormatch tbody th, .priormatch td { display: inline; border: 0; padding: 0 0.5em 0 0; }
  .priormatch tbody th, .priormatch td:last-child { display: block; }
}
"""


class Report:
    """Measures of codes, what they cannot say, and advice: see `audit`.

    It prints the verdict first. In a notebook it shows the same with figures, and `html` returns
    that as a page of its own.
    """

    summary: Summary
    """Measures by name; ``report["density_bound"]`` is one of them."""

    advice: tuple[Advice, ...]
    """Advice in plain words, the verdict first."""

    measured: Measured
    """What the measures were made from: codes, draws, and the fitted density."""

    settings: dict[str, Any]
    """What was measured: numbers of codes, prior, draws and seed."""

    def __init__(
        self, measured: Measured, advice: tuple[Advice, ...], settings: dict[str, Any]
    ) -> None:
        self.summary = measured.summary
        self.advice = advice
        self.measured = measured
        self.settings = settings

    def __getitem__(self, name: str) -> Measure:
        """Return a measure by its name."""
        return self.summary[name]

    @property
    def missing(self) -> dict[str, str]:
        """Why measures are missing, by name."""
        unprinted = ("_validation", "_of_dimensions")
        return {
            name: why for name, why in self.summary.missing.items() if not name.endswith(unprinted)
        }

    @property
    def verdict(self) -> str:
        """The first sentence of the report."""
        return self.advice[0].text

    @property
    def density(self) -> Distribution | None:
        """The fitted density, which can be sampled in place of the prior; in units of the prior."""
        return self.measured.fitted.density if self.measured.fitted else None

    @cached_property
    def figures(self) -> list[ReportFigure]:
        """Figures that codes and prior allow: seams, single dimensions, holes and radius."""
        return report_figures(self.measured)

    def __str__(self) -> str:
        parts = [_wrapped(self.verdict), self._of_what(), str(self._table())]
        unsaid = self._unsaid()
        if unsaid:
            lines = [_wrapped(f"{', '.join(names)}: {why}", "- ") for why, names in unsaid.items()]
            parts.append("\n".join(["What cannot be said", *lines]))
        lines = [_wrapped(one.text, "- ") for one in self.advice[1:]]
        parts.append("\n".join(["Advice", *lines]))
        return "\n\n".join(parts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<style>{_CSS}</style>{self._body('p')}"

    def html(self, title: str = "Audit of codes") -> str:
        """Return the report as a page of its own, which asks no host for anything.

        Args:
            title: Title of the page.
        """
        name = escape(title)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            # An empty icon, for which a browser would ask.
            '<link rel="icon" href="data:,">\n'
            f"<title>{name}</title>\n<style>\n:root {{ color-scheme: light dark; }}\n"
            "body { margin: 0; padding: 1.5rem clamp(1rem, 4vw, 3rem); background: Canvas; "
            f"color: CanvasText; }}\n{_CSS}</style>\n</head>\n<body>\n<main>\n<h1>{name}</h1>\n"
            f"{self._body('h2')}\n</main>\n</body>\n</html>\n"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the report in plain types, as JSON has them; what is not finite becomes None."""
        return json.loads(
            json.dumps(
                {
                    "verdict": {"kind": self.advice[0].kind, "text": self.verdict},
                    "settings": self.settings,
                    "measures": {name: _plain(one) for name, one in self.summary.items()},
                    "missing": self.missing,
                    "advice": [_plain_advice(one) for one in self.advice[1:]],
                }
            )
        )

    def _table(self) -> Summary:
        """Return the measures that were taken."""
        kept = {name: one for name, one in self.summary.items() if name not in self.missing}
        return Summary(kept, prior=self.summary.prior)

    def _unsaid(self) -> dict[str, list[str]]:
        """Return the measures that are missing, by the reason."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.missing.items():
            reasons.setdefault(reason, []).append(name)
        return reasons

    def _of_what(self) -> str:
        told = self.settings
        return (
            f"{told['train']:,} training and {told['held_out']:,} held-out codes of "
            f"{told['latent']} latent dimensions, against {told['prior']}; seed {told['seed']}"
        )

    def _body(self, heading: str) -> str:
        def part(title: str, content: str) -> str:
            return f'<{heading} class="part">{title}</{heading}>{content}'

        def listed(items: list[str]) -> str:
            return f"<ul>{''.join(f'<li>{one}</li>' for one in items)}</ul>"

        table = self._table()
        unsaid = [
            f"{', '.join(f'<code>{escape(one)}</code>' for one in names)}: {escape(why)}"
            for why, names in self._unsaid().items()
        ]
        figures = "".join(figure_of_html(one) for one in self.figures)
        return (
            f'<div class="priormatch"><p class="verdict">{escape(self.verdict)}</p>'
            f'<p class="of">{escape(self._of_what())}</p>'
            + part("Advice", listed([escape(one.text) for one in self.advice[1:]]))
            + part("Figures", f'<div class="figures">{figures}</div>')
            + part("Measures", table_of_html(table.rows(), table.notes))
            + (part("What cannot be said", listed(unsaid)) if unsaid else "")
            + "</div>"
        )


def _wrapped(text: str, bullet: str = "") -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=bullet, subsequent_indent=" " * len(bullet))


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _plain(measure: Measure) -> Any:
    """Return a measure in types that JSON has."""
    if isinstance(measure, Estimate):
        numbers = {name: _number(one) for name, one in asdict(measure).items() if name in _NUMERIC}
        return {**numbers, "bound": measure.bound, "note": measure.note}
    if isinstance(measure, tuple):
        return [_plain(one) for one in measure]
    return _number(measure) if isinstance(measure, float) else measure


def _plain_advice(one: Advice) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "text": one.text,
        "nats": None if one.nats is None else _plain(one.nats),
        "dimensions": [*one.dimensions],
        "value": _number(one.value),
    }
