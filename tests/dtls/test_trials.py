"""Records of epoch 1 against the keys a peer may have."""

from __future__ import annotations

import pytest

from coapgate.dtls import keys
from coapgate.dtls.finished import MAX_FINISHED_RECORD, Agreement, HandshakeKeys
from coapgate.dtls.keys import Transcript
from coapgate.dtls.messages import HandshakeType, encode_message
from coapgate.dtls.records import ContentType, Record, split
from coapgate.dtls.suites import SUITES
from coapgate.dtls.trials import MAX_TRIALS_PER_SECOND, Trials

AGREEMENT = Agreement(SUITES[0xC0A8], bytes(32), bytes(32), bytes(32))
MESSAGE_SEQ = 4


def derive(secret: bytes, *, is_client: bool) -> HandshakeKeys:
    return AGREEMENT.derive(keys.psk_premaster(secret), is_client=is_client)


def finished(secret: bytes, sequence: int = 0) -> Record:
    client = derive(secret, is_client=True)
    verify_data = client.verify_data(Transcript("sha256"), of_client=True)
    message = encode_message(HandshakeType.FINISHED, MESSAGE_SEQ, verify_data)
    (record,) = split(client.protection.seal(ContentType.HANDSHAKE, sequence, message))
    return record


def candidates(*secrets: bytes) -> tuple[tuple[object, HandshakeKeys], ...]:
    return tuple((secret, derive(secret, is_client=False)) for secret in secrets)


@pytest.fixture
def trials() -> Trials:
    return Trials()


def begin(trials: Trials, *secrets: bytes) -> object:
    return trials.begin(candidates(*secrets), MESSAGE_SEQ, Transcript("sha256"))


def test_the_candidate_that_opens_finished_is_the_proof(trials: Trials) -> None:
    assert begin(trials, b"first", b"second", b"third") is None

    proof = trials.receive(finished(b"second", 7), 0.0)

    assert proof is not None
    assert (proof.proves, proof.sequence) == (b"second", 7)
    assert not trials.has_failed
    # What answers it comes after it in the transcript.
    client = derive(b"second", is_client=True)
    said = Transcript("sha256")
    assert proof.verify_data != client.verify_data(said, of_client=False)
    said.add(
        encode_message(
            HandshakeType.FINISHED, MESSAGE_SEQ, client.verify_data(said, of_client=True)
        )
    )
    assert proof.verify_data == client.verify_data(said, of_client=False)


def test_a_forged_finished_never_ends_it(trials: Trials) -> None:
    begin(trials, b"right")

    for sequence in range(5):
        assert trials.receive(finished(b"wrong", sequence), float(sequence)) is None
    assert trials.has_failed

    assert trials.receive(finished(b"right"), 6.0) is not None


def test_two_records_that_come_early_are_held_and_tried_when_there_are_keys(
    trials: Trials,
) -> None:
    assert trials.receive(finished(b"wrong"), 0.0) is None
    assert trials.receive(finished(b"right"), 0.0) is None
    assert not trials.has_failed

    proof = trials.begin(candidates(b"right"), MESSAGE_SEQ, Transcript("sha256"))

    assert proof is not None
    assert proof.proves == b"right"


def test_a_third_early_record_is_not_held(trials: Trials) -> None:
    for secret in (b"wrong", b"wrong", b"right"):
        trials.receive(finished(secret), 0.0)

    assert begin(trials, b"right") is None
    assert trials.receive(finished(b"right"), 0.0) is not None


def test_records_too_long_for_finished_are_neither_held_nor_tried(trials: Trials) -> None:
    long = Record(ContentType.HANDSHAKE, 1, 0, bytes(MAX_FINISHED_RECORD + 1))

    for _ in range(5):
        assert trials.receive(long, 0.0) is None
    trials.receive(finished(b"right"), 0.0)

    assert begin(trials, b"right") is not None
    assert not trials.has_failed


def test_32_records_a_second_are_tried_and_never_a_fixed_number_in_all(trials: Trials) -> None:
    begin(trials, b"right")
    for second in range(100):
        for sequence in range(MAX_TRIALS_PER_SECOND):
            assert trials.receive(finished(b"wrong", sequence), second + 0.5) is None
            if second:
                break
        else:
            assert trials.receive(finished(b"right"), second + 0.9) is None

    assert trials.receive(finished(b"right"), 100.0) is not None
