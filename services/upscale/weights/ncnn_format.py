"""Reads the published ncnn models: a text file of layers and a binary file of their weights.

Called by `files` and by the converter. It takes the weights out under the names of the torch
modules and runs nothing.

The binary file holds, in the order of the layers, for a convolution: a little-endian tag
(0x01306B47: float16, 0: float32), its weights padded to four bytes, and a float32 bias; for a
PReLU: float32 slopes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from services.upscale.weights.errors import BrokenWeightsError, UnsupportedWeightsError

_MAGIC = "7767517"
_FLOAT16_TAG = 0x01306B47
_FLOAT32_TAG = 0
_CONVS_PER_BLOCK = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    kind: str
    values: dict[str, str]
    """Parameters by number."""

    def number(self, key: str) -> int:
        return int(self.values.get(key, "0"))


def read_ncnn(param: Path, binary: Path) -> dict[str, Tensor]:
    """Weights under the upstream names: convolutions in their own precision, the rest float32.

    Raises `BrokenWeightsError` for files that are malformed or do not belong together, and
    `UnsupportedWeightsError` for a network that is neither SRVGG nor RRDBNet.
    """
    layers = _read_layers(param)
    names = iter(_names(layers, param))
    weights: dict[str, Tensor] = {}
    reader = _Reader(binary)
    for layer in layers:
        if layer.kind == "Convolution":
            name = next(names)
            weights[f"{name}.weight"], weights[f"{name}.bias"] = _convolution(layer, reader)
        elif layer.kind == "PReLU":
            weights[f"{next(names)}.weight"] = reader.floats(layer.number("0"))
    reader.finish()
    return weights


def _convolution(layer: _Layer, reader: _Reader) -> tuple[Tensor, Tensor]:
    out_count, side, size = layer.number("0"), layer.number("1"), layer.number("6")
    if layer.number("5") != 1 or not out_count or not side or size % (out_count * side**2):
        raise UnsupportedWeightsError(f"{reader.path}: a convolution without bias or shape")
    weight = reader.tagged(size).reshape(out_count, -1, side, side)
    return weight, reader.floats(out_count)


class _Reader:
    """The binary file, read from front to back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = path.read_bytes()
        self._at = 0

    def tagged(self, count: int) -> Tensor:
        """Numbers after a tag that says in which precision they are."""
        tag = int.from_bytes(self._take(4), "little")
        if tag == _FLOAT16_TAG:
            return _tensor(self._take((count * 2 + 3) // 4 * 4), "<f2", count)
        if tag == _FLOAT32_TAG:
            return self.floats(count)
        raise BrokenWeightsError(f"{self.path}: unknown storage tag {tag:#010x}")

    def floats(self, count: int) -> Tensor:
        return _tensor(self._take(count * 4), "<f4", count)

    def finish(self) -> None:
        left = len(self._data) - self._at
        if left:
            raise BrokenWeightsError(f"{self.path} has {left} bytes more than its layers")

    def _take(self, size_bytes: int) -> bytes:
        taken = self._data[self._at : self._at + size_bytes]
        if len(taken) < size_bytes:
            raise BrokenWeightsError(f"{self.path} ends before its layers do")
        self._at += size_bytes
        return taken


def _tensor(data: bytes, dtype: str, count: int) -> Tensor:
    array = np.frombuffer(data, dtype)[:count]
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def _read_layers(param: Path) -> list[_Layer]:
    try:
        lines = param.read_text(encoding="ascii").split("\n")
        if lines[0].strip() != _MAGIC:
            raise BrokenWeightsError(f"{param} is not an ncnn param file")
        return [_layer(line) for line in lines[2:] if line.strip()]
    except (ValueError, IndexError) as error:
        raise BrokenWeightsError(f"{param} is malformed: {error}") from error


def _layer(line: str) -> _Layer:
    kind, _, in_count, out_count, *rest = line.split()
    values = rest[int(in_count) + int(out_count) :]
    return _Layer(kind=kind, values=dict(value.split("=", 1) for value in values))


def _names(layers: list[_Layer], param: Path) -> Iterator[str]:
    conv_count = sum(layer.kind == "Convolution" for layer in layers)
    slope_count = sum(layer.kind == "PReLU" for layer in layers)
    if slope_count and conv_count == slope_count + 1:
        return (f"body.{index}" for index in range(conv_count + slope_count))
    block_count, rest = divmod(conv_count - 6, _CONVS_PER_BLOCK)
    if not slope_count and block_count > 0 and not rest:
        return _rrdbnet_names(block_count)
    raise UnsupportedWeightsError(
        f"{param}: {conv_count} convolutions and {slope_count} PReLUs are neither SRVGG nor RRDBNet"
    )


def _rrdbnet_names(block_count: int) -> Iterator[str]:
    yield "conv_first"
    for block in range(block_count):
        for dense in (1, 2, 3):
            yield from (f"body.{block}.rdb{dense}.conv{conv}" for conv in range(1, 6))
    yield from ("conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last")
