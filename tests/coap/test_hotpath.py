"""Which request goes where, and how an uplink is published."""

from __future__ import annotations

import pytest

from coapgate.coap.counts import Counts
from coapgate.model import Code
from tests.coap.gate import CON, CONTENT_FORMAT, NO_RESPONSE, NON, URI_PATH, Gate, message

SITE = [".well-known/core", "time", "hello"]


def ask(code: int, path: str, kind: int = CON) -> tuple[Gate, int | None]:
    """What a request is answered with at once; None: not at once."""
    gate = Gate()
    gate.layer.receive(gate.open(), message(kind, code, 1, path, payload=b"x"), 10.0)
    sent = gate.take()
    return gate, sent[0][1] if sent else None


@pytest.mark.parametrize("method", [Code.POST, Code.PUT])
@pytest.mark.parametrize("path", ["temperature", "a/b/c", "time/zone", "hello/world"])
def test_post_and_put_with_a_path_are_uplinks(method: int, path: str) -> None:
    gate, answer = ask(method, path)

    assert answer is None
    assert [p.topic for p in gate.publisher.published] == [f"coapgate/default/sensor-1/up/{path}"]


@pytest.mark.parametrize("path", [*SITE, ".well-known", ".well-known/est/crts"])
@pytest.mark.parametrize("method", [Code.POST, Code.PUT])
def test_the_gateways_own_resources_cannot_be_written(path: str, method: int) -> None:
    gate, answer = ask(method, path)

    assert answer == Code.METHOD_NOT_ALLOWED
    assert not gate.publisher.published


@pytest.mark.parametrize("path", SITE)
def test_get_on_them_goes_to_the_site(path: str) -> None:
    gate, answer = ask(Code.GET, path)

    assert answer is None
    assert len(gate.silent_site.asked) == 1


@pytest.mark.parametrize("path", ["", "temperature", ".well-known", "time/zone"])
def test_get_elsewhere_is_4_04(path: str) -> None:
    assert ask(Code.GET, path)[1] == Code.NOT_FOUND


@pytest.mark.parametrize("path", ["", "temperature", "time"])
@pytest.mark.parametrize("method", [*range(4, 8), 31])
def test_other_methods_are_4_05(path: str, method: int) -> None:
    assert ask(method, path)[1] == Code.METHOD_NOT_ALLOWED


def test_an_uplink_without_a_path_is_4_04() -> None:
    assert ask(Code.POST, "")[1] == Code.NOT_FOUND


@pytest.mark.parametrize(
    "segments",
    [
        (b"..",),
        (b"a", b".."),
        (b".",),
        (b"a%2Fb",),
        (b"a/b",),
        (b"+",),
        (b"a", b"#"),
        (b"$SYS",),
        (b"a", b""),
        (b"x" * 254,),
        (b"\xff",),
        ("\x85".encode(),),
        ("\ufffe".encode(),),
        (b"a",) * 33,
    ],
)
@pytest.mark.parametrize("kind", [CON, NON])
def test_a_path_that_no_topic_may_hold_is_4_00_and_nothing_is_published(
    segments: tuple[bytes, ...], kind: int
) -> None:
    gate = Gate()
    options = tuple((URI_PATH, segment) for segment in segments)

    gate.layer.receive(gate.open(), message(kind, Code.POST, 1, options=options), 10.0)

    answer = gate.take_one()
    assert answer.code == Code.BAD_REQUEST
    assert answer.payload
    assert not gate.publisher.published


def test_the_payload_is_untouched() -> None:
    gate = Gate()
    payload = bytes(range(256))

    gate.layer.receive(gate.open(), message(CON, Code.POST, 1, "a", payload=payload), 10.0)

    assert gate.publisher.published[0].payload == payload


@pytest.mark.parametrize(
    ("value", "content_type"),
    [
        (b"", "text/plain; charset=utf-8"),
        (b"\x3c", "application/cbor"),
        (b"\x32", "application/json"),
    ],
)
def test_a_content_format_becomes_the_content_type(value: bytes, content_type: str) -> None:
    gate = Gate()
    options = ((CONTENT_FORMAT, value),)

    gate.layer.receive(gate.open(), message(CON, Code.POST, 1, "a", options=options), 10.0)

    (publication,) = gate.publisher.published
    assert publication.content_type == content_type
    assert "content-format" not in dict(publication.user_properties)


def test_an_unknown_content_format_becomes_a_user_property() -> None:
    gate = Gate()
    options = ((CONTENT_FORMAT, b"\xff\xfe"),)

    gate.layer.receive(gate.open(), message(CON, Code.POST, 1, "a", options=options), 10.0)

    (publication,) = gate.publisher.published
    assert publication.content_type is None
    assert dict(publication.user_properties)["content-format"] == "65534"


@pytest.mark.parametrize(
    ("kind", "no_response", "qos"),
    [
        (CON, None, 1),
        (NON, None, 1),
        (CON, b"\x02", 1),
        (CON, b"\x1a", 1),
        (NON, b"\x02", 0),
        (NON, b"\x1a", 0),
        (NON, b"\x18", 1),
        (NON, b"", 1),
    ],
)
def test_only_a_non_that_suppresses_success_goes_at_qos_0(
    kind: int, no_response: bytes | None, qos: int
) -> None:
    gate = Gate()
    options = () if no_response is None else ((NO_RESPONSE, no_response),)

    gate.layer.receive(gate.open(), message(kind, Code.POST, 1, "a", options=options), 10.0)

    (publication,) = gate.publisher.published
    assert publication.qos == qos
    assert (publication.ticket is None) == (qos == 0)
    assert gate.take() == []
    assert gate.layer.counts == Counts(silences=1 - qos)
