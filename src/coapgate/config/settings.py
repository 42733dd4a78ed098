"""Every option, its default and its bounds. Durations are seconds, sizes are octets.

The docstring beneath an option is what `error:` messages give as a hint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from coapgate.config.values import (
    Address,
    BrokerUrl,
    ByTenant,
    parse_address,
    parse_binds,
    parse_broker_url,
    parse_client_id,
    parse_content_path,
    parse_file,
    parse_patterns,
    parse_prefixes,
    parse_registry_url,
    parse_root,
    parse_store,
)

File = Annotated[Path, BeforeValidator(parse_file)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]
Rate = Annotated[float, Field(allow_inf_nan=False, gt=0, le=1e6)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class DtlsSettings(_Section):
    """Devices' side: sockets, handshakes, associations."""

    bind: Annotated[tuple[Address, ...], BeforeValidator(parse_binds)] = (Address("::", 5684),)
    """where devices connect: an address and a port, or a list of them"""
    certificate: File | None = None
    """PEM file with the gateway's certificate chain, leaf first; X.509 devices need it"""
    private_key: File | None = None
    """PEM file with the private key of dtls.certificate: EC, P-256 or P-384"""
    mtu: int = Field(default=1280, ge=256, le=65535)
    """octets of an IP packet towards the devices; a datagram carries at most 48 fewer"""
    retransmission_time: Seconds = Field(default=9.0, ge=0.1, le=60)
    """seconds until a flight is sent again; doubles to 60 (RFC 7925 section 11)"""
    handshake_timeout: Seconds = Field(default=90.0, ge=1, le=600)
    """seconds a handshake may take"""
    auth_timeout: Seconds = Field(default=5.0, ge=0.1, le=60)
    """seconds a look-up in the registry may take"""
    idle_timeout: Seconds = Field(default=86400.0, ge=1, le=31_536_000)
    """seconds without a record until an association ends; a sleeping device is not an absent one"""
    clock_skew: Seconds = Field(default=60.0, ge=0, le=86400)
    """seconds a key is good before its not_before and after its not_after"""
    max_handshakes: int = Field(default=1024, ge=1, le=65536)
    """handshakes at once; each holds up to 24 KiB"""
    handshakes_per_address: int = Field(default=64, ge=1, le=65536)
    """handshakes at once from one IPv4 address or IPv6 /64"""
    ecdhe_rate: Rate = 200.0
    """ECDHE handshakes a second that one address may begin"""
    ecdhe_burst: int = Field(default=400, ge=1, le=1_000_000)
    """ECDHE handshakes one address may begin at once after a pause"""
    max_associations: int = Field(default=200_000, ge=1, le=10_000_000)
    """associations at once; then the longest idle one ends"""
    association_store: Annotated[str, BeforeValidator(parse_store)] = (
        "associations-{node}-{worker}.store"
    )
    """file in which associations outlive a restart, beside the registry; "" for none"""
    max_handshake_message: int = Field(default=8192, ge=1024, le=16384)
    """octets of one handshake message, such as a certificate chain"""
    receive_buffer: int = Field(default=4_194_304, ge=65536, le=1_073_741_824)
    """octets the kernel may hold for a socket; net.core.rmem_max caps it"""


class CoapSettings(_Section):
    """What devices ask."""

    ack_delay: Seconds = Field(default=0.5, ge=0.05, le=1.5)
    """seconds until a request is acknowledged before its answer is known; devices repeat after 2"""
    max_body: int = Field(default=262_144, ge=1024, le=16_777_216)
    """octets of a body that arrives in blocks"""
    dedup_exchanges: int = Field(default=64, ge=4, le=4096)
    """requests an association remembers, so that a repetition is answered alike"""
    block_size: int = Field(default=1024, ge=16, le=1024)
    """octets of a block at most, where a body goes in blocks; devices may ask for smaller ones"""
    transfers: int = Field(default=256, ge=1, le=65536)
    """bodies of all devices that arrive in blocks at once; each holds up to coap.max_body"""
    transfers_per_device: int = Field(default=2, ge=1, le=64)
    """bodies of one device that arrive in blocks at once"""
    transfer_timeout: Seconds = Field(default=120.0, ge=1, le=3600)
    """seconds without a block until a body is abandoned"""
    download_memory: int = Field(default=67_108_864, ge=1_048_576, le=4_294_967_296)
    """octets of states that devices are reading in blocks"""
    observations_per_device: int = Field(default=16, ge=0, le=1024)
    """paths a device may observe at once; the next is answered without observation"""
    confirm_every: int = Field(default=1, ge=1, le=1000)
    """one notification of so many is confirmable; one in 24 hours always is"""
    response_timeout: Seconds = Field(default=60.0, ge=1, le=600)
    """seconds a device may take to answer a request that it has acknowledged"""
    requests_per_device: int = Field(default=1, ge=1, le=16)
    """requests to a device at once (NSTART, RFC 7252 section 4.7)"""


