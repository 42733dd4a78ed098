"""What every registry does, whatever it is kept in."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from coapgate.errors import AlreadyExists, ImportRefused, Misused, NotFound, RegistryError
from coapgate.model import Device, DeviceId, Tenant
from coapgate.registry.base import Administration, BadLine, CertificateEntry, NewDevice, Registry
from tests.registry.conftest import AnyRegistry
from tests.registry.values import (
    ACME,
    ACME_CA,
    DEFAULT,
    FACTORY,
    KEY_1,
    KEY_2,
    NOW,
    SENSOR_1,
    SENSOR_2,
)


def add_psk(
    registry: AnyRegistry,
    device: DeviceId = SENSOR_1,
    identity: bytes = b"sensor-1",
    secret: bytes = KEY_1,
    tenant: Tenant = DEFAULT,
) -> int:
    """The number of a new key of a device, which is created if need be."""
    return registry.add_psk(tenant, device, identity, secret, create_device=True).number


def test_a_registry_is_what_the_gateway_and_the_command_line_ask_for(
    registry: AnyRegistry,
) -> None:
    """mypy reads this test; running it adds nothing."""
    asked: Registry = registry
    administered: Administration = registry
    assert [asked, administered] == [registry, registry]


# Devices.


async def test_a_device_is_found_by_tenant_and_name(registry: AnyRegistry) -> None:
    device = Device(ACME, SENSOR_1, enabled=False, labels=(("floor", "2"), ("room", "Büro 7")))
    registry.add_device(device)

    assert await registry.find_device(ACME, SENSOR_1) == device
    assert await registry.find_device(DEFAULT, SENSOR_1) is None
    assert await registry.find_device(ACME, SENSOR_2) is None
    assert registry.get_device(ACME, SENSOR_1).added_at == NOW


def test_a_device_is_added_once_a_tenant(registry: AnyRegistry) -> None:
    registry.add_device(Device(DEFAULT, SENSOR_1))
    registry.add_device(Device(ACME, SENSOR_1))

    with pytest.raises(AlreadyExists, match="'sensor-1' of tenant 'acme' exists"):
        registry.add_device(Device(ACME, SENSOR_1))


@pytest.mark.parametrize("name", ["", "$SYS", "a/b", "a+b", "a#", "a b", "ä", "x" * 65, "a\n"])
def test_a_name_that_is_no_topic_level_is_refused(registry: AnyRegistry, name: str) -> None:
    with pytest.raises(Misused):
        registry.add_device(Device(DEFAULT, DeviceId(name)))
    with pytest.raises(Misused):
        registry.add_device(Device(Tenant(name), SENSOR_1))
    with pytest.raises(Misused):
        add_psk(registry, DeviceId(name))

    assert list(registry.devices()) == []


@pytest.mark.parametrize(
    "labels",
    [
        (("a b", "value"),),
        (("key", "escape \x1b[31m"),),
        (("key", "x" * 257),),
        (("b", "1"), ("a", "2")),
        (("a", "1"), ("a", "2")),
        tuple((f"label-{number:02}", "") for number in range(33)),
    ],
)
def test_labels_that_would_not_print_or_are_too_many_are_refused(
    registry: AnyRegistry, labels: tuple[tuple[str, str], ...]
) -> None:
    with pytest.raises(Misused):
        registry.add_device(Device(DEFAULT, SENSOR_1, labels=labels))


def test_devices_are_listed_in_order_with_the_number_of_their_credentials(
    registry: AnyRegistry,
) -> None:
    registry.add_anchor(FACTORY)
    registry.add_device(Device(DEFAULT, SENSOR_2))
    registry.trust(DEFAULT, SENSOR_2, "factory", "sensor-2")
    add_psk(registry, SENSOR_1)
    add_psk(registry, SENSOR_1, secret=KEY_2)
    add_psk(registry, SENSOR_1, identity=b"another")
    registry.add_device(Device(ACME, DeviceId("zulu")))

    entries = list(registry.devices())

    assert [
        (entry.device.tenant, entry.device.device, entry.psk_count, entry.certificate_count)
        for entry in entries
    ] == [("acme", "zulu", 0, 0), ("default", "sensor-1", 3, 0), ("default", "sensor-2", 0, 1)]
    assert list(registry.devices(DEFAULT)) == entries[1:]
    assert list(registry.devices(Tenant("nobody"))) == []
    assert registry.get_device(DEFAULT, SENSOR_1) == entries[1]


def test_more_devices_than_a_page_are_all_listed_once(registry: AnyRegistry) -> None:
    names = [f"sensor-{number:04}" for number in range(2000)]
    registry.import_devices(
        NewDevice(line, tenant, DeviceId(name), f"{tenant}/{name}".encode(), KEY_1)
        for line, (tenant, name) in enumerate(
            [(tenant, name) for name in names for tenant in (DEFAULT, ACME)]
        )
    )

    assert [entry.device.device for entry in registry.devices(DEFAULT)] == names
    assert [entry.device.device for entry in registry.devices()] == names * 2
    assert [entry.number for entry in registry.psks(DEFAULT)] == list(range(1, 4001, 2))


async def test_a_disabled_device_keeps_its_keys_and_says_that_it_is_disabled(
    registry: AnyRegistry,
) -> None:
    add_psk(registry)

    registry.enable_device(DEFAULT, SENSOR_1, enabled=False)
    (credential,) = await registry.find_psk(b"sensor-1")
    assert not credential.device_enabled

    registry.enable_device(DEFAULT, SENSOR_1, enabled=True)
    (credential,) = await registry.find_psk(b"sensor-1")
    assert credential.device_enabled


async def test_a_removed_device_takes_its_credentials_with_it(registry: AnyRegistry) -> None:
    registry.add_anchor(FACTORY)
    add_psk(registry, SENSOR_1)
    add_psk(registry, SENSOR_2, identity=b"sensor-2")
    registry.trust(DEFAULT, SENSOR_1, "factory", "sensor-1")

    registry.remove_device(DEFAULT, SENSOR_1)

    assert await registry.find_device(DEFAULT, SENSOR_1) is None
    assert await registry.find_psk(b"sensor-1") == ()
    assert await registry.find_certificate_device(FACTORY.key_id, "sensor-1") is None
    assert len(await registry.find_psk(b"sensor-2")) == 1
    assert add_psk(registry, SENSOR_2, identity=b"sensor-1") == 3  # it is free again


def test_a_credential_number_is_never_used_again(registry: AnyRegistry) -> None:
    assert add_psk(registry) == 1
    registry.remove_device(DEFAULT, SENSOR_1)
    assert add_psk(registry) == 2
    registry.import_devices([NewDevice(2, DEFAULT, SENSOR_2, b"2", KEY_1)])
    registry.remove_device(DEFAULT, SENSOR_2)
    assert add_psk(registry, SENSOR_2, identity=b"2") == 4


def test_what_is_not_there_is_not_found(registry: AnyRegistry) -> None:
    registry.add_anchor(FACTORY)
    registry.add_device(Device(ACME, SENSOR_1))

    for act in (
        lambda: registry.get_device(DEFAULT, SENSOR_1),
        lambda: registry.remove_device(DEFAULT, SENSOR_1),
        lambda: registry.enable_device(DEFAULT, SENSOR_1, enabled=True),
        lambda: registry.add_psk(DEFAULT, SENSOR_1, b"sensor-1", KEY_1),
        lambda: registry.trust(DEFAULT, SENSOR_1, "factory", "sensor-1"),
        lambda: registry.trust(DEFAULT, SENSOR_1, "factory", "sensor-1", create_device=True),
    ):
        with pytest.raises(NotFound, match="no device 'sensor-1' in tenant 'default'") as caught:
            act()
        assert "but one in tenant 'acme'" in str(caught.value)
        assert "--tenant acme" in caught.value.hint


# PSK credentials.


async def test_a_key_is_found_by_its_number_without_its_secret(registry: AnyRegistry) -> None:
    first = add_psk(registry, tenant=ACME)
    second = add_psk(registry, secret=KEY_2, tenant=ACME)
    keys = await registry.find_psk(b"sensor-1")

    found = [await registry.find_psk_number(number) for number in (first, second)]

    assert found == [key.without_secret() for key in keys]
    for number in (0, -1, second + 1, 10**18 - 1):
        assert await registry.find_psk_number(number) is None


async def test_a_key_found_by_its_number_is_as_it_is_now(registry: AnyRegistry) -> None:
    number = add_psk(registry)

    registry.enable_device(DEFAULT, SENSOR_1, enabled=False)
    found = await registry.find_psk_number(number)
    assert found is not None
    assert not found.device_enabled

    registry.remove_device(DEFAULT, SENSOR_1)
    add_psk(registry)
    assert await registry.find_psk_number(number) is None


async def test_a_key_is_found_by_its_identity(registry: AnyRegistry) -> None:
    number = add_psk(registry, tenant=ACME)

    (credential,) = await registry.find_psk(b"sensor-1")

    assert credential.number == number
    assert (credential.tenant, credential.device) == (ACME, SENSOR_1)
    assert (credential.identity, credential.secret) == (b"sensor-1", KEY_1)
    assert (credential.state, credential.device_enabled) == ("active", True)
    assert (credential.not_before, credential.not_after) == (None, None)
    assert KEY_1.hex() not in repr(credential)
    assert repr(KEY_1) not in repr(credential)


@pytest.mark.parametrize(
    "identity",
    [b"x", b"i" * 128, bytes(range(1, 129)), b"\xff\xfe\x80", b"device@example.com", "ä".encode()],
)
async def test_scenario_4_identities_are_looked_up_exactly(
    registry: AnyRegistry, identity: bytes
) -> None:
    add_psk(registry, identity=identity)

    assert len(await registry.find_psk(identity)) == 1
    for other in (
        identity[:-1],
        identity + b"x",
        b" " + identity,
        identity.upper(),
        identity + b"\0",
        b"",
    ):
        if other != identity:
            assert await registry.find_psk(other) == ()


@pytest.mark.parametrize("identity", [b"", b"i" * 129, b"cut\0here", b"\0"])
def test_an_identity_that_cannot_be_is_refused(registry: AnyRegistry, identity: bytes) -> None:
    with pytest.raises(Misused, match="the identity"):
        add_psk(registry, identity=identity)

    assert list(registry.devices()) == []


@pytest.mark.parametrize("length", [0, 1, 15, 65, 128])
def test_a_key_of_another_length_than_16_to_64_octets_is_refused(
    registry: AnyRegistry, length: int
) -> None:
    with pytest.raises(Misused, match=f"the key has {length} octets"):
        add_psk(registry, secret=b"k" * length)

    assert list(registry.devices()) == []


@pytest.mark.parametrize("length", [16, 32, 64])
async def test_a_key_of_16_to_64_octets_comes_back_as_it_was(
    registry: AnyRegistry, length: int
) -> None:
    secret = bytes(range(100, 100 + length))
    add_psk(registry, secret=secret)

    assert [key.secret for key in await registry.find_psk(b"sensor-1")] == [secret]


async def test_an_identity_of_the_same_device_takes_up_to_4_keys(registry: AnyRegistry) -> None:
    assert registry.max_keys_per_identity() == 1
    secrets = [bytes([number]) * 16 for number in range(5)]
    for count, secret in enumerate(secrets[:4], start=1):
        add_psk(registry, secret=secret)
        assert registry.max_keys_per_identity() == count

    with pytest.raises(RegistryError, match="has 4 keys"):
        add_psk(registry, secret=secrets[4])

    found = await registry.find_psk(b"sensor-1")
    assert [key.secret for key in found] == secrets[:4]
    assert registry.max_keys_per_identity() == 4
    registry.remove_device(DEFAULT, SENSOR_1)
    assert registry.max_keys_per_identity() == 1


def test_a_key_is_not_added_twice_to_an_identity(registry: AnyRegistry) -> None:
    number = add_psk(registry)

    with pytest.raises(AlreadyExists, match=f"has this very key already: psk-{number}"):
        add_psk(registry)

    assert add_psk(registry, identity=b"sensor-1-backup") == number + 1


def test_an_identity_belongs_to_one_device_over_all_tenants(registry: AnyRegistry) -> None:
    add_psk(registry, SENSOR_1, identity=b"shared", tenant=ACME)

    for tenant, device in ((ACME, SENSOR_2), (DEFAULT, SENSOR_1), (DEFAULT, SENSOR_2)):
        with pytest.raises(
            AlreadyExists, match="'shared' belongs to device 'sensor-1' of tenant 'acme'"
        ):
            add_psk(registry, device, identity=b"shared", secret=KEY_2, tenant=tenant)

    assert len(list(registry.devices())) == 1


def test_a_key_creates_its_device_only_if_asked_to(registry: AnyRegistry) -> None:
    with pytest.raises(NotFound):
        registry.add_psk(DEFAULT, SENSOR_1, b"sensor-1", KEY_1)
    assert list(registry.devices()) == []

    registry.add_psk(DEFAULT, SENSOR_1, b"sensor-1", KEY_1, create_device=True)
    assert [entry.device for entry in registry.devices()] == [Device(DEFAULT, SENSOR_1)]


def test_a_key_does_not_create_a_device_of_a_name_that_another_tenant_has(
    registry: AnyRegistry,
) -> None:
    registry.add_device(Device(ACME, SENSOR_1))

    with pytest.raises(NotFound, match="but one in tenant 'acme'"):
        add_psk(registry)

    registry.add_device(Device(DEFAULT, SENSOR_1))
    add_psk(registry)


def test_psks_are_listed_without_their_secrets(registry: AnyRegistry) -> None:
    add_psk(registry, SENSOR_1, b"one", tenant=ACME)
    add_psk(registry, SENSOR_2, b"two")
    add_psk(registry, SENSOR_1, b"one", KEY_2, tenant=ACME)

    entries = list(registry.psks())

    assert [(entry.number, entry.device, entry.identity) for entry in entries] == [
        (1, SENSOR_1, b"one"),
        (2, SENSOR_2, b"two"),
        (3, SENSOR_1, b"one"),
    ]
    assert {entry.added_at for entry in entries} == {NOW}
    assert list(registry.psks(ACME)) == [entries[0], entries[2]]
    assert list(registry.psks(device=SENSOR_2)) == [entries[1]]
    assert list(registry.psks(DEFAULT, SENSOR_1)) == []
    assert "secret" not in repr(entries)


# Trust anchors, and the certificates below them.


async def test_anchors_come_back_as_they_were_in_order_of_name(registry: AnyRegistry) -> None:
    disabled = replace(FACTORY, name="old", key_id=b"\x03" * 32, state="disabled")
    for anchor in (FACTORY, ACME_CA, disabled):
        registry.add_anchor(anchor)

    assert registry.anchors_all() == (ACME_CA, FACTORY, disabled)
    assert await registry.anchors() == (ACME_CA, FACTORY)


def test_one_public_key_and_one_name_is_one_anchor(registry: AnyRegistry) -> None:
    registry.add_anchor(FACTORY)

    with pytest.raises(AlreadyExists, match="this public key is anchor 'factory'"):
        registry.add_anchor(replace(FACTORY, name="other", tenant=ACME))
    with pytest.raises(AlreadyExists, match="an anchor 'factory'"):
        registry.add_anchor(replace(ACME_CA, name="factory"))
    with pytest.raises(Misused, match="anchor 'a b' is not a name"):
        registry.add_anchor(replace(ACME_CA, name="a b"))

    assert registry.anchors_all() == (FACTORY,)


async def test_an_anchor_that_is_removed_and_added_again_finds_its_fleet(
    registry: AnyRegistry,
) -> None:
    registry.add_anchor(FACTORY)
    await registry.provision(FACTORY, SENSOR_1, "sensor-1")

    assert registry.remove_anchor("factory") == FACTORY
    assert await registry.anchors() == ()
    assert registry.certificates(DEFAULT, SENSOR_1) == (
        CertificateEntry(FACTORY.key_id, None, "sensor-1"),
    )

    registry.add_anchor(replace(FACTORY, name="renamed"))
    assert registry.certificates(DEFAULT, SENSOR_1) == (
        CertificateEntry(FACTORY.key_id, "renamed", "sensor-1"),
    )
    found = await registry.find_certificate_device(FACTORY.key_id, "sensor-1")
    assert found == Device(DEFAULT, SENSOR_1)


def test_an_anchor_that_is_not_there_is_not_found(registry: AnyRegistry) -> None:
    registry.add_device(Device(DEFAULT, SENSOR_1))

    with pytest.raises(NotFound, match="no anchor 'factory'"):
        registry.remove_anchor("factory")
    with pytest.raises(NotFound, match="no anchor 'factory'"):
        registry.trust(DEFAULT, SENSOR_1, "factory", "sensor-1")


async def test_a_certificate_value_speaks_for_a_device_below_one_anchor_only(
    registry: AnyRegistry,
) -> None:
    registry.add_anchor(FACTORY)
    registry.add_device(Device(DEFAULT, SENSOR_1))

    assert registry.trust(DEFAULT, SENSOR_1, "factory", "00-11-22") is True
    assert registry.trust(DEFAULT, SENSOR_1, "factory", "00-11-22") is False

    found = await registry.find_certificate_device(FACTORY.key_id, "00-11-22")
    assert found == Device(DEFAULT, SENSOR_1)
    assert await registry.find_certificate_device(ACME_CA.key_id, "00-11-22") is None
    assert await registry.find_certificate_device(FACTORY.key_id, "sensor-1") is None
    assert registry.certificates(DEFAULT, SENSOR_1) == (
        CertificateEntry(FACTORY.key_id, "factory", "00-11-22"),
    )


def test_a_certificate_value_speaks_for_one_device(registry: AnyRegistry) -> None:
    registry.add_anchor(FACTORY)
    registry.add_device(Device(DEFAULT, SENSOR_1))
    registry.add_device(Device(DEFAULT, SENSOR_2))
    registry.trust(DEFAULT, SENSOR_1, "factory", "shared")

    with pytest.raises(AlreadyExists, match="speak for device 'sensor-1' of tenant 'default'"):
        registry.trust(DEFAULT, SENSOR_2, "factory", "shared")

    assert registry.certificates(DEFAULT, SENSOR_2) == ()


def test_an_anchor_speaks_only_for_devices_of_its_tenant(registry: AnyRegistry) -> None:
    registry.add_anchor(FACTORY)
    registry.add_device(Device(ACME, SENSOR_1))

    with pytest.raises(RegistryError, match="serves tenant 'default', not 'acme'"):
        registry.trust(ACME, SENSOR_1, "factory", "sensor-1")


async def test_trust_creates_the_device_if_asked_to(registry: AnyRegistry) -> None:
    registry.add_anchor(FACTORY)

    with pytest.raises(NotFound, match="no device 'sensor-1'"):
        registry.trust(DEFAULT, SENSOR_1, "factory", "sensor-1")
    assert registry.trust(DEFAULT, SENSOR_1, "factory", "sensor-1", create_device=True)

    found = await registry.find_certificate_device(FACTORY.key_id, "sensor-1")
    assert found == Device(DEFAULT, SENSOR_1)
    for name, value in ((DeviceId("a/b"), "sensor-1"), (SENSOR_2, "a/b"), (SENSOR_2, "")):
        with pytest.raises(Misused, match="is not a name"):
            registry.trust(DEFAULT, name, "factory", value, create_device=True)
    assert len(list(registry.devices())) == 1


async def test_provisioning_creates_the_device_and_what_speaks_for_it(
    registry: AnyRegistry,
) -> None:
    registry.add_anchor(ACME_CA)

    created = await registry.provision(ACME_CA, SENSOR_1, "00-11-22")

    assert created == Device(ACME, SENSOR_1)
    assert await registry.find_device(ACME, SENSOR_1) == created
    assert await registry.find_certificate_device(ACME_CA.key_id, "00-11-22") == created


async def test_provisioning_only_ever_creates(registry: AnyRegistry) -> None:
    registry.add_anchor(FACTORY)
    registry.add_device(Device(DEFAULT, SENSOR_1))

    with pytest.raises(AlreadyExists):
        await registry.provision(FACTORY, SENSOR_1, "sensor-1")

    assert await registry.find_certificate_device(FACTORY.key_id, "sensor-1") is None


async def test_scenario_8_fifty_parallel_first_contacts_provision_one_device(
    registry: AnyRegistry,
) -> None:
    registry.add_anchor(FACTORY)

    async with asyncio.TaskGroup() as contacts:
        answers = [
            contacts.create_task(registry.provision(FACTORY, SENSOR_1, "sensor-1"))
            for _ in range(50)
        ]

    assert {answer.result() for answer in answers} == {Device(DEFAULT, SENSOR_1)}
    assert len(list(registry.devices())) == 1
    assert len(registry.certificates(DEFAULT, SENSOR_1)) == 1


# Imports.


async def test_imported_devices_can_connect(registry: AnyRegistry) -> None:
    reported: list[int] = []
    count = registry.import_devices(
        [
            NewDevice(2, DEFAULT, SENSOR_1, b"one", KEY_1),
            NewDevice(3, ACME, SENSOR_1, b"two", KEY_2),
        ],
        reported.append,
    )

    assert count == 2
    assert reported[-1] == 2
    (credential,) = await registry.find_psk(b"two")
    assert (credential.tenant, credential.device, credential.secret) == (ACME, SENSOR_1, KEY_2)
    assert [entry.number for entry in registry.psks()] == [1, 2]


def test_an_import_is_all_or_nothing_and_names_every_bad_line(registry: AnyRegistry) -> None:
    add_psk(registry, SENSOR_1, b"taken")
    add_psk(registry, SENSOR_1, b"taken", KEY_2)
    fine = DeviceId("fine")

    with pytest.raises(ImportRefused) as caught:
        registry.import_devices(
            [
                NewDevice(2, DEFAULT, fine, b"fine", KEY_1),
                NewDevice(3, DEFAULT, SENSOR_1, b"new", KEY_1),
                BadLine(4, "the key is bare", "write hex:"),
                NewDevice(5, DEFAULT, DeviceId("new"), b"taken", KEY_1),
                NewDevice(6, DEFAULT, fine, b"another", KEY_1),
                NewDevice(7, DEFAULT, DeviceId("newer"), b"fine", KEY_1),
                NewDevice(8, DEFAULT, SENSOR_1, b"taken", KEY_1),
            ]
        )

    assert [message for message, _ in caught.value.problems] == [
        "line 3: device 'sensor-1' of tenant 'default' exists already",
        "line 4: the key is bare",
        "line 5: identity 'taken' belongs to device 'sensor-1' of tenant 'default'",
        "line 6: device 'fine' of tenant 'default' is on line 2 already",
        "line 7: identity 'fine' is on line 2 already",
        "line 8: device 'sensor-1' of tenant 'default' exists already",
        "line 8: identity 'taken' belongs to device 'sensor-1' of tenant 'default'",
    ]
    assert all(hint for _, hint in caught.value.problems)
    assert [entry.device.device for entry in registry.devices()] == [SENSOR_1]
    assert registry.import_devices([NewDevice(2, DEFAULT, fine, b"fine", KEY_1)]) == 1


def test_nothing_is_imported_from_a_file_that_breaks_off(registry: AnyRegistry) -> None:
    def lines() -> object:
        yield NewDevice(2, DEFAULT, SENSOR_1, b"one", KEY_1)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        registry.import_devices(lines())  # type: ignore[arg-type]

    assert list(registry.devices()) == []
    assert registry.import_devices([]) == 0
