"""The form of the book: the order of a chapter, its sources, its prose, its pictures.

Each rule is a function from a source to a list of complaints, so that it can be shown a deliberate
fault; one test holds all rules for one page. Tests marked ``sources`` execute nothing and are also
what ``make check`` runs.
"""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from execution import ROOT, Book
from nbformat import NotebookNode, read
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from typed_numbers import (
    NOT_PROSE,
    Passage,
    blank,
    lone_marks,
    passages,
    unmarked,
    without_code,
)

pytestmark = pytest.mark.book

BOOK = Book(ROOT, data="")
CHAPTERS = BOOK.chapters
EVIDENCE = [chapter for chapter in CHAPTERS if chapter.startswith("book/evidence/")]
PASSAGES = passages(BOOK)

ALT_CHARACTERS = 40
COLUMNS = 72
"""Width of an essay's code, which a page shows beside its table of contents."""
BULLETS = re.compile(r"^[-*] ", re.MULTILINE)
HEADINGS = [
    "What you will learn",
    "What could be wrong",
    "Results",
    "What we found",
    "Exercises",
    "Further reading",
]

sources = pytest.mark.sources
each_chapter = pytest.mark.parametrize("chapter", CHAPTERS)


def source_of(chapter: str) -> NotebookNode:
    return read(BOOK.source(chapter), as_version=4)


def report(complaints: list[str]) -> None:
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


# The order of a chapter


def sections(notebook: NotebookNode) -> dict[str, str]:
    """Split the Markdown of a notebook at its headings of the second level; "" is the lead."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    parts = re.split(r"^## +(.+?) *$", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def lead_of(notebook: NotebookNode) -> list[str]:
    """Return the lines between the title and what follows, if there is a title."""
    first = sections(notebook)[""].strip()
    lead = re.fullmatch(r"(?:\(\S+\)=\n)?# [^\n]+\n+(?P<lead>.*)", first, re.DOTALL)
    return [line for line in (lead["lead"] if lead else "").splitlines() if line.strip()]


def wrong_exercises(text: str) -> list[str]:
    """Find exercises without a solution, and too few or too many of them."""
    exercises = re.findall(r"\{exercise(?:-start)?\}.*?:label: (\S+)", text, re.DOTALL)
    solved = re.findall(r"\{solution(?:-start)?\} (\S+)", text)
    if 2 <= len(exercises) <= 4 and sorted(exercises) == sorted(solved):
        return []
    return [f"2 to 4 exercises, each with a solution; found {exercises}, {solved}"]


def holds_code(cell: NotebookNode) -> bool:
    """Return whether a cell has the chapter's code: ``test_colab`` holds the one that installs."""
    return cell.cell_type == "code" and cell.get("id") != "install"


def wrong_set_up(notebook: NotebookNode) -> list[str]:
    """Look for the set-up in the first code cell."""
    first = next((cell for cell in notebook.cells if holds_code(cell)), None)
    if first is None or "import" not in first.source or first.metadata.get("tags"):
        return ["the first code cell is the set-up, in sight"]
    return []


def wrong_order(notebook: NotebookNode) -> list[str]:
    """Compare a chapter that holds its own evidence with the order that all of these have."""
    found = sections(notebook)
    present = [heading for heading in found if heading in HEADINGS]
    if present != HEADINGS:
        return [f"sections {present}, not {HEADINGS}"]
    complaints = []
    if len(lead_of(notebook)) < 2:
        complaints.append("a title and a lead of two or three sentences come first")
    promised = len(BULLETS.findall(found["What you will learn"]))
    kept = len(BULLETS.findall(found["What we found"]))
    if not promised or promised != kept:
        complaints.append(f"{promised} bullets in What you will learn, {kept} in What we found")
    if not re.search(r"Prerequisites.*minute", found["What you will learn"], re.DOTALL):
        complaints.append("What you will learn names the prerequisites and the minutes it takes")
    if not BULLETS.sub("", found["What could be wrong"]).strip():
        complaints.append("What could be wrong is empty")
    complaints += wrong_exercises(found["Exercises"]) + wrong_set_up(notebook)
    if not any("table(results)" in c.source for c in notebook.cells if c.cell_type == "code"):
        complaints.append("Results shows table(results)")
    return complaints


