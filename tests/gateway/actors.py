"""Who makes changes in tests."""

from services.gateway.audit import Actor

ACTOR = Actor(account="tests", key_id="", request_id="tests")
