"""`limner up`: the suite on this machine until Ctrl-C."""

from __future__ import annotations

import asyncio

from rich.text import Text

from services.client.cli.connection import LOCAL_KEY_FILE
from services.client.cli.console import Console
from services.client.endpoint import DEFAULT_ADDRESS
from services.local.display import StartDisplay, print_death
from services.local.settings import SuiteSettings
from services.local.suite import Restart, Stopped, Suite, run_suite


async def serve(settings: SuiteSettings, console: Console) -> None:
    """Serve until a signal arrives, then drain; what was ready and dies is started again.

    Raises ServiceDied, OSError and PepperError.
    """
    with settings.data.occupied():
        await _serve(settings, console)


async def _serve(settings: SuiteSettings, console: Console) -> None:
    pepper = await settings.data.prepare()

    async def body(suite: Suite) -> None:
        with StartDisplay(console) as display:
            await suite.wait_until_ready(display.show)
        _print_usage(settings, console, display.elapsed_s)
        await asyncio.Event().wait()

    def on_stop() -> None:
        console.print("stopping: running requests may finish; Ctrl-C again ends them")

    try:
        specs = [
            settings.gateway(pepper, trains=settings.trains),
            settings.diffusion(),
            settings.upscale(),
        ]
        if settings.trains:
            specs.append(settings.trainer())
        else:
            lack = "no trainer: it needs pip install 'limner[trainer]' and a model that is a folder"
            console.print(Text(lack))
        restart = Restart(
            on_death=lambda death: print_death(console, f"{death}; it is started again"),
            on_state=lambda name, state: console.print(f"{name}: {state.value}"),
        )
        await run_suite(specs, settings.data.logs, body, on_stop=on_stop, restart=restart)
    except Stopped:
        console.print("stopped")


def _print_usage(settings: SuiteSettings, console: Console, elapsed_s: float) -> None:
    console.print(
        Text(f"Limner is up after {elapsed_s:.1f} s. Ctrl-C stops it.", style="bold green")
    )
    tries = [
        f'limner generate "a red apple" -o apple.png{_options(settings)}',
        f"limner upscale apple.png -o large.png --scale 4{_options(settings)}",
    ]
    if settings.trains:
        tries.append(f"limner train ./photos --token sks --class dog{_options(settings)}")
    for name, value in (
        *zip(("try", "", ""), tries, strict=False),
        ("address", settings.address),
        ("key", str(settings.data.key_file)),
        *(("metrics", f"{url} ({name})") for name, url in settings.metrics_urls.items()),
        ("logs", str(settings.data.logs)),
    ):
        console.print(Text(f"  {name:8} {value}"), soft_wrap=True)


def _options(settings: SuiteSettings) -> str:
    """Return the options that `limner generate` needs to find this suite."""
    options = ""
    if settings.address != DEFAULT_ADDRESS:
        options += f" --address {settings.address}"
    if settings.data.key_file != LOCAL_KEY_FILE:
        options += f" --key-file {settings.data.key_file}"
    return options
