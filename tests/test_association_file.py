"""The file in which associations outlive the process: what is trusted, set aside, dropped."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path, PosixPath

import pytest

from coapgate.association_file import SocketPaths, open_associations, read_boot_id
from coapgate.association_file.header import HEADER_LENGTH, boot_value, parse_header
from coapgate.association_file.mapping import STEP, Allocate, MappedFile
from coapgate.association_file.ownership import MAX_SET_ASIDE, OwnedFile
from coapgate.dtls import store_format as f
from coapgate.dtls.store import AssociationStore, Recovered
from coapgate.errors import KeyFileError, StartError
from tests.dtls.store_book import PATHS, established
from tests.store_keys import Keys

BOOT_ID = "the boot of the tests"
WALL = 1_800_000_000.0

SET_ASIDE = "association file set aside"
DROPPED = "associations dropped"
CANNOT_GROW = "association file cannot grow"


class Place:
    """Where a gateway has its file; every opening is another process of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "associations.store"

    def open(
        self,
        capacity: int = 8,
        keys: Keys | None = None,
        boot_id: str = BOOT_ID,
        allocate: Allocate = os.posix_fallocate,
    ) -> AbstractContextManager[AssociationStore]:
        return open_associations(
            self.path, capacity, keys or Keys(), boot_id=boot_id, wall=WALL, allocate=allocate
        )

    def fill(self, count: int = 2, *, boot_id: str = BOOT_ID) -> list[Recovered]:
        """Leave so many associations in it."""
        with self.open(boot_id=boot_id) as store:
            for number in range(count):
                assert store.add(established(number), PATHS[0], 0) >= 0
            return list(store.recover())

    def left(self, **settings: object) -> list[Recovered]:
        """What the next process finds."""
        with self.open(**settings) as store:  # type: ignore[arg-type]  # as `open` names them
            return list(store.recover())

    @property
    def files(self) -> set[str]:
        return {each.name for each in self.folder.iterdir()}

    def flip(self, at: int) -> None:
        content = bytearray(self.path.read_bytes())
        content[at] ^= 0x04
        self.rewrite(bytes(content))

    def rewrite(self, content: bytes) -> None:
        """In place: it stays the same file."""
        with self.path.open("r+b") as file:
            file.write(content)
            file.truncate()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@contextmanager
def killed(place: Place, **settings: object) -> Iterator[AssociationStore]:
    """A process that is killed at the end: what it leaves is neither synced nor said to be closed.

    The file is what the page cache has at that moment, put back after an orderly close.
    """
    with place.open(**settings) as store:  # type: ignore[arg-type]  # as `open` names them
        yield store
        left = place.path.read_bytes()
    place.rewrite(left)


# --- what goes on


def test_associations_go_on_after_a_restart(place: Place) -> None:
    before = place.fill()

    assert place.left() == before
    assert [each.established for each in before] == [established(0), established(1)]


def test_associations_go_on_after_the_process_was_killed(place: Place) -> None:
    with killed(place) as store:
        slot = store.add(established(1), PATHS[0], 0)
        store.seen(slot, 7)

    (recovered,) = place.left()

    assert (recovered.established, recovered.newest) == (established(1), 7)


def test_associations_go_on_after_an_orderly_reboot(place: Place) -> None:
    before = place.fill(boot_id="monday")

    assert place.left(boot_id="tuesday") == before


