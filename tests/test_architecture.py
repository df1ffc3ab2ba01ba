"""The rules of the package: who opens files, who may import whom, what stays private, how long."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import priormatch

SRC = Path(priormatch.__file__).parent

LAYERS = (
    {"estimate", "data"},
    {"checks"},
    {"divergences", "degeneracy", "expectation_maximisation"},
    {"distributions"},
    {"models"},
    {"codes", "known_prior"},
    {"objectives", "schedules"},
    {"recipe"},
    {"training"},
    {
        *("mismatch", "densities", "evidence", "inference_gap", "samplers", "sample_quality"),
        *("line", "plotting", "reporting", "two_sample", "goodness_of_fit"),
    },
    {"summaries"},
    {"measurement"},
    {"advice", "report_figures"},
    {"report"},
    {"auditing"},
    {"experiments"},
    {"explorers"},
    {"cli", "__init__", "__main__"},
)
"""Modules and folders of modules; an import runs down, or stays in its layer."""

MAY_OPEN_FILES = {"data", "experiments", "explorers", "cli"}

OPENERS = {
    *("open", "read_text", "write_text", "read_bytes", "write_bytes"),
    *("load_file", "save_file", "read_csv", "to_csv", "read_json", "to_json"),
    *("fromfile", "tofile", "loadtxt", "savetxt", "savez", "memmap"),
    *(f"{module}.{name}" for module in ("torch", "np", "numpy") for name in ("load", "save")),
    *(f"{module}.{name}" for module in ("json", "pickle") for name in ("load", "dump")),
}
"""Functions and methods that open a file; those with a dot are harmless in other modules."""

MOST_LINES, MOST_CODE = 400, 250


def sources() -> Iterator[tuple[str, str]]:
    """Yield the dotted name of each module below ``priormatch``, and its source."""
    for file in sorted(SRC.rglob("*.py")):
        yield ".".join(file.relative_to(SRC).with_suffix("").parts), file.read_text("utf-8")


def imports(source: str) -> Iterator[tuple[str, str, str]]:
    """Yield what a source imports: the module, the name taken from it, and what it is called."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((one.name, "", one.asname or one.name) for one in node.names)
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, one.name, one.asname or one.name) for one in node.names)


def opened(name: str, source: str) -> list[str]:
    """Return what opens a file, where none may be opened."""
    if name.split(".")[0] in MAY_OPEN_FILES:
        return []
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    called = [(node.lineno, ast.unparse(node.func)) for node in calls]
    taken = [(0, f"{module}.{one}") for module, one, _ in imports(source)]
    return [
        f"{name}:{line} opens a file by {function}"
        for line, function in called + taken
        if function in OPENERS or function.rsplit(".", 1)[-1] in OPENERS
    ]


def upward(name: str, source: str) -> list[str]:
    """Return the imports that run from a layer to one above it."""
    layer = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
    # From priormatch.models import draw; from priormatch import models.
    paths = [f"{module}.{one}".split(".")[1:] for module, one, _ in imports(source)]
    of_package = [module.split(".")[0] == "priormatch" for module, _, _ in imports(source)]
    return [
        f"{name} imports {path[0]}, which stands above it"
        for path, ours in zip(paths, of_package, strict=True)
        if ours and layer[path[0]] > layer[name.split(".")[0]]
    ]


def crossing(name: str, source: str) -> list[str]:
    """Return the underscore names of other modules of the package that a source uses."""
    ours = [found for found in imports(source) if found[0].split(".")[0] == "priormatch"]
    called = {alias for _, _, alias in ours}
    reached = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in called
    ]
    used = [*(f"{module}.{one}" for module, one, _ in ours), *reached]
    return [
        f"{name} uses {path}"
        for path in used
        if any(part.startswith("_") and not part.endswith("__") for part in path.split("."))
    ]


def too_long(name: str, source: str) -> list[str]:
    """Return a complaint about a module that is long for its code, not for what it explains."""
    lines = source.splitlines()
    code = {
        number for number, line in enumerate(lines, 1) if line.strip() and line.strip()[0] != "#"
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            code -= {*range(node.lineno, node.end_lineno + 1)}
    if len(lines) <= MOST_LINES or len(code) <= MOST_CODE:
        return []
    return [f"{name} has {len(lines)} lines, {len(code)} of them code: make two modules of it"]


RULES = [opened, upward, crossing, too_long]


@pytest.mark.parametrize("rule", RULES)
def test_the_package_keeps_its_rules(rule):
    assert [fault for name, source in sources() for fault in rule(name, source)] == []


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (opened, "models", "text = file.with_suffix('.x').read_text()"),
        (opened, "mismatch", "import torch\ntorch.save({}, 'weights')"),
        (opened, "line", "from safetensors.torch import load_file"),
        (upward, "models", "from priormatch import training"),
        (upward, "evidence.quadrature", "def f():\n    from priormatch.experiments.store import a"),
        (upward, "experiments.study", "import priormatch.explorers.assets"),
        (crossing, "samplers", "from priormatch.densities import _unit"),
        (crossing, "samplers", "from priormatch import densities as d\nd._unit()"),
        (too_long, "models", "a = 1\n" * 251 + "\n" * 150),
    ],
)
def test_a_rule_sees_what_breaks_it(rule, name, source):
    assert len(rule(name, source)) == 1


def test_what_a_rule_allows_is_no_fault():
    explained = '"""' + "word\n" * 300 + '"""\n' + "# why\n" * 100 + "a = 1\n" * 100
    assert too_long("models", explained) == []
    assert opened("experiments.store", "open('results')") == []
    assert opened("models", "model.load(state)\nplt.style.use(style)") == []
    assert upward("line", "from priormatch.evidence import Grid\nimport torch") == []
    assert crossing("line", "from priormatch import models\nmodels.__doc__\nself._own()") == []
