"""What stays in memory of a request, of an association; and what the garbage collector gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from coapgate.dtls.store_format import SLOT_LENGTH
from coapgate.model import Method
from tests.guard.budget import (
    ASSOCIATIONS,
    COLLECTIONS,
    GARBAGE,
    OBJECTS,
    OCTETS,
    REMEMBERED_REQUEST,
    REQUEST_OBJECTS,
    STEADY_REQUEST,
    STORED_ASSOCIATION,
    hold,
)
from tests.guard.memory import by_associations, by_requests, collections_by_requests
from tests.guard.whole import whole


@pytest.mark.parametrize(
    ("operation", "allowed"),
    [("request that is remembered", REMEMBERED_REQUEST), ("request", STEADY_REQUEST)],
)
def test_a_request_leaves_octets_and_no_objects(
    operation: str, allowed: float, tmp_path: Path
) -> None:
    with whole(tmp_path) as gateway:
        left = by_requests(gateway, warm=operation == "request")

    hold(operation, OCTETS, left.octets, allowed)
    hold(operation, OBJECTS, left.objects, REQUEST_OBJECTS)
    hold(operation, GARBAGE, left.garbage, 0)


def test_requests_never_make_the_garbage_collector_run(tmp_path: Path) -> None:
    with whole(tmp_path) as gateway:
        count = collections_by_requests(gateway)

    hold("thousand requests", COLLECTIONS, count, 0)


@pytest.mark.parametrize(
    ("method", "cid"),
    ASSOCIATIONS,
    ids=[f"{method.value}-{'cid' if cid else 'path'}" for method, cid in ASSOCIATIONS],
)
def test_an_idle_association_takes_no_more_than_it_may(
    method: Method, cid: bool, tmp_path: Path
) -> None:
    with whole(tmp_path) as gateway:
        left = by_associations(gateway, method, cid=cid)
        assert gateway.pump.stored == gateway.pump.server.association_count

    octets, objects = ASSOCIATIONS[method, cid]
    operation = f"idle {method.value} association {'with' if cid else 'without'} Connection ID"
    hold(operation, OCTETS, left.octets, octets)
    hold(operation, OBJECTS, left.objects, objects)


def test_an_association_takes_512_octets_of_the_file() -> None:
    hold("association in the file", OCTETS, SLOT_LENGTH, STORED_ASSOCIATION)
