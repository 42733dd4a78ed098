"""What a connection to the broker is made with: addresses, names, limits, files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from coapgate.errors import StartError

MAX_PASSWORD_LENGTH = 65535
"""Octets (MQTT 5 3.1.3.6)."""


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """Where the broker is, who we are, and what may wait for it. Times in seconds.

    `client_id` is complete: one per connection. `hold_messages` publications wait at most, and
    never more than 65535, because packet identifiers have 16 bits. `status_topic` None: this
    worker says nothing about the gateway. `connect_timeout` is for TCP and TLS together.
    """

    host: str
    port: int = 1883
    tls: bool = False
    client_id: str = "coapgate-0-0"
    username: str | None = None
    password_file: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    status_topic: str | None = None
    keep_alive: int = 30
    session_expiry: int = 0
    max_received_packet: int = 8 << 20
    max_in_flight: int = 256
    hold_time: float = 10.0
    hold_messages: int = 4096
    connect_timeout: float = 10.0

    @property
    def url(self) -> str:
        """For messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def check_files(settings: ConnectionSettings) -> None:
    """Read every file that a connection needs.

    Raises StartError for the first that cannot be used.
    """
    load_password(settings)
    load_tls(settings)


def load_password(settings: ConnectionSettings) -> bytes | None:
    """Read anew for every connection, so a password can be changed under a running gateway."""
    path = settings.password_file
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            password = file.read(MAX_PASSWORD_LENGTH + 3).rstrip(b"\r\n")
    except OSError as error:
        raise StartError(
            f"mqtt.password_file cannot be read: {path}: {error.strerror}",
            "it must exist and be readable for the user the gateway runs as",
        ) from error
    if not 0 < len(password) <= MAX_PASSWORD_LENGTH:
        raise StartError(
            f"mqtt.password_file has no password in it, or too long a one: {path}",
            "its only line is the password",
        )
    return password


def load_tls(settings: ConnectionSettings) -> ssl.SSLContext | None:
    """Read anew for every connection, like the password: certificates expire."""
    if not settings.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca)
    except (OSError, ssl.SSLError) as error:
        raise StartError(
            f"mqtt.ca cannot be used: {settings.ca}: {tls_reason(error)}",
            "it must hold the certificates, in PEM, that may sign the broker's",
        ) from error
    if settings.certificate is not None:
        try:
            # An encrypted key would else ask for its password on the terminal.
            context.load_cert_chain(settings.certificate, settings.private_key, password=b"")
        except (OSError, ValueError) as error:
            raise StartError(
                f"mqtt.certificate and mqtt.private_key cannot be used: {settings.certificate}, "
                f"{settings.private_key}: {tls_reason(error)}",
                "both in PEM, the chain with the leaf first, its key unencrypted",
            ) from error
    return context


def tls_reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not PEM").lower().replace("_", " ")
    return (isinstance(error, OSError) and error.strerror) or str(error)
