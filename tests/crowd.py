"""Many associations that an earlier process left, made without a handshake for each of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from coapgate.association_file import StoreKeys, open_associations
from coapgate.dtls.records import CID_LENGTH
from coapgate.dtls.store import Established
from coapgate.dtls.suites import SUITES
from coapgate.model import Identity, Method
from coapgate.registry.base import PskEntry

IDLE = 600.0
"""Seconds for which nothing was heard of any of them."""
NEWEST = 7
"""Of a few requests each."""
MAX_PLAINTEXT = 1175
SUITE = SUITES[0xC0A8]
"""PSK with AES_128_CCM_8, as constrained devices have it."""


def fill(
    file: Path,
    capacity: int,
    keys: StoreKeys,
    devices: Iterable[PskEntry],
    *,
    wall: float,
    boot_id: str,
    binds: Sequence[tuple[str, int]] | None = None,
) -> int:
    """Put an association with a Connection ID into the file for each of `devices`, by their keys in
    the registry; how many. The options are those of `open_associations`."""
    with open_associations(
        file, capacity, keys, boot_id=boot_id, wall=wall - IDLE, binds=binds
    ) as store:
        for number, entry in enumerate(devices):
            established = Established(
                os.urandom(8),
                Identity(entry.tenant, entry.device, Method.PSK, f"psk-{entry.number}"),
                SUITE.code,
                os.urandom(SUITE.key_block_length),
                bytes(2) + number.to_bytes(CID_LENGTH - 2, "big"),  # worker 0, node 0
                b"",
                MAX_PLAINTEXT,
            )
            high, low = divmod(number, 250)
            path = (0, (f"127.{1 + high // 250}.{high % 250}.{1 + low}", 49152))
            if store.add(established, path, NEWEST) < 0:
                raise ValueError(f"no room for association {number} in {file}")
        return store.count
