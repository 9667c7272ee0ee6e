"""Validation of network files: first ranges, then shapes on the meta device, and memory last."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError
from torch import nn

from attnlab.catalog import pattern, registry
from attnlab.files.tensors import Shape
from attnlab.nn.attention import current_state
from attnlab.utils.errors import UserError
from attnlab.utils.validation import first_error

N = TypeVar("N", bound=nn.Module)

MAX_HEADS = 65_536
"""Limit of heads and head dimensions: some mechanisms create Python objects for each."""
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}

Name = Annotated[str, Field(min_length=1, max_length=200)]
Pattern = Annotated[str, Field(min_length=1, max_length=pattern.MAX_CHARACTERS)]
Size = Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Integer = Annotated[int, Field(ge=-(10**12), le=10**12)]
InputKind = Literal["tokens", "vectors", "cells"]
OutputKind = Literal["classes", "tokens", "values"]
OptionValue = (
    None
    | bool
    | Integer
    | Number
    | Annotated[str, Field(max_length=1_000)]
    | Annotated[list[Integer], Field(max_length=MAX_HEADS)]
)


def _bounded(options: dict[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        option = name.rpartition(".")[2]  # model.talkingheads.window_size is no number of heads
        if type(value) is int and ("head" in option or "dim" in option) and value > MAX_HEADS:
            raise ValueError(f"{name} is {value}; the limit is {MAX_HEADS:,}")
    return options


Options = Annotated[dict[Name, OptionValue], Field(max_length=100), AfterValidator(_bounded)]
"""The options of a mechanism, as JSON values."""


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    """Check the options that are given to all mechanisms, beside those of one mechanism."""
    _bounded({name: value for name, value in options.items() if not isinstance(value, dict)})
    return options


_Given = Annotated[
    Annotated[OptionValue, Tag("shared")] | Annotated[Options, Tag("mechanism")],
    Discriminator(lambda value: "mechanism" if isinstance(value, dict) else "shared"),
]
NetworkOptions = Annotated[dict[Name, _Given], Field(max_length=100), AfterValidator(_flat)]
"""The options of a network: shared, or by mechanism."""


class Description(BaseModel):
    """The arguments of `Network`, in ranges in which building it on the meta device is cheap."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    model: Pattern
    inputs: (
        Annotated[tuple[InputKind, Size], Field(strict=False)]
        | Annotated[tuple[InputKind, Size, Annotated[int, Field(strict=True, ge=0, le=10**9)]], Field(strict=False)]
    )
    outputs: (
        Annotated[tuple[OutputKind, Size], Field(strict=False)]
        | Annotated[tuple[OutputKind, Size, Size], Field(strict=False)]
    )
    length: Annotated[int, Field(ge=1, le=10_000_000)]
    embed_dim: Annotated[int, Field(ge=1, le=65_536)] = 64
    layers: Annotated[int, Field(ge=0, le=1_000)] = 2
    options: NetworkOptions | None = None
    causal: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mlp: bool = True
    pool: Literal["mean", "last"] = "mean"
    heads: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^[0-9]{1,4}$")],
                Annotated[list[Annotated[int, Field(ge=0, lt=MAX_HEADS)]], Field(max_length=MAX_HEADS)],
            ],
            Field(max_length=1_000),
        ]
        | None
    ) = None
    position_embedding: Literal["learned", "sinusoidal", "none"] = "learned"
    mlp_width: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


def check_description(described: Any, shapes: Mapping[str, Shape], make: Callable[..., nn.Module], source: str) -> None:
    """Refuse the arguments of a `Network` that do not match the shapes of its tensors, before memory is allocated.

    Raises:
        UserError: for a number out of range, an option of another type, or a tensor that is missing, unexpected, or of
            another shape or dtype; the message names the file ``source``.
    """
    try:
        checked = Description.model_validate(described)
    except ValidationError as error:
        raise UserError(f"{source} describes no network that can be built: {first_error(error)}") from None
    if checked.layers > len(shapes):
        raise UserError(f"{source} holds {len(shapes):,} tensors, too few for {checked.layers:,} layers; restore it")
    check_options(checked.model, checked.options or {}, source)
    try:
        with torch.device("meta"):
            made = make(**described)
        expected, shapes = made.state_dict(), current_state(made, shapes)
    except UserError:
        raise
    except Exception as error:  # constructors fail in many ways for arbitrary arguments
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source} does not match the network that it describes: {reason}") from None
    for name in sorted(expected.keys() ^ shapes.keys()):
        missing = "lacks" if name in expected else "has more than"
        raise UserError(f"{source} does not match the network that it describes: it {missing} {name!r:.80}; restore it")
    floats = {shape.dtype for shape in shapes.values() if shape.dtype.is_floating_point}
    if len(floats) > 1:
        raise UserError(f"{source} mixes parameters of {' and '.join(sorted(map(str, floats)))}; restore it")
    for name, tensor in expected.items():
        dtype, size = shapes[name]
        if size != tuple(tensor.shape) or not (dtype == tensor.dtype or {dtype, tensor.dtype} <= FLOATS):
            raise UserError(
                f"{source} does not match the network that it describes: {name!r} is {dtype} {size}, expected "
                f"{tensor.dtype} {tuple(tensor.shape)}; restore it"
            )


def fill(network: N, tensors: dict[str, torch.Tensor]) -> N:
    """Load the tensors that `check_description` accepted, in their dtype; returns the network in eval mode."""
    dtype = next((tensor.dtype for tensor in tensors.values() if tensor.dtype in FLOATS), torch.float32)
    network.to(dtype).load_state_dict(tensors)
    return network.eval()


def check_options(model: str, options: Mapping[str, Any], source: str) -> None:
    """Refuse an option that no mechanism of a pattern has, or of another type than its constructor declares.

    Raises:
        UserError: for the first wrong option; the message begins with ``source``.
    """
    try:
        by_mechanism = pattern.options_by_mechanism(model, options)
    except TypeError as error:
        raise UserError(f"{source} has a wrong option: {error}") from None
    for mechanism, values in by_mechanism.items():
        _check_types_of(mechanism, values, source)


def _check_types_of(mechanism: str, values: dict[str, Any], source: str) -> None:
    declared = {option.name: option for option in registry.entry(mechanism).options}
    for name, value in values.items():
        if name not in declared:
            raise UserError(f"{source} has an option {name!r:.60}, which {mechanism} does not have")
        kinds = declared[name].kinds
        if not kinds:
            continue
        try:
            TypeAdapter(functools.reduce(operator.or_, kinds), config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError as error:
            raise UserError(f"{source} has a wrong option {name}: {first_error(error)}") from None
