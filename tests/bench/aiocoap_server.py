"""A peer: aiocoap's own server behind tinydtls, which answers any request on one path.

    python -m tests.bench.aiocoap_server PORT IDENTITY KEY

It serves DTLS on the port after PORT, as aiocoap does it.
"""

from __future__ import annotations

import asyncio
import sys

import aiocoap
from aiocoap.credentials import CredentialsMap
from aiocoap.resource import Resource, Site


class Benchmark(Resource):  # type: ignore[misc] # aiocoap has no types
    """Takes what comes, and says 2.04."""

    async def render_post(self, request: object) -> object:
        return aiocoap.Message(code=aiocoap.CHANGED)


async def serve(port: int, identity: str, key: str) -> None:
    site = Site()
    site.add_resource(["benchmark"], Benchmark())
    credentials = CredentialsMap()
    shared = {"psk": {"ascii": key}, "client-identity": {"ascii": identity}}
    credentials.load_from_dict({":load": {"dtls": shared}})
    await aiocoap.Context.create_server_context(
        site,
        bind=("127.0.0.1", port),
        transports=["tinydtls_server"],
        server_credentials=credentials,
    )
    print("serves", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
