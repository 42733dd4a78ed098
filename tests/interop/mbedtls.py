"""Mbed TLS's `ssl_client2` as a device: the client that has Connection IDs (RFC 9146).

Debian has the library without the program, so the program is an optional peer: the environment
variable `MBEDTLS_CLIENT` names one that was built from the sources of Mbed TLS 3.6. Where it names
none, tests that need it are skipped, whatever peers are required otherwise. To build one, on Debian
with an entry for the sources of trixie (bookworm's are of 2.28, which has a draft's Connection ID):

    apt-get source mbedtls
    cmake -S mbedtls-3.6.* -B build -DENABLE_TESTING=OFF -DGEN_FILES=OFF
    cmake --build build --target ssl_client2
    MBEDTLS_CLIENT=$PWD/build/programs/ssl/ssl_client2 make test
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from coapgate.dtls.client import PskKey
from coapgate.pki.factory import IssuedCertificate
from tests.programs import started

VARIABLE = "MBEDTLS_CLIENT"

PADDED_TO = 16
"""What is sealed with a Connection ID is padded to a multiple of so many octets."""
MAX_CID = 32
"""Octets of the longest Connection ID it can receive or send."""


def find_ssl_client2() -> str:
    """The program that MBEDTLS_CLIENT names; the test is skipped if the variable is not set."""
    named = os.environ.get(VARIABLE)
    if not named:
        pytest.skip(f"{VARIABLE} names no ssl_client2 of Mbed TLS 3.6")
    program = shutil.which(named)
    if program is None:
        pytest.fail(f"{VARIABLE} names no program: {named}", pytrace=False)
    asked = subprocess.run(
        [program, "query_config=MBEDTLS_SSL_DTLS_CONNECTION_ID"], check=False, capture_output=True
    )
    if asked.returncode != 0:
        pytest.fail(f"{named} was built without MBEDTLS_SSL_DTLS_CONNECTION_ID", pytrace=False)
    return program


@dataclass(frozen=True, slots=True)
class Conversation:
    """What `ssl_client2` has printed from its start to its end."""

    output: str

    @property
    def sent(self) -> list[int]:
        """Octets of each of its messages."""
        return [int(n) for n in re.findall(r"Write to server: (\d+) bytes written", self.output)]

    @property
    def answers(self) -> list[int]:
        """Octets of each message it got."""
        return [int(n) for n in re.findall(r"Read from server: (\d+) bytes read", self.output)]

    @property
    def connection_id(self) -> bytes | None:
        """What its records carry, None if the server did not agree to that."""
        told = re.search(r"Peer CID \(length \d+ Bytes\): ([0-9a-f ]*)\n", self.output)
        return bytes.fromhex(told[1]) if told is not None else None


async def converse(program: str, address: tuple[str, int], *options: str) -> Conversation:
    """Connect by DTLS 1.2, send one message after the other, each when the last was answered.

    It fails unless every one of them was answered in time and the client ended in order.
    """
    host, port = address
    async with started(
        program,
        *("dtls=1", "force_version=dtls12", f"server_addr={host}", f"server_port={port}"),
        *("read_timeout=10000", *options),
    ) as client:
        status = await client.end()
    output = client.output.decode(errors="backslashreplace")
    assert status == 0, output
    return Conversation(output)


def with_cid(connection_id: str) -> tuple[str, ...]:
    """Offer a Connection ID of these hex digits; none of them: records to it carry none."""
    return ("cid=1", f"cid_val={connection_id}") if connection_id else ("cid=1",)


def by_psk(key: PskKey, suite: str = "AES-128-CCM-8") -> tuple[str, ...]:
    return (
        *(f"psk_identity={key.identity.decode()}", f"psk={key.secret.hex()}"),
        f"force_ciphersuite=TLS-PSK-WITH-{suite}",
    )


def by_x509(
    issued: IssuedCertificate, folder: Path, ca_file: Path, suite: str = "AES-128-CCM-8"
) -> tuple[str, ...]:
    """It judges the gateway's certificate as well, and goes away if that is not good."""
    certificate, key = issued.write(folder, "device")
    return (
        *(f"crt_file={certificate}", f"key_file={key}"),
        *(f"ca_file={ca_file}", "auth_mode=required", "server_name=localhost"),
        f"force_ciphersuite=TLS-ECDHE-ECDSA-WITH-{suite}",
    )
