"""The recurrences as functions: against fla, against each other, packed, with states, and bad arguments."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from recurrence_cases import GATES, HV, B, Case, H, K, V, case_of, close, every_op, gradients, leaves, near, run, start
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from attnlab import ops
from attnlab.ops.scan.functions import retention_log_decay
from peers.adapters import fla

pytestmark = pytest.mark.usefixtures("short_blocks")

# Against fla


class Naive(NamedTuple):
    """A function of fla, the names of its arguments that differ from ours, and its layout."""

    operation: str
    function: str
    names: dict[str, str] = {}
    heads_first: bool = False


NAIVE = {
    "linear_attention": Naive("linear_attn", "naive_recurrent_linear_attn"),
    "retention": Naive("retention", "naive_retention", heads_first=True),
    "simple_gla": Naive("simple_gla", "naive_recurrent_simple_gla"),
    "gla": Naive("gla", "naive_recurrent_gla", {"g": "gk"}),
    "delta_rule": Naive("delta_rule", "delta_rule_recurrence", heads_first=True),
    "gated_delta_rule": Naive("gated_delta_rule", "naive_recurrent_gated_delta_rule"),
    "kda": Naive("kda", "naive_recurrent_kda"),
    "rwkv7": Naive(
        "generalized_delta_rule/dplr",
        "dplr_recurrence",
        {"r": "q", "w": "gk", "a": "alpha", "b": "beta"},
        heads_first=True,
    ),
}


@every_op
@pytest.mark.parametrize(("T", "started"), [(1, True), (67, True), (67, False)])
def test_fla(name: str, T: int, started: bool) -> None:
    naive, case = NAIVE[name], leaves(case_of(name, T, torch.float32))
    try:
        function = fla.naive(naive.operation, naive.function)
    except ImportError as error:
        pytest.skip(str(error))
    has_state = name != "retention"
    state = {"initial_state": start(B, dtype=torch.float32).requires_grad_()} if started and has_state else {}
    theirs = {naive.names.get(n, n): x.transpose(1, 2) if naive.heads_first else x for n, x in case.items()}
    result = function(**theirs, **state, **({"output_final_state": True} if has_state else {}))
    out, last = result if has_state else (result, None)
    out = out.transpose(1, 2) if naive.heads_first else out
    scale = {"scale": K**-0.5} if name == "rwkv7" else {}  # theirs scales by default, fla's kernel does not
    ours = run(name, **case, **state, **scale, output_final_state=has_state)
    near(ours, (out, last), 3e-6)
    inputs = case | state
    expected = gradients((out, last), inputs)
    near(gradients(ours, inputs), expected, 3e-5)
    assert all(gradient.abs().max() > 1e-3 for gradient in expected)


def test_grouped_values_are_those_of_fla() -> None:
    try:
        function = fla.naive("kda", "naive_recurrent_kda")
    except ImportError as error:
        pytest.skip(str(error))
    case = leaves(case_of("kda", 37, torch.float32, heads=HV))
    ours, theirs = run("kda", **case), function(**case, output_final_state=True)
    near(ours, theirs, 3e-6)
    near(gradients(ours, case), gradients(theirs, case), 3e-5)


# Against each other


def identity_pairs(T: int = 37) -> dict[str, tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """Pairs of calls with equal results."""
    case = case_of("gated_delta_rule", T)
    q, k, v, g, beta = case.values()
    gs = case_of("kda", T)["g"]
    same, zero, state, scale = g[..., None].expand(-1, -1, -1, K), g * 0, {"initial_state": start(B)}, {"scale": 0.3}
    constant = retention_log_decay(H, g.device, g.dtype).expand_as(g)
    dplr = {"k": k, "v": beta[..., None] * v, "b": k, **state, "scale": K**-0.5}
    normal = {"q": F.normalize(q, dim=-1, eps=0), "k": k}
    return {
        "no gate": (run("simple_gla", q, k, v, zero, **state), run("linear_attention", q, k, v, **state)),
        "constant gate": (run("simple_gla", q, k, v, constant, **state), run("retention", q, k, v, **state)),
        "equal channels": (run("gla", q, k, v, same, **state), run("simple_gla", q, k, v, g, **state)),
        "delta rule without gate": (
            run("gated_delta_rule", q, k, v, zero, beta, **state, **scale),
            run("delta_rule", q, k, v, beta, **state, **scale),
        ),
        "delta rule with equal channels": (
            run("kda", q, k, v, same, beta, **state),
            run("gated_delta_rule", q, k, v, g, beta, **state),
        ),
        "rank one as a delta rule": (
            run("rwkv7", q, gs, a=-beta[..., None] * gs.exp() * k, **dplr),
            run("kda", q, k, v, gs, beta, **state),
        ),
        "scaled queries": (run("gla", q * 3, k, v, gs, scale=0.1), run("gla", q, k, v, gs, scale=0.3)),
        "normalized inside": (
            run("delta_rule", q, 5 * k, v, beta, use_qk_l2norm_in_kernel=True),
            run("delta_rule", **normal, v=v, beta=beta),
        ),
    }


@pytest.mark.parametrize("pair", identity_pairs(2))
def test_related_recurrences_agree(pair: str) -> None:
    """The epsilon of the norms is 1e-6 of a squared norm."""
    actual, expected = identity_pairs()[pair]
    close(actual, expected, 1e-5 if pair == "normalized inside" else 1e-10)


def test_arguments_can_be_positional_as_in_fla() -> None:
    state = start(B)
    for name in GATES.keys() - {"simple_gla"}:  # which takes g_gamma after g there
        case = case_of(name, 3)
        order = "rwkvab" if name == "rwkv7" else case
        expected = run(name, **case, scale=0.3, initial_state=state)
        close(getattr(ops, name)(*(case[n] for n in order), 0.3, state, True), expected)


@every_op
def test_value_heads_share_queries_and_keys(name: str) -> None:
    case = leaves(case_of(name, 37, heads=HV))
    first = next(iter(case))
    repeated = case | {n: case[n].repeat_interleave(HV // H, 2) for n in (first, "k")}
    ours, expected = (run(name, **inputs, initial_state=start(B, HV)) for inputs in (case, repeated))
    assert ours[0].shape == (B, 37, HV, V)
    close(ours, expected)
    close(gradients(ours, case), gradients(expected, case))


# States and packed sequences


@every_op
@pytest.mark.parametrize("cut", [0, 1, 19])
def test_a_call_resumes_from_a_state(name: str, cut: int) -> None:
    case = case_of(name, 37)
    out, last = run(name, **case, initial_state=start(B))
    first, state = run(name, **{n: x[:, :cut] for n, x in case.items()}, initial_state=start(B))
    second, state = run(name, **{n: x[:, cut:] for n, x in case.items()}, initial_state=state)
    close((torch.cat([first, second], 1), state), (out, last))


@given(st.sampled_from(list(GATES)), st.lists(st.integers(0, 19), max_size=5), st.booleans(), st.booleans())
def test_packed_sequences_are_separate(name: str, lengths: list[int], started: bool, wanted: bool) -> None:
    ends = torch.tensor([0, *lengths]).cumsum(0)
    case = leaves(case_of(name, sum(lengths), batch=1, heads=HV))
    states = start(len(lengths), HV) if started else None
    result = run(name, **case, initial_state=states, output_final_state=wanted, cu_seqlens=ends.to(torch.int32))
    parts = [
        run(
            name,
            **{n: x[:, ends[i] : ends[i + 1]] for n, x in case.items()},
            initial_state=None if states is None else states[i : i + 1],
        )
        for i in range(len(lengths))
    ]
    outs, lasts = [out for out, _ in parts], [last for _, last in parts]
    expected = torch.cat([case["v"][:, :0], *outs], 1), torch.cat(lasts) if wanted and lasts else result[1]
    close(result, expected)
    assert (result[1] is not None) == wanted
    if sum(lengths):
        close(gradients(result[:1], case), gradients(expected[:1], case))


@every_op
def test_without_states_no_boundary_is_read(name: str) -> None:
    case = case_of(name, 37, batch=1)
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        case = {n: mode.from_tensor(x) for n, x in case.items()}
        ends = mode.from_tensor(torch.tensor([0, 11, 37]))
        assert run(name, **case, cu_seqlens=ends, output_final_state=False)[0].shape == (1, 37, H, V)


@every_op
def test_an_initial_state_of_lower_precision(name: str) -> None:
    case, state = case_of(name, 11, torch.bfloat16), start(B, dtype=torch.bfloat16)
    out, last = run(name, **case, initial_state=state)
    assert (out.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    close((out, last), run(name, **case, initial_state=state.float()))


# Precision and derivatives


@every_op
def test_the_error_in_bfloat16_does_not_grow_with_the_length(name: str) -> None:
    case = case_of(name, 4099, torch.bfloat16, batch=1)
    out, state = run(name, **case)
    exact, last = run(name, **{n: x.double() for n, x in case.items()})
    error = (out.double() - exact).abs() / exact.abs().mean((0, 1, 3), keepdim=True).clamp(min=1e-9)
    early, late = error[:, :512].mean(), error[:, -512:].mean()
    assert max(early, late) < torch.finfo(torch.bfloat16).eps  # the rounding of the output
    assert (state.double() - last).norm() < 1e-5 * last.norm()


@every_op
def test_long_sequences_are_stable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # blocks of their usual size
    case = {n: x[:, :, :1] for n, x in case_of(name, 2**15, torch.float32, batch=1).items()}
    for gate in {"g", "w"} & case.keys():  # also the decays whose products underflow
        case[gate] = case[gate] * 10 ** (torch.arange(2**15) // 4096 - 4.0).view(1, -1, *[1] * (case[gate].dim() - 2))
    out, state = run(name, **case)
    exact, last = run(name, **{n: x.double() for n, x in case.items()})
    assert (out.double() - exact).norm() < 1e-5 * exact.norm()
    assert (state.double() - last).norm() < 1e-5 * last.norm()


@every_op
def test_second_derivatives(name: str) -> None:
    case = leaves({n: x[:1, :, :2] for n, x in case_of(name, 19).items()} | {"initial_state": start(1)[:, :2]})
    names, tensors = zip(*case.items(), strict=True)

    def function(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return run(name, **dict(zip(names, inputs, strict=True)))

    torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_autocast_keeps_the_precision() -> None:
    case = case_of("gated_delta_rule", 37, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = run("gated_delta_rule", **case, use_qk_l2norm_in_kernel=True)
    close(ours, run("gated_delta_rule", **case, use_qk_l2norm_in_kernel=True), 0)


# Errors


def zeros(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape, **{"dtype": torch.float64, **options})


T = 11
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gla", {"q": zeros(B, T, K)}, "q must have shape (batch, steps, heads, key width), not (2, 11, 5)"),
    ("rwkv7", {"r": zeros(B, T, K)}, "r must have shape (batch, steps, heads, key width)"),
    ("gla", {"k": zeros(B, T, H, V)}, "k must have the shape of q, (2, 11, 3, 5), not (2, 11, 3, 7)"),
    ("gla", {"v": zeros(B, H, T, V)}, "v must have shape (2, 11, value heads, value width), not (2, 3, 11, 7)"),
    ("retention", {"v": zeros(B)}, "v must have shape (2, 11, value heads, value width), not (2,)"),
    (
        "retention",
        {"v": zeros(B, T, 4, V)},
        "the number of value heads (4) must be a multiple of the number of query heads (3)",
    ),
    ("retention", {"v": zeros(B, T, 1, V)}, "value heads (1) must be a multiple of the number of query heads (3)"),
    (
        "simple_gla",
        {"g": zeros(B, T, H, K)},
        "g must have shape (batch, steps, value heads) = (2, 11, 3), not (2, 11, 3, 5)",
    ),
    (
        "gla",
        {"g": zeros(B, T, H)},
        "g must have shape (batch, steps, value heads, key width) = (2, 11, 3, 5), not (2, 11, 3)",
    ),
    ("kda", {"beta": zeros(B, T, H, 1)}, "beta must have shape (batch, steps, value heads) = (2, 11, 3)"),
    ("kda", {"v": zeros(B, T, HV, V)}, "g must have shape (batch, steps, value heads, key width) = (2, 11, 6, 5)"),
    ("rwkv7", {"w": zeros(B, T, H)}, "w must have shape (batch, steps, value heads, key width) = (2, 11, 3, 5)"),
    ("rwkv7", {"a": zeros(B, T, H)}, "a must have shape (batch, steps, value heads, key width) = (2, 11, 3, 5)"),
    ("gla", {"g": zeros(B, T, H, K) + 0.25}, "must be at most 0, a decay of at most 1, not 0.25; give the logarithm"),
    (
        "gla",
        {"initial_state": zeros(B, H, V, K)},
        "initial_state must have shape (sequences, value heads, key width, value width) = (2, 3, 5, 7), "
        "not (2, 3, 7, 5)",
    ),
    ("gla", {"k": zeros(B, T, H, K, device="meta")}, "k is on meta, q on cpu; move it there"),
    (
        "gla",
        {"cu_seqlens": torch.tensor([0, T])},
        "cu_seqlens needs the sequences packed in one row, a batch of 1, not 2",
    ),
    (
        "gla",
        {"cu_seqlens": torch.tensor([[0, T]])},
        "cu_seqlens must have shape (sequences + 1,) and dtype int32 or int64, not (1, 2) and torch.int64",
    ),
    ("gla", {"cu_seqlens": zeros(2)}, "not (2,) and torch.float64"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_invalid_arguments_are_refused(name: str, change: Case, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run(name, **{**case_of(name, T), **change})


@pytest.mark.parametrize("ends", [[0], [1, T], [0, T - 1], [0, 7, 5, T], [0, T + 1]])
@pytest.mark.parametrize("wanted", [True, False])
def test_boundaries_must_cover_the_row(ends: list[int], wanted: bool) -> None:
    case = case_of("gla", T, batch=1)
    with pytest.raises(ValueError, match=re.escape(f"must ascend from 0 to 11, the number of steps, not {ends}")):
        run("gla", **case, cu_seqlens=torch.tensor(ends), output_final_state=wanted)


def test_a_state_is_needed_for_every_packed_sequence() -> None:
    with pytest.raises(ValueError, match=re.escape("= (2, 3, 5, 7), not (1, 3, 5, 7)")):
        run("gla", **case_of("gla", T, batch=1), initial_state=start(1), cu_seqlens=torch.tensor([0, 4, T]))


@every_op
def test_integers_are_refused(name: str) -> None:
    for n, x in (case := case_of(name, T)).items():
        with pytest.raises(TypeError, match=f"{n} must be a float tensor, not torch.int64"):
            run(name, **{**case, n: x.long()})
