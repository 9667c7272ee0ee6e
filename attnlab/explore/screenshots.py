"""Take the pictures of docs/explore.md: ``python -m attnlab.explore.screenshots``, with Chromium and the extra dev."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attnlab.catalog import registry
from attnlab.explore.explorer import Explorer
from attnlab.explore.server import Server
from attnlab.explore.shelf import Shelf
from attnlab.utils.errors import UserError

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)

SENTENCE = "input.text=The+animal+did+not+cross+the+street+because+it+was+too+tired"
PICTURES: dict[str, tuple[str, tuple[int, int], str, str]] = {
    "explore": ("", (1440, 1130), "light", "arithmetic"),
    "explore-dark": (f"#source.kind=pretrained&{SENTENCE}&head=3.1&cell=9.2", (1440, 960), "dark", "summary"),
    "explore-compare": ("#b.scores.temperature=4&side=b", (1440, 960), "light", "changes"),
    "explore-narrow": ("", (320, 1400), "light", "changes"),
}
"""The link, the size in pixels, the colour scheme and the panel of each picture."""


def browser() -> str:
    """Return the path of a Chromium: that in ATTNLAB_CHROMIUM, or one that is installed.

    Raises:
        UserError: if there is none.
    """
    found = os.environ.get("ATTNLAB_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise UserError("there is no browser: install Debian's chromium, or set ATTNLAB_CHROMIUM to the path of one")
    return found


@contextmanager
def served(explorer: Explorer) -> Iterator[tuple[Server, Any]]:
    """Run a server and a browser; both end with the context."""
    from playwright.sync_api import sync_playwright

    with Server(explorer, port=0) as server, sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser(), args=list(FLAGS))
        yield server, chromium
        chromium.close()


def take(folder: Path) -> None:
    """Write the pictures into a folder."""
    with served(Explorer(Shelf())) as (server, chromium):
        for name, (link, (width, height), scheme, panel) in PICTURES.items():
            page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.add_init_script("localStorage.setItem('attnlab-explore-tour', 'yes')")
            page.goto(server.url + link)
            page.wait_for_selector("body[data-ready] #map:not([aria-busy])")
            page.click(f"#tab-{panel}")
            page.wait_for_load_state("networkidle")
            page.mouse.move(0, 0)
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=folder / f"{name}.png")


if __name__ == "__main__":
    root = registry.checkout()
    assert root is not None, "the pictures are part of the repository"
    take(root / "docs" / "pictures")
