"""Small random models of transformers, one per family, with ``eager`` and with our attention, and equal parameters."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

VOCABULARY, B, N = 61, 3, 11
LONG = 150
"""Longer than the length from which masked blocks are skipped."""

SMALL = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "intermediate_size": 16}
LLAMA = {**SMALL, "hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2}
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 200}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("Model", {**SMALL, **CALM, "hidden_size": 12, "num_attention_heads": 3}),
    "GPT2": ("LMHeadModel", GPT2),
    "Llama": ("ForCausalLM", {**LLAMA, **SPECIAL}),
    "Mistral": ("ForCausalLM", {**LLAMA, **SPECIAL, "sliding_window": 5}),
    "Gemma2": (
        "ForCausalLM",
        {
            **LLAMA,
            **SPECIAL,
            "sliding_window": 5,
            "head_dim": 8,
            "attn_logit_softcapping": 0.5,
            "query_pre_attn_scalar": 13,
        },
    ),
    "GptOss": (
        "ForCausalLM",
        {**LLAMA, **SPECIAL, "sliding_window": 5, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "Doge": ("ForCausalLM", {**LLAMA, **SPECIAL, "keep_window_size": 7}),
    "ModernBert": (
        "Model",
        {
            **SMALL,
            **SPECIAL,
            "hidden_size": 24,
            "num_attention_heads": 6,
            "num_hidden_layers": 3,
            "local_attention": 6,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
    ),
}
DECODERS = [name for name, (head, _) in FAMILIES.items() if head != "Model"]


def config(family: str, **options: Any) -> Any:
    return getattr(import_module("transformers"), f"{family}Config")(**{**FAMILIES[family][1], **options})


def model(family: str, attention: str, *, dtype: torch.dtype = torch.float32, kind: str = "", **options: Any) -> Any:
    """A model whose parameters do not depend on the attention implementation and are never zero."""
    head = kind or FAMILIES[family][0]
    made = getattr(import_module("transformers"), f"{family}{head}")._from_config(
        config(family, **options), attn_implementation=attention
    )
    return shaken(made, dtype)


def shaken(made: Any, dtype: torch.dtype) -> Any:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            if parameter.dim() == 1:
                parameter.add_(0.5)
    return made.to(dtype).eval()


def tokens(length: int = N) -> Tensor:
    return torch.randint(3, VOCABULARY, (B, length), generator=torch.Generator().manual_seed(4))


def padded(side: str, length: int = N) -> Tensor | None:
    """An attention_mask: none, padding on the right or left, or with a gap."""
    real = torch.ones(B, length, dtype=torch.long)
    if side == "none":
        return None
    if side == "hole":
        real[1, 2] = 0
        return real
    real[1, length // 2 :] = 0
    real[2, 4:] = 0
    return real if side == "right" else real.flip(1)
