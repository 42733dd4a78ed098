"""Files that devices may read."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from coapgate.content_files import MAX_WAITING, ContentFiles, check_folder
from coapgate.errors import StartError
from coapgate.model import Content, Tenant

ACME = Tenant("acme")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for tenant in ("acme", "umbrella"):
        (tmp_path / "files" / tenant / "v1").mkdir(parents=True)
    return tmp_path / "files"


def files(folder: Path, max_file: int = 1000, memory: int = 2000) -> ContentFiles:
    return ContentFiles(folder, max_file, memory)


def test_a_file_is_found_with_the_format_of_its_name(folder: Path) -> None:
    for name in ("app.bin", "v1/config.json", "notes.txt", "x"):
        (folder / "acme" / name).write_bytes(b"{}")
    found = files(folder)

    assert found.find(ACME, "app.bin") == Content.of(b"{}", 42)
    assert found.find(ACME, "v1/config.json") == Content.of(b"{}", 50)
    assert found.find(ACME, "notes.txt") == Content.of(b"{}", 0)
    assert found.find(ACME, "x") == Content.of(b"{}", 42)


def test_everybody_who_reads_a_file_shares_its_body(folder: Path) -> None:
    (folder / "acme" / "app.bin").write_bytes(b"x" * 100)
    found = files(folder)
    first, second = found.find(ACME, "app.bin"), found.find(ACME, "app.bin")

    assert first is second
    assert found.size == 100


def test_a_file_that_was_replaced_is_read_anew(folder: Path) -> None:
    file = folder / "acme" / "app.bin"
    file.write_bytes(b"old")
    found = files(folder)
    old = found.find(ACME, "app.bin")
    new_file = folder / "new"
    new_file.write_bytes(b"new")
    os.replace(new_file, file)
    new = found.find(ACME, "app.bin")

    assert (old, new) == (Content.of(b"old", 42), Content.of(b"new", 42))
    assert found.size == 3


@pytest.mark.parametrize(
    "name",
    [
        "none",
        "v1",
        "../umbrella/secret",
        "outside",
        "pipe",
        "large",
        "locked/x",
        "v1/../..",
        "a\0b",
    ],
)
def test_nothing_else_is_found(folder: Path, name: str) -> None:
    (folder / "umbrella" / "secret").write_bytes(b"another's")
    (folder.parent / "outside").write_bytes(b"elsewhere")
    (folder / "acme" / "outside").symlink_to(folder.parent / "outside")
    (folder / "acme" / "large").write_bytes(b"x" * 1001)
    os.mkfifo(folder / "acme" / "pipe")

    assert files(folder).find(ACME, name) is None


@pytest.mark.parametrize("tenant", [".", "..", ""])
def test_no_tenant_is_named_so_that_it_reads_the_files_of_another(
    folder: Path, tenant: str
) -> None:
    (folder / "acme" / "app.bin").write_bytes(b"acme's")

    for name in ("acme/app.bin", "files/acme/app.bin"):
        assert files(folder).find(Tenant(tenant), name) is None


def test_a_link_may_lead_anywhere_within_the_folder(folder: Path) -> None:
    (folder / "shared.bin").write_bytes(b"for all")
    (folder / "acme" / "app.bin").symlink_to("../shared.bin")

    assert files(folder).find(ACME, "app.bin") == Content.of(b"for all", 42)


def test_what_was_read_longest_ago_is_forgotten_when_there_is_no_room(folder: Path) -> None:
    found = files(folder)
    for name in ("a", "b", "c"):
        (folder / "acme" / name).write_bytes(name.encode() * 900)
    first = found.find(ACME, "a")
    found.find(ACME, "b")
    assert found.find(ACME, "a") is first
    found.find(ACME, "c")

    assert found.size == 1800
    assert found.find(ACME, "a") is first, "b was read longest ago"


async def test_reads_are_answered_in_their_order_and_no_more_wait_than_may(folder: Path) -> None:
    (folder / "acme" / "a").write_bytes(b"1")
    found = files(folder)
    taken = [found.ask(ACME, "a" if n % 2 else "b", n) for n in range(MAX_WAITING + 1)]
    assert taken == [True] * MAX_WAITING + [False]
    answers: list[tuple[int, Content | None]] = []
    done = asyncio.Event()

    def answer(ticket: int, content: Content | None) -> None:
        answers.append((ticket, content))
        if len(answers) == MAX_WAITING:
            done.set()

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(found.run(answer))
        await done.wait()
        running.cancel()

    assert [ticket for ticket, _ in answers] == list(range(MAX_WAITING))
    assert answers[:2] == [(0, None), (1, Content.of(b"1", 42))]


def test_a_folder_that_is_not_there_is_told_at_the_start(tmp_path: Path) -> None:
    check_folder(tmp_path)
    with pytest.raises(StartError, match=r"content\.folder cannot be read"):
        check_folder(tmp_path / "nowhere")
