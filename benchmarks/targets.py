"""What tornado_todo is to reach, and whether a run has reached it."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

from calendars import ETAGS_TITLE, SYNC_TITLE
from figures import Figures
from lines import SORTS
from load import Row
from timing import Timing

OURS, UVICORN = "ours", "ours-uvicorn"
EVEN = 4.0  # p99 to p50


class Measured(NamedTuple):
    """A figure, and where it was found if that is not clear from its target."""

    value: float
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Target:
    """A bound for a figure: at least, or with `lower` at most."""

    title: str
    bound: float
    measure: Callable[[Figures], Measured | None]
    unit: str = ""
    lower: bool = False

    def met_by(self, measured: Measured) -> bool:
        return measured.value <= self.bound if self.lower else measured.value >= self.bound

    def line(self, figures: Figures) -> list[str]:
        """The line of the report: the target, what was measured, and whether that is enough."""
        measured = self.measure(figures)
        target = f"{'≤' if self.lower else '≥'} {self.bound:,g}{self.unit}"
        if measured is None:
            return [self.title, target, "–", "not measured"]
        value = f"{measured.value:,.{2 if measured.value < 100 else 0}f}"
        note = f" ({measured.note})" if measured.note else ""
        met = "met" if self.met_by(measured) else "**not met**"
        return [self.title, target, f"{value}{self.unit}{note}", met]


def times(work: str, server: str, reference: str) -> Callable[[Figures], Measured | None]:
    """The ratio of two servers' requests a second; that of their processor time, which varies less, beside it."""

    def measure(figures: Figures) -> Measured | None:
        rows = figures.results.get(work, {})
        if not all(name in rows and rows[name].samples for name in (server, reference)):
            return None
        row, other = rows[server], rows[reference]
        by_processor = other.processor_seconds / max(row.processor_seconds, 1e-9)
        return Measured(row.rate / other.rate, f"{by_processor:.2f} by processor time")

    return measure


def fewer_instructions(work: str, server: str, reference: str) -> Callable[[Figures], Measured | None]:
    """The ratio of a reference's instructions to a server's: above 1, the server needs fewer."""

    def measure(figures: Figures) -> Measured | None:
        rows = figures.results.get(work, {})
        counts = [rows[name].instructions if name in rows else None for name in (reference, server)]
        return Measured(counts[0] / counts[1]) if counts[0] and counts[1] else None

    return measure


def wait(line: str, base: str = "") -> Callable[[Figures], Measured | None]:
    """The p50 of a line by the slower of our HTTP servers, or its ratio to that of a base."""

    def measure(figures: Figures) -> Measured | None:
        found = {name: timing.p50 for name, timing in figures.lines.get(line, {}).items() if name in (OURS, UVICORN)}
        if base:
            bases = figures.lines.get(base, {})
            found = {name: value / bases[name].p50 for name, value in found.items() if name in bases}
        return max((Measured(value, name) for name, value in found.items()), default=None)

    return measure


def app_waits(line: str, act: str) -> Callable[[Figures], Measured | None]:
    """The p50 of what a calendar app does, by the slower of our HTTP servers."""

    def measure(figures: Figures) -> Measured | None:
        found = figures.lines.get(line, {})
        return max(
            (Measured(its.times[act].p50, name) for name, its in found.items() if name.startswith(OURS)), default=None
        )

    return measure


def meanwhile(work: str, of: str) -> Callable[[Figures], Measured | None]:
    """What other clients noticed of something big, on that of our servers where it was worst."""

    def measure(figures: Figures) -> Measured | None:
        values = {
            name: {"503": found.refused, "p99": found.others.p99, "longest": found.others.longest}[of]
            for name, found in figures.lines.get(work, {}).items()
        }
        return max((Measured(value, name) for name, value in values.items()), default=None)

    return measure


