"""Answers the requests of a page: views, matrices, arithmetic, states and files, from forward passes that are kept.

Axes: H heads, N queries, M keys.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from attnlab.explore import codes, forward, summaries
from attnlab.explore.forward import LayerPass, Pass
from attnlab.explore.networks import make_subject
from attnlab.explore.run_networks import version
from attnlab.explore.setup import (
    Ablation,
    Cell,
    CellRequest,
    HeadRequest,
    Layer,
    Line,
    MapRequest,
    Setup,
    State,
    View,
)
from attnlab.explore.shelf import Shelf
from attnlab.explore.subject import Subject
from attnlab.files.data import memory_limit
from attnlab.nn.attention import Attention, UnsupportedError
from attnlab.nn.mixer import SequenceMixer
from attnlab.ops.arithmetic import Arithmetic
from attnlab.ops.scan.states import StateTrace
from attnlab.utils.errors import UserError

THUMBNAIL = 64
"""The largest number of rows and columns of a thumbnail."""

MAX_PASSES = 8
"""Forward passes that are kept."""

FLOPS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
"""What PyTorch's counter lacks. Masked pairs are counted too, elementwise operations are not."""

TOP = 5
"""Predictions that are shown."""

T = TypeVar("T")


class Explorer:
    """Keeps networks and forward passes, and answers requests; safe to use from several threads.

    Args:
        shelf: the runs and the uploads.
    """

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.lock = threading.RLock()
        """Held while something is computed."""
        self._cache_lock = threading.RLock()
        self._passes: OrderedDict[str, Pass] = OrderedDict()
        self._answers: OrderedDict[str, Any] = OrderedDict()

    def view(self, setup: Setup) -> View:
        """Return what the page shows of a setup besides the matrices.

        Raises:
            UserError: for a setup that cannot be built or is too large.
        """
        return self._both(setup)[0]

    def thumbnails(self, setup: Setup) -> bytes:
        """Return the codes of the thumbnails of all heads: layer by layer, head by head, row-major; see `codes`."""
        return self._both(setup)[1]

    def known(self, setup: Setup) -> tuple[View, bytes] | None:
        """Return the view and the thumbnails of a setup that was viewed lately, without waiting; None for another."""
        with self._cache_lock:
            known: tuple[View, bytes] | None = self._answers.get(f"view {self._key(setup)}")
            return known

    def prepare(self, setup: Setup) -> None:
        """Build the network of a setup, and train it if need be; it is kept."""
        if self._kept_pass(self._key(setup)) is None:
            make_subject(setup, self.shelf)

    def _key(self, setup: Setup) -> str:
        """The setup as text, with the version of a network that may still be in training."""
        return f"{version(setup.source, self.shelf)} {setup.key()}"

    def _both(self, setup: Setup) -> tuple[View, bytes]:
        self.run(setup)
        return self._answer(f"view {self._key(setup)}", lambda: self._view(setup))

    def matrix(self, request: MapRequest) -> Tensor:
        """Return a part of the weights of a head, pooled to the size that was asked for, float32."""
        self.run(request.setup)
        with self.lock:
            layer = self.layer(request)
            N, M = layer.shape
            queries, keys = (_range(part, size) for part, size in ((request.queries, N), (request.keys, M)))
            return layer.pooled(queries, keys, request.size, request.head)[0]

    def cell(self, request: CellRequest) -> Cell:
        """Return the arithmetic of one weight."""
        self.run(request.setup)
        with self.lock:
            layer = self.layer(request)
            N, M = layer.shape
            if request.query >= N or request.key >= M:
                raise UserError(f"there is no cell ({request.query}, {request.key}) in a matrix of {N} × {M}")
            assert layer.map is not None
            arithmetic = layer.map.arithmetic(request.head, request.query, request.key)
            weight = float(layer.weights(torch.tensor([request.query]))[request.head, 0, request.key])
            contribution, note = self._contribution(layer, request, arithmetic.result)
            if (request.layer, request.head) in request.setup.ablated:
                note = "this head is left out of the output; otherwise it would add this"
            if layer.shown is not None:
                _renormalize(arithmetic, layer, request)
            return Cell(
                weight=weight,
                lines=[Line(name=x.name, code=x.code, value=x.value, meaning=x.meaning) for x in arithmetic.lines],
                python=arithmetic.python(),
                contribution=contribution,
                note=note,
            )

    def state(self, request: HeadRequest) -> State:
        """Return the recurrent state of a head after each token."""
        self.run(request.setup)
        with self.lock:
            layer = self.layer(request)
            if not has_state(layer):
                raise UserError(f"{layer.layer.card.title} keeps no recurrent state")
            assert isinstance(layer.layer, Attention)
            assert layer.map is not None
            values = layer.layer.values(layer.x, mask=layer.mask)
            try:
                trace: StateTrace = layer.map.states(values, request.head)  # type: ignore[attr-defined]
            except RuntimeError:  # of the singular values of a matrix that is not finite
                raise UserError(f"the state of head {request.head} is not finite, so it has no rank") from None
            return State(
                **asdict(trace),
                note="norms are Frobenius norms of the state matrix; the rank counts singular values above 1 % of the "
                "largest",
            )

    def ablation(self, request: HeadRequest) -> Ablation:
        """Return the relative change of the network's output without each head of a layer, one at a time."""
        self.run(request.setup)
        return self._answer(
            f"ablation {request.layer} {self._key(request.setup)}", lambda: self._ablation(request.setup, request.layer)
        )

    def run(self, setup: Setup) -> Pass:
        """Return the forward pass of a setup.

        Call it without the lock first: a network may be trained, for seconds, while other requests are answered.
        """
        key = self._key(setup)
        if (kept := self._kept_pass(key)) is not None:
            return kept
        subject = make_subject(setup, self.shelf)
        with self.lock:
            if (kept := self._kept_pass(key)) is not None:
                return kept
            check_size(subject)
            result = forward.run(subject, setup, keep=kept_bytes(subject) <= memory_limit())
            with self._cache_lock:
                self._passes[key] = result
                while len(self._passes) > MAX_PASSES or (len(self._passes) > 1 and self._size() > memory_limit()):
                    self._passes.popitem(last=False)
            return result

    def _kept_pass(self, key: str) -> Pass | None:
        with self._cache_lock:
            if key in self._passes:
                self._passes.move_to_end(key)
            return self._passes.get(key)

    def _size(self) -> int:
        """The bytes of the passes that are kept."""
        return sum(
            (kept_bytes if all(layer.keep for layer in kept.layers) else _activations)(kept.subject)
            for kept in self._passes.values()
        )

    def _answer(self, key: str, compute: Callable[[], T]) -> T:
        with self.lock:
            if key not in self._answers:
                made = compute()
                with self._cache_lock:
                    self._answers[key] = made
                    while len(self._answers) > 4 * MAX_PASSES:
                        self._answers.popitem(last=False)
            with self._cache_lock:
                self._answers.move_to_end(key)
                answer: T = self._answers[key]
                return answer

    def layer(self, request: HeadRequest) -> LayerPass:
        """Return the layer of a request, which has weights and the head."""
        layers = self.run(request.setup).layers
        if request.layer >= len(layers):
            raise UserError(f"there is no layer {request.layer}; the network has {len(layers)}, counted from 0")
        layer = layers[request.layer]
        if layer.map is None:
            raise UserError(f"layer {request.layer}, {layer.layer.card.title}, has no attention weights")
        if request.head >= layer.map.shape[1]:
            raise UserError(
                f"there is no head {request.head}; layer {request.layer} has {layer.map.shape[1]}, counted from 0"
            )
        return layer

    def _unchanged(self, setup: Setup) -> Pass | None:
        """The pass of the same network and input without changes; None if the setup has none."""
        plain = setup.model_copy(update={name: Setup.model_fields[name].default for name in CHANGES})
        return None if plain == setup else self.run(plain)

    def _view(self, setup: Setup) -> tuple[View, bytes]:
        """The view and its thumbnails, whose units it holds."""
        result = self.run(setup)
        plain = self._unchanged(setup)
        tokens = result.subject.tokens
        unchanged = plain or result
        costs = self._answer(
            f"costs {version(setup.source, self.shelf)} {setup.source!r} {setup.input!r}",
            lambda: [_cost(layer) for layer in unchanged.layers],
        )
        before: list[Any] = [None] * len(result.layers) if plain is None else plain.layers
        drawn = [_thumbnails(layer) for layer in result.layers]
        view = View(
            tokens=list(tokens),
            special=list(result.subject.special) or [False] * len(tokens),
            layers=[
                _layer(layer, tokens, cost, old, peaks)
                for layer, cost, old, (_, peaks) in zip(result.layers, costs, before, drawn, strict=True)
            ],
            prediction=_prediction(result),
            output_change=None if plain is None else _change(result.output, plain.output),
            notes=[*result.subject.notes, *result.notes, *_sampled(result)],
            image=None if result.subject.image is None else [list(row) for row in result.subject.image],
            patches=None if result.subject.patches is None else list(result.subject.patches),
        )
        return view, b"".join(data for data, _ in drawn)

    def _ablation(self, setup: Setup, layer: int) -> Ablation:
        whole = self.run(setup)
        if layer >= len(whole.layers):
            raise UserError(f"there is no layer {layer}; the network has {len(whole.layers)}, counted from 0")
        if whole.layers[layer].map is None:
            raise UserError(f"layer {layer} has no attention weights, so its heads cannot be removed one by one")
        changes = []
        for head in range(whole.layers[layer].layer.num_heads):
            without = setup.model_copy(update={"ablated": (*setup.ablated, (layer, head))})
            changes.append(_change(forward.run(whole.subject, without).output, whole.output))
        note = "‖output without the head − output‖ / ‖output‖, one head at a time, on this input only"
        return Ablation(output_change=changes, note=note)

    def _contribution(self, layer: LayerPass, request: CellRequest, weight: float) -> tuple[list[float] | None, str]:
        """Weight · value, or why there is none."""
        assert isinstance(layer.layer, Attention)
        try:
            values = layer.layer.values(layer.x, mask=layer.mask)
        except UnsupportedError as error:
            return None, str(error)
        head = request.head if values.shape[1] > 1 else 0
        return (weight * values[0, head, request.key].float()).tolist(), ""


