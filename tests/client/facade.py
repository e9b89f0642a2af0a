"""One set of tests for both clients: a facade that runs either and returns plain lists."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from services.client import Account, AsyncClient, Client, Event, GenerationResult, Model


class Facade(Protocol):
    """The calls of a client, each waited for."""

    def events(self, address: str, prompt: str, **options: Any) -> list[Event]: ...

    def generate(self, address: str, prompt: str, **options: Any) -> GenerationResult: ...

    def models(self, address: str, **options: Any) -> tuple[Model, ...]: ...

    def account(self, address: str, **options: Any) -> Account: ...


class SyncFacade:
    def events(self, address: str, prompt: str, **options: Any) -> list[Event]:
        with Client(address) as client, client.stream_generate(prompt, **options) as stream:
            return list(stream)

    def generate(self, address: str, prompt: str, **options: Any) -> GenerationResult:
        with Client(address) as client:
            return client.generate(prompt, **options)

    def models(self, address: str, **options: Any) -> tuple[Model, ...]:
        with Client(address, **options) as client:
            return client.models()

    def account(self, address: str, **options: Any) -> Account:
        with Client(address, **options) as client:
            return client.account()


class AsyncFacade:
    def events(self, address: str, prompt: str, **options: Any) -> list[Event]:
        async def call() -> list[Event]:
            async with (
                AsyncClient(address) as client,
                client.stream_generate(prompt, **options) as stream,
            ):
                return [event async for event in stream]

        return asyncio.run(call())

    def generate(self, address: str, prompt: str, **options: Any) -> GenerationResult:
        async def call() -> GenerationResult:
            async with AsyncClient(address) as client:
                return await client.generate(prompt, **options)

        return asyncio.run(call())

    def models(self, address: str, **options: Any) -> tuple[Model, ...]:
        async def call() -> tuple[Model, ...]:
            async with AsyncClient(address, **options) as client:
                return await client.models()

        return asyncio.run(call())

    def account(self, address: str, **options: Any) -> Account:
        async def call() -> Account:
            async with AsyncClient(address, **options) as client:
                return await client.account()

        return asyncio.run(call())
