"""Settings: one TOML file, the environment above it, everything checked before anything is used."""

from __future__ import annotations

from coapgate.config.loading import load
from coapgate.config.settings import (
    CoapSettings,
    ContentSettings,
    DownlinkSettings,
    DtlsSettings,
    HttpSettings,
    LimitSettings,
    LogSettings,
    MqttSettings,
    PskSettings,
    RegistrySettings,
    RightsSettings,
    Settings,
)
from coapgate.config.values import Address, BrokerUrl

__all__ = [
    "load",
    "Settings",
    "DtlsSettings",
    "CoapSettings",
    "LimitSettings",
    "MqttSettings",
    "PskSettings",
    "DownlinkSettings",
    "RightsSettings",
    "ContentSettings",
    "RegistrySettings",
    "HttpSettings",
    "LogSettings",
    "Address",
    "BrokerUrl",
]
