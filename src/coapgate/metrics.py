"""What is counted, as one table; a collector turns plain integers into samples when scraped."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as PrometheusCollector

from coapgate.errors import Reason
from coapgate.model import Method


class Kind(enum.Enum):
    """A counter only grows while the process runs; a gauge goes up and down."""

    COUNTER = enum.auto()
    GAUGE = enum.auto()


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. `values` of its label are shown from the start, at 0; a source may add others.

    No label ever holds a device, an address or a topic: the number of series does not depend on
    the number of devices.
    """

    name: str
    kind: Kind
    help: str
    label: str | None = None
    values: tuple[str, ...] = ()


ENDS = (
    Reason.REVOKED,
    Reason.DISABLED,
    Reason.EXPIRED,
    Reason.NOT_YET_VALID,
    Reason.UNTRUSTED,
    Reason.TENANT_MISMATCH,
    Reason.CREDENTIAL_MISMATCH,
)
"""Why an association ends whose device would not be let in now."""

FAMILIES = (
    Family(
        "coapgate_build_info",
        Kind.GAUGE,
        "The version that runs; the value is always 1.",
        "version",
    ),
    Family(
        "coapgate_start_time_seconds",
        Kind.GAUGE,
        "When this process began to serve, in Unix seconds.",
    ),
    Family(
        "coapgate_internal_errors_total",
        Kind.COUNTER,
        "Mistakes of the gateway's own; the log has them.",
    ),
    Family(
        "coapgate_garbage_collections_total",
        Kind.COUNTER,
        "Runs of the garbage collector; nobody is served meanwhile.",
    ),
    Family(
        "coapgate_garbage_collection_seconds_total",
        Kind.COUNTER,
        "Seconds that all of them took.",
    ),
    Family(
        "coapgate_garbage_collection_longest_seconds",
        Kind.GAUGE,
        "Seconds that the longest of them took, since this process began to serve.",
    ),
    # UDP
    Family(
        "coapgate_datagrams_received_total",
        Kind.COUNTER,
        "Datagrams that were taken from the DTLS sockets.",
    ),
    Family(
        "coapgate_datagrams_sent_total",
        Kind.COUNTER,
        "Datagrams that were handed to the kernel.",
    ),
    Family(
        "coapgate_send_errors_total",
        Kind.COUNTER,
        "Datagrams that the kernel did not take, by its error.",
        "error",
    ),
    Family(
        "coapgate_datagrams_dropped_total",
        Kind.COUNTER,
        "Datagrams, or records of them, that were dropped, by reason.",
        "reason",
    ),
    Family(
        "coapgate_kernel_receive_drops_total",
        Kind.COUNTER,
        "Datagrams that the kernel dropped because a socket's receive buffer was full.",
    ),
    # DTLS
    Family(
        "coapgate_cookies_sent_total",
        Kind.COUNTER,
        "HelloVerifyRequests: answers to a ClientHello without a valid cookie.",
    ),
    Family(
        "coapgate_handshakes_started_total",
        Kind.COUNTER,
        "Handshakes that began: hellos with a valid cookie.",
    ),
    Family(
        "coapgate_handshakes_pending",
        Kind.GAUGE,
        "Handshakes that have begun and not ended.",
    ),
    Family(
        "coapgate_handshakes_completed_total",
        Kind.COUNTER,
        "Handshakes that let a device in, by what it proved itself with.",
        "method",
        tuple(Method),
    ),
    Family(
        "coapgate_refusals_total",
        Kind.COUNTER,
        "Peers that were not let in, by reason.",
        "reason",
        tuple(Reason),
    ),
    Family(
        "coapgate_decisions_waiting",
        Kind.GAUGE,
        "Handshakes that wait for an answer of the registry.",
    ),
    Family(
        "coapgate_decisions_overrun_total",
        Kind.COUNTER,
        "Decisions that the registry was too slow for.",
    ),
    Family(
        "coapgate_associations",
        Kind.GAUGE,
        "Associations with devices.",
    ),
    Family(
        "coapgate_associations_closed_total",
        Kind.COUNTER,
        "Associations that ended, by cause.",
        "cause",
        (
            "peer",
            "replaced",
            "idle",
            "evicted",
            "surplus",
            "exhausted",
            "shutdown",
            "refused",
            "unreachable",
            *ENDS,
        ),
    ),
    Family(
        "coapgate_associations_reviewed_total",
        Kind.COUNTER,
        "Associations that were judged again, because something had changed or ended.",
    ),
    Family(
        "coapgate_associations_expiring",
        Kind.GAUGE,
        "Associations whose credential ends within 1, 7 and 30 days, as of the last minute.",
        "within",
        ("1d", "7d", "30d"),
    ),
    Family(
        "coapgate_associations_recovered_total",
        Kind.COUNTER,
        "Associations that went on after a restart, without a handshake.",
    ),
    Family(
        "coapgate_associations_unstored",
        Kind.GAUGE,
        "Associations that would end with this process, for want of a place in the store.",
    ),
    Family(
        "coapgate_address_moves_total",
        Kind.COUNTER,
        "Associations that went on from another address.",
    ),
    Family(
        "coapgate_paths_proven_total",
        Kind.COUNTER,
        "New addresses of devices that have proven themselves, by what.",
        "by",
        ("ack", "reset", "echo"),
    ),
    Family(
        "coapgate_path_pings_total",
        Kind.COUNTER,
        "Pings to new addresses of devices, because something was withheld from them.",
    ),
    Family(
        "coapgate_devices",
        Kind.GAUGE,
        "Devices that have an association.",
    ),
    # Credentials
    Family(
        "coapgate_credentials_promoted_total",
        Kind.COUNTER,
        "Backup keys that became active, because their device used them.",
    ),
    Family(
        "coapgate_promotions_failed_total",
        Kind.COUNTER,
        "Uses of a backup key that could not be written: the registry was full or locked.",
    ),
    Family(
        "coapgate_devices_provisioned_total",
        Kind.COUNTER,
        "Devices that came into being at first contact, by what vouched for them.",
        "by",
        ("anchor", "batch"),
    ),
    Family(
        "coapgate_registry_followed",
        Kind.GAUGE,
        "1 while changes of the registry are seen, 0 while it cannot be asked.",
    ),
    Family(
        "coapgate_reloads_total",
        Kind.COUNTER,
        "Reloads by SIGHUP, by result: failed ones left the server certificate as it was.",
        "result",
        ("done", "failed"),
    ),
    Family(
        "coapgate_server_certificate_end_time_seconds",
        Kind.GAUGE,
        "When the gateway's own certificate chain ends, in Unix seconds; 0: it has none.",
    ),
    Family(
        "coapgate_anchor_end_time_seconds",
        Kind.GAUGE,
        "When the certificate of each trust anchor ends, in Unix seconds.",
        "anchor",
    ),
    Family(
        "coapgate_revocation_list_end_time_seconds",
        Kind.GAUGE,
        "When the first of an anchor's revocation lists becomes stale, in Unix seconds.",
        "anchor",
    ),
    Family(
        "coapgate_revocation_lists_stale",
        Kind.GAUGE,
        "Revocation lists that are stale, or that could not be read yet.",
    ),
    Family(
        "coapgate_revocation_list_failures_total",
        Kind.COUNTER,
        "Files of revocation lists that could not be used when they appeared.",
    ),
    # CoAP
    Family(
        "coapgate_responses_total",
        Kind.COUNTER,
        "Responses to devices, by code.",
        "code",
    ),
    Family(
        "coapgate_requests_unfinished",
        Kind.GAUGE,
        "Requests of devices that are not answered yet.",
    ),
    Family(
        "coapgate_duplicates_total",
        Kind.COUNTER,
        "Messages that repeated one that had arrived before.",
    ),
    Family(
        "coapgate_rate_limited_total",
        Kind.COUNTER,
        "Requests above a device's rate, answered 4.29.",
    ),
    Family(
        "coapgate_overloads_total",
        Kind.COUNTER,
        "Requests of devices that had too many unanswered ones already.",
    ),
    Family(
        "coapgate_messages_malformed_total",
        Kind.COUNTER,
        "Messages from devices that are not CoAP.",
    ),
    Family(
        "coapgate_messages_ignored_total",
        Kind.COUNTER,
        "Messages from devices that nothing waits for, or that may be ignored, by reason.",
        "reason",
        ("unexpected", "response", "bad_option"),
    ),
    Family(
        "coapgate_pings_total",
        Kind.COUNTER,
        "Empty messages by which devices asked whether the gateway is there.",
    ),
    Family(
        "coapgate_separate_responses_total",
        Kind.COUNTER,
        "Responses that came too late for the acknowledgement.",
    ),
    Family(
        "coapgate_separate_responses_repeated_total",
        Kind.COUNTER,
        "Repetitions of such responses that a device had not acknowledged.",
    ),
    Family(
        "coapgate_separate_responses_failed_total",
        Kind.COUNTER,
        "Such responses that no device took, by how they ended.",
        "end",
        ("given_up", "reset"),
    ),
    # Downlinks
    Family(
        "coapgate_forbidden_total",
        Kind.COUNTER,
        "Requests for paths that their device has no right to, by use.",
        "use",
        ("post", "read", "observe"),
    ),
    Family(
        "coapgate_downlinks_total",
        Kind.COUNTER,
        "Requests of backends for devices, by what became of them.",
        "outcome",
        ("answered", "delivered", "expired", "superseded", "rejected", "device-unknown"),
    ),
    Family(
        "coapgate_downlinks_sent_total",
        Kind.COUNTER,
        "Requests of backends that were sent to their device, each attempt counted.",
    ),
    Family(
        "coapgate_downlinks_failed_total",
        Kind.COUNTER,
        "Attempts that the device did not answer, by how they ended.",
        "end",
        ("timeout", "silent", "reset", "closed", "too_large", "unacceptable", "busy"),
    ),
    Family(
        "coapgate_downlinks_held",
        Kind.GAUGE,
        "Requests of backends that wait for their device.",
    ),
    Family(
        "coapgate_downlinks_unsaved",
        Kind.GAUGE,
        "Those that would be lost with this process, because the registry cannot be written.",
    ),
    Family(
        "coapgate_downlinks_dropped_total",
        Kind.COUNTER,
        "Publications to us that nobody was told about, by reason.",
        "reason",
        ("flood", "malformed"),
    ),
    Family(
        "coapgate_states",
        Kind.GAUGE,
        "Paths whose state is known, or asked for, because a device reads or observes it.",
    ),
    Family(
        "coapgate_states_size_bytes",
        Kind.GAUGE,
        "Octets of the states that are known.",
    ),
    Family(
        "coapgate_state_look_ups_total",
        Kind.COUNTER,
        "States that the broker was asked for.",
    ),
    Family(
        "coapgate_reads_unavailable_total",
        Kind.COUNTER,
        "Reads of devices that were answered 5.03: the broker was away, too slow or unwilling.",
    ),
    Family(
        "coapgate_observations",
        Kind.GAUGE,
        "Paths that devices observe, each device counted.",
    ),
    Family(
        "coapgate_notifications_total",
        Kind.COUNTER,
        "Notifications to observers, by type.",
        "type",
        ("confirmable", "unconfirmed"),
    ),
    Family(
        "coapgate_notifications_superseded_total",
        Kind.COUNTER,
        "Notifications that a newer one replaced before they were sent.",
    ),
    Family(
        "coapgate_observations_ended_total",
        Kind.COUNTER,
        "Observations that ended because of a notification, by how the device took it.",
        "end",
        ("reset", "timeout"),
    ),
    Family(
        "coapgate_bodies_arriving",
        Kind.GAUGE,
        "Bodies in blocks that are not complete yet.",
    ),
    Family(
        "coapgate_bodies_arriving_size_bytes",
        Kind.GAUGE,
        "Octets of them that have arrived.",
    ),
    Family(
        "coapgate_bodies_total",
        Kind.COUNTER,
        "Bodies in blocks, by how they ended.",
        "end",
        ("completed", "abandoned"),
    ),
    Family(
        "coapgate_notices_waiting",
        Kind.GAUGE,
        "Events, outcomes and statuses that the broker does not have yet.",
    ),
    Family(
        "coapgate_notices_published_total",
        Kind.COUNTER,
        "Events, outcomes and statuses that the broker has taken.",
    ),
    Family(
        "coapgate_notices_lost_total",
        Kind.COUNTER,
        "Those for which there was no room, or which the broker refused.",
    ),
    Family(
        "coapgate_statuses_corrected_total",
        Kind.COUNTER,
        "Statuses that an earlier process left behind, and that were no longer true.",
    ),
    # MQTT
    Family(
        "coapgate_uplinks_published_total",
        Kind.COUNTER,
        "Messages of devices that were handed to the MQTT connection.",
    ),
    Family(
        "coapgate_publications_ended_total",
        Kind.COUNTER,
        "Publications, by outcome: PUBACK's reason code, or unavailable, poison, too_large.",
        "outcome",
        ("0x00", "unavailable", "poison", "too_large"),
    ),
    Family(
        "coapgate_publications_repeated_total",
        Kind.COUNTER,
        "Publications that were sent again on a new connection.",
    ),
    Family(
        "coapgate_publications_in_flight",
        Kind.GAUGE,
        "Publications that were sent and have no PUBACK yet.",
    ),
    Family(
        "coapgate_publications_held",
        Kind.GAUGE,
        "Publications that wait for the broker.",
    ),
    Family(
        "coapgate_mqtt_connected",
        Kind.GAUGE,
        "1 while the broker is connected, else 0.",
    ),
    Family(
        "coapgate_mqtt_reconnects_total",
        Kind.COUNTER,
        "Connections to the broker after the first.",
    ),
    Family(
        "coapgate_mqtt_failures_total",
        Kind.COUNTER,
        "Attempts to connect to the broker that failed.",
    ),
)

