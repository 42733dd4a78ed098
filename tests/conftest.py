"""Fixtures that any test may use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.peers import Mosquitto

StartMosquitto = Callable[..., Mosquitto]

# A busy machine is no finding, and a failure must come again.
settings.register_profile("coapgate", deadline=None, derandomize=True)
settings.load_profile("coapgate")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "expects_warnings(*messages): the test expects log records at WARNING or above; "
        "only those with these constant messages, if any are given",
    )


class _Collected(logging.Handler):
    """Keeps every record at WARNING or above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def no_unexpected_warnings(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test during which a warning was logged that it did not expect."""
    collected = _Collected()
    root = logging.getLogger()
    root.addHandler(collected)
    try:
        yield
    finally:
        root.removeHandler(collected)
    lines = unexpected(collected.records, request.node.get_closest_marker("expects_warnings"))
    if lines:
        pytest.fail("unexpected log records:\n" + "\n".join(lines), pytrace=False)


def unexpected(records: list[logging.LogRecord], marker: pytest.Mark | None) -> list[str]:
    """What was logged although the test's marker, if it has one, does not name it."""
    if marker is not None and not marker.args:
        return []
    expected = marker.args if marker is not None else ()
    return [
        f"{record.levelname} {record.name}: {record.getMessage()}"
        for record in records
        if record.msg not in expected
    ]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """One mosquitto for all tests that only need some broker: choose a topic root of your own."""
    running = Mosquitto(tmp_path_factory.mktemp("broker"))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[StartMosquitto]:
    """Start a mosquitto of this test's own: `mosquitto("max_packet_size 200", ...)`.

    Keyword `port`: take this port rather than a free one.
    """
    started: list[Mosquitto] = []

    def start(*lines: str, port: int | None = None) -> Mosquitto:
        one = Mosquitto(tmp_path, lines, port)
        started.append(one)
        one.start()
        return one

    yield start
    for one in started:
        one.stop()
