"""Files of revocation lists that come, change, break and become stale."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from coapgate import revocation_reading
from coapgate.errors import RegistryUnavailable
from coapgate.model import DEFAULT_TENANT, DeviceIdSource, TrustAnchor
from coapgate.pki.anchors import parse_anchor
from coapgate.pki.factory import DAY, FactoryCa
from coapgate.pki.revocation import RevocationList, parse_lists
from coapgate.pki.revoked import serial_mark
from coapgate.revocation_lists import RevocationLists
from coapgate.revocation_reading import MAX_IN_THREAD
from tests.waiting import until

WALL = 1_800_000_000.0
ROOT = FactoryCa.create("Acme Root", wall=WALL)
OTHER = FactoryCa.create("Acme Root", wall=WALL)


def trust(ca: FactoryCa, name: str, *files: str) -> TrustAnchor:
    anchor = parse_anchor(
        ca.certificate_pem,
        name=name,
        tenant=DEFAULT_TENANT,
        device_id_source=DeviceIdSource.CN,
        auto_provision=True,
        wall=WALL,
    )
    return replace(anchor, crl_files=files)


def signed(*serials: int, by: FactoryCa = ROOT, number: int = 1, until: float = DAY) -> bytes:
    revoked = dict.fromkeys(serials, WALL)
    given = by.sign_list(revoked, number=number, next_update=WALL + until)
    return given.public_bytes(Encoding.PEM)


class House:
    """A folder, anchors that name files in it, and what is said of their lists."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.anchors = [trust(ROOT, "acme", "acme.crl")]
        self.fault: Exception | None = None
        self.wall = WALL
        self.used: list[tuple[bytes, list[int]]] = []
        self.files: set[str] = set()
        self.in_force: list[RevocationList] = []
        self.lists = RevocationLists(folder, self.find_anchors, self.use, lambda: self.wall)

    async def find_anchors(self) -> tuple[TrustAnchor, ...]:
        if self.fault is not None:
            raise self.fault
        return tuple(self.anchors)

    def use(self, key_id: bytes, lists: Mapping[str, tuple[RevocationList, ...]]) -> None:
        self.files = set(lists)
        self.in_force = [each for file in lists.values() for each in file]
        counts = [len(each.revoked) for file in lists.values() for each in file]
        self.used.append((key_id, counts))

    def write(self, octets: bytes, name: str = "acme.crl") -> None:
        new = self.folder / "new"
        new.write_bytes(octets)
        new.rename(self.folder / name)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def test_a_list_is_read_once_and_again_when_its_file_changes(house: House) -> None:
    key_id = house.anchors[0].key_id
    house.write(signed(7))
    await house.lists.look()
    await house.lists.look()
    assert house.used == [(key_id, [1])]

    house.write(signed(7, 8, number=2))
    await house.lists.look()
    assert house.used[1:] == [(key_id, [2])]


async def test_reading_again_what_says_the_same_changes_nothing(house: House) -> None:
    house.write(signed(7))
    await house.lists.look()
    await house.lists.look(again=True)

    assert len(house.used) == 1


async def test_a_reload_reads_what_does_not_look_changed_too(house: House) -> None:
    file = house.folder / "acme.crl"
    house.write(signed(7))
    await house.lists.look()
    status, size = file.stat(), file.stat().st_size
    others = (signed(8, number=number) for number in range(2, 100))
    file.write_bytes(next(other for other in others if len(other) == size))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

    await house.lists.look()
    assert len(house.used) == 1
    await house.lists.look(again=True)
    assert len(house.used) == 2


BROKEN: dict[str, Callable[[], bytes]] = {
    "cut short": lambda: signed(7, 8)[:200],
    "no list": lambda: b"good morning",
    "empty": lambda: b"",
    "of a stranger": lambda: signed(7, 8, by=OTHER),
}


