"""A fleet as `coapgate simulate` runs it: announced, watched, and summed up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from coapgate.cli import output
from coapgate.cli.fleet_report import Progress, advice, describe, rows
from coapgate.cli.keys import read_key
from coapgate.dtls.client import Credential
from coapgate.errors import Misused
from coapgate.registry.batches import DEVICE_FIELD
from coapgate.simulated.fleet.credentials import (
    derive_identities,
    read_certificates,
    read_identities,
)
from coapgate.simulated.fleet.plan import Plan
from coapgate.simulated.fleet.running import Fleet
from coapgate.simulated.fleet.sockets import raise_file_limit
from coapgate.simulated.fleet.tally import Tally
from coapgate.simulated.fleet.target import Target, look_up, render_address

REFRESH_INTERVAL = 0.5
"""Seconds between two live lines."""


@dataclass(frozen=True, slots=True)
class Source:
    """Files with the devices' credentials; None where the user named none."""

    identities: Path | None
    certificates: Path | None
    ca: Path | None
    psk_batch: Path | None = None
    psk_pattern: str = DEVICE_FIELD

    def read(self, target: Target, count: int | None) -> Sequence[Credential]:
        """The credentials of `count` devices, of all if it is None.

        Raises Misused, CertificateError.
        """
        given = (self.identities, self.certificates, self.psk_batch)
        if [each is not None for each in given].count(True) != 1:
            raise Misused(
                "say one of --identities, --psk-batch and --certificates",
                "a CSV file with identity,key, the master key of a batch, or a folder of "
                "DEVICE.pem and DEVICE.key",
            )
        if self.identities is not None:
            return read_identities(self.identities, count)
        if self.certificates is not None:
            if self.ca is None:
                raise Misused(
                    "devices with certificates must know whom to believe",
                    "--ca FILE, the certificate that the server's was signed with",
                )
            return read_certificates(self.certificates, self.ca, target.host, count)
        assert self.psk_batch is not None, "one of the three is given"
        return derive_identities(read_key(self.psk_batch), self.psk_pattern, count)


def run(target: Target, plan: Plan, credentials: Sequence[Credential], *, as_json: bool) -> None:
    """Run the fleet and print what it did.

    Raises Failed, or Misused; typer.Exit if not everything went well.
    """
    raise_file_limit(len(credentials), is_needed=not plan.sleep)
    tally = asyncio.run(_run(target, plan, credentials))
    if as_json:
        output.document(describe(str(target), len(credentials), tally))
    else:
        output.table((), rows(tally))
    if not tally.went_well:
        output.hint(advice(tally))
        raise typer.Exit(1)


async def _run(target: Target, plan: Plan, credentials: Sequence[Credential]) -> Tally:
    place = await look_up(target)
    _announce(target, render_address(place), plan, len(credentials))
    fleet = Fleet(plan, credentials, place)
    gc.freeze()  # what there is now stays until the end: no collection need look at it
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, fleet.stop)
    with _live(fleet):
        await fleet.run()
    return fleet.tally


def _announce(target: Target, address: str, plan: Plan, devices: int) -> None:
    """Name the target, and what is about to be done to it."""
    path = b"/".join(plan.path).decode(errors="backslashreplace")
    who = "1 device connects" if devices == 1 else f"{devices} devices connect"
    for line in (
        f"target: {target}, at {address}",
        f"{who}, {plan.connect_rate:g} a second; then POST /{path} with {len(plan.payload)} "
        f"octets, {plan.rate:g} a second, for {plan.duration:g} seconds",
    ):
        print(output.printable(line), file=sys.stderr, flush=True)


@contextlib.contextmanager
def _live(fleet: Fleet) -> Iterator[None]:
    """A line that follows the fleet, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    loop = asyncio.get_running_loop()
    progress = Progress(fleet, loop.time())
    timer: asyncio.Handle | None = None
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:

        def refresh() -> None:
            nonlocal timer
            live.update(Text(progress.render(loop.time()), no_wrap=True), refresh=True)
            timer = loop.call_later(REFRESH_INTERVAL, refresh)

        refresh()
        try:
            yield
        finally:
            assert timer is not None
            timer.cancel()
