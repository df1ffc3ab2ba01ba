"""Make the book, its tests and the rest, on any system: ``python make.py`` lists what.

``make`` calls it too. It needs Python 3.11 to 3.14 and installs everything into ``.venv``, nothing
elsewhere.

The environment variable ``VERSIONS`` chooses among the versions that the requirements allow:
``newest`` is the default, ``locked`` takes those of ``requirements-lock.txt``, which were tested,
and ``oldest`` every lower bound. The choice holds until another one is made.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
PROGRAM = "make" if "MAKELEVEL" in os.environ else "python make.py"

VERSIONS = ("newest", "locked", "oldest")
READERS, DEVELOPERS = "requirements.txt", "requirements-dev.txt"
LOCK = "requirements-lock.txt"
LOWER_BOUND = re.compile(r"^([\w.-]+)>=([\w.]+)", re.MULTILINE)

NEWEST_PYTHON = (3, 14)
"""The newest for which torch is there, within its bounds."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own index. No other has torch for Linux without CUDA, which nothing here needs."""
OWN_INDEX = re.compile(r"^\S+\.(index-url|extra-index-url|find-links|no-index)=", re.MULTILINE)
"""Setting by which pip was told where packages come from, as ``pip config list`` prints it."""
LIGHT = "some 0.5 GB to download, 2 GB on disk"
WITH_CUDA = "some 3.2 GB to download, 6.5 GB on disk"


# The environment


def run(*command: str | Path) -> int:
    """Run a command in the project's folder and return its exit code."""
    with subprocess.Popen(command, cwd=ROOT) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                pass  # The command was interrupted as well and decides what to do.


def python(*arguments: str | Path) -> int:
    """Run the Python of ``.venv`` and return its exit code."""
    return run(PYTHON, *arguments)


def pip_install(*arguments: str | Path) -> int:
    """Install into ``.venv`` and return pip's exit code."""
    return python("-m", "pip", "--disable-pip-version-check", "install", *arguments)


def stamp(kind: str) -> Path:
    """Return the file that is written when the requirements of a kind of user are installed."""
    return VENV / f".{kind}"


def chosen_versions() -> str:
    """Return the choice that ``VERSIONS`` makes, or else the one that was made before."""
    before = stamp("reader").read_text() if stamp("reader").exists() else ""
    chosen = os.environ.get("VERSIONS") or before or VERSIONS[0]
    if chosen not in VERSIONS:
        sys.exit(f"VERSIONS is {chosen!r}, not one of {', '.join(VERSIONS)}.")
    return chosen


def is_installed(kind: str, versions: str, *sources: Path) -> bool:
    """Tell whether a kind of user's requirements are installed and have not changed since."""
    made = stamp(kind)
    if not made.exists() or (made.read_text() or VERSIONS[0]) != versions:
        return False
    locked = [ROOT / LOCK] if versions == "locked" else []
    return all(file.stat().st_mtime <= made.stat().st_mtime for file in [*sources, *locked])


def constraints(versions: str) -> list[str | Path]:
    """Return the arguments by which pip installs the chosen versions."""
    if versions == "newest":
        # Without a choice, what is there and allowed stays.
        return ["--upgrade", "--upgrade-strategy=eager"] if "VERSIONS" in os.environ else []
    if versions == "locked":
        return ["--constraint", ROOT / LOCK]
    oldest = VENV / "oldest.txt"
    bounds = [
        f"{name}=={version}"
        for file in (READERS, DEVELOPERS)
        for name, version in LOWER_BOUND.findall((ROOT / file).read_text(encoding="utf-8"))
    ]
    oldest.write_text("\n".join(bounds) + "\n", encoding="utf-8")
    return ["--constraint", oldest]


