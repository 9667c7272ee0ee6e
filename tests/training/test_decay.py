"""Weight decay applies only to the weight matrices of linear layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import trainer
from torch import nn

from attnlab.catalog import registry
from attnlab.network import Network
from attnlab.training.decay import decayed
from attnlab.training.settings import defaults

AROUND = {"blocks.0.mlp.0.weight", "blocks.0.mlp.2.weight", "readout.weight"}
MECHANISMS = (
    *("additive", "bigbird", "chunked", "differential", "entmax", "forgetting", "gated", "groupedquery", "latent"),
    *("longformer", "multihead", "multiquery", "selfhead", "sigmoid", "sinks", "slidingwindow", "strided"),
    "talkingheads",
)
"""Mechanisms whose parameters are listed here."""
EXTRA = {
    "forgetting": {"forget.weight"},
    "gated": {"gate.projection.weight"},
    "longformer": {"qkv_global.weight"},
    "selfhead": {"query.weight", "key.weight", "value.weight"},
    "latent": {"kv_down.weight", "kv_up.weight", "query.weight"},
}


def network(model: str, inputs: str = "tokens", **options: Any) -> Network:
    usual = {name: value for name, value in defaults(model, "digits").model.options.items() if name != "causal"}
    return Network(model, [inputs, 11], ["classes", 7], 13, embed_dim=16, layers=1, options={**usual, **options})


def names(module: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    chosen = {id(p) for p in parameters}
    return {name for name, parameter in module.named_parameters() if id(parameter) in chosen}


def expected(model: str) -> set[str]:
    """The parameters that decay: no embedding, bias, norm, lambda or mixing matrix."""
    attention = EXTRA.get(model, set()) | {"output.weight"}
    if model not in ("selfhead", "latent"):
        attention.add("qkv.weight")
    return AROUND | {f"blocks.0.attention.{name}" for name in attention}


@pytest.mark.parametrize(("model", "options"), [("multihead", {"positions": "t5"}), *((m, {}) for m in MECHANISMS)])
def test_the_parameters_that_decay(model: str, options: dict[str, Any]) -> None:
    """Not every parameter with two axes decays: embeddings, position biases and mixing matrices do not."""
    made = network(model, **options)
    decay, rest = decayed(made)
    assert names(made, decay) == expected(model)
    assert {id(p) for p in decay}.isdisjoint(id(p) for p in rest)
    assert len(decay) + len(rest) == len(list(made.parameters()))


@pytest.mark.parametrize("model", registry.names())
def test_linear_weights_decay_and_vectors_do_not(model: str) -> None:
    made = network(model)
    linear = {f"{name}.weight" for name, module in made.named_modules() if isinstance(module, nn.Linear)}
    decay, rest = decayed(made)
    assert linear <= names(made, decay)
    assert all(parameter.dim() >= 2 for parameter in decay)
    assert "embed.weight" in names(made, rest)


def test_vectors_are_embedded_by_a_linear_layer_which_decays() -> None:
    made = network("multihead", inputs="vectors")
    assert names(made, decayed(made)[0]) == expected("multihead") | {"embed.weight"}


def test_pytorch_modules_that_decay() -> None:
    made = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(6, 2, kdim=5, vdim=7, add_bias_kv=True),
            "joint": nn.MultiheadAttention(6, 2),
            "conv": nn.Conv1d(2, 3, 5),
            "table": nn.Embedding(2, 3),
            "norm": nn.LayerNorm([2, 3]),
        }
    )
    decay = names(made, decayed(made)[0])
    own = {f"attention.{name}_proj_weight" for name in "qkv"} | {"attention.out_proj.weight"}
    assert decay == own | {"joint.in_proj_weight", "joint.out_proj.weight", "conv.weight"}


def test_optimizer_groups() -> None:
    """With a zero gradient, a step shrinks only decaying parameters."""
    made = trainer(learning_rate=0.1, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in made.network.named_parameters()}
    for group in made.optimizer.param_groups:
        group["lr"] = 0.1
    for parameter in made.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.optimizer.step()
    moved = {name for name, p in made.network.named_parameters() if not torch.equal(p, before[name])}
    assert moved == names(made.network, decayed(made.network)[0])
    assert torch.allclose(made.network.readout.weight, before["readout.weight"] * 0.95)
