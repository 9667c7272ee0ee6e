"""The order in which a recurrence reads rows with padding and documents, against a loop over their tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_rows import Rows, numbered, rows
from scans import scan_case

from attnlab.ops.scan import Recurrence, Sequences, linear_scan


@given(rows(), st.sampled_from([torch.int8, torch.int32, torch.long]))
def test_each_document_is_whole_and_padding_is_last(drawn: Rows, dtype: torch.dtype) -> None:
    B, N = drawn.batch, drawn.length
    sequences = Sequences(drawn.mask(N, N, dtype), N)
    x = numbered(B, N)
    assert torch.equal(sequences.restore(sequences.arrange(x)), x)
    heads = torch.stack([x, -x], 1)
    assert torch.equal(sequences.arrange(heads, 2)[:, 1], -sequences.arrange(x))
    assert torch.equal(sequences.restore(sequences.arrange(heads, 2), 2), heads)
    positions = sequences.arrange(torch.arange(N).view(1, N, 1).expand(B, N, 1)).squeeze(-1).tolist()
    age, last = sequences.age(), sequences.last()
    for row in range(B):
        real = [t for t in range(N) if drawn.is_real(row, t)]
        wanted = sorted(real, key=lambda t: (drawn.id(row, t), t))
        assert positions[row] == wanted + [t for t in range(N) if t not in real]
        for place, t in enumerate(wanted):
            earlier = len(drawn.document(row, t)) - 1
            if sequences.first is None:
                assert earlier == place, "one document"
            else:
                assert sequences.first.expand(B, N)[row, place] == (earlier == 0)
                assert age is not None
                assert age.expand(B, N)[row, place] == earlier
        if last is None:
            assert len(real) == N
        else:
            assert last.expand(B)[row] == len(real)
        zeroed = sequences.zero_padding(x)[row, :, 0].tolist()
        assert zeroed == [x[row, t].item() if t in real else 0 for t in range(N)]


@given(rows(contiguous=True), st.data())
def test_a_later_call_knows_which_documents_began_in_it(drawn: Rows, data: st.DataObject) -> None:
    B, N = drawn.batch, drawn.length
    start = data.draw(st.integers(0, N))
    stop = data.draw(st.integers(start, N))
    sequences, new = Sequences(drawn.mask(stop - start, stop), stop - start, cached=True), stop - start
    positions = sequences.arrange(torch.arange(start, stop).view(1, new, 1).expand(B, new, 1)).squeeze(-1).tolist()
    age = sequences.age()
    for row in range(B):
        real = [t for t in range(start, stop) if drawn.is_real(row, t)]
        assert positions[row] == real + [t for t in range(start, stop) if t not in real]
        for place, t in enumerate(real):
            document = drawn.document(row, t)
            if sequences.first is None:
                assert age is None
                assert drawn.ids is None
            else:
                assert age is not None
                assert sequences.first.expand(B, new)[row, place] == (len(document) == 1)
                since = age.expand(B, new)[row, place]
                assert since == len(document) - 1 if document[0] >= start else since > 10**9


@given(rows())
def test_an_interrupted_document_is_refused_with_a_cache(drawn: Rows) -> None:
    mask = drawn.mask(drawn.length, drawn.length)
    if drawn.interrupted():
        with pytest.raises(ValueError, match="must not be interrupted by another one"):
            Sequences(mask, drawn.length, cached=True)
    else:
        Sequences(mask, drawn.length, cached=True)


@given(rows())
def test_padding_changes_no_state_and_documents_are_independent(drawn: Rows) -> None:
    drawn = drawn._replace(batch=2, ids=drawn.ids and (2 * drawn.ids)[:2], real=drawn.real and (2 * drawn.real)[:2])
    N = drawn.length
    sequences = Sequences(drawn.mask(N, N), N)
    for kind in ("plain", "constant decay", "delta rule", "rank one, scalar decay", "delta rule, vector decay"):
        case = scan_case(kind, N, started=False)
        arranged = {name: x if x.dim() == 1 else sequences.arrange(x, 2) for name, x in case.items()}
        masked = sequences.masked(Recurrence(**arranged))
        options = {name: getattr(masked, name) for name in ("log_decay", "beta", "a", "b")}
        out, state = linear_scan(masked.q, masked.k, masked.v, **options)
        out = sequences.restore(out, 2)
        for row in range(2):
            after = torch.zeros_like(state[:1])
            last = {drawn.id(row, t): t for t in range(N) if drawn.is_real(row, t)}  # token of each document
            for document in sorted(last):
                alone = drawn.document(row, last[document])
                part = {name: x if x.dim() == 1 else x[row : row + 1, :, alone] for name, x in case.items()}
                expected, after = linear_scan(**part)  # type: ignore[arg-type]
                torch.testing.assert_close(out[row : row + 1, :, alone], expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(state[row], after[0], rtol=0, atol=1e-12)


def test_without_a_mask_nothing_is_reordered() -> None:
    x, sequences = numbered(2, 5), Sequences(None, 5)
    assert sequences.arrange(x) is x
    assert sequences.restore(x) is x
    assert sequences.zero_padding(x) is x
    assert sequences.age() is sequences.last() is sequences.first is sequences.real is None