def _renormalize(arithmetic: Arithmetic, layer: LayerPass, request: CellRequest) -> None:
    """Add the lines from a weight to the one that is shown where special tokens are hidden."""
    assert layer.shown is not None
    assert layer.map is not None
    weight = arithmetic.last
    if not (layer.shown[request.query] and layer.shown[request.key]):
        arithmetic.compute("hidden", f"0.0 * {weight}", "special tokens are hidden")
        return
    if layer.is_signed:
        return
    weights = layer.map.materialize([request.query], [request.head])[0, 0, 0]
    lines = arithmetic.part("_shown")
    total = lines.given("sum_of_row", weights.sum(), "the sum of the weights of the row")
    kept = lines.given("sum", (weights * layer.shown).sum(), "the sum of those on keys that are shown")
    lines.compute("weight", f"{weight} * {total} / {kept}", "renormalized over the keys that are shown")


CHANGES = ("mask", "scores", "ablated")
"""The fields of a setup that change the attention of a network."""


def kept_bytes(subject: Subject) -> int:
    """The bytes of a pass that is kept: the matrices, also while they are computed, and the activations."""
    length = len(subject.tokens)
    heads = sum(layer.num_heads for layer in subject.layers)
    return _activations(subject) + (8 * heads * length * length if length <= forward.MAX_DETAIL else 0)


