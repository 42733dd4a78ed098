"""OpenSSL as the client: every ECDHE_ECDSA suite, fragment size, certificate and loss pattern."""

from __future__ import annotations

import itertools
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from coapgate.dtls.handshake import HandshakeSettings
from coapgate.dtls.server import ServerSettings
from coapgate.errors import Reason
from coapgate.pki.certificates import leaf_public_key
from coapgate.pki.factory import PrivateKey
from tests.dtls.factory import authority, device_certificate, server_certificate, x509_settings
from tests.dtls.openssl_client import CIPHERS, OpenSslPair


def is_alive(pair: OpenSslPair) -> bool:
    """Whether application data goes both ways."""
    pair.send(b"up")
    pair.answer(b"down")
    pair.connect()
    return (pair.delivered, pair.plaintexts) == ([b"up"], [b"down"])


@pytest.mark.parametrize("suite", CIPHERS)
def test_every_ecdhe_ecdsa_suite(suite: int) -> None:
    pair = OpenSslPair(x509_settings(), suite=suite, certificate=device_certificate())

    assert pair.connect(), pair.failure
    assert pair.association is not None
    assert pair.association.protection.suite.code == suite
    assert is_alive(pair)


def test_openssl_offers_aes_256_first_and_the_server_chooses_ccm_8() -> None:
    pair = OpenSslPair(x509_settings(), certificate=device_certificate())

    assert pair.connect()

    assert pair.client.get_cipher_name() == CIPHERS[0xC0AE]


@pytest.mark.parametrize("suite", CIPHERS)
@pytest.mark.parametrize(("group", "name"), [(ec.SECP256R1(), "P-256"), (ec.SECP384R1(), "P-384")])
def test_every_group_that_its_public_api_can_choose(
    suite: int, group: ec.EllipticCurve, name: str
) -> None:
    handshake = HandshakeSettings(server_certificate(type(group)), leaf_public_key)
    pair = OpenSslPair(
        ServerSettings(handshake), suite=suite, group=group, certificate=device_certificate()
    )

    assert pair.connect(), pair.failure
    assert is_alive(pair)


def test_a_group_that_the_certificate_is_not_on_is_no_shared_cipher() -> None:
    pair = OpenSslPair(x509_settings(), group=ec.SECP384R1(), certificate=device_certificate())

    assert not pair.connect()

    assert pair.failed == [Reason.NO_SHARED_CIPHER]
    assert "handshake failure" in pair.failure


@pytest.mark.parametrize("suite", [0xC0AE, 0xC02C])
@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
        rsa.generate_private_key(65537, 4096),
    ],
    ids=["P-256", "P-384", "P-521", "Ed25519", "RSA-2048", "RSA-4096"],
)
def test_every_kind_of_client_key(key: PrivateKey, suite: int) -> None:
    certificate = authority().issue_device("sensor-1", key=key)
    pair = OpenSslPair(x509_settings(), suite=suite, certificate=certificate)

    assert pair.connect(), pair.failure
    assert is_alive(pair)


def test_a_chain_with_an_intermediate_goes_both_ways() -> None:
    below = authority().intermediate("Line 4").intermediate("Shift 2")
    pair = OpenSslPair(x509_settings(), certificate=below.issue_device("sensor-1"))

    assert pair.connect(), pair.failure
    assert is_alive(pair)


@pytest.mark.parametrize("suite", CIPHERS)
@pytest.mark.parametrize("mtu", [256, 300, 333, 512, 1200])
def test_every_fragment_size_of_datagrams(mtu: int, suite: int) -> None:
    settings = x509_settings(max_datagram=mtu)
    pair = OpenSslPair(settings, suite=suite, certificate=device_certificate(), mtu=mtu)

    assert pair.connect(), pair.failure
    assert is_alive(pair)
    assert max(pair.lengths["to client"]) <= mtu
    assert max(pair.lengths["to server"]) <= mtu


def test_fragments_of_every_size_between_are_understood_by_openssl() -> None:
    for mtu in range(100, 420, 7):
        pair = OpenSslPair(x509_settings(max_datagram=mtu), certificate=device_certificate())
        assert pair.connect(), (mtu, pair.failure)
        assert max(pair.lengths["to client"]) <= mtu


# --- refusals


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (Reason.EXPIRED, "certificate expired"),
        (Reason.REVOKED, "certificate revoked"),
        (Reason.UNTRUSTED, "unknown ca"),
        (Reason.WRONG_USAGE, "bad certificate"),
        (Reason.UNAVAILABLE, "internal error"),
    ],
)
def test_a_refusal_reaches_openssl_as_that_very_alert(reason: Reason, text: str) -> None:
    pair = OpenSslPair(x509_settings(), certificate=device_certificate(), refuse=reason)

    assert not pair.connect()

    assert text in pair.failure
    assert pair.server.association_count == 0


