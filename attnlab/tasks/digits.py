"""Real scanned digits, read row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnlab.network import Inputs, Outputs
from attnlab.tasks._baselines import classifiers, flattened
from attnlab.tasks._options import check_options
from attnlab.tasks._split import stratified
from attnlab.tasks.base import Split, Task, TaskConfig, TaskData, read_x
from attnlab.utils.errors import UserError


class Digits(Task):
    """Which digit is it? 1,797 scans of 8 × 8 pixels; a token is a row of pixels, from 0 (white) to 1.

    ::

        x   . . # # # . . .     8 tokens of 8 numbers
            . # . . . # . .
            . . . . . # . .
            . . . # # . . .
            . . . . . # . .
            . . . . . # . .
            . # . . . # . .
            . . # # # . . .
        y   3

    Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository;
    its test set, as scikit-learn ships it.
    """

    summary = "recognize the digit of 1,797 real scans; a token is a row of pixels"
    own_data = "the digits of this scikit-learn"
    caveat = "digits does not rank mechanisms: the baselines without attention are about as good"

    def load(self, config: TaskConfig) -> TaskData:
        """The scans, split so that every digit is everywhere in the same proportion."""
        from sklearn.datasets import load_digits

        check_options(config, "digits")
        scans = load_digits()
        x, y = (scans.images / 16).astype(np.float32), scans.target
        parts = stratified(y, range(10), config)
        train, validation, test = (
            Split(torch.from_numpy(x[rows]), torch.from_numpy(y[rows]).unsqueeze(1)) for rows in parts
        )
        return TaskData(
            train,
            validation,
            test,
            inputs=Inputs("vectors", 8),
            outputs=Outputs("classes", 10),
            length=8,
            metric="accuracy",
            encoding={"labels": list(range(10))},
            summary_lines=("1,797 scans of 8 rows of 8 pixels; the splits hold every digit in the same proportion",),
            baselines=lambda: classifiers(flattened(x), y, parts),
        )

    def read(self, path: Path, inputs: Inputs, length: int, encoding: dict[str, Any]) -> Split:
        """``x`` (scans, 8, 8) of an .npz file, pixels from 0 to 1."""
        x = read_x(path, inputs, length)
        if x.numel() and not 0 <= x.min() <= x.max() <= 1:
            raise UserError(
                f"x in {path} holds {x.min():g} to {x.max():g}; expected pixels from 0 (white) to 1, "
                "so divide by the largest possible value"
            )
        return Split(x.float(), torch.empty(0))

    def token_labels(self, x: Tensor, inputs: Inputs, encoding: dict[str, Any]) -> list[str]:
        """The rows of pixels, ``row 1`` to ``row 8``."""
        return [f"row {i}" for i in range(1, len(x) + 1)]