def required_bytes(subject: Subject) -> int:
    """The bytes that a view needs at least: the matrices of one layer, which are pooled beyond `forward.MAX_DETAIL`."""
    length, largest = len(subject.tokens), max((layer.num_heads for layer in subject.layers), default=0)
    if length <= forward.MAX_DETAIL:
        return _activations(subject) + 8 * largest * length * length
    return _activations(subject) + 12 * largest * length * THUMBNAIL + 16 * forward.CHUNK_VALUES


def _activations(subject: Subject) -> int:
    """Input, output, queries, keys and values of every layer."""
    return 20 * len(subject.tokens) * sum(layer.embed_dim for layer in subject.layers)


def check_size(subject: Subject) -> None:
    """Raise UserError for a subject that needs more than a quarter of the memory."""
    needed = required_bytes(subject)
    if needed > memory_limit():
        raise UserError(
            f"{len(subject.layers)} layers over {len(subject.tokens):,} tokens take {needed:,} bytes, more than a "
            f"quarter of this machine's memory ({memory_limit():,}); give a shorter input, or fewer layers or heads"
        )


def has_state(layer: LayerPass) -> bool:
    """Whether the state of the layer can be shown."""
    return hasattr(layer.map, "states")


def _thumbnails(layer: LayerPass) -> tuple[bytes, list[float]]:
    """The codes of the thumbnails of a layer, and the unit of each head."""
    if layer.map is None:
        return b"", []
    small = layer.pooled(slice(0, layer.shape[0]), slice(0, layer.shape[1]), THUMBNAIL)
    peaks = small.abs().amax((1, 2))
    return codes.encode(small, peaks[:, None, None], signed=layer.is_signed).numpy().tobytes(), peaks.tolist()


