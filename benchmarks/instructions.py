"""User-space instructions a request, counted by valgrind: a figure that a busy machine does not change.

Two loads of different length on the same server, the difference of their instructions divided by
the difference of their requests: what does not belong to a request (the dump itself, timers, the
connection) is in both, and falls out.
"""

import re
import subprocess
from http.client import HTTPException
from pathlib import Path

from servers import NotRun, Running
from works import JSON, Work, ask, check, request_headers

WARM_UP = 30
START_SECONDS = 240.0


def wrapper(folder: Path) -> list[str]:
    """The command that a server is started under."""
    out = folder / "callgrind.%p"
    return ["valgrind", "--tool=callgrind", "--trace-children=yes", f"--callgrind-out-file={out}"]


def instructions_since_last(running: Running, folder: Path) -> int:
    """Write out, and set back to nothing, what all processes of a server have counted. Raises NotRun."""
    for process in running.processes():
        command = ["callgrind_control", "--dump", str(process)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if "OK." not in done.stdout:
            raise NotRun(f"callgrind_control: {(done.stderr or done.stdout).strip()[-200:]}")
    total = 0
    for dump in folder.glob("callgrind.*.*"):
        found = re.search(r"^(?:totals|summary): (\d+)", dump.read_text(errors="replace"), re.MULTILINE)
        total += int(found[1]) if found else 0
        dump.unlink()
    return total


def send(work: Work, running: Running, headers: dict[str, str], first: int, count: int) -> None:
    """Send numbered requests over one connection. Raises NotRun."""
    connection = running.connect(120.0)
    for number in range(first, first + count):
        body = work.body(number)
        sent = {**headers, **(JSON if body else {})}
        response, answer = ask(connection, work.method, running.server.path(work.path), body, sent)
        if response.status != work.status_of(running.server):
            raise NotRun(f"it answers {response.status} under valgrind: {answer[:200]!r}")
    connection.close()


def count_instructions(work: Work, running: Running, folder: Path, short: int, long: int) -> float:
    """The instructions that one request takes. Raises NotRun."""
    try:
        headers = request_headers(work, running)
        check(work, running, headers)
        send(work, running, headers, 1, WARM_UP)
        instructions_since_last(running, folder)
        send(work, running, headers, 1 + WARM_UP, short)
        for_short = instructions_since_last(running, folder)
        send(work, running, headers, 1 + WARM_UP + short, long)
        for_long = instructions_since_last(running, folder)
    except (OSError, HTTPException, subprocess.SubprocessError) as error:
        raise NotRun(f"under valgrind: {error}") from error
    return (for_long - for_short) / (long - short)
