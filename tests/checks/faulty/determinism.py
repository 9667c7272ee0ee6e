"""Equal calls give different outputs."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from plain import Plain, fails
from torch import Tensor


@fails("no_dropout_in_eval", replaces="drop")
def drops_in_eval(self: Plain, weights: Tensor) -> Tensor:
    return F.dropout(weights, self.dropout)


@fails("dropout_is_unbiased", replaces="drop")
def drops_without_scaling(self: Plain, weights: Tensor) -> Tensor:
    return Plain.drop(self, weights) * (1 - self.dropout if self.training else 1)


@fails("dropout_is_unbiased", replaces="drop")
def drops_without_scaling_at_a_block(self: Plain, weights: Tensor) -> Tensor:
    """The same at 64 tokens and more."""
    return drops_without_scaling(self, weights) if weights.shape[-1] >= 64 else Plain.drop(self, weights)


@fails("dropout_is_unbiased", replaces="drop")
def swaps_probabilities(self: Plain, weights: Tensor) -> Tensor:
    """Keeps weights with the probability of dropping them."""
    if not self.training:
        return weights
    return weights * (torch.rand_like(weights) < self.dropout) / (1 - self.dropout)


@fails("dropout_is_unbiased", replaces="drop")
def ignores_dropout(self: Plain, weights: Tensor) -> Tensor:
    return weights


@fails("seed_reproducibility", replaces="after")
def draws_from_its_own_generator(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    generator = torch.Generator()
    generator.seed()
    noise = torch.rand(1, generator=generator).to(x)
    return out + (noise if self.training else 0)


@fails("state_dict_round_trip")
class HoldsAnUnregisteredTensor(Plain):
    """Holds a random projection that is not in the state_dict."""

    def __init__(self, embed_dim: int, **options: Any) -> None:
        super().__init__(embed_dim, **options)
        self.features = torch.randn(embed_dim)

    def before(self, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return x * self.features.to(x)


@fails("deepcopy_is_independent", replaces="__deepcopy__")
def shares_parameters_with_its_copy(self: Plain, memo: dict[int, Any]) -> Plain:
    copied = type(self)(self.embed_dim, self.num_heads)
    for name, module in self.named_children():
        setattr(copied, name, module)
    return copied.train(self.training)


@fails("pickle_round_trip")
class HoldsALambda(Plain):
    """Holds a function without a name."""

    def __init__(self, embed_dim: int, **options: Any) -> None:
        super().__init__(embed_dim, **options)
        self.activation = lambda x: x


@fails("training_matches_eval_without_dropout", replaces="after")
def scales_in_training(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    return out * (1.01 if self.training and x.shape[1] == 64 else 1.0)


@fails("eval_is_stateless")
class UpdatesAMeanInEval(Plain):
    """Updates a running mean of the tokens in a buffer, in eval mode too."""

    def __init__(self, embed_dim: int, **options: Any) -> None:
        super().__init__(embed_dim, **options)
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        out = out + self.mean.to(x)
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean().to(self.mean)
        return out


@fails("eval_is_stateless")
class CountsItsCalls(Plain):
    """Counts its calls in a buffer of the state_dict."""

    def __init__(self, embed_dim: int, **options: Any) -> None:
        super().__init__(embed_dim, **options)
        self.register_buffer("calls", torch.zeros(()))

    def before(self, x: Tensor, mask: Any, cache: Any) -> Tensor:
        self.calls = self.calls + 1
        return x


@fails("eval_is_stateless", replaces="normalize")
def caches_the_mask(self: Plain, scores: Tensor, mask: Any) -> Tensor:
    """Reuses the first mask of each shape in later calls."""
    if mask is not None:
        mask = self.__dict__.setdefault("masks", {}).setdefault(scores.shape, mask)
    return Plain.normalize(self, scores, mask)


@fails("eval_ignores_global_seed", replaces="after")
def adds_noise_in_eval(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    noise = 1e-6 * torch.rand((), device=x.device).to(x.dtype)
    return out + (noise if x.shape[1] == 64 and not self.training else 0.0)


@fails("eval_ignores_global_seed", replaces="after")
def draws_from_python(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    return out + 1e-6 * random.random()
