"""Sphinx extension: a marked number links to the row of its result, and shows a card.

`typed_numbers` says what a mark is. Here the number before it becomes a link to the row of the
result in the table of its notebook, titled with value and error, the trainings, and what the number
means. ``numbers.js`` shows these words on a card; without it the link is plain.
"""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from baselines import results_of
from docutils import nodes
from execution import Book, prepare_data
from sphinx.application import Sphinx
from sphinx.util import logging
from typed_numbers import NAMED, TYPED, chapter_of, scale_of

from priormatch.reporting import Result

logger = logging.getLogger(__name__)

MARK = re.compile(f"<!--{NAMED}-->")
BEFORE_A_MARK = re.compile(rf"{TYPED}\Z")

SEPARATOR = " · "
"""What stands between the lines of a card in the title of a link; ``numbers.js`` knows it too."""
ORIGINS = {
    "closed form": "in closed form",
    "record": "read off a stored training",
    "Monte Carlo": "by Monte Carlo; the error is that of the draws",
    "trained model": "from one training",
    "ordering": "from one run, of which only the order is claimed",
}
"""Where a result without seeds comes from, by its kind."""


@cache
def results(root: Path) -> "Results":
    """Return the results of the book in a folder."""
    return Results(Book(root, prepare_data()))


class Results:
    """The results of all notebooks that have been executed, each read when it is first needed."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.chapters = set(book.chapters)
        self._found: dict[str, dict[str, Result] | None] = {}

    def of(self, chapter: str) -> dict[str, Result] | None:
        """Return the results of a notebook by name; None if it is not there or not executed."""
        if chapter not in self._found:
            executed = self.book.from_cache(chapter) if chapter in self.chapters else None
            self._found[chapter] = executed and {
                name: Result(**fields) for name, fields in results_of(executed.notebook).items()
            }
        return self._found[chapter]


def card(result: Result, scale: int) -> list[str]:
    """Return the lines of a card.

    Args:
        result: The result.
        scale: 100 where the text types a percentage, else 1.
    """
    if scale != 1:
        error = result.standard_error
        error = None if error is None else scale * error
        result = replace(result, value=scale * result.value, standard_error=error, unit="%")
    origin = ORIGINS[result.kind]
    if result.seeds:
        origin = f"mean over {result.seeds} trainings" if result.seeds > 1 else "one training"
    value = re.sub("^-", "\N{MINUS SIGN}", str(result))
    return [line for line in (value, origin, result.meaning) if line]


def find_number(mark: nodes.Node) -> tuple[int, re.Match[str]] | None:
    """Find the number before a mark.

    Returns:
        The place among the mark's siblings of the one that the number begins in, and the match in
        the text from there to the mark; None if there is no number.
    """
    text = ""
    for place in range(mark.parent.index(mark) - 1, -1, -1):
        text = mark.parent[place].astext() + text
        if found := BEFORE_A_MARK.search(text):
            return place, found
    return None


def end_of_number(found: re.Match[str], unit: str) -> int:
    """Return where a typed number ends: behind its unit, if that stands right after the number."""
    units = rf"\s?(?:\\?%|{re.escape(unit)}\b)" if unit else r"\s?\\?%"
    following = re.match(units, found["unit"])
    return found.start("unit") + (following.end() if following else 0)


def put_into(link: nodes.reference, place: int, around: nodes.Element, span: slice) -> None:
    """Put the number that begins in a child of a node into a link.

    Args:
        link: The link, yet empty.
        place: The place of the child.
        around: The node.
        span: Where the number stands, if the child is text; a formula or bold text goes in whole.
    """
    child = around[place]
    if not isinstance(child, nodes.Text):
        around[place] = link
        link += child
        return
    text = child.astext()
    link += nodes.Text(text[span])
    parts = [nodes.Text(text[: span.start]), link, nodes.Text(text[span.stop :])]
    around[place : place + 1] = [part for part in parts if part.astext()]


def link_to_rows(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Turn the marked numbers of a page into links, and remove their marks."""
    for mark in list(tree.findall(nodes.raw)):
        named = MARK.fullmatch(mark.astext())
        if named is None:
            continue
        chapter, name = chapter_of(named, page), named["name"]
        known = results(Path(app.srcdir)).of(chapter)
        # A page may be built without the others; the test of typed numbers knows all of them.
        if known is None:
            continue
        number = find_number(mark)
        if number is None:
            logger.warning("no number before %s", mark.astext(), location=mark)
        elif name not in known:
            words = (number[1][0], mark.astext(), chapter, name)
            logger.warning("%s%s: %s has no %s", *words, location=mark)
        elif lies_in_a_link(mark):
            words = (number[1][0], mark.astext())
            logger.warning("%s%s: no link can hold another", *words, location=mark)
        else:
            (place, found), result = number, known[name]
            to_chapter = "" if chapter == page else app.builder.get_relative_uri(page, chapter)
            link = nodes.reference(
                internal=True,
                classes=["number"],
                refuri=f"{to_chapter}#result-{name}",
                reftitle=SEPARATOR.join(card(result, scale_of(found))),
            )
            span = slice(found.start(), end_of_number(found, result.unit))
            put_into(link, place, mark.parent, span)
            mark.parent.remove(mark)


def lies_in_a_link(node: nodes.Node) -> bool:
    """Return whether a node lies in a link."""
    while (node := node.parent) is not None:
        if isinstance(node, nodes.reference):
            return True
    return False


def add_script(
    app: Sphinx, page: str, template: str, context: dict[str, Any], tree: nodes.document | None
) -> None:
    """Load the script on pages with marked numbers or with rows that these lead to."""
    if re.search(r'<a class="[^"]*\bnumber\b|id="result-', context.get("body", "")):
        app.add_js_file("numbers.js")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to Sphinx's events."""
    app.connect("doctree-resolved", link_to_rows)
    app.connect("html-page-context", add_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