def factors(figures: Figures) -> Iterator[Measured]:
    """p99 to p50 of every line of ours."""
    for figures_by_server in (figures.results, figures.lines):
        for work, found in figures_by_server.items():
            for name, row in found.items():
                if name.startswith(OURS) and isinstance(row, Row | Timing) and row.p50:
                    yield Measured(row.p99 / row.p50, f"{work}, {name}")


def least_even(figures: Figures) -> Measured | None:
    """The highest factor, and how many lines have one that is too high."""
    found = list(factors(figures))
    if not found:
        return None
    high = sum(each.value > EVEN for each in found)
    return max(found)._replace(note=f"{max(found).note}; {high} of {len(found)} lines over {EVEN:g}")


ON_POSTGRES = {
    "ours-postgres": {"list": 2.25, "one": 1.57, "create": 1.01, "patch": 1.06},
    "ours-postgres-uvicorn": {"list": 2.95, "one": 2.06, "create": 1.28, "patch": 1.38},
}
TO_POCKETBASE = {"list": 8, "one": 2.5, "create": 1.75, "patch": 3, "create-30000": 1.75, "patch-30000": 3}
TO_FASTAPI = ((UVICORN, "create", 1.5), (UVICORN, "patch", 1.6), (OURS, "create", 1.0), (OURS, "patch", 1.0))
SERVER_TITLES = {OURS: "Tornado's server", UVICORN: "uvicorn"}

TARGETS = (
    *(
        Target(f"{work}, uvicorn, × PocketBase", bound, times(work, UVICORN, "pocketbase"))
        for work, bound in TO_POCKETBASE.items()
    ),
    *(
        Target(
            f"{work} at 30,000 rows, {SERVER_TITLES[server]}, × FastAPI + aiosqlite",
            bound,
            times(f"{work}-30000", server, "fastapi-aiosqlite"),
        )
        for server, work, bound in TO_FASTAPI
    ),
    Target("one, uvicorn, × aiohttp + aiosqlite", 1.0, times("one", UVICORN, "aiohttp")),
    Target("the same by instructions", 1.0, fewer_instructions("one", UVICORN, "aiohttp")),
    *(
        Target(f"{work}, {server}, × FastAPI + asyncpg", bound, times(work, server, "fastapi-asyncpg"))
        for server, bounds in ON_POSTGRES.items()
        for work, bound in bounds.items()
    ),
    *(
        Target(
            f"page by {sort} among 100,000, × among 100", 1.2, wait(f"page-{sort}-100000", f"page-{sort}-100"), "", True
        )
        for sort in [*SORTS][:2]
    ),
    *(
        Target(f"page by {sort} among {count:,}", bound, wait(f"page-{sort}-{count}"), " ms", True)
        for sort in [*SORTS][2:]
        for count, bound in ((100_000, 60), (5000, 5))
    ),
    Target("search of 100,000 for a rare word", 10, wait("search-rare"), " ms", True),
    Target("search of 100,000 for a word of all", 10, wait("search-common"), " ms", True),
    Target("search of 100,000 for two letters that none has", 10, wait("search-two"), " ms", True),
    Target("search of 100,000 for a letter that all have", 10, wait("search-one"), " ms", True),
    Target("all ETags of a calendar of 2,000", 150, app_waits("calendar", ETAGS_TITLE), " ms", True),
    Target("sync of one change among 2,000", 5, app_waits("calendar", SYNC_TITLE), " ms", True),
    Target("sync of one change among 100,000", 5, app_waits("calendar-100000", SYNC_TITLE), " ms", True),
    Target("p99/p50 on every line", EVEN, least_even, "", True),
    Target("bulk PATCH of 100,000: other writers' p99", 250, meanwhile("bulk", "p99"), " ms", True),
    Target("bulk PATCH of 100,000: other writers' 503s", 0, meanwhile("bulk", "503"), "", True),
    Target("longest gap during 1,000 wrong sign-ins", 50, meanwhile("wrong-sign-ins", "longest"), " ms", True),
)
