"""The documentation builds as a web site, without a broken link and without anything from the network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("material", reason="pip install 'attnlab[docs]'")

from attnlab.catalog import registry
from attnlab.docs import site

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return site.build(tmp_path_factory.mktemp("site"))


def test_every_page_is_there_and_in_the_navigation(built: Path) -> None:
    pages = ["index.html", "models/index.html", *(f"models/{name}/index.html" for name in registry.names())]
    pages += [f"docs/{name}.html" for name in site.SECTIONS]
    assert [page for page in pages if not (built / page).is_file()] == []
    root = registry.checkout()
    assert root is not None
    assert sorted(site.SECTIONS) == sorted(path.stem for path in (root / "docs").glob("*.md"))


def test_the_reference_shows_signatures_and_docstrings(built: Path) -> None:
    text = re.sub(r"<[^>]+>|\s+", "", (built / "api" / "attention-layers.html").read_text(encoding="utf-8"))
    assert "attention_weights(x:Float[Tensor" in text
    assert "Raises:" in text


def test_pages_load_nothing_from_the_network(built: Path) -> None:
    loaded = re.compile(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"?(?:https?:)?//[^\"> ]+")
    found = {page.name: loaded.findall(page.read_text(encoding="utf-8")) for page in built.rglob("*.html")}
    assert {name: urls for name, urls in found.items() if urls} == {}


def test_a_broken_link_stops_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "copy_pages", lambda _, pages: (pages / "README.md").write_text("[nowhere](nowhere.md)"))
    monkeypatch.setattr(site, "navigation", lambda: ["README.md"])
    with pytest.raises(site.UserError, match=r"the site cannot be built: .*README\.md.*nowhere\.md"):
        site.build(tmp_path)