def _layer(
    layer: LayerPass,
    tokens: tuple[str, ...],
    cost: tuple[float | None, float | None],
    old: LayerPass | None,
    peaks: list[float],
) -> Layer:
    module, heads = layer.layer, summaries.summarize(layer, tokens)
    heads = [head.model_copy(update={"thumbnail_peak": peak}) for head, peak in zip(heads, peaks, strict=True)]
    flops, state_bytes = cost
    name = type(module).__module__.rpartition(".")[2]
    size = (0, 0) if layer.map is None else tuple(min(THUMBNAIL, _blocks(n)) for n in layer.shape)
    return Layer(
        mechanism=name,
        title=module.card.title,
        weights="no weights" if layer.map is None else "implied weights" if layer.map.implied else "true weights",
        signed=layer.is_signed,
        note=_note(layer),
        num_heads=module.num_heads,
        has_state=has_state(layer),
        changes=[] if layer.map is None else sorted({*layer.map.changes, "top_k"}),
        masks=_masks(module),
        heads=heads,
        thumbnail=(size[0], size[1]),
        output_change=None if old is None else _change(layer.output, old.output),
        flops=flops,
        state_bytes=state_bytes,
    )


def _masks(layer: SequenceMixer) -> list[str]:
    """The fields of a `MaskChange` that a layer supports."""
    if not layer.supports("arbitrary_mask"):
        return ["documents"] if layer.supports("segments") else []
    return ["window", *([] if layer.card.always_causal else ["prefix"]), "documents", "blocked"]


def _sampled(result: Pass) -> list[str]:
    """A note about summaries of some queries."""
    count = len(result.subject.tokens)
    if all(layer.is_kept for layer in result.layers) or count <= summaries.MAX_QUERIES:
        return []
    return [f"the summaries of the heads are those of {summaries.MAX_QUERIES} of the {count:,} queries, evenly spaced"]


def _blocks(length: int) -> int:
    """The number of blocks of a thumbnail, which are of equal size but for the last."""
    return math.ceil(length / math.ceil(length / THUMBNAIL)) if length else 0


def _note(layer: LayerPass) -> str:
    if layer.map is None:
        return f"{layer.layer.card.title} has no attention weights: its output is not a weighted sum of values"
    if layer.map.implied:
        return "the mechanism never computes these weights; they are the matrix that its formula applies to the values"
    return ""


def _change(new: Tensor, old: Tensor) -> float:
    size = float(old.norm())
    return float((new - old).norm()) / size if size else 0.0


def _prediction(result: Pass) -> list[tuple[str, float]]:
    names = result.subject.classes
    if not names:
        return []
    scores = result.output if result.output.dim() == 1 else result.output[-1]
    best = scores.double().softmax(-1).topk(min(TOP, len(names)))
    return [(names[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


def _cost(layer: LayerPass) -> tuple[float | None, float | None]:
    """The floating-point operations of the layer on its input, and the bytes of its cache or state per token."""
    with torch.no_grad():
        counter = FlopCounterMode(display=False, custom_mapping=FLOPS)
        with counter:
            layer.layer(layer.x, mask=layer.mask)
        return float(counter.get_total_flops()), _state_bytes(layer.layer, layer.x)


def _state_bytes(layer: SequenceMixer, x: Tensor) -> float | None:
    if not (layer.supports("cache") and layer.causal):
        return None
    cache = layer.make_cache(x.shape[1])
    layer(x, cache=cache)
    return float(cache.bytes_per_token or cache.bytes / x.shape[1])


def _range(asked: tuple[int, int] | None, size: int) -> slice:
    if asked is None:
        return slice(0, size)
    if not 0 <= asked[0] < asked[1] <= size:
        raise UserError(f"the range {asked[0]} to {asked[1]} is not within 0 to {size}")
    return slice(*asked)
