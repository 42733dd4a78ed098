"""Every exception of coapgate, each of which knows its own consequence.

CoapgateError                 message, hint: what happened, what to do next
├── Misused                   a command or its arguments cannot be used (exit 2)
│   └── ConfigError           the configuration cannot be used; all problems at once
├── Failed                    a command could not do its work (exit 1)
│   ├── StartError            the gateway cannot start: a port, a file, a broker
│   ├── CertificateError      a certificate, key or trust anchor cannot be used
│   └── RegistryError         the registry refuses or cannot be reached
│       ├── AlreadyExists
│       ├── NotFound
│       ├── BatchFull         it has as many devices as it may have
│       ├── RegistryUnavailable
│       ├── KeyFileError
│       └── ImportRefused     a file of devices has bad lines; all of them at once
├── DeviceError               a device of ours (`simulated`) did not get what it wanted
│   ├── DeviceRefused         the gateway ended its handshake or association by an alert
│   └── NoAnswer              nobody answered, or not in time
├── StoreDamaged              what an earlier process left of its associations does not check
├── Refused                   a peer is not let in: one reason, and the alert it will be told
├── DtlsError                 octets of a peer that DTLS drops; never leaves `dtls`
│   ├── MalformedRecord
│   ├── MalformedMessage
│   └── ForgedRecord
└── CoapError                 a request that is not carried out
    ├── MessageFormatError    not CoAP (RFC 7252 section 3): RST or silence
    └── RequestRefused        the response code and diagnostic payload it is answered with
"""

from __future__ import annotations

import enum


class Alert(enum.IntEnum):
    """AlertDescription (RFC 5246 section 7.2, RFC 4279, RFC 6066)."""

    CLOSE_NOTIFY = 0
    UNEXPECTED_MESSAGE = 10
    BAD_RECORD_MAC = 20
    RECORD_OVERFLOW = 22
    HANDSHAKE_FAILURE = 40
    BAD_CERTIFICATE = 42
    UNSUPPORTED_CERTIFICATE = 43
    CERTIFICATE_REVOKED = 44
    CERTIFICATE_EXPIRED = 45
    CERTIFICATE_UNKNOWN = 46
    ILLEGAL_PARAMETER = 47
    UNKNOWN_CA = 48
    ACCESS_DENIED = 49
    DECODE_ERROR = 50
    DECRYPT_ERROR = 51
    PROTOCOL_VERSION = 70
    INSUFFICIENT_SECURITY = 71
    INTERNAL_ERROR = 80
    USER_CANCELED = 90
    NO_RENEGOTIATION = 100
    UNSUPPORTED_EXTENSION = 110
    UNKNOWN_PSK_IDENTITY = 115


class Reason(enum.StrEnum):
    """Why a peer is not let in: the same word in logs, metrics and events."""

    UNKNOWN_IDENTITY = "unknown_identity"
    BAD_KEY = "bad_key"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    REVOKED = "revoked"
    DISABLED = "disabled"
    UNTRUSTED = "untrusted"
    PATH_LENGTH = "path_length"
    TENANT_MISMATCH = "tenant_mismatch"
    CREDENTIAL_MISMATCH = "credential_mismatch"
    WRONG_USAGE = "wrong_usage"
    WEAK_KEY = "weak_key"
    WEAK_SIGNATURE = "weak_signature"
    MALFORMED = "malformed"
    BAD_SIGNATURE = "bad_signature"
    UNSUPPORTED_VERSION = "unsupported_version"
    ILLEGAL_PARAMETER = "illegal_parameter"
    NO_CERTIFICATE = "no_certificate"
    NO_SHARED_CIPHER = "no_shared_cipher"
    UNAVAILABLE = "unavailable"
    LIMIT = "limit"
    TIMEOUT = "timeout"


ALERTS: dict[Reason, Alert | None] = {
    Reason.UNKNOWN_IDENTITY: None,
    Reason.BAD_KEY: None,
    Reason.EXPIRED: Alert.CERTIFICATE_EXPIRED,
    Reason.NOT_YET_VALID: Alert.CERTIFICATE_EXPIRED,
    Reason.REVOKED: Alert.CERTIFICATE_REVOKED,
    Reason.DISABLED: Alert.CERTIFICATE_REVOKED,
    Reason.UNTRUSTED: Alert.UNKNOWN_CA,
    Reason.PATH_LENGTH: Alert.UNKNOWN_CA,
    Reason.TENANT_MISMATCH: Alert.UNKNOWN_CA,
    Reason.CREDENTIAL_MISMATCH: Alert.UNKNOWN_CA,
    Reason.WRONG_USAGE: Alert.BAD_CERTIFICATE,
    Reason.WEAK_KEY: Alert.BAD_CERTIFICATE,
    Reason.WEAK_SIGNATURE: Alert.BAD_CERTIFICATE,
    Reason.MALFORMED: Alert.BAD_CERTIFICATE,
    Reason.BAD_SIGNATURE: Alert.DECRYPT_ERROR,
    Reason.UNSUPPORTED_VERSION: Alert.PROTOCOL_VERSION,
    Reason.ILLEGAL_PARAMETER: Alert.ILLEGAL_PARAMETER,
    Reason.NO_CERTIFICATE: Alert.HANDSHAKE_FAILURE,
    Reason.NO_SHARED_CIPHER: Alert.HANDSHAKE_FAILURE,
    Reason.UNAVAILABLE: Alert.INTERNAL_ERROR,
    Reason.LIMIT: Alert.INTERNAL_ERROR,
    Reason.TIMEOUT: None,
}
"""What the peer is told for each reason; None is silence."""


