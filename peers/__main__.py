"""Run the conformance suite on other libraries and generate docs/peers.md: ``python -m peers [package ...]``."""

from __future__ import annotations

import argparse

from peers import page, results
from peers.catalog import PEERS


def main() -> None:
    """Check the named packages, or all that are installed, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m peers", description=__doc__)
    names = [peer.package for peer in PEERS]
    parser.add_argument(
        "packages", nargs="*", help=f"of {', '.join(names)}; by default all installed ones; `page` checks none"
    )
    chosen = parser.parse_args().packages
    for name in chosen:
        if name not in [*names, "page"]:
            parser.error(f"unknown package {name!r}; choose from: {', '.join(names)}")
    for peer in PEERS:
        if chosen and peer.package not in chosen:
            continue
        if peer.installed is None:
            print(f"{peer.package} is not installed; its recorded results stay (pip install {peer.package})")
            continue
        print(f"{peer.package} {peer.installed}", flush=True)
        try:
            results.write(results.run(peer))
        except results.CatalogMismatchError as error:
            parser.exit(1, f"error: {error}\n")
    print(f"written: {page.write().relative_to(page.ROOT)}")


if __name__ == "__main__":
    main()
