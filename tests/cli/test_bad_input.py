"""Invalid input is an error of one line with exit code 2, before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from calls import SMALL, call, contents_of, error_of, write_files

from attnlab.training.loop import Trainer
from attnlab.training.runs import Run

pytestmark = pytest.mark.slow
FILES: dict[str, str | bytes] = {
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
    "other_model.toml": 'model = "selfhead"\nnum_heads = 2\n',
}

TRAIN = {
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
    "--embed_dim 65536 --layers 20": "parameters need",
    # tasks
    "--task digits --seq_length 5": "the data of digits determine the sequence length, so leave out --seq_length 5",
    "--task multi_lookup --seq_length 1": "--seq_length for multi_lookup must be from 9 to 100,000, not 1",
    "--task text --data mine.txt --no_causal": "text predicts the next token, so the network must be causal: leave out",
    "--task digits --target b": "digits has no columns, so --target b has no effect; leave it out",
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
    "--config other_model.toml": "selfhead has no option num_heads; models that have it: ",
    "--options x": "unknown option --options; did you mean --positions?",
    "--ignore --seed 3": "--ignore needs at least one name; write one that starts with a hyphen as --ignore=NAME",
    # interactive
    "--interactive --embed_dimm=3": "unknown option --embed_dimm; did you mean --embed_dim?",
    "--interactive --resume=x": "x is no run folder",
    "--interactive --resume digits": "leave out --interactive or --resume",
    # existing runs
    "--run_dir digits": "digits exists; give another --run_dir, --resume digits, or --overwrite to replace it",
    "--resume digits --embed_dim 16": "with embed_dim=8, so it cannot resume with 16; leave out --embed_dim",
    "--resume digits --num-heads=2": "was started with num_heads=4, so it cannot resume with 2; leave out --num_heads",
    "--resume digits --model selfhead": "was started with model=multihead, so it cannot resume with selfhead",
    "--resume digits --positions=alibi": "with positions=none, so it cannot resume with alibi; leave out --positions",
    "--resume digits --position_embedding none": "with position_embedding=learned, so it cannot resume with none",
    "--resume digits --no_mlp": "was started with mlp=True, so it cannot resume with False",
    "--resume digits --run_dir other": "leave out --run_dir",
    "--resume digits --overwrite": "leave out --overwrite",
    "--resume digits --steps 4": "for steps=5 and has reached its end, step 5, so it cannot be trained for 4",
    "--resume digits --epochs 9": "is trained by steps (steps=5); extend it with --steps, not --epochs",
    "--resume digits --steps 9 --learning_rate 1": "with learning_rate=0.001, so it cannot resume with 1.0",
    "--resume digits --steps 1000000000": "steps must be from 1 to 100,000,000, not 1000000000",
    "--resume digits --steps 9 --epochs 9": "--epochs and --steps both set the length of the run; give one of them",
    "--resume runs/plateau --epochs 9": "is out of patience: its last 1 evaluations",
    # initial parameters
    "--embed_dim 8 --init_from alone": "holds a selfhead network, but the run trains multihead; give --model selfhead",
    "--init_from none": "none is not there; give a run, or a file written by --save_path",
    "--init_from mine.csv": "mine.csv is truncated or not a checkpoint",
    "--task digits --embed_dim 8 --num_heads 4 --layers 3 --init_from digits": "is missing there and (8,) here",
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
    # existing runs
    "generate digits": "digits was trained on digits, not on text",
    "predict digits --data good.csv": "good.csv",
    "heads alone": "alone: SelfAttention has no separate heads",
    "heads digits --prune 0 --save_path x.pth": "the share of heads to prune must be above 0 and below 1, not 0",
    "heads digits --prune 0.9 --save_path x.pth": "0.9 of 8 heads cannot be pruned",
    "heads digits --prune 0.1 --save_path x.pth": "so that 1 to 6 can be pruned, a share from 0.125 to 0.75",
    "heads grouped --prune 0.2 --save_path x.pth": "so that 2 to 4 can be pruned",
    "heads digits --prune 0.5 --save_path x.bin": "--save_path x.bin must end in .safetensors, .pth or .pt",
    "heads digits --prune 0.5 --save_path digits/model.safetensors": "is inside the folder of the run",
    "heads digits --device gpu": "unknown device 'gpu'",
    "heads digits --prune half": "--prune must be a number, not 'half'",
    "runs diff": "to list a folder called diff, write ./diff",
    "runs diff digits": "B is missing",
    "runs diff digits none": "none is no run folder",
}


@pytest.fixture
def mine(made: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder with runs and with valid and invalid files; an error leaves it as it is."""
    folder = tmp_path_factory.getbasetemp() / "mine"
    if not folder.exists():
        shutil.copytree(made, folder)
        write_files(folder, FILES)
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("line", [*(f"train {line}" for line in TRAIN), *COMMANDS])
def test_invalid_commands(line: str, mine: None) -> None:
    message = COMMANDS[line] if line in COMMANDS else TRAIN[line.removeprefix("train ")]
    assert message in error_of(*line.split())


def test_unusual_arguments() -> None:
    assert "is not valid UTF-8" in error_of("train", "--data", "m\udcffine.csv")
    assert error_of("train", "--data", "a\nb.csv", "--target", "c").count("\n") == 0


def test_overwrite_replaces_a_run(here: Path) -> None:
    assert call(*SMALL, "--quiet", "--steps", "3", "--seed", "1", "--run_dir", "digits", "--overwrite").code == 0
    assert Run.open(Path("digits")).settings.training.seed == 1


def test_resuming_a_finished_run_changes_nothing(here: Path) -> None:
    before = contents_of(here)
    done = call("train", "--resume", "digits", "--embed_dim", "8", "--num_heads", "4")
    assert done.code == 0
    assert "digits has already finished" in done.out
    assert contents_of(here) == before


def test_damaged_checkpoints(here: Path) -> None:
    (here / "digits/result.json").unlink()
    for name in ("model.safetensors", "state.safetensors"):
        path = here / "digits" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for line in ("evaluate digits", "predict digits --data x.npz"):
        assert "model.safetensors" in error_of(*line.split())
    before = contents_of(here)
    done = call("train", "--resume", "digits", "--quiet")
    assert (done.code, done.err.startswith("error: "), done.err.count("\n")) == (2, True, 1)
    assert "state.safetensors" in done.err
    assert contents_of(here).items() >= before.items()


def test_out_of_memory_names_what_to_reduce(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(_: Trainer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 TiB")

    monkeypatch.setattr(Trainer, "training_step", exhausted)
    done = call(*SMALL, "--quiet", "--steps", "3")
    assert done.code == 2
    assert done.err == "error: out of memory; reduce --batch_size (32 now), --seq_length, --embed_dim or --layers\n"
