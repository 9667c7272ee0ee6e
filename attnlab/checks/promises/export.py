"""Outside of eager Python it answers the same: compiled and exported, whatever the length."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from attnlab.checks.claims import Broken
from attnlab.checks.probes import difference, said, worst
from attnlab.checks.registry import Measure, promise
from attnlab.checks.subject import N, Subject, as_matrix, first_line
from attnlab.masks import padding

SAME = 1e-9
"""Compiled sums run in another order than eager ones."""

LENGTHS = (N, N + 4, 2 * N + 3)


@promise("torch.compile = eager", slow=True)
def compiled(subject: Subject) -> Measure:
    """The difference in outputs and gradients, in one graph for every length.

    By inductor on an accelerator, or where there is a C++ compiler for it; else by aot_eager.
    """
    compilers = subject.device.type != "cpu" or shutil.which("g++") or shutil.which("clang++")
    backend = "inductor" if compilers else "aot_eager"

    def measured() -> Iterator[tuple[float, str]]:
        for asked, masked, how in _asked(subject):
            torch.compiler.reset()
            fast = torch.compile(asked, fullgraph=True, dynamic=True, backend=backend)
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


@promise("torch.export = eager", slow=True)
def exported(subject: Subject) -> Measure:
    """The difference in outputs, at other lengths than the one at which it was exported."""

    def measured() -> Iterator[tuple[float, str]]:
        any_length = torch.export.Dim("length", min=2, max=4096)
        for asked, masked, how in _asked(subject):
            shapes = ({1: any_length}, {1: any_length, 2: any_length})[: 1 + masked]
            try:
                program = torch.export.export(asked, _arguments(subject, N, masked), dynamic_shapes=shapes).module()
            except Exception as error:
                raise Broken(f"{first_line(error)} ({how})") from error
            for length in LENGTHS:
                arguments = _arguments(subject, length, masked)
                found = difference(_attempt(program, arguments, how), asked(*arguments))
                yield found, f"{length} tokens, exported with {N} ({how})"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return worst(measured(), SAME)


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


def _arguments(subject: Subject, length: int, masked: bool) -> tuple[Tensor, ...]:
    x = subject.tokens(length=length)
    if not masked:
        return (x,)
    return x, as_matrix(padding(torch.tensor([length, 3], device=x.device)), x, x).contiguous()


def _attempt(run: Callable[..., Tensor], arguments: tuple[Tensor, ...], how: str) -> Tensor:
    try:
        return run(*arguments)
    except Exception as error:
        raise Broken(f"{first_line(error)} ({how})") from error
