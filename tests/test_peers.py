"""The helpers that tests stand on do what they say."""

from __future__ import annotations

import logging
import socket

import pytest

from tests.conftest import StartMosquitto, unexpected
from tests.peers import Mosquitto, require, require_module


def test_a_missing_peer_skips_the_test_and_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("COAPGATE_REQUIRE_PEERS", raising=False)

    with pytest.raises(pytest.skip.Exception, match="apt-get install libcoap3-bin"):
        require("coap-client-openssl")


def test_a_missing_peer_fails_the_test_where_peers_are_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("COAPGATE_REQUIRE_PEERS", "1")

    with pytest.raises(pytest.fail.Exception, match="apt-get install gnutls-bin"):
        require("gnutls-cli")
    with pytest.raises(pytest.fail.Exception, match="no_such_module is not installed"):
        require_module("no_such_module")


def test_the_broker_accepts_connections_at_once(broker: Mosquitto) -> None:
    with socket.create_connection((broker.host, broker.port), timeout=5):
        pass


def test_a_stopped_broker_starts_again_on_its_port(mosquitto: StartMosquitto) -> None:
    one = mosquitto()
    one.kill()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((one.host, one.port), timeout=5)

    one.start()

    with socket.create_connection((one.host, one.port), timeout=5):
        pass


def test_a_broker_with_a_wrong_configuration_says_so(mosquitto: StartMosquitto) -> None:
    with pytest.raises(RuntimeError, match="mosquitto did not start"):
        mosquitto("no_such_option true")


@pytest.mark.expects_warnings("expected")
def test_expected_warnings_are_let_through() -> None:
    logging.getLogger("coapgate").warning("expected")


def test_a_warning_is_unexpected_unless_the_marker_names_it_or_names_none() -> None:
    record = logging.LogRecord("coapgate", logging.WARNING, "", 0, "gone", None, None)

    assert unexpected([record], None) == ["WARNING coapgate: gone"]
    assert unexpected([record], pytest.mark.expects_warnings("other").mark) != []
    assert unexpected([record], pytest.mark.expects_warnings("gone").mark) == []
    assert unexpected([record], pytest.mark.expects_warnings.mark) == []
