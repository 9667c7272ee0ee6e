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

    def mask(self, queries: int, total: int, dtype: torch.dtype = torch.long) -> BoundMask:
        """The mask of the last ``queries`` of the first ``total`` tokens."""
        rule: Mask = masks.causal()
        if self.ids is not None:
            ids = torch.tensor(self.ids, dtype=dtype).view(self.batch, self.length)
            rule = rule & masks.documents(ids[0] if self.shared else ids)
        if self.real is not None:
            real = torch.tensor(self.real, dtype=torch.bool).view(self.batch, self.length)
            rule = rule & masks.from_key_padding_mask(~real[:, :total])
        return rule.bind(queries, total, shape=(self.batch, 1))

    def id(self, row: int, token: int) -> int:
        return 0 if self.ids is None else self.ids[0 if self.shared else row][token]

    def is_real(self, row: int, token: int) -> bool:
        return self.real is None or self.real[row][token]

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
    """Rows; with ``contiguous`` no document is interrupted."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(0, 9))

    def lists(values: st.SearchStrategy[int]) -> list[list[int]]:
        return draw(st.lists(st.lists(values, min_size=length, max_size=length), min_size=batch, max_size=batch))

    ids = lists(st.integers(-2, 2)) if draw(st.booleans()) else None
    if ids is not None and contiguous:
        ids = [sorted(row) for row in ids]
    real = lists(st.booleans()) if draw(st.booleans()) else None
    return Rows(batch, length, ids, None if real is None else [[*map(bool, row)] for row in real], draw(st.booleans()))


def numbered(batch: int, length: int) -> Tensor:
    """A different positive number per token, (B, N, 1)."""
    return torch.arange(1, batch * length + 1).double().view(batch, length, 1)
