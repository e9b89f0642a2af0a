"""`limner upscale`: from a picture to a larger one."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from services.client.cli.call_display import CallDisplay
from services.client.cli.console import Console
from services.client.cli.output import plan_output
from services.client.cli.remote import with_server
from services.client.client import Client
from services.client.enum_names import IMAGE_FORMATS
from services.client.events import Queued
from services.client.stream import UpscaleStream
from services.client.upscale_events import (
    TileProgress,
    UpscaleAccepted,
    UpscaledImage,
    UpscaleEvent,
)


@with_server
def upscale(
    client: Client,
    image: Annotated[
        Path,
        typer.Argument(
            help="The picture: PNG, JPEG or WebP.", exists=True, dir_okay=False, readable=True
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where the picture goes; `-` is standard output. An existing file is replaced. "
            "Without it the file is named like the source, with `-large`.",
        ),
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="Factor by which width and height grow, 2 to 4.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Name of the model.")] = None,
    denoise_strength: Annotated[
        float | None,
        typer.Option(
            "--denoise",
            help="How much noise to remove, 0 to 1, with a model that has the choice.",
        ),
    ] = None,
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help=f"One of {', '.join(IMAGE_FORMATS.names)}; else the file's name decides.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the resolved values and the file as JSON.")
    ] = False,
) -> None:
    """Make a picture larger.

    Example: limner upscale in.jpg -o out.png --scale 4
    """
    if output is None:
        suffix = output_format.lower().replace("jpeg", "jpg") if output_format else "png"
        output = Path(f"{image.stem}-large.{suffix}")
    plan = plan_output(output, output_format, 1)
    if as_json and plan.is_stdout:
        raise typer.BadParameter("both want standard output", param_hint="--json and --output")
    started_at = time.monotonic()
    stream = client.stream_upscale(
        image,
        model=model,
        scale=scale,
        denoise_strength=denoise_strength,
        output_format=plan.output_format,
    )
    with stream:
        accepted, larger = _follow(stream, quiet=quiet)
    if plan.is_stdout:
        sys.stdout.buffer.write(larger.data)
        sys.stdout.buffer.flush()
    else:
        larger.save(output)
    elapsed_s = time.monotonic() - started_at
    if as_json:
        sys.stdout.write(_as_json(accepted, larger, output, elapsed_s) + "\n")
    elif not quiet:
        _print_summary(accepted, None if plan.is_stdout else output, elapsed_s)


def _follow(stream: UpscaleStream, *, quiet: bool) -> tuple[UpscaleAccepted, UpscaledImage]:
    """Show the events and return the first and the last."""
    accepted, larger = None, None
    with UpscaleDisplay(Console(stderr=True), quiet=quiet) as display:
        for event in stream:
            display.show(event)
            if isinstance(event, UpscaleAccepted):
                accepted = event
            elif isinstance(event, UpscaledImage):
                larger = event
    assert accepted is not None, "the client checks the order of events"
    assert larger is not None, "the client checks that the stream is complete"
    return accepted, larger


class UpscaleDisplay(CallDisplay):
    """Shows the events of one upscaling: place in line, tiles and remaining time."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        super().__init__(console, verb="upscaling", unit="tiles", quiet=quiet)

    def show(self, event: UpscaleEvent) -> None:
        """Take the next event."""
        match event:
            case UpscaleAccepted():
                self._accept(event.tile_count, event.notices)
            case Queued():
                self._queue(event)
            case TileProgress():
                done, total = event.completed_tile_count, event.total_tile_count
                self._advance("upscaling" if done < total else "receiving", done, total)


def _as_json(
    accepted: UpscaleAccepted, larger: UpscaledImage, output: Path, elapsed_s: float
) -> str:
    file = {"path": str(output), "mime_type": larger.mime_type, "size_bytes": len(larger.data)}
    values = {**asdict(accepted), "elapsed_s": round(elapsed_s, 3), "file": file}
    return json.dumps(values, indent=2)


def _print_summary(accepted: UpscaleAccepted, output: Path | None, elapsed_s: float) -> None:
    console = Console(stderr=output is None, highlight=False, soft_wrap=True)
    source = f"{accepted.source_width}×{accepted.source_height}"
    if output is not None:
        console.print(f"{output}  {source} → {accepted.width}×{accepted.height}", markup=False)
    facts = f"{elapsed_s:.1f} s  --model {accepted.model} --scale {accepted.scale:g}"
    console.print(facts, style="dim", markup=False)
