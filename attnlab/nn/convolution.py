"""The short causal convolution that recurrences apply to queries, keys and values."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.nn.arguments import check_positive_int
from attnlab.nn.select import select_channels
from attnlab.ops.convolution import causal_convolution
from attnlab.ops.scan.sequences import Sequences
from attnlab.utils.tracing import can_keep_tensors


class ShortConvolution(nn.Module):
    """``y_t = Σ_{j < size} w_j ⊙ x_{t-j}``: each channel is a weighted sum of its last values in the same document.

    Source: Dao & Gu 2024, "Transformers are SSMs", section 7; Yang et al. 2024, "Gated Delta Networks", section 3.4.

    Args:
        channels: C.
        size: the number of tokens, the current one included.
        bias: whether a learned vector is added.
        device: the device of the weight.
        dtype: the dtype of the weight.

    Raises:
        TypeError: for a size that is not an integer.
        ValueError: for a size below 1.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.size = check_positive_int("short_conv", size)
        self.weight = nn.Parameter(torch.empty(channels, size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights and the bias uniformly, as `nn.Conv1d` does for one input channel."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(self.size), 1 / math.sqrt(self.size))

    def forward(
        self, x: Float[Tensor, "B N C"], sequences: Sequences, before: Float[Tensor, "B S C"] | None = None
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B S C"]]:
        """Return the sums, and the last S = size - 1 tokens, which the next call continues.

        Args:
            x: the tokens, in the order of ``sequences``.
            sequences: the documents and the padding of the rows.
            before: the last S tokens of the previous call; zeros by default.
        """
        weight, N, S = self.weight.to(x.dtype), x.shape[1], self.size - 1
        if not can_keep_tensors() or before is not None or N < S or sequences.age() is not None:
            taps, kept = earlier_tokens(x, S, sequences, before)
            out = x * weight[:, 0]
            for back, tap in enumerate(taps, 1):
                out = torch.addcmul(out, tap, weight[:, back])
        else:
            out = causal_convolution(x, weight)
            kept = x[:, N - S :] if sequences.last() is None else _last_tokens(_continued(x, S), S, sequences, None, N)
        return out if self.bias is None else out + self.bias.to(x.dtype), kept

    def select(self, channels: list[int]) -> None:
        """Keep these channels, in place."""
        self.weight = select_channels(self.weight, channels)
        if self.bias is not None:
            self.bias = select_channels(self.bias, channels)

    def extra_repr(self) -> str:
        """Return the sizes that a printed network shows."""
        return f"channels={self.weight.shape[0]}, size={self.size}"


def earlier_tokens(
    x: Float[Tensor, "B N C"], count: int, sequences: Sequences, before: Float[Tensor, "B S C"] | None = None
) -> tuple[list[Float[Tensor, "B N C"]], Float[Tensor, "B S C"]]:
    """Return the tokens 1, ..., S steps before each one in the same document, and the last S tokens of each row.

    Zeros stand for tokens that do not exist.

    Args:
        x: the tokens, in the order of ``sequences``.
        count: S.
        sequences: the documents and the padding of the rows.
        before: the last S tokens of the previous call, which ``x`` continues; zeros by default.
    """
    N = x.shape[1]
    if before is not None and before.shape[1] != count:
        raise ValueError(f"the cache holds {before.shape[1]} earlier tokens of the convolution, not {count}")
    tokens, age = _continued(x, count, before), sequences.age()
    taps = [tokens[:, count - back : count - back + N] for back in range(1, count + 1)]
    if age is not None:
        taps = [tap.masked_fill((age < back).unsqueeze(-1), 0.0) for back, tap in enumerate(taps, 1)]
    return taps, _last_tokens(tokens, count, sequences, age, N)


def _continued(x: Tensor, S: int, before: Tensor | None = None) -> Tensor:
    """``x`` after the last S tokens of the previous call, or zeros."""
    return torch.cat([x.new_zeros(x.shape[0], S, x.shape[2]) if before is None else before, x], 1)


def _last_tokens(tokens: Tensor, S: int, sequences: Sequences, age: Tensor | None, N: int) -> Tensor:
    """The last S tokens of each row that are real and belong to its last document; zeros for the others."""
    count = sequences.last()
    if count is None and age is None:
        return tokens[:, N:]
    if count is None:
        count = torch.full((1,), N, device=tokens.device)
    position = torch.arange(S, device=tokens.device)
    kept = tokens.gather(1, (count[:, None] + position)[..., None].expand(tokens.shape[0], -1, tokens.shape[2]))
    if age is None or not N:
        return kept
    age, count = age.expand(tokens.shape[0], -1), count.expand(tokens.shape[0])
    newest = age.gather(1, (count - 1).clamp_min(0)[:, None])  # of padding: larger than any length
    return kept.masked_fill((S - 1 - position > newest).unsqueeze(-1), 0.0)
