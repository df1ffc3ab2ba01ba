"""Sphinx extension: Font Awesome, reduced to the icons that the pages use.

Font Awesome comes as a script of 1.5 MB with every icon, and as fonts. The pages get no script, and
fonts with only their own icons, inside the style sheet. The licence stays in the style sheet, in
the fonts and in ``_static/vendor/fontawesome/LICENSE.txt``.
"""

import re
import shutil
from pathlib import Path

from fonts import subset_font
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

STYLE_SHEET = "styles/pydata-sphinx-theme.css"
"""The theme's style sheet, which holds Font Awesome's."""
ICON_SCRIPT = "fontawesome.js"
# The map no longer fits the changed style sheet.
UNUSED = (ICON_SCRIPT, f"{ICON_SCRIPT}.map", f"{Path(STYLE_SHEET).name}.map")

ICON_RULE = re.compile(r'\.fa-[\w-]+:before(?:,\.fa-[\w-]+:before)*\{content:"(\\[^"]+|[^"])"\}')
"""``.fa-cut:before,.fa-scissors:before{content:"\\f0c4"}``: the names of an icon and its letter."""
FONT_SOURCE = re.compile(r"src:url\(\.\./vendor/fontawesome/webfonts/([\w-]+)\.woff2\)[^};]*")
PRIVATE_LETTER = re.compile(r'"\\([ef][0-9a-f]{3})"|([\ue000-\uf8ff])', re.IGNORECASE)
"""An icon that a style sheet names by its letter."""
SCRIPT = re.compile(rf'<script[^>]* src="[^"]*/{re.escape(ICON_SCRIPT)}[^"]*"[^>]*></script>')


class MissingIconError(ExtensionError):
    """A page uses an icon that Font Awesome's style sheet or fonts do not have."""


def icon_names(pages: list[str], scripts: list[str]) -> set[str]:
    """Return the classes ``fa-...`` of all elements, including those that scripts add later."""
    attributes = [a for text in pages for a in re.findall(r'\bclass="([^"]*)"', text)]
    quoted = [q for text in scripts for q in re.findall(r'"([^"]*\bfa-[^"]*)"', text)]
    words = {word for classes in attributes + quoted for word in classes.split()}
    return {word for word in words if re.fullmatch(r"fa-[a-z0-9-]+", word)}


def letters_of(css: str, names: set[str]) -> tuple[str, set[int]]:
    """Return the style sheet with only the named icons, and the letters of these.

    Raises:
        MissingIconError: The style sheet has no rule for a name.
    """
    letters = set()

    def used(rule: re.Match[str]) -> str:
        if not names.intersection(re.findall(r"\.(fa-[\w-]+):before", rule[0])):
            return ""
        letter = rule[1]
        letters.add(int(letter[1:], 16) if letter.startswith("\\") else ord(letter))
        return rule[0]

    kept = ICON_RULE.sub(used, css)
    # What is left also has the classes of size and family, fa-lg and fa-solid.
    if missing := sorted(n for n in names if not re.search(rf"\.{n}(?![\w-])", kept)):
        raise MissingIconError(f"Font Awesome's style sheet has no icon {', '.join(missing)}.")
    return kept, letters


def shrink_icons(static: Path, pages: list[str]) -> None:
    """Reduce Font Awesome to the icons that the pages use, as fonts inside the style sheet.

    Raises:
        MissingIconError: An icon is in no font, or not in the style sheet.
    """
    scripts = [f for f in static.rglob("*.js") if f.name != ICON_SCRIPT and f.stat().st_size < 1e6]
    names = icon_names(pages, [f.read_text(encoding="utf-8") for f in scripts])
    css, letters = letters_of((static / STYLE_SHEET).read_text(encoding="utf-8"), names)
    for file in static.rglob("*.css"):
        rules = ICON_RULE.sub("", file.read_text(encoding="utf-8"))
        letters |= {int(code, 16) if code else ord(c) for code, c in PRIVATE_LETTER.findall(rules)}
    found = set()

    def inside(source: re.Match[str]) -> str:
        file = static / "vendor" / "fontawesome" / "webfonts" / f"{source[1]}.ttf"
        # Newer themes have WOFF2 alone, which fonttools reads if brotli is installed.
        font, has = subset_font(file if file.exists() else file.with_suffix(".woff2"), letters)
        found.update(has)
        return f'src:url({font}) format("woff")'

    css = FONT_SOURCE.sub(inside, css)
    if missing := letters - found:
        raise MissingIconError(f"No font has the icons {', '.join(map(hex, sorted(missing)))}.")
    css = re.sub(r"/\*# sourceMappingURL=.*?\*/", "", css)
    (static / STYLE_SHEET).write_text(css, encoding="utf-8")


def finish_icons(app: Sphinx, exception: Exception | None) -> None:
    """Put the icons into the style sheet, and delete the script and the font files."""
    if exception or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    files = [file for file in Path(app.outdir).rglob("*.html") if static not in file.parents]
    pages = {file: file.read_text(encoding="utf-8") for file in files}
    shrink_icons(static, list(pages.values()))
    for file, html in pages.items():
        file.write_text(SCRIPT.sub("", html), encoding="utf-8")
    vendor = static / "vendor" / "fontawesome"
    shutil.rmtree(vendor / "webfonts")
    (static / "scripts" / f"{ICON_SCRIPT}.LICENSE.txt").rename(vendor / "LICENSE.txt")
    for pattern in UNUSED:
        for file in list(static.rglob(pattern)):
            file.unlink()


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to Sphinx's events."""
    # After the extensions that add scripts and style sheets of their own.
    app.connect("build-finished", finish_icons, priority=800)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
