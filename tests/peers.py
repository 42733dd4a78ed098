"""The real peers that tests talk to: programs of Debian packages, and tinydtls.

A test that needs a peer which is not installed is skipped and names the package to install; with
`COAPGATE_REQUIRE_PEERS=1`, as in `.ci/run`, it fails instead.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

PACKAGES = {
    "mosquitto": "mosquitto",
    "mosquitto_passwd": "mosquitto",
    "mosquitto_pub": "mosquitto-clients",
    "mosquitto_sub": "mosquitto-clients",
    "mosquitto_rr": "mosquitto-clients",
    "openssl": "openssl",
    "gnutls-cli": "gnutls-bin",
    "coap-client-openssl": "libcoap3-bin",
    "coap-client-gnutls": "libcoap3-bin",
    "coap-server-openssl": "libcoap3-bin",
    "gcc": "gcc libssl-dev",
    "promtool": "prometheus",
}
"""Program -> the Debian package it comes in."""

BUILD_TOOLS = "autoconf automake libtool gcc libc6-dev python3-dev"
"""What DTLSSocket is built with; `make test` then installs requirements-peers.lock."""

_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where Debian puts mosquitto, which is not on everybody's PATH."""


def require(program: str) -> str:
    """The path of a peer's program; the test is skipped, or fails, if it is not installed."""
    path = shutil.which(program) or shutil.which(program, path=_SYSTEM_PATH)
    if path is None:
        _missing(f"{program} is not installed: apt-get install {PACKAGES[program]}")
    return path


def require_module(name: str) -> ModuleType:
    """A peer that is a Python module (`DTLSSocket`, `atheris`); skips or fails like `require`."""
    try:
        return importlib.import_module(name)
    except ImportError:
        _missing(f"{name} is not installed: apt-get install {BUILD_TOOLS}, then make test")


def _missing(what: str) -> NoReturn:
    if os.environ.get("COAPGATE_REQUIRE_PEERS") == "1":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


class Mosquitto:
    """A real mosquitto on a free loopback port, with nothing persistent.

    `lines` are added to its configuration, after `listener`, so TLS options work. `log` is what it
    has written so far. Stopped brokers can be started again on the same port.
    """

    def __init__(
        self, directory: Path, lines: tuple[str, ...] = (), port: int | None = None
    ) -> None:
        self.host = "127.0.0.1"
        self.port = port if port is not None else free_tcp_port()
        self.log: list[str] = []
        self._lines = lines
        self._directory = directory
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._changed = threading.Condition()

    @property
    def url(self) -> str:
        return f"mqtt://{self.host}:{self.port}"

    def start(self, timeout: float = 15.0) -> None:
        """Start it, and return when it accepts connections."""
        program = require("mosquitto")
        configuration = self._directory / f"mosquitto-{self.port}.conf"
        # Started by root it would become user mosquitto, who cannot read a test's files.
        user = ["user root"] if os.geteuid() == 0 else []
        own = [f"listener {self.port} {self.host}", "allow_anonymous true", "log_dest stderr"]
        configuration.write_text("\n".join([*user, "persistence false", *own, *self._lines, ""]))
        self._process = subprocess.Popen(
            [program, "-c", str(configuration)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(
            target=self._read, args=(self._process,), name="mosquitto-log", daemon=True
        )
        already = len(self.log)
        self._reader.start()
        if not self.wait_for_log(" running", timeout=timeout, since=already):
            self.stop()
            raise RuntimeError("mosquitto did not start: " + "; ".join(self.log[already:]))

    def stop(self) -> None:
        """End it in order (SIGTERM): connected clients see a closed connection."""
        self._end(kill=False)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._end(kill=True)

    def wait_for_log(self, text: str, timeout: float = 10.0, since: int = 0) -> bool:
        """Wait until a line from number `since` on contains `text`; False if none did in time."""

        def logged() -> bool:
            return any(text in line for line in self.log[since:]) or self._ended()

        with self._changed:
            self._changed.wait_for(logged, timeout)
            return any(text in line for line in self.log[since:])

    def _ended(self) -> bool:
        return self._reader is None or not self._reader.is_alive()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            with self._changed:
                self.log.append(line.rstrip("\n"))
                self._changed.notify_all()
        process.wait()
        with self._changed:
            self._reader = None
            self._changed.notify_all()

    def _end(self, *, kill: bool) -> None:
        process, reader = self._process, self._reader
        if process is None:
            return
        self._process = None
        # A SIGTERM just before mosquitto enters its loop is lost on it: it is told again.
        for end in [process.kill] if kill else [*[process.terminate] * 10, process.kill]:
            end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
                break
        if reader is not None:
            reader.join(10)
        if process.stderr is not None:
            process.stderr.close()


def free_udp_port() -> int:
    """As `free_tcp_port`, for who must know a gateway's port before it serves."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_tcp_port() -> int:
    """A port on loopback that was free a moment ago, for programs that cannot bind port 0."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
