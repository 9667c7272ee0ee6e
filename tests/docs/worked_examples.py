"""The worked examples of the lessons (three tokens with the values 21, 42 and 63), in exact fractions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

VALUES = (21, 42, 63)
Rule = Callable[[int, int], bool]
Weight = Callable[[int, int], Fraction]


def causal(i: int, j: int) -> bool:
    return j <= i


def rising(i: int, j: int) -> Fraction:
    return Fraction(2) ** j


def falling(i: int, j: int) -> Fraction:
    return Fraction(2) ** (2 - j)


def equal(i: int, j: int) -> Fraction:
    return Fraction(1)


def decayed(*gates: Fraction) -> Weight:
    """The product of the forget gates after j up to i."""
    return lambda i, j: math.prod(gates[j + 1 : i + 1], start=Fraction(1))


def additive(*units: Callable[[int], bool]) -> Weight:
    """Twice the weight for every hidden unit that is active: each adds ln 2 / 2 or -ln 2 / 2 to the score."""
    return lambda i, j: Fraction(2) ** sum(unit(j) for unit in units)


def outputs(
    allowed: Rule, weight: Weight = rising, values: Sequence[Fraction | int] = VALUES, sink: Fraction | int = 0
) -> list[Fraction]:
    """The outputs of the three tokens: the weighted means of the values, 0 for a fully masked row."""
    result = []
    for i in range(3):
        keys = [j for j in range(3) if allowed(i, j)]
        total = sum((weight(i, j) for j in keys), Fraction(sink))
        result.append(sum((weight(i, j) * values[j] for j in keys), Fraction(0)) / total if total else Fraction(0))
    return result


GATES = (Fraction(1, 2), Fraction(3, 4), Fraction(9, 10))  # the sigmoids of j ln 3


def outputs_gated(*gates: Fraction) -> list[Fraction]:
    """The causal outputs, multiplied by an output gate each."""
    return [gate * output for gate, output in zip(gates, outputs(causal), strict=True)]


def combined(first: Fraction, second: Fraction, weight: Weight) -> list[Fraction]:
    """A linear combination of the causal outputs under the shared weights and under ``weight``."""
    return [first * a + second * b for a, b in zip(outputs(causal), outputs(causal, weight), strict=True)]


def outputs_by_sigmoid(n: Callable[[int], int]) -> list[Fraction]:
    """The causal outputs with the weights ``sigmoid(log p - log n) = p / (p + n)``."""
    return [
        sum((rising(i, j) / (rising(i, j) + n(i)) * VALUES[j] for j in range(i + 1)), Fraction(0)) for i in range(3)
    ]


def outputs_by_sparsemax(step: Fraction) -> list[Fraction]:
    """The causal outputs of sparsemax over the scores ``step * j``."""
    result = []
    for i in range(3):
        scores = [step * j for j in range(i + 1)]  # in ascending order
        size = max(k for k in range(1, i + 2) if 1 + k * scores[-k] > sum(scores[-k:]))
        tau = (sum(scores[-size:]) - 1) / size
        weights = [max(score - tau, Fraction(0)) for score in scores]
        assert sum(weights) == 1
        result.append(sum((weight * value for weight, value in zip(weights, VALUES, strict=False)), Fraction(0)))
    return result


def outputs_by_delta_rule(
    decays: Sequence[Fraction | int], strengths: Sequence[Fraction | int], keys: str = "aba"
) -> list[Fraction]:
    """What the state holds for the key a: each token lowers all values, and corrects the one at its own key."""
    held, result = dict.fromkeys(keys, Fraction(0)), []
    for key, decay, strength, value in zip(keys, decays, strengths, VALUES, strict=True):
        held = {name: decay * other for name, other in held.items()}
        held[key] += strength * (value - held[key])
        result.append(held["a"])
    return result


def outputs_of_best(k: int, scores: Sequence[int]) -> list[Fraction]:
    """The causal outputs over the ``k`` keys with the largest index scores, the earlier key first."""
    best = [sorted(range(i + 1), key=lambda j: (-scores[j], j))[:k] for i in range(3)]
    return outputs(lambda i, j: j in best[i])


def outputs_by_regression(penalty: int, *decays: Fraction | int) -> list[Fraction]:
    """The penalized mean of the values of the key a, for the keys a, b, a; each decay lowers count and sum."""
    count, total, result = Fraction(0), Fraction(0), []
    for key, decay, value in zip("aba", decays, VALUES, strict=True):
        count, total = decay * count + (key == "a"), decay * total + (key == "a") * value
        result.append(total / (count + penalty))
    return result


def outputs_by_steps(*sizes: int) -> list[Fraction]:
    """A number that each token multiplies by 2^-size, and to which it then adds its size times its value."""
    held, result = Fraction(0), []
    for size, value in zip(sizes, VALUES, strict=True):
        held = held / 2**size + size * value
        result.append(held)
    return result


def outputs_by_sticks(*fractions: Fraction, first: int = 1) -> list[Fraction]:
    """The outputs of four tokens, the last with the value 0: each key takes a fraction of what the nearer ones leave.

    ``first`` is the distance of the nearest key.
    """
    result = []
    for i in range(4):
        output, left = Fraction(0), Fraction(1)
        for j in range(i - first, -1, -1):
            output, left = output + left * fractions[j] * (*VALUES, 0)[j], left * (1 - fractions[j])
        result.append(output)
    return result


FRACTIONS = (Fraction(2, 3), Fraction(1, 2), Fraction(4, 5), Fraction(1, 2))  # the sigmoids of ln 2, 0, 2 ln 2 and 0


def quadrupling(i: int, j: int) -> Fraction:
    return Fraction(4) ** j


def alike(i: int, j: int) -> Fraction:
    """The tokens 0 and 2 have one vector, and token 1 the opposite one: scores that differ by ln 2."""
    return Fraction(2 if (i - j) % 2 == 0 else 1)


COMPRESSED = [
    Fraction(0),
    Fraction(VALUES[0] + VALUES[1], 2),
    (Fraction(VALUES[0] + VALUES[1], 2) + 4 * Fraction(VALUES[1] + VALUES[2], 2)) / 5,
]
"""The means of two tokens each; the scores of their keys 1/2 and 3/2 differ by 2 ln 2."""


SWAPPED = VALUES[::-1]
EXACT: dict[str, list[Fraction]] = {
    "causal": outputs(causal),
    "bidirectional": outputs(lambda i, j: True),
    "causal, window of 2": outputs(lambda i, j: 0 <= i - j < 2),
    "scale forgotten": outputs(causal, lambda i, j: rising(i, j) ** 2),
    "ALiBi with slope ln 2": outputs(causal, lambda i, j: rising(i, j) / Fraction(2) ** (i - j)),
    "a sink with logit 0": outputs(causal, sink=1),
    "a sink with logit ln 3": outputs(causal, sink=3),
    "a sink with logit −ln 2": outputs(causal, sink=Fraction(1, 2)),
    "gate logit 0": outputs_gated(*3 * [Fraction(1, 2)]),
    "gate logit j ln 3": outputs_gated(*GATES),
    "same gates on the values": outputs(causal, values=[g * v for g, v in zip(GATES, VALUES, strict=True)]),
    "sigmoid": outputs_by_sigmoid(lambda i: i + 1),
    "sigmoid, n = 3 in every row": outputs_by_sigmoid(lambda i: 3),
    "sigmoid without log n": outputs_by_sigmoid(lambda i: 1),
    "q = 1, proportion 1 : 2 : 4": outputs(causal),
    "q = −1, proportion 4 : 2 : 1": outputs(causal, lambda i, j: Fraction(1) / rising(i, j)),
    "q = 2, proportion 1 : 4 : 16": outputs(causal, lambda i, j: rising(i, j) ** 2),
    "q = 0, proportion 1 : 1 : 1": outputs(causal, equal),
    "mask inverted by mistake": outputs(lambda i, j: not causal(i, j)),
    "one head": outputs(causal, equal),
    "head 1 of two": outputs(causal),
    "head 2 of two": outputs(causal, falling),
    "one head, values swapped": outputs(causal, equal, SWAPPED)[2:],
    "head 1 of two, values swapped": outputs(causal, rising, SWAPPED)[2:],
    "head 2 of two, values swapped": outputs(causal, falling, SWAPPED)[2:],
    "keys pooled by the mean": outputs(causal, equal),  # of the scores j and 2 - j, which is 1 for every token
    "sum of the scores, P_l = (1, 1)": outputs(causal, lambda i, j: rising(i, j) * falling(i, j)),
    "scores of head 1 doubled, P_l = (2, 0)": outputs(causal, lambda i, j: rising(i, j) ** 2),
    "mean of the attention weights, P_w = (1/2, 1/2)": combined(Fraction(1, 2), Fraction(1, 2), falling),
    "difference of the attention weights, P_w = (1, −1)": combined(Fraction(1), Fraction(-1), falling),
    "query 0": outputs(causal, additive(lambda j: j > 0, lambda j: j > 1)),
    "query (80, 0, 0, 0)": outputs(causal, additive(lambda j: True, lambda j: j > 1)),
    "v doubled": outputs(causal, lambda i, j: additive(lambda j: j > 0, lambda j: j > 1)(i, j) ** 2),
    "v = 0": outputs(causal, equal),
    "all gates 1": outputs(causal, decayed(*3 * [Fraction(1)])),
    "all gates 1/2": outputs(causal, decayed(*3 * [Fraction(1, 2)])),
    "gate of token 1 closed": outputs(causal, decayed(Fraction(1), Fraction(0), Fraction(1))),
    "gate of token 2 closed": outputs(causal, decayed(Fraction(1), Fraction(1), Fraction(0))),
    "first softmax": outputs(causal),
    "second softmax": outputs(causal, equal),
    "difference, λ = 2/3": combined(Fraction(1), Fraction(-2, 3), equal),
    "bidirectional, window of 2": outputs(lambda i, j: abs(i - j) < 2),
    "causal, chunks of 2": outputs(lambda i, j: causal(i, j) and i // 2 == j // 2),
    "bidirectional, chunks of 2": outputs(lambda i, j: i // 2 == j // 2),
    "causal, chunks of 2, one padding token in front": outputs(
        lambda i, j: causal(i, j) and (i + 1) // 2 == (j + 1) // 2
    ),
    "k = 3": outputs_of_best(3, (2, 1, 2)),
    "k = 2, w = (2, 1)": outputs_of_best(2, (2, 1, 2)),
    "k = 2, w = (1, 2)": outputs_of_best(2, (1, 2, 1)),
    "k = 1, w = (1, 2)": outputs_of_best(1, (1, 2, 1)),
    "compressed blocks": COMPRESSED,
    "selected blocks": outputs(causal, quadrupling),
    "window of 1": [Fraction(value) for value in VALUES],
    "three gates of 1/2": [
        (a + b + c) / 2 for a, b, c in zip(COMPRESSED, outputs(causal, quadrupling), VALUES, strict=True)
    ],
    "sparsemax, t = 1/3": outputs_by_sparsemax(Fraction(1, 3)),
    "sparsemax, t = 1/2": outputs_by_sparsemax(Fraction(1, 2)),
    "sparsemax, t = 1": outputs_by_sparsemax(Fraction(1)),
    "query prefers ω₁": outputs(causal),
    "query prefers ω₂": outputs(causal, falling),
    "fractions 2/3, 1/2, 4/5": outputs_by_sticks(*FRACTIONS),
    "all scores 0": outputs_by_sticks(*4 * [Fraction(1, 2)]),
    "a token attends to itself": outputs_by_sticks(*FRACTIONS, first=0),
    "softmax over the earlier tokens": [Fraction(0), *outputs(causal, lambda i, j: Fraction((2, 1, 4)[j]))],
    "causal, window of 2, dilation 2": outputs(lambda i, j: i - j in (0, 2)),
    "causal, window of 1, token 0 global": outputs(lambda i, j: causal(i, j) and (i == j or j == 0)),
    "bidirectional, window of 1, token 0 global": outputs(lambda i, j: i == j or 0 in (i, j)),
    "global query (−2 ln 2, 0, 0, 0)": outputs(
        lambda i, j: i == j or 0 in (i, j), lambda i, j: falling(i, j) if i == 0 else rising(i, j)
    ),
    "block 2 draws block 0": outputs(lambda i, j: i == j or 0 in (i, j)),
    "block 2 draws block 1": outputs(lambda i, j: i == j or 1 in (i, j)),
    "block 2 draws block 1, causal": outputs(lambda i, j: causal(i, j) and (i == j or 1 in (i, j))),
    "one bucket": outputs(lambda i, j: i != j, alike),
    "two buckets, chunks of 2": outputs(lambda i, j: i != j and j != 1, alike),  # in the order 0, 2, 1
    "causal, one bucket": outputs(lambda i, j: j < i or i == j == 0, alike),
    "causal, two buckets": outputs(lambda i, j: (j < i and (i - j) % 2 == 0) or (i == j and i < 2), alike),
    "local head, strided, l = 1, causal": outputs(lambda i, j: 0 <= i - j <= 1),
    "long-range head, strided, l = 2, causal": outputs(lambda i, j: causal(i, j) and (i - j) % 2 == 0),
    "local head, fixed, l = 2, causal": outputs(lambda i, j: causal(i, j) and i // 2 == j // 2),
    "regression, Λ = 1": outputs_by_regression(1, 1, 1, 1),
    "regression, Λ = 3": outputs_by_regression(3, 1, 1, 1),
    "regression, Λ = 1, γ = 1/3 at token 1": outputs_by_regression(1, 1, Fraction(1, 3), 1),
    "m = 1 for every token": outputs_by_steps(1, 1, 1),
    "m = 0 at token 1": outputs_by_steps(1, 0, 1),
    "m = 2 at token 1": outputs_by_steps(1, 2, 1),
    "delta rule, β = 1": outputs_by_delta_rule([1, 1, 1], [1, 1, 1]),
    "delta rule, β = 1/2 at token 2": outputs_by_delta_rule([1, 1, 1], [1, 1, Fraction(1, 2)]),
    "delta rule, keys a, a, a": outputs_by_delta_rule([1, 1, 1], [1, 1, 1], "aaa"),
    "delta rule, α = 1/3 at token 1": outputs_by_delta_rule([1, Fraction(1, 3), 1], [1, 1, 1]),
    "delta rule, α = 1/3 at token 1, β = 1/2 at token 2": outputs_by_delta_rule(
        [1, Fraction(1, 3), 1], [1, 1, Fraction(1, 2)]
    ),
    "long-range head, fixed, l = 2, causal": outputs(lambda i, j: causal(i, j) and j % 2 == 1),
}
