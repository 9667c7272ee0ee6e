"""``attnlab heads``; its errors are in test_bad_input.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calls import call, contents_of, error_of, output_of

import attnlab
from attnlab.training.runs import Run


def test_one_row_per_head_and_per_pruning_step(here: Path) -> None:
    before = contents_of(here)
    done = call("heads", "digits", "--examples", "97")
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
    assert "one head at a time replaced by its mean" in output_of("heads", "digits", "--ablation", "mean")
    assert contents_of(here) == before, "looking changes nothing"


def test_the_pruned_network_is_saved_and_predicts(here: Path) -> None:
    before = contents_of(here / "digits")
    prune = ("heads", "digits", "--prune", "0.25", "--save_path")
    done = call(*prune, "small.safetensors", "--json")
    assert done.err == ""
    study, trained = json.loads(done.out), Run.open(Path("digits")).result()
    assert trained is not None
    assert study["whole"] == pytest.approx(trained["validation"])
    assert (study["run"], study["model"], study["task"], len(study["heads"])) == ("digits", "multihead", "digits", 8)
    assert set(study["heads"][0]) == {"layer", "head", "importance", "without"}
    assert study["heads"][0]["without"]["low"] <= study["heads"][0]["without"]["high"]
    assert sum(head["importance"] ** 2 for head in study["heads"][:4]) == pytest.approx(1)

    pruned, step = study["pruned"], study["curve"][1]
    assert pruned["validation"] == pytest.approx(step["reached"]["metric"])
    network = attnlab.load("small.safetensors")
    sizes = [sum(p.numel() for p in each.parameters()) for each in (network, attnlab.load("digits"))]
    assert sum(layer.num_heads for layer in network.mechanisms()) == 6 == step["left"]
    assert [pruned["parameters"], pruned["parameters_before"]] == sizes
    assert sizes[0] < sizes[1]
    out = output_of(*prune, "new/small.pth")
    heads = [f"{layer}.{head}" for layer, heads in pruned["heads"].items() for head in heads]
    assert sorted(heads) == sorted(out.split("\npruned ")[-1].split(":")[0].split(", "))
    assert "saved to new/small.pth" in out
    for path in ("small.safetensors", "new/small.pth"):
        assert output_of("predict", path, "--data", "x.npz").count("\n") == 4
    assert contents_of(here / "digits") == before


def test_whole_groups_of_heads_are_pruned(here: Path) -> None:
    study = json.loads(output_of("heads", "grouped", "--prune", "0.5", "--save_path", "x.pth", "--json"))
    assert [sorted(head for _, head in step["gone"]) in ([0, 1], [2, 3]) for step in study["curve"]] == [True, True]
    assert [layer.num_kv_heads for layer in attnlab.load("x.pth").mechanisms()] == [1, 1]


def test_a_run_without_a_checkpoint(here: Path) -> None:
    (here / "digits/model.safetensors").unlink()
    assert "there is no checkpoint" in error_of("heads", "digits")
