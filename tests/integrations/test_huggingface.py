"""Models of transformers give the same hidden states, gradients and tokens with our attention as with their own."""

from __future__ import annotations

import copy
import functools
import sys
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("transformers", reason="pip install 'attnlab[hf]'")

import hub
import torch
import transformers
from hub import DECODERS, FAMILIES, LONG, B, N, model, padded, tokens
from torch import Tensor, nn

from attnlab.integrations.huggingface import register
from attnlab.integrations.huggingface.attention import LazyMask, attention_forward, lazy_mask
from attnlab.ops.dispatch import record_dispatch
from attnlab.utils.extras import MissingExtraError

EXACT = ("Bert", "GPT2")
"""The others round to float32 inside, whatever their dtype."""


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    register()


def states(made: Any, real: Tensor | None, length: int = N, **arguments: Any) -> tuple[Tensor, Tensor]:
    """The last hidden states, with zeros in the padding, and a gradient that went through every layer."""
    body = getattr(made, made.base_model_prefix, made)
    out = body(tokens(length), attention_mask=real, **arguments).last_hidden_state
    out = out if real is None or real.dim() > 2 else out * real.unsqueeze(-1)
    out.square().sum(1).mean().backward()
    return out.detach(), made.get_input_embeddings().weight.grad


def compare(family: str, *arguments: Any, theirs: str = "eager", limit: float = 1e-5, **options: Any) -> Tensor:
    """Compare the `states` of a model with our and their attention; return our hidden states."""
    call = {name: options.pop(name) for name in ("position_ids", "use_cache") if name in options}
    expected, ours = (states(model(family, name, **options), *arguments, **call) for name in (theirs, "attnlab"))
    same(ours, expected, limit)
    return ours[0]


def same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], limit: float) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        assert theirs.abs().max() > 1e-3
        assert (ours - theirs).abs().max() <= limit * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("length", [N, LONG])
@pytest.mark.parametrize("side", ["none", "right", "left", "hole"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_gradients(family: str, side: str, length: int) -> None:
    real = padded(side, length)
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-10))[: 1 + (family in EXACT)]:
        compare(family, real, length, dtype=dtype, limit=limit)


PATHS = {
    ("Bert", "none"): "fused",
    ("Bert", "right"): "items",
    ("Bert", "left"): "items",
    ("GPT2", "none"): "causal",
    ("GPT2", "left"): "items",
    ("Llama", "none"): "causal",
    ("Mistral", "none"): "window",
    ("Mistral", "right"): "window",
}


@pytest.mark.parametrize(("family", "side"), PATHS)
def test_masked_blocks_are_skipped(family: str, side: str) -> None:
    made = model(family, "attnlab")
    with record_dispatch() as records:
        made(tokens(LONG), attention_mask=padded(side, LONG))
    assert {path.name for path in records} == {PATHS[family, side]}


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "without a cache": {"use_cache": False},
    "a static cache": {"cache_implementation": "static", "disable_compile": True},
    "a static cache, one token": {"cache_implementation": "static", "max_new_tokens": 1},
    "beams": {"num_beams": 3},
    "sampled": {"do_sample": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", DECODERS)
def test_generate_gives_the_same_tokens(family: str, way: str) -> None:
    arguments = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, **WAYS[way]}
    outs = []
    for name in ("eager", "attnlab"):
        made = model(family, name)
        made.generation_config.eos_token_id = None
        torch.manual_seed(0)
        outs.append(made.generate(tokens(), attention_mask=padded("left"), **arguments))
    assert torch.equal(*outs)
    assert outs[0].shape == (B, N + arguments["max_new_tokens"])


