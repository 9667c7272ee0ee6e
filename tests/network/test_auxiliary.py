"""The auxiliary losses of the layers, and training with them."""

from __future__ import annotations

from typing import Any

import torch

from attnlab.network import Inputs, Network, Outputs, auxiliary_losses
from attnlab.nn.mixer import SequenceMixer


def network(model: str, **options: Any) -> Network:
    torch.manual_seed(0)
    return Network(model, Inputs("tokens", 11), Outputs("tokens", 11), 7, embed_dim=12, layers=3, options=options)


def test_the_losses_of_all_layers_are_collected_and_the_hooks_removed() -> None:
    net, x = network("dsa", num_heads=2, top_k=3), torch.arange(7).expand(2, -1)
    lengths = torch.tensor([7, 4])
    plain = net(x, lengths)
    with auxiliary_losses(net) as losses:
        assert torch.equal(net(x, lengths), plain)
    assert len(losses) == 3
    assert all(loss.shape == () and loss.isfinite() and loss > 0 for loss in losses)
    sum(losses).backward()  # type: ignore[union-attr]
    trained = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in net.named_parameters() if ".indexer." in name}
    net(x)
    assert len(losses) == 3


def test_padding_does_not_count() -> None:
    net, x = network("dsa", num_heads=2, top_k=3), torch.arange(7).expand(2, -1)
    with auxiliary_losses(net) as padded:
        net(x, torch.tensor([4, 4]))
    with auxiliary_losses(net) as alone:
        net(x[:, :4])
    torch.testing.assert_close(torch.stack(padded), torch.stack(alone))


def test_most_mechanisms_have_none() -> None:
    net, x = network("multihead", num_heads=2), torch.arange(7).expand(2, -1)
    assert net.mechanisms()[0].auxiliary_loss(torch.randn(2, 7, 12)) is None
    with auxiliary_losses(net) as losses:
        net(x)
    assert losses == []
    assert not any(layer._forward_hooks for layer in net.modules() if isinstance(layer, SequenceMixer))
