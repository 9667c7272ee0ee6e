"""The page in a real browser: what it shows, the keyboard, links, masks, comparison and export.

Every test fails if the browser asks any server but this one, or writes an error to its console.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attnlab.explore import screenshots
from attnlab.explore.explorer import Explorer
from attnlab.explore.link import fragment
from attnlab.explore.server import Server
from attnlab.explore.setup import (
    Digit,
    Lesson,
    MapRequest,
    MaskChange,
    Pretrained,
    RunEntry,
    RunNetwork,
    ScoreChange,
    Setup,
    TaskExample,
    Text,
    ThreeTokens,
    Trained,
    Untrained,
    Upload,
)
from attnlab.explore.shelf import Shelf
from attnlab.utils.errors import UserError

playwright = pytest.importorskip("playwright.sync_api", reason="install the extra dev")
expect = playwright.expect
expect.set_options(timeout=20_000)  # on a busy machine

pytestmark = pytest.mark.slow

TEXT = "abcdeabcdea"


def small(model: str = "multihead") -> Setup:
    """An untrained network of two layers with three heads."""
    return Setup(source=Untrained(model=model, embed_dim=12, options={"num_heads": 3}), input=Text(text=TEXT))


SMALL = small()


def warm(temperature: float) -> Setup:
    """The small network at another temperature."""
    return SMALL.model_copy(update={"scores": ScoreChange(temperature=temperature)})


LESSON = Setup(source=Lesson(), input=ThreeTokens())


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


Visit = Callable[..., Any]


@pytest.fixture
def visit(running: tuple[Server, Any]) -> Iterator[Visit]:
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


def head_of(explorer: Explorer, setup: Setup, layer: int = 0, head: int = 0) -> torch.Tensor:
    return explorer.matrix(MapRequest(setup=setup, layer=layer, head=head))


def strongest(explorer: Explorer, setup: Setup) -> tuple[int, int]:
    """The layer and the head with the largest score of induction."""
    layers = explorer.view(setup).layers
    scores = {(i, j): head.tags["induction"] for i, layer in enumerate(layers) for j, head in enumerate(layer.heads)}
    return max(scores, key=lambda at: scores[at])


def link(setup: Setup, **place: str) -> str:
    return fragment(setup, **place)


def readout(page: Any) -> Any:
    return expect(page.locator("#readout"))


def digits(value: float | torch.Tensor) -> str:
    """A number as the page writes it."""
    return f"{float(value):#.3g}".replace("-", "−")


def shown_weight(page: Any) -> float:
    """The weight in the line above the matrix."""
    return float(page.inner_text("#readout").rpartition(" ")[2].replace("−", "-"))


def geometry(page: Any, length: int = len(TEXT)) -> tuple[float, float, float]:
    """The corner of the first cell and the size of a cell, in pixels of the window, found by moving the mouse.

    The line above the matrix names a cell only while the mouse is over one.
    """
    stage = page.locator(".stage").first
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    corner = []
    for axis in (0, 1):
        low, high = box["xy"[axis]], middle[axis]
        while high - low > 0.5:
            at = (low + high) / 2
            page.mouse.move(*((at, middle[1]) if axis == 0 else (middle[0], at)))
            inside = stage.evaluate("(stage) => 'hovered' in stage.dataset")
            low, high = (low, at) if inside else (at, high)
        corner.append(high)
    return corner[0], corner[1], (box["x"] + box["width"] - 2 - corner[0]) / length


def point(page: Any, cell: tuple[int, int]) -> tuple[float, float]:
    """The middle of a cell of the matrix."""
    left, top, unit = geometry(page)
    return left + (cell[1] + 0.5) * unit, top + (cell[0] + 0.5) * unit


# The first view, and what it loads


def test_default_view_shows_the_trained_network_with_its_strongest_induction_head(
    visit: Visit, explorer: Explorer
) -> None:
    page = visit()
    layer, head = strongest(explorer, Setup())
    expect(page.locator("#map-title")).to_have_text(f"Layer {layer}, head {head}")
    assert page.evaluate("location.hash") == ""
    assert "".join(page.locator(".token").all_inner_texts()) == "blacksmith␣blacksmith"
    assert "trained" in page.inner_text(".lead").lower()


def test_page_defaults_are_those_of_the_contract(visit: Visit) -> None:
    page = visit(link(LESSON))
    shown = page.evaluate('import("explore/setup").then(({ DEFAULTS }) => DEFAULTS)')
    kinds: dict[str, tuple[Any, ...]] = {
        "source": (Lesson, Untrained, Trained, RunNetwork, Pretrained),
        "input": (ThreeTokens, Text, TaskExample, Digit, Upload),
    }

    def defaults(model: Any) -> dict[str, Any]:
        fields = {name: f for name, f in model.model_fields.items() if name != "kind"}
        plain = {name: None if f.is_required() else f.get_default() for name, f in fields.items()}
        return json.loads(json.dumps(plain))

    for group, models in kinds.items():
        own: Any = {model.model_fields["kind"].default: defaults(model) for model in models}
        for required in ("run", "key"):  # without a default: empty on the page
            for fields in own.values():
                if required in fields:
                    fields[required] = ""
        assert shown[group] == own
    assert shown["mask"] == defaults(MaskChange)
    assert shown["scores"] == defaults(ScoreChange)


def test_scripts_stay_below_150_kib() -> None:
    from attnlab.explore.export import scripts

    assert sum(len(text.encode()) for text in scripts().values()) < 150 * 1024


def test_many_heads_and_tokens_need_few_nodes(visit: Visit) -> None:
    large = Setup(source=Untrained(layers=48, embed_dim=64, options={"num_heads": 64}), input=Text(text="xyzzy " * 100))
    small = large.model_copy(update={"input": Text(text="xyzzy")})
    page = visit(link(small))
    assert page.locator("#overview canvas").count() == 48
    assert page.evaluate("document.querySelectorAll('*').length") <= 3_000
    page.goto(page.url.split("#")[0] + link(large.model_copy(update={"source": SMALL.source}), table="1"))
    expect(page.locator(".table td").first).to_be_visible()
    expect(page.locator(".table tbody tr")).to_have_count(40)
    assert page.evaluate("document.querySelectorAll('*').length") <= 3_000


# One cell


def test_arithmetic_and_readout_show_the_weight_under_the_cursor(visit: Visit, explorer: Explorer) -> None:
    weights = head_of(explorer, SMALL, 1, 2)
    page = visit(link(SMALL, head="1.2"))
    for cell in ((7, 3), (10, 0)):
        x, y = point(page, cell)
        page.mouse.move(x, y)
        readout(page).to_have_text(re.compile(rf"^query {cell[0]} .* key {cell[1]} "))
        assert shown_weight(page) == pytest.approx(float(weights[cell]), rel=6e-3)
        page.mouse.click(x, y)
        expect(page.locator(".pair")).to_contain_text(f"query {cell[0]} “{TEXT[cell[0]]}”")
        expect(page.locator("#panel-arithmetic [aria-busy]")).to_have_count(0)
        expect(page.locator("#weight")).to_have_text(f"{float(weights[cell]):.7g}")
        assert float(page.inner_text("#weight")) == pytest.approx(float(weights[cell]), abs=1e-6)
        assert page.evaluate("location.hash").endswith(f"&cell={cell[0]}.{cell[1]}")


def test_copied_python_prints_the_weight(visit: Visit, explorer: Explorer, capsys: pytest.CaptureFixture[str]) -> None:
    page = visit(link(SMALL, head="1.2", cell="7.3"), permissions=["clipboard-read", "clipboard-write"])
    page.click("#copy-python")
    expect(page.locator("#copy-python")).to_have_text("Copied")
    exec(page.evaluate("navigator.clipboard.readText()"), {})  # our own server's program
    assert float(capsys.readouterr().out) == pytest.approx(float(head_of(explorer, SMALL, 1, 2)[7, 3]), abs=1e-6)


# Keyboard


def test_every_key_does_what_the_help_says(visit: Visit) -> None:
    page = visit(link(SMALL, head="0.1", cell="4.2"))
    title, announced = expect(page.locator("#map-title")), expect(page.locator("#announce"))
    readout(page).to_have_text(re.compile("^query 4 “e” → key 2 “c”"))
    for key, query, column in (("ArrowDown", 5, 2), ("ArrowRight", 5, 3), ("ArrowUp", 4, 3), ("ArrowLeft", 4, 2)):
        page.keyboard.press(key)
        readout(page).to_have_text(re.compile(f"^query {query} .* key {column} "))
    announced.to_have_text(page.inner_text("#readout"))
    page.locator(".stage").first.focus()
    page.keyboard.press("Home")
    readout(page).to_have_text(re.compile("^query 4 .* key 0 "))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    for key, layer, head in (("PageDown", 0, 2), ("PageDown", 1, 0), ("PageUp", 0, 2), ("]", 1, 2), ("[", 0, 2)):
        page.keyboard.press(key)
        title.to_have_text(f"Layer {layer}, head {head}")
    announced.to_have_text(re.compile("^layer 0, Multi-head attention, true weights, head 2 of 3"))
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("d")
    page.keyboard.press("Enter")
    readout(page).to_have_text(re.compile("^query 8 “d”"))
    page.keyboard.press("Escape")
    page.keyboard.press("c")
    expect(page.locator("#equal")).to_contain_text("A and B are equal.")
    page.keyboard.press("c")
    expect(page.locator(".stage >> visible=true")).to_have_count(1)
    page.keyboard.press("t")
    expect(page.locator("td.chosen")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    readout(page).to_have_text(re.compile("^query 8 .* key 1 "))
    page.keyboard.press("Escape")
    expect(page.locator(".table")).to_be_hidden()
    expect(page.locator(".stage").first).to_be_focused()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    page.keyboard.press("m")
    expect(page.locator("#draw-mask")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Space")
    readout(page).to_have_text(re.compile(r"key 1 “b”: 0$"))
    page.keyboard.press("Escape")
    expect(page.locator("#draw-mask")).to_have_attribute("aria-pressed", "false")
    page.locator("#show-table").focus()
    page.keyboard.press("PageUp")  # scrolls the page
    page.keyboard.press("t")
    expect(page.locator(".table")).to_be_hidden()
    title.to_have_text("Layer 0, head 2")


def test_keys_in_a_text_field_are_text(visit: Visit) -> None:
    page = visit(link(SMALL, head="0.1"))
    page.fill("#text", "")
    page.locator("#text").press_sequentially("tc[]?/")
    expect(page.locator(".token")).to_have_text(list("tc[]?/"))
    expect(page.locator("#map-title")).to_have_text("Layer 0, head 1")
    expect(page.locator("#help")).to_be_hidden()


def test_tab_reaches_the_matrix_the_heads_and_the_tokens(visit: Visit) -> None:
    page = visit(link(LESSON))
    seen: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.className || document.activeElement.tagName"))
        if seen[-1] == "BODY":
            break
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", f"{seen[-1]} shows no focus"
    assert {"stage", "heads", "tokens"} <= set(seen)


def test_table_holds_the_weights(visit: Visit, explorer: Explorer) -> None:
    weights = head_of(explorer, SMALL, 1, 2)
    page = visit(link(SMALL, head="1.2", cell="7.3", table="1"))
    rows = [row.split("\t") for row in page.locator(".table tbody").inner_text().split("\n") if row.strip()]
    shown = torch.tensor([[float(cell) for cell in row[1:]] for row in rows])
    torch.testing.assert_close(shown, weights, atol=6e-4, rtol=0)
    expect(page.locator("td.chosen")).to_have_text(digits(weights[7, 3]))
    assert rows[7][0] == "7 c"
    page.click("td[data-cell='9.2']")
    expect(page.locator(".pair")).to_contain_text("query 9 “e” attends to key 2 “c”")


# Links


def test_link_restores_the_setup_and_the_place(visit: Visit) -> None:
    setup = Setup(
        source=Untrained(model="multihead,entmax", embed_dim=12, layers=2, options={"num_heads": 3}, seed=5),
        input=Text(text="a b&c=d#e “+” %41 1"),
        mask=MaskChange(window=4, documents=(5, 6), blocked=((3, 1), (9, 9))),
    )
    page = visit(link(LESSON))
    with page.expect_request("**/api/view") as asked:
        page.goto(page.url.split("#")[0] + link(setup, head="1.2", cell="5.3"))
    assert Setup.model_validate_json(asked.value.post_data) == setup
    expect(page.locator("#map-title")).to_have_text("Layer 1, head 2")
    readout(page).to_have_text(re.compile("^query 5 .* key 3 "))
    page.evaluate("history.replaceState(null, '', '#')")
    page.keyboard.press("ArrowRight")  # the page writes its link anew
    expect(page).to_have_url(re.compile("cell=5.4"))
    assert page.evaluate("location.hash") == link(setup, head="1.2", cell="5.4")
    page.click("#tab-changes")
    with page.expect_request("**/api/view") as asked:
        page.locator("#ablate").check()
    assert Setup.model_validate_json(asked.value.post_data) == setup.model_copy(update={"ablated": ((1, 2),)})


def test_back_and_forward_restore_what_was_shown(visit: Visit) -> None:
    page = visit(link(SMALL, head="0.0", cell="4.2"))
    title = expect(page.locator("#map-title"))
    page.select_option("#head", "1")
    page.select_option("#head", "2")
    title.to_have_text("Layer 0, head 2")
    page.go_back()
    title.to_have_text("Layer 0, head 1")
    page.go_back()
    title.to_have_text("Layer 0, head 0")
    page.go_forward()
    title.to_have_text("Layer 0, head 1")
    page.keyboard.press("ArrowRight")
    readout(page).to_have_text(re.compile("key 3 "))


BROKEN = {
    "#nonsense": "has no value",
    "#head=first": "is not two numbers, such as head=1.2",
    "#source.kind=magic": "source.kind=magic in the link is unknown",
    "#source.size=3": "unknown setting, source.size",
    "#mask.blocked=7": "mask.blocked in the link is not a list",
    "#input.text=%E0%A4%A": "cannot be decoded",
}
ABSENT = {"#head=9.9": "a head that this network", "#cell=99.99": "a cell that this input"}


def test_broken_link_shows_one_line_and_the_default_view(visit: Visit) -> None:
    page = visit(link(SMALL))
    for broken, reason in BROKEN.items():
        page.evaluate("(hash) => { location.hash = hash }", broken)
        expect(page.locator("#problem")).to_have_text(re.compile(f"{re.escape(reason)}.*; this is the default view.$"))
        expect(page.locator(".token")).to_have_count(len("blacksmith blacksmith"))
    for absent, reason in ABSENT.items():
        page.evaluate("(hash) => { location.hash = hash }", absent)
        expect(page.locator("#problem")).to_contain_text(f"The link names {reason} does not have")


@pytest.mark.parametrize(("wrong", "reason"), [("#source.model=nosuch", "nosuch"), ("#mask.window=-3", "mask.window")])
def test_link_that_the_server_refuses_shows_its_reason_and_the_default_view(
    visit: Visit, wrong: str, reason: str
) -> None:
    page = visit(wrong)
    expect(page.locator("#problem")).to_have_text(re.compile(f"{re.escape(reason)}.*; this is the default view.$"))
    expect(page.locator(".token")).to_have_count(len("blacksmith blacksmith"))
    page.keyboard.press("PageDown")
    page.keyboard.press("ArrowDown")
    expect(page).to_have_url(re.compile("#head=.*cell="))


# Changes


def test_drawn_mask_blocks_the_cells_it_covers(visit: Visit, explorer: Explorer) -> None:
    page = visit(link(SMALL, head="0.0", cell="8.2"))
    page.click("#draw-mask")
    start, stop = point(page, (7, 1)), point(page, (8, 2))
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*stop, steps=4)
    page.mouse.up()
    readout(page).to_have_text(re.compile(r"^query 8 .* key 2 .*: 0$"))
    blocked = ((7, 1), (7, 2), (8, 1), (8, 2))
    assert page.evaluate("location.hash") == link(
        SMALL.model_copy(update={"mask": MaskChange(blocked=blocked)}), head="0.0", cell="8.2"
    )
    page.click("#draw-mask")
    page.mouse.move(*point(page, (8, 3)))
    masked = head_of(explorer, SMALL.model_copy(update={"mask": MaskChange(blocked=blocked)}))
    readout(page).to_have_text(re.compile("^query 8 .* key 3 "))
    assert shown_weight(page) == pytest.approx(float(masked[8, 3]), rel=6e-3)
    assert float(masked[8, 3]) != pytest.approx(float(head_of(explorer, SMALL)[8, 3]), abs=1e-3)


def test_temperature_changes_the_weights_and_shows_before_and_after(visit: Visit, explorer: Explorer) -> None:
    page = visit(link(SMALL, head="1.1", cell="9.4"))
    page.click("#tab-changes")
    page.locator("#temperature").fill("2.5")  # the power of two
    expect(page).to_have_url(re.compile("scores.temperature=5.66"))
    warm = SMALL.model_copy(update={"scores": ScoreChange(temperature=5.66)})
    readout(page).to_have_text(re.compile(f"{digits(head_of(explorer, warm, 1, 1)[9, 4])}$"))
    old, new = (explorer.view(setup).layers[1].heads[1].entropy or 0 for setup in (SMALL, warm))
    expect(page.locator(".effect tr", has_text="Entropy").locator("td")).to_have_text(
        [f"{digits(old)} nats", f"{digits(new)} nats"]
    )
    change = explorer.view(warm).output_change
    assert change is not None
    percent = page.locator(".effect tr", has_text="network's output").inner_text().split()[-2]
    assert float(percent) == pytest.approx(100 * change, rel=0.01)
    page.click("#reset-changes")
    expect(page).not_to_have_url(re.compile("temperature"))


def test_change_keeps_the_head_and_the_cell_that_the_page_chose(visit: Visit, explorer: Explorer) -> None:
    other = next(t for t in (0.0625, 16) if strongest(explorer, warm(t)) != strongest(explorer, SMALL))
    layer, head = strongest(explorer, SMALL)
    page = visit(link(SMALL))
    page.click("#tab-changes")
    before = page.inner_text("#readout").partition(":")[0]
    page.locator("#temperature").fill(str(math.log2(other)))
    expect(page).to_have_url(re.compile(rf"scores.temperature=.*&head={layer}\.{head}&cell=\d+\.\d+$"))
    expect(page.locator("#map-title")).to_have_text(f"Layer {layer}, head {head}")
    readout(page).to_have_text(re.compile("^" + re.escape(before)))


def test_controls_that_a_mechanism_does_not_support_are_disabled_with_the_reason(visit: Visit) -> None:
    setup = small("retention")
    page = visit(link(setup))
    page.click("#tab-changes")
    expect(page.locator("#temperature")).to_be_disabled()
    expect(page.locator(".unsupported small").first).to_have_text("This mechanism does not support it.")
    expect(page.get_by_label("Window")).to_be_disabled()
    expect(page.locator("#panel-changes")).to_contain_text("Retention supports only document masks.")
    expect(page.locator("#draw-mask")).to_be_disabled()
    expect(page.get_by_label("Causal")).to_be_disabled()
    page.goto(page.url.split("#")[0] + link(small("multihead,retention"), head="1.0"))
    expect(page.locator("#temperature")).to_be_enabled()
    expect(page.locator("#temperature-help")).to_have_text("This layer does not support it, others do.")


def test_options_of_the_catalog_change_the_network(visit: Visit) -> None:
    page = visit(link(SMALL, head="0.0"))
    page.click("#tab-changes")
    page.get_by_label("num_heads", exact=True).fill("2")
    page.keyboard.press("Tab")
    expect(page.locator("#head option")).to_have_count(2)
    heads = page.get_by_label("num_heads", exact=True)
    heads.fill("5")
    page.keyboard.press("Tab")
    error = page.locator(".field", has=heads).locator(".error")
    expect(error).to_contain_text("embed_dim (12) must be divisible by num_heads (5)")
    expect(heads).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#head option")).to_have_count(2)  # the last view that worked
    expect(page).to_have_url(re.compile("num_heads=2"))
    page.get_by_label("positions", exact=True).fill("rotary")
    page.keyboard.press("Tab")
    expect(page).to_have_url(re.compile("num_heads=2&.*positions=rotary"))
    expect(heads).to_have_value("2")
    expect(page.locator(".error")).to_have_count(0)
    for label, wrong, reason in WRONG:
        control = page.get_by_label(label, exact=True)
        control.fill(wrong)
        control.press("Tab")
        expect(page.locator(".field", has=control).locator(".error")).to_have_text(reason)
    assert "mask" not in page.url
    page.click("#reset-changes")
    expect(page.locator("#head option")).to_have_count(3)
    expect(page).not_to_have_url(re.compile("positions"))


WRONG = (
    ("Soft cap", "0", "Soft cap must be greater than 0."),
    ("Window", "1.5", "Window must be a whole number, at least 1."),
    ("Documents", "foo", "Enter lengths separated by commas that add up to 11, such as 6, 5."),
)


def test_options_of_a_trained_network_are_compared_with_its_own_values(visit: Visit) -> None:
    """Its number of heads is 4, and 8 by default."""
    page = visit("#head=0.0&cell=12.2")
    page.click("#tab-changes")
    page.get_by_label("Causal").select_option("false")
    expect(page.locator(".effect thead")).to_contain_text("before")

    asked: list[str] = []

    def untrained(route: Any) -> None:  # answered by the network that is trained already
        asked.append(route.request.post_data)
        route.continue_(post_data=asked[-1].replace('"num_heads":8', ""))

    page.route(re.compile("/api/(view|thumbnails|map|cell)"), untrained)
    page.get_by_label("num_heads", exact=True).fill("8")
    page.keyboard.press("Tab")
    expect(page.locator("#panel-changes")).to_contain_text("so there is no “before”")
    assert any('"options":{"num_heads":8}' in body for body in asked)


def test_positions_take_settings(visit: Visit, explorer: Explorer) -> None:
    page = visit(link(SMALL, head="0.0", cell="7.3"))
    page.click("#tab-changes")
    page.get_by_label("positions", exact=True).fill("rotary(base=100)")
    page.keyboard.press("Tab")
    source = Untrained(embed_dim=12, options={"num_heads": 3, "positions": "rotary(base=100)"})
    turned = head_of(explorer, SMALL.model_copy(update={"source": source}))
    readout(page).to_have_text(re.compile(f"{digits(turned[7, 3])}$"))
    assert abs(float(turned[7, 3] - head_of(explorer, SMALL)[7, 3])) > 1e-4


def test_file_can_be_uploaded(visit: Visit, tmp_path: Path) -> None:
    page = visit(link(SMALL))
    for name, content in (("x.txt", b"no arrays"), ("x.npz", b"")):
        path = tmp_path / name
        path.write_bytes(content)
        if path.suffix == ".npz":
            np.savez(path, x=np.arange(3 * 7).reshape(3, 7) % 5)
        with page.expect_file_chooser() as chooser:
            page.select_option("#input", "upload")
        chooser.value.set_files(path)
        expect(page.locator("#problem" if name == "x.txt" else "#pickers")).to_contain_text(
            "x.txt" if name == "x.txt" else "x.npz: 3 × 7"
        )
    expect(page.locator(".token")).to_have_text(list("0123401"))
    page.get_by_label("Row", exact=True).fill("3")
    page.keyboard.press("Tab")
    expect(page.locator(".field .error")).to_contain_text("3")


# Overview and tokens


def test_heads_are_sorted_by_the_measure_and_chosen_by_a_click(visit: Visit, explorer: Explorer) -> None:
    page = visit(link(SMALL))
    page.select_option("#sort", "entropy")
    expect(page.locator("#overview canvas")).to_have_count(1)
    heads = {
        (i, j): head.entropy
        for i, layer in enumerate(explorer.view(SMALL).layers)
        for j, head in enumerate(layer.heads)
    }
    first = min(heads, key=lambda at: heads[at] or 0)
    page.locator("#overview canvas").click(position={"x": 10, "y": 10})
    expect(page.locator("#map-title")).to_have_text(f"Layer {first[0]}, head {first[1]}")
    page.locator(".heads").focus()
    page.keyboard.press("ArrowRight")
    second = sorted(heads, key=lambda at: heads[at] or 0)[1]
    expect(page.locator("#map-title")).to_have_text(f"Layer {second[0]}, head {second[1]}")


def test_badges_say_what_kind_of_weights_each_layer_has(visit: Visit) -> None:
    setup = Setup(
        source=Untrained(model="multihead,retention", embed_dim=12, options={"num_heads": 3}), input=Text(text=TEXT)
    )
    page = visit(link(setup, head="1.0"))
    expect(page.locator("#overview .badge")).to_have_text(["● true weights", "◐ implied weights"])
    expect(page.locator(".legend .ticks >> nth=0")).to_have_text(re.compile("^−.*0\\+"))
    page.click("#tab-state")
    expect(page.locator("#panel-state canvas")).to_have_attribute("aria-label", re.compile("norm .*, rank "))


def test_token_strip_sums_the_weights_of_the_chosen_tokens(visit: Visit, explorer: Explorer) -> None:
    weights = head_of(explorer, SMALL)
    page = visit(link(SMALL, head="0.0", cell="2.0"))
    page.locator(".token").nth(5).click()
    page.locator(".token").nth(7).click(modifiers=["Shift"])
    page.locator(".token").nth(6).click()
    caption = expect(page.locator("#tokens-caption"))
    caption.to_contain_text("Weight from 5 “a”, 7 “c” to each token")
    caption.to_contain_text(f"largest is {digits((weights[5] + weights[7]).max())}")
    expect(page.locator('.token[aria-selected="true"]')).to_have_text(["a", "c"])
    page.select_option("[aria-label='Direction of attention']", "to")
    caption.to_contain_text("Weight from each token to 5 “a”, 7 “c”")
    caption.to_contain_text(f"largest is {digits((weights[:, 5] + weights[:, 7]).max())}")
    page.select_option("[aria-label^='Sum or mean']", "mean")
    caption.to_contain_text(f"largest is {digits((weights[:, 5] + weights[:, 7]).max() / 2)}")
    page.fill("#search", "zz")
    page.keyboard.press("Enter")
    expect(page.locator("#tokens .error")).to_have_text("No token contains “zz”.")


def test_patches_of_a_digit_can_be_chosen(visit: Visit) -> None:
    page = visit(link(Setup(source=SMALL.source, input=Digit(index=3)), head="0.0"))
    page.locator("#tokens canvas").click(position={"x": 150, "y": 60})  # the second row, the last column
    expect(page.locator("#tokens-caption")).to_contain_text("Weight from 7 ")


# What is drawn

PIXELS = """(canvas, places) => {
  const scale = canvas.width / canvas.clientWidth;
  const context = canvas.getContext("2d");
  return places.map(([x, y]) => [...context.getImageData(Math.round(x * scale), Math.round(y * scale), 1, 1).data]);
}"""
GREY = [233, 235, 238, 255]
"""An exact zero in the light theme."""


def cells(left: float, top: float, unit: float, inside: float) -> list[tuple[float, float]]:
    """A place in each cell of a matrix: ``inside`` is 0 at its upper left and 1 at its lower right corner."""
    N = range(len(TEXT))
    return [(left + (key + inside) * unit, top + (query + inside) * unit) for query in N for key in N]


def drawn_cells(page: Any, stage: int = 0) -> torch.Tensor:
    """The colours of the cells of a matrix, (N, N, 4), beside the numbers in the middle of the cells."""
    left, top, unit = geometry(page)
    box = page.locator(".stage").first.bounding_box()
    places = cells(left - box["x"], top - box["y"], unit, 0.15)
    canvas = page.locator(".stage").nth(stage).locator("canvas").first
    return torch.tensor(canvas.evaluate(PIXELS, places)).unflatten(0, (len(TEXT), -1))


def test_larger_weights_are_darker_and_exact_zeros_are_grey(visit: Visit, explorer: Explorer) -> None:
    sharp = warm(0.1)
    weights = head_of(explorer, sharp, 0, 1)
    assert ((weights > 0) & (weights < 1e-6)).any()
    colors = drawn_cells(visit(link(sharp, head="0.1")))
    is_grey = (colors == torch.tensor(GREY)).all(-1)
    assert torch.equal(is_grey, weights == 0)
    brightness = colors[..., :3].sum(-1)[weights > 0]
    order = weights[weights > 0].argsort()
    assert (brightness[order].diff() <= 0).all()
    assert brightness.max() - brightness.min() > 300


def test_signed_weights_are_blue_and_orange(visit: Visit, explorer: Explorer) -> None:
    setup = small("deltanet")
    weights = head_of(explorer, setup, 1, 1)
    colors = drawn_cells(visit(link(setup, head="1.1")))
    assert (colors[weights == 0] == torch.tensor(GREY)).all()
    large = 0.05 * weights.abs().max()
    red, blue = colors[..., 0], colors[..., 2]
    assert (weights < -large).any()
    assert (red[weights < -large] > blue[weights < -large]).all()
    assert (blue[weights > large] > red[weights > large]).all()


def test_thumbnails_show_their_own_heads(visit: Visit, explorer: Explorer) -> None:
    page = visit(link(SMALL))
    for layer, canvas in enumerate(page.locator("#overview canvas").all()):
        side = (canvas.bounding_box()["width"] + 4) // 3 - 4
        for head in range(3):
            weights = head_of(explorer, SMALL, layer, head).flatten()
            places = cells(head * (side + 4) + 2, 2, (side - 4) / len(TEXT), 0.5)
            brightness = torch.tensor(canvas.evaluate(PIXELS, places))[:, :3].sum(-1)
            both = torch.stack([brightness, -weights.sqrt()])[:, weights > 0]
            assert torch.corrcoef(both)[0, 1] > 0.95


# Comparison


def test_comparison_shows_both_weights_their_difference_and_the_costs(visit: Visit, explorer: Explorer) -> None:
    page = visit(link(SMALL, head="1.0", cell="6.2"))
    page.click("#compare")
    page.click("#tab-changes")
    page.locator("#temperature").fill("2.5")
    other = SMALL.model_copy(update={"scores": ScoreChange(temperature=5.66)})
    a, b = (float(head_of(explorer, setup, 1, 0)[6, 2]) for setup in (SMALL, other))
    readout(page).to_have_text(re.compile(f"A {digits(a)}, B {digits(b)}, B − A {digits(b - a)}$"))
    expect(page.locator("figcaption >> visible=true")).to_have_count(3)
    flops = sum(layer.flops or 0 for layer in explorer.view(SMALL).layers)
    expect(page.locator(".costs tr", has_text="Forward pass").locator("td").first).to_have_text(
        f"{digits(flops / 1e3)} kFLOP"
    )
    expect(page).to_have_url(re.compile("b.scores.temperature=5.66"))
    again = visit(page.evaluate("location.hash"))
    readout(again).to_have_text(re.compile(f"A {digits(a)}, B {digits(b)}"))
    again.locator("label[for=side-a]").click()
    again.click("#tab-changes")
    expect(again.locator("output[for=temperature]")).to_have_text("1.00")


def test_comparison_draws_both_matrices_on_one_scale_and_the_sign_of_their_difference(
    visit: Visit, explorer: Explorer
) -> None:
    other = SMALL.model_copy(update={"scores": ScoreChange(temperature=4)})
    page = visit(link(SMALL, head="0.1") + "&b.scores.temperature=4&" + link(SMALL)[1:].replace("source", "b.source"))
    readout(page).to_have_text(re.compile("B − A"))
    a, b = (head_of(explorer, setup, 0, 1) for setup in (SMALL, other))
    colors = [drawn_cells(page, stage)[..., :3] for stage in range(3)]
    values = torch.cat([a[a > 0], b[b > 0]])
    brightness = torch.cat([colors[0][a > 0], colors[1][b > 0]]).sum(-1)
    assert (brightness[values.argsort()].diff() <= 0).all()
    red, blue = colors[2][..., 0], colors[2][..., 2]
    assert (red[b - a < -0.02] > blue[b - a < -0.02]).all()
    assert (blue[b - a > 0.02] > red[b - a > 0.02]).all()


def test_mechanisms_of_different_kinds_can_be_compared(visit: Visit) -> None:
    page = visit(
        link(SMALL, head="1.0")
        + "&b.source.kind=untrained&b.source.model=retention&b.source.embed_dim=12&b.source.options.num_heads=3"
    )
    expect(page.locator("figcaption >> visible=true")).to_contain_text(["A: Multi-head", "B: Retention", "Difference"])


def test_second_setup_shows_the_head_of_the_first_whichever_answer_comes_first(
    visit: Visit, explorer: Explorer
) -> None:
    def seeded(seed: int) -> Setup:
        return small().model_copy(update={"source": Untrained(embed_dim=12, options={"num_heads": 3}, seed=seed)})

    seed = next(seed for seed in range(1, 20) if strongest(explorer, seeded(seed)) != strongest(explorer, SMALL))
    page = visit(link(LESSON))
    held: list[Any] = []

    def hold(route: Any) -> None:
        if json.loads(route.request.post_data)["source"]["seed"] == 0:
            held.append(route)
        else:
            route.continue_()

    page.route("**/api/view", hold)
    second = link(seeded(seed))[1:].split("&input")[0].replace("source", "b.source")
    page.goto(f"{page.url.split('#')[0]}{link(SMALL)}&side=b&{second}")
    page.reload()
    expect(page.locator("#map-title")).to_be_visible()
    other = page.inner_text("#map-title")
    for route in held:
        route.continue_()
    expect(page.locator("figcaption >> visible=true")).to_have_count(3)
    expect(page.locator("#map-title")).not_to_have_text(other)
    names = page.locator("figcaption").all_inner_texts()
    assert names[0].partition("layer")[2] == names[1].partition("layer")[2]


# Loading


@pytest.mark.parametrize("prefetched", [False, True])
def test_late_answer_does_not_replace_a_newer_one(visit: Visit, prefetched: bool) -> None:
    """The matrix of another head arrives late: it was asked for, or asked for while it was fetched in advance."""
    late = (0, 1) if prefetched else (1, 1)
    held: list[Any] = []
    page = visit(link(LESSON))

    def hold(route: Any) -> None:
        body = json.loads(route.request.post_data)
        if (body["layer"], body["head"]) == late and not held:
            held.append(route)
        else:
            route.continue_()

    page.route("**/api/map", hold)
    with page.expect_request(lambda request: '"layer":0,"head":1' in (request.post_data or "")):
        page.goto(page.url.split("#")[0] + link(SMALL, head="0.0", cell="10.0"))
    title = expect(page.locator("#map-title"))
    title.to_have_text("Layer 0, head 0")
    page.evaluate("(hash) => { location.hash = hash }", link(SMALL, head=f"{late[0]}.{late[1]}", cell="10.0"))
    expect(page).to_have_url(re.compile(f"head={late[0]}.{late[1]}"))
    page.evaluate("(hash) => { location.hash = hash }", link(SMALL, head="1.0", cell="10.0"))
    title.to_have_text("Layer 1, head 0")
    before = page.inner_text("#readout")
    assert held
    if prefetched:
        with page.expect_response("**/api/map"):
            held[0].continue_()
    else:  # the page has given it up
        held[0].continue_()
    page.evaluate("() => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
    title.to_have_text("Layer 1, head 0")
    assert page.inner_text("#readout") == before


def test_long_inputs_are_pooled_and_fetched_in_detail_when_zoomed(visit: Visit, explorer: Explorer) -> None:
    setup = Setup(source=Untrained(embed_dim=8, layers=1, options={"num_heads": 1}), input=Text(text=(TEXT * 100)))
    page = visit(link(setup, cell="700.300"))
    readout(page).to_have_text(re.compile("^queries 700 to 701 → keys 300 to 301: sum "))
    exact = explorer.matrix(MapRequest(setup=setup, queries=(700, 701), keys=(300, 301)))
    for _ in range(4):
        page.keyboard.press("+")
    readout(page).to_have_text(re.compile("^query 700 .* key 300 "))
    assert shown_weight(page) == pytest.approx(float(exact), rel=6e-3)
    expect(page.locator(".legend").first).to_contain_text("square-root scale")
    page.locator(".stage").first.dblclick(position={"x": 300, "y": 300})
    expect(page.locator(".legend").first).to_contain_text("sums over 2 keys, means over 2 queries")
    expect(page.locator(".legend").first).to_contain_text("or more")  # the first rows have few keys
    label = page.locator(".stage").first.get_attribute("aria-label")
    assert label.endswith(page.inner_text("#readout"))
    assert page.locator(".token").count() == 400


def test_wheel_zooms_the_matrix_that_has_the_focus_and_scrolls_the_page_otherwise(visit: Visit) -> None:
    page = visit(link(SMALL, head="0.0"), size=(1280, 600))
    page.locator(".stage").first.scroll_into_view_if_needed()
    box = page.locator(".stage").first.bounding_box()
    corner = box["x"] + box["width"] - 8, box["y"] + 200
    page.mouse.move(*corner)
    readout(page).to_have_text(re.compile("key 10 "))
    top = page.evaluate("scrollY")
    page.mouse.wheel(0, -40)
    expect(page.locator("html")).to_have_js_property("scrollTop", top - 40)
    page.mouse.move(corner[0], corner[1] + 40)
    corner = corner[0], corner[1] + 40
    page.locator(".stage").first.evaluate("(stage) => stage.focus({ preventScroll: true })")
    page.mouse.wheel(0, -800)  # to the largest zoom, about the cursor
    page.mouse.move(box["x"] + 0.46 * box["width"], corner[1])
    readout(page).to_have_text(re.compile("key 8 "))
    page.mouse.wheel(0, 2000)
    page.mouse.move(box["x"] + 0.46 * box["width"] + 1, corner[1])
    readout(page).to_have_text(re.compile("key 4 "))
    page.mouse.wheel(0, 300)
    expect(page.locator("h1")).not_to_be_in_viewport()


def test_two_fingers_zoom_and_one_finger_chooses(visit: Visit) -> None:
    page = visit(link(SMALL, head="0.0"), has_touch=True)
    x, y = point(page, (5, 5))
    page.touchscreen.tap(x, y)
    readout(page).to_have_text(re.compile("^query 5 .* key 5 "))
    touch = page.context.new_cdp_session(page)

    def fingers(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": a, "y": b, "id": i} for i, (a, b) in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", (x - 20, y), (x + 20, y))
    fingers("touchMove", (x - 90, y), (x + 90, y))
    fingers("touchEnd")
    box = page.locator(".stage").first.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] - 8, y)
    readout(page).to_have_text(re.compile("key [67] "))  # at full view it is key 10


# Files


def test_exported_page_works_from_a_file(visit: Visit, explorer: Explorer, tmp_path: Path) -> None:
    page = visit(link(SMALL, head="0.2", cell="8.4"))
    page.click("#save > summary")
    with page.expect_download() as download:
        page.click("text=Page (HTML)")
    path = tmp_path / "attention.html"
    download.value.save_as(path)
    weights = head_of(explorer, SMALL, 1, 2)
    export = visit("#head=1.2&cell=7.3", address=path.as_uri())
    expect(export.locator("#map-title")).to_have_text("Layer 1, head 2")
    readout(export).to_have_text(re.compile("^query 7 .* key 3 "))
    assert shown_weight(export) == pytest.approx(float(weights[7, 3]), abs=0.004 * float(weights.max()))
    export.keyboard.press("PageUp")
    expect(export.locator("#map-title")).to_have_text("Layer 1, head 1")
    export.goto(path.as_uri())
    export.reload()
    expect(export.locator("#map-title")).to_have_text("Layer 0, head 2")
    readout(export).to_have_text(re.compile("^query 8 .* key 4 "))
    export.click("#tab-changes")
    expect(export.locator("#panel-changes form")).to_contain_text("Run attnlab explore")
    export.click("#save > summary")
    with export.expect_download() as download:
        export.click("#save >> text=CSV")
    lines = Path(download.value.path()).read_text().splitlines()
    assert len(lines) == len(TEXT) + 1


def test_matrix_can_be_saved(visit: Visit) -> None:
    page = visit(link(SMALL, head="1.2"))
    for kind, start in (("SVG", b"<?xml"), ("PNG", b"\x89PNG"), ("CSV", b""), ("NPZ", b"PK")):
        page.click("#save > summary")
        with page.expect_download() as download:
            page.click(f"#save >> text={kind}")
        assert download.value.suggested_filename == f"attention-1.2.{kind.lower()}"
        assert Path(download.value.path()).read_bytes().startswith(start)


def test_token_that_is_a_script_is_only_a_token(visit: Visit, explorer: Explorer, tmp_path: Path) -> None:
    script = "</script><img src=x onerror=\"document.title='x'\"><b>"
    setup = SMALL.model_copy(update={"input": Text(text=script)})
    page = visit(link(setup, head="0.0", cell="9.1"))
    assert "".join(page.locator(".token").all_inner_texts()) == script.replace(" ", "␣")
    page.keyboard.press("t")
    expect(page.locator("td.chosen")).to_be_visible()
    page.click("#save > summary")
    with page.expect_download() as download:
        page.click("text=Page (HTML)")
    path = tmp_path / "script.html"
    download.value.save_as(path)
    export = visit(address=path.as_uri())
    for each in (page, export):
        assert each.locator("img").count() == 0
        assert each.title() == "Attention explorer"
    assert "".join(export.locator(".token").all_inner_texts()) == script.replace(" ", "␣")


# Design and access


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_a_contrast_of_at_least_4_5(visit: Visit, scheme: str) -> None:
    page = visit(link(SMALL, head="1.1", cell="9.4"), color_scheme=scheme, tour=True)
    low: list[Any] = []
    for tab in ("arithmetic", "changes", "summary"):
        page.click(f"#tab-{tab}")
        low += page.evaluate(CONTRAST)
    page.locator(".stage").first.focus()
    page.keyboard.press("t")
    page.keyboard.press("c")
    expect(page.locator(".costs")).to_be_visible()
    low += page.evaluate(CONTRAST)
    page.keyboard.press("?")
    low += page.evaluate(CONTRAST)
    assert not low


CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!text && !element.matches("input, select, textarea")) continue;
    if (!element.checkVisibility({ checkVisibilityCSS: true })) continue;
    if (element.closest(":disabled, .quiet, .skip, .unsupported, option")) continue;
    const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([element.tagName, element.className, element.textContent.slice(0, 30), ratio]);
  }
  return low;
}"""


