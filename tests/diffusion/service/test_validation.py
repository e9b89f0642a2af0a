"""Requests are completed with the model's defaults and checked against its limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.diffusion.batching import Job
from services.diffusion.validation import ImageRequest, resolve
from services.runtime.errors import InvalidRequestError
from tests.diffusion.batching.doubles import AnalyticModel, ListSink

MODEL = AnalyticModel()


def _violations(**fields: object) -> list[tuple[str, str]]:
    request = ImageRequest(**({"prompt": "a dog"} | fields))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError) as raised:
        resolve(request, MODEL)
    return [(violation.field, violation.reason) for violation in raised.value.violations]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("prompt", "", "REQUIRED"),
        ("prompt", " \n", "REQUIRED"),
        ("prompt", "x" * 101, "TOO_LONG"),
        ("negative_prompt", "x" * 101, "TOO_LONG"),
        ("width", 24, "OUT_OF_RANGE"),
        ("width", 136, "OUT_OF_RANGE"),
        ("height", 65, "NOT_A_MULTIPLE"),
        ("step_count", 0, "OUT_OF_RANGE"),
        ("step_count", 101, "OUT_OF_RANGE"),
        ("guidance_scale", -0.1, "OUT_OF_RANGE"),
        ("guidance_scale", 20.1, "OUT_OF_RANGE"),
        ("guidance_scale", float("inf"), "NOT_FINITE"),
        ("guidance_scale", float("nan"), "NOT_FINITE"),
        ("seed", -1, "OUT_OF_RANGE"),
        ("seed", 2**32, "OUT_OF_RANGE"),
        ("sampler", "plms", "UNSUPPORTED"),
        ("sample_count", 0, "OUT_OF_RANGE"),
        ("sample_count", 9, "OUT_OF_RANGE"),
        ("output_format", "gif", "UNSUPPORTED"),
        ("preview_interval", -1, "OUT_OF_RANGE"),
    ],
)
def test_each_value_out_of_its_limits_is_one_violation(
    field: str, value: object, reason: str
) -> None:
    assert _violations(**{field: value}) == [(field, reason)]


def test_too_many_pixels_are_a_violation_of_both_sides() -> None:
    assert _violations(width=128, height=128) == [
        ("width", "OUT_OF_RANGE"),
        ("height", "OUT_OF_RANGE"),
    ]


def test_a_sampler_with_fewer_steps_than_the_model_allows_has_its_own_limit() -> None:
    assert _violations(sampler="lcm", step_count=51) == [("step_count", "OUT_OF_RANGE")]


def test_an_unsupported_sampler_is_told_which_are_supported() -> None:
    with pytest.raises(InvalidRequestError, match="euler_ancestral"):
        resolve(ImageRequest(prompt="a dog", sampler="plms"), MODEL)


def test_what_is_left_out_gets_the_default_of_the_model_and_a_random_seed() -> None:
    first, second = (resolve(ImageRequest(prompt="a dog"), MODEL) for _ in range(2))
    assert (first.spec.width, first.spec.step_count, first.spec.sampler) == (64, 6, "ddim")
    assert first.output_format == "png"
    assert first.spec.seed != second.spec.seed


def test_zero_is_a_value_and_not_an_absent_one() -> None:
    spec = resolve(ImageRequest(prompt="a dog", seed=0, guidance_scale=0.0), MODEL).spec
    assert (spec.seed, spec.guidance_scale, spec.guided) == (0, 0.0, False)


@given(
    width=st.integers(-10, 200),
    height=st.integers(-10, 200),
    step_count=st.integers(-2, 200),
    sampler=st.sampled_from([*MODEL.samplers, "plms"]),
    guidance_scale=st.floats(),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_whatever_passes_can_be_drawn(
    width: int, height: int, step_count: int, sampler: str, guidance_scale: float, seed: int
) -> None:
    request = ImageRequest(
        prompt="a dog",
        width=width,
        height=height,
        step_count=step_count,
        sampler=sampler,
        guidance_scale=guidance_scale,
        seed=seed,
    )
    try:
        spec = resolve(request, MODEL).spec
    except InvalidRequestError:
        return
    assert Job(model=MODEL, spec=spec, sink=ListSink()).make_rows()
