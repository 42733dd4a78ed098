"""How log records are written: a constant message, and facts as fields.

`log.info("session opened", extra={"device": device, "peer": peer})` becomes one line, as text

    2026-11-22T19:00:00.123Z info session opened device=sensor-1 peer=192.0.2.7:40312

or as a JSON object. Fields may be text, numbers, truth values, octets of a peer, socket addresses.

DEBUG may be per datagram; INFO is a device that came, went or was refused, the broker that came or
went, start and stop; WARNING is for someone to look at soon; ERROR means that something was lost.
Neither keys nor payloads are ever logged.
"""

from __future__ import annotations

import json
import logging
import math
import queue
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import TextIO

MAX_PEER_OCTETS = 64
"""Characters that octets a peer chose may take in a line."""

MAX_DETAIL = 128
"""Characters of what is said about a refusal."""

MAX_WAITING = 10_000
"""Records that wait for a slow reader of our lines."""

WRITING_TIME = 1.0
"""Seconds that what still waits has at the end."""

STRANGERS_INTERVAL = 10.0
"""Seconds between two lines about the same reason."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_MAPPED = "::ffff:"
_BARE = re.compile(r"[!#-<>-\[\]-~]+")
"""Text that needs no quotes: printable ASCII without space, quote, equals sign or backslash."""


def configure(level: str, form: str, stream: TextIO | None = None) -> None:
    """Write this program's records from `level` on, and of others' their warnings, to `stream`.

    `form` is `text` or `json`; the stream is standard error unless given. May be called again.
    """
    handler = _Written(stream if stream is not None else sys.stderr)
    handler.setLevel(level.upper())
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    for old in [known for known in root.handlers if isinstance(known, _Written)]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger("coapgate").setLevel(level.upper())


class _Written(logging.StreamHandler[TextIO]):
    """Our handler, told from those that others added."""


@contextmanager
def written_aside(max_waiting: int = MAX_WAITING) -> Iterator[None]:
    """Write in a thread while this is open: whoever stops reading our lines must not stop us.

    Call `configure` first. At most `max_waiting` records wait; more are lost, and counted in a
    line of their own once there is room. What waits at the end has a second to be written.
    """
    root = logging.getLogger()
    handlers = [known for known in root.handlers if isinstance(known, _Written)]
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(max_waiting)
    aside = _Aside(waiting)
    listener = QueueListener(waiting, *handlers, respect_handler_level=True)
    for handler in handlers:
        root.removeHandler(handler)
    root.addHandler(aside)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(aside)
        for handler in handlers:
            root.addHandler(handler)
        # Not `listener.stop()` itself: it waits for as long as a reader does not read.
        ending = threading.Thread(target=_stop, args=(listener,), daemon=True)
        ending.start()
        ending.join(WRITING_TIME)


def _stop(listener: QueueListener) -> None:
    with suppress(queue.Full):
        listener.stop()


class _Aside(QueueHandler):
    """Hands records to the thread that writes them, as they are."""

    def __init__(self, waiting: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(waiting)
        self._lost = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            if self._lost:
                self.queue.put_nowait(
                    logging.makeLogRecord(
                        {
                            "name": __name__,
                            "levelno": logging.WARNING,
                            "levelname": "WARNING",
                            "msg": "log lines were lost",
                            "count": self._lost,
                        }
                    )
                )
                self._lost = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self._lost += 1


class TextFormatter(logging.Formatter):
    """For people: time, level, message, and fields as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [_at(record), record.levelname.lower(), _escape(record.getMessage())]
        for name, value in _fields(record).items():
            parts.append(f"{name}={_quoted(_plain(value))}")
        line = " ".join(parts)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """For collectors: one JSON object a line, with the fields beside `at`, `level`, ..."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "at": _at(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        for name, value in _fields(record).items():
            entry.setdefault(name, _plain(value))
        return json.dumps(entry)


class StrangerLog:
    """What peers that proved no key are refused for: one line a reason in ten seconds.

    Holds one count for each reason, whatever strangers send. `flush` writes what was counted since
    the last line; call it now and then, and at the end.
    """

    def __init__(self, log: logging.Logger, interval: float = STRANGERS_INTERVAL) -> None:
        self._log = log
        self._interval = interval
        self._counts: dict[str, int] = {}
        self._written_at: dict[str, float] = {}
        self._last: dict[str, tuple[object, bytes, str]] = {}

    @property
    def due_at(self) -> float | None:
        """When `flush` has something to write, None if never."""
        due = (self._written_at[reason] + self._interval for reason in self._counts)
        return min(due, default=None)

    def refused(
        self, reason: str, peer: object, now: float, octets: bytes = b"", detail: str = ""
    ) -> None:
        """Count one refusal; `peer` is its socket address, `octets` what it claimed to be."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        self._last[reason] = (peer, octets[:MAX_PEER_OCTETS], detail[:MAX_DETAIL])
        if now - self._written_at.get(reason, -math.inf) >= self._interval:
            self._write(reason, now)

    def flush(self, now: float) -> None:
        """Write a line for each reason that was counted and whose ten seconds are over."""
        for reason in list(self._counts):
            if now - self._written_at[reason] >= self._interval:
                self._write(reason, now)

    def _write(self, reason: str, now: float) -> None:
        peer, octets, detail = self._last.pop(reason)
        fields = {"reason": reason, "count": self._counts.pop(reason), "peer": peer}
        fields |= {"identity": octets} if octets else {}
        fields |= {"detail": detail} if detail else {}
        self._written_at[reason] = now
        self._log.info("stranger refused", extra=fields)


