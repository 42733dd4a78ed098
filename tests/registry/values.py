"""Devices, keys and anchors that the tests of registries speak of."""

from __future__ import annotations

from coapgate.model import DEFAULT_TENANT, DeviceId, DeviceIdSource, Tenant, TrustAnchor

NOW = 1_800_000_000.0

ACME = Tenant("acme")
DEFAULT = DEFAULT_TENANT
SENSOR_1 = DeviceId("sensor-1")
SENSOR_2 = DeviceId("sensor-2")

KEY_1 = bytes(range(16))
KEY_2 = bytes(range(16, 48))

FACTORY = TrustAnchor(
    "factory",
    DEFAULT_TENANT,
    key_id=b"\x01" * 32,
    certificate=b"DER",
    device_id_source=DeviceIdSource.SERIAL_NUMBER,
    auto_provision=True,
)
ACME_CA = TrustAnchor("acme-ca", ACME, key_id=b"\x02" * 32, certificate=b"other DER")
