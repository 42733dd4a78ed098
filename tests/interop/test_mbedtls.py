"""Mbed TLS's `ssl_client2`: Connection IDs in both directions, and a client that moves.

Runs only where `MBEDTLS_CLIENT` names that program. Its request is an HTTP one, which by chance is
a CoAP message as well: "GET " begins a confirmable 2.05 that nobody asked for. The gateway answers
it with a Reset, four octets, and so each exchange shows that both directions work.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from coapgate.dtls.client import PskKey
from coapgate.dtls.records import CID_LENGTH, HEADER_LENGTH
from coapgate.dtls.server import ServerSettings
from tests.dtls.factory import authority, device_certificate, x509_settings
from tests.fakes.link import IDENTITY, KEY, Direction, losing
from tests.gateways import Running
from tests.interop.echo_server import PREFIX, TO_CLIENT, TO_SERVER, echo_server
from tests.interop.mbedtls import (
    MAX_CID,
    PADDED_TO,
    Conversation,
    by_psk,
    by_x509,
    converse,
    find_ssl_client2,
    with_cid,
)
from tests.interop.moving_relay import moving_relay
from tests.waiting import until

SUITES = ["AES-128-CCM-8", "AES-128-CCM", "AES-128-GCM-SHA256", "AES-256-GCM-SHA384"]
CIDS = [
    pytest.param("beef", id="cid"),
    pytest.param("", id="empty-cid"),
    pytest.param("c1" * MAX_CID, id="long-cid"),
]
RESET = 4
"""Octets of the gateway's answer."""
CCM_8 = 8 + 8
"""Octets of nonce and tag of the first suite."""
LOST = [
    pytest.param({(TO_SERVER, 0)}, id="the first hello"),
    pytest.param({(TO_CLIENT, 0)}, id="the cookie"),
    pytest.param({(TO_SERVER, 1)}, id="the second hello"),
    pytest.param({(TO_CLIENT, 1)}, id="flight 4"),
    pytest.param({(TO_SERVER, 2)}, id="flight 5"),
    pytest.param({(TO_CLIENT, 2)}, id="the last flight"),
]


@pytest.fixture(scope="session")
def ssl_client2() -> str:
    return find_ssl_client2()


def device(method: str, gateway: Running, folder: Path, suite: str = SUITES[0]) -> tuple[str, ...]:
    """Options of a new device that the gateway lets in by this method."""
    installation = gateway.installation
    if method == "psk":
        return by_psk(installation.add_psk("sensor-1"), suite)
    installation.add_anchor()
    issued = installation.ca.issue_device("sensor-1")
    return by_x509(issued, folder, installation.ca_file, suite)


async def has_ended(gateway: Running) -> dict[str, float]:
    """Wait until the gateway has heard its only device's close_notify; its metrics then."""
    await until(lambda: gateway.gateway.pump.detached["peer"] == 1, "the association ends")
    return await gateway.metrics()


def uses_ours(conversation: Conversation) -> bool:
    """Whether the client's records carry a Connection ID of the gateway's length."""
    connection_id = conversation.connection_id
    return connection_id is not None and len(connection_id) == CID_LENGTH


# --- at the gateway


@pytest.mark.parametrize("cid", CIDS)
@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("method", ["psk", "x509"])
async def test_every_suite_with_a_connection_id(
    ssl_client2: str, gateway: Running, tmp_path: Path, method: str, suite: str, cid: str
) -> None:
    options = (*device(method, gateway, tmp_path, suite), *with_cid(cid))

    told = await converse(ssl_client2, (gateway.host, gateway.port), *options, "exchanges=3")

    assert uses_ours(told)
    assert told.answers == [RESET] * 3
    metrics = await has_ended(gateway)
    assert metrics[f"coapgate_handshakes_completed_total,{method}"] == 1
    assert metrics["coapgate_address_moves_total"] == 0


@pytest.mark.parametrize("method", ["psk", "x509"])
async def test_without_a_connection_id(
    ssl_client2: str, gateway: Running, tmp_path: Path, method: str
) -> None:
    options = device(method, gateway, tmp_path)

    told = await converse(ssl_client2, (gateway.host, gateway.port), *options, "exchanges=3")

    assert told.connection_id is None
    assert told.answers == [RESET] * 3
    await has_ended(gateway)


@pytest.mark.parametrize("cid", CIDS)
@pytest.mark.parametrize("suite", [SUITES[0], SUITES[2]])
@pytest.mark.parametrize("method", ["psk", "x509"])
async def test_a_client_that_moves_shakes_hands_once(
    ssl_client2: str, gateway: Running, tmp_path: Path, method: str, suite: str, cid: str
) -> None:
    options = (*device(method, gateway, tmp_path, suite), *with_cid(cid))

    with moving_relay((gateway.host, gateway.port)) as relay:
        told = await converse(ssl_client2, relay.address, *options, "exchanges=5")
        metrics = await has_ended(gateway)

    # Each answer went to where its request had come from; the sixth record was the goodbye.
    assert told.answers == [RESET] * 5
    assert relay.strayed == 0
    assert relay.moves == 6
    assert metrics["coapgate_address_moves_total"] == 6
    assert metrics[f"coapgate_handshakes_completed_total,{method}"] == 1
    assert metrics["coapgate_handshakes_started_total"] == 1


