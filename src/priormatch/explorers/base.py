"""Base class of the explorers: JavaScript, still picture, and HTML for a page."""

import base64
import json
import re
from html import escape
from importlib.resources import files
from typing import Any, ClassVar

import anywidget
import torch
from jaxtyping import Float
from torch import Tensor

from priormatch.explorers import assets

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(?P<module>[\w-]+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?!default)", re.MULTILINE)


def source(file: str) -> str:
    """Return the text of a file of this package."""
    return (files(__package__) / file).read_text(encoding="utf-8")


def bundle(module: str) -> str:
    """Return a JavaScript module and its imports as a single text, as anywidget requires."""
    texts: dict[str, str] = {}

    def add(name: str) -> None:
        text = source(f"{name}.js")
        for imported in _IMPORT.finditer(text):
            if imported["module"] not in texts:
                add(imported["module"])
        texts[name] = _EXPORT.sub("", _IMPORT.sub("", text))

    add(module)
    return "\n".join(texts.values())


class Explorer(anywidget.AnyWidget):
    """A live figure.

    Attributes:
        module: Name of its JavaScript module.
        caption: Explanation of the figure and of its controls, a few sentences of HTML.
        alt: Description of the still picture.
        heights: Height on a wide and on a narrow page, reserved so that nothing jumps.
        state: Names of the traits that a page starts from.
        carried: Names of files of `assets`, by the trait that holds the file.
    """

    module: ClassVar[str]
    caption: ClassVar[str]
    alt: ClassVar[str]
    heights: ClassVar[tuple[str, str]]
    state: ClassVar[tuple[str, ...]] = ()
    carried: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        """Set the JavaScript and the style of the widget."""
        if "module" in cls.__dict__:  # anywidget makes a further subclass for each widget
            cls._esm = bundle(cls.module)
            cls._css = source("explorers.css")
        super().__init_subclass__(**options)

    def __init__(self, **state: Any) -> None:
        carried = {trait: assets.packed(name) for trait, name in self.carried.items()}
        super().__init__(**state, **carried)

    def still(self) -> bytes:
        """Return the still picture, a PNG."""
        raise NotImplementedError

    def initial_state(self) -> dict[str, object]:
        """Return the values that a page shows before its files are loaded."""
        return {}

    def html(self) -> str:
        """Return the HTML for a page: still picture, caption and initial state."""
        names = {trait: name + assets.SUFFIX for trait, name in self.carried.items()}
        traits = {trait: getattr(self, trait) for trait in self.state}
        state = escape(json.dumps({**traits, **self.initial_state(), **names}))
        wide, narrow = self.heights
        picture = self.still()
        width, height = (int.from_bytes(picture[i : i + 4], "big") for i in (16, 20))
        return (
            f'<figure class="explorer" data-explorer="{self.module}" data-state="{state}"'
            f' data-files="{escape(json.dumps(list(names)))}"'
            f' style="--explorer-height-wide:{wide};--explorer-height-narrow:{narrow}">'
            f'<div class="explorer-stage"><img alt="{escape(self.alt)}"'
            f' width="{width}" height="{height}"'
            f' src="data:image/png;base64,{base64.b64encode(picture).decode()}"></div>'
            f"<figcaption>{self.caption}</figcaption></figure>"
        )

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle, metadata = super()._repr_mimebundle_(**options) or ({}, {})
        return {**bundle, "text/plain": self.alt, "text/html": self.html()}, metadata


def in_bytes(picture: Float[Tensor, " pixels"]) -> str:
    """Return grey values in [0, 1] as one byte per pixel, in base64."""
    return base64.b64encode((255 * picture).round().to(torch.uint8).numpy().tobytes()).decode()
