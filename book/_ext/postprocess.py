"""Sphinx extension: light and accessible pages, each with a description.

The output of the theme and of the other extensions is corrected once the site is finished:

1. The search page alone loads the search scripts. Other scripts do not delay the first picture, and
   unused files are deleted.
2. A figure becomes a lossless WebP of half the size. It has its width and height, so that text does
   not jump when it arrives, and is loaded lazily.
3. The entries of a bibliography get roles that a screen reader understands.
4. Fonts and colours are ready before the text is drawn, so that nothing moves or changes colour.

While the pages are written, each gets a description in plain words and the date of its last commit.
"""

import re
import shutil
import subprocess
import unicodedata
from datetime import date
from html import escape
from pathlib import Path

import nbformat
from docutils import nodes
from nbformat.v4 import new_markdown_cell
from PIL import Image
from sphinx.application import Sphinx
from sphinx.config import Config

UNUSED = ("theme.css", "*webpack-macros.html")
SEARCH_SCRIPTS = ("searchtools.js", "language_data.js", "searchindex.js")

SCRIPT = re.compile(r'<script(?P<attributes>[^>]*) src="(?P<src>[^"]*)"(?P<rest>[^>]*)></script>')

BEFORE_THE_FIRST_PICTURE = """\
document.fonts.forEach((font) => font.load());
if (document.documentElement.dataset.theme === "auto")
  document.documentElement.dataset.theme =
    matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";"""
"""Script that runs after the style sheets are loaded and before the text is drawn.

A browser unpacks even a font inside a style sheet only when it meets a letter of it. It would draw
the text without the font, and move the text when the font is ready. On a first visit a page has no
colours until the theme's script has turned "auto" into one of its two palettes.
"""

DESCRIPTION_LENGTH = 200
"""Number of characters of a description that other sites show at most."""


NOTICE = """\
*A chapter of [{title}]({page}).
It runs where the book's package is installed:* `pip install "priormatch[book] @ {package}"`"""
"""First cell of a notebook that a reader downloads."""


# Finished pages


def scripts_that_wait(html: str, *, search: bool) -> str:
    """Defer a page's scripts until the page is parsed, in their order.

    The search page runs its scripts while it is parsed, so it stays as it is. The other pages lose
    the search scripts, which nothing calls there as long as ``search_as_you_type`` is off.
    """

    def mend(tag: re.Match[str]) -> str:
        name = tag["src"].partition("?")[0].rpartition("/")[2]
        if name in SEARCH_SCRIPTS:
            return tag[0] if search else ""
        attributes = tag["attributes"] + tag["rest"]
        # Scripts written into the page use the options at once.
        if re.search(r"\b(defer|async|type)\b", attributes) or name == "documentation_options.js":
            return tag[0]
        return f'<script{tag["attributes"]} defer src="{tag["src"]}"{tag["rest"]}></script>'

    return html if search else SCRIPT.sub(mend, html)


def small_pictures(html: str, folder: Path) -> str:
    """Convert the figures of a page to lossless WebP, half as large."""

    def mend(name: re.Match[str]) -> str:
        png = folder / name[0]
        webp = png.with_suffix(".webp")
        if not webp.exists():
            with Image.open(png) as image:
                image.save(webp, lossless=True, exact=True)
        return name[0].removesuffix("png") + "webp"

    return re.sub(r"(?:\.\./)*_images/[\w.-]+\.png\b", mend, html)


def images_that_wait(html: str, folder: Path) -> str:
    """Add width, height and lazy loading to the figures of a page."""

    def mend(tag: re.Match[str]) -> str:
        source = re.search(r'\bsrc="([^"]*_images/[^"]*)"', tag[0])
        if source is None or "loading=" in tag[0]:
            return tag[0]
        more = ' loading="lazy" decoding="async"'
        if source[1].endswith((".png", ".webp")) and not re.search(r"\b(width|height)=", tag[0]):
            with Image.open(folder / source[1]) as image:
                more += f' width="{image.width}" height="{image.height}"'
        return f"<img{more}{tag[0][4:]}"

    return re.sub(r"<img\b[^>]*>", mend, html)


def accessible(html: str) -> str:
    """Hide icons from screen readers, correct list roles, and name controls by their text."""
    html = re.sub(r'<i class="(?=[^"]*\bfa[srb]?\b)', '<i aria-hidden="true" class="', html)
    html = html.replace('role="doc-biblioentry"', 'role="listitem"')
    html = html.replace('<summary aria-label="Toggle hidden content">', "<summary>")
    return re.sub(r'(<button [^>]*\bsearch-button-field\b[^>]*?) aria-label="[^"]*"', r"\1", html)


def finish_site(app: Sphinx, exception: Exception | None) -> None:
    """Correct the finished pages and delete the files that no page uses."""
    if exception or app.builder.format != "html":
        return
    out = Path(app.outdir)
    static = out / "_static"
    files = {file: file.read_text(encoding="utf-8") for file in out.rglob("*.html")}
    files = {file: html for file, html in files.items() if static not in file.parents}
    for file, html in files.items():
        html = scripts_that_wait(html, search=file.name == "search.html")
        html = small_pictures(html, file.parent)
        html = images_that_wait(html, file.parent)
        html = downloads(accessible(html))
        # The theme's theme.css only imports basic.css, so it costs a request for nothing.
        html = re.sub(r"styles/theme\.css(\?[^\"]*)?", "basic.css", html)
        html = html.replace(f"<title>{app.config.html_title} &#8212; ", "<title>")
        file.write_text(html, encoding="utf-8")
    unused = [file for pattern in UNUSED for file in static.rglob(pattern)]
    replaced = [webp.with_suffix(".png") for webp in out.glob("_images/*.webp")]
    for file in unused + replaced:
        file.unlink()
    # Translations of the theme are unused: the pages are written in one language.
    shutil.rmtree(static / "locales", ignore_errors=True)
    write_first_page(app)
    prepare_notebooks(out, app.config)


