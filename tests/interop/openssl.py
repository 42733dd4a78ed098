"""`openssl s_client` as a device."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from coapgate.dtls.client import PskKey
from coapgate.pki.factory import IssuedCertificate
from tests.gateways import Running
from tests.peers import require
from tests.programs import Program, started


def s_client(gateway: Running, *options: str) -> AbstractAsyncContextManager[Program]:
    """Connect by DTLS 1.2; what is written goes out as one record, what comes back is printed."""
    # -quiet: nothing is printed but what the peer sent, no letter at the start of a line is a
    # command, and the association lives until the program is killed.
    return started(
        require("openssl"),
        *("s_client", "-dtls1_2", "-connect", gateway.address, "-quiet"),
        *options,
    )


def s_client_by_psk(
    gateway: Running, key: PskKey, cipher: str = "PSK-AES128-CCM8", *options: str
) -> AbstractAsyncContextManager[Program]:
    # Security level 0, because OpenSSL counts CCM_8 as 64 bits.
    return s_client(
        gateway,
        *("-cipher", f"{cipher}:@SECLEVEL=0"),
        *("-psk_identity", key.identity.decode(), "-psk", key.secret.hex()),
        *options,
    )


def s_client_by_x509(
    gateway: Running,
    issued: IssuedCertificate,
    folder: Path,
    cipher: str = "ECDHE-ECDSA-AES128-CCM8",
    *options: str,
) -> AbstractAsyncContextManager[Program]:
    """It judges the gateway's certificate as well, and goes away if that is not good."""
    certificate, key = issued.write(folder, "device")
    return s_client(
        gateway,
        *("-cipher", f"{cipher}:@SECLEVEL=0"),
        *("-cert", str(certificate), "-cert_chain", str(certificate), "-key", str(key)),
        *("-CAfile", str(gateway.installation.ca_file), "-verify_return_error"),
        *("-verify_ip", "127.0.0.1"),
        *options,
    )
