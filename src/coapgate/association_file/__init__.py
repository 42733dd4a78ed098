"""The file in which associations outlive the process: owned, mapped, and trusted only if it may be.

It is written through the page cache, which outlives the process but not the machine. So it is good
for as long as the machine has not been started anew, or if it was closed in good order before that.
"""

from __future__ import annotations

from coapgate.association_file.observations import ObservationJournal, open_observations
from coapgate.association_file.opening import StoreKeys, open_associations, read_boot_id
from coapgate.association_file.paths import SocketPaths

__all__ = [
    "ObservationJournal",
    "SocketPaths",
    "StoreKeys",
    "open_associations",
    "open_observations",
    "read_boot_id",
]
