"""The association store: what is recovered from it, and what it refuses."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from coapgate.association_file import SocketPaths
from coapgate.dtls import store_format as f
from coapgate.dtls.store import LEASE, RETRY_TIME, Answer, AssociationStore, Recovered
from coapgate.errors import StoreDamaged
from coapgate.model import Path
from tests.dtls.store_book import MAX_NUMBER, PATHS, established
from tests.dtls.store_memory import KEY, Memory, blank

PATH = PATHS[0]
OTHER = PATHS[1]
FIRST = established(1)


class Kept:
    """A store in memory, and what a successor finds there."""

    def __init__(self, slots: int = 4) -> None:
        self.memory = Memory(blank(slots))
        self.store = self.memory.store()
        self.store.begin(1000.0)

    def add(self, number: int = 1, path: Path = PATH) -> int:
        return self.store.add(established(number), path, newest=0)

    def recovered(self) -> list[Recovered]:
        return list(Memory(bytes(self.memory)).store().recover())

    def only(self) -> Recovered:
        (recovered,) = self.recovered()
        return recovered

    def slot(self, slot: int) -> bytes:
        return bytes(self.memory)[slot * f.SLOT_LENGTH : (slot + 1) * f.SLOT_LENGTH]

    def flipped(self, at: int) -> Memory:
        content = bytearray(bytes(self.memory))
        content[at] ^= 0x10
        return Memory(bytes(content))


@pytest.fixture
def kept() -> Kept:
    return Kept()


# --- what goes on


@pytest.mark.parametrize("number", range(1, 13))
def test_what_was_added_is_recovered_as_it_was(number: int) -> None:
    kept = Kept()
    path = PATHS[number % len(PATHS)]

    slot = kept.store.add(established(number), path, newest=3)

    assert kept.recovered() == [
        Recovered(
            slot=slot,
            number=1,
            established=established(number),
            path=path,
            is_proven=True,
            newest=3,
            sequence=LEASE,
            seen_at=1000,
            answers=(),
        )
    ]


def test_associations_are_recovered_in_order_of_opening(kept: Kept) -> None:
    first, _, _ = (kept.add(number) for number in (1, 2, 3))
    kept.store.remove(first)
    assert kept.add(4) == first

    recovered = kept.recovered()

    assert [each.established for each in recovered] == [established(n) for n in (2, 3, 4)]
    assert [each.number for each in recovered] == [2, 3, 4]


def test_the_order_of_opening_goes_on_after_a_recovery(kept: Kept) -> None:
    kept.add(1)
    kept.add(2)
    successor = Memory(bytes(kept.memory)).store()
    before = list(successor.recover())

    slot = successor.add(established(3), PATH, 0)

    (*earlier, last) = successor.recover()
    assert earlier == before
    assert (last.slot, last.number) == (slot, 3)


def test_send_numbers_begin_after_the_lease(kept: Kept) -> None:
    slot = kept.add()
    for sequence in (64, 128):
        kept.store.lease(slot, sequence)

    assert kept.only().sequence == 192


def test_after_the_last_lease_there_is_no_number_left(kept: Kept) -> None:
    kept.store.lease(kept.add(), MAX_NUMBER + 1 - LEASE)

    assert kept.only().sequence == MAX_NUMBER + 1


@pytest.mark.parametrize("sequence", [1, 65519, 65520, 65521, 1 << 47, MAX_NUMBER])
def test_the_highest_number_that_was_received_is_kept(kept: Kept, sequence: int) -> None:
    kept.store.seen(kept.add(), sequence)

    assert kept.only().newest == sequence


def test_when_it_was_last_heard_is_kept(kept: Kept) -> None:
    slot = kept.add()
    kept.store.begin(1234.9)
    kept.store.lease(slot, 64)
    assert kept.only().seen_at == 1000

    kept.store.seen(slot, 1)

    assert kept.only().seen_at == 1234


@pytest.mark.parametrize(("wall", "kept_as"), [(-5.0, 0), (1e12, 0xFFFFFFFF - 999)])
def test_a_clock_that_is_far_off_does_no_harm(kept: Kept, wall: float, kept_as: int) -> None:
    slot = kept.add()
    kept.store.begin(wall)
    kept.store.seen(slot, 1)
    kept.store.answered(slot, 1, b"ack", 0.0)

    recovered = kept.only()

    assert (recovered.seen_at, recovered.answers) == (kept_as, (Answer(1, kept_as, b"ack"),))


def test_a_path_is_followed(kept: Kept) -> None:
    slot = kept.add()
    seen = []
    for path in (*PATHS, PATH):
        for is_proven in (False, True):
            kept.store.move(slot, path, is_proven=is_proven)
            recovered = kept.only()
            seen.append((recovered.path, recovered.is_proven))

    assert seen == [(path, is_proven) for path in (*PATHS, PATH) for is_proven in (False, True)]


def test_a_path_that_cannot_be_written_leaves_the_one_before(kept: Kept) -> None:
    kept.store.move(kept.add(), (0, "/run/a.socket"), is_proven=False)

    recovered = kept.only()

    assert (recovered.path, recovered.is_proven) == (PATH, True)


# --- answers


def test_the_last_answer_of_each_of_four_message_ids_is_kept(kept: Kept) -> None:
    slot = kept.add()
    for message_id in range(6):
        kept.store.begin(1000.0 + message_id)
        kept.store.answered(slot, message_id, b"answer %d" % message_id, 0.0)

    assert kept.only().answers == tuple(
        Answer(message_id, 1000 + message_id, b"answer %d" % message_id)
        for message_id in (2, 3, 4, 5)
    )


def test_an_answer_of_nothing_is_one(kept: Kept) -> None:
    kept.store.answered(kept.add(), 0xFFFF, b"", 0.0)

    assert kept.only().answers == (Answer(0xFFFF, 1000, b""),)


def test_an_answer_that_is_too_long_only_makes_its_own_message_id_forgotten(kept: Kept) -> None:
    slot = kept.add()
    kept.store.answered(slot, 5, b"x" * f.MAX_ANSWER, 0.0)
    five = Answer(5, 1000, b"x" * f.MAX_ANSWER)

    kept.store.answered(slot, 9, b"y" * (f.MAX_ANSWER + 1), 0.0)
    assert kept.only().answers == (five,)
    kept.store.answered(slot, 5, b"z" * (f.MAX_ANSWER + 1), 0.0)

    assert kept.only().answers == ()


def test_answers_of_an_association_are_not_those_of_the_next_in_its_slot(kept: Kept) -> None:
    slot = kept.add(1)
    kept.store.answered(slot, 1, b"for sensor-1", 0.0)
    kept.store.remove(slot)

    assert kept.add(2) == slot

    assert kept.only().answers == ()


# --- the end


def test_a_slot_is_erased_when_its_association_ends(kept: Kept) -> None:
    slot = kept.add()
    kept.store.answered(slot, 1, b"answer", 0.0)
    kept.store.move(slot, OTHER, is_proven=False)

    kept.store.remove(slot)

    assert bytes(kept.memory) == blank(4)
    assert kept.store.count == 0
    assert kept.recovered() == []


def test_the_number_that_makes_it_one_goes_first_and_comes_last(kept: Kept) -> None:
    kept.store.remove(kept.add())

    opening, number, no_number, erasing = kept.memory.writes
    assert (opening.at, opening.is_word) == (8, False)
    assert (number.at, number.is_word) == (no_number.at, no_number.is_word) == (0, True)
    assert (erasing.at, erasing.octets) == (8, bytes(504))


def test_removing_twice_frees_one_slot(kept: Kept) -> None:
    slot = kept.add(1)
    kept.store.remove(slot)
    kept.store.remove(slot)

    assert len({kept.add(2), kept.add(3)}) == 2
    assert kept.store.count == 2


def test_what_is_removed_during_a_recovery_is_left_out(kept: Kept) -> None:
    slots = [kept.add(number) for number in (1, 2, 3)]
    recovered = kept.store.recover()
    next(recovered)

    kept.store.remove(slots[1])
    assert kept.add(4) == slots[1]

    assert [each.slot for each in recovered] == [slots[2]]


# --- what is not stored


def test_nothing_is_told_of_what_has_no_slot(kept: Kept) -> None:
    kept.add()
    before = bytes(kept.memory)

    kept.store.seen(-1, 5)
    kept.store.lease(-1, 64)
    kept.store.answered(-1, 5, b"answer", 0.0)
    kept.store.move(-1, OTHER, is_proven=False)
    kept.store.remove(-1)

    assert bytes(kept.memory) == before


def test_a_full_store_takes_no_more(kept: Kept) -> None:
    slots = [kept.add(number) for number in range(1, 6)]

    assert slots == [0, 1, 2, 3, -1]
    assert (kept.store.count, kept.store.capacity, kept.store.unstored) == (4, 4, 1)
    kept.store.remove(2)
    assert kept.add(6) == 2


def test_what_does_not_fit_is_not_stored(kept: Kept) -> None:
    long = replace(FIRST, sent_cid=bytes(255))

    assert kept.store.add(long, PATH, 0) == -1
    assert kept.store.add(FIRST, (0, "/run/a.socket"), 0) == -1
    assert (kept.store.unstored, kept.recovered()) == (2, [])
    assert kept.memory.writes == []


class Disk:
    """Gives room for two more slots at a time, while `slots` lasts."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.reserved = 0
        self.asked: list[int] = []

    def reserve(self, count: int) -> int:
        self.asked.append(count)
        if self.reserved < count <= self.slots:
            self.reserved += 2
        return self.reserved


