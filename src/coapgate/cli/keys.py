"""Where a command takes a key from: its arguments, a file, standard input, or chance."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from coapgate.errors import Failed, Misused
from coapgate.registry.psk import KEY_FORMS, parse_key

_MAX_FILE_SIZE = 4096

Key = Annotated[
    str | None, typer.Option("--key", metavar="KEY", help="hex:..., base64:... or text:...")
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        help="A file with the key; - reads it from standard input, where no other user of "
        "this machine can see it.",
    ),
]
Generate = Annotated[bool, typer.Option("--generate", help="Make a key, and print it this once.")]


@dataclass(frozen=True, slots=True)
class Source:
    """What the options of a command say; `generated_length` is that of a new key, in octets."""

    key: str | None = field(repr=False)
    key_file: Path | None
    generate: bool
    allow_weak: bool
    generated_length: int

    def read(self) -> bytes:
        """The key. Raises Misused, which shows none of it."""
        if [self.key is not None, self.key_file is not None, self.generate].count(True) != 1:
            raise Misused("say one of --key, --key-file and --generate", KEY_FORMS)
        if self.key is not None:
            return parse_key(self.key, allow_weak=self.allow_weak)
        if self.key_file is not None:
            return read_key(self.key_file, allow_weak=self.allow_weak)
        return secrets.token_bytes(self.generated_length)


@contextmanager
def handed_over(undo: Callable[[], object], what: str) -> Iterator[None]:
    """While a key that was just made is printed: where that fails nobody has it, and it is undone.

    Raises Failed, which says `what` was undone.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        undo()
        # What is left of the output goes nowhere, or Python would complain at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Failed(
            f"the key cannot be printed: {error.strerror}",
            f"{what} was revoked, for nobody knows its key: make another",
        ) from error


def read_key(file: Path, *, allow_weak: bool = False) -> bytes:
    """The key in the one line of a file, or of standard input (`-`).

    Raises Misused, which shows none of it.
    """
    try:
        if str(file) == "-":
            octets = sys.stdin.buffer.read(_MAX_FILE_SIZE + 1)
        else:
            with file.open("rb") as opened:
                octets = opened.read(_MAX_FILE_SIZE + 1)
    except OSError as error:
        raise Misused(f"cannot read {str(file)!r}: {error.strerror}", KEY_FORMS) from error
    try:
        (line,) = octets.decode().splitlines()
    except ValueError:
        raise Misused(f"{str(file)!r} does not hold one line with a key", KEY_FORMS) from None
    return parse_key(line, allow_weak=allow_weak)