class Seldom:
    """Lets `burst` of a kind through in `interval` seconds: who repeats a mistake fills no log.

    At most `max_kinds` are remembered; then the one told of longest ago is forgotten.
    """

    def __init__(
        self, interval: float = STRANGERS_INTERVAL, max_kinds: int = 64, burst: int = 1
    ) -> None:
        self._interval = interval
        self._max_kinds = max_kinds
        self._burst = burst
        self._known: OrderedDict[Hashable, tuple[float, int, int]] = OrderedDict()

    def count(self, kind: Hashable, now: float) -> int:
        """Count one; how many to tell of now, this one among them, or 0: say nothing."""
        began_at, told, untold = self._known.get(kind, (-math.inf, 0, 0))
        untold += 1
        if now - began_at < self._interval:
            if told >= self._burst:
                self._known[kind] = (began_at, told, untold)
                return 0
            self._known[kind] = (began_at, told + 1, 0)
            return untold
        self._known[kind] = (now, 1, 0)
        self._known.move_to_end(kind)
        if len(self._known) > self._max_kinds:
            self._known.popitem(last=False)
        return untold


def show_address(address: object) -> str:
    """A socket address as people write it; IPv4-mapped IPv6 as the IPv4 it stands for.

    `('::ffff:192.0.2.7', 40312, 0, 0)` is `192.0.2.7:40312`.
    """
    if not isinstance(address, tuple) or len(address) < 2:
        return str(address)
    host, port = str(address[0]), address[1]
    if host.startswith(_MAPPED) and "." in host:
        host = host.removeprefix(_MAPPED)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def show_octets(octets: bytes) -> str:
    """Octets that a peer chose, in at most 64 characters of printable ASCII."""
    shown = [_show_octet(octet) for octet in octets[: MAX_PEER_OCTETS + 1]]
    if sum(map(len, shown)) <= MAX_PEER_OCTETS:
        return "".join(shown)
    # What is cut ends in dots, and never within an escape.
    while sum(map(len, shown)) > MAX_PEER_OCTETS - 3:
        shown.pop()
    return "".join(shown) + "..."


def _show_octet(octet: int) -> str:
    return chr(octet) if 0x20 <= octet < 0x7F and octet != 0x5C else f"\\x{octet:02x}"


def _at(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _plain(value: object) -> str | int | float | bool | None:
    match value:
        case bytes():
            return show_octets(value)
        case tuple():
            return show_address(value)
        case float() if not math.isfinite(value):
            return str(value)
        case str():
            return str(value)  # an enum's value, not its repr
        case bool() | int() | float() | None:
            return value
        case _:
            return str(value)


def _quoted(value: str | int | float | bool | None) -> str:
    if isinstance(value, str) and _BARE.fullmatch(value):
        return value
    return json.dumps(value)


def _escape(text: str) -> str:
    """A message on one line: other libraries' messages may hold what a peer sent."""
    return text if text.isprintable() else json.dumps(text)[1:-1]
