"""The progress of a set of runs, as a bar or as lines."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from attnlab.cli._console import Console
from attnlab.cli._format import duration
from attnlab.comparison.plan import Trial
from attnlab.comparison.trial import Outcome


class RunsDisplay:
    """A bar over all runs of a stage on a terminal; one line per run elsewhere."""

    def __init__(self, console: Console, jobs: int) -> None:
        self.console, self.jobs = console, jobs
        self.left: list[Trial] = []
        self.seconds: dict[str, list[float]] = {}
        self.bar: Bar | None = None

    def __enter__(self) -> RunsDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def stage(self, text: str, trials: Sequence[Trial]) -> None:
        """Start a stage."""
        self._close()
        self.left, self.total, self.text = list(trials), len(trials), text
        self.console.print(f"{text}: {len(trials)} runs" if trials else text)
        if trials and self.console.is_terminal and not self.console.quiet:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), MofNCompleteColumn())
            self.bar = Bar(*columns, console=self.console, expand=True)
            self.task = self.bar.add_task(text, total=len(trials))
            self.bar.start()

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        """Show that a run has ended."""
        self.left.remove(trial)
        self.seconds.setdefault(trial.case.label, []).append(outcome.seconds)
        text = f"{trial.case.name}, learning rate {trial.learning_rate:g}, seed {trial.seed}"
        result = "finished earlier" if outcome.reused else duration(outcome.seconds)
        if outcome.how == "failed":
            result = f"failed: {outcome.error}"
        left = f"; about {duration(self._seconds_left())} left" if self.left else ""
        self.console.print(f"  {self.total - len(self.left)} of {self.total}  {text}: {result}{left}")
        if self.bar is not None:
            self.bar.update(self.task, completed=self.total - len(self.left))

    def _seconds_left(self) -> float:
        """The runs that are left, each as long as the mean of those of its label, or of all."""
        mean = statistics.fmean(second for each in self.seconds.values() for second in each)
        times = [statistics.fmean(self.seconds.get(trial.case.label, [mean])) for trial in self.left]
        return sum(times) / min(self.jobs, max(1, len(times)))

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
