"""What an authority in a folder has revoked so far, in a file of its own.

A revocation list is carried away, to the gateway; the next one must name all that it named. So the
record is on the disk before a list is handed out, and where it is lost no list is signed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

FILE = "revoked.json"

MAX_SIZE = 64 << 20
"""Octets: a million certificates."""


def write(folder: Path, number: int, revoked: Mapping[int, float]) -> None:
    """Keep the number of the newest list and all that it names, by serial number.

    The times are Unix seconds. It is on the disk when this returns. Raises OSError.
    """
    named = {f"{serial:x}": int(at) for serial, at in revoked.items()}
    replace_file(folder / FILE, json.dumps({"number": number, "revoked": named}).encode())


def read(folder: Path) -> tuple[int, dict[int, float]]:
    """The number of the newest list, 0 if there was none, and what it named.

    Raises ValueError if the file is not as `write` leaves it, and OSError.
    """
    with (folder / FILE).open("rb") as file:
        octets = file.read(MAX_SIZE + 1)
    if len(octets) > MAX_SIZE:
        raise ValueError("too large")
    try:
        document = json.loads(octets)
        number, named = document["number"], document["revoked"]
        revoked = {int(serial, 16): float(at) for serial, at in named.items()}
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("no record") from error
    if type(number) is not int or number < 0:
        raise ValueError("no number")
    return number, revoked


def replace_file(file: Path, octets: bytes) -> None:
    """At once: a reader sees the one or the other; on the disk at the end. Raises OSError."""
    written = file.with_name(f"{file.name}.new")
    with written.open("wb") as opened:
        opened.write(octets)
        opened.flush()
        os.fsync(opened.fileno())
    written.replace(file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
