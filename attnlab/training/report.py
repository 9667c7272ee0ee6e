"""The run's report: the result beside its baselines, the curve, and how to make it again."""

from __future__ import annotations

import io
import shlex
from typing import Any

from attnlab.training.checkpoint import atomically, write_text
from attnlab.training.objective import UNITS
from attnlab.training.runs import Run
from attnlab.training.settings import Settings, defaults


def ranking(result: dict[str, Any]) -> list[tuple[str, float]]:
    """The network among its baselines, best first."""
    rows = [(result["model"], result["test"]), *((b["name"], b["value"]) for b in result["baselines"])]
    return sorted(rows, key=lambda row: row[1], reverse=result["metric"] == "accuracy")


def number(metric: str, value: float) -> str:
    """A metric's value as it is printed."""
    return f"{value:#.4g}".rstrip(".") if metric == "rmse" else f"{value:.3f}"


def options(settings: Settings) -> list[str]:
    """The words that ask for these settings on a command line; what is default is left out."""
    said, usual = settings.flat(), defaults(settings.model.model, settings.data.task).flat()
    words = ["--model", settings.model.model]
    if settings.data.data is None:
        words += ["--task", settings.data.task]
    for name, value in said.items():
        if name in ("model", "task") or value == usual.get(name):
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        elif isinstance(value, list):
            words += flag(name, *value)
        elif value is not None:
            words += flag(name, value)
    return [shlex.quote(word) for word in words]


def flag(name: str, *values: Any) -> list[str]:
    """A flag with its values as words; a value that starts with a hyphen would be read as a flag of its own."""
    texts = [str(value) for value in values]
    if any(text.startswith("-") for text in texts):
        return [f"--{name}={text}" for text in texts]
    return [f"--{name}", *texts] if texts else []


def made_by(run: Run) -> str:
    """The commands that make a run again, a line each: its start, and every extension with the step that it was at."""
    settings = run.settings
    unit = "steps" if settings.training.epochs is None else "epochs"
    extended = run.config.get("extended", [])
    if extended:
        setattr(settings.training, unit, extended[0][f"{unit}_before"])
    lines = [f"attnlab train {' '.join(options(settings))}"]
    for entry in extended:
        resume = shlex.join([*flag("resume", run.path), f"--{unit}", str(entry[unit])])
        lines += [f"# at step {entry['from_step']:,}:", f"attnlab train {resume}"]
    return "\n".join(lines)


def write_report(run: Run, result: dict[str, Any]) -> None:
    """Write report.md and curve.png into the run's folder."""
    draw_curve(run, result)
    metric, settings, threads = result["metric"], run.settings, run.config["threads"]
    rows = [
        f"| {'**' + name + '**' if name == result['model'] else name} | {number(metric, value)} |"
        for name, value in ranking(result)
    ]
    remark = f"\n{result['remark']}\n" if result["remark"] else ""
    write_text(
        run.path / "report.md",
        f"""# {result["model"]} on {result["task"]}

Held-out {UNITS[metric]} on {result["test_examples"]:,} test examples, by the network that was best on the
validation data (step {result["best_step"]:,} of {result["steps"]:,}; {number(metric, result["validation"])} there).

| | {UNITS[metric]} |
|---|---|
{chr(10).join(rows)}
{remark}
![training curve](curve.png)

Made by:

```sh
{made_by(run)}
```

{result["parameters"]:,} parameters, attnlab {run.config["attnlab"]}, PyTorch {run.config["torch"]}, \
{threads} CPU thread{"s" if threads > 1 else ""}.

| setting | value |
|---|---|
{chr(10).join(f"| {name} | {value} |" for name, value in settings.flat().items() if value is not None)}
""",
    )


def draw_curve(run: Run, result: dict[str, Any]) -> None:
    """Draw curve.png: the training loss, and the validation metric with the held-out baselines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric, lines = result["metric"], run.metrics()
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot(steps, [line["train_loss"] for line in lines], color="#0072b2", label="training")
    left.plot(steps, [line["validation_loss"] for line in lines], color="#d55e00", label="validation")
    left.set(xlabel="step", ylabel="loss")
    left.legend(frameon=False)
    right.plot(steps, [line[f"validation_{metric}"] for line in lines], color="#d55e00", label="validation")
    right.plot(
        [result["best_step"]], [result["test"]], "o", color="#000000", label=f"test {number(metric, result['test'])}"
    )
    styles = ["--", ":", "-.", (0, (1, 3)), (0, (5, 5))]
    for baseline, style in zip(result["baselines"], styles, strict=False):
        label = f"{baseline['name']} {number(metric, baseline['value'])}"
        right.axhline(baseline["value"], color="#666666", linestyle=style, linewidth=1, label=label)
    right.set(xlabel="step", ylabel=UNITS[metric])
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result['model']} on {result['task']}", fontsize=11)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    with atomically(run.path / "curve.png") as temporary:
        temporary.write_bytes(picture.getvalue())
