import asyncio
from contextlib import asynccontextmanager

import pytest

from services.gateway.configuration_file import ConfigurationFileError
from services.gateway.tiers import (
    BUILT_IN_TIERS,
    DEFAULT_TIER,
    UNLIMITED_TIER,
    TierCatalog,
    UnknownTierError,
)
from tests.gateway.tiers.test_file import TIER
from tests.gateway.waiting import until


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tiers.yaml"
    path.write_text("tiers:" + TIER)
    return path


@asynccontextmanager
async def followed(path, **options):
    catalog = TierCatalog(path, poll_interval_s=0.01, **options)
    following = asyncio.create_task(catalog.follow())
    try:
        yield catalog
    finally:
        following.cancel()


def test_without_a_file_there_are_the_built_in_tiers():
    names = [tier.name for tier in TierCatalog().list_tiers()]
    assert names == ["enterprise", "free", "pro", "unlimited"]
    assert {DEFAULT_TIER, UNLIMITED_TIER} <= BUILT_IN_TIERS.keys()


def test_a_file_adds_tiers_and_replaces_built_in_ones(path):
    path.write_text("tiers:" + TIER + TIER.replace("research:", "free:"))
    catalog = TierCatalog(path)
    assert catalog.get("research").burst == catalog.get("free").burst == 30
    assert catalog.get("pro") == BUILT_IN_TIERS["pro"]


def test_an_unknown_tier_is_told_with_those_that_exist(path):
    with pytest.raises(UnknownTierError, match="'gold'; there is: enterprise, free, pro, research"):
        TierCatalog(path).get("gold")


def test_a_bad_file_at_the_start_is_an_error(path):
    path.write_text("tiers: 5")
    with pytest.raises(ConfigurationFileError):
        TierCatalog(path)


async def test_a_change_of_the_file_is_followed(path):
    async with followed(path) as catalog:
        path.write_text("tiers:" + TIER.replace("burst: 30", "burst: 310"))
        await until(lambda: catalog.get("research").burst == 310)
        path.write_text("tiers: {}")
        await until(lambda: "research" not in [tier.name for tier in catalog.list_tiers()])


async def test_a_file_behind_a_link_that_is_swapped_is_followed(path, tmp_path):
    """As Kubernetes updates a mounted ConfigMap."""
    link, other = tmp_path / "link", tmp_path / "other.yaml"
    other.write_text("tiers:" + TIER.replace("burst: 30", "burst: 31"))
    link.symlink_to(path)
    async with followed(link) as catalog:
        (tmp_path / "draft").symlink_to(other)
        (tmp_path / "draft").replace(link)
        await until(lambda: catalog.get("research").burst == 31)


async def test_a_broken_file_keeps_the_last_good_one_and_is_counted_once(path, caplog):
    failures = []
    async with followed(path, on_failure=lambda: failures.append(1)) as catalog:
        path.write_text("tiers:" + TIER.replace("burst: 30", "burst: none at all"))
        await until(lambda: bool(failures))
        await asyncio.sleep(0.1)
        assert catalog.get("research").burst == 30
        assert failures == [1]
        assert "tiers.research.burst" in caplog.records[-1].why
        path.unlink()
        await until(lambda: len(failures) == 2)
        assert catalog.get("research").burst == 30
        path.write_text("tiers:" + TIER.replace("burst: 30", "burst: 31"))
        await until(lambda: catalog.get("research").burst == 31)
