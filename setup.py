"""What pyproject.toml cannot say: a wheel carries the stored results, which lie outside of src/."""

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


setup(cmdclass={"build_py": BuildWithResults})
