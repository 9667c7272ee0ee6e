"""The network: inputs, outputs, padding, caches, and saving and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab.catalog import registry
from attnlab.network import Cells, Inputs, Network, Outputs
from attnlab.nn.attention import Attention
from attnlab.positions import Rotary
from attnlab.utils.errors import UnknownNameError

B, N, F, D, KINDS, NUMBERS = 3, 7, 5, 16, 11, 4
LENGTHS = torch.tensor([2, 5, 7])
INPUTS = {
    "tokens": Inputs("tokens", KINDS),
    "vectors": Inputs("vectors", F),
    "cells": Inputs("cells", KINDS, NUMBERS),
}
CLASSES, TOKENS = Outputs("classes", 13), Outputs("tokens", 13)
POSITIONS = ("learned", "sinusoidal", "none")


def network(inputs: str = "tokens", outputs: Outputs = CLASSES, model: str = "selfhead", **options: Any) -> Network:
    torch.manual_seed(0)
    return Network(model, INPUTS[inputs], outputs, length=N, embed_dim=D, **options).eval()


def batch(inputs: str = "tokens", length: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if inputs == "vectors":
        return torch.randn(B, length, F, generator=generator)
    codes = torch.randint(KINDS, (B, length), generator=generator)
    return codes if inputs == "tokens" else torch.stack([codes, torch.randn(B, length, generator=generator)], -1)


@pytest.mark.parametrize("model", registry.names())
def test_every_mechanism_trains_one_step(model: str) -> None:
    net = network(model=model).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = [p.clone() for p in net.parameters()]
    net(batch(), LENGTHS).square().sum().backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in net.parameters())
    assert sum(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)) > len(before) / 2


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize(
    ("outputs", "shape"),
    [
        (CLASSES, (B, 1, 13)),
        (Outputs("classes", 13, 2), (B, 2, 13)),
        (TOKENS, (B, N, 13)),
        (Outputs("values", 1, 2), (B, 2)),
    ],
)
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_padding_has_no_effect(inputs: str, outputs: Outputs, shape: tuple[int, ...], pool: str) -> None:
    net, x = network(inputs, outputs, pool=pool), batch(inputs)
    together = net(x, LENGTHS)
    assert together.shape == shape
    padded = torch.arange(N) >= LENGTHS[:, None]
    for i, n in enumerate(LENGTHS.tolist()):
        mine = together[i : i + 1, :n] if outputs.kind == "tokens" else together[i : i + 1]
        torch.testing.assert_close(mine, net(x[i : i + 1, :n]))
    for noise in (3, -100) if inputs == "tokens" else (3, 1e30, torch.nan):
        other = x.clone()
        other[padded] = noise
        replaced = net(other, LENGTHS)
        assert torch.equal(*(out[~padded] if outputs.kind == "tokens" else out for out in (replaced, together)))
    torch.testing.assert_close(net(x, torch.full((B,), N)), net(x))


def test_causal_network_does_not_leak() -> None:
    net, x = network(outputs=TOKENS, causal=True), batch()
    before = net(x)
    x[:, 4:] = (x[:, 4:] + 1) % KINDS
    after = net(x)
    assert torch.equal(after[:, :4], before[:, :4])
    assert not torch.equal(after[:, 4:], before[:, 4:])


@pytest.mark.parametrize(
    ("lengths", "says"),
    [
        (torch.tensor([2, 5]), r"lengths must have shape \(3,\), one per sequence, not \(2,\)"),
        (torch.tensor([[2], [5], [7]]), r"not \(3, 1\)"),
        (torch.tensor([2, 5, 8]), "lengths must be from 1 to 7, the length of the batch, not 2 to 8"),
        (torch.tensor([0, 5, 7]), "not 0 to 7"),
        (torch.tensor([2.0, 5.0, 7.0]), "integers?"),
    ],
)
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_invalid_lengths_are_refused(lengths: Tensor, says: str, pool: str) -> None:
    with pytest.raises(ValueError, match=says):
        network(pool=pool)(batch(), lengths)


@pytest.mark.parametrize("numbers", [NUMBERS, 0])
def test_cells_add_the_value_of_a_number_to_its_code(numbers: int) -> None:
    cells, x = Cells(KINDS, numbers, D).double(), batch("cells").double()
    x[0, :, 0] = torch.arange(N)
    x[0, :, 1] = torch.where(x[0, :, 0] < numbers, x[0, :, 1], torch.nan)  # values of other cells have no effect
    out = cells(x)
    for cell, actual in zip(x.flatten(0, 1), out.flatten(0, 1), strict=True):
        code, value = int(cell[0]), cell[1]
        number = 0 if code >= numbers or cells.values is None else value * cells.values.weight[code]
        torch.testing.assert_close(actual, cells.codes.weight[code] + number)
    out.square().sum().backward()
    for parameter in cells.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
        assert parameter.grad.isfinite().all()


def test_position_embeddings_distinguish_positions() -> None:
    x = torch.zeros(1, N, dtype=torch.long)
    nets = {name: network(outputs=TOKENS, position_embedding=name) for name in POSITIONS}
    distinct = {name: net(x).unique(dim=1).shape[1] for name, net in nets.items()}
    assert distinct == {"learned": N, "sinusoidal": N, "none": 1}
    tables = {name: [key for key in net.state_dict() if "position" in key] for name, net in nets.items()}
    assert tables == {"learned": ["position_embedding.table"], "sinusoidal": [], "none": []}


@pytest.mark.parametrize("inputs", INPUTS)
def test_residual_stream_stays_float32_under_autocast(inputs: str) -> None:
    for name in POSITIONS:
        net, dtypes = network(inputs, position_embedding=name), []
        net.blocks[0].norm1.register_forward_hook(lambda _, x, __, dtypes=dtypes: dtypes.append(x[0].dtype))
        with torch.autocast("cpu", torch.bfloat16):
            out = net(batch(inputs))
        assert dtypes == [torch.float32]
        torch.testing.assert_close(out.float(), net(batch(inputs)), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "selfhed"}, UnknownNameError, "did you mean selfhead"),
        ({"options": {"num_heads": 2}}, TypeError, "num_heads"),
        ({"model": "multihead", "options": {"num_heads": 3}}, ValueError, "must be divisible"),
        (
            {"options": {"positions": Rotary(8)}},
            TypeError,
            "options are saved as JSON, but positions is a Rotary; use a string",
        ),
        (
            {"position_embedding": "waves"},
            ValueError,
            "absolute positions must be learned, sinusoidal or none, not 'waves'",
        ),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        network(**options)


@pytest.mark.parametrize(("size", "numbers"), [(2**24 + 1, 3), (3, 4), (3, -1)])
def test_too_many_codes_for_float32(size: int, numbers: int) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="at most 2\\^24 codes"):
        Network("multihead", Inputs("cells", size, numbers), CLASSES, N, embed_dim=D)


def test_mechanisms_and_blocks_get_the_options() -> None:
    net = network(model="multihead", layers=3, options={"num_heads": 4}, causal=True, dropout=0.25)
    layers = net.mechanisms()
    assert len(layers) == 3
    assert all(isinstance(a, Attention) and a.num_heads == 4 and a.causal and a.dropout == 0.25 for a in layers)
    assert network(mlp=False).blocks[0].mlp is None
    assert network().blocks[0].mlp[0].weight.shape == (4 * D, D)
    assert network(mlp_width=11).blocks[0].mlp[0].weight.shape == (11, D)
    one, four = (network(layers=layers).blocks[0] for layers in (1, 4))
    for part in (lambda b: b.attention.output.weight, lambda b: b.mlp[-1].weight):  # 1/√(2·layers)
        assert (part(one).std() / part(four).std()).item() == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("inputs", INPUTS)
def test_save_and_load_round_trip(tmp_path: Path, inputs: str) -> None:
    options = {"num_heads": 4, "positions": "rotary(base=500)"}
    made = {"options": options, "causal": True, "pool": "last", "position_embedding": "sinusoidal"}
    net = network(inputs, Outputs("classes", 13, 2), model="multihead", **made)
    net.save_pretrained(tmp_path / "saved")
    assert sorted(p.name for p in (tmp_path / "saved").glob("*.*s*")) == ["config.json", "model.safetensors"]
    back = Network.from_pretrained(tmp_path / "saved").eval()
    assert (back.inputs, back.outputs, back.length, back.pool) == (net.inputs, net.outputs, N, "last")
    assert torch.equal(back(batch(inputs)), net(batch(inputs)))


@pytest.mark.parametrize("name", POSITIONS)
@torch.no_grad()
def test_caches_continue_up_to_the_limit(name: str) -> None:
    net = network(outputs=TOKENS, model="multihead", causal=True, position_embedding=name).double()
    assert net.limit == (N if name == "learned" else None)
    x, caches = batch(length=net.limit or 200), net.caches()
    assert caches is not None
    parts = [net(part, caches=caches) for part in x.tensor_split([3, 4, 4, 5], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), net(x))
    if name == "learned":
        assert net(x[:, :1]).shape == (B, 1, 13)
        for call in (lambda: net(x[:, :1], caches=caches), lambda: net(batch(length=N + 1))):
            with pytest.raises(ValueError, match="the sequence has 8 tokens, but there are only 7 learned positions"):
                call()


@pytest.mark.parametrize("name", ["sinusoidal", "none"])
def test_padding_beyond_the_length_of_training(name: str) -> None:
    net, x = network(outputs=TOKENS, position_embedding=name), batch(length=61)
    lengths = torch.tensor([2, 50, 61])
    together = net(x, lengths)
    for i, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(together[i : i + 1, :n], net(x[i : i + 1, :n]))


def test_unsupported_caches() -> None:
    assert network(outputs=TOKENS).caches() is None
    pooled = Network("multihead", ("tokens", 7), ("classes", 7), 23, embed_dim=16, causal=True)
    with pytest.raises(ValueError, match="one output per token"):
        pooled(torch.zeros(2, 3, dtype=torch.long), caches=pooled.caches())
