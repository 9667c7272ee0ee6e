"""`nn.TransformerEncoder` and `nn.Transformer` with our layers give the same outputs, in train and eval mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attnlab
from attnlab.integrations.pytorch import TorchMHAAdapter, from_torch, to_torch
from attnlab.models.multihead import MultiAttention
from attnlab.models.selfhead import SelfAttention
from attnlab.nn.attention import UnsupportedError

B, N, M, D, H, DEPTH = 3, 7, 5, 12, 2, 2
LENGTHS = torch.tensor([7, 4, 2])
IGNORED = torch.arange(N) >= LENGTHS[:, None]
TRIANGLE = nn.Transformer.generate_square_subsequent_mask(N, dtype=torch.float64)


def encoder(*, batch_first: bool = True, norm_first: bool = False, bias: bool = True) -> Any:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        D, H, 17, dropout=0.0, batch_first=batch_first, norm_first=norm_first, bias=bias, dtype=torch.float64
    )
    model = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=batch_first and not norm_first and bias)
    with torch.no_grad():
        for parameter in model.parameters():  # its layers are copies of one, and its biases are zeros
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens(*, batch_first: bool = True, length: int = N) -> Tensor:
    x = torch.randn(B, length, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x if batch_first else x.transpose(0, 1)


def scattered(*shape: int) -> Tensor:
    """True means *do not attend*; every token attends to itself."""
    hidden = torch.rand(*shape, generator=torch.Generator().manual_seed(2)) > 0.6
    return hidden & ~torch.eye(shape[-1], dtype=torch.bool)


CALLS: dict[str, dict[str, Any]] = {
    "no mask": {},
    "padding": {"src_key_padding_mask": IGNORED},
    "float padding": {"src_key_padding_mask": torch.zeros(B, N).double().masked_fill(IGNORED, -torch.inf)},
    "left padding": {"src_key_padding_mask": IGNORED.flip(1)},
    "mask": {"mask": scattered(N, N)},
    "mask per head": {"mask": scattered(B * H, N, N)},
    "bias": {"mask": torch.randn(N, N, dtype=torch.float64)},
    "bias per head": {"mask": torch.randn(B * H, N, N, dtype=torch.float64)},
    "causal": {"mask": TRIANGLE},
    "causal, is_causal": {"mask": TRIANGLE, "is_causal": True},
    "causal, Boolean": {"mask": -torch.inf == TRIANGLE, "is_causal": True},
    "causal, padding": {"mask": -torch.inf == TRIANGLE, "src_key_padding_mask": IGNORED, "is_causal": True},
    "bias, padding": {
        "mask": torch.randn(N, N, dtype=torch.float64),
        "src_key_padding_mask": torch.randn(B, N, dtype=torch.float64).masked_fill(IGNORED, -torch.inf),
    },
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("call", CALLS)
def test_the_encoder_gives_the_same_outputs(call: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, x = encoder().train(training), tokens()
    ours = from_torch(theirs)
    # Without gradients their fast path gives NaN for an additive mask.
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", "bias" not in call)
    with torch.set_grad_enabled(training):
        expected, actual = theirs(x, **CALLS[call]), ours(x, **CALLS[call])
    real = torch.ones(B, N, dtype=torch.bool)
    if (padding := CALLS[call].get("src_key_padding_mask")) is not None and not training:
        real = padding == 0 if not padding.is_floating_point() else padding != -torch.inf
    assert (actual - expected)[real].abs().max() < 1e-12


@pytest.mark.parametrize(("batch_first", "norm_first", "bias"), [(False, False, True), (True, True, False)])
def test_gradients_and_other_constructions(batch_first: bool, norm_first: bool, bias: bool) -> None:
    theirs = encoder(batch_first=batch_first, norm_first=norm_first, bias=bias)
    ours, slopes = from_torch(theirs), []
    for model in (theirs, ours):
        x = tokens(batch_first=batch_first).requires_grad_()
        model(x, src_key_padding_mask=IGNORED).square().sum().backward()
        attention = model.layers[0].self_attn
        projection = attention.attention.qkv.weight if model is ours else attention.in_proj_weight
        slopes.append([x.grad, projection.grad, *(p.grad for p in model.layers[1].linear1.parameters())])
    for actual, expected in zip(*slopes, strict=True):
        assert (actual - expected).abs().max() < 1e-10


def test_eval_mode_calls_our_layers_and_recognizes_a_causal_mask() -> None:
    ours = from_torch(encoder()).eval()
    with torch.no_grad():
        assert len(attnlab.explain_path(ours, tokens(), src_key_padding_mask=IGNORED)) == DEPTH
        assert [path.name for path in attnlab.explain_path(ours, tokens(), mask=TRIANGLE)] == ["causal"] * DEPTH


@pytest.mark.parametrize("batch_first", [True, False])
def test_there_and_back_is_the_same_model(batch_first: bool) -> None:
    theirs = encoder(batch_first=batch_first)
    theirs.layers[0].self_attn.requires_grad_(False)
    ours = from_torch(theirs)
    assert isinstance(theirs.layers[0].self_attn, nn.MultiheadAttention), "the original is unchanged"
    assert not any(p.requires_grad for p in ours.layers[0].self_attn.parameters())
    assert not ours.use_nested_tensor
    back = to_torch(ours)
    assert back.use_nested_tensor is theirs.use_nested_tensor is batch_first
    assert [layer.self_attn.batch_first for layer in back.layers] == [batch_first] * DEPTH
    expected = theirs.state_dict()
    assert expected.keys() == back.state_dict().keys()
    assert all(torch.equal(expected[name], tensor) for name, tensor in back.state_dict().items())
    assert [p.requires_grad for p in back.parameters()] == [p.requires_grad for p in theirs.parameters()]


def test_a_decoder_attends_to_another_sequence() -> None:
    torch.manual_seed(0)
    theirs = nn.Transformer(D, H, 1, 2, 17, dropout=0.0, batch_first=True, dtype=torch.float64)
    ours = from_torch(theirs)
    assert sum(isinstance(module, TorchMHAAdapter) for module in ours.modules()) == 5
    options = {
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(M, dtype=torch.float64),
        "memory_mask": scattered(N, N)[:M],
        "memory_key_padding_mask": IGNORED,
    }
    source, target = tokens(), tokens(length=M)
    assert (ours(source, target, **options) - theirs(source, target, **options)).abs().max() < 1e-12


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_the_interface_of_multihead_attention(batch_first: bool, average: bool, batched: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(D, H, batch_first=batch_first, dtype=torch.float64)
    ours = from_torch(theirs)
    x, memory = tokens(batch_first=batch_first), tokens(batch_first=batch_first, length=M)
    ignored = IGNORED[:, :M]
    if not batched:
        x, memory, ignored = tokens()[0], tokens(length=M)[0], IGNORED[1, :M]
    options = {"average_attn_weights": average, "key_padding_mask": ignored, "attn_mask": scattered(N, N)[:, :M]}
    options["attn_mask"][:, 0] = False  # the first key is real in every item: no row is fully masked
    for actual, expected in zip(ours(x, memory, memory, **options), theirs(x, memory, memory, **options), strict=True):
        assert (actual - expected).abs().max() < 1e-12
    assert ours(x, x, x, need_weights=False)[1] is None


def test_a_fully_masked_row_is_zero_where_theirs_is_nan() -> None:
    theirs = nn.MultiheadAttention(D, H, batch_first=True, dtype=torch.float64)
    x, everything = tokens(), torch.ones(B, N, dtype=torch.bool)
    assert theirs(x, x, x, key_padding_mask=everything)[0].isnan().all()
    assert (from_torch(theirs)(x, x, x, key_padding_mask=everything)[0] == 0).all()


@pytest.mark.slow
def test_compiled_as_one_graph() -> None:
    ours = from_torch(encoder()).eval()
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    for options in (CALLS[name] for name in ("causal, is_causal", "mask", "padding")):
        assert (compiled(tokens(), **options) - ours(tokens(), **options)).abs().max() < 1e-12


# What is refused


class Plain(SelfAttention):
    card = replace(SelfAttention.card, supports=("causal", "mask"))


class Extended(nn.MultiheadAttention):
    pass


def layer() -> Any:
    return from_torch(nn.MultiheadAttention(D, H, batch_first=True, dtype=torch.float64))


def encoder_of(make: Callable[[nn.MultiheadAttention], Any]) -> Any:
    return from_torch(encoder(), lambda theirs: make(theirs).to(torch.float64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: from_torch(encoder())(x, mask=scattered(N, N), is_causal=True), "attn_mask is not causal"),
        (lambda x: from_torch(encoder())(x, is_causal=True), "is_causal=True is a hint about attn_mask, which is mis"),
        (lambda x: layer()(x, x, x.clone()), "key and value must be the same tensor"),
        (lambda x: layer()(*[torch.nested.nested_tensor([*x])] * 3), "nested tensors are not supported"),
        (lambda _: from_torch(nn.Linear(2, 2)), "there is no MultiheadAttention in Linear"),
        (
            lambda _: from_torch(nn.Sequential(nn.MultiheadAttention(D, H, kdim=5))),
            "0: only an nn.MultiheadAttention without kdim",
        ),
        (lambda _: from_torch(nn.Sequential(Extended(D, H))), "0: Extended is a subclass of nn.MultiheadAttention"),
        (
            lambda _: to_torch(encoder_of(lambda theirs: MultiAttention.from_torch(theirs, causal=True))),
            r"layers.0.self_attn: .* has no causal=True",
        ),
        (
            lambda _: to_torch(encoder_of(lambda theirs: SelfAttention(theirs.embed_dim))),
            r"layers.0.self_attn: .* cannot represent SelfAttention",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_invalid_calls_and_conversions_are_refused(call: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(tokens())


def test_another_mechanism() -> None:
    assert encoder_of(lambda theirs: SelfAttention(D))(tokens(), src_key_padding_mask=IGNORED).shape == (B, N, D)
    ours, x = TorchMHAAdapter(Plain(D).double(), batch_first=True), tokens()
    with pytest.raises(UnsupportedError, match="does not support attn_bias"):
        ours(x, x, x, attn_mask=torch.randn(N, N, dtype=torch.float64))
