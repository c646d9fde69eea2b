"""What is measured on one server at a time: what a client waits for, and the memory that it takes."""

import dataclasses
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence

from calendars import Acts, calendar
from installation import FOLDER, PYTHON
from meanwhile import Meanwhile, bulk, sign_ins, with_accounts, without_uvloop, wrong_sign_ins
from reads import LISTS, make_lists, pages_of_changes, reading
from servers import NotRun, Running, Server
from sockets import fan_out
from timing import Timing

SOCKETS = 1000
# By each sort, the sizes of the tables; a page by order or due takes as long from a large one as from a small one.
SORTS = dict.fromkeys(("order", "due"), (100, 100_000))
SORTS |= dict.fromkeys(("title", "priority", "created_at", "-created_at", "-updated_at"), (5000, 100_000))
PAGE_TODOS = 5000


def ours(server: Server) -> bool:
    """Ours on SQLite with both HTTP servers."""
    return server.name in ("ours", "ours-uvicorn")


def with_calendars(server: Server) -> bool:
    """Those that calendar apps can use."""
    return ours(server) or server.kind == "calendar"


def sorting(server: Server) -> bool:
    """Those that can sort and search."""
    return ours(server) or server.kind == "pocketbase"


@dataclasses.dataclass(frozen=True)
class Line:
    """One measurement on a table of so many to-dos; `measure` is called with the server, and True for a quick run.

    `variant` makes of a server the one that is measured, such as one where everybody has to sign in.
    """

    name: str
    title: str
    todos: int
    measure: Callable[[Running, bool], Timing | Meanwhile | Acts | Mapping[str, Sequence[float]]]
    servers: Callable[[Server], bool] = ours
    variant: Callable[[Server], Server] = lambda server: server


def page(running: Running, quick: bool) -> Mapping[str, Sequence[float]]:
    """Measure the page in a browser. Raises NotRun."""
    command = [PYTHON, FOLDER / "page.py", running.url, str(PAGE_TODOS), "2" if quick else "5"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    except subprocess.TimeoutExpired:
        raise NotRun("the browser did not come to its end") from None
    if done.returncode:
        raise NotRun(done.stderr.strip()[-300:])
    return json.loads(done.stdout)


LIST, CHANGES = "/api/todos?limit=1000", "/api/changes?limit=1000"
SEARCH, SORTED = "/api/todos?limit=50&q=", "/api/todos?limit=50&sort="
LINES = (
    Line("list-1000", "list of 1,000", 1000, reading(LIST, 1000), sorting),
    Line("lists", f"all of {LISTS} lists", 1000, reading("/api/lists", LISTS, make_lists)),
    Line("changes", "10,000 changes, in pages of 1,000", 10_000, reading(CHANGES, 10_000, pages_of_changes)),
    Line("export", "export of 100,000", 100_000, reading("/api/export", 100_000)),
    Line("search-rare", "search of 100,000 for a rare word", 100_000, reading(SEARCH + "77777", 1), sorting),
    Line("search-common", "search of 100,000 for a word of all", 100_000, reading(SEARCH + "bread", 50), sorting),
    Line("search-two", "search of 100,000 for two letters that none has", 100_000, reading(SEARCH + "zq", 0), sorting),
    Line("search-one", "search of 100,000 for a letter that all have", 100_000, reading(SEARCH + "b", 50), sorting),
    *(
        Line(
            f"page-{sort}-{count}", f"page of 50 by {sort} among {count:,}", count, reading(SORTED + sort, 50), sorting
        )
        for sort, counts in SORTS.items()
        for count in counts
    ),
    Line("calendar", "a calendar of 2,000 to-dos, by CalDAV", 0, calendar(2000), with_calendars),
    Line("calendar-100000", "a calendar of 100,000 to-dos, by CalDAV", 0, calendar(100_000)),
    Line("sign-in", "sign-in", 0, lambda running, quick: sign_ins(running, 20 if quick else 40), ours, with_accounts),
    Line("sockets", f"a change reaches {SOCKETS:,} WebSockets", 20, lambda *given: fan_out(SOCKETS, *given)),
    Line("bulk", "PATCH of 100,000, other writers meanwhile", 100_000, bulk),
    Line("wrong-sign-ins", "1,000 wrong sign-ins at once, another client", 0, wrong_sign_ins, ours, with_accounts),
    Line(
        *("wrong-sign-ins-asyncio", "the same on asyncio's own loop", 0, wrong_sign_ins, ours),
        lambda server: without_uvloop(with_accounts(server)),
    ),
    Line("page", f"the page with {PAGE_TODOS:,} to-dos", PAGE_TODOS, page, lambda server: server.name == "ours"),
)
