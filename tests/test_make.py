"""`make.py`: the order of its steps, what it installs when, and torch with and without an index."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from execution import ROOT
from test_binder import fake_wheel

import make

pytestmark = pytest.mark.book

PYTEST = "-m pytest -n auto --dist worksteal"


@pytest.fixture
def calls(monkeypatch):
    """Record the commands that are run in ``.venv``; each succeeds unless it is in `fail`."""
    done: list[str] = []

    def run(*command: object) -> int:
        text = " ".join(map(str, command[1:]))
        done.append(text)
        return next((code for word, code in run.fail.items() if word in text), 0)

    run.fail = {}
    run.done = done
    monkeypatch.setattr(make, "run", run)
    monkeypatch.setattr(make, "install", lambda kind="developer": done.append(f"install {kind}"))
    return run


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("book", ["install reader", "book/_ext/build.py"]),
        (
            "quick",
            ["install developer", "-m pytest -n auto --dist worksteal -m not book and not slow"],
        ),
        ("lab", ["install reader", "-m jupyter lab book"]),
        ("study", ["install reader", "-m priormatch.experiments.study"]),
        (
            "test",
            [
                "install developer",
                "book/_ext/build.py",
                f"{PYTEST} --built",
            ],
        ),
        (
            "check",
            [
                "install developer",
                "-m ruff check",
                "-m ruff format --check",
                "-m mypy",
                "-m pytest -q -m sources tests/test_book_form.py",
            ],
        ),
    ],
)
def test_the_steps_of_a_target(calls, name, steps):
    assert make.main([name]) == 0
    assert calls.done == steps


@pytest.mark.parametrize(
    ("fail", "code"), [({"build": 3}, 3), ({"pytest": 4}, 4), ({"build": 3, "pytest": 4}, 4)]
)
def test_the_tests_run_after_a_failed_build_and_either_fails_the_target(calls, fail, code):
    calls.fail = fail
    assert make.main(["test"]) == code
    assert len(calls.done) == 3


def test_the_first_failure_ends_a_list_of_targets(calls):
    calls.fail = {"ruff format": 1}
    assert make.main(["check", "book"]) == 1
    assert calls.done[-1] == "-m ruff format --check"


def test_make_has_the_targets_of_make_py():
    said = subprocess.run(
        ["make", "--no-print-directory", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [line.split()[:2] for line in said.splitlines()] == [["make", n] for n in make.COMMANDS]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (targets,) = [line for line in makefile.splitlines() if line.startswith("TARGETS :=")]
    assert targets.split()[2:] == list(make.COMMANDS)


def test_an_unknown_target_is_refused(capsys):
    assert make.main(["bok"]) == 2
    assert "bok" in capsys.readouterr().err


# Installing


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of its own, whose ``.venv`` looks installed; commands are recorded."""
    for name in (make.READERS, make.DEVELOPERS, make.LOCK, "pyproject.toml"):
        (tmp_path / name).write_text("a-b>=1.2,<2\nc>=3\n")
        os.utime(tmp_path / name, (1000, 1000))
    monkeypatch.setattr(make, "ROOT", tmp_path)
    monkeypatch.setattr(make, "VENV", tmp_path / ".venv")
    monkeypatch.delenv("VERSIONS", raising=False)
    make.VENV.mkdir()
    for kind in ("reader", "developer"):
        make.stamp(kind).write_text("")
        os.utime(make.stamp(kind), (2000, 2000))
    done: list[str] = []
    monkeypatch.setattr(make, "run", lambda *command: done.append(" ".join(map(str, command))) or 0)
    monkeypatch.setattr(make, "install_torch", lambda which: done.append("torch"))
    return done


def test_nothing_is_installed_twice(project):
    assert make.install() == 0
    assert project == []


def test_a_changed_requirement_is_installed_and_later_ones_with_it(project):
    os.utime(make.ROOT / make.DEVELOPERS, (3000, 3000))
    assert make.install("reader") == 0
    assert project == []
    assert make.install() == 0
    assert len(project) == 1
    assert project[0].endswith(make.DEVELOPERS)
    os.utime(make.ROOT / make.READERS, (4_000_000_000, 4_000_000_000))
    assert make.install() == 0
    assert [line.rpartition(" ")[2] for line in project[1:]][-2:] == [
        ".[book]",
        str(make.ROOT / make.DEVELOPERS),
    ]
    assert project[2] == "torch"


def test_a_choice_of_versions_holds_until_another_is_made(project, monkeypatch):
    monkeypatch.setenv("VERSIONS", "locked")
    assert make.install("reader") == 0
    lock = f"--constraint {make.ROOT / make.LOCK}"
    assert lock in project[-1]
    monkeypatch.delenv("VERSIONS")
    count = len(project)
    assert make.install("reader") == 0
    assert len(project) == count
    os.utime(make.ROOT / make.LOCK, (4_000_000_000, 4_000_000_000))
    assert make.install("reader") == 0
    assert lock in project[-1]
    monkeypatch.setenv("VERSIONS", "newest")
    assert make.install("reader") == 0
    assert "--constraint" not in project[-1]
    assert "--upgrade" in project[-1]
    monkeypatch.delenv("VERSIONS")
    os.utime(make.ROOT / make.READERS, (4_100_000_000, 4_100_000_000))
    assert make.install("reader") == 0
    assert "--upgrade" not in project[-1]


