"""The pump: what becomes of handshakes, messages and ends, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from coapgate.dtls.client import ClientCertificate, PskKey, State
from coapgate.dtls.handshake import HandshakeSettings
from coapgate.dtls.negotiation import ServerCertificate
from coapgate.dtls.server import ServerSettings
from coapgate.errors import Alert, RegistryUnavailable
from coapgate.logs import TextFormatter
from coapgate.model import (
    DEFAULT_TENANT,
    Code,
    Device,
    DeviceId,
    DeviceIdSource,
    Method,
    PskCredential,
    Tenant,
    TrustAnchor,
)
from coapgate.pki.anchors import parse_anchor
from coapgate.pki.certificates import leaf_public_key
from coapgate.pki.factory import FactoryCa
from coapgate.registry.memory import MemoryRegistry
from coapgate.serving import (
    CLOSED_AT_ONCE,
    REFUSED_EVENT_INTERVAL,
    SESSION_LINES,
    SESSION_LINES_INTERVAL,
)
from coapgate.simulated.message import Kind, Message, request_options
from tests.dtls.factory import trust
from tests.pumped import WALL, Gate, changed, post, pumping
from tests.waiting import until

SENSOR_1 = DeviceId("sensor-1")
SENSOR_7 = DeviceId("sensor-7")


class Store(MemoryRegistry):
    """A registry that can be made to wait, and to fail."""

    def __init__(self) -> None:
        super().__init__(wall=lambda: WALL)
        self.fault: Exception | None = None
        self.answers = asyncio.Event()
        self.answers.set()
        self.asked = 0

    async def find_psk(self, identity: bytes) -> tuple[PskCredential, ...]:
        await self._look()
        return await super().find_psk(identity)

    async def provision(
        self, anchor: TrustAnchor, device: DeviceId, value: str, tenant: Tenant | None = None
    ) -> Device:
        await self._look()
        return await super().provision(anchor, device, value, tenant)

    async def _look(self) -> None:
        self.asked += 1
        await self.answers.wait()
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture(scope="module")
def ca() -> FactoryCa:
    return FactoryCa.create("Acme Root", wall=WALL)


def with_certificate(ca: FactoryCa) -> ServerSettings:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = ServerCertificate(ca.issue_server(key=key).chain, key)
    return ServerSettings(HandshakeSettings(certificate=certificate, public_key=leaf_public_key))


@pytest.fixture
async def gate(store: Store, ca: FactoryCa) -> AsyncIterator[Gate]:
    async with pumping(store, with_certificate(ca)) as gate:
        yield gate


def add_psk(store: Store, device: str = SENSOR_1) -> PskKey:
    key = PskKey(device.encode(), secrets.token_bytes(16))
    store.add_psk(DEFAULT_TENANT, DeviceId(device), key.identity, key.secret, create_device=True)
    return key


def certificate(ca: FactoryCa, store: Store, device: str = SENSOR_7) -> ClientCertificate:
    """A device's of a factory that provisions."""
    if not store.anchors_all():
        store.add_anchor(
            parse_anchor(
                ca.certificate_pem,
                name="factory",
                tenant=DEFAULT_TENANT,
                device_id_source=DeviceIdSource.CN,
                auto_provision=True,
                wall=WALL,
            )
        )
    issued = ca.issue_device(device)
    return ClientCertificate(issued.chain, issued.key, trust)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What an operator sees, without the time."""
    return [TextFormatter().format(record).split(" ", 1)[1] for record in caplog.records]


# --- who is let in


async def test_a_device_with_a_key_is_let_in_with_one_line(
    store: Store, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = asyncio.all_tasks()

    gate.connect(add_psk(store), (0, ("::ffff:192.0.2.7", 40312, 0, 0)))

    (association,) = gate.associations
    assert association.identity.method is Method.PSK
    assert lines(caplog) == [
        "info session opened tenant=default device=sensor-1 method=psk credential=psk-1 "
        f"peer=192.0.2.7:40312 association={association.id.hex()}"
    ]
    assert gate.pump.attached == {"psk": 1}
    assert gate.pump.sessions.find(DEFAULT_TENANT, SENSOR_1) == (association.id,)
    assert asyncio.all_tasks() == before


async def test_a_device_with_a_certificate_is_let_in_and_provisioned(
    store: Store, gate: Gate, ca: FactoryCa
) -> None:
    gate.connect(certificate(ca, store))

    (association,) = gate.associations
    assert association.identity.method is Method.X509
    assert gate.pump.attached == {"x509": 1}
    assert [entry.device.device for entry in store.devices()] == [SENSOR_7]


async def test_handshakes_go_on_when_a_registry_that_waits_has_answered(
    store: Store, gate: Gate, ca: FactoryCa
) -> None:
    credentials = (add_psk(store), certificate(ca, store))
    store.answers.clear()
    peers = [gate.join(credential) for credential in credentials]
    assert gate.pump.decisions.waiting == 2
    assert gate.associations == []

    store.answers.set()
    await until(lambda: gate.wakes == 2, "the sockets are told to send")
    gate.turn()

    assert all(peer.client.is_established for peer in peers)


async def test_no_secret_of_the_registry_outlives_the_look_up(store: Store, gate: Gate) -> None:
    key = add_psk(store)
    references = [sys.getrefcount(key.secret)]

    # The second one's handshake stays, waiting for another Finished.
    for client in (key, PskKey(key.identity, bytes(16))):
        gate.join(client)
        references.append(sys.getrefcount(key.secret))

    assert gate.pump.server.handshake_count == 1
    assert len(set(references)) == 1


# --- who is not


async def test_strangers_are_silence_a_number_and_a_line(
    store: Store, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    add_psk(store)
    unknown = gate.join(PskKey(b"no\nbody", bytes(16)))
    guessing = gate.join(PskKey(b"sensor-1", bytes(16)))

    gate.wait(90.0)

    assert gate.pump.refusals == {"unknown_identity": 1, "bad_key": 1}
    assert {peer.client.alert for peer in (unknown, guessing)} == {None}
    assert gate.events == []
    shown = [line.partition(" detail")[0] for line in lines(caplog)]
    assert shown == [
        "info stranger refused reason=unknown_identity count=1 peer=192.0.2.1:49152 "
        'identity="no\\\\x0abody"',
        "info stranger refused reason=bad_key count=1 peer=192.0.2.1:49153 identity=sensor-1",
    ]


async def test_the_last_strangers_are_written_of_too(
    store: Store, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(3):
        gate.join(PskKey(b"nobody", bytes(16)))
    gate.wait(90.0)
    assert len(caplog.records) == 1

    assert gate.pump.next_timer() == gate.now + 10.0
    gate.wait(10.0)

    assert [vars(record)["count"] for record in caplog.records] == [1, 2]
    assert gate.pump.next_timer() is None


async def test_what_was_wrong_with_a_certificate_is_in_the_line(
    store: Store, gate: Gate, ca: FactoryCa, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    credential = certificate(ca, store)
    store.remove_anchor("factory")

    peer = gate.join(credential)

    assert peer.client.alert is Alert.UNKNOWN_CA
    assert gate.pump.refusals == {"untrusted": 1}
    assert gate.events == []
    assert lines(caplog) == [
        "info stranger refused reason=untrusted count=1 peer=192.0.2.1:49152 "
        'identity="CN=sensor-7" detail="issued by no trust anchor"'
    ]


Refuse = Callable[[Store], None]


def disable(device: DeviceId) -> Refuse:
    return lambda store: store.enable_device(DEFAULT_TENANT, device, enabled=False)


async def test_a_refusal_after_proof_is_told_once_a_minute(
    store: Store, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    key = add_psk(store)
    disable(SENSOR_1)(store)
    caplog.set_level(logging.INFO)

    def try_again() -> None:
        peer = gate.join(key, (0, ("192.0.2.1", 49152)))
        assert peer.client.alert is Alert.CERTIFICATE_REVOKED

    try_again()
    gate.wait(REFUSED_EVENT_INTERVAL - 1)
    try_again()
    assert len(gate.events) == 1
    gate.wait(1)
    try_again()

    assert len(gate.events) == 2
    tenant, device, name, payload = gate.events[0]
    assert (tenant, device, name) == ("default", "sensor-1", "refused")
    assert json.loads(payload) == {
        "at": "2027-01-15T08:00:00.000Z",
        "event": "refused",
        "reason": "disabled",
    }
    assert gate.pump.refusals == {"disabled": 3}
    assert lines(caplog) == 2 * [
        "info session refused tenant=default device=sensor-1 credential=psk-1 reason=disabled "
        "peer=192.0.2.1:49152"
    ]


async def test_each_device_has_its_own_minute(store: Store, gate: Gate) -> None:
    keys = [add_psk(store, f"sensor-{number}") for number in range(3)]
    for number in range(3):
        disable(DeviceId(f"sensor-{number}"))(store)

    for key in (*keys, keys[0]):
        gate.join(key)

    assert [event[1] for event in gate.events] == ["sensor-0", "sensor-1", "sensor-2"]


async def test_a_disabled_device_with_a_certificate_is_an_event_of_that_device(
    store: Store, gate: Gate, ca: FactoryCa, caplog: pytest.LogCaptureFixture
) -> None:
    credential = certificate(ca, store)
    gate.connect(credential)
    disable(SENSOR_7)(store)
    caplog.set_level(logging.INFO)

    peer = gate.join(credential)

    assert peer.client.alert is Alert.CERTIFICATE_REVOKED
    refused = [event[:3] for event in gate.events if event[2] == "refused"]
    assert refused == [("default", "sensor-7", "refused")]
    assert "device=sensor-7 credential=sha256:" in lines(caplog)[0]


async def test_a_certificate_with_anothers_name_is_no_event_of_the_other(
    store: Store, gate: Gate, ca: FactoryCa
) -> None:
    add_psk(store, SENSOR_7)

    peer = gate.join(certificate(ca, store))

    assert peer.client.alert is Alert.UNKNOWN_CA
    assert gate.pump.refusals == {"credential_mismatch": 1}
    assert gate.events == []


# --- a registry that is slow, away or broken


@pytest.mark.expects_warnings("authentication is unavailable")
async def test_a_registry_that_is_away_is_said_at_once_and_looks_like_a_wrong_key(
    store: Store, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    key = add_psk(store)
    store.fault = RegistryUnavailable("the registry is locked")

    peers = [gate.join(key) for _ in range(2)]

    assert lines(caplog) == [
        'warning authentication is unavailable detail="the registry is locked" count=1'
    ]
    assert gate.pump.refusals == {}
    gate.wait(90.0)
    assert {peer.client.alert for peer in peers} == {None}
    assert gate.pump.refusals == {"unavailable": 2}


@pytest.mark.expects_warnings("authentication is unavailable")
async def test_a_registry_that_is_away_is_told_to_whoever_proved_a_certificate(
    store: Store, gate: Gate, ca: FactoryCa
) -> None:
    credential = certificate(ca, store)
    store.fault = RegistryUnavailable("the registry is locked")

    assert gate.join(credential).client.alert is Alert.INTERNAL_ERROR

    assert gate.pump.refusals == {"unavailable": 1}
    store.fault = None
    gate.connect(credential)


@pytest.mark.expects_warnings("authentication failed")
async def test_a_mistake_in_one_handshake_costs_that_handshake(
    store: Store, gate: Gate, ca: FactoryCa
) -> None:
    key = add_psk(store)
    store.fault = KeyError("a bug")
    failing = gate.join(key), gate.join(certificate(ca, store))
    store.fault = None

    gate.connect(key)
    gate.wait(5.0)

    assert failing[1].client.alert is Alert.INTERNAL_ERROR
    gate.wait(85.0)
    assert failing[0].client.alert is None
    assert gate.pump.refusals == {"unavailable": 2}
    assert gate.pump.decisions.failures == 2


async def test_an_answer_that_comes_too_late_opens_nothing(
    store: Store, gate: Gate, ca: FactoryCa
) -> None:
    key, credential = add_psk(store), certificate(ca, store)
    store.answers.clear()
    by_key, by_certificate = gate.join(key), gate.join(credential)
    await until(lambda: store.asked == 2, "both wait")

    gate.wait(5.0)
    assert by_certificate.client.alert is Alert.INTERNAL_ERROR
    store.answers.set()
    await until(lambda: gate.wakes == 2, "both have been answered")
    gate.turn()

    assert not by_key.client.is_established
    assert gate.associations == []
    assert gate.pump.attached == {}
    gate.wait(85.0)
    assert gate.pump.refusals == {"unavailable": 2}


async def test_a_refusal_that_comes_too_late_is_not_counted_again(
    store: Store, gate: Gate, ca: FactoryCa
) -> None:
    credential = certificate(ca, store)
    store.add_device(Device(DEFAULT_TENANT, DeviceId(SENSOR_7)))
    store.answers.clear()
    peer = gate.join(credential)
    await until(lambda: store.asked == 1, "the decision waits")

    gate.wait(5.0)
    store.answers.set()
    await until(lambda: gate.wakes == 1, "it has been made")
    gate.turn()

    assert peer.client.alert is Alert.INTERNAL_ERROR
    assert gate.pump.refusals == {"unavailable": 1}


@pytest.mark.expects_warnings("registry is too slow for dtls.auth_timeout")
async def test_what_waits_for_too_long_is_cancelled(store: Store) -> None:
    store.answers.clear()
    settings = ServerSettings(HandshakeSettings(auth_timeout=0.05))
    async with pumping(store, settings) as gate:
        gate.join(add_psk(store))
        await until(lambda: gate.pump.decisions.waiting == 0, "the decision ends")

        assert gate.pump.decisions.overruns == 1
        assert gate.wakes == 1


@pytest.mark.expects_warnings("registry is too slow for dtls.auth_timeout")
async def test_no_more_decisions_wait_than_handshakes_may_be_pending(store: Store) -> None:
    """A handshake that waits for its keys may yield to others; its look-up goes on."""
    key = add_psk(store)
    store.answers.clear()
    async with pumping(store, ServerSettings(max_handshakes=3)) as gate:
        for _ in range(10):
            gate.join(key)

        assert gate.pump.server.handshake_count == 3
        assert gate.pump.decisions.waiting == 3
        assert gate.pump.decisions.overruns == 7


# --- messages


async def test_a_message_is_published_and_then_answered_without_a_task(
    store: Store, gate: Gate
) -> None:
    peer = gate.connect(add_psk(store))
    before = asyncio.all_tasks()

    gate.send(peer, post(1, b"temperature", b"21.5"))
    assert gate.publisher.published == [("root/default/sensor-1/up/temperature", b"21.5")]
    assert peer.received == []
    gate.acknowledge()

    assert peer.received == [changed(1)]
    assert gate.wakes == 1
    assert asyncio.all_tasks() == before


async def test_the_sites_answer_finds_its_way_back(store: Store, gate: Gate) -> None:
    peer = gate.connect(add_psk(store))
    gate.send(peer, Message(Kind.CON, Code.GET, 7, b"tk", request_options((b"hello",))))

    (ticket,) = gate.site.asked
    gate.pump.respond(ticket, Code.CONTENT, b"", b"you")
    gate.turn()

    assert peer.received == [Message(Kind.ACK, Code.CONTENT, 7, b"tk", (), b"you").encode()]
    assert gate.wakes == 1


async def test_what_takes_long_is_acknowledged_by_the_timer(store: Store, gate: Gate) -> None:
    peer = gate.connect(add_psk(store))
    gate.send(peer, post(1))
    due = gate.pump.next_timer()
    assert due == gate.now + 0.5

    gate.wait(0.5)

    assert peer.received == [Message(Kind.ACK, Code.EMPTY, 1).encode()]


# --- the end of sessions


async def test_a_session_closes_with_one_line_and_leaves_nothing(
    store: Store, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    peer = gate.connect(add_psk(store))
    (association,) = gate.associations
    gate.send(peer, post(1))
    caplog.set_level(logging.INFO)

    peer.client.close()
    gate.turn()
    gate.acknowledge()

    assert lines(caplog) == [
        "info session closed tenant=default device=sensor-1 method=psk credential=psk-1 "
        f"peer=192.0.2.1:49152 association={association.id.hex()} cause=peer"
    ]
    assert association.endpoint is None
    assert gate.pump.detached == {"peer": 1}
    assert len(gate.pump.sessions) == 0
    assert gate.layer.active_endpoints == gate.layer.unfinished_exchanges == 0


async def test_a_device_that_comes_and_goes_all_the_time_fills_no_log(
    store: Store, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    key = add_psk(store)
    first = gate.connect(key)

    for _ in range(SESSION_LINES + 5):
        gate.connect(key, first.path)
    gate.connect(add_psk(store, "sensor-2"))
    gate.wait(SESSION_LINES_INTERVAL)
    gate.connect(key, first.path)

    assert gate.pump.attached == {"psk": SESSION_LINES + 8}
    messages = Counter(record.getMessage() for record in caplog.records)
    assert messages == {"session opened": SESSION_LINES + 2, "session closed": SESSION_LINES + 1}
    # What was not told of is counted in the next line of the kind.
    opened, closed = lines(caplog)[-2:]
    assert opened.endswith("count=7")
    assert closed.endswith("cause=replaced count=6")


async def test_of_a_device_with_too_many_associations_the_oldest_go(store: Store) -> None:
    key = add_psk(store)
    async with pumping(store, associations_per_device=2) as gate:
        peers = [gate.connect(key) for _ in range(4)]

        assert [peer.client.state for peer in peers] == 2 * [State.CLOSED] + 2 * [State.ESTABLISHED]
        assert [peer.client.alert for peer in peers[:2]] == 2 * [Alert.CLOSE_NOTIFY]
        assert gate.pump.detached == {"surplus": 2}
        assert len(gate.pump.sessions) == 1


async def test_a_device_that_comes_back_on_its_path_costs_no_other_association(
    store: Store,
) -> None:
    key = add_psk(store)
    async with pumping(store, associations_per_device=3) as gate:
        others = [gate.connect(key) for _ in range(2)]
        last = gate.connect(key)

        gate.connect(key, last.path)

        assert gate.pump.detached == {"replaced": 1}
        assert all(peer.client.is_established for peer in others)
        assert len(gate.pump.sessions.find(DEFAULT_TENANT, SENSOR_1)) == 3


async def test_when_the_house_is_full_the_longest_idle_goes(store: Store) -> None:
    keys = [add_psk(store, f"sensor-{number}") for number in range(3)]
    async with pumping(store, ServerSettings(max_associations=2)) as gate:
        first, second = (gate.connect(key) for key in keys[:2])
        gate.send(first, post(1))

        gate.connect(keys[2])

        assert first.client.is_established
        assert second.client.alert is Alert.CLOSE_NOTIFY
        assert gate.pump.detached == {"evicted": 1}
        assert len(gate.pump.sessions) == 2


async def test_a_silent_device_is_idle_after_a_while(store: Store) -> None:
    async with pumping(store, ServerSettings(idle_timeout=60.0)) as gate:
        peer = gate.connect(add_psk(store))
        gate.wait(59.0)
        assert peer.client.is_established

        gate.wait(1.0)

        assert peer.client.alert is Alert.CLOSE_NOTIFY
        assert gate.pump.detached == {"idle": 1}


async def test_who_stops_lets_nobody_new_in_and_says_goodbye_to_all(
    store: Store, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [add_psk(store, f"sensor-{number}") for number in range(3)]
    peers = [gate.connect(key) for key in keys[:2]]
    gate.join(PskKey(b"nobody", bytes(16)))
    gate.join(PskKey(b"nobody", bytes(16)))
    gate.wait(90.0)
    caplog.set_level(logging.INFO)
    store.answers.clear()
    waiting = gate.join(keys[2])

    gate.pump.stop()
    late = gate.join(keys[2])
    gate.send(peers[0], post(1))
    gate.acknowledge()
    assert peers[0].received == [changed(1)]
    caplog.clear()
    gate.pump.close_all(gate.turn, gate.now)

    assert [peer.client.alert for peer in peers] == 2 * [Alert.CLOSE_NOTIFY]
    assert not waiting.client.is_established
    assert late.client.state is State.AWAIT_SERVER_HELLO
    assert gate.pump.detached == {"shutdown": 2}
    assert gate.pump.server.counters.dropped["not_accepting"] == 1
    # What was counted since the last line about strangers is written too.
    assert [line.partition(" peer=")[0] for line in lines(caplog)] == [
        "info sessions closed count=2 untold=0 kept=0 cause=shutdown",
        "info stranger refused reason=unknown_identity count=1",
    ]


@pytest.mark.parametrize(("time_left", "told"), [(0.0, CLOSED_AT_ONCE), (1.0, CLOSED_AT_ONCE + 3)])
async def test_a_stop_takes_no_longer_than_it_may(
    store: Store, gate: Gate, caplog: pytest.LogCaptureFixture, time_left: float, told: int
) -> None:
    for number in range(CLOSED_AT_ONCE + 3):
        gate.connect(add_psk(store, f"sensor-{number}"))
    caplog.set_level(logging.INFO)

    gate.pump.close_all(gate.turn, gate.now + time_left)

    assert gate.pump.detached == {"shutdown": told}
    assert lines(caplog) == [
        f"info sessions closed count={told} untold={CLOSED_AT_ONCE + 3 - told} kept=0 "
        "cause=shutdown"
    ]
