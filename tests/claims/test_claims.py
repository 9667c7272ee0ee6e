"""Claims: their files, how criteria are judged, experiments, measures, pages and the command."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from attnlab.claims import claim as claims
from attnlab.claims import experiment, measures, page, record
from attnlab.claims.claim import Claim, Criterion
from attnlab.cli import main
from attnlab.comparison.budget import count_parameters
from attnlab.comparison.execute import one_by_one
from attnlab.comparison.plan import Sweep, cases_of
from attnlab.tasks.base import TaskData
from attnlab.training.experiment import load_task_data, reopen
from attnlab.training.objective import Objective, evaluate
from attnlab.training.runs import Run
from attnlab.training.settings import defaults
from attnlab.utils.errors import UserError

NAMES = claims.names()
SMALL = """
claim = "More heads are better."
paper = "An author 2000"
not_shown = "anything"
measure = "MEASURE"

[settings]
task = "induction"
model = "multihead"
embed_dim = 8
layers = 2
steps = 3
batch_size = 5

[arms."1 head"]
num_heads = 1

[arms."4 heads"]
num_heads = 4

SWEEP

[[criteria]]
text = "four heads are better by at least 0.9"
arm = "4 heads"
minus = "1 head"
AT
at_least = 0.9

[[criteria]]
text = "one head is at most 1"
arm = "1 head"
AT
at_most = 1.0
"""


def small(folder: Path, measure: str = "test", sweep: str = "", at: str = "") -> Claim:
    file = folder / "heads.toml"
    text = SMALL.replace("MEASURE", measure).replace("SWEEP", sweep).replace("AT", at)
    file.write_text(text, encoding="utf-8")
    return claims.read(file)


@lru_cache
def data_of(task: str) -> TaskData:
    """Data with the shapes of a task; the text is read once."""
    return load_task_data(defaults("multihead", task))


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of claims in place of the registered ones."""
    for module in (claims, record):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    return tmp_path


# The registered claims


@pytest.mark.parametrize("name", NAMES)
def test_registered_claims_can_be_run(name: str) -> None:
    claim = claims.load(name)
    arms = {arm: experiment._settings(claim, arm) for arm in claim.arms}
    swept = claim.sweep is not None and claim.measure == "test"
    sweeps = [Sweep(claim.sweep.setting, tuple(claim.sweep.values))] if swept and claim.sweep else []
    for case in cases_of(arms, sweeps):
        if claim.sweep is None or case.point == claim.sweep.values[0]:
            assert count_parameters(case.settings, data_of(case.settings.data.task)) > 0
    assert claim.lessons


@pytest.mark.parametrize("name", NAMES)
def test_recorded_results_belong_to_the_criteria_that_were_written_before(name: str) -> None:
    claim = claims.load(name)
    result = record.read(claim)
    assert result is not None, "not recorded, or changed after it was run"
    assert len(result.seeds) >= 5
    assert min(result.seeds) >= experiment.FIRST_SEED
    values = {(arm.arm, arm.point): dict(zip(result.seeds, arm.values, strict=True)) for arm in result.arms}
    assert [experiment.judge(criterion, values) for criterion in claim.criteria] == result.criteria


# Judging


@pytest.mark.parametrize(
    ("values", "bound", "outcome"),
    [
        ([0.96, 0.97, 0.98], {"at_least": 0.9}, "holds"),
        ([0.96, 0.97, 0.98], {"at_least": 0.97}, "undecided"),
        ([0.96, 0.97, 0.98], {"at_least": 0.999}, "fails"),
        ([0.96, 0.97, 0.98], {"at_most": 0.999}, "holds"),
        ([0.96, 0.97, 0.98], {"at_most": 0.5}, "fails"),
    ],
)
def test_a_criterion_holds_if_its_whole_interval_does(
    values: list[float], bound: dict[str, float], outcome: str
) -> None:
    criterion = Criterion(text="", arm="a", **bound)
    judged = experiment.judge(criterion, {("a", None): dict(enumerate(values))})
    assert judged.outcome == outcome
    assert judged.low < judged.mean < judged.high


def test_differences_are_paired_by_seed() -> None:
    values = {("a", 1): {0: 0.9, 1: 0.5, 2: 0.7}, ("a", 2): {2: 0.6, 1: 0.4, 0: 0.79}}
    judged = experiment.judge(Criterion(text="", arm="a", at=1, minus_at=2, at_least=0.05), values)
    assert judged.outcome == "holds"  # about 0.1 for every seed, although the values of the seeds differ much
    assert judged.high - judged.low < 0.1


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "undecided"], "partly"),
        (["fails", "undecided"], "undecided"),
        (["fails", "fails"], "not at our scale"),
    ],
)
def test_verdicts(outcomes: list[str], verdict: str) -> None:
    criteria = [{"text": "", "mean": 0.5, "low": 0.4, "high": 0.6, "outcome": outcome} for outcome in outcomes]
    about = {"name": "", "sha256": "", "seeds": [], "date": "", "source": "", "machine": "", "arms": []}
    assert record.Record.model_validate({**about, "criteria": criteria}).verdict == verdict


