"""Random rows with padding and documents, and what a loop says about them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from attnlab import masks
from attnlab.masks import BoundMask, Mask


class Rows(NamedTuple):
    """Rows of tokens: the document of each, and whether it is real; None for one document, or without padding."""

    batch: int
    length: int
    ids: list[list[int]] | None
    real: list[list[bool]] | None
    shared: bool
    """Whether all rows have the documents of the first."""
    same_padding: bool
    """Whether all rows have the padding of the first."""

    def mask(self, queries: int, total: int, dtype: torch.dtype = torch.long) -> BoundMask:
        """The mask of the last ``queries`` of the first ``total`` tokens."""
        rule: Mask = masks.causal()
        if self.ids is not None:
            ids = torch.tensor(self.ids, dtype=dtype).view(self.batch, self.length)
            rule = rule & masks.documents(ids[0] if self.shared else ids)
        if self.real is not None:
            real = torch.tensor(self.real, dtype=torch.bool).view(self.batch, self.length)
            rule = rule & masks.from_key_padding_mask(~real[: 1 if self.same_padding else self.batch, :total])
        return rule.bind(queries, total, shape=(self.batch, 1))

    def id(self, row: int, token: int) -> int:
        return 0 if self.ids is None else self.ids[0 if self.shared else row][token]

    def is_real(self, row: int, token: int) -> bool:
        return self.real is None or self.real[0 if self.same_padding else row][token]

    def document(self, row: int, token: int) -> list[int]:
        """The real tokens of the document of a token, up to this one."""
        return [t for t in range(token + 1) if self.is_real(row, t) and self.id(row, t) == self.id(row, token)]

    def interrupted(self) -> bool:
        """Whether a document of some row goes on after another one."""
        for row in range(self.batch):
            seen = [self.id(row, t) for t in range(self.length) if self.is_real(row, t)]
            starts = [one for i, one in enumerate(seen) if i == 0 or seen[i - 1] != one]
            if len(set(starts)) < len(starts):
                return True
        return False


@st.composite
def rows(draw: st.DrawFn, *, contiguous: bool = False) -> Rows:
    """Rows of up to 9 tokens and 3 documents; with ``contiguous`` no document is interrupted.

    Drawn uniformly from a seed: hypothesis prefers lists of equal values, which are one document without padding.
    """
    batch, length = draw(st.integers(1, 3)), draw(st.sampled_from((9, 7, 5, 2, 1, 0)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    ids = torch.randint(-1, 2, (batch, length), generator=generator)
    if contiguous:
        ids = ids.sort(1).values
    real = torch.rand(batch, length, generator=generator) < 0.7
    packed, padded = draw(st.sampled_from(((True, True), (True, False), (False, True), (False, False))))
    shared, same_padding = draw(st.booleans()), draw(st.booleans())
    return Rows(
        batch, length, ids.tolist() if packed else None, real.tolist() if padded else None, shared, same_padding
    )


def numbered(batch: int, length: int) -> Tensor:
    """A different positive number per token, (B, N, 1)."""
    return torch.arange(1, batch * length + 1).double().view(batch, length, 1)
