"""The generated parts of the pages: current in this repository, detected when stale, and nothing else touched."""

from __future__ import annotations

from pathlib import Path

import pytest

import attnlab
from attnlab.catalog import registry
from attnlab.cli import main
from attnlab.docs import generated
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


def entries() -> list[registry.Entry]:
    return [registry.entry(name) for name in registry.names()]


def test_the_pages_of_this_repository_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs", "--check"]) == 0, capsys.readouterr().out


def test_every_mechanism_is_in_the_index() -> None:
    index = (registry.folder() / "README.md").read_text("utf-8")
    for entry in entries():
        assert f"]({entry.name}/README.md)" in index
        assert entry.card.time in index


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one mechanism, whose pages hold only the marks of the generated parts."""
    folder = tmp_path / "models"
    (folder / "linear").mkdir(parents=True)
    (folder / "linear" / "linear.py").write_text(CARD, encoding="utf-8")
    (folder / "linear" / "README.md").write_text(
        "# Linear\n<!-- badge -->\n<!-- /badge -->\nby hand\n<!-- card -->\nout of date\n<!-- /card -->\nthe end\n",
        "utf-8",
    )
    (folder / "README.md").write_text(
        "before\n\n<!-- table -->\n<!-- /table -->\n\nafter\n<!-- family -->\n<!-- /family -->\n", encoding="utf-8"
    )
    monkeypatch.setattr(attnlab, "__path__", [str(Path(attnlab.__file__).parent), str(tmp_path)])
    monkeypatch.setattr(generated.claims, "lesson", lambda name: "")  # the lesson of the real mechanism has claims
    return folder


def test_stale_pages_are_written_and_handwritten_text_is_kept(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = ["models/README.md", "models/linear/README.md"]
    assert main(["docs", "--check"]) == 1
    assert capsys.readouterr().out == (
        "out of date: models/README.md (update it with: attnlab docs)\n"
        "out of date: models/linear/README.md (update it with: attnlab docs)\n"
    )
    assert "<!-- table -->\n<!-- /table -->" in (models / "README.md").read_text("utf-8"), "--check writes nothing"
    assert main(["docs"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == pages
    index, lesson = (p.read_text("utf-8") for p in (models / "README.md", models / "linear" / "README.md"))
    assert index.startswith("before\n\n<!-- table -->\n| mechanism |")
    assert "\n<!-- /table -->\n\nafter\n<!-- family -->\n- [Linear](linear/README.md), 2020: a state\n" in index
    badge = "<!-- badge -->\nNot checked yet: run `attnlab check linear --record`.\n<!-- /badge -->\n"
    assert lesson.startswith(f"# Linear\n{badge}by hand\n<!-- card -->\n| Linear | a state |\n| --- | --- |\n")
    assert lesson.endswith("\n<!-- /card -->\nthe end\n")
    assert "out of date" not in lesson
    assert main(["docs", "--check"]) == 0
    assert main(["docs"]) == 0
    assert capsys.readouterr().out == "every page is up to date\n"


def test_a_changed_card_makes_both_pages_stale(models: Path) -> None:
    generated.update()
    (models / "linear" / "linear.py").write_text(CARD.replace('time="n·d²"', 'time="n·d"'), encoding="utf-8")
    assert [page.path.parent.name for page in generated.pages() if page.stale] == ["models", "linear"]


def add_mechanism(models: Path, parent: str) -> None:
    folder = models / "other"
    folder.mkdir()
    card = CARD.replace('title="Linear"', f'title="Other", parent="{parent}"')
    (folder / "other.py").write_text(card, encoding="utf-8")


def test_the_family_tree_is_nested_by_parent(models: Path) -> None:
    add_mechanism(models, "linear")
    lines = generated.family(entries()).splitlines()
    assert lines == ["- [Linear](linear/README.md), 2020: a state", "  - [Other](other/README.md), 2020: a state"]


@pytest.mark.parametrize(("parent", "message"), [("liner", "did you mean linear"), ("other", "form a cycle")])
def test_an_impossible_parent_is_refused(models: Path, parent: str, message: str) -> None:
    add_mechanism(models, parent)
    with pytest.raises(UserError, match=message):
        generated.family(entries())


def test_the_table_has_one_row_per_mechanism(models: Path) -> None:
    table = generated.table(entries())
    assert table.splitlines()[2] == (
        "| [Linear](linear/README.md) `linear` | K. et al. 2020 | h | n·d² | d² | one state | long | causal, weights |"
    )
    assert len({line.count("|") for line in table.splitlines()[:3]}) == 1


def test_the_card_of_a_lesson(models: Path) -> None:
    card = generated.card(registry.entry("linear"))
    assert "| paper | A \\| B, K. et al. 2020 |" in card, "a bar does not end a cell"
    assert "| kind | another operator |" in card
    assert "**causal** (" in card
    (models / "linear" / "linear.py").write_text(CARD.replace("arxiv=None", 'arxiv="2006.16236"'), encoding="utf-8")
    card = generated.card(registry.entry("linear"))
    assert "| paper | [A \\| B](https://arxiv.org/abs/2006.16236), K. et al. 2020, arXiv:2006.16236 |" in card


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing; write it with the lines <!-- badge --> and <!-- /badge --> in it"),
        ("# Linear\n", "lacks the marks of a generated part; add the lines <!-- badge --> and <!-- /badge -->"),
        ("<!-- badge -->\n<!-- /badge -->\n", "lacks the marks of a generated part; add the lines <!-- card -->"),
        ("<!-- badge -->\n<!-- /badge -->\n<!-- /card -->\n<!-- card -->\n", "lacks the marks"),
    ],
)
def test_a_lesson_without_marks_is_refused(
    models: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = models / "linear" / "README.md"
    page.unlink() if text is None else page.write_text(text, encoding="utf-8")
    assert main(["docs"]) == 2
    assert f"{page} {message}" in capsys.readouterr().err
    assert "| mechanism |" not in (models / "README.md").read_text("utf-8"), "nothing is written before all is checked"


def test_an_installed_copy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "checkout", lambda: None)
    with pytest.raises(UserError, match="its pages are generated in a checkout"):
        generated.pages()


def test_check_and_figures_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs", "--check", "--figures"]) == 2
    assert "--check writes nothing and --figures draws" in capsys.readouterr().err
