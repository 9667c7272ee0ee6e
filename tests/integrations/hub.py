"""Small random models of transformers, one per family, with their ``eager`` attention and with ours."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

VOCABULARY, B, N = 61, 3, 11
LONG = 150
"""Long enough for masked blocks to be skipped."""

SMALL = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "intermediate_size": 16}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {**SMALL, **SPECIAL, "hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2}
WINDOWED = {**LLAMA, "sliding_window": 5}
BERT = {**SMALL, "hidden_size": 12, "num_attention_heads": 3}
BERT |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 200}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}
MODERN_BERT = {**SMALL, **SPECIAL, "hidden_size": 24, "num_attention_heads": 6, "num_hidden_layers": 3}
MODERN_BERT |= {"local_attention": 6, "cls_token_id": 1, "sep_token_id": 2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("Model", BERT),
    "GPT2": ("LMHeadModel", GPT2),
    "Llama": ("ForCausalLM", LLAMA),
    "Mistral": ("ForCausalLM", WINDOWED),
    "Gemma2": (
        "ForCausalLM",
        {**WINDOWED, "head_dim": 8, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 13},
    ),
    "GptOss": ("ForCausalLM", {**WINDOWED, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "Doge": ("ForCausalLM", {**LLAMA, "keep_window_size": 7}),
    "ModernBert": ("Model", MODERN_BERT),
}
DECODERS = [name for name, (head, _) in FAMILIES.items() if head != "Model"]


def model(family: str, attention: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A model in eval mode with the same parameters for every ``attention``; none of them is zero."""
    head, usual = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(**{**usual, **options})
    made = getattr(transformers, f"{family}{head}")._from_config(config, attn_implementation=attention)
    return perturbed(made, dtype)


def perturbed(made: Any, dtype: torch.dtype = torch.float32) -> Any:
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
    """attention_mask: none, right, left, or with a hole."""
    real = torch.ones(B, length, dtype=torch.long)
    if side == "none":
        return None
    if side == "hole":
        real[1, 2] = 0
        return real
    real[1, length // 2 :] = 0
    real[2, 4:] = 0
    return real if side == "right" else real.flip(1)
