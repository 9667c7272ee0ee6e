"""The attention matrix of one head as a file: a picture with token labels and a colour bar, or the numbers."""

from __future__ import annotations

import csv
import io
import warnings

import numpy as np
from torch import Tensor

from attnlab.explore.explorer import Explorer
from attnlab.explore.forward import MAX_DETAIL, LayerPass
from attnlab.explore.setup import PictureRequest
from attnlab.utils import drawing
from attnlab.utils.errors import UserError
from attnlab.utils.escape import one_line

MAX_LABELS = 64
"""Tokens up to which every row and column is labelled."""

KINDS = {"svg": "image/svg+xml", "png": "image/png", "csv": "text/csv; charset=utf-8", "npz": "application/zip"}


def make(explorer: Explorer, request: PictureRequest) -> tuple[bytes, str]:
    """Return the content of the file and its media type.

    Raises:
        UserError: for a matrix that is too large to be written whole.
    """
    explorer.run(request.setup)
    with explorer.lock:
        layer = explorer.layer(request)
        if max(layer.shape) > MAX_DETAIL:
            raise UserError(
                f"a file holds a whole matrix of up to 1,024 tokens, not {layer.shape[0]:,}; give a shorter input"
            )
        weights, tokens = layer.weights()[request.head], explorer.run(request.setup).subject.tokens
        writers = {"csv": _csv, "npz": _npz}
        if request.format in writers:
            return writers[request.format](weights, tokens), KINDS[request.format]
        title = f"{layer.layer.card.title}, layer {request.layer}, head {request.head}"
        return _drawn(layer, weights, tokens, title, request.format), KINDS[request.format]


def _csv(weights: Tensor, tokens: tuple[str, ...]) -> bytes:
    """One row per query: its position and token, then the weights; the first row holds the tokens of the keys."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["query position", "query token", *map(one_line, tokens)])
    for i, (token, row) in enumerate(zip(tokens, weights.tolist(), strict=True)):
        writer.writerow([i, one_line(token), *row])
    return text.getvalue().encode()


def _npz(weights: Tensor, tokens: tuple[str, ...]) -> bytes:
    """``weights`` (queries, keys), float32, and ``tokens``."""
    file = io.BytesIO()
    np.savez_compressed(file, weights=weights.numpy(), tokens=np.array(tokens, dtype=str))
    return file.getvalue()


def _drawn(layer: LayerPass, weights: Tensor, tokens: tuple[str, ...], title: str, kind: str) -> bytes:
    side = min(12.0, max(4.5, 0.16 * len(tokens)))
    figure, (axes,) = drawing.canvas(side + 0.8, side)
    labels = [one_line(token).replace(" ", "·").replace("$", r"\$") or "∅" for token in tokens]
    limit = float(weights.abs().max()) or 1.0
    low, colours = (-limit, "RdBu") if layer.is_signed else (0.0, "Blues")
    image = axes.imshow(weights.numpy(), cmap=colours, vmin=low, vmax=limit, interpolation="nearest", aspect="auto")
    step = -(-len(labels) // MAX_LABELS)
    places = range(0, len(labels), step)
    shown = [labels[i][:16] for i in places]
    turned = 90 if any(len(label) > 2 for label in shown) else 0
    axes.set_xticks(places, labels=shown, fontsize=7, family="monospace", rotation=turned)
    axes.set_yticks(places, labels=shown, fontsize=7, family="monospace")
    axes.set_xlabel("key position", fontsize=9, color=drawing.INK)
    axes.set_ylabel("query position", fontsize=9, color=drawing.INK)
    axes.set_title(title, fontsize=10, color=drawing.INK)
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02)
    bar.set_label("attention weight", fontsize=9, color=drawing.INK)
    file = io.BytesIO()
    with warnings.catch_warnings():  # a token may hold characters that the font lacks; they are drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return file.getvalue()
