"""Sphinx extension: the reference of the package, made from its docstrings.

Docstrings are written for the terminal. In the reference a public name in single backticks becomes
a link, and "Introduced in" links to the chapter.
"""

import re
from functools import cache
from importlib import import_module
from inspect import getmembers, isclass, isfunction
from pathlib import Path
from typing import Any

import nbformat
from sphinx.application import Sphinx

PACKAGE = "priormatch"
NAME = re.compile(r"(?<![`:\w>])`(?P<name>[A-Za-z_][\w.]*)`(?!`)")
INTRODUCED = re.compile(r'^(?P<lead>\s*)Introduced in "(?P<title>[^"]+)"\.$')


@cache
def public_names() -> dict[str, str]:
    """Return the full name of each public function and class, by its short and its full name."""
    names: dict[str, str] = {}
    source = Path(import_module(PACKAGE).__file__ or "").parent
    for file in sorted(source.rglob("*.py")):
        if "explorers" in file.parts:  # not on the page
            continue
        parts = file.relative_to(source.parent).with_suffix("").parts
        module = import_module(".".join(part for part in parts if part != "__init__"))
        for name, thing in getmembers(module, lambda one: isclass(one) or isfunction(one)):
            if thing.__module__ == module.__name__ and not name.startswith("_"):
                full = f"{module.__name__}.{name}"
                names[full] = full
                names.setdefault(name, full)
    return names


@cache
def chapters(folder: Path) -> dict[str, str]:
    """Return the page of each chapter and of its evidence, by its title."""
    pages = {}
    for file in sorted([*folder.glob("*.ipynb"), *folder.glob("evidence/*.ipynb")]):
        cells = nbformat.read(file, as_version=4).cells
        lead = next(cell.source for cell in cells if cell.cell_type == "markdown")
        page = file.relative_to(folder).with_suffix("").as_posix()
        pages[lead.splitlines()[0].removeprefix("# ")] = page
    return pages


def link(app: Sphinx, kind: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Turn names and chapters of a docstring into links, in place."""
    pages = chapters(Path(app.srcdir) / "book")

    def as_link(match: re.Match[str]) -> str:
        full = public_names().get(match["name"])
        return f":py:obj:`{match['name']} <{full}>`" if full else f"``{match['name']}``"

    for number, line in enumerate(lines):
        if found := INTRODUCED.match(line):
            title = found["title"]
            page = pages.get(title)
            if page is None:
                raise ValueError(f"{name}: no chapter is called {title!r}")
            lines[number] = f"{found['lead']}Introduced in :doc:`{title} </book/{page}>`."
        elif not line.lstrip().startswith(">>>"):
            lines[number] = NAME.sub(as_link, line)


def skip_fields(
    app: Sphinx, kind: str, name: str, thing: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out the fields of named tuples: the class's docstring has them already."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to Sphinx's events."""
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.napoleon")
    app.connect("autodoc-process-docstring", link)
    app.connect("autodoc-skip-member", skip_fields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
