"""Few-shot classification of real scans: one example of each digit, then scans to name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnlab.network import Inputs, Outputs
from attnlab.tasks._baselines import MAX_TRAIN
from attnlab.tasks._options import check_options
from attnlab.tasks._split import Rows, stratified
from attnlab.tasks._synthetic import TEST, TRAIN, Integers, distinct, one_per_symbol
from attnlab.tasks.base import IGNORE, Baseline, Split, Task, TaskConfig, TaskData
from attnlab.utils.errors import UserError

Floats = NDArray[np.float32]

DIGITS = 10
PAIRS = 5
QUERIES = 5
SHIFTS = 3
"""A scan of 8 × 8 pixels is put at one of this many places in an image that is 8 pixels high and 10 wide."""
PIXELS = 8 * (8 + SHIFTS - 1)


class FewShot(Task):
    """Five scanned digits with five labels in random order, then five scans: which label does each have?

    A token is a scan and its label; queries have no label, and dots have no target::

        x   7C  2A  0E  5B  1D  2   5   5   7   0       (real scans in place of the digits)
        y   .   .   .   .   .   A   B   B   C   E

    Each sequence has other digits, other scans and other labels, so that a network cannot learn which digit has which
    label: it must compare the scans. No scan occurs in two parts of the split, and each is shifted at random by a pixel
    to the left or to the right. ``pairs`` is the number of examples, 2 to 10, each of another digit.

    Source: Vinyals et al. 2016, "Matching Networks for One Shot Learning" (arXiv 1606.04080), with the scans of
    Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", as scikit-learn ships them.
    """

    summary = "name real scans of digits by one example of each (few-shot classification)"
    own_data = "the digits of this scikit-learn"
    caveat = "few_shot compares scans within a sequence; no method has seen the test scans"
    threshold = 0.85
    defaults = {"position_embedding": "none", "epochs": 6, "learning_rate": 2e-3}

    def load(self, config: TaskConfig) -> TaskData:
        """Random sequences; each part of the split has its own scans."""
        from sklearn.datasets import load_digits

        check_options(config, "few_shot", "pairs")
        pairs = PAIRS if config.pairs is None else config.pairs
        if not 2 <= pairs <= DIGITS:
            raise UserError(f"--pairs for few_shot must be from 2 to {DIGITS}, one for each digit, not {pairs:,}")
        scans = load_digits()
        images, digits = (scans.images / 16).astype(np.float32), scans.target
        counts = (TRAIN, max(1, round(config.val_fraction * TRAIN)), TEST)
        parts = zip(counts, stratified(digits, range(DIGITS), config), strict=True)
        train, validation, test = (
            draw(np.random.default_rng([config.seed, stream]), count, images, digits, rows, pairs)
            for stream, (count, rows) in enumerate(parts)
        )
        return TaskData(
            train,
            validation,
            test,
            inputs=Inputs("vectors", PIXELS + pairs),
            outputs=Outputs("tokens", pairs),
            length=pairs + QUERIES,
            metric="accuracy",
            encoding={"labels": list("ABCDEFGHIJ"[:pairs])},
            summary_lines=(
                f"one example of each of {pairs} digits, and {QUERIES} scans to name; the parts share none of the "
                f"{len(images):,} scans",
            ),
            baselines=lambda: baselines(train, test, pairs),
        )

    def token_labels(self, x: Tensor, inputs: Inputs, encoding: dict[str, Any]) -> list[str]:
        """``scan A`` for an example with the label A, and ``scan ?`` for a query."""
        labels = x[:, PIXELS:]
        names = ["ABCDEFGHIJ"[i] for i in labels.argmax(-1).tolist()]
        return [f"scan {name if known else '?'}" for name, known in zip(names, labels.any(-1).tolist(), strict=True)]


def draw(generator: np.random.Generator, count: int, images: Floats, digits: Integers, rows: Rows, pairs: int) -> Split:
    """Random sequences of the scans in these ``rows``: ``x`` (count, N, pixels + pairs), N = pairs + queries."""
    ordered = rows[np.argsort(digits[rows], kind="stable")]
    sizes = np.bincount(digits[rows], minlength=DIGITS)
    starts = np.cumsum(sizes) - sizes
    named = distinct(generator, np.ones(DIGITS), count, pairs)
    labels = generator.random((count, pairs)).argsort(axis=1)
    examples = (generator.random((count, pairs)) * sizes[named]).astype(np.int64)
    asked = generator.integers(0, pairs, (count, QUERIES))
    asked_digits, shown = np.take_along_axis(named, asked, axis=1), np.take_along_axis(examples, asked, axis=1)
    others = 1 + (generator.random((count, QUERIES)) * (sizes[asked_digits] - 1)).astype(np.int64)  # another scan
    queries = (shown + others) % sizes[asked_digits]
    chosen = ordered[np.concatenate([starts[named] + examples, starts[asked_digits] + queries], axis=1)]
    x = np.zeros((count, pairs + QUERIES, PIXELS + pairs), np.float32)
    x[..., :PIXELS] = shifted(generator, images, chosen)
    x[:, :pairs, PIXELS:] = one_per_symbol(labels, pairs)
    y = np.full((count, pairs + QUERIES), IGNORE)
    y[:, pairs:] = np.take_along_axis(labels, asked, axis=1)
    return Split(torch.from_numpy(x), torch.from_numpy(y))


def shifted(generator: np.random.Generator, images: Floats, chosen: Integers) -> Floats:
    """The chosen scans (B, N), each at a random place, as pixels (B, N, pixels)."""
    wide = np.zeros((SHIFTS, len(images), 8, 8 + SHIFTS - 1), np.float32)
    for shift in range(SHIFTS):
        wide[shift, :, :, shift : shift + 8] = images
    return wide[generator.integers(0, SHIFTS, chosen.shape), chosen].reshape(*chosen.shape, PIXELS)


def baselines(train: Split, test: Split, pairs: int) -> list[Baseline]:
    """Two classifiers of pairs of scans (same digit or not), the nearest example, and chance.

    The features of a pair are the absolute differences and the products of the pixels; a query has the label of the
    example with the highest probability.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    few = train.take(slice(MAX_TRAIN // pairs)).map(lambda part: part[:, : pairs + 1])  # one query each
    x, same = pair_features(few, pairs), same_label(few, pairs)
    tested = pair_features(test, pairs)

    def accuracy(similarity: NDArray[Any]) -> dict[str, float]:
        best = similarity.reshape(-1, pairs).argmax(1)
        return {"accuracy": float(same_label(test, pairs).reshape(-1, pairs)[np.arange(len(best)), best].mean())}

    methods = {
        "gradient boosting": HistGradientBoostingClassifier(random_state=0),
        "logistic regression": LogisticRegression(max_iter=1_000),
    }
    return [
        *(
            Baseline(f"{name} on {len(x):,} pairs of scans", accuracy(model.fit(x, same).predict_proba(tested)[:, 1]))
            for name, model in methods.items()
        ),
        Baseline("nearest example", accuracy(-np.square(tested[:, :PIXELS]).sum(1))),
        Baseline("chance", {"accuracy": 1 / pairs}),
    ]


def pair_features(split: Split, pairs: int) -> Floats:
    """(B · queries · pairs, 2 · pixels): the absolute differences and products of each query and each example."""
    pixels = split.x[..., :PIXELS].numpy()
    examples, queries = pixels[:, None, :pairs], pixels[:, pairs:, None]
    return np.concatenate([np.abs(examples - queries), examples * queries], axis=3).reshape(-1, 2 * PIXELS)


def same_label(split: Split, pairs: int) -> NDArray[np.bool_]:
    """(B · queries · pairs,): whether each query has the label of each example."""
    labels = split.x[:, None, :pairs, PIXELS:].argmax(-1)
    return (labels == split.y[:, pairs:, None]).flatten().numpy()
