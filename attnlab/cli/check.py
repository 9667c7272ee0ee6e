"""Hold mechanisms, or a layer of your own, to what they promise."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from attnlab.catalog import registry
from attnlab.cli._console import Console, say
from attnlab.cli._parse import parse
from attnlab.docs import trust
from attnlab.training.settings import choices_of
from attnlab.utils.errors import UnknownNameError, UserError

if TYPE_CHECKING:
    from torch import nn

    from attnlab.checks.report import Outcome, Report

COLOURS = {"pass": "green", "fail": "bold red", "not claimed": "dim"}


@dataclass
class Options:
    """What to check, and how."""

    target: Annotated[Positional[str], arg(metavar="[MODEL|MODULE:CLASS]")] = ""
    """A mechanism, or a layer of your own (my_package.my_module:MyAttention); every mechanism without it."""
    args: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...")] = ()
    """Options of its constructor, as Python writes them: embed_dim=64 num_heads=4."""
    embed_dim: int | None = None
    """The width of its tokens, where it is not called embed_dim, dim, d_model or hidden_size."""
    call: Annotated[str, arg(metavar="MODULE:FUNCTION")] = ""
    """How to ask it, where layer(x, mask=mask) is not it: a function (layer, x, mask) that returns the output."""
    claims: Annotated[tuple[str, ...], arg(metavar="CLAIM ...")] = ()
    """What a layer of your own claims (causal, mask, ...), where its signatures do not say."""
    only: Annotated[tuple[str, ...], arg(metavar="PROMISE ...")] = ()
    """The promises to check, as the table names them."""
    skip: Annotated[tuple[str, ...], arg(metavar="PROMISE ...")] = ()
    """Promises to leave out."""
    device: str = "cpu"
    """Where to run, such as cuda."""
    fast: bool = False
    """Leave out the slow promises (torch.compile, torch.export, peak memory)."""
    json: bool = False
    """Print JSON: a list, one entry a layer."""
    record: bool = False
    """Keep the outcomes in models/NAME/trust.json, of which docs/trust.md is made."""


def run(arguments: list[str]) -> int:
    """Print a table a layer; 1 where a promise is broken or a mechanism cannot be checked."""
    options = parse(
        Options,
        arguments,
        command="attnlab check",
        description="Hold mechanisms, or a layer of your own, to what they promise.",
    )
    if options.args and not options.target:
        raise UserError("--args are one layer's options; name it: attnlab check multihead --args num_heads=4")
    if options.record:
        _check_record(options)
    kept, found = True, []
    for name, make in _targets(options.target, _literals(options.args, options.target)):
        try:
            report = _checked(name, make(), options)
        except UserError as error:
            if options.target:
                raise
            # One mechanism that cannot be imported must not close the door for its neighbours.
            found.append({"name": name, "passed": False, "error": str(error)})
            say(f"{name} cannot be checked: {error}", file=sys.stderr)
            kept = False
            continue
        found.append(report.to_dict())
        kept = kept and report.passed
        if options.record and report.passed:
            trust.record(registry.folder() / name, promises={row.promise: row.outcome for row in report.rows})
        if not options.json:
            _print(report)
    if options.json:
        say(json.dumps(found, indent=2, ensure_ascii=False))
    return 0 if kept else 1


def _check_record(options: Options) -> None:
    """Refuse to record what is not the whole, or what is no mechanism of ours."""
    if options.target and options.target not in registry.names():
        raise UserError(f"--record keeps what a mechanism in models/ promises, not {options.target!r}")
    partial_ = [f"--{name}" for name in ("args", "call", "claims", "only", "skip", "fast") if getattr(options, name)]
    if partial_:
        raise UserError(f"--record keeps all promises of a mechanism as it comes; leave out {', '.join(partial_)}")
    if registry.checkout() is None:
        raise UserError("--record writes into a checkout, and attnlab is installed")


def _targets(target: str, args: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The names to show and how to get what they name."""
    if ":" in target:
        yield target, partial(_stranger, target, args)
    elif "." in target or "/" in target:
        raise UserError(f"{target!r} names no class; write MODULE:CLASS, such as my_package.my_module:MyAttention")
    else:
        for name in [target] if target else registry.names():
            yield name, partial(_mechanism, name, args)


def _mechanism(name: str, args: dict[str, Any]) -> Callable[..., nn.Module]:
    return partial(registry.load(name), **args)


def _stranger(target: str, args: dict[str, Any]) -> nn.Module | Callable[..., nn.Module]:
    from torch import nn

    found = _named(target)
    if not args:
        return found
    if isinstance(found, nn.Module) or not callable(found):
        raise UserError(f"{target} is no class or function, so --args cannot be given to it")
    return partial(found, **args)


def _named(target: str) -> Any:
    """What ``module:name`` names, found from the current directory as well."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise UserError(f"{target!r} is not MODULE:CLASS, such as my_package.my_module:MyAttention")
    if module_name.endswith(".py"):
        raise UserError(f"give the module, not its file: {module_name.removesuffix('.py').replace('/', '.')}:{name}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(f"there is no module {error.name}, neither in {here} nor installed") from None
        raise UserError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from None
    for part in name.split("."):
        if not hasattr(found, part):
            raise UnknownNameError(f"name in {module_name}", part, [n for n in dir(found) if not n.startswith("_")])
        found = getattr(found, part)
    return found


def _literals(words: tuple[str, ...], target: str) -> dict[str, Any]:
    """``embed_dim=64 kind=relu`` as a dictionary; ``none`` is a word where the mechanism has such a choice."""
    found: dict[str, Any] = {}
    own = {option.name: option for option in registry.entry(target).options} if target in registry.names() else {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--args takes NAME=VALUE, such as embed_dim=64, not {word!r}")
        chosen = name in own and value in choices_of(own[name], target).names
        if value in ("true", "false", "none") and not chosen:
            raise UserError(f"--args takes values as Python writes them: {name}={value.capitalize()}")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def _checked(name: str, target: Any, options: Options) -> Report:
    from dataclasses import replace

    from attnlab.checks import check_attention

    console = Console(stderr=True)
    with console.status(Text(name)) as status:
        report = check_attention(
            target,
            embed_dim=options.embed_dim,
            call=_named(options.call) if options.call else None,
            claims=options.claims or None,
            device=options.device,
            fast=options.fast,
            only=options.only,
            skip=options.skip,
            raises=False,
            progress=lambda promise: status.update(Text(f"{name}: {promise}")),
        )
    return replace(report, name=name)


def _print(report: Report) -> None:
    from attnlab.checks.report import number

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("promise", overflow="fold")
    table.add_column("outcome", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("at most", justify="right", no_wrap=True)
    for row in report.rows:
        colour = COLOURS[row.outcome]
        table.add_row(
            Text(row.promise, style="dim" if row.outcome == "not claimed" else ""),
            Text(row.outcome, style=colour),
            number(row.measured),
            number(row.limit),
        )
    console = Console()
    console.print(Text(report.name, style="bold"))
    console.print(table)
    outcomes: tuple[Outcome, ...] = ("not claimed", "fail")
    for outcome in outcomes:
        for line in report.explain(outcome):
            text = Text.assemble("\n", (outcome, COLOURS[outcome]), f"  {line}")
            console.print(text, style="dim" if outcome == "not claimed" else None)
    console.print(Text(f"\n{report.summary}\n", style="bold green" if report.passed else "bold red"))
