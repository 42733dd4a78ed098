"""Events about devices as they stand on the bus: JSON, the same for all of them."""

from __future__ import annotations

import json
import time


def render_event(name: str, wall: float, **fields: str) -> bytes:
    """`at` is RFC 3339, UTC, whole seconds; `wall` is Unix seconds."""
    return json.dumps({"at": render_time(wall), "event": name} | fields).encode()


def render_time(wall: float) -> str:
    """Unix seconds as RFC 3339, UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall))
