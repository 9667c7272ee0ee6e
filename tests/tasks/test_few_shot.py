"""Few-shot classification: the scans, labels and places of every sequence, and the baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from own_data import parts
from sklearn.datasets import load_digits

from attnlab import tasks
from attnlab.tasks import few_shot
from attnlab.tasks.base import IGNORE, Split, TaskConfig, TaskData
from attnlab.tasks.few_shot import PIXELS, QUERIES, pair_features, same_label


@pytest.fixture(autouse=True, scope="module")
def few_examples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_shot, "TRAIN", 2_003)
        patch.setattr(few_shot, "TEST", 307)
        yield


def load(pairs: int | None = None, seed: int = 3) -> TaskData:
    return tasks.load("few_shot").load(TaskConfig(seed=seed, pairs=pairs))


def placed_scans() -> dict[bytes, tuple[int, int]]:
    """The index and the place of every scan by its shifted pixels; a few scans look the same at two places."""
    images = (load_digits().images / 16).astype(np.float32)
    places = {}
    for place in range(3):
        for index, image in enumerate(images):
            places[np.pad(image, ((0, 0), (place, 2 - place))).tobytes()] = index, place
    return places


@pytest.mark.parametrize("pairs", [None, 2, 10])
def test_every_query_is_another_scan_of_an_example(pairs: int | None) -> None:
    known, digits, task_data = placed_scans(), load_digits().target, load(pairs)
    pairs = pairs or 5
    used: list[set[int]] = []
    counted: Counter[int] = Counter()
    for part in parts(task_data):
        assert part.x.shape[1:] == (pairs + QUERIES, PIXELS + pairs)
        labels = part.x[:, :, PIXELS:]
        assert torch.equal(labels[:, :pairs].sum(1), torch.ones(len(labels), pairs)), "a permutation"
        assert not labels[:, pairs:].any()
        found = [[known[scan.numpy().tobytes()] for scan in row] for row in part.x[:97, :, :PIXELS]]
        for row, names, targets in zip(found, labels.argmax(2).tolist(), part.y.tolist(), strict=False):
            shown = [digits[index] for index, _ in row]
            assert len(set(shown[:pairs])) == pairs
            assert targets[:pairs] == [IGNORE] * pairs
            for query, target in zip(range(pairs, pairs + QUERIES), targets[pairs:], strict=True):
                example = names[:pairs].index(target)
                assert shown[query] == shown[example]
                assert row[query][0] != row[example][0]
        used.append({index for row in found for index, _ in row})
        counted.update(place for row in found for _, place in row)
    assert sum(map(len, used)) == len(set.union(*used)), "no scan is in two parts"
    assert set(counted) == {0, 1, 2}, "the places"
    assert min(counted.values()) > 0.3 * counted.total()


def test_labels_do_not_follow_from_the_digits_or_from_the_order() -> None:
    task_data = load()
    for i in range(5):
        share = task_data.train.x[:, i, PIXELS:].mean(0)
        assert (share - 0.2).abs().max() < 0.05
    share = task_data.train.y[:, 5:].flatten().bincount() / task_data.train.y[:, 5:].numel()
    assert (share - 0.2).abs().max() < 0.02


def test_seeds_draw_other_sequences_of_another_split() -> None:
    one, same, other = load(), load(), load(seed=4)
    assert all(torch.equal(a.x, b.x) for a, b in zip(parts(one), parts(same), strict=True))
    assert not torch.equal(one.test.x, other.test.x)
    assert load(pairs=3).encoding == {"labels": ["A", "B", "C"]}


@pytest.mark.slow
def test_baselines_are_far_from_perfect() -> None:
    boosted, regression, nearest, chance = load().baselines()
    assert boosted.name == "gradient boosting on 10,000 pairs of scans"
    assert 0.85 > boosted.values["accuracy"] > regression.values["accuracy"] > nearest.values["accuracy"] - 0.03
    assert nearest.values["accuracy"] > 0.35
    assert chance.values["accuracy"] == 0.2


def test_features_of_pairs_by_hand() -> None:
    x = torch.zeros(1, 4, PIXELS + 2)
    x[0, :, 0] = torch.tensor([1.0, 3.0, 4.0, 7.0])  # two examples, two queries
    x[0, 0, PIXELS + 1] = x[0, 1, PIXELS] = 1
    split = Split(x, torch.tensor([[IGNORE, IGNORE, 1, 0]]))
    features = pair_features(split, 2)
    assert features[:, 0].tolist() == [3, 1, 6, 4]
    assert features[:, PIXELS].tolist() == [4, 12, 7, 21]
    assert same_label(split, 2).tolist() == [True, False, False, True]