def test_a_slot_is_used_only_when_there_is_room_for_it() -> None:
    disk = Disk(slots=4)
    memory = Memory(blank(8))
    store = AssociationStore(memory.octets, memory.words, KEY, SocketPaths(), disk.reserve)
    store.begin(1000.0)
    store.check()

    slots = [store.add(established(number), PATH, 0) for number in range(1, 8)]

    assert slots == [0, 1, 2, 3, -1, -1, -1]
    assert disk.asked == [0, 1, 3, 5], "once a minute, when it was refused"


@pytest.mark.parametrize("later", [RETRY_TIME, -RETRY_TIME])
def test_room_that_was_refused_is_asked_for_again_a_minute_later(later: int) -> None:
    disk = Disk(slots=0)
    memory = Memory(blank(8))
    store = AssociationStore(memory.octets, memory.words, KEY, SocketPaths(), disk.reserve)
    store.begin(1000.0)
    store.check()
    assert store.add(FIRST, PATH, 0) == -1
    disk.slots = 8

    store.begin(1000.0 + later / 2)
    assert store.add(FIRST, PATH, 0) == -1
    store.begin(1000.0 + later)

    assert store.add(FIRST, PATH, 0) == 0


def test_nothing_is_added_before_what_was_there_is_known() -> None:
    memory = Memory(blank(1))
    store = AssociationStore(memory.octets, memory.words, KEY, SocketPaths())

    with pytest.raises(AssertionError):
        store.add(FIRST, PATH, 0)