@pytest.mark.expects_warnings("revocation list kept")
@pytest.mark.parametrize("fault", BROKEN)
async def test_a_file_that_cannot_be_used_leaves_the_old_list_in_force_and_is_told_of_once(
    house: House, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    house.write(signed(7))
    await house.lists.look()
    house.write(BROKEN[fault]())
    for _ in range(3):
        await house.lists.look()

    assert [used[1] for used in house.used] == [[1]]
    assert house.lists.failures == 1
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert record.__dict__["anchor"] == "acme"
    assert "acme.crl" in record.__dict__["detail"]


@pytest.mark.expects_warnings("revocation list kept")
async def test_an_older_list_does_not_replace_a_newer_one(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.write(signed(7, number=5))
    await house.lists.look()
    house.write(signed(number=4))
    await house.lists.look()

    assert [used[1] for used in house.used] == [[1]]
    assert house.lists.failures == 1
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert "number 4, is older than the one in force, number 5" in record.__dict__["detail"]
    # Of several in one file the newest counts.
    house.write(signed(7, number=5) + signed(number=4))
    await house.lists.look()
    house.write(signed(number=3) + signed(7, 8, number=6))
    await house.lists.look()
    assert house.lists.failures == 1


async def test_a_large_list_is_read_by_a_process_of_its_own(house: House) -> None:
    serials = range(1 << 80, (1 << 80) + MAX_IN_THREAD // 30)
    house.write(signed(*serials))
    await house.lists.look()
    await house.lists.look(again=True)

    assert [used[1] for used in house.used] == [[len(serials)]]
    (found,) = house.in_force
    (parsed,) = parse_lists(signed(*serials), house.anchors[0], WALL)
    assert found == parsed
    assert found.revoked == parsed.revoked
    assert found.names(serial_mark(serials[-1]))
    assert not found.names(serial_mark(1))


@pytest.mark.expects_warnings("revocation list cannot be used")
async def test_what_is_wrong_with_a_large_file_is_told(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.write(b"x" * (MAX_IN_THREAD + 1))
    await house.lists.look()

    (record,) = caplog.records
    assert "no revocation list can be read from it" in record.__dict__["detail"]
    assert "openssl crl" in record.__dict__["hint"]


@pytest.mark.expects_warnings("revocation list cannot be used")
async def test_a_process_that_takes_too_long_is_ended(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(revocation_reading, "READ_TIME", 0.0)
    house.write(b"x" * (MAX_IN_THREAD + 1))
    await house.lists.look()

    (record,) = caplog.records
    assert "the process that reads it failed" in record.__dict__["detail"]


@pytest.mark.expects_warnings("revocation list kept")
async def test_a_file_that_is_removed_leaves_its_list_in_force(house: House) -> None:
    house.write(signed(7))
    await house.lists.look()
    (house.folder / "acme.crl").unlink()
    await house.lists.look()

    assert len(house.used) == 1
    assert house.lists.failures == 1


@pytest.mark.expects_warnings("revocation list cannot be used")
async def test_a_file_that_is_not_there_yet_is_read_when_it_comes(house: House) -> None:
    await house.lists.look()
    assert house.used == []
    assert house.lists.count_stale() == 1

    house.write(signed())
    await house.lists.look()
    assert [used[1] for used in house.used] == [[0]]
    assert house.lists.count_stale() == 0


async def test_lists_are_told_of_by_anchor_and_of_all_its_files(house: House) -> None:
    house.anchors = [trust(ROOT, "acme", "a.crl", "b.crl"), trust(OTHER, "other", "c.crl")]
    house.write(signed(1), "a.crl")
    house.write(signed(1, 2, number=2), "b.crl")
    house.write(signed(3, by=OTHER), "c.crl")
    await house.lists.look()
    house.used.clear()

    house.write(signed(1, 4, 5, number=3), "a.crl")
    await house.lists.look()

    assert house.used == [(house.anchors[0].key_id, [3, 2])]


async def test_an_anchor_that_goes_or_names_no_file_any_more_has_no_list(house: House) -> None:
    key_id = house.anchors[0].key_id
    house.write(signed(7))
    await house.lists.look()
    house.anchors = [trust(ROOT, "acme")]
    await house.lists.look()

    assert house.used == [(key_id, [1]), (key_id, [])]
    assert house.lists.next_updates() == {}


@pytest.mark.expects_warnings("revocation list cannot be used")
async def test_the_lists_of_an_anchor_stay_in_force_until_all_its_new_files_were_read(
    house: House,
) -> None:
    key_id = house.anchors[0].key_id
    house.write(signed(7))
    await house.lists.look()
    house.anchors = [trust(ROOT, "acme", "new.crl", "more.crl")]
    await house.lists.look()
    assert house.used == [(key_id, [1])]

    house.write(signed(7, 8), "new.crl")
    await house.lists.look()
    assert house.files == {"acme.crl", "new.crl"}
    house.write(signed(7, 8, 9), "more.crl")
    await house.lists.look()
    assert house.files == {"new.crl", "more.crl"}


@pytest.mark.expects_warnings("revocation list cannot be used")
async def test_a_file_that_broke_while_its_anchor_was_disabled_counts_as_never_read(
    house: House,
) -> None:
    anchors = house.anchors
    house.write(signed(7))
    await house.lists.look()
    house.anchors = []
    await house.lists.look()
    assert house.used[1:] == [(anchors[0].key_id, [])]
    assert house.files == set()

    house.anchors = anchors
    house.write(b"half")
    await house.lists.look()
    assert house.files == set()
    assert house.lists.count_stale() == 1


async def test_while_the_registry_is_away_what_is_known_stays(house: House) -> None:
    house.write(signed(7))
    await house.lists.look()
    house.fault = RegistryUnavailable("database is locked")
    house.write(signed(7, 8, number=2))
    await house.lists.look()

    assert [used[1] for used in house.used] == [[1]]
    assert house.lists.next_updates() == {"acme": WALL + DAY}


@pytest.mark.expects_warnings("revocation list is stale")
async def test_a_list_that_becomes_stale_is_told_of_once_a_day_and_counted(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.write(signed(7, until=60.0))
    await house.lists.look()
    assert house.lists.count_stale() == 0

    house.wall += 61
    for _ in range(3):
        await house.lists.look()
    told = [each for each in caplog.records if each.msg == "revocation list is stale"]
    assert len(told) == 1
    assert house.lists.count_stale() == 1

    house.wall += DAY
    await house.lists.look()
    told = [each for each in caplog.records if each.msg == "revocation list is stale"]
    assert len(told) == 2


async def test_a_reload_reads_at_once(house: House) -> None:
    house.write(signed(7))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(house.lists.run())
        await asyncio.sleep(0)
        house.lists.read_again()
        await until(lambda: bool(house.used), "the list is read", deadline=0.9)
        running.cancel()


@pytest.mark.expects_warnings("revocation lists not looked at")
async def test_a_mistake_of_ours_does_not_end_the_watch(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.fault = ZeroDivisionError()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(house.lists.run())
        for count in (1, 2):
            house.lists.read_again()
            await until(lambda: house.lists.crashes == count, "the look fails")  # noqa: B023
        assert len(caplog.records) == 1
        house.fault = None
        house.write(signed(7))
        house.lists.read_again()
        await until(lambda: bool(house.used), "the list is read")
        running.cancel()
