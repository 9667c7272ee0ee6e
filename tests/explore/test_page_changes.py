"""The page in a real browser: changes of masks, scores, options and inputs.

Every test fails if the browser asks any server but this one, or writes an error to its console.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import (
    SMALL,
    Visit,
    digits,
    expect,
    head_of,
    link,
    point,
    readout,
    shown_weight,
    small,
    strongest,
    warm,
)

from attnlab.explore.explorer import Explorer
from attnlab.explore.setup import (
    MaskChange,
    RunEntry,
    ScoreChange,
    Untrained,
)

pytestmark = pytest.mark.slow


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
