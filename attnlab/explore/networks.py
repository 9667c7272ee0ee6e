"""The network of a view, and the view's subject: the network together with its sequence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import log, prod
from typing import Any

import torch
from torch import Tensor

from attnlab.catalog import pattern, registry
from attnlab.docs import example as lesson_example
from attnlab.explore import example
from attnlab.explore.inputs import Sequence, character, check_length, letters, read_sequence
from attnlab.explore.setup import Lesson, Pretrained, RunNetwork, Setup, Text, Trained, Untrained
from attnlab.explore.shelf import Shelf
from attnlab.explore.subject import Subject
from attnlab.explore.uploads import MAX_LENGTH
from attnlab.models.selfhead import SelfAttention  # type: ignore[import-not-found]
from attnlab.network import Inputs, Network, Outputs
from attnlab.network.received import check_options
from attnlab.utils.errors import UserError

MAX_PARAMETERS = 2**26
"""The largest untrained network, in parameters: 256 MiB."""
MAX_TRAINED = 2**18
"""The largest network that is trained on demand, in parameters."""
MAX_OPTIONS = {"iterations": 1_000, "num_hashes": 1_000}
"""Options that repeat the work of a layer, which an untrusted link could set to any number."""

SOURCES = {
    "lesson": ("the layer of the lessons", ("three_tokens",)),
    "untrained": ("an untrained network", ("text", "task", "digit", "upload")),
    "trained": ("the network that repeats words", ("text",)),
    "run": ("the network of a run", ("text", "task", "digit", "upload")),
    "pretrained": ("a pretrained network", ("text",)),
}
"""What each kind of network is called, and the inputs that it takes."""


def make_subject(setup: Setup, shelf: Shelf) -> Subject:
    """Return the network and the input of a setup, before the setup's changes to the attention.

    Networks are built once and kept on the shelf, so that subjects share them.

    Raises:
        UserError: for a source and an input that do not fit, an unknown name, an option that is wrong, or a sequence
            that is too long.
    """
    source, given = setup.source, setup.input
    name, accepted = SOURCES[source.kind]
    if given.kind not in accepted:
        raise UserError(f"{name} takes the input {' or '.join(accepted)}, not {given.kind}; choose another input")
    if fixed := sorted(set(pattern.NETWORK_ARGUMENTS) & set(getattr(source, "options", {}))):
        raise UserError(f"{' and '.join(fixed)} cannot be changed by the options of the mechanism; leave it out")
    match source:
        case Lesson():
            return lesson()
        case Untrained():
            return untrained(source, read_sequence(given, shelf), shelf)  # type: ignore[arg-type]
        case Trained():
            assert isinstance(given, Text)
            return trained(source, given.text, shelf)
        case RunNetwork():
            from attnlab.explore.run_networks import run_subject

            return run_subject(source, given, shelf)  # type: ignore[arg-type]
        case Pretrained():
            from attnlab.explore.pretrained import pretrained

            assert isinstance(given, Text)
            return pretrained(source, given.text, shelf)


def lesson() -> Subject:
    """The layer and the three tokens of the lesson on self-attention."""
    x = torch.tensor([[[0.0, 21, 1, 0], [1, 42, 1, 0], [2, 63, 1, 0]]])  # (B, N, D) = (1, 3, 4)
    layer = SelfAttention(4, causal=True)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.query.weight[0, 2] = 2 * log(2)  # query: (2 ln 2, 0, 0, 0)
        layer.key.weight[0, 0] = 1  # key: (j, 0, 0, 0)
        layer.value.weight[0, 1] = 1  # value: (21, 0, 0, 0) and so on
        layer.output.weight[0, 0] = 1

    @torch.no_grad()
    def run() -> Tensor:
        out: Tensor = layer(x)[0]
        return out

    note = "the parameters are set by hand: the scores of the keys are 0, ln 2 and 2 ln 2, as in the lesson"
    return Subject((layer.eval(),), run, ("21", "42", "63"), notes=(note,))


def untrained(source: Untrained, sequence: Sequence, shelf: Shelf) -> Subject:
    """A network with random parameters that fits a sequence."""
    check_length(len(sequence.x))
    made = partial(build_untrained, source, sequence.inputs, sequence.outputs, sequence.pool)
    key = (source.model_dump_json(), sequence.inputs, sequence.outputs, sequence.pool)
    network = shelf.keep(key, made)
    notes = (
        "the parameters are random, so the patterns come from the initialization, and predictions mean nothing",
        "the embedding adds sinusoidal positions, which have no limit",
    )
    return network_subject(network, source.model, sequence, notes)


def build_untrained(source: Untrained, inputs: Inputs, outputs: Outputs, pool: str) -> Network:
    """The network of a source, in eval mode; the same seed gives the same network.

    Raises:
        UserError: for an unknown mechanism, a wrong option, or more than `MAX_PARAMETERS` parameters.
    """
    check_options(source.model, source.options, "the network")
    make = partial(
        Network,
        source.model,
        inputs,
        outputs,
        length=MAX_LENGTH,
        embed_dim=source.embed_dim,
        layers=source.layers,
        options=dict(source.options),
        causal=resolve_causal(source.model, source.causal),
        pool=pool,
        position_embedding="sinusoidal",
    )
    return build(make, source.model, source.seed)


def build(make: Callable[[], Network], model: str, seed: int = 0) -> Network:
    """Build a network with a seed, in eval mode."""
    check_size(make, model)
    with one_line_errors(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def check_size(make: Callable[[], Network], model: str, limit: int = MAX_PARAMETERS) -> None:
    """Refuse a network of more than ``limit`` parameters before it is built."""
    with one_line_errors(model), torch.device("meta"):  # only the shapes
        network = make()
    check_work(network)
    size = sum(prod(parameter.shape) for parameter in network.parameters())
    if size > limit:
        raise UserError(f"the network has {size:,} parameters; the limit is {limit:,}: make it smaller")


def check_work(network: Network) -> None:
    """Refuse options that repeat the work of a layer too often."""
    for layer in network.mechanisms():
        for name, limit in MAX_OPTIONS.items():
            if getattr(layer, name, 0) > limit:
                raise UserError(f"{name} is {getattr(layer, name):,}; the explorer computes at most {limit:,}")


@contextmanager
def one_line_errors(model: str) -> Iterator[None]:
    """Turn the errors of a mechanism, for its options or its input, into a UserError of one line."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{model}: {' '.join(str(error).split())}") from None


