"""The recorded evidence of a mechanism: written, read again, and shown in lessons and on the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnlab.catalog import registry
from attnlab.cli import main
from attnlab.docs import trust
from attnlab.utils.errors import UserError

NEAR = trust.Parity("Their Layer", "theirs", "1.2", 3e-7, 2e-15)
FAR = trust.Parity("Another", "others", "0.1", None, 4e-7)
CHECKS = {"output_shape": "pass", "traceable": "not applicable"}


def test_recording_one_part_keeps_the_other(tmp_path: Path) -> None:
    assert trust.read(tmp_path) == trust.Trust()
    trust.record(tmp_path, checks=CHECKS)
    trust.record(tmp_path, parity=[FAR, NEAR])
    evidence = trust.read(tmp_path)
    assert dict(evidence.checks) == CHECKS
    assert (evidence.parity, evidence.passed, evidence.nearest) == ((FAR, NEAR), 1, NEAR)


def test_badge_and_page(tmp_path: Path) -> None:
    assert trust.badge(trust.Trust()) == ""
    folders = {name: tmp_path / name for name in ("one", "two", "empty")}
    for folder in folders.values():
        folder.mkdir()
    trust.record(folders["two"], checks={"output_shape": "pass"})
    trust.record(folders["one"], checks=CHECKS, parity=[FAR, NEAR])
    assert trust.badge(trust.read(folders["one"])) == (
        "**Verified**: passes all 1 applicable checks (1 are not applicable); differs by 2e-15 from Their Layer "
        "(theirs 1.2) in float64. [All checks and implementations](../../docs/trust.md)."
    )
    page = trust.page(folders, {"one": ("n^1.00", "n^0.98")}).splitlines()
    assert "| 1 | [one](../models/one/README.md) | 1 | 1 | 4e-7 | – | Another, others 0.1 | n^1.00 | n^0.98 |" in page
    assert "|  |  |  |  | 2e-15 | 3e-7 | Their Layer, theirs 1.2 |  |  |" in page
    assert "| traceable | – | ? |" in page
    assert "| output_shape | ✓ | ✓ |" in page
    assert not any("empty" in line for line in page)


def test_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / trust.FILE).write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"trust.json cannot be read .*record it again with: attnlab check"):
        trust.read(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["multihead", "--fast"], "--record needs all checks with the default options; leave out --fast"),
        (["multihead", "--only", "output_shape"], "leave out --only"),
        (["torch.nn:Linear"], "--record saves the outcomes of a mechanism in models/, not of 'torch.nn:Linear'"),
    ],
)
def test_partial_run_is_not_recorded(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (registry.folder() / "multihead" / trust.FILE).read_bytes()
    assert main(["check", *words, "--record"]) == 2
    assert message in capsys.readouterr().err
    assert (registry.folder() / "multihead" / trust.FILE).read_bytes() == before
