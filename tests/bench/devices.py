"""A load of devices in Python: what `dtlsload` cannot do, and all of it where there is no compiler.

It takes the options of dtlsload that the benchmarks use, prints the same JSON line, and knows more:

    --cid                offer a Connection ID, and use the gateway's (RFC 9146)
    --mode storm         -n devices connect within --over seconds, and each sends one request
    --mode recovery      -n devices connect and send one request each; then it prints `ready`,
                         waits for a line on standard input, and sends one request more from each,
                         by the associations that it has

Requests go out in rounds: whatever came is read, then all that is to follow is sealed, then sent.
So a server that answers faster than Python asks still finds many datagrams at once, as it does
under a load that keeps it busy.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from coapgate.dtls.client import ClientCertificate, ClientSettings, Credential, PskKey
from coapgate.simulated.trust import trust_server
from tests.bench.device_sockets import LoadDevice, LoadDevices
from tests.bench.processes import cpu_seconds, resident_kib

AT_ONCE = 32
"""Handshakes under way while devices connect."""
GIVE_UP = 120.0
"""Seconds after which a phase ends, however many devices are still waiting."""

Result = dict[str, object]


class Run:
    """One run of the load; each mode is a method that returns what it reports."""

    def __init__(self, options: argparse.Namespace, devices: LoadDevices) -> None:
        self._options = options
        self._devices = devices

    def handshakes(self) -> Result:
        """-n handshakes at once, each followed by close_notify and the next device's."""
        devices = self._devices
        for number in range(self._options.sessions):
            devices.connect(number)
        number = self._options.sessions
        meter = Meter(self._options, devices, "connected")
        while meter.goes_on():
            ended = devices.poll(0.02)
            for device in [*ended.connected, *ended.failed]:
                devices.leave(device)
                devices.connect(number)
                number += 1
        return meter.result()

    def requests(self) -> Result:
        """One request under way for each of -n devices."""
        devices = self._devices
        connected = self._connect_all()
        devices.ask(connected)
        meter = Meter(self._options, devices, "answered")
        while meter.goes_on():
            ended = devices.poll(0.02)
            devices.ask([*ended.answered, *ended.unanswered])
        return meter.result()

    def idle(self) -> Result:
        """-n associations and a request of each, then silence for --hold seconds."""
        options, devices = self._options, self._devices
        before = resident_kib(options.pid) if options.pid else 0
        begun = time.monotonic()
        connected = self._connect_all()
        took = time.monotonic() - begun
        self._ask_each(connected)
        time.sleep(options.hold)
        after = resident_kib(options.pid) if options.pid else 0
        return {
            "hs_per_s": round(len(connected) / took, 1),
            "resp_ok": devices.counts["answered"],
            "resp_err": devices.counts["wrong"],
            "kib_per_session_after_req": round((after - before) / max(1, len(connected)), 2),
        }

    def storm(self) -> Result:
        """-n devices, one after the other within --over seconds; then until the last is served."""
        options, devices = self._options, self._devices
        meter = Meter(options, devices, "answered", from_connect=True)
        begun = time.monotonic()
        started = finished = 0
        while finished < options.sessions:
            elapsed = time.monotonic() - begun
            if elapsed > options.over + GIVE_UP:
                break
            due = min(options.sessions, int(elapsed / options.over * options.sessions) + 1)
            while started < due:
                devices.connect(started)
                started += 1
            ended = devices.poll(0.005)
            devices.ask(ended.connected)
            finished += len(ended.answered) + len(ended.failed) + len(ended.unanswered)
        devices.counts["timeouts"] += options.sessions - finished
        return meter.result()

    def recovery(self) -> Result:
        """Connect and ask; wait for the word; ask again on the same associations."""
        options, devices = self._options, self._devices
        connected = self._connect_all()
        self._ask_each(connected)
        assert not devices.counts["wrong"] + devices.counts["timeouts"], devices.counts
        print("ready", flush=True)
        sys.stdin.readline()
        meter = Meter(options, devices, "answered")
        meter.begin()
        self._ask_each(connected)
        return meter.result()

    def _connect_all(self) -> list[LoadDevice]:
        """Connect -n devices, AT_ONCE at a time; those that were let in."""
        devices = self._devices
        connected: list[LoadDevice] = []
        started = ended = 0
        deadline = time.monotonic() + GIVE_UP
        while ended < self._options.sessions and time.monotonic() < deadline:
            while started < self._options.sessions and started - ended < AT_ONCE:
                devices.connect(started)
                started += 1
            result = devices.poll(0.02)
            connected += result.connected
            ended += len(result.connected) + len(result.failed)
        return connected

    def _ask_each(self, asked: list[LoadDevice]) -> None:
        """One request of each, AT_ONCE at a time."""
        left = list(reversed(asked))
        under_way = 0
        while left or under_way:
            room = AT_ONCE - under_way
            now_asked = [left.pop() for _ in range(min(room, len(left)))]
            self._devices.ask(now_asked)
            ended = self._devices.poll(0.02)
            under_way += len(now_asked) - len(ended.answered) - len(ended.unanswered)


