"""Flask with the standard library's sqlite3: a connection a request in `g`, as its tutorial has it."""

import os
import sqlite3
import uuid
from datetime import UTC, datetime

from flask import Flask, abort, g, json, jsonify, request

INBOX = "0198c0de-0000-7000-9000-000000000000"
INSERT = """
    INSERT INTO todos
        (id, list, title, completed, "order", notes, due, priority, tags, created_at, updated_at, revision)
    VALUES (?, ?, ?, FALSE, (SELECT COALESCE(MAX("order"), 0) + 1 FROM todos), ?, ?, ?, ?, ?, ?, 1) RETURNING *"""
app = Flask(__name__)


def get_database() -> sqlite3.Connection:
    if "database" not in g:
        g.database = sqlite3.connect(os.environ["BENCHMARK_DATABASE"])
        g.database.row_factory = sqlite3.Row
        g.database.execute("PRAGMA synchronous=NORMAL")
    return g.database


@app.teardown_appcontext
def close_database(error) -> None:
    database = g.pop("database", None)
    if database is not None:
        database.close()


def shown(row: sqlite3.Row) -> dict:
    return {
        **dict(row),
        "url": f"{request.host_url}api/todos/{row['id']}",
        "completed": bool(row["completed"]),
        "tags": json.loads(row["tags"]),
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@app.get("/api/todos")
def read_todos():
    limit = request.args.get("limit", 200, type=int)
    rows = get_database().execute('SELECT * FROM todos ORDER BY "order", id LIMIT ?', (limit,)).fetchall()
    return jsonify([shown(row) for row in rows])


@app.get("/api/todos/<todo_id>")
def read_todo(todo_id: str):
    row = get_database().execute("SELECT * FROM todos WHERE id = ?", (todo_id,)).fetchone()
    if row is None:
        abort(404)
    return jsonify(shown(row))


@app.post("/api/todos")
def create_todo():
    body, at = request.get_json(), now()
    values = (body["title"], body.get("notes", ""), body.get("due"), body.get("priority", 0))
    with get_database() as database:
        values = (str(uuid.uuid4()), INBOX, *values, json.dumps(body.get("tags", [])), at, at)
        row = database.execute(INSERT, values).fetchone()
    return jsonify(shown(row)), 201


@app.patch("/api/todos/<todo_id>")
def patch_todo(todo_id: str):
    body = request.get_json()
    values = {name: body[name] for name in ("title", "completed", "notes") if name in body} | {"updated_at": now()}
    if "completed" in values:
        values["completed_at"] = values["updated_at"] if values["completed"] else None
    columns = ", ".join(f"{name} = ?" for name in values)
    with get_database() as database:
        row = database.execute(
            f"UPDATE todos SET {columns}, revision = revision + 1 WHERE id = ? RETURNING *", (*values.values(), todo_id)
        ).fetchone()
    if row is None:
        abort(404)
    return jsonify(shown(row))
