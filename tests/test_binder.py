"""What Binder and Codespaces would install, read as their programs read it, without a network.

Binder's repo2docker takes the version of Python from ``.binder/runtime.txt``, and runs pip at the
root of the repository with ``.binder/requirements.txt``.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from execution import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import make

pytestmark = pytest.mark.book

BINDER = ROOT / ".binder" / "requirements.txt"


def fake_wheel(folder: Path, name: str, version: str) -> None:
    """Write a wheel that has a name and a version, and nothing else."""
    name = re.sub(r"[-_.]+", "_", name)
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{name}-{version}.dist-info"
    with ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")


def python_of_binder() -> str:
    return (ROOT / ".binder" / "runtime.txt").read_text().strip().removeprefix("python-")


def test_one_version_of_python_and_ci_has_all():
    python = python_of_binder()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"{python}.0" in SpecifierSet(project["requires-python"])
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["image"].endswith(f":{python}")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text())
    tested = workflow["jobs"]["systems"]["strategy"]["matrix"]["python"]
    assert python in tested
    assert tested == [f"3.{minor}" for minor in range(11, make.NEWEST_PYTHON[1] + 1)]


@pytest.mark.slow
def test_binder_takes_the_locked_versions_and_torch_without_cuda(tmp_path):
    for name in ("pyproject.toml", "setup.py", "_config.yml", "LICENSE", make.READERS, make.LOCK):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "src" / "priormatch").mkdir(parents=True)
    (tmp_path / ".binder").mkdir()

    usual, cpu = tmp_path / "usual", tmp_path / "cpu"
    text = BINDER.read_text(encoding="utf-8")
    assert make.CPU_INDEX in text
    (tmp_path / ".binder" / BINDER.name).write_text(
        text.replace(f"--extra-index-url {make.CPU_INDEX}", f"--find-links {cpu}")
    )
    locked = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / make.LOCK).read_text(), re.MULTILINE))
    for name, version in locked.items():
        for each in (version, "9999"):
            fake_wheel(usual, name, each)
    for name in ("torch", "torchvision"):
        fake_wheel(cpu, name, f"{locked[name]}+cpu")

    report = tmp_path / "report.json"
    pip = [sys.executable, "-m", "pip", "--isolated", "install", "--no-index"]
    dry = ["--dry-run", "--ignore-installed", "--no-build-isolation", "--report", report]
    ran = subprocess.run(
        [*pip, *dry, "--find-links", usual, "--requirement", f".binder/{BINDER.name}"],
        cwd=tmp_path,
        env={"PIP_CONFIG_FILE": "/dev/null"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    installs = json.loads(report.read_text())["install"]
    found = {each["metadata"]["name"]: each["metadata"]["version"] for each in installs}
    assert found.pop("priormatch")
    needed = (ROOT / make.READERS).read_text(encoding="utf-8").splitlines()
    needed = [Requirement(line).name for line in needed if line and not line.startswith("#")]
    expected = {name: locked[name.lower()] for name in needed}
    expected |= {name: f"{locked[name]}+cpu" for name in ("torch", "torchvision")}
    assert {canonicalize_name(name): version for name, version in found.items()} == {
        canonicalize_name(name): version for name, version in expected.items()
    }
