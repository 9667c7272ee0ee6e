"""The packages of other libraries that are compared with, and their adapters in ``peers`` of a checkout."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.catalog import registry
from attnlab.nn.card import UnsupportedError
from attnlab.utils.errors import UnknownNameError, UserError

PACKAGES = (
    *("x-transformers", "transformers", "keras", "local-attention", "performer-pytorch", "linformer"),
    *("nystrom-attention", "fla-core", "einops"),
)
"""The packages of the extra ``bench``."""

MODULES = {"fla-core": "fla"}
"""The modules whose names differ from those of their packages by more than hyphens."""

ADAPTERS = {"torch": "pytorch"}
"""The modules of `peers.adapters` whose names differ from those of the packages."""

LAYERS: dict[str, Callable[[Any], Any]] = {
    "torch": lambda ours: adapter("torch").MultiheadAttention.from_attnlab(ours),
    "x-transformers": lambda ours: adapter("x-transformers").Attention.from_attnlab(ours),
    "transformers": lambda ours: adapter("transformers").Clip.from_attnlab(ours),
    "keras": lambda ours: adapter("keras").MultiHeadAttention.from_attnlab(ours),
}
"""The multi-head attention of each package, in its fastest documented setting, with the parameters of ours."""


class MissingPeerError(UserError):
    """A package cannot be used; the message is one line with the reason and the command that helps."""


def module_of(package: str) -> str:
    """The name that the package is imported by."""
    return MODULES.get(package, package.replace("-", "_"))


def load(package: str, module: str = "") -> Any:
    """Import a package, or a module that needs it.

    Raises:
        MissingPeerError: it is not installed, or cannot be imported.
    """
    if importlib.util.find_spec(module_of(package)) is None:
        raise MissingPeerError(f"{package} is not installed; pip install 'attnlab[bench]'")
    try:
        with warnings.catch_warnings(action="ignore"):  # deprecations inside of the package
            return importlib.import_module(module or module_of(package))
    except Exception as error:  # an error in a package must not stop the other rows
        raise MissingPeerError(f"{package} cannot be imported ({type(error).__name__}: {error})") from None


def adapter(package: str) -> Any:
    """The module of a package in `peers.adapters`.

    Raises:
        MissingPeerError: the package cannot be used.
    """
    if registry.checkout() is None:
        raise MissingPeerError(
            f"{package} is compared through adapters that only a checkout of attnlab has; run it there"
        )
    module = load(package, f"peers.adapters.{ADAPTERS.get(package, module_of(package))}")
    if package == "keras" and (backend := module.keras.backend.backend()) != "torch":
        raise MissingPeerError(f"keras uses the backend {backend}; set KERAS_BACKEND=torch")
    return module


class PeerLayer(nn.Module):
    """The layer of another library, called in its fastest documented way; see `attnlab.bench.workloads.workload`.

    Args:
        layer: an adapter.
        decoder: for a batch, the call that decodes its last token and the memory of its cache in bytes.
    """

    def __init__(self, layer: Any, decoder: Callable[[Tensor], tuple[Callable[[], Tensor], int]] | None = None) -> None:
        super().__init__()
        self.layer, self._decoder = layer, decoder
        self._call: tuple[int, Callable[[Tensor], Tensor]] | None = None
        """The length, and the call for it, which holds the mask that it needs."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the call, which cannot be pickled."""
        return {**self.__dict__, "_call": None}

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        if self._call is None or self._call[0] != x.shape[1]:
            self._call = x.shape[1], self.layer.fastest_call(x.shape[1])
        return self._call[1](x)

    def decoder(self, x: Tensor) -> tuple[Callable[[], Tensor], int]:
        """The call that decodes the last token of ``x``, and the memory of its cache."""
        if self._decoder is None:
            raise UnsupportedError("the decoding of this library is not compared")
        return self._decoder(x)


class DynamicCacheDecoder(nn.Module):
    """Decodes with the attention of GPT-2 and the ``DynamicCache`` of transformers."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.layer = adapter("transformers").Gpt2.from_attnlab(ours).inner.eval()

    def forward(self, x: Tensor) -> tuple[Callable[[], Tensor], int]:
        """The call that decodes the last token of ``x``, and the memory of its cache."""
        cache = load("transformers").DynamicCache()
        new = x[:, -1:].contiguous()  # its projection needs contiguous input
        self.layer(x[:, :-1].contiguous(), cache)
        cache_bytes = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))

        def step() -> Tensor:
            out: Tensor = self.layer(new, cache)[0]
            cache.crop(-1)
            return out

        return step, cache_bytes


def layers(
    packages: Sequence[str], embed_dim: int, options: Mapping[str, Any], *, causal: bool, like: Tensor
) -> dict[str, nn.Module]:
    """Return the layers of other libraries by package, with the parameters of one layer of ``multihead``.

    Args:
        packages: names in `LAYERS`.
        embed_dim: D.
        options: of multihead; only ``num_heads`` is possible.
        causal: whether the layers are causal.
        like: gives the device and the dtype.

    Raises:
        UserError: for another option, an unknown package, or outputs that differ.
        MissingPeerError: for a package that cannot be used.
    """
    if unfit := [name for name in options if name != "num_heads"]:
        raise UserError(f"--peers computes plain multi-head attention, so multihead takes no {unfit[0]} beside it")
    torch.manual_seed(0)
    ours: Any = registry.load("multihead")(embed_dim, causal=causal, **options)
    x = torch.randn(2, 16, embed_dim)
    made: dict[str, nn.Module] = {}
    for package in packages:
        if package not in LAYERS:
            raise UnknownNameError("peer", package, LAYERS)
        layer = PeerLayer(LAYERS[package](ours), DynamicCacheDecoder(ours) if package == "transformers" else None)
        with torch.no_grad():
            try:
                torch.testing.assert_close(layer(x), ours(x), rtol=1e-4, atol=1e-5)
            except AssertionError as error:
                difference = " ".join(str(error).split())[:200]
                raise UserError(f"the output of {package} differs from that of multihead: {difference}") from None
        made[package] = layer.to(like)
    return made
