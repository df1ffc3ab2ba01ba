"""The way out of Jupyter Book 1: settings of plain Sphinx from ``_config.yml``.

Jupyter Book 1 keeps Sphinx and its extensions at old versions, and its successor is another
program. ``python book/_ext/plain_sphinx.py > conf.py`` writes what Jupyter Book tells Sphinx; then
``sphinx-build . _build/html`` builds the same site without Jupyter Book, with newer versions too.
The newest theme needs the package brotli.
"""

import sys
from pathlib import Path
from pprint import pformat
from typing import Any

import yaml
from execution import ROOT

NAMES = {
    "title": "html_title",
    "author": "author",
    "copyright": "copyright",
    "only_build_toc_files": "external_toc_exclude_missing",
    "exclude_patterns": "exclude_patterns",
    "bibtex_bibfiles": "bibtex_bibfiles",
    "execute.execute_notebooks": "nb_execution_mode",
    "execute.timeout": "nb_execution_timeout",
    "execute.stderr_output": "nb_output_stderr",
    "parse.myst_enable_extensions": "myst_enable_extensions",
    "repository.url": "html_theme_options.repository_url",
    "repository.branch": "html_theme_options.repository_branch",
    "launch_buttons": "html_theme_options.launch_buttons",
    "html.baseurl": "html_baseurl",
    "html.favicon": "html_favicon",
    "html.use_repository_button": "html_theme_options.use_repository_button",
    "html.use_issues_button": "html_theme_options.use_issues_button",
    "html.use_edit_page_button": "html_theme_options.use_edit_page_button",
}
"""The settings of Jupyter Book that the book uses, and what Sphinx calls them."""

DEFAULTS = {
    "html_theme": "sphinx_book_theme",
    "html_theme_options": {"home_page_in_toc": True, "search_bar_text": "Search this book..."},
    "html_sourcelink_suffix": "",
    "myst_url_schemes": ["mailto", "http", "https"],
    "numfig": True,
    "pygments_style": "sphinx",
    "suppress_warnings": ["myst.domains"],
}
"""What Jupyter Book sets by itself and the book relies on."""

EXCLUDED = ["_build", "Thumbs.db", ".DS_Store", "**.ipynb_checkpoints"]
"""Files that Jupyter Book never reads."""


def settings(configuration: dict[str, Any]) -> dict[str, Any]:
    """Translate the content of ``_config.yml`` into the settings of Sphinx.

    Raises:
        KeyError: A setting has no translation in `NAMES`.
    """
    configuration = dict(configuration)
    sphinx = configuration.pop("sphinx")
    found = merge({}, DEFAULTS)
    for key, value in flat(configuration):
        put(found, NAMES[key], value)
    found["exclude_patterns"] = sorted({*found["exclude_patterns"], *EXCLUDED})
    merge(found, sphinx["config"])
    found["extensions"] = [name for name in found["extensions"] if name != "jupyter_book"]
    return found


def flat(tree: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """List the settings of a tree by their path, down to those that `NAMES` has."""
    leaves = []
    for name, value in tree.items():
        key = f"{above}{name}"
        if isinstance(value, dict) and key not in NAMES:
            leaves += flat(value, f"{key}.")
        else:
            leaves.append((key, value))
    return leaves


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set a value at a path such as ``html_theme_options.logo``."""
    *above, name = path.split(".")
    for branch in above:
        tree = tree.setdefault(branch, {})
    tree[name] = value


def merge(tree: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Add settings to others, dictionary by dictionary, in place."""
    for name, value in more.items():
        if isinstance(value, dict):
            merge(tree.setdefault(name, {}), value)
        else:
            tree[name] = value
    return tree


def conf(root: Path = ROOT) -> str:
    """Return the text of a ``conf.py`` for a book, to lie beside its ``_config.yml``."""
    configuration = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    folders = sorted(set(configuration["sphinx"]["local_extensions"].values()))
    lines = [
        '"""Settings of the book for Sphinx."""\n',
        "import sys\nfrom pathlib import Path\n",
        f"sys.path += [str(Path(__file__).parent / folder) for folder in {folders}]\n",
        *(f"{name} = {pformat(value)}" for name, value in settings(configuration).items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(conf())