class CoapgateError(Exception):
    """The root of all: `str()` says what happened, `hint` what to do next (may be empty)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Misused(CoapgateError):
    """A command or its arguments cannot be used."""


class ConfigError(Misused):
    """The configuration cannot be used; `problems` are (message, hint) pairs, every one found."""

    def __init__(self, problems: tuple[tuple[str, str], ...]) -> None:
        super().__init__("; ".join(message for message, _ in problems))
        self.problems = problems


class Failed(CoapgateError):
    """A command could not do its work."""


class StartError(Failed):
    """The gateway cannot start."""


class CertificateError(Failed):
    """A certificate, key or trust anchor that was given to us cannot be used."""


class RegistryError(Failed):
    """The registry refuses, or cannot be reached."""


class AlreadyExists(RegistryError):
    """What was to be created is there already; nothing was written."""


class NotFound(RegistryError):
    """What was asked for is not there."""


class BatchFull(RegistryError):
    """A batch has as many devices as it may have: no other comes into being by it."""


class RegistryUnavailable(RegistryError):
    """The registry cannot answer now: locked, full or gone."""


class KeyFileError(RegistryError):
    """The registry's key file is missing, foreign or open to others."""


class ImportRefused(RegistryError):
    """Nothing was imported; `problems` are (message, hint) pairs, one for every bad line."""

    def __init__(self, problems: tuple[tuple[str, str], ...]) -> None:
        lines = "line is" if len(problems) == 1 else "lines are"
        super().__init__(f"nothing was imported: {len(problems)} {lines} bad")
        self.problems = problems


class DeviceError(CoapgateError):
    """A device of ours did not get what it wanted."""


class DeviceRefused(DeviceError):
    """The gateway ended the handshake or the association; `alert` is what it told us."""

    def __init__(self, alert: Alert) -> None:
        super().__init__(f"the gateway sent alert {alert.value} ({alert.name.lower()})")
        self.alert = alert


class NoAnswer(DeviceError):
    """Nobody answered a handshake or a request, or not in time."""


class StoreDamaged(CoapgateError):
    """The association store is not as it was written: nothing in it can be trusted."""


class Refused(CoapgateError):
    """A peer is not let in; `alert` is what it will be told (RFC 5246 section 7.2.2).

    `proven` is who it proved to be: tenant, device and credential, as in `model.Identity`; None if
    it proved to be no device of ours. `claimed` is what it calls itself, for the log alone.
    """

    def __init__(
        self, reason: Reason, detail: str = "", *, proven: tuple[str, str, str] | None = None
    ) -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail
        self.proven = proven
        self.claimed = b""

    @property
    def alert(self) -> Alert | None:
        """None: the peer is told nothing."""
        return ALERTS[self.reason]


class DtlsError(CoapgateError):
    """Octets from the network that DTLS drops."""


class MalformedRecord(DtlsError):
    """A record that is cut short or claims what cannot be."""


class MalformedMessage(DtlsError):
    """A handshake message that does not parse."""


class ForgedRecord(DtlsError):
    """A record that does not authenticate: no alert answers it (RFC 6347 section 4.1.2.7)."""


class CoapError(CoapgateError):
    """A request that is not carried out."""


class MessageFormatError(CoapError):
    """Octets that are not a CoAP message (RFC 7252 section 3)."""


class RequestRefused(CoapError):
    """A request that is answered with an error.

    `code` is the response code as an octet (RFC 7252 section 12.1.2, `model.Code`), the message
    its diagnostic payload, `max_age` in seconds for 4.29 and 5.03, `size1` in octets for 4.13.
    """

    def __init__(
        self,
        code: int,
        diagnostic: str = "",
        *,
        max_age: int | None = None,
        size1: int | None = None,
    ) -> None:
        super().__init__(diagnostic)
        self.code = code
        self.max_age = max_age
        self.size1 = size1
