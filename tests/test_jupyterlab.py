"""The explorers as widgets: in a real JupyterLab with a kernel, from the browser and from Python.

Every control that a page shows is moved there, also one that nobody told this test of.

What the widgets carry is made here once and read by the kernel from files: encoding MNIST again is
not what is tested, and would take most of the time.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Browser, ElementHandle, Locator, Page

from priormatch import explorers
from priormatch.explorers import assets

pytestmark = pytest.mark.book

NAMES = explorers.__all__
"""The explorers, all of them."""

PATIENCE = 300
"""Seconds that a step may take on a busy machine; on an idle one it takes a few."""

SETTINGS = {
    # All cells are in the page, also those off the screen.
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}

SHOW = """\
import json
from pathlib import Path

from IPython.display import display
from priormatch import explorers
from priormatch.explorers import assets
from priormatch.explorers.base import Explorer

assets.packed = lambda name: Path("carried", name).read_bytes()
Explorer.html = lambda explorer: "<p>no widget</p>"
shown = {{name: getattr(explorers, name)() for name in {names}}}
shown["bend"].amount = 0.5  # a straight line leaves the lens nothing to unbend


def state(name):
    return {{trait: getattr(shown[name], trait) for trait in shown[name].state}}


def tell(name):
    # Whoever reads it meanwhile finds it whole.
    Path("told", name + ".new").write_text(json.dumps(state(name)))
    Path("told", name + ".new").replace(Path("told", name))


first = {{name: state(name) for name in shown}}
for name, explorer in shown.items():
    tell(name)
    explorer.observe(lambda change, name=name: tell(name), names=explorer.state)
display(*shown.values())
"""
RESET = """\
for name, traits in first.items():
    for trait, value in traits.items():
        if getattr(shown[name], trait) != value:
            setattr(shown[name], trait, value)
"""

# What a reader sees of a figure, without what is only spoken or said while something loads.
FIGURE = """explorer => {
  const copy = explorer.cloneNode(true);
  for (const node of copy.querySelectorAll(".explorer-spoken, .explorer-status")) node.remove();
  // What was set and taken back leaves empty attributes behind.
  return copy.innerHTML.replaceAll(/ (style|d)=""/g, "") +
    [...explorer.querySelectorAll("canvas")].map(c => c.toDataURL()).join();
}"""
LOOK = f"""explorer => ({FIGURE})(explorer) +
  [...explorer.querySelectorAll("input")].map(i => i.value + i.checked).join()"""

# Whatever takes the keyboard's focus, a click, or a finger for itself.
CONTROLS = """explorer => [...explorer.querySelectorAll("*")].filter(node =>
  node.matches("input, button, select, textarea, [tabindex]") ||
  getComputedStyle(node).touchAction === "none"
).filter(node =>  // a single choice is none
  node.type !== "radio" || explorer.querySelectorAll(`[name="${node.name}"]`).length > 1)"""
# The last first: what a choice brings to light is moved before the next choice hides it again.
NEXT = """controls => {
  const ready = (node) => node.checkVisibility() && !(node.type === "radio" && node.checked);
  const place = controls.findLastIndex(ready);
  return place < 0 ? null : controls.splice(place, 1)[0];
}"""
WAYS = """node => {
  const clicked = ["radio", "checkbox", "button"].includes(node.type);
  const dragged = getComputedStyle(node).touchAction === "none";
  return [clicked && "click", !clicked && node.tabIndex === 0 && "key", dragged && "drag"]
    .filter(Boolean);
}"""
NAME = "node => node.cloneNode().outerHTML + node.parentElement.innerText.slice(0, 40)"

GIVEN = {"offers", "line"}
"""Traits that say what there is to choose from, or what is shown."""

# The indicator in the toolbar says "idle" also before there is a kernel; a cell that is run then is
# left out without a word.
KERNEL_IS_READY = """() => {
  const context = window.jupyterapp?.shell.currentWidget?.sessionContext;
  const kernel = context?.isReady && context.session?.kernel;
  return kernel?.connectionStatus === "connected" && kernel.status === "idle";
}"""

RUN_CELL = """(place) => {
  window.ran = null;
  jupyterapp.shell.currentWidget.content.activeCellIndex = place;
  jupyterapp.commands.execute("notebook:run-cell").then(
    (ran) => (window.ran = ran), (error) => (window.ran = String(error)));
}"""


@pytest.fixture
def lab(tmp_path) -> Iterator[str]:
    """Start a JupyterLab in an empty folder and give the address of its notebook."""
    if find_spec("jupyterlab") is None:
        complain = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        complain("no JupyterLab: pip install -r requirements.txt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {
        f"{name}_DIR": str(tmp_path / "jupyter" / name)
        for name in ("JUPYTER_CONFIG", "JUPYTER_RUNTIME", "JUPYTERLAB_WORKSPACES")
    }
    settings = tmp_path / "jupyter" / "settings"
    for plugin, values in SETTINGS.items():
        file = settings / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *(f"--ServerApp.port={port}", f"--ServerApp.root_dir={tmp_path}"),
        *("--IdentityProvider.token=", "--expose-app-in-browser"),
    ]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            command,
            env=os.environ | folders | {"JUPYTERLAB_SETTINGS_DIR": str(settings)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(lambda: answers(port), "JupyterLab does not start", file=tmp_path / "log")
            yield f"http://127.0.0.1:{port}/lab/tree/explorers.ipynb?reset"
        finally:
            server.terminate()
            server.wait(PATIENCE)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def wait_for(condition, complaint: str, file: Path | None = None) -> None:
    """Wait until a condition holds; else fail with the complaint and what a file says."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            pytest.fail(complaint + (f":\n{file.read_text()[-3000:]}" if file else ""))
        time.sleep(0.05)