class LimitSettings(_Section):
    """What one device may take."""

    device_rate: Rate = 20.0
    """requests a second; above it the answer is 4.29 with Max-Age"""
    device_burst: int = Field(default=50, ge=1, le=1_000_000)
    """requests at once after a pause"""
    block_rate: Rate = 1000.0
    """blocks a second that go on with a body; a body is one request, whatever its blocks"""
    block_burst: int = Field(default=10_000, ge=1, le=1_000_000)
    """blocks at once after a pause"""
    associations_per_device: int = Field(default=4, ge=1, le=64)
    """associations at once; the newest win"""


class MqttSettings(_Section):
    """The broker's side."""

    url: Annotated[BrokerUrl, BeforeValidator(parse_broker_url)] = BrokerUrl(
        False, "127.0.0.1", 1883
    )
    """where the broker is: mqtt://HOST[:1883] or mqtts://HOST[:8883]; it must speak MQTT 5"""
    client_id: Annotated[str, BeforeValidator(parse_client_id)] = "coapgate-{node}-{worker}"
    """MQTT client identifier; {node} and {worker} are filled in"""
    username: str | None = Field(
        default=None, min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$"
    )
    """MQTT user name"""
    password_file: File | None = None
    """file whose only line is the MQTT password"""
    ca: File | None = None
    """PEM file with the certificates that may sign the broker's; the system's if absent"""
    certificate: File | None = None
    """PEM file with a certificate chain to show to the broker"""
    private_key: File | None = None
    """PEM file with the private key of mqtt.certificate"""
    root: Annotated[str, BeforeValidator(parse_root)] = "coapgate"
    """what every topic begins with"""
    keep_alive: int = Field(default=30, ge=5, le=3600)
    """seconds of silence until the broker is pinged"""
    session_expiry: int = Field(default=86400, ge=0, le=31_536_000)
    """seconds the broker keeps requests for devices while the gateway is away; 0 for none"""
    max_received_packet: int = Field(default=8_388_608, ge=65_536, le=268_435_455)
    """octets of a packet from the broker, such as a state or firmware that is retained"""
    max_in_flight: int = Field(default=256, ge=1, le=65535)
    """publications without PUBACK at once; the broker's Receive Maximum may lower it"""
    hold_time: Seconds = Field(default=10.0, ge=0, le=90)
    """seconds a publication waits for an absent broker before 5.03"""
    hold_messages: int = Field(default=4096, ge=0, le=1_000_000)
    """publications that wait at once; the next is answered 5.03"""


class PskSettings(_Section):
    """Keys that devices share with the gateway."""

    grace_time: Seconds = Field(default=604_800.0, ge=0, le=31_536_000)
    """seconds a key is good for after its device has used the next one"""


