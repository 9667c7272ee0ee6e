"""Invalid input is an error of one line with exit code 2, before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from calls import call, contents_of, error_of, write_files

from attnlab.training.checkpoint import load_tensors
from attnlab.training.loop import Trainer
from attnlab.training.runs import Run
from attnlab.training.settings import RANGES

SMALL = ("train", "--model", "multihead", "--embed_dim", "8", "--layers", "1", "--num_heads", "2", "--steps", "3")

FLAGS = {
    # unknown names
    "--model multihed": "unknown model 'multihed'; did you mean multihead?",
    "--model ../selfhead": "unknown model '../selfhead'; did you mean selfhead?",
    "--task digit": "unknown task 'digit'; did you mean digits?",
    "--embed_dims 64": "unknown option --embed_dims; did you mean --embed_dim?",
    "--embed-dims=64": "unknown option --embed-dims; did you mean --embed_dim?",
    "--zzz 1": "unknown option --zzz; see attnlab train --help",
    "64": "unexpected argument '64'; options start with --",
    "--model selfhead --num_heads 2": "selfhead has no option num_heads; models that have it: ",
    # values
    "--embed_dim": "--embed_dim needs a value",
    "--embed_dim 10 --num_heads 3": "embed_dim (10) must be divisible by num_heads (3); try num_heads=1, 2 or 5",
    "--num_heads 0": "num_heads must be",
    "--embed_dim 0": "embed_dim must be from 1 to 65,536, not 0",
    "--embed_dim -4": "embed_dim must be from 1 to 65,536, not -4",
    "--embed_dim nan": "--embed_dim must be an integer, not 'nan'",
    "--embed_dim 6.5": "--embed_dim must be an integer, not '6.5'",
    "--embed_dim 99999999999": "embed_dim must be from 1 to 65,536, not 99999999999",
    "--learning_rate nan": "learning_rate must be from 1e-12 to 100, not nan",
    "--learning_rate inf": "learning_rate must be from 1e-12 to 100, not inf",
    "--learning_rate 0": "learning_rate must be from 1e-12 to 100, not 0.0",
    "--learning_rate fast": "--learning_rate must be a number, not 'fast'",
    "--epochs 3 --steps 3": "--epochs and --steps both set the length of the run; give one of them",
    "--checkpoint_seconds nan": "checkpoint_seconds must be 0 or more, not nan",
    "--position_embedding waves": "--position_embedding must be one of learned, sinusoidal, none, not 'waves'",
    "--positions=rotery": "not 'rotery'; did you mean rotary",
    "--positions=rotary(": "not 'rotary('",
    "--positions=rotary(500)": "settings are NAME=VALUE, such as rotary(base=500000); not 'rotary(500)'",
    "--positions=rotary(bse=500)": "rotary has no setting bse; did you mean base?",
    "--positions=t5(buckets=3)": "buckets must be an integer from 4 to 65536, not 3",
    "--embed_dim 6 --num_heads 2 --positions=rotary": "rotary positions need an even head_dim, not 3",
    "--precision float8": "--precision must be one of float32, bfloat16, float16, float64, not 'float8'",
    # devices and memory
    "--device cuda:77": "device 'cuda:77' is not available; available: auto, cpu",
    "--device gpu": "unknown device 'gpu'; available: auto, cpu",
    "--embed_dim 65536 --layers 1000": "parameters need",
    # tasks
    "--seq_length 5": "the data of digits determine the sequence length, so leave out --seq_length 5",
    "--task multi_lookup --seq_length 1": "--seq_length for multi_lookup must be from 9 to 100,000, not 1",
    "--task text --no_causal": "text predicts the next token, so the network must be causal: leave out --no_causal",
    "--target b": "digits has no columns, so --target b has no effect; leave it out",
    # user files
    "--data not_there.csv --target b": "--data not_there.csv does not exist; check the name",
    "--data empty.csv --target b": "--data empty.csv is empty",
    "--data head.csv --target b": "head.csv has no rows below its header; add some",
    "--data ragged.csv --target b": "ragged.csv cannot be read as a table: line 3 has 1 field, but the header has 2",
    "--data bad.jsonl --target b": "bad.jsonl cannot be read as a table: line 2 is not valid JSON",
    "--data bad.parquet --target b": "bad.parquet cannot be read as a table",
    "--data bad.npz": "bad.npz is no readable .npz file",
    "--data binary.txt": "binary.txt is binary: byte 0 is NUL",
    "--data empty.txt": "--data empty.txt is empty",
    "--data archive.zip": "no task reads .zip (archive.zip); give one of .csv, .jsonl, .npz, .parquet, .tsv, .txt",
    "--data .": "no task reads files without a suffix (.)",
    "--data good.csv": "give the column of good.csv to predict with --target; choose from a, b",
    "--data good.csv --target c": "good.csv has no column c; --target must be one of a, b",
    "--data one_class.csv --target b": "every row is of one class (x), so there is nothing to learn",
    "--task text --data good.csv": "text reads .txt, not good.csv",
    "--task digits --data good.csv": "digits has its own data and cannot read good.csv",
    "--task table": "table needs your own file",
    # outputs
    "--save_path x.bin": "--save_path x.bin must end in .safetensors, .pth or .pt",
    "--save_path good.csv/x.pth": "cannot write --save_path good.csv/x.pth: Not a directory",
    "--run_dir good.csv/x": "cannot make --run_dir good.csv/x: Not a directory",
    "--run_dir good.csv": "good.csv exists; give another --run_dir, --resume good.csv, or --overwrite",
    "--run_dir . --overwrite": "--overwrite replaces run folders only, and . is none",
    "--resume not_there": "not_there is no run folder",
    "--resume .": ". is no run folder",
    "--config not_there.toml": "cannot read --config not_there.toml: No such file or directory",
    "--config good.csv": "--config good.csv is malformed",
    "--config bad.toml": "--config bad.toml is malformed",
    "--config unknown.toml": "unknown.toml",
    "--config typed.json": "typed.json",
}

COMMANDS = {
    "trian": "unknown command 'trian'; did you mean train?",
    "evaluate": "RUN is missing (see attnlab evaluate --help)",
    "evaluate not_there": "not_there is no run folder",
    "predict": "RUN is missing (see attnlab predict --help)",
    "predict not_there": "--data is missing (see attnlab predict --help)",
    "predict not_there --data good.csv": "there is no checkpoint not_there; attnlab runs lists the runs that have one",
    "predict not_there --data gone.csv": "--data gone.csv does not exist",
    "predict good.csv --data good.csv": "good.csv",
    "predict not_there --data good.csv --output x.xls": "--output x.xls must end in .csv, .parquet or .jsonl",
    "generate not_there": "there is no checkpoint not_there",
    "generate not_there --temperature nan": "temperature must be from 0 to 100, not nan",
    "generate not_there --length 0": "length must be from 1 to 1,000,000 bytes, not 0",
    "generate not_there --top_k 257": "top_k must be from 0 to 256, not 257",
    "generate not_there --prompt=": "the prompt is empty",
    "heads": "RUN is missing (see attnlab heads --help)",
    "heads not_there": "not_there is no run folder",
    "heads not_there --prune 0.25": "--prune SHARE and --save_path FILE go together",
    "heads not_there --save_path x.pth": "--prune SHARE and --save_path FILE go together",
    "heads not_there --examples 0": "--examples must be at least 1, not 0",
    "heads not_there --ablation nothing": "--ablation must be one of zero, mean, not 'nothing'",
    "runs not_there": "not_there is not a folder",
    "models multihed": "unknown model 'multihed'; did you mean multihead?",
    "tasks digits": "unexpected argument 'digits'",
    "check multihed": "unknown model 'multihed'; did you mean multihead?",
    "new 9lives": "'9lives' is not a valid name for a mechanism",
}


@pytest.fixture
def mine(empty_folder: Path) -> Path:
    """A folder with valid and invalid files."""
    write_files(
        empty_folder,
        {
            "good.csv": "a,b\n" + "".join(f"{i % 7},{'xy'[i % 7 > 3]}\n" for i in range(89)),
            "empty.csv": "",
            "empty.txt": "",
            "head.csv": "a,b\n",
            "ragged.csv": "a,b\n1,2\n3\n",
            "one_class.csv": "a,b\n" + "1,x\n" * 41,
            "bad.jsonl": '{"a": 1, "b": "x"}\n{"a":\n',
            "bad.parquet": b"PAR1xx",
            "bad.npz": b"PK\x03\x04nothing",
            "binary.txt": bytes(range(256)) * 3,
            "archive.zip": "a",
            "bad.toml": "embed_dim = = 3",
            "unknown.toml": "embed_dimm = 64",
            "typed.json": '{"embed_dim": "wide"}',
        },
    )
    return empty_folder


@pytest.mark.parametrize("line", FLAGS)
def test_invalid_training(line: str, mine: Path) -> None:
    assert FLAGS[line] in error_of("train", *line.split())


@pytest.mark.parametrize("name", RANGES)
def test_a_setting_outside_its_range(name: str) -> None:
    low, high = RANGES[name]
    for value in (low - 1, high * 10 + 1):
        assert f"{name} must be from {low:,.9g} to {high:,.9g}, not {value}" in error_of("train", f"--{name}={value}")


@pytest.mark.parametrize("line", COMMANDS)
def test_invalid_commands(line: str, mine: Path) -> None:
    assert COMMANDS[line] in error_of(*line.split())


def test_an_argument_that_is_not_utf_8() -> None:
    assert "is not valid UTF-8" in error_of("train", "--data", "m\udcffine.csv")


def test_an_error_is_one_line() -> None:
    assert error_of("train", "--data", "a\nb.csv", "--target", "c").count("\n") == 0


def test_a_config_option_that_the_model_lacks(mine: Path) -> None:
    write_files(mine, {"s.toml": 'model = "selfhead"\nnum_heads = 2\n'})
    assert "selfhead has no option num_heads; models that have it: " in error_of("train", "--config", "s.toml")


# An existing run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    assert call(*SMALL, "--quiet", "--run_dir", str(path)).code == 0
    return path


@pytest.fixture
def run(trained: Path) -> Path:
    return Path(shutil.copytree(trained, "run"))


def test_a_run_is_not_overwritten_by_default(run: Path) -> None:
    assert error_of(*SMALL, "--run_dir", "run") == (
        "run exists; give another --run_dir, --resume run, or --overwrite to replace it"
    )


def test_overwrite_replaces_a_run(run: Path) -> None:
    assert call(*SMALL, "--quiet", "--seed", "1", "--run_dir", "run", "--overwrite").code == 0
    assert Run.open(run).settings.training.seed == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--embed_dim 16", "run was started with embed_dim=8, so it cannot resume with 16; leave out --embed_dim"),
        ("--num-heads=4", "run was started with num_heads=2, so it cannot resume with 4; leave out --num_heads"),
        ("--steps 2", "run is trained for steps=3 and has reached its end, step 3, so it cannot be trained for 2"),
        ("--model selfhead", "run was started with model=multihead, so it cannot resume with selfhead"),
        (
            "--positions=alibi",
            "run was started with positions=none, so it cannot resume with alibi; leave out --positions",
        ),
        ("--position_embedding none", "run was started with position_embedding=learned, so it cannot resume with none"),
        ("--no_mlp", "run was started with mlp=True, so it cannot resume with False"),
        ("--run_dir other", "leave out --run_dir"),
        ("--overwrite", "leave out --overwrite"),
    ],
)
def test_resuming_with_a_changed_option(flags: str, message: str, run: Path) -> None:
    assert message in error_of("train", "--resume", "run", *flags.split())


def test_resuming_a_finished_run_changes_nothing(run: Path) -> None:
    before = contents_of(run)
    done = call("train", "--resume", "run", "--embed_dim", "8", "--num_heads", "2")
    assert done.code == 0
    assert "run has already finished" in done.out
    assert contents_of(run) == before


def damaged(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "altered":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        torch.save({"network": print}, path)  # a pickle that would call something


@pytest.mark.parametrize("how", ["truncated", "empty", "altered", "a pickle"])
@pytest.mark.parametrize("command", ["evaluate run", "predict run --data x.npz"])
def test_a_damaged_checkpoint(how: str, command: str, run: Path) -> None:
    write_files(Path(), {"x.npz": b"not read"})
    damaged(run / "model.safetensors", how)
    assert "model.safetensors" in error_of(*command.split())


@pytest.mark.parametrize("how", ["truncated", "empty", "altered", "a pickle"])
def test_a_damaged_state(how: str, run: Path) -> None:
    (run / "result.json").unlink()
    damaged(run / "state.safetensors", how)
    before = contents_of(run)
    done = call("train", "--resume", "run", "--quiet")
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert "state.safetensors" in done.err
    assert {name: content for name, content in contents_of(run).items() if name in before} == before


def test_a_pickle_is_not_executed(empty_folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path("trapped"),)

    torch.save({"weights": Trap()}, "x.pth")
    write_files(empty_folder, {"d.npz": b"not read"})
    assert "x.pth" in error_of("predict", "x.pth", "--data", "d.npz")
    assert not Path("trapped").exists()


def test_generate_needs_a_network_trained_on_text(run: Path) -> None:
    assert "run was trained on digits, not on text" in error_of("generate", "run")


def test_data_that_do_not_match_the_network(run: Path, mine: Path) -> None:
    assert "good.csv" in error_of("predict", "run", "--data", "good.csv")


# During training


def test_a_nan_loss_keeps_the_last_finite_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    training_step = Trainer.training_step

    def poisoned(trainer: Trainer) -> object:
        if trainer.run is not None and trainer.step == 61:
            with torch.no_grad():
                next(trainer.network.parameters()).fill_(float("nan"))
        return training_step(trainer)

    monkeypatch.setattr(Trainer, "training_step", poisoned)
    words = [*SMALL[:-1], "97", "--checkpoint_seconds", "0", "--run_dir", "run", "--quiet"]
    done = call(*words)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "step 62" in done.err
    for name in ("model.safetensors", "state.safetensors"):
        tensors, _ = load_tensors(Path("run") / name)
        assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())


def test_out_of_memory_names_what_to_reduce(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(_: Trainer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 TiB")

    monkeypatch.setattr(Trainer, "training_step", exhausted)
    done = call(*SMALL, "--quiet")
    assert done.code == 2
    assert done.err == ("error: out of memory; reduce --batch_size (32 now), --seq_length, --embed_dim or --layers\n")
