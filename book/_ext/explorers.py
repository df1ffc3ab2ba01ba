"""Sphinx extension: explorers on static pages, without a kernel.

An explorer arrives as a still picture with a caption, from a cell or from the directive
``explorer`` of a Markdown page. The page loads `start.js`, which loads the rest when the reader
scrolls near.

1. Still pictures are moved out of the page into files, which a browser loads lazily.
2. Modules, style and data files of the explorers are copied into the site.
"""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive, directives
from sphinx.application import Sphinx

STATIC = "_static/explorers"
FIGURE = 'data-explorer="'
STILL = re.compile(r'src="data:image/png;base64,(?P<bytes>[^"]+)"(?=></div><figcaption>)')
CARRIED = re.compile(r"[\w-]+\.safetensors\.gz")


class ExplorerDirective(Directive):
    """``{explorer} latent`` on a Markdown page: the explorer of that name in its initial state.

    With the option ``small`` it is small, and shows only the parts that follow the pointer.
    """

    required_arguments: ClassVar[int] = 1
    option_spec: ClassVar[dict[str, Any]] = {"small": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Return the explorer's HTML."""
        from priormatch import explorers

        explorer = getattr(explorers, self.arguments[0])()
        html = explorer.html()
        if "small" in self.options:
            html = f'<div class="explorer-small">{html}</div>'
        return [nodes.raw("", html, format="html")]


def prepare_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], tree: nodes.document | None
) -> None:
    """Add script and style to a page with explorers, and move its stills into files."""
    body = context.get("body", "")
    if FIGURE not in body:
        return
    folder = Path(app.outdir) / STATIC
    folder.mkdir(parents=True, exist_ok=True)

    def to_file(still: re.Match[str]) -> str:
        picture = base64.b64decode(still["bytes"])
        name = f"{hashlib.sha256(picture).hexdigest()[:12]}.png"
        (folder / name).write_bytes(picture)
        return f'src="{context["pathto"](f"{STATIC}/{name}", resource=1)}" loading="lazy"'

    context["body"] = STILL.sub(to_file, body)
    names = set(CARRIED.findall(body))
    app.env.explorer_files = getattr(app.env, "explorer_files", set()) | names  # type: ignore[attr-defined]
    app.add_css_file("explorers/explorers.css")
    # A browser loads no module from file://, and says so in its console.
    start = context["pathto"](f"{STATIC}/start.js", resource=1)
    load = f'import(new URL("{start}", document.baseURI))'
    app.add_js_file(
        None,
        body='if (location.protocol !== "file:")'
        f' addEventListener("DOMContentLoaded", () => {load});',
    )


def copy_files(app: Sphinx, exception: Exception | None) -> None:
    """Copy modules, style and data files of the explorers into the finished site."""
    names = getattr(app.env, "explorer_files", None)
    if exception or names is None or app.builder.format != "html":
        return
    from priormatch.explorers import assets

    folder = Path(app.outdir) / STATIC
    package = Path(assets.__file__).parent
    for file in [*package.glob("*.js"), *package.glob("*.css")]:
        (folder / file.name).write_bytes(file.read_bytes())
    for name in sorted(names):
        (folder / name).write_bytes(assets.packed(name.removesuffix(assets.SUFFIX)))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to Sphinx's events."""
    app.add_directive("explorer", ExplorerDirective)
    app.connect("html-page-context", prepare_page)
    app.connect("build-finished", copy_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
