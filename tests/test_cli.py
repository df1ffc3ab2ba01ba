"""The command in a process of its own, far from a checkout, and its answers to bad files."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_world import quick_fits

from priormatch import cli
from priormatch.cli import InputError, main, read_codes, read_prior

NOT_OF_THE_CORE = (
    *("IPython", "ipywidgets", "anywidget", "jupyter_core", "nbformat"),
    *("seaborn", "torchvision", "pandas", "mlxtend", "pyarrow"),
)
"""What only chapters need, or only some files."""

PROGRAM = f"""
import functools, sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *others):
        return None if name in {NOT_OF_THE_CORE!r} else self.finder.find_spec(name, *others)
sys.meta_path[:] = map(Without, sys.meta_path)
from priormatch import densities
from priormatch.cli import main
densities.mixture_sizes = lambda latent: (3,)
densities.fit_flow = functools.partial(densities.fit_flow, steps=15)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def small_fits():
    with quick_fits(3, 15):
        yield


def arrays(examples=120, latent=2, shift=0.0, seed=0):
    """Return arrays of codes that match N(0, I) but for a shift, as a file names them."""
    random = np.random.default_rng(seed)
    return {
        f"{part}_{kind}": values
        for part in ("train", "test")
        for kind, values in (
            ("means", shift + 0.8 * random.standard_normal((examples, latent))),
            ("scales", np.full((examples, latent), 0.6)),
        )
    }


def table(found):
    """Return the lines of a table with the arrays of a file."""
    latent = found["train_means"].shape[1]
    names = [f"{kind}_{j}" for kind in ("mean", "scale") for j in range(latent)]
    lines = [",".join(["part", *names])]
    for part in ("train", "test"):
        both = np.hstack([found[f"{part}_means"], found[f"{part}_scales"]])
        lines += [",".join([part, *map(repr, row.tolist())]) for row in both]
    return "\n".join(lines) + "\n"


def written(folder, suffix, **options):
    file = folder / f"codes{suffix}"
    found = arrays(**options)
    if suffix == ".npz":
        np.savez(file, **found)
    elif suffix == ".safetensors":
        save_file({name: torch.from_numpy(values) for name, values in found.items()}, file)
    elif suffix == ".csv":
        file.write_text(table(found))
    return file


