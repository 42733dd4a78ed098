"""Exit codes, streams and JSON of the command line."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coapgate.cli import main, output
from coapgate.model import DEFAULT_TENANT, DeviceId
from coapgate.pki.factory import FactoryCa
from coapgate.registry.base import NewDevice
from coapgate.registry.psk import parse_key
from coapgate.registry.sqlite import SqliteRegistry

KEY = "text:correct-horse-battery"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "coapgate.toml"
    file.write_text('[registry]\nurl = "sqlite:///devices.db"\nkey_file = "devices.key"\n')
    return file


@pytest.fixture
def run(config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command: its exit code, standard output and standard error."""
    monkeypatch.setenv("COAPGATE_CONFIG", str(config))

    def run(*words: str) -> tuple[int, str, str]:
        code = main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def document(run: Run, *words: str) -> Any:
    code, out, err = run(*words, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def registry(config: Path) -> SqliteRegistry:
    folder = config.parent
    return SqliteRegistry.open("sqlite:///devices.db", folder / "devices.key", folder)


# Streams and exit codes.


def test_results_go_to_standard_output_and_advice_to_standard_error(run: Run) -> None:
    code, out, err = run("device", "add", "sensor-1")

    assert code == 0
    assert out == "added device 'sensor-1' of tenant 'default'\n"
    assert err.startswith("hint: ")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["device", "list"], 1),  # there is no registry
        (["device", "show", "sensor-1"], 1),
        (["psk", "add", "sensor-1", "--key", "bare"], 2),
        (["psk", "add", "sensor-1", "--key-file", "nowhere"], 2),
        (["device", "add", "a b"], 2),
        (["device", "import", "nowhere.csv"], 2),
        (["device", "list", "--config", "nowhere.toml"], 2),
        (["device", "nonsense"], 2),
        (["device", "add", "one", "two"], 2),
    ],
)
def test_a_failure_is_an_error_line_and_a_hint_and_no_traceback(
    run: Run, words: list[str], code: int
) -> None:
    exit_code, out, err = run(*words)

    assert (exit_code, out) == (code, "")
    error, hint = err.splitlines()
    assert error.startswith("error: ")
    assert error.removeprefix("error: ")[0].islower() or error.removeprefix("error: ")[0] == "'"
    assert not error.endswith(".")
    assert hint.startswith("hint: ")


def test_a_command_without_a_configuration_says_how_to_name_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COAPGATE_CONFIG")

    for words in (["device", "list"], ["psk", "list"], ["anchor", "list"], ["run"], ["check"]):
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        assert "--config" in err
        assert "COAPGATE_CONFIG" in err


def test_the_config_option_stands_above_the_environment(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COAPGATE_CONFIG", "nowhere.toml")

    assert run("device", "add", "sensor-1", "--config", str(config))[0] == 0
    assert config.with_name("devices.db").exists()


@pytest.mark.parametrize("words", [[], ["device"], ["psk"], ["anchor"]])
def test_asking_for_nothing_is_answered_with_the_help(run: Run, words: list[str]) -> None:
    code, out, err = run(*words)

    assert (code, out) == (2, "")
    assert err.startswith("Usage: coapgate")
    assert "Commands:" in err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["run"],
        ["check"],
        ["demo"],
        ["psk", "add"],
        ["device", "import"],
        ["anchor", "add"],
    ],
)
def test_help_is_a_result(run: Run, words: list[str]) -> None:
    code, out, err = run(*words, "--help")

    assert (code, err) == (0, "")
    assert out.startswith("Usage: coapgate")


def test_the_version_is_said(run: Run) -> None:
    code, out, _ = run("--version")

    assert code == 0
    assert out.startswith("coapgate 0.")


