"""From a premaster secret to keys and Finished."""

from __future__ import annotations

import hashlib

import pytest

from coapgate.dtls import keys
from coapgate.dtls.suites import SUITES, Suite

CCM_8, AES_256 = SUITES[0xC0A8], SUITES[0x00A9]
PSK = bytes(range(16))
CLIENT_RANDOM, SERVER_RANDOM, MASTER = b"c" * 32, b"s" * 32, b"m" * 48

# Published on the IETF's TLS list (2009) and used by most stacks since.
PRF_SHA256 = (
    "sha256",
    "9bbe436ba940f017b17652849a71db35",
    "a0ba9f936cda311827a6f796ffd5198c",
    "e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a"
    "6b301791e90d35c9c9a46b4e14baf9af0fa022f7077def17abfd3797c0564bab"
    "4fbc91666e9def9b97fce34f796789baa48082d122ee42c5a72e5a5110fff701"
    "87347b66",
)
PRF_SHA384 = (
    "sha384",
    "b80b733d6ceefcdc71566ea48e5567df",
    "cd665cf6a8447dd6ff8b27555edb7465",
    "7b0c18e9ced410ed1804f2cfa34a336a1c14dffb4900bb5fd7942107e81c83cd"
    "e9ca0faa60be9fe34f82b1233c9146a0e534cb400fed2700884f9dc236f80edd"
    "8bfa961144c9e8d792eca722a7b32fc3d416d473ebc2c5fd4abfdad05d918425"
    "9b5bf8cd4d90fa0d31e2dec479e4f1a26066f2eea9a69236a3e52655c9e9aee6"
    "91c8f3a26854308d5eaa3be85e0990703d73e56f",
)


@pytest.mark.parametrize(("hash_name", "secret", "seed", "output"), [PRF_SHA256, PRF_SHA384])
def test_the_prf_yields_the_published_octets(
    hash_name: str, secret: str, seed: str, output: str
) -> None:
    expected = bytes.fromhex(output)

    for length in (0, 1, 12, 48, len(expected)):
        prf = keys.Prf(hash_name, bytes.fromhex(secret))
        got = prf.expand(b"test label", bytes.fromhex(seed), length)
        assert got == expected[:length]


def test_the_premaster_of_plain_psk_is_as_many_zeros_then_the_key() -> None:
    assert keys.psk_premaster(PSK) == b"\0\x10" + bytes(16) + b"\0\x10" + PSK
    assert keys.psk_premaster(bytes(64)) == b"\0\x40" + bytes(64) + b"\0\x40" + bytes(64)


# The expected octets below were computed by `openssl kdf ... TLS1-PRF` (OpenSSL 3.0).


def test_the_extended_master_secret_runs_over_the_session_hash() -> None:
    premaster = keys.psk_premaster(PSK)

    sha256 = keys.extended_master_secret(CCM_8, premaster, hashlib.sha256(b"coapgate").digest())
    sha384 = keys.extended_master_secret(AES_256, premaster, hashlib.sha384(b"coapgate").digest())

    assert sha256.hex() == (
        "eb89697a602b6915fe07961eeef4e8cb6a6547dfa0d0f05d"
        "4f05a946ee088a56e3fd34bf85f7223cb84b8c4fad7f4adb"
    )
    assert sha384.hex() == (
        "5e0edbabe3e35e565b7b5a4bc4aaaad842b03da4118460bc"
        "f8fa8f7a015fe165a2327c631d3702c35ee8735f6a1ed1b6"
    )


def test_without_extension_the_master_secret_runs_over_client_then_server_random() -> None:
    master = keys.master_secret(CCM_8, keys.psk_premaster(PSK), CLIENT_RANDOM, SERVER_RANDOM)

    assert master.hex() == (
        "2ac07ed84a1fdf0d102466b47b31486ce9535c97c5b523a5"
        "0d3de2e59e91a868e263b0a578986239531c9c4e16f8d8ba"
    )


def test_the_key_block_runs_over_server_then_client_random() -> None:
    ccm_8 = keys.key_block(CCM_8, keys.Prf("sha256", MASTER), CLIENT_RANDOM, SERVER_RANDOM)
    aes_256 = keys.key_block(AES_256, keys.Prf("sha384", MASTER), CLIENT_RANDOM, SERVER_RANDOM)

    assert ccm_8.hex() == (
        "ec89e23990f0a6776b411acbc6dc1f176a436a99a3a03dc750f88015630d0cd6781b29163f31e10b"
    )
    assert aes_256.hex() == (
        "0ab0f227d23e7220ad1ae80bf14e538a2b0710c65cc4ffeafba5bb84f5d301d0"
        "3494ab126f4bae36181958766096916f715e766b2b8c02aeb3e0021d26d42298"
        "89438f00eaa3b750"
    )


@pytest.mark.parametrize(
    ("suite", "client", "server"),
    [
        (CCM_8, "f3585842461eef5ae073f21a", "43d1b70a5a0bf75f799b2583"),
        (AES_256, "28f2596cc92695c230c3daa6", "bc7c93c30626154d434eaae7"),
    ],
    ids=["sha256", "sha384"],
)
def test_finished_is_of_one_side_and_twelve_octets(suite: Suite, client: str, server: str) -> None:
    digest = hashlib.new(suite.hash_name, b"transcript").digest()

    master = keys.Prf(suite.hash_name, MASTER)

    of_client = keys.verify_data(master, of_client=True, transcript_hash=digest)
    of_server = keys.verify_data(master, of_client=False, transcript_hash=digest)

    assert (of_client.hex(), of_server.hex()) == (client, server)


def test_the_transcript_hashes_and_keeps_every_message() -> None:
    transcript = keys.Transcript("sha384")
    assert transcript.octets == b""

    transcript.add(b"hello")
    before = transcript.digest()
    transcript.add(b"done")

    assert before == hashlib.sha384(b"hello").digest()
    assert transcript.digest() == hashlib.sha384(b"hellodone").digest()
    assert transcript.octets == b"hellodone"


def test_the_octets_of_the_transcript_are_freed_once_nobody_needs_them() -> None:
    transcript = keys.Transcript("sha256")
    transcript.add(b"hello")

    transcript.forget_octets()
    transcript.add(b"done")

    assert transcript.octets is None
    assert transcript.digest() == hashlib.sha256(b"hellodone").digest()
