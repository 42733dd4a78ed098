"""DTLS 1.2, sans-IO: datagrams and `now` in, events and datagrams out.

Small on purpose: plain PSK and ECDHE_ECDSA with AEAD suites, no renegotiation, no compression,
no resumption. The cryptography is that of the `cryptography` package, never ours.
"""
