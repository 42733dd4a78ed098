"""A registry in one SQLite file, shared by a running gateway and the command line.

Look-ups run inline, on a connection that only reads: in WAL mode no writer holds it up, and a
row of a million is found in about 8 us. A gateway's own writes run in a thread, since they may
wait for another process's transaction.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from coapgate.errors import RegistryError, RegistryUnavailable
from coapgate.model import (
    AnchorState,
    Batch,
    Device,
    DeviceId,
    PskCredential,
    PskState,
    Tenant,
    TrustAnchor,
)
from coapgate.registry import (
    batch_rows,
    bulk,
    changes,
    held,
    psk,
    reading,
    refusals,
    rotation,
    schema,
    writing,
)
from coapgate.registry.base import (
    MAX_USES,
    USE_INTERVAL,
    BadLine,
    CertificateEntry,
    Change,
    DeviceEntry,
    HeldRequest,
    NewDevice,
    PskEntry,
    RevokedCertificate,
)
from coapgate.registry.batches import derive_key
from coapgate.registry.first_contacts import FirstContacts
from coapgate.registry.snapshot import Snapshot
from coapgate.registry.vault import Vault

WRITE_TIMEOUT = 2.0
"""Seconds a write waits for another process's transaction."""

_READ_TIMEOUT = 0.05  # seconds; a WAL reader waits only while another process opens or closes it

_ASSOCIATIONS = b"coapgate association store"

_T = TypeVar("_T")


