"""Networks with a known role of each head; axes have distinct prime sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnlab.network import Inputs, Network, Outputs
from attnlab.tasks.base import IGNORE, Split, TaskData

N, F, CLASSES, H, D = 7, 3, 5, 4, 20
TRAIN, VALIDATION, TEST = 61, 47, 13
METRICS = {"classes": "accuracy", "tokens": "bits_per_byte", "values": "rmse"}


def network(model: str = "multihead", kind: str = "classes", **options: Any) -> Network:
    """Two layers of four heads in float64, with perturbed parameters."""
    torch.manual_seed(0)
    options = options if model == "selfhead" else {"num_heads": H, **options}
    outputs = Outputs(kind, 1 if kind == "values" else CLASSES)  # type: ignore[arg-type]
    net = Network(model, Inputs("vectors", F), outputs, N, embed_dim=D, options=options, mlp=False).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    return net


def columns(net: Network, layer: int) -> Tensor:
    """The columns of W_O by head, (D, H, d), to be changed in place."""
    attention: Any = net.mechanisms()[layer]
    return attention.output.weight.detach().unflatten(1, (attention.num_heads, attention.head_dim))


def zero_heads(net: Network, heads: Sequence[tuple[int, int]]) -> Network:
    """Zero the output of these heads."""
    for layer, head in heads:
        columns(net, layer)[:, head] = 0
    return net


def only(net: Network, layer: int, head: int) -> Network:
    """Zero the output of all heads but one, and scale that one up."""
    zero_heads(net, [(i, h) for i in range(2) for h in range(H) if (i, h) != (layer, head)])
    columns(net, layer)[:, head] *= 30
    return net


def task_data(net: Network, *, padded: bool = True) -> TaskData:
    """Data whose targets are the network's own predictions."""
    kind = net.outputs.kind

    def draw(count: int, seed: int) -> Split:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(count, N, F, generator=generator, dtype=torch.float64)
        lengths = torch.randint(1, N + 1, (count,), generator=generator) if padded else None
        with torch.no_grad():
            scores = net(x, lengths)
        y = scores if kind == "values" else scores.argmax(-1)
        if kind == "tokens" and lengths is not None:
            y = y.masked_fill(torch.arange(N) >= lengths[:, None], IGNORE)
        return Split(x, y, lengths)

    splits = (draw(TRAIN, 0), draw(VALIDATION, 1), draw(TEST, 2))
    return TaskData(*splits, inputs=net.inputs, outputs=net.outputs, length=N, metric=METRICS[kind])


def noisy(data: TaskData) -> TaskData:
    """The same with other training targets, so that the loss has a gradient."""
    y = data.train.y
    y = y + 1 if y.is_floating_point() else torch.where(y == IGNORE, IGNORE, (y + 1) % CLASSES)
    return replace(data, train=data.train._replace(y=y))
