"""Run the conformance suite on mechanisms, or on a layer of your own."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.text import Text
from tyro.conf import Positional, arg

from attnlab.catalog import registry
from attnlab.cli._console import Console, plain_table, say
from attnlab.docs import trust
from attnlab.training.settings import choices_of
from attnlab.utils.errors import UnknownNameError, UserError

if TYPE_CHECKING:
    from torch import nn

    from attnlab.checks.report import Report

COLOURS = {"pass": "green", "fail": "bold red", "not applicable": "dim"}


@dataclass
class Options:
    """The options of ``attnlab check``."""

    target: Annotated[Positional[str], arg(metavar="[MODEL|MODULE:CLASS]")] = ""
    """A mechanism, or a layer of your own (my_package.my_module:MyAttention); every mechanism by default."""
    args: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...")] = ()
    """Options of the constructor, as Python literals: embed_dim=64 num_heads=4."""
    embed_dim: int | None = None
    """The width of the tokens, if the layer has no embed_dim, d_model, dim, hidden_size or n_embd."""
    call: Annotated[str, arg(metavar="MODULE:FUNCTION")] = ""
    """How to call the layer, if not by layer(x, mask=mask): a function (layer, x, mask) that returns the output."""
    capabilities: Annotated[tuple[str, ...], arg(metavar="CAPABILITY ...", aliases=("--claims",))] = ()
    """The capabilities of a layer of your own (causal, padding, ...), if its signatures do not show them."""
    only: Annotated[tuple[str, ...], arg(metavar="CHECK ...")] = ()
    """The checks to run, by the names in the table."""
    skip: Annotated[tuple[str, ...], arg(metavar="CHECK ...")] = ()
    """The checks to skip."""
    device: str = "cpu"
    """Where to run, such as cuda."""
    fast: bool = False
    """Skip the slow checks (torch.compile, torch.export, ONNX, peak memory)."""
    json: bool = False
    """Print JSON: a list with one entry per layer."""
    record: bool = False
    """Save the outcomes in models/NAME/trust.json, from which docs/trust.md is generated."""


def run(options: Options) -> int:
    """Print one table per layer; return 1 if a check failed or a mechanism could not be checked."""
    if options.args and not options.target:
        raise UserError("--args needs one layer; name it: attnlab check multihead --args num_heads=4")
    if options.record:
        _validate_record(options)
    passed, entries = True, []
    args = _literals(options.args, options.target)
    for name in [options.target] if options.target else registry.names():
        try:
            target = _third_party(name, args) if {":", ".", "/"} & set(name) else partial(registry.load(name), **args)
            report = _check(name, target, options)
        except UserError as error:
            if options.target:
                raise
            # The other mechanisms are checked even if one cannot be imported.
            entries.append({"name": name, "passed": False, "error": str(error)})
            say(f"{name} cannot be checked: {error}", file=sys.stderr)
            passed = False
            continue
        entries.append(report.to_dict())
        passed = passed and report.passed
        if options.record and report.passed:
            trust.record(registry.folder() / name, checks={row.check: row.outcome for row in report.rows})
        if not options.json:
            _print(report)
    if options.json:
        say(json.dumps(entries, indent=2, ensure_ascii=False))
    return 0 if passed else 1


def _validate_record(options: Options) -> None:
    """Raise a UserError unless all checks of mechanisms in a checkout are run."""
    if options.target and options.target not in registry.names():
        raise UserError(f"--record saves the outcomes of a mechanism in models/, not of {options.target!r}")
    names = ("args", "call", "capabilities", "only", "skip", "fast")
    partial_ = [f"--{name}" for name in names if getattr(options, name)]
    if partial_:
        raise UserError(f"--record needs all checks with the default options; leave out {', '.join(partial_)}")
    if registry.checkout() is None:
        raise UserError("--record writes into a checkout, but attnlab is installed as a package")


def _third_party(target: str, args: dict[str, Any]) -> nn.Module | Callable[..., nn.Module]:
    from torch import nn

    if ":" not in target:
        raise UserError(f"{target!r} names no class; write MODULE:CLASS, such as my_package.my_module:MyAttention")
    value = _import_name(target)
    if not args:
        return value
    if isinstance(value, nn.Module) or not callable(value):
        raise UserError(f"{target} is no class or function, so it takes no --args")
    return partial(value, **args)


def _import_name(target: str) -> Any:
    """The object that ``module:name`` refers to; the current directory is searched as well."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise UserError(f"{target!r} is not MODULE:CLASS, such as my_package.my_module:MyAttention")
    if module_name.endswith(".py"):
        raise UserError(f"give the module, not its file: {module_name.removesuffix('.py').replace('/', '.')}:{name}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        value: Any = import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(f"there is no module {error.name}, neither in {here} nor installed") from None
        raise UserError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from None
    for part in name.split("."):
        if not hasattr(value, part):
            raise UnknownNameError(f"name in {module_name}", part, [n for n in dir(value) if not n.startswith("_")])
        value = getattr(value, part)
    return value


def _literals(words: tuple[str, ...], target: str) -> dict[str, Any]:
    """``embed_dim=64 kind=relu`` as a dictionary; a choice of the mechanism, such as ``none``, stays a string."""
    values: dict[str, Any] = {}
    options = {option.name: option for option in registry.entry(target).options} if target in registry.names() else {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--args takes NAME=VALUE, such as embed_dim=64, not {word!r}")
        is_choice = name in options and value in choices_of(options[name], target).names
        if value in ("true", "false", "none") and not is_choice:
            raise UserError(f"--args takes Python literals: {name}={value.capitalize()}")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
    return values


def _check(name: str, target: Any, options: Options) -> Report:
    from attnlab.checks import check_attention

    with Console(stderr=True).status(Text(name)) as status:
        report = check_attention(
            target,
            embed_dim=options.embed_dim,
            call=_import_name(options.call) if options.call else None,
            capabilities=options.capabilities or None,
            device=options.device,
            fast=options.fast,
            only=_current_names(options.only),
            skip=_current_names(options.skip),
            raises=False,
            progress=lambda check: status.update(Text(f"{name}: {check}")),
        )
    return replace(report, name=name)


def _current_names(names: tuple[str, ...]) -> list[str]:
    """The names of checks; an old name is replaced, with a note."""
    from attnlab.checks.renamed import OLD_NAMES

    for name in names:
        if name in OLD_NAMES:
            say(f"note: the check {name!r} is now {OLD_NAMES[name]}", file=sys.stderr)
    return [OLD_NAMES.get(name, name) for name in names]


def _print(report: Report) -> None:
    table = plain_table("check", "outcome", "measured", no_wrap=True)
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
    for row in report.rows:
        style = "dim" if row.outcome == "not applicable" else ""
        table.add_row(Text(row.check, style=style), Text(row.outcome, style=COLOURS[row.outcome]), row.value)
    console = Console()
    console.print(Text(report.name, style="bold"))
    console.print(table)
    for line in report.explain("not applicable"):
        console.print(f"\nnot applicable  {line}", style="dim")
    for line in report.explain("fail"):
        console.print(Text.assemble("\n", ("fail", COLOURS["fail"]), f"  {line}"))
    console.print(Text(f"\n{report.summary}\n", style="bold green" if report.passed else "bold red"))
