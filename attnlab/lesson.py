"""What all lessons share: a text to look at, and a way to measure a cost.

Both take any mechanism by name, so that the maps and curves of two lessons can be laid side by side.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab import registry
from attnlab.network import Block, Inputs, Network, Outputs
from attnlab.task import IGNORE

TEXT = "blacksmith blacksmith"
LETTERS = "abcdefghijklmnopqrstuvwxyz "
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)


class Reading(NamedTuple):
    """What a small network learned: the network, its accuracy on new words, and its maps of `TEXT`.

    ``accuracy`` counts only letters that can be known: those of a word that was read before.
    ``maps`` is (layers, heads, N, N).
    """

    network: Network
    accuracy: float
    maps: Tensor


def read_text(model: str, *, steps: int = 600, seed: int = 0, **options: Any) -> Reading:
    """Teach a causal network of two layers to go on with a word that it has read once, then show its maps.

    A training text is a made-up word of 5 to 10 different letters and a space, repeated to 24 letters; every step
    brings 64 new ones, so nothing can be learned by heart. Only letters from the second time on are asked for.
    A few seconds on one core; the same seed gives the same maps.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kinds = len(LETTERS)
        network = Network(
            model,
            Inputs("tokens", kinds),
            Outputs("tokens", kinds),
            length=24,
            embed_dim=32,
            layers=2,
            options=options,
            causal=True,
            mlp=False,
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        for _ in range(steps):
            loss, _ = _loss(network, *_repeated_words(64))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            _, accuracy = _loss(network.eval(), *_repeated_words(1000))
            text = torch.tensor([[LETTERS.index(letter) for letter in TEXT]])
            return Reading(network, accuracy, _maps(network, text))


def _repeated_words(batch: int, length: int = 24) -> tuple[Tensor, Tensor]:
    """Texts (B, N) and, at each place, the letter to come, or `IGNORE` where it cannot be known."""
    letters = torch.rand(batch, len(LETTERS) - 1).argsort(-1)  # different letters, in random order
    size = torch.randint(5, 11, (batch, 1))
    place = torch.arange(length + 1) % (size + 1)
    text = torch.where(place == size, len(LETTERS) - 1, letters.gather(1, place))
    known = torch.arange(length) >= size  # the space after the first word tells how long it is
    return text[:, :-1], text[:, 1:].masked_fill(~known, IGNORE)


def _loss(network: Network, text: Tensor, following: Tensor) -> tuple[Tensor, float]:
    scores = network(text)
    loss = F.cross_entropy(scores.transpose(1, 2), following, ignore_index=IGNORE)
    asked = following != IGNORE
    return loss, (scores.argmax(-1) == following)[asked].float().mean().item()


def _maps(network: Network, text: Tensor) -> Tensor:
    x = network.position_embedding(network.embed(text))
    maps = []
    for block in network.blocks:
        assert isinstance(block, Block)
        maps.append(block.attention.weights(block.norm1(x))[0])
        x = block(x, None)
    return torch.stack(maps)


def measure_cost(
    layers: Mapping[str, tuple[str, Mapping[str, Any]]], *, embed_dim: int = 64, rounds: int = 7
) -> dict[str, list[float]]:
    """The time of a forward pass at each of `LENGTHS`, as a multiple of the first layer's at the first length.

    One sequence, float32, one thread, causal, without gradients. All layers and lengths take turns, round after
    round, and the median of the rounds counts, so that a busy moment cannot bend one curve alone.

    Args:
        layers: a name for the curve to (mechanism, its options).
        embed_dim: D.
        rounds: how many times each is timed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = {
            name: registry.load(model)(embed_dim=embed_dim, causal=True, **options).eval()
            for name, (model, options) in layers.items()
        }
        inputs = {n: torch.randn(1, n, embed_dim) for n in LENGTHS}
        times: dict[tuple[str, int], list[float]] = {(name, n): [] for name in made for n in LENGTHS}
        with torch.inference_mode():
            for turn in range(rounds + 1):
                for (name, n), taken in times.items():
                    seconds = _timed(made[name], inputs[n])
                    if turn:  # the first turn warms up
                        taken.append(seconds)
        unit = median(times[next(iter(made)), LENGTHS[0]])
        return {name: [round(median(times[name, n]) / unit, 1) for n in LENGTHS] for name in made}
    finally:
        torch.set_num_threads(threads)


def _timed(layer: torch.nn.Module, x: Tensor) -> float:
    repeats = max(1, 8192 // x.shape[1])
    start = time.perf_counter()
    for _ in range(repeats):
        layer(x)
    return (time.perf_counter() - start) / repeats


def read_cost(folder: Path) -> tuple[list[int], dict[str, list[float]]]:
    """The lengths and the curves that were measured last, from ``cost.json``."""
    found = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    return found["lengths"], found["curves"]


def main(draw: Callable[[Path], list[Path]], folder: Path, layers: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
    """``python -m models.NAME.figures``: draw the lesson's pictures; ``--measure`` times the layers anew first."""
    parser = argparse.ArgumentParser(description="Draw the pictures of a lesson.")
    parser.add_argument("--measure", action="store_true", help="measure the cost anew before drawing (half a minute)")
    if parser.parse_args().measure:
        curves = measure_cost(layers)
        measured = {"torch": torch.__version__, "lengths": LENGTHS, "curves": curves}
        (folder / "cost.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        for name, ratios in curves.items():
            print(name, *(f"n={n}: {ratio}" for n, ratio in zip(LENGTHS, ratios, strict=True)))
    for path in draw(folder / "figures"):
        print(path.name)
