"""PocketBase: its addresses, and a data folder with the same to-dos as the other peers have."""

import secrets
import sqlite3
import subprocess
import urllib.parse
from collections.abc import Iterable
from pathlib import Path

from installation import FOLDER, PYTHON

PROGRAM = PYTHON.parent / "pocketbase"
RECORDS = "/api/collections/todos/records"
SUPERUSER = {"identity": "benchmark@example.com", "password": secrets.token_hex(16)}
COLUMNS = ("id", "list", "title", "completed", "completed_at", "order", "notes", "due", "priority", "tags")
COLUMNS += ("created_at", "updated_at", "deleted_at", "revision")


def path(ours: str) -> str:
    """Where PocketBase has what the others have at this path."""
    address, _, query = ours.partition("?")
    options = dict(urllib.parse.parse_qsl(query))
    if "q" in options:
        options["filter"] = f"title ~ '{options.pop('q')}'"
    if "limit" in options:
        # Its documentation advises against counting all rows for each page, and none of the others counts them.
        options["skipTotal"] = "1"
        options["perPage"] = options.pop("limit")
        options["sort"] = options.get("sort", "order") + ",id"
    query = "?" + urllib.parse.urlencode(options, safe=",") if options else ""
    return id_of(address).replace("/api/todos", RECORDS) + query


def id_of(text: str) -> str:
    """An id as PocketBase's own pattern allows it: with any other it reads all rows before each insert."""
    return text.replace("-", "")


def value_of(column: str, value: object) -> object:
    """What PocketBase keeps for a value of the peers' table: it has no NULL, and a blank between day and time."""
    if column == "id":
        return id_of(str(value))
    if column == "due" and value:
        return f"{value} 00:00:00.000Z"
    if column.endswith("_at") and value:
        return str(value).replace("T", " ")
    return "" if value is None else value


def fill(folder: Path, rows: Iterable[tuple]) -> None:
    """Make the collection and a superuser by PocketBase's commands, and the rows in its file."""
    folders = ("--dir", folder / "pb_data", "--migrationsDir", FOLDER / "peers" / "pocketbase")
    for command in (("migrate", "up"), ("superuser", "upsert", *SUPERUSER.values())):
        subprocess.run([PROGRAM, *command, *folders], check=True, capture_output=True, timeout=60)
    names, marks = ", ".join(f'"{name}"' for name in COLUMNS), ", ".join("?" * len(COLUMNS))
    with sqlite3.connect(folder / "pb_data" / "data.db") as database:
        database.executemany(
            f"INSERT INTO todos ({names}) VALUES ({marks})",
            ([value_of(*each) for each in zip(COLUMNS, row, strict=True)] for row in rows),
        )
    database.close()
