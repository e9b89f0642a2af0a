"""Loads an upscaler: weights, network, graph. Called once for each model at start-up.

It does not warm a model up: `LoadedUpscaler.warm_up` does. `engine_sources` is for those who build
engines before a server starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from services.graphs.graph import GraphError, GraphSource
from services.graphs.selection import GraphOptions, available_core_count, resolve_device
from services.graphs.store import GraphStore
from services.upscale.architectures.recognition import recognise
from services.upscale.model import DeviceOptions, LoadedUpscaler, Tiling
from services.upscale.network import NetworkUpscaler
from services.upscale.sources import NetworkWeights
from services.upscale.weights.descriptor import Descriptor, FileSource, check_structure, describe
from services.upscale.weights.errors import (
    BrokenWeightsError,
    DescriptorError,
    UnsupportedWeightsError,
    UpscalerLoadError,
)
from services.upscale.weights.files import load_source, load_weights, weights_digest
from services.upscale.weights.library import Entry

_COLOURS = 3
# On a GPU a new shape costs more than the pixels that a coarser step adds.
_CUDA_SIDE_STEP = 64


def load_upscaler(entry: Entry, options: DeviceOptions) -> LoadedUpscaler:
    """Load `entry`; blocks, for a minute where its graph is new.

    Raises `UpscalerLoadError`, one line that names the model and says what to do about it.
    """
    try:
        return _load(entry, options)
    except UpscalerLoadError as error:
        raise type(error)(f"upscaler {entry.name}: {error}") from error
    except GraphError as error:
        raise UpscalerLoadError(f"upscaler {entry.name}: {error}") from error


def checked_weights(entry: Entry) -> tuple[dict[str, Tensor], Descriptor]:
    """The weights of `entry` and their descriptor, which fits them.

    Raises `UpscalerLoadError`.
    """
    weights = load_source(entry.weights, entry.folder)
    shape = recognise(weights)
    descriptor = entry.descriptor
    if descriptor is None:
        assert isinstance(entry.weights, FileSource), "bare weights are a file"
        descriptor = describe(entry.name, shape, entry.weights)
    check_structure(entry.name, descriptor, shape)
    if descriptor.sha256 and descriptor.sha256 != weights_digest(weights):
        raise BrokenWeightsError("the weights are not those that the descriptor means")
    if shape.channel_count != _COLOURS:
        raise UnsupportedWeightsError(f"networks with {_COLOURS} colour channels are served")
    return weights, descriptor


def engine_sources(entry: Entry, options: DeviceOptions) -> tuple[GraphSource, ...]:
    """What a server with TensorRT compiles when it starts; other strengths are made when asked for.

    Raises `UpscalerLoadError`, one line that names the model.
    """
    try:
        weights, descriptor = _network_weights(entry)
    except UpscalerLoadError as error:
        raise type(error)(f"upscaler {entry.name}: {error}") from error
    strength = descriptor.denoising.default_strength if descriptor.denoising else None
    return (weights.source(strength, tiling=_tiling(descriptor, "cuda", options.max_tile_side)),)


def _network_weights(entry: Entry) -> tuple[NetworkWeights, Descriptor]:
    clean, descriptor = checked_weights(entry)
    noisy = _noisy_weights(entry, descriptor, clean)
    return NetworkWeights(clean=clean, noisy=noisy), descriptor


def _load(entry: Entry, options: DeviceOptions) -> NetworkUpscaler:
    weights, descriptor = _network_weights(entry)
    device = resolve_device(options.device, options.runtime)
    graphs = GraphOptions(
        runtime=options.runtime,
        device=device,
        thread_count=options.thread_count or available_core_count(),
        store=GraphStore(options.cache_dir / "graphs"),
        eight_bit=options.precision == "int8",
    )
    return NetworkUpscaler(
        name=entry.name,
        descriptor=descriptor,
        weights=weights,
        tiling=_tiling(descriptor, device, options.max_tile_side),
        graphs=graphs,
    )


def _noisy_weights(
    entry: Entry, descriptor: Descriptor, weights: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Weights that leave noise in; they must belong to the same network."""
    if descriptor.denoising is None:
        return None
    noisy = load_weights(entry.folder / descriptor.denoising.file)
    if {name: t.shape for name, t in noisy.items()} != {n: t.shape for n, t in weights.items()}:
        raise DescriptorError(f"{descriptor.denoising.file} belongs to another network")
    return noisy


def _tiling(descriptor: Descriptor, device: str, max_tile_side: int | None) -> Tiling:
    tiling = descriptor.tiles()
    if device == "cuda":
        tiling = replace(tiling, side_step=_CUDA_SIDE_STEP)
    if max_tile_side is None or max_tile_side >= tiling.max_side:
        return tiling
    side = max(max_tile_side // tiling.side_step * tiling.side_step, tiling.min_side)
    return replace(tiling, max_side=side)