def write_notebook(folder: Path) -> None:
    """Write a notebook that shows every explorer, and the files that its kernel reads."""
    (folder / "told").mkdir()
    (folder / "carried").mkdir()
    for explorer in NAMES:
        for name in getattr(explorers, explorer)().carried.values():
            (folder / "carried" / name).write_bytes(assets.packed(name))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [new_code_cell(SHOW.format(names=NAMES)), new_code_cell(RESET)]
    write(
        new_notebook(cells=cells, metadata={"kernelspec": kernel}), str(folder / "explorers.ipynb")
    )


def run_cell(tab: Page, place: int) -> None:
    """Run a cell, and wait until it is done.

    JupyterLab's own command needs neither a click nor the keyboard's focus, which go astray while
    the page is still being set up. Which cell is selected is not left to chance: a control that has
    the focus selects the cell that it belongs to.
    """
    tab.evaluate(RUN_CELL, place)
    tab.wait_for_function("ran !== null")
    if tab.evaluate("ran") is not True:
        tab.wait_for_timeout(2000)  # until what is wrong is drawn
    errors = tab.locator(".jp-RenderedText[data-mime-type*=error]").all_inner_texts()
    assert (tab.evaluate("ran"), errors) == (True, [])


def move(tab: Page, control: ElementHandle, way: str) -> None:
    """Move a control by a click, by a key, or by dragging the mouse across it."""
    control.scroll_into_view_if_needed()
    if way == "click":
        control.click()
    elif way == "key":
        control.focus()
        tab.keyboard.press("ArrowRight")
    else:
        box = control.bounding_box()
        for share, act in ((0.4, tab.mouse.down), (0.6, tab.mouse.up)):
            tab.mouse.move(box["x"] + share * box["width"], box["y"] + share * box["height"])
            act()
        # Some figures follow a mouse that rests on them.
        tab.mouse.move(0, 0)


def traits_moved(
    tab: Page, explorer: Locator, told: Path, control: ElementHandle, way: str
) -> set[str]:
    """Move a control, see that the figure changes, and return the traits of which Python hears."""
    what = f"a {way} of {control.evaluate(NAME)} in {told.name}"
    # All that came of the move before has arrived.
    wait_for(lambda: time.time() - told.stat().st_mtime > 0.3, f"no rest before {what}")
    old, figure = json.loads(told.read_text()), explorer.evaluate(FIGURE)
    text = control.text_content()
    move(tab, control, way)
    wait_for(lambda: json.loads(told.read_text()) != old, f"Python hears nothing of {what}")
    wait_for(lambda: explorer.evaluate(FIGURE) != figure, f"the figure does not change by {what}")
    new = json.loads(told.read_text())
    if control.text_content() != text:
        control.click()  # a button that says "Stop" now
    return {trait for trait in old if new[trait] != old[trait]}


def move_every_control(tab: Page, explorer: Locator, told: Path) -> None:
    """Move each control of an explorer, and find that they move all of its traits."""
    moved: set[str] = set()
    waiting = explorer.evaluate_handle(CONTROLS)
    while control := waiting.evaluate_handle(NEXT).as_element():
        ways = control.evaluate(WAYS)
        assert ways, f"how is this moved? {control.evaluate(NAME)}"
        for way in ways:
            moved |= traits_moved(tab, explorer, told, control, way)
    assert waiting.evaluate(f"controls => controls.map({NAME})") == [], "these are never shown"
    assert moved == set(json.loads(told.read_text())) - GIVEN, told.name


def test_explorers_are_widgets_in_jupyterlab(tmp_path, lab, browser: Browser):
    write_notebook(tmp_path)
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, reduced_motion="reduce")
    context.set_default_timeout(1000 * PATIENCE)
    tab = context.new_page()
    faults: list[str] = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.goto(lab)
    tab.wait_for_function(KERNEL_IS_READY)
    run_cell(tab, 0)
    living = {name: tab.locator(f".explorer-live.explorer-{name}") for name in NAMES}
    looks = {}
    for name, explorer in living.items():
        explorer.wait_for()
        explorer.scroll_into_view_if_needed()
        tab.wait_for_function(
            "name => !document.querySelector(`.explorer-live.explorer-${name} .explorer-status`)"
            "?.textContent",
            arg=name,
        )
        looks[name] = explorer.evaluate(LOOK)

    # Radio buttons of two explorers are not one group.
    groups = tab.locator("[role=radiogroup]").all()
    assert [group.locator(":checked").count() for group in groups] == [1] * len(groups)

    for name, explorer in living.items():
        move_every_control(tab, explorer, tmp_path / "told" / name)

    # Traits that are set in Python move the figure, here back to where it was.
    run_cell(tab, 1)
    for name in NAMES:
        tab.wait_for_function(
            f"([name, look]) => ({LOOK})"
            "(document.querySelector(`.explorer-live.explorer-${name}`)) === look",
            arg=[name, looks[name]],
        )
    context.close()
    assert faults == []
