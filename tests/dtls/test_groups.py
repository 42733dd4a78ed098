"""Ephemeral Diffie-Hellman."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519

from coapgate.dtls.groups import CURVES, GROUPS, P_256, P_384, X25519, Group, encode_public
from coapgate.errors import MalformedMessage

each_group = pytest.mark.parametrize("group", GROUPS.values(), ids=["P-256", "x25519", "P-384"])
each_curve = pytest.mark.parametrize("group", [P_256, P_384], ids=["P-256", "P-384"])


def compressed(point: bytes) -> bytes:
    """A point of P-256 or P-384 by its x and the parity of its y."""
    half = len(point) // 2
    return bytes((2 + (point[-1] & 1),)) + point[1 : 1 + half]


def test_groups_are_preferred_in_the_order_p_256_x25519_p_384() -> None:
    assert list(GROUPS) == [23, 29, 24]
    assert CURVES == {"secp256r1": P_256, "secp384r1": P_384}
    for name, group in CURVES.items():
        assert group.curve is not None
        assert group.curve.name == name


@each_group
def test_both_ends_come_to_one_secret(group: Group) -> None:
    ours, theirs = group.generate(), group.generate()

    secret = group.exchange(ours, encode_public(theirs))

    assert secret == group.exchange(theirs, encode_public(ours))
    assert len(secret) == (48 if group is P_384 else 32)
    assert len(encode_public(ours)) == group.point_length


@each_group
def test_the_ephemeral_key_is_new_per_handshake(group: Group) -> None:
    assert len({encode_public(group.generate()) for _ in range(10)}) == 10


@each_group
def test_a_point_of_the_wrong_length_is_malformed(group: Group) -> None:
    ours, point = group.generate(), encode_public(group.generate())

    for wrong in (b"", point[:-1], point + b"\0", point + point, b"\0" + point):
        with pytest.raises(MalformedMessage):
            group.exchange(ours, wrong)


@each_curve
def test_a_point_that_is_not_on_the_curve_is_malformed(group: Group) -> None:
    ours, point = group.generate(), encode_public(group.generate())
    size = group.point_length // 2

    for wrong in (
        point[:-1] + bytes((point[-1] ^ 1,)),
        b"\4" + bytes(2 * size),
        b"\4" + b"\xff" * (2 * size),
        b"\4" + point[1 + size :] + point[1 : 1 + size],
    ):
        with pytest.raises(MalformedMessage):
            group.exchange(ours, wrong)


@each_curve
def test_a_point_must_be_uncompressed(group: Group) -> None:
    ours, point = group.generate(), encode_public(group.generate())
    short = compressed(point)
    assert group.curve is not None
    ec.EllipticCurvePublicKey.from_encoded_point(group.curve, short)  # it is a point

    for wrong in (
        short,
        short + bytes(group.point_length - len(short)),
        # The hybrid form of the same point (X9.62): it is of the right length.
        bytes((6 + (point[-1] & 1),)) + point[1:],
        b"\0" + bytes(group.point_length - 1),
    ):
        with pytest.raises(MalformedMessage):
            group.exchange(ours, wrong)


def test_a_point_of_another_curve_is_malformed() -> None:
    point = encode_public(P_384.generate())

    with pytest.raises(MalformedMessage):
        P_256.exchange(P_256.generate(), point)
    with pytest.raises(MalformedMessage):
        P_256.exchange(P_256.generate(), point[:65])


@pytest.mark.parametrize(
    "point",
    [
        "00" * 32,
        "01" + "00" * 31,
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ],
    ids=["0", "1", "-1", "order 8", "other order 8", "p", "p + 1"],
)
def test_an_all_zero_x25519_result_is_refused(point: str) -> None:
    # The points of small order: the secret would be zero whatever our key (RFC 8422 5.11).
    with pytest.raises(MalformedMessage):
        X25519.exchange(X25519.generate(), bytes.fromhex(point))


def test_x25519_yields_what_rfc_7748_says() -> None:
    # Section 6.1.
    alice = x25519.X25519PrivateKey.from_private_bytes(
        bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    )
    bob = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")

    assert encode_public(alice).hex() == (
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    )
    assert X25519.exchange(alice, bob).hex() == (
        "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    )


@each_curve
def test_the_premaster_keeps_leading_zeros(group: Group) -> None:
    # Search two keys whose secret begins with a zero octet: one in 256 does.
    assert group.curve is not None
    ours = ec.derive_private_key(7, group.curve)
    size = group.point_length // 2

    for scalar in range(2, 5000):
        secret = group.exchange(ours, encode_public(ec.derive_private_key(scalar, group.curve)))
        assert len(secret) == size
        if secret[0] == 0:
            break
    else:
        pytest.fail("no such pair")


def test_a_public_point_is_encoded_uncompressed() -> None:
    private = P_256.generate()
    assert isinstance(private, ec.EllipticCurvePrivateKey)

    point = encode_public(private)

    assert point[0] == 4
    assert point == private.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
