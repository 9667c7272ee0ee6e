"""The progress of training, as a bar or as lines."""

from __future__ import annotations

from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from attnlab.cli._console import Console
from attnlab.cli._format import duration
from attnlab.tasks.metrics import METRICS
from attnlab.training.loop import Progress
from attnlab.training.report import number


class Display:
    """A live bar on a terminal; ten lines where the output goes to a file or a pipe."""

    def __init__(self, console: Console, metric: str, steps: int, *, quiet: bool) -> None:
        self.console, self.metric, self.quiet = console, metric, quiet
        self._tenth = 0
        self._bar: Bar | None = None
        if console.is_terminal and not quiet:
            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TimeRemainingColumn(compact=True),
                console=console,
                expand=True,
            )
            self._task = self._bar.add_task("step 0", total=steps)

    def __enter__(self) -> Display:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop updating the bar."""
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, state: Progress) -> None:
        """Show the state of training."""
        if self.quiet:
            return
        name = METRICS[self.metric].short
        metric = "" if state.metric is None else f"  {name} {number(self.metric, state.metric)}"
        text = f"loss {state.loss:.3f}{metric}  {state.rate:,.0f} steps/s"
        tenth = state.step * 10 // state.steps
        if self._bar is not None:
            self._bar.update(self._task, completed=state.step, description=text)
        elif tenth > self._tenth:
            self._tenth = tenth
            self.console.print(f"  step {state.step:,} of {state.steps:,}  {text}  {duration(state.seconds_left)} left")
