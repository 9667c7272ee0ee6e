"""The example task of the lessons: a small network learns to repeat a word that it has read once.

The same text and task for every mechanism, so that the attention weights of two lessons can be compared.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.catalog import registry
from attnlab.network import Block, Inputs, Network, Outputs, auxiliary_losses
from attnlab.nn.attention import Attention
from attnlab.tasks.base import IGNORE

TEXT = "blacksmith blacksmith"
LENGTH = 24  # of a training text
LETTERS = "abcdefghijklmnopqrstuvwxyz "
SPACE = LETTERS.index(" ")
SYMBOLS = LETTERS + "_"
BLANK = SYMBOLS.index("_")
BLANKED = TEXT[:-10] + "bl_cksm_th"  # the text of a mechanism that cannot be causal
LEARNED = 0.999  # the accuracy at which training stops
STEPS_PER_CHECK = 100


class Words(NamedTuple):
    """The made-up words of the training texts: their shortest and longest length, and how often a new one begins."""

    shortest: int = 5
    longest: int = 10
    restart: int = LENGTH


DEFAULT_WORDS = Words()


class Example(NamedTuple):
    """A trained network and its attention weights on ``text``.

    ``accuracy`` is measured on 1,000 new texts and counts only predictable letters: those of a repeated word.
    ``attention_weights`` is (layers, heads, N, N).
    """

    network: Network
    text: str
    accuracy: float
    steps: int
    attention_weights: Tensor


def train_example(
    model: str,
    *,
    text: str | None = None,
    words: Words = DEFAULT_WORDS,
    max_steps: int = 3000,
    seed: int = 0,
    **options: Any,
) -> Example:
    """Train a causal network of two layers, 32 wide, to repeat a word, until its accuracy is 99.9 %.

    A training text is a made-up word of 5 to 10 different letters and a space, repeated to 24 letters. Every step
    draws 64 new texts, so no text can be memorized. The loss covers the letters from the first repetition on.
    Training takes a few seconds on one core; the same seed gives the same network.

    The network of a mechanism that cannot be causal fills gaps instead: half of the letters after the first word are
    replaced by a blank, and the loss covers these.

    Args:
        model: the mechanism.
        text: the text whose attention weights are returned; `TEXT` or `BLANKED` by default.
        words: shorter words for mechanisms with a narrow attention pattern, and ``restart`` for one that cannot
            attend beyond fixed boundaries.
        max_steps: stop after so many steps even if the task is not learned.
        seed: of the parameters and the training texts.
        **options: of the mechanism.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = untrained_example(model, options)
        accuracy, steps = _train(network, words, max_steps)
    text = text or (TEXT if network.inputs.size == len(LETTERS) else BLANKED)
    return Example(network, text, accuracy, steps, _attention_weights(network, text))


def untrained_example(model: str, options: dict[str, Any]) -> Network:
    """The network of `train_example` before its training."""
    causal = "causal" in registry.entry(model).card.supports
    symbols = len(LETTERS if causal else SYMBOLS)
    return Network(
        model,
        Inputs("tokens", symbols),
        Outputs("tokens", symbols),
        length=LENGTH,
        embed_dim=32,
        layers=2,
        options=options,
        causal=causal,
        mlp=False,
    )


def continue_training(network: Network, *, steps: int, seed: int = 0) -> float:
    """Train a network of `train_example` for up to ``steps`` steps more, in place, and return its accuracy.

    With ``steps=0`` the network is only evaluated, for example after a change to its layers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _train(network, DEFAULT_WORDS, steps)[0]


def _train(network: Network, words: Words, max_steps: int) -> tuple[float, int]:
    """The accuracy and the number of steps taken; the last step is the first check with `LEARNED`."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(1, max_steps + 1):
        with auxiliary_losses(network) as others:
            loss, _ = _loss(network.train(), *_task(network, 64, words))
        optimizer.zero_grad()
        sum(others, loss).backward()
        optimizer.step()
        if step % STEPS_PER_CHECK == 0 and (accuracy := _accuracy(network, words)) >= LEARNED:
            return accuracy, step
    return _accuracy(network, words), max_steps


@torch.no_grad()
def _accuracy(network: Network, words: Words) -> float:
    return _loss(network.eval(), *_task(network, 1000, words))[1]


def _task(network: Network, batch: int, words: Words) -> tuple[Tensor, Tensor]:
    """Texts and targets: the next letter for a causal network, the blanked letters for any other."""
    text, following = _repeated_words(batch, words)
    if network.mechanisms()[0].causal:
        return text, following
    repeated = F.pad(following[:, :-1] != IGNORE, (1, 0))  # the letters that follow a position with a target
    blanked = repeated & (torch.rand(text.shape) < 0.5)
    return text.masked_fill(blanked, BLANK), text.masked_fill(~blanked, IGNORE)


def _repeated_words(batch: int, words: Words) -> tuple[Tensor, Tensor]:
    """Texts (B, N), and the next letter at each position, or `IGNORE` where it cannot be predicted."""
    parts = [_repeated_word(batch, words) for _ in range(LENGTH // words.restart)]
    return torch.cat([text for text, _ in parts], 1), torch.cat([targets for _, targets in parts], 1)


def _repeated_word(batch: int, words: Words) -> tuple[Tensor, Tensor]:
    letters = torch.rand(batch, SPACE).argsort(-1)  # different letters, in random order
    size = torch.randint(words.shortest, words.longest + 1, (batch, 1))
    offset = torch.arange(words.restart + 1) % (size + 1)
    text = torch.where(offset == size, SPACE, letters.gather(1, offset))
    targets = text[:, 1:].masked_fill(torch.arange(words.restart) < size, IGNORE)  # the first space ends the word
    if words.restart < LENGTH:
        targets[:, -1] = IGNORE  # the first letter of the next word
    return text[:, :-1], targets


def _loss(network: Network, text: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    logits = network(text)
    loss = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE)
    predictable = targets != IGNORE
    return loss, (logits.argmax(-1) == targets)[predictable].float().mean().item()


@torch.no_grad()
def _attention_weights(network: Network, text: str) -> Tensor:
    x = network.position_embedding(network.embed(torch.tensor([[SYMBOLS.index(letter) for letter in text]])))
    layers = []
    for block in network.blocks:
        assert isinstance(block, Block)
        assert isinstance(block.attention, Attention)
        layers.append(block.attention.attention_weights(block.norm1(x))[0])
        x = block(x, None)
    return torch.stack(layers)
