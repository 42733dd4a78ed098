"""What a scrape of a running gateway says."""

from __future__ import annotations

import asyncio

from coapgate.dtls.client import ClientSettings, PskKey
from coapgate.metrics import FAMILIES
from coapgate.model import Code
from coapgate.simulated.message import Kind, Message, request_options
from tests import gateway_fixtures
from tests.fakes.broker import FakeBroker
from tests.gateway_fixtures import StartGateway
from tests.gateways import SHORT_HANDSHAKES, Running
from tests.pumped import changed, post
from tests.rawpeer import RawPeer, connected
from tests.waiting import until

install = gateway_fixtures.install
start_gateway = gateway_fixtures.start_gateway

NOTHING_TO_SHOW = {
    "coapgate_responses_total",
    "coapgate_send_errors_total",
    "coapgate_anchor_end_time_seconds",
    "coapgate_revocation_list_end_time_seconds",
}
"""Families whose series come with what they are about."""

PING = Message(Kind.CON, Code.EMPTY, 900)


async def exchange(peer: RawPeer, message: Message | bytes) -> Message:
    """Send something that is answered; the answer."""
    peer.send(message)
    return await peer.receive()


async def test_every_family_has_its_source_and_none_another(start_gateway: StartGateway) -> None:
    metrics = await (await start_gateway()).metrics()

    shown = {name.partition(",")[0] for name in metrics}
    for family in FAMILIES:
        if family.name in NOTHING_TO_SHOW:
            assert family.name not in shown  # nothing to show yet
        else:
            assert family.name in shown


