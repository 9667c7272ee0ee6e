"""The peers, and what each of their layers is held to."""

from __future__ import annotations

from peers.peer import Layer, Peer

PADDED = ("causal", "padding", "dropout")
PADDED_WITH_WEIGHTS = (*PADDED, "weights", "probabilities")

KEPT_BY_DROPOUT = "dropout is right on average"
STRIDES = "takes any strides"
DTYPE = "keeps the dtype"
AUTOCAST = "runs under bfloat16 autocast"
FUTURE, FUTURE_MASKED = "causal hears no future", "causal hears no future under a mask"
MASKED, PADDING, ABSENT = "masked keys are never heard", "padding is never heard", "padding is as if absent"
PACKED = "packed sequences are each alone"
WEIGHTS_MASKED, WEIGHTS_DROPPED = "weights are zero where masked", "weights hold no dropout"
PICKLE = "pickle round trip"

RAISES_IN_HALF = "its documentation says nothing of bfloat16, and it raises"
SHOWN_AFTER_DROPOUT = "they are those “used to compute the weighted average”, dropout and all"
NO_KEY_IN_WEIGHTS = "only in a row without a key, of which its documentation says nothing"

HUGGING = {WEIGHTS_MASKED: NO_KEY_IN_WEIGHTS, WEIGHTS_DROPPED: SHOWN_AFTER_DROPOUT}

