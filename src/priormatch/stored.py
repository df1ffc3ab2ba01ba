"""Where the book's stored results are: trained models, and tables that took hours to make."""

from pathlib import Path

_INSTALLED = Path(__file__).with_name("_results")

RESULTS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "results"
"""The folder ``results`` of a checkout; in an installed package, the copy that came with it."""
