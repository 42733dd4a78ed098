"""A fleet at work: it connects, sends at its pace, waits for the last answers, and leaves."""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Iterable
from random import Random

from coapgate.coap.content import TEXT
from coapgate.dtls.client import Credential, State
from coapgate.simulated.fleet.device import (
    FleetDevice,
    Outcome,
    encode_registration_tail,
    encode_request_tail,
)
from coapgate.simulated.fleet.pace import Pace
from coapgate.simulated.fleet.plan import Plan
from coapgate.simulated.fleet.sockets import Sockets
from coapgate.simulated.fleet.tally import Tally
from coapgate.simulated.fleet.timers import GRANULARITY, NEVER, Timers
from coapgate.simulated.message import render_code
from coapgate.simulated.radio import Place

_SHORTEST_TICK = 0.001
"""Seconds: what is due within it is sent together."""
_SUCCESS = 2


class Phase(enum.Enum):
    """What a fleet is doing; the phases follow one another."""

    CONNECTING = enum.auto()
    SENDING = enum.auto()
    WAITING = enum.auto()
    """For answers to requests under way."""
    LEAVING = enum.auto()
    """Saying close_notify, `max_rate` devices a second."""
    GONE = enum.auto()


class Fleet:
    """All devices, on one event loop; `run` once, and read `tally` at any time.

    A device whose association ends, or whom nobody answers any more, connects again; one that is
    not let in stays away.
    """

    def __init__(self, plan: Plan, credentials: Iterable[Credential], place: Place) -> None:
        self.tally = Tally()
        self.phase = Phase.CONNECTING
        self._plan = plan
        self._random = Random(plan.seed)
        self._tail = encode_request_tail(plan.path, plan.payload, TEXT)
        self._registration = encode_registration_tail(plan.observe)
        settings = plan.client_settings
        self._devices = [FleetDevice(each, settings, self._random) for each in credentials]
        self._sockets = Sockets(place, plan.loss, self._random, self.tally)
        self._unconnected = deque(self._devices)
        self._ready: deque[FleetDevice] = deque()
        self._pending = 0
        self._asking = 0
        self._is_stopping = False
        self._loop: asyncio.AbstractEventLoop
        self._done: asyncio.Future[None]
        self._handle: asyncio.TimerHandle | None = None
        self._timers: Timers[FleetDevice]
        self._connecting: Pace
        self._sending: Pace
        self._leaving: Pace
        self._began_at = 0.0

    def __len__(self) -> int:
        """Devices."""
        return len(self._devices)

    async def run(self) -> None:
        """Do what is planned. Cancelled, it leaves without a goodbye."""
        self._loop = asyncio.get_running_loop()
        self._done = self._loop.create_future()
        now = self._began_at = self._loop.time()
        self._timers = Timers(now)
        self._connecting = Pace(self._plan.connect_rate, now)
        self._loop.add_reader(self._sockets, self._receive)
        try:
            self._tick()
            await self._done
        finally:
            if self._handle is not None:
                self._handle.cancel()
            self._loop.remove_reader(self._sockets)
            self._sockets.close_all()

    def stop(self) -> None:
        """Send no more, and wait for what is under way; a second time: do not wait."""
        if self.phase is Phase.SENDING and not self._is_stopping:
            self._is_stopping = True
            return
        if self.phase is Phase.CONNECTING:
            left_out = len(self._unconnected) + self._pending
            self.tally.failed.update({"stopped": left_out} if left_out else {})
        self._abandon()
        self.phase = Phase.GONE

    # --- its time

    def _tick(self) -> None:
        """Do all that is due, and come again when something is."""
        try:
            now = self._loop.time()
            for device in self._timers.take_due(now):
                self._handle_timer(device, now)
            self._advance(now)
            if self.phase in (Phase.CONNECTING, Phase.SENDING):
                self._connect_some(now)
            if self.phase is Phase.SENDING:
                self._ask_some(now)
            elif self.phase is Phase.LEAVING:
                self._leave_some(now)
        except Exception as error:
            self._fail(error)
            return
        if self.phase is Phase.GONE:
            if not self._done.done():
                self._done.set_result(None)
            return
        at = now + GRANULARITY
        if self.phase is Phase.SENDING:
            at = min(at, self._sending.next_at() or at)
        if self._unconnected and self.phase in (Phase.CONNECTING, Phase.SENDING):
            at = min(at, self._connecting.next_at() or at)
        self._handle = self._loop.call_at(max(at, now + _SHORTEST_TICK), self._tick)

    def _advance(self, now: float) -> None:
        """Go on to the next phase if this one is over."""
        tally = self.tally
        if self.phase is Phase.CONNECTING:
            tally.connecting_seconds = now - self._began_at
            if not self._unconnected and not self._pending:
                self.phase = Phase.SENDING if tally.handshakes else Phase.GONE
                self._began_at = now
                self._sending = Pace(self._plan.rate, now, self._plan.duration)
        elif self.phase is Phase.SENDING:
            tally.seconds = min(now - self._began_at, self._plan.duration)
            if self._sending.is_over(now) or self._is_stopping:
                if not self._is_stopping:
                    self._ask_some(now)
                self.phase = Phase.WAITING
                self._began_at = now
        elif self.phase is Phase.WAITING:
            if not self._asking or now >= self._began_at + self._plan.drain_time:
                self._abandon()
                self._leaving = Pace(self._plan.max_rate, now)
                self.phase = Phase.LEAVING
        elif self.phase is Phase.LEAVING and not len(self._sockets):
            self.phase = Phase.GONE

    def _abandon(self) -> None:
        """Wait no longer for anything."""
        self.tally.unanswered += self._asking
        self._asking = 0
        for device in self._devices:
            device.is_asking = False

    def _handle_timer(self, device: FleetDevice, now: float) -> None:
        repeats = device.repeats
        outcome = device.handle_timer(now, self._plan.reliability)
        self.tally.repeats += device.repeats - repeats
        self._follow(device, outcome, now)

    # --- its datagrams

    def _receive(self) -> None:
        try:
            self._sockets.receive(self._take)
        except Exception as error:
            self._fail(error)

    def _take(self, device: FleetDevice, datagram: bytes) -> None:
        now = self._loop.time()
        self._follow(device, device.receive(datagram, now), now)

    def _follow(self, device: FleetDevice, outcome: Outcome | None, now: float) -> None:
        """Send what a device has to send, and act on what became of it."""
        self._sockets.send(device)
        self._timers.watch(device)
        if device.notifications:
            self.tally.notifications += device.notifications
            device.notifications = 0
        if device.is_connecting:
            self._follow_handshake(device, now)
        elif outcome is not None:
            self._count(device, outcome, now)
        elif device.client.state is State.CLOSED:
            self._end(device)

    def _follow_handshake(self, device: FleetDevice, now: float) -> None:
        """Count a handshake that is over."""
        client = device.client
        if client.is_established:
            if not client.sent_cid and (self._plan.sleep or self._plan.move_every):
                client.close()
                self._shut_out(device, "the server gives no Connection ID")
                return
            self._pending -= 1
            device.is_connecting = False
            self.tally.handshakes += 1
            self.tally.connection_ids += bool(client.sent_cid)
            self.tally.handshake_times.add(now - device.sent_at)
            if self._plan.observe:
                self._register(device)
            else:
                self._rest(device)
        elif client.state is State.CLOSED:
            self._shut_out(device, _reason(device))
        elif device.is_refused and not self.tally.handshakes:
            # Later on it may be a server that restarts: who repeats its hello gets in then.
            client.close()
            self._shut_out(device, "nobody listens there")

    def _shut_out(self, device: FleetDevice, reason: str) -> None:
        """Let a device stay away."""
        self.tally.fail(reason)
        self._pending -= 1
        device.is_connecting = False
        self._close(device)

    def _close(self, device: FleetDevice) -> None:
        device.due_at = NEVER
        self._sockets.send(device)
        self._sockets.close(device)

    def _count(self, device: FleetDevice, outcome: Outcome, now: float) -> None:
        """A request is over."""
        tally = self.tally
        self._asking -= 1
        if device.is_registering:
            self._count_registration(device, outcome)
            return
        tally.echoes += device.echoes
        device.echoes = 0
        if outcome is Outcome.ANSWERED:
            tally.response_times.add(now - device.sent_at)
            if device.code >> 5 == _SUCCESS:
                tally.answered += 1
            else:
                tally.wrong[device.code] += 1
        elif outcome is Outcome.REJECTED:
            tally.rejected += 1
        else:
            tally.given_up += 1
            device.client.close()
        if device.client.is_established:
            self._rest(device)
        else:
            self._end(device)

    def _count_registration(self, device: FleetDevice, outcome: Outcome) -> None:
        """A device observes, or does not."""
        self.tally.echoes += device.echoes
        device.echoes = 0
        if outcome is Outcome.GIVEN_UP:
            self.tally.not_observing["no answer"] += 1
            device.client.close()
            self._end(device)
            return
        if device.is_observing:
            self.tally.observing += 1
        elif outcome is Outcome.REJECTED:
            self.tally.not_observing["rejected"] += 1
        else:
            self.tally.not_observing[render_code(device.code)] += 1
        self._rest(device)

    def _end(self, device: FleetDevice) -> None:
        """A device has no association any more."""
        if self.phase not in (Phase.CONNECTING, Phase.SENDING, Phase.WAITING):
            return
        if device.client.alert is not None:
            self.tally.ended += 1
        if device.is_asking:
            device.is_asking = False
            self._asking -= 1
            self.tally.unanswered += 1
        self._close(device)
        self._unconnected.append(device)

    # --- what its devices do

    def _connect_some(self, now: float) -> None:
        for _ in range(self._connecting.due(now)):
            if not self._unconnected:
                break
            device = self._unconnected.popleft()
            try:
                self._sockets.open(device)
            except OSError as error:
                self.tally.fail(f"no socket: {error.strerror}")
                continue
            self._pending += 1
            device.connect(now)
            self._follow(device, None, now)

    def _ask_some(self, now: float) -> None:
        for _ in range(self._sending.due(now)):
            device = self._next_ready()
            if device is None:
                self.tally.busy += 1
            else:
                self._ask(device)
        self.tally.late = self._sending.skipped

    def _next_ready(self) -> FleetDevice | None:
        while self._ready:
            device = self._ready.popleft()
            device.is_ready = False
            if device.client.is_established:
                return device
        return None

    def _ask(self, device: FleetDevice) -> None:
        plan = self._plan
        if device not in self._sockets and not self._open(device):
            self.tally.no_socket += 1
            self._rest(device)
            return
        if plan.move_every and device.requests and not device.requests % plan.move_every:
            self.tally.moves += self._open(device)
        device.ask(self._tail, self._timeout(), self._loop.time())
        self.tally.sent += 1
        self._follow_request(device)

    def _register(self, device: FleetDevice) -> None:
        device.observe(self._registration, self._timeout(), self._loop.time())
        self._follow_request(device)

    def _timeout(self) -> float:
        """Seconds until a request is repeated for the first time."""
        reliability = self._plan.reliability
        factor = 1 + (reliability.ack_random_factor - 1) * self._random.random()
        return reliability.ack_timeout * factor

    def _follow_request(self, device: FleetDevice) -> None:
        self._asking += 1
        self._sockets.send(device)
        self._timers.watch(device)

    def _open(self, device: FleetDevice) -> bool:
        """Give a device a socket of another port, or leave it as it is."""
        try:
            self._sockets.open(device)
        except OSError:
            return False
        return True

    def _rest(self, device: FleetDevice) -> None:
        """A device has nothing to do until it is its turn again."""
        if self._plan.sleep and device in self._sockets:
            self._sockets.close(device)
            device.client.cool()
            self.tally.sleeps += 1
        if not device.is_ready:
            device.is_ready = True
            self._ready.append(device)

    def _leave_some(self, now: float) -> None:
        """Those that sleep are left asleep."""
        for device in self._sockets.some(self._leaving.due(now)):
            device.client.close()
            self._close(device)

    def _fail(self, error: BaseException) -> None:
        """A mistake of ours ends the run, and is told to whoever waits for it."""
        if not self._done.done():
            self._done.set_exception(error)


def _reason(device: FleetDevice) -> str:
    """Why a handshake came to nothing."""
    alert = device.client.alert
    if alert is not None:
        return f"alert {alert.value} {alert.name.lower()}"
    return device.client.failure or "no answer"
