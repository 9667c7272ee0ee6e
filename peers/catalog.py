"""The packages, their layers and the expected failures of each layer."""

from __future__ import annotations

from peers.peer import Layer, Peer

PADDED = ("causal", "padding", "dropout")
PADDED_WITH_WEIGHTS = (*PADDED, "weights", "probabilities")

DROPOUT_MEAN = "dropout_is_unbiased"
STRIDES = "non_contiguous_input"
DTYPE = "output_dtype"
AUTOCAST = "bfloat16_autocast"
FUTURE, FUTURE_MASKED = "no_future_leakage", "no_future_leakage_with_mask"
MASKED, PADDING, INVARIANCE = "no_masked_key_leakage", "no_padding_leakage", "padding_invariance"
PACKED = "packed_sequences_are_independent"
WEIGHTS_MASKED, WEIGHTS_DROPPED = "masked_weights_are_zero", "weights_exclude_dropout"
PICKLE = "pickle_round_trip"

NO_BFLOAT16 = "its documentation does not mention bfloat16, and it raises"
AFTER_DROPOUT = "they are those “used to compute the weighted average”, including dropout"
DROPPED_WEIGHTS = "its documentation has a “dropout probability on `attn_output_weights`”"
FULLY_MASKED_ONLY = "only in a fully masked row, which its documentation does not mention"

HUGGING_FACE = {WEIGHTS_MASKED: FULLY_MASKED_ONLY, WEIGHTS_DROPPED: AFTER_DROPOUT}

