"""`coapgate simulate`: the options of a fleet that load-tests a server of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coapgate.cli.options import AsJson
from coapgate.registry.batches import DEVICE_FIELD
from coapgate.simulated.fleet.bounds import CONNECT_RATE, MAX_PAYLOAD_LENGTH, MAX_RATE

_PAYLOAD = b"simulated "


def simulate(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="The server: coaps://HOST[:PORT][/PATH]."),
    ],
    rate: Annotated[
        float,
        typer.Option("--rate", metavar="R", help="Requests a second, of all devices together."),
    ],
    devices: Annotated[
        int | None,
        typer.Option("--devices", min=1, metavar="N", help="How many; else all there are."),
    ] = None,
    identities: Annotated[
        Path | None,
        typer.Option("--identities", metavar="FILE", help="CSV: identity,key, one device a line."),
    ] = None,
    psk_batch: Annotated[
        Path | None,
        typer.Option(
            "--psk-batch",
            metavar="FILE",
            help="The master key of a batch: devices have keys derived from it. - is standard "
            "input.",
        ),
    ] = None,
    psk_pattern: Annotated[
        str,
        typer.Option(
            "--psk-pattern",
            metavar="TEXT",
            help="The pattern of that batch: acme-{device}. Devices are sim-1, sim-2 ...",
        ),
    ] = DEVICE_FIELD,
    certificates: Annotated[
        Path | None,
        typer.Option(
            "--certificates", metavar="DIR", help="DEVICE.pem and DEVICE.key of every device."
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option("--ca", metavar="FILE", help="Whom devices with certificates believe."),
    ] = None,
    duration: Annotated[
        float, typer.Option("--duration", metavar="S", help="Seconds of requests.")
    ] = 10.0,
    size: Annotated[
        int,
        typer.Option(
            "--size", min=0, max=MAX_PAYLOAD_LENGTH, metavar="OCTETS", help="Payload of a request."
        ),
    ] = 100,
    cid: Annotated[bool, typer.Option("--cid", help="Offer a Connection ID (RFC 9146).")] = False,
    sleep: Annotated[
        bool, typer.Option("--sleep", help="Devices have no socket between their requests.")
    ] = False,
    move_every: Annotated[
        int,
        typer.Option(
            "--move-every", min=0, metavar="K", help="Another source port after K requests."
        ),
    ] = 0,
    loss: Annotated[
        float, typer.Option("--loss", metavar="P", help="Share of datagrams to drop each way.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of what is random.")] = 0,
    observe: Annotated[
        str | None,
        typer.Option("--observe", metavar="PATH", help="Every device observes PATH as well."),
    ] = None,
    connect_rate: Annotated[
        float, typer.Option("--connect-rate", metavar="H", help="Handshakes a second.")
    ] = CONNECT_RATE,
    max_rate: Annotated[
        float,
        typer.Option(
            "--max-rate", metavar="M", help="Neither of the rates may exceed it: a safety catch."
        ),
    ] = MAX_RATE,
    as_json: AsJson = False,
) -> None:
    """Load-test a server of your own with a fleet of devices, over real DTLS.

    Exit code 0 if every device got in and every request was answered well, else 1.
    """
    from coapgate.cli.fleet import Source, run
    from coapgate.simulated.fleet.plan import Plan
    from coapgate.simulated.fleet.target import parse_target

    server = parse_target(target)
    plan = Plan(
        rate=rate,
        duration=duration,
        path=server.path,
        payload=(_PAYLOAD * (size // len(_PAYLOAD) + 1))[:size],
        connect_rate=connect_rate,
        max_rate=max_rate,
        connection_id=cid,
        sleep=sleep,
        move_every=move_every,
        loss=loss,
        seed=seed,
        observe=() if observe is None else tuple(observe.strip("/").encode().split(b"/")),
    )
    credentials = Source(identities, certificates, ca, psk_batch, psk_pattern).read(server, devices)
    run(server, plan, credentials, as_json=as_json)
