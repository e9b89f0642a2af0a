"""`limner demo`: start the suite, draw one picture through it, stop it."""

from __future__ import annotations

import time
from pathlib import Path

from rich.text import Text

from services.client import Accepted, AsyncClient, GeneratedImage
from services.client.cli.console import Console
from services.client.cli.display import GenerationDisplay, facts
from services.local.display import StartDisplay
from services.local.picture import can_show, in_half_blocks
from services.local.settings import SuiteSettings
from services.local.suite import Suite, run_suite


async def draw(settings: SuiteSettings, prompt: str, output: Path, console: Console) -> None:
    """Draw `prompt` into `output` through the real gateway and diffusion server.

    Raises ServiceDied, Stopped, LimnerError, OSError and PepperError.
    """
    pepper = await settings.data.prepare()

    async def body(suite: Suite) -> None:
        with StartDisplay(console) as display:
            await suite.wait_until_ready(display.show)
        console.print(f"gateway and diffusion server ready after {display.elapsed_s:.1f} s")
        await _generate(settings, prompt, output, console)

    specs = (settings.gateway(pepper, upscales=False), settings.diffusion())
    await run_suite(specs, settings.data.logs, body, on_stop=lambda: None)


async def _generate(settings: SuiteSettings, prompt: str, output: Path, console: Console) -> None:
    start = time.monotonic()
    key = settings.data.read_key()
    console.print(Text(f"drawing “{prompt}”"))
    async with AsyncClient(settings.address, api_key=key) as client:
        with GenerationDisplay(console) as display:
            async with client.stream_generate(prompt, output_format="png") as stream:
                async for event in stream:
                    display.show(event)
                    if isinstance(event, Accepted):
                        accepted = event
                    elif isinstance(event, GeneratedImage):
                        image = event
    elapsed_s = time.monotonic() - start
    image.save(output)
    if can_show(console):
        console.print(in_half_blocks(image.data))
    console.print(Text(f"{facts(accepted)}", style="dim"), soft_wrap=True)
    console.print(Text(f"drawn in {elapsed_s:.1f} s: {output}", style="bold green"))
