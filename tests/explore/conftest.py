"""The server and the browser of the tests of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from attnlab.explore import screenshots
from attnlab.explore.explorer import Explorer
from attnlab.explore.server import Server
from attnlab.explore.shelf import Shelf
from attnlab.utils.errors import UserError


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    return Explorer(Shelf())


@pytest.fixture(scope="module")
def running(explorer: Explorer) -> Iterator[tuple[Server, Any]]:
    try:
        screenshots.browser()
    except UserError as error:
        pytest.skip(str(error))
    with screenshots.served(explorer) as both:
        yield both


@pytest.fixture
def visit(running: tuple[Server, Any]) -> Iterator[Callable[..., Any]]:
    """Open the page, or the file at ``address``; the tour is dismissed unless ``tour``."""
    server, browser = running
    contexts, foreign, errors = [], [], []

    def visit(
        link: str = "", *, size: tuple[int, int] = (1280, 900), tour: bool = False, address: str = "", **options: Any
    ) -> Any:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, accept_downloads=True, **options)
        contexts.append(context)
        allowed = address or server.url

        def route(request: Any) -> None:
            if request.request.url.startswith((allowed, "data:", "blob:")):
                request.continue_()
            else:
                foreign.append(request.request.url)
                request.abort()

        context.route("**/*", route)
        if not tour:
            context.add_init_script("try { localStorage.setItem('attnlab-explore-tour', 'yes') } catch {}")
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto((address or server.url) + link)
        page.wait_for_selector("body[data-ready]")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not foreign, "the page asked another server"
    assert not [error for error in errors if "status of 422" not in error]
