"""Everything that is measured, by name, with its line in the documents."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from tests.bench import crowds, observers
from tests.bench.figures import FLOOR, KIBIBYTES, MICROSECONDS, Sample
from tests.bench.measurements import (
    HANDSHAKES,
    Measure,
    by_load,
    measure_floor,
    measure_idle,
    measure_recovery,
    measure_slow_broker,
    measure_storm,
    requests_of_most,
)
from tests.bench.surroundings import DEVICE_OF_LINE, Bench


@dataclass(frozen=True, slots=True)
class Line:
    """A figure in the documents: `what` it is of, and its unit."""

    what: str
    unit: str = MICROSECONDS


@dataclass(frozen=True, slots=True)
class Measurement:
    """What is measured at one go: a sample of each of these figures, by its name."""

    figures: Mapping[str, Line]
    measure: Callable[[Bench], Awaitable[Mapping[str, Sample]]]


def _single(name: str, line: Line, measure: Measure) -> Measurement:
    async def measured(bench: Bench) -> dict[str, Sample]:
        return {name: await measure(bench)}

    return Measurement({name: line}, measured)


_X509 = ("--auth", "x509")
_SINGLE: dict[str, tuple[Line, Measure]] = {
    FLOOR: (Line("UDP echo in Python, 50 devices"), measure_floor),
    "handshake-psk": (Line("PSK handshake"), by_load(*HANDSHAKES)),
    "handshake-x509": (Line("X.509 handshake, mutual"), by_load(*HANDSHAKES, *_X509)),
    "handshake-x509-chain": (
        Line("X.509 handshake, mutual, with an intermediate"),
        by_load(*HANDSHAKES, *_X509, certificate=DEVICE_OF_LINE),
    ),
    **{
        f"request-{count}": (
            Line(f"request, {count} device{'s' * (count > 1)}"),
            by_load("--mode", "req", "-n", count),
        )
        for count in (1, 50, 500)
    },
    "request-5000": (Line("request, 5,000 devices"), requests_of_most()),
    **{
        f"rounds-{count}{'-cid' * with_cid}": (
            Line(f"request, {count} devices in rounds, with{'' if with_cid else 'out'} CID"),
            by_load("--mode", "req", "-n", count, *(["--cid"] * with_cid), python=True),
        )
        for count in (50, 500)
        for with_cid in (False, True)
    },
    "slow-broker": (Line("request, broker takes 0.7 s"), measure_slow_broker),
    "storm": (Line("reconnect storm, each device"), measure_storm),
    "observe-one": (Line("notification to 1 of 10,000 observers"), observers.measure_one),
    "observe-all": (Line("notification to each of 10,000 observers"), observers.measure_all),
    "recovery": (Line("recovery of an association"), measure_recovery),
    "idle": (Line("idle association", KIBIBYTES), measure_idle),
}
MEASUREMENTS: dict[str, Measurement] = {
    **{name: _single(name, line, measure) for name, (line, measure) in _SINGLE.items()},
    "crowd": Measurement(
        {
            crowds.REQUEST_FEW: Line("request, 50 devices beside 1,000 associations"),
            crowds.REQUEST_MANY: Line("request, 50 devices beside 100,000 associations"),
            crowds.HANDSHAKE_FEW: Line("PSK handshake beside 1,000 associations"),
            crowds.HANDSHAKE_MANY: Line("PSK handshake beside 100,000 associations"),
            crowds.IDLE_MANY: Line("idle association among 100,000", KIBIBYTES),
        },
        crowds.measure_crowd,
    ),
}
FIGURES: dict[str, Line] = {
    name: line for each in MEASUREMENTS.values() for name, line in each.figures.items()
}


async def repeat(
    bench: Bench, names: list[str], repeats: int, tell: Callable[[str], None]
) -> dict[str, list[Sample]]:
    """Measure each so many times, all of them in turn, so that a slow minute spoils none alone."""
    samples: dict[str, list[Sample]] = {
        figure: [] for name in names for figure in MEASUREMENTS[name].figures
    }
    for turn in range(1, repeats + 1):
        for name in names:
            tell(f"{turn} of {repeats}: {name}")
            for figure, sample in (await MEASUREMENTS[name].measure(bench)).items():
                samples[figure].append(sample)
    return samples
