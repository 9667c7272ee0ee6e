"""Train an attention mechanism: ``python main.py --help``."""

import sys

from attnlab.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
