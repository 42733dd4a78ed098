"""The table of cipher suites."""

from __future__ import annotations

import os

import pytest
from cryptography.exceptions import InvalidTag

from coapgate.dtls.suites import SUITES, KeyExchange, Suite

each_suite = pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)


def test_the_server_prefers_psk_then_small_records() -> None:
    assert [(suite.code, suite.name) for suite in SUITES.values()] == [
        (0xC0A8, "PSK_AES_128_CCM_8"),
        (0xC0A4, "PSK_AES_128_CCM"),
        (0x00A8, "PSK_AES_128_GCM_SHA256"),
        (0x00A9, "PSK_AES_256_GCM_SHA384"),
        (0xC0AE, "ECDHE_ECDSA_AES_128_CCM_8"),
        (0xC0AC, "ECDHE_ECDSA_AES_128_CCM"),
        (0xC02B, "ECDHE_ECDSA_AES_128_GCM_SHA256"),
        (0xC02C, "ECDHE_ECDSA_AES_256_GCM_SHA384"),
    ]


@each_suite
def test_a_suite_is_in_the_table_under_its_code(suite: Suite) -> None:
    assert SUITES[suite.code] is suite
    assert suite.name.startswith(suite.key_exchange.name)


def test_codes_are_of_their_key_exchange() -> None:
    psk = {code for code, suite in SUITES.items() if suite.key_exchange is KeyExchange.PSK}

    assert psk == {0xC0A8, 0xC0A4, 0x00A8, 0x00A9}


@each_suite
def test_only_aes_256_gcm_sha384_leaves_sha_256(suite: Suite) -> None:
    is_large = suite.name.endswith("AES_256_GCM_SHA384")

    assert suite.hash_name == ("sha384" if is_large else "sha256")
    assert suite.key_length == (32 if is_large else 16)
    assert suite.key_block_length == (72 if is_large else 40)


@each_suite
def test_an_aead_adds_its_tag_and_refuses_another_key(suite: Suite) -> None:
    key, nonce = os.urandom(suite.key_length), os.urandom(12)

    sealed = suite.aead(key).encrypt(nonce, b"21.5", b"header")

    assert len(sealed) == 4 + suite.tag_length
    assert suite.overhead == 8 + suite.tag_length
    assert suite.tag_length == (8 if suite.name.endswith("CCM_8") else 16)
    assert suite.aead(key).decrypt(nonce, sealed, b"header") == b"21.5"
    with pytest.raises(InvalidTag):
        suite.aead(os.urandom(suite.key_length)).decrypt(nonce, sealed, b"header")
