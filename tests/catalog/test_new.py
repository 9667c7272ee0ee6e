"""``attnlab new``: the new mechanism is listed, trained, checked and tested like any other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from attnlab.catalog import registry, scaffold
from attnlab.catalog.template import TemplateAttention
from attnlab.cli import main
from attnlab.utils.errors import UserError

ROOT = Path(__file__).parents[2]

FOR_EVERY_MECHANISM = [
    f"tests/{name}"
    for name in (
        *("models/test_contract.py", "models/test_weight_arithmetic.py", "explore/test_every_mechanism.py"),
        *("docs", "catalog", "network"),
    )
]

STEP = """
import torch
from attnlab.network import Inputs, Network, Outputs
from attnlab.catalog.registry import load
from models.sliding_window import SlidingWindowAttention

assert load("sliding_window") is SlidingWindowAttention
torch.manual_seed(0)
network = Network("sliding_window", Inputs("tokens", 11), Outputs("classes", 3), length=7, embed_dim=16, causal=True)
before = [p.clone() for p in network.parameters()]
network(torch.randint(11, (5, 7)), torch.tensor([7, 1, 3, 7, 2])).square().sum().backward()
torch.optim.SGD(network.parameters(), lr=0.1).step()
assert sum(not torch.equal(a, b) for a, b in zip(before, network.parameters())) > len(before) / 2
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the repository, its index up to date."""
    copy = tmp_path / "checkout"
    left_out = shutil.ignore_patterns(".*", "runs", "build", "dist", "__pycache__", "*.egg-info", "*.png")
    shutil.copytree(ROOT, copy, ignore=left_out)
    shutil.copy(ROOT / ".gitignore", copy)
    subprocess.run(["git", "init", "--quiet", str(copy)], check=True)  # the tests of the pages ask git what there is
    return copy


def python(checkout: Path, *words: str) -> str:
    """The output of Python in the copy, which comes before what is installed because it is the current folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=checkout, env=environment)
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.slow
def test_a_new_mechanism_is_known_everywhere(checkout: Path) -> None:
    before = {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()}
    assert "added to models/README.md" in python(checkout, "-m", "attnlab", "new", "sliding_window")
    folder = checkout / "models" / "sliding_window"
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "__init__.py", "reference.py", "sliding_window.py"]
    changed = [path for path, was in before.items() if path.read_bytes() != was]
    pages = {checkout / "README.md", checkout / "models" / "README.md"}  # both have a generated table of mechanisms
    assert set(changed) == pages, "no other file is touched"

    listed = json.loads(python(checkout, "-m", "attnlab", "models", "--json"))
    assert listed["sliding_window"]["title"] == "Sliding window"
    assert "[Sliding window](sliding_window/README.md)" in (checkout / "models" / "README.md").read_text("utf-8")
    assert "one head of softmax attention" in (folder / "README.md").read_text("utf-8")
    assert "emplate" not in "".join(path.read_text("utf-8") for path in folder.iterdir())
    assert "--embed_dim" in python(checkout, "main.py", "--model", "sliding_window", "--help")
    python(checkout, "-m", "attnlab", "docs", "--check")
    python(checkout, "-W", "error", "-c", STEP)
    # The tests that run for every mechanism pass for it too, the conformance suite among them.
    chosen = ("-m", "not exhaustive", "-k", "sliding_window")
    python(checkout, "-m", "pytest", "-p", "no:cacheprovider", *chosen, *FOR_EVERY_MECHANISM)
    python(checkout, "-m", "ruff", "check", "--no-cache", "models/sliding_window")
    python(checkout, "-m", "ruff", "format", "--no-cache", "--check", "models/sliding_window")


def test_the_template_computes_self_attention() -> None:
    import torch

    from attnlab.models.selfhead import SelfAttention

    template, single_head, x = TemplateAttention(12), SelfAttention(12), torch.randn(2, 5, 12)
    template.load_state_dict(single_head.state_dict())
    torch.testing.assert_close(template(x), single_head(x))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of mechanisms, in a checkout."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setattr(registry, "folder", lambda: folder)
    return folder


def test_create(models: Path) -> None:
    assert scaffold.create("my_attention") == models / "my_attention"
    assert registry.names() == ["my_attention"]
    entry = registry.entry("my_attention")
    assert (entry.class_name, entry.card.title) == ("MyAttention", "My attention")
    assert [option.name for option in entry.options] == ["embed_dim", "causal", "dropout"]
    assert [path.name for path in models.iterdir()] == ["my_attention"], "temporary files are removed"


@pytest.mark.parametrize(
    ("name", "class_name", "title"),
    [
        ("linear", "LinearAttention", "Linear"),
        ("my_attention", "MyAttention", "My attention"),
        ("rwkv7", "Rwkv7Attention", "Rwkv7"),
        ("a__b_", "ABAttention", "A b"),
    ],
)
def test_names_of_the_class_and_the_lesson(name: str, class_name: str, title: str) -> None:
    assert (scaffold.class_name(name), scaffold.title(name)) == (class_name, title)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("MyAttention", "such as my_attention"),
        ("sliding-window", "such as sliding_window"),
        ("3d", "starting with a letter, such as my_attention"),
        ("_hidden", "such as hidden"),
        ("", "'' is not a valid name for a mechanism"),
        ("../outside", "such as outside"),
        ("größe", "is not a valid name"),
        ("two words", "such as two_words"),
        ("newline\n", "is not a valid name"),
        ("class", "is a Python keyword; try class_attention"),
        ("reference", "is the name of another file in the folder"),
        ("figures", "is the name of another file"),
    ],
)
def test_invalid_names(models: Path, name: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        scaffold.create(name)
    assert says in str(caught.value)
    assert not list(models.iterdir())


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_nothing_is_overwritten(models: Path, kind: str) -> None:
    (models / "taken").mkdir() if kind == "folder" else (models / "taken").touch()
    with pytest.raises(UserError, match="models/taken exists already; choose another name"):
        scaffold.create("taken")
    assert (models / "taken").is_dir() == (kind == "folder")
    assert [path.name for path in models.iterdir()] == ["taken"]


def test_a_failure_leaves_no_files(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaffold, "FILES", (*scaffold.FILES, "missing.txt"))
    with pytest.raises(UserError, match="models/broken cannot be written: No such file"):
        scaffold.create("broken")
    assert not list(models.iterdir())


def test_an_installed_copy_refuses(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "checkout", lambda: None)
    with pytest.raises(UserError, match=r"installed in .*models, where an update would delete a new mechanism; clone"):
        scaffold.create("linear")
    assert not list(models.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["new", "selfhead"], "models/selfhead exists already; choose another name, or edit the existing files"),
        (["new"], "give the name of the new mechanism: attnlab new my_attention"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
