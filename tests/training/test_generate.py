"""Text generation with a network of known predictions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attnlab.network import Network
from attnlab.training.generate import generate
from attnlab.utils.errors import UserError


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
    for prompt, says in (("", "the prompt is empty"), ("\ud800", "the prompt is not valid Unicode")):
        with pytest.raises(UserError, match=says):
            written(network, prompt, length=1)


def test_context_is_limited() -> None:
    network = Known(limit=7)
    written(network, "abcde", length=5, temperature=0)
    assert [bytes(window).decode() for window in network.seen] == ["abcde", "abcdef", "abcdefg", "bcdefgh", "cdefghi"]


def test_unlimited_context() -> None:
    network = Known(limit=None)
    written(network, "abcde", length=5, temperature=0)
    assert [bytes(window).decode() for window in network.seen] == ["abcdefghi"[:n] for n in range(5, 10)]


def test_cached_generation_is_identical_and_processes_each_byte_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = Network("multihead", ("tokens", 256), ("tokens", 256), 13, embed_dim=16, causal=True)
    read: list[int] = []
    network.embed.register_forward_hook(lambda _, given, __: read.append(given[0].shape[1]))
    with_cache = "".join(generate(network, "abc", length=17, temperature=1, seed=3))
    assert read == [3, *[1] * 10, *[13] * 6]
    monkeypatch.setattr(Network, "caches", lambda self: None)
    assert with_cache == "".join(generate(network, "abc", length=17, temperature=1, seed=3))


@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
def test_cache_is_kept_without_learned_positions(positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    about = {"embed_dim": 16, "causal": True, "options": {"positions": positions, "num_heads": 4}}
    network = Network("multihead", ("tokens", 256), ("tokens", 256), 13, position_embedding="sinusoidal", **about)
    read: list[int] = []
    network.embed.register_forward_hook(lambda _, given, __: read.append(given[0].shape[1]))
    with_cache = "".join(generate(network, "abc", length=90, temperature=1, seed=3))
    assert read == [3, *[1] * 89]
    monkeypatch.setattr(Network, "caches", lambda self: None)
    assert with_cache == "".join(generate(network, "abc", length=90, temperature=1, seed=3))


def test_multibyte_characters_are_complete() -> None:
    pieces = list(generate(Known(), "\N{LATIN SMALL LETTER I WITH ACUTE}", length=3, temperature=0))  # type: ignore[arg-type]
    assert "".join(pieces) == "\N{REPLACEMENT CHARACTER}" * 3, "bytes AE AF B0 begin no character"
    first = "\N{LATIN CAPITAL LETTER A WITH DIAERESIS}".encode()[0]  # C3; the next byte, C4, begins another
    pieces = list(generate(Known(), "\N{LATIN SMALL LETTER A}" + chr(first), length=1, temperature=0))  # type: ignore[arg-type]
    assert len(pieces) == 2
