"""`coapgate check`: read everything, open nothing, say what would be served."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import typer
from cryptography import x509

from coapgate.cli import output
from coapgate.config import Settings, load
from coapgate.content_files import check_folder
from coapgate.errors import CertificateError, CoapgateError, Failed
from coapgate.model import AnchorState, TrustAnchor
from coapgate.mqtt.settings import ConnectionSettings, check_files
from coapgate.pki.revocation import load_lists
from coapgate.pki.server import load_server_certificate
from coapgate.registry import schema
from coapgate.registry.sqlite import SqliteRegistry

COUNTED = 1000
"""Devices are counted up to here: a check of a large registry is as quick as one of a small."""

Row = tuple[str, str]


def check(config: Path) -> None:
    """Read the configuration and every file it names, open no port, say what would be served.

    Raises ConfigError. Whatever else is wrong is told, all of it, and ends with exit code 1.
    """
    settings = load(config)
    rows: list[Row] = []
    errors: list[CoapgateError] = []
    parts: tuple[Callable[[Settings], Iterator[Row]], ...] = (_devices, _registry, _broker, _rest)
    for part in parts:
        try:
            rows += part(settings)
        except Failed as error:
            errors.append(error)
    for problem in errors:
        output.explain(problem)
    if errors:
        raise typer.Exit(1)
    output.table((), rows)


def _devices(settings: Settings) -> Iterator[Row]:
    dtls = settings.dtls
    yield "devices connect to", ", ".join(f"coaps://{address}" for address in dtls.bind)
    if dtls.certificate is None or dtls.private_key is None:
        yield "and prove themselves", "by a key; dtls.certificate is needed for certificates"
        return
    loaded = load_server_certificate(dtls.certificate, dtls.private_key)
    leaf = x509.load_der_x509_certificate(loaded.chain[0])
    now = datetime.now(UTC)
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise CertificateError(
            f"the certificate in {str(dtls.certificate)!r} is valid from "
            f"{leaf.not_valid_before_utc:%Y-%m-%d} to {leaf.not_valid_after_utc:%Y-%m-%d}",
            "have it renewed: devices refuse it",
        )
    yield "and prove themselves", "by a key or a certificate"
    yield (
        "the gateway shows",
        f"{leaf.subject.rfc4514_string()}, EC {loaded.key.curve.name}, "
        f"until {leaf.not_valid_after_utc:%Y-%m-%d}",
    )


def _registry(settings: Settings) -> Iterator[Row]:
    registry = settings.registry
    path = schema.parse_url(registry.url, settings.base)
    if not path.exists():
        yield "registry", f"{path}, made by the first run"
        return
    opened = SqliteRegistry.open(registry.url, registry.key_file, settings.base, create=False)
    with closing(opened):
        count = sum(1 for _ in islice(opened.devices(), COUNTED + 1))
        anchors = opened.anchors_all()
        batches = [batch for batch in opened.batches() if batch.state == "active"]
    shown = f"more than {COUNTED}" if count > COUNTED else f"{count}"
    yield "registry", f"{path}, {shown} {'device' if count == 1 else 'devices'}"
    yield "trust anchors", ", ".join(map(_anchor, anchors)) if anchors else "none"
    if batches:
        yield "batches", ", ".join(f"{batch.name} ({batch.tenant})" for batch in batches)
    for anchor in anchors:
        if anchor.state == AnchorState.ACTIVE and anchor.crl_files:
            yield f"revoked below {anchor.name}", _revoked(anchor, settings.base)


def _anchor(anchor: TrustAnchor) -> str:
    tenants = ", ".join(anchor.tenants) or anchor.tenant
    return f"{anchor.name} ({tenants}{'' if anchor.state == 'active' else f'; {anchor.state}'})"


def _revoked(anchor: TrustAnchor, base: Path) -> str:
    """Raises CertificateError for a list that cannot be used."""
    wall = time.time()
    lists = [each for file in anchor.crl_files for each in load_lists(base / file, anchor, wall)]
    count = sum(len(each.revoked) for each in lists)
    end = min(each.next_update for each in lists)
    words = f"{count} {'certificate' if count == 1 else 'certificates'}, by lists"
    return f"{words} until {output.time(end)}{' (stale)' if end < wall else ''}"


def _broker(settings: Settings) -> Iterator[Row]:
    mqtt = settings.mqtt
    check_files(
        ConnectionSettings(
            host=mqtt.url.host,
            port=mqtt.url.port,
            tls=mqtt.url.tls,
            username=mqtt.username,
            password_file=mqtt.password_file,
            ca=mqtt.ca,
            certificate=mqtt.certificate,
            private_key=mqtt.private_key,
        )
    )
    user = f" as {mqtt.username!r}" if mqtt.username is not None else ""
    yield "broker", f"{mqtt.url}{user}"
    yield "topics", f"{mqtt.root}/TENANT/DEVICE/..."


def _rest(settings: Settings) -> Iterator[Row]:
    content = settings.content
    if content.folder is not None:
        check_folder(content.folder)
        yield "files", f"{content.folder}/TENANT at /{content.path}"
    yield "metrics and health", f"http://{settings.http.bind}"
    yield "log", f"{settings.log.level}, {settings.log.format}"
