"""What a page asks for: a network, an input, and the changes to its attention. A setup is the whole state of a view.

Every setup is JSON with defaults for what is left out, so that a link contains only what differs from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from attnlab.network.received import NetworkOptions, Pattern

MAX_TEXT = 32_768
"""The longest text, in characters."""

MAX_BLOCKED = 4_096
"""Pairs of a query and a key that can be masked one by one."""

Length = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, le=999_999_999)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Index = Annotated[int, Field(ge=0, le=1_000_000)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Lesson(_Model):
    """The one-head layer of the lessons with three tokens, whose parameters are set by hand."""

    kind: Literal["lesson"] = "lesson"


class Untrained(_Model):
    """A network with random parameters; ``model`` is a mechanism or a pattern, such as ``3*linear,multihead``."""

    kind: Literal["untrained"] = "untrained"
    model: Pattern = "multihead"
    embed_dim: Annotated[int, Field(ge=1, le=1_024)] = 32
    layers: Annotated[int, Field(ge=1, le=48)] = 2
    options: NetworkOptions = {}
    causal: bool | None = None
    seed: Seed = 0


class Trained(_Model):
    """A network of two layers that is trained in a few seconds to repeat a word, as in the lessons.

    It is 32 wide, so ``num_heads`` is 4 by default where the mechanism has that option.
    """

    kind: Literal["trained"] = "trained"
    model: Annotated[str, Field(min_length=1, max_length=100)] = "multihead"
    options: NetworkOptions = {}
    causal: bool | None = None


class RunNetwork(_Model):
    """The network of a run folder: ``run`` is its name in the catalog, ``step`` one of its snapshots (None: the best).

    ``options`` replaces options of the mechanism that do not change the shapes of the parameters.
    """

    kind: Literal["run"] = "run"
    run: Name
    step: Annotated[int, Field(ge=0)] | None = None
    options: NetworkOptions = {}
    causal: bool | None = None


class Pretrained(_Model):
    """A pretrained network of the extra ``hf``; ``hide_special`` leaves out [CLS] and [SEP] and renormalizes."""

    kind: Literal["pretrained"] = "pretrained"
    name: Name = "minilm"
    hide_special: bool = True


Source = Annotated[Lesson | Untrained | Trained | RunNetwork | Pretrained, Field(discriminator="kind")]


class ThreeTokens(_Model):
    """The three tokens of the lessons, with the values 21, 42 and 63."""

    kind: Literal["three_tokens"] = "three_tokens"


class Text(_Model):
    """A text; its tokens are characters, or those of a pretrained network."""

    kind: Literal["text"] = "text"
    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] = "blacksmith blacksmith"


class TaskExample(_Model):
    """A validation example of a task, or of the task of the run."""

    kind: Literal["task"] = "task"
    task: Annotated[str, Field(max_length=100)] = ""
    index: Index = 0
    seed: Seed = 0


class Digit(_Model):
    """A scanned digit; its tokens are ``patch`` × 8 pixels (rows) or square patches of that size."""

    kind: Literal["digit"] = "digit"
    index: Annotated[int, Field(ge=0, lt=1_797)] = 0
    patch: Literal["row", "2x2", "1x1"] = "2x2"


class Upload(_Model):
    """A row of an uploaded .npz or .safetensors file: ``x`` (rows, N, F), vectors, or (rows, N), integers."""

    kind: Literal["upload"] = "upload"
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    row: Index = 0


Input = Annotated[ThreeTokens | Text | TaskExample | Digit | Upload, Field(discriminator="kind")]


class MaskChange(_Model):
    """Restrictions of the attention, combined with those of the network.

    ``window``: the nearest keys, itself included; ``prefix``: keys that every query may attend to (the others are
    causal); ``documents``: the lengths of documents that do not attend to each other; ``blocked``: pairs (query, key).
    """

    window: Length | None = None
    prefix: Length | None = None
    documents: Annotated[tuple[Length, ...], Field(max_length=1_000)] = ()
    blocked: Annotated[tuple[tuple[Index, Index], ...], Field(max_length=MAX_BLOCKED)] = ()


class ScoreChange(_Model):
    """Changes to the scores: their division by ``temperature``, no 1/√d, a cap, a sink logit, only the largest weights.

    ``softcap``: scores become ``softcap · tanh(score / softcap)``; ``sink``: a logit that takes weight from all keys;
    ``top_k``: only the k largest weights of each query are kept, and divided by their sum.
    """

    temperature: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    scale: bool = True
    softcap: Annotated[float, Field(gt=0, le=1_000)] | None = None
    sink: Annotated[float, Field(ge=-100, le=100)] | None = None
    top_k: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class Setup(_Model):
    """A network, an input, and the changes to its attention."""

    source: Source = Trained()
    input: Input = Text()
    mask: MaskChange = MaskChange()
    scores: ScoreChange = ScoreChange()
    ablated: Annotated[tuple[tuple[Index, Index], ...], Field(max_length=4_096)] = ()
    """Heads without effect, (layer, head)."""

    def key(self) -> str:
        """The canonical JSON text: equal setups have equal keys."""
        return self.model_dump_json()


class HeadRequest(_Model):
    """One head of a setup."""

    setup: Setup = Setup()
    layer: Annotated[int, Field(ge=0, lt=10_000)] = 0
    head: Annotated[int, Field(ge=0, lt=100_000)] = 0


class MapRequest(HeadRequest):
    """A part of the attention matrix of a head, pooled to at most ``size`` rows and columns.

    ``queries`` and ``keys`` are half-open ranges, None for all. A pooled value is the sum over a block of keys,
    averaged over a block of queries.
    """

    queries: tuple[Index, Index] | None = None
    keys: tuple[Index, Index] | None = None
    size: Annotated[int, Field(ge=1, le=1_024)] = 1_024


class CellRequest(HeadRequest):
    """One attention weight."""

    query: Index = 0
    key: Index = 0


class PictureRequest(HeadRequest):
    """A file with the attention matrix of a head."""

    format: Literal["svg", "png", "csv", "npz"] = "svg"


# What the server returns


class Head(BaseModel):
    """Summaries of one head: means over the queries that attend to something."""

    entropy: float | None
    """Nats; None for weights that are not non-negative."""
    distance: float
    """The mean of |query position − key position|, weighted by |weight|."""
    sink: float
    """The share of |weight| on the first key, of queries after the first one."""
    row_sums: tuple[float, float]
    """The smallest and the largest sum of the weights of a query."""
    peak: float
    """The largest |weight|."""
    thumbnail_peak: float
    """The largest |value| of the thumbnail, the unit of its codes: a pooled value may be larger than a weight."""
    tags: dict[str, float]
    """Scores from 0 to 1: ``previous token``, ``induction``, ``same token``, ``first token``, ``self``."""


class Layer(BaseModel):
    """One layer of the network."""

    mechanism: str
    title: str
    weights: Literal["true weights", "implied weights", "no weights"]
    """The badge: weights that the mechanism computes, the matrix that its formula implies, or none."""
    signed: bool
    note: str
    """Why there are no weights, or how to read implied ones."""
    num_heads: int
    has_state: bool
    changes: list[str]
    """The fields of `ScoreChange` that this layer supports."""
    masks: list[str]
    """The fields of `MaskChange` that it supports."""
    heads: list[Head]
    thumbnail: tuple[int, int]
    """The rows and columns of its thumbnails; (0, 0) without weights."""
    output_change: float | None
    """‖changed output − output‖ / ‖output‖ of the layer, if the setup changes anything."""
    flops: float | None
    """Of the layer on this input."""
    state_bytes: float | None
    """The decoding cache or state per token of this input, in bytes; None for a layer that cannot decode."""


class View(BaseModel):
    """A forward pass of a setup."""

    tokens: list[str]
    special: list[bool]
    layers: list[Layer]
    prediction: list[tuple[str, float]]
    """The most probable outputs at the last position (or of the sequence)."""
    output_change: float | None
    """‖changed output − output‖ / ‖output‖ of the network, if the setup changes anything."""
    notes: list[str]
    image: list[list[float]] | None = None
    """The pixels of a digit, 0 to 1."""
    patches: list[tuple[int, int, int, int]] | None = None
    """The rows and columns of each token in the image: (top, left, bottom, right), half-open."""


class Line(BaseModel):
    """One line of the arithmetic of a weight: ``name = code`` is Python, ``value`` its result."""

    name: str
    code: str
    value: float | list[float]
    meaning: str


class Cell(BaseModel):
    """The arithmetic of one attention weight."""

    weight: float
    lines: list[Line]
    python: str
    """A program that prints the weight."""
    contribution: list[float] | None
    """weight · value, the part of the head's output that comes from this key."""
    note: str


