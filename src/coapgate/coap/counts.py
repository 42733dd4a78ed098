"""What happened in the message layer, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Counts:
    """Plain integers, for whoever reads them out; `responses` by response code octet."""

    responses: dict[int, int] = field(default_factory=dict)
    duplicates: int = 0
    pings: int = 0
    """Pings of devices; ours are `path_pings`."""
    ignored: int = 0
    """Too short, of another version, or an ACK or RST that nothing waits for."""
    format_errors: int = 0
    unexpected_responses: int = 0
    bad_option_drops: int = 0
    """NON requests with a critical option that is not supported."""
    rate_limited: int = 0
    overloads: int = 0
    """Requests of endpoints with `dedup_exchanges` requests under way."""
    silences: int = 0
    """Requests that neither expected nor got a response."""
    separate_responses: int = 0
    unobserved: int = 0
    """Registrations answered without one: the device observes as much as it may."""
    given_up: int = 0
    """Separate responses that nobody acknowledged."""
    resets: int = 0
    """Separate responses that the device rejected."""
    path_pings: int = 0
    """Pings of ours to paths that had to prove themselves, repetitions not counted."""
    path_proofs: dict[str, int] = field(default_factory=dict)
    """Paths that proved themselves, by their answer: `ack`, `reset` or `echo`."""
