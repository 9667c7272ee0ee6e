"""``attnlab explore``: the page as a file, the server in a process, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from calls import error_of, output_of

from attnlab.explore import notebook
from attnlab.explore.link import fragment
from attnlab.explore.setup import MaskChange, Pretrained, Setup, Text, Untrained


def exported(*arguments: str) -> Any:
    """The data of the page that a command writes."""
    output_of("explore", *arguments, "--export", "page.html", "--overwrite")
    return json.loads(Path("page.html").read_text("utf-8").split('id="export">')[1].split("</script>")[0])


def test_the_default_is_a_trained_network() -> None:
    data = exported()
    assert data["setup"] == Setup().model_dump(mode="json")
    assert len(data["maps"]) == sum(len(layer["heads"]) for layer in data["view"]["layers"])
    out = output_of("explore", "--export", "new/page.html")
    assert out == "wrote new/page.html, 0.2 MiB; it needs no server and loads nothing\n"


@pytest.mark.slow
def test_a_mechanism_a_pattern_and_a_run_can_be_named(here: Path) -> None:
    assert exported("selfhead")["setup"]["source"]["model"] == "selfhead"
    assert exported("linear,multihead")["view"]["layers"][0]["weights"] == "implied weights"
    data = exported("digits")
    assert data["setup"]["source"]["run"] == "digits"
    assert data["view"]["tokens"][0] == "row 1"
    assert exported("text", "--text", "the fox")["view"]["tokens"] == list("the fox")
    state = '{"source": {"kind": "lesson"}, "input": {"kind": "three_tokens"}}'
    assert exported("--state", state)["view"]["tokens"] == ["21", "42", "63"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("multihaed",), "unknown model 'multihaed'; did you mean multihead?"),
        (("runs/none",), "runs/none is no run folder (it has no config.json); attnlab runs lists those there are"),
        (("--port", "65536"), "--port must be from 0 to 65,535, not 65536"),
        (("--text", ""), "--text: text (''): string should have at least 1 character"),
        (("--text", "two Words"), "W"),
        (("--state", "{}", "--text", "word"), "--state is the whole setup; leave out WHAT and --text"),
        (("--state", '{"scores": {"temperature": 0}}'), "--state: scores.temperature (0): input should be greater"),
        (("--export", "."), "--export . is a folder; name a file in it"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], line: str) -> None:
    assert line in error_of("explore", *arguments)


def test_an_existing_file_is_kept() -> None:
    Path("page.html").write_text("mine")
    assert "page.html exists" in error_of("explore", "--export", "page.html")
    assert Path("page.html").read_text() == "mine"


@pytest.mark.slow
def test_the_server_answers_until_ctrl_c() -> None:
    command = [sys.executable, "-m", "attnlab", "explore", "--port", "0", "--no_browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            address = line.removeprefix("attention explorer at ").split(" ")[0]
            with urllib.request.urlopen(address) as answer:
                assert b"<title>Attention explorer</title>" in answer.read()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate()
        finally:
            process.kill()
    assert (process.returncode, errors) == (130, "stopped\n")


@pytest.mark.skipif(os.name == "nt", reason="a taken port is reused there")
def test_a_taken_port_is_refused() -> None:
    page = notebook.show()
    try:
        port = page.url.split(":")[2].strip("/")
        assert f"cannot use port {port}" in error_of("explore", "--port", port)
    finally:
        page.stop()


def test_a_notebook_shows_the_page_in_a_frame() -> None:
    page = notebook.show(Setup(mask=MaskChange(window=3)), height=700)
    try:
        assert page.url.endswith("#mask.window=3")
        assert page._repr_html_() == (
            f'<iframe src="{page.url}" width="100%" height="700" style="border: 0" title="attention explorer"></iframe>'
        )
        with urllib.request.urlopen(page.url) as answer:
            assert answer.status == 200
    finally:
        page.stop()


@pytest.mark.parametrize(
    ("setup", "link"),
    [
        (Setup(), ""),
        (Setup(source=Untrained(model="3*linear,multihead")), "#source.kind=untrained&source.model=3*linear,multihead"),
        (Setup(input=Text(text="a & b=c #1")), "#input.text=a+%26+b%3Dc+%231"),
        (Setup(source=Untrained(options={"positions": "rotary", "num_heads": 2})), None),
        (Setup(source=Pretrained(hide_special=False)), "#source.kind=pretrained&source.hide_special=false"),
        (Setup(mask=MaskChange(blocked=((1, 2), (3, 4)))), "#mask.blocked=[[1,2],[3,4]]"),
        (Setup(ablated=((1, 0),)), "#ablated=[[1,0]]"),
    ],
)
def test_links_hold_what_differs_from_the_defaults(setup: Setup, link: str | None) -> None:
    if link is None:
        link = "#source.kind=untrained&source.options.positions=rotary&source.options.num_heads=2"
    assert fragment(setup) == link
    place = "head=1.2"
    assert fragment(setup, head="1.2") == (f"{link}&{place}" if link else f"#{place}")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "attnlab.explore.server", raising=False)
    monkeypatch.setattr("attnlab.utils.extras.find_spec", lambda name: None)
    assert error_of("explore") == "the explorer needs fastapi and uvicorn; pip install 'attnlab[explore]'"
