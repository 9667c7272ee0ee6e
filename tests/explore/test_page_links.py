"""The page in a real browser: links, history, late answers, files and exports.

Every test fails if the browser asks any server but this one, or writes an error to its console.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from browsing import (
    LESSON,
    SMALL,
    TEXT,
    Visit,
    expect,
    head_of,
    link,
    readout,
    shown_weight,
    small,
    strongest,
)

from attnlab.explore.explorer import Explorer
from attnlab.explore.setup import (
    MaskChange,
    Setup,
    Text,
    Untrained,
)

pytestmark = pytest.mark.slow


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
