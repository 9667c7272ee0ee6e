"""Networks in checkpoint files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from attnlab.files.tensors import Shape, check_finite
from attnlab.network import Network
from attnlab.network.received import check_description, fill
from attnlab.training import records
from attnlab.training.checkpoint import load_tensors, save_tensors


def save_network(
    path: Path,
    network: Network,
    about: dict[str, Any],
    *,
    follow: bool = False,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write a network's parameters and the arguments of its constructor, atomically.

    ``weights`` replaces the state dict of the network, if its parameters are sharded.
    """
    about = {"network": network.to_config(), **about}
    records.NetworkRecord.model_validate(about)
    save_tensors(path, network.state_dict() if weights is None else weights, about, follow=follow)


def load_network(path: Path, *, trained: bool = False, follow: bool = True) -> tuple[Network, dict[str, Any]]:
    """The network in a checkpoint file, in eval mode, and the file's description of it.

    The description is checked against the tensors before memory is allocated; NaN and infinite parameters are refused.

    Args:
        path: the file.
        trained: refuse a file without a description of the training data.
        follow: allow symbolic links.
    """

    def check(about: dict[str, Any], shapes: dict[str, Shape]) -> None:
        check_description(about["network"], shapes, Network, str(path))
        records.check(records.TrainedNetworkRecord if trained else records.NetworkRecord, about, path)

    tensors, about = load_tensors(path, check, follow=follow)
    check_finite(tensors, f"the network in {path}")
    return fill(Network(**about["network"]), tensors), about
