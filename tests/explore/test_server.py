"""The server: who may ask, what is answered, and that no request makes it fail."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import numpy as np
import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, settings
from starlette.testclient import TestClient

from attnlab.explore import codes
from attnlab.explore import explorer as explorer_module
from attnlab.explore.explorer import Explorer
from attnlab.explore.export import contents
from attnlab.explore.forward import run
from attnlab.explore.networks import make_subject
from attnlab.explore.server import MAX_BODY, MAX_UPLOAD, Server, make_app
from attnlab.explore.setup import (
    Lesson,
    MapRequest,
    MaskChange,
    ScoreChange,
    Setup,
    Text,
    ThreeTokens,
    Trained,
    Untrained,
)
from attnlab.explore.shelf import Shelf
from attnlab.utils.errors import UserError

HOST = "127.0.0.1:8765"
SMALL = Setup(source=Untrained(embed_dim=12, layers=2, options={"num_heads": 3}), input=Text(text="abcdeab"))
LESSON = Setup(source=Lesson(), input=ThreeTokens())


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = make_app(Explorer(Shelf()), frozenset({HOST}))
    with TestClient(app, base_url=f"http://{HOST}") as made:
        yield made


def ask(client: TestClient, path: str, setup: Setup = SMALL, **more: Any) -> Any:
    body = setup.model_dump() if not more else {"setup": setup.model_dump(), **more}
    answer = client.post(f"/api/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer


# Who may ask


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1", "127.0.0.1:1", "attacker.test:8765", ""])
def test_other_hosts_are_refused(client: TestClient, host: str) -> None:
    answer = client.get("/api/catalog", headers={"Host": host})
    assert answer.status_code == 403
    assert answer.json() == {"error": f"this server answers only its own page, at http://{HOST}"}


@pytest.mark.parametrize("origin", ["http://example.org", "null", "https://127.0.0.1:8765", "http://127.0.0.1:1"])
def test_other_origins_are_refused(client: TestClient, origin: str) -> None:
    for call in (client.get("/", headers={"Origin": origin}), client.post("/api/view", headers={"Origin": origin})):
        assert call.status_code == 403


def test_the_page_itself_may_ask(client: TestClient) -> None:
    answer = client.post("/api/view", json=SMALL.model_dump(), headers={"Origin": f"http://{HOST}"})
    assert answer.status_code == 200


def test_answers_load_nothing_and_are_not_kept(client: TestClient) -> None:
    for path in ("/", "/api/catalog", "/static/style.css", "/static/none"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
    policy = client.get("/").headers["content-security-policy"]
    assert "'unsafe-inline'" not in policy
    assert "http:" not in policy
    assert "connect-src 'self'" in policy


def test_a_form_of_another_page_is_not_read(client: TestClient) -> None:
    answer = client.post("/api/view", content=SMALL.key(), headers={"Content-Type": "text/plain"})
    assert answer.status_code == 422


def test_each_page_has_a_nonce_of_its_own(client: TestClient) -> None:
    assert len({client.get("/").headers["content-security-policy"] for _ in range(3)}) == 3


@pytest.mark.parametrize("name", ["..%2Fserver.py", "%2e%2e%2fsetup.py", "index.html", "missing.js"])
def test_only_scripts_and_styles_are_served(client: TestClient, name: str) -> None:
    assert client.get(f"/static/{name}").status_code == 404


def test_bodies_are_bounded(client: TestClient) -> None:
    assert client.post("/api/view", content=b" " * (MAX_BODY + 1)).status_code == 413
    chunks = (b" " * 2**16 for _ in range(MAX_BODY // 2**16 + 1))  # without Content-Length
    assert client.post("/api/view", content=chunks).status_code == 413
    headers = {"Content-Length": str(MAX_UPLOAD + 1)}
    assert client.post("/api/upload", content=b"x", headers=headers).status_code == 413


# What is answered


def test_matrices_are_the_weights_of_the_layers(client: TestClient) -> None:
    for layer, passed in enumerate(run(make_subject(SMALL, Shelf()), SMALL).layers):
        for head in range(3):
            answer = ask(client, "map", layer=layer, head=head)
            assert (answer.headers["x-rows"], answer.headers["x-columns"]) == ("7", "7")
            weights = np.frombuffer(answer.content, "<f4").reshape(7, 7)
            np.testing.assert_array_equal(weights, passed.weights()[head].numpy())


def test_a_part_of_a_matrix_is_pooled(client: TestClient) -> None:
    whole = np.frombuffer(ask(client, "map", layer=1, head=2).content, "<f4").reshape(7, 7)
    answer = ask(client, "map", layer=1, head=2, queries=[1, 6], keys=[0, 4], size=3)
    assert (answer.headers["x-rows"], answer.headers["x-columns"]) == ("3", "2")
    part = np.frombuffer(answer.content, "<f4").reshape(3, 2)
    np.testing.assert_allclose(part[0, 1], whole[1:3, 2:4].sum(1).mean(), rtol=1e-6)


def test_thumbnails_are_the_codes_of_all_heads(client: TestClient) -> None:
    view, data = ask(client, "view").json(), ask(client, "thumbnails").content
    assert [layer["thumbnail"] for layer in view["layers"]] == [[7, 7]] * 2
    assert len(data) == 2 * 3 * 7 * 7
    shown = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(2, 3, 7, 7)
    peak = torch.tensor(view["layers"][1]["heads"][2]["thumbnail_peak"])
    whole = np.frombuffer(ask(client, "map", layer=1, head=2).content, "<f4").reshape(7, 7)
    assert np.abs(codes.decode(shown[1, 2], peak, signed=False).numpy() - whole).max() <= 0.004 * float(peak)


def test_a_view_without_changes_has_no_output_change(client: TestClient) -> None:
    view = ask(client, "view").json()
    assert view["output_change"] is None
    assert {layer["output_change"] for layer in view["layers"]} == {None}
    changed = ask(client, "view", SMALL.model_copy(update={"scores": ScoreChange(temperature=5.0)})).json()
    assert changed["output_change"] > 0
    assert all(layer["output_change"] > 0 for layer in changed["layers"])


def test_the_lesson_is_the_lesson(client: TestClient) -> None:
    view = ask(client, "view", LESSON).json()
    assert view["tokens"] == ["21", "42", "63"]
    cell = ask(client, "cell", LESSON, query=2, key=1).json()
    assert cell["weight"] == pytest.approx(2 / 7)
    assert cell["contribution"] == pytest.approx([2 / 7 * 42, 0, 0, 0])


def test_the_program_of_a_cell_prints_its_weight(client: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    cell = ask(client, "cell", layer=1, head=1, query=5, key=3).json()
    exec(cell["python"], {})
    assert float(capsys.readouterr().out) == pytest.approx(cell["weight"], abs=1e-6)
    assert cell["lines"][-1]["value"] == pytest.approx(cell["weight"], abs=1e-6)


def test_removing_a_head_changes_the_output_as_a_setup_does(client: TestClient) -> None:
    effects = ask(client, "ablation", layer=0).json()["output_change"]
    one = SMALL.model_copy(update={"ablated": ((0, 1),)})
    assert len(effects) == 3
    assert effects[1] == pytest.approx(ask(client, "view", one).json()["output_change"])


def test_a_recurrent_layer_shows_its_state(client: TestClient) -> None:
    setup = Setup(source=Untrained(model="deltanet", embed_dim=12, layers=1, options={"num_heads": 3}))
    view = ask(client, "view", setup).json()
    assert view["layers"][0]["weights"] == "implied weights"
    assert view["layers"][0]["has_state"]
    state = ask(client, "state", setup, head=2).json()
    assert len(state["norm"]) == len(state["rank"]) == len(state["written"]) == len(state["erased"]) == 21
    assert state["erased"][0] == 0
    assert state["rank"][0] == 1


@pytest.mark.parametrize(
    ("format", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("npz", b"PK"), ("csv", b"query")]
)
def test_files(client: TestClient, format: str, start: bytes) -> None:
    answer = ask(client, "picture", layer=1, head=0, format=format)
    assert answer.content.startswith(start)
    assert f'filename="attention-layer1-head0.{format}"' in answer.headers["content-disposition"]


def test_an_export_contains_the_data_and_no_markup_of_the_tokens(client: TestClient) -> None:
    bad = "</script><script>alert(1)</script>"
    text = ask(client, "export", SMALL.model_copy(update={"input": Text(text=bad)})).text
    assert bad not in text
    assert "alert(1)" not in text or "\\u003c/script" in text
    data = text.split('id="export"')[1].split(">", 1)[1].split("</script>")[0]
    assert json.loads(data)["view"]["tokens"] == list(bad)


@pytest.mark.parametrize("model", ["multihead", "deltanet", "nsa", "sigmoid"])
def test_an_export_rounds_as_far_as_it_says(model: str) -> None:
    explorer = Explorer(Shelf())
    setup = Setup(source=Untrained(model=model, embed_dim=12, options={"num_heads": 3}), input=Text(text="abcdeab"))
    data = contents(explorer, setup)
    stated = float(data["view"]["notes"][-1].split("within ")[1].split(";")[0])
    errors = []
    for name, coded in data["maps"].items():
        layer, head = map(int, name.split("."))
        weights = explorer.matrix(MapRequest(setup=setup, layer=layer, head=head))
        places = torch.tril(torch.ones(7, 7, dtype=torch.bool)) if coded["causal"] else torch.ones(7, 7).bool()
        shown = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(coded["codes"]))), dtype=torch.uint8)
        decoded = codes.decode(shown, torch.tensor(coded["peak"]), signed=coded["signed"], levels=coded["levels"])
        errors.append(float((decoded - weights[places]).abs().max()))
    assert max(errors) <= 1.05 * stated  # two digits are stated
    assert {coded["levels"] for coded in data["maps"].values() if coded["peak"] >= 1} <= {codes.LEVELS}, "it is small"


def test_the_catalog_lists_every_mechanism(client: TestClient) -> None:
    from attnlab.catalog import registry

    shown = client.get("/api/catalog").json()
    assert [mechanism["name"] for mechanism in shown["mechanisms"]] == registry.names()


# What is refused


@pytest.mark.parametrize(
    ("path", "more", "line"),
    [
        ("map", {"layer": 2}, "there is no layer 2; the network has 2, counted from 0"),
        ("map", {"head": 3}, "there is no head 3; layer 0 has 3, counted from 0"),
        ("map", {"queries": [3, 9]}, "the range 3 to 9 is not within 0 to 7"),
        ("map", {"keys": [3, 3]}, "the range 3 to 3 is not within 0 to 7"),
        ("cell", {"query": 7}, "there is no cell (7, 0) in a matrix of 7 × 7"),
        ("state", {}, "Multi-head attention keeps no recurrent state"),
        ("ablation", {"layer": 5}, "there is no layer 5; the network has 2, counted from 0"),
    ],
)
def test_what_does_not_exist_is_named(client: TestClient, path: str, more: dict[str, Any], line: str) -> None:
    body = {"setup": SMALL.model_dump(), **more}
    answer = client.post(f"/api/{path}", json=body)
    assert (answer.status_code, answer.json()) == (422, {"error": line})


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"source": {"kind": "unknown"}}', b'{"scores": {"temperature": 0}}', b'{"other": 1}', b"\xff"],
)
def test_a_malformed_request_is_one_line(client: TestClient, body: bytes) -> None:
    answer = client.post("/api/view", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert list(answer.json()) == ["error"]
    assert "\n" not in answer.json()["error"]


def test_too_much_memory_is_refused_with_its_bytes(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 20 * 13 * 2 * 12 + 8 * 3 * 13 * 13  # activations of two layers, matrices of one
    monkeypatch.setattr(explorer_module, "memory_limit", lambda: needed - 1)
    answer = client.post("/api/view", json=SMALL.model_copy(update={"input": Text(text="x" * 13)}).model_dump())
    assert answer.status_code == 422
    line = f"take {needed:,} bytes, more than a quarter of this machine's memory ({needed - 1:,})"
    assert line in answer.json()["error"]


@pytest.mark.parametrize(("causal", "tokens"), [(True, 17), (False, 31)])
def test_the_operations_of_an_exact_attention_are_those_of_the_formula(causal: bool, tokens: int) -> None:
    N, D = tokens, 12
    source = Untrained(embed_dim=D, layers=1, options={"num_heads": 3}, causal=causal)
    explorer = Explorer(Shelf())
    setup = Setup(source=source, input=Text(text="x" * N))
    masked = setup.model_copy(update={"mask": MaskChange(window=3)})
    for shown in (masked, setup):  # whichever comes first
        assert explorer.view(shown).layers[0].flops == 8 * N * D * D + 4 * N * N * D


def test_a_port_in_use_is_refused() -> None:
    first = Server(Explorer(Shelf()), port=0)
    with first, pytest.raises(UserError, match=f"cannot use port {first.port}"):
        Server(Explorer(Shelf()), first.port)


# Many requests


@pytest.mark.slow
def test_many_clients_get_their_own_answers(client: TestClient) -> None:
    def one(number: int) -> bool:
        text = "ab" * (1 + number % 5) + "c"
        view = ask(client, "view", SMALL.model_copy(update={"input": Text(text=text)})).json()
        return "".join(view["tokens"]) == text and len(view["layers"]) == 2

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(one, range(200)))


schema = schemathesis.openapi.from_asgi(
    "/openapi.json", make_app(Explorer(Shelf()), frozenset({"testserver", "localhost"}))
)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=8, suppress_health_check=list(HealthCheck), deadline=None)
def test_no_request_makes_the_server_fail(case: schemathesis.Case) -> None:
    answer = case.call(headers={"Host": "localhost"})
    assert answer.status_code < 500


def test_others_are_answered_while_a_network_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    explorer, training, others = Explorer(Shelf()), Event(), Event()
    explorer.view(SMALL)
    slow = Setup(source=Trained(model="linear"))

    def train(*_: object) -> None:
        training.set()
        assert others.wait(60)
        raise UserError("trained")

    monkeypatch.setattr("attnlab.explore.example.network", train)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(explorer.view, slow)
        assert training.wait(60)
        explorer.matrix(MapRequest(setup=SMALL))
        explorer.view(SMALL.model_copy(update={"scores": ScoreChange(temperature=7.0)}))
        others.set()
        with pytest.raises(UserError, match="trained"):
            waiting.result()
