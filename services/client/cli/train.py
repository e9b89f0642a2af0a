"""`limner train`: from a folder of photos to a model that knows their subject."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from services.client.cli.console import Console
from services.client.cli.remote import JsonOption, print_json, with_server
from services.client.cli.train_request import TrainRequest, find_photos, plan_request
from services.client.cli.training_display import TrainingDisplay
from services.client.client import Client
from services.client.errors import InvalidRequest
from services.client.training_jobs import Dataset, TrainingJob

_DETACHED = 130


@with_server
def train(
    client: Client,
    photos: Annotated[
        list[Path],
        typer.Argument(help="Three to five pictures of the subject, or their folder.", exists=True),
    ],
    class_word: Annotated[
        str | None,
        typer.Option("--class", metavar="WORD", help="What the subject is: dog, toy, person."),
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="Word that will mean the subject (sks by default).")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="Model to start from.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="lora (by default), or full for everything.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    model_name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="The model is called BASE@NAME; else after the job."
        ),
    ] = None,
    instance_prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="Prompt of the subject (a photo of TOKEN CLASS by default)."),
    ] = None,
    class_prompt: Annotated[
        str | None, typer.Option(help="Prompt of the class (a photo of a CLASS by default).")
    ] = None,
    prior: Annotated[
        bool, typer.Option("--prior/--no-prior", help="Keep what the class looks like otherwise.")
    ] = True,
    captions: Annotated[
        bool, typer.Option("--captions", help="Take what a picture shows from NAME.txt beside it.")
    ] = False,
    configuration_yaml: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="YAML with further settings.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    webhook_url: Annotated[
        str | None,
        typer.Option("--webhook", metavar="URL", help="Who is told of changes of state."),
    ] = None,
    webhook_secret: Annotated[
        str | None,
        typer.Option(
            envvar="LIMNER_WEBHOOK_SECRET", show_envvar=True, help="Key of the signatures."
        ),
    ] = None,
    samples_dir: Annotated[
        Path | None,
        typer.Option(
            "--samples", metavar="DIR", help="Folder for sample pictures (named after the job)."
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--key", metavar="KEY", help="A repeated command with this key is the same job."
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Print the job's id and do not wait.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything; train nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Teach a model a new subject from a few pictures of it.

    Example: limner train ./photos --token sks --class dog
    """
    asked = plan_request(
        configuration_yaml,
        class_word=class_word,
        prior=prior,
        steps=steps,
        base_model=base_model,
        token=token,
        method=method,
        model_name=model_name,
        instance_prompt=instance_prompt,
        class_prompt=class_prompt,
        webhook_url=webhook_url,
        webhook_secret=webhook_secret if webhook_url else None,
    )
    asked = replace(asked, options={**asked.options, "idempotency_key": idempotency_key})
    asked = replace(asked, base_model=asked.base_model or _only_base(client))
    console = Console(stderr=True, highlight=False)
    dataset = _upload(client, find_photos(photos), asked, captions=captions)
    job = _ask(client, dataset, asked, dry_run=dry_run)
    _print_warnings(console, job)
    if dry_run or detach:
        _print_outcome(job, as_json=as_json)
        return
    folder = samples_dir or Path(f"{job.id}-samples")
    ended = follow(client, job.id, console, folder, quiet=quiet)
    finish(ended, asked.instance_prompt, console, quiet=quiet, as_json=as_json)


def follow(
    client: Client, job_id: str, console: Console, folder: Path | None, *, quiet: bool = False
) -> TrainingJob:
    """Show a job until it has ended, and return it.

    Ctrl-C asks whether to cancel it; a second one, and one where nobody can be asked, leaves it to
    go on and ends the command with 130.
    """
    while True:
        try:
            return _follow(client, job_id, console, folder, quiet=quiet)
        except KeyboardInterrupt:
            if not _wants_cancel(console, job_id):
                raise typer.Exit(_DETACHED) from None
            client.trainings.cancel(job_id)
            console.print("cancelling: the run writes its last checkpoint")


def finish(
    job: TrainingJob, prompt: str, console: Console, *, quiet: bool = False, as_json: bool = False
) -> None:
    """Say how a job ended; ends the command with 1 unless it has succeeded."""
    if as_json:
        print_json(job)
    if job.state == "succeeded":
        if not (quiet or as_json):
            line = f'limner generate "{prompt}" --model {job.model}'
            console.print(Text(f"{job.model} is ready. Try: {line}"), soft_wrap=True)
        return
    reason = f" ({job.failure_reason}): {job.failure_message}" if job.failure_reason else ""
    console.print(Text(f"limner: {job.id} {job.state}{reason}", style="red"), soft_wrap=True)
    console.print(Text(f"  limner trainings resume {job.id} lets it go on"), soft_wrap=True)
    raise typer.Exit(1)


def _follow(
    client: Client, job_id: str, console: Console, folder: Path | None, *, quiet: bool
) -> TrainingJob:
    job: TrainingJob | None = None
    with TrainingDisplay(console, folder, quiet=quiet) as display:
        for event in client.trainings.watch(job_id, with_samples=folder is not None):
            display.show(event)
            if isinstance(event, TrainingJob):
                job = event
    assert job is not None, "a watch begins with the job"
    return job


def _only_base(client: Client) -> str:
    bases = [each.name for each in client.models() if each.limits and not each.base_model]
    if len(bases) != 1:
        raise typer.BadParameter(f"name one of {', '.join(bases)}", param_hint="--base")
    return bases[0]


def _upload(client: Client, photos: list[Path], asked: TrainRequest, *, captions: bool) -> Dataset:
    """Upload; pictures that are refused are told together with what else is wrong."""
    try:
        return client.trainings.upload(photos, captions=captions)
    except InvalidRequest as refused:
        try:
            client.trainings.plan(
                "",
                base_model=asked.base_model,
                instance_prompt=asked.instance_prompt,
                **asked.options,
            )
        except InvalidRequest as other:
            others = [each for each in other.violations if each.field != "dataset_id"]
            violations = (*refused.violations, *others)
            raise InvalidRequest(replace(refused.failure, violations=violations)) from None
        raise


def _ask(client: Client, dataset: Dataset, asked: TrainRequest, *, dry_run: bool) -> TrainingJob:
    ask = client.trainings.plan if dry_run else client.trainings.create
    return ask(
        dataset.id,
        base_model=asked.base_model,
        instance_prompt=asked.instance_prompt,
        **asked.options,
    )


def _print_warnings(console: Console, job: TrainingJob) -> None:
    for warning in job.warnings:
        console.print(Text(f"warning: {warning.message}", style="yellow"), soft_wrap=True)


def _print_outcome(job: TrainingJob, *, as_json: bool) -> None:
    if as_json:
        print_json(job)
    elif job.id:
        sys.stdout.write(f"{job.id}\n")
    else:
        sys.stdout.write(f"everything is in order: {job.step_count} steps of {job.base_model}\n")


def _wants_cancel(console: Console, job_id: str) -> bool:
    if sys.stdin.isatty():
        console.print("Cancel the training [c], or let it go on without you [Enter]?", markup=False)
        try:
            if sys.stdin.readline().strip().lower().startswith("c"):
                return True
        except KeyboardInterrupt:
            pass
    console.print(Text(f"it goes on; see it again with: limner trainings watch {job_id}"))
    return False
