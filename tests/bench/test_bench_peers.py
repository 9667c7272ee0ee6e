"""The layers of other libraries compute what ours does, can be sent to another process, and are refused in one line."""

from __future__ import annotations

import pickle
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from attnlab.bench import peers
from attnlab.bench.peers import DynamicCacheDecoder, MissingPeerError, PeerLayer
from attnlab.bench.workloads import Layers, workload
from attnlab.catalog import registry
from attnlab.nn.card import UnsupportedError
from attnlab.utils.errors import UserError

LIKE = torch.empty(0)


def ours() -> Any:
    torch.manual_seed(0)
    return registry.load("multihead")(24, 3, causal=True)


def test_a_peer_has_the_parameters_of_ours_and_can_be_sent_to_another_process() -> None:
    (layer,) = peers.layers(["torch"], 24, {"num_heads": 3}, causal=True, like=LIKE).values()
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(workload(layer, x, "prefill")(), ours()(x), rtol=1e-4, atol=1e-5)
    copy = pickle.loads(pickle.dumps(layer))
    longer = torch.randn(2, 11, 24)
    torch.testing.assert_close(copy(longer), layer(longer))
    with pytest.raises(UnsupportedError, match="the decoding of this library is not compared"):
        workload(layer, x, "decode")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is in the extra bench")
def test_decoding_with_a_dynamic_cache_repeats_the_last_token() -> None:
    layer, x = ours(), torch.randn(2, 7, 24)
    peer = PeerLayer(nn.Identity(), DynamicCacheDecoder(layer))
    expected, step = workload(Layers([layer]), x, "decode"), workload(peer, x, "decode")
    for _ in range(3):
        torch.testing.assert_close(step(), expected(), rtol=1e-4, atol=1e-5)
    assert step.cache_bytes == 2 * 2 * 6 * 24 * 4, "keys and values of 6 tokens, two sequences, float32"


def test_a_peer_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^unknown peer 'troch'; did you mean torch"):
        peers.layers(["troch"], 24, {}, causal=True, like=LIKE)
    with pytest.raises(UserError, match=r"^--peers computes plain multi-head attention, so multihead takes no bias"):
        peers.layers(["torch"], 24, {"bias": False}, causal=True, like=LIKE)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "x_transformers", None)
        with pytest.raises(MissingPeerError, match=r"^x-transformers is not installed; pip install 'attnlab.bench.'$"):
            peers.layers(["x-transformers"], 24, {}, causal=True, like=LIKE)
    with monkeypatch.context() as patched:
        patched.setattr(registry, "checkout", lambda: None)
        with pytest.raises(
            MissingPeerError,
            match=r"^torch is compared through adapters that only a checkout",
        ):
            peers.layers(["torch"], 24, {}, causal=True, like=LIKE)
    other = peers.adapter("torch").MultiheadAttention(24, 8, causal=True)
    monkeypatch.setitem(peers.LAYERS, "torch", lambda _: other)
    with pytest.raises(UserError, match=r"^the output of torch differs from that of multihead"):
        peers.layers(["torch"], 24, {}, causal=True, like=LIKE)