def wrong_essay(notebook: NotebookNode, evidence: str) -> list[str]:
    """Look for what every essay has, and for code too wide for its page.

    Args:
        notebook: The essay.
        evidence: The page of its evidence.
    """
    found = sections(notebook)
    complaints = [] if lead_of(notebook) else ["a title and the question come first"]
    if not any(f"](evidence/{Path(evidence).name}.ipynb" in text for text in found.values()):
        complaints.append("no link to its evidence")
    if not found.get("What we found", "").strip():
        complaints.append("no section What we found")
    complaints += wrong_exercises(found.get("Exercises", ""))
    complaints += [
        f"cell {cell.id!r} has a line of {max(map(len, cell.source.splitlines()))} columns"
        for cell in notebook.cells
        if cell.cell_type == "code"
        and any(len(line) > COLUMNS for line in cell.source.splitlines())
    ]
    return complaints


def wrong_evidence(notebook: NotebookNode, essay: str | None) -> list[str]:
    """Look for what all evidence has: at its end the table whose rows the essay links to.

    Args:
        notebook: The evidence.
        essay: The page of the essay that it supports, if there is one.
    """
    found = sections(notebook)
    complaints = [] if lead_of(notebook) else ["a title and what it supports come first"]
    if essay and not any(f"](../{Path(essay).name}.ipynb" in text for text in found.values()):
        complaints.append("no link to its essay")
    complaints += wrong_set_up(notebook)
    last = notebook.cells[-1]
    if list(found)[-1] != "Results" or last.source != "table(results)" or last.metadata:
        complaints.append("the section Results, with table(results) in sight, comes last")
    return complaints


def missing_link(notebook: NotebookNode, following: str | None) -> list[str]:
    """Look for the link that leads to the next chapter, if there is one."""
    name = f"{Path(following or '').name}.ipynb"
    linked = following is None or f"]({name})" in list(sections(notebook).values())[-1]
    return [] if linked else [f"the last section has no link to {name}"]


# Sources of notebooks


def unclean_source(notebook: NotebookNode) -> list[str]:
    """Find what a tracked notebook must not hold."""
    complaints = []
    metadata = notebook.metadata
    if set(metadata) - {"kernelspec", "language_info"}:
        complaints.append(f"metadata {sorted(metadata)}: keep kernelspec and language_info")
    if metadata.get("kernelspec", {}).get("name") != "python3":
        complaints.append("the kernel is not python3")
    if set(metadata.get("language_info", {})) != {"name"}:
        complaints.append("keep only the name in language_info")
    ids = [cell.get("id", "") for cell in notebook.cells]
    for cell_id, cell in zip(ids, notebook.cells, strict=True):
        if cell.get("outputs") or cell.get("execution_count") is not None:
            complaints.append(f"cell {cell_id!r} has outputs: run nbstripout --keep-id")
        random = any(re.fullmatch(r"(?=.*\d)[0-9a-f]{6,}", word) for word in cell_id.split("-"))
        if random or not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", cell_id):
            complaints.append(f"cell id {cell_id!r} is not made of words: kl-definition, fig-quilt")
        if holds_code(cell):
            complaints += [f"cell {cell_id!r}: {fault}" for fault in unclean_code(cell.source)]
    if len(ids) != len(set(ids)):
        complaints.append("two cells have the same id")
    return complaints


def unclean_code(code: str) -> list[str]:
    """Find what makes a cell work on one machine only, or hides what it does."""
    forbidden = {
        r"^\s*[%!]": "no magics and no shell",
        r"\bsys\.path\b": "no sys.path: the package is installed",
        r"\bwarnings\.(filterwarnings|simplefilter|catch_warnings)": "no hidden warnings",
        r"""["']cuda""": "no device that a laptop lacks",
    }
    return [why for pattern, why in forbidden.items() if re.search(pattern, code, re.MULTILINE)]


@sources
@each_chapter
def test_form_of_a_chapter(chapter):
    notebook = source_of(chapter)
    complaints = unclean_source(notebook)
    if chapter in EVIDENCE:
        essay = f"book/{Path(chapter).name}"
        complaints += wrong_evidence(notebook, essay if essay in CHAPTERS else None)
    else:
        evidence = f"book/evidence/{Path(chapter).name}"
        is_essay = evidence in EVIDENCE
        complaints += wrong_essay(notebook, evidence) if is_essay else wrong_order(notebook)
        following = dict(pairwise(c for c in CHAPTERS if c not in EVIDENCE)).get(chapter)
        complaints += missing_link(notebook, following)
    report(complaints)


