"""What all recurrences share: padding, documents, the state, the three forms, and the matrix that they apply.

A recurrence is found by its cache, so that a new mechanism is tested without further registration.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparison import assert_same, assert_same_gradients, perturbed, random
from torch import Tensor

from attnlab import masks
from attnlab.catalog import registry
from attnlab.masks import Mask
from attnlab.nn.attention import UnsupportedError
from attnlab.nn.cache import KVCache, RecurrentState
from attnlab.nn.multihead import MultiHeadBase
from attnlab.nn.recurrent import RecurrentBase
from attnlab.ops.dispatch import Dispatch
from attnlab.ops.scan import linear

B, N, H, D = 3, 11, 3, 12
NAMES = [name for name in registry.names() if registry.load(name).cache_type is RecurrentState]
BASED = [name for name in NAMES if issubclass(registry.load(name), RecurrentBase)]


def other_parts(name: str) -> dict[str, Any]:
    """The opposite of the default for each part that recurrences share."""
    defaults = {key: option.default for key, option in inspect.signature(registry.load(name)).parameters.items()}
    parts = {
        "short_conv": 0 if defaults.get("short_conv") else 3,
        "output_norm": not defaults.get("output_norm"),
        "output_gate": "sigmoid" if defaults.get("output_gate") == "none" else "none",
    }
    return {part: value for part, value in parts.items() if part in defaults}


CASES: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in NAMES]
CASES += [(name, other_parts(name)) for name in NAMES if other_parts(name)]
every_case = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[name + " with other parts" * bool(options) for name, options in CASES]
)
NORMALIZED_TOGETHER = ("mamba2",)
every_recurrence = pytest.mark.parametrize("name", NAMES)
with_base = pytest.mark.parametrize("name", BASED)


def made(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return perturbed(registry.load(name)(D, num_heads=H, causal=True, **options))


REAL = torch.ones(B, N, dtype=torch.bool)
REAL[0, :4] = REAL[1, 7:] = REAL[2, 2:5] = REAL[2, 8] = False  # on the left, on the right, and in the middle
IDS = torch.tensor(
    [[5, 5, 2, 2, 2, 2, 2, 9, 9, 9, 4], [7, 7, 7, 7, 3, 3, 3, 3, 3, 3, 3], [0, 0, 0, 1, 1, 1, 1, 1, 6, 8, 8]]
)
INTERLEAVED = torch.tensor(
    [[0, 0, 1, 1, 1, 2, 0, 0, 2, 2, 1], [5, 5, 5, 3, 3, 3, 3, 9, 9, 9, 5], [1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1]]
)
EVERY = torch.ones_like(REAL)
SPLIT = [5, 1, 0, 3, 1, 1]


def padding(length: int = N) -> Mask:
    return masks.from_key_padding_mask(~REAL[:, :length])


Layout = tuple[Callable[[int], Mask], Tensor, Tensor]
LAYOUTS: dict[str, Layout] = {
    "padding": (padding, REAL, torch.zeros_like(IDS)),
    "documents": (lambda length: masks.documents(IDS), EVERY, IDS),
    "one division": (lambda length: masks.documents(IDS[0]), EVERY, IDS[:1].expand(B, N)),
    "two divisions": (lambda length: masks.documents(IDS[0]) & masks.documents(IDS), EVERY, 10 * IDS[0] + IDS),
    "padded documents": (lambda length: padding(length) & masks.documents(IDS), REAL, IDS),
    "padded, interleaved": (lambda length: padding(length) & masks.documents(INTERLEAVED), REAL, INTERLEAVED),
}
"""The mask for a number of tokens, which tokens are real, and their documents."""


@every_case
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_each_sequence_is_computed_as_if_alone(name: str, options: dict[str, Any], layout: str) -> None:
    layer, x, (mask, real, ids) = made(name, **options), random(B, N, D), LAYOUTS[layout]
    expected = torch.zeros_like(x)
    for row in range(B):
        for document in ids[row].unique():
            tokens = real[row] & (ids[row] == document)
            if tokens.any():
                expected[row, tokens] = layer(x[row, tokens].unsqueeze(0))[0]
    assert_same(layer(x, mask=mask(N))[real], expected[real])
    if isinstance(layer, RecurrentBase):
        assert not layer(x, mask=mask(N))[~real].any()


@every_case
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "interleaved" not in name])
@torch.no_grad()
def test_decoding_under_a_mask_matches_the_full_pass(name: str, options: dict[str, Any], layout: str) -> None:
    layer, x, (mask, real, _) = made(name, **options), random(B, N, D), LAYOUTS[layout]
    cache = layer.make_cache(N)
    steps = [layer(part, mask=mask(cache.num_seen + part.shape[1]), cache=cache) for part in x.split(SPLIT, 1)]
    assert_same(torch.cat(steps, 1)[real], layer(x, mask=mask(N))[real])


@every_case
@torch.no_grad()
def test_the_state_does_not_grow_and_is_at_least_float32(name: str, options: dict[str, Any]) -> None:
    layer = made(name, **options)
    for dtype, expected in {torch.bfloat16: torch.float32, torch.float64: torch.float64}.items():
        cache, sizes = layer.to(dtype).make_cache(1), []
        for length in (1, 7, 70):
            layer(random(B, length, D, dtype=dtype), cache=cache)
            sizes.append(cache.bytes)
        assert len(set(sizes)) == 1
        assert cache.state[0].dtype == expected
        assert cache.num_seen == 78


@every_case
@torch.no_grad()
def test_a_state_can_be_reordered_and_copied(name: str, options: dict[str, Any]) -> None:
    layer, x = made(name, **options), random(B, N, D)
    beams = torch.tensor([2, 0, 0, 1])
    cache = layer.make_cache(N)
    layer(x[:, :5], cache=cache)
    cache.reorder(beams)
    kept = cache.copy()
    layer(random(4, 3, D), cache=cache)  # tokens that are rejected
    assert_same(layer(x[beams, 5:], cache=kept), layer(x)[beams, 5:])


@every_case
def test_all_forms_agree(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, length = made(name, **options), 67  # more than one chunk
    sources = [random(2, length, D).requires_grad_(), *layer.parameters()]
    results = {}
    for form in ("recurrent", "chunked", "parallel"):
        monkeypatch.setattr(linear, "_choose", lambda *args, form=form: Dispatch(form, "a test"))
        results[form] = layer(sources[0])
    for form in ("chunked", "parallel"):
        assert not torch.equal(results[form], results["recurrent"]), "the form was not used"
        assert_same_gradients((results[form], sources), (results["recurrent"], sources))


@every_case
@torch.no_grad()
def test_the_implied_matrix(name: str, options: dict[str, Any]) -> None:
    layer, x, (mask, real, ids) = made(name, **options), random(B, N, D), LAYOUTS["padded, interleaved"]
    weights = layer.attention_weights(x, mask=mask(N))
    assert_same(layer.apply_weights(weights, x, mask=mask(N))[real], layer(x, mask=mask(N))[real])
    assert_same(layer.attention_map(x, mask=mask(N)).materialize(rows=[1, 7]), weights[:, :, [1, 7]])
    allowed = (real[:, None] & (ids[:, :, None] == ids[:, None])).tril()
    assert not weights.masked_select(~allowed[:, None]).any()
    assert weights.diagonal(dim1=2, dim2=3)[:, 0][real].all()
    if isinstance(layer, RecurrentBase):
        assert not weights.transpose(1, 2)[~real].any()


@every_case
@torch.no_grad()
def test_selected_heads_contribute_what_they_did(name: str, options: dict[str, Any]) -> None:
    if name in NORMALIZED_TOGETHER:
        pytest.skip("heads that are normalized together cannot be selected")
    layer, x = made(name, **options), random(B, N, D)
    parts = [layer.keep_heads(heads)(x) for heads in ([0, 2], [1])]
    bias = 0 if layer.output.bias is None else layer.output.bias
    assert_same(parts[0] + parts[1] - bias, layer(x))


@every_recurrence
@torch.no_grad()
def test_the_error_under_bfloat16_does_not_grow_with_the_length(name: str) -> None:
    layer, x = made(name).float(), random(2, 2053, D, dtype=torch.float32)
    exact = layer(x.bfloat16().float())
    error = (layer.bfloat16()(x.bfloat16()).float() - exact).abs().amax(-1)
    assert error[:, -200:].mean() < 2 * error[:, :200].mean()


@every_recurrence
@pytest.mark.parametrize(
    "arguments",
    [
        {"mask": masks.sliding_window(3)},
        {"mask": torch.ones(N, N, dtype=torch.bool)},
        {"attn_bias": torch.zeros(N, N)},
    ],
    ids=["window", "matrix", "bias"],
)
def test_masks_and_biases_of_single_pairs_are_refused(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="does not support"):
        made(name)(random(B, N, D), **arguments)


@every_case
@torch.inference_mode()
def test_the_state_keeps_no_memory_of_the_prompt(name: str, options: dict[str, Any]) -> None:
    layer = made(name, **options)
    cache = layer.make_cache(1)
    layer(random(B, 131, D), cache=cache)
    assert cache.bytes == sum(t.untyped_storage().nbytes() for t in cache.state)


@every_recurrence
@torch.no_grad()
def test_a_loaded_state_of_another_layer_is_refused(name: str) -> None:
    layer, other = made(name), registry.load("linear")(2 * D, num_heads=2 * H, causal=True)
    widths = {"short_conv": 2} if "short_conv" in inspect.signature(type(layer)).parameters else {}
    convolved = [made(name, **widths)] if widths else []
    for other_layer in (other.double(), *convolved):
        cache, loaded = other_layer.make_cache(N), layer.make_cache(N)
        other_layer(random(B, N, other_layer.embed_dim), cache=cache)
        loaded.load_state_dict(cache.state_dict())
        with pytest.raises(ValueError, match=r"holds|must have|keeps|what was loaded into the cache does not fit"):
            layer(random(B, 1, D), cache=loaded)
        assert loaded.num_seen == N


@every_recurrence
@torch.no_grad()
def test_what_does_not_fit_is_refused(name: str) -> None:
    layer, x = made(name), random(B, N, D)
    with pytest.raises(TypeError, match="cache must be a RecurrentState"):
        layer(x, cache=KVCache(N))
    with pytest.raises(ValueError, match="keeps a state of constant size; it takes no window"):
        layer.make_cache(N, window=3)
    cache = layer.make_cache(N)
    with pytest.raises(ValueError, match="must not be interrupted by another one"):
        layer(x, mask=masks.documents(INTERLEAVED), cache=cache)
    assert cache.num_seen == 0
    with pytest.raises(ValueError, match="has no attention weights to drop"):
        layer.attention_map(x).apply(torch.ones(1, 1, N, 1), dropout=0.1)


WRONG: dict[str, tuple[Any, ...]] = {
    **{"output_gate": ("relu",), "short_conv": (-1, 2.0, True)},
    **dict.fromkeys(("key_dim", "value_dim"), (0,)),
}


@with_base
def test_wrong_options_are_refused(name: str) -> None:
    mechanism = registry.load(name)
    with pytest.raises(UnsupportedError, match="always causal; leave causal at its default, True"):
        mechanism(D, num_heads=H, causal=False)
    for option, values in WRONG.items():
        for value in values if option in inspect.signature(mechanism).parameters else ():
            with pytest.raises((TypeError, ValueError), match=option):
                mechanism(D, num_heads=H, **{option: value})


@with_base
def test_dropout_acts_on_the_features_of_the_heads_in_training_only(name: str) -> None:
    layer, x = made(name, dropout=0.5), random(B, N, D)
    assert_same(layer(x), made(name)(x))
    torch.manual_seed(0)
    with torch.no_grad():
        layer.output = torch.nn.Identity()
        ratio = layer.train()(x) / layer.eval()(x)
    assert_same(ratio[ratio != 0], torch.full_like(ratio[ratio != 0], 2.0))
    assert 0.3 < (ratio == 0).double().mean() < 0.7


def test_there_are_recurrences() -> None:
    assert {"linear", "gateddeltanet"} <= {*NAMES}
    assert all(issubclass(registry.load(name), MultiHeadBase) for name in NAMES)
