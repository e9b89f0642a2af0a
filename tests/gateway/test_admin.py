"""AdminService over a real channel: who may, what is refused, pages, what a change does."""

from datetime import timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from limner.v1 import account_pb2, account_pb2_grpc, admin_pb2, admin_pb2_grpc
from services.gateway.key_format import is_well_formed
from services.gateway.scopes import DEFAULT_SCOPES
from tests.gateway.actors import ACTOR
from tests.gateway.harness import PEPPER, reason, running_gateway

METHODS = sorted(
    method.name for method in admin_pb2.DESCRIPTOR.services_by_name["AdminService"].methods
)


@pytest.fixture
async def door(tmp_path):
    async with running_gateway(tmp_path, "127.0.0.1:1", wait=False) as running:
        yield running


@pytest.fixture
def call(door):
    """Calls a method by name; the key is an admin's unless given."""
    stub = admin_pb2_grpc.AdminServiceStub(door.channel)

    async def call(method, *, key=None, request_id=None, **fields):
        request = getattr(admin_pb2, f"{method}Request")(**fields)
        metadata = [("authorization", f"Bearer {key or door.key}")]
        if request_id is not None:
            metadata.append(("x-request-id", request_id))
        return await getattr(stub, method)(request, metadata=metadata)

    return call


@pytest.fixture
def refusal(call):
    async def refusal(method, **fields):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(method, **fields)
        return raised.value

    return refusal


def violations(error):
    """Field and reason of every violation, in order."""
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = error_details_pb2.BadRequest()
    assert rpc_status.from_call(error).details[1].Unpack(found)
    return [(each.field, each.reason) for each in found.field_violations]


@pytest.mark.parametrize("method", METHODS)
async def test_every_method_asks_for_the_scope_admin_before_anything_else(door, refusal, method):
    key, _ = await door.store.create_key(
        account="acme", name="n", pepper=PEPPER.encode(), actor=ACTOR, scopes=DEFAULT_SCOPES
    )
    error = await refusal(method, key=key.text)
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert reason(error) == "SCOPE_MISSING"


async def test_an_account_goes_through_its_life(call):
    created = (await call("CreateAccount", name="research")).account
    assert (created.name, created.tier) == ("research", "free")
    assert not created.HasField("suspend_time")
    assert (await call("SetAccountTier", account="research", tier="pro")).account.tier == "pro"
    suspended = (await call("SuspendAccount", account="research")).account
    assert suspended.HasField("suspend_time")
    assert not (await call("ResumeAccount", account="research")).account.HasField("suspend_time")
    listed = (await call("ListAccounts")).accounts
    assert [(each.name, each.tier) for each in listed] == [
        ("acme", "unlimited"),
        ("research", "pro"),
    ]


async def test_what_does_not_exist_or_exists_already_has_its_reason(refusal):
    unknown = {"account": "nobody"}
    for method, fields in (
        ("SetAccountTier", {**unknown, "tier": "pro"}),
        ("SuspendAccount", unknown),
        ("ResumeAccount", unknown),
        ("GetAccountUsage", unknown),
        ("GrantCredits", {**unknown, "millicredits": 1}),
        ("CreateKey", {**unknown, "name": "n"}),
    ):
        error = await refusal(method, **fields)
        assert (error.code(), reason(error)) == (
            grpc.StatusCode.NOT_FOUND,
            "ACCOUNT_NOT_FOUND",
        ), method
    for method in ("RotateKey", "RevokeKey"):
        assert reason(await refusal(method, key_id="abcdefghijkl")) == "KEY_NOT_FOUND"
    error = await refusal("CreateAccount", name="acme")
    assert (error.code(), reason(error)) == (grpc.StatusCode.ALREADY_EXISTS, "ACCOUNT_EXISTS")


