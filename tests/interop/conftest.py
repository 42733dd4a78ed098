"""The gateway and clients that nobody here wrote."""

from __future__ import annotations

from tests.gateway_fixtures import bus, gateway, install, start_gateway

__all__ = ["bus", "gateway", "install", "start_gateway"]
