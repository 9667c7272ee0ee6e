"""Let a network that was trained on text write some."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from attnlab.cli._console import say
from attnlab.cli._parse import parse
from attnlab.utils.errors import UserError


@dataclass
class Options:
    """How to write."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run's folder, or a file written by --save_path."""
    prompt: str = "The "
    """How the text begins."""
    length: int = 400
    """Bytes to write."""
    temperature: float = 0.8
    """Below 1 the likelier bytes win more often; 0 takes the likeliest always."""
    top_k: int = 0
    """Choose among the k likeliest bytes only; 0 among all."""
    seed: int = 0
    """The same seed writes the same text."""
    device: str = "auto"
    """Where to compute."""


def run(arguments: list[str]) -> int:
    """Print the prompt and what follows it, as it is written."""
    options = parse(Options, arguments, command="attnlab generate", description="Write text with a trained network.")
    if not 1 <= options.length <= 1_000_000:
        raise UserError(f"length must be from 1 to 1,000,000 bytes, not {options.length}")
    if not 0 <= options.temperature <= 100 or math.isnan(options.temperature):
        raise UserError(f"temperature must be from 0 to 100, not {options.temperature}")
    if not 0 <= options.top_k <= 256:
        raise UserError(f"top_k must be from 0 to 256, not {options.top_k}")
    if not options.prompt:
        raise UserError("the prompt is empty; give at least one character")
    from attnlab.training.generate import generate
    from attnlab.training.inference import load_with_encoding

    network, about = load_with_encoding(Path(options.run), options.device)
    byte_wise = network.inputs.kind == network.outputs.kind == "tokens" and network.inputs.size >= 256
    if not about["encoding"].get("bytes") or not byte_wise or network.outputs.size > 256:
        raise UserError(f"{options.run} was trained on {about['task']}, not on text; train with --task text first")
    say(options.prompt, end="")
    for piece in generate(
        network,
        options.prompt,
        length=options.length,
        temperature=options.temperature,
        top_k=options.top_k,
        seed=options.seed,
    ):
        say(piece, end="")
        sys.stdout.flush()
    say("\n", end="")
    return 0