@pytest.mark.expects_warnings(DROPPED)
def test_associations_are_dropped_after_a_crash_of_the_machine(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    with killed(place, boot_id="monday") as store:
        for number in range(3):
            store.add(established(number), PATHS[0], 0)

    assert place.left(boot_id="tuesday") == []

    (record,) = caplog.records
    assert record.__dict__["count"] == 3
    assert place.files == {"associations.store"}
    assert place.left(boot_id="tuesday") == []
    assert b"".join(place.path.read_bytes()[HEADER_LENGTH:].split(b"\0")) == b""


def test_nobody_is_told_of_a_crash_that_cost_nothing(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    with killed(place, boot_id="monday"):
        pass

    assert place.left(boot_id="tuesday") == []
    assert caplog.records == []


@pytest.mark.expects_warnings(DROPPED)
def test_a_file_is_open_from_before_anything_in_it_is_used(place: Place) -> None:
    """A machine that crashes right after the second boot must not be believed on the third."""
    place.fill(boot_id="monday")
    with killed(place, boot_id="tuesday"):
        pass

    assert place.left(boot_id="wednesday") == []


def test_a_new_key_of_the_registry_is_for_new_files(place: Place) -> None:
    before = place.fill()

    assert place.left(keys=Keys(b"key", b"newer")) == before


def test_an_end_by_an_error_is_an_end_in_good_order(place: Place) -> None:
    before = place.fill(boot_id="monday")

    with pytest.raises(KeyError), place.open(boot_id="monday"):
        raise KeyError

    assert place.left(boot_id="tuesday") == before


def test_after_the_end_nothing_can_be_written(place: Place) -> None:
    with place.open() as store:
        slot = store.add(established(1), PATHS[0], 0)

    with pytest.raises(ValueError, match="released"):
        store.seen(slot, 1)


# --- its size


def test_a_larger_capacity_makes_the_file_grow(place: Place) -> None:
    before = place.fill(2)

    with place.open(capacity=20) as store:
        assert store.capacity == 20
        slots = {store.add(established(number), PATHS[0], 0) for number in range(2, 20)}
        assert slots == set(range(2, 20))
        assert next(store.recover()) == before[0]
    assert len(place.left(capacity=20)) == 20


def test_a_smaller_capacity_keeps_the_file_as_it_is(place: Place) -> None:
    before = place.fill(8)

    with place.open(capacity=2) as store:
        assert store.capacity == 8
        assert list(store.recover()) == before


class Disk:
    """Takes note of what is allocated; full while `is_full`."""

    def __init__(self) -> None:
        self.is_full = False
        self.allocated: list[tuple[int, int]] = []

    def allocate(self, descriptor: int, offset: int, length: int) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.allocated.append((offset, length))
        os.posix_fallocate(descriptor, offset, length)


def test_slots_take_their_place_on_the_disk_step_by_step(place: Place) -> None:
    disk = Disk()
    with place.open(capacity=STEP + 10, allocate=disk.allocate) as store:
        assert place.path.stat().st_blocks * 512 <= 2 * HEADER_LENGTH
        for number in range(STEP + 1):
            store.add(established(number), PATHS[0], 0)

        assert disk.allocated == [
            (HEADER_LENGTH, STEP * f.SLOT_LENGTH),
            (HEADER_LENGTH + STEP * f.SLOT_LENGTH, 10 * f.SLOT_LENGTH),
        ]
    with place.open(capacity=STEP + 10, allocate=disk.allocate) as store:
        assert store.count == STEP + 1
        assert store.add(established(0), PATHS[0], 0) == STEP + 1
        # What had its place has it in the file that goes on, too.
        assert disk.allocated[2:] == [(HEADER_LENGTH, (STEP + 10) * f.SLOT_LENGTH)]


@pytest.mark.expects_warnings(CANNOT_GROW)
def test_a_full_disk_is_said_once_and_tried_again(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    disk.is_full = True
    with place.open(allocate=disk.allocate) as store:
        for minute in range(3):
            store.begin(WALL + 60 * minute)
            assert store.add(established(1), PATHS[0], 0) == -1
        assert [record.msg for record in caplog.records] == [CANNOT_GROW]
        assert caplog.records[0].__dict__["reason"] == "No space left on device"

        disk.is_full = False
        store.begin(WALL + 180)
        assert store.add(established(1), PATHS[0], 0) == 0
        assert store.unstored == 3
    assert len(place.left()) == 1


def test_a_file_that_cannot_even_begin_is_an_error(place: Place) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StartError, match="cannot be written"), place.open():
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert place.left() == []


def test_a_file_that_cannot_be_as_long_as_it_must_is_an_error(place: Place) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HEADER_LENGTH + 100, hard))
    try:
        with pytest.raises(StartError, match="cannot be written: File too large"), place.open():
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert place.left() == []


