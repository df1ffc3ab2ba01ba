r"""Sphinx extension: formulas that are typeset before anything is seen of a page.

1. TeX becomes MathML when the book is built: browsers typeset it themselves, without a script, and
   screen readers read it. A formula that cannot be translated is a warning, so the build fails.
2. The pages with formulas get STIX Two Math, cut down to the glyphs that the book uses, inside a
   style sheet: no formula is seen in another font first and moves the text when its own arrives.
   The font's copyright and licence, the SIL Open Font License 1.1, stay in its name table.
"""

import base64
import html
import io
import re
import unicodedata
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from docutils import nodes
from fontTools import subset
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

FONT = "ziamath/fonts/STIXTwoMath-Regular.ttf"
"""Where the font lies in its package."""
FORMS = 6
"""How many sizes of a bracket come as forms of their own, up to some two lines."""
STYLE_SHEET = "formulas.css"
FONT_FACE = (
    '@font-face {{ font-family: "STIX Two Math"; src: url(data:font/woff;base64,{font}); '
    "font-display: block; }}\n"
)
FORMULA = re.compile(r"<math\b.*?</math>", re.DOTALL)
TAG = re.compile(r"<[^>]*>")

# As the theme does for code that is wider than the screen.
REACHABLE = """\
for (const event of ["load", "resize"]) addEventListener(event, () => {
  for (const box of document.querySelectorAll(".math")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
});"""
"""Lets the keyboard reach a formula that scrolls in its box."""

ITALIC = {
    int(unicodedata.decomposition(chr(italic)).removeprefix("<font> "), 16): italic
    # 1D455 is no letter: Planck's constant was there before.
    for italic in {0x210E, *range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C)} - {0x1D455}
}
"""Every letter that browsers set in italics when it is alone in a ``<mi>``, and its italic form."""

ROOT_SIGN = 0x221A
"""What browsers draw a ``<msqrt>`` with, which does not hold the sign itself."""

logger = logging.getLogger(__name__)


# From TeX to MathML


def to_mathml(tex: str, macros: dict[str, str], *, display: bool) -> str:
    r"""Translate a formula; `macros` has its own commands, as in ``{"E": r"\mathbb{E}"}``.

    Raises:
        LatexError: A command is unknown, or the formula is not well formed.
    """
    # Without an environment the converter would leave the break out.
    if r"\\" in tex and r"\begin" not in tex:
        raise LatexError(r'"\\" outside an environment like "aligned".')
    converter = LatexToMathML(macros=macros, fancy_error=False)
    return converter.convert_with_local_state(tex, displaystyle=display)


def formula(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> str:
    """Return a node's MathML, or complain of its TeX and return nothing."""
    display = isinstance(node, nodes.math_block)
    try:
        return to_mathml(node.astext(), translator.config.tex_macros, display=display)
    except LatexError as error:
        logger.warning("%s in the formula %s", error, node.astext().strip(), location=node)
        return ""


def visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    """Write a formula in the text."""
    start = translator.starttag(node, "span", "", CLASS="math notranslate nohighlight")
    translator.body.append(f"{start}{formula(translator, node)}</span>")
    raise nodes.SkipNode


def visit_display(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula that stands alone, and its number if it has a label."""
    translator.body.append(translator.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if node["number"]:
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append(f"{formula(translator, node)}</div>\n")
    raise nodes.SkipNode


# The font


def signs(pages: list[str]) -> set[int]:
    """Return the letters and signs of all formulas, with those that browsers add to them."""
    texts = [html.unescape(TAG.sub("", text)) for page in pages for text in FORMULA.findall(page)]
    found = set(map(ord, "".join(texts)))
    return found | {ITALIC[sign] for sign in found & set(ITALIC)} | {ROOT_SIGN}


def small_font(letters: set[int]) -> bytes:
    """Return STIX Two Math with these letters, the sizes they grow to, and nothing else."""
    # Shapes made for scripts, "ssty", would double the size, and not every browser takes them.
    options = subset.Options(flavor="woff", layout_features=["kern"], hinting=False, name_IDs=["*"])
    font = subset.load_font(distribution("ziamath").locate_file(FONT), options)
    # Chromium gives a bracket the width of its largest form; larger ones are built of parts.
    for construction in font["MATH"].table.MathVariants.VertGlyphConstruction:
        if construction.GlyphAssembly:
            del construction.MathGlyphVariantRecord[FORMS:]
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=letters)
    subsetter.subset(font)
    buffer = io.BytesIO()
    subset.save_font(font, buffer, options)
    return buffer.getvalue()


def use_font(
    app: Sphinx, page: str, template: str, context: dict[str, Any], tree: nodes.document | None
) -> None:
    """Let a page with formulas load the font, and the keyboard scroll those that are wide."""
    if FORMULA.search(context.get("body", "")):
        app.add_css_file(STYLE_SHEET)
        app.add_js_file(None, body=REACHABLE)


def write_font(app: Sphinx, exception: Exception | None) -> None:
    """Write the font's style sheet into the finished site."""
    if exception or app.builder.format != "html":
        return
    out = Path(app.outdir)
    letters = signs([file.read_text(encoding="utf-8") for file in out.rglob("*.html")])
    font = base64.b64encode(small_font(letters)).decode()
    (out / "_static" / STYLE_SHEET).write_text(FONT_FACE.format(font=font), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the renderer, its setting, and the font."""
    app.add_config_value("tex_macros", {}, "env")
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    app.connect("html-page-context", use_font)
    app.connect("build-finished", write_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
