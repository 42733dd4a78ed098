"""The command line: `coapgate COMMAND`, which exits 0 done, 1 failed or 2 misused.

Modules that take long to import are imported by the commands that need them.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from coapgate.cli import (
    anchors,
    batches,
    certificates,
    devices,
    explain,
    output,
    pki,
    psks,
    simulate,
)
from coapgate.cli.options import ConfigFile
from coapgate.errors import CoapgateError, ConfigError, ImportRefused, Misused

FAILED = 1
MISUSED = 2

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help is there twice as fast, and greps
    help="A gateway from CoAP over DTLS to MQTT that lets in only devices that prove who they are.",
)


@app.command("run")
def _run(config: ConfigFile) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    from coapgate.cli.run import run

    run(config)


@app.command("check")
def _check(config: ConfigFile) -> None:
    """Read everything, open no port, say what would be served."""
    from coapgate.cli.check import check

    check(config)


@app.command("demo")
def _demo(
    count: Annotated[
        int | None, typer.Option("--count", min=1, metavar="N", help="End after N messages.")
    ] = None,
) -> None:
    """Show two devices, the gateway and a broker at work, here and now."""
    from coapgate.cli.demo import demo

    demo(count)


app.command("simulate")(simulate.simulate)
app.command("explain")(explain.explain)
app.add_typer(devices.app, name="device")
app.add_typer(psks.app, name="psk")
app.add_typer(batches.app, name="batch")
app.add_typer(anchors.app, name="anchor")
app.add_typer(certificates.app, name="certificate")
app.add_typer(pki.app, name="pki")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        output.say(f"coapgate {version('coapgate')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Say which it is."),
    ] = False,
) -> None:
    """Options of `coapgate` itself."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command (`sys.argv` if none is given); the answer is the exit code.

    An error that was foreseen is told in a line or two; any other is a bug, and a traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # something else stands in for it
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = app(args=arguments, prog_name="coapgate", standalone_mode=False)
        sys.stdout.flush()
    except (ConfigError, ImportRefused) as error:
        for message, advice in error.problems:
            output.error(message, advice)
        if isinstance(error, ImportRefused):
            output.error(str(error))
        return MISUSED if isinstance(error, Misused) else FAILED
    except CoapgateError as error:
        output.explain(error)
        return MISUSED if isinstance(error, Misused) else FAILED
    except typer.TyperException as error:
        _explain_usage(error)
        return error.exit_code
    except typer.Abort:
        return FAILED
    except BrokenPipeError:
        # Whoever read has seen enough. What is left goes nowhere, or Python would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return code if isinstance(code, int) else 0


def _explain_usage(error: typer.TyperException) -> None:
    """What Typer found, in the words of this house; a key given in the wrong place stays unseen."""
    message = error.format_message().rstrip(".")
    if message.startswith("Usage:"):  # nothing was asked for: Typer answers with the help
        print(message, file=sys.stderr)
        return
    message = re.sub(r"\b(hex|base64|text):[^\s')]+", r"\1:...", message)
    message = message.replace("Value error, ", "")  # pydantic's, which reads values for Typer
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "coapgate"
    output.error(message[0].lower() + message[1:], f"`{command} --help` says how it is used")