async def test_after_traffic_the_numbers_are_right(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(limits={"device_burst": 4, "device_rate": 0.001})
    key = gateway.installation.add_psk("sensor-1")
    patient = ClientSettings(retransmission_time=20.0)  # nothing is sent twice
    async with connected((gateway.host, gateway.port), key, settings=patient) as peer:
        for message_id in (1, 2, 3, 3):
            assert await exchange(peer, post(message_id)) == Message.parse(changed(message_id))
        nowhere = Message(Kind.CON, Code.GET, 4, b"tk", request_options((b"nowhere",)))
        assert (await exchange(peer, nowhere)).code == Code.NOT_FOUND
        assert (await exchange(peer, post(5))).code == Code.TOO_MANY_REQUESTS
        assert (await exchange(peer, PING)).kind == Kind.RST
        assert (await exchange(peer, b"\x4f\x02\x00\x06")).kind == Kind.RST
        peer.send(Message(Kind.ACK, Code.EMPTY, 77))
        critical = Message(Kind.NON, Code.POST, 7, b"tk", ((9, b"?"),))
        peer.send(critical)
        assert (await exchange(peer, Message(Kind.CON, Code.CONTENT, 8, b"tk"))).kind == Kind.RST
        peer.resend(b"\x17\xfe\xfd")

        counters = gateway.gateway.pump.server.counters
        await until(lambda: counters.dropped.total() == 1, "everything has arrived")
        metrics = await gateway.metrics()

    expected = {
        "coapgate_handshakes_started_total": 1,
        "coapgate_handshakes_completed_total,psk": 1,
        "coapgate_handshakes_completed_total,x509": 0,
        "coapgate_handshakes_pending": 0,
        "coapgate_cookies_sent_total": 1,
        "coapgate_associations": 1,
        "coapgate_devices": 1,
        "coapgate_datagrams_dropped_total,malformed": 1,
        "coapgate_datagrams_dropped_total,forged": 0,
        "coapgate_responses_total,2.04": 3,
        "coapgate_responses_total,4.04": 1,
        "coapgate_responses_total,4.29": 1,
        "coapgate_requests_unfinished": 0,
        "coapgate_duplicates_total": 1,
        "coapgate_rate_limited_total": 1,
        "coapgate_messages_malformed_total": 1,
        "coapgate_messages_ignored_total,unexpected": 1,
        "coapgate_messages_ignored_total,response": 1,
        "coapgate_messages_ignored_total,bad_option": 1,
        "coapgate_pings_total": 1,
        "coapgate_uplinks_published_total": 3,
        # Nobody has subscribed: a success all the same.
        "coapgate_publications_ended_total,0x00": 0,
        "coapgate_publications_ended_total,0x10": 3,
        "coapgate_publications_ended_total,poison": 0,
        "coapgate_mqtt_connected": 1,
        "coapgate_mqtt_reconnects_total": 0,
        "coapgate_mqtt_failures_total": 0,
        "coapgate_internal_errors_total": 0,
        "coapgate_kernel_receive_drops_total": 0,
    }
    assert {name: metrics.get(name) for name in expected} == expected
    udp = ("coapgate_datagrams_received_total", "coapgate_datagrams_sent_total")
    # Two hellos and a flight, then twelve more of which three are not answered.
    assert [metrics[name] for name in udp] == [3 + 12, 3 + 9]


async def test_what_waits_is_shown_and_how_it_ends(start_gateway: StartGateway) -> None:
    async with FakeBroker(hold_pubacks=True) as broker:
        gateway = await start_gateway(broker.url)
        key = gateway.installation.add_psk("sensor-1")
        await until(lambda: len(broker.published) == 1, "the gateway says that it is there")
        async with connected((gateway.host, gateway.port), key) as peer:
            empty = await exchange(peer, post(1))
            assert empty == Message(Kind.ACK, Code.EMPTY, 1)
            waiting = await gateway.metrics()
            broker.release_pubacks()
            separate = await peer.receive()
            assert (separate.kind, separate.code) == (Kind.CON, Code.CHANGED)
            peer.send(Message(Kind.RST, Code.EMPTY, separate.message_id))
            counters = gateway.gateway.pump.server.counters
            await until(lambda: counters.records_opened == 2, "the reset arrives")
            ended = await gateway.metrics()

    assert waiting["coapgate_requests_unfinished"] == 1
    # Besides the uplink: that the gateway is there, that the device has come, its status.
    assert waiting["coapgate_publications_in_flight"] == 4
    assert ended["coapgate_requests_unfinished"] == 0
    assert ended["coapgate_separate_responses_total"] == 1
    assert ended["coapgate_separate_responses_failed_total,reset"] == 1
    assert ended["coapgate_separate_responses_failed_total,given_up"] == 0
    assert ended["coapgate_publications_ended_total,0x00"] == 1


async def test_refusals_and_ends_are_shown_by_reason(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(dtls=SHORT_HANDSHAKES)
    key = gateway.installation.add_psk("sensor-1")
    async with gateway.device(key):
        pass
    stranger = gateway.device(PskKey(b"sensor-1", bytes(16)))
    connecting = asyncio.create_task(stranger.__aenter__())
    await gateway.refused("bad_key")
    connecting.cancel()

    metrics = await gateway.metrics()

    assert metrics["coapgate_refusals_total,bad_key"] == 1
    assert metrics["coapgate_refusals_total,disabled"] == 0
    assert metrics["coapgate_associations_closed_total,peer"] == 1
    assert metrics["coapgate_associations_closed_total,idle"] == 0
    assert metrics["coapgate_devices"] == 0


async def speak(gateway: Running, device: str) -> None:
    key = gateway.installation.add_psk(device)
    async with gateway.device(key) as one:
        assert str(await one.request(Code.POST, f"path/of/{device}", b"x")) == "2.04"


async def test_the_number_of_series_does_not_depend_on_the_number_of_devices(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    await speak(gateway, "sensor-0")
    of_one = await gateway.metrics()

    for number in range(1, 15):
        await speak(gateway, f"sensor-{number}")
    of_many = await gateway.metrics()

    assert of_many["coapgate_handshakes_completed_total,psk"] == 15
    assert of_many.keys() == of_one.keys()
