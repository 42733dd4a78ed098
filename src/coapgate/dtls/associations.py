"""The associations of one worker: found by Connection ID, path or id, the longest idle first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from coapgate.dtls.association import FINAL_FLIGHT_LIFETIME, Association
from coapgate.model import Path


class Associations:
    """Every open association by its id; with a Connection ID also by that, else by its path.

    One with a Connection ID is never found by path: a path may have any number of those, and one
    without. Which of them a record is for, its content type says (RFC 9146 section 4).
    """

    __slots__ = ("_by_id", "_final_flights", "by_cid", "by_path")

    def __init__(self) -> None:
        self.by_cid: dict[bytes, Association] = {}
        self.by_path: dict[Path, Association] = {}
        self._by_id: OrderedDict[bytes, Association] = OrderedDict()
        self._final_flights: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Association]:
        """Longest idle first."""
        return iter(self._by_id.values())

    def snapshot(self) -> list[Association]:
        """All there are now, in no order: in 2 ms for 200,000, where walking takes 45."""
        return list(dict.values(self._by_id))

    def find(self, association_id: bytes) -> Association | None:
        return self._by_id.get(association_id)

    @property
    def longest_idle(self) -> Association | None:
        return next(iter(self._by_id.values()), None)

    def add(self, association: Association) -> None:
        """Enter a new one; whoever else has its path without a Connection ID is gone by now."""
        self._by_id[association.id] = association
        if cid := association.protection.received_cid:
            assert cid not in self.by_cid
            self.by_cid[cid] = association
        else:
            assert association.path not in self.by_path
            self.by_path[association.path] = association

    def remove(self, association: Association) -> None:
        self.drop_final_flight(association)
        del self._by_id[association.id]
        if cid := association.protection.received_cid:
            del self.by_cid[cid]
        else:
            del self.by_path[association.path]

    def touch(self, association: Association, now: float) -> None:
        """The peer has been heard."""
        association.last_seen_at = now
        self._by_id.move_to_end(association.id)

    # --- last flights, kept for clients that did not get them

    def keep_final_flight(self, association: Association, now: float) -> None:
        self._final_flights[association.id] = now + FINAL_FLIGHT_LIFETIME

    def drop_final_flight(self, association: Association) -> None:
        association.final_flight = None
        self._final_flights.pop(association.id, None)

    @property
    def final_flights_due_at(self) -> float | None:
        """When the oldest of them is to be forgotten."""
        return next(iter(self._final_flights.values()), None)

    def forget_final_flights(self, now: float) -> None:
        while self._final_flights and now >= next(iter(self._final_flights.values())):
            self._by_id[self._final_flights.popitem(last=False)[0]].final_flight = None
