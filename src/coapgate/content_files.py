"""Files that devices may read: one folder for each tenant, bodies shared by all who read them."""

from __future__ import annotations

import asyncio
import os
import stat
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path

from coapgate.errors import StartError
from coapgate.model import Content, Tenant

MAX_WAITING = 256
"""Reads that wait for the disk; the next is answered 5.03."""

_FORMATS = {".txt": 0, ".xml": 41, ".json": 50, ".cbor": 60}
_OCTETS = 42
"""application/octet-stream: what any other file is."""

_ODD = frozenset(("", ".", ".."))
"""What would lead out of a tenant's folder; names of tenants may be so."""

Version = tuple[int, int, int]


def check_folder(folder: Path) -> None:
    """Raises StartError if there is no such folder, or it cannot be read."""
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        raise StartError(
            f"content.folder cannot be read: {folder}",
            "make a folder that the gateway may read, with a folder for each tenant in it",
        )


class ContentFiles:
    """The files below `folder`/TENANT, read in a thread, one after another.

    Files larger than `max_file` octets are not there. `memory` octets are kept, those that were
    read last. Call `ask`; `run` answers, and is the one task.
    """

    def __init__(self, folder: Path, max_file: int, memory: int) -> None:
        self.size = 0
        """Octets that are kept."""
        self._folder = folder
        self._max_file = max_file
        self._memory = memory
        self._kept: OrderedDict[Path, tuple[Version, Content]] = OrderedDict()
        self._waiting: deque[tuple[Tenant, str, int]] = deque()
        self._work = asyncio.Event()

    def ask(self, tenant: Tenant, name: str, ticket: int) -> bool:
        """Look for a file, its folders joined by `/`; false if too many wait already."""
        if len(self._waiting) >= MAX_WAITING:
            return False
        self._waiting.append((tenant, name, ticket))
        self._work.set()
        return True

    async def run(self, answer: Callable[[int, Content | None], None]) -> None:
        """Answer by ticket; None: there is no such file."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._waiting:
                tenant, name, ticket = self._waiting.popleft()
                answer(ticket, await asyncio.to_thread(self.find, tenant, name))

    def find(self, tenant: Tenant, name: str) -> Content | None:
        """Read a file, if it is not kept or has changed; blocks."""
        if not _ODD.isdisjoint((tenant, *name.split("/"))):
            return None
        try:
            path = (self._folder / tenant / name).resolve(strict=True)
            # Links may lead anywhere in the folder of files, and nowhere else.
            if not path.is_relative_to(self._folder.resolve()):
                return None
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode) or found.st_size > self._max_file:
                    return None
                version = (found.st_ino, found.st_mtime_ns, found.st_size)
                kept = self._kept.get(path)
                if kept is not None and kept[0] == version:
                    self._kept.move_to_end(path)
                    return kept[1]
                payload = file.read(self._max_file + 1)
        except (OSError, ValueError):  # the latter for names that no file can have
            return None
        if len(payload) > self._max_file:
            return None
        content = Content.of(payload, _FORMATS.get(path.suffix, _OCTETS))
        self._keep(path, version, content)
        return content

    def _keep(self, path: Path, version: Version, content: Content) -> None:
        old = self._kept.pop(path, None)
        if old is not None:
            self.size -= len(old[1].payload)
        self._kept[path] = (version, content)
        self.size += len(content.payload)
        while self.size > self._memory:
            _, (_, oldest) = self._kept.popitem(last=False)
            self.size -= len(oldest.payload)