@sources
def test_nbstripout_finds_nothing_to_strip():
    files = [BOOK.source(chapter) for chapter in CHAPTERS]
    program = Path(sys.executable).with_name("nbstripout")
    stripped = subprocess.run(
        [program, "--verify", "--keep-id", *files], capture_output=True, text=True, check=False
    )
    assert stripped.returncode == 0, f"run nbstripout --keep-id on\n{stripped.stdout}"


@sources
def test_every_page_is_in_the_table_of_contents():
    folder = ROOT / "book"
    files = {
        p.relative_to(ROOT).with_suffix("").as_posix()
        for p in [*folder.glob("*.md"), *folder.glob("*.ipynb"), *folder.glob("evidence/*.ipynb")]
    }
    assert sorted(BOOK.pages) == sorted(files)


# Prose

ABBREVIATIONS = re.compile(r"\b(?:e\.g|i\.e|cf|vs|al|etc|Eq|Eqs|Fig|Figs|Sec|No|Dr|pp|[A-Z])\.$")


def broken_sentences(text: str) -> list[str]:
    """Find lines of prose with more than one sentence, and sentences on more than one line."""
    complaints = []
    lines = blank(NOT_PROSE, without_code(text)).split("\n")
    for number, line in enumerate(lines):
        plain = re.sub(r"<!--.*?-->", "", line).strip()
        # A label in bold, **The images.**, opens a paragraph without being a sentence of it.
        plain = re.sub(r"^((?:[-*] )?)\*\*[^*]+\*\* *", r"\1", plain)
        if not plain or re.match(r"[|#:(]|```|~~~", plain):
            continue
        for end in re.finditer(r"[.!?][*_)\"”’]*(?= +[*_(\"“]*[A-Z])", plain):
            if not ABBREVIATIONS.search(plain[: end.start() + 1]):
                complaints.append(f"line {number + 1} holds two sentences: {plain!r}")
                break
        following = lines[number + 1].strip() if number + 1 < len(lines) else ""
        if re.match(r"[a-z]", following) and re.search(r"[\w,]$", plain):
            complaints.append(f"line {number + 1} ends within a sentence: {plain!r}")
    return complaints


def dead_links(text: str, folder: Path) -> list[str]:
    """Find links to files that do not exist, and to pages by anything but their source."""
    complaints = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        path = target.partition("#")[0]
        if not path or re.match(r"[a-z]+:", target):
            continue
        if path.endswith(".html"):
            complaints.append(f"link to the source, .ipynb or .md, not to {target}")
        elif not (folder / path).exists():
            complaints.append(f"{target} does not exist")
    return complaints


def pictures_without_alt(text: str) -> list[str]:
    """Find pictures in Markdown that do not say what they show."""
    text = without_code(text)
    complaints = [
        f"![]({path})" for alt, path in re.findall(r"!\[(.*?)\]\((.*?)\)", text) if not alt
    ]
    for figure in re.findall(r"\{(?:figure|image)\}.*?(?:^(?:```|:::)|\Z)", text, re.DOTALL | re.M):
        if not re.search(r"^:alt: \S", figure, re.MULTILINE):
            complaints.append(figure.splitlines()[0])
    complaints += [
        tag for tag in re.findall(r"<img[^>]*>", text) if not re.search(r'alt="[^"\s]', tag)
    ]
    return complaints


def faults_of(passage: Passage) -> list[str]:
    """Hold a passage against all rules of prose; a caption is one line by its nature."""
    faults = [] if "caption" in passage.place else broken_sentences(passage.text)
    faults += [f"{m!r} has neither <!--=name--> nor <!--given-->" for m in unmarked(passage)]
    faults += [f"no number before {mark}" for mark in lone_marks(passage)]
    faults += dead_links(passage.text, (ROOT / passage.page).parent)
    faults += [f"no alt text: {picture}" for picture in pictures_without_alt(passage.text)]
    return [f"{passage.where}: {fault}" for fault in faults]


@sources
@pytest.mark.parametrize("page", list(dict.fromkeys(passage.page for passage in PASSAGES)))
def test_prose_of_a_page(page):
    report([f for passage in PASSAGES if passage.page == page for f in faults_of(passage)])