# Files


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('arm = "4 heads"', 'arm = "5 heads"', "names the arm '5 heads', which there is not"),
        ("at_least = 0.9", "", "needs at_least or at_most, and not both"),
        ("at_least = 0.9", "at_least = 0.9\nat_most = 1.0", "needs at_least or at_most, and not both"),
        ("at_least = 0.9", "at_least = 0.9\nat = 7", "is at 7, which is not in the sweep"),
        ("at_least = 0.9", "at_leest = 0.9", "extra inputs are not permitted"),
        ('claim = "More', "claim = More", "is malformed"),
        ("[settings]", "seeds = 3\n[settings]", "greater than or equal to 5"),
    ],
)
def test_malformed_claims_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    small(tmp_path)
    file = tmp_path / "heads.toml"
    file.write_text(file.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        claims.read(file)


# Experiments


@pytest.mark.slow
def test_an_experiment_measures_every_arm_and_is_recorded(registered: Path) -> None:
    claim = small(registered)
    result = experiment.run(claim, registered / "runs-of-heads", one_by_one, seeds=2)
    assert [(arm.arm, len(arm.values)) for arm in result.arms] == [("1 head", 2), ("4 heads", 2)]
    tests = [json.loads(file.read_text())["test"] for file in (registered / "runs-of-heads").rglob("result.json")]
    assert sorted(tests) == sorted(value for arm in result.arms for value in arm.values)
    first, second = result.criteria
    assert first.outcome != "holds"
    assert (second.outcome, result.verdict) == ("holds", "partly")
    record.write(result, claim)
    assert record.read(claim) == result
    section = page.section(claim, record.read(claim))
    for text in (
        "Verdict: **partly** (2 seeds).",
        "four heads are better",
        "`--num_heads 4`",
        "`attnlab claims run heads`",
    ):
        assert text.lower() in section.lower(), text
    again = experiment.run(claim, registered / "runs-of-heads", one_by_one, seeds=2)
    assert again.arms == result.arms


@pytest.mark.slow
def test_a_sweep_and_pruned_heads(registered: Path) -> None:
    sweep = '[sweep]\nsetting = "pruned"\nvalues = [0, 0.5]'
    claim = small(registered, "pruned", sweep, "at = 0.5")
    claim = claim.model_copy(update={"arms": {"4 heads": claim.arms["4 heads"], "1 head": {"num_heads": 8}}})
    result = experiment.run(claim, registered / "out", one_by_one, seeds=2)
    assert {arm.point for arm in result.arms} == {0, 0.5}
    run = Run.open(next((registered / "out" / "runs").iterdir()))
    data = reopen(run)
    _, metric = evaluate(data.network, data.task_data.test, Objective.of(data.task_data).additive(), batch_size=128)
    whole, half = measures.pruned(run, [0, 0.5])
    assert whole == pytest.approx(metric)
    assert half != whole
    weight = measures.first_token(run)
    x = data.task_data.test.x[: measures.WEIGHT_EXAMPLES]
    network = data.network.eval()
    with torch.no_grad():
        h = network.position_embedding(network.embed(x))
        means = []
        for block in network.blocks:
            weights = block.attention.attention_weights(block.norm1(h))
            means.append(weights[..., measures.FIRST_QUERY :, 0].mean().item())
            h = block(h, None)
    assert weight == pytest.approx(sum(means) / 2, rel=1e-5)


# The command


def test_the_command_lists_claims(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES)
    assert main(["claims", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["claim"]["name"] for each in listed] == NAMES


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("claims nothing", "unknown claim 'nothing'"),
        ("claims run", "name the claims to run, or give --all; there are"),
        ("claims run nothing", "unknown claim 'nothing'"),
        (f"claims run {NAMES[0]} --all", "name the claims to run, or give --all"),
        (f"claims run {NAMES[0]} --jobs 0", "--jobs must be at least 1, not 0"),
        (f"claims run {NAMES[0]} --seeds 1", "--seeds must be at least 2, not 1: one seed has no interval"),
        (f"claims run {NAMES[0]} --seeds 3 --record", "is recorded with at least 5 seeds"),
    ],
)
def test_wrong_input_is_refused(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_the_command_runs_a_claim(
    registered: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small(registered)
    monkeypatch.chdir(registered)
    assert main(["claims", "run", "heads", "--seeds", "2", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["verdict"] == "partly"
    assert math.isfinite(result["criteria"][0]["mean"])
    assert (registered / "claims" / "heads" / "runs").is_dir()
    assert not (registered / "heads.json").exists()


def test_a_changed_criterion_changes_the_fingerprint(tmp_path: Path) -> None:
    before = small(tmp_path)
    moved = before.criteria[0].model_copy(update={"at_least": 0.1})
    after = before.model_copy(update={"criteria": [moved, *before.criteria[1:]]})
    reworded = before.model_copy(update={"paper": "Somebody 2001"})
    assert after.sha256 != before.sha256 == reworded.sha256
