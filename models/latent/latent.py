"""Multi-head latent attention: one small vector a token is kept, and all heads' keys and values are made of it."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.masks import BoundMask
from attnlab.nn.attention import Attention, Card, check_positive_int, make_linear, renamed_options
from attnlab.nn.cache import KVCache
from attnlab.nn.multihead import rms_norm
from attnlab.ops.softmax import SoftmaxMap
from attnlab.positions import Positions, Rotary, parse_positions


class LatentAttention(Attention):
    """``head_i = softmax((q_iᶜ · k_iᶜ + q_iᴿ · kᴿ) / √(d_k + d_r)) v_i``, with ``[k_iᶜ; v_i] = W_i c`` of a latent c.

    Source: DeepSeek-AI 2024, "DeepSeek-V2", section 2.1 and appendix C; the norms of the latents are those of its code.
    A cache holds c and the one turned key kᴿ of every token, and a few queries are answered from these as they lie.

    Args:
        embed_dim: D, the width of every token, in and out.
        num_heads: h, the number of heads.
        kv_latent_dim: d_c, the numbers that are kept of a token; 4·d_k where not given, as in the paper.
        q_latent_dim: d_q, the width through which queries are squeezed in training; not at all where not given.
        head_dim: d_k, the width of a head's untouched query, key and value; embed_dim / num_heads where not given.
        rope_head_dim: d_r, the width of the turned query and key; the even number at or below d_k / 2, and at least 2,
            where not given.
        causal: a token may look at itself and back, never ahead.
        dropout: the probability with which an attention weight is dropped, in training only.
        positions: how the d_r numbers are turned: rotary, with settings where wanted, such as "rotary(base=500000)"; or
            none, which leaves them out (see attnlab.positions). The temperature of yarn applies to the whole score,
            as in DeepSeek-V3.
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        ValueError: for positions that are not rotary, and a width that is not positive or cannot be turned.
    """

    card = Card(
        title="Multi-head latent attention",
        summary="a cache of one small vector a token, of which all heads' keys and values are made",
        paper="DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model",
        authors="DeepSeek-AI",
        year=2024,
        arxiv="2405.04434",
        kind="exact",
        heads="h",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h softmax maps over keys of low rank",
        use_case="decoding long contexts: d_c + d_r numbers a token in the cache, however many heads",
        supports=("causal", "mask", "attn_bias", "cache", "weights"),
        parent="groupedquery",
    )

    supports_packing = True
    renamed_keys: ClassVar = {
        "down": "kv_down",
        "norm": "kv_norm",
        "up": "kv_up",
        "query_down": "q_down",
        "query_norm": "q_norm",
    }

    @renamed_options(latent="kv_latent_dim", query_latent="q_latent_dim", rotary_dim="rope_head_dim")
    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        kv_latent_dim: int | None = None,
        q_latent_dim: int | None = None,
        head_dim: int | None = None,
        rope_head_dim: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        positions: Literal["rotary", "none"] | str | Positions = "rotary",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, head_dim=head_dim, causal=causal, dropout=dropout)
        project = partial(make_linear, bias=False, device=device, dtype=dtype)
        norm = partial(nn.RMSNorm, eps=1e-6, device=device, dtype=dtype)
        h, d_k = num_heads, self.head_dim
        self.kv_latent_dim = 4 * d_k if kv_latent_dim is None else check_positive_int("kv_latent_dim", kv_latent_dim)
        turned = max(2, d_k // 4 * 2) if rope_head_dim is None else check_positive_int("rope_head_dim", rope_head_dim)
        self.positions = parse_positions(positions, num_heads=h, head_dim=turned, causal=causal)
        if self.positions.name not in ("rotary", "none"):
            raise ValueError(f"positions of latent attention are rotary or none, not {self.positions.name}")
        self.rope_head_dim = turned if self.positions.name == "rotary" else 0

        self.kv_down = project(embed_dim, self.kv_latent_dim + self.rope_head_dim)  # W_DKV and W_KR
        self.kv_norm = norm(self.kv_latent_dim)
        self.kv_up = project(self.kv_latent_dim, 2 * h * d_k)  # W_UK and W_UV
        wide = embed_dim if q_latent_dim is None else check_positive_int("q_latent_dim", q_latent_dim)
        self.q_down = None if q_latent_dim is None else project(embed_dim, wide)  # W_DQ
        self.q_norm = None if q_latent_dim is None else norm(wide)
        self.query = project(wide, h * (d_k + self.rope_head_dim))  # W_UQ and W_QR
        self.output = project(h * d_k, embed_dim)  # W_O

    def _forward(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B N D"]:
        dropout = self.dropout if self.training else 0.0
        Q, kept = self._queries(x, cache), self._kept(x, cache)
        if cache is not None:
            (kept,) = cache.update(kept)  # with all that was seen before
            if self._is_cheaper_absorbed(x.shape[1], kept.shape[1]):
                return self._absorbed(Q, kept, mask, attn_bias, dropout)
        K, V = self._expanded(kept)
        return self._merge_heads(SoftmaxMap(Q, K, mask, attn_bias).apply(V, dropout=dropout))

    def _queries(self, x: Float[Tensor, "B N D"], cache: KVCache | None = None) -> Float[Tensor, "B h N d_qk"]:
        if self.q_down is not None and self.q_norm is not None:
            x = rms_norm(self.q_down(x), self.q_norm)
        Q = self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        own, turned = Q.split([self.head_dim, self.rope_head_dim], -1)
        turned = self._turned(turned, cache)
        if isinstance(self.positions, Rotary) and self.positions.attention_factor != 1:
            # YaRN's temperature is one for the whole score; the turned part has it from its queries and its keys.
            temperature, width = self.positions.attention_factor**2, self.positions.width
            return torch.cat([temperature * own, turned[..., :width], temperature * turned[..., width:]], -1)
        return torch.cat([own, turned], -1)

    def _kept(self, x: Float[Tensor, "B N D"], cache: KVCache | None = None) -> Float[Tensor, "B N d_kept"]:
        """What a cache holds of each token: c, and kᴿ, which all heads share."""
        c, key = self.kv_down(x).split([self.kv_latent_dim, self.rope_head_dim], -1)
        return torch.cat([rms_norm(c, self.kv_norm), self._turned(key.unsqueeze(1), cache).squeeze(1)], -1)

    def _turned(self, part: Float[Tensor, "B H N d_r"], cache: KVCache | None) -> Float[Tensor, "B H N d_r"]:
        return self.positions.apply_rotary(part, 0 if cache is None else cache.num_seen) if self.rope_head_dim else part

    def _expanded(
        self, kept: Float[Tensor, "B M d_kept"]
    ) -> tuple[Float[Tensor, "B h M d_qk"], Float[Tensor, "B h M d_k"]]:
        """The keys and values of every head."""
        c, turned = kept.split([self.kv_latent_dim, self.rope_head_dim], -1)
        K, V = self.kv_up(c).unflatten(-1, (2 * self.num_heads, -1)).transpose(1, 2).chunk(2, 1)
        return torch.cat([K, turned.unsqueeze(1).expand(-1, self.num_heads, -1, -1)], -1), V

    def _absorbed(
        self,
        Q: Float[Tensor, "B h N d_qk"],
        kept: Float[Tensor, "B M d_kept"],
        mask: BoundMask | None,
        bias: Tensor | None,
        dropout: float,
    ) -> Float[Tensor, "B N D"]:
        """The same without any head's keys: q · (W_UK c) = (W_UKᵀ q) · c, and Σ w (W_UV c) = W_UV Σ w c."""
        # The module's answer to each unit vector is the matrix that it multiplies with, adapters included.
        product = self.kv_up(torch.eye(self.kv_latent_dim, dtype=kept.dtype, device=kept.device)).mT
        W_UK, W_UV = product.to(Q.dtype).unflatten(0, (2, self.num_heads, -1))  # (h, d_k, d_c) each
        own, turned = Q.split([self.head_dim, self.rope_head_dim], -1)
        Q = torch.cat([own @ W_UK, turned], -1)
        Q = Q * math.sqrt(
            Q.shape[-1] / (self.head_dim + self.rope_head_dim)
        )  # the engine divides by the root of its width
        shared = kept.unsqueeze(1)  # one head of keys, which are values too, read as they lie
        read = SoftmaxMap(Q, shared, mask, bias).apply(shared, dropout=dropout)[..., : self.kv_latent_dim]
        return self._merge_heads(read @ W_UV.mT)

    def _is_cheaper_absorbed(self, queries: int, keys: int) -> bool:
        """Whether fewer products are needed per head than for making all keys and values first.

        Absorbed: the matrices, then two products of width d_c for each pair.
        """
        d_k, d_c = self.head_dim, self.kv_latent_dim
        absorbed = 2 * d_k * d_c**2 + queries * (2 * d_c * keys + 2 * d_k * d_c)
        return absorbed < 2 * d_k * keys * (d_c + queries)

    def _merge_heads(self, heads: Float[Tensor, "B h N d_k"]) -> Float[Tensor, "B N D"]:
        return self.output(heads.transpose(1, 2).flatten(2))

    def _build_map(
        self, x: Float[Tensor, "B N D"], mask: BoundMask | None, attn_bias: Tensor | None = None
    ) -> SoftmaxMap:
        return SoftmaxMap(self._queries(x), self._expanded(self._kept(x))[0], mask, attn_bias)

    def _apply_weights(self, weights: Float[Tensor, "B h N M"], x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self._merge_heads(weights @ self._expanded(self._kept(x))[1])
