"""The attention layers of transformers, with the masks that their models give them: (B, 1, N, N), 0 for *may look*."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, GPT2Config, LlamaConfig, MistralConfig
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRotaryEmbedding


class Layer(nn.Module):
    """Asks ``inner`` with the mask of additive numbers that their models make of a Boolean one."""

    inner: nn.Module
    looks_back = False

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to the same; ``mask`` (B, N, N), True for *may look*."""
        return self.ask(x, mask)[0]

    def ask(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """What they return: the output, and the weights of the eager implementation."""
        return self.inner(x, attention_mask=self.additive(x, mask))

    def additive(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """Zero for *may look*, the smallest number of the dtype for *may not*, the future among it in a decoder."""
        if self.looks_back:
            past = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril().expand(len(x), -1, -1)
            mask = past if mask is None else past & mask
        if mask is None:
            return None
        smallest = torch.finfo(x.dtype).min
        return torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(~mask, smallest)[:, None]


class Shown(Layer):
    """One that shows its weights, as ``attn_implementation="eager"`` does."""

    def attention_weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, N, N)."""
        return self.ask(x, mask)[1]


def bert(hidden_size: int, heads: int, dropout: float, implementation: str) -> nn.Module:
    """BERT's self-attention, without the projection that follows it."""
    config = BertConfig(
        hidden_size=hidden_size,
        num_attention_heads=heads,
        attention_probs_dropout_prob=dropout,
        attn_implementation=implementation,
    )
    return BertSelfAttention(config)


class BertEager(Shown):
    """``BertSelfAttention``, ``attn_implementation="eager"``."""

    def __init__(self, hidden_size: int, num_heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = bert(hidden_size, num_heads, dropout, "eager")


class BertSdpa(Layer):
    """``BertSelfAttention``, ``attn_implementation="sdpa"``."""

    def __init__(self, hidden_size: int, num_heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = bert(hidden_size, num_heads, dropout, "sdpa")


class Decoder(Shown):
    """A layer of a decoder: its model gives it the causal mask."""

    looks_back, causal = True, True


class Gpt2(Decoder):
    """``GPT2Attention``, eager."""

    def __init__(self, n_embd: int, n_head: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        config = GPT2Config(
            n_embd=n_embd, n_head=n_head, attn_pdrop=dropout, resid_pdrop=0.0, attn_implementation="eager"
        )
        self.inner = GPT2Attention(config, layer_idx=0)


class Rotary(Decoder):
    """A layer that wants the cosines and sines of its places, which its model computes once for all layers."""

    places: nn.Module

    def ask(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """With the places counted from the beginning of the row."""
        turns = self.places(x, torch.arange(x.shape[1], device=x.device)[None])
        return self.inner(x, position_embeddings=turns, attention_mask=self.additive(x, mask))


class Llama(Rotary):
    """``LlamaAttention``, eager."""

    def __init__(self, hidden_size: int, num_heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        config = LlamaConfig(
            hidden_size=hidden_size,
            num_attention_heads=num_heads,
            attention_dropout=dropout,
            attn_implementation="eager",
        )
        self.inner, self.places = LlamaAttention(config, layer_idx=0), LlamaRotaryEmbedding(config)


class Mistral(Rotary):
    """``MistralAttention``, eager, grouped queries; the window is longer than what it is asked with."""

    def __init__(self, hidden_size: int, num_heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        config = MistralConfig(
            hidden_size=hidden_size,
            num_attention_heads=num_heads,
            num_key_value_heads=1,
            head_dim=hidden_size // num_heads,
            attention_dropout=dropout,
            attn_implementation="eager",
        )
        self.inner, self.places = MistralAttention(config, layer_idx=0), MistralRotaryEmbedding(config)
