"""`make bench` as a whole, very small: it starts everything, and every answer is right."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bench.__main__ import results_of
from tests.bench.figures import FLOOR
from tests.bench.loads import PYTHON, compile_dtlsload
from tests.bench.measurements import repeat
from tests.bench.processes import choose_cores
from tests.bench.surroundings import TINY, Bench, mosquitto
from tests.peers import Mosquitto


async def test_notifications_are_measured(tmp_path: Path) -> None:
    cores = choose_cores(os.sched_getaffinity(0))
    with mosquitto(tmp_path, cores.broker) as url:
        bench = Bench(tmp_path, url, PYTHON, cores, TINY)
        samples = await repeat(bench, [FLOOR, "observe-one", "observe-all"], 1, lambda _: None)
    results = results_of(samples, {"load": PYTHON.name})

    assert results.went_wrong() == []
    assert [figure.notes.get("observers") for figure in results.figures] == [None, 20, 20]


async def test_requests_and_their_floor_are_measured(tmp_path: Path, broker: Mosquitto) -> None:
    load = compile_dtlsload(tmp_path)
    if load is None:
        if os.environ.get("COAPGATE_REQUIRE_PEERS") == "1":
            pytest.fail("dtlsload cannot be compiled: apt-get install gcc libssl-dev")
        load = PYTHON
    bench = Bench(tmp_path, broker.url, load, choose_cores(os.sched_getaffinity(0)), TINY)

    samples = await repeat(bench, [FLOOR, "request-50", "rounds-50-cid"], 1, lambda _: None)
    results = results_of(samples, {"load": load.name})

    assert results.went_wrong() == []
    for figure in results.figures:
        assert figure.rate is not None
        assert figure.rate.median > 0
