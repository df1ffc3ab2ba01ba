"""Claims and their verdicts, checked against the numbers of trainings.

A claim has five parts. Three of them begin with a mark::

    "You can see it does not match N(0,I)."
    = true: bound > 0.1; bound > 4 * moments
    It is at least {bound} away, of which mean and covariance explain {moments}.
    ~ a training that ends much nearer
    @ 06-more-latent-dimensions.ipynb#measure-all-dimensions-together

The words come first. ``=`` is followed by one of the `VERDICTS` and its condition. The reason has
numbers in braces, as in `str.format`. ``~`` is followed by a finding that would overturn the
verdict, or by ``-``, and ``@`` by a link.

A condition is a list of comparisons, ``a > b > c; d > e``. Each of them must be `clearly` true; if
the verdict is *undecided*, none may be clear in either direction. All numbers of a condition must
stand in the reason.
"""

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from string import Formatter

import pandas as pd

VERDICTS = ("true", "false", "likely", "undecided", "answered", "not a claim")
"""First words of a verdict; all but *not a claim* need a condition."""

_ORDER = {
    "words": "its words",
    "verdict": "its verdict",
    "reason": "its reason",
    "overturned_by": "what would overturn it",
    "link": "its link",
}
_MARKS = {"=": "verdict", "~": "overturned_by", "@": "link"}
_ARITHMETIC = (ast.Constant, ast.BinOp, ast.UnaryOp)
_CHAPTER = re.compile(r"(?:.*/)?(\d\d)-\S+")


class ClaimError(ValueError):
    """A claim that cannot be read, or a number of it that is missing.

    Args:
        words: Words of the claim.
        line: Line of the text, counted from 1.
        problem: Description of the fault.
    """

    def __init__(self, words: str, line: int, problem: str) -> None:
        self.words, self.line, self.problem = " ".join(words.split()), line, problem
        super().__init__(f"line {line}, {self.words[:60]!r}: {problem}")


class ConditionError(ClaimError):
    """The condition of a claim does not hold."""


@dataclass(frozen=True)
class Claim:
    """A sentence and its verdict.

    Attributes:
        words: The sentence, quoted or summarised.
        verdict: One of the `VERDICTS`, with its restriction, if any.
        condition: Comparisons from which the verdict follows; empty if it is not a claim.
        reason: Text with placeholders for the numbers.
        overturned_by: Finding that would change the verdict; ``"-"`` for none.
        link: Page of a chapter, and the heading of the measurement.
        line: Line of the verdict in the text, counted from 1; the reason begins in the next.
    """

    words: str
    verdict: str
    condition: str
    reason: str
    overturned_by: str
    link: str
    line: int

    @property
    def names(self) -> set[str]:
        """Names of the numbers in the condition."""
        return {name for pair in comparisons(self.condition) for name in _names_in(*pair)}


