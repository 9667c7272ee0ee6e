"""The entry point of the command line: ``python -m attnlab`` and ``attnlab``."""

import sys
from collections.abc import Sequence

from attnlab.utils.errors import UserError
from attnlab.utils.extras import needed_by


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return its exit code, or 2 with one line if a dependency is not installed."""
    try:
        with needed_by("attnlab"):
            from attnlab.cli import main as run

            return run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