class DownlinkSettings(_Section):
    """What backends send to devices."""

    hold: Literal["registry", "memory", "none"] = "registry"
    """where a request waits for a device that does not listen: none rejects it at once"""
    hold_time: Seconds = Field(default=86400.0, ge=1, le=31_536_000)
    """seconds a request waits for its device if its Message Expiry Interval does not say"""
    max_hold_time: Seconds = Field(default=604_800.0, ge=1, le=31_536_000)
    """seconds a request waits for its device at most, whatever it says"""
    held_per_device: int = Field(default=16, ge=1, le=4096)
    """requests that wait for one device; the next is rejected"""
    held_messages: int = Field(default=10_000, ge=1, le=10_000_000)
    """requests that wait in all; the next is rejected"""
    held_size: int = Field(default=67_108_864, ge=65_536, le=4_294_967_296)
    """octets of the bodies of requests that wait in all"""
    tenant_share: float = Field(default=0.5, gt=0, le=1, allow_inf_nan=False)
    """part of downlink.held_messages and downlink.held_size that one tenant may have"""
    attempts: int = Field(default=4, ge=1, le=100)
    """times a request is sent to a device that does not acknowledge it, until it has expired"""
    look_up_time: Seconds = Field(default=5.0, ge=0.5, le=60)
    """seconds the broker may take to tell the state of a path, then the device gets 5.03"""
    states: int = Field(default=65_536, ge=1, le=10_000_000)
    """paths whose state is known because a device reads or observes it"""
    states_size: int = Field(default=67_108_864, ge=1_048_576, le=4_294_967_296)
    """octets of the states that are known"""
    linger_time: Seconds = Field(default=60.0, ge=0, le=86400)
    """seconds a state that nobody observes is kept after it was read"""
    events: int = Field(default=65_536, ge=1024, le=10_000_000)
    """events and outcomes that wait for an absent broker; the next is lost, and counted"""


class RightsSettings(_Section):
    """Which paths the devices of a tenant may use, by tenant; everything if nothing is said."""

    post: Annotated[ByTenant, BeforeValidator(parse_patterns)] | None = None
    """paths to which devices may POST and PUT, by tenant"""
    read: Annotated[ByTenant, BeforeValidator(parse_patterns)] | None = None
    """paths whose state devices may GET, by tenant"""
    observe: Annotated[ByTenant, BeforeValidator(parse_patterns)] | None = None
    """paths whose state devices may observe, by tenant; they must be readable too"""
    reply: Annotated[ByTenant, BeforeValidator(parse_prefixes)] | None = None
    """what Response Topics may begin with, by tenant, besides ROOT/TENANT/reply/"""


class ContentSettings(_Section):
    """Files that devices may read, such as firmware."""

    folder: File | None = None
    """folder with a folder for each tenant, in which its devices' files are"""
    path: Annotated[str, BeforeValidator(parse_content_path)] = "firmware"
    """path below which devices find the files"""
    max_file: int = Field(default=16_777_216, ge=1024, le=268_435_456)
    """octets of a file; a larger one is not found"""
    memory: int = Field(default=67_108_864, ge=1_048_576, le=4_294_967_296)
    """octets of files that are kept after they were read"""


class RegistrySettings(_Section):
    """Devices, credentials, trust anchors."""

    url: Annotated[str, BeforeValidator(parse_registry_url)] = "sqlite:///registry.db"
    """where the registry is: sqlite:///FILE"""
    key_file: File = Path("registry.key")
    """file with the key that encrypts the registry's secrets; made when first needed"""


class HttpSettings(_Section):
    """Metrics and health."""

    bind: Annotated[Address, BeforeValidator(parse_address)] = Address("127.0.0.1", 9684)
    """where /metrics, /livez and /readyz are served"""


class LogSettings(_Section):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """the least severe level that is written"""
    format: Literal["text", "json"] = "text"
    """text for people, json for collectors"""


class Settings(BaseSettings):
    """The whole configuration, as `config.load` returns it: checked, frozen, paths resolved."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        env_prefix="COAPGATE_",
        env_nested_delimiter="__",
        enable_decoding=False,
    )

    node: int = Field(default=0, ge=0, le=255)
    """number of this gateway among those that share a broker"""
    dtls: DtlsSettings = DtlsSettings()
    coap: CoapSettings = CoapSettings()
    limits: LimitSettings = LimitSettings()
    mqtt: MqttSettings = MqttSettings()
    psk: PskSettings = PskSettings()
    downlink: DownlinkSettings = DownlinkSettings()
    rights: RightsSettings = RightsSettings()
    content: ContentSettings = ContentSettings()
    registry: RegistrySettings = RegistrySettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()

    _base: Path = PrivateAttr(Path())

    @property
    def base(self) -> Path:
        """The folder of the configuration file, to which `registry.url` is relative."""
        return self._base

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `load` merges the environment into the file itself: so a message can say which of the two
        # was wrong, and settings that a test constructs depend on nothing else.
        return (init_settings,)
