"""Outside of eager Python it answers the same: compiled and exported, whatever the batch and the length."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.checks.capabilities import Broken, NotClaimed
from attnlab.checks.layer import B, N, Subject, as_matrix, first_line
from attnlab.checks.probes import difference, said, worst
from attnlab.checks.registry import Measure, promise
from attnlab.masks import padding
from attnlab.utils.extras import MissingExtraError, need

SAME = 1e-9
"""Compiled sums run in another order than eager ones."""

LENGTHS = (N, N + 4, 2 * N + 3)

SIZES = ((B, N), (B - 1, N + 4), (B + 3, 2 * N + 3), (B, 2))
"""Items and tokens that are asked of what was exported with the first."""


@promise("torch.compile = eager", slow=True)
def compiled(subject: Subject) -> Measure:
    """The difference in outputs and gradients, in one graph for every length; in several, where export is not claimed.

    By inductor on an accelerator, or where there is a C++ compiler for it; else by aot_eager.
    """
    compilers = subject.device.type != "cpu" or shutil.which("g++") or shutil.which("clang++")
    backend = "inductor" if compilers else "aot_eager"

    def measured() -> Iterator[tuple[float, str]]:
        for asked, masked, how in _asked(subject):
            torch.compiler.reset()
            whole = "export" in subject.claims
            fast = torch.compile(asked, fullgraph=whole, dynamic=True, backend=backend)
            for length in LENGTHS:
                arguments = _arguments(subject, length, masked)
                x = arguments[0].requires_grad_()
                outs = [_attempt(fast, arguments, how), asked(*arguments)]
                slopes = [torch.autograd.grad(out.square().sum(), x)[0] for out in outs]
                yield max(difference(*outs), difference(*slopes)), f"{length} tokens ({how})"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own deprecations are not the layer's
        found = worst(measured(), SAME)
    torch.compiler.reset()
    return Measure(found.value, SAME, f"{found.detail} by {backend}".strip())


@promise("torch.export = eager", needs=("export",), slow=True)
def exported(subject: Subject) -> Measure:
    """The difference in outputs, at other batches and lengths than those with which it was exported."""

    def convert(asked: _Asked, masked: bool, how: str) -> Callable[..., Tensor]:
        program = _converted(torch.export.export, asked, _arguments(subject, N, masked), how)
        return program.module()

    return _worst_size(subject, convert)


@promise("ONNX = eager", needs=("export",), slow=True)
def onnx(subject: Subject) -> Measure:
    """The same, exported to ONNX and run in onnxruntime on the CPU."""
    try:
        need("export", "it")
    except MissingExtraError as error:
        raise NotClaimed(str(error)) from None
    onnxruntime = import_module("onnxruntime")

    def convert(asked: _Asked, masked: bool, how: str) -> Callable[..., Tensor]:
        with _quiet("torch.onnx"):
            program = _converted(torch.onnx.export, asked, _arguments(subject, N, masked), how, verbose=False)
        session = onnxruntime.InferenceSession(
            program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        names = [given.name for given in session.get_inputs()]

        def run(*arguments: Tensor) -> Tensor:
            given = {name: value.numpy(force=True) for name, value in zip(names, arguments, strict=True)}
            return torch.as_tensor(session.run(None, given)[0], device=subject.device)

        return run

    return _worst_size(subject, convert)


def _worst_size(subject: Subject, convert: Callable[[_Asked, bool, str], Callable[..., Tensor]]) -> Measure:
    """The largest difference between what ``convert`` makes of the layer and the layer, at every size."""

    def measured() -> Iterator[tuple[float, str]]:
        for asked, masked, how in _asked(subject):
            program = convert(asked.eval(), masked, how)
            for batch, length in SIZES:
                arguments = _arguments(subject, length, masked, batch)
                found = difference(_attempt(program, arguments, how), asked(*arguments))
                yield found, f"{batch} items of {length} tokens, exported with {B} of {N} ({how})"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own deprecations are not the layer's
        return worst(measured(), SAME)


def _converted(
    export: Callable[..., Any], asked: _Asked, arguments: tuple[Tensor, ...], how: str, **options: Any
) -> Any:
    """What ``export`` makes of the layer, for any batch and any length.

    Raises:
        Broken: where it cannot, with the first reason of all.
    """
    batch, length = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("length", min=2, max=4096)
    shapes = ({0: batch, 1: length}, {0: batch, 1: length, 2: length})[: len(arguments)]
    try:
        return export(asked, arguments, dynamic_shapes=shapes, **options)
    except Exception as error:
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise Broken(f"{first_line(reason)} ({how})") from error


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without the warnings that this logger would print."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class _Asked(nn.Module):
    """A layer, asked as its subject asks it."""

    def __init__(self, subject: Subject, causality: bool) -> None:
        super().__init__()
        self.subject, self.layer = subject, subject.build(causality)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.subject(self.layer, x, mask)


def _asked(subject: Subject) -> list[tuple[_Asked, bool, str]]:
    """The layer plainly, causal where it can be, and with a mask: whether, and how to say so."""
    ways = [(causality, False) for causality in subject.causal_choices]
    if "padding" in subject.claims:
        ways.append((subject.causal_choices[-1], True))
    return [
        (_Asked(subject, causality), masked, said(causality, None) + (" and a mask" if masked else ""))
        for causality, masked in ways
    ]


def _arguments(subject: Subject, length: int, masked: bool, batch: int = B) -> tuple[Tensor, ...]:
    x = subject.tokens(batch, length)
    if not masked:
        return (x,)
    lengths = (length - 4 * torch.arange(batch, device=x.device)).clamp(min=1)
    return x, as_matrix(padding(lengths), x, x).contiguous()


def _attempt(run: Callable[..., Tensor], arguments: tuple[Tensor, ...], how: str) -> Tensor:
    try:
        return run(*arguments)
    except Exception as error:
        raise Broken(f"{first_line(error)} ({how})") from error
