"""Check that the state of training matches the network and the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from attnlab.files.tensors import Shape
from attnlab.nn.attention import current_state
from attnlab.utils.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")


def check_state(shapes: Mapping[str, Shape], network: nn.Module, optimizer: Optimizer, file: Path) -> None:
    """Refuse a checkpoint whose tensors do not match the network and its optimizer; ``file`` is its path.

    The names are ``model.NAME``, ``optimizer.INDEX.KEY``, ``random.cpu`` and ``random.cuda``.
    """
    shapes = current_state(network, shapes, "model.")
    expected_shapes = {f"model.{name}": Shape(t.dtype, tuple(t.shape)) for name, t in network.state_dict().items()}
    if any(name.startswith("optimizer.") for name in shapes):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(parameters):
            expected_shapes[f"optimizer.{index}.step"] = Shape(torch.float32, ())
            for moment in MOMENTS:
                expected_shapes[f"optimizer.{index}.{moment}"] = Shape(parameter.dtype, tuple(parameter.shape))
    expected_shapes["random.cpu"] = Shape(torch.uint8, tuple(torch.get_rng_state().shape))
    cuda = shapes.get("random.cuda")
    if cuda is not None and cuda.dtype == torch.uint8 and len(cuda.size) == 1:
        expected_shapes["random.cuda"] = cuda
    for name in sorted(expected_shapes.keys() | shapes.keys()):
        if shapes.get(name) != expected_shapes.get(name):
            actual, expected = (_text(which.get(name)) for which in (shapes, expected_shapes))
            raise UserError(f"{file} does not match its run: {name!a:.80} is {actual}, expected {expected}; restore it")


def _text(shape: Shape | None) -> str:
    return "missing" if shape is None else f"{shape.dtype} {shape.size}"
