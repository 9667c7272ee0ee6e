"""Long sequences on a GPU, simulated on a CPU: no value can be read, and no large matrix may be materialized.

The GPU is simulated by the two functions that tell whether values can be read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mechanisms import REPRESENTATIVES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnlab.catalog import registry
from attnlab.checks.costs import exponent
from attnlab.checks.layer_under_test import LayerUnderTest
from attnlab.masks import BoundMask, Mask, causal, documents, padding, sliding_window
from attnlab.nn.mixer import SequenceMixer
from attnlab.ops import rowwise
from attnlab.ops.backends import sdpa
from attnlab.ops.backends.sdpa import Fused, Kernel
from attnlab.ops.call import AttentionCall
from attnlab.ops.dispatch import record_dispatch
from attnlab.ops.rowwise import GPU_TILE_VALUES, row_tiles
from attnlab.ops.softmax import masked_softmax, softmax_attention
from attnlab.utils import tracing

N = 3001

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}
"""Operations that wait for the values of a GPU."""


@pytest.fixture
def simulated_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in registry.names():
        registry.load(name)
    for function in (tracing.can_inspect_values, tracing.can_inspect_device):
        for module in [*sys.modules.values()]:
            if module is not tracing and vars(module).get(function.__name__) is function:
                monkeypatch.setattr(module, function.__name__, lambda _: False)


class Seen(TorchDispatchMode):
    """The largest tensor of a computation, and the operations that read values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements, self.largest, self.reads = 0, "", list[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        out = func(*args, **(kwargs or {}))
        if name in READS:
            self.reads.append(name)
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and (elements := t.untyped_storage().nbytes() // t.element_size()) > self.elements:
                self.elements, self.largest = elements, f"{name} returns {tuple(t.shape)}"
        return out


@pytest.mark.parametrize("name", registry.names())
def test_no_large_matrix_and_no_read(name: str, simulated_gpu: None) -> None:
    case = LayerUnderTest(registry.load(name))
    layer = case.build(case.causal_choices[-1], dtype=torch.float32)
    assert isinstance(layer, SequenceMixer)
    assert exponent(layer.card.memory, layer, (N, 2 * N)) < 1.1, "the bound below is for n·d"
    mask = padding(torch.tensor([N - 5])) if "padding" in case.capabilities else None
    with torch.no_grad(), Seen() as seen:
        case(layer, case.tokens(1, N, dtype=torch.float32), mask)
    assert seen.elements < N**2 / 2, seen.largest
    assert not seen.reads


def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.backends.tiles.MAX_MATRIX_VALUES", 64)
    monkeypatch.setattr("attnlab.ops.backends.tiles.MATRIX_TILE_VALUES", 64)
    monkeypatch.setattr(rowwise, "MAX_TILE_VALUES", 512)
    monkeypatch.setattr(rowwise, "MIN_TILE_VALUES", 1)


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_tiles_on_a_gpu_match(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    case, outs = LayerUnderTest(registry.load(name)), []
    layer, x = case.build(True, train=True), case.tokens(2, 23).requires_grad_()
    mask = padding(torch.tensor([23, 17]))
    for on_gpu in (False, True):
        if on_gpu:
            request.getfixturevalue("simulated_gpu")
            small_tiles(monkeypatch)
        out = case(layer, x, mask)
        outs.append((out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()], allow_unused=True)))
    torch.testing.assert_close(*outs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize(
    "rule",
    [padding(torch.tensor([131, 97])) & causal(), sliding_window(7), documents(torch.arange(131) // 89)],
    ids=str,
)
def test_matrix_in_tiles_matches(
    rule: Mask, with_sink: bool, simulated_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tiles(monkeypatch)
    q, k, v = (torch.randn(2, 3, 131, 5, dtype=torch.float64) for _ in range(3))
    sink = torch.randn(3, dtype=torch.float64) if with_sink else None
    with record_dispatch() as records:
        out = softmax_attention(q, k, v, rule.bind(131), sink=sink)
    assert records[0].name == "rows"
    scores = (q @ k.mT / 5**0.5).masked_fill(~rule.materialize(131), -torch.inf).exp()
    total = scores.sum(-1, keepdim=True) + (0 if sink is None else sink.exp()[:, None, None])
    torch.testing.assert_close(out, scores / total @ v)


@pytest.mark.parametrize("name", ["multihead", "entmax", "dsa"])
def test_recomputed_tiles_draw_the_same_dropout_on_any_device(
    name: str, simulated_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`checkpoint` keeps the random state of the devices of its arguments."""
    small_tiles(monkeypatch)
    case, devices = LayerUnderTest(registry.load(name)), []
    recorded = torch.utils.checkpoint.checkpoint

    def spy(function: Any, *arguments: Any, **options: Any) -> Any:
        devices.append((options["preserve_rng_state"], {t.device for t in arguments if isinstance(t, Tensor)}))
        return recorded(function, *arguments, **options)

    monkeypatch.setattr("attnlab.ops.backends.tiles.checkpoint", spy)
    x = case.tokens(2, 131).requires_grad_()
    case(case.build(True, train=True, dropout=0.25), x, padding(torch.tensor([131, 97])))
    assert len(devices) > 1
    assert all(device == (True, {x.device}) for device in devices)


@pytest.mark.parametrize("rule", [None, causal(), sliding_window(65)], ids=str)
def test_gpu_tiles_are_few_and_fit(rule: Mask | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A meta tensor stands for one on a GPU."""
    monkeypatch.setattr(rowwise, "has_values", lambda q: True)
    length, cost = 8209, 7
    mask: BoundMask | None = None if rule is None else rule.bind(length)
    tiles = row_tiles(torch.empty(1, 1, length, 3, device="meta"), mask, length, cost)
    sizes = [(rows.stop - rows.start) * (keys.stop - keys.start) for rows, keys in tiles if isinstance(keys, slice)]
    assert sum(rows.stop - rows.start for rows, _ in tiles) == length
    assert max(sizes) * cost <= GPU_TILE_VALUES
    # The last tile, and those at the start of a causal mask, are smaller.
    assert len(sizes) < 2.2 * sum(sizes) * cost / GPU_TILE_VALUES + 2


def test_features_are_padded_for_the_kernels_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(2, 3, 11, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask, sink = sliding_window(5).bind(11), torch.ones(3, dtype=torch.float64)
    widths, kernel = [], torch.nn.functional.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        widths.append((q.shape[-1], k.shape[-1], v.shape[-1]))
        return kernel(q, k, v, **options)

    def run() -> tuple[Tensor, ...]:
        out = torch.cat([softmax_attention(q, k, v, mask), Kernel(0.3, sink)(q, k, v)])
        return out, *torch.autograd.grad(out.square().sum(), [q, k, v])

    expected = run()
    monkeypatch.setattr(sdpa, "missing_features", lambda t: -t.shape[-1] % 8)
    monkeypatch.setattr(sdpa, "can_inspect_values", lambda _: False)
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", spy)
    torch.testing.assert_close(run(), expected)
    assert widths == [(8, 8, 8)] * 2


@pytest.mark.parametrize("width", [5, 8])
def test_calls_without_a_matrix_are_padded_too(width: int) -> None:
    q: Any = SimpleNamespace(shape=(2, 3, 11, width), is_cuda=True)
    assert Fused().applies(AttentionCall(q, q, q)) is (False if width == 8 else None)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_dropout_of_a_traced_layer_may_be_symbolic(dropout: float) -> None:
    def run(q: Tensor, k: Tensor, v: Tensor, *, dropout: float) -> Tensor:
        return rowwise.RowwiseMap(q, k, None, None, masked_softmax).apply(v, dropout=dropout)

    compiled: Callable[..., Tensor] = torch.compile(run, fullgraph=True, dynamic=True, backend="eager")
    for length in (7, 11):
        q, k, v = (torch.randn(2, 3, length, 5) for _ in range(3))
        outs = []
        for function in (run, compiled):
            torch.manual_seed(0)
            outs.append(function(q, k, v, dropout=dropout))
        torch.testing.assert_close(*outs)
