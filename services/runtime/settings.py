"""Settings from the environment, read once in `__main__`, all mistakes reported at once.

A service declares a frozen subclass of `Settings` with its prefix and calls `load`:

    class DiffusionSettings(Settings):
        model_config = SettingsConfigDict(env_prefix="LIMNER_DIFFUSION_")
        address: Address = Address("127.0.0.1:50061")
        models: CommaSeparated[str] = ("limner-emoji=models/limner-emoji",)

No other module reads the environment.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Self, TypeAlias, TypeVar

from pydantic import BeforeValidator, SecretStr, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, core_schema
from pydantic_settings import BaseSettings, SettingsConfigDict

T = TypeVar("T")
S = TypeVar("S", bound="Settings")

_NEARLY_THE_SAME = 0.8


class Address(str):
    """Where to listen or to connect: host:port, an IPv6 host in brackets, port 0 to 65535.

    Raises ValueError when it is anything else.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check `text`; the string itself is unchanged."""
        host, colon, port = text.rpartition(":")
        if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):
            raise ValueError(f"must be host:port with a port from 0 to 65535, got {text!r}")
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            raise ValueError(f"an IPv6 host is written in brackets, got {text!r}")
        return super().__new__(cls, text)

    @property
    def host(self) -> str:
        """The host, an IPv6 one without its brackets."""
        return self.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port."""
        return int(self.rpartition(":")[2])

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: Callable[[Any], CoreSchema]
    ) -> CoreSchema:
        """Let pydantic validate a text by making an Address of it."""
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


CommaSeparated: TypeAlias = Annotated[tuple[T, ...], BeforeValidator(_split)]
"""A tuple that the environment writes with commas; blanks around the parts do not count."""


class Settings(BaseSettings):
    """What a service reads from the environment. Subclasses set `env_prefix`."""

    # Without decoding, a list is a text with commas, and a bad one is reported with the others
    # instead of ending the validation as malformed JSON.
    model_config = SettingsConfigDict(frozen=True, enable_decoding=False, extra="ignore")


def load(settings_class: type[S]) -> S:
    """Read the environment; exits with one message that lists every bad variable.

    The message gives name, value (hidden where it is secret) and reason. A variable that nearly has
    the name of a setting is an error as well: a typo must not be a default in disguise.
    """
    mistakes = list(_misspelt(settings_class))
    try:
        settings = settings_class()
    except ValidationError as error:
        mistakes += [_mistake(settings_class, detail) for detail in error.errors()]
    if mistakes:
        raise SystemExit("\n".join(["Bad settings in the environment:", *sorted(mistakes)]))
    return settings


def _mistake(settings_class: type[Settings], detail: ErrorDetails) -> str:
    reason = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:
        # Of a validator that looks at several settings, and names them itself.
        return f"  {reason}"
    field = str(detail["loc"][0])
    variable = _variable(settings_class, field)
    if detail["type"] == "missing":
        return f"  {variable} is required"
    secret = _is_secret(settings_class, field)
    value = "(hidden)" if secret else repr(os.environ.get(variable, detail["input"]))
    return f"  {variable}={value}: {reason}"


def _variable(settings_class: type[Settings], field: str) -> str:
    return f"{settings_class.model_config.get('env_prefix', '')}{field}".upper()


def _is_secret(settings_class: type[Settings], field: str) -> bool:
    info = settings_class.model_fields.get(field)
    return info is not None and SecretStr.__name__ in repr(info.annotation)


def _misspelt(settings_class: type[Settings]) -> Iterator[str]:
    """Yield a line for every variable that looks like one of the settings and is none."""
    prefix = _variable(settings_class, "")
    known = [_variable(settings_class, field) for field in settings_class.model_fields]
    for variable in os.environ:
        suffix = variable.upper().removeprefix(prefix)
        if not variable.upper().startswith(prefix) or variable.upper() in known:
            continue
        # Only near misses: Kubernetes sets variables of its own for a Service `limner-gateway`.
        near = difflib.get_close_matches(
            suffix, [name.removeprefix(prefix) for name in known], n=1, cutoff=_NEARLY_THE_SAME
        )
        if near:
            yield f"  {variable} is unknown; did you mean {prefix}{near[0]}?"