def test_a_client_without_certificate_is_refused() -> None:
    pair = OpenSslPair(x509_settings())

    assert not pair.connect()

    assert pair.failed == [Reason.NO_CERTIFICATE]
    assert "handshake failure" in pair.failure


def test_a_client_that_does_not_trust_us_ends_as_a_timeout_that_says_so() -> None:
    stranger = server_certificate()
    chain = authority().issue_server(names=("localhost",)).chain
    # The certificate of another key.
    settings = ServerSettings(
        HandshakeSettings(type(stranger)(chain, stranger.key), leaf_public_key)
    )
    pair = OpenSslPair(settings, certificate=device_certificate())

    assert not pair.connect()
    assert "signature" in pair.failure
    pair.server.handle_timer(90.0)
    pair.connect()

    assert pair.failed == [Reason.TIMEOUT]


def test_close_notify_goes_both_ways() -> None:
    pair = OpenSslPair(x509_settings(), certificate=device_certificate())
    assert pair.connect()
    assert is_alive(pair)

    pair.close()
    pair.connect()

    assert pair.server.association_count == 0
    assert pair.failure == "closed"


def test_renegotiation_is_declined_and_openssl_goes_away() -> None:
    pair = OpenSslPair(x509_settings(), certificate=device_certificate())
    assert pair.connect()
    assert is_alive(pair)

    pair.client.renegotiate()
    pair.is_connected = False
    pair.connect()

    assert "no renegotiation" in pair.failure
    assert pair.server.handshake_count == 0
    # It takes our warning so badly that it says goodbye with a fatal alert.
    assert pair.server.association_count == 0


# --- loss of what the server sends: its own timer repairs it


@pytest.mark.parametrize("suite", CIPHERS)
def test_every_pattern_of_loss_in_the_server_s_flights(suite: int) -> None:
    # At this size flight 4 is five datagrams, 1 to 5.
    settings = x509_settings(max_datagram=400)
    probe = OpenSslPair(settings, suite=suite, certificate=device_certificate())
    assert probe.connect()
    flight = range(1, len(probe.lengths["to client"]) - 1)
    assert 3 <= len(flight) <= 6
    for count in range(1, len(flight) + 1):
        for lost in itertools.combinations(flight, count):
            pair = OpenSslPair(
                settings,
                suite=suite,
                certificate=device_certificate(),
                copies=lambda way, number, lost=lost: way != "to client" or number not in lost,  # type: ignore[misc]
            )
            assert not pair.connect()
            assert pair.wait_for_server(), (lost, pair.failure)
            assert is_alive(pair)


@pytest.mark.parametrize("suite", CIPHERS)
def test_a_second_hello_verify_request_and_every_other_duplicate_do_no_harm(suite: int) -> None:
    settings = x509_settings(max_datagram=400)
    for direction in ("to server", "to client"):
        for twice in range(8):
            pair = OpenSslPair(
                settings,
                suite=suite,
                certificate=device_certificate(),
                copies=lambda way, number, twice=(direction, twice): 1 + ((way, number) == twice),  # type: ignore[misc]
            )
            assert pair.connect(), (direction, twice, pair.failure)
            assert is_alive(pair)


# --- loss of what the client sends, and of the last flight: OpenSSL's timer repairs it


@pytest.mark.parametrize("mtu", [300, 1200])
def test_every_datagram_of_the_client_lost_once_and_the_last_flight_too(mtu: int) -> None:
    """All patterns wait at the same time: OpenSSL's second is a real one."""
    settings = x509_settings(max_datagram=mtu)
    probe = OpenSslPair(settings, certificate=device_certificate(), mtu=mtu)
    assert probe.connect()
    total = {way: len(lengths) for way, lengths in probe.lengths.items()}
    patterns = [("to server", number) for number in range(total["to server"])]
    patterns += [("to client", 0), ("to client", total["to client"] - 1)]
    pairs = [
        OpenSslPair(
            settings,
            suite=suite,
            certificate=device_certificate(),
            mtu=mtu,
            copies=lambda way, number, pattern=pattern: (way, number) != pattern,  # type: ignore[misc]
        )
        for pattern in patterns
        for suite in CIPHERS
    ]

    waiting = [pair for pair in pairs if not pair.connect()]
    # Change Cipher Spec is a datagram of its own here, and we do without it.
    assert len(waiting) >= len(pairs) - 2 * len(CIPHERS)
    deadline = time.monotonic() + 20.0
    while waiting and time.monotonic() < deadline:
        timeouts = [pair.next_timeout() for pair in waiting]
        assert None not in timeouts, [pair.failure for pair in waiting]
        time.sleep(max(0.01, min(timeout for timeout in timeouts if timeout is not None)))
        waiting = [pair for pair in waiting if not pair.wait_for_client()]

    assert waiting == []
    assert all(is_alive(pair) for pair in pairs)
