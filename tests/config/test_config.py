"""What a configuration may say, and what is said about one that may not."""

from __future__ import annotations

import contextlib
import json
import os
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from coapgate.config import Address, BrokerUrl, Settings, load
from coapgate.config.loading import Key, options
from coapgate.errors import ConfigError

HERE = Path(__file__).parent
SHIPPED = HERE.parents[1] / "config"
GOOD = sorted((HERE / "good").glob("*.toml"))
BAD = sorted((HERE / "bad").glob("*.toml"))

NUMBERS = {key: default for key, default in options() if type(default) in (int, float)}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own environment reaches a test."""
    for name in os.environ:
        if name.upper().startswith("COAPGATE_"):
            monkeypatch.delenv(name)


def problems(file: Path) -> tuple[tuple[str, str], ...]:
    with pytest.raises(ConfigError) as caught:
        load(file)
    return caught.value.problems


def written(folder: Path, text: str) -> Path:
    file = folder / "coapgate.toml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_a_good_file_is_accepted(file: Path) -> None:
    load(file)


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_a_bad_file_is_refused_with_its_exact_message(file: Path) -> None:
    error, hint = (
        line.removeprefix(prefix).replace("{file}", repr(str(file)))
        for line, prefix in zip(
            file.read_text().splitlines()[:2], ("# error: ", "# hint: "), strict=True
        )
    )

    assert problems(file) == ((error, hint),)


def test_every_error_is_told_at_once_with_its_key_path(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        node = -1
        [dtls]
        mtu = 1
        bind = "nowhere"
        certificate = "gateway.pem"
        [mqtt]
        url = "mqtt://127.0.0.1"
        ca = "ca.pem"
        keep_alive = 1
        [log]
        level = "loud"
        colour = true
        """,
    )

    keys = {message.partition(":")[0] for message, _ in problems(file)}

    assert keys == {
        "node",
        "dtls.mtu",
        "dtls.bind",
        "dtls.private_key",
        "mqtt.ca",
        "mqtt.keep_alive",
        "log.level",
        "log.colour",
    }


def test_a_rule_between_options_is_silent_about_an_option_that_is_wrong_already(
    tmp_path: Path,
) -> None:
    file = written(tmp_path, "[dtls]\nauth_timeout = 60.0\nhandshake_timeout = 0.0\n")

    assert [message for message, _ in problems(file)] == [
        "dtls.handshake_timeout: must be at least 1, not 0.0"
    ]


VALUES = st.one_of(
    st.text(st.characters(codec="utf-8")).map(json.dumps),
    st.text(string.ascii_letters + ":/[]@{}.-0123456789").map(json.dumps),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(repr),
    st.sampled_from(["true", "[]", "{}", '["", ""]', "1979-05-27", '[["a"]]', "{a = 1}"]),
)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([key for key, _ in options()]), VALUES)
@example(("dtls", "bind"), '["[::]:1", 5]')
@example(("mqtt", "client_id"), '"{worker[0]}"')
@example(("mqtt", "client_id"), '"{node.real}"')
@example(("mqtt", "client_id"), f'"{"a" * 129}"')
@example(("mqtt", "url"), '"mqtt://[::1"')
@example(("registry", "url"), '"sqlite:///\\u0000"')
@example(("registry", "key_file"), '"a\\u0000b"')
def test_whatever_an_option_is_given_is_accepted_or_named(
    tmp_path: Path, key: Key, value: str
) -> None:
    table = f"[{key[0]}]\n" if len(key) == 2 else ""
    file = written(tmp_path, f"{table}{key[-1]} = {value}\n")

    try:
        load(file)
    except ConfigError as error:
        for message, hint in error.problems:
            assert message.startswith((f"{key[0]}.", f"{key[0]}:", repr(str(file))))
            assert hint


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary())
def test_whatever_the_file_holds_is_accepted_or_refused(tmp_path: Path, octets: bytes) -> None:
    file = tmp_path / "coapgate.toml"
    file.write_bytes(octets)

    with contextlib.suppress(ConfigError):
        load(file)


def test_a_password_in_a_wrong_place_is_not_shown() -> None:
    for name in ("broker_with_password", "password_as_a_value"):
        assert "hunter2" not in str(problems(HERE / "bad" / f"{name}.toml"))


def test_a_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    file = written(tmp_path, f'node = "{"x" * 1000}"\n')

    ((message, _),) = problems(file)

    assert len(message) < 120


@pytest.mark.parametrize("key", NUMBERS, ids=".".join)
def test_every_number_has_a_lower_and_an_upper_bound(key: Key, tmp_path: Path) -> None:
    for value in ("-1", "9" * 18):
        table = f"[{key[0]}]\n" if len(key) == 2 else ""
        file = written(tmp_path, f"{table}{key[-1]} = {value}\n")

        assert problems(file)[0][0].startswith(".".join(key) + ": must be ")