def downloads(html: str) -> str:
    """Make the link to a page's source save the file, even on hosts that would show it."""
    return re.sub(r'<a (?=href="[^"]*_sources/[^"]*\.ipynb")', "<a download ", html)


def prepare_notebooks(out: Path, config: Config) -> None:
    """Insert a note on installation at the top of the notebooks that readers download."""
    repository = f"git+{config.html_theme_options['repository_url']}"
    for file in (out / "_sources").rglob("*.ipynb"):
        notebook = nbformat.read(file, as_version=4)
        page = file.relative_to(out / "_sources").with_suffix(".html").as_posix()
        notice = NOTICE.format(
            title=config.html_title, page=config.html_baseurl + page, package=repository
        )
        notebook.cells.insert(0, new_markdown_cell(notice, id="how-to-run"))
        nbformat.write(notebook, file)


def write_first_page(app: Sphinx) -> None:
    """Write a root page that redirects to the first page of the book.

    Jupyter Book would write one without a language, a title, a link to click on, or metadata for
    the preview of a link.
    """
    first = f"{app.config.root_doc}.html"
    page = (Path(app.outdir) / first).read_text(encoding="utf-8")
    tags = re.findall(r'<meta (?:property="og:|name="(?:description|twitter:))[^>]*>', page)
    canonical = re.findall(r'<link rel="canonical"[^>]*>', page)
    title = escape(app.config.html_title)
    lines = [
        f'<!DOCTYPE html>\n<html lang="{app.config.language}">\n<head>\n<meta charset="utf-8" />',
        f'<meta http-equiv="Refresh" content="0; url={first}" />',
        '<meta name="viewport" content="width=device-width, initial-scale=1" />',
        f"<title>{title}</title>",
        *tags,
        *canonical,
        '<link rel="icon" href="_static/favicon.svg" />',
        f'</head>\n<body><p><a href="{first}">{title}</a></p></body>\n</html>',
    ]
    (Path(app.outdir) / "index.html").write_text("\n".join(lines) + "\n", encoding="utf-8")


# Descriptions of pages


def plain(tex: str) -> str:
    r"""Return a short formula without TeX: ``\N(0, I)`` as ``N(0, I)``, ``\mu`` as ``μ``."""

    def name(command: re.Match[str]) -> str:
        try:
            return unicodedata.lookup(f"GREEK SMALL LETTER {command[1].upper()}")
        except KeyError:
            return command[1]

    return re.sub(r"[{}]|\\[,;!]", "", re.sub(r"\\([A-Za-z]+)", name, tex))


def description(doctree: nodes.document) -> str:
    """Return the first sentences of a page's lead, within `DESCRIPTION_LENGTH` if possible."""
    lead = next((p for p in doctree.findall(nodes.paragraph)), None)
    if lead is None:
        return ""
    lead = lead.deepcopy()
    for formula in list(lead.findall(nodes.math)):
        formula.replace_self(nodes.Text(plain(formula.astext())))
    for unseen in list(lead.findall(lambda node: isinstance(node, nodes.raw | nodes.comment))):
        unseen.parent.remove(unseen)
    text = " ".join(lead.astext().split())
    if len(text) <= DESCRIPTION_LENGTH:
        return text
    shown = text[:DESCRIPTION_LENGTH]
    ends = [end.end() for end in re.finditer(r"[.?!](?= )", shown)]
    if ends and ends[-1] > DESCRIPTION_LENGTH / 2:
        return shown[: ends[-1]]
    return shown.rpartition(" ")[0].rstrip(",;: ") + " …"


def last_commit(file: Path) -> date | None:
    """Return the day of the last commit to a file; None outside a repository."""
    command = ["git", "log", "-1", "--format=%cs", "--", file.name]
    try:
        said = subprocess.run(
            command, cwd=file.parent, capture_output=True, text=True, check=False
        ).stdout.strip()
    except OSError:
        return None
    return date.fromisoformat(said) if said else None


def describe_page(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree: nodes.document | None
) -> None:
    """Add a description and the date of the last change to a page."""
    if doctree is None:
        return
    if text := description(doctree):
        meta = context.get("meta") or {}
        context["meta"] = {"og:description": text} | meta
        context["metatags"] += f'<meta name="description" content="{escape(text)}" />\n'
    if day := last_commit(Path(app.env.doc2path(pagename))):
        context["last_updated"] = f"{day.day} {day:%B %Y}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to Sphinx's events."""
    # Before sphinxext-opengraph, which would take formulas for words.
    app.connect("html-page-context", describe_page, priority=400)
    app.add_js_file(None, body=BEFORE_THE_FIRST_PICTURE)
    app.connect("build-finished", finish_site, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
