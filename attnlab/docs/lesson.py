"""What all lessons share: a text to look at, the picture of its maps, and a way to measure a cost.

Both take any mechanism by name, so that the maps and curves of two lessons can be laid side by side.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.catalog import registry
from attnlab.docs import drawing
from attnlab.network import Block, Inputs, Network, Outputs
from attnlab.nn.cache import KVCache
from attnlab.tasks.base import IGNORE

TEXT = "blacksmith blacksmith"
LETTERS = "abcdefghijklmnopqrstuvwxyz "
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)

Layers = Mapping[str, tuple[str, Mapping[str, Any]]]
Work = tuple[Callable[[], object], int]  # what is timed, and how often in a row


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
    with _seeded(seed):
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
        accuracy = _taught(network, steps)
        with torch.no_grad():
            text = torch.tensor([[LETTERS.index(letter) for letter in TEXT]])
            return Reading(network, accuracy, _maps(network, text))


def teach(network: Network, *, steps: int, seed: int = 0) -> float:
    """Teach a network of `read_text` for so many steps more, in place; gives its accuracy on new words.

    With 0 steps it is only asked: what did a change to its mechanisms do?
    """
    with _seeded(seed):
        return _taught(network, steps)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _taught(network: Network, steps: int) -> float:
    optimizer = torch.optim.AdamW(network.train().parameters(), lr=3e-3)
    for _ in range(steps):
        loss, _ = _loss(network, *_repeated_words(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return _loss(network.eval(), *_repeated_words(1000))[1]


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
        maps.append(block.attention.attention_weights(block.norm1(x))[0])
        x = block(x, None)
    return torch.stack(maps)


def draw_reading(folder: Path, model: str, **options: Any) -> list[Path]:
    """What a mechanism with two heads looks at in `TEXT`, and how well its network had learned: ``map.png``."""
    reading = read_text(model, num_heads=2, **options)
    learned = f"looks at; of new words, {reading.accuracy:.0%} of the letters that can be known were right"
    return [draw_maps(reading.maps, folder / "map.png", learned)]


def draw_maps(maps: Tensor, file: Path, caption: str = "looks at") -> Path:
    """The maps of `read_text`, (2 layers, 2 heads, N, N), in one picture: a row a layer, a column a head."""
    figure, axes = drawing.canvas(7.6, 8.0, rows=2, columns=2)
    titles = [f"layer {layer}, head {head}" for layer in (1, 2) for head in (1, 2)]
    for ax, weights, title in zip(axes, maps.flatten(0, 1).tolist(), titles, strict=True):
        drawing.draw_map(ax, weights, list(TEXT.replace(" ", "·")), title)
    figure.supxlabel(caption, fontsize=9, color=drawing.INK)
    figure.supylabel("a letter", fontsize=9, color=drawing.INK)
    return drawing.save(figure, file)


def measure_cost(layers: Layers, *, embed_dim: int = 64, rounds: int = 7) -> dict[str, list[float]]:
    """The time of a forward pass at each of `LENGTHS`, as a multiple of the first layer's at the first length.

    One sequence, float32, one thread, causal, without gradients. All layers and lengths take turns, round after
    round, and the median of the rounds counts, so that a busy moment cannot bend one curve alone.

    Args:
        layers: a name for the curve to (mechanism, its options).
        embed_dim: D.
        rounds: how many times each is timed.
    """
    inputs = {n: torch.randn(1, n, embed_dim) for n in LENGTHS}

    def passes(layer: nn.Module, n: int) -> Work:
        return lambda: layer(inputs[n]), max(1, 8192 // n)

    return _measured(layers, embed_dim, rounds, passes)


def measure_decoding(layers: Layers, *, embed_dim: int = 512, rounds: int = 11) -> dict[str, list[float]]:
    """The time of one token more after each of `LENGTHS` tokens, as a multiple of the first layer's at the first.

    The tokens before lie in a cache. Measured as `measure_cost` does, and takes what it takes.
    """
    token, often = torch.randn(1, 1, embed_dim), 16

    def steps(layer: nn.Module, n: int) -> Work:
        cache = layer.make_cache(n + often * (rounds + 1))  # type: ignore[operator]
        layer(torch.randn(1, n, embed_dim), cache=cache)

        def step() -> None:
            layer(token, cache=cache)
            if isinstance(cache, KVCache):  # a recurrent state does not grow
                cache.crop(n)

        return step, often

    return _measured(layers, embed_dim, rounds, steps)


def _measured(
    layers: Layers, embed_dim: int, rounds: int, prepare: Callable[[nn.Module, int], Work]
) -> dict[str, list[float]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = {
            name: registry.load(model)(embed_dim=embed_dim, causal=True, **options).eval()
            for name, (model, options) in layers.items()
        }
        with torch.inference_mode():
            work = {(name, n): prepare(layer, n) for name, layer in made.items() for n in LENGTHS}
            times: dict[tuple[str, int], list[float]] = {which: [] for which in work}
            for turn in range(rounds + 1):
                for which, taken in times.items():
                    seconds = _timed(*work[which])
                    if turn:  # the first turn warms up
                        taken.append(seconds)
        unit = median(next(iter(times.values())))
        return {name: [round(median(times[name, n]) / unit, 1) for n in LENGTHS] for name in layers}
    finally:
        torch.set_num_threads(threads)


def _timed(work: Callable[[], object], repeats: int) -> float:
    start = time.process_time()  # of the processor: what others do on this machine meanwhile does not count
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats


def read_cost(folder: Path, curves: str = "curves") -> tuple[list[int], dict[str, list[float]]]:
    """The lengths and the ``curves`` (or the ``decoding``) that were measured last, from ``cost.json``.

    Where decoding was not measured there are no curves of it.
    """
    found = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    return found["lengths"], found.get(curves, {})


def main(
    draw: Callable[[Path], list[Path]], folder: Path, layers: Layers | None = None, decoding: Layers | None = None
) -> None:
    """``python -m models.NAME.figures``: draw the lesson's pictures; ``--measure`` times the layers anew first.

    Args:
        draw: draws the pictures into a folder, and returns their paths.
        folder: the lesson's.
        layers: whose forward pass is measured (see `measure_cost`); a lesson without them has its cost from
            ``python -m benchmarks mechanisms``.
        decoding: whose steps with a cache are (see `measure_decoding`), under names of their own.
    """
    parser = argparse.ArgumentParser(description="Draw the pictures of a lesson.")
    if layers is not None:
        parser.add_argument(
            "--measure", action="store_true", help="measure the cost anew before drawing (about a minute)"
        )
    options = parser.parse_args()
    if layers is not None and options.measure:
        measured = {"curves": measure_cost(layers)}
        if decoding is not None:
            measured["decoding"] = measure_decoding(decoding)
        kept = {"torch": torch.__version__, "lengths": LENGTHS, **measured}
        (folder / "cost.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        for curves in measured.values():
            for name, ratios in curves.items():
                print(name, *(f"n={n}: {ratio}" for n, ratio in zip(LENGTHS, ratios, strict=True)))
    for path in draw(folder / "figures"):
        print(path.name)
