"""Many devices at once, to load-test a server of one's own: `coapgate simulate`.

    plan = Plan(rate=100.0, duration=10.0, path=(b"load",), payload=bytes(100))
    fleet = Fleet(plan, credentials, await look_up(target))
    await fleet.run()
    fleet.tally.went_well

What `Device` does with a task and a future for each request, a fleet does with callbacks: all
sockets are behind one epoll, all timers in one wheel, and a request is built from octets that are
the same for all but eight of them.
"""
