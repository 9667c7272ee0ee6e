"""The page in a real browser: what it shows, the keyboard, the tour and narrow windows.

Every test fails if the browser asks any server but this one, or writes an error to its console.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from browsing import (
    LESSON,
    SMALL,
    TEXT,
    Visit,
    digits,
    expect,
    head_of,
    link,
    point,
    readout,
    shown_weight,
    strongest,
)

from attnlab.explore.explorer import Explorer
from attnlab.explore.setup import (
    Digit,
    Lesson,
    MaskChange,
    Pretrained,
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

pytestmark = pytest.mark.slow


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
