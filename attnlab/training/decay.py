"""Which parameters weight decay acts on."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

MATRICES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.Bilinear: ("weight",),
    _ConvNd: ("weight",),
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}
"""The modules that multiply by a matrix, and the names of these matrices."""


def decayed(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that weight decay acts on, and the rest; both in the order of ``network.parameters()``.

    The weight matrices of linear maps decay (`MATRICES`). Embeddings, position tables, biases, the weights of norms and
    a mechanism's other parameters do not, whatever their shape: pulling them towards zero would not shrink a linear
    map but erase rare tokens and positions, or move a coefficient away from its initial value.
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
