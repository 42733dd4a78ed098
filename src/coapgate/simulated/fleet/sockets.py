"""The sockets of a fleet behind one epoll, and the network's losses."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
from collections.abc import Callable
from itertools import islice
from random import Random

from coapgate.errors import Failed
from coapgate.simulated.fleet.device import FleetDevice
from coapgate.simulated.fleet.tally import Tally
from coapgate.simulated.radio import MAX_DATAGRAM, Place

MAX_AT_ONCE = 256
"""Datagrams taken before others have their turn."""
_SPARE_FILES = 64
"""Open files that are no device's socket."""


def raise_file_limit(sockets: int, *, is_needed: bool) -> None:
    """Let this process open so many sockets, or as many as the system allows.

    Raises Failed if that is less and `is_needed`.
    """
    needed = sockets + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        is_enough = hard == resource.RLIM_INFINITY or hard >= needed
        wanted = needed if is_enough else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        if is_needed and not is_enough:
            raise Failed(
                f"{sockets} devices need {needed} open files, and the limit is {hard}",
                f"raise it (as root: ulimit -n {needed}), or take fewer devices, or --sleep",
            )


class Sockets:
    """One UDP socket for each device that is awake, connected to `place`.

    `loss` is the share of datagrams that are dropped in each direction. `fileno` is readable when
    `receive` has something to do.
    """

    def __init__(self, place: Place, loss: float, random: Random, tally: Tally) -> None:
        self._family, self._address = place
        self._loss = loss
        self._random = random
        self._tally = tally
        self._epoll = select.epoll()
        self._sockets: dict[FleetDevice, socket.socket] = {}
        self._devices: dict[int, FleetDevice] = {}

    def __len__(self) -> int:
        return len(self._sockets)

    def __contains__(self, device: FleetDevice) -> bool:
        return device in self._sockets

    def some(self, count: int) -> tuple[FleetDevice, ...]:
        """So many of the devices that are awake, or all."""
        return tuple(islice(self._sockets, count))

    def fileno(self) -> int:
        return self._epoll.fileno()

    def open(self, device: FleetDevice) -> None:
        """Give a device a socket, in place of the one it may have. Raises OSError."""
        opened = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            opened.setblocking(False)
            opened.connect(self._address)
            self._epoll.register(opened, select.EPOLLIN)
        except BaseException:
            opened.close()
            raise
        self.close(device)
        self._sockets[device] = opened
        self._devices[opened.fileno()] = device

    def close(self, device: FleetDevice) -> None:
        """Close a device's socket, if it has one: whatever is sent to it now is lost."""
        closed = self._sockets.pop(device, None)
        if closed is not None:
            del self._devices[closed.fileno()]
            closed.close()  # which also takes it out of the epoll

    def close_all(self) -> None:
        for device in tuple(self._sockets):
            self.close(device)
        self._epoll.close()

    def send(self, device: FleetDevice) -> None:
        """Send all that a device has to send; what cannot leave is as good as lost."""
        outgoing = device.client.outgoing
        if not outgoing:
            return
        own = self._sockets.get(device)
        for datagram in outgoing if own is not None else ():
            assert own is not None
            self._tally.datagrams_sent += 1
            if self._loss and self._random.random() < self._loss:
                self._tally.dropped += 1
                continue
            try:
                own.send(datagram)
            except BlockingIOError:
                break
            except OSError as error:
                # The error belongs to an earlier datagram, and this one was not sent.
                device.is_refused |= isinstance(error, ConnectionRefusedError)
                with contextlib.suppress(OSError):
                    own.send(datagram)
        outgoing.clear()

    def receive(self, take: Callable[[FleetDevice, bytes], None]) -> None:
        """Hand over one datagram of every device that has some, of MAX_AT_ONCE at most."""
        for number, _ in self._epoll.poll(0, MAX_AT_ONCE):
            device = self._devices.get(number)
            if device is None:
                continue  # closed on behalf of one before it
            try:
                datagram = self._sockets[device].recv(MAX_DATAGRAM)
            except BlockingIOError:
                continue
            except OSError as error:
                # An ICMP error of an earlier datagram; whatever was lost is repeated.
                device.is_refused |= isinstance(error, ConnectionRefusedError)
                datagram = b""
            else:
                self._tally.datagrams_received += 1
                if self._loss and self._random.random() < self._loss:
                    self._tally.dropped += 1
                    continue
            take(device, datagram)
