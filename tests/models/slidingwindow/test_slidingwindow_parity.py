"""Sliding-window attention against local-attention 1.11 and the attention of Mistral in transformers 5.24.

With ``exact_windowsize``, local-attention does not count the token itself, so its window has one key more than ours.
transformers counts as we do.
"""

from __future__ import annotations

import pytest
import torch
from comparison import (
    CAUSAL,
    DTYPES,
    PADDED,
    assert_parity,
    assert_same_gradients,
    copy_parameters,
    from_transformers,
    heads_of,
    no_rotation,
    padding_lengths,
    parameters_of_transformers,
    random,
    random_biases,
    rotation_of,
)
from torch import Tensor

from attnlab import masks
from attnlab.models.slidingwindow import SlidingWindowAttention

ORACLES = {
    "test_local_attention": ("local-attention", "LocalAttention"),
    "test_mistral": ("transformers", "MistralAttention"),
}


@DTYPES
@CAUSAL
@pytest.mark.parametrize(("B", "N", "H", "d", "size"), [(2, 15, 3, 5, 5), (1, 21, 2, 7, 3), (3, 11, 1, 2, 11)])
@PADDED
def test_local_attention(
    dtype: torch.dtype, causal: bool, B: int, N: int, H: int, d: int, size: int, padded: bool
) -> None:
    theirs = pytest.importorskip("local_attention").LocalAttention(
        size, causal=causal, look_backward=1, exact_windowsize=True, use_rotary_pos_emb=False
    )
    torch.manual_seed(0)
    layer = random_biases(SlidingWindowAttention(H * d, H, window_size=size + 1, causal=causal).to(dtype))
    x, (lengths, real) = random(B, N, H * d, dtype=dtype), padding_lengths(B, N, padded)
    rule = masks.sliding_window(size + 1) & masks.padding(lengths)
    # fully masked rows are the mean of all values in theirs
    rows = (rule & masks.causal() if causal else rule).materialize(N).any(-1)[:, 0]
    heads = theirs(*heads_of(layer.qkv, x, H), mask=real)
    expected = layer.output(heads.transpose(1, 2).flatten(2))[rows]
    ours, parameters = layer(x, mask=masks.padding(lengths) if padded else None)[rows], list(layer.parameters())
    assert_same_gradients((ours, parameters), (expected, parameters))


@DTYPES
@pytest.mark.parametrize("positions", ["none", "rotary"])
@pytest.mark.parametrize(("B", "N", "H", "D", "window"), [(2, 13, 3, 12, 5), (1, 17, 1, 2, 3), (3, 7, 2, 20, 11)])
@PADDED
def test_mistral(dtype: torch.dtype, positions: str, B: int, N: int, H: int, D: int, window: int, padded: bool) -> None:
    sizes = {"hidden_size": D, "num_attention_heads": H, "num_key_value_heads": H, "head_dim": D // H}
    options = {"sliding_window": window, "max_position_embeddings": N}
    theirs = from_transformers("mistral", "Mistral", dtype, **sizes, **options)
    from transformers.masking_utils import create_sliding_window_causal_mask

    layer = SlidingWindowAttention(D, H, window_size=window, causal=True, bias=False, positions=positions).to(dtype)
    copy_parameters(pairs := parameters_of_transformers(layer, theirs))
    rotation = no_rotation(N, D // H, dtype) if positions == "none" else rotation_of(theirs, N, dtype)

    def call(x: Tensor, allowed: Tensor) -> tuple[Tensor, None]:
        real = allowed[:, 0, -1].long()
        mask = create_sliding_window_causal_mask(
            theirs.config, x, real, None, torch.arange(N)[None], allow_is_causal_skip=False
        )
        return theirs(x, rotation, mask)[0], None

    # their softmax is float32, and NaN in fully masked rows
    assert_parity(layer, call, pairs, (B, N), padded, 1e-5)