def test_the_oldest_versions_are_the_lower_bounds(project, monkeypatch):
    monkeypatch.setenv("VERSIONS", "oldest")
    assert make.install("reader") == 0
    assert f"--constraint {make.VENV / 'oldest.txt'}" in project[-1]
    assert (make.VENV / "oldest.txt").read_text().split() == ["a-b==1.2", "c==3"] * 2


def test_a_failed_step_leaves_no_stamp(project, monkeypatch):
    os.utime(make.ROOT / make.READERS, (3000, 3000))
    monkeypatch.setattr(make, "run", lambda *command: 7 if "--editable" in command else 0)
    assert make.install() == 7
    assert not make.is_installed("reader", "newest", make.ROOT / make.READERS)


def test_a_wrong_choice_is_refused(project, monkeypatch):
    monkeypatch.setenv("VERSIONS", "latest")
    with pytest.raises(SystemExit, match="latest"):
        make.install()


# Torch


BACKEND = """
import zipfile

def build_editable(folder, settings=None, metadata=None):
    about = "priormatch-1.dist-info"
    with zipfile.ZipFile(f"{folder}/priormatch-1-py3-none-any.whl", "w") as wheel:
        requires = "Requires-Dist: torch<3,>=2\\nRequires-Dist: torchvision<1,>=0.1\\n"
        head = "Metadata-Version: 2.1\\nName: priormatch\\nVersion: 1\\n"
        wheel.writestr(f"{about}/METADATA", head + requires)
        kind = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr(f"{about}/WHEEL", kind)
        wheel.writestr(f"{about}/RECORD", "")
    return "priormatch-1-py3-none-any.whl"
"""
"""What builds a project that needs torch, without anything installed."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """An environment with pip, and with nothing else."""
    folder = tmp_path_factory.mktemp("environment") / ".venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder


@pytest.fixture
def small_project(tmp_path, monkeypatch, environment, serve) -> Callable[[], dict[str, str]]:
    """A project that needs torch, and an index with the torch that most people get."""
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbackend-path = ["."]\nbuild-backend = "backend"\n'
    )
    (tmp_path / "backend.py").write_text(BACKEND)
    (tmp_path / make.READERS).write_text("torch>=2,<3\ntorchvision>=0.1,<1\nother>=1,<2\n")
    for name, version in (("torch", "2.1"), ("torchvision", "0.2")):
        fake_wheel(tmp_path / "usual" / name, name, version)
        fake_wheel(tmp_path / "cpu" / name, name, f"{version}+cpu")
    monkeypatch.setattr(make, "ROOT", tmp_path)
    monkeypatch.setattr(make, "VENV", environment)
    folder = "Scripts" if os.name == "nt" else "bin"
    monkeypatch.setattr(make, "PYTHON", environment / folder / "python")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("VERSIONS", raising=False)
    # Every index but PyTorch's is this one; as a file, it is no choice of the user's.
    configuration = tmp_path / "pip.conf"
    configuration.write_text(f"[global]\nindex-url = {serve(tmp_path / 'usual')}\nretries = 0\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    monkeypatch.setattr(sys, "platform", "linux")

    def install() -> dict[str, str]:
        make.stamp("reader").unlink(missing_ok=True)
        pip = partial(subprocess.run, capture_output=True, text=True, check=False)
        pip([make.PYTHON, "-m", "pip", "uninstall", "--yes", "torch", "torchvision", "priormatch"])
        assert make.install("reader") == 0
        listed = pip([make.PYTHON, "-m", "pip", "list", "--format", "freeze"]).stdout
        return dict(line.split("==") for line in listed.split() if "torch" in line)

    return install


@pytest.mark.slow
def test_torch_without_cuda_where_its_index_answers_and_the_usual_one_elsewhere(
    small_project, monkeypatch, serve, tmp_path, capfd
):
    usual = {"torch": "2.1", "torchvision": "0.2"}
    # An index of the user's own is the only one that is asked.
    monkeypatch.setattr(make, "CPU_INDEX", serve(tmp_path / "cpu"))
    assert small_project() == usual
    assert f"{make.WITH_CUDA}, unless your index" in capfd.readouterr().out
    # The usual index, and PyTorch's.
    monkeypatch.setattr(make, "has_own_index", lambda: False)
    assert small_project() == {"torch": "2.1+cpu", "torchvision": "0.2+cpu"}
    assert f"{make.LIGHT}, with torch from {make.CPU_INDEX}" in capfd.readouterr().out
    # PyTorch's does not answer: nothing listens there.
    monkeypatch.setattr(make, "CPU_INDEX", "http://127.0.0.1:9/")
    assert small_project() == usual
    assert f"does not answer. The usual one has torch with CUDA: {make.WITH_CUDA}" in (
        capfd.readouterr().out
    )


@pytest.mark.parametrize(
    ("settings", "own"),
    [
        ("global.index-url='https://pip.example/simple'\n", True),
        (":env:.find-links='/wheels'\n", True),
        ("global.timeout='60'\ninstall.extra-index-url='https://pip.example'\n", True),
        ("global.timeout='60'\n:env:.disable-pip-version-check='1'\n", False),
        ("global.cert='/a/index-url=b'\n", False),
        ("", False),
    ],
)
def test_an_index_of_the_users_own_is_seen(settings, own):
    assert bool(make.OWN_INDEX.search(settings)) == own
