"""Linear recurrences: the functions against those of transformers and fla, and whole layers against full attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab import ops
from attnlab.bench.crossover import crossing
from attnlab.bench.peers import MissingPeerError, adapter, load
from attnlab.bench.timing import TimingConfig, Workload, backward, forward, median_seconds, time_interleaved
from attnlab.bench.workloads import Layers, workload
from attnlab.catalog import registry
from attnlab.checks import allocations
from attnlab.nn.attention import Attention
from attnlab.nn.cache import RecurrentState
from benchmarks.results import Growth, Memory, Note, NotMeasured, Row, Speed, speed_row

TITLE = "Linear recurrences"
ABOUT = (
    "One sequence, float32; the outputs are compared first. *transformers* is its plain PyTorch code, which runs where "
    "the kernels of fla and mamba-ssm cannot: the gated delta rule of Qwen3-Next with 4 heads of queries and 8 of "
    "values, 128 wide, and the scan of Mamba-2 with 8 heads of 64, one group and a state of 128. *fla, naive* are the "
    "PyTorch functions of fla-core, chunked where there is such a form, with 4 heads of 64. Layers have embed_dim 512 "
    "and 8 heads, all other options at their defaults; *multihead* is our causal softmax attention. Training is a "
    "forward and a backward pass. Growth is measured with embed_dim 256 and 4 heads."
)


@dataclass(frozen=True)
class Sizes:
    """The lengths; ``chunked`` must be a multiple of 64 for the functions of fla."""

    delta: int = 4096
    chunked: int = 2048
    crossover: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    growth: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768)
    context: int = 8192
    embed_dim: int = 512
    num_heads: int = 8


CROSSOVER = 1024
"""The length from which each recurrence should be faster in training."""

GROWTH_LIMIT = 1.15


@dataclass(frozen=True)
class Naive:
    """A function of ``fla/ops/OPERATION/naive.py``, and the names of its arguments by ours."""

    operation: str
    function: str
    names: dict[str, str]
    heads_first: bool = False
    form: str = "chunked"


QKV = {"q": "q", "k": "k", "v": "v"}
NAIVE = {
    "linear_attention": Naive("linear_attn", "naive_chunk_linear_attn", QKV),
    "retention": Naive("retention", "naive_retention", QKV, heads_first=True, form="parallel"),
    "simple_gla": Naive("simple_gla", "naive_chunk_simple_gla", QKV | {"g": "g"}),
    "gla": Naive("gla", "naive_recurrent_gla", QKV | {"g": "gk"}, form="step by step"),
    "delta_rule": Naive("delta_rule", "delta_rule_chunkwise", QKV | {"beta": "beta"}, heads_first=True),
    "gated_delta_rule": Naive("gated_delta_rule", "naive_chunk_gated_delta_rule", QKV | {"g": "g", "beta": "beta"}),
    "kda": Naive("kda", "naive_chunk_kda", QKV | {"g": "g", "beta": "beta"}),
    "rwkv7": Naive(
        "generalized_delta_rule/dplr",
        "dplr_chunkwise",
        {"r": "q", "w": "gk", "k": "k", "v": "v", "a": "alpha", "b": "beta"},
        heads_first=True,
    ),
}
PER_CHANNEL = ("gla", "kda")


def rows(timing: TimingConfig, sizes: Sizes = Sizes(), names: tuple[str, ...] | None = None) -> Iterator[Row]:
    """Functions against other libraries, then every mechanism of the catalogue with a recurrent state."""
    yield from _delta_of_transformers(timing, sizes.delta)
    yield _mamba_of_transformers(timing, sizes.chunked)
    yield from _functions_of_fla(timing, sizes.chunked)
    names = tuple(n for n in names or registry.names() if registry.load(n).cache_type is RecurrentState)
    for name in names:
        yield _crossover(timing, name, sizes)
    for name in names:
        yield from _growth(timing, name, sizes)
    for name in names:
        yield from _decoding(timing, name, sizes)


# Functions


def _delta_of_transformers(timing: TimingConfig, N: int) -> Iterator[Row]:
    baseline = "transformers, Qwen3-Next"
    case = f"gated delta rule, {N:,} tokens"
    modes = {"forward": (forward, 1.5), "training": (backward, 1.3)}
    try:
        module = load("transformers", "transformers.models.qwen3_next.modeling_qwen3_next")
    except MissingPeerError as error:
        for mode in modes:
            yield NotMeasured(f"{case}, {mode}", baseline, text=str(error), goal="transformers-delta")
        return
    q, k = torch.randn(2, 1, N, 4, 128)
    v = torch.randn(1, N, 8, 128)
    g, beta = F.logsigmoid(torch.randn(1, N, 8) + 3), torch.rand(1, N, 8)
    tensors = [x.requires_grad_() for x in (q, k, v, g, beta)]
    for mode, (run, target) in modes.items():
        ours = partial(_first, ops.gated_delta_rule, *tensors, use_qk_l2norm_in_kernel=True)
        theirs = partial(_first, module.torch_chunk_gated_delta_rule, *tensors, use_qk_l2norm_in_kernel=True)
        _compare(ours, theirs)
        yield speed_row(timing, f"{case}, {mode}", baseline, run(ours), run(theirs), target, "transformers-delta")


def _mamba_of_transformers(timing: TimingConfig, N: int) -> Row:
    case, baseline = f"scan of Mamba-2, {N:,} tokens, forward", "transformers, Mamba-2"
    try:
        module = load("transformers", "transformers.models.mamba2.modeling_mamba2")
    except MissingPeerError as error:
        return NotMeasured(case, baseline, text=str(error), goal="transformers-mamba2")
    x, dt, A, (B, C) = (
        torch.randn(1, N, 8, 64),
        torch.rand(1, N, 8) / 10,
        -4 * torch.rand(8),
        torch.randn(2, 1, N, 1, 128),
    )

    def ours() -> Tensor:
        return ops.simple_gla(C, B, x * dt.unsqueeze(-1), A * dt, scale=1.0)[0]

    theirs = partial(module.mamba2_chunk_scan, x, dt, A, B, C, chunk_size=256)
    _compare(ours, theirs)
    return speed_row(timing, case, baseline, forward(ours), forward(theirs), 1.5, "transformers-mamba2")


def _functions_of_fla(timing: TimingConfig, N: int) -> Iterator[Row]:
    for name, naive in NAIVE.items():
        case, baseline = f"{name}, {N:,} tokens, forward", f"fla, naive, {naive.form}"
        try:
            load("einops")
            function = adapter("fla-core").naive(naive.operation, naive.function)
        except MissingPeerError as error:
            yield NotMeasured(case, baseline, text=str(error), goal="fla")
            continue
        inputs = _inputs(name, N)
        theirs_inputs = {naive.names[n]: x.transpose(1, 2) if naive.heads_first else x for n, x in inputs.items()}
        ours = partial(_first, getattr(ops, name), **inputs, scale=inputs["k"].shape[-1] ** -0.5)

        def theirs(
            function: Callable[..., Any] = function, inputs: dict[str, Tensor] = theirs_inputs, naive: Naive = naive
        ) -> Tensor:
            out = _first(function, **inputs)
            return out.transpose(1, 2) if naive.heads_first else out

        _compare(ours, theirs)
        yield speed_row(timing, case, baseline, forward(ours), forward(theirs), 2.0, "fla")


def _inputs(name: str, N: int, H: int = 4, d: int = 64) -> dict[str, Tensor]:
    """The arguments of one of our functions, (1, N, H, d) or (1, N, H)."""
    q, k, v = torch.randn(3, 1, N, H, d)
    k, channels = F.normalize(k, dim=-1), F.logsigmoid(torch.randn(1, N, H, d) + 3)
    if name == "rwkv7":
        return {"r": q, "w": channels, "k": k, "v": v, "a": -k, "b": k * torch.rand(1, N, H, 1) / 2}
    gates = {"g": channels if name in PER_CHANNEL else channels[..., 0].contiguous(), "beta": torch.rand(1, N, H)}
    return {"q": q, "k": k, "v": v} | {n: x for n, x in gates.items() if n in NAIVE[name].names}


def _first(function: Callable[..., Any], *args: Any, **options: Any) -> Tensor:
    """The outputs of a function that may return a state too."""
    result = function(*args, **options)
    out: Tensor = result[0] if isinstance(result, tuple) else result
    return out


def _compare(ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> None:
    with torch.inference_mode():
        expected = theirs()
        torch.testing.assert_close(ours(), expected, rtol=1e-4, atol=1e-5 * max(1.0, expected.abs().max().item()))


# Layers


def _layer(name: str, embed_dim: int, num_heads: int) -> Attention:
    torch.manual_seed(0)
    mechanism = registry.load(name)
    options = {"num_heads": num_heads} if mechanism.card.heads != "1" else {}
    layer: Attention = mechanism(embed_dim, causal=True, **options)
    return layer


def _training(layer: Attention, N: int, embed_dim: int) -> Workload:
    return backward(partial(layer, torch.randn(1, N, embed_dim, requires_grad=True)))


def _crossover(timing: TimingConfig, name: str, sizes: Sizes) -> Row:
    """The length from which the layer trains faster than multihead: where the ratio of their times last passes 1."""
    layers = [_layer(n, sizes.embed_dim, sizes.num_heads) for n in (name, "multihead")]
    timing = replace(timing, budget=timing.budget / 2)
    ratios, controls = {}, {}
    for N in sizes.crossover:
        ours, theirs = (_training(layer, N, sizes.embed_dim) for layer in layers)
        found, controls[N] = time_interleaved(ours, {"multihead": theirs}, timing)
        ratios[N] = found["multihead"]
    length = crossing(sizes.crossover, [ratio.median for ratio in ratios.values()])
    shortest, longest = sizes.crossover[0], sizes.crossover[-1]
    if length is None:
        text = f"not faster up to {longest:,} tokens"
    else:
        text = f"faster from {'about' if length > shortest else 'at most'} {length:,.0f} tokens on"
    speeds = ", ".join(f"{ratio.median:.2f}× at {N:,}" for N, ratio in ratios.items())
    values = {str(N): [r.lower, r.median, r.upper, controls[N].lower, controls[N].upper] for N, r in ratios.items()}
    met, required = length is not None and length <= CROSSOVER, f"at most {CROSSOVER:,} tokens"
    return Note(
        f"{name}, training",
        "multihead",
        text=f"{text} ({speeds})",
        requirement=required,
        is_met=met,
        values=values,
        goal="crossover",
    )


def _growth(timing: TimingConfig, name: str, sizes: Sizes) -> Iterator[Row]:
    D = sizes.embed_dim // 2
    layer = _layer(name, D, sizes.num_heads // 2)
    workloads = {N: _training(layer, N, D) for N in sizes.growth}
    times = median_seconds(workloads, replace(timing, min_rounds=3))
    peaks = {N: float(allocations.peak(work)) for N, work in workloads.items()}
    for quantity, values in {"time": times, "peak memory": peaks}.items():
        yield Growth(
            f"{name}, training",
            quantity=quantity,
            lengths=list(sizes.growth),
            values=[values[N] for N in sizes.growth],
            limit=GROWTH_LIMIT,
            goal="recurrent-growth",
        )


def _decoding(timing: TimingConfig, name: str, sizes: Sizes) -> Iterator[Row]:
    """One token after a context: the time of a step, and the memory of the cache."""
    x = torch.randn(1, sizes.context + 1, sizes.embed_dim)
    layers = [_layer(n, sizes.embed_dim, sizes.num_heads) for n in (name, "multihead")]
    ours, theirs = (workload(Layers([layer]), x, "decode") for layer in layers)
    case = f"{name}, one token after {sizes.context:,}"
    ratios, control = time_interleaved(ours, {"multihead": theirs}, timing)
    yield Speed(case, "multihead", ratio=ratios["multihead"], control=control, target=1.0, goal="recurrent-decoding")
    yield Memory(
        f"{case}, cache",
        "multihead",
        ours=ours.cache_bytes,
        theirs=theirs.cache_bytes,
        target=10.0,
        goal="recurrent-decoding",
    )
