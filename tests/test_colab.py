"""A chapter where the package is missing, as in Colab: its first cell installs it.

The environment here has everything but the package, and an index that serves the wheel made here.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from execution import ROOT

pytestmark = pytest.mark.book

NOTEBOOKS = sorted(ROOT.glob("book/**/*.ipynb"))
INSTALL = """\
from importlib.util import find_spec

if find_spec("priormatch") is None:  # in Colab, for instance
    %pip install --quiet "priormatch[chapters]"
"""


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_begins_with_a_folded_cell_that_installs(notebook):
    first = json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]
    assert "".join(first["source"]) == INSTALL.strip()
    assert first["metadata"] == {
        "cellView": "form",  # Colab's word for a folded cell
        "jupyter": {"source_hidden": True},  # JupyterLab's
        "tags": ["remove-cell"],  # on the page it would say nothing
    }


@pytest.fixture
def elsewhere(tmp_path) -> tuple[Path, dict[str, str]]:
    """Make an environment with everything but the package; return its Python and its settings."""
    wheels = tmp_path / "wheels"
    # A copy, because a build leaves files beside the sources.
    sources = tmp_path / "sources"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, tracked.split("\0")):
        wanted = name.split("/")[0] in {"src", "results"} or "/" not in name
        if wanted and (ROOT / name).exists():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, sources / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, sources]
    subprocess.run([*pip, *build], check=True)
    others = tmp_path / "others"
    others.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "priormatch" not in entry.name and not entry.name.startswith("__editable__"):
            (others / entry.name).symlink_to(entry)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    inside = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(inside, capture_output=True, text=True, check=True).stdout.strip()
    (Path(packages) / "others.pth").write_text(str(others))
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    return python, os.environ | settings


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_a_chapter_runs_where_the_package_is_missing(elsewhere, tmp_path):
    python, settings = elsewhere
    find = [python, "-c", "import priormatch"]
    missing = subprocess.run(find, env=settings, capture_output=True, check=False)
    assert b"No module named 'priormatch'" in missing.stderr
    folder = tmp_path / "content"
    folder.mkdir()
    shutil.copy(ROOT / "book" / "04-why-the-mixture-nearly-matches.ipynb", folder / "chapter.ipynb")
    run = (
        "import nbformat; from nbclient import NotebookClient;"
        "notebook = nbformat.read('chapter.ipynb', 4);"
        "NotebookClient(notebook, timeout=300).execute()"
    )
    # A kernel of this environment, whatever kernels the computer has.
    kernel = tmp_path / "kernels" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(
        json.dumps({"argv": command, "display_name": "Python 3", "language": "python"})
    )
    settings["JUPYTER_PATH"] = str(tmp_path / "kernels")
    done = subprocess.run(
        [python, "-c", run], cwd=folder, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = subprocess.run(
        [python, "-c", "import priormatch; print(priormatch.__file__)"],
        cwd=folder, env=settings, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert found.startswith(str(tmp_path / "venv"))
