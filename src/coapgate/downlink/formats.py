"""The Content-Format of a publication: by its Content Type, or by its number."""

from __future__ import annotations

import re
from collections.abc import Mapping

from coapgate.mqtt.subscriptions import Heard

_NUMBER = re.compile("[0-9]{1,5}")
_MAX_NUMBER = 0xFFFF


class ContentFormats:
    """CoAP's numbers for Content Types, however they are written; made of the types by number."""

    def __init__(self, content_types: Mapping[int, str]) -> None:
        self._numbers: dict[str, int] = {}
        for number, content_type in content_types.items():
            self._numbers[_normal(content_type)] = number
        for number, content_type in content_types.items():
            # text/plain is UTF-8 if nothing is said; other parameters make another format.
            media_type, _, parameter = _normal(content_type).partition(";")
            if parameter == "charset=utf-8":
                self._numbers.setdefault(media_type, number)

    def find(self, heard: Heard) -> int | None:
        """None: there is no number for it, or it says nothing.

        The user property `content-format` says it where no Content Type does. Raises ValueError if
        it is no number from 0 to 65535.
        """
        for name, value in heard.properties:
            if name == "content-format":
                if not _NUMBER.fullmatch(value) or int(value) > _MAX_NUMBER:
                    raise ValueError("content-format is no number from 0 to 65535")
                return int(value)
        content_type = heard.content_type
        return None if content_type is None else self._numbers.get(_normal(content_type))


def _normal(content_type: str) -> str:
    return re.sub(r"\s*;\s*", ";", content_type.strip()).lower()
