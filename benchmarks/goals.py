"""What shall be reached, and which part measures it: the table of docs/performance.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Args:
        key: what the rows that serve it carry.
        against: whom.
        case: in what.
        at_least: what shall be reached.
        part: who measures it.
    """

    key: str
    against: str
    case: str
    at_least: str
    part: str


PARITY = "1.0×, lower quartile 0.95"

GOALS = [
    Goal("torch", "`nn.MultiheadAttention(need_weights=False)`", "all shapes", PARITY, "layers"),
    Goal("x-transformers", "x-transformers, `flash=True`", "all shapes", PARITY, "layers"),
    Goal("transformers", "Hugging Face, `sdpa`", "all shapes", PARITY, "layers"),
    Goal("keras", "Keras on PyTorch", "all shapes", PARITY, "layers"),
    Goal("fast-path", "`nn.MultiheadAttention` in eval, its fast path", "2,048 tokens and more", "1.4×", "layers"),
    Goal("memory", "`nn.MultiheadAttention` in eval", "peak memory at 8,192 tokens", "1/15", "length"),
    Goal(
        "padded-eval",
        "`nn.MultiheadAttention` in eval, padded",
        "(8, 512, 512, 8), 56 % real, forward",
        "4×",
        "padding",
    ),
    Goal("padded-training", "`nn.MultiheadAttention`, padded", "forward with backward", "2.0×", "padding"),
    Goal("window", "`nn.MultiheadAttention`, causal", "window of 256, 8,192 tokens, forward", "3.5×", "cores"),
    Goal("local", "local-attention", "window of 256, the core, 8,192 tokens", "2.5×", "cores"),
    Goal("linear", "performer-pytorch, causal", "linear attention, the core, 8,192 tokens", "12×", "cores"),
    Goal("decoding", "Hugging Face, `DynamicCache`", "one token after 2,048", "2.5×", "decoding"),
    Goal("grouped", "SDPA, `enable_gqa`", "one token after 2,048, 2 of 8 key heads", "1.6×", "decoding"),
    Goal("dropout", "SDPA's own dropout", "training, up to 512 tokens", "1.25×", "cores"),
    Goal("growth", "1,024 to 8,192 tokens", "window and linear, time and peak memory", "N^1.15 at most", "length"),
    Goal("cards", "the card", "every mechanism, 1,024 to 8,192 tokens", "as the card says", "mechanisms"),
]
