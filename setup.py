"""What pyproject.toml cannot say: where the project is, and what a wheel carries and needs.

The address is that of ``_config.yml``, the only one in the project. The stored results are part of
the package. ``requirements.txt`` has one list of what the project needs: what stands above its line
"# The chapters" is for the package. The extra ``chapters`` has what follows up to "# The book", and
the extra ``book`` all the rest as well.
"""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithResults(build_py):
    """Build the package, and put ``results/`` into it as ``priormatch/_results``."""

    def run(self) -> None:
        """Build; an editable install reads the results where they are."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "priormatch" / "_results"
        shutil.rmtree(target, ignore_errors=True)
        # What a training has not finished, and models that only a new measure needs.
        unfinished = shutil.ignore_patterns(
            "*.checkpoint", "*.unfinished", "*-checkpoints", "trainings"
        )
        shutil.copytree("results", target, ignore=unfinished)


CONFIGURATION = Path(__file__).with_name("_config.yml").read_text(encoding="utf-8")
(REPOSITORY,) = re.findall(r"^repository:\n  url: (\S+)$", CONFIGURATION, re.MULTILINE)

LINES = Path(__file__).with_name("requirements.txt").read_text(encoding="utf-8").splitlines()
CHAPTERS_AT, BOOK_AT = (
    next(place for place, line in enumerate(LINES) if line.startswith(f"# The {part}:"))
    for part in ("chapters", "book")
)
PACKAGE, CHAPTERS, BOOK = (
    [line for line in part if line and not line.startswith("#")]
    for part in (LINES[:CHAPTERS_AT], LINES[CHAPTERS_AT:BOOK_AT], LINES[BOOK_AT:])
)

setup(
    cmdclass={"build_py": BuildWithResults},
    project_urls={"Source": REPOSITORY},
    install_requires=PACKAGE,
    extras_require={"chapters": CHAPTERS, "book": CHAPTERS + BOOK},
)
