"""The device side of the protocol, for the demonstration, the tools and the tests."""
