"""A device over a real socket: handshake, requests, goodbye."""

from __future__ import annotations

import asyncio

import pytest

from coapgate.coap.transmissions import Reliability
from coapgate.dtls.client import ClientCertificate, ClientSettings
from coapgate.errors import Alert, DeviceRefused, NoAnswer, Reason
from coapgate.model import Code
from coapgate.pki.factory import FactoryCa
from coapgate.simulated.device import Device
from coapgate.simulated.message import Kind, Message, Response
from coapgate.simulated.trust import trust_server
from tests.simulated.gateway import KEY, QUICK, FakeGateway, changed, serving

QUICK_HANDSHAKE = ClientSettings(retransmission_time=0.05, handshake_timeout=2.0)


async def test_a_device_connects_asks_and_says_goodbye() -> None:
    async with serving(FakeGateway()) as gateway:
        async with Device("127.0.0.1", gateway.port, KEY) as device:
            response = await device.request(
                Code.POST, "/room/temperature", b"21.5", query=(b"unit=C",), content_format=0
            )
            assert gateway.server.association_count == 1
        await gateway.until(lambda: gateway.server.association_count == 0)

    assert str(response) == "2.04"
    (request,) = gateway.requests
    assert request.payload == b"21.5"
    assert request.options == (
        (11, b"room"),
        (11, b"temperature"),
        (12, b""),
        (15, b"unit=C"),
    )


def observed(request: Message) -> list[Message]:
    """A gateway at which every path may be observed; the state is `off`."""
    order = ((6, b"\x05"),) if request.code == Code.GET else ()
    answer = Message(Kind.ACK, Code.CONTENT, request.message_id, request.token, order, b"off")
    return [answer]


async def test_a_device_observes_until_it_does_not_want_to() -> None:
    async with (
        serving(FakeGateway(observed)) as gateway,
        Device("127.0.0.1", gateway.port, KEY) as device,
    ):
        async with device.observe("led") as states:
            heard = [(await anext(states)).payload]
            token = gateway.requests[0].token
            for number in (6, 7):
                option = ((6, bytes((number,))),)
                gateway.tell(Message(Kind.CON, Code.CONTENT, number, token, option, b"on"))
                heard.append((await anext(states)).payload)
            await gateway.until(lambda: len(gateway.replies) == 2)
        gateway.tell(Message(Kind.CON, Code.CONTENT, 8, token, ((6, b"\x08"),), b"off"))
        await gateway.until(lambda: len(gateway.replies) == 3)

    assert heard == [b"off", b"on", b"on"]
    assert [reply.kind for reply in gateway.replies] == [Kind.ACK, Kind.ACK, Kind.RST]


async def test_a_state_that_cannot_be_observed_is_the_only_one() -> None:
    async with (
        serving(FakeGateway(changed)) as gateway,
        Device("127.0.0.1", gateway.port, KEY) as device,
        device.observe("led") as states,
    ):
        heard = [state.code async for state in states]

    assert heard == [Code.CHANGED]


async def test_whoever_observes_learns_of_the_end_of_the_association() -> None:
    async with (
        serving(FakeGateway(observed)) as gateway,
        Device("127.0.0.1", gateway.port, KEY) as device,
        device.observe("led") as states,
    ):
        await anext(states)
        (association,) = gateway.server.associations
        gateway.server.traffic.close(association, "test")
        gateway.flush()

        with pytest.raises((DeviceRefused, NoAnswer)):
            await anext(states)


async def test_a_registration_that_is_rejected_is_no_answer() -> None:
    def reject(request: Message) -> list[Message]:
        return [Message(Kind.RST, Code.EMPTY, request.message_id)]

    async with (
        serving(FakeGateway(reject)) as gateway,
        Device("127.0.0.1", gateway.port, KEY) as device,
    ):
        with pytest.raises(NoAnswer, match="rejected"):
            async with device.observe("led"):
                pytest.fail("it observes")


async def test_a_device_serves_what_the_gateway_asks() -> None:
    def serve(message: Message) -> Response:
        return Response(Code.CHANGED, (), message.payload + b"!")

    async with (
        serving(FakeGateway()) as gateway,
        Device("127.0.0.1", gateway.port, KEY, serve=serve),
    ):
        gateway.tell(Message(Kind.CON, Code.PUT, 9, b"tk", (), b"on"))
        await gateway.until(lambda: len(gateway.replies) == 1)

    assert gateway.replies == [Message(Kind.ACK, Code.CHANGED, 9, b"tk", (), b"on!")]


