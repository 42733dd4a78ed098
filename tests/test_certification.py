"""What a chain proves by the rules of its anchor and what is revoked below it, then and later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from coapgate.authentication import Authentication
from coapgate.errors import Reason, Refused, RegistryError
from coapgate.model import (
    DEFAULT_TENANT,
    AnchorState,
    DeviceId,
    DeviceIdSource,
    Identity,
    Tenant,
    TrustAnchor,
)
from coapgate.pki.anchors import parse_anchor
from coapgate.pki.factory import DAY, FactoryCa, IssuedCertificate
from coapgate.pki.revocation import key_id_of, parse_lists
from coapgate.pki.revoked import issuer_mark
from coapgate.registry.base import RevokedCertificate
from coapgate.registry.memory import MemoryRegistry
from coapgate.registry.sqlite import SqliteRegistry

WALL = 1_800_000_000.0
SENSOR_7 = DeviceId("sensor-7")

Books = MemoryRegistry | SqliteRegistry

ROOT = FactoryCa.create("Acme Root", wall=WALL)
FACTORY = ROOT.intermediate("Acme Factory 1")


@pytest.fixture(params=["memory", "sqlite"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Books]:
    if request.param == "memory":
        yield MemoryRegistry()
    else:
        with SqliteRegistry.open("sqlite:///r.db", tmp_path / "r.key", tmp_path) as opened:
            yield opened


def anchor_of(
    ca: FactoryCa = ROOT, name: str = "factory", *, tenant: str = "default"
) -> TrustAnchor:
    return parse_anchor(
        ca.certificate_pem,
        name=name,
        tenant=Tenant(tenant),
        device_id_source=DeviceIdSource.CN,
        auto_provision=True,
        wall=WALL,
    )


class Witnesses:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.created: list[tuple[str, str]] = []

    def promoted(self, identity: Identity) -> None:
        raise AssertionError("no key was used")

    def not_promoted(self, identity: Identity, error: RegistryError) -> None:
        raise AssertionError("no key was used")

    def provisioned_by(self, identity: Identity, by: str) -> None:
        self.created.append((identity.device, by))


async def refused(authentication: Authentication, chain: tuple[bytes, ...]) -> Refused:
    with pytest.raises(Refused) as caught:
        await authentication.judge_chain(chain, WALL)
    return caught.value


async def still_good(authentication: Authentication, identity: Identity) -> Reason | None:
    """Why a live association of this identity would be ended; None: it goes on."""
    try:
        await authentication.review(identity, WALL)
    except Refused as caught:
        return caught.reason
    return None


def fingerprint_of(issued: IssuedCertificate) -> bytes:
    from hashlib import sha256

    return sha256(issued.chain[0]).digest()


def serial_of(der: bytes) -> int:
    return x509.load_der_x509_certificate(der).serial_number


def serial_octets(der: bytes) -> bytes:
    serial = serial_of(der)
    return serial.to_bytes((serial.bit_length() + 7) // 8, "big")


# --- revoked by command


async def test_a_certificate_revoked_by_command_is_refused_and_its_session_reviewed(
    registry: Books,
) -> None:
    registry.add_anchor(anchor_of())
    authentication = Authentication(registry)
    lost, other = FACTORY.issue_device("sensor-7"), FACTORY.issue_device("sensor-8")
    identity = await authentication.judge_chain(lost.chain, WALL)
    untouched = await authentication.judge_chain(other.chain, WALL)
    revoked = RevokedCertificate(anchor_of().key_id, fingerprint=fingerprint_of(lost)[:16])

    assert await still_good(authentication, identity) is None
    registry.revoke_certificate(revoked)

    assert await still_good(authentication, identity) is Reason.REVOKED
    assert await still_good(authentication, untouched) is None
    refusal = await refused(authentication, lost.chain)
    assert refusal.reason is Reason.REVOKED
    assert refusal.proven == ("default", "sensor-7", identity.credential)
    await authentication.judge_chain(other.chain, WALL)


async def test_a_certificate_is_revoked_by_its_serial_number_below_its_anchor_alone(
    registry: Books,
) -> None:
    other = FactoryCa.create("Other Root", wall=WALL)
    registry.add_anchor(anchor_of())
    registry.add_anchor(anchor_of(other, "other", tenant="other"))
    issued = ROOT.issue_device("sensor-7")
    serial = serial_octets(issued.chain[0])
    authentication = Authentication(registry)

    registry.revoke_certificate(RevokedCertificate(anchor_of(other).key_id, serial=serial))
    identity = await authentication.judge_chain(issued.chain, WALL)
    assert await still_good(authentication, identity) is None

    issuer = issuer_mark(key_id_of(ROOT.certificate))
    registry.revoke_certificate(
        RevokedCertificate(anchor_of().key_id, serial=serial, issuer=issuer)
    )
    assert await still_good(authentication, identity) is Reason.REVOKED


async def test_a_revoked_certificate_brings_no_device_into_being(registry: Books) -> None:
    registry.add_anchor(anchor_of())
    issued = ROOT.issue_device("sensor-7")
    registry.revoke_certificate(
        RevokedCertificate(anchor_of().key_id, fingerprint=fingerprint_of(issued)[:16])
    )

    refusal = await refused(Authentication(registry), issued.chain)

    assert refusal.reason is Reason.REVOKED
    assert refusal.proven is None
    assert refusal.claimed == b"CN=sensor-7"
    assert await registry.find_device(DEFAULT_TENANT, SENSOR_7) is None


async def test_what_is_revoked_below_an_intermediate_does_not_come_back_by_its_root(
    registry: Books,
) -> None:
    line = anchor_of(FACTORY, "line")
    registry.add_anchor(anchor_of())
    registry.add_anchor(line)
    stolen, lost, good = (FACTORY.issue_device(name) for name in ("stolen", "lost", "good"))
    authentication = Authentication(registry)

    registry.revoke_certificate(
        RevokedCertificate(line.key_id, fingerprint=fingerprint_of(stolen)[:16])
    )
    registry.revoke_certificate(
        RevokedCertificate(line.key_id, serial=serial_octets(lost.chain[0]))
    )
    registry.remove_anchor("line")

    for chain in (stolen.chain, lost.chain):
        assert (await refused(authentication, chain)).reason is Reason.REVOKED
    identity = await authentication.judge_chain(good.chain, WALL)
    assert identity.anchor == anchor_of().key_id


async def test_below_a_disabled_anchor_nobody_comes_in_by_its_root(registry: Books) -> None:
    line = anchor_of(FACTORY, "line")
    registry.add_anchor(anchor_of())
    chain = FACTORY.issue_device("sensor-7").chain
    authentication = Authentication(registry)
    by_root = await authentication.judge_chain(chain, WALL)
    beside = await authentication.judge_chain(ROOT.issue_device("sensor-8").chain, WALL)
    registry.add_anchor(line)
    assert not (await authentication.see_revoked())(by_root)

    registry.set_anchor_state("line", AnchorState.DISABLED)

    assert (await refused(authentication, chain)).reason is Reason.UNTRUSTED
    assert await still_good(authentication, by_root) is Reason.UNTRUSTED
    assert await still_good(authentication, beside) is None
    is_revoked = await authentication.see_revoked()
    assert is_revoked(by_root)
    assert not is_revoked(beside)
    registry.remove_anchor("line")
    await authentication.judge_chain(chain, WALL)


async def test_whom_a_command_or_a_list_names_is_told_without_asking_again(
    registry: Books,
) -> None:
    registry.add_anchor(anchor_of())
    authentication = Authentication(registry)
    devices = [ROOT.issue_device(f"sensor-{number}") for number in range(4)]
    identities = [await authentication.judge_chain(each.chain, WALL) for each in devices]

    async def named() -> list[int]:
        is_revoked = await authentication.see_revoked()
        return [number for number, each in enumerate(identities) if is_revoked(each)]

    marks = [
        RevokedCertificate(anchor_of().key_id, fingerprint=fingerprint_of(each)[:16])
        for each in devices
    ]
    assert await named() == []
    registry.revoke_certificate(marks[0])
    assert await named() == [0]
    registry.revoke_certificate(marks[1])
    registry.revoke_certificate(marks[2])
    assert await named() == [0, 1, 2]
    use_list(authentication, devices[3].chain[0])
    assert await named() == [0, 1, 2, 3]
    registry.restore_certificate(marks[1])
    registry.revoke_certificate(marks[1])
    registry.restore_certificate(marks[0])
    assert await named() == [1, 2, 3]


# --- revoked by a list


def use_list(
    authentication: Authentication, *certificates: bytes, next_update: float = WALL + DAY
) -> None:
    """A list of the root comes into force."""
    signed = ROOT.sign_list(
        dict.fromkeys(map(serial_of, certificates), WALL), next_update=next_update
    )
    anchor = anchor_of()
    lists = parse_lists(signed.public_bytes(Encoding.PEM), anchor, WALL)
    authentication.use_lists(anchor.key_id, {"factory.crl": lists})


async def test_a_list_that_revokes_an_intermediate_ends_all_below_it(registry: Books) -> None:
    registry.add_anchor(anchor_of())
    authentication = Authentication(registry)
    chain = FACTORY.issue_device("sensor-7").chain
    below = await authentication.judge_chain(chain, WALL)
    beside = await authentication.judge_chain(ROOT.issue_device("sensor-8").chain, WALL)

    use_list(authentication, FACTORY.chain[0])

    assert await still_good(authentication, below) is Reason.REVOKED
    assert await still_good(authentication, beside) is None
    assert (await refused(authentication, chain)).reason is Reason.REVOKED
    # A later list that does not name it lets it in again: it was on hold.
    use_list(authentication)
    assert await still_good(authentication, below) is None
    await authentication.judge_chain(chain, WALL)


async def test_a_stale_list_refuses_handshakes_if_hard_and_ends_no_session(registry: Books) -> None:
    registry.add_anchor(replace(anchor_of(), crl_mode="hard", crl_files=("factory.crl",)))
    authentication = Authentication(registry)
    chain = ROOT.issue_device("sensor-7").chain
    assert (await refused(authentication, chain)).reason is Reason.UNAVAILABLE

    use_list(authentication)
    identity = await authentication.judge_chain(chain, WALL)
    use_list(authentication, next_update=WALL - 1)

    refusal = await refused(authentication, chain)
    assert refusal.reason is Reason.UNAVAILABLE
    assert refusal.detail == "an issuer's revocation list is stale"
    assert await still_good(authentication, identity) is None


async def test_until_a_list_was_read_nobody_new_is_let_in_in_soft_mode_too(registry: Books) -> None:
    registry.add_anchor(replace(anchor_of(), crl_files=("factory.crl", "more.crl")))
    authentication = Authentication(registry)
    chain = ROOT.issue_device("sensor-7").chain
    for lists in ({}, {"factory.crl": ()}, {"other.crl": ()}):
        authentication.use_lists(anchor_of().key_id, lists)
        refusal = await refused(authentication, chain)
        assert refusal.reason is Reason.UNAVAILABLE
        assert refusal.detail == "a revocation list could not be read yet"

    authentication.use_lists(anchor_of().key_id, {"factory.crl": (), "more.crl": ()})
    identity = await authentication.judge_chain(chain, WALL)

    # Another file is named that was not read yet: what was good before goes on.
    registry.change_anchor(replace(anchor_of(), crl_files=("new.crl",)))
    assert (await refused(authentication, chain)).reason is Reason.UNAVAILABLE
    assert await still_good(authentication, identity) is None


async def test_without_a_list_again_nothing_is_revoked_by_it(registry: Books) -> None:
    registry.add_anchor(anchor_of())
    authentication = Authentication(registry)
    chain = ROOT.issue_device("sensor-7").chain
    use_list(authentication, chain[0])
    assert (await refused(authentication, chain)).reason is Reason.REVOKED

    authentication.use_lists(anchor_of().key_id, {})

    await authentication.judge_chain(chain, WALL)


# --- the rules of an anchor


def of_unit(unit: str, name: str = "sensor-7") -> tuple[bytes, ...]:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    return ROOT.issue_device("", subject=subject).chain


async def test_one_anchor_may_serve_the_tenants_of_a_list_and_no_other(registry: Books) -> None:
    tenants = (Tenant("north"), Tenant("south"))
    registry.add_anchor(replace(anchor_of(), tenant_template="{ou}", tenants=tenants))
    authentication = Authentication(registry)

    identities = [await authentication.judge_chain(of_unit(each), WALL) for each in tenants]

    assert [identity.tenant for identity in identities] == ["north", "south"]
    assert {identity.device for identity in identities} == {"sensor-7"}
    for identity in identities:
        assert await still_good(authentication, identity) is None
    assert (await refused(authentication, of_unit("east"))).reason is Reason.TENANT_MISMATCH
    assert await registry.find_device(Tenant("east"), SENSOR_7) is None
    registry.remove_device(Tenant("north"), SENSOR_7)
    assert await still_good(authentication, identities[0]) is Reason.CREDENTIAL_MISMATCH
    assert await still_good(authentication, identities[1]) is None


async def test_devices_are_named_by_the_template_of_their_anchor(registry: Books) -> None:
    registry.add_anchor(replace(anchor_of(), device_id_template="{ou}:{cn}"))

    identity = await Authentication(registry).judge_chain(of_unit("line-4"), WALL)

    assert (identity.device, identity.value) == ("line-4:sensor-7", "line-4:sensor-7")


async def test_only_the_first_of_many_first_contacts_is_told_of(registry: Books) -> None:
    registry.add_anchor(anchor_of())
    authentication = Authentication(registry)
    authentication.witness = witness = Witnesses()
    chain = ROOT.issue_device("sensor-7").chain

    await asyncio.gather(*[authentication.judge_chain(chain, WALL) for _ in range(50)])
    await authentication.judge_chain(chain, WALL)

    assert witness.created == [("sensor-7", "anchor")]


async def test_a_pair_that_was_taken_away_is_found_by_review(registry: Books) -> None:
    registry.add_anchor(anchor_of())
    registry.trust(DEFAULT_TENANT, SENSOR_7, "factory", "serial-42", create_device=True)
    registry.trust(DEFAULT_TENANT, SENSOR_7, "factory", "serial-43")
    authentication = Authentication(registry)
    identity = await authentication.judge_chain(ROOT.issue_device("serial-42").chain, WALL)

    registry.remove_device(DEFAULT_TENANT, SENSOR_7)
    registry.trust(DEFAULT_TENANT, SENSOR_7, "factory", "serial-43", create_device=True)

    assert await still_good(authentication, identity) is Reason.CREDENTIAL_MISMATCH


async def test_the_use_of_a_certificate_is_noted_once_it_let_its_device_in(
    registry: Books,
) -> None:
    registry.add_anchor(anchor_of())
    authentication = Authentication(registry)
    await authentication.judge_chain(ROOT.issue_device("sensor-7").chain, WALL)

    await registry.write_uses()

    (used,) = registry.certificates(DEFAULT_TENANT, SENSOR_7)
    assert used.used_at is not None
    assert registry.anchor_devices(anchor_of().key_id, used.used_at) == 1
