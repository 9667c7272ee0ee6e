"""Hugging Face transformers: attention and recurrences for its models, and conversions of their layers.

Requires the extra ``hf``; without it, the import raises `attnlab.utils.extras.MissingExtraError`, an ImportError.
"""

from __future__ import annotations

from attnlab.utils.extras import need

need("hf", "attnlab.integrations.huggingface")

from attnlab.integrations.huggingface.attention import register  # noqa: E402  these import transformers
from attnlab.integrations.huggingface.bert import from_bert, to_bert  # noqa: E402
from attnlab.integrations.huggingface.gpt2 import from_gpt2, to_gpt2  # noqa: E402
from attnlab.integrations.huggingface.llama import from_llama, to_llama  # noqa: E402
from attnlab.integrations.huggingface.recurrences import (  # noqa: E402
    register_recurrences,
    unregister_recurrences,
)

__all__ = [
    "from_bert",
    "from_gpt2",
    "from_llama",
    "register",
    "register_recurrences",
    "to_bert",
    "to_gpt2",
    "to_llama",
    "unregister_recurrences",
]
