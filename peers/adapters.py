"""How each peer is made and asked, as its documentation says.

The suite's mask is Boolean (B, N, N), True means may look. A peer is imported where it is made. Claims are what it
documents; what it does not, it is not held to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

D, H = 24, 4


@dataclass(frozen=True)
class Peer:
    """An implementation by others.

    Args:
        package: the distribution.
        layer: its class, and the options that matter.
        make: a fresh layer.
        call: asks it: (layer, x, mask) to (B, N, D).
        claims: what it documents (see `attnlab.checks.claims.CLAIMS`).
        asked: how the adapter uses it, and where that is documented.
    """

    package: str
    layer: str
    make: Callable[..., nn.Module]
    call: Callable[[Any, Tensor, Tensor | None], Tensor]
    claims: frozenset[str]
    asked: str
    failures: tuple[str, ...] = ()
    """Files in peers/reproductions that show what is broken by the peer alone."""
    unfair: tuple[str, ...] = ()
    """What it could not promise by what it is."""


def _keys(mask: Tensor | None) -> Tensor | None:
    """(B, N): which keys are real, where all rows say the same."""
    return None if mask is None else mask[:, 0]


def _torch(causal: bool = False, dropout: float = 0.0) -> nn.Module:
    layer = nn.MultiheadAttention(D, H, dropout=dropout, batch_first=True)
    layer.causal = causal
    return layer


def _ask_torch(layer: Any, x: Tensor, mask: Tensor | None, *, need_weights: bool = False) -> Tensor:
    forbidden = None if mask is None else (~mask).repeat_interleave(H, 0)
    if layer.causal:
        triangle = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        forbidden = triangle if forbidden is None else forbidden | triangle
    out: Tensor = layer(x, x, x, attn_mask=forbidden, need_weights=need_weights)[0]
    return out


def _x_transformers(causal: bool = False, dropout: float = 0.0, **options: Any) -> nn.Module:
    from x_transformers.x_transformers import Attention

    return Attention(dim=D, heads=H, dim_head=D // H, causal=causal, dropout=dropout, **options)


def _ask_x_transformers(layer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    out: Tensor = layer(x, attn_mask=None if mask is None else mask.unsqueeze(1))
    return out


def _keras(causal: bool = False, dropout: float = 0.0) -> nn.Module:
    import os

    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    seed = int(torch.randint(2**31 - 1, ()))
    initial = keras.initializers.GlorotUniform(seed)
    layer = keras.layers.MultiHeadAttention(H, D // H, dropout=dropout, kernel_initializer=initial, dtype="float64")
    layer.causal = causal
    layer(torch.zeros(1, 2, D, dtype=torch.float64), torch.zeros(1, 2, D, dtype=torch.float64))
    return layer


def _ask_keras(layer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    out: Tensor = layer(x, x, attention_mask=mask, use_causal_mask=layer.causal, training=layer.training)
    return out


def _llama() -> nn.Module:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention

    sizes = {"hidden_size": D, "num_attention_heads": H, "num_key_value_heads": H}
    layer = LlamaAttention(LlamaConfig(**sizes, attn_implementation="sdpa"), layer_idx=0)
    layer.causal = True
    return layer


def _ask_llama(layer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    N = x.shape[1]
    turns = LlamaRotaryEmbedding(layer.config)(x, torch.arange(N).unsqueeze(0))
    permitted = torch.ones(N, N, dtype=torch.bool).tril()
    permitted = permitted[None, None] if mask is None else permitted & mask.unsqueeze(1)
    added = torch.zeros(permitted.shape, dtype=x.dtype).masked_fill(~permitted, torch.finfo(x.dtype).min)
    out: Tensor = layer(x, turns, added)[0]
    return out


def _bert(dropout: float = 0.0) -> nn.Module:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertSelfAttention

    config = BertConfig(
        hidden_size=D, num_attention_heads=H, attention_probs_dropout_prob=dropout, attn_implementation="sdpa"
    )
    return BertSelfAttention(config)


def _ask_bert(layer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    added = None
    if mask is not None:
        added = torch.zeros(len(x), 1, *mask.shape[1:], dtype=x.dtype)
        added = added.masked_fill(~mask.unsqueeze(1), torch.finfo(x.dtype).min)
    out: Tensor = layer(x, added)[0]
    return out


def _local(causal: bool = False, dropout: float = 0.0) -> nn.Module:
    from local_attention.transformer import LocalMHA

    options = {"window_size": 4, "dim_head": D // H, "heads": H, "prenorm": False, "use_rotary_pos_emb": False}
    return LocalMHA(dim=D, causal=causal, dropout=dropout, exact_windowsize=True, **options)


def _performer(causal: bool = False, dropout: float = 0.0) -> nn.Module:
    from performer_pytorch import SelfAttention

    return SelfAttention(dim=D, heads=H, dim_head=D // H, causal=causal, dropout=dropout)


def _ask_keyed(layer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    out: Tensor = layer(x, mask=_keys(mask))
    return out


def _efficient(causal: bool = False, dropout: float = 0.0) -> nn.Module:
    from memory_efficient_attention_pytorch import Attention

    return Attention(dim=D, heads=H, dim_head=D // H, causal=causal, dropout=dropout)


def _fightingcv(dropout: float = 0.0) -> nn.Module:
    from fightingcv_attention.attention.SelfAttention import ScaledDotProductAttention

    return ScaledDotProductAttention(D, D // H, D // H, H, dropout)


def _ask_fightingcv(layer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    masked = None if mask is None else (~mask).unsqueeze(1).expand(-1, H, -1, -1)
    out: Tensor = layer(x, x, x, attention_mask=masked)
    return out


def _nystrom(dropout: float = 0.0) -> nn.Module:
    from nystrom_attention import NystromAttention

    return NystromAttention(dim=D, dim_head=D // H, heads=H, num_landmarks=4, dropout=dropout)


def _with(make: Callable[..., nn.Module], **fixed: Any) -> Callable[..., nn.Module]:
    def made(causal: bool = False, dropout: float = 0.0) -> nn.Module:
        return make(causal=causal, dropout=dropout, **fixed)

    return made


WHOLE, KEYED = frozenset({"causal", "mask", "dropout"}), frozenset({"causal", "padding", "dropout"})
KEY_MASK = "called as layer(x, mask=keys), True for a real token, as its README does"

PEERS: dict[str, Peer] = {
    "torch": Peer(
        "torch",
        "nn.MultiheadAttention",
        _torch,
        _ask_torch,
        WHOLE,
        "attn_mask (B·H, N, N), True is not allowed, causal joined into it; need_weights=False (its documentation)",
    ),
    "torch-weights": Peer(
        "torch",
        "nn.MultiheadAttention, need_weights=True",
        _torch,
        lambda layer, x, mask: _ask_torch(layer, x, mask, need_weights=True),
        WHOLE,
        "the same, with the weights that it returns by default",
        failures=("torch_weights",),
    ),
    "x-transformers": Peer(
        "x-transformers",
        "Attention",
        _x_transformers,
        _ask_x_transformers,
        WHOLE,
        "attn_mask (B, 1, N, N), True may look (the parameter of Attention.forward)",
        failures=("without_flash",),
    ),
    "x-transformers-flash": Peer(
        "x-transformers",
        "Attention, flash=True",
        _with(_x_transformers, flash=True),
        _ask_x_transformers,
        WHOLE,
        "the same, by PyTorch's fused kernels (README, Flash Attention)",
    ),
    "keras": Peer(
        "keras",
        "layers.MultiHeadAttention",
        _keras,
        _ask_keras,
        WHOLE,
        "attention_mask (B, N, N), True may look, and use_causal_mask (its documentation); PyTorch's backend",
        # It computes in its own float32, and its seeds are parameters, which the suite would move.
        unfair=(
            "padding is as if absent",
            "empty rows give finite gradients",
            "dropout is off in eval",
            "dropout is right on average",
        ),
    ),
    "bert": Peer(
        "transformers",
        "BertSelfAttention",
        _bert,
        _ask_bert,
        frozenset({"mask", "dropout"}),
        "the additive mask that BertModel makes, the least number where it may not look",
    ),
    "llama": Peer(
        "transformers",
        "LlamaAttention",
        _llama,
        _ask_llama,
        frozenset({"causal", "mask"}),
        "the additive mask that LlamaModel makes, causal in it; the layer is never asked without",
    ),
    "local-attention": Peer(
        "local-attention",
        "LocalMHA, window 4",
        _local,
        _ask_keyed,
        KEYED,
        KEY_MASK,
        failures=("local_autopad", "local_dropout"),
    ),
    "performer": Peer(
        "performer-pytorch",
        "SelfAttention",
        _performer,
        _ask_keyed,
        KEYED,
        KEY_MASK,
        failures=("performer_future", "performer_padding"),
    ),
    "memory-efficient": Peer(
        "memory-efficient-attention-pytorch",
        "Attention",
        _efficient,
        _ask_keyed,
        KEYED,
        KEY_MASK,
        failures=("memory_efficient_dropout",),
    ),
    "fightingcv": Peer(
        "fightingcv-attention",
        "ScaledDotProductAttention",
        _fightingcv,
        _ask_fightingcv,
        frozenset({"mask", "dropout"}),
        "attention_mask (B, H, N, N), True indicates masking (the docstring of forward)",
        failures=("fightingcv",),
    ),
    "nystrom": Peer(
        "nystrom-attention",
        "NystromAttention, 4 landmarks",
        _nystrom,
        _ask_keyed,
        frozenset({"padding", "dropout"}),
        KEY_MASK,
        unfair=("padding is as if absent",),  # its landmarks depend on the padded length
        failures=("nystrom_batch",),
    ),
}
