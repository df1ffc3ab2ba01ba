"""Live figures: widgets in Jupyter, and the same JavaScript on a page without a kernel.

In a notebook an explorer is an ipywidget, whose traits can be read and set: ``explorer.z``. On a
static page it is a still picture with a caption, which `start.js` makes interactive in a browser.
"""

from priormatch.explorers.bend_explorer import BendExplorer
from priormatch.explorers.dimensions_explorer import DimensionsExplorer
from priormatch.explorers.drag_explorer import DragExplorer
from priormatch.explorers.draw_explorer import DrawExplorer
from priormatch.explorers.interval_explorer import IntervalExplorer
from priormatch.explorers.kl_explorer import KLExplorer
from priormatch.explorers.latent_explorer import LatentExplorer
from priormatch.explorers.squeeze_explorer import SqueezeExplorer
from priormatch.explorers.stretch_explorer import StretchExplorer
from priormatch.explorers.training_explorer import TrainingExplorer
from priormatch.explorers.twenty_explorer import TwentyExplorer

twenty = TwentyExplorer
kl = KLExplorer
squeeze = SqueezeExplorer
latent = LatentExplorer
draw = DrawExplorer
drag = DragExplorer
interval = IntervalExplorer
bend = BendExplorer
stretch = StretchExplorer
training = TrainingExplorer
dimensions = DimensionsExplorer

__all__ = [
    "bend",
    "dimensions",
    "drag",
    "draw",
    "interval",
    "kl",
    "latent",
    "squeeze",
    "stretch",
    "training",
    "twenty",
]
