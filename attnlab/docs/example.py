"""The example task of the lessons: a small network learns to repeat a word that it has read once.

The same text and task for every mechanism, so that the attention weights of two lessons can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.network import Block, Inputs, Network, Outputs
from attnlab.tasks.base import IGNORE

TEXT = "blacksmith blacksmith"
LETTERS = "abcdefghijklmnopqrstuvwxyz "
SPACE = LETTERS.index(" ")
LEARNED = 0.99  # the accuracy at which training stops
STEPS_PER_CHECK = 100


class Example(NamedTuple):
    """A trained network and its attention weights on `TEXT`.

    ``accuracy`` is measured on 1,000 new texts and counts only predictable letters: those of a repeated word.
    ``attention_weights`` is (layers, heads, N, N).
    """

    network: Network
    accuracy: float
    steps: int
    attention_weights: Tensor


def train_example(model: str, *, max_steps: int = 3000, seed: int = 0, **options: Any) -> Example:
    """Train a causal network of two layers, 32 wide, to repeat a word, until it is right in 99 % of the cases.

    A training text is a made-up word of 5 to 10 different letters and a space, repeated to 24 letters. Every step
    draws 64 new texts, so no text can be memorized. The loss covers the letters from the first repetition on.
    Training takes a few seconds on one core; the same seed gives the same network.
    """
    with _seeded(seed):
        network = Network(
            model,
            Inputs("tokens", len(LETTERS)),
            Outputs("tokens", len(LETTERS)),
            length=24,
            embed_dim=32,
            layers=2,
            options=options,
            causal=True,
            mlp=False,
        )
        accuracy, steps = _train(network, max_steps)
    return Example(network, accuracy, steps, _attention_weights(network))


def continue_training(network: Network, *, steps: int, seed: int = 0) -> float:
    """Train a network of `train_example` for up to ``steps`` steps more, in place, and return its accuracy.

    With ``steps=0`` the network is only evaluated, for example after a change to its layers.
    """
    with _seeded(seed):
        return _train(network, steps)[0]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _train(network: Network, max_steps: int) -> tuple[float, int]:
    """The accuracy and the number of steps taken; the last step is the first check with `LEARNED`."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(1, max_steps + 1):
        loss, _ = _loss(network.train(), *_repeated_words(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % STEPS_PER_CHECK == 0 and (accuracy := _accuracy(network)) >= LEARNED:
            return accuracy, step
    return _accuracy(network), max_steps


@torch.no_grad()
def _accuracy(network: Network) -> float:
    return _loss(network.eval(), *_repeated_words(1000))[1]


def _repeated_words(batch: int, length: int = 24) -> tuple[Tensor, Tensor]:
    """Texts (B, N), and the next letter at each position, or `IGNORE` where it cannot be predicted."""
    letters = torch.rand(batch, SPACE).argsort(-1)  # different letters, in random order
    size = torch.randint(5, 11, (batch, 1))
    offset = torch.arange(length + 1) % (size + 1)
    text = torch.where(offset == size, SPACE, letters.gather(1, offset))
    predictable = torch.arange(length) >= size  # from the first space on, which ends the word
    return text[:, :-1], text[:, 1:].masked_fill(~predictable, IGNORE)


def _loss(network: Network, text: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    logits = network(text)
    loss = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE)
    predictable = targets != IGNORE
    return loss, (logits.argmax(-1) == targets)[predictable].float().mean().item()


@torch.no_grad()
def _attention_weights(network: Network) -> Tensor:
    text = torch.tensor([[LETTERS.index(letter) for letter in TEXT]])
    x = network.position_embedding(network.embed(text))
    layers = []
    for block in network.blocks:
        assert isinstance(block, Block)
        layers.append(block.attention.attention_weights(block.norm1(x))[0])
        x = block(x, None)
    return torch.stack(layers)
