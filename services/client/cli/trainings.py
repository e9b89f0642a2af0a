"""`limner trainings`: look at training jobs, and cancel, resume or delete them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from services.client.cli.console import Console
from services.client.cli.remote import JsonOption, minute, print_json, with_server
from services.client.cli.tables import new_table, print_table
from services.client.cli.train import finish, follow
from services.client.cli.training_display import facts
from services.client.client import Client
from services.client.training_jobs import TrainingJob

app = typer.Typer(no_args_is_help=True, help="Training jobs: look, watch, cancel, resume, delete.")

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]


@app.command("list")
@with_server
def list_jobs(
    client: Client,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the jobs, the newest first."""
    jobs = [job for job, _ in zip(client.trainings.list(), range(limit), strict=False)]
    if as_json:
        print_json(jobs)
        return
    headings = ("job", "state", "steps", "method", "token", "created", "model")
    table = new_table(*headings, whole={"job", "state", "steps"})
    for job in jobs:
        cells = (
            *(job.id, job.state, f"{job.step}/{job.step_count}", job.method, job.token),
            *(minute(job.created, never=""), job.model),
        )
        table.add_row(*map(Text, cells))
    print_table(table, empty="There are no training jobs.")


@app.command()
@with_server
def show(client: Client, job_id: JobArgument, as_json: JsonOption = False) -> None:
    """Show a job with its configuration."""
    job = client.trainings.get(job_id)
    if as_json:
        print_json(job)
        return
    console = Console(highlight=False, soft_wrap=True)
    for name, value in _lines(job):
        if value:
            console.print(Text(f"{name:10} {value}"))
    console.print(Text(job.configuration_yaml, style="dim"))


@app.command()
@with_server
def watch(
    client: Client,
    job_id: JobArgument,
    samples_dir: Annotated[
        Path | None, typer.Option("--samples", metavar="DIR", help="Keep sample pictures here.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Follow a job until it has ended."""
    console = Console(stderr=True, highlight=False)
    job = follow(client, job_id, console, samples_dir)
    finish(job, f"a photo of {job.token}", console, as_json=as_json)


@app.command()
@with_server
def cancel(client: Client, job_id: JobArgument) -> None:
    """Stop a job; it keeps its last checkpoint and can be resumed."""
    job = client.trainings.cancel(job_id)
    if job.has_ended:
        _say(job)
    else:
        _tell(f"{job.id} is being cancelled at step {job.step}: it writes its last checkpoint")


@app.command()
@with_server
def resume(client: Client, job_id: JobArgument) -> None:
    """Let a job that failed or was cancelled go on from its last checkpoint."""
    _say(client.trainings.resume(job_id))


@app.command()
@with_server
def delete(client: Client, job_id: JobArgument) -> None:
    """Remove a job that has ended, with its files and the model that came out of it."""
    client.trainings.delete(job_id)
    _tell(f"{job_id} is gone")


def _say(job: TrainingJob) -> None:
    _tell(f"{job.id} is {job.state} at step {job.step}")


def _tell(line: str) -> None:
    Console(stderr=True, soft_wrap=True).print(Text(line))


def _lines(job: TrainingJob) -> tuple[tuple[str, str], ...]:
    failure = f"{job.failure_reason}: {job.failure_message}" if job.failure_reason else ""
    return (
        ("job", job.id),
        ("state", f"{job.state} {job.waiting_message}".strip()),
        ("failure", failure),
        ("steps", f"{job.step} of {job.step_count}, attempt {job.attempt}"),
        ("progress", facts(job)),
        ("model", job.model),
        ("trained", f"{job.method} of {job.base_model}, token {job.token}"),
        ("dataset", job.dataset_id),
        ("webhook", job.webhook_url),
        ("created", minute(job.created, never="")),
        *(("warning", warning.message) for warning in job.warnings),
    )
