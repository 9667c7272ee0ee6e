"""What was found of a mechanism is kept beside it, read again, and shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnlab.catalog import registry
from attnlab.cli import main
from attnlab.docs import trust
from attnlab.utils.errors import UserError

NEAR = trust.Parity("Their Layer", "theirs", "1.2", 3e-7, 2e-15)
FAR = trust.Parity("Another", "others", "0.1", None, 4e-7)


def test_what_is_recorded_is_read_again_and_one_part_leaves_the_other(tmp_path: Path) -> None:
    assert trust.read(tmp_path) == trust.Trust()
    trust.record(tmp_path, promises={"keeps the shape": "pass", "packs": "not claimed"})
    trust.record(tmp_path, parity=[FAR, NEAR])
    found = trust.read(tmp_path)
    assert dict(found.promises) == {"keeps the shape": "pass", "packs": "not claimed"}
    assert (found.parity, found.kept, found.nearest) == ((FAR, NEAR), 1, NEAR)


def test_the_badge_and_the_page_say_it(tmp_path: Path) -> None:
    assert trust.badge(trust.Trust(), 0) == ""
    for name in ("one", "two", "nothing"):
        (tmp_path / name).mkdir()
    trust.record(tmp_path / "two", promises={"keeps the shape": "pass"})
    trust.record(tmp_path / "one", promises={"keeps the shape": "pass", "packs": "not claimed"}, parity=[FAR, NEAR])
    assert trust.badge(trust.read(tmp_path / "one"), 1) == (
        "**Proved**: keeps each of the 1 promises that it makes (1 it does not make); 2e-15 from Their Layer of theirs "
        "1.2 in float64. [All promises and oracles](../../docs/trust.md)."
    )
    page = trust.page(
        {name: tmp_path / name for name in ("one", "two", "nothing")}, {"one": ("n^1.00", "n^0.98")}
    ).splitlines()
    assert "| 1 | [one](../models/one/README.md) | 1 | 1 | 4e-7 | – | Another, others 0.1 | n^1.00 | n^0.98 |" in page
    assert "|  |  |  |  | 2e-15 | 3e-7 | Their Layer, theirs 1.2 |  |  |" in page
    assert "| packs | – | ? |" in page
    assert "| keeps the shape | ✓ | ✓ |" in page
    assert not any("nothing" in line for line in page)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / trust.FILE).write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"trust.json cannot be read .*record it anew with: attnlab check"):
        trust.read(tmp_path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["multihead", "--fast"], "--record keeps all promises of a mechanism as it comes; leave out --fast"),
        (["multihead", "--only", "keeps the shape"], "leave out --only"),
        (["torch.nn:Linear"], "--record keeps what a mechanism in models/ promises, not 'torch.nn:Linear'"),
    ],
)
def test_what_cannot_be_recorded_is_refused(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (registry.folder() / "multihead" / trust.FILE).read_bytes()
    assert main(["check", *words, "--record"]) == 2
    assert says in capsys.readouterr().err
    assert (registry.folder() / "multihead" / trust.FILE).read_bytes() == before
