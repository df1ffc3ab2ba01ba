"""Sphinx extension: translation of TeX to MathML when the book is built.

Browsers typeset MathML without a script, and screen readers read it. A formula that cannot be
translated gives a warning, which fails the build. The font comes from `fonts`.
"""

import re
from typing import Any

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

FORMULA = re.compile(r"<math\b.*?</math>", re.DOTALL)
"""A formula on a finished page."""

# As the theme does for code that is wider than the screen.
REACHABLE = """\
for (const event of ["load", "resize"]) addEventListener(event, () => {
  for (const box of document.querySelectorAll(".math, .tag_output_scroll .cell_output")) {
    const tall = box.matches(".cell_output") && box.scrollHeight > box.clientHeight;
    if (tall || box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
});"""
"""Script that lets the keyboard scroll a formula or an output that is larger than its box."""

logger = logging.getLogger(__name__)


def to_mathml(tex: str, macros: dict[str, str], *, display: bool) -> str:
    r"""Translate a formula to MathML; `macros` adds commands, as in ``{"E": r"\mathbb{E}"}``.

    Raises:
        LatexError: A command is unknown, or the formula is not well formed.
    """
    # Without an environment the converter would leave the break out.
    if r"\\" in tex and r"\begin" not in tex:
        raise LatexError(r'"\\" outside an environment like "aligned".')
    converter = LatexToMathML(macros=macros, fancy_error=False)
    return converter.convert_with_local_state(tex, displaystyle=display)


def formula(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> str:
    """Return a node's MathML, or log a warning about its TeX and return an empty text."""
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


def reach_wide_formulas(
    app: Sphinx, page: str, template: str, context: dict[str, Any], tree: nodes.document | None
) -> None:
    """Let the keyboard scroll the formulas of a page that are wide."""
    if FORMULA.search(context.get("body", "")):
        app.add_js_file(None, body=REACHABLE)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the renderer and its setting."""
    app.add_config_value("tex_macros", {}, "env")
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    app.connect("html-page-context", reach_wide_formulas)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
