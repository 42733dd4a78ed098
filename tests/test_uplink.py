"""One message from a device, one publication, one response code."""

from __future__ import annotations

import pytest

from coapgate.errors import RequestRefused
from coapgate.model import Code, DeviceId, Identity, Method, Outcome, Tenant
from coapgate.rights import Rights, RightsTable, Rule
from coapgate.uplink import PROPERTIES_LENGTH, Source, Uplinks
from tests.coap.gate import WALL, Publication, RecordingPublisher

IDENTITY = Identity(Tenant("plant"), DeviceId("urn:dev:7"), Method.X509, "sha256:0011223344556677")
ASSOCIATION_ID = bytes.fromhex("00ff00ff00ff00ff")


def forward(
    path: tuple[bytes, ...] = (b"a", b"b"),
    query: tuple[bytes, ...] = (),
    *,
    method: int = Code.POST,
    content_type: str | None = None,
    content_format: int | None = None,
    token: bytes = b"\x0a\xff",
    ticket: int | None = 7,
) -> Publication:
    publisher = RecordingPublisher()
    uplinks = Uplinks(publisher, "root/of/all")
    uplinks.begin(WALL)
    uplinks.forward(
        uplinks.source(IDENTITY, ASSOCIATION_ID),
        method,
        path,
        query,
        b"21.5",
        content_type=content_type,
        content_format=content_format,
        message_id=0x1A2,
        token=token,
        ticket=ticket,
    )
    (publication,) = publisher.published
    return publication


def test_an_uplink_is_published_under_the_device_topic() -> None:
    assert forward() == Publication(
        topic="root/of/all/plant/urn:dev:7/up/a/b",
        payload=b"21.5",
        qos=1,
        content_type=None,
        user_properties=[
            ("tenant", "plant"),
            ("device", "urn:dev:7"),
            ("auth", "x509"),
            ("credential", "sha256:0011223344556677"),
            ("coap-method", "POST"),
            ("received-at", "2023-11-14T22:13:20.250Z"),
            ("message-id", "00ff00ff00ff00ff-01a2-0aff"),
        ],
        ticket=7,
    )


def test_what_a_message_has_more_becomes_more_properties() -> None:
    publication = forward(query=(b"x=1", b"y"), method=Code.PUT, content_format=65000, token=b"")

    assert publication.user_properties[4:] == [
        ("coap-method", "PUT"),
        ("coap-query", "x=1&y"),
        ("content-format", "65000"),
        ("received-at", "2023-11-14T22:13:20.250Z"),
        ("message-id", "00ff00ff00ff00ff-01a2-"),
    ]


def test_without_a_ticket_it_goes_at_qos_0() -> None:
    publication = forward(ticket=None)

    assert (publication.qos, publication.ticket) == (0, None)


def test_the_content_type_is_passed_on() -> None:
    assert forward(content_type="application/cbor").content_type == "application/cbor"


def test_a_topic_has_at_most_255_octets() -> None:
    room = 255 - len("root/of/all/plant/urn:dev:7/up/")

    assert len(forward((b"x" * room,)).topic) == 255
    assert len(forward((("é" * 50).encode() + b"x" * (room - 100),)).topic.encode()) == 255
    with pytest.raises(RequestRefused) as caught:
        forward((b"x" * (room + 1),))
    assert caught.value.code == Code.BAD_REQUEST
    with pytest.raises(RequestRefused):
        forward(((("é" * 50).encode() + b"x" * (room - 99)),))


def test_a_bad_query_is_refused() -> None:
    with pytest.raises(RequestRefused) as caught:
        forward(query=(b"\0",))
    assert caught.value.code == Code.BAD_REQUEST


