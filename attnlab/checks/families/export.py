"""Compiled and exported layers match eager mode, for any batch size and length."""

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
from torch._functorch import config as functorch_config

from attnlab.checks.capabilities import CheckFailed, NotApplicable
from attnlab.checks.layer_under_test import B, LayerUnderTest, N, as_matrix, first_line
from attnlab.checks.probes import describe, difference, gradient, located
from attnlab.checks.registry import Values, check
from attnlab.masks import from_attention_mask, padding
from attnlab.utils.extras import MissingExtraError, need

TOLERANCE = 1e-9
"""Compiled sums are accumulated in another order."""

LENGTHS = (N, N + 4, 2 * N + 3)

SIZES = ((B, N), (B - 1, N + 4), (B + 3, 2 * N + 3), (B, 2))
"""Items and tokens of the calls of a program that was exported with the first."""


@check("compile_matches_eager", slow=True, limit=TOLERANCE)
def compiled(case: LayerUnderTest) -> Values:
    """The difference between torch.compile and eager mode, in outputs and gradients.

    One graph for every length; several where the layer is not declared exportable. By inductor on an accelerator or
    with a C++ compiler, else by aot_eager. Without a mask, a mechanism of attnlab is in training.
    """
    has_compiler = case.device.type != "cpu" or shutil.which("g++") or shutil.which("clang++")
    backend = "inductor" if has_compiler else "aot_eager"
    # `gradient` keeps the graph, which donated buffers do not allow; the compiler's own deprecations.
    with functorch_config.patch(donated_buffer=False), warnings.catch_warnings(action="ignore"):
        for module, masked, where in modules(case):
            torch.compiler.reset()
            fast = torch.compile(module, fullgraph="export" in case.capabilities, dynamic=True, backend=backend)
            for length in LENGTHS:
                arguments = _arguments(case, length, masked)
                x = arguments[0].requires_grad_()
                with located(where):
                    outs = fast(*arguments), module(*arguments)
                slopes = [gradient(out.square().sum(), x) for out in outs]
                yield max(difference(*outs), difference(*slopes)), f"{length} tokens ({where}) by {backend}"
    torch.compiler.reset()


@check("export_matches_eager", needs=("export",), slow=True, limit=TOLERANCE)
def exported(case: LayerUnderTest) -> Values:
    """The difference between torch.export and eager mode, at other batch sizes and lengths than the exported ones."""

    def convert(module: _Module, masked: bool, where: str) -> Callable[..., Tensor]:
        return _export(torch.export.export, module, _arguments(case, N, masked), where).module()

    yield from _over_sizes(case, convert)


@check("onnx_matches_eager", needs=("export",), slow=True, limit=TOLERANCE)
def onnx(case: LayerUnderTest) -> Values:
    """The same, exported to ONNX and run by onnxruntime on the CPU."""
    try:
        need("export", "it")
    except MissingExtraError as error:
        raise NotApplicable(str(error)) from None
    onnxruntime = import_module("onnxruntime")

    def convert(module: _Module, masked: bool, where: str) -> Callable[..., Tensor]:
        with _quiet("torch.onnx"):
            program = _export(torch.onnx.export, module, _arguments(case, N, masked), where, verbose=False)
        session = onnxruntime.InferenceSession(
            program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        names = [argument.name for argument in session.get_inputs()]

        def run(*arguments: Tensor) -> Tensor:
            inputs = {name: value.numpy(force=True) for name, value in zip(names, arguments, strict=True)}
            return torch.as_tensor(session.run(None, inputs)[0], device=case.device)

        return run

    yield from _over_sizes(case, convert)


def _over_sizes(case: LayerUnderTest, convert: Callable[[_Module, bool, str], Callable[..., Tensor]]) -> Values:
    """The difference between the converted layer and the layer, for all sizes."""
    for module, masked, where in modules(case):
        with warnings.catch_warnings(action="ignore"):  # the exporters' own deprecations
            program = convert(module.eval(), masked, where)
            for batch, length in SIZES:
                arguments = _arguments(case, length, masked, batch)
                with located(where):
                    out = program(*arguments)
                detail = f"{batch} items of {length} tokens, exported with {B} of {N} ({where})"
                yield difference(out, module(*arguments)), detail


def _export(
    export: Callable[..., Any], module: _Module, arguments: tuple[Tensor, ...], where: str, **options: Any
) -> Any:
    """The program for any batch size and length; a failure has the message of the innermost cause."""
    batch, length = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("length", min=2, max=4096)
    shapes: list[dict[int, Any]] = [{0: batch, 1: length} for _ in arguments]
    if arguments[-1].dtype == torch.bool and arguments[-1].dim() == 3:
        shapes[-1][2] = length
    try:
        return export(module, arguments, dynamic_shapes=tuple(shapes), **options)
    except Exception as error:
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise CheckFailed(f"{first_line(reason)} ({where})") from error


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Suppress the warnings of this logger."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class _Module(nn.Module):
    """A layer as a module of (x, mask), with the calling convention of the case."""

    def __init__(self, case: LayerUnderTest, is_causal: bool, train: bool) -> None:
        super().__init__()
        options = {"dropout": 0.0} if train else {}
        self.case, self.layer = case, case.build(is_causal, train=train, **options)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.case(self.layer, x, from_attention_mask(mask) if mask is not None and mask.dim() == 2 else mask)


def modules(case: LayerUnderTest) -> Iterator[tuple[_Module, bool, str]]:
    """The layer without a mask, causal where it can be, and with a mask.

    A mechanism of attnlab is first in training, without dropout: compiled with ``dynamic=True``, the probability is
    symbolic there.
    """
    configurations = [(is_causal, False) for is_causal in case.causal_choices]
    if "padding" in case.capabilities:
        configurations.append((case.causal_choices[-1], True))
    for position, (is_causal, masked) in enumerate(configurations):
        train = case.is_ours and position == 0
        where = describe(is_causal, None) + (" with a mask" if masked else "") + (", in training" if train else "")
        yield _Module(case, is_causal, train), masked, where


def _arguments(case: LayerUnderTest, length: int, masked: bool, batch: int = B) -> tuple[Tensor, ...]:
    x = case.tokens(batch, length)
    if not masked:
        return (x,)
    lengths = (length - 4 * torch.arange(batch, device=x.device)).clamp(min=1)
    matrix = as_matrix(padding(lengths), x, x).contiguous()
    return x, matrix if "arbitrary_mask" in case.capabilities or not case.is_ours else matrix[:, 0].contiguous()
