"""`coapgate run`: serve until SIGTERM."""

from __future__ import annotations

from pathlib import Path

from coapgate import gateway
from coapgate.config import load


def run(config: Path) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises ConfigError, StartError, CertificateError or RegistryError.
    """
    gateway.run(load(config))
