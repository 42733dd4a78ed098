"""`gnutls-cli --udp` as a device."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from coapgate.pki.factory import IssuedCertificate
from tests.gateways import Running
from tests.peers import require
from tests.programs import Program, started


def gnutls_cli(
    gateway: Running, key_exchange: str, cipher: str, *options: str
) -> AbstractAsyncContextManager[Program]:
    """Connect by DTLS 1.2 with one suite."""
    priority = f"NORMAL:-VERS-ALL:+VERS-DTLS1.2:-KX-ALL:+{key_exchange}:-CIPHER-ALL:+{cipher}"
    return started(
        require("gnutls-cli"),
        *("--udp", "--port", str(gateway.port), "--priority", priority),
        *options,
        gateway.host,
    )


def gnutls_cli_by_x509(
    gateway: Running, issued: IssuedCertificate, folder: Path, cipher: str = "AES-128-CCM-8"
) -> AbstractAsyncContextManager[Program]:
    """It judges the gateway's certificate as well."""
    certificate, key = issued.write(folder, "device")
    files = ("--x509certfile", str(certificate), "--x509keyfile", str(key))
    trust = ("--x509cafile", str(gateway.installation.ca_file), "--verify-hostname", "localhost")
    return gnutls_cli(gateway, "ECDHE-ECDSA", cipher, *files, *trust)
