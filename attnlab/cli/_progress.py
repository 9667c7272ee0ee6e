"""What one sees while a network trains."""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from attnlab.cli._console import Console
from attnlab.cli._words import duration
from attnlab.tasks.metrics import METRICS
from attnlab.training.loop import Progress as Seen
from attnlab.training.report import number


class Display:
    """A live bar on a terminal; ten plain lines where the output goes to a file or a pipe."""

    def __init__(self, console: Console, metric: str, step: int, steps: int, *, quiet: bool) -> None:
        self.console, self.metric, self.quiet = console, metric, quiet
        self._line = step * 10 // steps
        self._bar: Progress | None = None
        if console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TimeRemainingColumn(compact=True),
                console=console,
                expand=True,
            )
            self._task = self._bar.add_task("step 0", total=steps, completed=step)

    def __enter__(self) -> Display:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, seen: Seen) -> None:
        """Show where training stands."""
        if self.quiet:
            return
        name = METRICS[self.metric].short
        metric = "" if seen.metric is None else f"  {name} {number(self.metric, seen.metric)}"
        text = f"loss {seen.loss:.3f}{metric}  {seen.rate:,.0f} steps/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=seen.step, description=text)
        elif seen.step * 10 // seen.steps > self._line:
            self._line = seen.step * 10 // seen.steps
            self.console.print(f"  step {seen.step:,} of {seen.steps:,}  {text}  {duration(seen.seconds_left)} left")
