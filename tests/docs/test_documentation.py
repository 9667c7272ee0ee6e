"""What is generated in the pages: up to date here, found stale when it is, and the rest left alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import attnlab
from attnlab.catalog import registry
from attnlab.cli import main
from attnlab.utils.errors import UserError

CARD = """
from attnlab.nn.attention import Attention, Card


class Linear(Attention):
    card = Card(
        title="Linear", summary="a state", paper="A | B", authors="K. et al.", year=2020, arxiv=None,
        kind="another operator", heads="h", time="n·d²", memory="d²", representation="one state", use_case="long",
        supports=("causal", "weights"),
    )
"""


def test_the_pages_of_this_repository_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs", "--check"]) == 0, capsys.readouterr().out


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one mechanism, its pages empty but for the marks."""
    folder = tmp_path / "models"
    (folder / "linear").mkdir(parents=True)
    (folder / "linear" / "linear.py").write_text(CARD, encoding="utf-8")
    (folder / "linear" / "README.md").write_text(
        "# Linear\n<!-- card -->\nout of date\n<!-- /card -->\nmine\n", "utf-8"
    )
    (folder / "README.md").write_text(
        "before\n\n<!-- table -->\n<!-- /table -->\n\nafter\n<!-- family -->\n<!-- /family -->\n", encoding="utf-8"
    )
    monkeypatch.setattr(attnlab, "__path__", [str(Path(attnlab.__file__).parent), str(tmp_path)])
    return folder


def test_stale_pages_are_written_and_what_people_wrote_is_kept(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["docs", "--check"]) == 1
    assert capsys.readouterr().out == (
        "out of date: models/README.md (update it with: attnlab docs)\n"
        "out of date: models/linear/README.md (update it with: attnlab docs)\n"
    )
    assert "<!-- table -->\n<!-- /table -->" in (models / "README.md").read_text("utf-8"), "--check writes nothing"
    assert main(["docs"]) == 0
    assert capsys.readouterr().out == "written: models/README.md\nwritten: models/linear/README.md\n"
    index, lesson = (p.read_text("utf-8") for p in (models / "README.md", models / "linear" / "README.md"))
    assert index.startswith("before\n\n<!-- table -->\n| mechanism |")
    assert "\n<!-- /table -->\n\nafter\n<!-- family -->\n- [Linear](linear/README.md), 2020: a state\n" in index
    assert lesson.startswith("# Linear\n<!-- card -->\n| Linear | a state |\n| --- | --- |\n")
    assert lesson.endswith("\n<!-- /card -->\nmine\n")
    assert "out of date" not in lesson
    assert main(["docs", "--check"]) == 0
    assert main(["docs"]) == 0
    assert capsys.readouterr().out == "every page is up to date\n"


def test_a_changed_card_makes_both_pages_stale(models: Path) -> None:
    documentation.update()
    (models / "linear" / "linear.py").write_text(CARD.replace('time="n·d²"', 'time="n·d"'), encoding="utf-8")
    assert [page.path.parent.name for page in documentation.pages() if page.stale] == ["models", "linear"]


def second(models: Path, parent: str) -> None:
    folder = models / "other"
    folder.mkdir()
    card = CARD.replace('title="Linear"', f'title="Other", parent="{parent}"')
    (folder / "other.py").write_text(card, encoding="utf-8")


def test_the_family_stands_under_its_parents(models: Path) -> None:
    second(models, "linear")
    lines = documentation.family([registry.entry(name) for name in registry.names()]).splitlines()
    assert lines == ["- [Linear](linear/README.md), 2020: a state", "  - [Other](other/README.md), 2020: a state"]


@pytest.mark.parametrize(("parent", "says"), [("liner", "did you mean linear"), ("other", "go round in a circle")])
def test_a_parent_that_cannot_be(models: Path, parent: str, says: str) -> None:
    second(models, parent)
    with pytest.raises(UserError, match=says):
        documentation.family([registry.entry(name) for name in registry.names()])


def test_the_table_says_what_the_card_says(models: Path) -> None:
    table = documentation.table([registry.entry("linear")])
    assert table.splitlines()[2] == (
        "| [Linear](linear/README.md) `linear` | K. et al. 2020 | h | n·d² | d² | one state | long | causal, weights |"
    )
    assert len({line.count("|") for line in table.splitlines()[:3]}) == 1


def test_the_head_says_what_the_card_says(models: Path) -> None:
    head = documentation.head(registry.entry("linear"))
    assert "| paper | A \\| B, K. et al. 2020 |" in head, "a bar does not end a cell"
    assert "| kind | another operator |" in head
    assert "**causal** (may be told to look back only)" in head
    (models / "linear" / "linear.py").write_text(CARD.replace("arxiv=None", 'arxiv="2006.16236"'), encoding="utf-8")
    head = documentation.head(registry.entry("linear"))
    assert "| paper | [A \\| B](https://arxiv.org/abs/2006.16236), K. et al. 2020, arXiv:2006.16236 |" in head


def test_every_mechanism_is_in_the_index() -> None:
    index = (registry.folder() / "README.md").read_text("utf-8")
    for name in registry.names():
        assert f"]({name}/README.md)" in index
        assert registry.entry(name).card.time in index


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "is missing; write it with the lines <!-- card --> and <!-- /card --> in it"),
        ("# Linear\n", "has no place for what is generated; put the lines <!-- card --> and <!-- /card --> in it"),
        ("<!-- card -->\n", "has no place"),
        ("<!-- /card -->\n<!-- card -->\n", "has no place"),
    ],
)
def test_a_lesson_without_a_place_for_its_head(
    models: Path, text: str | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = models / "linear" / "README.md"
    page.unlink() if text is None else page.write_text(text, encoding="utf-8")
    assert main(["docs"]) == 2
    assert f"{page} {says}" in capsys.readouterr().err
    assert "| mechanism |" not in (models / "README.md").read_text("utf-8"), "all is checked before anything is written"


def test_an_installed_copy_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "checkout", lambda: None)
    with pytest.raises(UserError, match="its pages are generated in a checkout"):
        documentation.pages()


def test_figures_are_drawn_by_the_mechanisms_own_file(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert documentation.draw_figures("linear") == []
    for kept in [name for name in sys.modules if name.startswith("attnlab.models")]:
        monkeypatch.delitem(sys.modules, kept)
    monkeypatch.delattr(attnlab, "models", raising=False)
    (models / "__init__.py").touch()
    (models / "linear" / "__init__.py").touch()
    figures = models / "linear" / "figures.py"
    figures.write_text("drawing = None\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"models/linear/figures.py has no draw\(folder\)"):
        documentation.draw_figures("linear")
    monkeypatch.delitem(sys.modules, "attnlab.models.linear.figures")
    figures.write_text("def draw(folder):\n    return [folder / 'one_picture.png']\n", encoding="utf-8")
    assert documentation.draw_figures("linear") == [models / "linear" / "figures" / "one_picture.png"]
    for made in [name for name in sys.modules if name.startswith("attnlab.models")]:
        monkeypatch.delitem(sys.modules, made)


def test_check_and_figures_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs", "--check", "--figures"]) == 2
    assert capsys.readouterr().err == "error: --check writes nothing and --figures draws; give one of them\n"
