"""One address: that of the repository in ``_config.yml``, from which all others are made."""

import re
import subprocess
from types import SimpleNamespace
from urllib.parse import urlsplit

import address
import pytest
from execution import ROOT

pytestmark = pytest.mark.book


def copies(text: str, repository: str) -> list[str]:
    """Find the addresses of a repository, of its site and of its raw files in a text."""
    owner, name = map(re.escape, urlsplit(repository).path.strip("/").split("/"))
    hosts = rf"{owner}\.github\.io|\b{owner}/{name}\b"
    return re.findall(hosts, text, re.IGNORECASE)


def test_no_file_but_the_configuration_has_an_address():
    repository = address.repository()
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    found = {}
    for name in filter(None, tracked):
        file = ROOT / name
        text = file.read_bytes().decode("utf-8", errors="replace") if file.is_file() else ""
        if found_here := copies(text, repository):
            found[name] = len(found_here)
    assert found == {"_config.yml": 1}


@pytest.mark.parametrize(
    "text",
    [
        "https://github.com/a-group/a-quilt.git",
        "git@github.com:a-group/a-quilt.git",
        "https://A-Group.github.io/a-quilt/",
        "https://mybinder.org/v2/gh/a-group/a-quilt/main",
    ],
)
def test_a_second_copy_is_found(text):
    repository = "https://github.com/a-group/a-quilt"
    assert len(copies(f"see {text} for more", repository)) == 1
    assert copies("github.com/a-group/quilt, /a-quilt/a.png", repository) == []


@pytest.mark.parametrize(
    ("repository", "site"),
    [
        ("https://github.com/Someone/quilt", "https://someone.github.io/quilt/"),
        ("https://github.com/Someone/quilt/", "https://someone.github.io/quilt/"),
        ("https://github.com/Someone/someone.github.io", "https://someone.github.io/"),
    ],
)
def test_the_site_of_a_repository(repository, site):
    assert address.pages(repository) == site


@pytest.mark.parametrize(
    "repository", ["https://gitlab.com/someone/quilt", "https://github.com/quilt", ""]
)
def test_a_repository_without_pages_needs_the_address_of_its_site(repository):
    with pytest.raises(ValueError, match="baseurl"):
        address.pages(repository)


@pytest.mark.parametrize(
    ("baseurl", "site", "prefix"),
    [
        ("", "https://someone.github.io/quilt/", "/quilt/"),
        ("https://quilt.example", "https://quilt.example/", "/"),
        ("https://example.org/quilt/", "https://example.org/quilt/", "/quilt/"),
    ],
)
def test_the_extensions_get_the_address_of_the_site(baseurl, site, prefix):
    options = {"repository_url": "https://github.com/someone/quilt"}
    config = SimpleNamespace(html_theme_options=options, html_baseurl=baseurl)
    address.put_into(SimpleNamespace(), config)
    assert config.html_baseurl == config.ogp_site_url == site
    assert config.notfound_urls_prefix == prefix
