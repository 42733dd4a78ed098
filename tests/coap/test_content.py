"""Content-Formats and MQTT Content Types."""

from __future__ import annotations

import pytest

from coapgate.coap.content import CONTENT_TYPES, content_format


def test_every_content_type_leads_back_to_its_content_format() -> None:
    for number, content_type in CONTENT_TYPES.items():
        assert content_format(content_type) == number


@pytest.mark.parametrize(
    ("number", "content_type"),
    [
        (0, "text/plain; charset=utf-8"),
        (42, "application/octet-stream"),
        (50, "application/json"),
        (60, "application/cbor"),
        (110, "application/senml+json"),
        (112, "application/senml+cbor"),
        (11542, "application/vnd.oma.lwm2m+tlv"),
    ],
)
def test_the_usual_formats_have_their_registered_names(number: int, content_type: str) -> None:
    assert CONTENT_TYPES[number] == content_type


def test_spaces_and_letter_case_mean_nothing() -> None:
    assert content_format("Text/Plain;charset=UTF-8") == 0
    assert content_format("text/plain") == 0


def test_a_content_type_out_of_the_registry_has_no_content_format() -> None:
    assert content_format("application/x-own") is None


def test_a_format_with_a_content_coding_has_no_content_type() -> None:
    assert 11050 not in CONTENT_TYPES
    assert 11060 not in CONTENT_TYPES
