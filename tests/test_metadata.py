"""What the project says of itself: one version, one title, licences and sources that exist."""

import json
import re
import tomllib

import pytest
import yaml
from execution import ROOT

pytestmark = pytest.mark.book

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
CODEMETA = json.loads((ROOT / "codemeta.json").read_text(encoding="utf-8"))
BOOK = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
PAPER = (ROOT / "paper" / "paper.md").read_text(encoding="utf-8")


def test_one_version():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    latest = re.search(r"^## (\d[\w.]*)", changes, re.MULTILINE)[1]
    assert PROJECT["version"] == CITATION["version"] == CODEMETA["version"] == latest


def test_one_name_one_group_of_authors_and_two_licences():
    head = yaml.safe_load(PAPER.split("---\n")[1])
    names = [CODEMETA["name"], BOOK["title"]]
    assert names == ["The Latent Quilt"] * 2
    assert CITATION["title"].startswith("The Latent Quilt: ")
    assert head["title"] == CITATION["title"]
    authors = [each["name"] for each in (*CITATION["authors"], *CODEMETA["author"])]
    assert {*authors, *(each["name"] for each in head["authors"])} == {BOOK["author"]}
    licences = [address.rpartition("/")[2] for address in CODEMETA["license"]]
    assert licences == CITATION["license"]
    assert PROJECT["license"] in licences
    assert head["tags"] == CITATION["keywords"] == CODEMETA["keywords"]


def test_the_paper_cites_what_the_bibliography_has():
    head = yaml.safe_load(PAPER.split("---\n")[1])
    bibliography = (ROOT / "paper" / head["bibliography"]).read_text(encoding="utf-8")
    keys = set(re.findall(r"^@\w+\{([^,]+),", bibliography, re.MULTILINE))
    cited = set(re.findall(r"@([\w:-]+)", PAPER.split("---\n", 2)[2]))
    assert cited
    assert cited <= keys