def has_own_index() -> bool:
    """Tell whether pip was told where packages come from; then nothing else is asked for them."""
    settings = subprocess.run(
        [PYTHON, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    return bool(OWN_INDEX.search(settings.stdout))


def install_torch(which: list[str | Path]) -> None:
    """Install torch for Linux without CUDA, or else leave torch to pip; say how much it is."""
    if sys.platform != "linux":
        print(f"The first time that is {LIGHT}.", flush=True)
        return
    if has_own_index():
        print(f"The first time that is {WITH_CUDA}, unless your index has less.", flush=True)
        return
    print(f"The first time that is {LIGHT}, with torch from {CPU_INDEX}.", flush=True)
    lines = (ROOT / READERS).read_text(encoding="utf-8").splitlines()
    torch = [line for line in lines if line.startswith("torch")]
    # Alone, because that index has few other packages, and only some of their versions.
    if pip_install("--no-deps", "--retries", "1", "--index-url", CPU_INDEX, *which, *torch):
        print(
            "PyTorch's index has no torch for this computer, or does not answer. "
            f"The usual one has torch with CUDA: {WITH_CUDA}.",
            flush=True,
        )


def install(kind: str = "developer") -> int:
    """Install what a reader or a developer needs, unless it is there already."""
    versions = chosen_versions()
    reader, developer = stamp("reader"), stamp("developer")
    if not is_installed("reader", versions, ROOT / READERS, ROOT / "pyproject.toml"):
        if not (3, 11) <= sys.version_info[:2] <= NEWEST_PYTHON:
            running = ".".join(map(str, sys.version_info[:3]))
            needed = f"Python 3.11 to {'.'.join(map(str, NEWEST_PYTHON))}"
            sys.exit(
                f"{needed} is needed, and {sys.executable} is {running}. Name another one: "
                "make PYTHON=python3.12 ..., or python3.12 make.py ..."
            )
        print("Installing the requirements into .venv ...", flush=True)
        # On Windows a Python that is running cannot be replaced.
        if Path(sys.prefix) != VENV and (code := run(sys.executable, "-m", "venv", VENV)):
            return code
        which = constraints(versions)
        install_torch(which)
        # setup.py reads requirements.txt, so this installs every line of it.
        if code := pip_install(*which, "--editable", ".[book]"):
            return code
        reader.write_text(versions)
    if kind == "developer" and not is_installed("developer", versions, reader, ROOT / DEVELOPERS):
        print("Installing tests and linters into .venv ...", flush=True)
        if code := pip_install(*constraints(versions), "--requirement", ROOT / DEVELOPERS):
            return code
        developer.write_text(versions)
    return 0


# What can be made


def announce(name: str, what: str) -> None:
    """Say what is about to happen and how long it takes."""
    print(f"{PROGRAM} {name}: install into .venv, execute every chapter once, {what}.")
    if stamp("reader").exists():
        print("Takes a minute or two, and the time of the chapters if they changed.", flush=True)
    else:
        print(
            "The first time takes 10 to 20 minutes on two cores, most of it downloads; "
            "later times a minute or two.",
            flush=True,
        )


def build() -> int:
    """Build the site from the executed chapters."""
    return python("book/_ext/build.py")


def pytest(*arguments: str) -> int:
    """Run tests, a process a core; one that has nothing left to do takes tests of another."""
    return python("-m", "pytest", "-n", "auto", "--dist", "worksteal", *arguments)


def book() -> int:
    """Build the book into _build/html."""
    announce("book", "write the site to _build/html")
    return install("reader") or build()


def test() -> int:
    """Run everything that proves the project right, in a quarter of an hour."""
    announce("test", "build the site, run all tests")
    print("The tests themselves take some ten minutes more on two cores.", flush=True)
    if code := install():
        return code
    built = build()
    return pytest("--built") or built


def quick() -> int:
    """Run the package's tests but the slow ones, in two minutes."""
    return install() or pytest("-m", "not book and not slow")


def lab() -> int:
    """Open the chapters in JupyterLab."""
    return install("reader") or python("-m", "jupyter", "lab", "book")


def check() -> int:
    """Lint the code, the notebooks and the prose; check the types."""
    if code := install():
        return code
    commands = (
        "ruff check",
        "ruff format --check",
        "mypy",
        "pytest -q -m sources tests/test_book_form.py",
    )
    for command in commands:
        print(command, flush=True)
        if code := python("-m", *command.split()):
            return code
    return 0


def study() -> int:
    """Train the models of results/ again (hours; stops and resumes)."""
    return install("reader") or python("-m", "priormatch.experiments.study")


def clean() -> int:
    """Delete everything that was made, but not .venv."""
    for folder in ("_build", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"):
        shutil.rmtree(ROOT / folder, ignore_errors=True)
    return 0


COMMANDS = {
    command.__name__: command for command in (book, test, quick, lab, check, study, install, clean)
}


def main(names: list[str]) -> int:
    """Make what is named, one after the other, up to the first that fails; return the exit code."""
    # Windows would read and write files in an encoding of its own.
    os.environ.setdefault("PYTHONUTF8", "1")
    if unknown := [name for name in names if name not in COMMANDS]:
        print(f"No such target: {', '.join(unknown)}.", file=sys.stderr)
    if unknown or not names:
        for name, command in COMMANDS.items():
            first_line = (command.__doc__ or "").splitlines()[0].rstrip(".")
            print(f"{PROGRAM} {name:7} {first_line[0].lower()}{first_line[1:]}")
        return 2 if unknown else 0
    for name in names:
        if code := COMMANDS[name]():
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
