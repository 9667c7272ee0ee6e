"""mypy checks constructors and calls of layers in the code of a user."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

USER = """
import attnlab
import torch
from attnlab import GatedAttention
from torch import Tensor

from models.multihead import MultiAttention
from models.selfhead import SelfAttention

a, b, y = MultiAttention(64, 8, causal=True), SelfAttention(64), torch.zeros(2, 3, 64)
out: Tensor = a(y, mask=torch.ones(3, 3).bool())
MultiAttention("64", 8)  # error: has incompatible type "str"; expected "int"
MultiAttention(64, 8, casual=True)  # error: did you mean "causal"?
a(y, maks=None)  # error: Unexpected keyword argument "maks"
a(y, y, y)  # error: Too many positional arguments
wrong: int = b(y)  # error: expression has type "Tensor", variable has type "int"
a.make_cache("7")  # error: expected "int"
lazy: attnlab.Attention = attnlab.SelfAttention(64)
attnlab.SelfAttention("64")  # error: expected "int"
GatedAttention(64, 8)(y, maks=None)  # error: Unexpected keyword argument "maks"
"""


@pytest.mark.slow
def test_mypy_on_a_user_file(tmp_path: Path) -> None:
    file = tmp_path / "user.py"
    file.write_text(USER)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file=", "--follow-imports=silent"),
            *("--cache-dir", str(ROOT / ".mypy_cache" / "user"), str(file)),
        ],
        env={**os.environ, "MYPYPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = dict(re.findall(r"^user\.py:(\d+): error: (.*)$", run.stdout, re.MULTILINE))
    expected = {
        str(number): line.split("# error: ")[1]
        for number, line in enumerate(USER.splitlines(), 1)
        if "# error: " in line
    }
    assert errors.keys() == expected.keys(), run.stdout + run.stderr
    assert all(expected[number] in errors[number] for number in expected), run.stdout
