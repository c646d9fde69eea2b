"""The servers that are compared, and how one of them is started, watched and stopped."""

import contextlib
import dataclasses
import http.client
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import pocketbase
from installation import FOLDER, NODE_FOLDER, PYTHON, ROOT

UVICORN = (
    "{python} -m uvicorn --app-dir {peers} --host 127.0.0.1 --port {port}"
    " --loop uvloop --http httptools --no-access-log --log-level warning "
)
GUNICORN = "{python} -m gunicorn --pythonpath {peers} --bind 127.0.0.1:{port} --log-level warning "
POCKETBASE = (
    "{pocketbase} serve --http 127.0.0.1:{port} --dir pb_data --migrationsDir {peers}/pocketbase --automigrate=0"
)
RADICALE = (
    "{python} -m radicale --server-hosts 127.0.0.1:{port} --storage-filesystem-folder collections --auth-type none"
    " --logging-level warning"
)
XANDIKOS = "{python} -m xandikos serve --directory calendars --defaults --listen-address 127.0.0.1 --port {port}"
OURS = "{python} -m tornado_todo"  # like the installed command, which Python compiles only once
LIST = "/api/todos?limit=20"
HELLO = "/"
TICKS_IN_SECOND = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True)
class Server:
    """How to start one server. `store` is what it keeps to-dos in; a hello world keeps none.

    `kind` is `ours`, `peer`, `pocketbase` or `calendar`: servers of one kind have the same tables and addresses. `only`
    names the one work that it is measured at.
    """

    name: str
    title: str
    command: str
    store: str = "sqlite"
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kind: str = "peer"
    makes_etags: bool = False
    workers: int = 1
    only: str = ""

    @property
    def plain_title(self) -> str:
        """Its title as a terminal shows it."""
        return self.title.replace("*", "")

    @property
    def ours(self) -> bool:
        return self.kind == "ours"

    def path(self, path: str) -> str:
        """Where this server has what ours has at this path; a hello world has one address only."""
        if not self.store:
            return HELLO
        return pocketbase.path(path) if self.kind == "pocketbase" else path


# Peers write no access log, so ours writes none either.
OUR_SETTINGS = {"SERVER_HOST": "127.0.0.1", "SERVER_PORT": "{port}", "LOG_LEVEL": "warning"}
BY_UVICORN = {"HTTP_SERVER": "uvicorn"}
ON_SQLITE = {"DATABASE_URL": "sqlite:///{database}"}
ON_POSTGRES = {"DATABASE_URL": "{database}"}

