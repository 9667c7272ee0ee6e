"""Talking-heads attention: heads that other heads use cannot be pruned."""

from __future__ import annotations

import pytest
import torch

from attnlab.models.talkingheads import TalkingHeadsAttention
from attnlab.network.pruning import prune_heads
from attnlab.nn.attention import UnsupportedError


@pytest.mark.parametrize("matrix", ["scores", "mixture"])
def test_pruning_a_head_that_another_head_uses_raises(matrix: str) -> None:
    layer = TalkingHeadsAttention(12, 3)
    with torch.no_grad():
        getattr(layer, matrix)[0, 2] = 0.1
    with pytest.raises(UnsupportedError, match=r"^the remaining heads use pruned heads \(2\): set their columns"):
        prune_heads(layer, [1, 2])
    assert prune_heads(layer, [0]).num_heads == 2  # head 0 uses head 2, not the reverse
    assert layer.num_heads == 3