PEERS = (
    Peer(
        package="torch",
        adapter="pytorch",
        module="torch",
        home="https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html",
        asked="`batch_first=True`. A mask says True for a position that “is not allowed to attend”; causal is an "
        "`attn_mask` too, as `is_causal` “provides a hint that `attn_mask` is the causal mask”. Weights by "
        "`average_attn_weights=False`. The second row gives padding as `key_padding_mask`.",
        layers=(
            Layer(
                "MultiheadAttention",
                unclaimed={WEIGHTS_DROPPED: "its documentation has a “dropout probability on `attn_output_weights`”"},
                broken={WEIGHTS_MASKED: "torch_weights_make_nan"},
            ),
            Layer(
                "PaddedMultiheadAttention",
                claims=PADDED_WITH_WEIGHTS,
                unclaimed={WEIGHTS_DROPPED: "its documentation has a “dropout probability on `attn_output_weights`”"},
            ),
        ),
        known={
            "torch_weights_make_nan": "Known as [#41508](https://github.com/pytorch/pytorch/issues/41508) and "
            "[#160064](https://github.com/pytorch/pytorch/issues/160064).",
        },
    ),
    Peer(
        package="keras",
        adapter="keras",
        module="keras",
        home="https://keras.io/api/layers/attention_layers/multi_head_attention/",
        asked="On PyTorch. `attention_mask` is (B, T, S), “1 indicates attention and 0 indicates no attention”; "
        "`use_causal_mask`, `training` and `return_attention_scores` as its page has them. The weights are named, and "
        "drawn by Keras' own generator, which is seeded.",
        layers=(Layer("MultiHeadAttention"),),
    ),
    Peer(
        package="transformers",
        adapter="transformers",
        module="transformers",
        home="https://huggingface.co/docs/transformers/attention_interface",
        asked="Layers out of their models, with what these give them: the additive 4-D mask, in decoders with the "
        'future in it, and the cosines and sines of the places. Weights by `attn_implementation="eager"`.',
        layers=(
            Layer("BertEager", unclaimed=HUGGING),
            Layer("BertSdpa"),
            Layer(
                "Gpt2",
                unclaimed={
                    **HUGGING,
                    STRIDES: "inside of its model tokens always lie one after another; others raise",
                },
            ),
            Layer("Llama", unclaimed=HUGGING),
            Layer("Mistral", unclaimed=HUGGING),
        ),
        beside={
            "transformers_mra_zeros": "The page of the model does not speak of a kernel or a device; its code says "
            "zeros where the kernel could not be loaded.",
        },
    ),
    Peer(
        package="x-transformers",
        adapter="x_transformers",
        module="x_transformers",
        home="https://github.com/lucidrains/x-transformers",
        asked="Its `Attention`, with options of its constructor, which its page shows with the prefix `attn_` (all but "
        "`sigmoid`, `orthog_projected_values` and `data_dependent_alibi`). Any mask is an `attn_mask`, "
        "padding a `mask` of the real tokens.",
        layers=(
            Layer("AttentionWithWeights", unclaimed={WEIGHTS_MASKED: NO_KEY_IN_WEIGHTS}),
            Layer("Attention", {"flash": True}, unclaimed={PICKLE: "its page says nothing of it, and it raises"}),
            Layer("Attention", {"kv_heads": 1}),
            Layer("Attention", {"sigmoid": True}),
            Layer("Attention", {"qk_norm": True}),
            Layer("Attention", {"gate_values": True}),
            Layer("Attention", {"pre_talking_heads": True, "post_talking_heads": True}),
            Layer(
                "Attention",
                {"sparse_topk": 2},
                broken=dict.fromkeys(("keeps the shape", ABSENT, PACKED), "x_transformers_topk_of_few"),
            ),
            Layer(
                "Attention",
                {"orthog_projected_values": True},
                broken=dict.fromkeys(
                    (FUTURE, FUTURE_MASKED, MASKED, PADDING, ABSENT, PACKED), "x_transformers_orthogonal_future"
                ),
            ),
            Layer("PaddedAttention", claims=PADDED, broken={DTYPE: "x_transformers_mask_changes_dtype"}),
            Layer(
                "PaddedAttention",
                {"num_mem_kv": 3},
                claims=PADDED,
                broken={DTYPE: "x_transformers_mask_changes_dtype"},
            ),
        ),
        beside={
            "x_transformers_cached_alibi": "Its generation takes the cache where `can_cache_kv` is True. All other "
            "options that were tried decode as the full pass does; `selective` says itself that it cannot.",
        },
    ),
    Peer(
        package="local-attention",
        adapter="local_attention",
        module="local_attention",
        home="https://github.com/lucidrains/local-attention",
        asked="`LocalMHA`, the layer of its `LocalTransformer`, in windows of four tokens. It “auto pads both inputs "
        "and mask, then truncates output appropriately”; `dropout` is “post-attention dropout”.",
        layers=(
            Layer(
                "LocalMHA",
                claims=PADDED,
                unclaimed={DTYPE: RAISES_IN_HALF},
                broken={ABSENT: "local_attention_autopad", KEPT_BY_DROPOUT: "local_attention_dropout"},
            ),
        ),
    ),
    Peer(
        package="performer-pytorch",
        adapter="performer_pytorch",
        module="performer_pytorch",
        home="https://github.com/lucidrains/performer-pytorch",
        asked="Its “standalone self-attention layer”; `causal` is “auto-regressive or not”, a `mask` is True for a "
        "real token.",
        layers=(
            Layer(
                "SelfAttention",
                claims=PADDED,
                unclaimed={
                    "gradients match finite differences": "the largest exponent, by which all are divided, is "
                    "detached on purpose, and a small number added; its page says nothing of gradients"
                },
                broken={
                    **dict.fromkeys((FUTURE, FUTURE_MASKED), "performer_pytorch_future"),
                    **dict.fromkeys((PADDING, ABSENT), "performer_pytorch_padding"),
                },
            ),
        ),
    ),
    Peer(
        package="memory-efficient-attention-pytorch",
        adapter="memory_efficient_attention_pytorch",
        module="memory_efficient_attention_pytorch",
        home="https://github.com/lucidrains/memory-efficient-attention-pytorch",
        asked="Its `Attention`, which “will take care of masking, causal masking”; in buckets, and with "
        "`memory_efficient` “turned off to test against normal attention”; `dropout` stands in its constructor.",
        layers=(
            Layer(
                "Attention",
                {"memory_efficient": True},
                claims=PADDED,
                unclaimed={
                    KEPT_BY_DROPOUT: "it drops before the weights are made one in sum; its page has no word on it"
                },
            ),
            Layer(
                "Attention",
                {"memory_efficient": False},
                claims=PADDED,
                broken={KEPT_BY_DROPOUT: "memory_efficient_attention_pytorch_dropout"},
            ),
        ),
    ),
    Peer(
        package="nystrom-attention",
        adapter="nystrom_attention",
        module="nystrom_attention",
        home="https://github.com/lucidrains/nystrom-attention",
        asked="`attn(x, mask=mask)`, with four landmarks.",
        layers=(
            Layer(
                "NystromAttention",
                claims=("padding", "dropout"),
                unclaimed={
                    DTYPE: RAISES_IN_HALF,
                    ABSENT: "an approximation: the landmarks of a longer sequence are others",
                },
                broken={"other batch items are never heard": "nystrom_attention_other_items"},
            ),
        ),
        known={
            "nystrom_attention_other_items": "The code of the paper's authors does the same, and they were "
            "[asked about it](https://github.com/mlpen/Nystromformer/issues/3).",
        },
    ),
    Peer(
        package="native-sparse-attention-pytorch",
        adapter="native_sparse_attention_pytorch",
        module="native_sparse_attention_pytorch",
        home="https://github.com/lucidrains/native-sparse-attention-pytorch",
        asked="Its `SparseAttention` with the sizes of its page. It is causal where `causal=True` says so, and not by "
        "default.",
        layers=(Layer("SparseAttention"),),
    ),
    Peer(
        package="linformer",
        adapter="linformer",
        module="linformer",
        home="https://github.com/lucidrains/linformer",
        asked="Its `LinformerSelfAttention`, for up to `seq_len` tokens. It takes no mask and is never causal.",
        layers=(Layer("LinformerSelfAttention"),),
    ),
    Peer(
        package="attnhut",
        adapter="attnhut",
        module="attnhut",
        home="https://github.com/egmaminta/attnhut",
        asked="“If True, a position only attends to itself and the past”, it says of `causal`, and of `attn_mask` "
        "“additive or boolean mask broadcastable to (batch, num_heads, seq, seq)”.",
        layers=(
            *(
                Layer(kind, broken=dict.fromkeys((FUTURE_MASKED, ABSENT, PACKED), "attnhut_mask_drops_causal"))
                for kind in ("StandardAttention", "GroupedQueryAttention", "MultiHeadLatentAttention")
            ),
            Layer("BigBirdAttention", claims=("causal", "padding")),
            Layer("DifferentialAttention"),
            Layer("DeepSeekSparseAttention"),
            Layer("DeltaAttention"),
            Layer("CompressedSparseAttention"),
            Layer("HeavilyCompressedAttention"),
            Layer(
                "MiniMaxSparseAttention",
                unclaimed={AUTOCAST: "its documentation says nothing of mixed precision, and it raises"},
            ),
        ),
    ),
    Peer(
        package="fightingcv-attention",
        adapter="fightingcv_attention",
        module="fightingcv_attention",
        home="https://github.com/xmu-xiaoma666/External-Attention-pytorch",
        asked="Those of its layers that take a sequence, with the calls of its page; of the mask the docstring says "
        "“True indicates masking”.",
        layers=(
            Layer("ScaledDotProductAttention"),
            Layer("SimplifiedAttention"),
            Layer(
                "MUSEAttention",
                broken=dict.fromkeys(
                    (
                        STRIDES,
                        "other batch items are never heard",
                        "gradients match finite differences",
                        "dropout is off in eval",
                        KEPT_BY_DROPOUT,
                        "deepcopy is the same, apart",
                        PICKLE,
                    ),
                    "fightingcv_attention_muse_drifts",
                ),
            ),
            Layer("UFOAttention", broken={KEPT_BY_DROPOUT: "fightingcv_attention_ufo_dropout"}),
            Layer(
                "ExternalAttention",
                unclaimed={"extreme scores stay finite": "its page says nothing of how large a token may be"},
            ),
            Layer("MobileViTv2Attention"),
        ),
    ),
)
