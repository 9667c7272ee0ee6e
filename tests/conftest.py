"""What all tests share: the same examples in every run, no clock, and one thread.

Tensors are small here: a second thread only waits for the first, and much longer on a machine that others use too.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; processes that tests start inherit it

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "attnlab",
    deadline=None,
    derandomize=True,
    max_examples=int(os.environ.get("ATTNLAB_EXAMPLES", "100")),  # more of them find more
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("attnlab")


TRAINING = {
    *("analysis", "training", "cli/test_cli_heads.py", "cli/test_cli_runs.py", "cli/test_commands.py"),
    *("cli/test_cli_hybrid.py", "cli/test_escaping.py", "cli/test_interactive.py", "cli/test_user_files.py"),
}
"""Folders and files whose tests train networks, and therefore are marked ``slow``."""

TRAINS_NOTHING = {f"training/test_{name}.py" for name in ("decay", "hardware", "objective", "schedule", "settings")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that train ``slow``, and skip the tests marked ``gpu`` where there is none."""
    tests = Path(__file__).parent
    for item in items:
        file = item.path.relative_to(tests).as_posix()
        if file not in TRAINS_NOTHING and not TRAINING.isdisjoint((file, file.split("/")[0])):
            item.add_marker(pytest.mark.slow)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # many tests need no torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
