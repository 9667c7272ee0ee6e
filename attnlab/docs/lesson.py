"""The figures and measured costs of the lessons: ``python -m attnlab.docs.lesson NAME [--measure]``.

Every lesson shows ``attention.png``: the attention weights of a network that has learned the example task. A
mechanism that needs more has a ``figures.py`` with any of

- ``EXAMPLE``: keywords of `train_example`: options of the mechanism, or a ``text`` with other ``words``,
- ``draw(folder)``: draws further figures and returns their paths,
- ``COST``, ``DECODING``: the layers whose forward pass and decoding step are measured (see `measure_cost`).
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from statistics import median
from timeit import timeit
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

from attnlab.catalog import registry
from attnlab.docs.example import Example, train_example
from attnlab.nn.cache import KVCache
from attnlab.utils import drawing

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)

Layers = Mapping[str, tuple[str, Mapping[str, Any]]]  # the name of a curve -> (mechanism, its options)
Work = tuple[Callable[[], object], int]  # the call that is timed, and how often per measurement


def draw_figures(name: str, folder: Path | None = None) -> list[Path]:
    """Draw the figures of a lesson into ``folder`` (None: the lesson's own) and return their paths.

    Raises:
        UnknownNameError: for a name that no folder has.
    """
    entry = registry.entry(name)
    folder = folder or entry.folder / "figures"
    extra = _figures(name, entry.folder)
    figures = [draw_attention(example_network(name), folder / "attention.png")]
    return [*figures, *extra.draw(folder)] if hasattr(extra, "draw") else figures


def example_network(name: str, **training: Any) -> Example:
    """The trained example network whose attention weights the lesson shows."""
    options = dict(getattr(_figures(name, registry.entry(name).folder), "EXAMPLE", {}))
    if "num_heads" in inspect.signature(registry.load(name)).parameters:
        options.setdefault("num_heads", 2)
    return train_example(name, **training, **options)


def _figures(name: str, folder: Path) -> ModuleType | SimpleNamespace:
    if not (folder / "figures.py").is_file():
        return SimpleNamespace()
    return import_module(f"attnlab.models.{name}.figures")


def draw_attention(example: Example, file: Path) -> Path:
    """Heat maps of the attention weights on the example's text: one row per layer, one column per head."""
    layers, heads = example.attention_weights.shape[:2]
    rows, columns = (1, layers) if heads == 1 else (layers, heads)
    width, height = (7.6, 4.0) if columns < 3 else (8.3, 2.3)  # of the figure, and of one row
    figure, axes = drawing.canvas(width, height * rows, rows=rows, columns=columns)
    weights = example.attention_weights.flatten(0, 1).tolist()
    names = [(f"layer {i + 1}", f", head {h + 1}") for i in range(layers) for h in range(heads)]
    titles = [layer + (head if heads > 1 else "") for layer, head in names]
    drawing.draw_heat_maps(figure, axes, weights, list(example.text.replace(" ", "·")), titles)
    figure.suptitle(f"accuracy on new words: {example.accuracy:.1%}", fontsize=10, color=drawing.INK)
    return drawing.save(figure, file)


def measure_cost(layers: Layers) -> dict[str, list[float]]:
    """The time of a forward pass at each of `LENGTHS`, relative to the first layer at the first length.

    One sequence, D = 64, float32, one thread, no gradients; causal unless the options say otherwise. Layers and lengths
    are interleaved round by round, and the median over the rounds is taken, so that a busy moment does not distort a
    single curve.
    """
    inputs = {n: torch.randn(1, n, 64) for n in LENGTHS}

    def passes(layer: nn.Module, n: int) -> Work:
        return lambda: layer(inputs[n]), max(1, 8192 // n)

    return _measure(layers, 64, 7, passes)


def measure_decoding(layers: Layers) -> dict[str, list[float]]:
    """The time of one decoding step with each of `LENGTHS` tokens in the cache, measured like `measure_cost`."""
    embed_dim, rounds, repeats = 512, 11, 16
    token = torch.randn(1, 1, embed_dim)

    def steps(layer: nn.Module, n: int) -> Work:
        cache = layer.make_cache(n + repeats * (rounds + 1))  # type: ignore[operator]
        layer(torch.randn(1, n, embed_dim), cache=cache)

        def step() -> None:
            layer(token, cache=cache)
            if isinstance(cache, KVCache):  # a recurrent state does not grow
                cache.crop(n)

        return step, repeats

    return _measure(layers, embed_dim, rounds, steps)


def _measure(
    layers: Layers, embed_dim: int, rounds: int, prepare: Callable[[nn.Module, int], Work]
) -> dict[str, list[float]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        modules = {
            name: registry.load(model)(embed_dim=embed_dim, **{"causal": True, **options}).eval()
            for name, (model, options) in layers.items()
        }
        with torch.inference_mode():
            work = {(name, n): prepare(module, n) for name, module in modules.items() for n in LENGTHS}
            times: dict[tuple[str, int], list[float]] = {key: [] for key in work}
            for turn in range(rounds + 1):
                for key, samples in times.items():
                    call, repeats = work[key]
                    # CPU time: other processes on the machine do not count
                    seconds = timeit(call, timer=time.process_time, number=repeats) / repeats
                    if turn:  # the first round warms up
                        samples.append(seconds)
        unit = median(next(iter(times.values())))
        return {name: [round(median(times[name, n]) / unit, 1) for n in LENGTHS] for name in layers}
    finally:
        torch.set_num_threads(threads)


def write_cost(figures: ModuleType | SimpleNamespace, folder: Path) -> None:
    """Measure ``COST`` and ``DECODING`` of a ``figures.py`` and write ``cost.json``."""
    measured = {"curves": measure_cost(figures.COST)}
    if hasattr(figures, "DECODING"):
        measured["decoding"] = measure_decoding(figures.DECODING)
    result = {"torch": torch.__version__, "lengths": LENGTHS, **measured}
    (folder / "cost.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def read_cost(folder: Path, curves: str = "curves") -> tuple[list[int], dict[str, list[float]]]:
    """The lengths and the ``curves`` (or the ``decoding``) from ``cost.json``; no curves where none were measured."""
    cost = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    return cost["lengths"], cost.get(curves, {})


def draw_cost(folder: Path, file: Path, curves: str = "curves", **options: Any) -> Path:
    """The curves of ``cost.json`` in ``folder``, as a figure; ``options`` are those of `drawing.draw_curves`."""
    figure, (ax,) = drawing.canvas(6.0, 3.4)
    drawing.draw_curves(ax, *read_cost(folder, curves), **options)
    return drawing.save(figure, file)


def main(arguments: list[str] | None = None) -> None:
    """Draw the figures of one lesson; with ``--measure`` time its layers first and write ``cost.json``."""
    parser = argparse.ArgumentParser(prog="python -m attnlab.docs.lesson", description=main.__doc__)
    parser.add_argument("name", choices=registry.names(), metavar="NAME", help="the mechanism")
    parser.add_argument("--measure", action="store_true", help="measure COST and DECODING of figures.py (a minute)")
    options = parser.parse_args(arguments)
    folder = registry.entry(options.name).folder
    if options.measure:
        extra = _figures(options.name, folder)
        if not hasattr(extra, "COST"):
            parser.error(f"models/{options.name}/figures.py defines no COST; use: python -m benchmarks mechanisms")
        write_cost(extra, folder)
    for path in draw_figures(options.name):
        print(path)


if __name__ == "__main__":
    main()
