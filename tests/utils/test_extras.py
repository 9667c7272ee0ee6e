"""What is not installed is named, with the line that installs it."""

from __future__ import annotations

import re

import pytest

from attnlab.checks import check_attention
from attnlab.models.selfhead import SelfAttention
from attnlab.utils import extras
from attnlab.utils.errors import UserError


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    found = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in modules else found(name))


def test_a_missing_extra_is_one_line_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "json", ("json",))
    extras.need("json", "this")
    without(monkeypatch, *extras.EXTRAS["export"])
    line = re.escape("this needs onnx and onnxscript and onnxruntime; pip install 'attnlab[export]'")
    for kind in (ImportError, UserError):
        with pytest.raises(kind, match=line):
            extras.need("export", "this")


def test_without_onnxruntime_the_promise_of_onnx_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "onnxruntime")
    row = check_attention(SelfAttention, only=["onnx_matches_eager"])["onnx_matches_eager"]
    assert (row.outcome, row.detail) == ("not applicable", "it needs onnxruntime; pip install 'attnlab[export]'")