SERVERS = (
    Server("ours", "**tornado_todo**", OURS, "sqlite", OUR_SETTINGS | ON_SQLITE, "ours", True),
    Server(
        *("ours-uvicorn", "**tornado_todo**, on uvicorn", OURS, "sqlite"),
        *(OUR_SETTINGS | ON_SQLITE | BY_UVICORN, "ours", True),
    ),
    Server(
        *("ours-workers", "**tornado_todo**, two workers", OURS, "sqlite"),
        *(OUR_SETTINGS | ON_SQLITE | {"WORKERS": "2"}, "ours", True, 2, "list"),
    ),
    Server(
        *("ours-file", "**tornado_todo**, as `python tornado_todo.py`", "{python} {ours}", "sqlite"),
        *(OUR_SETTINGS | ON_SQLITE, "ours", True, 1, "start"),
    ),
    Server("fastapi-aiosqlite", "FastAPI + aiosqlite", UVICORN + "fastapi_aiosqlite:app"),
    Server("fastapi-sqlalchemy", "FastAPI + SQLAlchemy", UVICORN + "fastapi_sqlalchemy:app"),
    Server("flask", "Flask + gunicorn", GUNICORN + "--worker-class gthread --threads 4 flask_sqlite3:app"),
    Server("aiohttp", "aiohttp + aiosqlite", "{python} {peers}/aiohttp_aiosqlite.py {port}"),
    Server("starlette", "Starlette + aiosqlite", UVICORN + "starlette_aiosqlite:app"),
    Server("express", "Express + better-sqlite3", "node {peers}/express_better_sqlite3.js {port}", makes_etags=True),
    Server("pocketbase", "PocketBase", POCKETBASE, kind="pocketbase"),
    Server("radicale", "Radicale", RADICALE, "", kind="calendar", only="calendar"),
    Server("xandikos", "Xandikos", XANDIKOS, "", kind="calendar", only="calendar"),
    Server("hello-tornado", "Tornado hello world", "{python} {peers}/hello_tornado.py {port}", "", makes_etags=True),
    Server("hello-asgi", "raw ASGI hello world", UVICORN + "hello_asgi:app", ""),
    Server("ours-postgres", "**tornado_todo** (Postgres)", OURS, "postgres", OUR_SETTINGS | ON_POSTGRES, "ours", True),
    Server(
        *("ours-postgres-uvicorn", "**tornado_todo** (Postgres), on uvicorn", OURS, "postgres"),
        *(OUR_SETTINGS | ON_POSTGRES | BY_UVICORN, "ours", True),
    ),
    Server("fastapi-asyncpg", "FastAPI + asyncpg", UVICORN + "fastapi_asyncpg:app", "postgres"),
)
# What the ratios are to: the first also in the overview.
REFERENCES = {"sqlite": ("fastapi-aiosqlite", "pocketbase"), "postgres": ("fastapi-asyncpg",)}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a server runs: its folder, and its database as a file in it or a URL."""

    folder: Path
    database: str


class NotRun(Exception):
    """A server that cannot be measured, with the reason."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def process_fields(process: int) -> list[str]:
    """The fields of /proc/<id>/stat after the name, which may have blanks in it; none if the process is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class Running:
    """A server in a session of its own, by which all its processes are told from everybody else's."""

    def __init__(self, server: Server, place: Place, processors: Collection[int], wrapper: Sequence[str] = ()):
        self.server = server
        self.port = free_port()
        values = {"python": PYTHON, "peers": FOLDER / "peers", "ours": ROOT / "tornado_todo.py", "root": ROOT}
        values.update(port=self.port, database=place.database, pocketbase=pocketbase.PROGRAM)
        command = [*wrapper, *(word.format(**values) for word in server.command.split())]
        # Not this environment: a setting of the person who runs this must not reach a server.
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        environment.update(BENCHMARK_DATABASE=place.database, NODE_PATH=str(NODE_FOLDER / "node_modules"))
        environment.update(NODE_ENV="production", PYTHONHASHSEED="0", PYTHONPATH=str(ROOT))
        environment.update({name: value.format(**values) for name, value in server.settings.items()})
        self._log = place.folder / f"{server.name}.log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=place.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, processors),
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, seconds: float = 30.0) -> http.client.HTTPConnection:
        """A connection to the server, which may take that long for an answer."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)

    def wait(self, seconds: float) -> None:
        """Return as soon as the server answers. Raises NotRun."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up and self._process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._first_status(seconds) in (200, 302, 401):  # 401 where everybody has to sign in
                    return
            time.sleep(0.002)
        raise NotRun(f"it did not start: {self.last_words()}")

    def _first_status(self, seconds: float) -> int:
        with contextlib.closing(self.connect(seconds)) as connection:
            connection.request("GET", self.server.path(LIST))
            response = connection.getresponse()
            response.read()
            return response.status

    def last_words(self) -> str:
        """The end of what the server has printed."""
        lines = self._log.read_text(errors="replace").split("\n")
        return " / ".join(line.strip() for line in lines if line.strip())[-300:] or "it printed nothing"

    def processes(self) -> Iterator[int]:
        """The ids of the server's processes."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and process_fields(int(entry.name))[3:4] == [str(self._process.pid)]:
                yield int(entry.name)

    def processor_seconds(self) -> float:
        """The processor time, user's and system's, that all its processes have used."""
        fields = (process_fields(process) for process in self.processes())
        return sum(int(field[11]) + int(field[12]) for field in fields if field) / TICKS_IN_SECOND

    def memory(self) -> int:
        """The bytes of memory that all its processes have resident."""
        fields = (process_fields(process) for process in self.processes())
        return sum(int(field[21]) for field in fields if field) * os.sysconf("SC_PAGE_SIZE")

    def peak_memory(self) -> int:
        """The bytes that all its processes had resident at their highest."""
        statuses = (Path(f"/proc/{process}/status").read_text() for process in self.processes())
        return sum(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 for status in statuses)

    def stop(self) -> None:
        """End the server with all its processes; by force what has not ended after ten seconds."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def running(*arguments, **options) -> Iterator[Running]:
    """A server that is stopped at the end, whatever happens."""
    server = Running(*arguments, **options)
    try:
        yield server
    finally:
        server.stop()
