"""The sub-command `limner weights`: which upscalers there are; converting published ones.

The `limner` command finds it through the entry point `weights`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors.torch import save_file

from services.upscale.architectures.recognition import family_of, recognise
from services.upscale.loading import checked_weights
from services.upscale.settings import UpscaleSettings
from services.upscale.weights.errors import UpscalerLoadError
from services.upscale.weights.files import weights_digest
from services.upscale.weights.library import Entry, find_entries
from services.upscale.weights.ncnn_format import read_ncnn
from services.upscale.weights.parity import compare

LARGEST_MEAN_DIFFERENCE = 1e-5
"""Beyond this, on a scale of 0 to 1, converted weights are not those of the reference."""

app = typer.Typer(no_args_is_help=True, help="The weights of upscalers.")

FolderOption = Annotated[
    list[Path] | None,
    typer.Option("--folder", help="Folder of models; LIMNER_UPSCALE_FOLDERS without it."),
]


@app.command(name="list")
def list_models(folder: FolderOption = None) -> None:
    """List the upscalers, and what is missing for those whose weights are not here."""
    try:
        entries = find_entries(tuple(folder or ()) or UpscaleSettings().folders)
    except UpscalerLoadError as error:
        raise _failed(error) from None
    table = Table()
    for heading in ("model", "network", "scale", "made for", "licence", "weights"):
        table.add_column(heading, no_wrap=heading == "model")
    for entry in entries.values():
        table.add_row(*_row(entry))
    Console().print(table)


@app.command()
def convert(
    param: Annotated[Path, typer.Argument(help="The ncnn model's .param file.", exists=True)],
    binary: Annotated[Path, typer.Argument(help="Its .bin file.", exists=True)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The safetensors file to write.")],
    check: Annotated[
        bool, typer.Option(help="Compare with ncnn itself on photographs before writing.")
    ] = True,
) -> None:
    """Turn a published ncnn model into safetensors under the upstream names."""
    console = Console(highlight=False)
    try:
        weights = read_ncnn(param, binary)
        shape = recognise(weights)
    except UpscalerLoadError as error:
        raise _failed(error) from None
    console.print(f"{family_of(shape)}, ×{shape.scale}, {len(weights)} tensors")
    if check:
        try:
            results = compare(weights, param, binary)
        except ImportError as error:
            raise _failed(f"the check needs {error.name}: pip install 'limner[dev]'") from None
        for each in results:
            mean, most = each.mean_difference, each.max_difference
            console.print(f"  {each.photo}: mean difference {mean:.1e}, largest {most:.1e}")
        if max(each.mean_difference for each in results) > LARGEST_MEAN_DIFFERENCE:
            raise _failed(f"the weights do not compute what {param.name} does")
    save_file(weights, output)
    console.print(Text(f"{output}: sha256 of the weights {weights_digest(weights)}"))


@app.command()
def verify(folder: FolderOption = None) -> None:
    """Load all weights that are here and check them against their descriptors."""
    try:
        entries = find_entries(tuple(folder or ()) or UpscaleSettings().folders)
        for entry in entries.values():
            missing = entry.missing()
            if missing is None:
                weights, _ = checked_weights(entry)
                missing = f"sha256 {weights_digest(weights)}"
            typer.echo(f"{entry.name}: {missing}")
    except UpscalerLoadError as error:
        raise _failed(error) from None


def _row(entry: Entry) -> tuple[str, ...]:
    described = entry.descriptor
    weights = entry.missing() or "here"
    if described is None:
        return entry.name, "", "", "", "", weights
    kinds = ", ".join(described.picture_kinds)
    scale = f"×{described.scale}"
    return entry.name, described.family, scale, kinds, described.license, weights


def _failed(reason: object) -> typer.Exit:
    typer.echo(f"limner weights: {reason}", err=True)
    return typer.Exit(1)