def parse(text: str) -> list[Claim]:
    """Parse a text of claims, one below the other.

    Args:
        text: The claims. Words, reasons and the text after ``~`` may continue on the next line.

    Raises:
        ClaimError: A part is missing or out of order; the verdict is not one of the `VERDICTS`;
            the condition is missing, is no comparison, or has a number that the reason does not
            state; a brace is unbalanced; the link leads to no chapter.

    Introduced in "The verdict".

    >>> [claim] = parse('''
    ... "It matches."
    ... = false: mismatch > 0.1
    ... It is {mismatch} away.
    ... ~ a training that ends nearer
    ... @ 02-the-latent-picture.ipynb
    ... ''')
    >>> claim.verdict, claim.condition, claim.line
    ('false', 'mismatch > 0.1', 3)
    """
    claims: list[Claim] = []
    parts: dict[str, str] = {}
    missing, line_of_verdict, number = "words", 0, 0
    for number, line in enumerate(text.splitlines(), start=1):
        missing = next(part for part in _ORDER if part not in parts)
        mark, _, rest = line.partition(" ")
        if mark in _MARKS and _MARKS[mark] != missing:
            raise ClaimError(parts.get("words", ""), number, f"`{mark}` before {_ORDER[missing]}")
        if mark in _MARKS:
            parts[missing] = rest
            line_of_verdict = number if mark == "=" else line_of_verdict
        elif line.strip():
            part = missing if missing in ("words", "reason") else [*parts][-1]
            parts[part] = f"{parts.get(part, '')} {line}"
        if mark == "@":
            if not _CHAPTER.fullmatch(rest.strip()):
                raise ClaimError(parts["words"], number, f"{rest!r} is no link to a chapter")
            verdict, _, condition = parts.pop("verdict").partition(": ")
            texts = {part: " ".join(said.split()) for part, said in parts.items()}
            claims.append(
                Claim(verdict=verdict, condition=condition, line=line_of_verdict, **texts)
            )
            _check_form(claims[-1])
            parts = {}
    if parts:
        missing = next(part for part in _ORDER if part not in parts)
        raise ClaimError(parts["words"], number, f"the text ends before {_ORDER[missing]}")
    return claims


def comparisons(condition: str) -> list[tuple[str, str]]:
    """Return the pairs of a condition, the larger side first.

    >>> comparisons("a > 2 * b > c; d > 1")
    [('a', '2 * b'), ('2 * b', 'c'), ('d', '1')]
    """
    chains = ([side.strip() for side in chain.split(">")] for chain in condition.split(";"))
    return [pair for sides in chains for pair in pairwise(sides)]


def clearly(more: str, less: str, trainings: pd.DataFrame, errors: float = 3) -> bool:
    r"""Return whether one number exceeds another in all trainings, by many errors on average.

    .. math:: \Delta_s > 0 \text{ for all } s \quad\text{and}\quad
              \bar\Delta > \text{errors} \cdot \hat\sigma / \sqrt n

    Args:
        more: Larger side, an arithmetic expression of columns.
        less: Smaller side, another such expression.
        trainings: A row for each of the n seeds s, and a column for each number.
        errors: Number of standard errors by which the mean difference must exceed zero.

    Introduced in "The verdict".

    >>> clearly("kl", "0.1", pd.DataFrame({"kl": [0.31, 0.28, 0.30]}))
    True
    """
    difference = _difference(more, less, trainings)
    return bool((difference > 0).all() and difference.mean() > errors * difference.sem())


def check(claims: Iterable[Claim], trainings: pd.DataFrame) -> None:
    """Check each condition against the numbers of the trainings.

    Args:
        claims: What `parse` returned.
        trainings: A row for each seed, and a column for each number.

    Raises:
        ClaimError: A number of a condition is missing for some training.
        ConditionError: A comparison is not clear, or is clear for an *undecided* verdict.

    Introduced in "The verdict".
    """
    known = set(trainings.columns[trainings.notna().all()])
    for claim in claims:
        if unknown := claim.names - known:
            problem = f"not every training has {', '.join(sorted(unknown))}"
            raise ClaimError(claim.words, claim.line, problem)
        undecided = claim.verdict.startswith("undecided")
        for more, less in comparisons(claim.condition):
            clear = clearly(more, less, trainings)
            if undecided:
                clear = clear or clearly(less, more, trainings)
            if clear == undecided:
                each = _difference(more, less, trainings).map("{:.3g}".format)
                problem = (
                    f"one side of `{more} > {less}` is clearly more"
                    if undecided
                    else (f"`{more} > {less}` is not clear")
                )
                problem += f": the differences are {', '.join(each)}"
                raise ConditionError(claim.words, claim.line, problem)


