"""The gateway's own certificate is exchanged, or kept, and nobody is dropped."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from coapgate.dtls.handshake import HandshakeSettings
from coapgate.dtls.negotiation import ServerCertificate as Shown
from coapgate.dtls.server import Server, ServerSettings
from coapgate.pki.certificates import leaf_public_key
from coapgate.pki.factory import DAY, FactoryCa, IssuedCertificate
from coapgate.pki.server import ServerCertificate, load_server_certificate
from coapgate.reloading import OwnCertificate


class House:
    """The files of a certificate, and a server that shows it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = FactoryCa.create("Example Factory Root")
        self.write(self.ca.issue_server())
        self.read_again = 0
        loaded = self.load()
        shown = Shown(loaded.chain, loaded.key)
        handshake = HandshakeSettings(certificate=shown, public_key=leaf_public_key)
        self.server = Server(ServerSettings(handshake), lambda *_: None)
        self.own = OwnCertificate(self.server, self.load, self.also)

    def also(self) -> None:
        self.read_again += 1

    def load(self) -> ServerCertificate:
        return load_server_certificate(self.folder / "gateway.pem", self.folder / "gateway.key")

    def write(self, issued: IssuedCertificate) -> None:
        (self.folder / "gateway.key").unlink(missing_ok=True)
        issued.write(self.folder, "gateway")


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_new_handshakes_see_the_new_certificate(house: House) -> None:
    renewed = house.ca.issue_server()
    house.write(renewed)

    house.own.reload()

    assert house.server.certificate_chain == renewed.chain
    assert (house.own.reloads, house.own.failures, house.read_again) == (1, 0, 1)


def _without_key(house: House) -> None:
    (house.folder / "gateway.key").unlink()


def _with_another_key(house: House) -> None:
    other = house.ca.issue_server()
    (house.folder / "gateway.key").write_bytes(other.key_pem)


def _no_certificate(house: House) -> None:
    (house.folder / "gateway.pem").write_text("no certificate")


def _expired(house: House) -> None:
    now = time.time()
    house.write(FactoryCa.create("Example Factory Root", wall=now - 12_000 * DAY).issue_server())


@pytest.mark.expects_warnings("server certificate kept")
@pytest.mark.parametrize("spoil", [_without_key, _with_another_key, _no_certificate, _expired])
def test_one_that_cannot_be_used_leaves_the_old_one_in_force(
    house: House, spoil: Callable[[House], None], caplog: pytest.LogCaptureFixture
) -> None:
    before = house.server.certificate_chain
    spoil(house)

    house.own.reload()

    assert house.server.certificate_chain == before
    assert (house.own.reloads, house.own.failures) == (1, 1)
    assert house.read_again == 1  # what else there is to read is read for all that
    (record,) = (each for each in caplog.records if each.levelname == "ERROR")
    assert record.__dict__["detail"]
    assert record.__dict__["hint"]


def test_a_gateway_without_a_certificate_has_nothing_to_exchange() -> None:
    server = Server(ServerSettings(), lambda *_: None)
    own = OwnCertificate(server, lambda: None, lambda: None)

    own.reload()

    assert server.certificate_chain == ()
    assert own.failures == 0
