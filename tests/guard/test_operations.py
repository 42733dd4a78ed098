"""What a request and a handshake cost, from socket to broker, the registry and the store on."""

from __future__ import annotations

from pathlib import Path

import pytest

from coapgate.model import Method
from tests.guard.budget import BUDGETS, PYTHON_CALLS, UNITS, hold
from tests.guard.costs import (
    DEVICES,
    Kind,
    RequestKind,
    add_devices,
    connect_all,
    measure,
    measure_requests,
)
from tests.guard.counting import Calls, still
from tests.guard.whole import Whole, whole

MANY = 1000


@pytest.mark.parametrize("kind", BUDGETS, ids=str)
def test_an_operation_costs_no_more_than_it_may(kind: Kind, tmp_path: Path) -> None:
    cost, budget = measure(kind, tmp_path), BUDGETS[kind]

    for name, unit in UNITS.items():
        hold(kind, unit, getattr(cost, name), getattr(budget, name), cost.where.get(name))


def test_what_happens_costs_the_same_however_many_associations_there_are(tmp_path: Path) -> None:
    kind = RequestKind(cid=True, batch=50)
    with whole(tmp_path) as gateway:
        few, idle_few = measure_requests(gateway, kind), _idle_calls(gateway)
        connect_all(gateway, add_devices(gateway, Method.PSK, MANY, cid=True, first=DEVICES))
        many, idle_many = measure_requests(gateway, kind), _idle_calls(gateway)
        assert gateway.pump.server.association_count == 2 * DEVICES + MANY

    allowed = few.python_calls * 1.01
    hold(f"request with {MANY} associations", PYTHON_CALLS, many.python_calls, allowed)
    hold(f"idle time with {MANY} associations", PYTHON_CALLS, idle_many, idle_few * 1.01)


def _idle_calls(gateway: Whole) -> int:
    """Calls in ten seconds in which nothing comes, when nobody is warm any more."""
    gateway.pass_time(20.0)
    with still(), gateway.counted(Calls()) as calls:
        gateway.pass_time(10.0)
    return calls.python.total()