def check_leave_one_out(claims: Iterable[Claim], trainings: pd.DataFrame) -> None:
    """Check each condition again without each of the trainings in turn.

    Raises:
        ConditionError: A verdict depends on the training that the message names.

    Introduced in "The verdict".
    """
    claims = [*claims]
    for seed in trainings.index:
        try:
            check(claims, trainings.drop(seed))
        except ConditionError as error:
            problem = f"without training {seed}, {error.problem}"
            raise ConditionError(error.words, error.line, problem) from None


def standard_errors(claims: Iterable[Claim], trainings: pd.DataFrame) -> pd.Series:
    """Return the mean difference of each comparison, in its standard errors.

    Args:
        claims: What `parse` returned.
        trainings: A row for each seed, and a column for each number.

    Returns:
        Numbers of standard errors by comparison, ``"a > b"``. Comparisons with the same
        difference in all trainings are left out.

    Introduced in "The verdict".
    """
    pairs = {pair for claim in claims for pair in comparisons(claim.condition)}
    differences = {" > ".join(pair): _difference(*pair, trainings) for pair in sorted(pairs)}
    return pd.Series({pair: d.mean() / d.sem() for pair, d in differences.items() if d.std() > 0})


def table(claims: Iterable[Claim], results: Mapping[str, object]) -> str:
    """Return claims as a Markdown table, with the placeholders filled in.

    Args:
        claims: What `parse` returned.
        results: Numbers by name, such as a chapter's results.

    Raises:
        ClaimError: A placeholder names no number, or its format does not fit.

    Introduced in "The verdict".
    """
    lines = ["| Claim, and verdict | Number, and what would change the verdict |", "|---|---|"]
    for claim in claims:
        try:
            told = claim.reason.format_map(results)
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            problem = f"{type(error).__name__} {error} in {claim.reason!r}"
            raise ClaimError(claim.words, claim.line + 1, problem) from None
        if claim.overturned_by != "-":
            told += f" *What would change it:* {claim.overturned_by}."
        said = f"{claim.words} **{claim.verdict[0].upper()}{claim.verdict[1:]}.**"
        chapter = _CHAPTER.sub(lambda found: str(int(found[1])), claim.link)
        cells = said, f"{told} [Chapter {chapter}]({claim.link})"
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _check_form(claim: Claim) -> None:
    """Raise `ClaimError` unless verdict, condition and reason are well formed."""
    if not claim.verdict.startswith(VERDICTS):
        raise ClaimError(claim.words, claim.line, f"there is no verdict {claim.verdict!r}")
    if bool(claim.condition) == claim.verdict.startswith("not a claim"):
        problem = "a verdict has a condition, and 'not a claim' has none"
        raise ClaimError(claim.words, claim.line, problem)
    for chain in claim.condition.split(";") if claim.condition else ():
        try:
            fits = ">" in chain and all(_names_in(*pair) for pair in comparisons(chain))
        except SyntaxError:
            fits = False
        if not fits:
            problem = f"{chain.strip()!r} is no comparison `a > b` of numbers by their names"
            raise ClaimError(claim.words, claim.line, problem)
    try:
        told = {re.split(r"[.[]", name or "")[0] for _, name, *_ in Formatter().parse(claim.reason)}
    except ValueError as error:
        raise ClaimError(claim.words, claim.line + 1, f"{error} in {claim.reason!r}") from None
    if hidden := claim.names - told:
        problem = f"the reason does not tell {', '.join(sorted(hidden))} of the condition"
        raise ClaimError(claim.words, claim.line + 1, problem)


def _difference(more: str, less: str, trainings: pd.DataFrame) -> pd.Series:
    return trainings.eval(f"({more}) - ({less})")


def _names_in(*expressions: str) -> set[str]:
    """Return the names in arithmetic expressions, or raise a `SyntaxError`."""
    names = set()
    for expression in expressions:
        for node in ast.walk(ast.parse(expression, mode="eval").body):
            if isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.expr) and not isinstance(node, _ARITHMETIC):
                raise SyntaxError(f"{expression} is more than arithmetic")
    return names
