"""What Prometheus reads."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from coapgate.errors import Reason
from coapgate.metrics import FAMILIES, Collector, Family, Kind, Source
from tests.peers import require

LABELLED = {family.name: family for family in FAMILIES if family.label is not None}


def sources(**special: Source) -> dict[str, Source]:
    def count(family: Family) -> Source:
        if family.label is None:
            return lambda: 7
        return lambda: {"a": 7}

    return {family.name: count(family) for family in FAMILIES} | special


def scrape(given: Mapping[str, Source]) -> str:
    registry = CollectorRegistry()
    registry.register(Collector(given))
    return generate_latest(registry).decode()


def test_every_family_has_a_sample() -> None:
    text = scrape(sources())

    for family in FAMILIES:
        sample = (
            f'{family.name}{{{family.label}="a"}} 7.0' if family.label else f"{family.name} 7.0"
        )
        assert sample in text.splitlines()


def test_every_reason_is_shown_before_it_happens_so_that_a_first_refusal_is_seen() -> None:
    text = scrape(sources(coapgate_refusals_total=lambda: {Reason.BAD_KEY: 2}))

    lines = [line for line in text.splitlines() if line.startswith("coapgate_refusals_total{")]
    assert len(lines) == len(Reason)
    assert 'coapgate_refusals_total{reason="bad_key"} 2.0' in lines
    assert 'coapgate_refusals_total{reason="revoked"} 0.0' in lines


def test_sources_are_read_at_each_scrape_and_not_before() -> None:
    read = []
    registry = CollectorRegistry()

    def count() -> float:
        read.append(1)
        return len(read)

    registry.register(Collector(sources(coapgate_duplicates_total=count)))
    assert read == []

    for expected in (1, 2):
        text = generate_latest(registry).decode()
        assert f"coapgate_duplicates_total {expected}.0" in text.splitlines()


def test_a_family_without_a_source_and_a_source_without_a_family_are_refused() -> None:
    given = sources(coapgate_surprises_total=lambda: 1)
    del given["coapgate_duplicates_total"]

    with pytest.raises(ValueError, match="coapgate_duplicates_total, coapgate_surprises_total"):
        Collector(given)


def test_names_follow_the_house_and_prometheus() -> None:
    for family in FAMILIES:
        assert family.name.startswith("coapgate_")
        assert family.name.endswith("_total") == (family.kind is Kind.COUNTER)
        assert family.help.endswith(".")
        assert family.label not in {"device", "peer", "address", "topic", "tenant", "identity"}


def test_promtool_finds_nothing_to_say() -> None:
    checked = subprocess.run(
        [require("promtool"), "check", "metrics"],
        input=scrape(sources()),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
