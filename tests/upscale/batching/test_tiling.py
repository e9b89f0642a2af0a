"""Tiles cover a picture without gaps, and no blend touches what a network sees too little of."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.upscale.batching.tiling import Axis, plan_axis, plan_tiles
from services.upscale.model import Tiling

TILINGS = st.builds(
    Tiling,
    max_side=st.sampled_from([192, 256, 384]),
    padding=st.integers(0, 48),
    feather=st.integers(1, 32),
    border=st.integers(0, 16),
    side_step=st.sampled_from([16, 32, 64]),
)


@given(
    length=st.integers(1, 3000),
    scale=st.sampled_from([4.0, 2.0, 2.7, 3.999]),
    tiling=TILINGS,
)
def test_an_axis_is_covered_once_and_blended_away_from_the_tiles_edges(
    length: int, scale: float, tiling: Tiling
) -> None:
    out_length = max(1, round(length * scale))
    axis = plan_axis(length, out_length, tiling)

    assert axis.side <= tiling.max_side
    assert axis.side % tiling.side_step == 0
    assert axis.spans[0].out_start == 0
    assert axis.spans[-1].out_end == out_length
    assert axis.spans[-1].overlap == 0
    for before, after in itertools.pairwise(axis.spans):
        assert before.out_end - before.overlap == after.out_start
        assert before.overlap >= 1
        assert before.out_end <= after.out_end - after.overlap or after is axis.spans[-1]
    _check_margins(axis, tiling)


_ROUNDING = 1e-9
"""Of quotients, in pixels."""


def _check_margins(axis: Axis, tiling: Tiling) -> None:
    """Every contribution lies `padding` inside its tile, or `border` at the picture's edge."""
    scale = axis.out_length / axis.length
    first, last = axis.spans[0], axis.spans[-1]
    assert first.start <= -tiling.border
    assert last.start + axis.side >= axis.length + tiling.border
    for span in axis.spans:
        first_centre = (span.out_start + 0.5) / scale
        last_centre = (span.out_end - 0.5) / scale
        if span is not first:
            assert first_centre >= span.start + tiling.padding - _ROUNDING
        if span is not last:
            assert last_centre <= span.start + axis.side - tiling.padding + _ROUNDING


def test_of_the_possible_sides_the_cheapest_is_taken() -> None:
    tiling = Tiling(max_side=384, padding=18, feather=8, border=8, side_step=16)
    # 528 with its borders: two tiles of 288 compute 576, one tile would need 528.
    axis = plan_axis(512, 2048, tiling)
    assert (axis.side, len(axis.spans)) == (288, 2)
    assert plan_axis(100, 400, tiling).side == 128


def test_a_plan_counts_its_tiles_and_their_pixels() -> None:
    tiling = Tiling(max_side=64, padding=8, feather=4, side_step=16)
    plan = plan_tiles(width=200, height=40, out_width=800, out_height=160, tiling=tiling)
    assert plan.tile_count == len(plan.rows.spans) * len(plan.columns.spans)
    assert plan.tile_pixel_count == plan.rows.side * plan.columns.side
    assert plan.tile_shape == (64, 64)


@pytest.mark.parametrize(
    "values", [{"max_side": 24}, {"max_side": 60}, {"feather": 0}, {"padding": -1}]
)
def test_advice_that_makes_no_sense_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must be|at least"):
        Tiling(**({"max_side": 64, "padding": 8, "feather": 4} | values))
