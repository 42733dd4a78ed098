"""The files of revocation lists: read when they change, and the last good one stays in force."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from coapgate.errors import CertificateError, RegistryError
from coapgate.logs import Seldom
from coapgate.model import TrustAnchor
from coapgate.pki.revocation import RevocationList
from coapgate.revocation_reading import read_lists

LOOK_INTERVAL = 1.0
"""Seconds between two looks at the files."""
STALE_INTERVAL = 86_400.0
"""Seconds between two lines about a list that is stale."""

log = logging.getLogger(__name__)

_Place = tuple[bytes, str]
"""A file as an anchor names it: the anchor's key id, and the path."""


_Seen = tuple[int, int, int]
"""What tells whether a file was replaced: when it was written, its inode, its size."""


@dataclass(slots=True)
class _File:
    """What a file was when it was last tried, and the lists of when it was last good: None, if it
    never was."""

    seen: _Seen | None = None
    anchor: bytes = b""
    digest: bytes = b""
    lists: tuple[RevocationList, ...] | None = None


class RevocationLists:
    """Watches the `crl_files` of all anchors, relative to `base`.

    `use(key_id, lists)` is told whenever those of an anchor are others than before: of each of its
    files that was good at least once. When an anchor names other files, the lists of the old ones
    stay in force until all of the new ones were good.

    Mutable: the files as they were last seen, and the anchors. Call `look`, with `again` to
    read what has not changed too, or let `run` do so.
    """

    def __init__(
        self,
        base: Path,
        anchors: Callable[[], Awaitable[tuple[TrustAnchor, ...]]],
        use: Callable[[bytes, Mapping[str, tuple[RevocationList, ...]]], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.anchors: tuple[TrustAnchor, ...] = ()
        """Those that were believed at the last look."""
        self.failures = 0
        """Files that could not be used, each counted when it appeared."""
        self.crashes = 0
        """Looks ended by an exception: mistakes of ours."""
        self._base = base
        self._find_anchors = anchors
        self._use = use
        self._wall = wall
        self._files: dict[_Place, _File] = {}
        self._asked = asyncio.Event()
        self._seldom = Seldom(STALE_INTERVAL, max_kinds=1024)

    def read_again(self) -> None:
        """Read all files at the next turn of the loop, whether they look changed or not."""
        self._asked.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_INTERVAL):
                    await self._asked.wait()
            again = self._asked.is_set()
            self._asked.clear()
            try:
                await self.look(again=again)
            except Exception as error:
                self.crashes += 1
                if count := self._seldom.count("crash", self._wall()):
                    fields = {"count": count}
                    log.error("revocation lists not looked at", exc_info=error, extra=fields)

    async def look(self, *, again: bool = False) -> None:
        """See which files have changed, and read those; the loop goes on meanwhile."""
        try:
            self.anchors = await self._find_anchors()
        except RegistryError:
            return  # `following` says so; what is known stays in force
        named = {
            (anchor.key_id, file): anchor for anchor in self.anchors for file in anchor.crl_files
        }
        paths = {place: self._base / place[1] for place in named}
        seen = await asyncio.to_thread(_see, paths)
        changed = set()
        for place, anchor in named.items():
            if await self._is_read(place, anchor, seen[place], again=again):
                changed.add(place[0])
        unread = {place[0] for place in named if self._files[place].lists is None}
        believed = {anchor.key_id for anchor in self.anchors}
        for place in self._files.keys() - named.keys():
            if place[0] not in unread or place[0] not in believed:
                del self._files[place]
                changed.add(place[0])
        for key_id in changed:
            self._use(
                key_id,
                {
                    name: file.lists
                    for (owner, name), file in self._files.items()
                    if owner == key_id and file.lists is not None
                },
            )
        self._complain_of_stale()

    def next_updates(self) -> dict[str, float]:
        """By anchor, when the first of its lists becomes stale (Unix seconds)."""
        updates: dict[str, float] = {}
        for anchor in self.anchors:
            ends = [
                each.next_update
                for file in anchor.crl_files
                for each in self._files.get((anchor.key_id, file), _File()).lists or ()
            ]
            if ends:
                updates[anchor.name] = min(ends)
        return updates

    def count_stale(self) -> int:
        """How many lists in force are stale, and files that were never good."""
        wall = self._wall()
        lists = (each for file in self._files.values() for each in file.lists or ())
        never = sum(file.lists is None for file in self._files.values())
        return never + sum(each.next_update < wall for each in lists)

    async def _is_read(
        self, place: _Place, anchor: TrustAnchor, seen: _Seen | None, *, again: bool
    ) -> bool:
        """Read a file if it has changed; whether there are other lists in it now."""
        path = self._base / place[1]
        file = self._files.get(place)
        if file is None:
            file = self._files[place] = _File()
        elif seen == file.seen and anchor.certificate == file.anchor and not again:
            return False
        known = file.digest if anchor.certificate == file.anchor else b""
        file.seen, file.anchor = seen, anchor.certificate
        try:
            digest, lists = await read_lists(path, anchor, self._wall(), known)
            if lists is not None:
                _require_newer(path, lists, file.lists or ())
        except CertificateError as error:
            self.failures += 1
            never = file.lists is None
            message = "revocation list cannot be used" if never else "revocation list kept"
            fields = {"anchor": anchor.name, "detail": str(error), "hint": error.hint}
            log.error(message, extra=fields)
            return False
        if lists is None:
            return False
        file.lists, file.digest = lists, digest
        revoked = sum(len(each.revoked) for each in lists)
        where = {"anchor": anchor.name, "file": str(path)}
        log.info("revocation list in force", extra=where | {"revoked": revoked})
        return True

    def _complain_of_stale(self) -> None:
        wall = self._wall()
        for anchor in self.anchors:
            for file in anchor.crl_files:
                for each in self._files[anchor.key_id, file].lists or ():
                    kind = (anchor.key_id, file, each.issuer)
                    if each.next_update < wall and self._seldom.count(kind, wall):
                        fields = {"anchor": anchor.name, "file": file, "mode": anchor.crl_mode}
                        log.warning("revocation list is stale", extra=fields)


def _see(paths: Mapping[_Place, Path]) -> dict[_Place, _Seen | None]:
    """What files look like now; None: reading it will say why it cannot be seen."""
    found: dict[_Place, _Seen | None] = {}
    for place, path in paths.items():
        try:
            status = path.stat()
            found[place] = (status.st_mtime_ns, status.st_ino, status.st_size)
        except OSError:
            found[place] = None
    return found


def _newest(lists: Iterable[RevocationList]) -> dict[bytes, RevocationList]:
    """By issuer, its newest list."""
    newest: dict[bytes, RevocationList] = {}
    for each in lists:
        if each.issuer not in newest or each.is_newer(newest[each.issuer]):
            newest[each.issuer] = each
    return newest


def _require_newer(
    path: Path, lists: Iterable[RevocationList], in_force: Iterable[RevocationList]
) -> None:
    """Raises CertificateError if there is a list that its authority has replaced by one in force.

    Whoever can put an old file in the place of a new one would let in whom that revokes.
    """
    known = _newest(in_force)
    for issuer, each in _newest(lists).items():
        last = known.get(issuer)
        if last is not None and last.is_newer(each):
            raise CertificateError(
                f"{str(path)!r}: the list of {each.subject}, number {each.number}, is older than "
                f"the one in force, number {last.number}",
                "put the newest one there; if its authority has begun to count anew, "
                "restart the gateway",
            )