@pytest.mark.parametrize(
    ("method", "fields", "expected"),
    [
        (
            "CreateAccount",
            {"name": "No Good", "tier": "gold"},
            [("name", "INVALID_NAME"), ("tier", "UNKNOWN_TIER")],
        ),
        (
            "SetAccountTier",
            {"account": ""},
            [("account", "INVALID_NAME"), ("tier", "UNKNOWN_TIER")],
        ),
        ("SuspendAccount", {"account": "A"}, [("account", "INVALID_NAME")]),
        ("ResumeAccount", {"account": "a" * 101}, [("account", "INVALID_NAME")]),
        (
            "GetAccountUsage",
            {"account": "-", "period": "2026-13"},
            [("account", "INVALID_NAME"), ("period", "INVALID_PERIOD")],
        ),
        (
            "GrantCredits",
            {"account": "", "millicredits": -5, "note": "a\0b"},
            [
                ("account", "INVALID_NAME"),
                ("millicredits", "OUT_OF_RANGE"),
                ("note", "INVALID_NOTE"),
            ],
        ),
        (
            "CreateKey",
            {"account": "", "name": " ", "scopes": [1, 0, 99], "lifetime": Duration(seconds=1)},
            [
                ("account", "INVALID_NAME"),
                ("name", "INVALID_NAME"),
                ("scopes[1]", "INVALID_SCOPE"),
                ("scopes[2]", "INVALID_SCOPE"),
                ("lifetime", "OUT_OF_RANGE"),
            ],
        ),
        (
            "RotateKey",
            {"key_id": "", "overlap": Duration(seconds=-1)},
            [("key_id", "REQUIRED"), ("overlap", "OUT_OF_RANGE")],
        ),
        ("RotateKey", {"key_id": "x", "overlap": Duration(seconds=2**62)}, [
            ("key_id", "INVALID_KEY_ID"), ("overlap", "OUT_OF_RANGE"),
        ]),
        ("RevokeKey", {"key_id": "a'b\0"}, [("key_id", "INVALID_KEY_ID")]),
        (
            "ListAccounts",
            {"page_size": 1001, "page_token": "nonsense"},
            [("page_size", "OUT_OF_RANGE"), ("page_token", "INVALID_PAGE_TOKEN")],
        ),
        (
            "ListKeys",
            {"account": "A", "page_size": -1, "page_token": "YQ=="},
            [
                ("account", "INVALID_NAME"),
                ("page_size", "OUT_OF_RANGE"),
                ("page_token", "INVALID_PAGE_TOKEN"),
            ],
        ),
        (
            "ListAuditEntries",
            {"account": "A", "page_token": "LTE="},
            [("account", "INVALID_NAME"), ("page_token", "INVALID_PAGE_TOKEN")],
        ),
    ],
)  # fmt: skip
async def test_every_violation_of_a_request_is_told(refusal, method, fields, expected):
    assert violations(await refusal(method, **fields)) == expected


async def test_a_new_key_works_is_shown_once_and_listed_without_its_text(door, call):
    lifetime = Duration(seconds=3600)
    made = await call(
        "CreateKey", account="acme", name="ci", scopes=[account_pb2.SCOPE_TRAIN], lifetime=lifetime
    )
    assert is_well_formed(made.text)
    assert made.key.id == made.text.split("_")[2]
    assert made.key.state == admin_pb2.Key.STATE_ACTIVE
    assert made.key.expire_time.seconds == made.key.create_time.seconds + 3600
    stub = account_pb2_grpc.AccountServiceStub(door.channel)
    answer = await stub.GetAccount(
        account_pb2.GetAccountRequest(), metadata=[("authorization", f"Bearer {made.text}")]
    )
    assert (answer.key_id, list(answer.scopes)) == (made.key.id, [account_pb2.SCOPE_TRAIN])
    listed = await call("ListKeys", account="acme")
    assert listed.keys[1] == made.key
    assert made.text.split("_")[3] not in str(listed)


async def test_without_scopes_a_key_may_do_all_but_administer(call):
    made = await call("CreateKey", account="acme", name="n")
    assert account_pb2.SCOPE_ADMIN not in made.key.scopes
    assert len(made.key.scopes) == 3


async def test_a_rotation_answers_with_both_keys(call):
    old = (await call("CreateKey", account="acme", name="n")).key
    rotated = await call("RotateKey", key_id=old.id)
    assert rotated.replaced_key.id == old.id
    assert rotated.replaced_key.replaced_by == rotated.key.id == rotated.text.split("_")[2]
    day = timedelta(days=1).total_seconds()
    assert rotated.replaced_key.expire_time.seconds == rotated.key.create_time.seconds + day
    again = (await call("ListKeys")).keys
    assert [key.state for key in again] == [admin_pb2.Key.STATE_ACTIVE] * 3


async def test_a_rotation_without_overlap_ends_the_old_key_at_once(call):
    old = (await call("CreateKey", account="acme", name="n")).key
    rotated = await call("RotateKey", key_id=old.id, overlap=Duration())
    assert rotated.replaced_key.state == admin_pb2.Key.STATE_EXPIRED


