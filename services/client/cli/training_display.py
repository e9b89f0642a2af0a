"""A training on the terminal: state, steps, losses, rate, remaining time; samples as files.

Used by `limner train` and `limner trainings watch`, on standard error. Where that is no terminal, a
line at each change of state and at each tenth of the way takes the place of the bar.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from services.client.cli.bar_display import BarDisplay
from services.client.cli.console import Console
from services.client.training_jobs import TrainingEvent, TrainingJob, TrainingSample

_TENTHS = 10


class TrainingDisplay(BarDisplay):
    """Shows what a watch yields and keeps its samples in `folder`, made with the first one."""

    def __init__(self, console: Console, folder: Path | None, *, quiet: bool = False) -> None:
        super().__init__(
            Progress(
                TextColumn("{task.description}", markup=False),  # the cluster's words, at times
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                console=console,
                disable=quiet or not console.is_terminal,
                transient=True,
            )
        )
        self._console, self._folder, self._quiet = console, folder, quiet
        self._task = self._bar.add_task("waiting", total=None, facts="")
        self._state = ""
        self._tenths = 0

    def show(self, event: TrainingEvent) -> None:
        """Take the next event. Raises OSError where a sample cannot be written."""
        if isinstance(event, TrainingSample):
            self._keep(event)
            return
        self._bar.update(
            self._task,
            description=_doing(event),
            completed=event.step,
            total=event.step_count or None,
            facts=facts(event),
        )
        self._print_plain(event)

    def _keep(self, sample: TrainingSample) -> None:
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step-{sample.step:06d}-{sample.index}.png"
        sample.save(path)
        self._print(f"sample: {path}")

    def _print_plain(self, job: TrainingJob) -> None:
        tenths = _TENTHS * job.step // job.step_count if job.step_count else 0
        if self._console.is_terminal or (job.state == self._state and tenths <= self._tenths):
            return
        self._state, self._tenths = job.state, tenths
        self._print(f"{_doing(job)}: {job.step} of {job.step_count} steps  {facts(job)}".rstrip())

    def _print(self, line: str) -> None:
        if not self._quiet:
            self._console.print(Text(line), soft_wrap=True)


def facts(job: TrainingJob) -> str:
    """Losses, learning rate and remaining time in one line; empty before the first step."""
    progress = job.progress
    if progress is None or not job.step:
        return ""
    parts = [f"loss {progress.instance_loss:.4f}"]
    if progress.prior_loss is not None:
        parts.append(f"prior {progress.prior_loss:.4f}")
    if progress.validation_loss is not None:
        parts.append(f"validation {progress.validation_loss:.4f}")
    parts.append(f"rate {progress.learning_rate:.1e}")
    if progress.eta_s is not None and not job.has_ended:
        parts.append(f"{timedelta(seconds=round(progress.eta_s))} left")
    return "  ".join(parts)


def _doing(job: TrainingJob) -> str:
    if job.state == "queued":
        return job.waiting_message or "waiting for a device"
    if job.state != "running" or job.step:
        return {"running": "training"}.get(job.state, job.state)
    if job.progress is not None and job.progress.class_picture_count:
        return f"drawing class pictures ({job.progress.class_picture_count})"
    return "preparing"
