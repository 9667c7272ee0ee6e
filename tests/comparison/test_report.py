"""The reports: self-contained, escaped, complete, and readable at 200 runs."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from attnlab.comparison import report
from attnlab.comparison import results as records
from attnlab.utils.errors import UserError
from tests.comparison.small import results

VALUES = {"multihead": [0.90, 0.92, 0.91], "linear": [0.40, 0.45, 0.41], "retention": [0.89, 0.92, 0.90]}
HOSTILE = '<script>alert(1)</script> "&\x1b[31m'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    made = results(VALUES, baselines={HOSTILE: 0.1}, costs=True, question=HOSTILE, data=HOSTILE, command=HOSTILE)
    report.write_reports(made, folder)
    return folder


@pytest.mark.slow
def test_the_page_loads_nothing_and_escapes_names(folder: Path) -> None:
    page = (folder / report.PAGE).read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|iframe|img|object)\b|@import|url\((?!#)", page)
    assert not re.search(r"""(?:src|href)=["'](?!#)""", page)
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search("[\x00-\x09\x0b-\x1f]", page)
    assert page.count("<svg") == 5  # ranking, three Pareto fronts, learning curves
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:xlink:href="#|url\(#)([^")]*)', page)) <= set(ids)
    assert "#222222" not in page  # the ink has the colour of the text around it, also on dark pages


@pytest.mark.slow
def test_all_reports_have_the_numbers(folder: Path) -> None:
    page, markdown = ((folder / name).read_text(encoding="utf-8") for name in (report.PAGE, report.MARKDOWN))
    for text in (page, markdown):
        for cell in ("0.91 ± 0.02", "−0.49", "12,345 ~", "small networks", "multihead", "linear"):
            assert cell in text, cell
    for file in re.findall(r"!\[[^]]*\]\(([^)]*)\)", markdown):
        assert (folder / file).is_file()
    rows = list(csv.DictReader(io.StringIO((folder / report.CSV).read_text(encoding="utf-8"))))
    assert [float(row["test"]) for row in rows if row["label"] == "linear"] == VALUES["linear"]
    assert records.read(folder / records.FILE).question == HOSTILE


def test_a_command_stays_inside_its_code_span() -> None:
    made = results({"a": [0.5], "b": [0.75]}, command="compare --output 'a`<b>`'")
    assert "`` compare --output 'a`<b>`' ``" in report.text(made, [])
    assert [row[4] for row in report.rows(made, None)] == ["", ""]  # a single seed has no p-value


def test_a_reason_for_a_missing_cost_is_given_once() -> None:
    made = results({"a": [0.5], "b": [0.75], "c": [0.75]}, costs=True)
    for case, notes in zip(made.cases, (["one.", "two."], ["one."], ["one."]), strict=True):
        assert case.cost is not None
        case.cost = case.cost.model_copy(update={"notes": notes})
    assert report.legend(made)[-2:] == ["No one.", "a: no two."]


def test_results_that_were_damaged_are_refused(tmp_path: Path) -> None:
    file = records.write(results(VALUES), tmp_path)
    content = json.loads(file.read_text(encoding="utf-8"))
    for damaged in ({**content, "seeds": "five"}, {**content, "more": 1}, [], {}):
        file.write_text(json.dumps(damaged), encoding="utf-8")
        with pytest.raises(UserError, match="is not the result of a comparison"):
            records.read(file)
    file.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        records.read(file)
    assert records.Results.model_json_schema()["properties"]["cases"]


@pytest.mark.slow
def test_the_report_of_200_runs_stays_small(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    values = {f"mechanism{i}": generator.uniform(0.1 * i, 0.1 * i + 0.1, 5).tolist() for i in range(10)}
    made = results(values, points=(4, 8, 16, 32), costs=True)
    assert len(made.trials) == 200
    report.write_reports(made, tmp_path)
    assert (tmp_path / report.PAGE).stat().st_size < 3_000_000
