"""Values that travel between the layers."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple, NewType

Tenant = NewType("Tenant", str)
DeviceId = NewType("DeviceId", str)

DEFAULT_TENANT = Tenant("default")

Path = tuple[int, Any]
"""Where datagrams come from and go to: our socket's number, and the peer address as it gave it."""

_NAME = re.compile(r"[A-Za-z0-9._~:-]{1,64}")

MAX_IDENTITY_LENGTH = 128
"""Octets of a PSK identity (RFC 4279 section 5.3)."""
MIN_KEY_LENGTH = 16
MAX_KEY_LENGTH = 64
MAX_KEYS_PER_IDENTITY = 4


MARK_PART_LENGTH = 8
MARK_LENGTH = 3 * MARK_PART_LENGTH
"""Octets by which a certificate is remembered in `Identity.path`: the first ones of the SHA-256 of
its issuer's SubjectPublicKeyInfo, of its serial number, and of itself."""


def is_name(text: str) -> bool:
    """Whether `text` may name a tenant or a device: one MQTT topic level, never rewritten."""
    return _NAME.fullmatch(text) is not None


class PskState(enum.StrEnum):
    """What a key is in the life of its device."""

    ACTIVE = "active"
    BACKUP = "backup"
    """The next one: becomes active, and those before it retiring, once the device has used it."""
    RETIRING = "retiring"
    """One before the active one: good until `retiring_until`."""
    REVOKED = "revoked"


class AnchorState(enum.StrEnum):
    """Whether certificates below a trust anchor are believed: only if it is active."""

    STAGED = "staged"
    """Whoever gave it has not shown yet that he holds its key."""
    ACTIVE = "active"
    DISABLED = "disabled"


class Method(enum.StrEnum):
    """How a device proves itself."""

    PSK = "psk"
    X509 = "x509"


class DeviceIdSource(enum.StrEnum):
    """Which value of a certificate names the device; it must occur exactly once."""

    CN = "cn"
    SAN_URI = "san-uri"
    SERIAL_NUMBER = "serial-number"
    """The subject's serialNumber attribute (2.5.4.5), not the certificate's own number."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which device was proven, and how.

    `credential` says which one to a human and never reveals it: `psk-7` (the number in
    `coapgate psk list`) or `sha256:` and the first 16 hex digits of the certificate's fingerprint.
    `anchor` is the key id of the trust anchor that its chain ends at, `not_after` when the chain or
    the key expires (Unix seconds); None: there is none. `value` is what names the device below that
    anchor, `path` how the certificates below it are remembered (`pki.revocation`), the device's own
    first: both empty for a key.
    """

    tenant: Tenant
    device: DeviceId
    method: Method
    credential: str
    anchor: bytes | None = None
    not_after: float | None = None
    value: str = ""
    path: bytes = b""


