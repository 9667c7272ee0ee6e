import pytest

from attnlab.ops.scan import blocks


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan takes two chunks per block."""
    monkeypatch.setattr(blocks, "CHUNKS", {"cpu": 2})
