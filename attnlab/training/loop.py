"""The training loop. The same settings give bit-identical parameters, also if a run was killed and resumed.

All randomness follows from the seed: the order of an epoch from (seed, epoch) alone, and dropout from a generator
whose state is saved in every checkpoint. The times at which checkpoints are written do not matter. With several
processes, dropout follows from (seed, step, rank).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor, nn

from attnlab.network import Network, auxiliary_losses
from attnlab.nn.attention import current_state
from attnlab.tasks.base import Split, TaskData
from attnlab.training.decay import decayed
from attnlab.training.distributed import ALONE, Processes, Share, State, local, sharded_as
from attnlab.training.hardware import autocast, memory_advice
from attnlab.training.objective import Objective, evaluate
from attnlab.training.runs import Run
from attnlab.training.schedule import lr_at, schedule, validation_sample
from attnlab.training.settings import Settings
from attnlab.training.signals import signals
from attnlab.utils.errors import UserError

SYNC_EVERY = 20
"""Steps between two reads of the loss: on a GPU each read waits for the device."""
COUNTERS = ("step", "best", "best_step", "loss_sum", "loss_count", "seconds", "evaluation_seconds")
"""Attributes of a `Trainer` that its checkpoints hold under the same names."""


@dataclass(frozen=True)
class Progress:
    """The argument of a callback."""

    step: int
    steps: int
    loss: float
    metric: float | None
    rate: float
    """Training steps per second since this process started, without the time that evaluations took."""
    seconds_left: float
    """Estimated time until the last evaluation."""


Callback = Callable[[Progress], None]
"""Called during training, for example by the progress bar."""


@dataclass(frozen=True)
class Outcome:
    """How training ended: ``finished``, ``early`` (patience) or ``stopped`` (by ``signal``)."""

    how: str
    step: int
    best: float | None
    best_step: int
    seconds: float = field(compare=False)
    evaluation_seconds: float = field(default=0.0, compare=False)
    signal: int | None = None


class BatchLoss(nn.Module):
    """The loss of a batch as a module, so that DDP also sees the parameters that only auxiliary losses train."""

    def __init__(self, network: Network, objective: Objective, settings: Settings) -> None:
        super().__init__()
        self.network, self.objective = network, objective
        self.call: Callable[..., Tensor] = torch.compile(network) if settings.hardware.compile else network

    def forward(self, examples: Split, share: Share | None = None) -> tuple[Tensor, Tensor]:
        """The mean loss of the task and the sum of all losses; with ``share``, the terms of them to be summed."""
        x, y, lengths = examples
        with auxiliary_losses(self.network) as others:
            scores = self.call(x, lengths)
        if share is None:
            loss = self.objective.loss(scores, y)
            return loss.detach(), sum(others, loss)
        loss = self.objective.loss(scores, y, "sum")
        loss = loss * share.loss.to(loss.dtype)
        return loss.detach(), sum((share.tokens.to(other.dtype) * other for other in others), loss)


class Trainer:
    """Trains a network on its device; ``run`` receives the checkpoints, None to write nothing.

    With several ``processes``, only the first has the ``run``; all are created, restored and fitted together.
    """

    def __init__(
        self,
        network: Network,
        task_data: TaskData,
        settings: Settings,
        run: Run | None = None,
        *,
        checkpoint_seconds: float = 10.0,
        processes: Processes = ALONE,
    ) -> None:
        how = settings.training
        self.processes, sharded = processes, processes.size > 1 and settings.hardware.fsdp
        if sharded:
            processes.shard(network)
        self.network, self.task_data, self.settings, self.run = network, task_data, settings, run
        self.checkpoint_seconds = checkpoint_seconds
        self.objective = Objective.of(task_data, how.class_weight)
        self.device = next(network.parameters()).device
        self.train = task_data.train.to(self.device)
        self.autocast = autocast(settings.hardware, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.hardware.precision == "float16")
        self.batch_loss: nn.Module = BatchLoss(network, self.objective, settings)
        if processes.size > 1 and not sharded:
            self.batch_loss = processes.replicate(self.batch_loss)
        self.parameters = list(network.parameters())
        matrices, others = decayed(network)
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": how.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=how.learning_rate,
            fused=self.device.type in ("cpu", "cuda"),
        )
        planned = schedule(how, task_data)
        self.epoch_steps, self.steps, self.evaluate_every = planned.epoch_steps, planned.steps, planned.evaluate_every
        self.snapshots = planned.snapshots
        self.validation = validation_sample(task_data, planned.validation_examples)
        self.step = 0
        self.best: float | None = None
        self.best_step = 0
        self.evals_since_best = 0
        self.loss_sum, self.loss_count = 0.0, 0  # since the last evaluation
        self.seconds, self.evaluation_seconds = 0.0, 0.0
        self.last_metric: float | None = None
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def fit(self, callback: Callback | None = None) -> Outcome:
        """Train to the end, or until a signal asks to stop, and leave the best network in the run's folder.

        A loss that becomes NaN or infinite is a `UserError`; the last good checkpoint is kept.
        """
        how = self.settings.training
        began, first_step, spent = time.perf_counter(), self.step, self.seconds
        evaluated_before = self.evaluation_seconds
        saved = began
        losses = torch.zeros(SYNC_EVERY, device=self.device)
        pending, loss = 0, math.nan
        alone = self.processes.size == 1
        sync_every = SYNC_EVERY if alone else 1
        signal = 0
        with signals() as received, memory_advice(how.batch_size):
            if self.step == 0:
                torch.manual_seed(how.seed + 2**32)  # so that dropout is independent of the initialization
                self._save_snapshot()
                self._save_state()
            while self.step < self.steps and not self._out_of_patience():
                losses[pending] = self.training_step()
                pending += 1
                self._save_snapshot()
                evaluating = self.step % self.evaluate_every == 0 or self.step == self.steps
                if pending < sync_every and not evaluating and not (received and alone):
                    continue
                mine = losses[:pending].tolist()
                now = time.perf_counter()
                self.seconds = spent + now - began
                speed = (self.step - first_step) / (now - began - (self.evaluation_seconds - evaluated_before))
                overdue = now - saved >= self.checkpoint_seconds
                exchanged = self.processes.exchange([*mine, received[0] if received else 0, overdue, speed])
                *values, _, _, _ = (sum(each) for each in zip(*exchanged, strict=True))
                signal, (_, due, speed) = int(max(each[-3] for each in exchanged)), exchanged[0][-3:]
                if not alone:
                    sync_every = max(1, min(SYNC_EVERY, int(speed)))  # about a second, in which a signal takes effect
                for step, value in enumerate(values, self.step - pending + 1):
                    if not math.isfinite(value):
                        self._diverged(f"the loss became {value} at step {step}")
                    self.loss_sum += value  # one by one: the same sum wherever a checkpoint cut it
                self.loss_count += pending
                loss, pending = sum(values) / len(values), 0
                if evaluating:
                    self._evaluate(speed)
                    self.evaluation_seconds += time.perf_counter() - now
                    self.seconds = spent + time.perf_counter() - began
                if callback is not None:
                    left = (self.steps - self.step) * (time.perf_counter() - began) / (self.step - first_step)
                    callback(Progress(self.step, self.steps, loss, self.last_metric, speed, left))
                if signal and self.step < self.steps and not self._out_of_patience():
                    break
                if due:
                    self._save_state()
                    saved = time.perf_counter()
            self._save_state()
        seconds = (self.seconds, self.evaluation_seconds)
        if self.step == self.steps:
            return Outcome("finished", self.step, self.best, self.best_step, *seconds)
        if self._out_of_patience():
            return Outcome("early", self.step, self.best, self.best_step, *seconds)
        return Outcome("stopped", self.step, self.best, self.best_step, *seconds, signal)

    def training_step(self) -> Tensor:
        """One optimizer step; returns the loss on the device."""
        how = self.settings.training
        rate = lr_at(self.step, self.steps, how.learning_rate, how.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, total = self._losses(self._rows())
        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        if how.grad_clip > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, how.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        return loss

    def _losses(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of the task on a batch, and the sum of all losses; with several processes, this one's terms of them.

        The gradients of the processes are averaged, so each differentiates its terms times the number of processes.
        """
        with self.autocast:
            if self.processes.size == 1:
                return self.batch_loss(self.train.take(rows))
            torch.manual_seed(self.processes.dropout_seed(self.settings.training.seed, self.step))
            share = self.processes.share(self.train, rows, self.objective.weight)
            loss, total = self.batch_loss(share.examples, share)
            return loss, total * self.processes.size

    def restore(self) -> None:
        """Load the run's last checkpoint; a run that was stopped before its first one starts from the beginning."""
        state = self.processes.broadcast(self._load_state())
        if state is None:
            return
        tensors, about = state
        sharded = self.network.state_dict()
        model = current_state(self.network, _below("model.", tensors))
        self.network.load_state_dict({name: sharded_as(tensor, sharded.get(name)) for name, tensor in model.items()})
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below("optimizer.", tensors).items():
            index, _, key = name.partition(".")
            like = None if key == "step" else parameters[int(index)]
            states.setdefault(int(index), {})[key] = sharded_as(tensor, like)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
        try:
            self.scaler.load_state_dict(about["scaler"])
            torch.set_rng_state(tensors["random.cpu"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        except (RuntimeError, KeyError, TypeError) as error:
            self._damaged_state(str(error).splitlines()[0])
        for name in COUNTERS:
            setattr(self, name, about[name])
        self.evals_since_best = about["waited"]
        if self.run is not None:
            self.run.rewind(self.step)

    def _load_state(self) -> State | None:
        """The run's last checkpoint, read and checked; None without one, or without the run."""
        if self.run is None or not self.run.began:
            return None
        tensors, about = self.run.load_state(self.network, self.optimizer)
        if about["step"] > self.steps:
            self._damaged_state(f"it is at step {about['step']:,} of {self.steps:,}")
        if about["best"] is not None:
            self.run.load_model()  # fail now rather than at the end
        return tensors, about

    def _out_of_patience(self) -> bool:
        patience = self.settings.training.patience
        return patience is not None and self.evals_since_best >= patience

    def _rows(self) -> Tensor:
        how = self.settings.training
        epoch, at = divmod(self.step, self.epoch_steps)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed((how.seed * 1_000_003 + epoch) % 2**63)
            self._order = (epoch, torch.randperm(len(self.train.x), generator=generator).to(self.device))
        return self._order[1][at * how.batch_size : (at + 1) * how.batch_size]

    def _evaluate(self, speed: float) -> None:
        size = max(self.settings.training.batch_size, 128)
        measured = evaluate(
            self.network,
            self.validation,
            self.objective,
            batch_size=size,
            autocast=self.autocast,
            processes=self.processes,
        )
        loss, metric = self.processes.exchange(measured)[0]  # the same in every process, also if they round differently
        self.last_metric = metric
        better = self.objective.better(metric, self.best)
        self.evals_since_best = 0 if better else self.evals_since_best + 1
        if better or metric == self.best:  # of equally good networks, keep the one trained for longer
            self._check_weights()
            self.best, self.best_step = metric, self.step
            weights = self.processes.whole(self.network.state_dict())
            if self.run is not None:
                self.run.save_model(self.network, {"step": self.step, "validation": metric}, weights)
        if self.run is not None:
            self.run.log(
                {
                    "step": self.step,
                    "epoch": round(self.step / self.epoch_steps, 3),
                    "train_loss": self.loss_sum / self.loss_count,
                    "validation_loss": loss,
                    f"validation_{self.task_data.metric}": metric,
                    "learning_rate": self.optimizer.param_groups[0]["lr"],
                    "steps_per_second": round(speed, 2),
                    "seconds": round(self.seconds, 3),
                }
            )
        self.loss_sum, self.loss_count = 0.0, 0

    def _save_snapshot(self) -> None:
        """Keep the network if this step is one of the snapshots."""
        if self.step not in self.snapshots:
            return
        self._check_weights()
        weights = self.processes.whole(self.network.state_dict())
        if self.run is not None:
            self.run.save_snapshot(self.step, self.network, weights)

    def _save_state(self) -> None:
        if self.run is None and self.processes.size == 1:
            return
        self._check_weights()
        tensors = {f"model.{name}": tensor for name, tensor in self.network.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
        tensors = self.processes.whole(tensors)
        if self.run is None:
            return
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        about = {name: getattr(self, name) for name in COUNTERS}
        about |= {"waited": self.evals_since_best, "scaler": self.scaler.state_dict()}
        self.run.save_state(tensors, about)

    def _damaged_state(self, reason: str) -> NoReturn:
        file = "state.safetensors" if self.run is None else self.run.path / "state.safetensors"
        raise UserError(f"{file} is damaged: {reason}; restore it, or train again")

    def _check_weights(self) -> None:
        if self.processes.any(not all(bool(torch.isfinite(local(p)).all()) for p in self.parameters)):
            self._diverged(f"a parameter became NaN or infinite at step {self.step}")

    def _diverged(self, what: str) -> None:
        kept = ""
        if self.run is not None and self.best is not None:
            kept = f"; the best network (step {self.best_step}) is kept in {self.run.path}"
        rate = self.settings.training.learning_rate
        raise UserError(f"{what}{kept}; try a lower --learning_rate ({rate:g} now)")


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