# --- damage


def test_every_octet_that_matters_is_checked(kept: Kept) -> None:
    kept.add(1)
    slot = kept.add(2)
    kept.store.move(slot, OTHER, is_proven=False)
    kept.store.answered(slot, 1, b"answer", 0.0)
    whole = {each.slot: each for each in kept.recovered()}
    answer_at = f.ANSWERS_AT + f.ANSWER_LENGTH
    not_in_use = range(f.PATHS_AT, f.PATHS_AT + f.PATH_COPY_LENGTH)

    for place in range(f.SLOT_LENGTH):
        memory = kept.flipped(slot * f.SLOT_LENGTH + place)
        if place in not_in_use or f.ANSWERS_AT <= place < f.SEALED_AT:
            found = {each.slot: each for each in memory.store().recover()}
            if answer_at <= place < answer_at + f.ANSWER_LENGTH:
                assert found == whole | {slot: replace(whole[slot], answers=())}
            else:
                assert found == whole
        else:
            with pytest.raises(StoreDamaged, match=f"slot {slot}: "):
                memory.store()


def test_a_recovery_looks_at_everything_before_it_begins(kept: Kept) -> None:
    kept.add(1)
    kept.add(2)
    memory = kept.flipped(f.SLOT_LENGTH + f.SEALED_AT)
    store = AssociationStore(memory.octets, memory.words, KEY, SocketPaths())

    with pytest.raises(StoreDamaged):
        store.recover()


