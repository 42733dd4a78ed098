"""Whatever octets arrive, they are records, malformed or forged, and nothing else.

`python -m tests.fuzz.fuzz_records -max_total_time=60` runs it under atheris.
"""

from __future__ import annotations

from contextlib import suppress

from coapgate.dtls.keys import Prf, key_block
from coapgate.dtls.protection import Protection
from coapgate.dtls.records import MAX_RECORDS, Record, split
from coapgate.dtls.suites import SUITES
from coapgate.errors import ForgedRecord, MalformedRecord

CID = bytes.fromhex("c1c2c3c4c5c6c7c8")
PROTECTIONS = tuple(
    Protection(
        suite,
        key_block(suite, Prf(suite.hash_name, b"m" * 48), b"c" * 32, b"s" * 32),
        is_client=False,
    )
    for suite in SUITES.values()
)
PROTECTIONS_WITH_CID = tuple(
    Protection(
        suite,
        key_block(suite, Prf(suite.hash_name, b"m" * 48), b"c" * 32, b"s" * 32),
        is_client=False,
        received_cid=CID,
    )
    for suite in SUITES.values()
)


def test_one_input(data: bytes) -> None:
    """A datagram."""
    for cid_length, protections in ((0, PROTECTIONS), (len(CID), PROTECTIONS_WITH_CID)):
        records: list[Record] = []
        with suppress(MalformedRecord):
            records.extend(split(data, cid_length))
        assert data.startswith(b"".join(record.octets for record in records))
        assert len(records) <= MAX_RECORDS
        for record in records:
            assert record.octets.endswith(record.fragment)
            assert len(record.connection_id) in (0, cid_length)
            for protection in protections:
                assert not opens(protection, record.octets)


def opens(protection: Protection, octets: bytes) -> bool:
    """Whether a record authenticates: the keys are secret, so it never does."""
    with suppress(ForgedRecord):
        protection.open(octets)
        return True
    with suppress(ForgedRecord):
        protection.open_cid(octets)
        return True
    return False


if __name__ == "__main__":
    from tests.fuzz.running import fuzz

    fuzz(test_one_input, __file__)
