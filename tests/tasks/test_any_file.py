"""Arbitrary bytes are read, or refused in one line."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from attnlab import tasks
from attnlab.files.npz import Arrays
from attnlab.tasks.base import TaskConfig
from attnlab.tasks.tables.reader import read_table
from attnlab.utils.errors import UserError


def saved(save: Callable[..., Any], **content: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **content)
    return buffer.getvalue()


CSV = b'name,"a b",c\r\n' + b'x,"1\n2",3.5\r\n"y ""z""",,4\r\nu,5,4\r\n' * 7
OBJECTS = [{"a": 1, "b": [1, {"c": None}]}, {"a": 2.5, "d": "\N{SNOWMAN}", "e": True}, {"a": 2**70, "f": "x"}]
DAYS = pl.date_range(pl.date(2024, 1, 1), pl.date(2024, 1, 13), eager=True)
FRAME = pl.DataFrame({"n": range(13), "word": ["x", None, "yz"] * 4 + [""], "day": DAYS, "list": [[1.5, None]] * 13})
ARRAYS = {"x": np.arange(195).reshape(13, 5, 3) / 7, "y": np.arange(13) % 2}
WHOLE = {
    ".csv": [CSV],
    ".tsv": [CSV.replace(b",", b"\t")],
    ".jsonl": ["\n".join(map(json.dumps, OBJECTS * 7)).encode()],
    ".parquet": [saved(FRAME.write_parquet, row_group_size=5)],
    ".npz": [saved(np.savez, **ARRAYS), saved(np.savez_compressed, **ARRAYS)],
    ".txt": [b"".join(b"line %d\n" % i for i in range(53)), b"words and words\n\n" * 17],
}
PIECES = [b"1", b"0.5", b"-3e9", b"a", b" ", b",", b";", b"\t", b"|", b'"', b'""', b"'", b"\n", b"\r\n", b"\r"]
PIECES += [b"1,5", b"nan", b"{}", b'{"a": 1}', b'{"a": [', b"]}", b"null", b"\\u", b"\\ud800", b"1e999", b"9" * 400]
PIECES += [b"\0", b"\x1a", b"\x81", b"\x85", b"\xe9", b"\xc3\xa9", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\xff\xfe"]
PIECES += [b"\xfe\xff", b"PAR1", b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY\x01\x00"]


@st.composite
def damaged(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """A valid file, in which a few runs of bytes are removed or replaced by others."""
    content = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.sampled_from([start, start + 1, len(content)]) | st.integers(start, start + 97))
        content[start:end] = draw(st.just(b"") | st.sampled_from(PIECES) | st.binary(max_size=9))
    return bytes(content)


JSON = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
ANY_OBJECT = st.dictionaries(st.sampled_from("abcde"), JSON | st.lists(JSON, max_size=2), max_size=5)


def contents(suffix: str) -> st.SearchStrategy[bytes]:
    text = st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)
    whole = damaged(WHOLE[suffix])
    if suffix == ".jsonl":
        whole |= st.lists(ANY_OBJECT, max_size=17).map(lambda some: "\n".join(map(json.dumps, some)).encode())
    return whole | whole | text | st.binary(max_size=300)


def read(path: Path, header: bool, target: int) -> Any:
    if path.suffix == ".npz":
        with contextlib.suppress(UserError):
            tasks.load("arrays").load(TaskConfig(data=path))
        return {name: array.shape for name, array in Arrays(path).items()}
    if path.suffix == ".txt":
        return tasks.load("text").load(TaskConfig(data=path, seq_length=2)).baselines()
    table = read_table(path, header=header)
    assert len(table.frame) > 0
    assert len(set(table.frame.columns)) == table.frame.width > 0
    assert path.name in table.locate(len(table.frame) - 1)
    if path.suffix in (".csv", ".tsv"):
        assert set(table.frame.dtypes) == {pl.String}
        assert not any("" in row for row in table.frame.rows())
    with contextlib.suppress(UserError):
        name = table.frame.columns[target % table.frame.width]
        tasks.load("table").load(TaskConfig(data=path, target=name, header=header))
    return table.frame.rows()


@pytest.mark.parametrize("suffix", WHOLE)
def test_whole_files_are_read(suffix: str, tmp_path: Path) -> None:
    for content in WHOLE[suffix]:
        (tmp_path / f"a{suffix}").write_bytes(content)
        assert read(tmp_path / f"a{suffix}", header=True, target=0)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", WHOLE)
def test_arbitrary_bytes_are_read_or_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"

    slower = 10 if suffix == ".parquet" else 1  # a process for each

    @settings(suppress_health_check=list(HealthCheck), max_examples=max(1, settings.default.max_examples // slower))
    @given(contents(suffix), st.booleans(), st.integers(0, 5))
    @example(b"", True, 0)
    @example(b"\n", False, 0)
    @example(b"a\n\r", True, 0)
    def holds(content: bytes, header: bool, target: int) -> None:
        path.write_bytes(content)
        message = ""
        try:
            read(path, header or suffix not in (".csv", ".tsv"), target)
        except UserError as error:
            message = str(error)
        assert "\n" not in message
        assert len(message) < 1_000

    holds()
