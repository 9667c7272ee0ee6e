"""Arguments and the formula of every kind of recurrence, for the tests of the scan; sizes are distinct primes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

B, H, d, w = 2, 3, 5, 7
DECAYS = {"constant decay": (H,), "scalar decay": (B, H, -1), "vector decay": (B, H, -1, d)}
TRANSITIONS = ("delta rule", "rank one")
KINDS = ["plain", *DECAYS, *(t + d for t in TRANSITIONS for d in ("", ", scalar decay", ", vector decay"))]
FORMS = ("recurrent", "chunked", "parallel", "auto")
Case = dict[str, Tensor]


def scan_case(kind: str, N: int, dtype: torch.dtype = torch.float64, seed: int = 0, *, started: bool = True) -> Case:
    """The arguments of one scan, with a nonzero initial state or none."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    tensors = {"q": randn(B, H, N, d), "k": F.normalize(randn(B, H, N, d), dim=-1), "v": randn(B, H, N, w)}
    for name, shape in DECAYS.items():
        if name in kind:
            tensors["log_decay"] = F.logsigmoid(randn(*(N if n == -1 else n for n in shape)) + 1)
    if "delta" in kind:
        tensors["beta"] = randn(B, H, N).sigmoid() * 1.5
    if "rank one" in kind:
        tensors |= {"a": randn(B, H, N, d) / 5, "b": randn(B, H, N, d) / 5}
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return tensors | {"state": randn(B, H, d, w).to(wide)} if started else tensors


def by_hand(case: Case) -> tuple[Tensor, Tensor]:
    """The formula, element by element of the outputs and the state."""
    q, k, v, states = case["q"], case["k"], case["v"], case["state"].clone()
    out = torch.zeros_like(v)
    for b, h, t in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        state = states[b, h]
        read = [sum(case["a"][b, h, t, i] * state[i, j] for i in range(d)) for j in range(w)] if "a" in case else []
        if "log_decay" in case:
            decay = (case["log_decay"][h] if case["log_decay"].dim() == 1 else case["log_decay"][b, h, t]).exp()
            for i in range(d):
                state[i] *= decay if decay.dim() == 0 else decay[i]
        for j in range(w):
            u = v[b, h, t, j]
            if "beta" in case:
                u = case["beta"][b, h, t] * (u - sum(state[i, j] * k[b, h, t, i] for i in range(d)))
            for i in range(d):
                state[i, j] += k[b, h, t, i] * u + (case["b"][b, h, t, i] * read[j] if read else 0)
            out[b, h, t, j] = sum(state[i, j] * q[b, h, t, i] for i in range(d))
    return out, states


def part(case: Case, rows: slice, state: Tensor | None = None) -> Case:
    """These steps, with another initial state, or none."""
    cut = {name: x if x.dim() == 1 else x[:, :, rows] for name, x in case.items() if name != "state"}
    return cut if state is None else {**cut, "state": state}


def leaves(case: Case) -> Case:
    return {name: x.clone().requires_grad_() for name, x in case.items()}
