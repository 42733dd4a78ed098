"""`coapgate anchor`: certificates that are believed without proof."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coapgate.cli import output
from coapgate.cli.devices import Labels, parse_labels
from coapgate.cli.options import (
    AsJson,
    ConfigFile,
    days,
    open_registry,
    parse_anchor_name,
    parse_tenant,
)
from coapgate.errors import CertificateError, Failed, Misused
from coapgate.model import DEFAULT_TENANT, AnchorState, DeviceIdSource, Tenant, TrustAnchor

if TYPE_CHECKING:
    from cryptography import x509

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Trust anchors: whose certificates are believed.",
)

DAY = 86_400.0
RECENT_DAYS = (30, 90)
"""`anchor show` counts the devices that used an anchor in so many days."""

_MAX_FILE_SIZE = 1 << 20
_CRL_MODES = ("soft", "hard")

MaxValidity = Annotated[
    float | None,
    typer.Option(
        "--max-validity",
        min=0,
        metavar="DAYS",
        help="Refuse certificates of devices that are valid for longer.",
    ),
]
CrlFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--crl",
        metavar="FILE",
        help="A revocation list of an authority below it, which the gateway watches; "
        "may be repeated.",
    ),
]
_CRL_MODE = typer.Option(
    "--crl-mode",
    metavar="MODE",
    help="When a list is stale: soft lets devices in still, hard does not.",
)

AnchorName = Annotated[str, typer.Argument(metavar="NAME", help="As `anchor list` shows it.")]


@app.command()
def add(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.pem", help="The certificate of a root or intermediate.")
    ],
    config: ConfigFile,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="What you call it; any name.")
    ],
    tenant: Annotated[
        str | None,
        typer.Option(
            "--tenant",
            metavar="TENANT",
            help=f'The tenant its devices belong to; "{DEFAULT_TENANT}" if not given.',
        ),
    ] = None,
    tenant_template: Annotated[
        str | None,
        typer.Option(
            "--tenant-template",
            metavar="TEXT",
            help="What of a certificate names the tenant, one of those that --serves lists: {o}.",
        ),
    ] = None,
    serves: Annotated[
        list[str] | None,
        typer.Option(
            "--serves",
            metavar="TENANT",
            help="A tenant that the template may name; may be repeated.",
        ),
    ] = None,
    device_id: Annotated[
        str,
        typer.Option(
            "--device-id",
            metavar="TEXT",
            help="What of a certificate names the device: cn, san-uri, serial-number, "
            "or a template of several: {o}:{cn}.",
        ),
    ] = DeviceIdSource.CN.value,
    auto_provision: Annotated[
        bool,
        typer.Option("--auto-provision", help="Create devices when they first connect."),
    ] = False,
    label: Labels = None,
    max_validity: MaxValidity = None,
    crl: CrlFiles = None,
    crl_mode: Annotated[str, _CRL_MODE] = "soft",
    require_proof: Annotated[
        bool,
        typer.Option(
            "--require-proof",
            help="Believe it only after `anchor prove` has shown that its key is at hand.",
        ),
    ] = False,
) -> None:
    """Believe the certificates of an authority.

    Those that chain to it speak for devices of one tenant, or of the tenant that they name.
    """
    parse_anchor_name(name)
    _check_crl_mode(crl_mode)
    source, template = _parse_device_id(device_id)
    home, tenants = _parse_tenants(tenant, tenant_template, serves or [])
    pem = read_pem(file)
    from coapgate.pki.anchors import check_rules, parse_anchor
    from coapgate.pki.proofs import make_code

    wall = time.time()
    parsed = parse_anchor(
        pem,
        name=name,
        tenant=home,
        device_id_source=source,
        auto_provision=auto_provision,
        wall=wall,
    )
    anchor = replace(
        parsed,
        state=AnchorState.STAGED if require_proof else AnchorState.ACTIVE,
        device_id_template=template,
        tenant_template=tenant_template or "",
        tenants=tenants,
        labels=parse_labels(label or []),
        max_validity=days(max_validity),
        crl_files=_absolute(crl or []),
        crl_mode=crl_mode,
        proof_code=make_code() if require_proof else "",
    )
    check_rules(anchor)
    _check_lists(anchor, wall)
    with open_registry(config, create=True) as registry:
        registry.add_anchor(anchor)
    output.say(
        f"added anchor {name!r} for {_render_tenants(anchor)}: {_subject(anchor)}, "
        f"until {_not_after(anchor)}"
    )
    output.say(f"it accepts {_accepts(anchor)}")
    if require_proof:
        output.say(f"code {anchor.proof_code}")
        output.hint(
            "it is believed once this authority has issued a certificate whose common name is the "
            f"code, and `coapgate anchor prove {name} FILE.pem` was given that"
        )
    if not auto_provision:
        output.hint(
            f"its devices are let in once `coapgate device trust DEVICE --anchor {name}` names them"
        )


@app.command()
def change(
    name: AnchorName,
    config: ConfigFile,
    certificate: Annotated[
        Path | None,
        typer.Option(
            "--certificate", metavar="FILE.pem", help="Its renewed certificate, of the same key."
        ),
    ] = None,
    auto_provision: Annotated[
        bool | None,
        typer.Option(
            "--auto-provision/--known-only",
            help="Create devices when they first connect, or only let in those that trust it.",
        ),
    ] = None,
    label: Labels = None,
    no_labels: Annotated[
        bool, typer.Option("--no-labels", help="Give new devices no labels.")
    ] = False,
    max_validity: MaxValidity = None,
    no_max_validity: Annotated[
        bool, typer.Option("--no-max-validity", help="Accept certificates of any validity.")
    ] = False,
    crl: CrlFiles = None,
    no_crl: Annotated[bool, typer.Option("--no-crl", help="Look at no lists.")] = False,
    crl_mode: Annotated[str | None, _CRL_MODE] = None,
) -> None:
    """Change what an anchor accepts; what is not named stays as it is.

    Sessions go on, but for those that a new list ends. What names devices and tenants cannot be
    changed: for that, remove the anchor and add it again.
    """
    parse_anchor_name(name)
    if (label and no_labels) or (max_validity is not None and no_max_validity) or (crl and no_crl):
        raise Misused("an option and its --no-... are given both", "say one of them")
    if crl_mode is not None:
        _check_crl_mode(crl_mode)
    wall = time.time()
    with open_registry(config) as registry:
        held = registry.get_anchor(name)
        anchor = replace(
            held if certificate is None else _renewed(held, certificate, wall),
            auto_provision=held.auto_provision if auto_provision is None else auto_provision,
            labels=() if no_labels else parse_labels(label) if label else held.labels,
            max_validity=None
            if no_max_validity
            else held.max_validity
            if max_validity is None
            else days(max_validity),
            crl_files=() if no_crl else _absolute(crl) if crl else held.crl_files,
            crl_mode=crl_mode or held.crl_mode,
        )
        if anchor == held:
            raise Misused("nothing is to be changed", "`coapgate anchor show` shows how it is")
        _check_lists(anchor, wall)
        registry.change_anchor(anchor)
    output.say(
        f"changed anchor {name!r}: it accepts {_accepts(anchor)}, until {_not_after(anchor)}"
    )


@app.command()
def prove(
    name: AnchorName,
    file: Annotated[
        Path, typer.Argument(metavar="FILE.pem", help="A certificate for the code of the anchor.")
    ],
    config: ConfigFile,
) -> None:
    """Believe an anchor whose key is at hand: it has issued a certificate for its code."""
    parse_anchor_name(name)
    pem = read_pem(file)
    from coapgate.pki.proofs import verify_proof

    with open_registry(config) as registry:
        anchor = registry.get_anchor(name)
        if anchor.state != AnchorState.STAGED:
            raise Failed(f"anchor {name!r} is {anchor.state}: no proof is wanted of it")
        verify_proof(pem, anchor, time.time())
        registry.set_anchor_state(name, AnchorState.ACTIVE)
    output.say(f"anchor {name!r} is active: its key was shown to be at hand")


@app.command()
def enable(name: AnchorName, config: ConfigFile) -> None:
    """Believe an anchor again."""
    parse_anchor_name(name)
    with open_registry(config) as registry:
        anchor = registry.get_anchor(name)
        if anchor.state == AnchorState.STAGED:
            raise Failed(
                f"anchor {name!r} is staged: nobody has shown yet that its key is at hand",
                f"let it issue a certificate whose common name is {anchor.proof_code}, "
                f"then `coapgate anchor prove {name} FILE.pem`",
            )
        registry.set_anchor_state(name, AnchorState.ACTIVE)
    output.say(f"enabled anchor {name!r}")


@app.command()
def disable(name: AnchorName, config: ConfigFile) -> None:
    """Believe an anchor no more for now; sessions below it end within seconds.

    All that is known of it stays.
    """
    parse_anchor_name(name)
    with open_registry(config) as registry:
        anchor = registry.get_anchor(name)
        if anchor.state == AnchorState.STAGED:
            raise Failed(f"anchor {name!r} is staged: it is not believed anyway")
        registry.set_anchor_state(name, AnchorState.DISABLED)
    output.say(f"disabled anchor {name!r}: certificates below it are refused from now on")
    output.hint("sessions that they opened end within seconds")


@app.command()
def show(name: AnchorName, config: ConfigFile, as_json: AsJson = False) -> None:
    """Show what an anchor accepts, and how many devices use it."""
    parse_anchor_name(name)
    now = time.time()
    with open_registry(config) as registry:
        anchor = registry.get_anchor(name)
        known = registry.anchor_devices(anchor.key_id)
        used = {
            count: registry.anchor_devices(anchor.key_id, now - count * DAY)
            for count in RECENT_DAYS
        }
    if as_json:
        uses: dict[str, output.Value] = {f"used_{count}_days": used[count] for count in used}
        output.document(_describe(anchor) | {"devices": known} | uses)
        return
    from coapgate.pki.anchors import describe_key

    rows = [
        ("anchor", anchor.name),
        ("serves", _render_tenants(anchor)),
        ("state", anchor.state),
        ("subject", _subject(anchor)),
        ("key", f"{describe_key(anchor)}, sha256:{anchor.key_id.hex()}"),
        ("until", _not_after(anchor)),
        ("accepts", _accepts(anchor)),
        ("labels", " ".join(f"{key}={value}" for key, value in anchor.labels) or "none"),
        ("revocation", _revocation(anchor)),
        ("devices", str(known)),
        *((f"used in {count} days", str(used[count])) for count in RECENT_DAYS),
    ]
    if anchor.state == AnchorState.STAGED:
        rows.insert(3, ("code", anchor.proof_code))
    output.table((), rows)
    _advise(used)


@app.command("list")
def list_(config: ConfigFile, as_json: AsJson = False) -> None:
    """List trust anchors."""
    with open_registry(config) as registry:
        anchors = registry.anchors_all()
    if as_json:
        output.documents(_describe(anchor) for anchor in anchors)
        return
    if not anchors:
        output.say("no trust anchors")
        return
    output.table(
        ("NAME", "TENANT", "DEVICE ID", "PROVISIONS", "STATE", "UNTIL", "SUBJECT"),
        [
            (
                anchor.name,
                ",".join(anchor.tenants) or anchor.tenant,
                _device_id(anchor),
                "yes" if anchor.auto_provision else "no",
                anchor.state,
                _not_after(anchor),
                _subject(anchor),
            )
            for anchor in anchors
        ],
    )


@app.command()
def remove(name: AnchorName, config: ConfigFile) -> None:
    """Believe an anchor no more; sessions below it end within seconds.

    Its devices stay, and what speaks for them comes back with it.
    """
    parse_anchor_name(name)
    with open_registry(config) as registry:
        registry.remove_anchor(name)
    output.say(f"removed anchor {name!r}: certificates below it are refused from now on")
    output.hint("devices stay; if the anchor is added again, their certificates work as before")


def _parse_device_id(text: str) -> tuple[DeviceIdSource, str]:
    """The one value that names a device, or a template besides. Raises Misused."""
    if text in set(DeviceIdSource):
        return DeviceIdSource(text), ""
    inner = text.removeprefix("{").removesuffix("}")
    if text == f"{{{inner}}}" and inner in set(DeviceIdSource):
        return DeviceIdSource(inner), ""
    if "{" not in text:
        sources = ", ".join(DeviceIdSource)
        raise Misused(
            f"--device-id {text!r} is no part of a certificate that names a device",
            f"one of {sources}, or a template: {{o}}:{{cn}}",
        )
    return DeviceIdSource.CN, text


def _parse_tenants(
    tenant: str | None, template: str | None, serves: list[str]
) -> tuple[Tenant, tuple[Tenant, ...]]:
    """The tenant of an anchor, and those that its template may name. Raises Misused."""
    tenants = tuple(dict.fromkeys(parse_tenant(each) for each in serves))
    if template is None and tenants:
        raise Misused(
            "--serves comes without --tenant-template", "or say --tenant for a single one"
        )
    if template is None:
        return parse_tenant(DEFAULT_TENANT if tenant is None else tenant), ()
    if tenant is not None:
        raise Misused(
            "--tenant and --tenant-template are given both",
            "a template names one of the tenants that --serves lists",
        )
    if not tenants:
        raise Misused(
            "--tenant-template comes without --serves",
            "a certificate must not invent a tenant: name each one that it may lead to",
        )
    return tenants[0], tenants


def _check_crl_mode(text: str) -> None:
    """Raises Misused."""
    if text not in _CRL_MODES:
        raise Misused(
            f"--crl-mode {text!r} is neither soft nor hard",
            "`coapgate anchor add --help` says which does what",
        )


def _absolute(files: list[Path]) -> tuple[str, ...]:
    """As the gateway finds them, wherever it runs."""
    return tuple(str(file.absolute()) for file in files)


def _renewed(anchor: TrustAnchor, file: Path, wall: float) -> TrustAnchor:
    """An anchor with a new certificate of its key. Raises CertificateError, Misused."""
    from coapgate.pki.anchors import parse_anchor

    parsed = parse_anchor(
        read_pem(file),
        name=anchor.name,
        tenant=anchor.tenant,
        device_id_source=anchor.device_id_source,
        auto_provision=anchor.auto_provision,
        wall=wall,
    )
    if parsed.key_id != anchor.key_id:
        raise CertificateError(
            f"{str(file)!r} has another public key than anchor {anchor.name!r}",
            "another key is another anchor: `coapgate anchor add` it, and remove this one "
            "when `coapgate anchor show` says that no device uses it any more",
        )
    return replace(anchor, certificate=parsed.certificate)


def _check_lists(anchor: TrustAnchor, wall: float) -> None:
    """Raises CertificateError for a list that could not be used."""
    from coapgate.pki.revocation import load_lists

    for file in anchor.crl_files:
        load_lists(Path(file), anchor, wall)


def read_pem(file: Path) -> bytes:
    """The octets of a file. Raises Misused."""
    try:
        with file.open("rb") as opened:
            octets = opened.read(_MAX_FILE_SIZE + 1)
    except OSError as error:
        raise Misused(
            f"cannot read {str(file)!r}: {error.strerror}", "give a certificate, in PEM"
        ) from error
    if len(octets) > _MAX_FILE_SIZE:
        raise Misused(f"{str(file)!r} is too large", "give one certificate, in PEM")
    return octets


def _advise(used: dict[int, int]) -> None:
    longest = max(used)
    if used[longest]:
        devices = "1 device" if used[longest] == 1 else f"{used[longest]} devices"
        output.hint(f"without it {devices} would be kept out")
    else:
        output.hint(
            f"no session by it is known of for {longest} days: removing it should keep nobody out"
        )


def _device_id(anchor: TrustAnchor) -> str:
    return anchor.device_id_template or str(anchor.device_id_source)


def _render_tenants(anchor: TrustAnchor) -> str:
    if not anchor.tenant_template:
        return f"tenant {anchor.tenant!r}"
    names = ", ".join(map(repr, anchor.tenants))
    return f"the tenant that {anchor.tenant_template} names, of {names}"


def _accepts(anchor: TrustAnchor) -> str:
    template = anchor.device_id_template or f"{{{anchor.device_id_source}}}"
    limit = "" if anchor.max_validity is None else f", valid for {anchor.max_validity / DAY:g} days"
    whom = "any device" if anchor.auto_provision else "devices that trust it"
    return f"certificates of {whom}, which {template} names{limit}"


def _revocation(anchor: TrustAnchor) -> str:
    if not anchor.crl_files:
        return "no lists"
    return f"{', '.join(anchor.crl_files)} ({anchor.crl_mode})"


def _describe(anchor: TrustAnchor) -> dict[str, output.Value]:
    return {
        "name": anchor.name,
        "tenant": anchor.tenant,
        "tenant_template": anchor.tenant_template or None,
        "tenants": list(anchor.tenants),
        "device_id": _device_id(anchor),
        "auto_provision": anchor.auto_provision,
        "labels": dict(anchor.labels),
        "max_validity": anchor.max_validity,
        "crl_files": list(anchor.crl_files),
        "crl_mode": anchor.crl_mode,
        "state": anchor.state,
        "subject": _subject(anchor),
        "not_after": _not_after(anchor),
        "key_id": anchor.key_id.hex(),
    }


def _subject(anchor: TrustAnchor) -> str:
    return _parsed(anchor).subject.rfc4514_string() or "(no subject)"


def _not_after(anchor: TrustAnchor) -> str:
    return output.time(_parsed(anchor).not_valid_after_utc.timestamp())


def _parsed(anchor: TrustAnchor) -> x509.Certificate:
    from cryptography import x509

    # It parsed when it was added.
    return x509.load_der_x509_certificate(anchor.certificate)
