"""``python -m attnlab`` is the same as ``attnlab``."""

import sys

from attnlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