def resolve_causal(model: str, causal: bool | None) -> bool:
    """Whether the layers are causal: as asked, or by default where every mechanism can be.

    Raises:
        UserError: for a mechanism that cannot be as asked.
    """
    cards = {name: registry.entry(name).card for name in pattern.mechanisms(model)}
    never = [name for name, card in cards.items() if "causal" not in card.supports]
    always = [name for name, card in cards.items() if card.always_causal]
    if causal and never:
        raise UserError(f"{never[0]} cannot be causal; leave causal at its default, or choose another mechanism")
    if causal is False and always:
        raise UserError(f"{always[0]} is always causal; leave causal at its default, or choose another mechanism")
    return not never if causal is None else causal


def trained(source: Trained, text: str, shelf: Shelf) -> Subject:
    """The network that repeats words, with a text; it is trained when it is asked for the first time."""
    check_options(registry.entry(source.model).name, source.options, "the network")
    resolve_causal(source.model, source.causal)
    options = example.with_defaults(source.model, source.options)
    check_size(partial(lesson_example.untrained_example, source.model, options), source.model, MAX_TRAINED)
    key = ("trained", source.model, json.dumps(options, sort_keys=True))
    with one_line_errors(source.model):
        network, accuracy = shelf.keep(key, partial(example.network, source.model, source.options))
    check_length(len(text), network.limit, ", the length of the texts that the network was trained on")
    symbols = lesson_example.LETTERS if network.inputs.size < len(lesson_example.SYMBOLS) else lesson_example.SYMBOLS
    notes = [f"trained to repeat a word: it predicts {accuracy:.1%} of the letters of a repeated word"]
    if len(symbols) == len(lesson_example.SYMBOLS):
        notes[0] = f"trained to fill in letters of a repeated word, where the text has _: {accuracy:.1%} are right"
    if source.causal is not None and source.causal != network.mechanisms()[0].causal:
        network = shelf.keep((*key, source.causal), partial(changed, network, {"causal": source.causal}))
        notes.append(f"it was trained with causal={not source.causal} and is shown with causal={source.causal}")
    sequence = Sequence(
        letters(text, symbols), tuple(text), network.inputs, network.outputs, tuple(map(character, symbols))
    )
    return network_subject(network, source.model, sequence, tuple(notes))


def changed(network: Network, arguments: dict[str, Any]) -> Network:
    """A copy of a network with other arguments, which must not change the shapes of its parameters; see `Network`."""
    config = network.to_config() | arguments
    with one_line_errors(config["model"]), torch.random.fork_rng(devices=[]):
        copy = Network(**config).eval()
    copy.to(next(network.parameters()).dtype).load_state_dict(network.state_dict())
    return copy


def network_subject(network: Network, name: str, sequence: Sequence, notes: tuple[str, ...]) -> Subject:
    """The subject of a network; its output is (N, C), (C,), or (slots · C,) for several classes per sequence."""
    check_work(network)  # that of a received run
    check_length(len(sequence.x))
    check_length(len(sequence.x), network.limit, ", the positions that the network has learned")
    x = sequence.x[None]
    if x.is_floating_point():
        x = x.to(next(network.parameters()).dtype)
    single = network.outputs.kind == "tokens" or network.outputs.slots == 1

    @torch.no_grad()
    def run() -> Tensor:
        with one_line_errors(name):
            out: Tensor = network(x)[0]
        return out if network.outputs.kind == "tokens" else out.flatten()

    return Subject(
        tuple(network.mechanisms()),
        run,
        sequence.tokens,
        sequence.classes if single else (),
        notes=(*notes, *sequence.notes),
        image=sequence.image,
        patches=sequence.patches,
    )
