"""Our recurrences in the models of transformers that otherwise run slow reference code where kernels are missing.

Axes: B batch, N steps, H heads of queries and keys, HV heads of values, K and V widths of a key and a value.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.ops import gated_delta_rule, kda, simple_gla

FAMILIES = {
    "gated delta rule": ("lara_mini", "olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_next", "qwen4_exp"),
    "Kimi delta attention": ("bailing_hybrid", "glm5_next", "kimi_linear"),
    "Mamba-2": ("bamba", "falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h", "zamba2"),
}
"""The models of transformers with each recurrence; those that an installation lacks are left out."""

_replaced: dict[tuple[ModuleType, str], Callable[..., Any]] = {}
"""The functions of transformers that are replaced now."""


def register_recurrences() -> None:
    """Compute the gated delta rule, Kimi delta attention and Mamba-2 of all models of transformers with our functions.

    transformers computes them in plain PyTorch where the kernels of fla and mamba-ssm cannot run, as on a CPU. Models
    that are already built are affected too; `unregister_recurrences` undoes it. Outputs, gradients and caches match
    those of transformers, whose plain code for single steps of decoding stays: ours is not faster. CUDA tensors are
    left to transformers and its kernels. Unlike its plain code, ours computes float64 in float64.
    """
    for families in FAMILIES.values():
        for family in families:
            try:
                module = import_module(f"transformers.models.{family}.modeling_{family}")
            except ModuleNotFoundError:  # an older version, or a model with more requirements
                continue
            for name, make in _REPLACEMENTS.items():
                if hasattr(module, name) and (module, name) not in _replaced:
                    theirs = _replaced[module, name] = getattr(module, name)
                    setattr(module, name, make(theirs))


def unregister_recurrences() -> None:
    """Restore the functions of transformers."""
    while _replaced:
        (module, name), theirs = _replaced.popitem()
        setattr(module, name, theirs)


def _delta_rule(op: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap our function with the signature of theirs, whose further arguments have no effect on the result."""

    @functools.wraps(theirs)
    def compute(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        g: Tensor,
        beta: Tensor,
        *,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        cu_seqlens: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        options = {
            "initial_state": initial_state,
            "output_final_state": output_final_state,
            "use_qk_l2norm_in_kernel": use_qk_l2norm_in_kernel,
            "cu_seqlens": cu_seqlens,
        }
        if query.is_cuda:
            return theirs(query, key, value, g=g, beta=beta, **options, **others)
        return op(query, key, value, g, beta, **options)

    return compute


def _mamba2(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """The chunked scan of Mamba-2: C are the queries, B the keys, and x · dt the values; states are (B, HV, V, K)."""

    @functools.wraps(theirs)
    def compute(
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        chunk_size: int,
        D: Tensor | None = None,
        dt_bias: Tensor | None = None,
        initial_states: Tensor | None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        return_final_states: bool = False,
        **others: Any,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        if hidden_states.is_cuda:
            others |= {"D": D, "dt_bias": dt_bias, "initial_states": initial_states, "dt_softplus": dt_softplus}
            others |= {"dt_limit": dt_limit, "return_final_states": return_final_states}
            return theirs(hidden_states, dt, A, B, C, chunk_size, **others)
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        dt = dt if dt_bias is None else dt + dt_bias.to(dt.dtype)
        dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit).to(dtype)
        x, state = hidden_states.to(dtype), None if initial_states is None else initial_states.mT
        options: dict[str, Any] = {"scale": 1.0, "initial_state": state, "output_final_state": return_final_states}
        options["cu_seqlens"] = others.get("cu_seqlens")
        out, last = simple_gla(C, B, x * dt.unsqueeze(-1), A.to(dtype) * dt, **options)
        out = out if D is None else out + D.unsqueeze(-1) * x
        return (out, None if last is None else last.mT) if return_final_states else out

    return compute


_REPLACEMENTS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "torch_chunk_gated_delta_rule": functools.partial(_delta_rule, gated_delta_rule),
    "chunk_kimi_delta_attention": functools.partial(_delta_rule, kda),
    "mamba2_chunk_scan": _mamba2,
}
"""The functions of transformers that take many steps, and what makes ours from each."""