class State(BaseModel):
    """The recurrent state of a head after each token."""

    norm: list[float]
    rank: list[int]
    written: list[float]
    erased: list[float]
    note: str


class Ablation(BaseModel):
    """What each head of a layer does to the output: the relative change of the network's output without it."""

    output_change: list[float]
    note: str


class Uploaded(BaseModel):
    """An uploaded file: ``key`` names it in `Upload`, ``shape`` is that of its rows."""

    key: str
    name: str
    rows: int
    shape: list[int]


class Choice(BaseModel):
    """An option of a mechanism."""

    name: str
    kind: Literal["integer", "number", "boolean", "text"]
    default: Any
    choices: list[str]
    optional: bool
    help: str


class Mechanism(BaseModel):
    """A mechanism as the page offers it."""

    name: str
    title: str
    summary: str
    causal: Literal["optional", "always", "never"]
    options: list[Choice]
    trained: dict[str, Any]
    """The options of its network of `Trained`, by default."""
    lesson: str
    """The path of its lesson in the repository."""


class RunEntry(BaseModel):
    """A run folder."""

    name: str
    model: str
    task: str
    inputs: Literal["tokens", "vectors", "cells"]
    accepts: list[str]
    """The kinds of `Input` that fit it."""
    steps: list[int]
    """Those of its snapshots."""
    options: dict[str, Any] = {}
    """The options of its mechanism; empty for a pattern of several."""
    problem: str = ""
    """Why it cannot be opened, in one line."""


class PretrainedEntry(BaseModel):
    """A pretrained network; ``missing`` is the command that installs it, empty if it is there."""

    name: str
    title: str
    missing: str


class Catalog(BaseModel):
    """What can be explored."""

    version: str
    mechanisms: list[Mechanism]
    tasks: list[tuple[str, str]]
    runs: list[RunEntry]
    pretrained: list[PretrainedEntry]
    max_detail: int = 1_024
    """The length up to which a whole matrix is shown in full detail."""


class Problem(BaseModel):
    """An error of the user, in one line."""

    error: str
