"""Parameter groups for weight decay."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

MATRICES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.Bilinear: ("weight",),
    _ConvNd: ("weight",),
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}
"""Linear modules and the names of their weight matrices."""


def decayed(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters with weight decay and those without, both in the order of ``network.parameters()``.

    The weight matrices of linear modules decay (`MATRICES`). Embeddings, biases, norms and other parameters of a
    mechanism do not: decay would erase rare tokens and positions, or pull a coefficient away from its initial value.
    """
    matrices = {
        id(parameter)
        for module in network.modules()
        for kind, names in MATRICES.items()
        if isinstance(module, kind)
        for name, parameter in module.named_parameters(recurse=False)
        if name in names
    }
    parameters = list(network.parameters())
    return [p for p in parameters if id(p) in matrices], [p for p in parameters if id(p) not in matrices]
