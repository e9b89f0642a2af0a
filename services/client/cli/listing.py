"""`limner models` and `limner whoami`: what the server has and who is asking."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from services.client.catalog import ImageDefaults, ImageLimits, Model, UpscaleLimits
from services.client.cli.console import Console
from services.client.cli.remote import JsonOption, with_server
from services.client.cli.tables import new_table, print_table
from services.client.client import Client


@with_server
def models(
    client: Client,
    words: Annotated[
        bool, typer.Option("--words", help="Show the words that each model knows.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the models with their limits and defaults."""
    found = client.models()
    if as_json:
        sys.stdout.write(json.dumps([asdict(model) for model in found], indent=2) + "\n")
    elif words:
        _print_words(found)
    else:
        _print_table(found)


@with_server
def whoami(client: Client, as_json: JsonOption = False) -> None:
    """Show the account and the key that calls are made with."""
    account = client.account()
    created = account.key_create_time
    if as_json:
        values = {**asdict(account), "key_create_time": created and created.isoformat()}
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return
    since = f", created {created:%Y-%m-%d %H:%M} UTC" if created else ""
    sys.stdout.write(f"account {account.account}, key {account.key_id}{since}\n")
    if account.tier:
        sys.stdout.write(f"tier {account.tier}, scopes {', '.join(account.scopes)}\n")


def _print_table(found: Sequence[Model]) -> None:
    headings = ("model", "sizes", "steps", "guidance", "samples")
    drawing = new_table(*headings, "samplers", whole=headings, caption="* default")
    upscaling = new_table("upscaler", "made for", "scale", "output up to")
    for model in found:
        if model.limits is not None and model.defaults is not None:
            drawing.add_row(*map(Text, _drawing(model, model.limits, model.defaults)))
        if model.upscale_limits is not None:
            upscaling.add_row(*map(Text, _upscaling(model, model.upscale_limits)))
    if drawing.row_count or not upscaling.row_count:
        print_table(drawing, empty="There are no models.")
    if upscaling.row_count:
        print_table(upscaling, empty="")


def _drawing(model: Model, limits: ImageLimits, defaults: ImageDefaults) -> tuple[str, ...]:
    samplers = [f"{name}*" if name == defaults.sampler else name for name in model.samplers]
    return (
        _names(model),
        f"{limits.min_side}–{limits.max_side} by {limits.side_multiple}\n"
        f"{defaults.width}×{defaults.height}*",
        f"{limits.min_step_count}–{limits.max_step_count}\n{defaults.step_count}*",
        f"{limits.min_guidance_scale:g}–{limits.max_guidance_scale:g}\n"
        f"{defaults.guidance_scale:g}*",
        f"1–{limits.max_sample_count}",
        ", ".join(samplers),
    )


def _upscaling(model: Model, limits: UpscaleLimits) -> tuple[str, ...]:
    return (
        _names(model),
        ", ".join(limits.picture_kinds),
        f"{limits.min_scale:g}–{limits.max_scale:g}",
        f"{limits.max_output_pixel_count / 1e6:g} megapixels",
    )


def _names(model: Model) -> str:
    return "\n".join((model.name, model.revision[:12], model.license))


def _print_words(found: Sequence[Model]) -> None:
    console = Console(highlight=False)
    for model in found:
        if model.limits is None:
            continue
        console.print(Text(model.name, style="bold"))
        if model.vocabulary is None:
            console.print("  any words")
            continue
        for kind in ("concepts", "styles", "backgrounds"):
            listed: tuple[str, ...] = getattr(model.vocabulary, kind)
            if listed:
                console.print(Text(f"  {kind} ({len(listed)}): {', '.join(listed)}"))
