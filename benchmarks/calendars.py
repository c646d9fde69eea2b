"""What one calendar app waits for, with lists of thousands of to-dos by CalDAV, beside other CalDAV servers."""

import dataclasses
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection

from servers import NotRun, Running
from timing import Timing
from todos import todo_fields
from works import send

SAMPLES, QUICK_SAMPLES, SECONDS = 20, 5, 20.0
FILLED_BY_APP = 2000  # of a larger calendar, the others come by our API
ETAGS_TITLE, SYNC_TITLE = "PROPFIND with Depth 1: all ETags", "sync-collection of one change"
HOMES = {"radicale": "/user/", "xandikos": "/user/calendars/"}
HEADERS = {"Authorization": "Basic dXNlcjo="}  # "user", with an empty password
NAMES = 'xmlns="DAV:" xmlns:C="urn:ietf:params:xml:ns:caldav"'
FOUND = f"<propfind {NAMES}><prop><current-user-principal/><sync-token/><getetag/></prop></propfind>"
MAKE = f"<C:mkcalendar {NAMES}><set><prop><displayname>Shopping</displayname></prop></set></C:mkcalendar>"
ETAGS = f"<propfind {NAMES}><prop><getetag/></prop></propfind>"
QUERY = (
    f'<C:calendar-query {NAMES}><prop><getetag/><C:calendar-data/></prop><C:filter><C:comp-filter name="VCALENDAR">'
    '<C:comp-filter name="VTODO"/></C:comp-filter></C:filter></C:calendar-query>'
)
SYNC = (
    f"<sync-collection {NAMES}><sync-token>%s</sync-token><sync-level>1</sync-level><prop><getetag/></prop>"
    "</sync-collection>"
)


@dataclasses.dataclass(frozen=True)
class Acts:
    """By what an app does: how long it waits, and the milliseconds of processor time that the server takes."""

    times: Mapping[str, Timing]
    processor: Mapping[str, float]


def ask(connection: HTTPConnection, method: str, path: str, body: str = "", depth: str = "1") -> str:
    """The answer to a request that has to succeed. Raises NotRun."""
    kind = "text/calendar" if body.startswith("BEGIN") else "application/xml"
    connection.request(method, path, body, HEADERS | {"Content-Type": f"{kind}; charset=utf-8", "Depth": depth})
    response = connection.getresponse()
    answer = response.read().decode()
    if response.status not in (200, 201, 204, 207):
        raise NotRun(f"{method} {path} answers {response.status}: {answer[:300]!r}")
    return answer


def vtodo(number: int, title: str) -> str:
    lines = ("VERSION:2.0", "PRODID:-//benchmark//EN", "BEGIN:VTODO", f"UID:todo-{number}", "DTSTAMP:20261128T120000Z")
    own = (f"SUMMARY:{title}", "DUE;VALUE=DATE:20261224", "PRIORITY:5", "CATEGORIES:shop", "STATUS:NEEDS-ACTION")
    return "\r\n".join(("BEGIN:VCALENDAR", *lines, *own, "END:VTODO", "END:VCALENDAR", ""))


def filled(running: Running, connection: HTTPConnection, count: int) -> str:
    """The path of a new calendar with this many to-dos. Raises NotRun."""
    home = (
        HOMES.get(running.server.name)
        or re.findall(r"/caldav/[^/<]+/", ask(connection, "PROPFIND", "/caldav/", FOUND))[0]
    )
    path = f"{home}{uuid.uuid4()}/"
    ask(connection, "MKCALENDAR", path, MAKE)
    for number in range(min(count, FILLED_BY_APP)):
        ask(connection, "PUT", f"{path}{number}.ics", vtodo(number, f"Buy bread number {number}"))
    for first in range(FILLED_BY_APP, count, 1000):
        list_id = token_of(ask(connection, "PROPFIND", path, FOUND, "0")).split(":")[2]
        rows = [todo_fields(each) | {"list": list_id} for each in range(first, min(first + 1000, count))]
        send(connection, "POST", "/api/todos", rows)
    return path


def token_of(answer: str) -> str:
    """The sync token in an answer."""
    return re.findall(r"sync-token>([^<]+)<", answer)[-1]


def acts(connection: HTTPConnection, path: str, count: int) -> dict[str, Callable[[int], Iterator[None]]]:
    """What an app does, by its title: what comes after the `yield` is measured."""

    def change(number: int) -> None:
        ask(connection, "PUT", f"{path}0.ics", vtodo(0, f"Changed {uuid.uuid4()}"))

    def all_of(method: str, body: str) -> Callable[[int], Iterator[None]]:
        def act(number: int) -> Iterator[None]:
            change(number)
            yield
            if (found := ask(connection, method, path, body).count(".ics</")) < count:
                raise NotRun(f"{method} lists {found} to-dos, not {count}")

        return act

    def synchronize(number: int) -> Iterator[None]:
        token = token_of(ask(connection, "PROPFIND", path, FOUND, "0")) if number == 0 else tokens[-1]
        change(number)
        yield
        answer = ask(connection, "REPORT", path, SYNC % token)
        tokens.append(token_of(answer))
        if (found := answer.count(".ics</")) != 1:
            raise NotRun(f"a synchronization of one change lists {found} to-dos")

    def put(number: int) -> Iterator[None]:
        yield
        ask(connection, "PUT", f"{path}new-{number}.ics", vtodo(count + number, "New"))

    def get(number: int) -> Iterator[None]:
        change(number)
        yield
        ask(connection, "GET", f"{path}0.ics")

    tokens: list[str] = []
    return {
        ETAGS_TITLE: all_of("PROPFIND", ETAGS),
        "calendar-query: all to-dos whole": all_of("REPORT", QUERY),
        SYNC_TITLE: synchronize,
        "PUT of a new one": put,
        "GET of a changed one": get,
    }


def calendar(count: int) -> Callable[[Running, bool], Acts]:
    """The measurement of a calendar of this many to-dos."""

    def measure(running: Running, quick: bool) -> Acts:
        connection, samples = running.connect(300.0), QUICK_SAMPLES if quick else SAMPLES
        path, times, processor = filled(running, connection, count), {}, {}
        for title, act in acts(connection, path, count).items():
            before, measured, used, give_up = running.memory(), [], 0.0, time.monotonic() + SECONDS
            while len(measured) < samples and (time.monotonic() < give_up or len(measured) < 3):
                steps = act(len(measured))
                next(steps)
                seconds, began = running.processor_seconds(), time.perf_counter()
                next(steps, None)
                measured.append((time.perf_counter() - began) * 1e3)
                used += running.processor_seconds() - seconds
            times[title] = Timing(measured, before, running.peak_memory())
            processor[title] = used * 1e3 / len(measured)
        return Acts(times, processor)

    return measure