def test_every_control_has_a_name(visit: Visit) -> None:
    page = visit(link(SMALL), tour=True)
    for tab in ("arithmetic", "changes", "summary"):
        page.click(f"#tab-{tab}")
        controls = page.locator(
            "button, select, input, textarea, [role=application], [role=listbox], canvas[role=img], [tabindex='0']"
        )
        for control in controls.all():
            if control.is_visible():
                tree = control.aria_snapshot()
                assert '"' in tree or ":" in tree, control.evaluate("(element) => element.outerHTML.slice(0, 200)")


def test_narrow_page_does_not_scroll_sideways(visit: Visit) -> None:
    setup = Setup(
        source=Untrained(model="retention", embed_dim=12, options={"num_heads": 3}), input=Text(text=TEXT * 3)
    )
    page = visit(link(setup), size=(320, 640), tour=True)
    for tab in ("arithmetic", "changes", "summary", "state"):
        page.click(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth") == 320, tab
    page.locator(".stage").first.focus()
    page.keyboard.press("t")
    page.keyboard.press("c")
    expect(page.locator(".costs")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_tour_has_four_steps_and_is_shown_once(visit: Visit, explorer: Explorer) -> None:
    page = visit(tour=True)
    tour = page.locator("#tour")
    expect(tour).to_contain_text("1 of 4")
    for step in (2, 3, 4):
        tour.get_by_role("button", name="Next").click()
        expect(tour).to_contain_text(f"{step} of 4")
        if step == 2:
            layer, head = strongest(explorer, Setup())
            expect(tour).to_contain_text(f"Head {head} of layer {layer} attends mostly to the token that followed last")
    expect(page.locator("#tab-changes")).to_have_attribute("aria-selected", "true")
    tour.get_by_role("button", name="Done").click()
    expect(tour).to_be_hidden()
    page.reload()
    page.wait_for_selector("body[data-ready]")
    expect(tour).to_be_hidden()


def test_summary_has_its_caveat_and_ablates_on_request(visit: Visit, explorer: Explorer) -> None:
    from attnlab.explore.setup import HeadRequest

    page = visit(link(SMALL, head="1.0"))
    page.click("#tab-summary")
    expect(page.locator(".caveat")).to_contain_text("attention weights are not importances")
    page.click("#run-ablation")
    changes = explorer.ablation(HeadRequest(setup=SMALL, layer=1)).output_change
    for head, change in enumerate(changes):
        row = page.locator(".meter", has_text=f"head {head}").locator(".value")
        expect(row).to_have_text(digits(change))


def test_snapshots_of_a_run_have_a_slider(visit: Visit) -> None:
    page = visit(link(SMALL))
    run = RunEntry(name="r", model="multihead", task="t", inputs="tokens", accepts=["task"], steps=[0, 50])

    def with_run(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "runs": [run.model_dump()]})

    page.route("**/api/catalog", with_run)
    page.reload()
    page.wait_for_selector("body[data-ready]")
    page.route("**/api/view", lambda route: route.fulfill(status=422, json={"error": "no such run"}))
    page.select_option("#source", "run r")
    expect(page.locator("#problem")).to_have_text("no such run")
    with page.expect_request("**/api/view") as asked:
        page.locator("#step").fill("1")
    expect(page.locator("output[for=step]")).to_have_text("50")
    expect(page).to_have_url(re.compile("source.step=50"))
    assert json.loads(asked.value.post_data)["source"] == {
        "kind": "run",
        "run": "r",
        "step": 50,
        "options": {},
        "causal": None,
    }
