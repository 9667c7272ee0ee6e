"""Approximations of softmax attention, compared with the packages of the same mechanisms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.bench.peers import MissingPeerError, load
from attnlab.bench.timing import TimingConfig, forward
from attnlab.models.linformer import LinformerAttention
from attnlab.models.nystrom import NystromAttention
from benchmarks.results import NotMeasured, Row, speed_row

TITLE = "Linformer and Nyström attention"
ABOUT = (
    "Layers with their projections: one sequence, embed_dim 512, 8 heads, float32, forward. Both sides have the same "
    "parameters, so ours has no biases of queries, keys and values, and the outputs are compared first. k is the "
    "number of projected keys of linformer, and m the number of landmarks of nystrom, here without its convolution. "
    "nystrom-attention divides by norms over all heads, ours by those of each head; all heads get equal weights, so "
    "that both compute the same."
)

LINFORMER, NYSTROM = "linformer", "nystrom-attention"


def rows(
    timing: TimingConfig, N: int = 8192, D: int = 512, H: int = 8, sizes: tuple[int, ...] = (64, 256)
) -> Iterator[Row]:
    """``sizes`` are the values of k and m, which divide N."""
    x = torch.randn(1, N, D)
    for k in sizes:
        yield _row(timing, f"linformer, {N} tokens, k = {k}", LINFORMER, partial(_linformer, N, D, H, k), x)
    for m in sizes:
        yield _row(timing, f"nystrom, {N} tokens, m = {m}", NYSTROM, partial(_nystrom, D, H, m), x)


def _row(
    timing: TimingConfig, case: str, package: str, layers: Callable[[Any], tuple[nn.Module, nn.Module]], x: Tensor
) -> Row:
    try:
        ours, theirs = (partial(layer.eval(), x) for layer in layers(load(package)))
    except MissingPeerError as error:
        return NotMeasured(case, package, text=str(error), goal=package)
    with torch.inference_mode():
        torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-5)
    return speed_row(timing, case, package, forward(ours), forward(theirs), 1.0, package)


@torch.no_grad()
def _linformer(N: int, D: int, H: int, k: int, package: Any) -> tuple[nn.Module, nn.Module]:
    theirs = package.LinformerSelfAttention(D, N, k=k, heads=H)
    ours = LinformerAttention(D, H, max_length=N, rank=k)
    ours.qkv.register_parameter("bias", None)
    ours.qkv.weight.copy_(torch.cat([part.weight for part in (theirs.to_q, theirs.to_k, theirs.to_v)]))
    ours.output.load_state_dict(theirs.to_out.state_dict())
    ours.E.copy_(theirs.proj_k.T)
    ours.get_parameter("F").copy_(theirs.proj_v.T)
    return ours, theirs


@torch.no_grad()
def _nystrom(D: int, H: int, m: int, package: Any) -> tuple[nn.Module, nn.Module]:
    theirs = package.NystromAttention(D, dim_head=D // H, heads=H, num_landmarks=m, residual=False)
    heads = theirs.to_qkv.weight.view(3, H, D // H, D)
    heads.copy_(heads[:, :1].clone().expand_as(heads))
    ours = NystromAttention(D, H, num_landmarks=m)
    ours.qkv.register_parameter("bias", None)
    ours.qkv.weight.copy_(theirs.to_qkv.weight)
    ours.output.load_state_dict(theirs.to_out[0].state_dict())
    return ours, theirs
