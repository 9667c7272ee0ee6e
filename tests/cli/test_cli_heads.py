"""``attnlab heads``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from calls import call, contents_of, error_of

import attnlab
from attnlab.training.runs import Run

SMALL = ("train", "--embed_dim", "8", "--layers", "2", "--steps", "5", "--quiet")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    for name, words in {
        "run": ("--model", "multihead", "--num_heads", "4"),
        "grouped": ("--model", "groupedquery", "--num_heads", "4", "--num_kv_heads", "2"),
        "alone": ("--model", "selfhead"),
    }.items():
        assert call(*SMALL, *words, "--run_dir", str(folder / name)).code == 0
    return folder


@pytest.fixture(autouse=True)
def here(trained: Path, empty_folder: Path) -> None:
    shutil.copytree(trained, empty_folder, dirs_exist_ok=True)


def test_one_row_per_head_and_per_pruning_step() -> None:
    before = contents_of(Path())
    done = call("heads", "run", "--examples", "97")
    assert (done.code, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines() if line.strip()[:1].isdigit()]
    assert [line[:2] for line in lines if len(line) == 8] == [[str(i), str(h)] for i in range(2) for h in range(4)]
    assert [line[0] for line in lines if len(line) == 7 and line[1].count(".") == 1] == list("765432")
    for words in (
        "multihead on digits: accuracy 0.",
        "one head at a time replaced by zero",
        "importance on 97 training examples",
        "on 143 validation examples; the test data were not used",
    ):
        assert words in done.out
    assert "one head at a time replaced by its mean" in call("heads", "run", "--ablation", "mean").out
    assert contents_of(Path()) == before, "looking changes nothing"


def test_json_agrees_with_the_result_of_training() -> None:
    done = call("heads", "run", "--json")
    assert done.err == ""
    found = json.loads(done.out)
    result = Run.open(Path("run")).result()
    assert result is not None
    assert found["whole"] == pytest.approx(result["validation"])
    assert (found["run"], found["model"], found["task"], found["pruned"]) == ("run", "multihead", "digits", None)
    assert len(found["heads"]) == 8
    assert set(found["heads"][0]) == {"layer", "head", "importance", "without"}
    assert found["heads"][0]["without"]["low"] <= found["heads"][0]["without"]["high"]
    assert sum(head["importance"] ** 2 for head in found["heads"][:4]) == pytest.approx(1)


@pytest.mark.parametrize("path", ["small.safetensors", "new/small.pth"])
def test_the_pruned_network_is_saved_and_predicts(path: str) -> None:
    before = contents_of(Path("run"))
    found = json.loads(call("heads", "run", "--prune", "0.25", "--save_path", path, "--json").out)
    pruned, step = found["pruned"], found["curve"][1]
    assert pruned["validation"] == pytest.approx(step["reached"]["metric"])
    network = attnlab.load(path)
    assert sum(layer.num_heads for layer in network.mechanisms()) == 6 == step["left"]
    assert pruned["parameters"] == sum(p.numel() for p in network.parameters())
    assert (
        pruned["parameters"] < pruned["parameters_before"] == sum(p.numel() for p in attnlab.load("run").parameters())
    )
    np.savez("new.npz", x=np.random.default_rng(0).random((3, 8, 8)).astype("float32"))
    assert call("predict", path, "--data", "new.npz").out.count("\n") == 4
    assert contents_of(Path("run")) == before
    done = call("heads", "run", "--prune", "0.25", "--save_path", path)
    gone = " ".join(f"{layer}.{head}" for layer, heads in sorted(pruned["heads"].items()) for head in sorted(heads))
    assert gone.split() == sorted(done.out.split("\npruned ")[-1].split(":")[0].split(", "))
    assert f"saved to {path}" in done.out


def test_whole_groups_of_heads_are_pruned() -> None:
    found = json.loads(call("heads", "grouped", "--prune", "0.5", "--save_path", "x.pth", "--json").out)
    assert [sorted(head for _, head in step["gone"]) in ([0, 1], [2, 3]) for step in found["curve"]] == [True, True]
    assert [layer.num_kv_heads for layer in attnlab.load("x.pth").mechanisms()] == [1, 1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("heads alone", "alone: SelfAttention has no separate heads"),
        ("heads run --prune 0 --save_path x.pth", "the share of heads to prune must be above 0 and below 1, not 0"),
        ("heads run --prune 0.9 --save_path x.pth", "0.9 of 8 heads cannot be pruned"),
        ("heads run --prune 0.1 --save_path x.pth", "so that 1 to 6 can be pruned, a share from 0.125 to 0.75"),
        ("heads grouped --prune 0.2 --save_path x.pth", "so that 2 to 4 can be pruned"),
        ("heads run --prune 0.5 --save_path x.bin", "--save_path x.bin must end in .safetensors, .pth or .pt"),
        ("heads run --prune 0.5 --save_path run/model.safetensors", "is inside the folder of the run"),
        ("heads run --device gpu", "unknown device 'gpu'"),
        ("heads run --prune half", "--prune must be a number, not 'half'"),
    ],
)
def test_invalid_requests(line: str, says: str) -> None:
    assert says in error_of(*line.split())


def test_a_run_without_a_checkpoint() -> None:
    (Path("run") / "model.safetensors").unlink()
    assert "there is no checkpoint" in error_of("heads", "run")
