"""The network that is trained: an embedding, blocks of attention and MLP, and an output layer.

Axes: B batch, N length, D embed_dim, F features per token.
"""

from __future__ import annotations

import copy
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from torch import Tensor, nn

from attnlab.catalog import pattern, registry
from attnlab.files.atomic import JSON_BYTES, open_regular, parse_json, read_bytes
from attnlab.files.tensors import SafetensorsFile, check_finite
from attnlab.masks import Mask, padding
from attnlab.nn.attention import SequenceMixer, make_linear
from attnlab.nn.cache import DecodingCache, unchanged_on_error
from attnlab.nn.layer_caches import LayerCaches
from attnlab.nn.multihead import as_multihead
from attnlab.nn.select import validate_indices
from attnlab.positions import make_absolute
from attnlab.utils.errors import UserError
from attnlab.utils.tracing import can_inspect_values


class Inputs(NamedTuple):
    """The inputs of a network.

    ``tokens``: (B, N) integers below ``size``; ``vectors``: (B, N, ``size``); ``cells``: (B, N, 2), a code below
    ``size`` and a value, which is used if the code is below ``numbers``.
    """

    kind: Literal["tokens", "vectors", "cells"]
    size: int
    numbers: int = 0


class Outputs(NamedTuple):
    """The outputs of a network.

    ``classes``: (B, slots, size) logits, one class per slot for the whole sequence; ``tokens``: (B, N, size) logits,
    one class per position; ``values``: (B, slots) numbers (``size`` is 1).
    """

    kind: Literal["classes", "tokens", "values"]
    size: int
    slots: int = 1


