"""Attention layers of transformers, with the additive masks (B, 1, N, N) that their models pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import BertConfig, CLIPVisionConfig, GPT2Config, LlamaConfig, MistralConfig
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.clip.modeling_clip import CLIPAttention
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRotaryEmbedding

from peers.adapters.base import Adapter, split_projection

if TYPE_CHECKING:
    from attnlab.models.multihead import MultiAttention


class MaskedAdapter(Adapter):
    """Passes the additive mask that their models make of a Boolean one."""

    is_decoder = False

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to (B, N, D); ``mask`` (B, N, N), True for *attend*."""
        return self.call(x, mask)[0]

    def call(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The output, and the attention weights of the eager implementation."""
        return self.inner(x, attention_mask=self.additive_mask(x, mask))

    def additive_mask(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """0 for *attend*, the most negative value of the dtype for *do not attend*; causal in a decoder."""
        if self.is_decoder:
            past = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril().expand(len(x), -1, -1)
            mask = past if mask is None else past & mask
        if mask is None:
            return None
        lowest = torch.finfo(x.dtype).min
        return torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(~mask, lowest)[:, None]


class AdapterWithWeights(MaskedAdapter):
    """Returns the attention weights, as ``attn_implementation="eager"`` does."""

    def attention_weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, N, N)."""
        return self.call(x, mask)[1]


class Decoder(AdapterWithWeights):
    """A layer of a decoder: its model passes the causal mask."""

    is_decoder, causal = True, True


def bert(hidden_size: int, heads: int, dropout: float, implementation: str) -> nn.Module:
    """The self-attention of BERT, without the projection that follows it."""
    config = BertConfig(
        hidden_size=hidden_size,
        num_attention_heads=heads,
        attention_probs_dropout_prob=dropout,
        attn_implementation=implementation,
    )
    return BertSelfAttention(config)


class BertEager(AdapterWithWeights):
    """``BertSelfAttention``, ``attn_implementation="eager"``."""

    def __init__(self, hidden_size: int, num_heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__(bert(hidden_size, num_heads, dropout, "eager"))


class BertSdpa(MaskedAdapter):
    """``BertSelfAttention``, ``attn_implementation="sdpa"``."""

    def __init__(self, hidden_size: int, num_heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__(bert(hidden_size, num_heads, dropout, "sdpa"))


class Gpt2(Decoder):
    """``GPT2Attention``: one projection of queries, keys and values."""

    def __init__(self, n_embd: int, n_head: int = 1, dropout: float = 0.0, implementation: str = "eager") -> None:
        config = GPT2Config(
            n_embd=n_embd, n_head=n_head, attn_pdrop=dropout, resid_pdrop=0.0, attn_implementation=implementation
        )
        super().__init__(GPT2Attention(config, layer_idx=0))

    @classmethod
    def from_attnlab(cls, ours: MultiAttention) -> Gpt2:
        """The layer with the parameters of ours and ``attn_implementation="sdpa"``."""
        layer = cls(ours.embed_dim, ours.num_heads, implementation="sdpa")
        with torch.no_grad():
            for theirs, linear in ((layer.inner.c_attn, ours.qkv), (layer.inner.c_proj, ours.output)):
                theirs.weight.copy_(linear.weight.T)
                theirs.bias.copy_(linear.bias)
        return layer


class Clip(MaskedAdapter):
    """``CLIPAttention``, ``attn_implementation="sdpa"``: four projections with biases."""

    def __init__(self, hidden_size: int, num_heads: int = 1, causal: bool = False, dropout: float = 0.0) -> None:
        config = CLIPVisionConfig(
            hidden_size=hidden_size,
            num_attention_heads=num_heads,
            attention_dropout=dropout,
            attn_implementation="sdpa",
        )
        super().__init__(CLIPAttention(config))
        self.inner.is_causal = self.is_decoder = self.causal = causal

    @classmethod
    def from_attnlab(cls, ours: MultiAttention) -> Clip:
        """The layer with the parameters of ours."""
        layer = cls(ours.embed_dim, ours.num_heads, causal=ours.causal)
        split_projection(ours.qkv, [layer.inner.q_proj, layer.inner.k_proj, layer.inner.v_proj])
        split_projection(ours.output, [layer.inner.out_proj])
        return layer

    def fastest_call(self, length: int) -> Callable[[Tensor], Tensor]:
        """The call that is timed: without a mask, SDPA is called with ``is_causal``."""
        return lambda x: self.inner(x)[0]


class Rotary(Decoder):
    """Passes the cosines and sines of the positions, which the model computes once for all layers."""

    def __init__(self, inner: nn.Module, rotation: nn.Module) -> None:
        super().__init__(inner)
        self.rotation = rotation

    def call(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Positions start at 0 in each row."""
        cos_sin = self.rotation(x, torch.arange(x.shape[1], device=x.device)[None])
        return self.inner(x, position_embeddings=cos_sin, attention_mask=self.additive_mask(x, mask))


class Llama(Rotary):
    """``LlamaAttention``, eager."""

    def __init__(self, hidden_size: int, num_heads: int = 1, dropout: float = 0.0) -> None:
        config = LlamaConfig(
            hidden_size=hidden_size,
            num_attention_heads=num_heads,
            attention_dropout=dropout,
            attn_implementation="eager",
        )
        super().__init__(LlamaAttention(config, layer_idx=0), LlamaRotaryEmbedding(config))


class Mistral(Rotary):
    """``MistralAttention``, eager, one key and value head; the window is longer than the sequences of the suite."""

    def __init__(self, hidden_size: int, num_heads: int = 1, dropout: float = 0.0) -> None:
        config = MistralConfig(
            hidden_size=hidden_size,
            num_attention_heads=num_heads,
            num_key_value_heads=1,
            head_dim=hidden_size // num_heads,
            attention_dropout=dropout,
            attn_implementation="eager",
        )
        super().__init__(MistralAttention(config, layer_idx=0), MistralRotaryEmbedding(config))
