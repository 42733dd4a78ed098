"""Among many associations nothing costs more than among few: counted, so it is exact."""

from __future__ import annotations

from pathlib import Path

import pytest

from coapgate.model import Method
from tests.guard.budget import OBJECTS, OCTETS, UNITS, hold
from tests.guard.costs import (
    Cost,
    HandshakeKind,
    RequestKind,
    measure_handshakes,
    measure_requests,
)
from tests.guard.memory import Left, by_recovery
from tests.guard.whole import crowded

FEW, MANY = 200, 5000
TOLERANCE = 1.01


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cost]:
    return costs_among(FEW, tmp_path_factory.mktemp("few"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cost]:
    return costs_among(MANY, tmp_path_factory.mktemp("many"))


def costs_among(count: int, folder: Path) -> dict[str, Cost]:
    """What operations cost where so many associations have been taken up, by their names."""
    handshake = HandshakeKind(Method.PSK, cid=True)
    requests = (RequestKind(cid=True, batch=50), RequestKind(cid=False, batch=1))
    with crowded(folder, count) as gateway:
        gateway.recover()
        assert gateway.pump.server.association_count == gateway.pump.stored == count
        costs = {str(handshake): measure_handshakes(gateway, handshake)}
        return costs | {str(kind): measure_requests(gateway, kind) for kind in requests}


@pytest.mark.parametrize("unit", UNITS)
def test_an_operation_costs_the_same_among_many_associations(
    unit: str, few: dict[str, Cost], many: dict[str, Cost]
) -> None:
    for operation, cost in many.items():
        allowed = getattr(few[operation], unit) * TOLERANCE
        what = f"{operation}, among {MANY} associations"
        hold(what, UNITS[unit], getattr(cost, unit), allowed, cost.where.get(unit))


def test_an_association_takes_the_same_among_many(tmp_path: Path) -> None:
    few, many = each_more(640, tmp_path / "few"), each_more(2560, tmp_path / "many")

    hold("association among many", OCTETS, many.octets, few.octets * TOLERANCE)
    hold("association among many", OBJECTS, many.objects, few.objects * TOLERANCE)


def each_more(count: int, folder: Path) -> Left:
    """What each takes of the second so many associations.

    Twice as many fill all tables equally well, and no number of the second ones is so small that
    Python has it already.
    """
    taken = []
    for total in (count, 2 * count):
        own = folder / str(total)
        own.mkdir(parents=True)
        with crowded(own, total) as gateway:
            left = by_recovery(gateway)
            assert gateway.pump.recovered == total
        taken.append((left.octets * total, left.objects * total))
    (octets, objects), (octets_of_all, objects_of_all) = taken
    return Left((octets_of_all - octets) / count, (objects_of_all - objects) / count)
