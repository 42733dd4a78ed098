"""Values that say something about themselves."""

from __future__ import annotations

from coapgate.model import Content


def test_the_etag_of_content_is_the_same_for_the_same_content_only() -> None:
    etag = Content.of(b"21.5", 0).etag

    assert len(etag) == 8
    assert Content.of(b"21.5", 0).etag == etag
    others = [Content.of(b"21.6", 0), Content.of(b"21.5", None), Content.of(b"21.5", 50)]
    assert len({etag, *(other.etag for other in others)}) == 4
    assert Content.of(b"21.5", 0xFFFF).etag not in {etag, *(other.etag for other in others)}
