"""Generate text with a network that was trained on text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from attnlab.cli._console import say
from attnlab.utils.errors import UserError


@dataclass
class Options:
    """How to sample."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """The folder of a run, or a file written by --save_path."""
    prompt: str = "The "
    """The beginning of the text."""
    length: int = 400
    """The number of bytes to generate."""
    temperature: float = 0.8
    """Divides the logits: below 1 likely bytes become more likely; 0 always takes the most likely one."""
    top_k: int = 0
    """Sample from the k most likely bytes only; 0 for all."""
    seed: int = 0
    """The seed of the sampling."""
    device: str = "auto"
    """The device to compute on."""


def run(options: Options) -> int:
    """Print the prompt and the generated text as it is generated."""
    if not 1 <= options.length <= 1_000_000:
        raise UserError(f"length must be from 1 to 1,000,000 bytes, not {options.length}")
    if not 0 <= options.temperature <= 100:
        raise UserError(f"temperature must be from 0 to 100, not {options.temperature}")
    if not 0 <= options.top_k <= 256:
        raise UserError(f"top_k must be from 0 to 256, not {options.top_k}")
    if not options.prompt:
        raise UserError("the prompt is empty; give at least one character")
    from attnlab.training.generate import generate
    from attnlab.training.inference import load_with_encoding

    network, about = load_with_encoding(Path(options.run), options.device)
    byte_level = network.inputs.kind == network.outputs.kind == "tokens" and network.inputs.size >= 256
    if not about["encoding"].get("bytes") or not byte_level or network.outputs.size > 256:
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
        say(piece, end="", flush=True)
    say()
    return 0