@dataclass(frozen=True, slots=True)
class Device:
    """One registry entry; `labels` are (key, value) pairs in order of key."""

    tenant: Tenant
    device: DeviceId
    enabled: bool = True
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class PskCredential:
    """One key that proves one device. `number` is the registry's; times in Unix seconds.

    `batch` is the number of the batch that the key is derived from; None: it is a key of its own.
    A `number` of 0 is a derived key whose device has not been seen yet. `retiring_until` is when
    the grace of a retiring key ends.
    """

    number: int
    tenant: Tenant
    device: DeviceId
    identity: bytes
    secret: bytes = field(repr=False)
    state: str = PskState.ACTIVE
    not_before: float | None = None
    not_after: float | None = None
    device_enabled: bool = True
    retiring_until: float | None = None
    batch: int | None = None

    def without_secret(self) -> PskCredential:
        """All but the secret, for whoever only has to know what was proven."""
        return PskCredential(
            self.number,
            self.tenant,
            self.device,
            self.identity,
            b"",
            self.state,
            self.not_before,
            self.not_after,
            self.device_enabled,
            self.retiring_until,
            self.batch,
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Devices whose keys are derived from one master key; times in Unix seconds.

    An identity is `prefix`, the device's name, `suffix`. `max_devices` is how many devices it may
    bring into being, `device_count` how many there are. Its keys are good from `not_before` to
    `not_after`, and for `move_time` seconds after first contact if that is given: until then the
    device needs a key of its own (`coapgate psk rotate`).
    """

    number: int
    name: str
    tenant: Tenant
    prefix: str
    suffix: str
    max_devices: int
    device_count: int = 0
    state: str = "active"
    not_before: float | None = None
    not_after: float | None = None
    move_time: float | None = None
    added_at: float = 0.0

    @property
    def pattern(self) -> str:
        """As it was given: `acme-{device}`."""
        return f"{self.prefix}{{device}}{self.suffix}"


@dataclass(frozen=True, slots=True)
class TrustAnchor:
    """A certificate believed without proof (RFC 5280 section 6), and what it may say.

    `key_id` is the SHA-256 of its SubjectPublicKeyInfo (32 octets): one public key is one anchor.
    `certificate` is DER. A device's name is the value of `device_id_source`, or what
    `device_id_template` makes of several (`{o}-{cn}`) where that is not empty. Its devices are
    `tenant`'s; with a `tenant_template` they belong to the tenant that it yields, which must be one
    of `tenants`. `labels` are given to devices that it brings into being. `max_validity` is the
    longest validity of a leaf that is accepted, in seconds. `crl_files` are revocation lists of
    issuers below it; once one is stale, `crl_mode` `soft` still lets devices in and `hard` does
    not. `proof_code` is what a certificate must name that proves possession of its key.
    """

    name: str
    tenant: Tenant
    key_id: bytes
    certificate: bytes = field(repr=False)
    device_id_source: DeviceIdSource = DeviceIdSource.CN
    auto_provision: bool = False
    state: str = AnchorState.ACTIVE
    device_id_template: str = ""
    tenant_template: str = ""
    tenants: tuple[Tenant, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    max_validity: float | None = None
    crl_files: tuple[str, ...] = ()
    crl_mode: str = "soft"
    proof_code: str = ""

    def serves(self, tenant: Tenant) -> bool:
        """Whether its certificates may speak for devices of a tenant."""
        return tenant in self.tenants if self.tenant_template else tenant == self.tenant

    def pair_value(self, tenant: Tenant, value: str) -> str:
        """What the registry keeps for a certificate value: unique among all tenants it serves."""
        return f"{tenant}/{value}" if self.tenant_template else value


class Content(NamedTuple):
    """The state of a path at one time; `etag` tells it from others (RFC 7252 section 5.10.6).

    `content_format` is None where CoAP has no number for the Content Type.
    """

    payload: bytes
    content_format: int | None
    etag: bytes

    @staticmethod
    def of(payload: bytes, content_format: int | None) -> Content:
        """With an ETag of 8 octets, the same for the same content wherever it comes from."""
        told = b"" if content_format is None else (content_format + 1).to_bytes(3, "big")
        etag = blake2b(payload, digest_size=8, person=told).digest()
        return Content(payload, content_format, etag)


class KeptObservation(NamedTuple):
    """An observation as it outlives the process (RFC 7641).

    `exponent` is of the block size that was asked for, `accept` the Content-Format; None: neither
    was. `etag` is of the content that the device was told last.
    """

    token: bytes
    path: str
    exponent: int | None
    accept: int | None
    etag: bytes


class Outcome(enum.IntEnum):
    """What became of a publication besides the PUBACK reason codes 0x00 to 0xFF."""

    UNAVAILABLE = 0x100
    """The broker was away for longer than `mqtt.hold_time`, or `mqtt.hold_messages` are waiting."""
    POISON = 0x101
    """In flight at two successive protocol-error disconnects: never sent a third time."""
    TOO_LARGE = 0x102
    """Above the broker's Maximum Packet Size."""


class Code(enum.IntEnum):
    """CoAP codes as octets (RFC 7252 section 12.1, RFC 7959, RFC 8516)."""

    EMPTY = 0x00
    GET = 0x01
    POST = 0x02
    PUT = 0x03
    DELETE = 0x04
    FETCH = 0x05
    PATCH = 0x06
    IPATCH = 0x07
    CREATED = 0x41
    DELETED = 0x42
    VALID = 0x43
    CHANGED = 0x44
    CONTENT = 0x45
    CONTINUE = 0x5F
    BAD_REQUEST = 0x80
    UNAUTHORIZED = 0x81
    BAD_OPTION = 0x82
    FORBIDDEN = 0x83
    NOT_FOUND = 0x84
    METHOD_NOT_ALLOWED = 0x85
    NOT_ACCEPTABLE = 0x86
    REQUEST_ENTITY_INCOMPLETE = 0x88
    REQUEST_ENTITY_TOO_LARGE = 0x8D
    UNSUPPORTED_CONTENT_FORMAT = 0x8F
    TOO_MANY_REQUESTS = 0x9D
    INTERNAL_SERVER_ERROR = 0xA0
    SERVICE_UNAVAILABLE = 0xA3
    PROXYING_NOT_SUPPORTED = 0xA5
