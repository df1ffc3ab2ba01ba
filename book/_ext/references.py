"""Hold a chapter's results against the stored references: ``tests/references/<chapter>.json``.

A file holds one entry per result. What an entry says depends on its kind:

closed form, record
    ``value``; the run may differ by the share 1e-5 of it, or by ``relative`` if the entry has it.
Monte Carlo
    ``value`` and ``standard_error``; the run may differ by 5 standard errors of its own, and its
    standard error by a factor of 2.
trained model
    ``value`` and ``standard_deviation`` over ``seeds`` >= 5 seeds; the run may differ by 4 of them.
ordering
    ``above`` or ``below`` or both, as written by hand: the run lies between them.

The text types the numbers of one run, and a training within a chapter ends elsewhere on another
processor. Where it does, the entry of a trained model or of an ordering has ``run``, the ``value``
and ``standard_error`` of the typed run, and the text is right while the new run lies in the band.
Entries of the other kinds are of that run themselves.

Every entry also says in ``full_data`` whether the number needs the full MNIST; such a number is not
compared in a book built on the fallback digits.
"""

import json
from pathlib import Path
from typing import Any

import nbformat

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
HOW_TO_WRITE = {
    "trained model": '"value", "standard_deviation" and "seeds" (at least 5) of a study',
    "ordering": '"above" or "below" with room',
}


def file_of(root: Path, chapter: str) -> Path:
    """Return the file with a chapter's references."""
    return root / "tests" / "references" / f"{Path(chapter).name}.json"


def load(root: Path, chapter: str) -> dict[str, Entry]:
    """Return a chapter's references by name."""
    file = file_of(root, chapter)
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def results_of(notebook: nbformat.NotebookNode) -> dict[str, Entry]:
    """Return the results that an executed chapter shows in its table.

    Raises:
        ValueError: There is no such table, or more than one.
    """
    found = [
        output.metadata["priormatch"]["results"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "priormatch" in output.get("metadata", {})
    ]
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} cells show a table of results; one must: end it with `table(results)`."
        )
    return found[0]


def complaint(run: Entry, reference: Entry) -> str | None:
    """Say what is wrong with a result, or return None if it lies in its reference's band."""
    kind = reference["kind"]
    if run["kind"] != kind:
        return f"kind {run['kind']!r}, reference {kind!r}"
    value = run["value"]
    if kind == "ordering":
        low = reference.get("above", -float("inf"))
        high = reference.get("below", float("inf"))
        if "above" not in reference and "below" not in reference:
            return 'an ordering\'s reference needs "above" or "below"'
        return None if low < value < high else f"value {value!r}, band ({low!r}, {high!r})"
    expected = reference["value"]
    if kind in EXACT:
        # Where the truth is zero a share of it says nothing, and the band is absolute.
        room = reference.get("relative", RELATIVE) * (abs(expected) or 1)
    elif kind == "Monte Carlo":
        room = STANDARD_ERRORS * run["standard_error"]
        ratio = run["standard_error"] / reference["standard_error"]
        if not 1 / STANDARD_ERROR_FACTOR <= ratio <= STANDARD_ERROR_FACTOR:
            return (
                f"standard error {run['standard_error']!r}, "
                f"reference {reference['standard_error']!r}, band a factor {STANDARD_ERROR_FACTOR}"
            )
    else:
        if reference.get("seeds", 0) < SEEDS:
            return f'the reference of a trained model needs "seeds" of at least {SEEDS}'
        room = STANDARD_DEVIATIONS * reference["standard_deviation"]
    if abs(value - expected) <= room:
        return None
    return f"value {value!r}, reference {expected!r}, band ± {room:.3g}"


def typed(reference: Entry) -> Entry:
    """Return value and standard error of the run whose numbers the text types, if it is known."""
    return reference if reference["kind"] in FROM_ONE_RUN else reference.get("run", {})


def updated(
    references: dict[str, Entry], results: dict[str, Entry]
) -> tuple[dict[str, Entry], list[str]]:
    """Bring the references up to a run, as far as one run can, and say what changed.

    Entries of closed forms and Monte Carlo estimates are written anew, added or removed; bounds and
    flags in them are kept. All other entries stay as they are, but for a ``run`` that they have.
    """
    kept = {
        name: entry
        for name, entry in references.items()
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
    changes = [f"{name}: removed" for name in references if name not in new]
    changes += [
        f"{name}: {references.get(name, 'new')} -> {entry}"
        for name, entry in new.items()
        if references.get(name) != entry
    ]
    return new, changes


MEASURED = ("kind", "value", "standard_error")


def save(root: Path, chapter: str, references: dict[str, Entry]) -> None:
    """Write a chapter's references, an entry a line."""
    lines = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in references.items()]
    file = file_of(root, chapter)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