class SqliteRegistry:
    """`Registry` and `Administration` in a file.

    Mutable: what it has in memory (`snapshot`), and the uses of certificates and the first contacts
    that wait to be written.
    """

    def __init__(
        self,
        path: Path,
        writer: sqlite3.Connection,
        reader: sqlite3.Connection,
        vault: Vault,
        wall: Callable[[], float],
        refresh_interval: float,
        clock: Callable[[], float],
    ) -> None:
        """Use `open`."""
        self._path = path
        self._writer = writer
        self._lock = threading.Lock()  # of the writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="registry")
        self._reader = reader
        self._cursor = reader.cursor()
        self._vault = vault
        self._wall = wall
        self._snapshot = Snapshot(path, reader, vault, refresh_interval, clock)
        self._uses: dict[tuple[bytes, str], float] = {}
        self._first_contacts = FirstContacts(self._writing)

    @classmethod
    def open(
        cls,
        url: str,
        key_file: Path,
        base: Path,
        *,
        create: bool = True,
        verify_key_file: bool = True,
        write_timeout: float = WRITE_TIMEOUT,
        refresh_interval: float = 0.0,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Open the registry at `sqlite:///file.db` (relative to `base`), and bring it up to date.

        With `create` false a registry that does not exist is an error. `verify_key_file` reads
        the key file now; without, it is read when a secret is to be read or written. What
        `max_keys_per_identity` answers is at most `refresh_interval` seconds old: every handshake
        asks, and to look costs six system calls.

        Raises RegistryError, of which RegistryUnavailable and KeyFileError are kinds.
        """
        path = schema.parse_url(url, base)
        writer = schema.connect(path, create=create, busy_timeout=write_timeout)
        try:
            vault = Vault(key_file, reading.registry_id(writer))
            if verify_key_file:
                vault.verify(writer)
            reader = schema.connect_reader(path, _READ_TIMEOUT)
        except sqlite3.Error as error:
            writer.close()
            raise schema.unavailable(error, path) from error
        except BaseException:
            writer.close()
            raise
        return cls(path, writer, reader, vault, wall, refresh_interval, clock)

    @property
    def path(self) -> Path:
        """The database's file."""
        return self._path

    def close(self) -> None:
        """Waits for a write that is under way, `write_timeout` at most."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._first_contacts.cancel()
        self._reader.close()
        self._writer.close()  # last, so that it empties the WAL

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # What a gateway asks.

    async def find_psk(self, identity: bytes) -> tuple[PskCredential, ...]:
        try:
            rows = self._cursor.execute(reading.LOOK_UP, (identity,)).fetchall()
        except sqlite3.Error as error:
            raise schema.unavailable(error, self._path) from error
        version, is_removed, number = rows[0][:3]
        self._snapshot.see_batches(version)
        try:
            if number is None:
                derived = self._snapshot.derive(identity)
                if derived is None or is_removed:
                    return ()
                return (derived.credential(identity),)
            return tuple([self._credential(identity, *row[2:]) for row in rows])
        except RegistryError as error:  # the key file, or a row that was tampered with
            raise RegistryUnavailable(str(error), error.hint) from error

    async def find_psk_number(self, number: int) -> PskCredential | None:
        try:
            row = self._cursor.execute(reading.PSK_OF_NUMBER, (number,)).fetchone()
        except sqlite3.Error as error:
            raise schema.unavailable(error, self._path) from error
        return _without_secret(number, *row) if row else None

    async def promote(self, number: int, grace_time: float) -> bool:
        return await self._in_thread(self._promote, number, grace_time)

    async def register_derived(self, credential: PskCredential) -> tuple[PskCredential, bool]:
        number, is_new = await self._first_contact(
            lambda connection: rotation.register_derived(connection, credential, self._wall())
        )
        registered = await self.find_psk_number(number)
        assert registered is not None, "what was registered just now is there"
        return registered, is_new

    async def find_device(self, tenant: Tenant, device: DeviceId) -> Device | None:
        with self._reading() as connection:
            return reading.find_device(connection, tenant, device)

    async def find_certificate_device(self, key_id: bytes, value: str) -> Device | None:
        try:  # without `_reading`: every handshake by a certificate asks
            return reading.find_certificate_device(self._reader, key_id, value)
        except sqlite3.Error as error:
            raise schema.unavailable(error, self._path) from error

    def held_requests(self, node: int) -> list[HeldRequest]:
        with self._reading() as connection:
            return held.load(connection, node)

    async def change_held_requests(
        self,
        node: int,
        added: Iterable[HeldRequest],
        concluded: Iterable[tuple[int, str]],
        removed: Iterable[int],
    ) -> None:
        changes = (node, list(added), list(concluded), list(removed))
        await self._in_thread(self._change_held_requests, *changes)

    async def provision(
        self, anchor: TrustAnchor, device: DeviceId, value: str, tenant: Tenant | None = None
    ) -> Device:
        tenant = anchor.tenant if tenant is None else tenant
        refusals.check_device(Device(tenant, device))
        return await self._first_contact(
            lambda connection: writing.provision(
                connection, anchor, device, value, tenant, self._wall()
            )
        )

    async def anchors(self) -> tuple[TrustAnchor, ...]:
        return self._snapshot.anchors()

    def max_keys_per_identity(self) -> int:
        return self._snapshot.max_keys()

    async def disabled_anchors(self) -> frozenset[bytes]:
        return self._snapshot.disabled()

    async def revoked_certificates(self) -> tuple[RevokedCertificate, ...]:
        return self._snapshot.revoked()

    def note_use(self, key_id: bytes, value: str) -> None:
        if len(self._uses) < MAX_USES:
            self._uses[key_id, value] = self._wall()

    async def write_uses(self) -> int:
        uses, self._uses = self._uses, {}
        try:
            return await self._in_thread(self._write_uses, uses) if uses else 0
        except RegistryError:
            self._uses = uses | self._uses  # another time; newer ones count
            raise

    def newest_change(self) -> int:
        return self._snapshot.newest_change()

    def changes(self, after: int) -> tuple[Change, ...] | None:
        return self._snapshot.changes(after)

    # What an association store asks, once at the start of a gateway.

    def newest_key_id(self) -> bytes:
        """Which key of the key file to derive from, in this registry; 8 octets.

        Another registry beside the same key file knows none of this one's ids. The file is made
        if there is none, unless the registry holds a secret that needs the one there was.

        Raises KeyFileError, RegistryUnavailable.
        """
        with self._writing() as connection:
            self._vault.read(connection, create=True)
        newest = self._vault.newest_root
        assert newest is not None, "a key file holds a key"
        return newest

    def derive_key(self, key_id: bytes, salt: bytes) -> bytes | None:
        """The key (32 octets) that associations are encrypted under; None: that id is unknown.

        `key_id` is what `newest_key_id` of this registry says, or said, of any key that is in the
        key file, which is never made here.

        Raises KeyFileError, RegistryUnavailable.
        """
        key = self._vault.derive(key_id, salt, _ASSOCIATIONS)
        if key is None:
            # Not read yet, or not since a key was added to it.
            with self._writing() as connection:
                self._vault.read(connection, create=False)
            key = self._vault.derive(key_id, salt, _ASSOCIATIONS)
        return key

    # What the command line does.

    def add_device(self, device: Device) -> None:
        refusals.check_device(device)
        with self._writing() as connection:
            writing.add_device(connection, device, self._wall())

    def remove_device(self, tenant: Tenant, device: DeviceId) -> None:
        with self._writing() as connection:
            batch_rows.keep_identities(connection, tenant, device)
            writing.remove_device(connection, tenant, device)

    def enable_device(self, tenant: Tenant, device: DeviceId, *, enabled: bool) -> None:
        with self._writing() as connection:
            writing.enable_device(connection, tenant, device, enabled=enabled)

    def get_device(self, tenant: Tenant, device: DeviceId) -> DeviceEntry:
        with self._reading() as connection:
            return reading.get_device_entry(connection, tenant, device)

    def devices(self, tenant: Tenant | None = None) -> Iterator[DeviceEntry]:
        with self._reading() as connection:
            yield from reading.device_entries(connection, tenant)

    def add_psk(
        self,
        tenant: Tenant,
        device: DeviceId,
        identity: bytes,
        secret: bytes,
        *,
        create_device: bool = False,
        state: PskState = PskState.ACTIVE,
        follows: bytes | None = None,
        not_before: float | None = None,
        not_after: float | None = None,
        allow_weak: bool = False,
    ) -> PskEntry:
        refusals.check_device(Device(tenant, device))
        refusals.check_validity(not_before, not_after)
        psk.check_identity(identity)
        psk.check_key(secret, allow_weak=allow_weak)
        now = self._wall()
        entry = PskEntry(
            0, tenant, device, identity, str(state), now, not_before, not_after, follows=follows
        )
        with self._writing() as connection:
            return rotation.add_psk(
                connection, self._vault, entry, secret, create_device=create_device
            )

    def revoke_psks(
        self, *, number: int | None = None, identity: bytes | None = None
    ) -> tuple[PskEntry, ...]:
        with self._writing() as connection:
            return rotation.revoke(connection, number, identity, self._wall())

    def add_batch(self, batch: Batch, secret: bytes, *, allow_weak: bool = False) -> Batch:
        refusals.check_batch(batch)
        psk.check_key(secret, allow_weak=allow_weak)
        with self._writing() as connection:
            return batch_rows.add(connection, self._vault, batch, secret, self._wall())

    def batches(self) -> tuple[Batch, ...]:
        with self._reading() as connection:
            return batch_rows.every(connection)

    def get_batch(self, name: str) -> Batch:
        with self._reading() as connection:
            return batch_rows.get(connection, name)

    def get_batch_secret(self, name: str) -> bytes:
        with self._reading() as connection:
            return batch_rows.get_secret(connection, self._vault, name)

    def batch_psks(self, name: str) -> Iterator[PskEntry]:
        with self._reading() as connection:
            number = batch_rows.get(connection, name).number
            yield from reading.psk_entries(connection, None, None, number)

    def revoke_batch(self, name: str) -> Batch:
        with self._writing() as connection:
            return batch_rows.revoke(connection, name)

    def removed_identities(self, name: str) -> Iterator[bytes]:
        with self._reading() as connection:
            yield from batch_rows.removed(connection, batch_rows.get(connection, name).number)

    def find_removed(self, identity: bytes) -> str | None:
        with self._reading() as connection:
            return batch_rows.find_removed(connection, identity)

    def restore_identity(self, identity: bytes) -> str:
        with self._writing() as connection:
            return batch_rows.restore(connection, identity)

    def psks(
        self, tenant: Tenant | None = None, device: DeviceId | None = None
    ) -> Iterator[PskEntry]:
        with self._reading() as connection:
            yield from reading.psk_entries(connection, tenant, device)

    def add_anchor(self, anchor: TrustAnchor) -> None:
        refusals.check_anchor(anchor)
        with self._writing() as connection:
            writing.add_anchor(connection, anchor, self._wall())

    def remove_anchor(self, name: str) -> TrustAnchor:
        with self._writing() as connection:
            return writing.remove_anchor(connection, name)

    def get_anchor(self, name: str) -> TrustAnchor:
        with self._reading() as connection:
            return reading.get_anchor(connection, name)

    def set_anchor_state(
        self, name: str, state: AnchorState, *, was: TrustAnchor | None = None
    ) -> TrustAnchor:
        with self._writing() as connection:
            return writing.set_anchor_state(connection, name, state, was)

    def change_anchor(self, anchor: TrustAnchor) -> None:
        refusals.check_anchor(anchor)
        with self._writing() as connection:
            writing.change_anchor(connection, anchor)

    def anchor_devices(self, key_id: bytes, used_since: float | None = None) -> int:
        with self._reading() as connection:
            return reading.anchor_devices(connection, key_id, used_since)

    def revoke_certificate(self, revoked: RevokedCertificate) -> bool:
        with self._writing() as connection:
            return changes.revoke(connection, revoked, self._wall())

    def revoked_certificates_all(self) -> tuple[RevokedCertificate, ...]:
        with self._reading() as connection:
            return tuple(changes.revoked(connection).values())

    def restore_certificate(self, revoked: RevokedCertificate) -> bool:
        with self._writing() as connection:
            return changes.restore(connection, revoked)

    def anchors_all(self) -> tuple[TrustAnchor, ...]:
        with self._reading() as connection:
            return reading.anchors(connection)

    def trust(
        self,
        tenant: Tenant,
        device: DeviceId,
        anchor: str,
        value: str,
        *,
        create_device: bool = False,
    ) -> bool:
        refusals.check_device(Device(tenant, device))
        refusals.check_name(value, "certificate value")
        with self._writing() as connection:
            return writing.trust(
                connection,
                tenant,
                device,
                anchor,
                value,
                self._wall(),
                create_device=create_device,
            )

    def distrust(self, tenant: Tenant, device: DeviceId, anchor: str, value: str) -> None:
        with self._writing() as connection:
            writing.distrust(connection, tenant, device, anchor, value)

    def certificates(self, tenant: Tenant, device: DeviceId) -> tuple[CertificateEntry, ...]:
        with self._reading() as connection:
            return reading.certificate_entries(connection, tenant, device)

    def import_devices(
        self,
        lines: Iterable[NewDevice | BadLine],
        progress: Callable[[int], None] | None = None,
    ) -> int:
        # The key first, so that what waits on disk for the one big transaction is encrypted.
        with self._writing() as connection:
            self._vault.prepare(connection, self._wall())
        with self._lock, self._translated(), bulk.staged(self._writer) as connection:
            problems = bulk.stage(connection, self._vault, lines, progress)
            problems += bulk.repeated(connection)
            with self._transaction():
                problems += bulk.conflicting(connection)
                if problems:
                    raise refusals.import_refused(problems)
                return bulk.insert(connection, self._wall())

    def _credential(
        self,
        identity: bytes,
        number: int,
        wrapped: bytes,
        state: str,
        not_before: float | None,
        not_after: float | None,
        retiring_until: float | None,
        batch: int | None,
        tenant: Tenant,
        device: DeviceId,
        enabled: int,
        batch_secret: bytes | None,
        batch_name: str | None,
        batch_tenant: str | None,
    ) -> PskCredential:
        if batch_secret is not None and not wrapped:
            assert batch_name is not None
            assert batch_tenant is not None
            master_key = batch_rows.unwrap(self._vault, batch_secret, batch_tenant, batch_name)
            secret = derive_key(master_key, identity)
        else:
            secret = self._vault.unwrap(wrapped, tenant, device, identity)
        return PskCredential(
            number,
            tenant,
            device,
            identity,
            secret,
            state,
            not_before,
            not_after,
            enabled == 1,
            retiring_until,
            batch,
        )

    async def _in_thread(self, call: Callable[..., _T], *arguments: object) -> _T:
        return await _outcome(self._thread.submit(call, *arguments))

    async def _first_contact(self, contact: Callable[[sqlite3.Connection], _T]) -> _T:
        registered = self._first_contacts.add(contact)
        self._thread.submit(self._first_contacts.write)
        return await _outcome(registered)

    def _change_held_requests(
        self,
        node: int,
        added: list[HeldRequest],
        concluded: list[tuple[int, str]],
        removed: list[int],
    ) -> None:
        with self._writing() as connection:
            held.change(connection, node, added, concluded, removed)

    def _promote(self, number: int, grace_time: float) -> bool:
        with self._writing() as connection:
            return rotation.promote(connection, number, self._wall() + grace_time)

    def _write_uses(self, uses: dict[tuple[bytes, str], float]) -> int:
        with self._writing() as connection:
            return writing.write_uses(connection, uses, USE_INTERVAL)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._translated():
            yield self._reader

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One write transaction, undone if it does not end well."""
        with self._lock, self._translated(), self._transaction():
            yield self._writer

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:  # SQLite ends it itself when the disk is full
                self._writer.execute("ROLLBACK")
            raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise schema.unavailable(error, self._path) from error


async def _outcome(begun: Future[_T]) -> _T:
    """Of a write in the thread. One that is under way is waited for, `write_timeout` at most, also
    by whoever is cancelled: it may end well, and nobody else would tell of it."""
    written = asyncio.wrap_future(begun)
    try:
        return await asyncio.shield(written)
    except asyncio.CancelledError:
        if begun.cancelled() or begun.cancel():
            raise
        return await written


def _without_secret(
    number: int,
    tenant: Tenant,
    device: DeviceId,
    identity: bytes,
    state: str,
    not_before: float | None,
    not_after: float | None,
    enabled: int,
    retiring_until: float | None,
    batch: int | None,
) -> PskCredential:
    return PskCredential(
        number,
        tenant,
        device,
        identity,
        b"",
        state,
        not_before,
        not_after,
        enabled == 1,
        retiring_until,
        batch,
    )
