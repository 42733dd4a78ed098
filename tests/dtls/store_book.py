"""What an association store may hold after any instant: a second, plain record of what it was told.

Used by tests that cut the store short, in memory and in a process that is killed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from coapgate.dtls.store import LEASE, Answer, AssociationStore, Established, Recovered
from coapgate.model import DeviceId, Identity, Method, Path, Tenant

KINDS = ("add", "add", "seen", "seen", "lease", "answered", "answered", "move", "remove")
"""In proportion to how often a test draws them."""

MAX_NUMBER = (1 << 48) - 1

PATHS: tuple[Path, ...] = (
    (0, ("192.0.2.7", 40312)),
    (0, ("::ffff:192.0.2.8", 5684, 0, 0)),
    (1, ("2001:db8::7", 65535, 0, 0)),
    (2, ("fe80::1", 1, 0, 3)),
)


class Draw(NamedTuple):
    """What chance decides about an operation; numbers from 0 on, as large as they like."""

    kind: str
    which: int
    value: int


class Operation(NamedTuple):
    """One call of the store; `subject` is the id of an association, `wall` when it happens."""

    kind: str
    subject: bytes
    value: int
    wall: int


@dataclass(frozen=True)
class Known:
    """One association as the store was told of it; `answers` by the lowest bits of message IDs."""

    established: Established
    path: Path
    is_proven: bool
    newest: int
    sequence: int
    """The first send number that is not leased."""
    seen_at: int
    answers: tuple[Answer | None, ...] = (None,) * 4


Book = dict[bytes, Known]
"""By id, in order of opening."""


def established(number: int) -> Established:
    """The association of that number: any two differ in everything."""
    method = Method.X509 if number % 3 else Method.PSK
    identity = Identity(
        Tenant("default"),
        DeviceId(f"sensor-{number}"),
        method,
        f"psk-{number}" if method is Method.PSK else f"sha256:{number:016x}",
        None if method is Method.PSK else bytes((number & 255,)) * 32,
        None if number % 2 else float(number),
        "" if method is Method.PSK else f"sensor-{number if number % 2 else -number}",
        b"" if method is Method.PSK else number.to_bytes(8, "big") * 3 * (1 + number % 2),
    )
    return Established(
        id=number.to_bytes(8, "big"),
        identity=identity,
        suite=0xC02C if number % 5 == 1 else 0xC0A8,
        key_block=number.to_bytes(4, "big") * (18 if number % 5 == 1 else 10),
        received_cid=b"\0\1" + number.to_bytes(6, "big") if number % 4 else b"",
        sent_cid=b"c" * (number % 9),
        max_plaintext=1000 + number % 200,
    )


def choose(book: Book, draw: Draw, opened: int, wall: int) -> Operation | None:
    """An operation that the gateway could do now; `opened` associations there were so far."""
    if draw.kind == "add":
        return Operation("add", opened.to_bytes(8, "big"), draw.value, wall)
    if not book:
        return None
    subject = tuple(book)[draw.which % len(book)]
    value = draw.value
    if draw.kind == "seen":
        # Mostly the next number, at times any up to the last there is.
        step = value % 5 if value % 8 else value
        value = book[subject].newest + 1 + step
        if value > MAX_NUMBER:
            return None
    if draw.kind == "lease":
        value = book[subject].sequence
        if value + LEASE - 1 > MAX_NUMBER:
            return None
    return Operation(draw.kind, subject, value, wall)


def perform(store: AssociationStore, slots: dict[bytes, int], operation: Operation) -> None:
    """Tell the store. `slots`, by id, is kept; what had no room has none."""
    kind, subject, value, wall = operation
    slot = slots.get(subject, -1)
    store.begin(float(wall))
    match kind:
        case "add":
            number = int.from_bytes(subject, "big")
            slot = store.add(established(number), PATHS[value % len(PATHS)], value & 7)
            if slot >= 0:
                slots[subject] = slot
        case "seen":
            store.seen(slot, value)
        case "lease":
            store.lease(slot, value)
        case "answered":
            store.answered(slot, _message_id(value), _answer(value), 0.0)
        case "move":
            store.move(slot, PATHS[value % len(PATHS)], is_proven=bool(value & 8))
        case "remove":
            store.remove(slots.pop(subject))


def note(book: Book, operation: Operation) -> None:
    """The operation is done: enter it."""
    kind, subject, value, wall = operation
    match kind:
        case "add":
            number = int.from_bytes(subject, "big")
            path = PATHS[value % len(PATHS)]
            book[subject] = Known(established(number), path, True, value & 7, LEASE, wall)
        case "seen":
            book[subject] = replace(book[subject], newest=value, seen_at=wall)
        case "lease":
            book[subject] = replace(book[subject], sequence=value + LEASE)
        case "answered":
            known = book[subject]
            answers = list(known.answers)
            message_id, octets = _message_id(value), _answer(value)
            before = answers[message_id & 3]
            if len(octets) <= 21:
                answers[message_id & 3] = Answer(message_id, wall, octets)
            elif before is not None and before.message_id == message_id:
                answers[message_id & 3] = None
            book[subject] = replace(known, answers=tuple(answers))
        case "move":
            path = PATHS[value % len(PATHS)]
            book[subject] = replace(book[subject], path=path, is_proven=bool(value & 8))
        case "remove":
            del book[subject]


def _message_id(value: int) -> int:
    """Few, so that they come again."""
    return value & 0x800F


def _answer(value: int) -> bytes:
    """0 to 22 octets: the longest is not kept."""
    return bytes((value >> 3 & 255,)) * ((value >> 3) % 23)


def verify(book: Book, cut_short: Operation | None, recovered: Iterable[Recovered]) -> None:
    """Fail unless this is what the book says, `cut_short` done in part, wholly or not at all."""
    after = dict(book)
    if cut_short is not None:
        note(after, cut_short)
    found = {each.established.id: each for each in recovered}
    assert len({each.slot for each in found.values()}) == len(found)
    order = [each.number for each in found.values()]
    assert order == sorted(set(order)), "in order of opening"
    assert found.keys() >= book.keys() & after.keys(), "one is lost"
    assert found.keys() <= book.keys() | after.keys(), "one that had ended is back"
    for name, each in found.items():
        may = [known[name] for known in (book, after) if name in known]
        assert each.established == may[0].established
        assert each.sequence >= may[0].sequence, "a number that may have been used"
        assert each.newest >= may[0].newest, "a number that was seen"
        assert each.sequence in {known.sequence for known in may}
        assert each.newest in {known.newest for known in may}
        assert each.seen_at in {known.seen_at for known in may}
        assert (each.path, each.is_proven) in {(known.path, known.is_proven) for known in may}
        _verify_answers(each.answers, may)


def _verify_answers(found: tuple[Answer, ...], may: list[Known]) -> None:
    assert [answer.expires_at for answer in found] == sorted(answer.expires_at for answer in found)
    places = {answer.message_id & 3: answer for answer in found}
    assert len(places) == len(found)
    for place in range(4):
        allowed = {known.answers[place] for known in may}
        # One that was to take the place of another may have destroyed it without being there.
        allowed |= {None} if len(allowed) > 1 else set()
        assert places.get(place) in allowed, "not what was answered"


def adopt(recovered: Iterable[Recovered]) -> tuple[Book, dict[bytes, int]]:
    """The book and the slots to go on with after a recovery."""
    book: Book = {}
    slots: dict[bytes, int] = {}
    for each in recovered:
        answers: list[Answer | None] = [None] * 4
        for answer in each.answers:
            answers[answer.message_id & 3] = answer
        book[each.established.id] = Known(
            each.established,
            each.path,
            each.is_proven,
            each.newest,
            each.sequence,
            each.seen_at,
            tuple(answers),
        )
        slots[each.established.id] = each.slot
    return book, slots


class Script:
    """Operations one after the other, the same for the same draws and the same beginning.

    Mutable: `book` as of the operations done, `opened`, how many associations there were so far,
    and the time `wall`.
    """

    def __init__(self, book: Book, capacity: int, opened: int, wall: int) -> None:
        self.book = book
        self.capacity = capacity
        self.opened = opened
        self.wall = wall

    def operations(self, draws: Iterable[Draw]) -> Iterator[Operation]:
        """Each is entered in the book when the next is asked for."""
        for draw in draws:
            self.wall += draw.value & 1
            operation = choose(self.book, draw, self.opened, self.wall)
            if operation is not None:
                self.opened += operation.kind == "add"
                yield operation
                if operation.kind != "add" or len(self.book) < self.capacity:
                    note(self.book, operation)
