"""`limner generate`: from a prompt to a file."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from services.client.cli.console import Console
from services.client.cli.display import GenerationDisplay, facts
from services.client.cli.output import Output, PreviewFile, check_writable, plan_output
from services.client.cli.remote import with_server
from services.client.client import Client
from services.client.enum_names import IMAGE_FORMATS, SAMPLERS
from services.client.events import Accepted, GeneratedImage, Preview
from services.client.stream import GenerationStream

_DEFAULT_PREVIEW_INTERVAL = 4


@with_server
def generate(
    client: Client,
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where the picture goes; `-` is standard output. An existing file is replaced. "
            "Without it the file is named after prompt and seed.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Name of the model.")] = None,
    negative_prompt: Annotated[
        str | None, typer.Option("--negative", help="What the picture must not show.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Size in pixels, like 128x128.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Height in pixels.")] = None,
    step_count: Annotated[int | None, typer.Option("--steps", help="Denoising steps.")] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance", help="How strictly to follow the prompt; off at 1 or below."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed draws the same picture; random without it.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"One of {', '.join(SAMPLERS.names)}.")
    ] = None,
    sample_count: Annotated[
        int | None, typer.Option("--samples", "-n", help="How many pictures: apple-0.png, …")
    ] = None,
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help=f"One of {', '.join(IMAGE_FORMATS.names)}; else the file's name decides.",
        ),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep a rough PNG of the growing picture here."),
    ] = None,
    preview_interval: Annotated[
        int | None,
        typer.Option(
            "--preview-every",
            metavar="STEPS",
            help=f"Steps between previews ({_DEFAULT_PREVIEW_INTERVAL} by default).",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the resolved values and the files as JSON.")
    ] = False,
) -> None:
    """Draw a picture from a prompt.

    Example: limner generate "a red apple" -o apple.png
    """
    plan = plan_output(output, output_format, sample_count)
    if as_json and plan.is_stdout:
        raise typer.BadParameter("both want standard output", param_hint="--json and --output")
    width, height = _sides(size, width, height)
    interval = _preview_interval(preview, preview_interval)
    stream = client.stream_generate(
        prompt,
        model=model,
        negative_prompt=negative_prompt,
        width=width,
        height=height,
        step_count=step_count,
        guidance_scale=guidance_scale,
        seed=seed,
        sampler=sampler,
        sample_count=sample_count,
        output_format=plan.output_format,
        preview_interval=interval,
    )
    run = _Run(prompt=prompt, output=plan, preview=PreviewFile(preview) if preview else None)
    with stream:
        run.follow(stream, quiet=quiet)
    if as_json:
        sys.stdout.write(run.as_json() + "\n")
    elif not quiet:
        run.print_summary()


class _Run:
    """One generation on its way into files."""

    def __init__(self, *, prompt: str, output: Output, preview: PreviewFile | None) -> None:
        self._prompt = prompt
        self._output = output
        self._preview = preview
        self._accepted: Accepted | None = None
        self._files: list[dict[str, object]] = []
        self._start = time.monotonic()
        self._elapsed_s = 0.0

    def follow(self, stream: GenerationStream, *, quiet: bool) -> None:
        """Show the events and write every picture when it is complete."""
        with GenerationDisplay(Console(stderr=True), quiet=quiet) as display:
            for event in stream:
                display.show(event)
                match event:
                    case Accepted():
                        self._accepted = event
                    case Preview():
                        self._write_preview(event)
                    case GeneratedImage():
                        self._write(event)
        self._elapsed_s = time.monotonic() - self._start

    def _write_preview(self, event: Preview) -> None:
        if self._preview is not None and self._accepted is not None:
            self._preview.write(event.index, self._accepted.sample_count, event.data)

    def _write(self, image: GeneratedImage) -> None:
        assert self._accepted is not None, "the client checks the order of events"
        path = self._output.write(image, self._accepted, self._prompt)
        self._files.append(
            {
                "index": image.index,
                "path": str(path) if path else None,
                "seed": image.seed,
                "mime_type": image.mime_type,
                "width": image.width,
                "height": image.height,
                "size_bytes": len(image.data),
            }
        )

    def as_json(self) -> str:
        """Return the run as one JSON object."""
        assert self._accepted is not None
        values = asdict(self._accepted)
        run = {"prompt": self._prompt, **values, "elapsed_s": round(self._elapsed_s, 3)}
        return json.dumps({**run, "images": self._files}, indent=2)

    def print_summary(self) -> None:
        """Print the files and how to draw them again."""
        assert self._accepted is not None
        console = Console(stderr=self._output.is_stdout, highlight=False, soft_wrap=True)
        for file in self._files:
            if file["path"] is not None:
                console.print(f"{file['path']}  seed {file['seed']}", markup=False)
        console.print(
            f"{self._elapsed_s:.1f} s  {facts(self._accepted)}", style="dim", markup=False
        )


def _sides(
    size: str | None, width: int | None, height: int | None
) -> tuple[int | None, int | None]:
    if size is None:
        return width, height
    if width is not None or height is not None:
        raise typer.BadParameter("give --size, or --width and --height", param_hint="--size")
    match = re.fullmatch(r"(\d+)[x×](\d+)", size.lower())
    if match is None:
        raise typer.BadParameter(f"{size!r} is not like 128x128", param_hint="--size")
    return int(match[1]), int(match[2])


def _preview_interval(preview: Path | None, every: int | None) -> int | None:
    if preview is None:
        if every is not None:
            raise typer.BadParameter("needs --preview FILE", param_hint="--preview-every")
        return None
    if preview.suffix.lower() != ".png":
        raise typer.BadParameter("previews are PNG: name it *.png", param_hint="--preview")
    check_writable(preview, option="--preview")
    return _DEFAULT_PREVIEW_INTERVAL if every is None else every
