"""The package as ``pip install`` leaves it, far from a checkout: with the book's stored results."""

import shutil
import subprocess
import sys
from email import message_from_string
from pathlib import Path
from zipfile import ZipFile

import address
import pytest
from execution import ROOT, UNFINISHED
from packaging.requirements import Requirement


def is_for_readers(file: Path) -> bool:
    parts = file.relative_to(ROOT).parts
    return file.is_file() and not any(
        UNFINISHED.search(part) or part.endswith("-checkpoints") for part in parts
    )


RESULTS = [
    file.relative_to(ROOT / "results")
    for file in sorted((ROOT / "results").rglob("*"))
    if is_for_readers(file)
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel from a copy of what it is made of, because a build leaves things behind."""
    copy, target = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    metadata = ("pyproject.toml", "setup.py", "MANIFEST.in", "requirements.txt", "LICENSE")
    for name in (*metadata, "_config.yml"):
        shutil.copy(ROOT / name, copy)
    for name in ("src", "results"):
        shutil.copytree(
            ROOT / name, copy / name, ignore=lambda _, names: filter(UNFINISHED.search, names)
        )
    unfinished = copy / "results" / "models" / "question.checkpoint"
    unfinished.write_text("not for readers")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    built = subprocess.run(
        [*build, "--wheel-dir", target, copy], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return next(target.glob("*.whl"))


@pytest.mark.slow
def test_a_wheel_has_every_stored_result_and_all_that_explorers_load(wheel):
    with ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if "_results/" in name}
        assert names == {f"priormatch/_results/{file.as_posix()}" for file in RESULTS}
        assert len(names) > 10
        for file in RESULTS:
            stored = packed.read(f"priormatch/_results/{file.as_posix()}")
            assert stored == (ROOT / "results" / file).read_bytes(), file
        for file in (ROOT / "src").rglob("*"):
            if file.suffix in (".py", ".js", ".css", ".mplstyle"):
                assert file.relative_to(ROOT / "src").as_posix() in packed.namelist()


@pytest.mark.slow
def test_a_wheel_says_where_it_comes_from_and_what_it_needs(wheel):
    with ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
        said = message_from_string(packed.read(name).decode())
    assert said.get_all("Project-URL") == [f"Source, {address.repository()}"]
    needed: dict[bool, set[Requirement]] = {True: set(), False: set()}
    for line in said.get_all("Requires-Dist"):
        requirement = Requirement(line)
        of_the_book, requirement.marker = requirement.marker is not None, None
        needed[of_the_book].add(requirement)
    listed = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = [line for line in listed if line and not line.startswith("#")]
    assert needed[True] | needed[False] == {Requirement(line) for line in listed}
    # What a chapter needs is an extra, and what the measures need is not.
    assert {one.name for one in needed[False]} >= {"torch", "scikit-learn", "zuko", "matplotlib"}
    assert {one.name for one in needed[True]} >= {"jupyterlab", "ipywidgets", "torchvision"}
    assert said.get_all("Provides-Extra") == ["chapters", "book"]


@pytest.mark.slow
def test_an_installed_package_finds_its_results(wheel, tmp_path):
    with ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "installed")
    ask = "from priormatch.experiments import store; print(store.RESULTS)"
    answer = subprocess.run(
        [sys.executable, "-c", ask],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert Path(answer) == tmp_path / "installed" / "priormatch" / "_results"
    assert (Path(answer) / "models" / "question.safetensors").exists()
    assert (Path(answer) / "study.csv").exists()


def test_a_checkout_reads_its_own_results():
    from priormatch.experiments import store

    assert store.RESULTS == ROOT / "results"
