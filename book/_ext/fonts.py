"""Sphinx extension: the font of formulas, and fonts cut down to the glyphs that are used.

Pages with formulas get STIX Two Math inside a style sheet. So no formula appears in another font
first, and no text moves when the right font arrives. The font's copyright and licence, the SIL Open
Font License 1.1, stay in its name table.
"""

import base64
import html
import io
import logging
import re
import unicodedata
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from docutils import nodes
from fontTools import subset
from mathml import FORMULA
from sphinx.application import Sphinx

FORMULA_FONT = "ziamath/fonts/STIXTwoMath-Regular.ttf"
"""Path of the font below the folder of installed packages."""
BRACKET_SIZES = 6
"""Number of bracket sizes with a glyph of their own, up to about two lines of text."""
STYLE_SHEET = "formulas.css"
FONT_FACE = (
    '@font-face {{ font-family: "STIX Two Math"; src: url({font}); font-display: block; }}\n'
)
TAG = re.compile(r"<[^>]*>")

ITALIC = {
    int(unicodedata.decomposition(chr(italic)).removeprefix("<font> "), 16): italic
    # 1D455 is not assigned: the italic h is Planck's constant, 210E.
    for italic in {0x210E, *range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C)} - {0x1D455}
}
"""Italic form of each letter that browsers set in italics when it is alone in a ``<mi>``."""

ROOT_SIGN = 0x221A
"""Sign that browsers draw for a ``<msqrt>``, whose source does not contain it."""


def subset_font(
    file: Path, letters: set[int], *, features: tuple[str, ...] = (), bracket_sizes: int = 0
) -> tuple[str, set[int]]:
    """Return a font reduced to some letters.

    Args:
        file: The font, which is left as it is.
        letters: Code points; those that the font lacks are left out.
        features: OpenType features to keep.
        bracket_sizes: Glyphs to keep of a bracket whose larger sizes are built from parts; 0 keeps
            all.

    Returns:
        The font as a ``data:`` URL of a WOFF, and the letters it has.
    """
    options = subset.Options(
        flavor="woff", layout_features=list(features), hinting=False, name_IDs=["*"]
    )
    font = subset.load_font(file, options)
    if bracket_sizes:
        # Chromium gives a bracket the width of its largest form.
        for construction in font["MATH"].table.MathVariants.VertGlyphConstruction:
            if construction.GlyphAssembly:
                del construction.MathGlyphVariantRecord[bracket_sizes:]
    found = letters & set(font.getBestCmap())
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=found)
    subsetter.subset(font)
    buffer = io.BytesIO()
    subset.save_font(font, buffer, options)
    return f"data:font/woff;base64,{base64.b64encode(buffer.getvalue()).decode()}", found


def signs(pages: list[str]) -> set[int]:
    """Return the letters and signs of all formulas, with those that browsers add to them."""
    texts = [html.unescape(TAG.sub("", text)) for page in pages for text in FORMULA.findall(page)]
    found = set(map(ord, "".join(texts)))
    return found | {ITALIC[sign] for sign in found & set(ITALIC)} | {ROOT_SIGN}


def use_font(
    app: Sphinx, page: str, template: str, context: dict[str, Any], tree: nodes.document | None
) -> None:
    """Add the style sheet with the font to a page with formulas."""
    if FORMULA.search(context.get("body", "")):
        app.add_css_file(STYLE_SHEET)


def write_font(app: Sphinx, exception: Exception | None) -> None:
    """Write the style sheet with the font of formulas into the finished site."""
    if exception or app.builder.format != "html":
        return
    out = Path(app.outdir)
    letters = signs([file.read_text(encoding="utf-8") for file in out.rglob("*.html")])
    file = Path(distribution("ziamath").locate_file(FORMULA_FONT))
    # Glyphs for subscripts, "ssty", would double the size, and not every browser uses them.
    font, _ = subset_font(file, letters, features=("kern",), bracket_sizes=BRACKET_SIZES)
    (out / "_static" / STYLE_SHEET).write_text(FONT_FACE.format(font=font), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to Sphinx's events."""
    # fontTools logs at length what it leaves out.
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    app.connect("html-page-context", use_font)
    app.connect("build-finished", write_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
