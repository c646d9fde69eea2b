"""What the servers are asked to do, and the check of each answer before any load."""

import dataclasses
import json
import secrets
from collections.abc import Callable
from http.client import HTTPConnection, HTTPResponse

import pocketbase
from servers import LIST, REFERENCES, NotRun, Running, Server
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

    def status_of(self, server: Server) -> int:
        """The status of a right answer: PocketBase reports what it has made with 200."""
        return 200 if server.kind == "pocketbase" and self.status == 201 else self.status

    def body(self, number: int) -> str | None:
        """The body of the request with this number, as the script for wrk makes it."""
        if self.method == "POST":
            return json.dumps({"title": f"Buy bread, number {number}", "tags": ["shop"]})
        if self.method == "PATCH":
            return json.dumps({"title": f"Changed, {number}", "completed": number % 2 == 0})
        return None


def ours_on_sqlite(server: Server) -> bool:
    return server.store == "sqlite" and server.ours


def compared_when_large(server: Server) -> bool:
    """Ours, and what the ratios are to."""
    return ours_on_sqlite(server) or server.name in REFERENCES["sqlite"]


def with_to_dos(server: Server) -> bool:
    return bool(server.store)


def all_but_postgres(server: Server) -> bool:
    return server.store != "postgres"


def with_etags(server: Server) -> bool:
    return server.makes_etags and all_but_postgres(server)


def has_accounts(server: Server) -> bool:
    return server.name in ("ours", "ours-uvicorn", "pocketbase")


def at_size(work: Work, count: int) -> Work:
    """The same work, with 50 rows where it is a list, on a table that begins with that many to-dos."""
    return dataclasses.replace(
        work,
        name=f"{work.name}-{count}",
        title=f"{work.title.replace('20', '50')} among {count:,}",
        servers=compared_when_large if count in (READ_SIZES[-1], SIZES[-1]) else ours_on_sqlite,
        path=work.path.replace("limit=20", "limit=50"),
        rows=work.rows and 50,
        todos=count,
        base="" if count == SIZES[0] else f"{work.name}-{SIZES[0]}",
    )


ONE = f"/api/todos/{todo_id(1)}"
COMMON = (
    Work("list", "list of 20", lambda server: True),
    Work("one", "one", with_to_dos, path=ONE, rows=None),
    Work("create", "create", with_to_dos, "POST", "/api/todos", 201, None, script="create.lua"),
    Work("patch", "patch", with_to_dos, "PATCH", ONE, rows=None, script="patch.lua"),
)
READ_SIZES = (100, 10_000, 100_000)
SIZES = (100, 10_000, 30_000)
WORKS = (
    *COMMON,
    Work("conditional", "list of 20 that the client has (304)", with_etags, status=304, conditional=True),
    Work("browser", "list of 20 with a browser's headers", has_accounts, browser=True),
    Work("session", "the same, signed in", has_accounts, browser=True, session=True, base="browser"),
    *(at_size(work, size) for work in COMMON for size in (READ_SIZES if work.method == "GET" else SIZES)),
)


def ask(
    connection: HTTPConnection, method: str, path: str, body: str | None, headers: dict
) -> tuple[HTTPResponse, bytes]:
    """One request, and the whole of its answer."""
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response, response.read()


def send(
    connection: HTTPConnection, method: str, path: str, body: object, **headers: str
) -> tuple[HTTPResponse, bytes]:
    """Send JSON that has to be taken. Raises NotRun."""
    response, answer = ask(connection, method, path, json.dumps(body), JSON | headers)
    if response.status not in (200, 201):
        raise NotRun(f"{method} {path} answers {response.status}: {answer[:300]!r}")
    return response, answer


def sign_in(connection: HTTPConnection, count: int) -> dict[str, str]:
    """Make an account on our server and its to-dos; gives the header of its session. Raises NotRun."""
    account = {"name": "benchmark", "password": secrets.token_urlsafe(16)}
    response, _ = send(connection, "POST", "/api/users", account)
    cookie = "; ".join(value.partition(";")[0] for value in response.headers.get_all("Set-Cookie"))
    for number in range(1, count + 1):
        send(connection, "POST", "/api/todos", todo_fields(number), Cookie=cookie)
    return {"Cookie": cookie}


def sign_in_to_pocketbase(connection: HTTPConnection) -> dict[str, str]:
    """Show the to-dos only to users, and make one; gives the header with its token. Raises NotRun."""

    def token(collection: str, account: dict) -> dict[str, str]:
        _, answer = send(connection, "POST", f"/api/collections/{collection}/auth-with-password", account)
        return {"Authorization": json.loads(answer)["token"]}

    rules = dict.fromkeys(("listRule", "viewRule", "createRule", "updateRule"), '@request.auth.id != ""')
    send(connection, "PATCH", "/api/collections/todos", rules, **token("_superusers", pocketbase.SUPERUSER))
    email, password = "user@example.com", secrets.token_hex(16)
    user = {"email": email, "password": password, "passwordConfirm": password}
    send(connection, "POST", "/api/collections/users/records", user)
    return token("users", {"identity": email, "password": password})


def request_headers(work: Work, running: Running) -> dict[str, str]:
    """The headers of a work's requests. Raises NotRun."""
    connection = running.connect()
    headers = dict(BROWSER_HEADERS) if work.browser else {}
    if work.session:
        is_ours = running.server.ours
        headers |= sign_in(connection, work.todos) if is_ours else sign_in_to_pocketbase(connection)
    if work.conditional:
        response, _ = ask(connection, "GET", running.server.path(work.path), None, headers)
        headers["If-None-Match"] = response.headers.get("ETag", "")
    connection.close()
    return headers


def check(work: Work, running: Running, headers: dict[str, str]) -> None:
    """Ask once, and raise NotRun unless the answer is what it should be."""
    connection = running.connect()
    path, body = running.server.path(work.path), work.body(1)
    response, answer = ask(connection, work.method, path, body, {**headers, **(JSON if body else {})})
    connection.close()
    status = work.status_of(running.server)
    if response.status != status:
        raise NotRun(f"it answers {response.status}, not {status}: {answer[:300]!r}")
    if work.status == 304:
        return
    if not running.server.store:
        if answer != b"Hello, world":
            raise NotRun(f"it answers {answer[:300]!r}")
        return
    is_pocketbase = running.server.kind == "pocketbase"
    found = json.loads(answer)
    todos = [found] if work.rows is None else found["items"] if is_pocketbase else found
    if work.rows is not None and len(todos) != work.rows:
        raise NotRun(f"it lists {len(todos)} to-dos, not {work.rows}")
    for todo in todos:
        if missing := FIELDS - set(todo) - ({"url"} if is_pocketbase else set()):
            raise NotRun(f"its to-dos lack {', '.join(sorted(missing))}")
