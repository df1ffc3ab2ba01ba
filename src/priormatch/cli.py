"""The command ``priormatch audit``: codes in a file, a report out."""

import argparse
import csv
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
from torch.distributions import Distribution, Laplace, Normal, Uniform

from priormatch.auditing import audit
from priormatch.checks import (
    FamilyError,
    NonFiniteError,
    NumberFormatError,
    PrecisionError,
    ScaleError,
    ShapeError,
)
from priormatch.codes import Codes
from priormatch.estimate import TooFewCodesError
from priormatch.report import Report

DONE, ABOVE, REFUSED, BROKEN = 0, 1, 2, 3
"""Exit codes: a report was made, the mismatch is above the limit, bad input, a fault of ours."""

_KINDS = ("means", "scales", "log_variances", "covariances", "draws")
_COLUMNS = {"mean": "means", "scale": "scales", "log_variance": "log_variances", "draw": "draws"}
_PARTS = ("train", "test")

_PRIORS: dict[str, Callable[[float, float], Distribution]] = {
    "n": Normal,
    "laplace": Laplace,
    "uniform": Uniform,
}

_EPILOG = """\
names in an .npz or .safetensors file:
  train_means, with train_scales, train_log_variances or train_covariances;
  or train_draws alone; and the same with test_ for examples held out from
  training, without which some training codes are set apart

columns of a .csv or .parquet file, one row for each example:
  part (train or test; all are train without it), and mean_0, mean_1, ...
  with scale_0, ... or log_variance_0, ...; or draw_0, ... alone

priors:
  standard-normal, N(MEAN, SCALE), Laplace(MEAN, SCALE), Uniform(LOW, HIGH);
  SCALE is a standard deviation for N, and all latent dimensions share the prior

exit codes:
  0  the report was made
  1  it was made, and the codes are further from the prior than --fail-above
  2  the arguments, the file, or the codes in it cannot be used
  3  the program failed

example:
  priormatch audit codes.npz --html report.html
"""


_REFUSALS = (
    FamilyError,
    NonFiniteError,
    NumberFormatError,
    PrecisionError,
    ScaleError,
    ShapeError,
    TooFewCodesError,
)
"""What the package says of codes that it cannot take; the messages are for who has the codes."""


class InputError(Exception):
    """The file or an argument cannot be used; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: Arguments of the command line; those of the process if None.
    """
    options = _parser().parse_args(arguments)
    try:
        for target in (options.html, options.json):
            _check_target(target)
        train, held_out = read_codes(options.file)
        report = audit(
            train,
            held_out,
            prior=read_prior(options.prior),
            draws=options.draws,
            seed=options.seed,
            progress=not options.quiet,
        )
        _write(report, options)
    except BrokenPipeError:
        # Who read the report, such as head, has read enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (InputError, *_REFUSALS, OSError) as error:
        print(f"priormatch: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("priormatch: interrupted", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return BROKEN
    above = options.fail_above is not None and _is_above(report, options.fail_above)
    return ABOVE if above else DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="priormatch", description="How well do the codes of an autoencoder match its prior?"
    )
    parser.add_argument(
        "--version", action="version", version=f"priormatch {metadata.version('priormatch')}"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser(
        "audit",
        help="measure codes in a file, and print a report with advice",
        description="Measure codes in a file, and print a report with advice.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.add_argument("file", type=Path, help=".npz, .safetensors, .csv or .parquet")
    one.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page, too")
    one.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write it as JSON, too; without FILE, or with -, in place of the text",
    )
    one.add_argument("--prior", default="standard-normal", help="the model's prior; see below")
    one.add_argument("--draws", type=_positive, default=10_000, help="10000 if not given")
    one.add_argument("--seed", type=int, default=0, help="0 if not given")
    one.add_argument(
        "--fail-above",
        type=float,
        metavar="NATS",
        help="exit with 1 if the codes are certainly further from the prior than this",
    )
    one.add_argument("--quiet", action="store_true", help="do not print progress")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{number} is less than 2")
    return number


def _check_target(target: Path | str | None) -> None:
    """Raise before the work, if its result could not be written."""
    if target is None or target == "-":
        return
    path = Path(target)
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise InputError(f"{path} cannot be written: it is a folder, or there is no folder for it")


def _write(report: Report, options: argparse.Namespace) -> None:
    if options.html is not None:
        title = f"Audit of {options.file.name}"
        options.html.write_text(report.html(title), encoding="utf-8")
    if options.json == "-":
        print(json.dumps(report.as_dict(), indent=2))
        return
    if options.json is not None:
        text = json.dumps(report.as_dict(), indent=2) + "\n"
        Path(options.json).write_text(text, encoding="utf-8")
    print(report, flush=True)


def _is_above(report: Report, limit: float) -> bool:
    """Tell whether a lower bound exceeds a number of nats by two standard errors."""
    verdict = report.advice[0]
    if verdict.kind == "infinite":
        return True
    bound = verdict.nats
    return bound is not None and bound.value - 2 * bound.standard_error > limit


def read_prior(text: str) -> Distribution | None:
    """Return the prior that an argument names; None is N(0, I).

    Raises:
        InputError: It names none.

    >>> read_prior("N(5, 2)")
    Normal(loc: 5.0, scale: 2.0)
    """
    if text == "standard-normal":
        return None
    found = re.fullmatch(r"\s*(\w+)\s*\(\s*([^,()]+),\s*([^,()]+)\)\s*", text)
    if not found or found[1].lower() not in _PRIORS:
        raise InputError(
            f"{text!r} is no prior that this command knows: standard-normal, N(MEAN, SCALE), "
            "Laplace(MEAN, SCALE) or Uniform(LOW, HIGH); others go to priormatch.audit in Python"
        )
    try:
        first, second = float(found[2]), float(found[3])
        return _PRIORS[found[1].lower()](first, second, validate_args=True)  # type: ignore[call-arg]
    except ValueError as error:
        raise InputError(f"the prior {text!r}: {str(error).splitlines()[0]}") from None


def read_codes(file: Path) -> tuple[Codes, Codes | None]:
    """Read training and held-out codes from a file; nothing is unpickled.

    Args:
        file: An ``.npz``, ``.safetensors``, ``.csv`` or ``.parquet`` file, with names as
            ``priormatch audit --help`` says.

    Raises:
        InputError: The file cannot be read, or holds no codes.
    """
    readers: dict[str, Callable[[Path], dict[str, Any]]] = {
        ".npz": _read_npz,
        ".safetensors": _read_safetensors,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    if file.suffix.lower() not in readers:
        raise InputError(f"{file} is none of {', '.join(readers)}")
    if not file.is_file():
        raise InputError(f"there is no file {file}")
    found = readers[file.suffix.lower()](file)
    known = {f"{part}_{kind}" for part in _PARTS for kind in _KINDS}
    odd = sorted(
        name for name in found if name.startswith(("train_", "test_")) and name not in known
    )
    if odd:
        raise InputError(f"{file} has {', '.join(odd)}, and known names are {_listed(known)}")
    if not any(name.startswith("train_") for name in found):
        raise InputError(
            f"{file} has no training codes: it has {_listed(found) or 'nothing'}, and known names "
            f"are {_listed(known)}"
        )
    sets = []
    for part in _PARTS:
        kinds = {kind: found[name] for kind in _KINDS if (name := f"{part}_{kind}") in found}
        try:
            sets.append(Codes(**kinds) if kinds else None)
        except _REFUSALS as error:
            raise InputError(f"{file}, {part} codes: {error}") from None
    train, held_out = sets
    assert train is not None
    return train, held_out


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))


