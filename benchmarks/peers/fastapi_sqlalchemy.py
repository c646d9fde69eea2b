"""FastAPI with SQLAlchemy's asyncio ORM on aiosqlite: a session a request, objects in and out."""

import os
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, ConfigDict
from sqlalchemy import JSON, event, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

INBOX = "0198c0de-0000-7000-9000-000000000000"
engine = create_async_engine(f"sqlite+aiosqlite:///{os.environ['BENCHMARK_DATABASE']}")
async_session = async_sessionmaker(engine, expire_on_commit=False)


@event.listens_for(engine.sync_engine, "connect")
def set_pragmas(connection, record) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Base(DeclarativeBase):
    pass


class Todo(Base):
    __tablename__ = "todos"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: str(uuid.uuid4()))
    list: Mapped[str] = mapped_column(default=INBOX)
    title: Mapped[str]
    completed: Mapped[bool] = mapped_column(default=False)
    completed_at: Mapped[str | None]
    order: Mapped[float]
    notes: Mapped[str] = mapped_column(default="")
    due: Mapped[str | None]
    priority: Mapped[int] = mapped_column(default=0)
    tags: Mapped[JSON] = mapped_column(JSON, default=())
    created_at: Mapped[str] = mapped_column(default=now)
    updated_at: Mapped[str] = mapped_column(default=now)
    deleted_at: Mapped[str | None]
    revision: Mapped[int] = mapped_column(default=1)


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


class ShownTodo(BaseModel):
    model_config = ConfigDict(from_attributes=True)

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


async def get_session() -> AsyncIterator[AsyncSession]:
    async with async_session() as session:
        yield session


Session = Annotated[AsyncSession, Depends(get_session)]
app = FastAPI()


def shown(todo: Todo, base: str) -> Todo:
    todo.url = f"{base}api/todos/{todo.id}"
    return todo


@app.get("/api/todos", response_model=list[ShownTodo])
async def read_todos(request: Request, session: Session, limit: int = 200):
    todos = await session.scalars(select(Todo).order_by(Todo.order, Todo.id).limit(limit))
    base = str(request.base_url)
    return [shown(todo, base) for todo in todos]


@app.get("/api/todos/{todo_id}", response_model=ShownTodo)
async def read_todo(request: Request, session: Session, todo_id: str):
    todo = await session.get(Todo, todo_id)
    if todo is None:
        raise HTTPException(404)
    return shown(todo, str(request.base_url))


@app.post("/api/todos", status_code=201, response_model=ShownTodo)
async def create_todo(request: Request, session: Session, fields: NewTodo):
    last = await session.scalar(select(func.max(Todo.order)))
    todo = Todo(**fields.model_dump(), order=(last or 0) + 1)
    session.add(todo)
    await session.commit()
    return shown(todo, str(request.base_url))


@app.patch("/api/todos/{todo_id}", response_model=ShownTodo)
async def patch_todo(request: Request, session: Session, todo_id: str, changes: TodoChanges):
    todo = await session.get(Todo, todo_id)
    if todo is None:
        raise HTTPException(404)
    todo.updated_at = now()
    for name, value in changes.model_dump(exclude_unset=True).items():
        setattr(todo, name, value)
    if changes.completed is not None:
        todo.completed_at = todo.updated_at if todo.completed else None
    todo.revision += 1
    await session.commit()
    return shown(todo, str(request.base_url))
