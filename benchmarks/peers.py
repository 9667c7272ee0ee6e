"""The layers of others, with our weights, each in the fastest setting that its documentation names for a CPU."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.models.multihead import MultiAttention

PEERS = {
    "x-transformers": "x_transformers",
    "transformers": "transformers",
    "keras": "keras",
    "local-attention": "local_attention",
    "performer-pytorch": "performer_pytorch",
}
"""The packages of the extra ``bench``, and what each is imported as."""


class Missing(Exception):  # noqa: N818  reads as what it says
    """A peer that cannot be measured here; the message is one line that says what to do."""


@dataclass(frozen=True)
class Peer:
    """A layer of theirs: the module, whose mode can be set, and how it is called, (B, N, D) to the same."""

    module: nn.Module
    run: Callable[[Tensor], Tensor]


def load(name: str, part: str = "") -> Any:
    """The module of a peer, or a part of it, as ``.models``.

    Raises:
        Missing: where it is not installed, or cannot be imported.
    """
    module = PEERS[name]
    for setting, value in {"KERAS_BACKEND": "torch", "KERAS_TORCH_DEVICE": "cpu"}.items():
        os.environ.setdefault(setting, value)  # Keras reads them when it is imported
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they import that is deprecated is theirs to mend
            importlib.import_module(module)
            return importlib.import_module(f"{module}{part}")
    except ModuleNotFoundError as error:
        if error.name == module:
            raise Missing(f"{name} is not installed; pip install 'attnlab[bench]'") from None
        raise Missing(f"{name} needs the module {error.name}, which is not there; pip install it") from None
    except Exception as error:  # whatever goes wrong in a package of others, the other rows go on
        raise Missing(f"{name} cannot be imported ({type(error).__name__}: {error})") from None


def torch_layer(ours: MultiAttention, length: int) -> Peer:
    """``nn.MultiheadAttention`` without weights; causal as it asks for it, with the matrix and ``is_causal``."""
    layer = ours.to_torch()
    mask = nn.Transformer.generate_square_subsequent_mask(length) if ours.causal else None

    def run(x: Tensor) -> Tensor:
        out: Tensor = layer(x, x, x, need_weights=False, attn_mask=mask, is_causal=mask is not None)[0]
        return out

    return Peer(layer, run)


def x_transformers_layer(ours: MultiAttention) -> Peer:
    """Its ``Attention`` with ``flash=True``, PyTorch's fused attention; it has no bias, so that ours must be zero."""
    attention = load("x-transformers", ".x_transformers").Attention
    layer = attention(
        ours.embed_dim, dim_head=ours.head_dim, heads=ours.num_heads, causal=ours.causal, flash=True, dropout=0.0
    )
    _copy([layer.to_q, layer.to_k, layer.to_v], ours.qkv)
    _copy([layer.to_out], ours.output)
    return Peer(layer, layer)


def transformers_layer(ours: MultiAttention) -> Peer:
    """A Hugging Face layer with the same four projections (CLIP's), through its ``sdpa`` attention."""
    config = load("transformers").CLIPVisionConfig(
        hidden_size=ours.embed_dim,
        num_attention_heads=ours.num_heads,
        attention_dropout=0.0,
        attn_implementation="sdpa",
    )
    layer = load("transformers", ".models.clip.modeling_clip").CLIPAttention(config)
    layer.is_causal = ours.causal  # as its decoders set it
    _copy([layer.q_proj, layer.k_proj, layer.v_proj], ours.qkv)
    _copy([layer.out_proj], ours.output)
    return Peer(layer, lambda x: layer(x)[0])


def transformers_decoder(ours: MultiAttention) -> nn.Module:
    """A Hugging Face layer that decodes (GPT-2's: one projection for all, no positions), through its ``sdpa``."""
    config = load("transformers").GPT2Config(
        n_embd=ours.embed_dim, n_head=ours.num_heads, attn_pdrop=0.0, resid_pdrop=0.0, attn_implementation="sdpa"
    )
    layer: nn.Module = load("transformers", ".models.gpt2.modeling_gpt2").GPT2Attention(config, layer_idx=0)
    with torch.no_grad():
        for theirs, own in ((layer.c_attn, ours.qkv), (layer.c_proj, ours.output)):
            theirs.weight.copy_(own.weight.T)
            theirs.bias.copy_(own.bias)
    return layer.eval()


def keras_layer(ours: MultiAttention, shape: tuple[int, ...]) -> Peer:
    """Keras' ``MultiHeadAttention`` on PyTorch; left to itself (``flash_attention=None``) it takes the fused attention.

    To ask for ``flash_attention=True`` raises on a CPU.
    """
    keras = load("keras")
    if keras.backend.backend() != "torch":
        raise Missing(f"keras runs on {keras.backend.backend()} here; set KERAS_BACKEND=torch")
    D, H = ours.embed_dim, ours.num_heads
    layer = keras.layers.MultiHeadAttention(H, ours.head_dim)
    layer.build(shape, shape)
    weights: list[Any] = []
    for weight, bias in zip(ours.qkv.weight.chunk(3), ours.qkv.bias.chunk(3), strict=True):
        weights += [weight.T.reshape(D, H, -1), bias.reshape(H, -1)]
    weights += [ours.output.weight.T.reshape(H, -1, D), ours.output.bias]
    layer.set_weights([weight.detach().numpy() for weight in weights])
    return Peer(layer, lambda x: layer(x, x, use_causal_mask=ours.causal))


def _copy(layers: list[nn.Linear], own: nn.Linear) -> None:
    """One projection of ours into as many of theirs."""
    with torch.no_grad():
        for layer, weight in zip(layers, own.weight.chunk(len(layers)), strict=True):
            layer.weight.copy_(weight)
        if layers[0].bias is not None:
            for layer, bias in zip(layers, own.bias.chunk(len(layers)), strict=True):
                layer.bias.copy_(bias)