def test_the_environment_stands_above_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, '[dtls]\nmtu = 1400\nbind = "[::]:1"\n')
    monkeypatch.setenv("COAPGATE_DTLS__BIND", "127.0.0.1:5684, [::1]:5684")
    monkeypatch.setenv("COAPGATE_NODE", "7")
    monkeypatch.setenv("COAPGATE_LIMITS__DEVICE_RATE", "2.5")
    monkeypatch.setenv("COAPGATE_LOG__FORMAT", "json")

    settings = load(file)

    assert settings.dtls.bind == (Address("127.0.0.1", 5684), Address("::1", 5684))
    assert settings.dtls.mtu == 1400
    assert settings.node == 7
    assert settings.limits.device_rate == 2.5
    assert settings.log.format == "json"


def test_a_message_names_the_variable_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "[dtls]\nmtu = 1280\n")
    monkeypatch.setenv("COAPGATE_DTLS__MTU", "large")
    monkeypatch.setenv("COAPGATE_DTLS__MTV", "1280")

    assert [message for message, _ in problems(file)] == [
        "dtls.mtu (COAPGATE_DTLS__MTU): must be a whole number, not 'large'",
        "dtls.mtv (COAPGATE_DTLS__MTV): there is no such option",
    ]


def test_variables_that_others_set_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # COAPGATE_CONFIG is the command line's; an orchestrator makes the others for a service.
    for name in ("COAPGATE_CONFIG", "COAPGATE_SERVICE_HOST", "COAPGATE_PORT_5684_UDP"):
        monkeypatch.setenv(name, "anything")

    assert load(written(tmp_path, "")).model_dump() == Settings().model_dump() | {
        "registry": {"url": "sqlite:///registry.db", "key_file": tmp_path / "registry.key"}
    }


def test_relative_files_are_relative_to_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    folder = HERE / "good"

    settings = load(folder / "x509.toml")

    assert settings.dtls.certificate == folder / "pki/gateway.pem"
    assert settings.dtls.private_key == Path("/etc/coapgate/gateway.key")
    assert settings.registry.key_file == folder / "registry.key"
    assert settings.base == folder


def test_settings_are_frozen() -> None:
    settings = Settings()

    with pytest.raises(ValidationError):
        settings.node = 2
    with pytest.raises(ValidationError):
        settings.dtls.mtu = 1400


def test_a_broker_url_knows_its_usual_ports(tmp_path: Path) -> None:
    def url(text: str) -> BrokerUrl:
        return load(written(tmp_path, f'[mqtt]\nurl = "{text}"\n')).mqtt.url

    assert url("mqtt://localhost") == BrokerUrl(False, "localhost", 1883)
    assert url("mqtts://[::1]/") == BrokerUrl(True, "::1", 8883)
    assert str(url("mqtt://[::1]:99")) == "mqtt://[::1]:99"


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert problems(missing) == (
        (
            f"cannot read '{missing}': No such file or directory",
            "name a file with --config or COAPGATE_CONFIG",
        ),
    )
    assert problems(tmp_path)[0][0] == f"cannot read '{tmp_path}': Is a directory"


def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path) -> None:
    octets = tmp_path / "octets"
    octets.write_bytes(b'root = "\xff"')
    assert problems(octets) == (
        (f"'{octets}' is not UTF-8", "octet 8 is wrong; is it a TOML file?"),
    )
    assert problems(Path("/dev/zero")) == (("'/dev/zero' is too large", "is it a TOML file?"),)


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000])
def test_toml_that_exhausts_its_parser_is_refused(tmp_path: Path, value: str) -> None:
    assert "is not TOML" in problems(written(tmp_path, f"node = {value}\n"))[0][0]


def test_the_shipped_configuration_is_every_option_at_its_default() -> None:
    file = SHIPPED / "coapgate.toml"
    lines = file.read_text().splitlines()

    assert load(file).model_dump() == Settings().model_dump() | {
        "registry": {"url": "sqlite:///registry.db", "key_file": SHIPPED / "registry.key"}
    }
    table = ""
    seen = []
    for number, line in enumerate(lines):
        if line.startswith("["):
            table = line[1:-1]
        name, equals, _ = line.removeprefix("# ").partition(" = ")
        if equals:
            key = (table, name) if table else (name,)
            seen.append(key)
            # Options without a default are commented out, and only those.
            assert line.startswith("# ") == (dict(options())[key] is None), line
            owner = Settings.model_fields[table].annotation if table else Settings
            assert isinstance(owner, type)
            assert issubclass(owner, BaseModel)
            assert lines[number - 1] == f"# {owner.model_fields[name].description}"
    assert seen == [key for key, _ in options()]


def test_the_minimal_configuration_is_accepted() -> None:
    load(SHIPPED / "minimal.toml")