def in_a_process(folder, *arguments):
    """Run the command in another folder, without the modules that only chapters need."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_process_without_jupyter_writes_a_report(tmp_path):
    file = written(tmp_path, ".npz")
    ran = in_a_process(tmp_path, "audit", file, "--html", "a.html", "--json", "--draws", "100")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["settings"]["train"] == told["settings"]["held_out"] == 120
    assert "densities" in ran.stderr
    assert "<title>Audit of codes.npz</title>" in (tmp_path / "a.html").read_text("utf-8")


@pytest.mark.slow
def test_the_module_runs_as_the_command(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "priormatch", "audit", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0
    for said in ("exit codes", "train_log_variances", "Laplace(MEAN, SCALE)", "--fail-above"):
        assert said in ran.stdout


def test_every_format_holds_the_same_codes(tmp_path):
    expected = arrays()
    for suffix in (".npz", ".safetensors", ".csv"):
        for codes, part in zip(
            read_codes(written(tmp_path, suffix)), ("train", "test"), strict=True
        ):
            np.testing.assert_allclose(codes.mixture.means, expected[f"{part}_means"], rtol=1e-12)
            np.testing.assert_allclose(codes.mixture.scales, expected[f"{part}_scales"], rtol=1e-12)


def test_parquet_is_read_or_the_error_says_what_to_install(tmp_path):
    file = tmp_path / "codes.parquet"
    file.write_bytes(b"")
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        with pytest.raises(InputError, match="pip install pyarrow"):
            read_codes(file)
        return
    with pytest.raises(InputError, match="cannot be read"):
        read_codes(file)
    draws = arrays()["train_means"]
    parquet.write_table(pa.table({"draw_0": draws[:, 0], "draw_1": draws[:, 1]}), file)
    train, held_out = read_codes(file)
    assert held_out is None
    np.testing.assert_allclose(train.draw(torch.Generator()), draws)


def test_all_rows_train_without_a_part_and_quotes_are_read(tmp_path):
    file = tmp_path / "codes.csv"
    file.write_text('\ufeff"label","draw_1","draw_0"\n' + '"a, b","2","1.5"\n' * 30, "utf-8")
    train, held_out = read_codes(file)
    assert held_out is None
    assert train.draw(torch.Generator())[0].tolist() == [1.5, 2.0]


# Exit codes


def test_above_a_limit_the_exit_code_says_so(tmp_path, capsys):
    far = written(tmp_path, ".npz", shift=2.0)
    run = ["audit", str(far), "--draws", "100", "--quiet"]
    assert main([*run, "--fail-above", "1"]) == cli.ABOVE
    assert main([*run, "--fail-above", "9"]) == cli.DONE
    assert "The codes are at least" in capsys.readouterr().out
    # In units of its own prior nothing is far.
    assert main([*run, "--prior", "N(2, 1)", "--fail-above", "1"]) == cli.DONE


def test_atoms_are_above_every_limit(tmp_path):
    np.savez(tmp_path / "codes.npz", train_draws=np.arange(200.0)[:, None] % 3)
    run = ["audit", str(tmp_path / "codes.npz"), "--draws", "100", "--quiet"]
    assert main([*run, "--fail-above", "1e9"]) == cli.ABOVE


def test_json_and_text_go_where_they_are_wanted(tmp_path, capsys):
    file = written(tmp_path, ".npz")
    target = tmp_path / "found.json"
    assert main(["audit", str(file), "--draws", "50", "--json", str(target)]) == cli.DONE
    told = json.loads(target.read_text())
    found = capsys.readouterr()
    assert " ".join(told["verdict"]["text"].split()) in " ".join(found.out.split())
    assert "densities" in found.err


class Opened:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def test_nothing_is_unpickled(tmp_path, capsys):
    trace, file = tmp_path / "trace", tmp_path / "codes.npz"
    np.savez(file, train_means=np.array([Opened(trace)], dtype=object))
    assert main(["audit", str(file)]) == cli.REFUSED
    file.write_bytes(pickle.dumps(Opened(trace)))
    assert main(["audit", str(file)]) == cli.REFUSED
    assert "never loaded" in capsys.readouterr().err
    assert not trace.exists()


BAD_FILES = {
    "codes.txt": (b"", "is none of"),
    "codes.npz": (b"not an archive", "cannot be read"),
    "codes.safetensors": (b"no header", "cannot be read"),
    "codes.csv": (b"a,b\n1,2\n", "no columns such as mean_0"),
    "empty.csv": (b"", "no columns such as mean_0"),
    "words.csv": (b"draw_0\none\n", "cannot be read"),
    "holes.csv": (b"draw_0,draw_2\n1,2\n", "not numbered from 0"),
    "parts.csv": (b"part,draw_0\nvalid,2\n", "'valid'"),
    "bytes.csv": (b"draw_0\n\xff\xfe\n", "cannot be read"),
    "nan.csv": (b"draw_0\n" + b"1.0\n" * 30 + b"nan\n", "draws[30, 0] is nan"),
    "few.csv": (b"draw_0\n1\n2\n", "25 training codes or more are needed"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_in_a_line(tmp_path, capsys, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    assert main(["audit", str(tmp_path / name), "--quiet"]) == cli.REFUSED
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"codes": np.ones((30, 2))}, "has no training codes: it has codes"),
        ({"train_stds": np.ones((30, 2))}, "has train_stds"),
        ({"train_means": np.ones((30, 2))}, "train codes: codes need means, with one of"),
        (
            {"train_means": np.ones((30, 2)), "train_scales": -np.ones((30, 2))},
            "train codes: scales[0, 0] is -1",
        ),
        (
            {"train_draws": np.ones((30, 2)), "test_means": np.ones((30, 2))},
            "test codes: codes need means",
        ),
    ],
)
def test_names_that_are_missing_or_wrong_are_said(tmp_path, capsys, names, message):
    np.savez(tmp_path / "codes.npz", **names)
    assert main(["audit", str(tmp_path / "codes.npz")]) == cli.REFUSED
    assert message in capsys.readouterr().err


def test_bad_arguments_are_refused_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "audit", None)
    file = str(written(tmp_path, ".npz"))
    for wrong in (
        ["audit", str(tmp_path / "none.npz")],
        ["audit", file, "--html", str(tmp_path / "none" / "a.html")],
        ["audit", file, "--json", str(tmp_path)],
        ["audit", file, "--prior", "N(0)"],
        ["audit", file, "--prior", "N(0, -1)"],
        ["audit", file, "--prior", "normal"],
    ):
        assert main(wrong) == cli.REFUSED
        assert "Traceback" not in capsys.readouterr().err
    for wrong in ([], ["audit"], ["audit", file, "--draws", "1"], ["audit", file, "--seed", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code == cli.REFUSED


def test_a_fault_of_the_program_has_a_code_of_its_own(tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr(cli, "audit", fails)
    assert main(["audit", str(written(tmp_path, ".npz"))]) == cli.BROKEN


def test_priors_are_read():
    assert read_prior("standard-normal") is None
    assert read_prior("N(1, 2)").stddev == 2
    assert read_prior("uniform( -1 , 1 )").high == 1
    assert read_prior("Laplace(0, 1)").variance == 2
