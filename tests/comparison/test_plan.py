"""Cases, trials and the names of their folders."""

import json
from pathlib import Path

import pytest

from attnlab.comparison.plan import Case, Sweep, Trial, cases_of, plan_trials
from attnlab.training.settings import Settings
from attnlab.utils.errors import UserError
from tests.comparison.small import settings


def rates(cases: list[Case], rate: float = 0.01) -> dict[str, float]:
    return {case.name: rate for case in cases}


def plan(
    models: dict[str, Settings], *sweeps: Sweep, seeds: tuple[int, ...] = (0, 1)
) -> list[tuple[Trial, list[Case]]]:
    cases = cases_of(models, sweeps)
    return plan_trials(cases, seeds, rates(cases))


def test_the_first_sweep_is_the_axis_and_others_make_curves() -> None:
    models = {"a": settings("multihead"), "b": settings("linear")}
    cases = cases_of(models, [Sweep("seq_length", (5, 7)), Sweep("embed_dim", (8, 16))])
    assert {(case.label, case.point) for case in cases} == {
        (f"{model}, embed_dim {width}", length) for model in "ab" for width in (8, 16) for length in (5, 7)
    }
    case = next(case for case in cases if case.name == "b, embed_dim 16, 7")
    flat = case.settings.flat()
    assert (flat["embed_dim"], flat["seq_length"], flat["model"]) == (16, 7, "linear")


def test_every_trial_has_its_seed_its_rate_and_one_thread() -> None:
    for trial, covered in plan({"a": settings("multihead")}, seeds=(3, 5)):
        flat = trial.settings.flat()
        assert (flat["seed"], flat["learning_rate"], flat["threads"]) == (trial.seed, 0.01, 1)
        assert covered == [trial.case]
        assert not trial.tests


def test_points_that_change_the_test_data_alone_share_a_network() -> None:
    trials = plan({"a": settings("multihead")}, Sweep("test_length", (32, 64, 128)), seeds=(0,))
    ((trial, covered),) = trials
    assert [case.point for case in covered] == [32, 64, 128]
    assert trial.settings.data.test_length == 128  # the network has positions for the longest
    assert {point: each.data.test_length for point, each in trial.tests.items()} == {32: 32, 64: 64, 128: 128}
    assert len(plan({"a": settings("multihead")}, Sweep("seq_length", (32, 64)), seeds=(0,))) == 2


def test_folders_depend_on_all_that_decides_the_result(tmp_path: Path) -> None:
    base = settings("multihead")
    folders = [trial.folder for trial, _ in plan({"a": base, "b": settings("linear")}, seeds=(0, 1, 2))]
    assert len(set(folders)) == 6
    assert folders[:2] == [trial.folder for trial, _ in plan({"a": base}, seeds=(0, 1))]
    assert folders[0].startswith("a-lr0.01-seed0-")
    changed = base.updated({"num_heads": 4}, "a test")
    assert plan({"a": changed})[0][0].folder != folders[0]
    table, started = base.updated({"task": "table"}, "a test"), base.updated({}, "a test")
    file = tmp_path / "model.safetensors"
    table.data.data, started.training.init_from = str(file), str(tmp_path)
    names = set()
    for text in ("x,y\n1,2\n", "x,y\n1,3\n"):
        file.write_text(text, encoding="utf-8")
        names |= {plan({"a": each})[0][0].folder for each in (table, started)}
    assert len(names) == 4


@pytest.mark.parametrize("name", ["multihead", "(3*linear,multihead)", "a/../b", "ä $", "." * 300])
def test_folders_are_plain_names(name: str) -> None:
    folder = plan({name: settings("multihead")})[0][0].folder
    assert folder == Path(folder).name
    assert len(folder) < 120
    assert json.dumps(folder) == f'"{folder}"' or "ä" in name


def test_sweeps_refuse_unknown_settings_and_wrong_types() -> None:
    models = {"a": settings("multihead")}
    with pytest.raises(UserError, match=r"unknown setting 'wideness'.*\(in --sweep\)"):
        cases_of(models, [Sweep("wideness", (1, 2))])
    with pytest.raises(UserError, match="embed_dim must be a valid integer, not 'wide'"):
        cases_of(models, [Sweep("embed_dim", ("wide",))])