def undescribed_figures(notebook: NotebookNode) -> list[str]:
    """Find cells that show a picture without saying in words what is seen."""
    complaints = []
    for cell in notebook.cells:
        shows = any("image/png" in o.get("data", {}) for o in cell.get("outputs", []))
        if not shows:
            continue
        mystnb = cell.metadata.get("mystnb", {})
        alt = mystnb.get("image", {}).get("alt", "")
        if len(alt) < ALT_CHARACTERS:
            complaints.append(f"cell {cell.get('id')!r}: alt text of {len(alt)} characters")
        if not mystnb.get("figure", {}).get("caption"):
            complaints.append(f"cell {cell.get('id')!r}: no caption")
    return complaints


@each_chapter
def test_figures_have_alt_text_and_caption(chapter, execute):
    report(undescribed_figures(execute(chapter).notebook))


# Each check, shown a deliberate fault


def good_chapter() -> NotebookNode:
    exercise = ":::{{exercise}}\n:label: {0}\n:::\n:::{{solution}} {0}\n:::\n"
    texts = {
        "lead": "# Title\n\nA question.\nAn answer.",
        "learn": "## What you will learn\n\n- This.\n\nPrerequisites: none; ten minutes.",
        "wrong": "## What could be wrong\n\nNothing.",
        "results": "## Results",
        "found": "## What we found\n\n- This.",
        "exercises": "## Exercises\n\n" + exercise.format("one") + exercise.format("two"),
        "reading": "## Further reading\n\nNone.",
    }
    cells = [new_markdown_cell(text, id=name) for name, text in texts.items()]
    cells.insert(2, new_code_cell("import torch", id="set-up"))
    cells.insert(5, new_code_cell("table(results)", id="show"))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return new_notebook(cells=cells, metadata=metadata)


def replaced(notebook: NotebookNode, old: str, new: str) -> NotebookNode:
    for cell in notebook.cells:
        cell.source = cell.source.replace(old, new)
    return notebook


def faulty_chapter(old: str, new: str) -> NotebookNode:
    return replaced(good_chapter(), old, new)


def test_a_good_chapter_is_without_complaint():
    assert wrong_order(good_chapter()) == []
    assert missing_link(faulty_chapter("None.", "[Next](next.ipynb)"), "book/next") == []
    assert missing_link(good_chapter(), None) == []
    assert unclean_source(good_chapter()) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("## What could be wrong", "## Doubts", "sections"),
        ("# Title\n\nA question.\n", "# Title\n\n", "lead"),
        ("- This.\n\nPre", "- This.\n- That.\n\nPre", "2 bullets"),
        ("ten minutes", "quick", "minutes"),
        ("Nothing.", "", "empty"),
        ("{solution} two", "{solution} three", "solution"),
        ("import torch", "1 + 1", "set-up"),
        ("table(results)", "results", "table"),
    ],
)
def test_a_fault_in_the_order_is_found(old, new, complaint):
    (found,) = wrong_order(faulty_chapter(old, new))
    assert complaint in found


def good_essay() -> NotebookNode:
    notebook = good_chapter()
    notebook.cells[-1].source = "## What is next\n\n[The evidence](evidence/one.ipynb)."
    return notebook


def good_evidence() -> NotebookNode:
    notebook = good_chapter()
    notebook.cells[0].source = "# Title\n\nThe numbers of [one](../one.ipynb)."
    last = [cell for cell in notebook.cells if cell.id in ("results", "show")]
    notebook.cells = [cell for cell in notebook.cells if cell not in last] + last
    return notebook


def test_a_good_essay_and_good_evidence_are_without_complaint():
    assert wrong_essay(good_essay(), "book/evidence/one") == []
    assert wrong_evidence(good_evidence(), "book/one") == []
    assert wrong_evidence(good_evidence(), None) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("\n\nA question.\nAn answer.", "", "the question"),
        ("evidence/one.ipynb", "evidence/two.ipynb", "its evidence"),
        ("## What we found", "## More", "What we found"),
        ("{solution} two", "{solution} three", "solution"),
        ("import torch", f"import torch  # {'-' * 60}", "76 columns"),
    ],
)
def test_a_fault_of_an_essay_is_found(old, new, complaint):
    (found,) = wrong_essay(replaced(good_essay(), old, new), "book/evidence/one")
    assert complaint in found


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("# Title\n\n", "", "title"),
        ("../one.ipynb", "../two.ipynb", "its essay"),
        ("import torch", "1 + 1", "set-up"),
        ("## Results", "## Results\n\n## More", "comes last"),
        ("table(results)", "results", "comes last"),
    ],
)
def test_a_fault_of_evidence_is_found(old, new, complaint):
    (found,) = wrong_evidence(replaced(good_evidence(), old, new), "book/one")
    assert complaint in found


