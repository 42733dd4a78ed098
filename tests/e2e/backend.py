"""A backend by aiomqtt: it asks devices, and hears what became of that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.waiting import DEADLINE


@dataclass(frozen=True, slots=True)
class Heard:
    """A publication, with its user properties by name."""

    topic: str
    payload: bytes
    retain: bool
    content_type: str | None
    correlation: bytes | None
    properties: dict[str, str]

    @property
    def outcome(self) -> str:
        return self.properties["outcome"]

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.payload)
        return found


class Backend:
    """Hears `{root}/default/reply/#` and all events and statuses below `root`, in order."""

    def __init__(self, client: aiomqtt.Client, root: str) -> None:
        self.root = root
        self.prefix = f"{root}/default"
        self.replies: asyncio.Queue[Heard] = asyncio.Queue()
        self.events: asyncio.Queue[Heard] = asyncio.Queue()
        """Outcomes without a Response Topic."""
        self.lifecycle: list[Heard] = []
        self._client = client

    async def ask(
        self,
        device: str,
        method: str,
        path: str,
        payload: bytes = b"",
        *,
        reply: str | None = "app",
        response_topic: str | None = None,
        correlation: bytes | None = None,
        expiry: int | None = None,
        content_type: str | None = None,
        qos: int = 1,
    ) -> None:
        """Publish a request; `reply` is where below `reply/` its outcome goes."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if response_topic is not None:
            properties.ResponseTopic = response_topic
        elif reply is not None:
            properties.ResponseTopic = f"{self.prefix}/reply/{reply}"
        if correlation is not None:
            properties.CorrelationData = correlation
        if expiry is not None:
            properties.MessageExpiryInterval = expiry
        if content_type is not None:
            properties.ContentType = content_type
        topic = f"{self.prefix}/{device}/request/{method}/{path}"
        await self._client.publish(topic, payload, qos=qos, properties=properties)

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        await self._client.publish(f"{self.prefix}/{topic}", payload, qos=1, retain=retain)

    async def reply(self) -> Heard:
        """The next outcome on a Response Topic."""
        async with asyncio.timeout(DEADLINE):
            return await self.replies.get()

    async def event(self) -> Heard:
        """The next outcome as an event."""
        async with asyncio.timeout(DEADLINE):
            return await self.events.get()

    def story(self, device: str = "sensor-1") -> list[str]:
        """What was said of a device that came and went, in a word each."""
        words = []
        for heard in self.lifecycle:
            if heard.topic == f"{self.prefix}/{device}/status":
                words.append("attached" if heard.json()["attached"] else "detached")
            elif heard.topic.startswith(f"{self.prefix}/{device}/event/"):
                words.append(heard.topic.rpartition("/")[2])
        return words

    def take(self, message: aiomqtt.Message) -> None:
        told = message.properties
        assert isinstance(message.payload, bytes)
        heard = Heard(
            str(message.topic),
            message.payload,
            message.retain,
            getattr(told, "ContentType", None),
            getattr(told, "CorrelationData", None),
            dict(getattr(told, "UserProperty", ())),
        )
        if "/reply/" in heard.topic:
            self.replies.put_nowait(heard)
        elif heard.topic.endswith("/event/request"):
            self.events.put_nowait(heard)
        elif "/$gateway/" not in heard.topic:
            self.lifecycle.append(heard)


@asynccontextmanager
async def listening(host: str, port: int, root: str) -> AsyncIterator[Backend]:
    """A backend that hears everything from the entry on."""
    version = aiomqtt.ProtocolVersion.V5
    async with (
        aiomqtt.Client(host, port, protocol=version) as client,
        asyncio.TaskGroup() as tasks,
    ):
        backend = Backend(client, root)
        for topic_filter in ("+/reply/#", "+/+/event/#", "+/+/status"):
            await client.subscribe(f"{root}/{topic_filter}", qos=1)

        async def collect() -> None:
            async for message in client.messages:
                backend.take(message)

        collecting = tasks.create_task(collect(), name="backend")
        try:
            yield backend
        finally:
            collecting.cancel()
