"""Load generators: what they report, who may be their target, and on which cores all run."""

from __future__ import annotations

import os

import pytest

from tests.bench.devices import parser, percentile
from tests.bench.loads import PYTHON, LoadFailed, parse_report
from tests.bench.processes import Cores, choose_cores, cpu_seconds, on_core, resident_kib
from tests.bench.servers import free_ports, is_bound, is_loopback, parse_address, parse_identity


def test_a_report_is_the_last_line_of_what_was_printed() -> None:
    assert parse_report(PYTHON, b'ready\n{"ops": 5, "mode": "req"}\n') == {"ops": 5}


@pytest.mark.parametrize("output", [b"", b"ready\n"])
def test_a_load_without_result_fails_with_what_it_said_last(output: bytes) -> None:
    with pytest.raises(LoadFailed, match="connection refused"):
        parse_report(PYTHON, output, b"Traceback\nconnection refused\n")


def test_percentiles_are_milliseconds() -> None:
    latencies = [n / 1000 for n in range(1, 101)]

    assert percentile(latencies, 0.5) == 51.0
    assert percentile(latencies, 0.99) == 100.0
    assert percentile([], 0.5) == 0.0


def test_the_python_load_has_the_defaults_of_dtlsload() -> None:
    options = parser().parse_args([])

    assert (options.sessions, options.payload, options.path) == (1, 100, "benchmark")
    assert (options.id_format, options.psk) == ("load.%06d", "sixteen octets!!")


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("coaps://gateway.example", ("gateway.example", 5684)),
        ("coaps://192.0.2.1:5000/", ("192.0.2.1", 5000)),
        ("coaps://[2001:db8::1]:5684", ("2001:db8::1", 5684)),
    ],
)
def test_an_address_is_a_host_and_perhaps_a_port(address: str, place: tuple[str, int]) -> None:
    assert parse_address(address) == place


@pytest.mark.parametrize("address", ["", "gateway", "coap://a", "coaps://", "coaps://a/path"])
def test_anything_else_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        parse_address(address)


def test_only_loopback_addresses_are_for_the_fast_load() -> None:
    assert is_loopback("127.0.0.2")
    assert not any(map(is_loopback, ("192.0.2.1", "::1", "localhost", "127.example")))


@pytest.mark.parametrize("identity", ["sensor-1", "load.%06d", "%d"])
def test_an_identity_has_at_most_one_number(identity: str) -> None:
    assert parse_identity(identity) == identity


@pytest.mark.parametrize("identity", ["%s", "%n", "%d%d", "100%", "%999d"])
def test_what_is_no_number_in_an_identity_is_refused(identity: str) -> None:
    with pytest.raises(ValueError, match="no identity"):
        parse_identity(identity)


def test_the_server_has_a_core_for_itself_if_there_are_two() -> None:
    assert choose_cores({3}) == Cores(3, 3, 3)
    assert choose_cores({0, 1}) == Cores(0, 1, 1)
    assert choose_cores({0, 1, 2, 3}) == Cores(0, 1, 3)
    assert not choose_cores({3}).are_apart


def test_where_this_may_run_is_as_before_in_the_end() -> None:
    before = os.sched_getaffinity(0)
    core = min(before)

    with on_core(core):
        assert os.sched_getaffinity(0) == {core}

    assert os.sched_getaffinity(0) == before


def test_a_process_has_cost_something_and_occupies_memory() -> None:
    assert cpu_seconds(os.getpid()) > 0
    assert resident_kib(os.getpid()) > 1024


def test_free_ports_are_not_bound() -> None:
    port = free_ports()

    assert not is_bound(port)
    assert not is_bound(port + 1)