def test_a_folded_table_of_evidence_is_found():
    notebook = good_evidence()
    notebook.cells[-1].metadata["tags"] = ["hide-output"]
    (found,) = wrong_evidence(notebook, "book/one")
    assert "in sight" in found


def test_a_missing_link_to_the_next_chapter_is_found():
    (found,) = missing_link(good_chapter(), "book/next")
    assert "next.ipynb" in found


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("%matplotlib inline", "magics"),
        ("!pip install torch", "shell"),
        ("sys.path.append('..')", "sys.path"),
        ("warnings.filterwarnings('ignore')", "warnings"),
        ("model.to('cuda')", "device"),
    ],
)
def test_unclean_code_is_found(code, complaint):
    (found,) = unclean_source(faulty_chapter("import torch", code))
    assert complaint in found


def test_an_unclean_notebook_is_found():
    notebook = good_chapter()
    notebook.metadata["widgets"] = {}
    notebook.metadata.kernelspec.name = "my-kernel"
    notebook.metadata.language_info["version"] = "3.11"
    notebook.cells[0].id = "4390794e"
    notebook.cells[1].id = "Cell_1"
    notebook.cells[2].execution_count = 3
    notebook.cells[3].id = notebook.cells[4].id
    assert len(unclean_source(notebook)) == 7


@pytest.mark.parametrize(
    "text",
    ["One sentence. Another one.", "A sentence that goes\non here.", "Is it $z$? It is."],
)
def test_a_broken_sentence_is_found(text):
    assert len(broken_sentences(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "By D. P. Kingma et al. in 2014, e.g. This.\nAnother sentence.",
        "- One.\n- two.",
        "The formula is\n$$\nz = 1.\n$$\nwith `code. And` more.",
        "```python\na = 1. B\n```",
        "| A. B. | C. D. |",
        "- **One network.** The curve is its own.\n- **Is it?** It is.",
        "It is 0.28 nats<!--=kl-->.\nSee [A. Title](x.md).",
    ],
)
def test_whole_sentences_pass(text):
    assert broken_sentences(text) == []


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "a.ipynb").touch()
    text = "[a](a.ipynb) [a](a.ipynb#x) [b](b.md) [c](a.html) [d](https://example.org) `[e](e.md)`"
    assert dead_links(text, tmp_path) == [
        "b.md does not exist",
        "link to the source, .ipynb or .md, not to a.html",
    ]


@pytest.mark.parametrize(
    "text",
    ["![](a.png)", ":::{figure} a.png\n:name: a\n\nCaption.\n:::", '<img src="a.png" alt="">'],
)
def test_a_picture_without_alt_text_is_found(text):
    assert len(pictures_without_alt(text)) == 1


def test_all_faults_of_a_passage_are_in_one_list():
    text = "One. Two.\nIt is 0.5.\nIt is <!--=kl-->.\n[b](none.md)\n![](a.png)"
    found = faults_of(Passage("book/page", "cell lead", text, lambda _: None))
    assert all(fault.startswith("book/page, cell lead: ") for fault in found)
    words = ("two sentences", "has neither", "no number before", "none.md", "a.png", "no alt text")
    assert [word for word in words if not any(word in fault for fault in found)] == []
    caption = Passage("book/page", "caption of cell fig", "One. Two.", lambda _: None)
    assert faults_of(caption) == []


def test_a_figure_without_alt_text_is_found():
    picture = new_output("display_data", {"image/png": ""})
    notebook = new_notebook(cells=[new_code_cell("plot()", outputs=[picture])])
    assert len(undescribed_figures(notebook)) == 2
    mystnb = {"image": {"alt": "a" * ALT_CHARACTERS}, "figure": {"caption": "A figure."}}
    notebook.cells[0].metadata["mystnb"] = mystnb
    assert undescribed_figures(notebook) == []
