"""Fixtures of all tests, and the chapters, each executed once in a session."""

import contextlib
import functools
import http.server
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import jaxtyping
import pytest
import threadpoolctl
import typed_numbers
from execution import ROOT, Book, ChapterError, Executed, Executions, prepare_data
from playwright.sync_api import Browser, sync_playwright

Execute = Callable[[str], Executed]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-baselines",
        action="store_true",
        help="write tests/baselines/*.json anew from this run, as far as one run can",
    )
    parser.addoption(
        "--built",
        action="store_true",
        help="take chapters and site as book/_ext/build.py, run just before, has left them",
    )


def is_one_of_several(config: pytest.Config) -> bool:
    """Tell whether this is a process of ``pytest -n``."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Find or download the digits once for all processes of ``pytest -n``."""
    os.environ["PRIORMATCH_DATA"] = prepare_data()


@pytest.fixture(scope="session")
def say(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Print at once, although pytest captures: chapters take their time."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    terminal = pytestconfig.pluginmanager.getplugin("terminalreporter")

    def write(text: str) -> None:
        with capture.global_and_fixture_disabled():
            if terminal is None:  # in a process of "pytest -n"
                print(f"\n{text}", file=sys.__stderr__, flush=True)
            else:
                terminal.ensure_newline()
                terminal.write_line(text)

    return write


@pytest.fixture(scope="session", autouse=True)
def digits(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> Iterator[str]:
    """Find or download the digits once; the package and the book then read the same ones."""
    if all(test.get_closest_marker("sources") for test in request.session.items):
        yield "none: nothing is executed"
        return
    # A download shows its progress.
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        found = prepare_data()
    if is_one_of_several(pytestconfig):
        # Processes side by side do not share a core's threads. Not by OMP_NUM_THREADS, which
        # chapters' results may depend on.
        import torch

        torch.set_num_threads(1)
        threadpoolctl.threadpool_limits(1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PRIORMATCH_DATA", found)
        yield found


@pytest.fixture(scope="session")
def book(digits: str) -> Book:
    """The book of this repository, on the digits that were found."""
    return Book(ROOT, digits)


@functools.cache
def executed_before(book: Book, chapter: str) -> Executed:
    """Return an executed chapter from the cache, or fail: what is not there has failed before."""
    try:
        executed = book.from_cache(chapter)
    except ChapterError as error:
        pytest.fail(str(error), pytrace=False)
    if executed is None:
        pytest.fail(f"{chapter} does not run: see what build.py printed above", pytrace=False)
    return executed


def chapters_of(test: pytest.Item, book: Book) -> set[str]:
    """Return the chapters that a test reads, by its parameters."""
    if "execute" not in test.fixturenames:
        return set()
    parameters = test.callspec.params if hasattr(test, "callspec") else {}
    if "site" in test.fixturenames or not {"chapter", "page"} & set(parameters):
        return set(book.chapters)
    if "chapter" in parameters:
        return {parameters["chapter"]}
    passages = [p for p in typed_numbers.passages(book) if p.page == parameters["page"]]
    return {mark.chapter for passage in passages for mark in typed_numbers.marks(passage)}


@pytest.fixture(scope="session")
def execute(
    request: pytest.FixtureRequest, book: Book, say: Callable[[str], None]
) -> Iterator[Execute]:
    """Return an executed chapter, or fail with the message that names the cell.

    The first use starts all chapters that the session wants, a few at a time; with ``--built``
    they have been executed before.
    """
    if request.config.getoption("--built"):
        yield functools.partial(executed_before, book)
        return
    if is_one_of_several(request.config):
        pytest.fail('Every process of "pytest -n" would execute the chapters: add -m "not book".')
    wanted = set().union(*(chapters_of(test, book) for test in request.session.items))
    with Executions(book, say) as executions:
        executions.start(chapter for chapter in book.longest_first if chapter in wanted)

        def executed(chapter: str) -> Executed:
            try:
                return executions.wait_for(chapter)
            except ChapterError as error:
                pytest.fail(str(error), pytrace=False)

        yield executed


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Switch off the run-time check of shapes, which users of the package do not have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        complain = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        complain(f"no browser: install one of {names}, for example by apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., str]]:
    """Serve folders as any plain file server does, or pages in pieces; give their addresses."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object, pieces: int, **options: object) -> None:
            self.pieces = pieces
            super().__init__(*arguments, **options)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

        def copyfile(self, source: BinaryIO, outputfile: BinaryIO) -> None:
            if self.pieces == 1 or not self.path.endswith(".html"):
                super().copyfile(source, outputfile)
                return
            text = source.read()
            size = len(text) // self.pieces + 1
            for start in range(0, len(text), size):
                outputfile.write(text[start : start + size])
                time.sleep(0.05)

    with contextlib.ExitStack() as servers:

        def start(folder: Path, pieces: int = 1) -> str:
            handler = functools.partial(Quiet, directory=folder, pieces=pieces)
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            servers.enter_context(server)
            servers.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return f"http://127.0.0.1:{server.server_port}/"

        yield start
