"""A small language for claims, each with a verdict that follows from the numbers of trainings.

A claim has five parts, of which the marked ones begin a line::

    "You can see it does not match N(0,I)."
    = true: bound > 0.1; bound > 4 * moments
    It is at least {bound} away, of which mean and covariance explain {moments}.
    ~ a training that ends much nearer
    @ 06-more-latent-dimensions.ipynb#measure-all-dimensions-together

After the words comes ``=`` with one of the `VERDICTS` and its condition; then the reason, with
numbers in braces, as `str.format` has them; then ``~`` with what would overturn the verdict, or
``-``; then ``@`` with a link. A condition is comparisons, ``a > b > c; d > e``, each of which must
be `clearly` so; of a verdict that is *undecided* none may be. Its numbers stand in the reason.
"""

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from string import Formatter

import pandas as pd

VERDICTS = ("true", "false", "likely", "undecided", "answered", "not a claim")
"""What a verdict begins with; all but *not a claim* have a condition."""

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
    """A claim is not written as the language asks.

    Args:
        words: What is claimed.
        line: Line of the text, counted from 1.
        problem: What is wrong there.
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
        words: What is claimed, quoted or summed up.
        verdict: One of the `VERDICTS`, and what restricts it.
        condition: Comparisons from which the verdict follows; empty if it is not a claim.
        reason: Numbers in words, with placeholders.
        overturned_by: What would change the verdict; ``"-"`` for nothing that could be said.
        link: Page of a chapter, and the heading where it is measured.
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
    """Read claims that stand below each other.

    Args:
        text: The claims; words, reasons and what overturns may go on in the next line.

    Raises:
        ClaimError: A part is missing or out of place; a verdict is none of the `VERDICTS`; a
            condition is missing, or is no comparison, or has a number that the reason does not
            tell; a brace has no partner; a link leads to no chapter.

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
    """Return the pairs of a condition: what should be more, and what less.

    >>> comparisons("a > 2 * b > c; d > 1")
    [('a', '2 * b'), ('2 * b', 'c'), ('d', '1')]
    """
    chains = ([side.strip() for side in chain.split(">")] for chain in condition.split(";"))
    return [pair for sides in chains for pair in pairwise(sides)]


def clearly(more: str, less: str, trainings: pd.DataFrame, errors: float = 3) -> bool:
    r"""Return whether one number is more than another in every training, and by many errors.

    .. math:: \Delta_s > 0 \text{ for all } s \quad\text{and}\quad
              \bar\Delta > \text{errors} \cdot \hat\sigma / \sqrt n

    Args:
        more: Arithmetic of columns.
        less: The same.
        trainings: A row for each of the n seeds s, and a column for each number.
        errors: Standard errors of the differences by which their mean must exceed zero.

    Introduced in "The verdict".

    >>> clearly("kl", "0.1", pd.DataFrame({"kl": [0.31, 0.28, 0.30]}))
    True
    """
    difference = _difference(more, less, trainings)
    return bool((difference > 0).all() and difference.mean() > errors * difference.sem())


def check(claims: Iterable[Claim], trainings: pd.DataFrame) -> None:
    """Hold each condition against the numbers of the trainings.

    Args:
        claims: What `parse` returned.
        trainings: A row for each seed, and a column for each number.

    Raises:
        ClaimError: A condition has a number that not every training has.
        ConditionError: A comparison is not clear; or one is, and the verdict is *undecided*.

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
    """Hold each condition against the numbers again, each time without one of the trainings.

    Raises:
        ConditionError: A verdict hangs on the training that the message names.

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
    """Return how many standard errors the two sides of each comparison are apart.

    Args:
        claims: What `parse` returned.
        trainings: A row for each seed, and a column for each number.

    Returns:
        Standard errors by comparison, ``"a > b"``, without those that are alike in all trainings.

    Introduced in "The verdict".
    """
    pairs = {pair for claim in claims for pair in comparisons(claim.condition)}
    differences = {" > ".join(pair): _difference(*pair, trainings) for pair in sorted(pairs)}
    return pd.Series({pair: d.mean() / d.sem() for pair, d in differences.items() if d.std() > 0})


def table(claims: Iterable[Claim], results: Mapping[str, object]) -> str:
    """Return claims as a Markdown table, with numbers for the placeholders.

    Args:
        claims: What `parse` returned.
        results: Numbers by name, such as a chapter's results.

    Raises:
        ClaimError: A placeholder names no number, or cannot show it.

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
    """Raise an error if a part of a claim is not what its mark promises."""
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