class Network(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="attnlab",
    license="mit",
    tags=["attention", "attnlab"],
):
    """A small pre-norm transformer with one mechanism, or with a pattern of several.

    Args:
        model: the mechanism's name (a folder of ``models/``), or a pattern such as ``"3*linear,multihead"`` that is
            repeated over the layers (see `attnlab.catalog.pattern`).
        inputs: an `Inputs`.
        outputs: an `Outputs`.
        length: the longest sequence in training; the limit of learned positions.
        embed_dim: D.
        layers: the number of blocks.
        options: of the mechanism (``num_heads`` ...). In a pattern, an option is given to every mechanism that has it,
            and ``{"linear": {"num_heads": 4}}`` to one of them.
        causal: whether tokens attend only to earlier tokens; needed to predict the next token. The layers of a
            mechanism that is always causal are, whatever is given.
        dropout: on attention weights, embeddings and residual branches, in training only.
        mlp: whether a block has an MLP after its attention layer.
        pool: the pooling of a sequence to one vector: the ``mean`` of the real tokens, or the ``last`` of them.
        heads: the heads that pruning left in a layer, by layer; all heads in other layers (see `keep_heads`).
        position_embedding: ``learned`` (up to ``length``), ``sinusoidal`` or ``none``; the last two are unlimited.
        mlp_width: the width of the hidden layer of each MLP; 4·D by default, no MLP for 0.

    Raises:
        UserError: for an unknown mechanism, or a malformed pattern.
        TypeError: for an unknown option, one that is not a JSON value, or ``heads`` for a mechanism without heads.
        ValueError: for an invalid value of an option, fewer layers than the pattern has, or an unknown layer, head or
            position embedding.
    """

    def __init__(
        self,
        model: str,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        length: int,
        embed_dim: int = 64,
        layers: int = 2,
        options: dict[str, Any] | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        mlp: bool = True,
        pool: str = "mean",
        heads: dict[str, list[int]] | None = None,
        position_embedding: str = "learned",
        mlp_width: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (options or {}).items():
            try:
                json.dumps(value)
            except TypeError:
                raise TypeError(
                    f"a network's options are saved as JSON, but {name} is a {type(value).__name__}; use a string, a "
                    "number or a list"
                ) from None
        self.inputs, self.outputs = Inputs(*inputs), Outputs(*outputs)
        self.length, self.pool = length, pool
        names = pattern.layer_names(model, layers)  # first to last
        mechanism_options = pattern.options_by_mechanism(model, options or {})
        self.embed: nn.Module
        if self.inputs.kind == "tokens":
            self.embed = nn.Embedding(self.inputs.size, embed_dim)
        elif self.inputs.kind == "cells":
            self.embed = Cells(self.inputs.size, self.inputs.numbers, embed_dim)
        else:
            self.embed = make_linear(self.inputs.size, embed_dim)
        self.position_embedding = make_absolute(position_embedding, length=length, embed_dim=embed_dim)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                mechanism(
                    embed_dim=embed_dim,
                    causal=causal or mechanism.card.always_causal,
                    dropout=dropout,
                    **mechanism_options[name],
                ),
                mlp_width=(4 * embed_dim if mlp_width is None else mlp_width) if mlp else 0,
                dropout=dropout,
                scale=1 / math.sqrt(2 * layers),
            )
            for name, mechanism in zip(names, map(registry.load, names), strict=True)
        )
        for layer, left in (heads or {}).items():
            block = self._block(int(layer))
            block.attention = as_multihead(block.attention).keep_heads(left)
        self.norm = nn.LayerNorm(embed_dim)
        self.readout = make_linear(embed_dim, self.outputs.size * self.outputs.slots)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Network:
        """A network saved by ``save_pretrained``, from a folder or the Hub; see `PyTorchModelHubMixin`.

        Raises:
            UserError: for a config.json or model.safetensors that is damaged, or that do not match each other; they
                are checked before memory is allocated.
        """
        config = Path(pretrained_model_name_or_path) / "config.json"
        if os.path.lexists(config):  # also for a pipe, which would block
            try:
                parse_json(read_bytes(config, JSON_BYTES, follow=True))
            except ValueError as error:
                raise UserError(f"{config} is damaged ({error}); restore it") from None
        network: Network = super().from_pretrained(pretrained_model_name_or_path, **options)
        return network

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **options: Any
    ) -> Network:
        """Called by `from_pretrained` with the constructor arguments and those of ``hf_hub_download``."""
        from attnlab.network.received import check_description, fill

        hub_options = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        hub = {name: options.pop(name) for name in hub_options if name in options}
        folder = Path(model_id)
        if folder.is_dir():
            file = folder / "model.safetensors"
        else:
            file = Path(hf_hub_download(repo_id=model_id, filename="model.safetensors", **hub))
        try:
            with open_regular(file, follow=True) as opened:
                safetensors = SafetensorsFile(file, opened)
                check_description(options, safetensors.shapes, cls, str(file))
                tensors = safetensors.read()
        except (ValueError, SafetensorError) as error:
            raise UserError(f"{file} is damaged ({error}); restore it") from None
        check_finite(tensors, f"the network in {file}")
        return fill(cls(**options), tensors).to(map_location)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, caches: Sequence[DecodingCache] | None = None
    ) -> Tensor:
        """Compute the outputs of a batch.

        Args:
            x: (B, N) integers, (B, N, F) vectors or (B, N, 2) cells, depending on ``inputs``.
            lengths: (B,) the numbers of real tokens; the others are padding on the right, whose content (NaN, -100)
                has no effect. None if there is no padding.
            caches: the caches of earlier tokens (see `caches`), which ``x`` continues; only for outputs of kind
                ``tokens`` without lengths. A call that raises leaves them unchanged.

        Returns:
            Logits or values, see `Outputs`.

        Raises:
            ValueError: for a sequence longer than `limit`, lengths of another shape or (on the CPU) not from 1 to N, or
                unsupported caches.
        """
        first = caches[0].num_seen if caches else 0
        if caches is not None and (lengths is not None or self.outputs.kind != "tokens"):
            raise ValueError("caches are for networks with one output per token, and for sequences without lengths")
        mask = None
        if lengths is not None:
            _check_lengths(lengths, x)
            mask = padding(lengths, mask_queries=True)
            x = _zero_padding(x, lengths)  # zero times NaN would be NaN
        x = self.embed(x).to(self.norm.weight.dtype)  # keeps the residual stream in float32 under autocast
        x = self.drop(self.position_embedding(x, first=first))
        with unchanged_on_error(*(caches or ())):  # a later block may fail after earlier caches grew
            for i, block in enumerate(self.blocks):
                x = block(x, mask, None if caches is None else caches[i])
        x = self.norm(x)
        if self.outputs.kind == "tokens":
            return self.readout(x)
        out = self.readout(self._pooled(x, lengths)).unflatten(-1, (self.outputs.slots, self.outputs.size))
        return out.squeeze(-1) if self.outputs.kind == "values" else out

    def to_config(self) -> dict[str, Any]:
        """The constructor arguments that build this network again, as plain JSON values."""
        config: dict[str, Any] = json.loads(json.dumps(self._hub_mixin_config))
        return config

    @property
    def limit(self) -> int | None:
        """The longest supported sequence; None if unlimited."""
        return self.position_embedding.limit

    def mechanisms(self) -> list[SequenceMixer]:
        """The attention layers, first to last."""
        return [block.attention for block in self.blocks]  # type: ignore[misc]

    def caches(self) -> LayerCaches | None:
        """An empty cache for every block, up to `limit` tokens; None if a layer supports no cache.

        A layer gets the cache that its mechanism needs: all keys and values, those of its window, or a state.
        """
        layers = self.mechanisms()
        if not all(layer.causal and layer.supports("cache") for layer in layers):
            return None
        return LayerCaches(layer.make_cache(self.limit or sys.maxsize, window=layer.cache_window) for layer in layers)

    def keep_heads(self, heads: Mapping[int, Iterable[int]]) -> Network:
        """A copy with only these heads, which can be saved and loaded.

        Args:
            heads: the heads to keep by layer, both counted from 0 in this network; other layers keep all heads.

        Raises:
            ValueError: for an unknown layer, or heads that `MultiHeadBase.keep_heads` refuses.
            TypeError: for a mechanism without heads, and as `MultiHeadBase.keep_heads`.
        """
        network = copy.deepcopy(self)
        config: Any = self._hub_mixin_config
        left = {int(layer): list(kept) for layer, kept in (config.get("heads") or {}).items()}
        for layer, kept in heads.items():
            block, kept = network._block(layer), list(kept)
            first = left.get(layer, range(as_multihead(block.attention).num_heads))  # indices before any pruning
            block.attention = as_multihead(block.attention).keep_heads(kept)
            left[layer] = [first[head] for head in sorted(kept)]
        network._hub_mixin_config = {**config, "heads": {str(layer): left[layer] for layer in sorted(left)}}
        return network

    def _block(self, layer: int) -> Block:
        validate_indices([layer], len(self.blocks), "layer")
        return self.blocks[layer]  # type: ignore[return-value]

    def _pooled(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        if self.pool == "last":
            return x[:, -1] if lengths is None else x[torch.arange(len(x), device=x.device), lengths - 1]
        if lengths is None:
            return x.mean(1)
        return _zero_padding(x, lengths).sum(1) / lengths.unsqueeze(-1)


def _check_lengths(lengths: Tensor, x: Tensor) -> None:
    if lengths.shape != x.shape[:1]:
        raise ValueError(f"lengths must have shape ({x.shape[0]},), one per sequence, not {tuple(lengths.shape)}")
    if can_inspect_values(lengths) and lengths.numel():
        least, most = int(lengths.min()), int(lengths.max())
        if not 1 <= least <= most <= x.shape[1]:
            raise ValueError(f"lengths must be from 1 to {x.shape[1]}, the length of the batch, not {least} to {most}")


def _zero_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """``x`` (B, N, ...) with zeros in the padding."""
    padded = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
    return x.masked_fill(padded.view(*padded.shape, *[1] * (x.dim() - 2)), 0)


class Cells(nn.Module):
    """Embeds cells: a vector per code, plus, for numbers, the value times a second vector.

    Args:
        size: the number of codes, at most 2^24 because they are stored in float32.
        numbers: the number of codes, from 0, that are numbers.
        embed_dim: D.

    Raises:
        ValueError: for more than 2^24 codes, or more numbers than codes.
    """

    def __init__(self, size: int, numbers: int, embed_dim: int) -> None:
        super().__init__()
        if not 0 <= numbers <= size <= 2**24:
            raise ValueError(f"cells have at most 2^24 codes, and at most as many numbers; not {size} and {numbers}")
        self.numbers = numbers
        self.codes = nn.Embedding(size, embed_dim)
        self.values = nn.Embedding(numbers, embed_dim) if numbers else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, 2) to (B, N, D)."""
        codes = x[..., 0].long()
        out = self.codes(codes)
        if self.values is None:
            return out
        value = x[..., 1].masked_fill(codes >= self.numbers, 0)
        return out + value.unsqueeze(-1) * self.values(codes.clamp(max=self.numbers - 1))


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; no MLP for an ``mlp_width`` of 0."""

    def __init__(self, attention: SequenceMixer, *, mlp_width: int, dropout: float, scale: float) -> None:
        super().__init__()
        D = attention.embed_dim
        attention.scale_output(scale)
        self.norm1 = nn.LayerNorm(D)
        self.attention = attention
        self.drop = nn.Dropout(dropout)
        self.mlp: nn.Sequential | None = None
        if mlp_width:
            out = make_linear(mlp_width, D)
            with torch.no_grad():
                out.weight.mul_(scale)
            self.norm2 = nn.LayerNorm(D)
            self.mlp = nn.Sequential(make_linear(D, mlp_width), nn.GELU(), out)

    def forward(self, x: Tensor, mask: Mask | None, cache: DecodingCache | None = None) -> Tensor:
        """``x`` (B, N, D) to the same shape."""
        x = x + self.drop(self.attention(self.norm1(x), mask=mask, cache=cache))
        if self.mlp is not None:
            x = x + self.drop(self.mlp(self.norm2(x)))
        return x
