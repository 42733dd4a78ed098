"""Reads files of revocation lists while the loop goes on: small ones in a thread, large ones in a
process of their own.

Whatever parses a list holds the interpreter until it is done, half a second and more for a million
entries: a thread beside the loop would stop it for as long.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from array import array
from pathlib import Path
from typing import NamedTuple

from coapgate.errors import CertificateError
from coapgate.model import DEFAULT_TENANT, TrustAnchor
from coapgate.pki.revocation import RevocationList, parse_file, read_file

MAX_IN_THREAD = 128 << 10
"""Octets of a file that is read in a thread: some thousand entries, a few milliseconds."""
READ_TIME = 60.0
"""Seconds that a process has for one file."""


class Read(NamedTuple):
    """What is in a file: the SHA-256 of it, and its lists, None if it is that of `known`."""

    digest: bytes
    lists: tuple[RevocationList, ...] | None


async def read_lists(file: Path, anchor: TrustAnchor, wall: float, known: bytes) -> Read:
    """As `load_lists`, if the file has another SHA-256 than `known`. Raises CertificateError."""
    octets = await asyncio.to_thread(read_file, file, MAX_IN_THREAD)
    if len(octets) > MAX_IN_THREAD:
        return await _in_process(file, anchor, wall, known)
    return await asyncio.to_thread(_read, file, octets, anchor, wall, known)


def _read(file: Path, octets: bytes, anchor: TrustAnchor, wall: float, known: bytes) -> Read:
    digest = hashlib.sha256(octets).digest()
    return Read(digest, None if digest == known else parse_file(file, octets, anchor, wall))


async def _in_process(file: Path, anchor: TrustAnchor, wall: float, known: bytes) -> Read:
    request = {
        "file": str(file),
        "anchor": anchor.name,
        "key_id": anchor.key_id.hex(),
        "certificate": anchor.certificate.hex(),
        "wall": wall,
        "known": known.hex(),
    }
    fault = CertificateError(
        f"the revocation list {str(file)!r} cannot be read: the process that reads it failed",
        f"it has {READ_TIME:.0f} seconds, and needs ten times the memory that the file has octets",
    )
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            __name__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    except OSError as error:
        raise fault from error
    try:
        async with asyncio.timeout(READ_TIME):
            answer, _ = await process.communicate(json.dumps(request).encode())
    except TimeoutError as error:
        raise fault from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise fault
    return _parse(answer)


def _parse(answer: bytes) -> Read:
    """What `_answer` wrote. Raises CertificateError."""
    at = answer.index(b"\n") + 1
    found = json.loads(answer[:at])
    if "error" in found:
        raise CertificateError(found["error"], found["hint"])
    digest = bytes.fromhex(found["digest"])
    if found["lists"] is None:
        return Read(digest, None)
    lists, rest = [], memoryview(answer)[at:]
    for issuer, subject, number, this_update, next_update, count in found["lists"]:
        revoked = array("Q")
        size = count * revoked.itemsize
        revoked.frombytes(rest[:size])
        rest = rest[size:]
        lists.append(
            RevocationList(
                bytes.fromhex(issuer), subject, number, this_update, next_update, revoked
            )
        )
    return Read(digest, tuple(lists))


def _answer(request: bytes) -> tuple[bytes, tuple[RevocationList, ...]]:
    """A line of JSON, and the lists whose entries are to follow it."""
    asked = json.loads(request)
    file, key_id = Path(asked["file"]), bytes.fromhex(asked["key_id"])
    certificate = bytes.fromhex(asked["certificate"])
    anchor = TrustAnchor(asked["anchor"], DEFAULT_TENANT, key_id, certificate)
    known = bytes.fromhex(asked["known"])
    try:
        read = _read(file, read_file(file), anchor, asked["wall"], known)
    except CertificateError as error:
        return json.dumps({"error": str(error), "hint": error.hint}).encode(), ()
    described = read.lists and [
        (
            each.issuer.hex(),
            each.subject,
            each.number,
            each.this_update,
            each.next_update,
            len(each.revoked),
        )
        for each in read.lists
    ]
    answer = {"digest": read.digest.hex(), "lists": described}
    return json.dumps(answer).encode(), read.lists or ()


def main() -> None:
    """The process: a request on standard input, the answer on standard output."""
    header, lists = _answer(sys.stdin.buffer.read())
    output = sys.stdout.buffer
    output.write(header + b"\n")
    for each in lists:
        output.write(each.revoked.tobytes())
    output.flush()


if __name__ == "__main__":
    main()
