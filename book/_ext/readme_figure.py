"""Figure of the README, copied from a chapter: draws from the question's posteriors.

The card, which other sites show beside a link to the book, is the same picture below the title.
"""

import base64
import io
from pathlib import Path

import matplotlib.pyplot as plt
from execution import ROOT, Book, prepare_data
from PIL import Image

CHAPTER, CELL = "book/02-the-latent-picture", "fig-quilt"
FIGURE = ROOT / "book" / "_static" / "quilt.png"
CARD = ROOT / "book" / "_static" / "card.png"
CARD_PIXELS = (1200, 630)
"""Width and height that those sites ask for."""


def write_figure(book: Book) -> Path:
    """Copy the figure from the executed chapter, which is executed first if necessary."""
    cells = {cell.id: cell for cell in book.execute(CHAPTER).notebook.cells}
    pictures = [
        output.data["image/png"]
        for output in cells[CELL].outputs
        if "image/png" in output.get("data", {})
    ]
    FIGURE.write_bytes(base64.b64decode(pictures[0]))
    return FIGURE


def write_card() -> Path:
    """Draw the card from the README's figure."""
    width, height = (pixels / 100 for pixels in CARD_PIXELS)
    figure = plt.figure(figsize=(width, height), dpi=100)
    figure.text(0.05, 0.87, "The Latent Quilt", size=46, weight="bold")
    figure.text(0.05, 0.79, "How well does Q(z|X) match N(0, I)?", size=26, color="#444444")
    picture = figure.add_axes((0.05, 0.02, 0.9, 0.73))
    picture.imshow(plt.imread(FIGURE), interpolation="lanczos")
    picture.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer)
    plt.close(figure)
    # 64 colours show it as well as all, at a third of the size.
    with Image.open(buffer) as image:
        image.convert("RGB").quantize(64, kmeans=1).save(CARD, optimize=True)
    return CARD


if __name__ == "__main__":
    print(write_figure(Book(ROOT, prepare_data())))
    print(write_card())
