"""`coapgate explain`: would this device be let in, as whom, and if not, why and what to do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from coapgate.cli import output
from coapgate.cli.keys import Key, KeyFile, read_key
from coapgate.cli.options import AsJson, ConfigFile, open_registry
from coapgate.errors import Misused


def explain(
    config: ConfigFile,
    cert: Annotated[
        Path | None,
        typer.Option(
            "--cert",
            metavar="FILE",
            help="What a device would show: its certificate, then those of intermediates, in PEM.",
        ),
    ] = None,
    psk_identity: Annotated[
        str | None,
        typer.Option(
            "--psk-identity", metavar="TEXT", help="What a device would claim. hex:... for octets."
        ),
    ] = None,
    key: Key = None,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a device would be let in now, as whom, and if not, why and what to do.

    Decided by what a gateway would decide by, without any effect: no device comes into being. With
    an identity, --key or --key-file says the key that the device holds. Exit code 0 means that it
    would be let in, 1 that it would not.
    """
    if (cert is None) == (psk_identity is None):
        raise Misused("say one of --cert and --psk-identity", "`coapgate explain --help` says more")
    if key is not None and key_file is not None:
        raise Misused("say one of --key and --key-file")
    if cert is not None and (key is not None or key_file is not None):
        raise Misused("a key goes with --psk-identity", "of a certificate no key is asked for")
    import asyncio

    from coapgate.cli.explained_chain import explain_chain
    from coapgate.cli.explained_identity import explain_identity
    from coapgate.cli.rehearsal import Rehearsal
    from coapgate.config import load
    from coapgate.registry.psk import parse_identity, parse_key

    wall = time.time()
    settings = load(config)
    with open_registry(config) as registry:
        rehearsal = Rehearsal(registry, settings)
        if cert is not None:
            explanation = asyncio.run(explain_chain(cert, rehearsal, registry, wall))
        else:
            assert psk_identity is not None
            given = read_key(key_file, allow_weak=True) if key_file is not None else None
            if key is not None:
                given = parse_key(key, allow_weak=True)
            identity = parse_identity(psk_identity)
            explanation = asyncio.run(explain_identity(identity, given, rehearsal, registry, wall))
    if as_json:
        output.document(explanation.describe())
    else:
        explanation.say()
    if not explanation.is_let_in:
        raise typer.Exit(1)
