"""What can be explored: mechanisms, tasks, runs and pretrained networks. No mechanism is imported."""

from __future__ import annotations

from typing import Any

import attnlab
from attnlab import tasks
from attnlab.catalog import registry
from attnlab.catalog.source import REQUIRED, Option
from attnlab.explore import pretrained
from attnlab.explore.example import with_defaults
from attnlab.explore.inputs import explorable_tasks
from attnlab.explore.run_networks import accepted_inputs, run_options
from attnlab.explore.setup import Catalog, Choice, Mechanism, PretrainedEntry, RunEntry
from attnlab.explore.shelf import Shelf
from attnlab.training.settings import choices_of, mechanism_options
from attnlab.utils.errors import UserError

JSON = (bool, int, float, str)


def catalog(shelf: Shelf) -> Catalog:
    """Return what the page offers; a run that cannot be opened is listed with the reason."""
    return Catalog(
        version=attnlab.__version__,
        mechanisms=list(map(_mechanism, registry.names())),
        tasks=[(name, tasks.entry(name).summary) for name in explorable_tasks()],
        runs=[_run(name, shelf) for name in shelf.runs],
        pretrained=[
            PretrainedEntry(name=pretrained.MINILM, title=pretrained.TITLE, missing=pretrained.missing()),
        ],
    )


def _mechanism(name: str) -> Mechanism:
    card = registry.entry(name).card
    return Mechanism(
        name=name,
        title=card.title,
        summary=card.summary,
        causal="always" if card.always_causal else "optional" if "causal" in card.supports else "never",
        options=[_choice(option, name) for option in mechanism_options(name) if option.name != "causal"],
        trained=_values(name),
        lesson=f"models/{name}/README.md",
    )


def _values(name: str) -> dict[str, Any]:
    """The options of a network that is trained on demand, as JSON values."""
    return _json(with_defaults(name, {}))


def _json(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is None or isinstance(value, JSON)}


def _choice(option: Option, model: str) -> Choice:
    kinds = option.kinds
    return Choice(
        name=option.name,
        kind="boolean" if bool in kinds else "number" if float in kinds else "integer" if int in kinds else "text",
        default=None if option.default is REQUIRED else option.default,
        choices=[] if bool in kinds else list(choices_of(option, model).names),
        optional=None in kinds,
        help=option.help,
    )


def _run(name: str, shelf: Shelf) -> RunEntry:
    try:
        run = shelf.run(name)
        settings, inputs = run.config["settings"], run.config["network"]["inputs"][0]
        steps, accepts, options = run.snapshots(), accepted_inputs(run), run_options(run)
    except (UserError, OSError) as error:
        return RunEntry(name=name, model="", task="", inputs="tokens", accepts=[], steps=[], problem=str(error))
    return RunEntry(
        name=name,
        model=settings["model"],
        task=settings["task"],
        inputs=inputs,
        accepts=accepts,
        steps=steps,
        options=_json(options),
    )
