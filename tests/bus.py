"""What arrives on the bus, heard by aiomqtt: a client that shares no code with the gateway."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiomqtt

from tests.waiting import DEADLINE


@dataclass(frozen=True, slots=True)
class Publication:
    """One message as a subscriber gets it; `properties` are the user properties in order."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    content_type: str | None
    properties: tuple[tuple[str, str], ...]

    def __getitem__(self, name: str) -> str:
        """The one user property of that name."""
        (value,) = (value for key, value in self.properties if key == name)
        return value

    def __contains__(self, name: str) -> bool:
        return any(key == name for key, _ in self.properties)


LIFECYCLE = re.compile(r"[^/]+/(?:status|event/(?:connected|disconnected))")


class Bus:
    """Publications below one topic root, in the order in which the broker delivers them.

    What the gateway says of devices that come and go is apart, in `lifecycle`.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.published: list[Publication] = []
        """All that devices have sent so far."""
        self.events: list[Publication] = []
        """All that was said about them so far."""
        self.lifecycle: list[Publication] = []
        self._unseen: asyncio.Queue[Publication] = asyncio.Queue()
        self._unseen_events: asyncio.Queue[Publication] = asyncio.Queue()

    async def next(self) -> Publication:
        """The next message of a device nobody has looked at yet; in vain it fails."""
        return await self._next(self._unseen)

    async def next_event(self) -> Publication:
        """The next event about a device nobody has looked at yet; in vain it fails."""
        return await self._next(self._unseen_events)

    async def _next(self, queue: asyncio.Queue[Publication]) -> Publication:
        try:
            async with asyncio.timeout(DEADLINE):
                return await queue.get()
        except TimeoutError:
            raise AssertionError(f"nothing arrived below {self.root}") from None

    def topics(self) -> list[str]:
        """Of all that has come, without the root."""
        return [publication.topic.removeprefix(f"{self.root}/") for publication in self.published]

    def take(self, message: aiomqtt.Message) -> None:
        properties = message.properties
        assert isinstance(message.payload, bytes)
        publication = Publication(
            str(message.topic),
            message.payload,
            message.qos,
            message.retain,
            getattr(properties, "ContentType", None),
            tuple(getattr(properties, "UserProperty", ())),
        )
        topic = publication.topic.removeprefix(f"{self.root}/")
        if LIFECYCLE.fullmatch(topic):
            self.lifecycle.append(publication)
        elif "/event/" in topic:
            self.events.append(publication)
            self._unseen_events.put_nowait(publication)
        else:
            self.published.append(publication)
            self._unseen.put_nowait(publication)


@asynccontextmanager
async def listening(host: str, port: int, root: str) -> AsyncIterator[Bus]:
    """Subscribe to all below `root`, at QoS 1; from the entry on nothing is missed."""
    bus = Bus(root)
    async with (
        aiomqtt.Client(host, port, protocol=aiomqtt.ProtocolVersion.V5) as client,
        asyncio.TaskGroup() as tasks,
    ):
        await client.subscribe(f"{root}/#", qos=1)

        async def collect() -> None:
            async for message in client.messages:
                bus.take(message)

        collecting = tasks.create_task(collect(), name="bus")
        try:
            yield bus
        finally:
            collecting.cancel()
