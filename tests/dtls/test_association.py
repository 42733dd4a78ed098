"""One association's counters and its last flight."""

from __future__ import annotations

import pytest

from coapgate.dtls.association import Association, FinalFlight
from coapgate.dtls.messages import HandshakeType, encode_message
from coapgate.dtls.protection import Protection
from coapgate.dtls.records import ContentType, split
from coapgate.dtls.suites import SUITES
from coapgate.model import DeviceId, Identity, Method, Tenant

SUITE = SUITES[0xC0A8]
BLOCK = bytes(range(SUITE.key_block_length))
PEER = Protection(SUITE, BLOCK, is_client=True)
IDENTITY = Identity(Tenant("acme"), DeviceId("sensor-7"), Method.PSK, "psk-1")


@pytest.fixture
def association() -> Association:
    protection = Protection(SUITE, BLOCK, is_client=False)
    return Association(bytes(8), IDENTITY, (0, ("192.0.2.1", 1)), protection, 1200, 5.0)


def test_a_new_association_is_open_fresh_and_says_who_it_is(association: Association) -> None:
    assert association.is_open
    assert association.final_flight is None
    assert association.last_seen_at == 5.0
    assert association.max_plaintext == 1200
    assert association.window.is_fresh(0)
    assert repr(association) == "<Association 0000000000000000 acme/sensor-7>"


def test_no_send_number_is_used_twice(association: Association) -> None:
    sealed = [association.seal(ContentType.APPLICATION_DATA, b"same") for _ in range(100)]

    numbers = [record.sequence for datagram in sealed for record in split(datagram)]
    assert numbers == list(range(100))
    # The explicit nonce is epoch and sequence number.
    assert [octets[13:21] for octets in sealed] == [octets[3:11] for octets in sealed]


def test_the_final_flight_is_repeated_under_new_numbers(association: Association) -> None:
    finished = encode_message(HandshakeType.FINISHED, 2, bytes(12))
    flight = FinalFlight(finished, 40)

    first, second = (
        flight.encode_change() + association.seal(ContentType.HANDSHAKE, flight.message)
        for _ in range(2)
    )

    assert first != second
    for index, datagram in enumerate((first, second)):
        change, sealed = split(datagram)
        assert (change.content_type, change.sequence) == (
            ContentType.CHANGE_CIPHER_SPEC,
            40 + index,
        )
        assert change.fragment == b"\1"
        assert (sealed.epoch, sealed.sequence) == (1, index)
        assert PEER.open(sealed.octets) == finished
