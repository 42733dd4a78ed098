"""What a fleet did, as a line while it goes on, as a table, and as JSON."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping

from coapgate.cli.output import Value
from coapgate.model import Code
from coapgate.simulated.fleet.running import Fleet, Phase
from coapgate.simulated.fleet.tally import Tally, Times
from coapgate.simulated.message import render_code

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

_DOING = {
    Phase.CONNECTING: "connecting",
    Phase.SENDING: "sending",
    Phase.WAITING: "waiting for the last answers",
    Phase.LEAVING: "leaving",
    Phase.GONE: "done",
}


class Progress:
    """The live line; `render` is called again and again, `now` in monotonic seconds."""

    def __init__(self, fleet: Fleet, now: float) -> None:
        self._fleet = fleet
        self._at = now
        self._answered = 0
        self._rate = 0.0

    def render(self, now: float) -> str:
        tally = self._fleet.tally
        answered = tally.response_times.count
        if now > self._at:
            self._rate = (answered - self._answered) / (now - self._at)
        self._at, self._answered = now, answered
        times = tally.response_times
        return (
            f"{_DOING[self._fleet.phase]}: {tally.handshakes}/{len(self._fleet)} handshakes"
            f"{_besides(sum(tally.failed.values()), 'failed')}, "
            f"{self._rate:.0f} requests/s, {tally.answered} answered"
            f"{_besides(sum(tally.wrong.values()), 'wrong')}, "
            f"{tally.lost + tally.not_sent} lost, "
            f"p50 {_milliseconds(times.percentile(0.5))}, "
            f"p99 {_milliseconds(times.percentile(0.99))}"
        )


def describe(target: str, devices: int, tally: Tally) -> Mapping[str, Value]:
    """The document of `--json`; every duration is in seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "target": target,
        "went_well": tally.went_well,
        "devices": devices,
        "requests": {
            "seconds": round(tally.seconds, 3),
            "sent": tally.sent,
            "sent_per_second": round(_rate(tally.sent, tally.seconds), 1),
            "answered": tally.answered,
            "wrong": _wrong(tally),
            "repeats": tally.repeats,
            "echoes": tally.echoes,
            "given_up": tally.given_up,
            "rejected": tally.rejected,
            "unanswered": tally.unanswered,
            "not_sent": {"busy": tally.busy, "late": tally.late, "no_socket": tally.no_socket},
            "response_time": _times(tally.response_times),
        },
        "handshakes": {
            "seconds": round(tally.connecting_seconds, 3),
            "done": tally.handshakes,
            "connection_ids": tally.connection_ids,
            "failed": dict(tally.failed),
            "time": _times(tally.handshake_times),
        },
        "observe": {
            "registered": tally.observing,
            "refused": dict(tally.not_observing),
            "notifications": tally.notifications,
        },
        "associations_ended": tally.ended,
        "moves": tally.moves,
        "sleeps": tally.sleeps,
        "datagrams": {
            "sent": tally.datagrams_sent,
            "received": tally.datagrams_received,
            "dropped": tally.dropped,
        },
        "simulator": {
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
            "peak_resident_size": usage.ru_maxrss * 1024,
        },
    }


def rows(tally: Tally) -> Iterator[tuple[str, str]]:
    """The summary for people: what is nothing is left out, but for what everybody asks about."""
    yield "handshakes", f"{tally.handshakes} done" + _besides(tally.connection_ids, "with CID")
    for reason, count in tally.failed.most_common():
        yield "  failed", f"{count}: {reason}"
    if tally.handshakes:
        yield "  time", _render_times(tally.handshake_times)
    per_second = _rate(tally.sent, tally.seconds)
    yield "requests", f"{tally.sent} in {tally.seconds:.1f} s, {per_second:.1f} a second"
    yield "  answered well", f"{tally.answered}"
    if tally.response_times.count:
        yield "  time", _render_times(tally.response_times)
    for code, count in sorted(tally.wrong.items()):
        yield f"  answered {render_code(code)}", f"{count}"
    for name, count in (
        ("repeated", tally.repeats),
        ("repeated with Echo", tally.echoes),
        ("given up", tally.given_up),
        ("rejected", tally.rejected),
        ("unanswered", tally.unanswered),
        ("not sent: every device was busy", tally.busy),
        ("not sent: this machine was too slow", tally.late),
        ("not sent: no socket", tally.no_socket),
    ):
        if count:
            yield f"  {name}", f"{count}"
    if tally.observing:
        yield "observing", f"{tally.observing}, {tally.notifications} notifications"
    for reason, count in tally.not_observing.most_common():
        yield "  not observing", f"{count}: {reason}"
    for name, count in (
        ("associations ended by the server", tally.ended),
        ("moves", tally.moves),
        ("sleeps", tally.sleeps),
        ("datagrams dropped by --loss", tally.dropped),
    ):
        if count:
            yield name, f"{count}"


def advice(tally: Tally) -> str:
    """What to do about the first thing that went wrong; empty if nothing did."""
    if not tally.handshakes:
        return (
            "no device was let in: check the address, and whether the server knows these "
            "credentials; its log says why"
        )
    if tally.wrong.get(Code.TOO_MANY_REQUESTS):
        return "4.29: more than the server lets one device ask; take more devices, or a lower rate"
    if tally.not_observing.get("4.04"):
        return "4.04: there is no state to observe; publish it retained, for every device"
    if tally.busy:
        return "every device waited for an answer: more devices, or a lower rate"
    if tally.late:
        return "this machine was too slow for the rate: nothing is known of the server there"
    return "" if tally.went_well else "the server's log and metrics say more"


def _times(times: Times) -> Mapping[str, Value]:
    found = {name: round(times.percentile(share), 6) for name, share in PERCENTILES.items()}
    return found | {"max": round(times.longest, 6)}


def _render_times(times: Times) -> str:
    shown = {name: times.percentile(share) for name, share in PERCENTILES.items()}
    shown["max"] = times.longest
    return ", ".join(f"{name} {_milliseconds(seconds)}" for name, seconds in shown.items())


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _wrong(tally: Tally) -> Mapping[str, Value]:
    return {render_code(code): count for code, count in sorted(tally.wrong.items())}


def _besides(count: int, what: str) -> str:
    return f" ({count} {what})" if count else ""


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds else 0.0
