"""Execute the chapters, then write the site to ``_build/html``: what ``make book`` runs."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from chapters import ROOT, Book, execute_all, prepare_data


class BuildError(Exception):
    """Sphinx found an error or a warning in the book; the message is what it wrote."""


def write_site(book: Book) -> Path:
    """Write the site of an executed book from nothing and return its first page.

    Raises:
        BuildError: There is an error, or a warning.
    """
    remove_site(book)
    program = Path(sys.executable).with_name("jupyter-book")
    build = subprocess.run(
        [program, "build", ".", "-W", "-n", "--keep-going"],
        cwd=book.root,
        env=os.environ | {"PRIORMATCH_DATA": book.data},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if build.returncode:
        remove_site(book)
        raise BuildError(build.stdout)
    return book.root / "_build" / "html" / "index.html"


def remove_site(book: Book) -> None:
    """Remove the site: Sphinx would keep pages that are gone, and forget errors it has reported."""
    for folder in ("html", ".doctrees"):
        shutil.rmtree(book.root / "_build" / folder, ignore_errors=True)


def main() -> int:
    """Make the book; return the exit code."""
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
