"""What is held to the promises: an attention layer, ours or a stranger's, behind one way to build and to ask it.

Axes: B batch, N queries, M keys, D embed_dim, H heads.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from copy import deepcopy
from functools import cached_property, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.checks.capabilities import CLAIMS, NotClaimed
from attnlab.masks import Mask, block_local, causal, documents, from_tensor, padding, prefix, sliding_window
from attnlab.nn.attention import SequenceMixer
from attnlab.nn.card import current_capabilities
from attnlab.utils.errors import UnknownNameError, UserError

Call = Callable[[nn.Module, Tensor, Tensor | None], Tensor]
"""``(layer, x, mask) -> out``: how a layer with a calling convention of its own is asked."""

B, N, M = 2, 7, 5
SEED = 20

EXACT, ROUNDED = 1e-10, 1e-5
"""How far two ways to the same float64 number may lie apart, and where it is rounded to float32 on its way."""

# Width and heads to build with, the first that the layer takes; None leaves the heads to its default. With the
# sizes above, 3 heads of 4 make every axis a distinct size, so that a swapped pair cannot hide.
SIZES = ((12, 3), (24, 6), (32, None), (64, None))
WIDTHS = ("embed_dim", "emd_dim", "d_model", "dim", "hidden_size", "n_embd")
HEADS = ("num_heads", "n_heads", "nhead", "heads", "n_head")


class Subject:
    """An attention layer under test.

    Args:
        target: a layer, which is copied, or a class or another callable that makes one.
        embed_dim: D; read off the constructor or the layer where not given.
        call: how to ask the layer, where ``layer(x)`` and ``layer(x, mask=mask)`` are not it. The mask is None or
            Boolean (B, N, N), True means *may look*.
        weights: the same for its weights, where ``layer.attention_weights(x, mask=mask)`` is not it.
        reference: ``(layer, x, mask=, bias=, context=) -> out`` in plain lines, where no ``reference.py`` stands
            beside the class; the mask is Boolean (B, H, N, M), ``causal`` already in it.
        claims: what the layer claims (see `CLAIMS`), where its card or its signatures say too much or too little.
        device: where to run.

    Raises:
        UnknownNameError: a claim that does not exist.
        UserError: a target that is no layer and makes none, or one that cannot be built, asked with tokens alone,
            moved to the device, or whose width is not known.
    """

    def __init__(
        self,
        target: nn.Module | Callable[..., nn.Module],
        *,
        embed_dim: int | None = None,
        call: Call | None = None,
        weights: Call | None = None,
        reference: Callable[..., Tensor] | None = None,
        claims: Collection[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name = _name(target)
        self._call, self._weights = call, weights
        self._accepts: Collection[str]
        if isinstance(target, nn.Module):
            self._make: Callable[..., nn.Module] = partial(deepcopy, target)
            self._accepts, self._sizes = (), dict[str, Any]()
        elif callable(target):
            self._make, self._accepts = target, _parameters(target)
            self._sizes = _fitting_sizes(self.name, target, self._accepts, embed_dim)
        else:
            raise UserError(f"a layer is needed, or a class or function that makes one, not {target!r}")
        self._sample, self.device = _placed(self.name, partial(self._make, **self._sizes), device)
        self.embed_dim = embed_dim or _width(self.name, self._sample, {**_bound(target), **self._sizes})
        self.num_heads = _heads(self._sample)
        self.is_ours = isinstance(self._sample, SequenceMixer) and call is None
        if call is None:
            _must_take_tokens(self.name, self._sample)
        self.reference = reference or _reference_beside(type(self._sample))
        self.claims = _known(self._inferred() if claims is None else claims)

    # Build it

    def layer(
        self, *, dtype: torch.dtype = torch.float64, train: bool = False, seed: int = SEED, **options: Any
    ) -> nn.Module:
        """A fresh layer; the same seed gives the same weights.

        Its parameters are moved off where they start: a bias of zero, or an output projection of zero, would hide
        what it does.

        Args:
            dtype: of its parameters.
            train: whether it is in training mode.
            seed: of its weights.
            options: ``causal`` and ``dropout``, for its constructor.

        Raises:
            NotClaimed: when it cannot be built with these.
        """
        given = {name: value for name, value in options.items() if name in self._accepts}
        for name in sorted(options.keys() - given.keys()):
            if options[name] != (fixed := self._fixed(name)):
                raise NotClaimed(f"it comes with {name}={fixed}")
        torch.manual_seed(seed)
        layer = self._make(**self._sizes, **given).to(self.device, torch.float64)
        with torch.no_grad():
            for parameter in layer.parameters():
                if parameter.is_floating_point():  # a seed may stand among them
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return layer.to(dtype).train(train)

    def build(self, causality: bool, **options: Any) -> nn.Module:
        """`layer`, causal or not; one that has no such option is built as it is."""
        return self.layer(causal=causality, **options) if "causal" in self.claims else self.layer(**options)

    def construct(self, **options: Any) -> nn.Module:
        """A layer as its constructor makes it, neither moved nor seeded.

        Args:
            options: passed to the constructor.

        Raises:
            NotClaimed: for a layer that was made already.
        """
        if not self._accepts:
            raise NotClaimed("it is a layer that was made already; check its class")
        return self._make(**self._sizes, **options)

    @property
    def constructor(self) -> tuple[Any, dict[str, Any]]:
        """The class or function that makes the layer, and the options that are fixed."""
        return _unwrapped(self._make), {**_bound(self._make), **self._sizes}

    def modes(self, causality: bool) -> Iterator[tuple[str, nn.Module]]:
        """The layer in eval, in training, and in training with dropout where that can be chosen."""
        yield "eval", self.build(causality)
        yield "training", self.build(causality, train=True)
        if "dropout" in self.claims and self.can_choose("dropout"):
            yield "training with dropout", self.build(causality, train=True, dropout=self.dropout)

    def can_choose(self, option: str) -> bool:
        """Whether a fresh layer can be built with this option."""
        return option in self._accepts

    @property
    def causal_choices(self) -> tuple[bool, ...]:
        """Whether it can be built to look ahead (False), not to (True), or both."""
        both = "causal" in self.claims and "causal" in self._accepts
        return (False, True) if both else (self._fixed("causal"),)

    @property
    def dropout(self) -> float:
        """The dropout to build with: not one half, where dropping and keeping are the same.

        Raises:
            NotClaimed: for a layer that comes without.
        """
        chosen: float = 0.25 if "dropout" in self._accepts else self._fixed("dropout")
        if not chosen:
            raise NotClaimed("it comes with dropout=0")
        return chosen

    @cached_property
    def exact(self) -> float:
        """How far two ways to the same number may lie apart: a stranger may take its softmax in float32, and say so.

        What is smooth moves twice as far for twice a tiny step; what is rounded on its way does not.
        """
        if self.is_ours:
            return EXACT
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            layer, x = self.build(self.causal_choices[0]), self.tokens()
            step = 1e-8 * self.random(*x.shape, seed=1)
            near, far = (self(layer, x + times * step) - self(layer, x - times * step) for times in (1, 2))
        bent = (far - 2 * near).abs().max() > 1e-3 * near.abs().max()
        return ROUNDED if bent else EXACT

    # Ask it

    def __call__(self, layer: nn.Module, x: Tensor, mask: Mask | Tensor | None = None, **extra: Tensor) -> Tensor:
        """The output of ``layer``, (B, N, D); ``extra`` holds ``bias`` and ``context``."""
        if self._call is not None:
            out = self._call(layer, x, None if mask is None else as_matrix(mask, x, x))
        else:
            out = layer(x, **self._asked(x, mask, extra))
        if not isinstance(out, Tensor):
            raise TypeError(f"it returned a {type(out).__name__}, not a tensor; give call=, which returns the output")
        return out

    def attention_weights(
        self, layer: nn.Module, x: Tensor, mask: Mask | Tensor | None = None, **extra: Tensor
    ) -> Tensor:
        """The weights of ``layer``, (B, H, N, M)."""
        if self._weights is not None:
            found = self._weights(layer, x, None if mask is None else as_matrix(mask, x, x))
        else:
            found = layer.attention_weights(x, **self._asked(x, mask, extra))  # type: ignore[operator]
        return found.unsqueeze(1) if found.dim() == 3 else found

    def apply_weights(
        self, layer: nn.Module, weights: Tensor, x: Tensor, mask: Mask | Tensor | None = None, **extra: Tensor
    ) -> Tensor:
        """The output of ``layer`` for these weights; the mask is passed on where ``apply_weights`` takes one."""
        mix: Callable[..., Tensor] = layer.apply_weights  # type: ignore[assignment]
        takes_mask = "mask" in _parameters(mix)
        return mix(weights, x, **(self._asked(x, mask, extra) if takes_mask else extra))

    def _asked(self, x: Tensor, mask: Mask | Tensor | None, extra: dict[str, Tensor]) -> dict[str, Any]:
        if mask is None:
            return extra
        return {"mask": mask if self.is_ours else as_matrix(mask, x, extra.get("context", x)), **extra}

    # What to ask it with

    def tokens(
        self, batch: int = B, length: int = N, *, dtype: torch.dtype = torch.float64, seed: int = SEED
    ) -> Tensor:
        """Random tokens, (batch, length, D); the same seed gives the same tokens."""
        return self.random(batch, length, self.embed_dim, seed=seed).to(dtype)

    def random(self, *shape: int, seed: int = SEED) -> Tensor:
        """Normal numbers of this shape, in float64, apart from torch's own generator."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(self.device)

    def masks(
        self, batch: int = B, length: int = N, *, causality: bool = False, counts: Tensor | None = None
    ) -> list[Mask]:
        """A mask of every kind that the layer takes."""
        padded = self.paddings(batch, length, causality=causality, counts=counts)
        if "arbitrary_mask" not in self.claims:
            return padded
        place = torch.arange(length, device=self.device)
        scattered = (self.random(batch, length, length) > 0) | (place == place[:, None])
        return [*padded, sliding_window(2), prefix(2), documents(place // 3), block_local(2), from_tensor(scattered)]

    def paddings(
        self, batch: int = B, length: int = N, *, causality: bool = False, counts: Tensor | None = None
    ) -> list[Mask]:
        """Padding on the right and on the left, where the layer takes it; ``counts`` are the real tokens per item.

        A stranger that is causal has it on the right alone. Behind padding on the left the first tokens of a row may
        look at nothing, and what it says there is the question of promises of its own: it would break most others too.
        """
        if "padding" not in self.claims:
            return []
        lengths = (length - 3 * torch.arange(batch, device=self.device)).clamp(min=min(1, length))
        lengths = lengths if counts is None else counts
        right, left = padding(lengths), padding(lengths, side="left", max_length=length)
        causality = causality or self.causal_choices == (True,)
        return [right] if causality and not self.is_ours else [right, left]

    def ways(self, batch: int = B, length: int = N) -> list[tuple[bool, Mask | None]]:
        """Every way to ask it: causal or not, without a mask and with each kind."""
        return [
            (causality, mask)
            for causality in self.causal_choices
            for mask in (None, *self.masks(batch, length, causality=causality))
        ]

    def extras(self, causality: bool, batch: int = B, length: int = N) -> list[dict[str, Tensor]]:
        """What else the layer can be called with: nothing, a bias, a context, and both."""
        heads, claims = self.num_heads, self.claims
        found: list[dict[str, Tensor]] = [{}]
        if "context" in claims:  # a causal layer refuses a context of another length
            found.append({"context": self.tokens(batch, length if causality else M, seed=1)})
        if "attn_bias" in claims:
            for extra in tuple(found):
                keys = extra["context"].shape[1] if extra else length
                found.append({"attn_bias": self.random(batch, heads, length, keys, seed=2), **extra})
        return found

    def permitted(self, causality: bool, mask: Mask | None, x: Tensor) -> Tensor:
        """The truth: Boolean (B, N, N), which token may look at which, in one head at least."""
        return self.permitted_heads(causality, mask, x).any(1)

    def permitted_heads(self, causality: bool, mask: Mask | None, x: Tensor) -> Tensor:
        """The same for each head: (B, H, N, N), or (B, 1, N, N) where all heads look at the same."""
        layer, length = self.layer(), x.shape[1]
        own = layer.attention_pattern(length) if isinstance(layer, SequenceMixer) else None
        found = torch.ones(len(x), 1, length, length, dtype=torch.bool, device=x.device)
        for rule in (mask, own, causal() if causality else None):
            if rule is not None:
                found = found & rule.to(x.device).bind(length, device=x.device).tensor()
        return found

    def require_no_origin(self) -> None:
        """NotClaimed for a mechanism with a pattern that is counted from where the row begins."""
        own = self._sample.attention_pattern(N) if isinstance(self._sample, SequenceMixer) else None
        if own is not None and not own.is_relative:
            raise NotClaimed("what it looks at depends on where the row begins")

    # How a target is understood

    def _fixed(self, name: str) -> Any:
        """An option of a layer that has no say in it."""
        if name == "causal":
            own = getattr(self._sample, "causal", None)
            return own if isinstance(own, bool) else "causal" in self.claims
        value = getattr(self._sample, name, 0.0)
        value = getattr(value, "p", value)  # an nn.Dropout
        return value if isinstance(value, float) else 0.0

    def _inferred(self) -> set[str]:
        """The claims of a card; a stranger's are read off its signatures."""
        sample = self._sample
        claims = {"reference"} if self.reference else set[str]()
        if isinstance(sample, SequenceMixer) and self.is_ours:
            claims |= {"contract", "dropout", "export", *sample.card.supports}
            if "weights" in claims:
                claims |= {"mix"} if sample.card.kind == "another operator" else {"mix", "probabilities"}
            return claims
        asked = {"mask"} if self._call else _parameters(sample.forward)
        claims |= set(current_capabilities({"mask", "attn_bias", "context"} & set(asked)))
        claims |= {"causal", "dropout"} & set(self._accepts)
        claims |= {"causal"} if getattr(sample, "causal", None) is True else set()
        claims |= {"dropout"} if self._fixed("dropout") else set()
        if self._weights or callable(getattr(sample, "attention_weights", None)):
            claims |= {"weights", "probabilities"}
            claims |= {"mix"} if callable(getattr(sample, "apply_weights", None)) else set()
        return claims


def first_line(error: BaseException) -> str:
    """An exception in a line."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def _known(claims: Collection[str]) -> frozenset[str]:
    claims = current_capabilities(claims)
    for claim in claims:
        if claim not in CLAIMS:
            raise UnknownNameError("claim", claim, CLAIMS)
    return frozenset(claims)


def _name(target: Any) -> str:
    target = _unwrapped(target)
    return getattr(target, "__name__", type(target).__name__)


def _unwrapped(target: Any) -> Any:
    while isinstance(target, partial):
        target = target.func
    return target


def _bound(target: Any) -> dict[str, Any]:
    """The options that a `functools.partial` holds already."""
    return {**_bound(target.func), **target.keywords} if isinstance(target, partial) else {}


def _parameters(function: Callable[..., Any]) -> list[str]:
    """The names that may still be given to it; a class that passes ``**options`` on takes its parents' too."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a callable without a signature
        return []
    names = list(parameters)
    kind = _unwrapped(function)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if isinstance(kind, type) and open_ended and kind.__base__ not in (None, nn.Module, object):
        names += _parameters(kind.__base__)
    return [name for name in names if name not in _bound(function)]


def _fitting_sizes(
    name: str, make: Callable[..., nn.Module], accepts: Collection[str], embed_dim: int | None
) -> dict[str, Any]:
    """The sizes to build with: those asked for, or the first of `SIZES` that it takes."""
    width = next((known for known in WIDTHS if known in accepts), None)
    heads = next((known for known in HEADS if known in accepts), None)
    trials: list[dict[str, Any]] = [{}]
    if width and embed_dim:
        trials = [{width: embed_dim}]
    elif width:
        trials = [{width: D, **({heads: H} if heads and H else {})} for D, H in SIZES]
    reasons = []
    for sizes in trials:
        try:
            layer = make(**sizes)
        except Exception as error:  # whatever a stranger's constructor says is passed on
            reasons.append(first_line(error))
            continue
        if not isinstance(layer, nn.Module):
            raise UserError(f"{name} makes a {type(layer).__name__}, not an nn.Module")
        return sizes
    hint = "; give its options, or a function that makes the layer" if reasons[0].startswith("TypeError") else ""
    raise UserError(f"{name} cannot be built: {reasons[0]}{hint}")


def _placed(name: str, make: Callable[[], nn.Module], device: torch.device | str) -> tuple[nn.Module, torch.device]:
    """A layer where it shall run."""
    try:
        layer = make()
    except Exception as error:
        raise UserError(f"{name} cannot be copied: {first_line(error)}") from None
    try:
        return layer.to(device), torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"{name} cannot run on {device}: {first_line(error)}") from None


def _heads(layer: nn.Module) -> int:
    """The number of heads that the layer says it has, under one of the usual names; else one."""
    return next((heads for name in HEADS if isinstance(heads := getattr(layer, name, None), int)), 1)


def _must_take_tokens(name: str, layer: nn.Module) -> None:
    try:
        inspect.signature(layer.forward).bind(object())
    except TypeError as error:
        raise UserError(f"{name}.forward does not take tokens alone ({error}); say how to ask it with call=") from None


def _width(name: str, layer: nn.Module, options: dict[str, Any]) -> int:
    for known in WIDTHS:
        width = options.get(known, getattr(layer, known, None))
        if isinstance(width, int):
            return width
    raise UserError(f"the width of the tokens that {name} takes is not known; give embed_dim")


def _reference_beside(kind: type) -> Callable[..., Tensor] | None:
    """The ``reference`` in the folder of the class, or of the class that it extends."""
    for parent in kind.__mro__:
        package = parent.__module__.rpartition(".")[0]
        if issubclass(parent, SequenceMixer) and package not in ("", "attnlab") and find_spec(f"{package}.reference"):
            found: Callable[..., Tensor] = import_module(f"{package}.reference").reference
            return found
    return None


def as_matrix(mask: Mask | Tensor, x: Tensor, keys: Tensor) -> Tensor:
    """A mask as strangers get it: Boolean (B, N, M), for queries ``x`` and ``keys``; what one head sees is seen."""
    queries, count = x.shape[1], keys.shape[1]
    matrix = mask.bind(queries, count, device=x.device).tensor() if isinstance(mask, Mask) else mask
    if matrix.dim() == 4:
        matrix = matrix.any(1)
    return matrix.expand(x.shape[0], queries, count)
