"""The goals of docs/performance.md and the parts that measure them."""

from __future__ import annotations

from typing import NamedTuple


class Goal(NamedTuple):
    """One line of the table; the rows of ``part`` that belong to it carry its ``key``."""

    key: str
    baseline: str
    case: str
    target: str
    part: str


PARITY = "1.0×, lower quartile 0.95"
MHA = "`nn.MultiheadAttention`"

GOALS = [
    Goal("torch", "`nn.MultiheadAttention(need_weights=False)`", "all shapes", PARITY, "layers"),
    Goal("x-transformers", "x-transformers, `flash=True`", "all shapes", PARITY, "layers"),
    Goal("transformers", "Hugging Face, `sdpa`", "all shapes", PARITY, "layers"),
    Goal("keras", "Keras on PyTorch", "all shapes", PARITY, "layers"),
    Goal("fast-path", f"{MHA} in eval mode, fast path", "2,048 tokens and more", "1.4×", "layers"),
    Goal("memory", f"{MHA} in eval mode", "peak memory at 8,192 tokens", "1/15", "length"),
    Goal("padded-eval", f"{MHA} in eval mode, padded", "(8, 512, 512, 8), 56 % real, forward", "4×", "padding"),
    Goal("padded-training", f"{MHA}, padded", "forward + backward", "2.0×", "padding"),
    Goal("window", f"{MHA}, causal", "window of 256, 8,192 tokens, forward", "3.5×", "cores"),
    Goal("local", "local-attention", "window of 256, attention only, 8,192 tokens", "2.5×", "cores"),
    Goal("linear", "performer-pytorch, causal", "linear attention only, 8,192 tokens", "12×", "cores"),
    Goal("linformer", "linformer", "layer, 8,192 tokens, forward", "1.0×", "approximations"),
    Goal("nystrom-attention", "nystrom-attention", "layer, 8,192 tokens, forward", "1.0×", "approximations"),
    Goal("decoding", "Hugging Face, `DynamicCache`", "one token after 2,048", "2.5×", "decoding"),
    Goal("grouped", "SDPA, `enable_gqa`", "one token after 2,048, 2 of 8 key heads", "1.6×", "decoding"),
    Goal("dropout", "SDPA with dropout", "training, up to 512 tokens", "1.25×", "cores"),
    Goal("growth", "1,024 to 8,192 tokens", "sliding window and linear attention", "at most N^1.15", "length"),
    Goal(
        "transformers-delta",
        "transformers, plain gated delta rule",
        "4,096 tokens",
        "1.5×, training 1.3×",
        "recurrences",
    ),
    Goal("transformers-mamba2", "transformers, scan of Mamba-2", "2,048 tokens, forward", "1.5×", "recurrences"),
    Goal("fla", "fla, naive functions", "each recurrence, 2,048 tokens, forward", "2×", "recurrences"),
    Goal("crossover", "our multihead", "each recurrence, training", "faster from 1,024 tokens", "recurrences"),
    Goal("recurrent-growth", "1,024 to 32,768 tokens", "each recurrence, training", "at most N^1.15", "recurrences"),
    Goal(
        "recurrent-decoding",
        "our multihead and its KV cache",
        "each recurrence, one token after 8,192",
        "1.0×, 1/10 of the memory",
        "recurrences",
    ),
    Goal("cards", "cost formula of the card", "every mechanism, 1,024 to 8,192 tokens", "formula", "mechanisms"),
]
