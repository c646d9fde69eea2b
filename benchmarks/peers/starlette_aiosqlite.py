"""Starlette with aiosqlite: JSONResponse, one connection in the lifespan's state."""

import contextlib
import json
import os
import uuid
from datetime import UTC, datetime

import aiosqlite
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

INBOX = "0198c0de-0000-7000-9000-000000000000"
INSERT = """
    INSERT INTO todos
        (id, list, title, completed, "order", notes, due, priority, tags, created_at, updated_at, revision)
    VALUES (?, ?, ?, FALSE, (SELECT COALESCE(MAX("order"), 0) + 1 FROM todos), ?, ?, ?, ?, ?, ?, 1) RETURNING *"""


@contextlib.asynccontextmanager
async def lifespan(app):
    async with aiosqlite.connect(os.environ["BENCHMARK_DATABASE"]) as database:
        database.row_factory = aiosqlite.Row
        await database.execute("PRAGMA synchronous=NORMAL")
        yield {"database": database}


def shown(row: aiosqlite.Row, base: str) -> dict:
    return {
        **dict(row),
        "url": f"{base}api/todos/{row['id']}",
        "completed": bool(row["completed"]),
        "tags": json.loads(row["tags"]),
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


async def read_todos(request: Request) -> JSONResponse:
    limit = int(request.query_params.get("limit", 200))
    rows = await request.state.database.execute_fetchall('SELECT * FROM todos ORDER BY "order", id LIMIT ?', (limit,))
    base = str(request.base_url)
    return JSONResponse([shown(row, base) for row in rows])


async def read_todo(request: Request) -> JSONResponse:
    todo_id = request.path_params["todo_id"]
    rows = await request.state.database.execute_fetchall("SELECT * FROM todos WHERE id = ?", (todo_id,))
    if not rows:
        raise HTTPException(404)
    return JSONResponse(shown(rows[0], str(request.base_url)))


async def create_todo(request: Request) -> JSONResponse:
    body, at = await request.json(), now()
    values = (body["title"], body.get("notes", ""), body.get("due"), body.get("priority", 0))
    rows = await request.state.database.execute_fetchall(
        INSERT, (str(uuid.uuid4()), INBOX, *values, json.dumps(body.get("tags", [])), at, at)
    )
    await request.state.database.commit()
    return JSONResponse(shown(rows[0], str(request.base_url)), status_code=201)


async def patch_todo(request: Request) -> JSONResponse:
    body = await request.json()
    values = {name: body[name] for name in ("title", "completed", "notes") if name in body} | {"updated_at": now()}
    if "completed" in values:
        values["completed_at"] = values["updated_at"] if values["completed"] else None
    columns = ", ".join(f"{name} = ?" for name in values)
    rows = await request.state.database.execute_fetchall(
        f"UPDATE todos SET {columns}, revision = revision + 1 WHERE id = ? RETURNING *",
        (*values.values(), request.path_params["todo_id"]),
    )
    await request.state.database.commit()
    if not rows:
        raise HTTPException(404)
    return JSONResponse(shown(rows[0], str(request.base_url)))


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/api/todos", read_todos),
        Route("/api/todos", create_todo, methods=["POST"]),
        Route("/api/todos/{todo_id}", read_todo),
        Route("/api/todos/{todo_id}", patch_todo, methods=["PATCH"]),
    ],
)
