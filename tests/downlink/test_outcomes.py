"""What backends are told about their requests."""

from __future__ import annotations

import json

import pytest

from coapgate.coap.content import CONTENT_TYPES
from coapgate.downlink.outcomes import Answer, Renderer, RequestOutcome, code_text
from coapgate.downlink.requests import Origin
from coapgate.model import Code, DeviceId, Tenant
from coapgate.outbox import Notice
from tests.downlink.values import WALL

ORIGIN = Origin(
    Tenant("acme"), DeviceId("sensor-1"), "GET", "led", "gate/acme/reply/app", b"\x00\xff"
)
RENDERER = Renderer("gate", CONTENT_TYPES)


def rendered(
    origin: Origin = ORIGIN,
    outcome: RequestOutcome = RequestOutcome.ANSWERED,
    *,
    reason: str = "",
    answer: Answer | None = None,
) -> Notice:
    notice = RENDERER.render(origin, outcome, WALL, reason=reason, answer=answer, settles=7)
    assert notice is not None
    return notice


def test_an_answer_goes_to_the_response_topic_as_the_device_gave_it() -> None:
    notice = rendered(answer=Answer(Code.CONTENT, 50, b"{}"))

    assert (notice.topic, notice.payload) == ("gate/acme/reply/app", b"{}")
    assert (notice.content_type, notice.correlation) == ("application/json", b"\x00\xff")
    assert notice.properties == (
        ("outcome", "answered"),
        ("tenant", "acme"),
        ("device", "sensor-1"),
        ("coap-code", "2.05"),
    )
    assert notice.settles == 7
    assert not notice.retain


def test_a_content_format_without_a_content_type_is_told_by_its_number() -> None:
    notice = rendered(answer=Answer(Code.CONTENT, 65000, b""))

    assert notice.content_type is None
    assert notice.properties[-1] == ("content-format", "65000")


def test_if_the_broker_does_not_take_an_answer_the_event_says_that_there_was_one() -> None:
    instead = rendered(answer=Answer(Code.CONTENT, 0, b"secret")).instead

    assert instead is not None
    assert instead.topic == "gate/acme/sensor-1/event/request"
    assert b"secret" not in instead.payload
    assert json.loads(instead.payload)["code"] == "2.05"
    assert instead.settles == 7


@pytest.mark.parametrize("outcome", list(RequestOutcome)[1:])
def test_without_an_answer_the_outcome_is_all_there_is(outcome: RequestOutcome) -> None:
    notice = rendered(outcome=outcome, reason="because")

    assert notice.payload == b""
    assert dict(notice.properties)["outcome"] == outcome.value
    assert dict(notice.properties)["reason"] == "because"
    assert "coap-code" not in dict(notice.properties)


def test_without_a_response_topic_everything_is_in_the_event() -> None:
    notice = rendered(ORIGIN._replace(response_topic=None), RequestOutcome.EXPIRED, reason="late")

    assert notice.topic == "gate/acme/sensor-1/event/request"
    assert notice.content_type == "application/json"
    assert json.loads(notice.payload) == {
        "at": "2026-01-01T00:00:00.250Z",
        "event": "request",
        "outcome": "expired",
        "method": "GET",
        "path": "led",
        "reason": "late",
        "correlation": "00ff",
    }


def test_whoever_named_neither_a_device_nor_a_topic_is_told_nothing() -> None:
    origin = ORIGIN._replace(device=None, response_topic=None)

    assert RENDERER.render(origin, RequestOutcome.REJECTED, WALL) is None
    there = rendered(ORIGIN._replace(device=None), RequestOutcome.REJECTED)
    assert there.instead is None


def test_codes_are_written_as_people_do() -> None:
    assert [code_text(code) for code in (0x45, 0x84, 0xA0, 0x8D)] == [
        "2.05",
        "4.04",
        "5.00",
        "4.13",
    ]
