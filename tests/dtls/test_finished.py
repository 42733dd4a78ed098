"""Keys of a handshake, proven by Finished."""

from __future__ import annotations

import pytest

from coapgate.dtls import keys
from coapgate.dtls.finished import MAX_FINISHED_RECORD, Agreement, HandshakeKeys
from coapgate.dtls.keys import Transcript
from coapgate.dtls.messages import HandshakeType, encode_message
from coapgate.dtls.records import ContentType
from coapgate.dtls.suites import SUITES

CLIENT_RANDOM, SERVER_RANDOM = bytes(32), bytes([1]) * 32
PREMASTER = keys.psk_premaster(b"k" * 16)
SESSION_HASH = bytes([2]) * 32


def agree(suite: int = 0xC0A8, session_hash: bytes | None = SESSION_HASH) -> Agreement:
    return Agreement(SUITES[suite], CLIENT_RANDOM, SERVER_RANDOM, session_hash)


@pytest.fixture
def ours() -> HandshakeKeys:
    return agree().derive(PREMASTER, is_client=False)


@pytest.fixture
def theirs() -> HandshakeKeys:
    return agree().derive(PREMASTER, is_client=True)


def transcript(*messages: bytes, hash_name: str = "sha256") -> Transcript:
    made = Transcript(hash_name)
    for message in messages:
        made.add(message)
    return made


def sealed(keys: HandshakeKeys, message: bytes) -> bytes:
    return keys.protection.seal(ContentType.HANDSHAKE, 0, message)


@pytest.mark.parametrize("suite", SUITES)
def test_both_ends_derive_the_same_and_finished_proves_it(suite: int) -> None:
    said = transcript(b"hello", hash_name=SUITES[suite].hash_name)
    ours = agree(suite).derive(PREMASTER, is_client=False)
    theirs = agree(suite).derive(PREMASTER, is_client=True)
    message = encode_message(HandshakeType.FINISHED, 3, theirs.verify_data(said, of_client=True))

    record = sealed(theirs, message)

    assert len(record) <= MAX_FINISHED_RECORD
    assert ours.open_finished(record, 3, said, of_client=True) == message


def test_master_secrets_differ_with_and_without_extended_master_secret() -> None:
    with_extension = agree().derive(PREMASTER, is_client=True)
    without = agree(session_hash=None).derive(PREMASTER, is_client=True)
    said = transcript()

    assert with_extension.verify_data(said, of_client=True) != without.verify_data(
        said, of_client=True
    )
    master = keys.master_secret(SUITES[0xC0A8], PREMASTER, CLIENT_RANDOM, SERVER_RANDOM)
    assert without.verify_data(said, of_client=False) == keys.verify_data(
        keys.Prf("sha256", master), of_client=False, transcript_hash=said.digest()
    )


def test_a_record_that_does_not_open_is_no_finished_and_keeps_nothing_warm(
    ours: HandshakeKeys,
) -> None:
    other = agree().derive(keys.psk_premaster(b"x" * 16), is_client=True)
    said = transcript()
    message = encode_message(HandshakeType.FINISHED, 3, other.verify_data(said, of_client=True))

    assert ours.open_finished(sealed(other, message), 3, said, of_client=True) is None
    assert ours.protection.opener is None


def test_finished_must_be_the_next_message_whole_alone_and_right(
    ours: HandshakeKeys, theirs: HandshakeKeys
) -> None:
    said = transcript(b"hello")
    verify_data = theirs.verify_data(said, of_client=True)
    good = encode_message(HandshakeType.FINISHED, 3, verify_data)
    wrong = [
        encode_message(HandshakeType.FINISHED, 4, verify_data),
        encode_message(HandshakeType.CERTIFICATE_VERIFY, 3, verify_data),
        encode_message(HandshakeType.FINISHED, 3, theirs.verify_data(said, of_client=False)),
        encode_message(HandshakeType.FINISHED, 3, verify_data[:-1]),
        encode_message(HandshakeType.FINISHED, 3, verify_data + b"\0"),
        good + good,
        good[:-1],
        b"",
        good[:12],
        *(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in range(len(good))),
    ]

    for message in wrong:
        assert ours.open_finished(sealed(theirs, message), 3, said, of_client=True) is None
    assert ours.open_finished(sealed(theirs, good), 3, transcript(b"x"), of_client=True) is None
    assert ours.open_finished(sealed(theirs, good), 3, said, of_client=True) == good


def test_a_record_too_long_for_finished_is_not_even_opened(
    ours: HandshakeKeys, theirs: HandshakeKeys
) -> None:
    record = sealed(theirs, bytes(MAX_FINISHED_RECORD))

    assert ours.open_finished(record, 3, transcript(), of_client=True) is None
    assert ours.protection.opener is None
