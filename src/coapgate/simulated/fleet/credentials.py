"""What the devices of a fleet prove themselves with, from files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from coapgate.dtls.client import ClientCertificate, PskKey
from coapgate.dtls.signatures import PublicKey
from coapgate.errors import CertificateError, Misused
from coapgate.pki.keys import UNREADABLE
from coapgate.registry import importing, psk
from coapgate.registry.base import BadLine
from coapgate.registry.batches import DEVICE_FIELD, derive_key, parse_pattern
from coapgate.simulated.fleet.bounds import MAX_DEVICES
from coapgate.simulated.trust import trust_server

COLUMNS = ("identity", "key")
_MAX_FILE_SIZE = 1 << 20
_FIRST_LINE = f"the first line is {','.join(COLUMNS)}, or that of `device import`"

DERIVED_NAME = "sim-{number}"
"""Names of devices whose keys are derived: from 1 on."""

Trust = Callable[[tuple[bytes, ...]], PublicKey]


def read_identities(file: Path, count: int | None) -> list[PskKey]:
    """The first `count` PSK identities of a CSV file, all of them if it is None.

    Its columns are those of COLUMNS or those of `coapgate device import`. An identity that occurs
    again is the same device, and its first key counts.

    Raises Misused: it cannot be read, a line of those needed is bad, or there are too few.
    """
    keys: dict[bytes, PskKey] = {}
    wanted = MAX_DEVICES if count is None else count
    try:
        with file.open("rb") as opened:
            for key in _read_keys(opened, str(file)):
                if len(keys) == wanted:
                    break
                keys.setdefault(key.identity, key)
    except OSError as error:
        raise Misused(f"cannot read {str(file)!r}: {error.strerror}", _FIRST_LINE) from error
    _check_count(len(keys), count, f"{str(file)!r} has", "identities")
    return list(keys.values())


def derive_identities(master_key: bytes, pattern: str, count: int | None) -> list[PskKey]:
    """`count` devices of a batch, with keys derived from its master key.

    `pattern` is the batch's: its {device} is `sim-1` and so on.

    Raises Misused: the pattern cannot be, or nobody said how many.
    """
    parse_pattern(pattern)
    if count is None:
        raise Misused("how many devices of the batch?", "--devices N")
    if count > MAX_DEVICES:
        raise Misused(f"{count} devices; a fleet has {MAX_DEVICES} at most")
    names = (DERIVED_NAME.format(number=number) for number in range(1, count + 1))
    identities = [pattern.replace(DEVICE_FIELD, name).encode() for name in names]
    for identity in identities[-1:]:  # the longest
        psk.check_identity(identity)
    return [PskKey(identity, derive_key(master_key, identity)) for identity in identities]


def read_certificates(
    folder: Path, ca: Path, server_name: str, count: int | None
) -> list[ClientCertificate]:
    """The first `count` devices of a folder of DEVICE.pem and DEVICE.key, all if it is None.

    `ca` is the certificate below which that of the server, for `server_name`, is believed.

    Raises Misused if there are too few, CertificateError for a file that cannot be used.
    """
    trust = _remembering(trust_server(_load_chain(ca)[0], server_name))
    try:
        with_keys = (file for file in folder.glob("*.pem") if file.with_suffix(".key").exists())
        files = sorted(islice(with_keys, MAX_DEVICES))
    except OSError as error:
        raise Misused(f"cannot read {str(folder)!r}: {error.strerror}") from error
    _check_count(len(files), count, f"{str(folder)!r} has", "pairs of DEVICE.pem and DEVICE.key")
    return [_load_device(file, trust) for file in files[:count]]


def _read_keys(file: BinaryIO, name: str) -> Iterator[PskKey]:
    first = file.readline(importing.MAX_LINE_LENGTH)
    columns = [cell.strip() for cell in first.removeprefix(b"\xef\xbb\xbf").split(b",")]
    if sorted(columns) == sorted(column.encode() for column in importing.COLUMNS):
        file.seek(0)
        for device in importing.read_csv(file):
            if isinstance(device, BadLine):
                raise Misused(f"line {device.line} of {name!r}: {device.message}", device.hint)
            yield PskKey(device.identity, device.secret)
        return
    if sorted(columns) != sorted(column.encode() for column in COLUMNS):
        raise Misused(f"{name!r} does not name the columns that are wanted", _FIRST_LINE)
    is_key_first = columns[0] == b"key"
    number = 1
    while octets := file.readline(importing.MAX_LINE_LENGTH + 1):
        number += 1
        if octets.strip():
            try:
                cells = _parse_cells(octets)
                identity, key = reversed(cells) if is_key_first else cells
                yield PskKey(psk.parse_identity(identity), psk.parse_key(key))
            except Misused as error:
                raise Misused(f"line {number} of {name!r}: {error}", error.hint) from None


def _parse_cells(octets: bytes) -> list[str]:
    """The two cells of a line. Raises Misused, which shows none of it."""
    try:
        (cells,) = csv.reader([octets.decode().rstrip("\r\n")], strict=True)
    except (csv.Error, ValueError):
        cells = []
    if len(cells) != len(COLUMNS) or len(octets) > importing.MAX_LINE_LENGTH:
        raise Misused("not an identity and a key", "in UTF-8, with a comma between them")
    return cells


def _check_count(found: int, wanted: int | None, where: str, what: str) -> None:
    if not found or (wanted is not None and found < wanted):
        raise Misused(
            f"{where} {found} {what}; {wanted or 'at least 1'} wanted",
            "each device proves itself by a credential of its own",
        )


def _remembering(trust: Trust) -> Trust:
    """Judge a chain once: a server shows the same to every device of a fleet."""
    judged: dict[tuple[bytes, ...], PublicKey] = {}

    def remembering(chain: tuple[bytes, ...]) -> PublicKey:
        key = judged.get(chain)
        if key is None:
            key = trust(chain)
            if len(judged) < 16:
                judged[chain] = key
        return key

    return remembering


def _load_device(file: Path, trust: Trust) -> ClientCertificate:
    key_file = file.with_suffix(".key")
    chain = _load_chain(file)
    try:
        key = serialization.load_pem_private_key(_read(key_file), password=None)
        belongs = key.public_key() == chain[0].public_key()
    except UNREADABLE as error:
        raise CertificateError(
            f"no private key can be read from {str(key_file)!r}",
            "a PEM file is wanted, not encrypted: -----BEGIN PRIVATE KEY-----",
        ) from error
    if not belongs or not isinstance(
        key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
    ):
        raise CertificateError(
            f"the key {str(key_file)!r} does not belong to the first certificate of {str(file)!r}",
            "the device's own certificate comes first, then its issuers",
        )
    encoding = serialization.Encoding.DER
    return ClientCertificate(tuple(each.public_bytes(encoding) for each in chain), key, trust)


def _load_chain(file: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(file))
    except UNREADABLE as error:
        raise CertificateError(
            f"no certificates can be read from {str(file)!r}",
            "a PEM file is wanted: -----BEGIN CERTIFICATE----- blocks",
        ) from error


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(_MAX_FILE_SIZE)
    except OSError as error:
        raise CertificateError(
            f"{str(file)!r} cannot be read: {error.strerror}", "check who may read it"
        ) from error