def test_what_death_cut_short_is_erased(kept: Kept) -> None:
    kept.add(1)
    slot = kept.add(2)
    content = bytearray(bytes(kept.memory))
    content[slot * f.SLOT_LENGTH : slot * f.SLOT_LENGTH + 8] = bytes(8)
    memory = Memory(bytes(content))

    store = memory.store()

    assert [each.established for each in store.recover()] == [established(1)]
    assert bytes(memory) == kept.slot(0) + bytes(3 * f.SLOT_LENGTH)


def test_a_slot_in_the_place_of_another_does_not_open(kept: Kept) -> None:
    kept.add(1)
    kept.add(2)

    with pytest.raises(StoreDamaged, match="slot 0: what is sealed does not open"):
        Memory(kept.slot(1) + kept.slot(0)).store()


def test_a_slot_does_not_open_with_the_seal_of_an_earlier_association(kept: Kept) -> None:
    slot = kept.add(1)
    earlier = kept.slot(slot)
    kept.store.remove(slot)
    assert kept.add(2) == slot

    with pytest.raises(StoreDamaged, match="does not open"):
        Memory(kept.slot(slot)[: f.SEALED_AT] + earlier[f.SEALED_AT :]).store()


def test_a_store_under_another_key_is_not_read(kept: Kept) -> None:
    kept.add()
    store = AssociationStore(kept.memory.octets, kept.memory.words, bytes(32), SocketPaths())

    with pytest.raises(StoreDamaged):
        store.check()


def test_two_associations_of_one_number_are_damage(kept: Kept) -> None:
    kept.add()
    content = f.encode_established(established(2))
    packed = SocketPaths().pack(PATH)
    assert content is not None
    assert packed is not None
    nonce = bytes(f.NONCE_LENGTH)
    sealed = nonce + AESGCM(KEY).encrypt(nonce, content, f.BINDING.pack(1, 1))
    second = kept.slot(0)[:8] + f.encode_slot(0, LEASE - 1, 0, packed, sealed)

    with pytest.raises(StoreDamaged, match="slot 1: number 1 is there twice"):
        Memory(kept.slot(0) + second).store()


# --- secrets, and what it costs


def test_neither_keys_nor_names_are_in_clear_in_it(kept: Kept) -> None:
    secret = replace(
        FIRST,
        id=b"an id 8.",
        key_block=b"key-block-of-forty-octets-in-all-0123456",
        received_cid=b"our CID.",
        sent_cid=b"its CID.",
    )
    kept.store.add(secret, PATH, 0)
    content = bytes(kept.memory)

    for octets in (b"key-block", b"sets-in-", b"CID.", b"an id", b"sensor", b"default", b"sha256"):
        assert octets not in content
    assert kept.only().established == secret


def test_no_two_associations_are_sealed_under_one_nonce(kept: Kept) -> None:
    nonces = set()
    for _ in range(50):
        slot = kept.add()
        nonces.add(kept.slot(slot)[f.SEALED_AT : f.SEALED_AT + f.NONCE_LENGTH])
        kept.store.remove(slot)

    assert len(nonces) == 50


def test_a_request_leaves_no_object_that_the_collector_visits() -> None:
    memory = memoryview(bytearray(blank(1)))
    store = AssociationStore(memory, memory.cast("Q"), KEY, SocketPaths())
    store.check()
    slot = store.add(FIRST, PATH, 0)
    gc.disable()
    try:
        before = gc.get_count()[0]
        for number in range(1, 500):
            store.seen(slot, number)
            store.answered(slot, number, b"answer", 0.0)
        grown = gc.get_count()[0] - before
    finally:
        gc.enable()

    assert grown < 50
