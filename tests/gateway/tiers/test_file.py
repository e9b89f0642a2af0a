import os
from pathlib import Path

import pytest

from services.gateway.configuration_file import ConfigurationFileError
from services.gateway.tiers.file import read_tiers

TIER = """
  research:
    requests_per_minute: 120
    burst: 30
    concurrent_requests: 8
    monthly_requests: null
    monthly_millicredits: 5_000_000
    models: ["sd*", limner-emoji]
    max_pixels: 1048576
    max_step_count: 100
    max_sample_count: 8
    max_upscaled_megapixels: 64
    priority: -100
    queue_share: 1
"""


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "tiers.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_tiers(path)

    return read


def mistakes(read, text):
    with pytest.raises(ConfigurationFileError) as raised:
        read(text)
    return str(raised.value)


def test_a_tier_is_what_the_file_says(read):
    tier = read("tiers:" + TIER)["research"]
    assert tier.name == "research"
    assert (tier.requests_per_minute, tier.burst, tier.concurrent_requests) == (120, 30, 8)
    assert (tier.monthly_requests, tier.monthly_millicredits) == (None, 5_000_000)
    assert (tier.priority, tier.queue_share, tier.shadow) == (-100, 1.0, False)
    assert tier.models == ("sd*", "limner-emoji")


def test_patterns_say_which_models_are_allowed(read):
    tier = read("tiers:" + TIER)["research"]
    allowed = ("sd15", "sdxl", "limner-emoji", "limner-emoji-2", "SD15")
    assert [tier.allows_model(name) for name in allowed] == [True, True, True, False, False]


def test_all_mistakes_are_told_at_once_each_with_its_place(read):
    text = (
        "tiers:"
        + TIER.replace("burst: 30", "burst: 0")
        .replace("requests_per_minute: 120", 'requests_per_minute: "120"')
        .replace("queue_share: 1", "queue_share: 1.5")
        .replace("priority: -100", "priority: 1001")
        .replace('models: ["sd*", limner-emoji]', "models: []")
        .replace("max_pixels", "max_pixles")
        + "  Loud: {}\n"
    )
    said = mistakes(read, text)
    for place in ("requests_per_minute", "burst", "queue_share", "priority", "models"):
        assert f"tiers.research.{place}: " in said
    assert "tiers.research.max_pixels: is required" in said
    assert "tiers.research.max_pixles: is not a setting" in said
    assert "tiers.Loud" in said


def test_a_limit_that_is_left_out_is_a_mistake_not_a_surprise(read):
    said = mistakes(read, "tiers:" + TIER.replace("    monthly_requests: null\n", ""))
    assert said.count("\n") == 1
    assert "tiers.research.monthly_requests: is required" in said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "tiers: 5",
        "tires: {}",
        "tiers: {a: [",
        b"\xff\xfe\x00",
        "tiers:" + TIER + TIER.replace("120", "1"),
        "? [1]\n: 2",
        "tiers: !!python/object/apply:os.getcwd []",
    ],
)
def test_what_is_no_file_of_tiers_is_refused(read, text):
    assert "tiers.yaml" in mistakes(read, text)


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(ConfigurationFileError, match=r"nowhere\.yaml cannot be read"):
        read_tiers(Path("nowhere.yaml"))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_has_no_end_to_read_to_is_refused(tmp_path, make):
    path = tmp_path / "tiers.yaml"
    make(path)
    with pytest.raises(ConfigurationFileError, match=r"cannot be read: it is no regular file"):
        read_tiers(path)
