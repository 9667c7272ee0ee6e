"""The network: shapes, padding, caches, and saving and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab.catalog import registry
from attnlab.network import Inputs, Network, Outputs
from attnlab.nn.attention import Attention
from attnlab.utils.errors import UnknownNameError

B, N, F, D, KINDS = 3, 7, 5, 16, 11
TOKENS, VECTORS = Inputs("tokens", KINDS), Inputs("vectors", F)
OUTPUTS = {
    "classes": (Outputs("classes", 13), (B, 1, 13)),
    "slots": (Outputs("classes", 13, 2), (B, 2, 13)),
    "tokens": (Outputs("tokens", 13), (B, N, 13)),
    "values": (Outputs("values", 1, 2), (B, 2)),
}


def network(inputs: Inputs = TOKENS, outputs: Outputs = OUTPUTS["classes"][0], **options: Any) -> Network:
    torch.manual_seed(0)
    return Network(options.pop("model", "selfhead"), inputs, outputs, length=N, embed_dim=D, **options).eval()


def batch(inputs: Inputs = TOKENS, length: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if inputs.kind == "tokens":
        return torch.randint(KINDS, (B, length), generator=generator)
    return torch.randn(B, length, F, generator=generator)


@pytest.mark.parametrize("inputs", [TOKENS, VECTORS], ids=["tokens", "vectors"])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_shapes(inputs: Inputs, outputs: str) -> None:
    asked, shape = OUTPUTS[outputs]
    assert network(inputs, asked)(batch(inputs)).shape == shape


@pytest.mark.parametrize("model", registry.names())
def test_every_mechanism_trains_one_step(model: str) -> None:
    net = network(model=model).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = [p.clone() for p in net.parameters()]
    net(batch(), torch.tensor([2, 5, 7])).square().sum().backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in net.parameters())
    assert sum(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)) > len(before) / 2


@pytest.mark.parametrize("inputs", [TOKENS, VECTORS], ids=["tokens", "vectors"])
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_padding_has_no_effect(inputs: Inputs, outputs: str, pool: str) -> None:
    net, x, lengths = network(inputs, OUTPUTS[outputs][0], pool=pool), batch(inputs), torch.tensor([2, 5, 7])
    together, other = net(x, lengths), x.clone()
    for i, n in enumerate(lengths.tolist()):
        other[i, n:] = 3
        alone = net(x[i : i + 1, :n])
        mine = together[i : i + 1, :n] if outputs == "tokens" else together[i : i + 1]
        torch.testing.assert_close(mine, alone)
    replaced = net(other, lengths)
    real = torch.arange(N) < lengths[:, None]
    assert torch.equal(*((t[real] if outputs == "tokens" else t) for t in (replaced, together)))


@pytest.mark.parametrize(("inputs", "noise"), [(VECTORS, torch.nan), (VECTORS, 1e30), (TOKENS, -100)])
def test_padding_content_has_no_effect(inputs: Inputs, noise: float) -> None:
    net, x = network(inputs), batch(inputs)
    lengths = torch.tensor([2, 5, 7])
    clean = net(x, lengths)
    x[0, 2:] = noise
    assert torch.equal(net(x, lengths), clean)


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_full_lengths_equal_none(pool: str) -> None:
    net, x = network(pool=pool), batch()
    torch.testing.assert_close(net(x, torch.full((B,), N)), net(x))


def test_causal_network_does_not_leak() -> None:
    net, x = network(outputs=OUTPUTS["tokens"][0], causal=True), batch()
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


def test_too_long_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="the sequence has 8 tokens, but there are only 7 learned positions"):
        network()(batch(length=N + 1))
    assert network()(batch(length=1)).shape == (B, 1, 13)


@pytest.mark.parametrize("inputs", [TOKENS, VECTORS], ids=["tokens", "vectors"])
@pytest.mark.parametrize("name", ["sinusoidal", "none"])
def test_no_limit_without_learned_positions(inputs: Inputs, name: str) -> None:
    net = network(inputs, OUTPUTS["tokens"][0], position_embedding=name)
    assert (net.limit, network().limit) == (None, N)
    lengths = torch.tensor([2, 50, 61])
    together = net(batch(inputs, 61), lengths)
    for i, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(together[i : i + 1, :n], net(batch(inputs, 61)[i : i + 1, :n]))


def test_position_embeddings_distinguish_positions() -> None:
    x = torch.zeros(1, N, dtype=torch.long)
    kinds = ("learned", "sinusoidal", "none")
    told = {
        name: network(outputs=OUTPUTS["tokens"][0], position_embedding=name)(x).unique(dim=1).shape[1] for name in kinds
    }
    assert told == {"learned": N, "sinusoidal": N, "none": 1}
    assert "position_embedding.table" in network().state_dict()
    assert not any("position" in key for key in network(position_embedding="sinusoidal").state_dict())


def test_residual_stream_stays_float32_under_autocast() -> None:
    for name in ("learned", "sinusoidal", "none"):
        net, seen = network(VECTORS, position_embedding=name), []
        net.blocks[0].norm1.register_forward_hook(lambda _, given, __, seen=seen: seen.append(given[0].dtype))
        with torch.autocast("cpu", torch.bfloat16):
            net(batch(VECTORS))
        assert seen == [torch.float32]


def test_options_must_be_json() -> None:
    from attnlab.positions import Rotary

    with pytest.raises(TypeError, match="options are saved as JSON, but positions is a Rotary; use a string"):
        network(model="multihead", options={"num_heads": 2, "positions": Rotary(8)})
    with pytest.raises(ValueError, match="absolute positions must be learned, sinusoidal or none, not 'waves'"):
        network(position_embedding="waves")


def test_missing_capabilities_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean selfhead"):
        network(model="selfhed")
    with pytest.raises(TypeError, match="num_heads"):
        network(options={"num_heads": 2})
    with pytest.raises(ValueError, match="must be divisible"):
        network(model="multihead", options={"num_heads": 3})


def test_mechanisms() -> None:
    net = network(model="multihead", layers=3, options={"num_heads": 4}, causal=True, dropout=0.25)
    found = net.mechanisms()
    assert len(found) == 3
    assert all(isinstance(a, Attention) and a.num_heads == 4 and a.causal and a.dropout == 0.25 for a in found)
    assert network(mlp=False).blocks[0].mlp is None


def test_residual_outputs_start_smaller_with_depth() -> None:
    one, four = (network(layers=layers).blocks[0] for layers in (1, 4))
    for part in (lambda b: b.attention.output.weight, lambda b: b.mlp[-1].weight):
        assert (part(one).std() / part(four).std()).item() == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("inputs", [TOKENS, VECTORS], ids=["tokens", "vectors"])
def test_save_and_load_round_trip(tmp_path: Path, inputs: Inputs) -> None:
    options = {"num_heads": 4, "positions": "rotary(base=500)"}
    made = {"options": options, "causal": True, "pool": "last", "position_embedding": "sinusoidal"}
    net = network(inputs, OUTPUTS["slots"][0], model="multihead", **made)
    net.save_pretrained(tmp_path / "saved")
    assert sorted(p.name for p in (tmp_path / "saved").glob("*.*s*")) == ["config.json", "model.safetensors"]
    back = Network.from_pretrained(tmp_path / "saved").eval()
    assert (back.inputs, back.outputs, back.length, back.pool) == (net.inputs, net.outputs, N, "last")
    assert torch.equal(back(batch(inputs)), net(batch(inputs)))


@pytest.mark.parametrize("name", ["sinusoidal", "none"])
@torch.no_grad()
def test_caches_without_learned_positions_are_unlimited(name: str) -> None:
    net = network(
        outputs=OUTPUTS["tokens"][0], model="multihead", options={"num_heads": 4}, causal=True, position_embedding=name
    )
    x, caches = batch(length=200), net.caches()
    assert caches is not None
    parts = [net(part, caches=caches) for part in x.split([100, 1, 99], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), net(x))


@torch.no_grad()
def test_caches_continue() -> None:
    torch.manual_seed(0)
    network = Network("multihead", ("tokens", 7), ("tokens", 7), 23, embed_dim=16, causal=True).double().eval()
    x, caches = torch.randint(7, (3, 23)), network.caches()
    assert caches is not None
    parts = [network(part, caches=caches) for part in x.split([11, 1, 0, 5, 6], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), network(x))
    with pytest.raises(ValueError, match="the sequence has 24 tokens, but there are only 23 learned positions"):
        network(x[:, :1], caches=caches)


def test_unsupported_caches() -> None:
    assert Network("multihead", ("tokens", 7), ("tokens", 7), 23, embed_dim=16).caches() is None
    pooled = Network("multihead", ("tokens", 7), ("classes", 7), 23, embed_dim=16, causal=True)
    with pytest.raises(ValueError, match="one output per token"):
        pooled(torch.zeros(2, 3, dtype=torch.long), caches=pooled.caches())
