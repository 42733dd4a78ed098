"""Commands and what they print, as `transcripts/*.txt` show them: documentation that is run.

A transcript is paragraphs, each a line `$ command` and what it prints on standard output and
standard error together; `[2]` at its end is an exit code other than 0. Lines above the first
command, and lines that begin with `#`, are for the reader. `<time>` stands for a time, `<key>` for
a new key, `<folder>` for where it runs; `<code>`, `<digest>`, `<serial>` and `<mark>` for what is
another with every CA. After `-- name --` comes the text of a file that is there.

`coapgate` runs in this process, other commands in a shell. Each transcript begins in a folder with
a configuration (COAPGATE_CONFIG names it), `factory.pem`, a CA, and `sensor-7.pem`, a device's
certificate that it signed.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from coapgate.cli import main
from coapgate.pki.factory import FactoryCa

TRANSCRIPTS = sorted(Path(__file__).parent.glob("transcripts/*.txt"))

_PATTERNS = {
    re.escape("<time>"): r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    re.escape("<digest>"): r"[0-9a-f]{64}",
    re.escape("<code>"): r"[0-9a-f]{32}",
    re.escape("<serial>"): r"(?:[0-9a-f]{2}){1,20}",
    re.escape("<mark>"): r"[0-9a-f]{16}",
    re.escape("<key>"): r"hex:(?:[0-9a-f]{32}){1,2}",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One command and what it prints; `line` counts from 1."""

    line: int
    command: str
    expected: str


def parse(text: str) -> tuple[list[Step], dict[str, str]]:
    """The steps of a transcript, and its files by name."""
    script, *sections = re.split(r"^-- (\S+) --\n", text, flags=re.MULTILINE)
    files = dict(zip(sections[::2], sections[1::2], strict=True))
    steps: list[Step] = []
    for number, line in enumerate(script.splitlines(keepends=True), start=1):
        if line.startswith("$ "):
            steps.append(Step(number, line[2:].strip(), ""))
        elif steps and not line.startswith("#"):
            last = steps[-1]
            steps[-1] = Step(last.line, last.command, last.expected + line)
    return steps, files


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command prints, and its exit code if it is not 0."""
    if not command.startswith("coapgate "):
        done = subprocess.run(
            command, shell=True, check=False, text=True, stdout=-1, stderr=subprocess.STDOUT
        )
        printed, code = done.stdout, done.returncode
    else:
        words = shlex.split(command)[1:]
        if "<" in words:
            octets = Path(words[words.index("<") + 1]).read_bytes()
            words = words[: words.index("<")]
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(octets)))
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            code = main(words)
        printed = stream.getvalue()
    return printed + (f"[{code}]\n" if code else "")


def matches(expected: str, printed: str, folder: Path) -> bool:
    pattern = re.escape(expected.strip().replace("<folder>", str(folder)))
    for placeholder, stands_for in _PATTERNS.items():
        pattern = pattern.replace(placeholder, stands_for)
    return re.fullmatch(pattern, printed.strip()) is not None


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("factory")
    ca = FactoryCa.create("Example Factory Root")
    (folder / "factory.pem").write_bytes(ca.certificate_pem)
    ca.issue_device("sensor-7").write(folder, "sensor-7")
    return folder


@pytest.fixture
def folder(factory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "coapgate.toml").write_text('[mqtt]\nurl = "mqtt://127.0.0.1:1883"\n')
    for name in ("factory.pem", "sensor-7.pem"):
        (tmp_path / name).write_bytes((factory / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COAPGATE_CONFIG", "coapgate.toml")
    return tmp_path


@pytest.mark.parametrize("file", TRANSCRIPTS, ids=lambda file: file.stem)
def test_commands_print_what_the_transcript_shows(
    file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, files = parse(file.read_text())
    for name, text in files.items():
        (folder / name).write_text(text)

    for step in steps:
        printed = run(step.command, monkeypatch)
        assert matches(step.expected, printed, folder), (
            f"{file.name}:{step.line}: $ {step.command}\n{printed}"
        )


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) >= 6
    assert all(parse(file.read_text())[0] for file in TRANSCRIPTS)


def test_a_transcript_that_differs_is_noticed(folder: Path) -> None:
    assert matches("at <time>, in <folder>\n", f"at 2026-01-01T00:00:00Z, in {folder}\n", folder)
    assert not matches("at <time>\n", "at noon\n", folder)
    assert not matches("done\n", "done\nand more\n", folder)
    assert not matches("key <key>\n", "key hex:00\n", folder)