def test_help_waits_for_no_large_import() -> None:
    program = (
        "import sys\n"
        "from coapgate.cli import main\n"
        "main(['psk', 'add', '--help'])\n"
        "heavy = 'cryptography sqlite3 asyncio rich.console aiocoap fastapi'.split()\n"
        "sys.exit(str([name for name in heavy if name in sys.modules] or ''))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert done.stderr.strip() == ""


def test_the_module_is_a_program_like_the_command() -> None:
    for name in ("coapgate", "coapgate.cli"):
        done = subprocess.run(
            [sys.executable, "-m", name, "nonsense"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert done.stderr.splitlines()[0] == "error: no such command 'nonsense'"


def test_a_reader_that_has_seen_enough_hears_no_complaint(config: Path) -> None:
    with registry(config) as opened:
        opened.import_devices(
            NewDevice(
                line, DEFAULT_TENANT, DeviceId(f"sensor-{line}"), f"{line}".encode(), b"k" * 16
            )
            for line in range(5000)
        )
    for options in (["--json"], ["--limit", "0"]):
        with subprocess.Popen(
            [sys.executable, "-m", "coapgate", "device", "list", "--config", str(config), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(30) == 1


def test_text_that_would_steer_the_terminal_is_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.say("a\x1b[31mb\r\n\N{RIGHT-TO-LEFT OVERRIDE}\udcffä")
    output.error("\x07", "\x9b")
    output.table(("A",), [("x\ty",)])

    captured = capsys.readouterr()
    assert captured.out == "a\\x1b[31mb\\r\\n\\u202e\\udcffä\nA\nx\\ty\n"
    assert captured.err == "error: \\x07\nhint: \\x9b\n"


def test_an_argument_that_is_no_text_is_an_error(run: Run) -> None:
    for words in (
        ["device", "show", "\udcff"],
        ["device", "list", "--tenant", "\udcff"],
        ["device", "list", "--label", "\udcff=\udcff"],
        ["psk", "list", "\udcff"],
        ["psk", "add", "sensor-1", "--identity", "\udcff", "--generate"],
        ["anchor", "remove", "\udcff"],
        ["device", "trust", "sensor-1", "--anchor", "\udcff"],
        ["device", "trust", "sensor-1", "--anchor", "factory", "--value", "\udcff"],
    ):
        run("device", "add", "sensor-1")
        code, _, err = run(*words)
        assert code in (0, 2), words
        assert code == 0 or err.startswith("error: "), words


def test_an_import_shows_a_person_how_far_it_is(config: Path) -> None:
    file = config.with_name("fleet.csv")
    with file.open("w") as fleet:
        fleet.write("device,tenant,psk_identity,psk_key\n")
        for number in range(2500):
            fleet.write(f"sensor-{number},,id-{number},hex:{number:032x}\n")
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "coapgate", "device", "import", str(file)]

    done = subprocess.run(
        [*command, "--config", str(config)], stdout=subprocess.PIPE, stderr=end, check=False
    )
    os.close(end)
    seen = os.read(terminal, 1 << 20)
    os.close(terminal)

    assert (done.returncode, done.stdout) == (0, b"imported 2500 devices\n")
    assert b"reading fleet.csv" in seen
    assert b"2500 devices" in seen


# Keys.


def test_a_generated_key_is_printed_once_and_is_the_device_s(run: Run, config: Path) -> None:
    code, out, err = run("psk", "add", "sensor-1", "--generate")

    assert code == 0
    key = out.splitlines()[1].removeprefix("key ")
    assert "not shown again" in err
    with registry(config) as opened:
        search = opened.find_psk(b"sensor-1")
        with pytest.raises(StopIteration) as found:
            search.send(None)
    assert [credential.secret for credential in found.value.value] == [parse_key(key)]
    for words in (["psk", "list"], ["device", "show", "sensor-1"], ["device", "list"]):
        for options in ([], ["--json"]):
            _, out, err = run(*words, *options)
            assert key.removeprefix("hex:") not in out + err


def test_two_generated_keys_differ(run: Run) -> None:
    first = document(run, "psk", "add", "sensor-1", "--generate")
    second = document(run, "psk", "add", "sensor-1", "--generate")

    assert first["key"] != second["key"]
    assert (first["device_created"], second["device_created"]) == (True, False)


def test_a_given_key_is_not_printed(run: Run) -> None:
    for options in ([], ["--json"]):
        code, out, err = run(
            "psk", "add", "sensor-1", "--identity", f"id{len(options)}", "--key", KEY, *options
        )
        assert code == 0
        assert "correct-horse" not in out + err


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (b"hex:00112233445566778899aabbccddeeff", 0),
        (b"hex:00112233445566778899aabbccddeeff\r\n", 0),
        (b"", 2),
        (b"\n", 2),
        (b"\xff\xfe", 2),
        (b"text:" + b"x" * 100_000, 2),
    ],
)
def test_a_key_file_holds_one_line(run: Run, tmp_path: Path, octets: bytes, code: int) -> None:
    file = tmp_path / "key"
    file.write_bytes(octets)

    assert run("psk", "add", "sensor-1", "--key-file", str(file))[0] == code


# JSON.


def test_json_lists_are_arrays_also_if_they_are_empty(run: Run) -> None:
    run("device", "add", "sensor-1")
    run("device", "remove", "sensor-1")

    for kind in ("device", "psk", "anchor"):
        assert document(run, kind, "list") == []


def test_json_is_not_cut_as_a_table_is(run: Run) -> None:
    for number in range(3):
        run("psk", "add", f"sensor-{number}", "--key", KEY)

    for kind in ("device", "psk"):
        assert len(document(run, kind, "list", "--limit", "1")) == 3
        _, out, err = run(kind, "list", "--limit", "2")
        assert len(out.splitlines()) == 3
        assert err == "hint: there are more: --limit 0 shows all\n"
        assert run(kind, "list", "--limit", "3")[2] == ""
        assert run(kind, "list", "--limit", "0")[2] == ""


def test_a_device_is_shown_with_all_that_speaks_for_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(FactoryCa.create("Root").certificate_pem)
    run("anchor", "add", str(tmp_path / "ca.pem"), "--name", "factory", "--auto-provision")
    run("psk", "add", "sensor-1", "--identity", "hex:ff", "--key", KEY)
    run("device", "trust", "sensor-1", "--anchor", "factory", "--value", "A1")

    shown = document(run, "device", "show", "sensor-1")

    (anchor,) = document(run, "anchor", "list")
    assert shown["certificates"] == [
        {"anchor": "factory", "key_id": anchor["key_id"], "value": "A1", "used_at": None}
    ]
    (psk,) = shown["psks"]
    assert (psk["credential"], psk["identity"], psk["state"]) == ("psk-1", "hex:ff", "active")
    assert shown["added_at"].endswith("Z")
    assert document(run, "device", "list") == [
        {key: value for key, value in shown.items() if key not in ("psks", "certificates")}
    ]
    assert anchor["subject"] == "CN=Root"
    assert (anchor["device_id"], anchor["auto_provision"]) == ("cn", True)

    run("anchor", "remove", "factory")
    assert document(run, "device", "show", "sensor-1")["certificates"][0]["anchor"] is None
    assert f"sha256:{anchor['key_id'][:16]}, removed" in run("device", "show", "sensor-1")[1]


def test_a_certificate_that_can_be_no_anchor_is_refused(run: Run, tmp_path: Path) -> None:
    FactoryCa.create("Root").issue_device("sensor-7").write(tmp_path, "sensor-7")

    code, out, err = run("anchor", "add", str(tmp_path / "sensor-7.pem"), "--name", "factory")

    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert run("device", "list")[0] == 1  # not even a registry was made