def test_received_at_belongs_to_the_tick() -> None:
    publisher = RecordingPublisher()
    uplinks = Uplinks(publisher, "coapgate")
    source = uplinks.source(IDENTITY, ASSOCIATION_ID)
    # Within a second, into the next, and back: clocks are set.
    for wall in (0.0, 0.25, 1.9996, 2.0, 1.5):
        uplinks.begin(wall)
        _forward_plainly(uplinks, source)
        _forward_plainly(uplinks, source)

    times = [dict(p.user_properties)["received-at"] for p in publisher.published]
    assert times[::2] == times[1::2]
    assert times[::2] == [
        "1970-01-01T00:00:00.000Z",
        "1970-01-01T00:00:00.250Z",
        "1970-01-01T00:00:01.999Z",
        "1970-01-01T00:00:02.000Z",
        "1970-01-01T00:00:01.500Z",
    ]
    assert uplinks.forwarded == 10


def _forward_plainly(uplinks: Uplinks, source: Source) -> None:
    uplinks.forward(
        source,
        Code.POST,
        (b"a",),
        (),
        b"",
        content_type=None,
        content_format=None,
        message_id=1,
        token=b"",
        ticket=1,
    )


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (0x00, None),
        (0x10, None),
        (0x7F, None),
        (0x80, Code.SERVICE_UNAVAILABLE),
        (0x83, Code.SERVICE_UNAVAILABLE),
        (0x87, Code.FORBIDDEN),
        (0x90, Code.BAD_REQUEST),
        (0x91, Code.SERVICE_UNAVAILABLE),
        (0x97, Code.SERVICE_UNAVAILABLE),
        (0x99, Code.BAD_REQUEST),
        (0xFF, Code.SERVICE_UNAVAILABLE),
        (Outcome.UNAVAILABLE, Code.SERVICE_UNAVAILABLE),
        (Outcome.POISON, Code.SERVICE_UNAVAILABLE),
        (Outcome.TOO_LARGE, Code.REQUEST_ENTITY_TOO_LARGE),
    ],
)
def test_every_outcome_has_its_response(outcome: int, code: Code | None) -> None:
    uplinks = Uplinks(RecordingPublisher(), "coapgate")

    refusal = uplinks.conclude(outcome)

    assert (refusal.code if refusal is not None else None) == code
    assert uplinks.outcomes == {outcome: 1}
    if code == Code.SERVICE_UNAVAILABLE:
        assert refusal is not None
        assert refusal.max_age is not None


def test_refused_devices_come_back_at_different_times() -> None:
    uplinks = Uplinks(RecordingPublisher(), "coapgate")

    ages = [refusal.max_age for _ in range(500) if (refusal := uplinks.conclude(0x97))]

    assert all(age is not None and 2 <= age <= 60 for age in ages)
    assert len(set(ages)) > 30


@pytest.mark.parametrize(
    ("max_packet_size", "size1"), [(None, None), (20480, 20480 - PROPERTIES_LENGTH), (200, 0)]
)
def test_a_device_learns_how_much_the_broker_takes(
    max_packet_size: int | None, size1: int | None
) -> None:
    uplinks = Uplinks(RecordingPublisher(), "coapgate", lambda: max_packet_size)

    refusal = uplinks.conclude(Outcome.TOO_LARGE)

    assert refusal is not None
    assert refusal.size1 == size1


def test_a_path_the_device_has_no_right_to_is_forbidden_and_counted() -> None:
    publisher = RecordingPublisher()
    rights = RightsTable({"plant": Rights(post=Rule(["a/#"]))})
    uplinks = Uplinks(publisher, "coapgate", rights=rights)
    source = uplinks.source(IDENTITY, ASSOCIATION_ID)

    assert uplinks.check(source, (b"a", b"b")) == "a/b"
    for use in (
        lambda: uplinks.check(source, (b"b",)),
        lambda: uplinks.forward(
            source,
            Code.POST,
            (b"b",),
            (),
            b"",
            content_type=None,
            content_format=None,
            message_id=1,
            token=b"",
            ticket=1,
        ),
    ):
        with pytest.raises(RequestRefused) as caught:
            use()
        assert caught.value.code == Code.FORBIDDEN

    assert uplinks.forbidden == 2
    assert publisher.published == []
