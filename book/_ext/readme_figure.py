"""Write the README's figure: the draws of the question's posteriors, as the chapter shows them."""

import base64
from pathlib import Path

from chapters import ROOT, Book, prepare_data

CHAPTER, CELL = "book/02-the-latent-picture", "fig-quilt"
FIGURE = ROOT / "book" / "_static" / "quilt.png"


def write_figure(book: Book) -> Path:
    """Copy the picture out of the executed chapter, which runs first if it has not yet."""
    cells = {cell.id: cell for cell in book.execute(CHAPTER).notebook.cells}
    pictures = [
        output.data["image/png"]
        for output in cells[CELL].outputs
        if "image/png" in output.get("data", {})
    ]
    FIGURE.write_bytes(base64.b64decode(pictures[0]))
    return FIGURE


if __name__ == "__main__":
    print(write_figure(Book(ROOT, prepare_data())))
