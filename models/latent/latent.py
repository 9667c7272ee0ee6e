"""Multi-head latent attention: the KV cache stores one small vector per token for all heads."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.masks import BoundMask
from attnlab.nn.attention import Attention, Card, check_positive_int, make_linear, renamed_options
from attnlab.nn.cache import KVCache
from attnlab.nn.multihead import rms_norm
from attnlab.nn.projections import plain_weight
from attnlab.ops.softmax import SoftmaxMap
from attnlab.positions import Positions, Rotary, parse_positions


class LatentAttention(Attention):
    """``head_i = softmax((q_iᶜ · k_iᶜ + q_iᴿ · kᴿ) / √(d_k + d_r)) v_i``, where ``[k_iᶜ; v_i] = W_i c`` for a latent c.

    A KV cache stores the latent c and the rotated key kᴿ of each token. A few queries attend to the stored latents
    directly (`_attend_absorbed`), without expanding the keys and values.

    Source: DeepSeek-AI 2024, "DeepSeek-V2", section 2.1 and appendix C; the norms of the latents follow its code.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads.
        kv_latent_dim: d_c, the width of the latent of keys and values; by default 4·d_k, as in the paper.
        q_latent_dim: d_q, the width of the latent of the queries; by default queries have none.
        head_dim: d_k, the width of the value and of the part of query and key without positions; by default
            embed_dim / num_heads.
        rope_head_dim: d_r, the width of the rotated part of query and key; by default the largest even number up to
            d_k / 2, and at least 2.
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping an attention weight, in training only.
        positions: the positional encoding of the rotated part: rotary, optionally with settings, such as
            "rotary(base=500000)", or none, which leaves this part out (see attnlab.positions). The temperature of YaRN
            applies to the whole score, as in DeepSeek-V3.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: for positions other than rotary and none, and for a width that is not positive or cannot be rotated.
    """

    card = Card(
        title="Multi-head latent attention",
        summary="the KV cache stores one small vector per token; all keys and values are computed from it",
        paper="DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model",
        authors="DeepSeek-AI",
        year=2024,
        arxiv="2405.04434",
        kind="exact",
        heads="h",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h softmax attention matrices over keys of one shared latent",
        use_case="decoding long contexts: d_c + d_r values per token in the cache, for any number of heads",
        supports=("causal", "arbitrary_mask", "attn_bias", "cache", "weights"),
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
        d_r = max(2, d_k // 4 * 2) if rope_head_dim is None else check_positive_int("rope_head_dim", rope_head_dim)
        self.positions = parse_positions(positions, num_heads=h, head_dim=d_r, causal=causal)
        if self.positions.name not in ("rotary", "none"):
            raise ValueError(f"positions of latent attention are rotary or none, not {self.positions.name}")
        self.kv_latent_dim = 4 * d_k if kv_latent_dim is None else check_positive_int("kv_latent_dim", kv_latent_dim)
        self.rope_head_dim = d_r if self.positions.name == "rotary" else 0

        self.kv_down = project(embed_dim, self.kv_latent_dim + self.rope_head_dim)  # W_DKV and W_KR
        self.kv_norm = norm(self.kv_latent_dim)
        self.kv_up = project(self.kv_latent_dim, 2 * h * d_k)  # W_UK and W_UV
        d_q = embed_dim if q_latent_dim is None else check_positive_int("q_latent_dim", q_latent_dim)
        self.q_down = None if q_latent_dim is None else project(embed_dim, d_q)  # W_DQ
        self.q_norm = None if q_latent_dim is None else norm(d_q)
        self.query = project(d_q, h * (d_k + self.rope_head_dim))  # W_UQ and W_QR
        self.output = project(h * d_k, embed_dim)  # W_O

    def _forward(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B N D"]:
        dropout = self.dropout if self.training else 0.0
        Q, latents = self._project_queries(x, cache), self._latents(x, cache)
        if cache is not None:
            (latents,) = cache.update(latents)
            if self._is_cheaper_absorbed(x.shape[1], latents.shape[1]):
                return self._attend_absorbed(Q, latents, mask, attn_bias, dropout)
        K, V = self._expand_kv(latents)
        return self._merge_heads(SoftmaxMap(Q, K, mask, attn_bias).apply(V, dropout=dropout))

    def _project_queries(self, x: Float[Tensor, "B N D"], cache: KVCache | None = None) -> Float[Tensor, "B h N d_qk"]:
        if self.q_down is not None and self.q_norm is not None:
            x = rms_norm(self.q_down(x), self.q_norm)
        q = self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        q_C, q_R = q.split([self.head_dim, self.rope_head_dim], -1)
        q_R = self._apply_rope(q_R, cache)
        if isinstance(self.positions, Rotary) and self.positions.attention_factor != 1:
            # The temperature of YaRN applies to the whole score; the rotation has applied it to the rotated channels.
            temperature, width = self.positions.attention_factor**2, self.positions.width
            return torch.cat([temperature * q_C, q_R[..., :width], temperature * q_R[..., width:]], -1)
        return torch.cat([q_C, q_R], -1)

    def _latents(self, x: Float[Tensor, "B N D"], cache: KVCache | None = None) -> Float[Tensor, "B N d_latent"]:
        """The cached values per token: the latent c, and the rotated key kᴿ that all heads share."""
        c, k_R = self.kv_down(x).split([self.kv_latent_dim, self.rope_head_dim], -1)
        return torch.cat([rms_norm(c, self.kv_norm), self._apply_rope(k_R.unsqueeze(1), cache).squeeze(1)], -1)

    def _apply_rope(self, part: Float[Tensor, "B H N d_r"], cache: KVCache | None) -> Float[Tensor, "B H N d_r"]:
        return self.positions.apply_rotary(part, 0 if cache is None else cache.num_seen) if self.rope_head_dim else part

    def _expand_kv(
        self, latents: Float[Tensor, "B M d_latent"]
    ) -> tuple[Float[Tensor, "B h M d_qk"], Float[Tensor, "B h M d_k"]]:
        """The keys and values of all heads."""
        c, k_R = latents.split([self.kv_latent_dim, self.rope_head_dim], -1)
        k_C, V = self.kv_up(c).unflatten(-1, (2 * self.num_heads, -1)).transpose(1, 2).chunk(2, 1)
        return torch.cat([k_C, k_R.unsqueeze(1).expand(-1, self.num_heads, -1, -1)], -1), V

    def _attend_absorbed(
        self,
        Q: Float[Tensor, "B h N d_qk"],
        latents: Float[Tensor, "B M d_latent"],
        mask: BoundMask | None,
        bias: Tensor | None,
        dropout: float,
    ) -> Float[Tensor, "B N D"]:
        """The same output without expanded keys: q · (W_UK c) = (W_UKᵀ q) · c, and Σ w (W_UV c) = W_UV Σ w c."""
        matrix = plain_weight(self.kv_up)
        if matrix is None:  # the outputs for the unit vectors are the columns of the matrix, with adapters and hooks
            matrix = self.kv_up(torch.eye(self.kv_latent_dim, dtype=latents.dtype, device=latents.device)).mT
        W_UK, W_UV = matrix.to(Q.dtype).unflatten(0, (2, self.num_heads, -1))  # (h, d_k, d_c) each
        q_C, q_R = Q.split([self.head_dim, self.rope_head_dim], -1)
        q = torch.cat([q_C @ W_UK, q_R], -1)  # (B, h, N, d_c + d_r)
        shared = latents.unsqueeze(1)  # one key and value head for all query heads
        attention = SoftmaxMap(q, shared, mask, bias, scale=Q.shape[-1] ** -0.5)  # the scale of the expanded form
        return self._merge_heads(attention.apply(shared, dropout=dropout)[..., : self.kv_latent_dim] @ W_UV.mT)

    def _is_cheaper_absorbed(self, queries: int, keys: int) -> bool:
        """Whether `_attend_absorbed` takes fewer multiplications per head than `_expand_kv` and attention."""
        d_k, d_c = self.head_dim, self.kv_latent_dim
        matrix = 0 if plain_weight(self.kv_up) is not None else 2 * d_k * d_c**2
        absorbed = matrix + queries * (2 * d_c * keys + 2 * d_k * d_c)
        return absorbed < 2 * d_k * keys * (d_c + queries)

    def _merge_heads(self, heads: Float[Tensor, "B h N d_k"]) -> Float[Tensor, "B N D"]:
        return self.output(heads.transpose(1, 2).flatten(2))

    def _build_map(
        self, x: Float[Tensor, "B N D"], mask: BoundMask | None, attn_bias: Tensor | None = None
    ) -> SoftmaxMap:
        return SoftmaxMap(self._project_queries(x), self._expand_kv(self._latents(x))[0], mask, attn_bias)

    def _apply_weights(self, weights: Float[Tensor, "B h N M"], x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self._merge_heads(weights @ self._values(x))

    def _values(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B h N d_k"]:
        return self._expand_kv(self._latents(x))[1]
