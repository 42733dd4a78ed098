"""A gateway that lets constrained devices onto an MQTT bus: CoAP over DTLS in, MQTT 5 out."""
