"""Which devices exist, and what proves each: credentials, trust anchors, and who may change them.

`base` says what a registry can do; `sqlite` and `memory` do it.
"""
