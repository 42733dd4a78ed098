"""Programs that tests talk to over their standard streams."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.waiting import DEADLINE


class Program:
    """A running program; `output` is all it has written, standard error included."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.output = b""
        self._process = process
        self._has_written = asyncio.Event()
        self._is_silent = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def hang_up(self) -> None:
        """Send SIGHUP."""
        self._process.send_signal(signal.SIGHUP)

    def write(self, octets: bytes) -> None:
        """Hand octets to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(octets)

    async def until(self, octets: bytes) -> None:
        """Wait until it has written `octets`; fails with all it wrote if it ends before."""
        try:
            async with asyncio.timeout(DEADLINE):
                while octets not in self.output:
                    assert not self._is_silent, f"{self.name} ended: {self._shown()}"
                    self._has_written.clear()
                    await self._has_written.wait()
        except TimeoutError:
            raise AssertionError(f"{self.name} did not write {octets!r}: {self._shown()}") from None

    async def end(self) -> int:
        """Close its standard input and wait until it ends; its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(DEADLINE):
                status = await self._process.wait()
                while not self._is_silent:
                    self._has_written.clear()
                    await self._has_written.wait()
                return status
        except TimeoutError:
            raise AssertionError(f"{self.name} did not end: {self._shown()}") from None

    async def collect(self) -> None:
        """Read all it writes, so that it never waits for a reader."""
        assert self._process.stdout is not None
        while more := await self._process.stdout.read(65536):
            self.output += more
            self._has_written.set()
        self._is_silent = True
        self._has_written.set()

    def _shown(self) -> str:
        return self.output.decode(errors="backslashreplace")


@asynccontextmanager
async def started(*command: str, env: dict[str, str] | None = None) -> AsyncIterator[Program]:
    """Run a program; it is killed if it still runs in the end."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=env,
    )
    program = Program(command[0].rsplit("/", 1)[-1], process)
    collecting = asyncio.get_running_loop().create_task(program.collect(), name="output")
    try:
        yield program
    finally:
        if process.returncode is None:
            # Not `process.kill`: that looks first whether it has ended, and takes its status away
            # from asyncio's watcher, which then warns.
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        await collecting
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
