"""The report of a run: the result with its baselines, figures, and the commands that reproduce it."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from attnlab.files.atomic import atomically, write_text
from attnlab.tasks.metrics import METRICS
from attnlab.training.runs import Run
from attnlab.training.settings import Settings, defaults, flag_name, spellings
from attnlab.utils.escape import markdown, one_line, shell_word
from attnlab.utils.markdown import text_table

MAX_SHOWN = 15
"""Confusion matrices of more classes are drawn without numbers and are not printed."""


def ranking(result: dict[str, Any]) -> list[tuple[str, dict[str, float | None]]]:
    """The network and its baselines, each with its metrics by name, best first."""
    metric = result["metric"]
    rows = [(result["model"], result["metrics"]), *((b["name"], b["metrics"]) for b in result["baselines"])]
    return sorted(rows, key=lambda row: row[1][metric], reverse=METRICS[metric].higher_is_better)


def number(metric: str, value: float | None) -> str:
    """A metric's value as text."""
    if value is None:
        return "–"
    return f"{value:#.4g}".rstrip(".") if metric in ("rmse", "mae") or abs(value) >= 1000 else f"{value:.3f}"


def metric_names(result: dict[str, Any]) -> list[str]:
    """The metrics of a result, the selecting one first; recall equals balanced accuracy and is left out."""
    return [result["metric"], *(m for m in result["metrics"] if m not in (result["metric"], "recall"))]


def options(settings: Settings) -> list[str]:
    """The command line arguments for these settings, without defaults."""
    values, usual = settings.flat(), defaults(settings.model.model, settings.data.task).flat()
    for name, flags in spellings(settings.model.model).items():
        if len(flags) > 1 and all(values[flag] == values[flags[0]] != usual.get(flag) for flag in flags):
            values = {name: values[flags[0]], **{flag: v for flag, v in values.items() if flag not in flags}}
    words = ["--model", settings.model.model]
    if settings.data.data is None:
        words += ["--task", settings.data.task]
    for name, value in values.items():
        if name in ("model", "task") or value == usual.get(name):
            continue
        if isinstance(value, bool):
            words.append(f"--{flag_name(name, negated=not value)}")
        elif isinstance(value, list):
            words += flag(name, *value)
        elif value is not None:
            words += flag(name, value)
    return [shell_word(word) for word in words]


def flag(name: str, *values: Any) -> list[str]:
    """A flag with its values as arguments; ``=`` joins values that start with a hyphen."""
    texts = [str(value) for value in values]
    if any(text.startswith("-") for text in texts):
        return [f"--{name}={text}" for text in texts]
    return [f"--{name}", *texts] if texts else []


def reproduction_commands(run: Run) -> str:
    """The commands that reproduce a run, one per line: its start, and every extension with its step."""
    settings = run.settings
    unit = "steps" if settings.training.epochs is None else "epochs"
    extended = run.config.get("extended", [])
    if extended:
        setattr(settings.training, unit, extended[0][f"{unit}_before"])
    lines = [f"attnlab train {' '.join(options(settings))}"]
    for entry in extended:
        resume = " ".join(map(shell_word, [*flag("resume", run.path), f"--{unit}", str(entry[unit])]))
        lines += [f"# at step {entry['from_step']:,}:", f"attnlab train {resume}"]
    return "\n".join(lines)


def write_report(run: Run, result: dict[str, Any]) -> None:
    """Write report.md, curve.png and, for classes, confusion.png to the run's folder."""
    draw_curve(run, result)
    metric, settings, threads = result["metric"], run.settings, run.config["threads"]
    names = metric_names(result)
    rows = [[name, *(number(m, values.get(m)) for m in names)] for name, values in ranking(result)]
    remarks = "".join(f"\n{markdown(line)}\n" for line in (*result["notes"], result["remark"]) if line)
    write_text(
        run.place("report.md"),
        f"""# {markdown(result["model"])} on {markdown(result["task"])}

Test {METRICS[metric].label} on {result["test_examples"]:,} examples, of the network with the best
validation metric ({number(metric, result["validation"])} at step {result["best_step"]:,} of {result["steps"]:,}).

{text_table(["", *(METRICS[m].label for m in names)], rows, bold=result["model"])}
{remarks}{_classes(run, result)}
![training curve](curve.png)

Reproduce with:

```sh
{reproduction_commands(run)}
```

{result["parameters"]:,} parameters, attnlab {markdown(run.config["attnlab"])}, \
PyTorch {markdown(run.config["torch"])}, {threads} CPU thread{"s" if threads > 1 else ""}.

{text_table(["setting", "value"], [[n, str(v)] for n, v in settings.flat().items() if v is not None])}
""",
    )


def draw_curve(run: Run, result: dict[str, Any]) -> None:
    """Draw curve.png: the losses, and the validation metric with the test metrics of the network and the baselines."""
    from matplotlib.figure import Figure

    metric, lines = result["metric"], run.metrics()
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(8, 3.4), layout="constrained")
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
    right.set(xlabel="step", ylabel=METRICS[metric].label)
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result['model']} on {result['task']}", fontsize=11)
    _save(run, "curve.png", figure)


def draw_confusion(run: Run, result: dict[str, Any]) -> None:
    """Draw confusion.png: the fraction of each true class (row) that was predicted as each class (column)."""
    from matplotlib.figure import Figure

    matrix = np.array(result["confusion"])
    labels = [_label(label) for label in result["labels"]]
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    size = min(10.0, 3.2 + 0.42 * len(labels))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="fraction of the true class", shrink=0.8)
    if len(labels) <= MAX_SHOWN:
        for (row, column), count in np.ndenumerate(matrix):
            color = "white" if share[row, column] > 0.6 else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=8)
        upright = max(map(len, labels)) <= 2
        axes.set_xticks(range(len(labels)), labels, rotation=0 if upright else 45, ha="center" if upright else "right")
        axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted class", ylabel="true class", title=f"{result['model']} on {result['task']}, test data")
    _save(run, "confusion.png", figure)


def _classes(run: Run, result: dict[str, Any]) -> str:
    """The section on classes and its figure; empty for other outputs."""
    if not result.get("confusion"):
        return ""
    draw_confusion(run, result)
    labels = [str(label) for label in result["labels"]]
    each = [
        [str(c["label"]), *(f"{c[key]:.3f}" for key in ("precision", "recall", "f1")), f"{c['count']:,}"]
        for c in result["per_class"]
    ]
    matrix = ""
    if len(labels) <= MAX_SHOWN:
        counts = [[label, *map(str, row)] for label, row in zip(labels, result["confusion"], strict=True)]
        matrix = "\n" + text_table(["true, then predicted as", *labels], counts) + "\n"
    return f"""
## Classes

{text_table(["class", "precision", "recall", "F1", "examples"], each)}
{matrix}
![confusion matrix](confusion.png)
"""


def _label(value: Any) -> str:
    """A class's name in a figure: on one line, short, and with ``$`` escaped."""
    text = one_line(str(value))
    return (text if len(text) <= 20 else f"{text[:19]}…").replace("$", r"\$")


def _save(run: Run, name: str, figure: Any) -> None:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a character missing in the font is drawn as a box
        figure.savefig(buffer, format="png", dpi=150)
    with atomically(run.place(name)) as temporary:
        temporary.write_bytes(buffer.getvalue())
