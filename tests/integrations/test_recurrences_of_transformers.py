"""Models of transformers give the same logits, gradients, caches and tokens with our recurrences as with theirs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="pip install 'attnlab[hf]'")

import torch
import transformers
from hub import SMALL, SPECIAL, VOCABULARY, B
from torch import Tensor

from attnlab.integrations.huggingface import recurrences, register_recurrences, unregister_recurrences
from attnlab.ops.dispatch import record_dispatch

N = 75
HYBRID = {**SMALL, **SPECIAL, "hidden_size": 24, "layer_types": ["linear_attention", "full_attention"]}
HYBRID |= {"initializer_range": 0.2}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_conv_kernel_dim": 3}
LINEAR |= {"linear_value_head_dim": 12}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
KIMI = {"linear_head_dim": 8, "linear_num_heads": 3, "linear_conv_kernel_dim": 3, "num_attention_heads": 2}
KIMI |= {"kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 6, "num_key_value_heads": 2}
MAMBA = {**SPECIAL, "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_heads": 6, "head_dim": 8}
MAMBA |= {"initializer_range": 0.2, "time_step_limit": (0.01, 0.05)}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3Next": ("Qwen3NextConfig", {**HYBRID, **LINEAR, **HEADS, **EXPERTS}),
    "Qwen3_5": ("Qwen3_5TextConfig", {**HYBRID, **LINEAR, **HEADS}),
    "OlmoHybrid": ("OlmoHybridConfig", {**HYBRID, **LINEAR, "num_attention_heads": 2}),
    "KimiLinear": ("KimiLinearConfig", {**HYBRID, **KIMI, **EXPERTS}),
    "Mamba2": ("Mamba2Config", {**MAMBA, "state_size": 10, "n_groups": 2, "conv_kernel": 3, "chunk_size": 16}),
}
MODELING = Path(transformers.__file__).parent / "models"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    unregister_recurrences()


@functools.cache
def model(family: str) -> Any:
    config, options = FAMILIES[family]
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, config)(**options)).eval()


def results(made: Any, *, padded: bool) -> dict[str, Tensor]:
    """Logits, a gradient through every layer, and the logits and tokens of two passes with a cache."""
    tokens = torch.randint(3, VOCABULARY, (B, N), generator=torch.Generator().manual_seed(0))
    real = torch.ones_like(tokens)
    if padded:
        real[0, :5] = 0
    made.zero_grad()
    logits = made(tokens, attention_mask=real).logits
    logits.sin().mean().backward()
    weight = made.get_input_embeddings().weight.grad.clone()
    with torch.no_grad():
        first = made(tokens[:, : N // 2], attention_mask=real[:, : N // 2], use_cache=True)
        second = made(tokens[:, N // 2 :], attention_mask=real, cache=first.cache).logits
    generated = made.generate(tokens, attention_mask=real, max_new_tokens=5, do_sample=False)
    return {"logits": logits.detach(), "gradient": weight, "resumed": second, "tokens": generated}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padded", [False, True])
def test_results_match(family: str, padded: bool) -> None:
    made = model(family)
    expected = results(made, padded=padded)
    register_recurrences()
    with record_dispatch() as records:
        ours = results(made, padded=padded)
    assert {record.name for record in records} >= {"chunked"}
    for name, value in expected.items():
        limit = 1e-5 * max(value.abs().max().item(), 1e-3)
        assert (ours[name] - value).abs().max() <= (0 if name == "tokens" else limit), name
        assert value.abs().max() > 1e-5, name


def test_it_can_be_undone() -> None:
    module = import_module("transformers.models.qwen3_next.modeling_qwen3_next")
    theirs = module.torch_chunk_gated_delta_rule
    for _ in range(2):
        register_recurrences()
    assert module.torch_chunk_gated_delta_rule is not theirs
    unregister_recurrences()
    assert module.torch_chunk_gated_delta_rule is theirs
    unregister_recurrences()


def test_all_models_with_these_recurrences_are_listed() -> None:
    found: dict[str, set[str]] = {name: set() for name in recurrences._REPLACEMENTS}
    for file in MODELING.glob("*/modeling_*.py"):
        text = file.read_text("utf-8")
        for name in found:
            if f"\ndef {name}(" in text:
                found[name].add(file.parent.name)
    assert list(found.values()) == [set(families) for families in recurrences.FAMILIES.values()]


def test_all_arguments_of_theirs_are_taken() -> None:
    """All but the chunk size, which has no effect on the result."""
    register_recurrences()
    assert {name for _, name in recurrences._replaced} == recurrences._REPLACEMENTS.keys()
    for (module, name), theirs in recurrences._replaced.items():
        taken = {*inspect.signature(theirs).parameters} - {"chunk_size", "kwargs"}
        ours = getattr(module, name).__code__
        assert taken <= {*ours.co_varnames[: ours.co_argcount + ours.co_kwonlyargcount]}


def test_packed_sequences_are_kept_apart() -> None:
    module = import_module("transformers.models.qwen3_next.modeling_qwen3_next")
    q, k, v = torch.randn(3, 1, 23, 2, 8)
    g, beta, ends = -torch.rand(1, 23, 2), torch.rand(1, 23, 2), torch.tensor([0, 9, 23])
    with pytest.raises(ValueError, match="can't keep packed sequences apart"):
        module.torch_chunk_gated_delta_rule(q, k, v, g=g, beta=beta, cu_seqlens=ends)
    register_recurrences()
    packed, _ = module.torch_chunk_gated_delta_rule(q, k, v, g=g, beta=beta, cu_seqlens=ends)
    alone, _ = module.torch_chunk_gated_delta_rule(*(x[:, 9:] for x in (q, k, v)), g=g[:, 9:], beta=beta[:, 9:])
    torch.testing.assert_close(packed[:, 9:], alone)
