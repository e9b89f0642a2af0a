import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.configuration_file import ConfigurationFileError
from services.gateway.pricing import DEFAULT_PRICES, PriceTable, Rate, read_prices
from tests.gateway.fake_backend import backend
from tests.gateway.harness import running_gateway, until

SIDES = st.integers(min_value=1, max_value=8192)
ANY = (Rate(models="*", millicredits=7),)


def table(**changes):
    return PriceTable(**({"generation": ANY, "upscale": ANY, "training": ANY} | changes))


def test_a_megapixel_in_a_step_costs_the_rate():
    prices = table()
    assert prices.price_artifact(model="m", width=1000, height=1000, step_count=1) == 7
    assert prices.price_artifact(model="m", width=1000, height=1000, step_count=30) == 210
    assert prices.price_upscale(model="m", output_pixels=4_000_000) == 28
    assert prices.price_training(model="m", step_count=1000) == 7000


def test_a_part_of_a_millicredit_is_a_whole_one():
    assert table().price_artifact(model="m", width=1, height=1, step_count=1) == 1
    assert table().price_upscale(model="m", output_pixels=1_000_001) == 8


@given(SIDES, SIDES, st.integers(1, 500), st.integers(1, 16))
def test_an_estimate_is_the_sum_of_its_artifacts(width, height, step_count, sample_count):
    size = {"model": "m", "width": width, "height": height, "step_count": step_count}
    whole = DEFAULT_PRICES.price_generation(**size, sample_count=sample_count)
    assert whole == sample_count * DEFAULT_PRICES.price_artifact(**size)
    assert whole >= sample_count


def test_the_first_rate_that_matches_a_model_counts():
    prices = table(generation=(Rate(models="sdxl*", millicredits=100), *ANY))
    costs = [
        prices.price_artifact(model=model, width=1000, height=1000, step_count=1)
        for model in ("sdxl-base", "sd15", "SDXL")
    ]
    assert costs == [100, 7, 7]


@pytest.mark.parametrize("kind", ["generation", "upscale", "training"])
@pytest.mark.parametrize("rates", [(), (Rate(models="sdxl*", millicredits=1),)])
def test_a_table_that_leaves_a_model_without_a_price_is_refused(kind, rates):
    with pytest.raises(ValueError, match=f"{kind}: the last rate"):
        table(**{kind: rates})


def test_a_file_sets_the_prices(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(
        'generation: [{models: "sdxl*", millicredits: 64}, {models: "*", millicredits: 1}]\n'
        'upscale: [{models: "*", millicredits: 2}]\ntraining: [{models: "*", millicredits: 3}]\n'
    )
    prices = read_prices(path)
    assert prices.generation == (
        Rate(models="sdxl*", millicredits=64),
        Rate(models="*", millicredits=1),
    )
    assert prices.price_upscale(model="m", output_pixels=1_000_000) == 2
    assert prices.price_training(model="m", step_count=1) == 3
    assert read_prices(None) == DEFAULT_PRICES


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text('generation: []\nupscale: [{models: "*", millicredits: -2}]\nvideo: 5\n')
    with pytest.raises(ConfigurationFileError) as raised:
        read_prices(path)
    said = str(raised.value)
    assert "generation: the last rate must be for the models '*'" in said
    assert "upscale.0.millicredits: should be greater than or equal to 0" in said
    assert "training: is required" in said
    assert "video: is not a setting" in said


def test_a_negative_rate_is_refused():
    with pytest.raises(ValueError, match="-1"):
        Rate(models="*", millicredits=-1)


async def test_a_price_that_changes_counts_for_the_next_request(tmp_path):
    path = tmp_path / "prices.yaml"
    text = 'generation: [{models: "*", millicredits: PRICE}]\n'
    text += (
        'upscale: [{models: "*", millicredits: 2}]\ntraining: [{models: "*", millicredits: 3}]\n'
    )
    path.write_text(text.replace("PRICE", "64"))
    async with backend() as fake, running_gateway(tmp_path, fake, prices_file=path) as door:

        async def price():
            async for _ in door.generate(width=1000, height=1000, step_count=1):
                pass
            return door.admission.leases[-1].request.artifact_millicredits

        assert await price() == 64
        path.write_text(text.replace("PRICE", "-1"))
        await until(lambda: door.metric("gateway_file_errors_total", file="prices") == 1)
        assert await price() == 64
        path.write_text(text.replace("PRICE", "96"))

        async def is_heeded():
            return await price() == 96

        await until(is_heeded)
