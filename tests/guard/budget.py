"""How much everything may cost: each number is a few percent above what was counted, at most.

A test that fails here says that something has become more expensive. If it need not be, mend it:
`python -m tests.guard` shows which functions it goes to. If it has to be, write the new number
here, and why into the message of the commit. What has become cheaper gets its new number too, or
somebody else spends what was gained without a word.

The numbers are those of Python 3.11, the oldest that is supported. Newer ones have so far counted
a few calls less, and fewer instructions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coapgate.model import Method
from tests.guard.costs import HandshakeKind, Kind, RequestKind


@dataclass(frozen=True, slots=True)
class Unit:
    """What is counted, as a plural, and what to do when it has become more."""

    name: str
    advice: str


PYTHON_CALLS = Unit(
    "calls of functions written in Python",
    "call fewer of them, or do in the caller what a short one does",
)
C_CALLS = Unit(
    "calls of functions written in C",
    "look at each datagram once, and compute once an association what never changes in it",
)
INSTRUCTIONS = Unit(
    "instructions of Python's virtual machine",
    "do nothing twice, and nothing octet by octet",
)
DATAGRAMS_RECEIVED = Unit("datagrams received", "let no peer have to repeat or split what it says")
DATAGRAMS_SENT = Unit("datagrams sent", "put into one datagram what one peer is sent at one time")
SYSTEM_CALLS = Unit("system calls", "ask the system for nothing but datagrams and one write a tick")
CALLBACKS = Unit("callbacks of the event loop", "let one callback do it for a whole batch")
TIMERS = Unit("timers of the event loop", "let one timer serve everybody, and do not move it often")
TASKS = Unit("tasks and futures", "report by a number and a method: the hot path waits for nothing")
OCTETS = Unit(
    "octets of memory that stay",
    "keep `bytes` rather than objects, share what is equal, drop what can be made again",
)
OBJECTS = Unit(
    "objects that stay and the garbage collector visits",
    "keep `bytes` and numbers, or one object where there are two",
)
GARBAGE = Unit(
    "objects that only the garbage collector frees", "let no object hold what holds itself"
)
COLLECTIONS = Unit("runs of the garbage collector", "leave it nothing to visit or to find")


@dataclass(frozen=True, slots=True)
class Budget:
    """What one operation may cost; the names are those of `costs.Cost`."""

    python_calls: float
    c_calls: float
    instructions: float
    datagrams_received: float
    datagrams_sent: float
    system_calls: float
    callbacks: float
    timers: float
    tasks: float = 0.0


UNITS = {
    "python_calls": PYTHON_CALLS,
    "c_calls": C_CALLS,
    "instructions": INSTRUCTIONS,
    "datagrams_received": DATAGRAMS_RECEIVED,
    "datagrams_sent": DATAGRAMS_SENT,
    "system_calls": SYSTEM_CALLS,
    "callbacks": CALLBACKS,
    "timers": TIMERS,
    "tasks": TASKS,
}
"""By the names of a budget's fields."""

# In a batch, one look more at the empty socket and one write to the broker are shared by all; so
# are the two callbacks that write and send. The socket's timer moves every 50 ms at most.
BUDGETS: dict[Kind, Budget] = {
    RequestKind(cid=True, batch=50): Budget(42, 61, 1890, 1, 1, 2.04, 0.04, 0.01),
    RequestKind(cid=False, batch=50): Budget(42, 57, 1826, 1, 1, 2.04, 0.04, 0.01),
    RequestKind(cid=True, batch=1): Budget(76, 72.5, 2450, 1, 1, 4, 2, 0.05),
    RequestKind(cid=False, batch=1): Budget(76, 68.5, 2386, 1, 1, 4, 2, 0.05),
    HandshakeKind(Method.PSK, cid=True): Budget(500, 508, 13650, 3, 3, 10, 1, 0.05),
    HandshakeKind(Method.PSK, cid=False): Budget(485, 490, 13250, 3, 3, 10, 1, 0.05),
    HandshakeKind(Method.X509, cid=True): Budget(848, 794, 20850, 3, 3, 10, 1, 0.05),
    HandshakeKind(Method.X509, cid=False): Budget(831, 775, 20400, 3, 3, 10, 1, 0.05),
}
"""Handshakes are those of devices that the registry knows, with their line in the log and what the
bus is told: an event, and their status."""

REMEMBERED_REQUEST = 76.0
"""Octets of what is kept of a request for its repetition, while there is room to keep it."""
STEADY_REQUEST = 1.0
"""Octets of a request when there is none: what it replaces was as long."""
REQUEST_OBJECTS = 0.005
"""For all of a thousand requests: five."""

ASSOCIATIONS: dict[tuple[Method, bool], tuple[float, float]] = {
    (Method.PSK, True): (2230, 6),
    (Method.PSK, False): (2190, 6),
    (Method.X509, True): (2510, 6.2),
    (Method.X509, False): (2470, 6.2),
}
"""Octets and objects of an idle association, by method and whether it has a Connection ID."""

STORED_ASSOCIATION = 512
"""Octets of an association in the file."""


def hold(
    operation: object,
    unit: Unit,
    counted: float,
    allowed: float,
    where: Mapping[str, float] | None = None,
) -> None:
    """Fail if an operation costs more than it may; `where` are the functions with most of it."""
    if counted <= allowed:
        return
    lines = [f"{operation}: {counted:.6g} {unit.name}, {allowed:.6g} are allowed"]
    if where:
        most = ", ".join(f"{name} {count:.4g}" for name, count in where.items())
        lines.append(f"most of them: {most}")
    lines.append(f"hint: {unit.advice}; `python -m tests.guard` shows where all of it goes")
    lines.append("hint: if it is worth it, raise the number in tests/guard/budget.py and say why")
    raise AssertionError("\n".join(lines))
