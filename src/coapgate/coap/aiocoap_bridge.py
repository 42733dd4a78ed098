"""aiocoap above our message layer, by the seam that its TCP and WebSocket transports use.

Only requests for the Site come here. aiocoap never sees a message ID, a device's token, an
option it does not know, or a number that is not in our tables (it would remember it for ever).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

import aiocoap
from aiocoap import interfaces, resource
from aiocoap.error import RenderableError
from aiocoap.message import Direction
from aiocoap.pipe import Pipe
from aiocoap.tokenmanager import TokenManager

from coapgate.coap.options import Request
from coapgate.coap.resources import FORMATS, PATHS
from coapgate.errors import RequestRefused
from coapgate.model import Code, Identity
from coapgate.uplink import Source

MAX_PER_ENDPOINT = 8
"""Requests of one endpoint that aiocoap has at once; more get 5.03."""
MAX_REQUESTS = 1024
"""Requests of all endpoints that aiocoap has at once."""
RETRY_AFTER = 2
"""Seconds after which a device may ask again."""

_TICKET_LENGTH = 8


class Remote(interfaces.EndpointAddress):  # type: ignore[misc]  # aiocoap is untyped
    """A device as aiocoap knows it: a handle that outlives the association, so it holds no key."""

    scheme = "coaps"
    is_multicast = False
    is_multicast_locally = False
    hostinfo_local = "coapgate"
    uri_base_local = "coaps://coapgate"

    def __init__(self, association: str, identity: Identity) -> None:
        self.association = association
        self.identity = identity

    def __repr__(self) -> str:
        return f"<Remote {self.association} {self.identity.tenant}/{self.identity.device}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other.association == self.association

    def __hash__(self) -> int:
        return hash(self.association)

    @property
    def hostinfo(self) -> str:
        return self.association

    @property
    def uri_base(self) -> str:
        return f"coaps://{self.association}"

    @property
    def blockwise_key(self) -> str:
        return self.association

    @property
    def authenticated_claims(self) -> tuple[Identity]:
        """The one claim: which device was proven."""
        return (self.identity,)


class Bridge(interfaces.TokenInterface):  # type: ignore[misc]  # aiocoap is untyped
    """Requests to aiocoap's Site and its answers back; `async with` it.

    `respond` is called with a ticket, a response code, encoded options and a payload, from a task
    of the loop. In place of a device's token aiocoap gets the ticket, which is never used twice:
    it cancels a request when a second one has the same token.
    """

    def __init__(
        self, site: resource.Site, respond: Callable[[int, int, bytes, bytes], None]
    ) -> None:
        self.paths = PATHS
        self._site = site
        self._respond = respond
        self._under_way: dict[int, str] = {}
        self._per_endpoint: dict[str, int] = {}
        self._tasks = asyncio.TaskGroup()
        self._context: _Context | None = None
        self._tokens: TokenManager | None = None

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._context = _Context(self._site, self._tasks)
        self._tokens = TokenManager(self._context)
        self._tokens.token_interface = self
        self._context.request_interfaces.append(self._tokens)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._context is not None
        self._tokens = None
        try:
            await self._context.shutdown()
        finally:
            await self._tasks.__aexit__(kind, error, trace)

    def request(self, source: Source, ticket: int, request: Request) -> None:
        """Hand a GET to the Site; `respond` follows.

        Raises RequestRefused for what aiocoap must not see: 4.06 for a format that no resource
        has, 4.00 for a query that is no text, 5.03 for too many requests at once.
        """
        if request.accept is not None and request.accept not in FORMATS:
            raise RequestRefused(Code.NOT_ACCEPTABLE, "no such format")
        try:
            query = [argument.decode() for argument in request.query]
        except UnicodeDecodeError:
            raise RequestRefused(Code.BAD_REQUEST, "query is not UTF-8") from None
        association = source.association_id.hex()
        count = self._per_endpoint.get(association, 0)
        if (
            self._tokens is None
            or count >= MAX_PER_ENDPOINT
            or len(self._under_way) >= MAX_REQUESTS
        ):
            raise RequestRefused(Code.SERVICE_UNAVAILABLE, "try again later", max_age=RETRY_AFTER)
        self._per_endpoint[association] = count + 1
        self._under_way[ticket] = association
        message = aiocoap.Message(
            code=request.method,
            uri_path=[segment.decode() for segment in request.path],
            uri_query=query,
            accept=request.accept,
        )
        message.token = ticket.to_bytes(_TICKET_LENGTH, "big")
        message.remote = Remote(association, source.identity)
        message.direction = Direction.INCOMING
        self._tokens.process_request(message)

    def send_message(
        self, message: aiocoap.Message, messageerror_monitor: Callable[[], None]
    ) -> None:
        """Take an answer of aiocoap's."""
        ticket = int.from_bytes(message.token, "big")
        association = self._under_way.pop(ticket, None)
        if association is None:
            return
        count = self._per_endpoint[association] - 1
        if count:
            self._per_endpoint[association] = count
        else:
            del self._per_endpoint[association]
        message.opt.no_response = None  # judged by the message layer
        self._respond(ticket, int(message.code), message.opt.encode(), message.payload)

    async def fill_or_recognize_remote(self, message: aiocoap.Message) -> bool:
        """Whether a message is for one of our devices."""
        return isinstance(message.remote, Remote)

    async def shutdown(self) -> None:
        """Nothing of ours to shut down: the message layer is not this bridge's."""


class _Context(aiocoap.Context):  # type: ignore[misc]  # aiocoap is untyped
    """aiocoap's entry point, but its rendering tasks have an owner."""

    def __init__(self, site: resource.Site, tasks: asyncio.TaskGroup) -> None:
        super().__init__(
            loop=asyncio.get_running_loop(), serversite=site, loggername="coapgate.coap.site"
        )
        self._tasks = tasks

    def render_to_pipe(self, pipe: Pipe) -> None:
        """Answer a request by the Site, whatever happens there."""
        task = self._tasks.create_task(self._render(pipe), name="coap-site")
        pipe.on_interest_end(task.cancel)

    async def _render(self, pipe: Pipe) -> None:
        try:
            await self.serversite.render_to_pipe(pipe)
        except RenderableError as error:
            pipe.add_response(error.to_message(), is_last=True)
        except Exception:  # the top of a task
            self.log.exception("resource failed")
            pipe.add_response(aiocoap.Message(code=Code.INTERNAL_SERVER_ERROR), is_last=True)
