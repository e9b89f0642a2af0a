"""Sub-commands of other packages, found through entry points: the group `limner.commands`, and
`limner.commands.keys` below `limner keys`.

An entry point names a Typer application or a function. It is imported when it is run or listed,
not before: `limner generate` must not wait for a database library.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    # Typer keeps its own copy of click in some versions and imports click in others.
    Context = Any
    Command = Any


class CommandGroup(TyperGroup):
    """The built-in commands, then those of the entry points in `group`."""

    group = "limner.commands"

    def list_commands(self, ctx: Context) -> list[str]:
        """Return the names of all commands."""
        return [*super().list_commands(ctx), *sorted(entry.name for entry in self.entries())]

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """Return a command by name, importing it if it is an entry point."""
        built_in = super().get_command(ctx, cmd_name)
        if built_in is not None:
            return built_in
        for entry in self.entries():
            if entry.name == cmd_name:
                return load(entry)
        return None

    def entries(self) -> tuple[EntryPoint, ...]:
        """Return the entry points; overridden in tests."""
        return tuple(entry_points(group=self.group))


def load(entry: EntryPoint) -> Command:
    """Return the command of an entry point, or one that says which extra it needs."""
    try:
        target = entry.load()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"services", "limner"}:
            raise
        return _missing(entry)
    if not isinstance(target, typer.Typer):
        function, target = target, typer.Typer(add_completion=False)
        target.command(name=entry.name)(function)
    command = typer.main.get_command(target)
    command.name = entry.name
    return command


def _missing(entry: EntryPoint) -> Command:
    """Return a command that explains itself; an extra is named like its service package."""
    extra = entry.module.split(".")[1]
    advice = f"pip install 'limner[{extra}]'"

    def explain() -> None:
        typer.echo(f"limner {entry.name} is not installed: {advice}", err=True)
        raise typer.Exit(1)

    app = typer.Typer(add_completion=False)
    app.command(
        name=entry.name,
        help=f"Not installed: {advice}",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )(explain)
    return typer.main.get_command(app)
