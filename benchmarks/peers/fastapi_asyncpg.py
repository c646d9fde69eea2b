"""FastAPI with asyncpg: a response model that Pydantic writes, a pool that the lifespan opens."""

import json
import os
import uuid
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import asyncpg
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

INBOX = "0198c0de-0000-7000-9000-000000000000"
INSERT = """
    INSERT INTO todos
        (id, list, title, completed, "order", notes, due, priority, tags, created_at, updated_at, revision)
    VALUES ($1, $2, $3, FALSE, (SELECT COALESCE(MAX("order"), 0) + 1 FROM todos), $4, $5, $6, $7, $8, $9, 1)
    RETURNING *"""


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
    async with asyncpg.create_pool(os.environ["BENCHMARK_DATABASE"]) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


def shown(row: asyncpg.Record, base: str) -> dict:
    return {**dict(row), "url": f"{base}api/todos/{row['id']}", "tags": json.loads(row["tags"])}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@app.get("/api/todos")
async def read_todos(request: Request, limit: int = 200) -> list[Todo]:
    rows = await app.state.pool.fetch('SELECT * FROM todos ORDER BY "order", id LIMIT $1', limit)
    base = str(request.base_url)
    return [shown(row, base) for row in rows]


@app.get("/api/todos/{todo_id}")
async def read_todo(request: Request, todo_id: str) -> Todo:
    row = await app.state.pool.fetchrow("SELECT * FROM todos WHERE id = $1", todo_id)
    if row is None:
        raise HTTPException(404)
    return shown(row, str(request.base_url))


@app.post("/api/todos", status_code=201)
async def create_todo(request: Request, todo: NewTodo) -> Todo:
    at = now()
    values = (str(uuid.uuid4()), INBOX, todo.title, todo.notes, todo.due, todo.priority, json.dumps(todo.tags), at, at)
    row = await app.state.pool.fetchrow(INSERT, *values)
    return shown(row, str(request.base_url))


@app.patch("/api/todos/{todo_id}")
async def patch_todo(request: Request, todo_id: str, changes: TodoChanges) -> Todo:
    values = changes.model_dump(exclude_unset=True) | {"updated_at": now()}
    if "completed" in values:
        values["completed_at"] = values["updated_at"] if values["completed"] else None
    columns = ", ".join(f"{name} = ${number}" for number, name in enumerate(values, 2))
    row = await app.state.pool.fetchrow(
        f"UPDATE todos SET {columns}, revision = revision + 1 WHERE id = $1 RETURNING *", todo_id, *values.values()
    )
    if row is None:
        raise HTTPException(404)
    return shown(row, str(request.base_url))
