"""The to-dos that every server begins with, the same for all."""

import contextlib
import json
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import pocketbase
from installation import FOLDER, PYTHON
from servers import NotRun, Running, Server

INBOX = "0198c0de-0000-7000-9000-000000000000"
AT = "2026-01-01T08:00:00.000Z"
DATABASE = "todos.db"
KNOWN_IDS = 100


def todo_id(number: int) -> str:
    """The id of a to-do; patch.lua makes the same."""
    return f"0198c0de-0000-7000-8000-{number:012x}"


def todo_fields(number: int) -> dict:
    """What a client would send to make this to-do."""
    due = f"2026-12-{number % 28 + 1:02d}" if number % 3 == 0 else None
    return {"title": f"Buy milk and bread, number {number}", "due": due, "priority": number % 4, "tags": ["shop"]}


def rows(count: int) -> Iterator[tuple]:
    """The to-dos as rows of the peers' table."""
    for number in range(1, count + 1):
        fields = todo_fields(number)
        values = (todo_id(number), INBOX, fields["title"], False, None, float(number), "", fields["due"])
        yield (*values, fields["priority"], json.dumps(fields["tags"]), AT, AT, None, 1)


def fill_file(path: Path, count: int) -> None:
    """Make the peers' table in a SQLite file in WAL mode."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode=WAL")
    database.executescript((FOLDER / "peers" / "schema.sql").read_text())
    database.executemany(f"INSERT INTO todos VALUES ({', '.join('?' * 14)})", rows(count))
    database.commit()
    database.close()


def fill_folder(kind: str, folder: Path, count: int) -> None:
    """Make what a server of a kind begins with on SQLite; ours makes its tables itself. Raises NotRun."""
    if kind == "peer":
        fill_file(folder / DATABASE, count)
    if kind == "pocketbase":
        try:
            pocketbase.fill(folder, rows(count))
        except (OSError, subprocess.SubprocessError, sqlite3.Error) as error:
            raise NotRun(f"its database could not be made: {error}") from error


def prepare_postgres(server: Server, count: int, postgres: str) -> str:
    """Make the database that a server begins with on Postgres. Gives its URL. Raises NotRun."""
    command = [PYTHON, FOLDER / "postgres.py", "create", server.name, str(0 if server.ours else count)]
    answer = subprocess.run(command, input=postgres, capture_output=True, text=True)
    if answer.returncode:
        raise NotRun(f"its database could not be made: {answer.stderr.strip()[-300:]}")
    return answer.stdout.strip()


def drop_databases(postgres: str, servers: list[Server]) -> None:
    """Drop what `prepare_postgres` made."""
    for server in servers:
        if server.store == "postgres":
            # It says itself what fails; the figures that have been measured must not be lost by it.
            subprocess.run([PYTHON, FOLDER / "postgres.py", "drop", server.name], input=postgres, text=True)


def fill_ours(running: Running, count: int) -> None:
    """Make the to-dos through our server's API: those with known ids one by one, the others a thousand at a time."""
    connection = running.connect()

    def send(method: str, path: str, body: object) -> None:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        if response.status != 201:
            raise NotRun(f"{method} answers {response.status}: {answer[:300]!r}")

    fields = [todo_fields(number) for number in range(1, count + 1)]
    try:
        for number, body in enumerate(fields[:KNOWN_IDS], 1):
            send("PUT", f"/api/todos/{todo_id(number)}", body)
        for first in range(KNOWN_IDS, count, 1000):
            send("POST", "/api/todos", fields[first : first + 1000])
    except (OSError, HTTPException) as error:
        raise NotRun(f"it could not be filled: {error}") from error
    finally:
        connection.close()


def wait_for_index(database: Path) -> None:
    """Wait until our search index has all to-dos, as it has after a few seconds without writes. Raises NotRun.

    There is none where SQLite lacks FTS5.
    """
    behind = "SELECT end_number < (SELECT max(revision) FROM changes) FROM todos_texts_state"
    give_up = time.monotonic() + 60
    with contextlib.closing(sqlite3.connect(database)) as connection, contextlib.suppress(sqlite3.OperationalError):
        while connection.execute(behind).fetchone()[0]:
            if time.monotonic() > give_up:
                raise NotRun("the search index does not follow")
            time.sleep(0.1)
