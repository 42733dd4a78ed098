"""Devices from a CSV file: `device,tenant,psk_identity,psk_key`, one device a line.

An empty tenant is `default`. An identity is text, or octets as `hex:`, `base64:` or `text:`; a
key always has such a prefix (see `psk`). Every line is judged by itself, so that one that is
broken, an open quote for instance, does not hide those below it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from coapgate.errors import Misused
from coapgate.model import DEFAULT_TENANT, DeviceId, Tenant
from coapgate.registry import psk, refusals
from coapgate.registry.base import BadLine, NewDevice

COLUMNS = ("device", "tenant", "psk_identity", "psk_key")

MAX_LINE_LENGTH = 4096
"""Octets; the longest sensible line has a fifth of that."""

_FIRST_LINE = f"the first line names the columns, in any order: {','.join(COLUMNS)}"


def read_csv(file: BinaryIO, *, allow_weak: bool = False) -> Iterator[NewDevice | BadLine]:
    """Read a file line by line, whatever its size. Empty lines are skipped.

    `allow_weak` accepts keys of fewer than 16 octets.
    A first line that does not name the columns is the only thing said about a file.
    """
    lines = _lines(file)
    first = next(lines, None)
    try:
        if first is None:
            raise Misused("the file is empty", _FIRST_LINE)
        order = _parse_header(first[1])
    except Misused as error:
        yield BadLine(first[0] if first else 1, str(error), error.hint)
        return
    for number, octets in lines:
        try:
            yield _parse_line(number, octets, order, allow_weak=allow_weak)
        except Misused as error:
            yield BadLine(number, str(error), error.hint)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number, octets) of the lines that are not empty; one that is too long comes cut."""
    number = 0
    while octets := file.readline(MAX_LINE_LENGTH + 1):
        number += 1
        line = octets
        while not octets.endswith(b"\n") and (octets := file.readline(MAX_LINE_LENGTH)):
            pass
        if line.strip():
            yield number, line


def _parse_header(octets: bytes) -> Sequence[int]:
    """Where each of COLUMNS is."""
    names = [name.strip() for name in _parse_cells(octets.removeprefix(b"\xef\xbb\xbf"))]
    if sorted(names) != sorted(COLUMNS):
        raise Misused("the columns are not those of an import", _FIRST_LINE)
    return [names.index(column) for column in COLUMNS]


def _parse_line(number: int, octets: bytes, order: Sequence[int], *, allow_weak: bool) -> NewDevice:
    cells = _parse_cells(octets)
    if len(cells) != len(COLUMNS):
        raise Misused(
            f"{len(cells)} columns instead of {len(COLUMNS)}",
            'put a value that holds a comma in "quotes"',
        )
    device, tenant, identity, key = (cells[place] for place in order)
    refusals.check_name(device, "device")
    tenant = tenant or DEFAULT_TENANT
    refusals.check_name(tenant, "tenant")
    return NewDevice(
        number,
        Tenant(tenant),
        DeviceId(device),
        psk.parse_identity(identity),
        psk.parse_key(key, allow_weak=allow_weak),
    )


def _parse_cells(octets: bytes) -> list[str]:
    if len(octets) > MAX_LINE_LENGTH:
        raise Misused(f"the line has more than {MAX_LINE_LENGTH} octets", "one device is one line")
    try:
        text = octets.decode()
    except UnicodeDecodeError:
        raise Misused("the line is not UTF-8", "save the file as UTF-8") from None
    try:
        (cells,) = csv.reader([text.rstrip("\r\n")], strict=True)
    except (csv.Error, ValueError):
        raise Misused("the line is not CSV", 'see whether every " has its partner') from None
    return cells
