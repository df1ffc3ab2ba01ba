"""Results of a chapter, shown to the reader and passed to the tests.

A chapter fills a dictionary, ``results["average_kl"] = Result(...)`` beside each claim, and ends
with ``table(results)``. The table carries its numbers in the metadata of the output, where the
tests and the site read them from the executed notebook. On a page each row has an anchor,
``result-`` and its name, to which the numbers in the text link.
"""

import math
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, Literal, get_args

from priormatch.estimate import decimals

Kind = Literal["closed form", "record", "Monte Carlo", "trained model", "ordering"]
"""Kind of a result: how far it can differ when it is computed again.

A *closed form* differs by rounding, and so does a *record*, which is read off a stored training. A
*Monte Carlo* estimate on a fixed model differs by its standard error, and a number of a *trained
model* by the spread over seeds. An *ordering* can differ by anything that keeps the inequality.
"""


class MissingStandardError(ValueError):
    """A Monte Carlo result says nothing without a positive standard error."""


class NonFiniteResultError(ValueError):
    """A result or its standard error is infinite or not a number."""


@dataclass(frozen=True)
class Result:
    """A number of a chapter, with its kind, standard error and unit.

    Args:
        value: The number; a share is a fraction, not a percentage.
        kind: How far the number can differ when it is computed again.
        standard_error: Of `value`, in the same unit; needed for Monte Carlo.
        unit: For example ``"nats"``; empty for a pure number.
        seeds: The number of trainings over which `value` is a mean, and `standard_error` its error.
        meaning: What the number says, in a line of plain words.

    Raises:
        NonFiniteResultError: A number is infinite or not a number.
        MissingStandardError: A Monte Carlo result has no positive standard error.
        ValueError: There is no such kind, or no training, or the meaning is more than a line.

    Introduced in "What the KL term costs, and what it buys".

    >>> str(Result(0.11823, "Monte Carlo", standard_error=0.0052, unit="nats"))
    '0.1182 ± 0.0052 nats'
    """

    value: float
    kind: Kind
    standard_error: float | None = None
    unit: str = ""
    seeds: int | None = None
    meaning: str = ""

    def __post_init__(self) -> None:
        # Numbers of NumPy and torch become Python's, which JSON knows.
        object.__setattr__(self, "value", float(self.value))
        if self.standard_error is not None:
            object.__setattr__(self, "standard_error", float(self.standard_error))
        if self.kind not in get_args(Kind):
            raise ValueError(f"There is no kind {self.kind!r}: use one of {get_args(Kind)}.")
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"A mean over {self.seeds} trainings: there must be one at least.")
        if "\n" in self.meaning:
            raise ValueError(f"The meaning {self.meaning!r} is more than a line.")
        if not math.isfinite(self.value) or not math.isfinite(self.standard_error or 0.0):
            raise NonFiniteResultError(
                f"{self.value} with standard error {self.standard_error} is no result: "
                "find where the computation overflows or divides by zero."
            )
        # Not even zero: draws that are all equal have not been drawn.
        if self.kind == "Monte Carlo" and not (self.standard_error and self.standard_error > 0):
            raise MissingStandardError(
                f"A Monte Carlo result needs a positive standard error, not {self.standard_error}: "
                "divide the standard deviation of the draws by the root of their number."
            )

    @property
    def decimals(self) -> int:
        """Decimals worth showing: two digits of the standard error, else five of the value."""
        size, digits = (self.standard_error, 2) if self.standard_error else (abs(self.value), 5)
        return decimals(size, digits) if size else 0

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.{self.decimals}f}"
        return f"{self.value:.{self.decimals}f}{error} {self.unit}".rstrip()


class ResultsTable:
    """Results as a table, in HTML and in plain text, with the numbers in the output's metadata."""

    HEADER = ("Quantity", "Value", "Standard error", "Unit", "Kind", "Trainings", "Meaning")
    OPTIONAL = ("Trainings", "Meaning")

    def __init__(self, results: dict[str, Result]) -> None:
        self.results = dict(results)

    def lines(self) -> list[tuple[str, ...]]:
        """Return the table's cells, line by line: the header, then the rows.

        An optional column is left out where no result has anything in it.
        """
        rows = [
            (
                name,
                f"{result.value:.{result.decimals}f}",
                f"{result.standard_error:.{result.decimals}f}" if result.standard_error else "",
                result.unit,
                result.kind,
                str(result.seeds or ""),
                result.meaning,
            )
            for name, result in self.results.items()
        ]
        shown = [
            i
            for i, column in enumerate(self.HEADER)
            if column not in self.OPTIONAL or any(row[i] for row in rows)
        ]
        return [tuple(line[i] for i in shown) for line in (self.HEADER, *rows)]

    def __repr__(self) -> str:
        lines = self.lines()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def _repr_html_(self) -> str:
        names, *rows = self.lines()
        header = "".join(f'<th scope="col">{cell}</th>' for cell in names)
        body = "".join(
            f'<tr id="result-{escape(name)}"><th scope="row"><code>{escape(name)}</code></th>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            + "</tr>"
            for name, *cells in rows
        )
        return (
            f'<table class="results"><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>'
        )

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> tuple[dict[str, str], dict[str, Any]]:
        numbers = {name: asdict(result) for name, result in self.results.items()}
        bundle = {"text/html": self._repr_html_(), "text/plain": repr(self)}
        return bundle, {"priormatch": {"results": numbers}}


def table(results: dict[str, Result]) -> ResultsTable:
    """Return the closing table of a chapter's results.

    >>> table({"doubled_variance_kl": Result(0.153426, "closed form", unit="nats")})
    Quantity             Value    Standard error  Unit  Kind
    doubled_variance_kl  0.15343                  nats  closed form
    """
    return ResultsTable(results)
