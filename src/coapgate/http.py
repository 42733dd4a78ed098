"""Metrics and health over HTTP, for Prometheus and whoever restarts processes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from uvicorn.protocols.http.h11_impl import H11Protocol

from coapgate.config import Address
from coapgate.errors import StartError

MAX_CONNECTIONS = 64
"""At once; then the oldest ends, so that whoever asks for nothing keeps nobody out."""
_READING = ["GET", "HEAD"]


def create_app(registry: CollectorRegistry, not_ready: Callable[[], Sequence[str]]) -> FastAPI:
    """/metrics, /livez and /readyz; `not_ready` says why devices cannot be served now, if so."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    # Coroutines, so that they run on the loop: what is counted never changes while it is read.
    @app.api_route("/metrics", methods=_READING)
    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type})

    @app.api_route("/livez", methods=_READING)
    async def livez() -> JSONResponse:
        return JSONResponse({"live": True})

    @app.api_route("/readyz", methods=_READING)
    async def readyz() -> JSONResponse:
        reasons = list(not_ready())
        return JSONResponse(
            {"ready": not reasons, "reasons": reasons}, status_code=503 if reasons else 200
        )

    return app


@contextlib.asynccontextmanager
async def serving(
    app: FastAPI, address: Address, tasks: asyncio.TaskGroup
) -> AsyncIterator[Address]:
    """Serve while the context is open; gives the address that was bound.

    Connections are accepted from the moment the context is entered. The server is a task of
    `tasks`.

    Raises StartError if the address cannot be had.
    """
    with _listen(address) as listening:
        host, port = listening.getsockname()[:2]
        server = _Server(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                http=_Protocol,
                log_config=None,
                log_level="error",  # it warns of each request that is none
                access_log=False,
                server_header=False,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=1,
            )
        )
        task = tasks.create_task(server.serve(sockets=[listening]), name="http")
        try:
            yield Address(host, port)
        finally:
            server.should_exit = True
            await asyncio.wait({task})


class _Protocol(H11Protocol):
    """One connection, told from others by its age."""

    opened_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.opened_at = self.loop.time()
        if len(self.connections) > MAX_CONNECTIONS:
            mine = (each for each in self.connections if isinstance(each, _Protocol))
            min(mine, key=lambda each: each.opened_at).transport.abort()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the gateway, which ends everything in its own order."""
        yield


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        listening = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _cannot(address, error) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        info = socket.getaddrinfo(
            address.host, address.port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        listening.bind(info[0][4])
        listening.listen()
    except OSError as error:
        listening.close()
        raise _cannot(address, error) from error
    return listening


def _cannot(address: Address, error: OSError) -> StartError:
    return StartError(
        f"cannot listen on {address} for HTTP: {error.strerror}",
        "another program may have the port: change http.bind",
    )
