"""FastAPI with aiosqlite: a response model that Pydantic writes, one connection that the lifespan opens."""

import json
import os
import uuid
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import aiosqlite
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

INBOX = "0198c0de-0000-7000-9000-000000000000"
INSERT = """
    INSERT INTO todos
        (id, list, title, completed, "order", notes, due, priority, tags, created_at, updated_at, revision)
    VALUES (?, ?, ?, FALSE, (SELECT COALESCE(MAX("order"), 0) + 1 FROM todos), ?, ?, ?, ?, ?, ?, 1) RETURNING *"""


class NewTodo(BaseModel):
    title: str
    notes: str = ""
    due: str | None = None
    priority: int = 0
    tags: list[str] = []


class TodoChanges(BaseModel):
    title: str | None = None
    completed: bool | None = None
    notes: str | None = None


class Todo(BaseModel):
    id: str
    url: str
    list: str
    title: str
    completed: bool
    completed_at: str | None
    order: float
    notes: str
    due: str | None
    priority: int
    tags: list[str]
    created_at: str
    updated_at: str
    deleted_at: str | None
    revision: int


@asynccontextmanager
async def lifespan(app: FastAPI):
    async with aiosqlite.connect(os.environ["BENCHMARK_DATABASE"]) as database:
        database.row_factory = aiosqlite.Row
        await database.execute("PRAGMA synchronous=NORMAL")
        app.state.database = database
        yield


app = FastAPI(lifespan=lifespan)


def shown(row: aiosqlite.Row, base: str) -> dict:
    return {**dict(row), "url": f"{base}api/todos/{row['id']}", "tags": json.loads(row["tags"])}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@app.get("/api/todos")
async def read_todos(request: Request, limit: int = 200) -> list[Todo]:
    rows = await app.state.database.execute_fetchall('SELECT * FROM todos ORDER BY "order", id LIMIT ?', (limit,))
    base = str(request.base_url)
    return [shown(row, base) for row in rows]


@app.get("/api/todos/{todo_id}")
async def read_todo(request: Request, todo_id: str) -> Todo:
    rows = await app.state.database.execute_fetchall("SELECT * FROM todos WHERE id = ?", (todo_id,))
    if not rows:
        raise HTTPException(404)
    return shown(rows[0], str(request.base_url))


@app.post("/api/todos", status_code=201)
async def create_todo(request: Request, todo: NewTodo) -> Todo:
    at = now()
    values = (str(uuid.uuid4()), INBOX, todo.title, todo.notes, todo.due, todo.priority, json.dumps(todo.tags), at, at)
    rows = await app.state.database.execute_fetchall(INSERT, values)
    await app.state.database.commit()
    return shown(rows[0], str(request.base_url))


@app.patch("/api/todos/{todo_id}")
async def patch_todo(request: Request, todo_id: str, changes: TodoChanges) -> Todo:
    values = changes.model_dump(exclude_unset=True) | {"updated_at": now()}
    if "completed" in values:
        values["completed_at"] = values["updated_at"] if values["completed"] else None
    columns = ", ".join(f"{name} = ?" for name in values)
    rows = await app.state.database.execute_fetchall(
        f"UPDATE todos SET {columns}, revision = revision + 1 WHERE id = ? RETURNING *", (*values.values(), todo_id)
    )
    await app.state.database.commit()
    if not rows:
        raise HTTPException(404)
    return shown(rows[0], str(request.base_url))
