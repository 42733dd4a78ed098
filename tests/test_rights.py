"""Which paths devices may use."""

from __future__ import annotations

import pytest

from coapgate.model import Tenant
from coapgate.rights import Offer, Rights, RightsTable, Rule, make_rule

ACME = Tenant("acme")


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        ("temperature", ["temperature"], ["temperature/1", "temperatures", "x/temperature", ""]),
        ("rooms/+/light", ["rooms/1/light"], ["rooms/light", "rooms/1/2/light", "rooms//light"]),
        ("logs/#", ["logs", "logs/a", "logs/a/b"], ["log", "logsa", "x/logs"]),
        ("+", ["a"], ["a/b", ""]),
        ("a.c", ["a.c"], ["abc"]),
        ("+/#", ["a", "a/b/c"], [""]),
    ],
)
def test_a_pattern_covers_paths_as_mqtt_does(
    pattern: str, allowed: list[str], refused: list[str]
) -> None:
    rule = Rule([pattern])

    assert [path for path in allowed + refused if rule.allows(path)] == allowed


def test_without_a_pattern_nothing_is_allowed() -> None:
    assert not Rule([]).allows("a")
    assert not Rule([]).allows("")


def test_what_covers_everything_is_never_asked() -> None:
    assert make_rule(["temperature", "#"]) is None


def test_a_tenant_without_a_table_has_that_of_all_others_or_every_right() -> None:
    own = Rights(post=Rule(["a"]))
    others = Rights(read=Rule([]))

    assert RightsTable({"acme": own, "*": others}).of(ACME) is own
    assert RightsTable({"acme": own, "*": others}).of(Tenant("umbrella")) is others
    assert RightsTable({"acme": own}).of(Tenant("umbrella")) == Rights()


def test_paths_that_the_table_names_are_offered_to_whoever_may_use_them() -> None:
    rights = Rights(
        post=Rule(["temperature", "logs/#"]), read=Rule(["config"]), observe=Rule(["config", "x"])
    )
    table = RightsTable({"acme": rights})

    assert list(table.offers(ACME)) == [
        Offer("config", post=False, read=True, observe=True),
        Offer("temperature", post=True, read=False, observe=False),
        Offer("x", post=False, read=False, observe=False),
    ]
    assert list(table.offers(Tenant("umbrella"))) == []


def test_a_tenant_that_one_use_does_not_name_has_that_of_all_others_there() -> None:
    table = RightsTable.of_patterns(
        post={"acme": ["temperature"]},
        read={"*": ["config"]},
        observe={},
        replies={"umbrella": ["apps/"]},
    )

    acme, umbrella, other = (table.of(Tenant(name)) for name in ("acme", "umbrella", "other"))
    assert acme.post is not None
    assert acme.post.concrete == ("temperature",)
    assert umbrella.post is None
    for rights in (acme, umbrella, other):
        assert rights.read is not None
        assert rights.read.concrete == ("config",)
        assert rights.observe is None
    assert (acme.replies, umbrella.replies) == ((), ("apps/",))
