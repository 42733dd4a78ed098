"""`make bench` as a whole, very small: it starts everything, and every answer is right."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bench import crowds
from tests.bench.__main__ import results_of
from tests.bench.catalogue import MEASUREMENTS, repeat
from tests.bench.figures import FLOOR, GROWTH, PAUSE
from tests.bench.loads import PYTHON, compile_dtlsload
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


def small(folder: Path, broker: Mosquitto) -> Bench:
    """By the fast load, where it can be compiled."""
    load = compile_dtlsload(folder)
    if load is None:
        if os.environ.get("COAPGATE_REQUIRE_PEERS") == "1":
            pytest.fail("dtlsload cannot be compiled: apt-get install gcc libssl-dev")
        load = PYTHON
    return Bench(folder, broker.url, load, choose_cores(os.sched_getaffinity(0)), TINY)


async def test_requests_and_their_floor_are_measured(tmp_path: Path, broker: Mosquitto) -> None:
    bench = small(tmp_path, broker)

    samples = await repeat(bench, [FLOOR, "request-50", "rounds-50-cid"], 1, lambda _: None)
    results = results_of(samples, {"load": bench.load.name})

    assert results.went_wrong() == []
    for figure in results.figures:
        assert figure.rate is not None
        assert figure.rate.median > 0


async def test_a_chain_with_an_intermediate_lets_a_device_in(
    tmp_path: Path, broker: Mosquitto
) -> None:
    measured = await repeat(small(tmp_path, broker), ["handshake-x509-chain"], 1, lambda _: None)

    (sample,) = measured["handshake-x509-chain"]
    assert not any(sample.wrong.values()), sample.wrong
    assert sample.rate


async def test_what_a_crowd_costs_is_measured_beside_few_and_beside_many(
    tmp_path: Path, broker: Mosquitto
) -> None:
    measured = await repeat(small(tmp_path, broker), ["crowd"], 1, lambda _: None)

    assert measured.keys() == MEASUREMENTS["crowd"].figures.keys()
    for (sample,) in measured.values():
        assert not any(sample.wrong.values()), sample.wrong
    for _, many in crowds.LOADS:
        assert GROWTH in measured[many][0].notes
    notes = measured[crowds.HANDSHAKE_MANY][0].notes
    assert notes[PAUSE] <= notes["gc_ms"]
