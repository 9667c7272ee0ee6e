"""What can be imported from ``attnlab``, with all dependencies and with those of the layers only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import attnlab
from attnlab.catalog import registry, stub
from attnlab.catalog.spelling import mechanisms
from attnlab.utils.extras import EXTRAS

ROOT = Path(__file__).parents[2]
HIDE = "import sys\nfor name in {}: sys.modules[name] = None\n"
"""Makes imports of these modules fail as if they were not installed."""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_every_mechanism_is_importable_by_its_class_name() -> None:
    assert mechanisms() == {registry.entry(name).class_name: name for name in registry.names()}
    assert attnlab.MultiAttention is registry.load("multihead")
    assert {"MultiAttention", "KVCache", "masks", "ops"} <= set(dir(attnlab))


def test_the_stub_for_type_checkers_is_up_to_date() -> None:
    assert stub.FILE.read_text(encoding="utf-8") == stub.render(), "run `python -m attnlab.catalog.stub`"


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("from attnlab import MultiHeadAtention", "'MultiHeadAtention' from 'attnlab'; did you mean MultiAttention"),
        ("from attnlab import KVCahce", "did you mean KVCache?"),
        ("from attnlab import Cache", "it has been renamed to KVCache"),
        ("from attnlab.models import multihed", "'multihed' from 'attnlab.models'; did you mean multihead?"),
        ("import attnlab.models.multihed", "did you mean multihead?"),
        ("from models import multihed", "did you mean multihead?"),
        ("from attnlab import nothing_like_it", "cannot import name 'nothing_like_it'"),
    ],
)
def test_a_misspelled_import_suggests_a_name(statement: str, message: str) -> None:
    with pytest.raises(ImportError, match=message.replace("?", r"\?")):
        exec(statement)


@pytest.mark.parametrize(
    ("name", "message"),
    [("Cache", "it has been renamed to KVCache"), ("SelfAtention", "did you mean SelfAttention"), ("zzz", "'zzz'$")],
)
def test_a_misspelled_attribute_suggests_a_name(name: str, message: str) -> None:
    assert not hasattr(attnlab, name)
    with pytest.raises(AttributeError, match=message):
        getattr(attnlab, name)


CORE = """
import attnlab
assert "torch" not in sys.modules
import torch
from attnlab.masks import causal, padding

layer, x = attnlab.MultiAttention(24, 3), torch.randn(2, 5, 24)
mask = causal() & padding(torch.tensor([5, 2]))
assert layer(x, mask=mask).shape == layer.eval()(x).shape == x.shape
assert layer.attention_weights(x).shape == (2, 3, 5, 5)
for name in attnlab.__all__[:2]:
    getattr(attnlab, name)
try:
    attnlab.Network
except ImportError as error:
    print(error)
"""


@pytest.mark.slow
def test_layers_work_without_the_extras() -> None:
    hidden = [module for modules in EXTRAS.values() for module in modules]
    done = run(HIDE.format(hidden) + CORE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("attnlab.Network needs ")
    assert done.stdout.endswith("pip install 'attnlab[train]'\n")
    assert done.stdout.count("\n") == 1


COMMAND = "from attnlab.__main__ import main\nsys.exit(main(['check', '--device', 'cpu']))"
MAIN = "import runpy; runpy.run_path('main.py', run_name='__main__')"


@pytest.mark.parametrize(
    ("hidden", "code", "missing"),
    [
        (["rich"], COMMAND, "rich"),
        (["tyro"], COMMAND, "tyro"),
        (["torch"], COMMAND, "torch"),
        (["torch", "tyro"], MAIN, "tyro"),
    ],
)
def test_the_command_line_names_what_is_missing(hidden: list[str], code: str, missing: str) -> None:
    done = run(HIDE.format(hidden) + code)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: attnlab needs {missing}, which is not installed: run `make train`, or ")
