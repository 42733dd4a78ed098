"""Rules between options: which of them must agree, and what to do if they do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coapgate.config.settings import Settings


@dataclass(frozen=True, slots=True)
class Check:
    """`is_broken` looks at `keys` only: it is not asked if one of them is wrong already."""

    keys: tuple[tuple[str, str], ...]
    is_broken: Callable[[Settings], bool]
    message: str
    hint: str


def _pair(table: str, present: str, absent: str, hint: str) -> Check:
    def is_broken(settings: Settings) -> bool:
        options = getattr(settings, table)
        return getattr(options, present) is not None and getattr(options, absent) is None

    message = f"{table}.{absent}: must be given with {table}.{present}"
    return Check(((table, present), (table, absent)), is_broken, message, hint)


def _needs_tls(option: str) -> Check:
    return Check(
        (("mqtt", option), ("mqtt", "url")),
        lambda settings: getattr(settings.mqtt, option) is not None and not settings.mqtt.url.tls,
        f"mqtt.{option}: is for TLS, but mqtt.url is mqtt://",
        f"write mqtts:// in mqtt.url, or leave mqtt.{option} out",
    )


CHECKS = (
    _pair("dtls", "certificate", "private_key", "the file with the key of that certificate"),
    _pair("dtls", "private_key", "certificate", "the file with the certificate of that key"),
    _pair("mqtt", "certificate", "private_key", "the file with the key of that certificate"),
    _pair("mqtt", "private_key", "certificate", "the file with the certificate of that key"),
    _pair("mqtt", "password_file", "username", "a broker takes a password for a user name only"),
    _needs_tls("ca"),
    _needs_tls("certificate"),
    Check(
        (("dtls", "auth_timeout"), ("dtls", "handshake_timeout")),
        lambda settings: settings.dtls.auth_timeout >= settings.dtls.handshake_timeout,
        "dtls.auth_timeout: must be below dtls.handshake_timeout",
        "a look-up is a part of the handshake",
    ),
    Check(
        (("dtls", "retransmission_time"), ("dtls", "handshake_timeout")),
        lambda settings: settings.dtls.retransmission_time >= settings.dtls.handshake_timeout,
        "dtls.retransmission_time: must be below dtls.handshake_timeout",
        "otherwise no flight is ever sent again",
    ),
    Check(
        (("dtls", "handshakes_per_address"), ("dtls", "max_handshakes")),
        lambda settings: settings.dtls.handshakes_per_address > settings.dtls.max_handshakes,
        "dtls.handshakes_per_address: must be at most dtls.max_handshakes",
        "lower the one or raise the other",
    ),
)