@pytest.mark.parametrize("mode", ["1", "2"], ids=["reset", "freed"])
async def test_a_client_that_slept_goes_on_from_elsewhere(
    ssl_client2: str, gateway: Running, tmp_path: Path, mode: str
) -> None:
    """It writes its association down after each exchange, and takes up what it has read again."""
    options = (*device("psk", gateway, tmp_path), *with_cid("beef"), f"serialize={mode}")

    with moving_relay((gateway.host, gateway.port)) as relay:
        told = await converse(ssl_client2, relay.address, *options, "exchanges=4")
        metrics = await has_ended(gateway)

    assert told.output.count("Deserializing connection... ok") == 4
    assert told.answers == [RESET] * 4
    assert metrics["coapgate_handshakes_completed_total,psk"] == 1


async def test_a_client_that_forgot_everything_comes_back_from_the_same_port(
    ssl_client2: str, gateway: Running, tmp_path: Path
) -> None:
    options = (*device("psk", gateway, tmp_path), *with_cid("beef"), "reconnect_hard=1")

    told = await converse(ssl_client2, (gateway.host, gateway.port), *options)

    assert told.answers == [RESET] * 2
    metrics = await has_ended(gateway)
    assert metrics["coapgate_handshakes_completed_total,psk"] == 2


# --- what is said, by our DTLS alone


@pytest.mark.parametrize("cid", CIDS)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 1000])
async def test_padding_is_taken_off(ssl_client2: str, length: int, cid: str) -> None:
    options = (*by_psk(PskKey(IDENTITY, KEY)), *with_cid(cid), f"request_size={length}")

    with echo_server(ServerSettings()) as echo:
        told = await converse(ssl_client2, echo.address, *options, "exchanges=3")

    assert [len(plaintext) for plaintext in echo.heard] == told.sent == [length] * 3
    assert told.answers == [len(PREFIX) + length] * 3
    # Plaintext, content type and padding: it was there.
    sealed = PADDED_TO * (length // PADDED_TO + 1)
    assert echo.lengths[TO_SERVER][3:6] == [HEADER_LENGTH + CID_LENGTH + CCM_8 + sealed] * 3


@pytest.mark.parametrize("cid", CIDS)
async def test_the_longest_answer_fills_its_datagram(ssl_client2: str, cid: str) -> None:
    settings = ServerSettings()
    max_datagram = settings.handshake.max_datagram
    # Only what carries a Connection ID has its content type inside.
    inside = len(bytes.fromhex(cid)) + 1 if cid else 0
    longest = max_datagram - HEADER_LENGTH - CCM_8 - inside
    options = (*by_psk(PskKey(IDENTITY, KEY)), *with_cid(cid), "skip_close_notify=1")
    request = f"request_size={longest - len(PREFIX)}"

    with echo_server(settings) as echo:
        told = await converse(ssl_client2, echo.address, *options, request)
        (association,) = echo.server.associations

    assert association.max_plaintext == longest
    assert told.answers == [longest]
    assert max(echo.lengths[TO_CLIENT]) == max_datagram


async def test_an_empty_message_is_none_the_less_one(ssl_client2: str) -> None:
    options = (*by_psk(PskKey(IDENTITY, KEY)), *with_cid("beef"), "request_size=0")

    with echo_server(ServerSettings()) as echo:
        told = await converse(ssl_client2, echo.address, *options)

    assert echo.heard[0] == b""
    assert len(echo.heard[1]) == told.sent[1] > 0
    assert told.answers == [len(PREFIX)]


@pytest.mark.parametrize("cid", CIDS)
@pytest.mark.parametrize("lost", LOST)
async def test_every_flight_may_be_lost(
    ssl_client2: str, lost: set[tuple[Direction, int]], cid: str
) -> None:
    options = (*by_psk(PskKey(IDENTITY, KEY)), *with_cid(cid), "hs_timeout=300-1000")

    with echo_server(ServerSettings(), losing(lost)) as echo:
        told = await converse(ssl_client2, echo.address, *options, "exchanges=2")

        assert echo.server.counters.handshakes_completed == 1
    assert [len(plaintext) for plaintext in echo.heard] == told.sent
    assert len(told.answers) == 2


async def test_finished_may_come_before_its_keys(ssl_client2: str) -> None:
    """Each record has a datagram of its own, and ClientKeyExchange is the one that is lost."""
    options = (*by_psk(PskKey(IDENTITY, KEY)), *with_cid("beef"))
    unpacked = ("dgram_packing=0", "hs_timeout=300-1000")

    with echo_server(ServerSettings(), losing({(TO_SERVER, 2)})) as echo:
        told = await converse(ssl_client2, echo.address, *options, *unpacked)

        assert echo.server.counters.handshakes_completed == 1
    assert len(told.answers) == 1


@pytest.mark.parametrize("mtu", [300, 576])
async def test_fragments_and_a_small_mtu(ssl_client2: str, tmp_path: Path, mtu: int) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(authority().certificate_pem)
    options = (*by_x509(device_certificate(), tmp_path, ca_file), *with_cid("beef"), f"mtu={mtu}")

    with echo_server(x509_settings(max_datagram=mtu)) as echo:
        told = await converse(ssl_client2, echo.address, *options)

    assert told.connection_id is not None
    assert len(told.answers) == 1
    assert max(echo.lengths[TO_SERVER]) <= mtu
    assert max(echo.lengths[TO_CLIENT]) <= mtu


@pytest.mark.parametrize("length", [512, 1024])
async def test_a_maximum_fragment_length(ssl_client2: str, length: int) -> None:
    options = (*by_psk(PskKey(IDENTITY, KEY)), *with_cid("beef"), f"max_frag_len={length}")
    longest = length - len(PREFIX)

    with echo_server(ServerSettings()) as echo:
        told = await converse(ssl_client2, echo.address, *options, f"request_size={longest}")

    assert told.answers == [length]
