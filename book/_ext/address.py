"""Sphinx extension: the address of the site, from that of the repository in ``_config.yml``.

No other file has an address. A page's canonical address, the sitemap, the preview of a link and the
page for errors are made from this one; the buttons and the installed package take the repository's.
The site is on GitHub Pages, unless ``baseurl`` under ``html`` names another.
"""

from pathlib import Path
from urllib.parse import urlsplit

import yaml
from execution import ROOT
from sphinx.application import Sphinx
from sphinx.config import Config


def repository(root: Path = ROOT) -> str:
    """Return the address of a book's repository."""
    return yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]


def pages(repository: str) -> str:
    """Return the address at which GitHub Pages has the site of a repository.

    Raises:
        ValueError: The repository is not on GitHub.
    """
    host, path = urlsplit(repository)[1:3]
    owner, _, name = path.strip("/").partition("/")
    if host != "github.com" or not name or "/" in name:
        raise ValueError(
            f"{repository!r} in _config.yml is not https://github.com/owner/name; "
            "for a site elsewhere give its address as baseurl, under html"
        )
    site = f"https://{owner.lower()}.github.io/"
    # The repository with the name of the host has its site at the root.
    return site if name.lower() == f"{owner.lower()}.github.io" else f"{site}{name}/"


def put_into(app: Sphinx, config: Config) -> None:
    """Give the extensions the address of the site."""
    site = config.html_baseurl or pages(config.html_theme_options["repository_url"])
    config.html_baseurl = config.ogp_site_url = site.rstrip("/") + "/"
    config.notfound_urls_prefix = urlsplit(config.html_baseurl).path


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to Sphinx's events, before the others check their settings."""
    app.connect("config-inited", put_into, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
