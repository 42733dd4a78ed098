"""What a backend may ask of a device, and where the answer may go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coapgate.downlink.requests import Parser, Rejection, Request
from coapgate.model import Code
from coapgate.mqtt.subscriptions import Heard
from coapgate.rights import Rights, RightsTable
from tests.downlink.values import FORMATS, WALL, heard

TOPIC = "acme/sensor-1/request/POST/led"


def parse(publication: Heard) -> Request | Rejection | None:
    rights = RightsTable({"acme": Rights(replies=("apps/acme/", "gate/acme/"))})
    parser = Parser("gate", rights, FORMATS, hold_time=86400.0, max_body=1024)
    return parser.parse(publication, WALL)


def parsed(publication: Heard) -> Request:
    request = parse(publication)
    assert isinstance(request, Request), request
    return request


def reason(publication: Heard) -> str:
    rejection = parse(publication)
    assert isinstance(rejection, Rejection), rejection
    return rejection.reason


def test_a_request_says_whom_it_is_for_and_what_it_asks() -> None:
    request = parsed(
        heard(
            "acme/sensor-1/request/put/led/1",
            b"on",
            content_type="Text/Plain;charset=utf-8",
            response_topic="gate/acme/reply/app-7",
            correlation=b"\x00\xff",
            expires_in=60,
            properties=(("coap-query", "unit=C&n=1"),),
        )
    )

    assert request.key == ("acme", "sensor-1")
    assert (request.code, request.origin.path, request.query) == (Code.PUT, "led/1", "unit=C&n=1")
    assert (request.content_format, request.payload) == (0, b"on")
    assert request.origin.response_topic == "gate/acme/reply/app-7"
    assert request.origin.correlation == b"\x00\xff"
    assert request.expires_at == WALL + 60


def test_a_request_that_says_nothing_waits_for_the_default_time() -> None:
    request = parsed(heard(TOPIC))

    assert request.expires_at == WALL + 86400.0
    assert (request.query, request.content_format, request.origin.response_topic) == (
        "",
        None,
        None,
    )


def test_no_request_waits_longer_than_is_allowed() -> None:
    assert parsed(heard(TOPIC, expires_in=4_294_967_295)).expires_at == WALL + 604_800


def test_every_request_has_a_number_of_its_own() -> None:
    parser = Parser("gate", RightsTable({}), FORMATS, hold_time=1.0, max_body=9, first_number=41)
    numbers = [parser.parse(heard(TOPIC), WALL) for _ in range(3)]

    assert [each.number for each in numbers if isinstance(each, Request)] == [41, 42, 43]


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("acme/sensor-1/request/POST", "path segment is empty"),
        ("acme/sensor-1/request/POST/", "path segment is empty"),
        ("acme/sensor-1/request/POST/a//b", "path segment is empty"),
        ("acme/sensor-1/request/POST/a/../b", "path segment is . or .."),
        ("acme/sensor-1/request/POST/a%2Fb", "path segment holds a slash"),
        ("acme/sensor-1/request/POST/$SYS", "path segment begins with $"),
        ("acme/sensor-1/request/POST/a\x85", "path has a control character"),
        ("acme/sensor-1/request/POST/" + "x" * 256, "path is too long"),
        ("acme/sensor-1/request/POST/" + "/".join("x" * 33), "path has more than 32 segments"),
        ("acme/sensor 1/request/POST/led", "no device can have this name"),
    ],
)
def test_a_request_on_a_malformed_topic_is_rejected_with_its_reason(
    topic: str, expected: str
) -> None:
    assert reason(heard(topic)) == expected


def test_a_method_that_coap_does_not_have_is_rejected() -> None:
    methods = "get, post, put, delete, fetch, patch, ipatch"

    assert reason(heard("acme/sensor-1/request/BREW/pot")) == f"method is none of {methods}"


def test_a_topic_without_a_tenant_can_be_answered_to_nobody() -> None:
    assert parse(heard("ac me/sensor-1/request/POST/led")) is None
    assert parse(heard("/sensor-1/request/POST/led")) is None
    assert parse(heard(TOPIC)._replace(topic="other/acme/sensor-1/request/POST/led")) is None


@pytest.mark.parametrize(
    "topic", ["gate/acme/reply/app", "gate/acme/reply/a/b", "apps/acme/x", "gate/acme/answers/7"]
)
def test_answers_go_where_the_operator_allows_it(topic: str) -> None:
    assert parsed(heard(TOPIC, response_topic=topic)).origin.response_topic == topic


@pytest.mark.parametrize(
    "topic",
    [
        "gate/umbrella/reply/app",  # another tenant's
        "gate/acme/reply/#",
        "gate/acme/reply/+/x",
        "gate/acme/reply/a\x01",
        "gate/acme/reply/" + "x" * 255,
        "gate/acme/reply/" + "x/" * 220,
        "$SYS/broker",
        "apps/umbrella/x",
        "apps/acme",
        "",
    ],
)
def test_a_response_topic_anywhere_else_is_rejected(topic: str) -> None:
    rejection = parse(heard(TOPIC, response_topic=topic))

    assert isinstance(rejection, Rejection)
    assert rejection.reason.startswith("Response Topic")
    assert rejection.origin.response_topic is None, "the outcome goes to event/request"


@pytest.mark.parametrize("topic", ["gate/acme/reply", "gate/acme/reply/", "gate/acme/x"])
def test_without_a_prefix_of_its_own_a_tenant_has_its_reply_topics_alone(topic: str) -> None:
    parser = Parser("gate", RightsTable({}), FORMATS, hold_time=1.0, max_body=9)

    assert isinstance(parser.parse(heard(TOPIC, response_topic=topic), WALL), Rejection)


@pytest.mark.parametrize(
    "topic",
    [
        "gate/acme/reply/up/temperature",  # a device may be named reply
        "gate/acme/sensor-2/up/temperature",
        "gate/acme/sensor-2/down/config",
        "gate/acme/sensor-2/request/POST/led",
        "gate/acme/sensor-2/event/connected",
        "gate/acme/sensor-2/status",
    ],
)
def test_no_answer_looks_like_the_word_of_a_device_or_of_the_gateway(topic: str) -> None:
    # Even where a prefix that the operator configured would allow it.
    assert reason(heard(TOPIC, response_topic=topic)).endswith("to a device or to the gateway")


def test_a_request_that_asks_itself_is_rejected() -> None:
    topic = "gate/acme/sensor-1/request/POST/led"

    assert reason(heard(TOPIC, response_topic=topic)).startswith("Response Topic")


def test_long_correlation_data_is_rejected_and_not_sent_back() -> None:
    assert parsed(heard(TOPIC, correlation=b"x" * 128)).origin.correlation == b"x" * 128
    rejection = parse(heard(TOPIC, correlation=b"x" * 129))

    assert isinstance(rejection, Rejection)
    assert rejection.reason == "Correlation Data has more than 128 octets"
    assert rejection.origin.correlation is None


def test_a_body_beyond_the_limit_is_rejected() -> None:
    assert parsed(heard(TOPIC, b"x" * 1024)).payload == b"x" * 1024
    assert reason(heard(TOPIC, b"x" * 1025)).startswith("body has more than 1024 octets")


@pytest.mark.parametrize("query", ["a\x00", "q" * 1025])
def test_a_query_no_device_can_be_asked_is_rejected(query: str) -> None:
    properties = (("coap-query", query),)

    assert reason(heard(TOPIC, properties=properties)).startswith("coap-query")


def test_a_content_format_is_found_by_type_or_by_number() -> None:
    def found(content_type: str | None, *properties: tuple[str, str]) -> int | None:
        publication = heard(TOPIC, content_type=content_type, properties=properties)
        return parsed(publication).content_format

    assert found("application/json") == 50
    assert found("application/CBOR") == 60
    assert found("text/plain") == 0
    assert found("text/plain; charset=utf-8") == 0
    assert found("application/x-unheard-of") is None
    assert found(None, ("content-format", "65000")) == 65000
    assert found(None) is None
    for number in ("65536", "-1", "x", "999999"):
        bad = heard(TOPIC, properties=(("content-format", number),))
        assert reason(bad) == "content-format is no number from 0 to 65535"


def test_a_retained_request_is_rejected() -> None:
    assert reason(heard(TOPIC, retain=True)) == "a request must not be retained"


TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)


@given(
    st.lists(
        st.sampled_from(["gate", "acme", "sensor-1", "request", "POST", "led", "", "+"]) | TEXTS
    ),
    st.none() | TEXTS | st.just("gate/acme/reply/x"),
    st.none() | st.binary(max_size=200),
    st.lists(
        st.tuples(st.sampled_from(["coap-query", "content-format"]) | TEXTS, TEXTS), max_size=3
    ),
)
def test_whatever_is_published_is_a_request_or_has_a_reason_or_is_dropped(
    levels: list[str],
    response_topic: str | None,
    correlation: bytes | None,
    properties: list[tuple[str, str]],
) -> None:
    publication = heard(
        "",
        response_topic=response_topic,
        correlation=correlation,
        properties=tuple(properties),
    )
    parsed = parse(publication._replace(topic="/".join(levels)))

    assert not isinstance(parsed, Rejection) or parsed.reason
    if isinstance(parsed, Request):
        assert parsed.origin.path == "/".join(levels[5:])
