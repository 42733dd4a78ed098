"""What a request, a handshake and an association cost, counted rather than timed.

`counting` counts, `whole` is the gateway that it counts in, `budget` says how much is allowed.

    python -m tests.guard        what everything costs now, and the functions it goes to
"""
