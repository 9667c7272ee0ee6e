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
    """A picture as the page draws it: colours by the square root of the weight, grey for exact zeros."""
    from matplotlib import colormaps
    from matplotlib.colors import FuncNorm

    side = min(12.0, max(4.5, 0.18 * len(tokens)))
    figure, (axes,) = drawing.canvas(side + 1.0, side + 0.3)
    labels = [one_line(token).replace(" ", "␣").replace("$", r"\$")[:16] or "∅" for token in tokens]
    limit = float(weights.abs().max()) or 1.0
    colours = colormaps["RdBu" if layer.is_signed else "Blues"].with_extremes(bad="#e6e7ea")
    low = -limit if layer.is_signed else 0.0
    scale = FuncNorm((lambda w: np.sign(w) * np.abs(w) ** 0.5, lambda root: np.sign(root) * root**2), low, limit)
    shown = np.ma.masked_equal(weights.numpy(), 0.0)
    image = axes.imshow(shown, cmap=colours, norm=scale, interpolation="nearest", aspect="equal")
    places = range(0, len(labels), -(-len(labels) // MAX_LABELS))
    marks = [labels[i] for i in places]
    axes.set_xticks(places, labels=marks, fontsize=7, rotation=90 if any(len(mark) > 2 for mark in marks) else 0)
    axes.set_yticks(places, labels=marks, fontsize=7)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("key position", fontsize=9, color=drawing.INK)
    axes.set_ylabel("query position", fontsize=9, color=drawing.INK)
    axes.set_title(title, fontsize=10, color=drawing.INK)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02)
    bar.set_label("attention weight", fontsize=9, color=drawing.INK)
    bar.ax.tick_params(labelsize=7)
    file = io.BytesIO()
    with warnings.catch_warnings():  # a token may hold characters that the font lacks; they are drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        date = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(file, format=kind, metadata=date, dpi=2 * drawing.DPI, bbox_inches="tight", pad_inches=0.1)
    return file.getvalue()
