"""Every page of the documentation runs: its blocks, the numbers that it shows, its links."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import documents
import pytest
import torch
from documents import ROOT, Runner, blocks, broken_links, commands, matches, name

from attnlab.catalog import registry
from attnlab.utils.extras import MissingExtraError, need

PAGES = documents.documents()
MECHANISMS = registry.names()

# Commands (and first lines of Python blocks) that do not run as they are: what runs instead, None for nothing, and why.
# A test below finds entries that no page needs.
EXCEPTIONS: dict[str, tuple[str | None, str]] = {
    "make train": ("make --dry-run train", "installs into a new .venv, from the network"),
    "make bench": ("make --dry-run bench", "takes minutes, and measures nothing useful next to other tests"),
    "make test": ("make --dry-run test", "these are the tests"),
    **{
        f"python main.py {flags} {length}": (f"python main.py {flags} --steps {steps}", "the page shows no output")
        for flags, length, steps in [("--model selfhead --task digits --embed_dim 64", "--epochs 100", 1)]
    },
    **{
        f"python main.py --task multi_lookup --num_heads {heads}": (
            f"python main.py --task multi_lookup --num_heads {heads} --steps 3",
            "the page shows no output, and docs/heads.md trains one network in full",
        )
        for heads in (1, 4)
    },
    "python main.py --task multi_lookup --num_heads 8": (None, "the same, with another number of heads"),
    "python main.py --model multihead --embed_dim 128 --num_heads 8 --epochs 12": (None, "docs/training.md trains it"),
    "python main.py --task text --steps 300": (None, "docs/tasks.md trains it"),
    "python main.py --task text --steps 300 --run_dir runs/english": (
        "python main.py --task text --steps 20 --embed_dim 16 --layers 1 --num_heads 2 --run_dir runs/english",
        "the page shows no output",
    ),
    **{
        f"attnlab check {mechanism} --fast": (None, "tests/models/test_contract.py runs the same checks")
        for mechanism in MECHANISMS
        if mechanism != "selfhead"
    },
    **{
        f"python -m attnlab.docs.lesson {mechanism} --measure": (
            None,
            "tests/docs/test_lessons.py measures short texts",
        )
        for mechanism in ("selfhead", "multihead", "groupedquery")
    },
    "attnlab check": ("attnlab check --only output_shape", "the tests of the contract run the whole suite"),
    "attnlab check multihead --args num_heads=4": (
        "attnlab check multihead --args num_heads=4 --only output_shape",
        "the same",
    ),
    "attnlab check my_package.my_module:MyAttention": (None, "the reader's own layer"),
    '@check("output_shape", needs=())': (None, "would register the check for every later test"),
    "python -m attnlab.docs.hybrids": (
        "python -m attnlab.docs.hybrids --help",
        "takes half an hour; tests/docs/test_hybrids.py trains one network",
    ),
    **{
        f"torchrun --nproc_per_node 2 -m attnlab train {flags}": (
            None,
            "tests/training/test_several_processes.py runs both",
        )
        for flags in (
            "--model multihead --embed_dim 256 --batch_size 256",
            "--resume runs/digits-multihead-001",
        )
    },
    "torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint host:29500 --rdzv_id 1 "
    "-m attnlab train --model multihead --embed_dim 1024 --layers 12 --fsdp": (
        "attnlab train --model multihead --embed_dim 1024 --layers 12 --fsdp --help",
        "needs two machines",
    ),
    'attnlab bench --models multihead linear "2*linear,multihead" --lengths 128,2048 --phases training,decode '
    "--embed_dim 128 --brief": (
        'attnlab bench --models multihead "2*linear,multihead" --lengths 16,32 --phases decode --embed_dim 16 --brief',
        "the page shows the output of a longer measurement",
    ),
    "attnlab compare --models multihead,linear --data docs/examples/flowers.csv --target species "
    "--seeds 3 --epochs 10": (
        "attnlab compare --models multihead --data docs/examples/flowers.csv --target species --seeds 2 --steps 2 "
        "--lr default --no_costs",
        "the page shows no output, and tests/comparison runs whole comparisons",
    ),
    "attnlab compare --models multihead,linear --task recall --sweep pairs=2,4 --seq_length 16 --vocabulary 16 "
    "--lr 1e-2 --steps 30 --seeds 2 --no_costs --output comparisons/capacity": (
        "attnlab compare --models linear --task recall --sweep pairs=2,4 --seq_length 16 --vocabulary 16 "
        "--lr 1e-2 --steps 2 --seeds 1 --no_costs --output comparisons/capacity",
        "the same",
    ),
    "attnlab claims run induction-needs-two-layers": (
        "attnlab claims induction-needs-two-layers",
        "takes a minute; tests/claims runs small claims",
    ),
    **{
        f"attnlab explore{what}": (f"attnlab explore{what} --export page.html --overwrite", "serves until Ctrl-C")
        for what in ("", " runs/induction")
    },
    "python main.py --interactive": (None, "needs a terminal; tests/cli/test_interactive.py runs it"),
}

# Pages that need an extra run where it is installed.
EXTRAS = {"docs/interop.md": ("hf", "export")}


def replacement(command: str) -> str | None:
    first_line = command.split("\n")[0]
    return EXCEPTIONS[first_line][0] if first_line in EXCEPTIONS else command


def page_parameters() -> list[object]:
    slow = [p for p in PAGES if any(b.language == "sh" or "export" in b.code for b in blocks(p.read_text("utf-8")))]
    return [pytest.param(p, id=name(p), marks=[pytest.mark.slow] if p in slow else []) for p in PAGES]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that git would keep."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for file in filter(None, listed.split("\0")):
        if (ROOT / file).is_file():
            (tmp_path / "checkout" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, tmp_path / "checkout" / file)
    return tmp_path / "checkout"


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")  # raised in torch.onnx.export
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
        Runner(checkout, replacement).run(name(page), page.read_text("utf-8"))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_have_targets(page: Path) -> None:
    assert broken_links(page) == []


def test_every_exception_is_needed() -> None:
    found = [block for page in PAGES for block in blocks(page.read_text("utf-8"))]
    shell = {command.split("\n")[0] for block in found if block.language == "sh" for command in commands(block)}
    python = {block.code.split("\n")[0] for block in found if block.language == "python"}
    assert [command for command in EXCEPTIONS if command not in shell | python] == []


def test_there_are_pages() -> None:
    assert {"README.md", "models/selfhead/README.md", "models/multihead/README.md"} <= set(map(name, PAGES))


# The runner itself must fail on a wrong page

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


def test_a_correct_page_passes(tmp_path: Path) -> None:
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
        ("echo one", "false; echo one", "exits with 1"),
        ("```sh\necho", "```\necho", "a block in no language"),
        ("```text\none 2.25\n```", "```text\none", "never closed"),
    ],
)
def test_a_wrong_page_fails(right: str, wrong: str, message: str, tmp_path: Path) -> None:
    assert right in PAGE
    with pytest.raises(AssertionError, match=message):
        run(PAGE.replace(right, wrong), tmp_path)


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
def test_numbers_agree_to_the_digits_shown(shown: str, printed: str, same: bool) -> None:
    assert matches(shown, printed) is same


def test_the_tolerance_applies_to_fractions_only() -> None:
    assert matches("4 0.994", "4 0.981", tolerance=0.02)
    assert not matches("4 0.994", "4 0.96", tolerance=0.02)
    assert not matches("500", "501", tolerance=2)


def test_a_command_continues_inside_quotes() -> None:
    block = documents.Block("sh", 'python -c "\nfor i in range(2):\n    print(i)"  # twice\necho a \\\n  b  # c', 1)
    assert commands(block) == ['python -c "\nfor i in range(2):\n    print(i)"  # twice', "echo a b"]


def test_links_and_anchors(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, twice!\n[a](#a-title-twice) [b](#nowhere) [c](page.md) [d](missing.png) `[e](code)` [h]\n"
        '<img src="missing.svg"> [f](https://example.org/x)\n```text\n[g](block)\n```\n\n[h]: missing.md\n',
        "utf-8",
    )
    assert broken_links(page) == ["#nowhere", "missing.png", "missing.md", "missing.svg"]
