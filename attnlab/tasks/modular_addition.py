"""Modular addition: learn a table from some of its entries."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnlab.network import Inputs, Outputs
from attnlab.tasks._options import check_options
from attnlab.tasks._split import shuffled
from attnlab.tasks.base import Baseline, Split, Task, TaskConfig, TaskData
from attnlab.utils.errors import UserError

MODULUS = 59
LARGEST = 512


class ModularAddition(Task):
    """The sum of two numbers modulo p; the network sees only a part of the table.

    With p = 59::

        x   9 54 =
        y   4

    ``a + b`` and ``b + a`` are in the same part of the split, so that no answer can be looked up. A network first
    memorizes the training entries; later, and with weight decay, it finds the rule (grokking). ``vocabulary`` is p.

    Source: Power et al. 2022, "Grokking: Generalization Beyond Overfitting on Small Algorithmic Datasets"
    (arXiv 2201.02177).
    """

    summary = "add two numbers modulo 59, from a part of the table (grokking)"
    threshold = 0.98
    defaults = {"epochs": 60, "learning_rate": 3e-3, "weight_decay": 1.0}

    def load(self, config: TaskConfig) -> TaskData:
        """Every pair of numbers once; the seed decides the split."""
        check_options(config, "modular_addition", "vocabulary")
        p = MODULUS if config.vocabulary is None else config.vocabulary
        if not 5 <= p <= LARGEST:
            raise UserError(f"--vocabulary for modular_addition, the modulus, must be from 5 to {LARGEST}, not {p:,}")
        a, b = (each.flatten() for each in np.indices((p, p)))
        x, y = np.stack([a, b, np.full(p * p, p)], axis=1), (a + b) % p
        unordered = np.unique(np.minimum(a, b) * p + np.maximum(a, b), return_inverse=True)[1]
        parts = shuffled(p * p, config, "pairs of numbers", unordered)
        train, validation, test = (
            Split(torch.from_numpy(x[rows]), torch.from_numpy(y[rows]).unsqueeze(1)) for rows in parts
        )
        return TaskData(
            train,
            validation,
            test,
            inputs=Inputs("tokens", p + 1),
            outputs=Outputs("classes", p),
            length=3,
            metric="accuracy",
            pool="last",
            summary_lines=(f"the {p * p:,} sums of two numbers modulo {p}; a + b and b + a are in the same part",),
            baselines=lambda: [Baseline("chance", {"accuracy": 1 / p})],
        )

    def token_labels(self, x: Tensor, inputs: Inputs, encoding: dict[str, Any]) -> list[str]:
        """The numbers, and ``=``."""
        return ["=" if token == inputs.size - 1 else str(token) for token in x.tolist()]
