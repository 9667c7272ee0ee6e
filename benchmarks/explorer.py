"""How fast the page of `attnlab explore` answers, in a real browser: ``python -m benchmarks.explorer``.

Wall time on an otherwise idle machine, at the 95th percentile, against the targets of the project. It is no part of
``python -m benchmarks``, which compares libraries by ratios: these are times that a person feels. Nothing is recorded.

- hover: the work of one pointer move over the matrix, handlers and the frame that follows.
- head, knob: from the key or the slider to the first frame with the new matrix.
- clients: 200 connections ask for a minute; every request must be answered with its own view.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page

from attnlab.explore import export, screenshots
from attnlab.explore.explorer import Explorer
from attnlab.explore.link import fragment
from attnlab.explore.server import Server
from attnlab.explore.setup import MapRequest, Setup, Text, Untrained
from attnlab.explore.shelf import Shelf

WORDS = "the quick brown fox jumps over the lazy dog "

SETTLED = """
() => new Promise(done => {
  const map = document.getElementById("map");
  const check = () => map.hasAttribute("aria-busy")
    ? setTimeout(check)
    : requestAnimationFrame(() => setTimeout(done));
  check();
})
"""

HOVER = """
async ([x, y]) => {
  const target = document.elementFromPoint(x, y);
  let frame = 0;
  const after = new Promise(done => requestAnimationFrame(() => {  // runs before the callbacks of the page
    const start = performance.now();
    setTimeout(() => { frame = performance.now() - start; done(); });
  }));
  const start = performance.now();
  for (const type of ["pointermove", "mousemove"])
    target.dispatchEvent(new PointerEvent(type, { clientX: x, clientY: y, bubbles: true, pointerType: "mouse" }));
  const handlers = performance.now() - start;
  await after;
  return handlers + frame;
}
"""

HEAD = """
(key) => new Promise(done => {
  const title = document.getElementById("map-title"), before = title.textContent;
  const start = performance.now();
  const check = () => title.textContent === before
    ? (performance.now() - start > 5000 ? done(NaN) : setTimeout(check))
    : requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  check();
})
"""

KNOB = """
(value) => new Promise(done => {
  const map = document.getElementById("map");
  const slider = document.querySelector('#details input[type="range"]');
  const start = performance.now();
  slider.value = value;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  const check = () => map.hasAttribute("aria-busy")
    ? setTimeout(check)
    : requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
  check();
})
"""


def main() -> None:
    """Measure everything and print one line each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explorer", description=__doc__)
    parser.add_argument("--repeats", type=int, default=40, help="of each interaction")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the load by many clients")
    options = parser.parse_args()
    print(f"{'':<44}{'median':>9}{'95 %':>9}{'target':>9}")
    with screenshots.served(Explorer(Shelf())) as (server, browser):
        new_page = partial(_new_page, browser)
        _ready(new_page(), server, options.repeats // 4)
        for tokens, size, knob in ((21, "small", 150), (128, "small", 150), (128, "12 × 12", 150), (512, "small", 500)):
            _interactions(new_page(), server, tokens, size, knob, options.repeats)
        _interactions(new_page(), server, 512, "12 × 12", 500, max(5, options.repeats // 4))
        _nodes(new_page(), server)
    _exports()
    asyncio.run(_clients(options.seconds))


def setup(tokens: int, size: str) -> Setup:
    """A network with random parameters, two layers of 4 heads or twelve of 12."""
    layers, width, heads = (2, 32, 4) if size == "small" else (12, 192, 12)
    text = (WORDS * (1 + tokens // len(WORDS)))[:tokens]
    source = Untrained(layers=layers, embed_dim=width, options={"num_heads": heads})
    return Setup(source=source, input=Text(text=text))


def _new_page(browser: Any) -> Page:
    page: Page = browser.new_page(viewport={"width": 1440, "height": 1000})
    page.add_init_script("try { localStorage.setItem('attnlab-explore-tour', 'yes') } catch {}")
    return page


def _line(name: str, milliseconds: list[float], target: float) -> None:
    middle, high = np.percentile(milliseconds, [50, 95])
    print(
        f"{name:<44}{middle:>6.0f} ms{high:>6.0f} ms{target:>6.0f} ms  {'' if high <= target else 'MISSED'}", flush=True
    )


def _ready(page: Page, server: Server, repeats: int) -> None:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        page.goto(server.url)
        page.wait_for_selector("body[data-ready]")
        times.append(1000 * (time.perf_counter() - start))
        page.goto("about:blank")
    _line("page ready", times, 1000)


def _interactions(page: Page, server: Server, tokens: int, size: str, knob: float, repeats: int) -> None:
    name = f"{size}, {tokens} tokens"
    page.goto(server.url + fragment(setup(tokens, size), head="0.0"))
    page.wait_for_selector("body[data-ready]", timeout=60_000)
    page.evaluate(SETTLED)
    page.locator(".stage").first.scroll_into_view_if_needed()
    box = page.locator(".stage").first.bounding_box()
    assert box is not None
    spots = np.random.default_rng(0).uniform(0.2, 0.8, (repeats, 2))
    hovers = [page.evaluate(HOVER, [box["x"] + box["width"] * x, box["y"] + box["height"] * y]) for x, y in spots]
    _line(f"hover, {name}", hovers, 16)
    switches = []
    for i in range(repeats):
        switches.append(page.evaluate(HEAD, "PageDown" if i % 6 < 3 else "PageUp"))
        page.evaluate(SETTLED)
        page.wait_for_timeout(60)  # a person looks before the next one
    _line(f"head, {name}", switches, 50)
    page.get_by_role("tab", name="Changes").click()
    knobs = []
    for i in range(repeats):
        knobs.append(page.evaluate(KNOB, str(-3 + 6 * (i + 0.5) / repeats)))
        page.wait_for_timeout(30)
    _line(f"temperature, {name}", knobs, knob)


def _nodes(page: Page, server: Server) -> None:
    many = Untrained(layers=48, embed_dim=128, options={"num_heads": 64})
    page.goto(server.url + fragment(Setup(source=many, input=Text(text=WORDS[:32]))))
    page.wait_for_selector("body[data-ready]", timeout=120_000)
    print(
        f"{'DOM nodes, 48 × 64 heads':<44}{page.evaluate('document.querySelectorAll(`*`).length'):>9}{'':>9}{3000:>9}"
    )


def _exports() -> None:
    explorer = Explorer(Shelf())
    for causal in (True, False):
        base = setup(256, "12 × 12")
        made = base.model_copy(update={"source": base.source.model_copy(update={"causal": causal})})
        with tempfile.TemporaryDirectory() as folder:
            size = export.write(explorer, made, Path(folder) / "page.html")
        weights = 144 * 256 * 256
        name = f"export, 12 × 12 × 256, {'causal' if causal else 'all keys'}"
        print(f"{name:<44}{size / 2**20:>5.2f} MiB{size / weights:>8.3f} bytes per weight (5 MiB, 0.6)")


async def _clients(seconds: float, count: int = 200) -> None:
    """Ask with many connections at a time; every answer must belong to its question."""
    times: list[float] = []
    failures: list[str] = []
    with Server(Explorer(Shelf()), port=0) as server:
        end = time.perf_counter() + seconds

        async def client(number: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            turn = 0
            while time.perf_counter() < end:
                turn += 1
                text = WORDS[: 5 + (number + turn) % 7]
                asked = Setup(source=Untrained(layers=1, options={"num_heads": 2}), input=Text(text=text))
                body = asked.model_dump() if turn % 2 else MapRequest(setup=asked).model_dump()
                start = time.perf_counter()
                status, answer = await _post(reader, writer, server.port, "view" if turn % 2 else "map", body)
                times.append(1000 * (time.perf_counter() - start))
                right = (
                    json.loads(answer)["tokens"] == list(text)
                    if turn % 2 and status == 200
                    else len(answer) == 4 * len(text) ** 2
                )
                if status != 200 or not right:
                    failures.append(f"{status} {answer[:80]!r}")
            writer.close()

        await asyncio.gather(*(client(number) for number in range(count)))
    middle, high = np.percentile(times, [50, 95])
    print(
        f"{count} clients for {seconds:g} s: {len(times):,} requests, {len(failures)} lost or wrong, "
        f"median {middle:.0f} ms, 95 % {high:.0f} ms"
    )
    for failure in failures[:5]:
        print(" ", failure)


async def _post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, path: str, body: dict[str, Any]
) -> tuple[int, bytes]:
    content = json.dumps(body).encode()
    writer.write(
        f"POST /api/{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n".encode()
        + content
    )
    status = int((await reader.readline()).split()[1])
    length = 0
    while (line := (await reader.readline()).decode().strip().lower()) != "":
        if line.startswith("content-length:"):
            length = int(line.split(":")[1])
    return status, await reader.readexactly(length)


if __name__ == "__main__":
    main()
