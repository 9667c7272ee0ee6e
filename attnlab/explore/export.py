"""The page as HTML: served with its data fetched later, or self-contained in one file."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import attnlab
from attnlab.explore import codes
from attnlab.explore.forward import MAX_DETAIL, LayerPass
from attnlab.files.atomic import write_text
from attnlab.utils.errors import UserError

if TYPE_CHECKING:
    from attnlab.explore.explorer import Explorer
    from attnlab.explore.setup import Setup

MAX_WEIGHTS = 2**26
"""Weights that an exported page may hold."""

ROUNDING = (1 / 255, 1 / 127, 1 / 63)
"""The errors of a weight that are tried, until the codes take at most `BYTES_PER_WEIGHT`, or `SMALL` bytes."""

MIN_LEVELS = 15
BYTES_PER_WEIGHT = 0.53
"""With base64, of all N² weights of a head: 5 MiB hold 12 × 12 heads over 256 tokens."""
SMALL = 2**20

FOLDER = files("attnlab.explore") / "page"


def live_page() -> tuple[str, str]:
    """Return the page that a server sends, and its content security policy."""
    nonce = secrets.token_urlsafe(16)
    modules = {f"explore/{name}": f"/static/{name}.js" for name in scripts()}
    policy = (
        f"default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'nonce-{nonce}'; connect-src 'self'; "
        "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'"
    )
    return _render(modules, nonce=nonce), policy


def page(explorer: Explorer, setup: Setup) -> str:
    """Return a self-contained page with all heads of a setup.

    Raises:
        UserError: for more than `MAX_WEIGHTS` weights.
    """
    modules = {
        f"explore/{name}": "data:text/javascript;base64," + base64.b64encode(text.encode()).decode("ascii")
        for name, text in scripts().items()
    }
    style = (FOLDER / "style.css").read_text(encoding="utf-8")
    return _render(modules, nonce="exported", style=style, export=contents(explorer, setup))


def write(explorer: Explorer, setup: Setup, path: Path) -> int:
    """Write a self-contained page; returns its size in bytes."""
    text = page(explorer, setup)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return len(text.encode())


def contents(explorer: Explorer, setup: Setup) -> dict[str, Any]:
    """Return the data of a self-contained page.

    ``maps`` holds, by "layer.head", the codes of the weights (see `attnlab.explore.codes`), deflated and in base64;
    where all weights on later keys are zero, ``causal`` is true and each row ends at the query's own key.
    """
    explorer.run(setup)
    with explorer.lock:
        result, view = explorer.run(setup), explorer.view(setup)
        count = sum(0 if x.map is None else x.map.shape[1] * x.shape[0] * x.shape[1] for x in result.layers)
        if count > MAX_WEIGHTS or any(max(layer.shape) > MAX_DETAIL for layer in result.layers):
            raise UserError(
                f"an exported page holds at most {MAX_WEIGHTS:,} weights and 1,024 tokens, and this network has "
                f"{count:,} weights of {len(view.tokens):,} tokens; give a shorter input or fewer layers"
            )
        for rounding in ROUNDING:
            maps = {
                f"{i}.{h}": coded
                for i, layer in enumerate(result.layers)
                for h, coded in enumerate(_coded(layer, rounding))
            }
            if sum(len(coded["codes"]) for coded in maps.values()) <= max(SMALL, BYTES_PER_WEIGHT * count):
                break
        error = max((codes.rounding(x["peak"], x["levels"], signed=x["signed"]) for x in maps.values()), default=0.0)
        note = f"this file holds rounded weights, within {error:.2g}; run attnlab explore for exact ones"
        return {
            "setup": setup.model_dump(mode="json"),
            "view": view.model_copy(update={"notes": [*view.notes, note]}).model_dump(mode="json"),
            "thumbnails": codes.deflated(explorer.thumbnails(setup)),
            "maps": maps,
        }


def _coded(layer: LayerPass, rounding: float) -> Iterator[dict[str, Any]]:
    """The codes of each head of a layer, with as many levels as the rounding error of a weight needs."""
    if layer.map is None:
        return
    for weights in layer.weights():
        peak = float(weights.abs().max())
        levels = round(min(codes.LEVELS, max(MIN_LEVELS, (2 if layer.is_signed else 1) * peak / rounding)))
        shown = codes.encode(weights, torch.tensor(peak), signed=layer.is_signed, levels=levels)
        causal = weights.shape[0] == weights.shape[1] and not weights.triu(1).any()
        if causal:
            shown = shown[torch.tril(torch.ones_like(shown, dtype=torch.bool))]
        yield {
            "codes": codes.deflated(shown.numpy().tobytes()),
            "causal": causal,
            "signed": layer.is_signed,
            "peak": peak,
            "levels": levels,
        }


def scripts() -> dict[str, str]:
    """Return the modules of the page by name."""
    return {
        file.name.removesuffix(".js"): file.read_text(encoding="utf-8")
        for file in sorted(FOLDER.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".js")
    }


def _render(modules: dict[str, str], *, nonce: str, style: str | None = None, export: Any = None) -> str:
    """Fill the template; ``modules`` holds the address of each module by its name, such as ``explore/main``."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((FOLDER / "index.html").read_text(encoding="utf-8"))
    return template.render(nonce=nonce, modules=modules, version=attnlab.__version__, style=style, export=export)
