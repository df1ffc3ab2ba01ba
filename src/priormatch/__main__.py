"""``python -m priormatch``: the command of the package."""

import sys

from priormatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
