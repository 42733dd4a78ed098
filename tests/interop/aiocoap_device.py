"""A device on aiocoap and tinydtls that observes a path and serves requests.

    python -m tests.interop.aiocoap_device coaps://HOST:PORT IDENTITY KEY_IN_HEX

It says on its standard output what it hears, and ends with its standard input. It serves `/lamp`
(PUT), `/log` (GET, of several blocks; PUT of several blocks) and `/slow` (a separate response).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

import aiocoap
from aiocoap import CHANGED, CONTENT, GET, POST, Message, resource

LOG = b"".join(b"%07d\n" % number for number in range(1000))
"""8,000 octets."""


class Lamp(resource.Resource):  # type: ignore[misc]  # aiocoap is untyped
    async def render_put(self, request: Message) -> Message:
        say("lamp", request.payload.decode())
        return Message(code=CHANGED, payload=b"was off")


class Log(resource.Resource):  # type: ignore[misc]
    async def render_get(self, request: Message) -> Message:
        return Message(code=CONTENT, payload=LOG, content_format=42)

    async def render_put(self, request: Message) -> Message:
        say("log", f"{len(request.payload)} octets, {request.payload == LOG}")
        return Message(code=CHANGED)


class Slow(resource.Resource):  # type: ignore[misc]
    async def render_get(self, request: Message) -> Message:
        await asyncio.sleep(1)  # longer than aiocoap waits before it acknowledges
        return Message(code=CONTENT, payload=b"at last")


def say(*words: str) -> None:
    print(*words, flush=True)


async def main(uri: str, identity: str, key: str) -> None:
    context = await aiocoap.Context.create_client_context()
    proof = {"psk": bytes.fromhex(key), "client-identity": identity.encode()}
    context.client_credentials.load_from_dict({f"{uri}/*": {"dtls": proof}})
    context.serversite = site = resource.Site()
    site.add_resource(["lamp"], Lamp())
    site.add_resource(["log"], Log())
    site.add_resource(["slow"], Slow())
    booted = await context.request(Message(code=POST, uri=f"{uri}/boot", payload=b"1")).response
    say("booted", str(booted.code))
    registering = context.request(Message(code=GET, uri=f"{uri}/led", observe=0))
    say("led", (await registering.response).payload.decode())

    async def watch() -> None:
        async for notification in registering.observation:
            say("led", notification.payload.decode()[:40])

    watching = asyncio.get_running_loop().create_task(watch())
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    await context.shutdown()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
