"""Everything that a run can be told, as one frozen tree; a YAML file has the same shape.

Read by `reading`, which reports all mistakes at once. A run stores the resolved tree beside its
results. Defaults here are those of every family; `defaults` has those that differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Method = Literal["lora", "full"]
Precision = Literal["float32", "bfloat16", "float16"]
Accelerator = Literal["cpu", "cuda"]

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Interval = Annotated[int, Field(ge=0, le=1_000_000)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0.0, le=1000.0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Prompt = Annotated[str, Field(min_length=1, max_length=1000)]


class Section(BaseModel):
    """A part of the tree; unknown keys are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class InstanceSection(Section):
    """The subject to teach."""

    images: Path
    """Folder of pictures; PNG, JPEG or WebP."""
    prompt: Prompt
    """Names the subject by its token, for example `a photo of sks dog`."""
    token: Annotated[str, Field(min_length=1, max_length=40, pattern=r"^\S+$")] = "sks"
    """The word in prompts that means the subject."""
    captions: bool = False
    """Take a picture's prompt from `<name>.txt` beside it, where there is one."""


class PriorSection(Section):
    """Prior preservation: what the class looks like without the subject (Ruiz et al. 2023)."""

    prompt: Prompt
    """Names the class, for example `a photo of a dog`."""
    loss_weight: Weight = 1.0
    """Weight of the class's loss beside the subject's."""
    images: Path | None = None
    """Folder of class pictures; absent: the base model draws them."""
    image_count: Count = 100
    """Pictures that the base model draws."""
    step_count: Annotated[int, Field(ge=1, le=500)] = 30
    """Denoising steps of a drawn picture."""
    guidance_scale: Annotated[float, Field(ge=0.0, le=50.0, allow_inf_nan=False)] = 7.5
    batch_size: Annotated[int, Field(ge=1, le=64)] = 4
    """Pictures drawn at a time."""


class LoraSection(Section):
    """Low-rank adaptation (Hu et al. 2021)."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    alpha: Annotated[float, Field(gt=0.0, le=1024.0, allow_inf_nan=False)] = 16.0
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)] = 0.0
    denoiser_targets: Annotated[tuple[str, ...], Field(min_length=1)] = (
        *("to_q", "to_k", "to_v", "to_out.0"),
    )
    """Ends of the names of the denoiser's linear and convolutional layers to adapt."""
    text_encoder_targets: Annotated[tuple[str, ...], Field(min_length=1)] = (
        *("q_proj", "k_proj", "v_proj", "out_proj"),
    )


class PictureSection(Section):
    """How pictures become training examples."""

    side: Annotated[int, Field(ge=16, le=4096)] | None = None
    """Pixels a side; absent: the side that the base model was trained on."""
    crop: Literal["center", "random"] = "center"
    """Where a picture is cut after it was fitted."""
    aspect: Literal["square", "buckets"] = "square"
    """Cut squares, or of a few shapes of as many pixels the one that is nearest to each picture."""
    flip_probability: Share = 0.5
    caption_dropout: Share = 0.0
    """Share of prompts that are left empty, for guidance."""
    cache_latents: bool | None = None
    """Encode every picture once; absent: where that is legal, so not with random crops."""


class OptimizationSection(Section):
    """Steps, rates and numbers."""

    step_count: Count = 800
    """Optimizer steps."""
    batch_size: Annotated[int, Field(ge=1, le=256)] = 1
    """Subject pictures of a process in a pass; as many of the class join them."""
    accumulation: Annotated[int, Field(ge=1, le=1024)] = 1
    """Passes of an optimizer step."""
    learning_rate: Rate = 1e-4
    text_encoder_learning_rate: Rate | None = None
    """Absent: `learning_rate`."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay, or fall to zero at the last step."""
    warmup_step_count: Interval = 0
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    epsilon: Rate = 1e-8
    weight_decay: Share = 0.01
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """In 8 bits the moments take a quarter of the memory; needs the extra `adam8bit`."""
    max_gradient_norm: Weight = 1.0
    """0: gradients are not clipped."""
    min_snr_gamma: Annotated[float, Field(gt=0.0, le=100.0)] | None = None
    """Loss weighting of Hang et al. 2023; absent: none."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Train towards a moving average of the weights, which is what comes out; absent: none."""
    train_text_encoder: bool = True
    cache_text_embeddings: bool | None = None
    """Encode every prompt once; absent: where the text encoder is not trained."""
    gradient_checkpointing: bool = False
    """Compute activations again instead of keeping them: less memory, about a third slower."""
    precision: Precision = "float32"
    seed: Seed = 0


class ValidationSection(Section):
    """Pictures drawn and losses measured while the run goes on, always with the same draws."""

    interval: Interval = 100
    """Optimizer steps between validations; 0: only at the end."""
    prompts: Annotated[tuple[Prompt, ...], Field(max_length=16)] = ()
    """Prompts to draw; none: the instance prompt."""
    step_count: Annotated[int, Field(ge=1, le=500)] = 20
    guidance_scale: Annotated[float, Field(ge=0.0, le=50.0, allow_inf_nan=False)] = 7.5
    seed: Seed = 0


class TrackingSection(Section):
    """Who is told how it goes, beside the files of the run."""

    tensorboard: bool = True
    wandb_project: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    wandb_offline: bool = True


class DeviceSection(Section):
    """Where it runs."""

    accelerator: Accelerator | None = None
    """Absent: CUDA where there is a device."""
    process_count: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes a node, each with a device of its own on CUDA."""
    node_count: Annotated[int, Field(ge=1, le=64)] = 1


class RunConfiguration(Section):
    """A whole run."""

    base_model: Path
    """Folder of a model in diffusers layout."""
    output: Path
    """Folder of checkpoints, tracking and results; a run that finds its checkpoint here goes on."""
    class_image_cache: Path = Path(".cache/limner/class-images")
    method: Method = "lora"
    instance: InstanceSection
    prior: PriorSection | None = None
    lora: LoraSection = LoraSection()
    pictures: PictureSection = PictureSection()
    optimization: OptimizationSection = OptimizationSection()
    validation: ValidationSection = ValidationSection()
    checkpoint_interval: Interval = 100
    """Optimizer steps between checkpoints; 0: only when it stops or ends."""
    checkpoint_store: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """URL of a folder (`file:///…`, `s3://…`, whatever fsspec opens) that gets a copy of every
    checkpoint, and from which a run goes on whose own folder is gone; absent: none."""
    tracking: TrackingSection = TrackingSection()
    device: DeviceSection = DeviceSection()

    @property
    def caches_latents(self) -> bool:
        """Whether pictures are encoded once."""
        chosen = self.pictures.cache_latents
        return self.pictures.crop == "center" if chosen is None else chosen

    @property
    def caches_text(self) -> bool:
        """Whether prompts are encoded once."""
        chosen = self.optimization.cache_text_embeddings
        return not self.optimization.train_text_encoder if chosen is None else chosen