async def test_a_device_has_a_certificate_and_judges_the_gateways() -> None:
    ca = FactoryCa.create("Factory")
    issued = ca.issue_device("sensor-1")
    trusting = ClientCertificate(
        issued.chain, issued.key, trust_server(ca.certificate, "127.0.0.1")
    )
    doubting = ClientCertificate(
        issued.chain, issued.key, trust_server(FactoryCa.create("Other").certificate, "127.0.0.1")
    )
    elsewhere = ClientCertificate(
        issued.chain, issued.key, trust_server(ca.certificate, "gateway.example")
    )
    async with serving(FakeGateway(certificate=ca.issue_server())) as gateway:
        async with Device("127.0.0.1", gateway.port, trusting) as device:
            assert str(await device.request(Code.PUT, "state", b"on")) == "2.04"
        for credential in (doubting, elsewhere):
            with pytest.raises(NoAnswer, match="untrusted"):
                async with Device("127.0.0.1", gateway.port, credential):
                    pass


async def test_a_refused_device_learns_the_alert() -> None:
    async with serving(FakeGateway(reason=Reason.REVOKED)) as gateway:
        with pytest.raises(DeviceRefused, match="certificate_revoked") as caught:
            async with Device("127.0.0.1", gateway.port, KEY):
                pass

    assert caught.value.alert is Alert.CERTIFICATE_REVOKED


async def test_silence_is_no_answer() -> None:
    quick = ClientSettings(retransmission_time=0.02, handshake_timeout=0.1)
    async with serving(FakeGateway(lost=1_000_000)) as gateway:
        with pytest.raises(NoAnswer):
            async with Device("127.0.0.1", gateway.port, KEY, settings=quick):
                pass


async def test_a_handshake_survives_lost_datagrams() -> None:
    async with (
        serving(FakeGateway(lost=2)) as gateway,
        Device("127.0.0.1", gateway.port, KEY, settings=QUICK_HANDSHAKE) as device,
    ):
        assert str(await device.request(Code.POST, "a", b"")) == "2.04"


async def test_a_request_is_repeated_until_it_is_answered() -> None:
    heard: list[int] = []

    def answer_the_third(request: Message) -> list[Message]:
        heard.append(request.message_id)
        return changed(request) if len(heard) == 3 else []

    async with (
        serving(FakeGateway(answer_the_third)) as gateway,
        Device("127.0.0.1", gateway.port, KEY, reliability=QUICK) as device,
    ):
        assert str(await device.request(Code.POST, "a", b"1")) == "2.04"
        assert device.repeats == 2

    assert len(set(heard)) == 1


async def test_a_request_that_nobody_acknowledges_is_given_up() -> None:
    hasty = Reliability(ack_timeout=0.01, ack_random_factor=1.0, max_retransmit=2)
    async with (
        serving(FakeGateway(lambda request: [])) as gateway,
        Device("127.0.0.1", gateway.port, KEY, reliability=hasty) as device,
    ):
        with pytest.raises(NoAnswer, match="acknowledged"):
            await device.request(Code.POST, "a", b"1")
        with pytest.raises(NoAnswer, match="in time"):
            await device.request(Code.POST, "a", b"1", confirmable=False, response_timeout=0.05)


async def test_a_rejected_request_is_no_answer() -> None:
    def reject(request: Message) -> list[Message]:
        return [Message(Kind.RST, Code.EMPTY, request.message_id)]

    async with (
        serving(FakeGateway(reject)) as gateway,
        Device("127.0.0.1", gateway.port, KEY) as device,
    ):
        with pytest.raises(NoAnswer, match="rejected"):
            await device.request(Code.POST, "a", b"1")


async def test_many_requests_at_once_get_their_own_answers() -> None:
    def echo(request: Message) -> list[Message]:
        return [
            Message(Kind.NON, Code.CONTENT, request.message_id, request.token, (), request.payload)
        ]

    async with (
        serving(FakeGateway(echo)) as gateway,
        Device("127.0.0.1", gateway.port, KEY) as device,
        asyncio.TaskGroup() as tasks,
    ):
        asked = [
            tasks.create_task(device.request(Code.POST, "a", str(number).encode()))
            for number in range(20)
        ]
        async with asyncio.timeout(10):
            payloads = [(await one).payload for one in asked]

    assert payloads == [str(number).encode() for number in range(20)]


async def test_whoever_waits_when_the_gateway_says_goodbye_is_told() -> None:
    async with (
        serving(FakeGateway(lambda request: [])) as gateway,
        Device("127.0.0.1", gateway.port, KEY) as device,
    ):
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(_failure(device))
            await gateway.until(lambda: bool(gateway.requests))
            (association,) = gateway.server.associations
            gateway.server.traffic.close(association, "test")
            gateway.flush()
        assert asking.result() == "the gateway sent alert 0 (close_notify)"
        with pytest.raises(DeviceRefused):
            await device.request(Code.POST, "a", b"1")


async def _failure(device: Device) -> str:
    with pytest.raises(DeviceRefused) as caught:
        await device.request(Code.POST, "a", b"1")
    return str(caught.value)


async def test_a_device_speaks_from_the_address_it_is_given() -> None:
    async with (
        serving(FakeGateway()) as gateway,
        Device("127.0.0.1", gateway.port, KEY, local_address=("127.0.0.9", 0)),
    ):
        assert {address[0] for address in gateway.sources} == {"127.0.0.9"}
