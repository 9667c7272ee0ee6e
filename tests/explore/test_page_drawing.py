"""The page in a real browser: colours, comparisons, long inputs and zoom.

Every test fails if the browser asks any server but this one, or writes an error to its console.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from browsing import (
    SMALL,
    TEXT,
    Visit,
    digits,
    expect,
    geometry,
    head_of,
    link,
    point,
    readout,
    shown_weight,
    small,
    warm,
)

from attnlab.explore.explorer import Explorer
from attnlab.explore.setup import (
    MapRequest,
    ScoreChange,
    Setup,
    Text,
    Untrained,
)

pytestmark = pytest.mark.slow


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
