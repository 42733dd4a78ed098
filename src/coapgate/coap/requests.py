"""Requests to devices, each a CON with a token of ours, each with one end: RFC 7252 section 5."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from coapgate.model import Identity


class Failure(StrEnum):
    """Why a request to a device has no response."""

    TIMEOUT = "timeout"
    """Never acknowledged, or acknowledged and not answered within `response_timeout`."""
    RESET = "reset"
    CLOSED = "closed"
    """The association ended."""
    TOO_LARGE = "too_large"
    """The request, or what the device answers, exceeds `max_body`."""
    UNACCEPTABLE = "unacceptable"
    """The response has a critical option that we do not know, or does not belong to the request."""
    BUSY = "busy"
    """`requests_per_device` are under way already: try again when one of them has ended."""


class Downlinks(Protocol):
    """Who asks for requests to devices, and hears of their end: once for each ticket."""

    def answered(
        self, ticket: int, code: int, content_format: int | None, payload: bytes, now: float
    ) -> None:
        """The device answered; `payload` is the whole body."""

    def failed(self, ticket: int, failure: Failure, now: float) -> None:
        """There is no response and there will be none."""

    def spoke(self, identity: Identity, association_id: bytes, now: float) -> None:
        """A device with `Endpoint.awaited` set has just been answered: it listens now."""
