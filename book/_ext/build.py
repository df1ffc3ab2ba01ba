"""Build of the book in ``_build/html``, for ``make book``: execute the chapters, write the site."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from execution import ANSI_COLOURS, ROOT, Book, execute_all, prepare_data

CELL_POSITION = re.compile(r"(?P<path>\S+\.ipynb):(?P<number>\d+)(?P<line>\d{4})\b")
"""Position in a notebook as myst-nb prints it: 40007 is line 7 of the fourth cell."""


class BuildError(Exception):
    """Sphinx found an error or a warning in the book; the message is its output."""


def write_site(book: Book) -> Path:
    """Write the site of an executed book from scratch and return its first page.

    Raises:
        BuildError: Sphinx reports an error or a warning.
    """
    remove_site(book)
    # On Windows it is called jupyter-book.exe.
    program = shutil.which("jupyter-book", path=Path(sys.executable).parent) or "jupyter-book"
    build = subprocess.run(
        [program, "build", ".", "-W", "-n", "--keep-going", "--quiet"],
        cwd=book.root,
        env=os.environ | {"PRIORMATCH_DATA": book.data},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if build.returncode:
        remove_site(book)
        raise BuildError(CELL_POSITION.sub(name_cell, ANSI_COLOURS.sub("", build.stdout)))
    return book.root / "_build" / "html" / "index.html"


def name_cell(position: re.Match[str]) -> str:
    """Translate a position in a notebook into words."""
    cells = nbformat.read(position["path"], as_version=4).cells
    number = int(position["number"])
    if not 0 < number <= len(cells):
        return position[0]
    # Roles are one line off and directives are not, hence "near".
    return (
        f"{position['path']}, cell {cells[number - 1]['id']!r}, near line {int(position['line'])}"
    )


def remove_site(book: Book) -> None:
    """Remove the site: Sphinx would keep deleted pages, and not report an old error again."""
    for folder in ("html", ".doctrees"):
        shutil.rmtree(book.root / "_build" / folder, ignore_errors=True)


def main() -> int:
    """Build the book; return the exit code."""
    book = Book(ROOT, prepare_data())
    if errors := execute_all(book):
        remove_site(book)
        print(f"\nNo site: {len(errors)} of {len(book.chapters)} chapters fail.", file=sys.stderr)
        return 1
    print("Writing the site ...", end=" ", flush=True)
    start = time.perf_counter()
    try:
        first_page = write_site(book)
    except BuildError as error:
        print(f"failed\n\n{error}", file=sys.stderr)
        return 1
    print(f"{time.perf_counter() - start:.1f} s\nThe book is ready: {first_page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
