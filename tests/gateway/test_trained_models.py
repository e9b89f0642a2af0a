"""Trained models at the door: routed, priced and allowed as their base, listed to their owner."""

from dataclasses import replace

import pytest

from services.gateway.pricing import DEFAULT_PRICES, Rate
from services.gateway.tiers.tier import BUILT_IN_TIERS
from tests.gateway.fake_backend import backend
from tests.gateway.harness import failure, reason, running_gateway
from tests.gateway.test_routing import drawn, list_models


async def test_a_trained_model_goes_to_a_backend_that_has_its_base(tmp_path):
    async with (
        backend(models=["dots"]) as dots,
        backend(models=["lines"]) as lines,
        running_gateway(tmp_path, dots, lines) as door,
    ):
        assert await drawn(door.generate(model="lines@toy")) == "lines@toy"
        assert reason(await failure(door.generate(model="waves@toy"))) == "MODEL_NOT_FOUND"
    assert not dots.calls
    assert [seen.request.model for seen in lines.calls] == ["lines@toy"]
    assert [lease.request.model for lease in door.admission.leases] == ["lines@toy"]


async def test_a_backends_trained_models_are_listed_to_the_caller_and_never_kept(tmp_path):
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        fake.trained["acme"] = ["dots@toy"]
        fake.trained["other"] = fake.trained[""] = ["dots@theirs"]
        listed = await list_models(door)
        assert [name for name, _ in listed] == ["dots", "dots@toy"]
        (behind,) = door.gateway.pool.backends
        assert list(behind.models) == ["dots"]


@pytest.mark.parametrize("model", ["sdxl", "sdxl@toy", "sdxl@job_1"])
def test_prices_and_tiers_take_it_for_its_base(model):
    prices = replace(
        DEFAULT_PRICES,
        generation=(
            Rate(models="sdxl", millicredits=64),
            Rate(models="*", millicredits=1),
        ),
    )
    size = {"width": 1000, "height": 1000, "step_count": 1}
    assert prices.price_artifact(model=model, **size) == 64
    tier = replace(BUILT_IN_TIERS["free"], models=("sdxl",))
    assert tier.allows_model(model)
    assert not tier.allows_model(model.replace("sdxl", "sd15"))
