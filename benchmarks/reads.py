"""What one client waits for: one request after the other, most of them on large tables, and the memory they take.

A to-do is changed before each request, so that no answer comes from a cache.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection

from servers import NotRun, Running
from timing import Timing
from todos import todo_fields, todo_id
from works import ask, send

SAMPLES, SECONDS = 100, 3.0
QUICK_SAMPLES, QUICK_SECONDS = 20, 2.0
LISTS = 300


def make_lists(connection: HTTPConnection, path: str) -> list[str]:
    """Make lists beside the Inbox, with ten to-dos in each."""
    for number in range(1, LISTS):
        _, answer = send(connection, "POST", path, {"title": f"List {number}"})
        rows = [todo_fields(each) | {"list": json.loads(answer)["id"]} for each in range(10)]
        send(connection, "POST", "/api/todos", rows)
    return [path]


def pages_of_changes(connection: HTTPConnection, path: str) -> list[str]:
    """The addresses of all pages of the change log as it is now."""
    pages, more, revision = [], True, 0
    while more:
        pages.append(f"{path}&since={revision}")
        answer = json.loads(ask(connection, "GET", pages[-1], None, {})[1])
        more, revision = answer["more"], answer["revision"]
    return pages


def rows_in(answer: bytes) -> int:
    """How many rows an answer lists; PocketBase, the change log and the export have them in a field."""
    found = json.loads(answer)
    if isinstance(found, dict):
        found = next(found[name] for name in ("items", "changes", "todos") if name in found)
    return len(found)


def read_all(connection: HTTPConnection, paths: Sequence[str]) -> list[bytes]:
    """The answers to requests that have to succeed. Raises NotRun."""
    answers = []
    for path in paths:
        response, answer = ask(connection, "GET", path, None, {})
        if response.status != 200:
            raise NotRun(f"GET {path} answers {response.status}: {answer[:300]!r}")
        answers.append(answer)
    return answers


def changes(running: Running) -> Iterator[None]:
    """Change one to-do each time."""
    connection, path = running.connect(120.0), running.server.path(f"/api/todos/{todo_id(2)}")
    for number in itertools.count():
        send(connection, "PATCH", path, {"title": f"Buy bread, changed {number}"})
        yield


def reading(
    path: str, rows: int, paths: Callable[[HTTPConnection, str], list[str]] = lambda connection, path: [path]
) -> Callable[[Running, bool], Timing]:
    """A measurement of a request that lists so many rows.

    `paths` makes what is read, and returns the addresses that are asked for one answer after the other.
    """

    def measure(running: Running, quick: bool) -> Timing:
        """Check the answer, and then ask until there are enough samples or the time is over. Raises NotRun."""
        samples, seconds = (QUICK_SAMPLES, QUICK_SECONDS) if quick else (SAMPLES, SECONDS)
        connection, change = running.connect(120.0), changes(running)
        addresses = paths(connection, running.server.path(path))
        before, times = running.memory(), []
        found = sum(rows_in(answer) for answer in read_all(connection, addresses))
        if found != rows:
            raise NotRun(f"it lists {found} rows, not {rows}")
        give_up = time.monotonic() + seconds
        while len(times) < samples and (time.monotonic() < give_up or len(times) < 3):
            next(change)
            began = time.perf_counter()
            read_all(connection, addresses)
            times.append((time.perf_counter() - began) * 1e3)
        return Timing(times, before, running.peak_memory())

    return measure