def _read_npz(file: Path) -> dict[str, Any]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:
        raise InputError(
            f"{file} cannot be read as arrays of numbers: {error}. Objects that need unpickling "
            "are never loaded"
        ) from None


def _read_safetensors(file: Path) -> dict[str, Any]:
    load = import_module("safetensors.torch").load_file
    try:
        return dict(load(file))
    except Exception as error:
        raise InputError(f"{file} cannot be read as safetensors: {error}") from None


def _read_csv(file: Path) -> dict[str, Any]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            header = [name.strip() for name in next(csv.reader(lines), [])]
            numbers = [place for place, name in enumerate(header) if _COLUMN.fullmatch(name)]
            if not numbers:
                raise InputError(f"{file} has no columns such as mean_0 and scale_0, or draw_0")
            table = np.loadtxt(
                lines, delimiter=",", usecols=numbers, ndmin=2, quotechar='"', comments=None
            )
        parts = None
        if "part" in header:
            with file.open(encoding="utf-8-sig", newline="") as lines:
                next(lines)
                parts = np.loadtxt(
                    lines,
                    str,
                    delimiter=",",
                    usecols=header.index("part"),
                    ndmin=1,
                    quotechar='"',
                    comments=None,
                )
    except (ValueError, UnicodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as a table of numbers: {error}") from None
    columns = {header[place]: table[:, k] for k, place in enumerate(numbers)}
    return _from_columns(file, columns, parts)


def _read_parquet(file: Path) -> dict[str, Any]:
    try:
        reader = import_module("pyarrow.parquet")
    except ImportError:
        raise InputError(f"{file} needs pyarrow: pip install pyarrow") from None
    try:
        table = reader.read_table(file)
        columns = {
            name: table[name].to_numpy() for name in table.column_names if _COLUMN.fullmatch(name)
        }
        parts = table["part"].to_numpy() if "part" in table.column_names else None
    except Exception as error:
        raise InputError(f"{file} cannot be read as parquet: {error}") from None
    if not columns:
        raise InputError(f"{file} has no columns such as mean_0 and scale_0, or draw_0")
    return _from_columns(file, columns, parts)


_COLUMN = re.compile(rf"({'|'.join(_COLUMNS)})_(\d+)")


def _from_columns(file: Path, columns: dict[str, Any], parts: Any) -> dict[str, Any]:
    """Return arrays by the names that they have in other files."""
    places: dict[str, dict[int, str]] = {}
    for name in columns:
        kind, place = name.rsplit("_", 1)
        places.setdefault(kind, {})[int(place)] = name
    some = next(iter(columns.values()))
    parts = np.full(len(some), "train") if parts is None else np.char.strip(parts.astype(str))
    wrong = sorted({*parts.tolist()} - {*_PARTS})
    if wrong:
        raise InputError(f"{file} has the part {wrong[0]!r}, and parts are train and test")
    found = {}
    for kind, named in places.items():
        if sorted(named) != [*range(len(named))]:
            raise InputError(f"{file} has {len(named)} columns {kind}_…, not numbered from 0")
        matrix = np.stack([columns[named[j]] for j in range(len(named))], 1)
        for part in _PARTS:
            if (parts == part).any():
                found[f"{part}_{_COLUMNS[kind]}"] = matrix[parts == part]
    return found
