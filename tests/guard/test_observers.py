"""Thousands of observers cost thousands of rows, and a notification to one what it costs alone."""

from __future__ import annotations

from tests.guard.budget import OBJECTS, OCTETS, PYTHON_CALLS, hold
from tests.guard.observers import measure_observers

OBSERVER = 560.0
"""Octets of one, its registration that is remembered for a repetition included."""
OBSERVER_OBJECTS = 2.1
NOTIFICATION = 42.5
"""Calls of a confirmable one, from the message layer to the record layer, and of its ACK; a dozen
are the test's."""


def test_an_observer_costs_a_row_and_a_notification_the_same_among_many() -> None:
    few, many = measure_observers(100), measure_observers(5000)

    hold("observer", OCTETS, many.octets, OBSERVER)
    hold("observer", OBJECTS, many.objects, OBSERVER_OBJECTS)
    hold("notification", PYTHON_CALLS, many.calls, NOTIFICATION)
    hold("notification among 5000", PYTHON_CALLS, many.calls, few.calls * 1.01)
