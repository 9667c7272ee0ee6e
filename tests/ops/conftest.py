import pytest

from attnlab.ops.scan import blocks


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan takes 16 steps per block."""
    monkeypatch.setattr(blocks, "BLOCK", {"cpu": 16})
