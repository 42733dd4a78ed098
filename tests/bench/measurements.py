"""What is measured, each against a server of its own: one coroutine for each kind."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from tests.bench import observers
from tests.bench.figures import FLOOR, KIBIBYTES, MICROSECONDS, Sample
from tests.bench.loads import PYTHON, Report, environment, parse_report, run_load
from tests.bench.processes import cpu_seconds, on_core, peak_resident_kib
from tests.bench.surroundings import Bench
from tests.fakes.broker import FakeBroker
from tests.gateways import GatewayProcess, Installation
from tests.programs import started

SPREAD = ("--src-spread", 200)
"""Many addresses: `dtls.handshakes_per_address` is not what is measured."""


Measure = Callable[[Bench], Awaitable[Sample]]


@dataclass(frozen=True, slots=True)
class Measurement:
    """`what` is its line in the documents."""

    what: str
    unit: str
    measure: Measure


def by_load(*options: object, python: bool = False) -> Measure:
    """Whatever the load generator does with these options, and reports for each operation."""

    async def measure(bench: Bench) -> Sample:
        load = PYTHON if python else bench.load
        async with bench.installation() as installation, bench.gateway(installation) as gateway:
            usual = bench.options(installation, gateway)
            report = await run_load(load, bench.cores.load, *usual, *options)
            wrong = await faults(gateway)
            if "--cid" in options:
                wrong["without CID"] = report["hs_ok"] - report["cid_neg"]
            return per_operation(report, wrong)

    return measure


def requests_of_most() -> Measure:
    async def measure(bench: Bench) -> Sample:
        return await by_load("--mode", "req", "-n", bench.scale.most_devices)(bench)

    return measure


async def measure_floor(bench: Bench) -> Sample:
    """UDP alone, in Python, under the same load as the requests of 50 devices."""
    scale = bench.scale
    async with AsyncExitStack() as stack:
        with on_core(bench.cores.server):
            echo = started(sys.executable, "-m", "tests.bench.echo", env=environment())
            program = await stack.enter_async_context(echo)
        await program.until(b"\n")
        report = await run_load(
            bench.load,
            bench.cores.load,
            *("--proto", "raw", "--mode", "req", "-n", 50),
            *("--port", program.output.split()[1].decode(), "--pid", program.pid),
            *("-d", scale.duration, "-w", scale.warmup),
        )
    return per_operation(report, {})


async def measure_idle(bench: Bench) -> Sample:
    """Memory of an association with one request behind it, after a silence."""
    scale = bench.scale
    async with bench.installation() as installation, bench.gateway(installation) as gateway:
        report = await run_load(
            bench.load,
            bench.cores.load,
            *bench.options(installation, gateway),
            *("--mode", "idle", "-n", scale.idle_devices, "--hold", scale.hold),
        )
        wrong = await faults(gateway) | {"wrong answers": report["resp_err"]}
        wrong["unanswered"] = scale.idle_devices - report["resp_ok"] - report["resp_err"]
        return Sample(report["kib_per_session_after_req"], report["hs_per_s"], wrong=wrong)


async def measure_storm(bench: Bench) -> Sample:
    """All devices come back at once: a handshake and a request of each."""
    scale = bench.scale
    async with bench.installation() as installation, bench.gateway(installation) as gateway:
        report = await run_load(
            PYTHON,
            bench.cores.load,
            *bench.options(installation, gateway),
            *("--mode", "storm", "-n", scale.storm_devices, "--over", scale.storm_time, *SPREAD),
        )
        sample = per_operation(report, await faults(gateway))
        return replace(sample, notes={"peak_resident_kib": peak_resident_kib(gateway.pid)})


async def measure_slow_broker(bench: Bench) -> Sample:
    """PUBACKs come after 0.7 s: every answer is an empty ACK and a separate CON."""
    with on_core(bench.cores.broker):
        async with (
            FakeBroker(puback_delay=0.7) as broker,
            bench.installation(broker.url) as installation,
            bench.gateway(installation) as gateway,
        ):
            report = await run_load(
                PYTHON,
                bench.cores.load,
                *bench.options(installation, gateway),
                *("--mode", "req", "-n", min(200, bench.scale.most_devices)),
                *("-d", bench.scale.duration + 1.0),
            )
            metrics = await gateway.metrics()
            separate = metrics["coapgate_separate_responses_total"]
            sample = per_operation(report, await faults(gateway))
            return replace(sample, notes={"separate_responses": separate})


async def measure_recovery(bench: Bench) -> Sample:
    """SIGKILL, start again at the same address, and a request of each device: no handshake.

    The cost of one association is the CPU time from start to serving, less that of a start without
    any; the rate follows from the time that passes. Of several starts the quickest counts: what
    else the machine does can only add to it.
    """
    count = bench.scale.recovered_devices
    async with bench.installation() as installation, AsyncExitStack() as stack:
        empty = [await _start_and_kill(bench, installation, None) for _ in range(STARTS)]
        async with bench.gateway(installation) as gateway:
            address = gateway.address
            options = (*bench.options(installation, gateway), "--mode", "recovery", "-n", count)
            command = (*PYTHON.command, *map(str, options), "--pid", "0")
            with on_core(bench.cores.load):
                devices = await stack.enter_async_context(started(*command, env=environment()))
            await devices.until(b"ready\n")
            await _kill(gateway)
        full = [await _start_and_kill(bench, installation, address) for _ in range(STARTS)]
        async with bench.gateway(installation, address) as again:
            devices.write(b"\n")
            await devices.end()
            report = parse_report(PYTHON, devices.output)
            wrong = await faults(again) | errors(report)
            metrics = await again.metrics()
    done = "coapgate_handshakes_completed_total"
    handshakes = sum(value for name, value in metrics.items() if name.startswith(done))
    recovered = metrics["coapgate_associations_recovered_total"]
    wrong |= {"handshakes": handshakes, "not recovered": count - recovered}
    wrong["unanswered"] = count - report["ops"] - report["err"]
    seconds, cpu = (
        max(min(with_them) - min(without), 1e-3)
        for with_them, without in zip(
            zip(*full, strict=True), zip(*empty, strict=True), strict=True
        )
    )
    return Sample(
        *(cpu * 1e6 / count, count / seconds, report["p50_ms"], report["p99_ms"]),
        wrong,
        {"handshakes": handshakes, "associations": recovered},
    )


STARTS = 3


async def _start_and_kill(
    bench: Bench, installation: Installation, address: tuple[str, int] | None
) -> tuple[float, float]:
    """Seconds, and seconds of CPU, until a gateway serves."""
    begun = time.monotonic()
    async with bench.gateway(installation, address) as gateway:
        took, cpu = time.monotonic() - begun, cpu_seconds(gateway.pid)
        await _kill(gateway)
    return took, cpu


async def _kill(gateway: GatewayProcess) -> None:
    gateway.program.kill()
    await gateway.program.end()


def per_operation(report: Report, wrong: dict[str, float]) -> Sample:
    """What a load generator reports about operations, as a sample."""
    return Sample(
        report["srv_cpu_us_per_op"],
        report["ops_per_s"],
        report["p50_ms"],
        report["p99_ms"],
        wrong | errors(report) | ({} if report["ops"] else {"runs without an answer": 1}),
        {"load_us": report["cli_cpu_us_per_op"], "server_use": report["srv_cpu_util"]},
    )


def errors(report: Report) -> dict[str, float]:
    return {
        "wrong answers": report["err"],
        "unanswered": report["timeouts"],
        "failed handshakes": report["hs_fail"],
    }


async def faults(gateway: GatewayProcess) -> dict[str, float]:
    """What the gateway itself counts as its mistakes."""
    metrics = await gateway.metrics()
    return {"internal errors": metrics["coapgate_internal_errors_total"]}


_X509 = ("--auth", "x509")
_HANDSHAKES = ("--mode", "hs", "-n", 16, *SPREAD)
MEASUREMENTS: dict[str, Measurement] = {
    FLOOR: Measurement("UDP echo in Python, 50 devices", MICROSECONDS, measure_floor),
    "handshake-psk": Measurement("PSK handshake", MICROSECONDS, by_load(*_HANDSHAKES)),
    "handshake-x509": Measurement(
        "X.509 handshake, mutual", MICROSECONDS, by_load(*_HANDSHAKES, *_X509)
    ),
    **{
        f"request-{count}": Measurement(
            f"request, {count} device{'s' * (count > 1)}",
            MICROSECONDS,
            by_load("--mode", "req", "-n", count),
        )
        for count in (1, 50, 500)
    },
    "request-5000": Measurement("request, 5,000 devices", MICROSECONDS, requests_of_most()),
    **{
        f"rounds-{count}{'-cid' * with_cid}": Measurement(
            f"request, {count} devices in rounds, with{'' if with_cid else 'out'} CID",
            MICROSECONDS,
            by_load("--mode", "req", "-n", count, *(["--cid"] * with_cid), python=True),
        )
        for count in (50, 500)
        for with_cid in (False, True)
    },
    "slow-broker": Measurement("request, broker takes 0.7 s", MICROSECONDS, measure_slow_broker),
    "storm": Measurement("reconnect storm, each device", MICROSECONDS, measure_storm),
    "recovery": Measurement("recovery of an association", MICROSECONDS, measure_recovery),
    "observe-one": Measurement(
        "notification to 1 of 10,000 observers", MICROSECONDS, observers.measure_one
    ),
    "observe-all": Measurement(
        "notification to each of 10,000 observers", MICROSECONDS, observers.measure_all
    ),
    "idle": Measurement("idle association", KIBIBYTES, measure_idle),
}


async def repeat(
    bench: Bench, names: list[str], repeats: int, tell: Callable[[str], None]
) -> dict[str, list[Sample]]:
    """Measure each so many times, all of them in turn, so that a slow minute spoils none alone."""
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for turn in range(1, repeats + 1):
        for name in names:
            tell(f"{turn} of {repeats}: {name}")
            samples[name].append(await MEASUREMENTS[name].measure(bench))
    return samples