Source = Callable[[], float | Mapping[str, float]]
"""Reads what is counted; for a family with a label, the counts by its value."""


class Collector(PrometheusCollector):
    """Reads every family's source when scraped. Counting itself stays a plain integer."""

    def __init__(
        self, sources: Mapping[str, Source], families: Iterable[Family] = FAMILIES
    ) -> None:
        self._families = tuple(families)
        self._sources = dict(sources)
        names = {family.name for family in self._families}
        if names != self._sources.keys():
            odd = ", ".join(sorted(names ^ self._sources.keys()))
            raise ValueError(f"a source for each family, and no other: {odd}")

    def describe(self) -> Iterator[Metric]:
        """The names alone; registering a collector reads no source."""
        for family in self._families:
            yield _metric(family)

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = _metric(family)
            value = self._sources[family.name]()
            if not isinstance(value, Mapping):
                metric.add_metric([], value)
            else:
                counts = dict.fromkeys(family.values, 0.0) | {str(k): v for k, v in value.items()}
                for label, count in counts.items():
                    metric.add_metric([label], count)
            yield metric


def _metric(family: Family) -> CounterMetricFamily | GaugeMetricFamily:
    labels = [family.label] if family.label is not None else []
    if family.kind is Kind.COUNTER:
        return CounterMetricFamily(family.name, family.help, labels=labels)
    return GaugeMetricFamily(family.name, family.help, labels=labels)
