"""The sub-command `limner engines`: TensorRT engines, built before a server needs them.

The `limner` command finds it through the entry point `engines`. An image build, an init container
or a Job runs it with the settings of the server that comes after it, where one of the two services
may be installed alone. It starts no server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeAlias

import typer

from services.client.cli.console import Console
from services.graphs.graph import GraphError
from services.graphs.tensorrt.prebuilding import ModelSources, PrebuiltEngine, prebuild

FindModels: TypeAlias = Callable[[], list[ModelSources]]

_MIB = 2**20

app = typer.Typer(no_args_is_help=True)


@app.callback()
def engines() -> None:
    """TensorRT engines, built before traffic."""


@app.command()
def build(
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CAPABILITY",
            help="Compute capability to build for, such as 8.9; may be repeated. Needs TensorRT "
            "for RTX. Without it engines are for the GPU in this machine.",
        ),
    ] = None,
    service: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="`diffusion` or `upscale`; may be repeated. Without it those that are installed.",
        ),
    ] = None,
) -> None:
    """Build what the servers would build when they start, and list it.

    Models, folders and caches are those of the servers: LIMNER_DIFFUSION_… and LIMNER_UPSCALE_….
    What is in the cache is not built again.
    """
    console = Console(highlight=False, soft_wrap=True)
    failures = 0
    for model in _models(service or [], is_strict=bool(service)):
        try:
            for engine in prebuild(model, gpus=gpu or ()):
                console.print(_line(model, engine), markup=False)
        except GraphError as error:
            failures += 1
            _complain(f"{model.name}: {error}")
    raise typer.Exit(min(failures, 1))


def _models(names: list[str], *, is_strict: bool) -> list[ModelSources]:
    """The models of the services in `names`, or of all; ends the command where there are none."""
    services = {"diffusion": _diffusion, "upscale": _upscale}
    if unknown := sorted(set(names) - set(services)):
        raise typer.BadParameter(f"there is no service {unknown[0]}", param_hint="--service")
    found: list[ModelSources] = []
    for name in names or services:
        try:
            found += services[name]()
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in {"services", "limner"}:
                raise
            _complain(f"{name} is left out: pip install 'limner[{name}]'")
            if is_strict:
                raise typer.Exit(1) from None
        except GraphError as error:
            _complain(str(error))
            raise typer.Exit(1) from None
    if not found:
        _complain("there is no model to build engines for")
        raise typer.Exit(1)
    return found


def _diffusion() -> list[ModelSources]:
    from services.diffusion.engines import models

    return models()


def _upscale() -> list[ModelSources]:
    from services.upscale.engines import models

    return models()


def _line(model: ModelSources, engine: PrebuiltEngine) -> str:
    size_mib = engine.path.stat().st_size / _MIB
    gpu = engine.gpu or "this GPU"
    return (
        f"{model.name}  {engine.component}  {gpu}  {engine.precision}  {size_mib:.1f} MiB  "
        f"{engine.seconds:.1f} s  {engine.path}"
    )


def _complain(reason: str) -> None:
    typer.echo(f"limner engines: {reason}", err=True)
