"""Old names of options and parameters are accepted for one version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import attnlab
from attnlab.catalog import registry
from attnlab.cli._flags import parse_train_args
from attnlab.files.tensors import Shape
from attnlab.models.differential import DifferentialAttention
from attnlab.models.slidingwindow import SlidingWindowAttention
from attnlab.network import Network
from attnlab.nn.attention import current_state, renamed_options
from attnlab.training.checkpoint import save_tensors
from attnlab.training.runs import _with_all_options
from attnlab.training.settings import Settings, defaults
from attnlab.training.state import check_state
from attnlab.utils.errors import UserError

RENAMED = {(name, old): new for name in registry.names() for old, new in registry.entry(name).renamed.items()}
KEYS = {"kv_down": "down", "kv_norm": "norm", "kv_up": "up", "q_down": "query_down", "q_norm": "query_norm"}


def network(**options: Any) -> Network:
    torch.manual_seed(0)
    return Network("latent", ["tokens", 7], ["tokens", 7], 11, 8, layers=1, options={"num_heads": 2, **options}).eval()


def with_old_keys(state: dict[str, Any]) -> dict[str, Any]:
    return {".".join(KEYS.get(part, part) for part in key.split(".")): tensor for key, tensor in state.items()}


def test_a_constructor_accepts_the_old_name_and_warns() -> None:
    with pytest.warns(DeprecationWarning, match=r"^the option window is now called window_size$") as record:
        layer = SlidingWindowAttention(8, 2, window=5)  # type: ignore[call-arg]
    assert layer.window_size == 5
    assert record[0].filename == __file__
    with pytest.raises(TypeError, match=r"^window is the old name of window_size; give window_size alone$"):
        SlidingWindowAttention(8, 2, window=5, window_size=5)  # type: ignore[call-arg]


def test_a_decorated_constructor_keeps_its_signature() -> None:
    @renamed_options(a="b")
    def init(self: object, *, b: int = 1) -> None:
        """Set b."""

    assert init.__doc__ == "Set b."
    with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
        init(None, c=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(("name", "old"), RENAMED)
def test_new_names_are_options_and_old_names_are_not(name: str, old: str) -> None:
    options = {option.name for option in registry.entry(name).options}
    assert RENAMED[name, old] in options
    assert old not in options
    assert registry.current_names(name, {old: 3, "causal": True}) == {RENAMED[name, old]: 3, "causal": True}
    with pytest.raises(UserError, match=f"{old} is the old name of {RENAMED[name, old]}"):
        registry.current_names(name, {old: 3, RENAMED[name, old]: 3})


@pytest.mark.parametrize("flag", [["--rotary_dim", "6"], ["--rotary-dim=6"]])
def test_the_command_line_accepts_the_old_flag(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parsed = [parse_train_args(["--model", "latent", *flag, "--steps", "3"]) for _ in range(2)][1]
    assert parsed.settings.model.options["rope_head_dim"] == 6
    assert parsed.given == {"model", "rope_head_dim", "steps"}
    assert capsys.readouterr().err.count("note: --rotary_dim is now called --rope_head_dim") <= 1
    with pytest.raises(UserError, match="rotary_dim is the old name of rope_head_dim"):
        parse_train_args(["--model", "latent", *flag, "--rope_head_dim", "4"])
    with pytest.raises(UserError, match="multihead has no option rope_head_dim; models that have it: latent"):
        parse_train_args(["--model", "multihead", "--rope_head_dim", "4"])


def test_the_settings_of_saved_runs_and_files_have_old_names(tmp_path: Path) -> None:
    assert defaults("chunked", "digits").updated({"chunk": 5}, "config.json").model.options["chunk_size"] == 5
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model": "strided", "form": "fixed"}), encoding="utf-8")
    assert parse_train_args(["--config", str(config)]).settings.model.options["pattern"] == "fixed"
    with pytest.raises(UserError, match="setting"):
        Settings().updated({"chunk": 5}, "config.json")


def test_a_saved_network_with_old_names_loads(tmp_path: Path) -> None:
    made, old, file = network(kv_latent_dim=3, q_latent_dim=5), {"latent": 3, "query_latent": 5}, tmp_path / "a.pth"
    about = {"network": {**made._hub_mixin_config, "options": {"num_heads": 2, **old}}}  # type: ignore[dict-item]
    save_tensors(file, with_old_keys(made.state_dict()), about)
    x = torch.arange(5)[None]
    assert torch.equal(attnlab.load(file)(x), made(x))
    save_tensors(file, {f"{key}.x": t for key, t in made.state_dict().items()}, about)
    with pytest.raises(UserError, match="does not match the network that it describes"):
        attnlab.load(file)


def test_a_state_dict_with_old_names_loads() -> None:
    made, other = network(q_latent_dim=5), network(q_latent_dim=5)
    torch.nn.init.normal_(made.mechanisms()[0].kv_norm.weight)  # type: ignore[arg-type,union-attr]
    old = with_old_keys(made.state_dict())
    other.load_state_dict(old)
    assert all(map(torch.equal, made.parameters(), other.parameters()))
    with pytest.raises(RuntimeError, match=r"Missing key.*kv_down"):
        other.load_state_dict({key: tensor for key, tensor in old.items() if "attention.down" not in key})
    layer = DifferentialAttention(8, 2)
    state = layer.state_dict()
    state["lambdas"] = state.pop("lambda_qk")
    assert current_state(layer, state).keys() == layer.state_dict().keys()
    DifferentialAttention(8, 2).load_state_dict(state)


def test_a_training_checkpoint_with_old_names_is_accepted() -> None:
    made = network()
    state = {f"model.{key}": Shape(t.dtype, tuple(t.shape)) for key, t in with_old_keys(made.state_dict()).items()}
    state["random.cpu"] = Shape(torch.uint8, tuple(torch.get_rng_state().shape))
    check_state(state, made, torch.optim.AdamW(made.parameters()), Path("state.safetensors"))


def test_descriptions_with_old_names_and_without_new_options_are_equal() -> None:
    old, new = ({"model": "forgetting", "options": options} for options in ({"num_heads": 2}, {}))
    assert _with_all_options(old)["options"]["forgetting"].items() >= {"num_heads": 2, "forget_bias_init": 4.0}.items()
    assert _with_all_options(old) != _with_all_options(new), "num_heads differs"
    window, window_size = ({"model": "slidingwindow", "options": {name: 5}} for name in ("window", "window_size"))
    assert _with_all_options(window) == _with_all_options(window_size)
