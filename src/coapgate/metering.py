"""Where each metric is read: plain integers of the parts, by the names of `metrics.FAMILIES`."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

from coapgate.backends import Backends
from coapgate.coap.messages import MessageLayer
from coapgate.dtls.counters import Drop
from coapgate.garbage import Pauses
from coapgate.metrics import Source
from coapgate.model import Outcome
from coapgate.mqtt.connection import Connection
from coapgate.pki.server import not_after
from coapgate.serving import Pump
from coapgate.udp import Udp
from coapgate.upkeep import Upkeep
from coapgate.uplink import Uplinks


def sources(
    pump: Pump,
    layer: MessageLayer[Any],
    uplinks: Uplinks,
    backends: Backends,
    connection: Connection,
    udp: Udp,
    pauses: Pauses,
    upkeep: Upkeep,
) -> dict[str, Source]:
    """One source for every family."""
    started_at = time.time()
    build = {version("coapgate"): 1}
    server, decisions = pump.server, pump.decisions
    records, counts, publications = server.counters, layer.counts, connection.publications
    lists, own, reviews = upkeep.lists, upkeep.certificate, pump.reviews
    milestones = pump.milestones
    policy = backends.policy
    states, deliveries, intake, outbox = (
        policy.states,
        policy.deliveries,
        policy.intake,
        policy.outbox,
    )
    observations, assembly = layer.observations, layer.assembly
    return {
        "coapgate_build_info": lambda: build,
        "coapgate_start_time_seconds": lambda: started_at,
        "coapgate_internal_errors_total": lambda: (
            udp.failures + decisions.failures + upkeep.failures
        ),
        "coapgate_garbage_collections_total": lambda: pauses.collections,
        "coapgate_garbage_collection_seconds_total": lambda: pauses.seconds,
        "coapgate_garbage_collection_longest_seconds": lambda: pauses.longest,
        # UDP
        "coapgate_datagrams_received_total": lambda: udp.datagrams_received,
        "coapgate_datagrams_sent_total": lambda: udp.datagrams_sent,
        "coapgate_send_errors_total": lambda: udp.send_errors,
        "coapgate_datagrams_dropped_total": lambda: dict.fromkeys(Drop, 0) | records.dropped,
        "coapgate_kernel_receive_drops_total": udp.kernel_drops,
        # DTLS
        "coapgate_cookies_sent_total": lambda: records.cookies_sent,
        "coapgate_handshakes_started_total": lambda: records.handshakes_started,
        "coapgate_handshakes_pending": lambda: server.handshake_count,
        "coapgate_handshakes_completed_total": lambda: pump.attached,
        "coapgate_refusals_total": lambda: pump.refusals,
        "coapgate_decisions_waiting": lambda: decisions.waiting,
        "coapgate_decisions_overrun_total": lambda: decisions.overruns,
        "coapgate_associations": lambda: server.association_count,
        "coapgate_associations_closed_total": lambda: pump.detached,
        "coapgate_associations_recovered_total": lambda: pump.recovered,
        "coapgate_associations_unstored": lambda: server.association_count - pump.stored,
        "coapgate_associations_reviewed_total": lambda: reviews.reviewed,
        "coapgate_associations_expiring": lambda: reviews.expiring,
        "coapgate_address_moves_total": lambda: records.address_moves,
        "coapgate_paths_proven_total": lambda: counts.path_proofs,
        "coapgate_path_pings_total": lambda: counts.path_pings,
        "coapgate_devices": lambda: len(pump.sessions),
        # Credentials
        "coapgate_credentials_promoted_total": lambda: milestones.promotions,
        "coapgate_promotions_failed_total": lambda: milestones.failed_promotions,
        "coapgate_devices_provisioned_total": lambda: milestones.provisioned,
        "coapgate_registry_followed": lambda: int(upkeep.following.is_current),
        "coapgate_reloads_total": lambda: {
            "done": own.reloads - own.failures,
            "failed": own.failures,
        },
        "coapgate_server_certificate_end_time_seconds": lambda: _end_of(server.certificate_chain),
        "coapgate_anchor_end_time_seconds": lambda: {
            anchor.name: _end_of((anchor.certificate,)) for anchor in lists.anchors
        },
        "coapgate_revocation_list_end_time_seconds": lists.next_updates,
        "coapgate_revocation_lists_stale": lists.count_stale,
        "coapgate_revocation_list_failures_total": lambda: lists.failures,
        # CoAP
        "coapgate_responses_total": lambda: {
            f"{code >> 5}.{code & 31:02}": count for code, count in counts.responses.items()
        },
        "coapgate_requests_unfinished": lambda: layer.unfinished_exchanges,
        "coapgate_duplicates_total": lambda: counts.duplicates,
        "coapgate_rate_limited_total": lambda: counts.rate_limited,
        "coapgate_overloads_total": lambda: counts.overloads,
        "coapgate_messages_malformed_total": lambda: counts.format_errors,
        "coapgate_messages_ignored_total": lambda: {
            "unexpected": counts.ignored,
            "response": counts.unexpected_responses,
            "bad_option": counts.bad_option_drops,
        },
        "coapgate_pings_total": lambda: counts.pings,
        "coapgate_separate_responses_total": lambda: counts.separate_responses,
        "coapgate_separate_responses_repeated_total": lambda: layer.retransmissions,
        "coapgate_separate_responses_failed_total": lambda: {
            "given_up": counts.given_up,
            "reset": counts.resets,
        },
        # Downlinks
        "coapgate_forbidden_total": lambda: states.forbidden | {"post": uplinks.forbidden},
        "coapgate_downlinks_total": lambda: deliveries.outcomes,
        "coapgate_downlinks_sent_total": lambda: deliveries.sent,
        "coapgate_downlinks_failed_total": lambda: layer.device_requests.failures,
        "coapgate_downlinks_held": lambda: deliveries.held,
        "coapgate_downlinks_unsaved": lambda: intake.unsaved,
        "coapgate_downlinks_dropped_total": lambda: {
            "flood": intake.dropped + connection.subscriptions.dropped,
            "malformed": intake.malformed,
        },
        "coapgate_states": lambda: len(states),
        "coapgate_states_size_bytes": lambda: states.size,
        "coapgate_state_look_ups_total": lambda: states.looked_up,
        "coapgate_reads_unavailable_total": lambda: states.unavailable,
        "coapgate_observations": lambda: len(observations),
        "coapgate_notifications_total": lambda: {
            "confirmable": observations.confirmable,
            "unconfirmed": observations.unconfirmed,
        },
        "coapgate_notifications_superseded_total": lambda: observations.superseded,
        "coapgate_observations_ended_total": lambda: {
            "reset": observations.resets,
            "timeout": observations.timeouts,
        },
        "coapgate_bodies_arriving": lambda: len(assembly),
        "coapgate_bodies_arriving_size_bytes": lambda: assembly.octets,
        "coapgate_bodies_total": lambda: {
            "completed": assembly.completed,
            "abandoned": assembly.abandoned,
        },
        "coapgate_notices_waiting": lambda: len(outbox),
        "coapgate_notices_published_total": lambda: outbox.published,
        "coapgate_notices_lost_total": lambda: outbox.lost,
        "coapgate_statuses_corrected_total": lambda: policy.lifecycle.corrected,
        # MQTT
        "coapgate_uplinks_published_total": lambda: uplinks.forwarded,
        "coapgate_publications_ended_total": lambda: {
            _outcome(outcome): count for outcome, count in uplinks.outcomes.items()
        },
        "coapgate_publications_repeated_total": lambda: publications.repeated,
        "coapgate_publications_in_flight": lambda: publications.in_flight,
        "coapgate_publications_held": lambda: publications.held,
        "coapgate_mqtt_connected": lambda: int(connection.connected),
        "coapgate_mqtt_reconnects_total": lambda: max(0, connection.connects - 1),
        "coapgate_mqtt_failures_total": lambda: connection.failures,
    }


def _end_of(chain: tuple[bytes, ...]) -> float:
    """When the first certificate (DER) of a chain ends, in Unix seconds; 0: there is none."""
    return min((not_after(each) for each in chain), default=0.0)


def _outcome(outcome: int) -> str:
    return Outcome(outcome).name.lower() if outcome > 0xFF else f"0x{outcome:02x}"
