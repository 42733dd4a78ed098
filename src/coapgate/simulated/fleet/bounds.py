"""What keeps a fleet from doing harm by mistake."""

from __future__ import annotations

MAX_RATE = 1000.0
"""Requests, and handshakes, a second that nobody exceeds without saying so."""
HIGHEST_RATE = 1_000_000.0
"""A second: more than any machine sends, so that nothing overflows."""
CONNECT_RATE = 200.0
"""Handshakes a second, if nothing else is said."""
MAX_DEVICES = 200_000
MAX_DURATION = 7 * 86400.0
"""Seconds."""
MAX_PAYLOAD_LENGTH = 1024
"""Octets: what fits one datagram together with the rest, as blocks would not (RFC 7959)."""
