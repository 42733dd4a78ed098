"""What a fleet is to do, within bounds that keep it from doing harm by mistake."""

from __future__ import annotations

from dataclasses import dataclass, field

from coapgate.coap.transmissions import Reliability
from coapgate.dtls.client import ClientSettings
from coapgate.errors import Misused
from coapgate.simulated.fleet.bounds import (
    CONNECT_RATE,
    HIGHEST_RATE,
    MAX_DURATION,
    MAX_PAYLOAD_LENGTH,
    MAX_RATE,
)

HANDSHAKE_TIMEOUT = 30.0
"""Seconds; a server that refuses a key says nothing, so it takes this long to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All devices connect, `connect_rate` a second; then they send `rate` requests a second.

    That goes on for `duration` seconds, whatever is answered. Each request is a confirmable POST of
    `payload` on `path`, and each device has one at a time under way. With `sleep` a device has no
    socket between its requests; after every `move_every` requests (0: never) it takes another one.
    `loss` is the share of datagrams, 0 to below 1, that are dropped each way. `drain_time` is how
    many seconds answers are waited for in the end; `retransmission_time` (seconds) is that of
    handshakes, `reliability` that of requests. Each device observes the path `observe`, if there is
    one, from its handshake on.

    Raises Misused for what cannot be, and for rates above `max_rate`.
    """

    rate: float
    duration: float
    path: tuple[bytes, ...]
    payload: bytes
    connect_rate: float = CONNECT_RATE
    max_rate: float = MAX_RATE
    connection_id: bool = False
    sleep: bool = False
    move_every: int = 0
    loss: float = 0.0
    seed: int = 0
    drain_time: float = 20.0
    handshake_timeout: float = HANDSHAKE_TIMEOUT
    retransmission_time: float = 1.0
    reliability: Reliability = field(default_factory=Reliability)
    observe: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.max_rate <= HIGHEST_RATE:
            raise Misused(
                f"a --max-rate of {self.max_rate:g}", f"more than 0, at most {HIGHEST_RATE:.0f}"
            )
        self._check_rate(self.rate, "--rate", "requests")
        self._check_rate(self.connect_rate, "--connect-rate", "handshakes")
        if self.connect_rate == 0:
            raise Misused("no handshakes a second: nobody would connect", "--connect-rate 200")
        if not 0 < self.duration <= MAX_DURATION:
            raise Misused(
                f"a load of {self.duration:g} seconds", f"more than 0, at most {MAX_DURATION:.0f}"
            )
        if not 0 <= self.loss < 1:
            raise Misused(
                f"a loss of {self.loss:g}", "a share: 0.1 drops one datagram in ten each way"
            )
        if len(self.payload) > MAX_PAYLOAD_LENGTH:
            raise Misused(
                f"{len(self.payload)} octets do not fit one datagram",
                f"at most {MAX_PAYLOAD_LENGTH}",
            )
        if not all(self.observe):
            raise Misused("a path to observe has an empty segment", "--observe led")
        if self.sleep and self.observe:
            raise Misused(
                "a device that sleeps hears of nothing", "leave --sleep or --observe away"
            )
        if (self.sleep or self.move_every) and not self.connection_id:
            raise Misused(
                "a device that comes from another address needs a Connection ID",
                "add --cid, or leave --sleep and --move-every away",
            )

    @property
    def client_settings(self) -> ClientSettings:
        """What every device offers."""
        return ClientSettings(
            connection_id=b"" if self.connection_id else None,
            handshake_timeout=self.handshake_timeout,
            retransmission_time=self.retransmission_time,
        )

    def _check_rate(self, rate: float, option: str, what: str) -> None:
        if not rate >= 0:  # a NaN is not
            raise Misused(f"a rate of {rate:g} {what} a second", "0 or more")
        if rate > self.max_rate:
            raise Misused(
                f"{option} {rate:g} is more than the {self.max_rate:g} {what} a second of "
                "--max-rate",
                f"if the server and the network are yours to load: --max-rate {rate:g}",
            )
