"""What SIGHUP reads again: the gateway's own certificate, with nobody dropped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from coapgate.dtls.negotiation import ServerCertificate as Shown
from coapgate.dtls.server import Server
from coapgate.errors import CertificateError
from coapgate.pki.server import ServerCertificate

log = logging.getLogger(__name__)


class OwnCertificate:
    """The certificate the gateway shows, and how to exchange it.

    `load` reads it from its files; None: the configuration names none. `also` is called at every
    reload, for what else is read again. Mutable: the certificate that is shown.
    """

    def __init__(
        self,
        server: Server,
        load: Callable[[], ServerCertificate | None],
        also: Callable[[], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._server = server
        self._load = load
        self._also = also
        self._wall = wall
        self.reloads = 0
        self.failures = 0
        """Reloads that left the old certificate in force."""

    def reload(self) -> None:
        """Read everything again. What cannot be used leaves what there was in force, and says so.

        Associations and handshakes under way go on; new ones see the new certificate.
        """
        self.reloads += 1
        self._also()
        try:
            certificate = self._load()
            if certificate is not None and certificate.not_after < self._wall():
                raise CertificateError(
                    "the new server certificate has expired", "see dtls.certificate"
                )
        except CertificateError as error:
            self.failures += 1
            fields = {"detail": str(error), "hint": error.hint}
            log.error("server certificate kept", extra=fields)
            return
        if certificate is None:
            log.info("reloaded")
            return
        self._server.exchange_certificate(Shown(certificate.chain, certificate.key))
        end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(certificate.not_after))
        log.info("reloaded", extra={"certificate_until": end})