PEERS = (
    Peer(
        package="torch",
        adapter="pytorch",
        home="https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html",
        usage="`batch_first=True`. A mask is True for a position that “is not allowed to attend”; causal is an "
        "`attn_mask` too, because `is_causal` “provides a hint that `attn_mask` is the causal mask”. Attention weights "
        "with `average_attn_weights=False`. The second row passes padding as `key_padding_mask`.",
        layers=(
            Layer(
                "MultiheadAttention",
                undocumented={WEIGHTS_DROPPED: DROPPED_WEIGHTS},
                failing={WEIGHTS_MASKED: "torch_weights_make_nan"},
            ),
            Layer(
                "PaddedMultiheadAttention",
                capabilities=PADDED_WITH_WEIGHTS,
                undocumented={WEIGHTS_DROPPED: DROPPED_WEIGHTS},
            ),
        ),
        known={
            "torch_weights_make_nan": "Known as [#41508](https://github.com/pytorch/pytorch/issues/41508) and "
            "[#160064](https://github.com/pytorch/pytorch/issues/160064)."
        },
    ),
    Peer(
        package="keras",
        home="https://keras.io/api/layers/attention_layers/multi_head_attention/",
        usage="On PyTorch. `attention_mask` is (B, T, S), “1 indicates attention and 0 indicates no attention”; "
        "`use_causal_mask`, `training` and `return_attention_scores` as on its page. The generator of Keras is seeded.",
        layers=(Layer("MultiHeadAttention"),),
    ),
    Peer(
        package="transformers",
        home="https://huggingface.co/docs/transformers/attention_interface",
        usage="Layers of models, with the arguments that the models pass: the additive 4-D mask, which is causal in "
        'decoders, and the cosines and sines of the positions. Attention weights with `attn_implementation="eager"`.',
        layers=(
            Layer("BertEager", undocumented=HUGGING_FACE),
            Layer("BertSdpa"),
            Layer(
                "Gpt2",
                undocumented={
                    **HUGGING_FACE,
                    STRIDES: "it raises for non-contiguous tokens, which its model never passes",
                },
            ),
            Layer("Llama", undocumented=HUGGING_FACE),
            Layer("Mistral", undocumented=HUGGING_FACE),
        ),
        beside={
            "transformers_mra_zeros": "The page of the model does not mention a kernel or a device; its code returns "
            "zeros where the kernel could not be loaded."
        },
    ),
    Peer(
        package="x-transformers",
        home="https://github.com/lucidrains/x-transformers",
        usage="Its `Attention`, with options of its constructor, which its page lists with the prefix `attn_` (all but "
        "`sigmoid`, `orthog_projected_values` and `data_dependent_alibi`). Any mask is passed as "
        "`attn_mask`, padding as a `mask` of the real tokens.",
        layers=(
            Layer("AttentionWithWeights", undocumented={WEIGHTS_MASKED: FULLY_MASKED_ONLY}),
            Layer("Attention", {"flash": True}, undocumented={PICKLE: "its page does not mention it, and it raises"}),
            Layer("Attention", {"kv_heads": 1}),
            Layer("Attention", {"sigmoid": True}),
            Layer("Attention", {"qk_norm": True}),
            Layer("Attention", {"gate_values": True}),
            Layer("Attention", {"pre_talking_heads": True, "post_talking_heads": True}),
            Layer(
                "Attention",
                {"sparse_topk": 2},
                failing=dict.fromkeys(("output_shape", INVARIANCE, PACKED), "x_transformers_topk_of_few"),
            ),
            Layer(
                "Attention",
                {"orthog_projected_values": True},
                failing=dict.fromkeys(
                    (FUTURE, FUTURE_MASKED, MASKED, PADDING, INVARIANCE, PACKED), "x_transformers_orthogonal_future"
                ),
            ),
            Layer("PaddedAttention", capabilities=PADDED, failing={DTYPE: "x_transformers_mask_changes_dtype"}),
            Layer(
                "PaddedAttention",
                {"num_mem_kv": 3},
                capabilities=PADDED,
                failing={DTYPE: "x_transformers_mask_changes_dtype"},
            ),
        ),
        beside={
            "x_transformers_cached_alibi": "Its generation uses the cache where `can_cache_kv` is True. All other "
            "options that were tried match the full pass; `selective` is documented as unable to."
        },
    ),
    Peer(
        package="local-attention",
        home="https://github.com/lucidrains/local-attention",
        usage="`LocalMHA`, the layer of its `LocalTransformer`, in windows of four tokens. It “auto pads both inputs "
        "and mask, then truncates output appropriately”; `dropout` is “post-attention dropout”.",
        layers=(
            Layer(
                "LocalMHA",
                capabilities=PADDED,
                undocumented={DTYPE: NO_BFLOAT16},
                failing={INVARIANCE: "local_attention_autopad", DROPOUT_MEAN: "local_attention_dropout"},
            ),
        ),
    ),
    Peer(
        package="performer-pytorch",
        home="https://github.com/lucidrains/performer-pytorch",
        usage="Its “standalone self-attention layer”; `causal` is “auto-regressive or not”, a `mask` is True for a "
        "real token.",
        layers=(
            Layer(
                "SelfAttention",
                capabilities=PADDED,
                undocumented={
                    "gradients_match_finite_differences": "it detaches the maximum by which it divides, and "
                    "adds a small constant; its page does not mention gradients"
                },
                failing={
                    **dict.fromkeys((FUTURE, FUTURE_MASKED), "performer_pytorch_future"),
                    **dict.fromkeys((PADDING, INVARIANCE), "performer_pytorch_padding"),
                },
            ),
        ),
    ),
    Peer(
        package="memory-efficient-attention-pytorch",
        home="https://github.com/lucidrains/memory-efficient-attention-pytorch",
        usage="Its `Attention`, which “will take care of masking, causal masking”; in buckets, and with "
        "`memory_efficient` “turned off to test against normal attention”; `dropout` is an option of its constructor.",
        layers=(
            Layer(
                "Attention",
                {"memory_efficient": True},
                capabilities=PADDED,
                undocumented={
                    DROPOUT_MEAN: "it applies dropout before the weights are normalized; its page does not mention it"
                },
            ),
            Layer(
                "Attention",
                {"memory_efficient": False},
                capabilities=PADDED,
                failing={DROPOUT_MEAN: "memory_efficient_attention_pytorch_dropout"},
            ),
        ),
    ),
    Peer(
        package="nystrom-attention",
        home="https://github.com/lucidrains/nystrom-attention",
        usage="`attn(x, mask=mask)`, with four landmarks.",
        layers=(
            Layer(
                "NystromAttention",
                capabilities=("padding", "dropout"),
                undocumented={
                    DTYPE: NO_BFLOAT16,
                    INVARIANCE: "it is an approximation, and a longer sequence has different landmarks",
                },
                failing={"no_batch_leakage": "nystrom_attention_other_items"},
            ),
        ),
        known={
            "nystrom_attention_other_items": "The code of the paper's authors does the same; "
            "[an issue](https://github.com/mlpen/Nystromformer/issues/3) asks about it."
        },
    ),
    Peer(
        package="native-sparse-attention-pytorch",
        home="https://github.com/lucidrains/native-sparse-attention-pytorch",
        usage="Its `SparseAttention` with the sizes of its page. It is causal with `causal=True`, not by default.",
        layers=(Layer("SparseAttention"),),
    ),
    Peer(
        package="linformer",
        home="https://github.com/lucidrains/linformer",
        usage="Its `LinformerSelfAttention`, for up to `seq_len` tokens. It takes no mask and is never causal.",
        layers=(Layer("LinformerSelfAttention"),),
    ),
    Peer(
        package="attnhut",
        home="https://github.com/egmaminta/attnhut",
        usage="`causal`: “If True, a position only attends to itself and the past”. `attn_mask`: "
        "“additive or boolean mask broadcastable to (batch, num_heads, seq, seq)”.",
        layers=(
            *(
                Layer(kind, failing=dict.fromkeys((FUTURE_MASKED, INVARIANCE, PACKED), "attnhut_mask_drops_causal"))
                for kind in ("StandardAttention", "GroupedQueryAttention", "MultiHeadLatentAttention")
            ),
            Layer("BigBirdAttention", capabilities=("causal", "padding")),
            Layer("DifferentialAttention"),
            Layer("DeepSeekSparseAttention"),
            Layer("DeltaAttention"),
            Layer("CompressedSparseAttention"),
            Layer("HeavilyCompressedAttention"),
            Layer(
                "MiniMaxSparseAttention",
                undocumented={AUTOCAST: "its documentation does not mention mixed precision, and it raises"},
            ),
        ),
    ),
    Peer(
        package="fightingcv-attention",
        home="https://github.com/xmu-xiaoma666/External-Attention-pytorch",
        usage="Those of its layers that take a sequence, called as on its page. The docstring of the mask: "
        "“True indicates masking”.",
        layers=(
            Layer("ScaledDotProductAttention"),
            Layer("SimplifiedAttention"),
            Layer(
                "MUSEAttention",
                failing=dict.fromkeys(
                    (
                        STRIDES,
                        "no_batch_leakage",
                        "gradients_match_finite_differences",
                        "no_dropout_in_eval",
                        DROPOUT_MEAN,
                        "deepcopy_is_independent",
                        PICKLE,
                    ),
                    "fightingcv_attention_muse_drifts",
                ),
            ),
            Layer("UFOAttention", failing={DROPOUT_MEAN: "fightingcv_attention_ufo_dropout"}),
            Layer(
                "ExternalAttention",
                undocumented={"extreme_scores_stay_finite": "its page does not mention the range of the input"},
            ),
            Layer("MobileViTv2Attention"),
        ),
    ),
)
