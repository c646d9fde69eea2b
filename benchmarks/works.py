"""What the servers are asked to do, and the check of each answer before any load."""

import dataclasses
import json
import secrets
from collections.abc import Callable
from http.client import HTTPConnection, HTTPResponse

from installation import ROOT
from servers import HELLO, LIST, NotRun, Running, Server
from todos import todo_fields, todo_id

FIELDS = {"id", "url", "list", "title", "completed", "completed_at", "order", "notes", "due", "priority", "tags"}
FIELDS |= {"created_at", "updated_at", "deleted_at", "revision"}
JSON = {"Content-Type": "application/json"}
# What a browser's fetch() of the page sends beside Host and Connection.
BROWSER_HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0 Safari/537.36",
    "Accept": "application/json",
    "Accept-Language": "en-GB,en;q=0.9,de;q=0.8",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": "http://127.0.0.1/",
    "Sec-CH-UA": '"Chromium";v="142", "Not_A Brand";v="99"',
    "Sec-CH-UA-Mobile": "?0",
    "Sec-CH-UA-Platform": '"Linux"',
    "Sec-Fetch-Dest": "empty",
    "Sec-Fetch-Mode": "cors",
    "Sec-Fetch-Site": "same-origin",
    "Priority": "u=1, i",
}


@dataclasses.dataclass(frozen=True)
class Work:
    """One kind of request. `rows` is how many to-dos the answer lists, or None where it is a single one.

    `base` names the work that this one is a harder form of; both are measured in the same rounds.
    """

    name: str
    title: str
    servers: Callable[[Server], bool]
    method: str = "GET"
    path: str = LIST
    status: int = 200
    rows: int | None = 20
    todos: int = 20
    script: str = "report.lua"
    browser: bool = False
    session: bool = False
    conditional: bool = False
    base: str = ""

    def path_of(self, server: Server) -> str:
        """Where this server is asked: a hello world has one address only."""
        return self.path if server.store else HELLO

    def body(self, number: int) -> str | None:
        """The body of the request with this number, as the script for wrk makes it."""
        if self.method == "POST":
            return json.dumps({"title": f"Buy bread, number {number}", "tags": ["shop"]})
        if self.method == "PATCH":
            return json.dumps({"title": f"Changed, {number}", "completed": number % 2 == 0})
        return None


def on_sqlite(server: Server) -> bool:
    return server.store == "sqlite"


def with_to_dos(server: Server) -> bool:
    return bool(server.store)


def all_but_postgres(server: Server) -> bool:
    return server.store != "postgres"


def with_etags(server: Server) -> bool:
    return server.makes_etags and all_but_postgres(server)


def has_accounts(server: Server) -> bool:
    """Ours, once it has accounts to sign in to."""
    return server.name == "ours" and "class SessionHandler" in (ROOT / "tornado_todo.py").read_text(encoding="utf-8")


ONE = f"/api/todos/{todo_id(1)}"
PAGE = "/api/todos?limit=50"
WORKS = (
    Work("list", "list of 20", lambda server: True),
    Work("one", "one", with_to_dos, path=ONE, rows=None),
    Work("create", "create", with_to_dos, "POST", "/api/todos", 201, None, script="create.lua"),
    Work("patch", "patch", with_to_dos, "PATCH", ONE, rows=None, script="patch.lua"),
    Work("conditional", "list of 20 that the client has (304)", with_etags, status=304, conditional=True),
    Work("browser", "list of 20 with a browser's headers", all_but_postgres, browser=True),
    Work("session", "the same, signed in", has_accounts, browser=True, session=True, base="browser"),
    Work("list-100", "page of 50 among 100", on_sqlite, path=PAGE, rows=50, todos=100),
    Work("list-10000", "page of 50 among 10,000", on_sqlite, path=PAGE, rows=50, todos=10_000, base="list-100"),
    Work("list-100000", "page of 50 among 100,000", on_sqlite, path=PAGE, rows=50, todos=100_000, base="list-100"),
)


def ask(
    connection: HTTPConnection, method: str, path: str, body: str | None, headers: dict
) -> tuple[HTTPResponse, bytes]:
    """One request, and the whole of its answer."""
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response, response.read()


def sign_in(connection: HTTPConnection, count: int) -> str:
    """Make an account on our server and its to-dos; gives the Cookie header of its session."""
    account = json.dumps({"name": "benchmark", "password": secrets.token_urlsafe(16)})
    response, answer = ask(connection, "POST", "/api/users", account, JSON)
    if response.status != 201:
        raise NotRun(f"it makes no account: {response.status} {answer[:300]!r}")
    cookie = "; ".join(value.partition(";")[0] for value in response.headers.get_all("Set-Cookie"))
    for number in range(1, count + 1):
        body = json.dumps(todo_fields(number))
        response, answer = ask(connection, "POST", "/api/todos", body, {**JSON, "Cookie": cookie})
        if response.status != 201:
            raise NotRun(f"it takes no to-do from an account: {response.status} {answer[:300]!r}")
    return cookie


def request_headers(work: Work, running: Running) -> dict[str, str]:
    """The headers of a work's requests. Raises NotRun."""
    connection = running.connect()
    headers = dict(BROWSER_HEADERS) if work.browser else {}
    if work.session:
        headers["Cookie"] = sign_in(connection, work.todos)
    if work.conditional:
        response, _ = ask(connection, "GET", work.path_of(running.server), None, headers)
        headers["If-None-Match"] = response.headers.get("ETag", "")
    connection.close()
    return headers


def check(work: Work, running: Running, headers: dict[str, str]) -> None:
    """Ask once, and raise NotRun unless the answer is what it should be."""
    connection = running.connect()
    path, body = work.path_of(running.server), work.body(1)
    response, answer = ask(connection, work.method, path, body, {**headers, **(JSON if body else {})})
    connection.close()
    if response.status != work.status:
        raise NotRun(f"it answers {response.status}, not {work.status}: {answer[:300]!r}")
    if work.status == 304:
        return
    if not running.server.store:
        if answer != b"Hello, world":
            raise NotRun(f"it answers {answer[:300]!r}")
        return
    found = json.loads(answer)
    todos = [found] if work.rows is None else found
    if work.rows is not None and len(todos) != work.rows:
        raise NotRun(f"it lists {len(todos)} to-dos, not {work.rows}")
    for todo in todos:
        if missing := FIELDS - set(todo):
            raise NotRun(f"its to-dos lack {', '.join(sorted(missing))}")
