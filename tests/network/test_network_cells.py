"""Embedding of cells: a code and a value."""

from __future__ import annotations

import pytest
import torch

from attnlab.network import Cells, Inputs, Network, Outputs

B, N, D, SIZE, NUMBERS = 5, 7, 16, 13, 3


def batch() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, SIZE, (B, N), generator=generator)
    return torch.stack([codes.float(), torch.randn(B, N, generator=generator)], dim=-1)


def network(**about: object) -> Network:
    torch.manual_seed(0)
    inputs = Inputs("cells", SIZE, NUMBERS)
    return Network("multihead", inputs, Outputs("classes", 3), N, embed_dim=D, **about).eval()  # type: ignore[arg-type]


def test_number_cell_embedding() -> None:
    cells, x = Cells(SIZE, NUMBERS, D), batch()
    out = cells(x)
    for b in range(B):
        for n in range(N):
            code, value = int(x[b, n, 0]), x[b, n, 1]
            expected = cells.codes.weight[code]
            if code < NUMBERS:
                assert cells.values is not None
                expected = expected + value * cells.values.weight[code]
            assert torch.allclose(out[b, n], expected, atol=1e-6)


def test_the_value_of_another_cell_has_no_effect() -> None:
    net, x = network(), batch()
    changed = x.clone()
    changed[..., 1] = torch.where(x[..., 0] >= NUMBERS, torch.nan, x[..., 1])
    assert torch.equal(net(x), net(changed))
    changed[..., 1] = x[..., 1] + 1
    assert not torch.equal(net(x), net(changed))


def test_padding_has_no_effect() -> None:
    net, x, lengths = network(), batch(), torch.tensor([7, 3, 1, 5, 2])
    changed = x.clone()
    changed[torch.arange(N) >= lengths[:, None]] = torch.nan
    assert torch.equal(net(x, lengths), net(changed, lengths))


def test_without_numbers() -> None:
    net = Network("multihead", Inputs("cells", SIZE), Outputs("values", 1), N, embed_dim=D)
    assert net(batch()).shape == (B, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision(dtype: torch.dtype) -> None:
    net, x = network(), batch()
    if dtype == torch.float64:
        assert net.double()(x.double()).dtype == dtype
    else:
        with torch.autocast("cpu", dtype):
            out = net(x)
        assert torch.allclose(out.float(), net(x), atol=0.05)


def test_every_parameter_is_trained() -> None:
    net, x = network().train(), batch()
    x[0, :, 0] = torch.arange(N)
    net(x).square().sum().backward()
    for name, parameter in net.embed.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0, name


def test_saved_network_gives_the_same_output(tmp_path: object) -> None:
    net, x = network(), batch()
    net.save_pretrained(tmp_path)
    back = Network.from_pretrained(tmp_path).eval()
    assert back.inputs == Inputs("cells", SIZE, NUMBERS)
    assert torch.equal(net(x), back(x))


def test_inputs_with_two_fields() -> None:
    assert Inputs(*["tokens", 7]) == Inputs("tokens", 7, 0)
    assert Network("multihead", ("vectors", 3), ("classes", 2), N, embed_dim=D).inputs == ("vectors", 3, 0)


@pytest.mark.parametrize(("size", "numbers"), [(2**24 + 1, 3), (3, 4), (3, -1)])
def test_too_many_codes_for_float32(size: int, numbers: int) -> None:
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match="at most 2\\^24 codes"),
    ):
        Network("multihead", Inputs("cells", size, numbers), Outputs("classes", 3), N, embed_dim=D)
    assert float(torch.tensor(2**24 - 1).float()) == 2**24 - 1
