"""aiohttp with aiosqlite on uvloop: json_response, one connection in the application's cleanup context."""

import json
import os
import sys
import uuid
from datetime import UTC, datetime

import aiosqlite
import uvloop
from aiohttp import web

INBOX = "0198c0de-0000-7000-9000-000000000000"
INSERT = """
    INSERT INTO todos
        (id, list, title, completed, "order", notes, due, priority, tags, created_at, updated_at, revision)
    VALUES (?, ?, ?, FALSE, (SELECT COALESCE(MAX("order"), 0) + 1 FROM todos), ?, ?, ?, ?, ?, ?, 1) RETURNING *"""
DATABASE = web.AppKey("database", aiosqlite.Connection)
routes = web.RouteTableDef()


async def open_database(app: web.Application):
    async with aiosqlite.connect(os.environ["BENCHMARK_DATABASE"]) as database:
        database.row_factory = aiosqlite.Row
        await database.execute("PRAGMA synchronous=NORMAL")
        app[DATABASE] = database
        yield


def shown(row: aiosqlite.Row, request: web.Request) -> dict:
    return {
        **dict(row),
        "url": f"{request.scheme}://{request.host}/api/todos/{row['id']}",
        "completed": bool(row["completed"]),
        "tags": json.loads(row["tags"]),
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@routes.get("/api/todos")
async def read_todos(request: web.Request) -> web.Response:
    limit = int(request.query.get("limit", 200))
    rows = await request.app[DATABASE].execute_fetchall('SELECT * FROM todos ORDER BY "order", id LIMIT ?', (limit,))
    return web.json_response([shown(row, request) for row in rows])


@routes.get("/api/todos/{todo_id}")
async def read_todo(request: web.Request) -> web.Response:
    todo_id = request.match_info["todo_id"]
    rows = await request.app[DATABASE].execute_fetchall("SELECT * FROM todos WHERE id = ?", (todo_id,))
    if not rows:
        raise web.HTTPNotFound
    return web.json_response(shown(rows[0], request))


@routes.post("/api/todos")
async def create_todo(request: web.Request) -> web.Response:
    body, at = await request.json(), now()
    values = (body["title"], body.get("notes", ""), body.get("due"), body.get("priority", 0))
    rows = await request.app[DATABASE].execute_fetchall(
        INSERT, (str(uuid.uuid4()), INBOX, *values, json.dumps(body.get("tags", [])), at, at)
    )
    await request.app[DATABASE].commit()
    return web.json_response(shown(rows[0], request), status=201)


@routes.patch("/api/todos/{todo_id}")
async def patch_todo(request: web.Request) -> web.Response:
    body = await request.json()
    values = {name: body[name] for name in ("title", "completed", "notes") if name in body} | {"updated_at": now()}
    if "completed" in values:
        values["completed_at"] = values["updated_at"] if values["completed"] else None
    columns = ", ".join(f"{name} = ?" for name in values)
    rows = await request.app[DATABASE].execute_fetchall(
        f"UPDATE todos SET {columns}, revision = revision + 1 WHERE id = ? RETURNING *",
        (*values.values(), request.match_info["todo_id"]),
    )
    await request.app[DATABASE].commit()
    if not rows:
        raise web.HTTPNotFound
    return web.json_response(shown(rows[0], request))


app = web.Application()
app.cleanup_ctx.append(open_database)
app.add_routes(routes)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, loop=uvloop.new_event_loop())
