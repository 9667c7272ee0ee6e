"""Text generation with a network of known predictions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import refused
from torch import Tensor, nn

from attnlab.network import Network
from attnlab.training.generate import generate


class Known(nn.Module):
    """Predicts b + 1, or less likely b + 2, after byte b; records its inputs of at most ``limit`` bytes."""

    def __init__(self, limit: int | None = 7) -> None:
        super().__init__()
        self.limit = limit
        self.seen: list[list[int]] = []
        self.weight = nn.Parameter(torch.ones(1))

    def caches(self) -> None:
        return None

    def forward(self, tokens: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen.append(tokens[0].tolist())
        scores = torch.full((*tokens.shape, 256), -20.0)
        scores.scatter_(-1, ((tokens + 1) % 256)[..., None], 1.0)
        scores.scatter_(-1, ((tokens + 2) % 256)[..., None], 0.0)
        return scores * self.weight


def written(network: Known, prompt: str, **how: float) -> str:
    return "".join(generate(network, prompt, **how))  # type: ignore[arg-type]


def test_temperature_zero_takes_the_most_likely_byte() -> None:
    assert written(Known(), "abc", length=5, temperature=0) == "defgh"
    assert written(Known(), "abc", length=5, temperature=9, top_k=1) == "defgh"


def test_top_k_and_temperature() -> None:
    for text in (written(Known(), "a", length=13, temperature=5, top_k=2, seed=s) for s in range(3)):
        steps = {ord(b) - ord(a) for a, b in zip("a" + text, text, strict=False)}
        assert steps == {1, 2}
    hot = written(Known(), "a", length=97, temperature=100)
    assert len({ord(b) - ord(a) for a, b in zip("a" + hot, hot, strict=False)}) > 5


def test_same_seed_generates_the_same_text() -> None:
    texts = [written(Known(), "a", length=23, temperature=1, seed=seed) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


def test_invalid_prompts_are_refused() -> None:
    network = Known()
    written(network, "a\udcff", length=1, temperature=0)  # a byte of the command line that is no UTF-8
    assert network.seen[0] == [ord("a"), 0xFF]
    for prompt, message in (("", "the prompt is empty"), ("\ud800", "the prompt is not valid Unicode")):
        refused(message, written, network, prompt, length=1)


@pytest.mark.parametrize("limit", [7, None])
def test_limit_of_the_context(limit: int | None) -> None:
    network = Known(limit)
    written(network, "abcde", length=5, temperature=0)
    windows = ["abcde", "abcdef", "abcdefg", "abcdefgh", "abcdefghi"]
    assert [bytes(window).decode() for window in network.seen] == [window[-(limit or 99) :] for window in windows]


UNLIMITED = ("sinusoidal", 90, [3, *[1] * 89])


@pytest.mark.parametrize(
    ("positions", "position_embedding", "length", "read"),
    [("none", "learned", 17, [3, *[1] * 10, *[13] * 6]), *((p, *UNLIMITED) for p in ("none", "rotary", "alibi"))],
)
def test_cached_generation_is_identical_and_processes_each_byte_once(
    positions: str, position_embedding: str, length: int, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the training length, 13, learned positions shift, so that nothing is cached."""
    torch.manual_seed(0)
    about: Any = {"embed_dim": 16, "causal": True, "options": {"positions": positions, "num_heads": 4}}
    shape = (("tokens", 256), ("tokens", 256), 13)
    network = Network("multihead", *shape, position_embedding=position_embedding, **about)
    lengths: list[int] = []
    network.embed.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    with_cache = list(generate(network, "abc", length=length, temperature=1, seed=3))
    assert lengths == read
    monkeypatch.setattr(Network, "caches", lambda self: None)
    assert with_cache == list(generate(network, "abc", length=length, temperature=1, seed=3))


def test_multibyte_characters_are_complete() -> None:
    pieces = list(generate(Known(), "\N{LATIN SMALL LETTER I WITH ACUTE}", length=3, temperature=0))  # type: ignore[arg-type]
    assert "".join(pieces) == "\N{REPLACEMENT CHARACTER}" * 3, "bytes AE AF B0 begin no character"
    first = "\N{LATIN CAPITAL LETTER A WITH DIAERESIS}".encode()[0]  # C3; the next byte, C4, begins another
    pieces = list(generate(Known(), "\N{LATIN SMALL LETTER A}" + chr(first), length=1, temperature=0))  # type: ignore[arg-type]
    assert len(pieces) == 2
