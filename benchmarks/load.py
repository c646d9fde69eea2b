"""Load from wrk on a server that has been checked, and what it costs the server."""

import dataclasses
import functools
import json
import statistics
import subprocess
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import NamedTuple

from installation import FOLDER
from servers import NotRun, Running
from works import Work, check, request_headers

CONNECTIONS = 32
WARM_UP_SECONDS = 1


@dataclasses.dataclass(frozen=True)
class Sample:
    """One round of load on one server."""

    requests: int
    seconds: float
    p50_milliseconds: float
    p99_milliseconds: float
    processor_seconds: float
    errors: int

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


@dataclasses.dataclass
class Row:
    """All rounds of one work on one server, or the reason why there is none."""

    samples: list[Sample] = dataclasses.field(default_factory=list)
    memory: int = 0
    instructions: float | None = None
    reason: str = ""
    silent_rounds: int = 0

    @property
    def errors(self) -> int:
        """How many requests have failed."""
        return sum(sample.errors for sample in self.samples)

    @property
    def rates(self) -> list[float]:
        return [sample.rate for sample in self.samples]

    @property
    def rate(self) -> float:
        """The median of the requests a second."""
        return statistics.median(self.rates) if self.samples else 0.0

    @property
    def processor_seconds(self) -> float:
        """The processor time of one request."""
        requests = sum(sample.requests for sample in self.samples)
        return sum(sample.processor_seconds for sample in self.samples) / requests

    @property
    def p50(self) -> float:
        """The median of the rounds' 50th percentiles, in milliseconds."""
        return statistics.median(sample.p50_milliseconds for sample in self.samples) if self.samples else 0.0

    @property
    def p99(self) -> float:
        return statistics.median(sample.p99_milliseconds for sample in self.samples) if self.samples else 0.0


class Contest(NamedTuple):
    """A work for a server, and where its figures go."""

    work: Work
    server: Running
    row: Row


def run_wrk(work: Work, server: Running, headers: dict[str, str], seconds: float) -> Sample:
    """Load a server for some seconds. Raises NotRun if wrk does not come to its end."""
    options = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{round(seconds)}s", "-s", str(FOLDER / work.script), *options]
    used = server.processor_seconds()
    try:
        url = server.url + server.server.path(work.path)
        done = subprocess.run([*command, url], capture_output=True, text=True, timeout=seconds + 30)
    except subprocess.TimeoutExpired:
        raise NotRun("wrk did not end") from None
    used = server.processor_seconds() - used
    _, found, result = done.stdout.partition("RESULT ")
    if not found:
        raise NotRun(f"wrk failed: {(done.stderr or done.stdout).strip()[-300:]}")
    counts = json.loads(result)
    return Sample(
        counts["requests"],
        counts["microseconds"] / 1e6,
        counts["p50"] / 1e3,
        counts["p99"] / 1e3,
        used,
        counts["refused"] + counts["broken"],
    )


def attempt(row: Row, call: Callable[[], None]) -> None:
    """Call unless something has failed before; what fails now is the row's reason."""
    if not row.reason:
        try:
            call()
        except (NotRun, OSError, ValueError, HTTPException) as error:
            row.reason = str(error)


def measure(contests: Sequence[Contest], seconds: float, rounds: int) -> None:
    """Check every server, warm it up, and load one after the other, round by round.

    A machine that is slower for a while is so for all of them, where one whole measurement after
    the other would charge it to a single one.
    """
    headers: dict[int, dict[str, str]] = {}

    def prepare(index: int, work: Work, server: Running, row: Row) -> None:
        headers[index] = request_headers(work, server)
        check(work, server, headers[index])
        run_wrk(work, server, headers[index], WARM_UP_SECONDS)

    def load(index: int, work: Work, server: Running, row: Row) -> None:
        sample = run_wrk(work, server, headers[index], seconds)
        if sample.requests:
            row.samples.append(sample)
        else:
            row.silent_rounds += 1  # the machine was too busy, or the server is stuck: more rounds will tell
        row.memory = server.memory()

    for step in [prepare, *[load] * rounds]:
        for index, contest in enumerate(contests):
            attempt(contest.row, functools.partial(step, index, *contest))
