"""Build the documentation as a web site: ``python -m attnlab.docs.site`` (or ``make site``).

The pages are the README files, the lessons and docs/ of a checkout, under the same relative paths, so that their links
hold in both places; the API reference is made from the docstrings. Nothing is loaded from the network.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import tempfile
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

from attnlab.catalog import registry
from attnlab.utils.errors import UserError
from attnlab.utils.extras import need

API = {
    "Attention layers": ("attnlab.nn.attention", "attnlab.nn.multihead", "attnlab.nn.cache", "attnlab.nn.layer_caches"),
    "Masks": ("attnlab.masks",),
    "Positions": ("attnlab.positions",),
    "Ops": ("attnlab.ops.softmax", "attnlab.ops.attention_map", "attnlab.ops.dispatch", "attnlab.ops.scan"),
    "Recurrences": ("attnlab.ops.scan.functions",),
    "Conformance suite": ("attnlab.checks",),
    "Networks": ("attnlab.network",),
    "Tasks": ("attnlab.tasks.base",),
    "Explorer": ("attnlab.explore.setup", "attnlab.explore.notebook"),
    "Benchmarks": ("attnlab.bench.measurement",),
    "Integrations": ("attnlab.integrations.pytorch", "attnlab.integrations.huggingface"),
}
"""The modules of the API reference, by page."""

SECTIONS = (
    "glossary",
    "tasks",
    "training",
    "explore",
    "weights",
    "compare",
    "claims",
    "hybrids",
    "heads",
    "interop",
    "checks",
    "trust",
    "bench",
    "performance",
    "peers",
)
"""The pages of docs/, in the order of the navigation."""

LINK = re.compile(r"\]\(([^)\s#]+)")


def main() -> None:
    """Build the site into ``build/site``."""
    parser = argparse.ArgumentParser(description="Build the documentation as a web site.")
    parser.add_argument("--output", type=Path, default=Path("build/site"), help="where the site is written")
    print(f"written: {build(parser.parse_args().output) / 'index.html'}")


def build(output: Path) -> Path:
    """Write the site into the folder ``output`` and return it.

    Raises:
        UserError: outside of a checkout, or for a page with a broken link.
        MissingExtraError: without mkdocs.
    """
    need("docs", "the site")
    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config
    from mkdocs.exceptions import MkDocsException

    root = registry.checkout()
    if root is None:
        raise UserError(f"attnlab is installed in {registry.folder().parent}; the site is built in a checkout")
    with tempfile.TemporaryDirectory() as folder:
        pages = Path(folder)
        copy_pages(root, pages)
        warnings = BufferingHandler(capacity=1000)  # in place of printing them
        warnings.setLevel(logging.WARNING)
        logging.getLogger("mkdocs").addHandler(warnings)
        try:
            site_dir = str(output.resolve())
            config: Any = load_config(
                str(root / "mkdocs.yml"), docs_dir=folder, site_dir=site_dir, nav=navigation(), strict=True
            )
            build_site(config)
        except MkDocsException as error:
            messages = "; ".join(record.getMessage() for record in warnings.buffer)
            raise UserError(f"the site cannot be built: {messages or error}") from error
        finally:
            logging.getLogger("mkdocs").removeHandler(warnings)
    return output


def copy_pages(root: Path, pages: Path) -> None:
    """Copy the pages of a checkout and the files that they link to into ``pages``; write the pages of the API."""
    names = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "models/README.md", "benchmarks/README.md"]
    names += [f"models/{name}/README.md" for name in registry.names()]
    sources = [*(root / name for name in names), *(root / "docs").glob("*.md")]
    for file in sources:  # grows: a linked page may link to further files
        if file.suffix == ".md":
            links = (link for link in LINK.findall(file.read_text(encoding="utf-8")) if "://" not in link)
            targets = [(file.parent / link).resolve() for link in links]
            sources += [target for target in dict.fromkeys(targets) if target.is_file() and target not in sources]
    for file in sources:
        copy = pages / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    (pages / "api").mkdir()
    for title, modules in API.items():
        body = "\n\n".join(f"::: {module}" for module in modules)
        (pages / _api_page(title)).write_text(f"# {title}\n\n{body}\n", encoding="utf-8")


def navigation() -> list[dict[str, Any]]:
    """The navigation of the site, as mkdocs takes it."""
    entries = [registry.entry(name) for name in registry.names()]
    lessons = [{entry.card.title: f"models/{entry.name}/README.md"} for entry in entries]
    return [
        {"Start": "README.md"},
        {"Mechanisms": [{"Overview": "models/README.md"}, *lessons]},
        {"Guide": [f"docs/{name}.md" for name in SECTIONS]},
        {"API reference": [{title: _api_page(title)} for title in API]},
        {"Project": ["CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]},
    ]


def _api_page(title: str) -> str:
    return f"api/{title.lower().replace(' ', '-')}.md"


if __name__ == "__main__":
    main()
