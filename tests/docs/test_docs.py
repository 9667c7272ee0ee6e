"""Every page runs: its blocks, the numbers it shows, its links."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import documents
import pytest
import torch
from documents import ROOT, Runner, blocks, broken_links, commands, matches, name

from attnlab.utils.extras import MissingExtraError, need

PAGES = documents.documents()

FIRST = "python main.py --model selfhead --embed_dim 64 --epochs 100"

# What is not run as it stands, a command (or the first line of a Python block) each: what runs instead, and why.
# None leaves it out. A test below finds entries that no page needs any longer.
EXCEPTIONS: dict[str, tuple[str | None, str]] = {
    "make train": ("make --dry-run train", "installs into a new .venv, from the network"),
    "make bench": ("make --dry-run bench", "takes minutes, and means nothing beside other work"),
    "make test": ("make --dry-run test", "these are the tests"),
    FIRST: (FIRST.replace("100", "1"), "a test below runs it whole and compares what the README shows"),
    "python main.py --model multihead --embed_dim 128 --num_heads 8 --epochs 200": (
        "python main.py --model multihead --embed_dim 128 --num_heads 8 --epochs 1",
        "takes minutes",
    ),
    **{
        f"python main.py --task multi_lookup --num_heads {heads}": (
            f"python main.py --task multi_lookup --num_heads {heads} --steps 3",
            "the page shows no number of it, and docs/heads.md trains one whole",
        )
        for heads in (1, 4, 8)
    },
    "python main.py --task text --steps 300": ("python main.py --task text --steps 1", "takes minutes"),
    "python main.py --task text --steps 300 --run_dir runs/english": (
        "python main.py --task text --steps 20 --run_dir runs/english",
        "takes minutes, and the page shows no number of it",
    ),
    "attnlab check": ("attnlab check --only output_shape", "the tests of the contract run the whole of it"),
    "attnlab check multihead --args num_heads=4": ("attnlab check multihead --fast --args num_heads=4", "the same"),
    "attnlab check my_package.my_module:MyAttention": (None, "the reader's own layer"),
    '@check("output_shape", needs=())': (None, "the registry has a check of that name"),
    "python main.py --interactive": (None, "asks on a terminal; the tests of the command line answer it"),
}


# Pages that show an extra: they are run where it is installed.
EXTRAS = {"docs/interop.md": ("hf", "export")}


def instead(command: str) -> str | None:
    return EXCEPTIONS[command][0] if command in EXCEPTIONS else command


def typed(page: Path) -> list[str]:
    """The commands of a page, and the first lines of its Python blocks."""
    found = blocks(page.read_text("utf-8"))
    shell = [command for block in found if block.language in ("sh", "console") for command in commands(block)]
    return shell + [block.code.split("\n")[0] for block in found if block.language == "python"]


def page_parameters() -> list[object]:
    slow = [p for p in PAGES if any(b.language in ("sh", "console") for b in blocks(p.read_text("utf-8")))]
    return [pytest.param(p, id=name(p), marks=[pytest.mark.slow] if p in slow else []) for p in PAGES]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what git would keep."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for file in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / file).is_file():
            (tmp_path / "checkout" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, tmp_path / "checkout" / file)
    return tmp_path / "checkout"


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")  # PyTorch's, on its way to ONNX
@pytest.mark.parametrize("page", page_parameters())
def test_page_runs(page: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for extra in EXTRAS.get(name(page), ()):
        try:
            need(extra, name(page))
        except MissingExtraError as missing:
            pytest.skip(str(missing))
    monkeypatch.chdir(checkout)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        Runner(checkout, instead).run(name(page), page.read_text("utf-8"))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_every_exception_is_needed() -> None:
    needed = {line for page in PAGES for line in typed(page)}
    assert [command for command in EXCEPTIONS if command not in needed] == []


def test_there_are_pages() -> None:
    assert {"README.md", "models/selfhead/README.md", "models/multihead/README.md"} <= set(map(name, PAGES))


@pytest.mark.slow
def test_the_first_command_gives_what_the_readme_shows(checkout: Path) -> None:
    block = next(b for b in blocks((ROOT / "README.md").read_text("utf-8")) if FIRST in commands(b))
    done = subprocess.run(
        [sys.executable, *FIRST.split()[1:]], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert block.output is not None
    shown, printed = results(block.output), results(done.stdout)
    # Another processor rounds otherwise, and so ends in another network that is as good; the baselines are the same.
    assert printed.pop("selfhead") == pytest.approx(shown.pop("selfhead"), abs=0.02)
    assert printed == shown
    assert len(shown) == 3


def results(output: str) -> dict[str, float]:
    """The first metric of each row of the table of results."""
    below = output[output.index("test accuracy") :]
    return {name: float(value) for name, value in re.findall(r"^  (\S.*?)\s{2,}([\d.]+)  ", below, re.MULTILINE)}


# The runner itself: it must see what is wrong

PAGE = """
```python
answer = 51.0
print("the last token reads", answer)
```

