"""Events about devices as they stand on the bus: JSON, the same for all of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime


def render_event(name: str, wall: float, **fields: str) -> bytes:
    """`at` is as of `render_time`; `wall` is Unix seconds."""
    return json.dumps({"at": render_time(wall), "event": name} | fields).encode()


def render_time(wall: float) -> str:
    """Unix seconds as RFC 3339, UTC, with milliseconds."""
    text = datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
