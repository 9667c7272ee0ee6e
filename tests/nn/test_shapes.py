"""The shapes in the signatures of the mechanisms are correct: jaxtyping enforces them in every call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from attnlab.catalog import registry

ROOT = Path(__file__).parents[2]

# The import hook must be installed before the modules are imported, so a new process is needed.
SCRIPT = """
import sys

import torch
from jaxtyping import TypeCheckError, install_import_hook

import attnlab

HOOKED = ["attnlab.models", "attnlab.nn.attention", "attnlab.nn.mixer", "planted"]
with install_import_hook(HOOKED, "beartype.beartype"):
    from attnlab.catalog import registry
    from attnlab.masks import causal, padding

    for name in registry.names():
        mechanism = registry.load(name)
        for options in ({}, {"causal": True} if "causal" in mechanism.card.supports else {}):
            layer = mechanism(embed_dim=48, **options)
            x = torch.randn(2, 5, 48)
            calls = [{}]
            if "arbitrary_mask" in mechanism.card.supports:
                calls.append({"mask": padding(torch.tensor([3, 5]))})
            if "attn_bias" in mechanism.card.supports:
                calls.append({"attn_bias": torch.randn(5, 5)})
            if "context" in mechanism.card.supports:
                calls.append({"context": torch.randn(2, 5 if options else 7, 48)})  # causal: as long as x
            for arguments in calls:
                layer(x, **arguments)
                if "weights" in mechanism.card.supports:
                    context = {name: value for name, value in arguments.items() if name == "context"}
                    layer.apply_weights(layer.attention_weights(x, **arguments), x, **context)

    from attnlab.models.multihead import MultiAttention
    from planted import MultiHeadBase

    wrong = type("Wrong", (MultiHeadBase,), {"card": MultiAttention.card})
    try:
        wrong(48, 3)(torch.randn(2, 5, 48))
    except TypeCheckError as error:
        assert "_project_qkv" in str(error), error
    else:
        raise AssertionError("a wrong shape was accepted")
print("passed")
"""


@pytest.mark.slow
def test_the_shapes_in_the_signatures_hold(tmp_path: Path) -> None:
    source = (ROOT / "attnlab" / "nn" / "multihead.py").read_text(encoding="utf-8")
    correct, wrong = "return Q.transpose(1, 2), K.transpose(1, 2), V.transpose(1, 2)", "return Q, K, V"
    assert correct in source
    source = source.replace("-> Self:", "-> MultiHeadBase:")  # beartype needs a decorated class for Self
    (tmp_path / "planted.py").write_text(source.replace(correct, wrong), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys; sys.path.append({str(tmp_path)!r})\n{SCRIPT}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "passed\n"


@pytest.mark.parametrize("name", registry.names())
def test_methods_annotate_their_shapes(name: str) -> None:
    source = (registry.folder() / name / f"{name}.py").read_text(encoding="utf-8")
    for method in ("def _forward(", "def _attention_weights(", "def _apply_weights(", "def _values("):
        if method in source:
            signature = source.split(method)[1].split(":\n")[0]
            assert "Float[Tensor" in signature, f"{name}.{method}"
            assert '-> Float[Tensor, "B ' in signature, f"{name}.{method}"
