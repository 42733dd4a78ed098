"""`coapgate anchor`: certificates that are believed without proof."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from coapgate.cli import anchor_facts, output
from coapgate.cli.anchor_rules import (
    absolute,
    check_crl_mode,
    check_lists,
    parse_device_id,
    parse_tenants,
    read_pem,
    renewed,
)
from coapgate.cli.devices import Labels, parse_labels
from coapgate.cli.options import (
    AsJson,
    ConfigFile,
    days,
    open_registry,
    parse_anchor_name,
)
from coapgate.errors import Failed, Misused
from coapgate.model import DEFAULT_TENANT, AnchorState, DeviceIdSource

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Trust anchors: whose certificates are believed.",
)

RECENT_DAYS = (30, 90)
"""`anchor show` counts the devices that used an anchor in so many days."""


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
    check_crl_mode(crl_mode)
    source, template = parse_device_id(device_id)
    home, tenants = parse_tenants(tenant, tenant_template, serves or [])
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
        crl_files=absolute(crl or []),
        crl_mode=crl_mode,
        proof_code=make_code() if require_proof else "",
    )
    check_rules(anchor)
    check_lists(anchor, wall)
    with open_registry(config, create=True) as registry:
        registry.add_anchor(anchor)
    output.say(
        f"added anchor {name!r} for {anchor_facts.tenants(anchor)}: "
        f"{anchor_facts.subject(anchor)}, until {anchor_facts.not_after(anchor)}"
    )
    output.say(f"it accepts {anchor_facts.accepts(anchor)}")
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
        check_crl_mode(crl_mode)
    from coapgate.pki.anchors import check_rules

    wall = time.time()
    with open_registry(config) as registry:
        held = registry.get_anchor(name)
        anchor = replace(
            held if certificate is None else renewed(held, certificate, wall),
            auto_provision=held.auto_provision if auto_provision is None else auto_provision,
            labels=() if no_labels else parse_labels(label) if label else held.labels,
            max_validity=None
            if no_max_validity
            else held.max_validity
            if max_validity is None
            else days(max_validity),
            crl_files=() if no_crl else absolute(crl) if crl else held.crl_files,
            crl_mode=crl_mode or held.crl_mode,
        )
        if anchor == held:
            raise Misused("nothing is to be changed", "`coapgate anchor show` shows how it is")
        check_rules(anchor)
        check_lists(anchor, wall)
        registry.change_anchor(anchor)
    output.say(
        f"changed anchor {name!r}: it accepts {anchor_facts.accepts(anchor)}, "
        f"until {anchor_facts.not_after(anchor)}"
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
        registry.set_anchor_state(name, AnchorState.ACTIVE, was=anchor)
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
        registry.set_anchor_state(name, AnchorState.ACTIVE, was=anchor)
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
        registry.set_anchor_state(name, AnchorState.DISABLED, was=anchor)
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
            count: registry.anchor_devices(anchor.key_id, now - count * anchor_facts.DAY)
            for count in RECENT_DAYS
        }
    if as_json:
        uses: dict[str, output.Value] = {f"used_{count}_days": used[count] for count in used}
        output.document(anchor_facts.describe(anchor) | {"devices": known} | uses)
        return
    from coapgate.pki.anchors import describe_key

    rows = [
        ("anchor", anchor.name),
        ("serves", anchor_facts.tenants(anchor)),
        ("state", anchor.state),
        ("subject", anchor_facts.subject(anchor)),
        ("key", f"{describe_key(anchor)}, sha256:{anchor.key_id.hex()}"),
        ("until", anchor_facts.not_after(anchor)),
        ("accepts", anchor_facts.accepts(anchor)),
        ("labels", " ".join(f"{key}={value}" for key, value in anchor.labels) or "none"),
        ("revocation", anchor_facts.revocation(anchor)),
        ("devices", str(known)),
        *((f"used in {count} days", str(used[count])) for count in RECENT_DAYS),
    ]
    if anchor.state == AnchorState.STAGED:
        rows.insert(3, ("code", anchor.proof_code))
    output.table((), rows)
    anchor_facts.advise(used)


@app.command("list")
def list_(config: ConfigFile, as_json: AsJson = False) -> None:
    """List trust anchors."""
    with open_registry(config) as registry:
        anchors = registry.anchors_all()
    if as_json:
        output.documents(anchor_facts.describe(anchor) for anchor in anchors)
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
                anchor_facts.device_id(anchor),
                "yes" if anchor.auto_provision else "no",
                anchor.state,
                anchor_facts.not_after(anchor),
                anchor_facts.subject(anchor),
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
    from coapgate.pki.anchors import issuers_of

    with open_registry(config) as registry:
        removed = registry.remove_anchor(name)
        above = issuers_of(removed, registry.anchors_all())
    if above:
        output.say(f"removed anchor {name!r}")
        output.hint(
            f"anchor {above[0]!r} issued it and vouches for it still, so certificates below it may "
            f"be accepted there: add it again and `coapgate anchor disable {name}`, or `coapgate "
            f"certificate revoke --anchor {above[0]} --file` its certificate"
        )
        return
    output.say(f"removed anchor {name!r}: certificates below it are refused from now on")
    output.hint("devices stay; if the anchor is added again, their certificates work as before")
