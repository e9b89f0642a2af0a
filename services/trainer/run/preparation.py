"""What a run needs before its first step: class pictures, latents, text; and nothing kept in memory
that it does not need after.

Called by `training` with a model of which nothing is loaded yet.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from services.trainer.run.buckets import bucket_sizes
from services.trainer.run.class_images import ensure_class_pictures
from services.trainer.run.components import Components, encode_moments
from services.trainer.run.configuration import RunConfiguration
from services.trainer.run.dataset import Picture
from services.trainer.run.learner import VALIDATION_PICTURES
from services.trainer.run.reading import CheckedRun
from services.trainer.run.reporting import RunReport
from services.trainer.run.rows import RowSource
from services.trainer.run.samples import sample_prompts
from services.trainer.run.stopping import StopFlag
from services.trainer.run.text import PromptEncoder, common_word

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What a learner draws its batches from."""

    sources: Sequence[RowSource]
    """Of the subject, and then of the class where there is one."""
    encode_prompts: PromptEncoder


def prepare(
    run: CheckedRun,
    components: Components,
    *,
    steps_done: int,
    device: torch.device,
    report: RunReport,
    stop: StopFlag,
) -> Prepared:
    """Draw what is missing and encode what is cached. Raises `StoppedError` where `stop` is set."""
    configuration = run.configuration
    if common_word(components.tokenizers[0], configuration.instance.token):
        _LOGGER.warning(
            "the token %r is a word that the model knows; it will have to forget its meaning",
            configuration.instance.token,
        )
    class_pictures = _class_pictures(run, components, device, report, stop)
    sources = _sources(run, components, class_pictures, device)
    if configuration.caches_latents:
        _encode_pictures(sources, configuration, steps_done, stop)
        components.drop("vae")
    encode_prompts = PromptEncoder(components, device, cached=configuration.caches_text)
    encode_prompts.prepare({"", *sample_prompts(run)}.union(*(each.prompts for each in sources)))
    return Prepared(sources=sources, encode_prompts=encode_prompts)


def _class_pictures(
    run: CheckedRun,
    components: Components,
    device: torch.device,
    report: RunReport,
    stop: StopFlag,
) -> tuple[Picture, ...]:
    def progress(done: int, count: int) -> None:
        stop.check()
        report.update(class_picture_count=done)

    pictures = ensure_class_pictures(run, components, device=device, progress=progress)
    components.drop_all()  # they were drawn in float32, whatever the run computes in
    return pictures


def _sources(
    run: CheckedRun,
    components: Components,
    class_pictures: tuple[Picture, ...],
    device: torch.device,
) -> list[RowSource]:
    configuration, prior = run.configuration, run.configuration.prior

    def encode(picture_13HW: Tensor) -> tuple[Tensor, Tensor | None]:
        vae = components.part("vae").to(device)
        return encode_moments(vae, picture_13HW.to(device))

    source = partial(
        RowSource,
        section=configuration.pictures,
        cached=configuration.caches_latents,
        buckets=bucket_sizes(run.side, run.base.side_multiple, configuration.pictures.aspect),
        seed=configuration.optimization.seed,
        encode=encode,
    )
    instances = source("instance", run.instances, configuration.instance.prompt)
    if prior is None:
        return [instances]
    return [instances, source("class", class_pictures, prior.prompt)]


def _encode_pictures(
    sources: Sequence[RowSource], configuration: RunConfiguration, steps_done: int, stop: StopFlag
) -> None:
    """Whatever the steps that are left will want."""
    section, device = configuration.optimization, configuration.device
    row_count = section.batch_size * section.accumulation
    row_count *= device.process_count * device.node_count
    for source in sources:
        source.prepare(
            steps_done * row_count,
            (section.step_count - steps_done) * row_count,
            validated=VALIDATION_PICTURES,
            before_each=stop.check,
        )