```text
the last token reads 51.0
```

```python
int("x")  # raises ValueError: invalid literal ...
```

```sh
echo one 2.25
```

```text
one 2.25
```
"""


def run(page: str, folder: Path) -> None:
    (folder / "checkout").mkdir(parents=True)
    Runner(folder / "checkout").run("page.md", page)


def test_a_right_page_passes(tmp_path: Path) -> None:
    run(PAGE, tmp_path)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("reads 51.0", "reads 51.1", "page.md:3 shows"),
        ("reads 51.0", "reads", "page.md:3 shows"),
        ("```text\none 2.25", "```text\none 2.35", "page.md:16 shows"),
        ("```text\nthe last token reads 51.0\n```", "", "prints, but does not show"),
        ("invalid literal", "another message", "instead of raises ValueError"),
        ('int("x")', 'int("1")', "does not raise ValueError"),
        ("  # raises ValueError: invalid literal ...", "", "ValueError: invalid literal"),
        ("echo one", "false; echo one", "left with 1"),
        ("```sh\necho", "```\necho", "a block in no language"),
        ("```text\none 2.25\n```", "```text\none", "never closed"),
    ],
)
def test_a_wrong_page_fails(right: str, wrong: str, message: str, tmp_path: Path) -> None:
    assert right in PAGE
    with pytest.raises(AssertionError, match=message):
        run(PAGE.replace(right, wrong), tmp_path)


def test_a_wrong_number_in_a_lesson_fails(tmp_path: Path) -> None:
    lesson = (ROOT / "models/selfhead/README.md").read_text("utf-8")
    right = "causal: 21 35 51"
    part = lesson[lesson.index("## Three tokens by hand") : lesson.index("## Equation and code")]
    assert right in part
    run(part, tmp_path / "right")
    with pytest.raises(AssertionError, match="but prints"):
        run(part.replace(right, "causal: 21 35 52"), tmp_path / "wrong")


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("21 35 51", "21 35 51", True),
        ("21 35 51", "21 35 52", False),
        ("37.8", "37.799999", True),
        ("37.8", "37.86", False),
        ("51", "51.0", True),
        ("51", "51.2", False),
        ("-1", "1", False),
        ("1e-5", "1.2e-05", True),
        ("1e-5", "1e-4", False),
        ("a ... z", "a b c z", True),
        ("a ... z", "a z", True),
        ("a ... z", "a b c", False),
        ("a ...", "a", True),
        ("a", "a b", False),
        ("", "a", False),
        ("float32", "float64", False),
        ("torch.Size([2, 3])", "torch.Size([2, 3])", True),
        ("torch.Size([2, 3])", "torch.Size([3, 2])", False),
    ],
)
def test_numbers_agree_as_far_as_they_are_shown(shown: str, printed: str, same: bool) -> None:
    assert matches(shown, printed) is same


def test_links_and_anchors(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, twice!\n[a](#a-title-twice) [b](#nowhere) [c](page.md) [d](missing.png) `[e](code)`\n"
        '<img src="missing.svg"> [f](https://example.org/x)\n```text\n[g](block)\n```\n[h]: missing.md\n',
        "utf-8",
    )
    assert broken_links(page) == ["#nowhere", "missing.png", "missing.md", "missing.svg"]
