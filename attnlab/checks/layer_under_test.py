"""The layer under test: one interface to build and to call an attention layer, from attnlab or from elsewhere.

Axes: B batch, N queries, M keys, D embed_dim, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from copy import deepcopy
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.checks.capabilities import CAPABILITIES, NotApplicable
from attnlab.checks.signatures import (
    bound_options,
    fitting_sizes,
    head_count,
    layer_width,
    parameters,
    place,
    reference_beside,
    require_single_argument,
    unwrap,
)
from attnlab.checks.signatures import first_line as first_line
from attnlab.masks import Mask, block_local, causal, documents, from_tensor, padding, prefix, sliding_window
from attnlab.nn.card import current_capabilities
from attnlab.nn.mixer import SequenceMixer
from attnlab.utils.errors import UnknownNameError, UserError

Call = Callable[[nn.Module, Tensor, Tensor | None], Tensor]
"""``(layer, x, mask) -> out``: the calling convention of a third-party layer."""

B, N, M = 2, 7, 5
SEED = 20

EXACT, ROUNDED = 1e-10, 1e-5
"""The tolerance between two computations of a float64 value, and where one of them rounds to float32."""


class LayerUnderTest:
    """An attention layer under test; the arguments and the errors are those of `attnlab.check_attention`."""

    def __init__(
        self,
        target: nn.Module | Callable[..., nn.Module],
        *,
        embed_dim: int | None = None,
        call: Call | None = None,
        weights: Call | None = None,
        reference: Callable[..., Tensor] | None = None,
        capabilities: Collection[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        kind = unwrap(target)
        self.name: str = getattr(kind, "__name__", type(kind).__name__)
        self._call, self._weights = call, weights
        self._accepts: Collection[str]
        if isinstance(target, nn.Module):
            self._make: Callable[..., nn.Module] = partial(deepcopy, target)
            self._accepts, self._sizes = (), dict[str, Any]()
        elif callable(target):
            self._make, self._accepts = target, parameters(target)
            self._sizes = fitting_sizes(self.name, target, self._accepts, embed_dim)
        else:
            raise UserError(f"expected a layer, or a class or function that makes one, got {target!r}")
        self._sample, self.device = place(self.name, partial(self._make, **self._sizes), device)
        self.embed_dim = embed_dim or layer_width(self.name, self._sample, {**bound_options(target), **self._sizes})
        self.num_heads = head_count(self._sample)
        self.is_ours = isinstance(self._sample, SequenceMixer) and call is None
        if call is None:
            require_single_argument(self.name, self._sample)
        self.reference = reference or reference_beside(type(self._sample))
        self.capabilities = frozenset(current_capabilities(self._inferred() if capabilities is None else capabilities))
        for capability in self.capabilities:
            if capability not in CAPABILITIES:
                raise UnknownNameError("capability", capability, CAPABILITIES)

    # Building

    def layer(
        self, *, dtype: torch.dtype = torch.float64, train: bool = False, seed: int = SEED, **options: Any
    ) -> nn.Module:
        """A fresh layer; the same seed gives the same parameters.

        Noise is added to all parameters: a bias or an output projection that is initialized to zero would hide errors.
        It is smaller for the weights of long sums, which would otherwise grow with the number of terms.

        ``options`` are ``causal`` and ``dropout``, for its constructor; NotApplicable is raised where they are fixed.
        """
        given = {name: value for name, value in options.items() if name in self._accepts}
        for name in sorted(options.keys() - given.keys()):
            if options[name] != (fixed := self._fixed(name)):
                raise NotApplicable(f"it is built with {name}={fixed}")
        torch.manual_seed(seed)
        layer = self._make(**self._sizes, **given).to(self.device, torch.float64)
        with torch.no_grad():
            for parameter in layer.parameters():
                if parameter.is_floating_point():  # an integer seed may be a parameter
                    terms = parameter.shape[-1] if parameter.dim() > 1 else 1
                    parameter.add_(min(0.1, max(terms, 1) ** -0.5) * torch.randn_like(parameter))
        return layer.to(dtype).train(train)

    def build(self, is_causal: bool, **options: Any) -> nn.Module:
        """`layer`, causal or not; a layer without that option is built as it is."""
        return self.layer(causal=is_causal, **options) if "causal" in self.capabilities else self.layer(**options)

    def construct(self, **options: Any) -> nn.Module:
        """A layer as the constructor returns it, without a seed, a dtype or noise; not applicable to an instance."""
        if not self._accepts:
            raise NotApplicable("it is an instance; check its class")
        return self._make(**self._sizes, **options)

    @property
    def constructor(self) -> tuple[Any, dict[str, Any]]:
        """The class or function that makes the layer, and the options that are fixed."""
        return unwrap(self._make), {**bound_options(self._make), **self._sizes}

    def modes(self, is_causal: bool) -> Iterator[tuple[str, nn.Module]]:
        """The layer in eval mode, in training, and in training with dropout where it can be chosen."""
        yield "eval", self.build(is_causal)
        yield "training", self.build(is_causal, train=True)
        if options := self.dropout_options:
            yield "training with dropout", self.build(is_causal, train=True, **options)

    def can_choose(self, option: str) -> bool:
        """Whether a fresh layer can be built with this option."""
        return option in self._accepts

    @property
    def causal_choices(self) -> tuple[bool, ...]:
        """The values of ``causal`` that it can be built with."""
        both = "causal" in self.capabilities and "causal" in self._accepts
        if both and isinstance(self._sample, SequenceMixer) and self._sample.card.always_causal:
            return (True,)
        return (False, True) if both else (self._fixed("causal"),)

    @property
    def dropout(self) -> float:
        """The dropout to build with: not one half, where dropping and keeping are equally likely.

        Raises:
            NotApplicable: it has no dropout.
        """
        chosen: float = 0.25 if "dropout" in self._accepts else self._fixed("dropout")
        if not chosen:
            raise NotApplicable("it is built with dropout=0")
        return chosen

    @property
    def dropout_options(self) -> dict[str, Any]:
        """``{"dropout": p}`` where dropout can be chosen, else an empty dictionary."""
        return {"dropout": self.dropout} if "dropout" in self.capabilities and self.can_choose("dropout") else {}

    @cached_property
    def exact(self) -> float:
        """The tolerance between two computations of the same value; larger for a layer that rounds to float32.

        A smooth function changes twice as much for twice a tiny step; one that rounds to float32 does not.
        """
        if self.is_ours:
            return EXACT
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            layer, x = self.build(self.causal_choices[0]), self.tokens()
            step = 1e-8 * self.random(*x.shape, seed=1)
            near, far = (self(layer, x + times * step) - self(layer, x - times * step) for times in (1, 2))
        is_rounded = (far - 2 * near).abs().max() > 1e-3 * near.abs().max()
        return ROUNDED if is_rounded else EXACT

    # Calling

    def __call__(self, layer: nn.Module, x: Tensor, mask: Mask | Tensor | None = None, **extra: Tensor) -> Tensor:
        """The output of ``layer``, (B, N, D); ``extra`` may hold ``attn_bias`` and ``context``."""
        if self._call is not None:
            out = self._call(layer, x, None if mask is None else as_matrix(mask, x, x))
        else:
            out = layer(x, **self._arguments(x, mask, extra))
        if not isinstance(out, Tensor):
            raise TypeError(f"it returned a {type(out).__name__}, not a tensor; pass call=, which returns the output")
        return out

    def attention_weights(
        self, layer: nn.Module, x: Tensor, mask: Mask | Tensor | None = None, **extra: Tensor
    ) -> Tensor:
        """The attention weights of ``layer``, (B, H, N, M)."""
        if self._weights is not None:
            weights = self._weights(layer, x, None if mask is None else as_matrix(mask, x, x))
        else:
            weights = layer.attention_weights(x, **self._arguments(x, mask, extra))  # type: ignore[operator]
        return weights.unsqueeze(1) if weights.dim() == 3 else weights

    def apply_weights(
        self, layer: nn.Module, weights: Tensor, x: Tensor, mask: Mask | Tensor | None = None, **extra: Tensor
    ) -> Tensor:
        """The output of ``layer`` for these attention weights; the mask is passed on where it is accepted."""
        apply: Callable[..., Tensor] = layer.apply_weights  # type: ignore[assignment]
        takes_mask = "mask" in parameters(apply)
        return apply(weights, x, **(self._arguments(x, mask, extra) if takes_mask else extra))

    def _arguments(self, x: Tensor, mask: Mask | Tensor | None, extra: dict[str, Tensor]) -> dict[str, Any]:
        if mask is None:
            return extra
        return {"mask": mask if self.is_ours else as_matrix(mask, x, extra.get("context", x)), **extra}

    # Inputs

    def tokens(
        self, batch: int = B, length: int = N, *, dtype: torch.dtype = torch.float64, seed: int = SEED
    ) -> Tensor:
        """Random tokens, (batch, length, D); the same seed gives the same tokens."""
        return self.random(batch, length, self.embed_dim, seed=seed).to(dtype)

    def random(self, *shape: int, seed: int = SEED) -> Tensor:
        """Normally distributed float64 values; torch's global generator is not used."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(self.device)

    def masks(
        self, batch: int = B, length: int = N, *, is_causal: bool = False, counts: Tensor | None = None
    ) -> list[Mask]:
        """One mask of each kind that the layer takes."""
        padded = self.paddings(batch, length, is_causal=is_causal, counts=counts)
        position = torch.arange(length, device=self.device)
        segments = [documents(position // 3)] if "segments" in self.capabilities else []
        if "arbitrary_mask" not in self.capabilities:
            return [*padded, *segments]
        scattered = (self.random(batch, length, length) > 0) | (position == position[:, None])
        return [*padded, sliding_window(2), prefix(2), *segments, block_local(2), from_tensor(scattered)]

    def paddings(
        self, batch: int = B, length: int = N, *, is_causal: bool = False, counts: Tensor | None = None
    ) -> list[Mask]:
        """Padding on the right and on the left, where the layer takes it; ``counts`` are the real tokens per item.

        A causal third-party layer gets padding on the right only: on the left it makes fully masked rows, which have
        checks of their own and would fail most others too.
        """
        if "padding" not in self.capabilities:
            return []
        lengths = (length - 3 * torch.arange(batch, device=self.device)).clamp(min=min(1, length))
        lengths = lengths if counts is None else counts
        right, left = padding(lengths), padding(lengths, side="left", max_length=length)
        is_causal = is_causal or self.causal_choices == (True,)
        return [right] if is_causal and not self.is_ours else [right, left]

    def configurations(self, batch: int = B, length: int = N) -> list[tuple[bool, Mask | None]]:
        """Every combination of ``causal`` and a mask: causal or not, without a mask and with one of each kind."""
        return [
            (is_causal, mask)
            for is_causal in self.causal_choices
            for mask in (None, *self.masks(batch, length, is_causal=is_causal))
        ]

    def extras(self, is_causal: bool, batch: int = B, length: int = N) -> list[dict[str, Tensor]]:
        """The optional tensor arguments: none, a bias, a context, and both."""
        extras: list[dict[str, Tensor]] = [{}]
        if "context" in self.capabilities:  # a causal layer rejects a context of another length
            extras.append({"context": self.tokens(batch, length if is_causal else M, seed=1)})
        if "attn_bias" in self.capabilities:
            for extra in tuple(extras):
                keys = extra["context"].shape[1] if extra else length
                extras.append({"attn_bias": self.random(batch, self.num_heads, length, keys, seed=2), **extra})
        return extras

    def allowed(self, is_causal: bool, mask: Mask | None, x: Tensor) -> Tensor:
        """The ground truth: Boolean (B, N, N), the keys that each query may attend to in at least one head."""
        return self.allowed_per_head(is_causal, mask, x).any(1)

    def allowed_per_head(self, is_causal: bool, mask: Mask | None, x: Tensor) -> Tensor:
        """The same for each head: (B, H, N, N), or (B, 1, N, N) where it is the same for all heads."""
        layer, length = self.layer(), x.shape[1]
        pattern = layer.attention_pattern(length) if isinstance(layer, SequenceMixer) else None
        allowed = torch.ones(len(x), 1, length, length, dtype=torch.bool, device=x.device)
        for rule in (mask, pattern, causal() if is_causal else None):
            if rule is not None:
                allowed = allowed & rule.to(x.device).bind(length, device=x.device).tensor()
        return allowed

    def require_relative_pattern(self) -> None:
        """Raise NotApplicable if the attention pattern depends on absolute positions."""
        pattern = self._sample.attention_pattern(N) if isinstance(self._sample, SequenceMixer) else None
        is_relative = getattr(self._sample, "is_relative", True) if self.is_ours else True
        if not is_relative or (pattern is not None and not pattern.is_relative):
            raise NotApplicable("its attention pattern depends on absolute positions")

    def require_continuity(self) -> None:
        """Raise NotApplicable if rounding can change which keys are attended to."""
        if isinstance(self._sample, SequenceMixer) and not self._sample.is_continuous(N):
            raise NotApplicable("its output is not continuous: rounding may change which keys are selected")

    # Inference of options and capabilities

    def _fixed(self, name: str) -> Any:
        """The value of ``causal`` or ``dropout`` of a layer that is built without that option."""
        if name == "causal":
            value = getattr(self._sample, "causal", None)
            return value if isinstance(value, bool) else "causal" in self.capabilities
        value = getattr(self._sample, name, 0.0)
        value = getattr(value, "p", value)  # an nn.Dropout
        return value if isinstance(value, float) else 0.0

    def _inferred(self) -> set[str]:
        """The capabilities of the card, or for a third-party layer those that its signatures show."""
        sample = self._sample
        capabilities = {"reference"} if self.reference else set[str]()
        if isinstance(sample, SequenceMixer) and self.is_ours:
            capabilities |= {"contract", "dropout", "export", *sample.card.supports}
            if "weights" in capabilities:
                is_probability = sample.card.weights == "probabilities"
                capabilities |= {"apply_weights", "probabilities"} if is_probability else {"apply_weights"}
            return capabilities
        arguments = {"mask"} if self._call else {*parameters(sample.forward)}
        capabilities |= {"mask", "attn_bias", "context"} & arguments
        capabilities |= {"causal", "dropout"} & {*self._accepts}
        capabilities |= {"causal"} if getattr(sample, "causal", None) is True else set()
        capabilities |= {"dropout"} if self._fixed("dropout") else set()
        if self._weights or callable(getattr(sample, "attention_weights", None)):
            capabilities |= {"weights", "probabilities"}
            capabilities |= {"apply_weights"} if callable(getattr(sample, "apply_weights", None)) else set()
        return capabilities


def as_matrix(mask: Mask | Tensor, x: Tensor, keys: Tensor) -> Tensor:
    """A mask as a third-party layer gets it: Boolean (B, N, M), True where at least one head may attend."""
    queries, count = x.shape[1], keys.shape[1]
    matrix = mask.bind(queries, count, device=x.device).tensor() if isinstance(mask, Mask) else mask
    if matrix.dim() == 4:
        matrix = matrix.any(1)
    return matrix.expand(x.shape[0], queries, count)