class Meter:
    """Counts from the end of the warm-up on, for the measured time."""

    def __init__(
        self,
        options: argparse.Namespace,
        devices: LoadDevices,
        counted: str,
        *,
        from_connect: bool = False,
    ) -> None:
        self._options = options
        self._devices = devices
        self._counted = counted
        self._measuring = False
        self._begins_at: float = time.monotonic() + options.warmup
        self._ends_at: float = self._begins_at + options.duration
        self._now = self._begun_at = 0.0
        devices.latency_from_connect = from_connect
        if from_connect:
            self.begin()

    def begin(self) -> None:
        """Forget what was counted so far."""
        self._measuring = True
        self._begun_at = time.monotonic()
        self._devices.counts.clear()
        self._devices.latencies.clear()
        self._server = self._server_cpu()
        self._own = time.process_time()

    def goes_on(self) -> bool:
        """Whether the measured time has not passed yet."""
        now = time.monotonic()
        if not self._measuring and now >= self._begins_at:
            self.begin()
        return now < self._ends_at

    def result(self) -> Result:
        """As dtlsload reports it."""
        counts, latencies = self._devices.counts, sorted(self._devices.latencies)
        seconds = time.monotonic() - self._begun_at
        server, own = self._server_cpu() - self._server, time.process_time() - self._own
        done = counts[self._counted]
        each = 1e6 / done if done else 0.0
        return {
            "secs": round(seconds, 2),
            "ops": done,
            "ops_per_s": round(done / seconds, 1),
            "srv_cpu_us_per_op": round(server * each, 2),
            "srv_cpu_util": round(server / seconds, 3),
            "cli_cpu_us_per_op": round(own * each, 2),
            "err": counts["wrong"],
            "timeouts": counts["timeouts"],
            "retrans": counts["repeats"],
            "hs_fail": counts["failed"],
            "p50_ms": percentile(latencies, 0.5),
            "p99_ms": percentile(latencies, 0.99),
        }

    def _server_cpu(self) -> float:
        return cpu_seconds(self._options.pid) if self._options.pid else 0.0


def percentile(ordered: list[float], share: float) -> float:
    """Of seconds in order, in milliseconds; 0 if there are none."""
    if not ordered:
        return 0.0
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 3)


def credentials(options: argparse.Namespace) -> Callable[[int], Credential]:
    """What the device of a number proves itself with."""
    if options.auth == "x509":
        chain = x509.load_pem_x509_certificates(options.cert.read_bytes())
        key = load_pem_private_key(options.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        (root,) = x509.load_pem_x509_certificates(options.ca.read_bytes())
        der = tuple(certificate.public_bytes(Encoding.DER) for certificate in chain)
        certificate = ClientCertificate(der, key, trust_server(root, options.host))
        return lambda number: certificate
    secret = options.psk.encode()
    if options.psk_file is not None:
        secret = options.psk_file.read_bytes().rstrip(b"\r\n")

    def psk(number: int) -> Credential:
        numbered = "%" in options.id_format
        identity = (
            options.id_format % (1 + number % options.id_count) if numbered else options.id_format
        )
        return PskKey(identity.encode(), secret)

    return psk


def parser() -> argparse.ArgumentParser:
    parsing = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    modes = ("hs", "req", "idle", "storm", "recovery")
    parsing.add_argument("--mode", choices=modes, default="req")
    parsing.add_argument("--proto", choices=("dtls", "raw"), default="dtls")
    parsing.add_argument("--auth", choices=("psk", "x509"), default="psk")
    parsing.add_argument("--method", choices=("post", "put"), default="post")
    parsing.add_argument("--host", default="127.0.0.1")
    parsing.add_argument("--port", type=int, default=5684)
    parsing.add_argument("--pid", type=int, default=0)
    parsing.add_argument("-n", "--sessions", type=int, default=1)
    parsing.add_argument("--src-spread", type=int, default=0)
    parsing.add_argument("--id-format", default="load.%06d")
    parsing.add_argument("--id-count", type=int, default=1_000_000)
    parsing.add_argument("--psk", default="sixteen octets!!")
    parsing.add_argument("--psk-file", type=Path)
    for name in ("--cert", "--key", "--ca"):
        parsing.add_argument(name, type=Path)
    parsing.add_argument("--path", default="benchmark")
    parsing.add_argument("-b", "--payload", type=int, default=100)
    parsing.add_argument("-d", "--duration", type=float, default=5.0)
    parsing.add_argument("-w", "--warmup", type=float, default=1.0)
    parsing.add_argument("--hold", type=float, default=3.0)
    parsing.add_argument("--over", type=float, default=60.0)
    parsing.add_argument("--cid", action="store_true")
    parsing.add_argument("--name", default="")
    return parsing


def main() -> None:
    options = parser().parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.disable()  # a short run of one purpose: what is let go of needs no collector
    settings = ClientSettings(connection_id=b"" if options.cid else None)
    devices = LoadDevices(
        options, None if options.proto == "raw" else credentials(options), settings
    )
    run = Run(options, devices)
    modes = {
        "hs": run.handshakes,
        "req": run.requests,
        "idle": run.idle,
        "storm": run.storm,
        "recovery": run.recovery,
    }
    result = modes[options.mode]()
    about: Result = {"name": options.name, "mode": options.mode, "sessions": options.sessions}
    about |= {"hs_ok": devices.handshakes, "cid_neg": devices.with_cid}
    print(json.dumps(about | result), flush=True)
    devices.close()


if __name__ == "__main__":
    main()