class BrokenMap(mmap.mmap):
    """Memory of a disk that is gone."""

    def flush(self, offset: int = 0, size: int = 0) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.expects_warnings("association file not synced")
def test_what_cannot_be_synced_is_not_closed_in_good_order(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.fill(0)
    file = OwnedFile(place.path)
    file.open()
    memory = BrokenMap(file.descriptor, 0)
    memory[HEADER_LENGTH - 16 : HEADER_LENGTH - 8] = b"openopen"

    paths = SocketPaths()
    MappedFile(file, memory, bytes(32), 0, os.posix_fallocate, paths).close()
    file.close()

    (record,) = caplog.records
    assert record.__dict__["reason"] == "Input/output error"
    assert place.path.read_bytes()[HEADER_LENGTH - 16 : HEADER_LENGTH - 8] == b"openopen"


# --- each run has a file of its own


def emptied(place: Place) -> None:
    place.fill(boot_id="monday")
    place.rewrite(b"")


def crashed(place: Place) -> None:
    with killed(place, boot_id="monday") as store:
        store.add(established(0), PATHS[0], 0)


def ended(place: Place) -> None:
    place.fill(boot_id="monday")


def was_killed(place: Place) -> None:
    with killed(place, boot_id="tuesday") as store:
        store.add(established(0), PATHS[0], 0)


@pytest.mark.expects_warnings(SET_ASIDE, DROPPED)
@pytest.mark.parametrize("how", [ended, was_killed, crashed, emptied])
def test_a_backup_of_an_earlier_run_that_is_put_back_in_place_is_set_aside(
    place: Place, how: Callable[[Place], None], caplog: pytest.LogCaptureFixture
) -> None:
    """It stays the same file: all that tells is that no file serves two runs."""
    with place.open(boot_id="tuesday") as store:
        store.add(established(9), PATHS[0], 0)
    backup = place.path.read_bytes()
    how(place)
    place.left(boot_id="tuesday")
    caplog.clear()
    place.rewrite(backup)

    reason = untrusted(place, backup, caplog)

    assert reason == "is a copy: what it holds may have been used since it was made"


def test_the_file_of_the_run_before_is_not_written_any_more(place: Place) -> None:
    before = place.fill()
    content = place.path.read_bytes()
    with place.path.open("rb") as former:
        assert place.left() == before

        assert not os.path.samestat(place.path.stat(), os.fstat(former.fileno()))
        assert former.read() == content
    assert place.files == {"associations.store"}


def test_what_has_no_place_on_the_disk_is_not_copied(place: Place) -> None:
    place.fill(1)
    for _ in range(2):
        with place.open(capacity=100 * STEP) as store:
            assert store.capacity == 100 * STEP
            assert place.path.stat().st_blocks * 512 <= HEADER_LENGTH + (STEP + 8) * f.SLOT_LENGTH


def test_what_a_process_left_that_was_killed_as_it_opened_the_file_is_not_used(
    place: Place,
) -> None:
    before = place.fill()
    left_over = place.folder / "associations.store.new"
    left_over.write_bytes(place.path.read_bytes()[:5000])
    left_over.chmod(0o644)

    with place.open() as store:
        assert list(store.recover()) == before
        assert place.path.stat().st_mode & 0o7777 == 0o600
    assert place.files == {"associations.store"}


def test_what_is_no_file_is_not_replaced(place: Place) -> None:
    before = place.fill()
    other = place.folder / "associations.store.new"
    other.symlink_to(place.path)

    with pytest.raises(StartError, match=r"store\.new' is not a regular file"), place.open():
        pass

    assert other.is_symlink()
    other.unlink()
    assert place.left() == before


@pytest.mark.expects_warnings(DROPPED)
def test_where_there_is_no_room_for_the_next_file_a_new_one_is_begun(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.fill(3)
    disk = Disk()
    disk.is_full = True

    with place.open(allocate=disk.allocate) as store:
        assert store.count == 0
        (record,) = caplog.records
        assert record.__dict__["count"] == 3
        assert "No space left on device" in record.__dict__["reason"]
        disk.is_full = False
        assert store.add(established(5), PATHS[0], 0) == 0
    assert len(place.left()) == 1
    assert place.files == {"associations.store"}


def test_a_disk_that_fails_costs_nobody_an_association(place: Place) -> None:
    def fail(_descriptor: int, _offset: int, _length: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = place.fill()

    error = "cannot be written: Input/output error"
    with pytest.raises(StartError, match=error), place.open(allocate=fail):
        pass

    assert place.files == {"associations.store"}
    assert place.left() == before


def test_of_many_that_go_on_at_once_one_owns_the_file(place: Place) -> None:
    before = place.fill()
    for _ in range(10):
        together = threading.Barrier(6, timeout=30.0)

        def begin(together: threading.Barrier = together) -> bool:
            together.wait()
            try:
                with place.open() as store:
                    together.wait()
                    return list(store.recover()) == before
            except StartError:
                together.wait()
                return False

        with ThreadPoolExecutor(together.parties) as threads:
            owning = [threads.submit(begin) for _ in range(together.parties)]
        assert [each.result() for each in owning].count(True) == 1
    assert place.files == {"associations.store"}


def test_a_file_that_lost_its_name_meanwhile_is_an_error(place: Place) -> None:
    place.fill()
    file = OwnedFile(place.path)
    file.open()
    place.path.unlink()
    place.path.write_bytes(b"of another gateway")

    with pytest.raises(StartError, match="is another one each time"), file.renewed():
        pass

    file.close()
    assert place.path.read_bytes() == b"of another gateway"
    assert place.files == {"associations.store"}


# --- what cannot be stored


@pytest.mark.parametrize("max_plaintext", [-1, 65536, 1 << 70])
def test_a_limit_that_cannot_be_written_is_not_stored(place: Place, max_plaintext: int) -> None:
    with place.open() as store:
        unlimited = replace(established(1), max_plaintext=max_plaintext)

        assert store.add(unlimited, PATHS[0], 0) == -1
        assert store.unstored == 1


def test_a_path_is_found_again_by_the_address_that_its_socket_is_bound_to(place: Place) -> None:
    binds = [("192.0.2.1", 5684), ("::", 5685)]
    peer = ("2001:db8::7", 65535, 0, 0)

    def opened() -> AbstractContextManager[AssociationStore]:
        return open_associations(
            place.path, 8, Keys(), boot_id=BOOT_ID, wall=WALL, binds=tuple(binds)
        )

    with opened() as store:
        store.add(established(1), (1, peer), 0)
    binds.reverse()
    with opened() as store:
        (recovered,) = store.recover()

    assert recovered.path == (0, peer)


# --- who owns it, and who may look into it


def test_the_file_has_one_owner(place: Place) -> None:
    with place.open() as store:
        with pytest.raises(StartError, match="is used by another gateway") as caught, place.open():
            pass
        assert caught.value.hint
        assert store.add(established(1), PATHS[0], 0) == 0
    assert len(place.left()) == 1


def test_only_its_owner_can_read_the_file(place: Place) -> None:
    for umask in (0o000, 0o777):
        before = os.umask(umask)
        try:
            place.fill(1)
        finally:
            os.umask(before)
        assert place.path.stat().st_mode & 0o7777 == 0o600
        place.path.unlink()


def test_secrets_and_names_are_not_in_clear_in_the_file(place: Place) -> None:
    secret = replace(
        established(1),
        key_block=b"a key block of forty octets, in all, ok!",
        received_cid=b"CID our.",
        sent_cid=b"CID its.",
    )
    with place.open() as store:
        store.add(secret, PATHS[0], 0)

    content = place.path.read_bytes()

    for octets in (b"key block", b"forty", b"in all", b"CID", b"sensor", b"default", b"sha256:"):
        assert octets not in content
    assert len(content) == HEADER_LENGTH + 8 * 512


def test_the_key_is_the_file_s_own(place: Place) -> None:
    place.fill(1)
    first = parse_header(place.path.read_bytes()[:HEADER_LENGTH])
    place.path.unlink()
    place.fill(1)

    assert parse_header(place.path.read_bytes()[:HEADER_LENGTH]).salt != first.salt


# --- what is set aside


def untrusted(place: Place, content: bytes, caplog: pytest.LogCaptureFixture) -> str:
    """The reason for which the file is set aside, as it is; a new one works."""
    with place.open() as store:
        assert list(store.recover()) == []
        store.add(established(5), PATHS[0], 0)
    (record,) = caplog.records
    caplog.clear()
    assert record.msg == SET_ASIDE
    aside = place.path.with_name(record.__dict__["moved_to"])
    assert aside.read_bytes() == content
    assert [each.established for each in place.left()] == [established(5)]
    return str(record.__dict__["reason"])


@pytest.mark.expects_warnings(SET_ASIDE)
@pytest.mark.parametrize(
    "content", [b"a letter to somebody\n", bytes(5000), b"coapgate", b"\x7fELF"]
)
def test_a_foreign_file_is_set_aside(
    place: Place, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    place.path.write_bytes(content)
    place.path.chmod(0o600)

    reason = untrusted(place, content, caplog)

    assert reason == "is no association file, or was cut short"
    assert place.files == {"associations.store", "associations.store.set-aside-1"}


@pytest.mark.expects_warnings(SET_ASIDE)
def test_a_file_of_another_version_is_set_aside(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.fill()
    content = bytearray(place.path.read_bytes())
    content[8:12] = (1).to_bytes(4, sys.byteorder)
    place.rewrite(bytes(content))

    assert untrusted(place, bytes(content), caplog) == "has format version 1, not 2"


@pytest.mark.expects_warnings(SET_ASIDE)
def test_every_octet_of_the_header_is_checked(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.fill()
    places = [*range(80), *range(80, 4072, 499), *range(4072, HEADER_LENGTH)]
    whole = place.path.read_bytes()
    for at in places:
        place.flip(at)
        assert place.left() == []
        (record,) = caplog.records
        caplog.clear()
        aside = place.path.with_name(record.__dict__["moved_to"])
        aside.replace(place.path)
        place.rewrite(whole)

    assert len(place.left()) == 2


@pytest.mark.expects_warnings(SET_ASIDE)
@pytest.mark.parametrize(
    "at", [0, 9, 17, 30, 33, f.PATHS_AT, f.PATHS_AT + 30, f.SEALED_AT, f.SEALED_AT + 100, 511]
)
def test_a_file_with_a_damaged_slot_is_set_aside(
    place: Place, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    place.fill()
    place.flip(HEADER_LENGTH + f.SLOT_LENGTH + at)

    # It was found when the file had been opened.
    with place.open():
        (record,) = caplog.records
    assert record.msg == SET_ASIDE
    assert record.__dict__["reason"].startswith("is damaged: slot 1: ")
    assert place.left() == []
    assert len(place.files) == 2


@pytest.mark.expects_warnings(SET_ASIDE)
@pytest.mark.parametrize("length", [-1, -512, -8 * 512, 1])
def test_a_file_of_another_length_is_set_aside(
    place: Place, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    place.fill()
    content = place.path.read_bytes() + b"\0"
    place.rewrite(content[: len(content) - 1 + length])

    assert untrusted(place, place.path.read_bytes(), caplog) == "is damaged: it was cut short"


@pytest.mark.expects_warnings(SET_ASIDE)
def test_a_file_under_an_unknown_key_is_set_aside(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    before = place.fill()

    assert place.left(keys=Keys(b"of another registry")) == []

    (record,) = caplog.records
    assert record.__dict__["reason"] == (
        "is of another registry, or encrypted under a key that the key file does not hold"
    )
    # Nothing was done with it: with its registry and key file it is as good as it was.
    place.path.with_name(record.__dict__["moved_to"]).replace(place.path)
    assert place.left() == before


@pytest.mark.expects_warnings(SET_ASIDE)
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_file_that_is_open_to_others_is_set_aside(
    place: Place, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    place.fill()
    place.path.chmod(mode)

    reason = untrusted(place, place.path.read_bytes(), caplog)

    assert reason == f"is open to group or others (mode {mode:04o})"


@pytest.mark.expects_warnings(SET_ASIDE)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_set_aside(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.fill()
    os.chown(place.path, 12345, 12345)

    reason = untrusted(place, place.path.read_bytes(), caplog)

    assert reason == "belongs to another user (uid 12345)"


@pytest.mark.expects_warnings(SET_ASIDE)
def test_a_file_with_a_second_name_is_set_aside(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.fill()
    os.link(place.path, place.folder / "again")

    reason = untrusted(place, place.path.read_bytes(), caplog)

    assert reason == "has another name too (a hard link)"


@pytest.mark.expects_warnings(SET_ASIDE)
@pytest.mark.parametrize("is_removed_first", [False, True])
def test_a_copy_that_is_put_back_is_set_aside(
    place: Place, is_removed_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As from a backup: the numbers that were used since would be used again."""
    place.fill()
    backup = place.folder / "backup"
    shutil.copy2(place.path, backup)
    if is_removed_first:
        # Most likely under the same inode number.
        place.path.unlink()
        shutil.copy2(backup, place.path)
    else:
        backup.replace(place.path)

    reason = untrusted(place, place.path.read_bytes(), caplog)

    assert reason == "is a copy: what it holds may have been used since it was made"


def test_a_file_may_be_moved(place: Place, tmp_path: Path) -> None:
    before = place.fill()
    elsewhere = Place(tmp_path / "elsewhere")
    elsewhere.folder.mkdir()

    place.path.rename(elsewhere.path)

    assert elsewhere.left() == before


@pytest.mark.expects_warnings(SET_ASIDE)
def test_what_was_set_aside_is_never_overwritten(place: Place) -> None:
    for number in range(3):
        place.path.write_bytes(b"foreign %d" % number)
        place.path.chmod(0o600)
        assert place.left() == []

    aside = [place.folder / f"associations.store.set-aside-{number}" for number in (1, 2, 3)]
    assert [each.read_bytes() for each in aside] == [b"foreign 0", b"foreign 1", b"foreign 2"]


def test_when_too_much_was_set_aside_somebody_has_to_look(place: Place) -> None:
    for number in range(1, MAX_SET_ASIDE + 1):
        (place.folder / f"associations.store.set-aside-{number}").touch()
    place.path.write_bytes(b"foreign")
    place.path.chmod(0o600)

    with pytest.raises(StartError, match="was set aside 1000 times already"), place.open():
        pass

    assert place.path.read_bytes() == b"foreign"


def test_a_file_that_cannot_be_set_aside_is_an_error(place: Place) -> None:
    place.path = place.folder / ("a" * 250)
    place.path.write_bytes(b"foreign")
    place.path.chmod(0o600)

    with pytest.raises(StartError, match="cannot be set aside: File name too long"), place.open():
        pass

    assert place.path.read_bytes() == b"foreign"


@pytest.mark.expects_warnings(SET_ASIDE)
def test_of_many_that_set_a_file_aside_at_once_one_owns_the_next(place: Place) -> None:
    for number in range(10):
        place.path.write_bytes(b"foreign")
        place.path.chmod(0o600)
        together = threading.Barrier(6, timeout=30.0)

        def begin(together: threading.Barrier = together) -> bool:
            together.wait()
            try:
                with place.open():
                    together.wait()
            except StartError:
                together.wait()
                return False
            return True

        with ThreadPoolExecutor(together.parties) as threads:
            owning = [threads.submit(begin) for _ in range(together.parties)]
        assert [each.result() for each in owning].count(True) == 1
        assert place.files == {
            "associations.store",
            *(f"associations.store.set-aside-{aside + 1}" for aside in range(number + 1)),
        }


class Moving(PosixPath):
    """A file that is gone by the time it is looked at for the third time."""

    looks = 0

    def __fspath__(self) -> str:
        self.looks += 1
        if self.looks == 3:
            self.unlink()
        return super().__fspath__()


def test_a_file_that_is_set_aside_before_it_is_locked_is_not_taken_for_the_new_one(
    place: Place,
) -> None:
    place.fill()
    file = OwnedFile(Moving(place.path))
    with place.path.open("rb") as before:
        file.open()

        assert not os.path.sameopenfile(before.fileno(), file.descriptor)
    assert os.fstat(file.descriptor).st_size == 0
    file.close()
    file.close()


class Fleeting(PosixPath):
    """A file that is another one whenever it is looked at."""

    def __fspath__(self) -> str:
        name = super().__fspath__()
        Path(name).unlink(missing_ok=True)
        Path(name).touch(0o600)
        return name


def test_a_file_that_is_always_another_one_is_an_error(place: Place) -> None:
    with pytest.raises(StartError, match="is another one each time"):
        OwnedFile(Fleeting(place.path)).open()


# --- what is no file of ours at all


def test_a_symbolic_link_is_not_followed(place: Place) -> None:
    target = place.folder / "target"
    target.write_bytes(b"somebody's")
    place.path.symlink_to(target)

    with pytest.raises(StartError, match="is not a regular file"), place.open():
        pass

    assert target.read_bytes() == b"somebody's"
    assert place.path.is_symlink()


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket"])
def test_only_a_regular_file_is_opened(place: Place, kind: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        match kind:
            case "folder":
                place.path.mkdir()
            case "pipe":
                os.mkfifo(place.path)
            case "socket":
                listener.bind(str(place.path))
        with pytest.raises(StartError, match="is not a regular file"), place.open():
            pass

    assert place.files == {"associations.store"}


def test_a_file_that_cannot_be_opened_is_an_error(place: Place) -> None:
    place.path = place.folder / "missing" / "associations.store"

    with pytest.raises(StartError, match="cannot be opened: No such file") as caught, place.open():
        pass

    assert "dtls.association_store" in caught.value.hint


# --- keys that cannot be had


class NoKeys(Keys):
    def newest_key_id(self) -> bytes:
        raise KeyFileError("key file 'registry.key' is missing")

    def derive_key(self, key_id: bytes, salt: bytes) -> bytes | None:
        raise KeyFileError("key file 'registry.key' is missing")


def test_without_the_key_file_nothing_is_set_aside(place: Place) -> None:
    before = place.fill()
    for _ in range(2):
        with pytest.raises(KeyFileError), place.open(keys=NoKeys()):
            pass

    assert place.files == {"associations.store"}
    assert place.left() == before


def test_a_new_file_without_a_key_begins_when_there_is_one(place: Place) -> None:
    with pytest.raises(KeyFileError), place.open(keys=NoKeys()):
        pass

    assert place.left() == []


class ForgetfulKeys(Keys):
    def derive_key(self, key_id: bytes, salt: bytes) -> bytes | None:
        return None


@pytest.mark.expects_warnings(SET_ASIDE)
def test_a_new_file_that_cannot_be_trusted_is_an_error(place: Place) -> None:
    with pytest.raises(StartError, match="although it is new"), place.open(keys=ForgetfulKeys()):
        pass


# --- boots


def test_the_boot_of_this_machine_is_known() -> None:
    assert read_boot_id() == read_boot_id()


def test_where_the_boot_is_not_told_each_process_has_its_own(tmp_path: Path) -> None:
    assert read_boot_id(tmp_path / "missing") != read_boot_id(tmp_path / "missing")


def test_boots_are_told_apart() -> None:
    values = {boot_value(f"boot {number}") for number in range(100)}

    assert len(values) == 100
    assert all(0 < value <= f.MAX_VALUE for value in values)
