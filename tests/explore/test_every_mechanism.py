"""Every mechanism has a page of its own: weights, badge, arithmetic, changes and state, without an entry anywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from explored import multihead, stacked

from attnlab.catalog import registry
from attnlab.explore.catalog import catalog
from attnlab.explore.explorer import Explorer
from attnlab.explore.setup import CellRequest, HeadRequest, MapRequest, MaskChange, ScoreChange, Setup, Text, Untrained
from attnlab.explore.shelf import Shelf
from attnlab.masks import BoundMask
from attnlab.nn.attention import Attention
from attnlab.nn.mixer import SequenceMixer
from attnlab.utils.errors import UserError

TEXT = "abcab cabba b"
CHANGES = {"temperature": 3.0, "scale": False, "softcap": 0.5, "sink": 1.0, "top_k": 2}


def setup_of(name: str, **changes: object) -> Setup:
    source = Untrained(model=name, embed_dim=16, layers=1)
    return Setup(source=source, input=Text(text=TEXT), scores=ScoreChange.model_validate(changes))


@pytest.mark.parametrize("name", registry.names())
def test_every_mechanism_is_shown(name: str) -> None:
    explorer, setup = Explorer(Shelf()), setup_of(name)
    (layer,) = explorer.view(setup).layers
    (passed,) = explorer.run(setup).layers
    assert (layer.mechanism, layer.title) == (name, registry.entry(name).card.title)
    assert isinstance(passed.layer, Attention)
    weights = passed.layer.attention_weights(passed.x)[0].detach()
    assert layer.num_heads == len(layer.heads) == len(weights)
    for head in range(0, len(weights), 3):
        shown = explorer.matrix(MapRequest(setup=setup, head=head))
        torch.testing.assert_close(shown, weights[head], rtol=1e-5, atol=1e-6)
        cell = explorer.cell(CellRequest(setup=setup, head=head, query=9, key=4))
        assert cell.weight == pytest.approx(float(weights[head, 9, 4]), abs=1e-6)
        assert cell.lines[-1].value == pytest.approx(cell.weight, abs=1e-6)
        assert (cell.contribution is None) == bool(cell.note)
    if layer.weights == "implied weights":
        assert "never computes these weights" in layer.note


@pytest.mark.parametrize("name", registry.names())
def test_every_change_that_is_offered_changes_the_output_and_no_other_is_offered(name: str) -> None:
    explorer = Explorer(Shelf())
    offered = explorer.view(setup_of(name)).layers[0].changes
    for change, value in CHANGES.items():
        setup = setup_of(name, **{change: value})
        if change in offered:
            assert (explorer.view(setup).output_change or 0) > 0, change
        else:
            with pytest.raises(UserError, match=change):
                explorer.view(setup)


MASKS = {"window": 3, "prefix": 4, "documents": (5, 4), "blocked": ((7, 2),)}


@pytest.mark.parametrize("name", registry.names())
def test_every_mask_that_is_offered_is_obeyed_and_no_other_is_accepted(name: str) -> None:
    explorer, N = Explorer(Shelf()), len(TEXT)
    offered = explorer.view(setup_of(name)).layers[0].masks
    i, j = torch.arange(N)[:, None], torch.arange(N)
    document = torch.tensor([0] * 5 + [1] * 4 + [2] * 4)
    forbidden = {
        "window": (i - j).abs() >= 3,
        "prefix": (j > i) & (j >= 4),
        "documents": document[:, None] != document,
        "blocked": (i == 7) & (j == 2),
    }
    for mask, value in MASKS.items():
        setup = setup_of(name).model_copy(update={"mask": MaskChange.model_validate({mask: value})})
        if mask in offered:
            explorer.view(setup)
            weights = explorer.run(setup).layers[0].weights()
            assert (weights[:, forbidden[mask]].abs() < 1e-7).all(), mask
        else:
            with pytest.raises(UserError):
                explorer.view(setup)


@pytest.mark.parametrize("name", [n for n in registry.names() if registry.entry(n).card.constant_state])
def test_every_recurrence_has_a_state(name: str) -> None:
    explorer, setup = Explorer(Shelf()), setup_of(name)
    assert explorer.view(setup).layers[0].has_state
    state = explorer.state(HeadRequest(setup=setup))
    assert [len(part) for part in (state.norm, state.rank, state.written, state.erased)] == [len(TEXT)] * 4
    assert state.norm[0] == pytest.approx(state.written[0], rel=1e-4)  # the first token alone


def test_the_catalog_lists_every_option_of_every_mechanism() -> None:
    listed = {mechanism.name: mechanism for mechanism in catalog(Shelf()).mechanisms}
    for name in registry.names():
        options = {option.name for option in registry.entry(name).options}
        assert {option.name for option in listed[name].options} >= options - {"embed_dim", "causal", "dropout"}


class Shifted(SequenceMixer):
    """A mechanism without attention weights: each token gets the one before it."""

    card = replace(registry.entry("selfhead").card, title="Shift", supports=("causal",))

    def _forward(self, x: torch.Tensor, mask: BoundMask | None) -> torch.Tensor:
        return x.roll(1, 1)


def test_a_layer_without_weights_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.explore.explorer.make_subject", lambda setup, shelf: stacked(Shifted(12), multihead()))
    explorer, setup = Explorer(Shelf()), Setup()
    first, second = explorer.view(setup).layers
    assert (first.weights, first.heads, first.thumbnail, first.changes) == ("no weights", [], (0, 0), [])
    assert first.note == "Shift has no attention weights: its output is not a weighted sum of values"
    assert second.weights == "true weights"
    assert len(explorer.thumbnails(setup)) == 3 * 11 * 11
    with pytest.raises(UserError, match="layer 0, Shift, has no attention weights"):
        explorer.matrix(MapRequest(setup=setup))
    with pytest.raises(UserError, match="layer 0, Shift, has no attention weights, so no head can be left out"):
        explorer.view(Setup(ablated=((0, 0),)))
