"""Measure models against the first of them: time by interleaved rounds, peak memory in a process of its own."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor, nn

from attnlab.bench.memory import Case, MemoryProcess, OutOfMemoryError, Peak, limited, plain_error
from attnlab.bench.timing import FULL, Ratio, TimingConfig, clock_for, interleave, ratios
from attnlab.bench.workloads import PHASES, Phase, Workload, workload
from attnlab.nn.card import UnsupportedError
from attnlab.training.hardware import autocast
from attnlab.training.settings import Hardware
from attnlab.utils.errors import UserError
from attnlab.utils.escape import one_line

Progress = Callable[[str], None]
"""Called with what is measured next."""


@dataclass(frozen=True)
class Row:
    """One model in one case.

    Args:
        model: its label.
        parameters: their number.
        seconds: the median time of a call; None if it could not be measured.
        ratio: the time of a call over that of the first model, by rounds; None for models that were not measured.
        tokens_per_second: the tokens of all sequences that are processed per second.
        peak_bytes: the memory that a call allocates at most, in addition to parameters, gradients and input; in
            decoding it includes the caches. None if it was not measured.
        cache_bytes: the memory of the caches in decoding; None in other phases.
        reason: why a value is None, in one line.
    """

    model: str
    parameters: int
    seconds: float | None = None
    ratio: Ratio | None = None
    tokens_per_second: float | None = None
    peak_bytes: int | None = None
    cache_bytes: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Group:
    """The models in one case, measured in the same rounds.

    Args:
        phase: training, prefill or decode.
        length: the tokens per sequence; in decoding those that are cached.
        batch_size: the sequences.
        rows: one per model, in their order.
        control: the ratio of two runs of the first model that was measured, which shows the noise.
    """

    phase: Phase
    length: int
    batch_size: int
    rows: list[Row] = field(default_factory=list)
    control: Ratio | None = None

    @property
    def baseline(self) -> str | None:
        """The model that the ratios refer to: the first that was measured."""
        return next((row.model for row in self.rows if row.seconds is not None), None)


def measure(
    models: Mapping[str, nn.Module],
    batch: Tensor,
    *,
    phases: Sequence[Phase] = PHASES,
    timing: TimingConfig | None = None,
    memory: bool = True,
    hardware: Hardware | None = None,
    progress: Progress = lambda _: None,
) -> list[Group]:
    """Return one `Group` per phase, with one row per model.

    All models are timed in the same rounds, and compared with the first by the median of the ratios of the rounds. A
    case that a model does not support, or that needs more memory than there is, is a row with the reason. The models
    keep their training mode, and their gradients are cleared.

    Args:
        models: by label: a `Network`, `Layers`, or any module that maps the batch to a tensor.
        batch: (B, N, ...), on the device of the models. In decoding, its last token is decoded after all others.
        phases: of training, prefill and decode; see `attnlab.bench.workloads.workload`.
        timing: how long to measure; by default 8 seconds per phase, in 5 to 41 rounds. Its default clock is replaced
            by that of the device: CPU time of this process for one thread, wall time for several or on a GPU.
        memory: also measure peak memory, in another process, which imports the models by their modules.
        hardware: its ``precision`` is that of the forward passes (mixed precision); float32 by default.
        progress: called with what is measured next.
    """
    hardware = hardware or Hardware()
    timing = timing or FULL
    if timing.clock is FULL.clock:
        timing = replace(timing, clock=clock_for(batch.device))
    with ExitStack() as stack:
        process = stack.enter_context(MemoryProcess()) if memory else None
        return [measure_group(models, batch, phase, timing, process, hardware, progress) for phase in phases]


def measure_group(
    models: Mapping[str, nn.Module],
    batch: Tensor,
    phase: Phase,
    timing: TimingConfig,
    process: MemoryProcess | None,
    hardware: Hardware,
    progress: Progress,
) -> Group:
    """Return the models in one phase; see `measure`. Peak memory is measured if there is a ``process``."""
    batch_size, length = batch.shape[0], batch.shape[1] - (phase == "decode")
    tokens = batch_size * (1 if phase == "decode" else length)
    rows: dict[str, Row] = {}
    workloads: dict[str, Workload] = {}
    with ExitStack() as stack:
        stack.enter_context(limited(batch.device))
        for label, model in models.items():
            progress(f"{phase}, {batch_size} × {length:,} tokens: {label}")
            stack.enter_context(_restored(model))
            row = Row(label, sum(p.numel() for p in model.parameters()))
            fits = True
            if process is not None:
                try:
                    peak = process.peak(Case(model, batch, phase, hardware))
                    row = _with_memory(row, peak, phase)
                except Exception as error:
                    fits, row = not isinstance(error, OutOfMemoryError), replace(row, reason=reason(error))
            if fits:
                try:
                    work = workload(model, batch, phase, partial(autocast, hardware, batch.device))
                    work()
                    workloads[label] = work
                except Exception as error:
                    row = replace(row, reason=reason(error))
            rows[label] = row
        if not workloads:
            return Group(phase, length, batch_size, list(rows.values()))
        progress(f"{phase}, {batch_size} × {length:,} tokens: timing")
        try:
            seconds = interleave(list(workloads.values()), timing)
        except Exception as error:  # each ran once before, so together they need too much memory
            rows |= {label: replace(rows[label], reason=reason(error)) for label in workloads}
            return Group(phase, length, batch_size, list(rows.values()))
        *compared, control = ratios(seconds)
        for label, times, ratio in zip(workloads, seconds, compared, strict=False):
            median = statistics.median(times)
            speed = tokens / median if median else None  # a coarse clock
            rows[label] = replace(rows[label], seconds=median, ratio=ratio, tokens_per_second=speed)
    return Group(phase, length, batch_size, list(rows.values()), control)


def reason(error: Exception) -> str:
    """Why a case could not be measured, in one line."""
    error = plain_error(error)
    text = one_line((str(error).splitlines() or [""])[0])[:300]
    known = isinstance(error, UnsupportedError | UserError | OutOfMemoryError | ValueError)
    return text if known and text else f"{type(error).__name__}: {text}"


def _with_memory(row: Row, peak: Peak, phase: Phase) -> Row:
    return replace(row, peak_bytes=peak.allocated, cache_bytes=peak.caches if phase == "decode" else None)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Give the model its training mode back, and clear the gradients."""
    training = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        for module, was_training in training:
            module.training = was_training