def test_decoding_does_not_repeat_shared_keys() -> None:
    with record_dispatch() as records:
        model("Llama", "attnlab").generate(tokens(), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert {path.name for path in records[-2:]} == {"shared"}


@pytest.mark.parametrize("family", ["Bert", "GPT2", "Llama", "GptOss"])
def test_output_attentions_returns_the_attention_weights(family: str) -> None:
    real = padded("right")
    outs = [model(family, name)(tokens(), attention_mask=real, output_attentions=True) for name in ("eager", "attnlab")]
    assert len(outs[1].attentions) == 2
    for theirs, ours in zip(*(out.attentions for out in outs), strict=True):
        assert theirs.shape == ours.shape
        assert ((ours - theirs) * real[:, None, :, None]).abs().max() < 1e-5
    assert model(family, "attnlab")(tokens()).attentions is None


def test_a_mask_matrix() -> None:
    allowed = torch.rand(B, 1, N, N, generator=torch.Generator().manual_seed(1)) > 0.4
    allowed |= torch.eye(N, dtype=torch.bool)
    numbers = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    numbers[..., 0] = numbers[..., 0] + 0.5
    for matrix in (numbers, allowed):
        compare("GPT2", matrix, theirs="sdpa")


def test_packed_sequences_and_a_bidirectional_decoder() -> None:
    packed = torch.cat([torch.arange(4), torch.arange(N - 4)]).expand(B, -1)
    for options in ({"position_ids": packed, "use_cache": False}, {"is_causal": False}):
        assert (compare("Llama", None, **options) - compare("Llama", None))[:, 4:].abs().max() > 1e-3


SIZES = {"attention_heads": 3, "ffn_dim": 16}
SEQ2SEQ: dict[str, dict[str, Any]] = {
    "T5": {"d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 3, "dropout_rate": 0.0, "decoder_start_token_id": 0},
    "Bart": {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in SIZES.items()},
}
SEQ2SEQ["Bart"] |= {"encoder_layers": 1, "decoder_layers": 2, "dropout": 0.0}


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_an_encoder_and_a_decoder(family: str) -> None:
    """Cross-attention, and for T5 unscaled scores and a position bias."""
    outs = []
    for name in ("eager", "attnlab"):
        config = getattr(transformers, f"{family}Config")(vocab_size=hub.VOCABULARY, d_model=12, **SEQ2SEQ[family])
        kind = getattr(transformers, f"{family}ForConditionalGeneration")
        made = hub.perturbed(kind._from_config(config, attn_implementation=name))
        out = made(tokens(), attention_mask=padded("right"), decoder_input_ids=tokens(7))
        out.logits.square().mean().backward()
        generated = made.generate(tokens(), attention_mask=padded("left"), max_new_tokens=5, do_sample=False)
        outs.append((out.logits.detach(), made.get_input_embeddings().weight.grad, generated.float()))
    same(outs[1], outs[0], 1e-5)


def test_dropout_is_active_in_training_only_and_unbiased() -> None:
    made = model("Bert", "attnlab", attention_probs_dropout_prob=0.4).train()
    torch.manual_seed(0)
    first, second = (made(tokens()).last_hidden_state for _ in range(2))
    assert (first - second).abs().max() > 1e-3
    made.eval()
    assert torch.equal(made(tokens()).last_hidden_state, made(tokens()).last_hidden_state)
    q, k = (torch.randn(B, 2, 67, 5) for _ in range(2))
    out, _ = attention_forward(nn.Module(), q, k, torch.ones(B, 2, 67, 5), None, dropout=0.25, is_causal=False)
    assert out.std() > 1e-3
    assert abs(out.mean() - 1) < 5 * out[..., 0].std() / out[..., 0].numel() ** 0.5


def test_gradient_checkpointing() -> None:
    plain, saving = model("GPT2", "attnlab"), model("GPT2", "attnlab")
    saving.activation_checkpointing_enable({"use_reentrant": False})
    real = padded("left")
    same(states(saving.train(), real), states(plain.train(), real), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Bert", "Llama"])
def test_compiled_as_one_graph(family: str) -> None:
    made = model(family, "attnlab")
    torch.compiler.reset()
    compiled = torch.compile(made, fullgraph=True, dynamic=True, backend="eager")
    for real in (None, padded("left")):
        expected, actual = (call(tokens(), attention_mask=real)[0] for call in (made, compiled))
        visible = torch.ones(B, N) if real is None else real
        assert ((actual - expected) * visible.unsqueeze(-1)).abs().max() < 1e-5


# Models that compute with their mask, and models with their own attention


@pytest.mark.parametrize(
    "family", ["Bloom", "Deberta", "Falcon", "Git", "GPTNeo", "MPNet", "Mpt", "OpenAIGPT", "XGLM", "XLNet"]
)
def test_a_model_with_its_own_attention_is_refused(family: str) -> None:
    config, kind = getattr(transformers, f"{family}Config")(), getattr(transformers, f"{family}Model")
    says = rf"^{family}Model computes its attention itself and does not take .*'attnlab'; use attn_implementation='"
    with torch.device("meta"):
        with pytest.raises(ValueError, match=says):
            kind._from_config(config, attn_implementation="attnlab")
        kind._from_config(config, attn_implementation="eager")


def test_a_dict_excludes_a_part_with_its_own_attention() -> None:
    vision = {"hidden_size": 12, "output_channels": 8, "num_hidden_layers": 1, "num_attention_heads": 3, "mlp_dim": 16}
    vision |= {"image_size": 32, "patch_size": 16, "window_size": 2, "global_attn_indexes": [0], "mlp_ratio": 1.0}
    text = {**hub.LLAMA, "model_type": "qwen2"}
    config = transformers.GotOcr2Config(vision_config=vision, text_config=text, image_token_id=60)
    kind = transformers.GotOcr2ForConditionalGeneration
    with pytest.raises(ValueError, match=r"GotOcr2ForConditionalGeneration computes its attention itself .*, a dict"):
        kind._from_config(copy.deepcopy(config), attn_implementation="attnlab")
    with record_dispatch() as records:
        outs = []
        for name in ("eager", "attnlab"):
            ways = {"": "eager", "text_config": name}
            made = hub.perturbed(kind._from_config(copy.deepcopy(config), attn_implementation=ways))
            outs.append((made(tokens(), attention_mask=padded("right")).logits * padded("right").unsqueeze(-1),))
    assert len(records) == 2
    same(outs[1], outs[0], 1e-5)


def test_a_subclass_defined_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "notebook", ModuleType("notebook"))  # without a file, as __main__ there
    for family, refused in (("Llama", False), ("Bloom", True)):
        base, config = (getattr(transformers, f"{family}{what}") for what in ("Model", "Config"))
        kind = type("Mine", (base,), {"__module__": "notebook"})
        says = pytest.raises(ValueError, match=r"^Mine computes its attention itself") if refused else nullcontext()
        with torch.device("meta"), says:
            kind._from_config(config(num_hidden_layers=1, vocab_size=7), attn_implementation="attnlab")


def test_registering_again_changes_nothing() -> None:
    for where, what in (
        (transformers.PreTrainedModel, "get_correct_attn_implementation"),
        (transformers.GenerationMixin, "prepare_inputs_for_generation"),
    ):
        before = getattr(where, what)
        register()
        assert getattr(where, what) is before


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Gemma2", "GptOss", "Doge"])
@pytest.mark.parametrize("length", [3, N])
def test_with_a_static_cache_the_inputs_of_every_step_are_tensors(
    family: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a step can be compiled and exported; the window of 5 is full from the first step, or becomes it."""
    made, inputs_of_steps = model(family, "attnlab"), []
    made.generation_config.eos_token_id = None
    prepare = type(made).prepare_inputs_for_generation

    @functools.wraps(prepare)
    def watched(*args: Any, **kwargs: Any) -> Any:
        inputs = prepare(*args, **kwargs)
        inputs_of_steps.append(inputs["attention_mask"])
        return inputs

    monkeypatch.setattr(type(made), "prepare_inputs_for_generation", watched)
    arguments = {"cache_implementation": "static", "disable_compile": True, "pad_token_id": 0, "do_sample": False}
    made.generate(tokens(length), attention_mask=torch.ones(B, length), max_new_tokens=5, **arguments)
    assert len(inputs_of_steps) == 5
    matrices = [mask for masks in inputs_of_steps for mask in (masks.values() if isinstance(masks, dict) else [masks])]
    assert all(isinstance(matrix, Tensor) for matrix in matrices)


def test_a_lazy_mask_acts_as_a_matrix() -> None:
    real = padded("left").bool()
    rule = lazy_mask(B, N, N, attention_mask=real, dtype=torch.float64)
    assert isinstance(rule, LazyMask)
    permitted = torch.ones(N, N, dtype=torch.bool).tril() & real[:, None, None]
    matrix = torch.zeros(B, 1, N, N, dtype=torch.float64).masked_fill(~permitted, torch.finfo(torch.float64).min)
    assert (rule.shape, rule.ndim, rule.dtype) == (matrix.shape, 4, matrix.dtype)
    for actual, expected in (
        (rule[:, 0, 2:], matrix[:, 0, 2:]),
        (rule.masked_fill(matrix == 0, 1.0), matrix.masked_fill(matrix == 0, 1.0)),
        (torch.zeros(7, 1, 1, 1, 1) + rule, torch.zeros(7, 1, 1, 1, 1) + matrix),
        (torch.cat([rule, rule], -1), torch.cat([matrix, matrix], -1)),
        (torch.where(matrix < 0, rule, 1.0), torch.where(matrix < 0, matrix, 1.0)),
        (rule.to(torch.float32), matrix.to(torch.float32)),
        (lazy_mask(B, N, N, allow_is_causal_skip=False, allow_is_bidirectional_skip=True)[:], torch.zeros(B, 1, N, N)),
    ):
        assert torch.equal(actual, expected)
    assert rule.to("cpu") is rule
    assert copy.copy(rule).mask is rule.mask
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = rule.nothing_like_it


# One layer by itself


def vectors(queries: int = N) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(B, 6, queries, 4), torch.randn(B, 2, N, 4), torch.randn(B, 2, N, 3)


class Bidirectional(nn.Module):
    is_causal = False


PAST = torch.ones(N, N, dtype=torch.bool).tril()
LEFT = torch.arange(N) >= torch.tensor([[0], [2], [3]])
NONE = {"cu_seq_lens_q": None, "sinks": None, "use_cache": True}  # has no effect


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ({"is_causal": False}, PAST | True),
        ({"module": Bidirectional()}, PAST | True),
        (NONE, PAST),  # a layer is causal unless it says otherwise
        ({"sliding_window": 3, "is_causal": True}, PAST.triu(-2)),
        ({"attention_mask": lazy_mask(B, N, N, attention_mask=LEFT)}, PAST & LEFT[:, None, None]),
        ({"attention_mask": (PAST & LEFT[:, None, None])}, PAST & LEFT[:, None, None]),
    ],
)
def test_grouped_heads_another_value_width_and_scale(arguments: dict[str, Any], allowed: Tensor) -> None:
    q, k, v = vectors()
    arguments = {"attention_mask": None, "scaling": 0.3, "output_attentions": True, **arguments}
    out, weights = attention_forward(arguments.pop("module", nn.Module()), q, k, v, **arguments)
    scores = (q @ k.repeat_interleave(3, 1).mT * 0.3).masked_fill(~allowed, -torch.inf)
    expected = scores.softmax(-1).nan_to_num()  # a fully masked row is zero
    assert (weights - expected).abs().max() < 1e-6
    assert out.shape == (B, N, 6, 3)
    assert (out.transpose(1, 2) - expected @ v.repeat_interleave(3, 1)).abs().max() < 1e-6


LOWEST = torch.finfo(torch.float32).min


def test_a_compiled_step_gets_a_matrix() -> None:
    """The position of its query is a tensor, so that one graph serves every step."""
    matrix = lazy_mask(B, 1, N, q_offset=torch.tensor(4), attention_mask=LEFT)
    assert isinstance(matrix, Tensor)
    assert torch.equal(matrix == 0, (LEFT & (torch.arange(N) <= 4))[:, None, None])
    assert matrix.unique().tolist() == [LOWEST, 0]


def test_a_rule_that_takes_single_positions_becomes_a_matrix() -> None:
    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.stack([k <= q, q == 3]).any()

    matrix = lazy_mask(B, N, N, mask_function=rule, use_vmap=True, allow_is_causal_skip=False)
    expected = PAST.clone()
    expected[3] = True
    assert isinstance(matrix, Tensor)
    assert torch.equal(matrix == 0, expected.expand(B, 1, N, N))
    joined = torch.cat([matrix, lazy_mask(B, N, N)], -1)  # as T5Gemma 2 does
    assert torch.equal(joined[..., N:] == 0, PAST.expand(B, 1, N, N))
    assert joined.unique().tolist() == [LOWEST, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cu_seq_lens_q": torch.tensor([0, 5])}, TypeError, "passes cu_seq_lens_q to .*, or give position_ids"),
        ({"indices": torch.tensor([0])}, TypeError, "passes indices to attention, which attnlab does not support"),
        ({"s_aux": torch.zeros(6), "scaling": 0.5, "sinks": torch.zeros(6)}, TypeError, "passes sinks to attention"),
        ({"attention_mask": torch.ones(B, N)}, ValueError, r"shape \(3, 11\) but a layer takes \(batch, 1 or heads"),
        ({"attention_mask": torch.ones(B, 1, N, 5)}, ValueError, "the mask is 11 x 5"),
        ({"sliding_window": 5, "is_causal": False}, ValueError, "a sliding window of 5 is ambiguous"),
        ({"queries": 5, "is_causal": True}, ValueError, "the positions of 5 queries among 11 keys are ambiguous"),
        (
            {"queries": 5, "attention_mask": lazy_mask(B, N, N)},
            ValueError,
            "the mask is for 11 queries and 11 keys, not for 5 and 11",
        ),
    ],
)
def test_unsupported_input_is_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    options = {"attention_mask": None, **arguments}
    with pytest.raises(error, match=message):
        attention_forward(nn.Module(), *vectors(options.pop("queries", N)), **options)


def test_without_transformers_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("attnlab.integrations.huggingface")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"needs transformers; pip install 'attnlab\[hf\]'"):
        import attnlab.integrations.huggingface  # noqa: F401
