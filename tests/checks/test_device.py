"""The suite runs on any device: every tensor that a check creates is on the device of the layer."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import attnlab.checks
from attnlab.catalog import registry
from attnlab.checks import check_attention
from attnlab.cli import main

FACTORIES = {"arange", "empty", "eye", "full", "ones", "rand", "randint", "randn", "randperm", "tensor", "zeros"}


def without_device(source: str) -> list[str]:
    """The calls of tensor factories without ``device=`` and without ``.to``."""
    tree = ast.parse(source)
    moved = {
        id(node.func.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "to"
    }
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and node.func.attr in FACTORIES
        and not any(keyword.arg == "device" for keyword in node.keywords)
        and id(node) not in moved
    ]


def test_checks_create_tensors_on_the_device_of_the_layer() -> None:
    files = Path(attnlab.checks.__file__).parent.rglob("*.py")
    assert [call for file in files for call in without_device(file.read_text(encoding="utf-8"))] == []


def test_tensor_without_device_is_detected() -> None:
    assert without_device("torch.ones(3)\ntorch.ones(3).to(x)\ntorch.ones(3, device=d)") == ["torch.ones(3)"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", registry.names())
def test_every_mechanism_passes_on_a_gpu(name: str) -> None:
    check_attention(registry.load(name), device="cuda", fast=True)


@pytest.mark.gpu
def test_command_runs_on_a_gpu() -> None:
    assert main(["check", "multihead", "--device", "cuda", "--only", "output_shape"]) == 0
