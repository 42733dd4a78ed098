"""The bus's side of the pump: what backends say goes to policy, what policy answers goes back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from coapgate.coap.endpoint import Endpoint
from coapgate.coap.messages import MessageLayer
from coapgate.coap.requests import Failure
from coapgate.content_files import ContentFiles
from coapgate.downlink.deliveries import Deliveries
from coapgate.downlink.states import States
from coapgate.dtls.association import Association
from coapgate.intake import Intake
from coapgate.lifecycle import Lifecycle
from coapgate.logs import Seldom
from coapgate.model import Content, DeviceId, Identity, Tenant
from coapgate.mqtt import topics
from coapgate.mqtt.connection import Connection
from coapgate.mqtt.subscriptions import Complete, Heard, Refusal
from coapgate.outbox import Notice, Outbox

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Policy:
    """What decides about downlinks; `files` None: there is no folder of files."""

    states: States
    deliveries: Deliveries[Endpoint[Association]]
    intake: Intake
    lifecycle: Lifecycle
    outbox: Outbox
    files: ContentFiles | None
    files_path: str
    """What the paths of files begin with, slash included."""


class Backends:
    """Carries what the bus says to `policy` and to devices; `run` it in a task.

    It is what CoAP asks for the state of paths and tells of requests (`Contents`, `Downlinks`), and
    what the pump tells of devices that come and go. Call `connect` before anything else.
    """

    def __init__(
        self,
        connection: Connection,
        root: str,
        policy: Policy,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.policy = policy
        self._connection = connection
        self._root = root
        self._requests = topics.requests_filter(root)
        self._statuses = topics.statuses_filter(root)
        self._clock = clock
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._seldom = Seldom()
        self._handlers: dict[str, Callable[[Heard], None]] = {
            "down": self._hear_state,
            "request": policy.intake.take,
            "status": self._hear_status,
        }
        connection.listen(self.heard, self.noticed, self.broker_changed)

    def connect(self, layer: MessageLayer[Association], wake: Callable[[], None]) -> None:
        """The devices' side; `wake` is called when there may be something to send."""
        self._layer = layer
        self._wake = wake
        self.policy.states.connect(layer)

    def recover(self) -> None:
        """Go on with what an earlier process left. Raises RegistryUnavailable."""
        now = self._clock()
        count, untold = self.policy.intake.restore(now, self._wall())
        for notice in untold:
            self.policy.outbox.put(notice, now)
        if count:
            log.info("held requests recovered", extra={"count": count})
        self._arm()

    async def run(self) -> None:
        """Hear what the bus says, until `stop` and what is under way then is done."""
        # One that is retained would be carried out at every start.
        self._connection.subscribe(self._requests, only_news=True)
        self._connection.subscribe(self._statuses, at_most_once=True)
        policy = self.policy
        async with asyncio.TaskGroup() as tasks:
            reading = None
            if policy.files is not None:
                answer = policy.files.run(self._answer_file)
                reading = tasks.create_task(answer, name="content files")
            await policy.intake.run(
                self._connection.acknowledge, self._done, self._clock, self._wall
            )
            if reading is not None:
                reading.cancel()

    def stop(self) -> None:
        """Take no more requests; `run` ends."""
        self.policy.intake.stop()

    async def close(self) -> None:
        """Write down what still waits. The bus is not heard any more."""
        await self.policy.intake.save(self._clock(), is_last=True)
        if self._timer is not None:
            self._timer.cancel()

    # --- from the bus

    def heard(self, heard: Heard | Complete | Refusal) -> None:
        """The connection heard something."""
        match heard:
            case Heard():
                kind = heard.topic[len(self._root) + 1 :].split("/", 3)[2:3]
                handle = self._handlers.get(kind[0]) if kind else None
                if handle is not None:
                    handle(heard)
                else:
                    self._connection.acknowledge(heard)
            case Complete(self._statuses):
                self._connection.unsubscribe(self._statuses)
                self.policy.lifecycle.complete(self._clock(), self._wall())
            case Complete(topic, found):
                self.policy.states.complete(topic, self._clock(), found=found)
            case Refusal(topic, code):
                self._refused(topic, code)
        self._done()

    def noticed(self, ticket: int, outcome: int) -> None:
        """A publication of the gateway's own ended."""
        self.policy.outbox.ended(ticket, outcome, self._clock())
        self._arm()

    def broker_changed(self) -> None:
        """The broker has come, or gone."""
        self.policy.outbox.resume()

    def _hear_state(self, heard: Heard) -> None:
        if not self.policy.states.hear(heard, self._clock()):
            self._connection.unsubscribe_stale(heard.topic)
        self._connection.acknowledge(heard)

    def _hear_status(self, heard: Heard) -> None:
        if heard.retain:
            self.policy.lifecycle.heard(heard.topic, heard.payload, self._clock(), self._wall())
        self._connection.acknowledge(heard)

    def _refused(self, topic: str, code: int) -> None:
        now = self._clock()
        if count := self._seldom.count(code, now):
            hint = "let the gateway's user read ROOT/+/+/request/#, /down/# and /status"
            log.warning(
                "broker refuses a subscription",
                extra={
                    "reason_code": f"0x{code:02x}",
                    "topic": topic,
                    "hint": hint,
                    "count": count,
                },
            )
        self.policy.states.refused(topic, now)

    # --- from devices: `coap.states.Contents`

    def find(self, identity: Identity, path: str, ticket: int, now: float) -> None:
        policy = self.policy
        if policy.files is not None and self._is_file(path):
            policy.states.check_readable(identity, path)
            name = path.removeprefix(policy.files_path)
            if not policy.files.ask(identity.tenant, name, ticket):
                raise policy.states.turn_away()
        else:
            policy.states.find(identity, path, ticket, now)
            self._arm()

    def check_observable(self, identity: Identity, path: str) -> None:
        self.policy.states.check_observable(identity, path)

    def observed(self, identity: Identity, path: str) -> None:
        if not self._is_file(path):  # nobody tells of a new file
            self.policy.states.observed(identity, path)

    def unobserved(self, identity: Identity, path: str) -> None:
        if not self._is_file(path):
            self.policy.states.unobserved(identity, path)

    def _is_file(self, path: str) -> bool:
        return self.policy.files is not None and path.startswith(self.policy.files_path)

    def _answer_file(self, ticket: int, content: Content | None) -> None:
        self._layer.respond_content(ticket, content, self._clock())
        self._wake()

    # --- from devices: `coap.requests.Downlinks`

    def answered(
        self, ticket: int, code: int, content_format: int | None, payload: bytes, now: float
    ) -> None:
        self.policy.deliveries.answered(ticket, code, content_format, payload, now)
        self._arm()

    def failed(self, ticket: int, failure: Failure, now: float) -> None:
        self.policy.deliveries.failed(ticket, failure, now)
        self._arm()

    def spoke(self, identity: Identity, association_id: bytes, now: float) -> None:
        self.policy.deliveries.spoke(identity, association_id, now)

    # --- from the pump

    def opened(self, identity: Identity, *, is_new: bool) -> None:
        """A device has one more association; `is_new`: it had none."""
        if is_new:
            self.policy.lifecycle.attached(identity, self._clock(), self._wall())
        self.policy.deliveries.opened(identity)

    def recovered(self, identity: Identity) -> None:
        """An association of a device has outlived an earlier process."""
        self.policy.lifecycle.recovered(identity)
        self.policy.deliveries.opened(identity)

    def detached(self, identity: Identity, cause: str) -> None:
        """A device has no association any more."""
        now = self._clock()
        self.policy.lifecycle.detached(identity.tenant, identity.device, cause, now, self._wall())
        self.policy.deliveries.gone(identity)

    def publish_event(self, tenant: Tenant, device: DeviceId, name: str, payload: bytes) -> None:
        """Publish what happened to a device."""
        topic = topics.event_topic(self._root, tenant, device, name)
        self.policy.outbox.put(Notice(topic, payload), self._clock())

    # --- time

    def _done(self) -> None:
        """Something happened outside a batch of datagrams."""
        self._wake()
        self._arm()

    def _arm(self) -> None:
        """Make sure the timer is not late; one that is early finds nothing to do."""
        policy = self.policy
        due = min(
            (
                due
                for due in (
                    policy.states.next_timer(),
                    policy.deliveries.next_timer(),
                    policy.outbox.next_timer(),
                )
                if due is not None
            ),
            default=None,
        )
        if due is None or (self._timer is not None and self._timer.when() <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._handle_timer)

    def _handle_timer(self) -> None:
        self._timer = None
        now = self._clock()
        self.policy.states.handle_timer(now)
        self.policy.deliveries.handle_timer(now)
        self.policy.outbox.handle_timer(now)
        self._done()