async def test_a_key_in_the_wrong_state_is_a_failed_precondition(call, refusal):
    key = (await call("CreateKey", account="acme", name="n")).key
    assert (await call("RevokeKey", key_id=key.id)).key.state == admin_pb2.Key.STATE_REVOKED
    for method in ("RevokeKey", "RotateKey"):
        error = await refusal(method, key_id=key.id)
        assert (error.code(), reason(error)) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "KEY_REVOKED",
        )


async def test_lists_come_in_pages_that_hold_everything_once(call):
    for number in range(5):
        await call("CreateAccount", name=f"a{number}")
        await call("CreateKey", account=f"a{number}", name="n")

    async def everything(method, field, identify):
        seen, token = [], ""
        while True:
            page = await call(method, page_size=2, page_token=token)
            assert len(getattr(page, field)) <= 2
            seen += [identify(each) for each in getattr(page, field)]
            token = page.next_page_token
            if not token:
                return seen

    names = ["a0", "a1", "a2", "a3", "a4", "acme"]
    assert await everything("ListAccounts", "accounts", lambda each: each.name) == names
    assert sorted(await everything("ListKeys", "keys", lambda each: each.account)) == names
    entries = await everything("ListAuditEntries", "entries", lambda each: each.id)
    assert entries == sorted(entries, reverse=True)
    assert len(entries) == 12


async def test_a_grant_is_in_the_usage_and_repeating_the_request_adds_nothing(call):
    await call("CreateAccount", name="research")
    for _ in range(2):
        granted = await call(
            "GrantCredits", account="research", millicredits=2500, note="demo", request_id="once"
        )
        assert granted.usage.granted_millicredits == 2500
    usage = (await call("GetAccountUsage", account="research")).usage
    assert usage == granted.usage
    assert (usage.tier, usage.request_limit) == ("free", 1000)
    assert usage.credit_limit_millicredits == 500_000
    assert usage.remaining_millicredits == 502_500
    assert usage.start_time.ToDatetime() < usage.end_time.ToDatetime()
    past = (await call("GetAccountUsage", account="research", period="2020-02")).usage
    assert (past.period, past.granted_millicredits) == ("2020-02", 0)


async def test_an_account_without_limits_has_none_in_its_usage(call):
    usage = (await call("GetAccountUsage", account="acme")).usage
    for field in ("request_limit", "credit_limit_millicredits", "remaining_millicredits"):
        assert not usage.HasField(field)


async def test_the_audit_log_tells_who_did_what_with_which_call(door, call):
    await call("CreateAccount", name="research", request_id="the-call")
    entry = (await call("ListAuditEntries", account="research")).entries[0]
    assert (entry.action, entry.account, entry.actor_account) == (
        "account.create",
        "research",
        "acme",
    )
    assert (entry.actor_key_id, entry.request_id) == (door.key_id, "the-call")
    assert entry.details_json == '{"tier": "free"}'


async def test_tiers_are_listed_as_the_file_has_them(tmp_path):
    path = tmp_path / "tiers.yaml"
    path.write_text(
        "tiers: {lab: {requests_per_minute: 1, burst: 2, concurrent_requests: 3,"
        " monthly_requests: null, monthly_millicredits: 5, models: [a, b], max_pixels: 6,"
        " max_step_count: 7, max_sample_count: 8, max_upscaled_megapixels: 9, priority: -10,"
        " queue_share: 0.5, shadow: true}}"
    )
    async with running_gateway(tmp_path, "127.0.0.1:1", wait=False, tiers_file=path) as door:
        stub = admin_pb2_grpc.AdminServiceStub(door.channel)
        answer = await stub.ListTiers(admin_pb2.ListTiersRequest(), metadata=door.authorization)
    assert [tier.name for tier in answer.tiers] == ["enterprise", "free", "lab", "pro", "unlimited"]
    lab = answer.tiers[2]
    assert not lab.HasField("monthly_requests")
    assert (lab.monthly_millicredits, list(lab.models), lab.shadow) == (5, ["a", "b"], True)
    assert (lab.priority, lab.queue_share, lab.max_upscaled_megapixels) == (-10, 0.5, 9)


async def test_a_database_that_is_away_is_unavailable(door, call, refusal):
    await call("ListAccounts")
    async with door.store.engine.begin() as connection:
        await connection.exec_driver_sql("ALTER TABLE accounts RENAME TO hidden")
    error = await refusal("ListAccounts")
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "SELECT" not in error.details()
    async with door.store.engine.begin() as connection:
        await connection.exec_driver_sql("ALTER TABLE hidden RENAME TO accounts")
