"""What a mechanism says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from attnlab.utils.errors import nearest

Kind = Literal["exact", "approximation", "another operator"]

CAPABILITIES = {
    "causal": "may be told to look back only",
    "mask": "takes a mask: who may look at whom",
    "attn_bias": "takes numbers to add to the scores",
    "context": "looks at another sequence (cross-attention)",
    "cache": "decodes one step at a time",
    "weights": "shows who looks at whom",
    "equivariant": "knows no order: permuted tokens in, the same permutation out",
}


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a mechanism says of itself; the index, the command line and the lesson's header are drawn from it.

    Write it with literals only: it is read from the source text, without importing torch.
    Costs are functions of n (length), d (embed_dim) and h (heads). ``parent`` names the mechanism that it changes.

    Raises:
        ValueError: for a kind or a capability that does not exist.
    """

    title: str
    summary: str
    paper: str
    authors: str
    year: int
    arxiv: str | None
    kind: Kind
    heads: str
    time: str
    memory: str
    representation: str
    use_case: str
    supports: tuple[str, ...]
    parent: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(get_args(Kind))}")
        if isinstance(self.supports, str):
            raise ValueError(f"supports is the text {self.supports!r}; write a tuple: ({self.supports!r},)")
        for word in self.supports:
            if word not in CAPABILITIES:
                near = nearest(word, CAPABILITIES)
                hint = f"did you mean {near}?" if near else f"there are: {', '.join(CAPABILITIES)}"
                raise ValueError(f"supports names {word!r}; {hint}")
