#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["tornado>=6.6", "aiosqlite>=0.20", "python-dotenv>=1.0", "msgspec>=0.19"]
# ///
"""A to-do server in one file.

Run it:     python tornado_todo.py            a page and a JSON API on http://localhost:8888
Embed it:   app = tornado_todo.make_app({"DATABASE_URL": "sqlite://"}, prefix="/todo")
Test with:  with tornado_todo.running({"DATABASE_URL": "sqlite://"}) as url: ...
Configure:  python tornado_todo.py --help     every setting is an environment variable too

The map. A line of code calls only upwards, so the file reads from top to bottom; search for
"# ====" to jump from section to section.

    configuration   the one table of settings, and the frozen Config that is read from it
    domain          to-dos, lists, changes, errors, and pure functions on them
    databases       SQLite with one writer that commits in groups; knows nothing of to-dos
    stores          to-dos with their change log, JSON documents, records of bytes
    live updates    who listens, and what committed since
    service         the only writer: validate, store, publish; and what opens and closes it all
    auth            who is asking
    handlers        parse, one call of the service, write
    page            the HTML, CSS and JavaScript that people see
    assembly        routes(), make_app(), lifespan(), running()
    command line    main()

One idea carries the whole, the change log: every write is one transaction that raises the
database's revision, changes rows and appends to `changes` what they were and what they became.
History, undo, trash, live updates, replay and ETags are all read from that one table.
"""

import argparse
import asyncio
import base64
import collections
import contextlib
import dataclasses
import datetime
import functools
import hashlib
import ipaddress
import json
import logging
import math
import os
import random
import re
import secrets
import signal
import socket
import sqlite3
import sys
import threading
import time
import unicodedata
import urllib.parse
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import aiosqlite
import dotenv
import msgspec
import tornado.gen
import tornado.httpclient
import tornado.httpserver
import tornado.httputil
import tornado.log
import tornado.netutil
import tornado.routing
import tornado.template
import tornado.web
import tornado.websocket
from msgspec import UNSET, Meta, UnsetType

__version__ = "0.1.0"
__all__ = ["Config", "Misconfigured", "SETTINGS", "TodoError", "lifespan", "main", "make_app", "running"]

LOG = logging.getLogger("tornado_todo")


# ==== configuration: may call nothing below it ==================================================


class Misconfigured(Exception):
    """A setting cannot be used. The message is one line that a person can act on."""


def parse_port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise Misconfigured(f"{text!r} is not a port: give a number from 0 (any free one) to 65535")
    return int(text)


def parse_days(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) < 1:
        raise Misconfigured(f"{text!r} is not a number of days: give a whole number from 1")
    return int(text)


def parse_database_url(text: str) -> str:
    """Check a database URL: `sqlite:///file.db`, `sqlite:////absolute/file.db` or `sqlite://`."""
    scheme, separator, rest = text.partition("://")
    if not separator or not scheme:
        raise Misconfigured("not a URL: give sqlite:///file.db, or sqlite:// to keep everything in memory")
    if scheme in ("postgres", "postgresql"):
        raise Misconfigured("Postgres is not in this version yet: give sqlite:///file.db")
    if scheme != "sqlite":
        raise Misconfigured(f"unknown kind of database {scheme!r}: give sqlite:///file.db")
    if rest and (not rest.startswith("/") or rest == "/" or "?" in rest or "#" in rest or "\0" in rest):
        raise Misconfigured("a SQLite URL has three slashes and a file name: sqlite:///file.db")
    return text


def parse_http_url(text: str) -> str:
    try:
        parts = urllib.parse.urlsplit(text)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if text and not valid:
        raise Misconfigured("not an http:// or https:// URL")
    return text.rstrip("/") if text.count("/") == 3 else text


def parse_auth(text: str) -> str:
    if text == "accounts":
        raise Misconfigured("accounts are not in this version yet: use auto (this machine only) or open")
    if text not in ("auto", "open"):
        raise Misconfigured(f"unknown value {text!r}: use auto (this machine only) or open (never ask)")
    return text


def parse_origins(text: str) -> frozenset[str]:
    """Read a comma-separated list of web origins, such as `https://example.com`, or `*`."""
    origins = frozenset(origin.strip() for origin in text.split(",") if origin.strip())
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#]+", origin):
            raise Misconfigured(f"{origin!r} is not an origin: write https://example.com, with no path")
    return origins


def parse_prefix(text: str) -> str:
    prefix = "/" + text.strip("/") if text.strip("/") else ""
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", prefix):
        raise Misconfigured(f"{text!r} is not a path: write it like /todo")
    return prefix


def parse_folder(text: str) -> str:
    if text and not os.path.isdir(text):
        raise Misconfigured(f"{text!r} is not a folder")
    return os.path.abspath(text) if text else ""


def parse_level(text: str) -> str:
    if text.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise Misconfigured(f"unknown level {text!r}: use debug, info, warning or error")
    return text.upper()


class Setting(NamedTuple):
    """One row of the table of settings: an environment variable, its default and its meaning."""

    name: str
    default: str
    parse: Callable[[str], Any]
    help: str


SETTINGS = (
    Setting("SERVER_HOST", "localhost", str, "host name or address to listen on; 0.0.0.0 for all"),
    Setting("SERVER_PORT", "8888", parse_port, "port to listen on; 0 picks a free one"),
    Setting(
        "DATABASE_URL", "sqlite:///tornado_todo.db", parse_database_url, "to-dos and documents; sqlite:// is in memory"
    ),
    Setting("AUTH", "auto", parse_auth, "auto: only this machine may use it; open: whoever reaches it may"),
    Setting("CORS_ORIGINS", "", parse_origins, "web origins, comma-separated, whose pages may use the API; * for any"),
    Setting("PUBLIC_URL", "", parse_http_url, "how the outside reaches the server, if not by its own address"),
    Setting("PREFIX", "", parse_prefix, "path that everything is served under, such as /todo"),
    Setting("STATIC_PATH", "", parse_folder, "folder to serve at /static/"),
    Setting("WEATHER_URI", "", parse_http_url, "Open-Meteo's (or Yahoo's older) current weather, for /api/weather"),
    Setting("WEATHER_PLACE", "", str, "name of the place, if the weather server does not give it"),
    Setting("TRASH_DAYS", "30", parse_days, "days after which the trash is emptied for good"),
    Setting("LOG_LEVEL", "info", parse_level, "debug, info, warning or error"),
)

# Set but not yet served: to ignore one of them would keep a team's data where nobody looks for it.
NOT_YET = ("MONGODB_URI", "REDIS_URL", "REDIS_HOST", "MYSQL_URL")


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting, parsed and checked. Nothing else in the module reads the environment."""

    server_host: str
    server_port: int
    database_url: str
    auth: str
    cors_origins: frozenset[str]
    public_url: str
    prefix: str
    static_path: str
    weather_uri: str
    weather_place: str
    trash_days: int
    log_level: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Config":
        """Read the settings from a mapping such as `os.environ`; an empty value counts as not set.

        Raises Misconfigured, naming the setting, for a value that cannot be used.
        """
        for name in NOT_YET:
            if environ.get(name):
                raise Misconfigured(f"{name} is set, but this version has no driver for it yet: unset it")
        values = {}
        for setting in SETTINGS:
            try:
                values[setting.name.lower()] = setting.parse(str(environ.get(setting.name) or setting.default))
            except Misconfigured as error:
                raise Misconfigured(f"{setting.name}: {error}") from None
        return cls(**values)


# ==== domain: may call itself ===================================================================

MAX_BODY = 1024 * 1024  # bytes of a request's body
MAX_RECORD = 64 * 1024  # bytes of a record
MAX_DEPTH = 32  # levels of nesting in a JSON body
MAX_ORDER = 1e12  # beyond it a double has no room left between whole numbers' neighbours
NO_DUE = 2**53  # the sort key of a to-do without a due date: after every date there is
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


class TodoError(tornado.web.HTTPError):
    """An error that knows its HTTP status, to be shown as a problem document (RFC 9457)."""

    status = 500
    title = "Internal error"

    def __init__(self, detail: str, errors: Sequence[dict] = (), headers: Mapping[str, str] | None = None):
        super().__init__(self.status, reason=self.title)
        self.detail, self.errors, self.headers = detail, list(errors), dict(headers or {})

    def __str__(self) -> str:
        return self.detail


class Malformed(TodoError):
    """The request could not be read."""

    status, title = 400, "Malformed request"


class Unauthorized(TodoError):
    """Nobody has signed in, and the request does not come from this machine."""

    status, title = 401, "Not signed in"


class NotFound(TodoError):
    """There is no such thing, or none that the caller may know of."""

    status, title = 404, "Not found"


class Conflict(TodoError):
    """The request and the present state exclude each other."""

    status, title = 409, "Conflict"


class PreconditionFailed(TodoError):
    """If-Match or If-None-Match did not hold (RFC 9110, section 13)."""

    status, title = 412, "Precondition failed"


class TooLarge(TodoError):
    """The body is over its limit."""

    status, title = 413, "Content too large"


class UnsupportedMediaType(TodoError):
    """The body is not JSON."""

    status, title = 415, "Unsupported media type"


class Invalid(TodoError):
    """The request could be read, but one or more of its fields cannot be used."""

    status, title = 422, "Invalid fields"


class UpstreamFailed(TodoError):
    """Another server that this answer depends on gave none that can be used."""

    status, title = 502, "Upstream failed"


class Unavailable(TodoError):
    """An engine is away or busy. The same request may succeed in a moment."""

    status, title = 503, "Temporarily unavailable"

    def __init__(self, detail: str):
        super().__init__(detail, headers={"Retry-After": "1"})


class UpstreamTimedOut(TodoError):
    """Another server that this answer depends on did not answer in time."""

    status, title = 504, "Upstream timed out"


def field_error(field: str, message: str) -> dict:
    return {"field": field, "message": message}


Tags = list[str]  # a name of its own, since `list` is a field below


class Todo(msgspec.Struct, kw_only=True, frozen=True):
    """A to-do as the API shows it. Times are RFC 3339 UTC; `url` is set only on its way out."""

    id: str
    url: str | UnsetType = UNSET
    list: str
    title: str
    completed: bool = False
    completed_at: str | None = None
    order: float
    notes: str = ""
    due: str | None = None
    priority: int = 0
    tags: Tags = []
    created_at: str
    updated_at: str
    deleted_at: str | None = None
    revision: int = 0


class TodoList(msgspec.Struct, kw_only=True, frozen=True):
    """A list of to-dos. `active` and `completed` count its to-dos, and are set only on its way out."""

    id: str
    url: str | UnsetType = UNSET
    title: str
    order: float
    inbox: bool = False
    active: int | UnsetType = UNSET
    completed: int | UnsetType = UNSET
    created_at: str
    updated_at: str
    deleted_at: str | None = None
    revision: int = 0


class User(msgspec.Struct, frozen=True):
    """Somebody who owns lists."""

    id: str
    name: str


class Change(msgspec.Struct, kw_only=True, frozen=True):
    """One row of the change log. `todo` is null where the list itself changed; images are JSON."""

    revision: int
    batch: str
    at: str
    user: str | None
    list: str
    todo: str | None
    action: str
    before: msgspec.Raw
    after: msgspec.Raw


class TodoFields(msgspec.Struct, kw_only=True):
    """What a client may set of a to-do. None clears."""

    title: Annotated[str, Meta(max_length=2000)] | UnsetType = UNSET
    completed: bool | UnsetType = UNSET
    order: Annotated[float, Meta(ge=-MAX_ORDER, le=MAX_ORDER)] | UnsetType = UNSET
    notes: Annotated[str, Meta(max_length=20_000)] | None | UnsetType = UNSET
    due: str | None | UnsetType = UNSET
    priority: Annotated[int, Meta(ge=0, le=3)] | None | UnsetType = UNSET
    tags: Annotated[Tags, Meta(max_length=20)] | None | UnsetType = UNSET
    list: str | UnsetType = UNSET


class ListFields(msgspec.Struct, kw_only=True):
    """What a client may set of a list."""

    title: Annotated[str, Meta(max_length=2000)] | UnsetType = UNSET
    order: Annotated[float, Meta(ge=-MAX_ORDER, le=MAX_ORDER)] | UnsetType = UNSET


class UndoFields(msgspec.Struct, kw_only=True):
    """Which batch to undo; without one, the caller's last."""

    batch: str | UnsetType = UNSET


class TodoFilter(msgspec.Struct, kw_only=True, frozen=True):
    """Which to-dos are meant. Each condition narrows the selection; none selects all outside the trash."""

    list: str | None = None
    completed: bool | None = None
    due: tuple[str, str] | str | None = None
    tags: tuple[str, ...] = ()
    priorities: tuple[int, ...] = ()
    words: tuple[str, ...] = ()
    deleted: bool = False


class Page(NamedTuple):
    """One page of a keyset-paged answer: sort key, direction, how many, and what came last before it."""

    sort: str = "order"
    descending: bool = False
    limit: int = 200
    after: tuple[Any, str] | None = None


# ---- times, ids and text


def now_milliseconds() -> int:
    return time.time_ns() // 1_000_000


def timestamp(epoch_milliseconds: int) -> str:
    """Epoch milliseconds as RFC 3339 UTC: 2026-11-22T09:30:00.123Z."""
    moment = EPOCH + datetime.timedelta(milliseconds=epoch_milliseconds)
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"


def milliseconds(moment: str | None) -> int | None:
    """The inverse of `timestamp`; None stays None."""
    if moment is None:
        return None
    return (datetime.datetime.fromisoformat(moment[:-1] + "+00:00") - EPOCH) // datetime.timedelta(milliseconds=1)


def uuid7() -> str:
    """A UUID version 7 (RFC 9562): sorts by the time it was made, 74 random bits."""
    number = now_milliseconds() << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return str(uuid.UUID(int=number))


# Letters that Unicode does not take apart, and that people type without their stroke or hook.
UNDECOMPOSED = str.maketrans(
    {"ı": "i", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ŧ": "t", "œ": "oe", "æ": "ae"}
)


@functools.lru_cache(maxsize=1024)
def fold(text: str) -> str:
    """Text for comparing: without case, accents and compatibility forms, in any language."""
    if text.isascii():
        return " ".join(text.lower().split())
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    bare = "".join(character for character in decomposed if unicodedata.category(character) != "Mn")
    return " ".join(bare.translate(UNDECOMPOSED).split())


def clean_line(text: str, most: int) -> str:
    """Trim one line of text; raise ValueError if nothing is left, too much, or a control character."""
    text = text.strip()
    if not text:
        raise ValueError("must not be empty")
    if len(text) > most:
        raise ValueError(f"must have at most {most} characters, not {len(text)}")
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise ValueError("must be one line, without control characters")
    return text


def clean_title(title: str) -> str:
    return clean_line(title, 500)


def clean_tags(tags: Tags | None) -> Tags:
    """Trim tags and drop those that differ only in case or accents from an earlier one."""
    kept: dict[str, str] = {}
    for tag in tags or []:
        tag = clean_line(tag, 50)
        if "," in tag:
            raise ValueError("a tag cannot contain a comma")
        kept.setdefault(fold(tag), tag)
    return [*kept.values()]


def clean_id(text: str) -> str:
    try:
        if len(text) == 36:
            return str(uuid.UUID(text))
    except ValueError:
        pass
    raise ValueError("must be a UUID of 36 characters")


DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
DATE_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE)


def parse_date_time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text.upper().replace("Z", "+00:00"))


def clean_due(due: str | None) -> str | None:
    """A due date (2026-11-22) or time with an offset (2026-11-22T14:00:00+01:00), in canonical form."""
    if due is None:
        return None
    due = due.strip()
    try:
        if DATE.fullmatch(due):
            return datetime.date.fromisoformat(due).isoformat()
        if DATE_TIME.fullmatch(due):
            return parse_date_time(due).isoformat().replace("+00:00", "Z")
    except ValueError:
        raise ValueError("is no day or time that exists") from None
    raise ValueError("must be a date like 2026-11-22, or a time like 2026-11-22T14:00:00+01:00")


def due_sort_key(due: str | None) -> int:
    """Epoch milliseconds of a due time; a day without a time comes at its end, no due date after all."""
    if due is None:
        return NO_DUE
    if len(due) == 10:
        return (datetime.date.fromisoformat(due).toordinal() - EPOCH.toordinal() + 1) * 86_400_000 - 1
    return (parse_date_time(due) - EPOCH) // datetime.timedelta(milliseconds=1)


CLEANERS: dict[str, Callable[[Any], Any]] = {
    "title": clean_title,
    "notes": lambda notes: notes or "",
    "due": clean_due,
    "priority": lambda priority: priority or 0,
    "tags": clean_tags,
    "list": clean_id,
    "batch": clean_id,
}


# ---- reading what clients send


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; raise Malformed for a key that comes twice, since one would be lost."""
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise Malformed(f"The key {double!r} comes twice.", [field_error(double, "comes twice")])
    return value


def bounded_integer(digits: str) -> int:
    # Python refuses to convert very many digits; 30 are already far over 64 bits.
    return int(digits[:30])


def text_fault(text: str) -> str | None:
    if "\0" in text:
        return "contains a NUL character"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "contains half a surrogate pair"
    return None


def json_fault(value: Any, path: str = "", depth: int = 0) -> tuple[str, str] | None:
    """Where and what in a parsed JSON value not every engine could keep; None if all is well."""
    if isinstance(value, str):
        fault = None if value.isascii() and "\0" not in value else text_fault(value)
        return (path, fault) if fault else None
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**63 else (path, "is an integer beyond 64 bits")
    if isinstance(value, float):
        return None if math.isfinite(value) else (path, "is not a finite number")
    if depth == MAX_DEPTH:
        return path, f"is nested deeper than {MAX_DEPTH} levels"
    if isinstance(value, list):
        children = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    else:
        for key in value:
            if fault := text_fault(key):
                return path, f"a key {fault}"
        children = ((f"{path}.{key}" if path else key, item) for key, item in value.items())
    return next(filter(None, (json_fault(item, place, depth + 1) for place, item in children)), None)


def parse_json(body: bytes) -> Any:
    """Parse a JSON body (RFC 8259) into plain values that every engine can keep exactly.

    Raises Malformed, naming the place, for anything else: bad syntax or UTF-8, duplicate keys,
    NaN and Infinity, integers beyond 64 bits, NUL and lone surrogates, more than 32 levels.
    """
    try:
        value = json.loads(body.decode(), object_pairs_hook=unique_keys, parse_int=bounded_integer)
    except UnicodeDecodeError:
        raise Malformed("The body is not UTF-8.") from None
    except RecursionError:
        raise Malformed(f"The body is nested deeper than {MAX_DEPTH} levels.") from None
    except json.JSONDecodeError as error:
        problem = f"{error.msg}, line {error.lineno} column {error.colno}"
        raise Malformed(f"The body is not JSON: {problem}.") from None
    if fault := json_fault(value):
        path, message = fault
        raise Malformed(f"{path or 'The body'} {message}.", [field_error(path, message)])
    return value


def read_field(name: str, value: Any, field_type: Any) -> Any:
    """Convert one field; raise ValueError with a message for people if it does not fit."""
    try:
        value = msgspec.convert(value, field_type)
    except msgspec.ValidationError as error:
        message = str(error).replace("`", "").replace(" - at $", " at ").replace("Expected", "expected")
        raise ValueError(message.replace(" | null", " or null").replace("array", "list")) from None
    return CLEANERS[name](value) if name in CLEANERS else value


def read_fields(body: Any, fields_type: type[msgspec.Struct], required: Iterable[str] = ()) -> dict[str, Any]:
    """The fields that a JSON object sets, checked and cleaned, as a dict.

    Raises Invalid with one entry for every field that is unknown, missing or cannot be used.
    """
    if not isinstance(body, dict):
        raise Invalid("The body must be a JSON object.", [field_error("", "must be a JSON object")])
    known = {field.name: field.type for field in msgspec.structs.fields(fields_type)}
    values, errors = {}, [field_error(name, "is required") for name in required if name not in body]
    for name, value in body.items():
        if name not in known:
            errors.append(field_error(name, f"is unknown; known are {', '.join(known)}"))
            continue
        try:
            values[name] = read_field(name, value, known[name])
        except ValueError as error:
            errors.append(field_error(name, str(error)))
    if errors:
        raise Invalid("; ".join(f"{error['field']} {error['message']}".strip() for error in errors) + ".", errors)
    return values


# ---- reading query strings


def read_boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("must be true or false")
    return text == "true"


def read_whole_number(text: str, least: int, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text) or not least <= int(text) <= most:
        raise ValueError(f"must be a whole number from {least} to {most}")
    return int(text)


def read_due_range(text: str) -> tuple[str, str] | str:
    """A day, a range of days open at either end (`2026-11-01..`), or `any` or `none`."""
    if text in ("any", "none"):
        return text
    first, dots, last = text.partition("..")
    days = [first, last if dots else first]
    for day in days:
        if day:
            if not DATE.fullmatch(day):
                raise ValueError("must be a day like 2026-11-22, a range like 2026-11-01..2026-11-30, any or none")
            datetime.date.fromisoformat(day)
    if not any(days):
        raise ValueError("must name a day")
    return days[0] or "0001-01-01", days[1] or "9999-12-31"


def read_words(text: str) -> tuple[str, ...]:
    words = tuple(fold(text).split())
    if not words or len(text) > 200:
        raise ValueError("must be 1 to 200 characters with a word in them")
    return words


def read_priorities(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[0-3](,[0-3])*", text):
        raise ValueError("must be 0, 1, 2 or 3, or several with commas between")
    return tuple(sorted({int(digit) for digit in text.split(",")}))


SORT_COLUMNS = {
    "order": "position",
    "created_at": "created_at",
    "updated_at": "updated_at",
    "due": "due_at",
    "priority": "priority",
    "title": "title_key",
}


def read_sort(text: str) -> tuple[str, bool]:
    if text.removeprefix("-") not in SORT_COLUMNS:
        raise ValueError(f"must be one of {', '.join(SORT_COLUMNS)}, with - in front for descending")
    return text.removeprefix("-"), text.startswith("-")


def read_cursor(text: str) -> list:
    """The inverse of `make_cursor`."""
    try:
        values = json.loads(base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4)))
        sort, value, last_id = values
        known = sort in (*SORT_COLUMNS, "name") and isinstance(last_id, str) and not text_fault(last_id)
        if known and isinstance(value, str if sort in ("title", "name") else (int, float)) and not json_fault(value):
            return values
    except (ValueError, TypeError, RecursionError):
        pass
    raise ValueError("is not what a Link header of this server gave")


def make_cursor(sort: str, value: Any, last_id: str) -> str:
    text = json.dumps([sort, value, last_id], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_text(text: str) -> str:
    if not text or len(text) > 200:
        raise ValueError("must be 1 to 200 characters")
    return text


# Every query parameter there is. A handler names those that it takes; all others are refused,
# since a mistyped filter on a bulk DELETE must never select everything.
PARAMETERS: dict[str, Callable[[str], Any]] = {
    "list": clean_id,
    "completed": read_boolean,
    "due": read_due_range,
    "tag": lambda tag: fold(clean_line(tag, 50)),
    "priority": read_priorities,
    "q": read_words,
    "deleted": read_boolean,
    "sort": read_sort,
    "limit": lambda text: read_whole_number(text, 1, 1000),
    "after": read_cursor,
    "since": lambda text: read_whole_number(text, 0, 2**63 - 1),
    "ttl": lambda text: read_whole_number(text, 1, 366 * 86_400),
    "prefix": read_text,
}
FILTERS = ("list", "completed", "due", "tag", "priority", "q", "deleted")


def read_query(query: str, allowed: Sequence[str]) -> dict[str, Any]:
    """Parse a query string; `tag` gives a list, every other parameter may come once.

    Raises Malformed with one entry for every parameter that is unknown, doubled or cannot be read.
    """
    if not query:
        return {}
    values: dict[str, Any] = {}
    errors = []
    try:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=50)
    except ValueError:
        raise Malformed("The query string is not percent-encoded UTF-8, or has over 50 parameters.") from None
    for name, text in pairs:
        try:
            if name not in allowed:
                raise ValueError(f"is unknown here; known are {', '.join(allowed) or 'none'}")
            if name in values and name != "tag":
                raise ValueError("comes twice")
            if fault := text_fault(text):
                raise ValueError(fault)
            value = PARAMETERS[name](text)
            values.setdefault(name, []).append(value) if name == "tag" else values.update({name: value})
        except ValueError as error:
            errors.append(field_error(name, str(error)))
    if errors:
        raise Malformed("; ".join(f"{error['field']} {error['message']}" for error in errors) + ".", errors)
    return values


def filter_from_query(query: Mapping[str, Any]) -> TodoFilter:
    return TodoFilter(
        list=query.get("list"),
        completed=query.get("completed"),
        due=query.get("due"),
        tags=tuple(query.get("tag", ())),
        priorities=query.get("priority", ()),
        words=query.get("q", ()),
        deleted=query.get("deleted", False),
    )


def page_from_query(query: Mapping[str, Any]) -> Page:
    """The page that a query asks for; raises Malformed for a cursor of another sort order."""
    sort, descending = query.get("sort", ("order", False))
    cursor = query.get("after")
    if cursor and cursor[0] != sort:
        message = f"belongs to sort={cursor[0]}"
        raise Malformed(f"after {message}.", [field_error("after", message)])
    return Page(sort, descending, query.get("limit", 200), (cursor[1], cursor[2]) if cursor else None)


# ---- names and validators


def clean_document_name(name: str) -> str:
    """A document's name in NFC; raises Invalid unless it is 1 to 200 letters, digits, `.`, `_` or `-`."""
    name = unicodedata.normalize("NFC", name)
    valid = all(character in "._-" or unicodedata.category(character)[0] in "LMN" for character in name)
    if not valid or not 1 <= len(name) <= 200 or name in (".", ".."):
        message = "must be 1 to 200 letters, digits, dots, underscores or hyphens"
        raise Invalid(f"The name {message}.", [field_error("name", message)])
    return name


def clean_record_key(key: str) -> str:
    """A record's key; raises Invalid unless it is 1 to 200 characters that can be printed."""
    if not 1 <= len(key) <= 200 or any(unicodedata.category(character)[0] == "C" for character in key):
        message = "must be 1 to 200 characters, none of them a control character"
        raise Invalid(f"The key {message}.", [field_error("key", message)])
    return key


def etag_matches(header: str, etag: str) -> bool:
    """Whether an If-Match or If-None-Match header names this tag (RFC 9110, section 8.8.3)."""
    return header.strip() == "*" or etag in re.findall(r'"[^"]*"', header)


def check_precondition(if_match: str | None, etag: str) -> None:
    if if_match is not None and not etag_matches(if_match, etag):
        raise PreconditionFailed(f"It has changed: its ETag is now {etag}. Read it again, then decide.")


# ---- changing to-dos and lists

TODO_UNDOABLE = "title completed completed_at order notes due priority tags list deleted_at".split()
LIST_UNDOABLE = "title order deleted_at".split()


def changed_todo(before: Todo, fields: Mapping[str, Any], at: str) -> Todo:
    """The to-do with these fields set; completing and reopening also set `completed_at`."""
    values = dict(fields)
    if "completed" in values and values["completed"] != before.completed:
        values["completed_at"] = at if values["completed"] else None
    after = msgspec.structs.replace(before, **values)
    return before if after == before else msgspec.structs.replace(after, updated_at=at)


def reverted(current: Any, before: Any, after: Any, fields: Iterable[str], at: str) -> Any:
    """`current` with the fields that went from `before` to `after` set back.

    Raises Conflict if somebody has since changed one of those fields to something else.
    """
    altered = [name for name in fields if getattr(before, name) != getattr(after, name)]
    for name in altered:
        if getattr(current, name) != getattr(after, name):
            raise Conflict(f"{current.title!r} has been changed since ({name}), so nothing was undone.")
    values = {name: getattr(before, name) for name in altered}
    return msgspec.structs.replace(current, updated_at=at, **values)


def least_gap(order: float) -> float:
    """The distance below which neighbours are moved away: far above what a double can still halve."""
    return max(1e-6, abs(order) * 1e-12)


# ==== databases: may call the domain's errors; know nothing of to-dos ===========================

MOST_WAITING = 10_000  # writes; more are refused at once instead of growing the queue without end
MOST_IN_GROUP = 64  # writes committed together
LOCK_WAIT = 1.0  # seconds to wait for another process's lock


def named(arguments: Sequence[Any]) -> dict[str, Any]:
    """Positional arguments for `$1`, `$2`…: SQLite takes them for named parameters."""
    return {str(position): value for position, value in enumerate(arguments, 1)}


class SQLiteTransaction:
    """What a write may do inside its transaction; the same two methods for every database."""

    def __init__(self, connection: aiosqlite.Connection):
        self._connection = connection

    async def fetch(self, sql: str, *arguments: Any) -> list[tuple]:
        """Run one statement and give its rows."""
        return list(await self._connection.execute_fetchall(sql, named(arguments)))

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one statement for every row of arguments."""
        await self._connection.executemany(sql, [named(row) for row in rows])


class Write(NamedTuple):
    """A write that waits for its turn: what to do, what to call once it is committed, who waits."""

    operation: Callable[[SQLiteTransaction], Awaitable[Any]]
    committed: Callable[[Any], None]
    future: asyncio.Future


class SQLiteDatabase:
    """One SQLite file (or memory), written by one task and read by connections of their own.

    Writes that wait are committed together, each in its own savepoint, so one that fails fails
    alone; `synchronous=FULL` makes the commit durable before anybody is told of it. Handlers never
    share a connection, where one's rollback would undo another's write.
    """

    def __init__(self, path: str | None, readers: int = 2):
        self.path = path
        self.name = f"SQLite {path}" if path else "SQLite in memory"
        self._reader_count = readers if path else 0
        self._idle_readers: asyncio.LifoQueue[aiosqlite.Connection] = asyncio.LifoQueue()
        self._readers: list[aiosqlite.Connection] = []
        self._writer: aiosqlite.Connection | None = None
        self._waiting: asyncio.Queue[Write] = asyncio.Queue(MOST_WAITING)
        self._writer_task: asyncio.Task | None = None

    async def open(self) -> None:
        """Open the file, making it if need be. Raises Misconfigured if it cannot be used."""
        if sqlite3.sqlite_version_info < (3, 35):
            raise Misconfigured(f"SQLite {sqlite3.sqlite_version} is too old: 3.35 or later is needed")
        self._idle_readers, self._waiting = asyncio.LifoQueue(), asyncio.Queue(MOST_WAITING)
        try:
            self._writer = await self._connect(":memory:" if self.path is None else self.path)
            await self._writer.execute_fetchall("PRAGMA journal_mode=WAL")
            await self._writer.execute_fetchall("PRAGMA synchronous=FULL")
            # journal_mode=WAL alone succeeds on a file that cannot be written.
            await self._writer.execute_fetchall("BEGIN IMMEDIATE")
            await self._writer.execute_fetchall("ROLLBACK")
            await self._writer.execute_fetchall("PRAGMA busy_timeout=0")  # _begin() waits, without blocking
            for _ in range(self._reader_count):
                reader = await self._connect(self.path)
                self._readers.append(reader)
                self._idle_readers.put_nowait(reader)
                await reader.execute_fetchall("PRAGMA query_only=ON")
        except sqlite3.Error as error:
            await self.close()
            if "locked" in str(error):
                raise Unavailable(f"{self.path} is locked by another process.") from error
            raise Misconfigured(f"DATABASE_URL: cannot use {self.path}: {error}") from error
        self._writer_task = asyncio.ensure_future(self._write_forever())

    async def _connect(self, path: str) -> aiosqlite.Connection:
        connection = aiosqlite.connect(path, timeout=LOCK_WAIT, isolation_level=None)
        # aiosqlite's thread is no daemon since 0.22: a program that embeds the app and ends without
        # lifespan() would hang at its exit. Every acknowledged write is committed, so none is lost.
        getattr(connection, "_thread", connection).daemon = True
        await connection
        await connection.execute_fetchall("PRAGMA foreign_keys=ON")
        return connection

    async def close(self) -> None:
        """Finish the writes that wait, then close every connection."""
        if self._writer_task:
            await self._waiting.join()
            self._writer_task.cancel()
            await asyncio.wait([self._writer_task])
        for connection in [*self._readers, self._writer]:
            if connection:
                await connection.close()
        self._readers, self._writer, self._writer_task = [], None, None

    async def fetch(self, sql: str, *arguments: Any) -> list[tuple]:
        """Read committed rows. Raises Unavailable if the database cannot be read."""
        if not self._reader_count:  # memory has one connection only, so reads take their turn with writes
            return await self.transaction(lambda transaction: transaction.fetch(sql, *arguments))
        reader = await self._idle_readers.get()
        try:
            return list(await reader.execute_fetchall(sql, named(arguments)))
        except (sqlite3.Error, ValueError) as error:
            raise self._unavailable(error) from error
        finally:
            self._idle_readers.put_nowait(reader)

    async def transaction(self, operation: Callable, committed: Callable[[Any], None] = lambda answer: None) -> Any:
        """Run `await operation(transaction)` as one transaction and give its answer.

        `committed(answer)` is called right after the commit, in the order of commits, whether or
        not the caller still waits. Raises what the operation raises, with nothing written, or
        Unavailable if the database is locked by another process, full or broken.
        """
        write = Write(operation, committed, asyncio.get_running_loop().create_future())
        try:
            if self._writer_task is None:
                raise Unavailable("The database is closed.")
            self._waiting.put_nowait(write)
        except asyncio.QueueFull:
            raise Unavailable("Too many writes are waiting.") from None
        return await write.future

    async def _write_forever(self) -> None:
        while True:
            group = [await self._waiting.get()]
            while len(group) < MOST_IN_GROUP and not self._waiting.empty():
                group.append(self._waiting.get_nowait())
            try:
                await self._commit_group([write for write in group if not write.future.cancelled()])
            finally:
                for _ in group:
                    self._waiting.task_done()

    async def _commit_group(self, group: list[Write]) -> None:
        """Run a group of writes in one transaction and tell each how it went, after the commit."""
        outcomes: list[tuple[Write, Any, BaseException | None]] = []
        try:
            await self._begin()
            for write in group:
                outcomes.append((write, *await self._run_in_savepoint(write.operation)))
            await self._writer.execute_fetchall("COMMIT")
        except Exception as error:
            failure = error if isinstance(error, TodoError) else self._unavailable(error)
            await self._roll_back()
            outcomes = [(write, None, failure) for write in group]
        for write, answer, error in outcomes:
            if error is None:
                self._call(write.committed, answer)
            if not write.future.done():
                write.future.set_exception(error) if error else write.future.set_result(answer)

    async def _begin(self) -> None:
        """Take the write lock; if another process has it, try for a second, then raise Unavailable."""
        give_up = time.monotonic() + LOCK_WAIT
        while True:
            try:
                await self._writer.execute_fetchall("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > give_up:
                    raise
            # Jitter, or two processes that wait would meet again at every try.
            await asyncio.sleep(random.uniform(0.005, 0.025))

    async def _run_in_savepoint(self, operation: Callable) -> tuple[Any, BaseException | None]:
        await self._writer.execute_fetchall("SAVEPOINT write")
        try:
            answer = await operation(SQLiteTransaction(self._writer))
        except Exception as error:
            if not self._writer.in_transaction:
                raise  # SQLite itself has undone the whole group, as it does when the disk is full
            await self._writer.execute_fetchall("ROLLBACK TO write")
            await self._writer.execute_fetchall("RELEASE write")
            return None, self._unavailable(error) if isinstance(error, sqlite3.Error) else error
        await self._writer.execute_fetchall("RELEASE write")
        return answer, None

    async def _roll_back(self) -> None:
        try:
            if self._writer.in_transaction:
                await self._writer.execute_fetchall("ROLLBACK")
        except Exception:
            LOG.exception("rolling back failed")

    @staticmethod
    def _call(committed: Callable[[Any], None], answer: Any) -> None:
        try:
            committed(answer)
        except Exception:
            LOG.exception("a listener failed after a commit")

    def _unavailable(self, error: BaseException) -> Unavailable:
        LOG.warning("%s: %s", self.name, error, exc_info=not isinstance(error, sqlite3.OperationalError))
        if "locked" in str(error):
            return Unavailable("Another process is writing to the database. Nothing was changed; try again.")
        return Unavailable("The database cannot be used right now. Nothing was changed; try again.")


def open_database(url: str) -> SQLiteDatabase:
    """The database that a checked DATABASE_URL names; not yet opened."""
    return SQLiteDatabase(urllib.parse.unquote(url.removeprefix("sqlite://")[1:]) or None)


# ==== stores: may call databases and domain =====================================================

# One entry a version of the schema; never change one that was released, append another.
MIGRATIONS = (
    """
    CREATE TABLE users (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, created_at BIGINT NOT NULL, revision BIGINT NOT NULL);
    CREATE TABLE lists (
        id TEXT PRIMARY KEY, owner_id TEXT NOT NULL REFERENCES users(id), title TEXT NOT NULL,
        position DOUBLE PRECISION NOT NULL, inbox BIGINT NOT NULL, created_at BIGINT NOT NULL,
        updated_at BIGINT NOT NULL, deleted_at BIGINT, revision BIGINT NOT NULL);
    CREATE UNIQUE INDEX one_inbox ON lists (owner_id) WHERE inbox = 1;
    CREATE INDEX lists_by_owner ON lists (owner_id, position, id);
    CREATE TABLE todos (
        id TEXT PRIMARY KEY, owner_id TEXT NOT NULL REFERENCES users(id),
        list_id TEXT NOT NULL REFERENCES lists(id), title TEXT NOT NULL, completed_at BIGINT,
        position DOUBLE PRECISION NOT NULL, notes TEXT NOT NULL, due TEXT, priority BIGINT NOT NULL,
        tags TEXT NOT NULL, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, deleted_at BIGINT,
        revision BIGINT NOT NULL, due_at BIGINT NOT NULL, title_key TEXT NOT NULL, search TEXT NOT NULL,
        tag_keys TEXT NOT NULL);
    CREATE INDEX todos_by_list ON todos (list_id, position, id) WHERE deleted_at IS NULL;
    CREATE INDEX todos_by_owner ON todos (owner_id, position, id) WHERE deleted_at IS NULL;
    CREATE INDEX todos_by_due ON todos (owner_id, due_at, id) WHERE deleted_at IS NULL;
    CREATE INDEX todos_in_trash ON todos (owner_id, deleted_at, id) WHERE deleted_at IS NOT NULL;
    CREATE TABLE changes (
        revision BIGINT PRIMARY KEY, batch TEXT NOT NULL, undoes TEXT, at BIGINT NOT NULL, user_id TEXT,
        owner_id TEXT NOT NULL, list_id TEXT NOT NULL, from_list_id TEXT NOT NULL, todo_id TEXT,
        action TEXT NOT NULL, before_image TEXT NOT NULL, after_image TEXT NOT NULL);
    CREATE INDEX changes_by_owner ON changes (owner_id, revision);
    CREATE INDEX changes_by_todo ON changes (todo_id, revision);
    CREATE INDEX changes_by_batch ON changes (batch);
    CREATE INDEX changes_by_undone ON changes (undoes) WHERE undoes IS NOT NULL;
    CREATE TABLE idempotency_keys (
        user_id TEXT NOT NULL, key TEXT NOT NULL, fingerprint TEXT NOT NULL, answer TEXT NOT NULL,
        at BIGINT NOT NULL, PRIMARY KEY (user_id, key));
    CREATE TABLE documents (
        owner_id TEXT NOT NULL REFERENCES users(id), name TEXT NOT NULL, body TEXT NOT NULL, size BIGINT NOT NULL,
        etag TEXT NOT NULL, updated_at BIGINT NOT NULL, PRIMARY KEY (owner_id, name));
    """,
)

TODO_COLUMNS = (
    "id, list_id, title, completed_at, position, notes, due, priority, tags,"
    " created_at, updated_at, deleted_at, revision"
)
SAVE_TODO = f"""
    INSERT INTO todos ({TODO_COLUMNS}, owner_id, due_at, title_key, search, tag_keys)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
    ON CONFLICT (id) DO UPDATE SET list_id = excluded.list_id, title = excluded.title,
        completed_at = excluded.completed_at, position = excluded.position, notes = excluded.notes,
        due = excluded.due, priority = excluded.priority, tags = excluded.tags, updated_at = excluded.updated_at,
        deleted_at = excluded.deleted_at, revision = excluded.revision, due_at = excluded.due_at,
        title_key = excluded.title_key, search = excluded.search, tag_keys = excluded.tag_keys
    WHERE todos.owner_id = excluded.owner_id"""
LIST_COLUMNS = "id, title, position, inbox, created_at, updated_at, deleted_at, revision"
SAVE_LIST = f"""
    INSERT INTO lists ({LIST_COLUMNS}, owner_id) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    ON CONFLICT (id) DO UPDATE SET title = excluded.title, position = excluded.position,
        updated_at = excluded.updated_at, deleted_at = excluded.deleted_at, revision = excluded.revision
    WHERE lists.owner_id = excluded.owner_id"""
CHANGE_COLUMNS = "revision, batch, at, user_id, list_id, todo_id, action, before_image, after_image"
SAVE_CHANGE = f"""
    INSERT INTO changes ({CHANGE_COLUMNS}, undoes, owner_id, from_list_id)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"""
IN_A_LIVING_LIST = "list_id NOT IN (SELECT id FROM lists WHERE owner_id = $1 AND deleted_at IS NOT NULL)"


def todo_from_row(row: Sequence[Any]) -> Todo:
    deleted_at = row[11]
    return Todo(
        id=row[0],
        list=row[1],
        title=row[2],
        completed=row[3] is not None,
        completed_at=None if row[3] is None else timestamp(row[3]),
        order=row[4],
        notes=row[5],
        due=row[6],
        priority=row[7],
        tags=json.loads(row[8]),
        created_at=timestamp(row[9]),
        updated_at=timestamp(row[10]),
        deleted_at=None if deleted_at is None else timestamp(deleted_at),
        revision=row[12],
    )


def row_from_todo(todo: Todo, owner_id: str) -> tuple:
    """The arguments of SAVE_TODO, with the columns that only sorting and searching use."""
    tag_keys = "".join(f"\n{fold(tag)}" for tag in todo.tags) + "\n"
    return (
        *(todo.id, todo.list, todo.title, milliseconds(todo.completed_at), todo.order, todo.notes, todo.due),
        *(todo.priority, json.dumps(todo.tags, ensure_ascii=False), milliseconds(todo.created_at)),
        *(milliseconds(todo.updated_at), milliseconds(todo.deleted_at), todo.revision, owner_id),
        *(due_sort_key(todo.due), fold(todo.title)[:100], f"{fold(todo.title)}\n{fold(todo.notes)}", tag_keys),
    )


def sort_value(todo: Todo, sort: str) -> Any:
    """What a to-do is sorted by, as its column holds it."""
    if sort == "title":
        return fold(todo.title)[:100]
    if sort == "due":
        return due_sort_key(todo.due)
    value = getattr(todo, sort)
    return milliseconds(value) if sort.endswith("_at") else value


def list_from_row(row: Sequence[Any]) -> TodoList:
    return TodoList(
        id=row[0],
        title=row[1],
        order=row[2],
        inbox=bool(row[3]),
        created_at=timestamp(row[4]),
        updated_at=timestamp(row[5]),
        deleted_at=None if row[6] is None else timestamp(row[6]),
        revision=row[7],
    )


def row_from_list(todo_list: TodoList, owner_id: str) -> tuple:
    return (
        *(todo_list.id, todo_list.title, todo_list.order, int(todo_list.inbox), milliseconds(todo_list.created_at)),
        *(milliseconds(todo_list.updated_at), milliseconds(todo_list.deleted_at), todo_list.revision, owner_id),
    )


def change_from_row(row: Sequence[Any]) -> Change:
    return Change(
        revision=row[0],
        batch=row[1],
        at=timestamp(row[2]),
        user=row[3],
        list=row[4],
        todo=row[5],
        action=row[6],
        before=msgspec.Raw(row[7].encode()),
        after=msgspec.Raw(row[8].encode()),
    )


def escape_like(text: str) -> str:
    return re.sub("([!%_])", r"!\1", text)


class TodoQueries:
    """Reads what one user may see, through a database or inside a transaction: both have `fetch`."""

    def __init__(self, source: Any, user: User):
        self.source, self.user = source, user

    async def fetch(self, sql: str, *arguments: Any) -> list[tuple]:
        """Run a statement in which `$1` is the caller, and the arguments follow from `$2`."""
        return await self.source.fetch(sql, self.user.id, *arguments)

    async def revision(self, list_id: str | None = None) -> int:
        """The revision of the newest change to a list, or to any list; NotFound if there is no such list."""
        if list_id is None:
            return (await self.fetch("SELECT revision FROM users WHERE id = $1"))[0][0]
        return (await self.todo_list(list_id)).revision

    async def todo(self, todo_id: str, deleted: bool = False) -> Todo:
        """One to-do, outside the trash or in it. Raises NotFound."""
        rows = await self.fetch(
            f"SELECT {TODO_COLUMNS} FROM todos WHERE owner_id = $1 AND id = $2 AND {IN_A_LIVING_LIST}"
            f" AND deleted_at IS {'NOT NULL' if deleted else 'NULL'}",
            todo_id,
        )
        if not rows:
            raise NotFound("There is no such to-do." if not deleted else "There is no such to-do in the trash.")
        return todo_from_row(rows[0])

    def _conditions(self, which: TodoFilter) -> tuple[list[str], list[Any]]:
        """SQL conditions for a filter and their arguments, `$1` being the caller."""
        arguments: list[Any] = []

        def bound(value: Any) -> str:
            arguments.append(value)
            return f"${len(arguments) + 1}"

        if which.list:
            # The right to the list is in the same statement, so that its index can serve it alone.
            mine = f"SELECT id FROM lists WHERE id = {bound(which.list)} AND owner_id = $1 AND deleted_at IS NULL"
            conditions = [f"list_id = ({mine})"]
        else:
            conditions = ["owner_id = $1", IN_A_LIVING_LIST]
        conditions.append("deleted_at IS NOT NULL" if which.deleted else "deleted_at IS NULL")
        if which.completed is not None:
            conditions.append("completed_at IS NOT NULL" if which.completed else "completed_at IS NULL")
        if which.due in ("any", "none"):
            conditions.append("due IS NOT NULL" if which.due == "any" else "due IS NULL")
        elif which.due:
            conditions.append(f"substr(due, 1, 10) BETWEEN {bound(which.due[0])} AND {bound(which.due[1])}")
        if which.priorities:
            conditions.append(f"priority IN ({', '.join(bound(priority) for priority in which.priorities)})")
        for tag in which.tags:
            conditions.append(f"tag_keys LIKE {bound(chr(10).join(['%', escape_like(tag), '%']))} ESCAPE '!'")
        for word in which.words:
            conditions.append(f"search LIKE {bound('%' + escape_like(word) + '%')} ESCAPE '!'")
        return conditions, arguments

    async def todos(self, which: TodoFilter, page: Page | None = None) -> list[Todo]:
        """The to-dos that a filter selects: all of them, or one page and one more if there are more."""
        conditions, arguments = self._conditions(which)
        column, direction, tail = "position", "ASC", ""
        if page:
            column, direction = SORT_COLUMNS[page.sort], "DESC" if page.descending else "ASC"
            if page.after:
                comparison = "<" if page.descending else ">"
                conditions.append(f"({column}, id) {comparison} (${len(arguments) + 2}, ${len(arguments) + 3})")
                arguments += page.after
            tail = f" LIMIT {page.limit + 1}"
        rows = await self.fetch(
            f"SELECT {TODO_COLUMNS} FROM todos WHERE {' AND '.join(conditions)}"
            f" ORDER BY {column} {direction}, id {direction}{tail}",
            *arguments,
        )
        return [todo_from_row(row) for row in rows]

    async def todo_list(self, list_id: str, deleted: bool = False) -> TodoList:
        """One list, outside the trash or in it. Raises NotFound."""
        rows = await self.fetch(
            f"SELECT {LIST_COLUMNS} FROM lists WHERE owner_id = $1 AND id = $2"
            f" AND deleted_at IS {'NOT NULL' if deleted else 'NULL'}",
            list_id,
        )
        if not rows:
            raise NotFound("There is no such list.")
        return list_from_row(rows[0])

    async def lists(self, deleted: bool = False) -> list[TodoList]:
        """All lists, the Inbox first, each with the number of its to-dos."""
        rows = await self.fetch(
            f"SELECT {LIST_COLUMNS} FROM lists WHERE owner_id = $1"
            f" AND deleted_at IS {'NOT NULL' if deleted else 'NULL'} ORDER BY inbox DESC, position, id"
        )
        counts = {
            list_id: (total - completed, completed)
            for list_id, total, completed in await self.fetch(
                "SELECT list_id, count(*), count(completed_at) FROM todos"
                " WHERE owner_id = $1 AND deleted_at IS NULL GROUP BY list_id"
            )
        }
        found = []
        for todo_list in map(list_from_row, rows):
            active, completed = counts.get(todo_list.id, (0, 0))
            found.append(msgspec.structs.replace(todo_list, active=active, completed=completed))
        return found

    async def inbox(self) -> str:
        """The id of the list that to-dos go to when none is named."""
        return (await self.fetch("SELECT id FROM lists WHERE owner_id = $1 AND inbox = 1"))[0][0]

    async def last_position(self, list_id: str) -> float:
        """The greatest `order` in a list; 0 if it is empty."""
        rows = await self.fetch(
            "SELECT max(position) FROM todos WHERE owner_id = $1 AND list_id = $2 AND deleted_at IS NULL", list_id
        )
        return rows[0][0] or 0.0

    async def neighbours(self, todo: Todo, below: bool, most: int) -> list[Todo]:
        """The to-dos next to one in its list, nearest first; those with the same order are left out."""
        comparison, direction = ("<", "DESC") if below else (">", "ASC")
        rows = await self.fetch(
            f"SELECT {TODO_COLUMNS} FROM todos WHERE owner_id = $1 AND list_id = $2 AND deleted_at IS NULL"
            f" AND position {comparison} $3 AND id <> $4 ORDER BY position {direction}, id {direction} LIMIT {most}",
            *(todo.list, todo.order, todo.id),
        )
        return [todo_from_row(row) for row in rows]

    async def changes(self, since: int, list_id: str | None, most: int) -> list[Change]:
        """Changes after a revision, oldest first, to one list or to all."""
        of_list = " AND (list_id = $3 OR from_list_id = $3)" if list_id else ""
        rows = await self.fetch(
            f"SELECT {CHANGE_COLUMNS} FROM changes WHERE owner_id = $1 AND revision > $2{of_list}"
            f" ORDER BY revision LIMIT {most}",
            *((since, list_id) if list_id else (since,)),
        )
        return [change_from_row(row) for row in rows]

    async def history(self, todo_id: str) -> list[Change]:
        """All changes to one to-do, newest first. Raises NotFound if it never was."""
        rows = await self.fetch(
            f"SELECT {CHANGE_COLUMNS} FROM changes WHERE owner_id = $1 AND todo_id = $2"
            " ORDER BY revision DESC LIMIT 1000",
            todo_id,
        )
        if not rows:
            raise NotFound("There is no such to-do.")
        return [change_from_row(row) for row in rows]

    async def last_batch(self) -> str:
        """The caller's newest batch that is neither an undo nor undone. Raises Conflict if there is none."""
        rows = await self.fetch(
            "SELECT batch FROM changes WHERE owner_id = $1 AND user_id = $1 AND undoes IS NULL AND action <> 'purge'"
            " AND batch NOT IN (SELECT undoes FROM changes WHERE undoes IS NOT NULL) ORDER BY revision DESC LIMIT 1"
        )
        if not rows:
            raise Conflict("There is nothing to undo.")
        return rows[0][0]

    async def batch_todos(self, batch: str) -> dict[str, Todo]:
        """The to-dos that a batch changed, as they are now, in the trash or not, by id."""
        rows = await self.fetch(
            f"SELECT {TODO_COLUMNS} FROM todos WHERE owner_id = $1"
            " AND id IN (SELECT todo_id FROM changes WHERE batch = $2 AND todo_id IS NOT NULL)",
            batch,
        )
        return {row[0]: todo_from_row(row) for row in rows}

    async def todo_of_this_id(self, todo_id: str) -> Todo | None:
        """The caller's to-do of this id, in the trash or not. Raises Conflict if it is not the caller's."""
        rows = await self.fetch(
            f"SELECT {TODO_COLUMNS}, owner_id = $1 AND {IN_A_LIVING_LIST} FROM todos WHERE id = $2", todo_id
        )
        if rows and not rows[0][-1]:
            raise Conflict("This id is in use already. Make a new UUID.")
        return todo_from_row(rows[0]) if rows else None

    async def batch_changes(self, batch: str) -> tuple[list[Change], bool]:
        """A batch's changes, newest first, and whether it is itself an undo. Raises NotFound."""
        rows = await self.fetch(
            f"SELECT {CHANGE_COLUMNS}, undoes FROM changes WHERE owner_id = $1 AND user_id = $1 AND batch = $2"
            " ORDER BY revision DESC",
            batch,
        )
        if not rows:
            raise NotFound("There is no such batch of yours.")
        return [change_from_row(row) for row in rows], rows[0][-1] is not None


def image(thing: Todo | TodoList | None) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(thing))


class TodoBatch(TodoQueries):
    """One write: collects what becomes of to-dos and lists, and writes it with its changes at the end.

    It begins by taking the database's revision row, so that on every engine writers take turns and
    revisions have neither gaps nor doubles.
    """

    def __init__(self, transaction: Any, user: User, at: int):
        super().__init__(transaction, user)
        self.id, self.at, self.undoes = uuid7(), timestamp(at), None
        self.changes: list[Change] = []
        self._rows: list[tuple[Change, str]] = []
        self._todos: list[Todo] = []
        self._lists: list[TodoList] = []
        self._purged_todos: list[str] = []
        self._revision = 0

    async def begin(self) -> None:
        """Take the write lock and read the revision."""
        rows = await self.source.fetch("UPDATE counters SET value = value WHERE name = 'revision' RETURNING value")
        self._revision = rows[0][0]

    def _record(self, action: str, before: Todo | TodoList | None, after: Todo | TodoList | None) -> Any:
        """Append a change and give `after` with its revision."""
        self._revision += 1
        either = after or before
        if after:
            after = msgspec.structs.replace(after, revision=self._revision)
        is_todo = isinstance(either, Todo)
        change = Change(
            revision=self._revision,
            batch=self.id,
            at=self.at,
            user=self.user.id,
            list=either.list if is_todo else either.id,
            todo=either.id if is_todo else None,
            action=action,
            before=image(before if action != "purge" else None),
            after=image(after),
        )
        self.changes.append(change)
        self._rows.append((change, before.list if before and is_todo else change.list))
        return after

    @staticmethod
    def _action(before: Todo | TodoList | None, after: Todo | TodoList) -> str:
        if before is None:
            return "create"
        if bool(before.deleted_at) != bool(after.deleted_at):
            return "delete" if after.deleted_at else "restore"
        return "update"

    def save_todo(self, before: Todo | None, after: Todo, action: str | None = None) -> Todo:
        """Write what became of a to-do; nothing if nothing did. Gives it with its new revision."""
        if after == before:
            return before
        after = self._record(action or self._action(before, after), before, after)
        self._todos.append(after)
        return after

    def save_list(self, before: TodoList | None, after: TodoList) -> TodoList:
        """Write what became of a list; nothing if nothing did. Gives it with its new revision."""
        if after == before:
            return before
        after = self._record(self._action(before, after), before, after)
        self._lists.append(after)
        return after

    def purge_todo(self, todo: Todo) -> None:
        """Remove a to-do and its history for good; the log keeps only that it was."""
        self._record("purge", todo, None)
        self._purged_todos.append(todo.id)

    async def purge_list(self, todo_list: TodoList) -> None:
        """Remove a list with all its to-dos and their history for good."""
        self._record("purge", todo_list, None)
        for table in ("todos", "changes"):
            await self.fetch(f"DELETE FROM {table} WHERE owner_id = $1 AND list_id = $2", todo_list.id)
        await self.fetch("DELETE FROM lists WHERE owner_id = $1 AND id = $2", todo_list.id)

    async def finish(self) -> None:
        """Write everything collected, in as many statements as there are tables."""
        if not self.changes:
            return
        many, owner_id = self.source.execute_many, self.user.id
        await many(SAVE_LIST, [row_from_list(todo_list, owner_id) for todo_list in self._lists])
        await many(SAVE_TODO, [row_from_todo(todo, owner_id) for todo in self._todos])
        for table, column in (("changes", "todo_id"), ("todos", "id")):
            sql = f"DELETE FROM {table} WHERE {column} = $1 AND owner_id = $2"
            await many(sql, [(todo_id, owner_id) for todo_id in self._purged_todos])
        touched = {}
        for change, from_list in self._rows:
            touched[from_list] = touched[change.list] = change.revision
        await many("UPDATE lists SET revision = $2 WHERE id = $1", touched.items())
        await many(SAVE_CHANGE, [self._row(change, from_list) for change, from_list in self._rows])
        await self.fetch("UPDATE users SET revision = $2 WHERE id = $1", self._revision)
        await self.source.fetch("UPDATE counters SET value = $1 WHERE name = 'revision'", self._revision)

    def _row(self, change: Change, from_list: str) -> tuple:
        return (
            *(change.revision, change.batch, milliseconds(change.at), change.user, change.list, change.todo),
            *(change.action, bytes(change.before).decode(), bytes(change.after).decode()),
            *(self.undoes, self.user.id, from_list),
        )


class Written(NamedTuple):
    """What a write answers: the operation's result, its batch (None if nothing changed), its changes."""

    result: Any
    batch: str | None
    changes: list[Change]


class Repeat(NamedTuple):
    """An Idempotency-Key, a fingerprint of the request that it came with, and the type of its answer."""

    key: str
    fingerprint: str
    answer_type: Any


class TodoStore:
    """Users, lists, to-dos and the change log in a database."""

    def __init__(self, database: SQLiteDatabase):
        self.database = database
        self._users: dict[str, User] = {}

    async def open(self) -> None:
        """Open the database and bring its schema up to date. Raises Misconfigured or Unavailable."""
        await self.database.open()
        try:
            await self.database.transaction(self._migrate)
        except BaseException:
            await self.database.close()
            raise

    async def _migrate(self, transaction: Any) -> None:
        await transaction.fetch("CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value BIGINT NOT NULL)")
        rows = await transaction.fetch("SELECT value FROM counters WHERE name = 'schema'")
        version = rows[0][0] if rows else 0
        if version > len(MIGRATIONS):
            raise Misconfigured(
                f"DATABASE_URL: {self.database.name} was written by a newer tornado_todo"
                f" (schema {version}, this one knows {len(MIGRATIONS)}): upgrade tornado_todo"
            )
        for statement in ";".join(MIGRATIONS[version:]).split(";"):
            if statement.strip():
                await transaction.fetch(statement)
        if version == 0:
            await transaction.fetch("INSERT INTO counters (name, value) VALUES ('schema', 0), ('revision', 0)")
        await transaction.fetch("UPDATE counters SET value = $1 WHERE name = 'schema'", len(MIGRATIONS))

    async def close(self) -> None:
        """Close the database."""
        await self.database.close()
        self._users.clear()

    async def user(self, name: str) -> User:
        """The user of this name, made with an Inbox when first seen."""
        user = self._users.get(name)
        if user is None:
            user = await self.database.transaction(functools.partial(self._find_or_make_user, name))
            if len(self._users) >= 10_000:
                self._users.clear()
            self._users[name] = user
        return user

    @staticmethod
    async def _find_or_make_user(name: str, transaction: Any) -> User:
        now = now_milliseconds()
        await transaction.fetch(
            "INSERT INTO users (id, name, created_at, revision) VALUES ($1, $2, $3, 0) ON CONFLICT (name) DO NOTHING",
            *(uuid7(), name, now),
        )
        user = User((await transaction.fetch("SELECT id FROM users WHERE name = $1", name))[0][0], name)
        if not await transaction.fetch("SELECT id FROM lists WHERE owner_id = $1 AND inbox = 1", user.id):
            at = timestamp(now)
            inbox = TodoList(id=uuid7(), title="Inbox", order=0.0, inbox=True, created_at=at, updated_at=at)
            await transaction.fetch(SAVE_LIST, *row_from_list(inbox, user.id))
        return user

    def queries(self, user: User) -> TodoQueries:
        """Reads for this user."""
        return TodoQueries(self.database, user)

    async def write(
        self,
        user: User,
        operation: Callable[[TodoBatch], Awaitable[Any]],
        committed: Callable[[Written], None],
        repeat: Repeat | None = None,
    ) -> Written:
        """Run `await operation(batch)` as one transaction, with its changes.

        With `repeat`, a request that was answered before is answered so again and writes nothing;
        raises Invalid if the key came with another request.
        """

        async def run(transaction: Any) -> Written:
            batch = TodoBatch(transaction, user, now_milliseconds())
            await batch.begin()
            if repeat and (earlier := await self._earlier_answer(batch, repeat)):
                return earlier
            result = await operation(batch)
            await batch.finish()
            written = Written(result, batch.id if batch.changes else None, batch.changes)
            if repeat:
                await self._keep_answer(batch, repeat, written)
            return written

        return await self.database.transaction(run, committed)

    @staticmethod
    async def _earlier_answer(batch: TodoBatch, repeat: Repeat) -> Written | None:
        rows = await batch.fetch(
            "SELECT fingerprint, answer FROM idempotency_keys WHERE user_id = $1 AND key = $2", repeat.key
        )
        if not rows:
            return None
        fingerprint, answer = rows[0]
        if fingerprint != repeat.fingerprint:
            message = "was used for another request: use a new one for this"
            raise Invalid(f"Idempotency-Key {message}.", [field_error("Idempotency-Key", message)])
        result, batch_id = msgspec.json.decode(answer, type=tuple[repeat.answer_type, str | None])
        return Written(result, batch_id, [])

    @staticmethod
    async def _keep_answer(batch: TodoBatch, repeat: Repeat, written: Written) -> None:
        answer = msgspec.json.encode((written.result, written.batch)).decode()
        await batch.fetch(
            "INSERT INTO idempotency_keys (user_id, key, fingerprint, answer, at) VALUES ($1, $2, $3, $4, $5)",
            *(repeat.key, repeat.fingerprint, answer, milliseconds(batch.at)),
        )

    async def expired(self, before: int) -> list[tuple[User, list[Todo], list[TodoList]]]:
        """Whose trash has what in it since before a time (epoch milliseconds)."""
        rows = await self.database.fetch(
            "SELECT id, name FROM users WHERE id IN (SELECT owner_id FROM todos WHERE deleted_at < $1"
            " UNION SELECT owner_id FROM lists WHERE deleted_at < $1)",
            before,
        )
        found = []
        for user in (User(*row) for row in rows):
            queries, moment = self.queries(user), timestamp(before)
            todos = [todo for todo in await queries.todos(TodoFilter(deleted=True)) if todo.deleted_at < moment]
            lists = [entry for entry in await queries.lists(deleted=True) if entry.deleted_at < moment]
            found.append((user, todos, lists))
        return found

    async def forget_answers(self, before: int) -> None:
        """Forget the idempotency keys from before a time (epoch milliseconds)."""
        await self.database.transaction(
            lambda transaction: transaction.fetch("DELETE FROM idempotency_keys WHERE at < $1", before)
        )


class Document(NamedTuple):
    """A JSON document's text in UTF-8, and its validator."""

    body: bytes
    etag: str


class DocumentEntry(NamedTuple):
    """A document as the listing shows it; `size` in bytes, `updated_at` in epoch milliseconds."""

    name: str
    size: int
    updated_at: int


def missing_document(name: str) -> NotFound:
    return NotFound(f"Missing collection: {name}")


class SQLDocumentStore:
    """JSON documents by name, each user's apart, in a table beside the to-dos."""

    def __init__(self, database: SQLiteDatabase):
        self.database = database
        self.name = database.name

    async def ping(self) -> None:
        """Raise unless the store can be read."""
        await self.database.fetch("SELECT 1 FROM documents LIMIT 1")

    async def get(self, owner_id: str, name: str) -> Document:
        """One document. Raises NotFound."""
        rows = await self.database.fetch(
            "SELECT body, etag FROM documents WHERE owner_id = $1 AND name = $2", owner_id, name
        )
        if not rows:
            raise missing_document(name)
        return Document(rows[0][0].encode(), rows[0][1])

    async def put(self, owner_id: str, name: str, body: bytes, if_match: str | None = None) -> str:
        """Keep a document, new or instead of the old one, and give its ETag. Raises PreconditionFailed."""
        etag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'

        async def upsert(transaction: Any) -> None:
            await self._check(transaction, owner_id, name, if_match)
            await transaction.fetch(
                "INSERT INTO documents (owner_id, name, body, size, etag, updated_at) VALUES ($1, $2, $3, $4, $5, $6)"
                " ON CONFLICT (owner_id, name) DO UPDATE SET body = excluded.body, size = excluded.size,"
                " etag = excluded.etag, updated_at = excluded.updated_at",
                *(owner_id, name, body.decode(), len(body), etag, now_milliseconds()),
            )

        await self.database.transaction(upsert)
        return etag

    async def delete(self, owner_id: str, name: str, if_match: str | None = None) -> None:
        """Remove a document. Raises NotFound or PreconditionFailed."""

        async def remove(transaction: Any) -> list[tuple]:
            await self._check(transaction, owner_id, name, if_match)
            return await transaction.fetch(
                "DELETE FROM documents WHERE owner_id = $1 AND name = $2 RETURNING name", owner_id, name
            )

        if not await self.database.transaction(remove):
            raise missing_document(name)

    @staticmethod
    async def _check(transaction: Any, owner_id: str, name: str, if_match: str | None) -> None:
        if if_match is not None:
            rows = await transaction.fetch(
                "SELECT etag FROM documents WHERE owner_id = $1 AND name = $2", owner_id, name
            )
            if not rows:
                raise missing_document(name)
            check_precondition(if_match, rows[0][0])

    async def entries(self, owner_id: str, prefix: str, after: str, most: int) -> list[DocumentEntry]:
        """Names that begin with `prefix` and come after `after`, in code point order."""
        rows = await self.database.fetch(
            "SELECT name, size, updated_at FROM documents WHERE owner_id = $1 AND name >= $2 AND name < $3 AND name > $4"
            f" ORDER BY name LIMIT {most}",
            *(owner_id, prefix, prefix + "\U0010ffff", after),
        )
        return [DocumentEntry(*row) for row in rows]


class Record(NamedTuple):
    """Bytes and their media type."""

    body: bytes
    content_type: str


class DictRecordStore:
    """Records in memory: bounded in number and bytes, least recently used out first, each may expire."""

    name = "in memory"

    def __init__(self, most: int = 10_000, most_bytes: int = 64 * 1024 * 1024, clock: Callable[[], float] = time.monotonic):
        # A monotonic clock: setting the machine's time must neither revive nor end a record.
        self._most, self._most_bytes, self._clock = most, most_bytes, clock
        self._entries: collections.OrderedDict[str, tuple[Record, float]] = collections.OrderedDict()
        self._bytes = 0

    async def ping(self) -> None:
        """Memory is always there."""

    async def get(self, key: str) -> Record | None:
        """The record, or None if there is none or it has expired."""
        record, expires = self._entries.get(key, (None, 0.0))
        if record is not None and expires <= self._clock():
            self._remove(key)
            return None
        if record is not None:
            self._entries.move_to_end(key)
        return record

    async def set(self, key: str, record: Record, ttl: float | None = None) -> None:
        """Keep a record, for `ttl` seconds or until there is no more room for it."""
        self._remove(key)
        self._entries[key] = record, math.inf if ttl is None else self._clock() + ttl
        self._bytes += self._size(key, record)
        while len(self._entries) > self._most or self._bytes > self._most_bytes:
            self._remove(next(iter(self._entries)))

    async def delete(self, key: str) -> bool:
        """Remove a record; whether there was one."""
        was_there = await self.get(key) is not None
        self._remove(key)
        return was_there

    def _remove(self, key: str) -> None:
        if entry := self._entries.pop(key, None):
            self._bytes -= self._size(key, entry[0])

    @staticmethod
    def _size(key: str, record: Record) -> int:
        return len(key) + len(record.body) + len(record.content_type)


# ==== live updates: may call domain =============================================================

MOST_PENDING_BYTES = 1024 * 1024  # of messages that a slow listener has not taken yet
CHANGES_IN_MESSAGE = 100


def changes_message(changes: Sequence[Change]) -> bytes:
    """Changes, oldest first, as one message of the event socket."""
    return msgspec.json.encode({"type": "changes", "changes": changes, "revision": changes[-1].revision})


class Subscription:
    """The messages that one listener has yet to take, bounded in bytes.

    `end(code, reason)` is called when no more will come: the listener was too slow, or all is closed.
    """

    def __init__(self, end: Callable[[int, str], None]):
        self.end = end
        self._messages: collections.deque[tuple[int, bytes]] = collections.deque()
        self._pending_bytes = 0
        self._overflowed = False
        self._arrived = asyncio.Event()

    def put(self, revision: int, message: bytes) -> None:
        """Add a message; past the bound drop all and end, since the listener can replay the log."""
        self._pending_bytes += len(message)
        if self._overflowed:
            return
        if self._pending_bytes > MOST_PENDING_BYTES:
            self._overflowed = True
            self._messages.clear()
            self.end(1013, "too slow: connect again with since=")
            return
        self._messages.append((revision, message))
        self._arrived.set()

    async def take(self) -> tuple[int, bytes]:
        """Wait for the next message, and give it with the revision that it brings."""
        while not self._messages:
            self._arrived.clear()
            await self._arrived.wait()
        revision, message = self._messages.popleft()
        self._pending_bytes -= len(message)
        return revision, message


class EventHub:
    """Hands committed changes to those who listen in this process."""

    def __init__(self) -> None:
        self._subscriptions: dict[str, set[Subscription]] = {}

    @contextlib.contextmanager
    def subscribe(self, user: User, end: Callable[[int, str], None]) -> Iterator[Subscription]:
        """Listen to the changes that this user may see, for as long as the context lasts."""
        subscription = Subscription(end)
        listeners = self._subscriptions.setdefault(user.id, set())
        listeners.add(subscription)
        try:
            yield subscription
        finally:
            listeners.discard(subscription)
            if not listeners:
                self._subscriptions.pop(user.id, None)

    def publish(self, user: User, changes: Sequence[Change]) -> None:
        """Hand out changes, oldest first. Call it only with what is committed."""
        listeners = self._subscriptions.get(user.id, ())
        for start in range(0, len(changes) if listeners else 0, CHANGES_IN_MESSAGE):
            part = changes[start : start + CHANGES_IN_MESSAGE]
            message = changes_message(part)
            for subscription in tuple(listeners):
                subscription.put(part[-1].revision, message)

    def close(self) -> None:
        """End every subscription."""
        for listeners in tuple(self._subscriptions.values()):
            for subscription in tuple(listeners):
                subscription.end(1001, "the server stops")


# ==== service: may call stores and live updates =================================================


def revision_etag(revision: int) -> str:
    return f'"{revision}"'


class TodoService:
    """The only writer: checks, stores in one transaction, and publishes after the commit."""

    def __init__(self, store: TodoStore, hub: EventHub):
        self.store, self.hub = store, hub

    async def _write(self, user: User, operation: Callable, repeat: Repeat | None = None) -> Written:
        return await self.store.write(
            user, operation, lambda written: self.hub.publish(user, written.changes), repeat
        )

    # ---- to-dos

    async def create(self, user: User, fields: Mapping[str, Any], repeat: Repeat | None = None) -> Written:
        """Make a to-do; the result is the Todo. Raises Invalid for a list that is not there."""
        return await self._write(user, lambda batch: self._create(batch, uuid7(), fields), repeat)

    async def _create(self, batch: TodoBatch, todo_id: str, fields: Mapping[str, Any]) -> Todo:
        list_id = fields.get("list") or await batch.inbox()
        await self._check_list(batch, list_id)
        order = fields["order"] if "order" in fields else await batch.last_position(list_id) + 1
        blank = Todo(id=todo_id, list=list_id, title="", order=order, created_at=batch.at, updated_at=batch.at)
        todo = changed_todo(blank, fields, batch.at)
        todo = batch.save_todo(None, todo)
        if "order" in fields:
            await self._make_room(batch, todo)
        return todo

    async def replace(
        self, user: User, todo_id: str, fields: Mapping[str, Any], if_match: str | None, only_new: bool = False
    ) -> Written:
        """Make the to-do of this id, or set all its fields; the result is (Todo, whether it was made).

        Fields that are not sent get their defaults, except `list` and `order`, which stay. To repeat
        the request that made it answers as that did. Raises Conflict for an id in the trash or in use.
        """

        async def operation(batch: TodoBatch) -> tuple[Todo, bool]:
            before = await batch.todo_of_this_id(todo_id)
            if before is None:
                if if_match is not None:
                    raise PreconditionFailed("There is no such to-do.")
                return await self._create(batch, todo_id, fields), True
            if only_new:
                raise PreconditionFailed("There is a to-do of this id already.")
            if before.deleted_at:
                raise Conflict("This to-do is in the trash. Restore it first.")
            check_precondition(if_match, revision_etag(before.revision))
            defaults = {"completed": False, "notes": "", "due": None, "priority": 0, "tags": []}
            after = await self._change(batch, before, {**defaults, **fields})
            untouched_since_made = after is before and before.created_at == before.updated_at
            return after, untouched_since_made

        return await self._write(user, operation)

    async def patch(self, user: User, todo_id: str, fields: Mapping[str, Any], if_match: str | None) -> Written:
        """Set these fields of a to-do; the result is the Todo. Raises NotFound or PreconditionFailed."""

        async def operation(batch: TodoBatch) -> Todo:
            before = await batch.todo(todo_id)
            check_precondition(if_match, revision_etag(before.revision))
            return await self._change(batch, before, fields)

        return await self._write(user, operation)

    async def patch_all(
        self, user: User, which: TodoFilter, fields: Mapping[str, Any], if_match: str | None
    ) -> Written:
        """Set these fields of all to-dos that a filter selects, as one batch; the result is how many."""
        if "order" in fields:
            message = "is set of one to-do at a time"
            raise Invalid(f"order {message}.", [field_error("order", message)])

        async def operation(batch: TodoBatch) -> int:
            selected = await self._select(batch, which, if_match)
            if "list" in fields:
                await self._check_list(batch, fields["list"])
                last = await batch.last_position(fields["list"])
            for place, before in enumerate(selected, 1):
                moves = fields.get("list", before.list) != before.list
                values = {**fields, "order": last + place} if moves else fields
                batch.save_todo(before, changed_todo(before, values, batch.at))
            return len(batch.changes)

        return await self._write(user, operation)

    async def delete(self, user: User, todo_id: str, if_match: str | None, deleted: bool = False) -> Written:
        """Move a to-do to the trash, or one in the trash out of existence. Raises NotFound."""

        async def operation(batch: TodoBatch) -> None:
            before = await batch.todo(todo_id, deleted)
            check_precondition(if_match, revision_etag(before.revision))
            self._delete(batch, before)

        return await self._write(user, operation)

    async def delete_all(self, user: User, which: TodoFilter, if_match: str | None) -> Written:
        """Move all that a filter selects to the trash, or all it selects there out of existence."""

        async def operation(batch: TodoBatch) -> int:
            for before in await self._select(batch, which, if_match):
                self._delete(batch, before)
            return len(batch.changes)

        return await self._write(user, operation)

    async def restore(self, user: User, todo_id: str) -> Written:
        """Take a to-do out of the trash; the result is the Todo. Raises NotFound."""

        async def operation(batch: TodoBatch) -> Todo:
            before = await batch.todo(todo_id, deleted=True)
            return batch.save_todo(before, changed_todo(before, {"deleted_at": None}, batch.at))

        return await self._write(user, operation)

    @staticmethod
    def _delete(batch: TodoBatch, before: Todo) -> None:
        if before.deleted_at:
            batch.purge_todo(before)
        else:
            batch.save_todo(before, changed_todo(before, {"deleted_at": batch.at}, batch.at))

    @staticmethod
    async def _select(batch: TodoBatch, which: TodoFilter, if_match: str | None) -> list[Todo]:
        check_precondition(if_match, revision_etag(await batch.revision(which.list)))
        return await batch.todos(which)

    @staticmethod
    async def _check_list(batch: TodoBatch, list_id: str) -> None:
        try:
            await batch.todo_list(list_id)
        except NotFound:
            raise Invalid("list names no list of yours.", [field_error("list", "names no list of yours")]) from None

    async def _change(self, batch: TodoBatch, before: Todo, fields: Mapping[str, Any]) -> Todo:
        """Save what these fields make of a to-do; moved to another list, it goes to the end unless told."""
        values = dict(fields)
        if values.get("list", before.list) != before.list:
            await self._check_list(batch, values["list"])
            values.setdefault("order", await batch.last_position(values["list"]) + 1)
        after = batch.save_todo(before, changed_todo(before, values, batch.at))
        if "order" in fields and after is not before:
            await self._make_room(batch, after)
        return after

    @staticmethod
    async def _make_room(batch: TodoBatch, todo: Todo) -> None:
        """Move neighbours that have come too close away, keeping their sequence.

        A client that places a to-do halves the gap between two others. A double can be halved some
        fifty times; so long before, as many neighbours as it takes are spread out evenly, twice as
        many at each try, which keeps the cost of n moves in the order of n log n.
        """
        for below in (True, False):
            sign = -1 if below else 1
            many = 8
            neighbours = await batch.neighbours(todo, below, many + 1)
            if not neighbours or abs(neighbours[0].order - todo.order) >= least_gap(todo.order):
                continue
            while True:
                movable = neighbours[:many]
                open_end = todo.order + sign * (len(movable) + 1)
                if len(neighbours) > many:
                    edge = neighbours[many].order
                else:  # nothing lies beyond, so there is all the room one wants
                    edge = sign * max(sign * movable[-1].order, sign * open_end)
                step = (edge - todo.order) / (len(movable) + 1)
                if abs(step) >= 1000 * least_gap(todo.order) or len(neighbours) <= many:
                    break
                many *= 2
                neighbours = await batch.neighbours(todo, below, many + 1)
            for index, before in enumerate(movable, 1):
                after = msgspec.structs.replace(before, order=todo.order + step * index, updated_at=batch.at)
                batch.save_todo(before, after, "reorder")

    # ---- lists

    async def create_list(self, user: User, fields: Mapping[str, Any]) -> Written:
        """Make a list; the result is the TodoList."""

        async def operation(batch: TodoBatch) -> TodoList:
            lists = await batch.lists()
            order = fields.get("order", max(entry.order for entry in lists) + 1)
            at = batch.at
            return batch.save_list(
                None, TodoList(id=uuid7(), title=fields["title"], order=order, created_at=at, updated_at=at)
            )

        return await self._write(user, operation)

    async def patch_list(self, user: User, list_id: str, fields: Mapping[str, Any], if_match: str | None) -> Written:
        """Set these fields of a list; the result is the TodoList. Raises NotFound or PreconditionFailed."""

        async def operation(batch: TodoBatch) -> TodoList:
            before = await batch.todo_list(list_id)
            check_precondition(if_match, revision_etag(before.revision))
            after = msgspec.structs.replace(before, **fields)
            return batch.save_list(before, before if after == before else msgspec.structs.replace(after, updated_at=batch.at))

        return await self._write(user, operation)

    async def delete_list(self, user: User, list_id: str, if_match: str | None, deleted: bool = False) -> Written:
        """Move a list with its to-dos to the trash, or one in the trash out of existence."""

        async def operation(batch: TodoBatch) -> None:
            before = await batch.todo_list(list_id, deleted)
            if before.inbox:
                raise Conflict("The Inbox always exists: to-dos without a list go there.")
            check_precondition(if_match, revision_etag(before.revision))
            if deleted:
                await batch.purge_list(before)
            else:
                batch.save_list(before, msgspec.structs.replace(before, deleted_at=batch.at, updated_at=batch.at))

        return await self._write(user, operation)

    async def restore_list(self, user: User, list_id: str) -> Written:
        """Take a list with its to-dos out of the trash; the result is the TodoList."""

        async def operation(batch: TodoBatch) -> TodoList:
            before = await batch.todo_list(list_id, deleted=True)
            return batch.save_list(before, msgspec.structs.replace(before, deleted_at=None, updated_at=batch.at))

        return await self._write(user, operation)

    # ---- undo

    async def undo(self, user: User, target: str | None) -> Written:
        """Write back what a batch changed (without one: the caller's last), as a batch of its own.

        The result is (the batch undone, its to-dos now, its lists now). Raises NotFound, or Conflict
        if there is nothing to undo or somebody has since changed the same fields.
        """

        async def operation(batch: TodoBatch) -> tuple[str, list[Todo], list[TodoList]]:
            undone = target or await batch.last_batch()
            changes, is_undo = await batch.batch_changes(undone)
            # To undo an undo is an act of its own, which can be undone again.
            batch.undoes = None if is_undo else undone
            present = await batch.batch_todos(undone)
            lists = [await self._undo_list_change(batch, change) for change in changes if change.todo is None]
            todos = [self._undo_change(batch, change, present) for change in changes if change.todo]
            return undone, todos, lists

        return await self._write(user, operation)

    @staticmethod
    def _undo_change(batch: TodoBatch, change: Change, present: Mapping[str, Todo]) -> Todo:
        current = present.get(change.todo)
        if current is None or change.action == "purge":
            raise Conflict("What was removed for good cannot be brought back.")
        before, after = (msgspec.json.decode(side, type=Todo | None) for side in (change.before, change.after))
        if before is None:
            before = msgspec.structs.replace(after, deleted_at=batch.at)
            if current.deleted_at:
                return current
        if change.action == "reorder" and current.order != after.order:
            return current
        return batch.save_todo(current, reverted(current, before, after, TODO_UNDOABLE, batch.at))

    @staticmethod
    async def _undo_list_change(batch: TodoBatch, change: Change) -> TodoList:
        before, after = (msgspec.json.decode(side, type=TodoList | None) for side in (change.before, change.after))
        if after is None:
            raise Conflict("What was removed for good cannot be brought back.")
        try:
            current = await batch.todo_list(change.list, deleted=after.deleted_at is not None)
        except NotFound:
            raise Conflict(f"{after.title!r} has been changed since, so nothing was undone.") from None
        before = before or msgspec.structs.replace(after, deleted_at=batch.at)
        return batch.save_list(current, reverted(current, before, after, LIST_UNDOABLE, batch.at))

    # ---- reading

    def queries(self, user: User) -> TodoQueries:
        """Reads for this user."""
        return self.store.queries(user)

    # ---- what runs by itself

    async def empty_old_trash(self, before: int) -> None:
        """Remove for good what has been in the trash since before a time (epoch milliseconds)."""
        for user, todos, lists in await self.store.expired(before):

            async def operation(batch: TodoBatch, todos: Any = todos, lists: Any = lists) -> None:
                for todo in todos:
                    batch.purge_todo(todo)
                for todo_list in lists:
                    await batch.purge_list(todo_list)

            await self._write(user, operation)


# ---- weather

# WMO code table 4677, as Open-Meteo uses it.
WEATHER_WORDS = {
    **{0: "clear sky", 1: "mainly clear", 2: "partly cloudy", 3: "overcast", 45: "fog", 48: "freezing fog"},
    **{51: "light drizzle", 53: "drizzle", 55: "heavy drizzle", 56: "light freezing drizzle", 57: "freezing drizzle"},
    **{61: "light rain", 63: "rain", 65: "heavy rain", 66: "light freezing rain", 67: "freezing rain"},
    **{71: "light snow", 73: "snow", 75: "heavy snow", 77: "snow grains", 80: "light showers", 81: "showers"},
    **{82: "violent showers", 85: "light snow showers", 86: "snow showers", 95: "a thunderstorm"},
    **{96: "a thunderstorm with light hail", 99: "a thunderstorm with hail"},
}
WEATHER_SECONDS = 600  # how long an answer is kept


class WeatherReport(msgspec.Struct, frozen=True):
    """The weather in one place now; the temperature in the degrees that the upstream uses."""

    temperature: str
    text: str
    place: str


def open_meteo_report(answer: Any, place: str) -> WeatherReport:
    """Read Open-Meteo's current weather, of today's form or the older. Raises LookupError, TypeError, ValueError."""
    current = answer["current"] if "current" in answer else answer["current_weather"]
    degrees = current["temperature_2m"] if "temperature_2m" in current else current["temperature"]
    code = current["weather_code"] if "weather_code" in current else current["weathercode"]
    if not place:
        zone = answer.get("timezone", "")
        place = zone.rpartition("/")[2].replace("_", " ") if "/" in zone else ""
    place = place or f"{float(answer['latitude']):.2f}, {float(answer['longitude']):.2f}"
    return WeatherReport(f"{float(degrees):g}", WEATHER_WORDS[int(code)], place)


def condition_report(answer: Any, place: str) -> WeatherReport:
    """Read the older `query.results.channel.item.condition` form. Raises LookupError, TypeError, ValueError."""
    channel = answer["query"]["results"]["channel"]
    condition = channel["item"]["condition"]
    place = place or channel.get("location", {}).get("city") or "the place asked for"
    return WeatherReport(f"{float(condition['temp']):g}", clean_line(condition["text"], 100), clean_line(place, 100))


class Weather:
    """Asks the weather server, at most once in ten minutes, however many ask us."""

    def __init__(self, uri: str, place: str, records: DictRecordStore):
        self.uri, self._place, self._records = uri, place, records
        self._asking: asyncio.Task | None = None

    async def report(self) -> WeatherReport:
        """The weather now. Raises NotFound if none is configured, UpstreamFailed or UpstreamTimedOut."""
        if not self.uri:
            raise NotFound("No weather server is configured. Set WEATHER_URI.")
        if record := await self._records.get("weather"):
            return msgspec.json.decode(record.body, type=WeatherReport)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> WeatherReport:
        # force_instance: the limits are this client's own, and closing it closes nobody else's.
        client = tornado.httpclient.AsyncHTTPClient(force_instance=True, max_body_size=256 * 1024)
        request = tornado.httpclient.HTTPRequest(
            self.uri, connect_timeout=3, request_timeout=3, follow_redirects=False, decompress_response=False
        )
        try:
            response = await asyncio.wait_for(client.fetch(request, raise_error=False), 3.5)
        except (asyncio.TimeoutError, OSError, tornado.httpclient.HTTPError) as error:
            raise self._failure(error) from error
        finally:
            client.close()
        if response.error:
            raise self._failure(response.error)
        report = self._read(response.body)
        await self._records.set("weather", Record(msgspec.json.encode(report), "application/json"), WEATHER_SECONDS)
        return report

    def _read(self, body: bytes) -> WeatherReport:
        try:
            answer = json.loads(body)
            reader = condition_report if "query" in answer else open_meteo_report
            return reader(answer, self._place)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            LOG.warning("weather: cannot read the answer: %r", error)
            raise UpstreamFailed("The weather server's answer is of no form that is known here.") from None

    @staticmethod
    def _failure(error: BaseException) -> TodoError:
        LOG.warning("weather: %s", type(error).__name__)
        if isinstance(error, (asyncio.TimeoutError, TimeoutError)) or "imeout" in str(error):
            return UpstreamTimedOut("The weather server did not answer within 3 seconds.")
        code = getattr(error, "code", 599)
        if code != 599:
            return UpstreamFailed(f"The weather server answered {code}.")
        return UpstreamFailed("The weather server cannot be reached, or its answer is too large.")


# ---- all that the app has open

Check = Callable[[], Awaitable[Any]]
GetUser = Callable[[tornado.httputil.HTTPServerRequest], Awaitable[str | None]]


class Services:
    """Everything that an app opens: once, when first needed, and tried again if it failed."""

    def __init__(self, config: Config, checks: Mapping[str, Check]):
        self.config = config
        self.database = open_database(config.database_url)
        self.hub = EventHub()
        self.todos = TodoService(TodoStore(self.database), self.hub)
        self.documents = SQLDocumentStore(self.database)
        self.records = DictRecordStore()
        self.weather = Weather(config.weather_uri, config.weather_place, self.records)
        self._checks = {
            "todos": (self.database.name, self._ping_database),
            "documents": (self.documents.name, self.documents.ping),
            "records": (self.records.name, self.records.ping),
            **{name: (name, check) for name, check in checks.items()},
        }
        self._opened = False
        self._opening: asyncio.Task | None = None
        self._tidying: asyncio.Task | None = None
        self.requests = 0  # being answered now

    def describe(self) -> str:
        """Which engine keeps what, in one line."""
        names = (self.database.name, self.documents.name, self.records.name)
        return "to-dos: {} · documents: {} · records: {}".format(*names)

    async def open(self) -> None:
        """Open everything; callers that come together share one try. Raises Misconfigured or Unavailable."""
        if self._opened:
            return
        if self._opening is None or self._opening.done():
            self._opening = asyncio.ensure_future(self._open())
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        await self.todos.store.open()
        self._tidying = asyncio.ensure_future(self._tidy_forever())
        self._opened = True

    async def close(self) -> None:
        """Close everything that was opened."""
        if self._opening:
            await asyncio.wait([self._opening])
        if self._opened:
            self._opened = False
            self._tidying.cancel()
            await asyncio.wait([self._tidying])
            self.hub.close()
            await self.todos.store.close()

    async def drain(self, seconds: float) -> None:
        """Wait until no request is being answered, at most so long."""
        give_up = time.monotonic() + seconds
        while self.requests and time.monotonic() < give_up:
            await asyncio.sleep(0.01)

    async def _tidy_forever(self) -> None:
        """Every hour empty the old trash and forget old idempotency keys."""
        while True:
            try:
                now = now_milliseconds()
                await self.todos.empty_old_trash(now - self.config.trash_days * 86_400_000)
                await self.todos.store.forget_answers(now - 86_400_000)
            except Exception as error:
                LOG.warning("tidying failed and is tried again in an hour: %s", error)
            await asyncio.sleep(3600)

    async def _ping_database(self) -> None:
        await self.open()
        await self.database.fetch("SELECT value FROM counters")

    async def health(self) -> tuple[bool, dict[str, dict]]:
        """Ping every engine in parallel, each within a second: whether all are well, and how each is."""
        pings = {name: self._check(engine, ping) for name, (engine, ping) in self._checks.items()}
        engines = await tornado.gen.multi(pings)
        return all(entry["state"] == "ok" for entry in engines.values()), engines

    async def _check(self, engine: str, ping: Check) -> dict:
        started = time.perf_counter()
        try:
            await asyncio.wait_for(ping(), 1.0)
            state = "ok"
        except asyncio.TimeoutError:
            state = "no answer within a second"
        except Exception as error:
            LOG.warning("health: %s: %s", engine, error)
            state = "failing"
        return {"engine": engine, "state": state, "milliseconds": round((time.perf_counter() - started) * 1000, 1)}


# ==== auth: may call service and stores =========================================================

FORWARDING_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "Via")
LOCAL_USER = "local"


def is_loopback_name(host: str) -> bool:
    """Whether a Host header names this machine's loopback: localhost, 127.0.0.0/8 or [::1], any port."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?", host)
    if not match:
        return False
    name = match[1].strip("[]").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.rstrip(".") == "localhost" or name.rstrip(".").endswith(".localhost")


def is_local(request: tornado.httputil.HTTPServerRequest) -> bool:
    """Whether a request truly comes from this machine.

    The Host must name the loopback too, or a foreign web page could reach us by a name of its own
    that it points at 127.0.0.1 (DNS rebinding); and a forwarding header shows a proxy in between.
    """
    try:
        peer = ipaddress.ip_address(request.remote_ip or "")
    except ValueError:
        return False
    peer = getattr(peer, "ipv4_mapped", None) or peer
    forwarded = any(name in request.headers for name in FORWARDING_HEADERS)
    return peer.is_loopback and not forwarded and is_loopback_name(request.headers.get("Host", ""))


class Authenticator:
    """Tells who is asking: the embedder's answer, or the one local user."""

    def __init__(self, auth: str, get_user: GetUser | None, store: TodoStore):
        self._auth, self._get_user, self._store = auth, get_user, store

    async def user(self, request: tornado.httputil.HTTPServerRequest) -> User:
        """The user behind a request. Raises Unauthorized."""
        if self._get_user:
            name = await self._get_user(request)
            if not name:
                raise Unauthorized("Sign in first.")
        elif self._auth == "open" or is_local(request):
            name = LOCAL_USER
        else:
            raise Unauthorized(
                "This server answers only requests from its own machine, made to localhost."
                " AUTH=open opens it to whoever can reach it."
            )
        return await self._store.user(name)


# ==== handlers: may call service and auth =======================================================

API_POLICY = "default-src 'none'; frame-ancestors 'none'"
EXPOSED_HEADERS = "Change-Batch, ETag, Link, Location, Retry-After, X-Request-Id"
STATUS_DETAILS = {
    403: "A page of another site may not write here. CORS_ORIGINS says which may.",
    404: "Nothing is served at this address.",
    405: "This address does not know this method. The Allow header lists those that it does.",
    500: "Something went wrong here, and the log has it under this request id. Your request was not carried out.",
}


class BaseHandler(tornado.web.RequestHandler):
    """What every answer has in common: who asks, headers, and errors as problem documents."""

    public = False  # deny by default: a handler that serves strangers says so
    query_parameters: Mapping[str, Sequence[str]] | None = {}  # by method; None takes any
    content_security_policy = API_POLICY

    def initialize(self) -> None:
        self.services: Services = self.settings["services"]
        self._counted = True
        self.services.requests += 1

    def on_finish(self) -> None:
        self._discount()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._discount()

    def _discount(self) -> None:
        self.services.requests -= self._counted
        self._counted = False

    def set_default_headers(self) -> None:
        config: Config = self.settings["config"]
        if not hasattr(self, "request_id"):
            self.request_id = secrets.token_hex(8)
        self.clear_header("Server")
        self.set_header("X-Request-Id", self.request_id)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Content-Security-Policy", self.content_security_policy)
        self.set_header("Cache-Control", "no-store")
        if config.cors_origins:
            self.set_header("Vary", "Origin")
            origin = self.request.headers.get("Origin", "")
            if self.check_trusted_origin(origin):
                self.set_header("Access-Control-Allow-Origin", origin)
                self.set_header("Access-Control-Expose-Headers", EXPOSED_HEADERS)
                self.set_header("Cross-Origin-Resource-Policy", "cross-origin")

    def check_trusted_origin(self, origin: str) -> bool:
        """Whether CORS_ORIGINS allows this origin; Tornado asks it before every write from a page."""
        origins = self.settings["config"].cors_origins
        return bool(origin) and (origin in origins or "*" in origins)

    def allowed_methods(self) -> list[str]:
        """The methods that this handler answers."""
        base = tornado.web.RequestHandler
        methods = [name for name in self.SUPPORTED_METHODS if name not in ("HEAD", "OPTIONS")]
        own = [name for name in methods if getattr(type(self), name.lower()) is not getattr(base, name.lower())]
        return [*own, *(["HEAD"] if "GET" in own else []), "OPTIONS"]

    async def prepare(self) -> None:
        if self.request.method not in self.allowed_methods():
            raise tornado.web.HTTPError(405)
        if self.request.method == "OPTIONS":
            return
        if not self.public:
            await self.services.open()
            self.user: User = await self.settings["authenticator"].user(self.request)
        if self.query_parameters is not None:
            method = "GET" if self.request.method == "HEAD" else self.request.method
            self.query = read_query(self.request.query, self.query_parameters.get(method, ()))

    async def head(self, *arguments: str) -> None:
        # Tornado sends the headers of the same answer, without the body.
        await self.get(*arguments)

    async def options(self, *arguments: str) -> None:
        allowed = ", ".join(self.allowed_methods())
        self.set_header("Allow", allowed)
        if self._headers.get("Access-Control-Allow-Origin"):
            self.set_header("Access-Control-Allow-Methods", allowed)
            self.set_header("Access-Control-Allow-Headers", "Content-Type, Idempotency-Key, If-Match, If-None-Match")
            self.set_header("Access-Control-Max-Age", "600")
        self.set_status(204)

    def compute_etag(self) -> str | None:
        return None  # an answer that has a validator sets it itself, without hashing the body

    def not_modified(self, etag: str) -> bool:
        """Set the answer's ETag; whether the client has it already, and a 304 has been prepared."""
        self.set_header("ETag", etag)
        self.set_header("Cache-Control", "private, no-cache")
        known = self.request.headers.get("If-None-Match")
        if known is None or not etag_matches(known, etag):
            return False
        self.set_status(304)
        return True

    def url(self, *path: str) -> str:
        """The absolute URL of a path below our prefix, as the client reaches it."""
        config: Config = self.settings["config"]
        base = config.public_url or f"{self.request.protocol}://{self.request.host}"
        quoted = "/".join(urllib.parse.quote(part, safe="") for part in path)
        return f"{base}{config.prefix}/{quoted}"

    def write_error(self, status_code: int, **options: Any) -> None:
        error = options.get("exc_info", (None, None, None))[1]
        if isinstance(error, Misconfigured):
            error = Unavailable("The server's own configuration keeps it from opening its database; the log says why.")
            self.set_status(error.status)
        problem = {"type": "about:blank", "title": self._reason, "status": self.get_status()}
        if isinstance(error, TodoError):
            problem.update(title=error.title, detail=error.detail, request_id=self.request_id)
            problem.update({"errors": error.errors} if error.errors else {})
            for name, value in error.headers.items():
                self.set_header(name, value)
        else:
            problem.update(detail=STATUS_DETAILS.get(status_code, self._reason), request_id=self.request_id)
        if status_code == 405:
            self.set_header("Allow", ", ".join(self.allowed_methods()))
        self.set_header("Content-Type", "application/problem+json")
        self.finish(msgspec.json.encode(problem))

    def log_exception(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, Misconfigured):
            LOG.error("%s", error)
        elif not isinstance(error, TodoError):
            super().log_exception(kind, error, traceback)
        elif error.status >= 500:
            LOG.warning("%s %s: %s", self.request_id, error.title, error)


class NotFoundHandler(BaseHandler):
    """Every address that no route serves."""

    public = True

    async def prepare(self) -> None:
        raise NotFound(STATUS_DETAILS[404])


@tornado.web.stream_request_body
class APIHandler(BaseHandler):
    """JSON in and out. The body is read as it comes, so that too large a one gets a proper answer."""

    most_body = MAX_BODY

    async def prepare(self) -> None:
        self._body = bytearray()
        self._body_size = 0
        # Tornado would close the connection without an answer; what is over our bound is thrown away.
        self.request.connection.set_max_body_size(2**40)
        length = self.request.headers.get("Content-Length", "0")
        if length.isdigit() and int(length) > self.most_body:
            self.set_header("Connection", "close")
            self._raise_too_large()
        await super().prepare()

    def data_received(self, chunk: bytes) -> None:
        self._body_size += len(chunk)
        if self._body_size <= self.most_body:
            self._body += chunk

    def _raise_too_large(self) -> None:
        message = f"must have at most {self.most_body:,} bytes"
        raise TooLarge(f"The body {message}.", [field_error("", message)])

    def body(self) -> bytes:
        """The request's body. Raises TooLarge."""
        if self._body_size > self.most_body:
            self._raise_too_large()
        return bytes(self._body)

    def json_body(self) -> Any:
        """The request's body as JSON. Raises UnsupportedMediaType, TooLarge or Malformed."""
        media_type = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if media_type != "application/json" and not (media_type.startswith("application/") and media_type.endswith("+json")):
            message = f"is {media_type or 'not given'}; it must be application/json"
            raise UnsupportedMediaType(f"The Content-Type {message}.", [field_error("Content-Type", message)])
        return parse_json(self.body())

    def write_json(self, value: Any, status: int = 200) -> None:
        """Answer with JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(value))

    def path_id(self, text: str, what: str = "to-do") -> str:
        """An id from the path. Raises NotFound, since what is no UUID names nothing."""
        try:
            return clean_id(text)
        except ValueError:
            raise NotFound(f"There is no such {what}.") from None

    @property
    def if_match(self) -> str | None:
        """The If-Match header, if there is one."""
        return self.request.headers.get("If-Match")

    @property
    def queries(self) -> TodoQueries:
        """Reads for the user who asks."""
        return self.services.todos.queries(self.user)

    def show(self, thing: Todo | TodoList) -> Todo | TodoList:
        """A to-do or list with its URL."""
        kind = "todos" if isinstance(thing, Todo) else "lists"
        return msgspec.structs.replace(thing, url=self.url("api", kind, thing.id))

    def name_batch(self, written: Written) -> None:
        """Tell which batch a write made, so that it can be undone."""
        if written.batch:
            self.set_header("Change-Batch", written.batch)

    def answer_written(self, written: Written, thing: Todo | TodoList, status: int = 200) -> None:
        """Answer a write with what became of a to-do or list."""
        self.name_batch(written)
        self.set_header("ETag", revision_etag(thing.revision))
        if status == 201:
            self.set_header("Location", self.show(thing).url)
        self.write_json(self.show(thing), status)

    def answer_nothing(self, written: Written) -> None:
        """Answer a write that leaves nothing to show."""
        self.name_batch(written)
        self.set_status(204)

    def link_next(self, cursor: str) -> None:
        """Say where the next page is (RFC 8288)."""
        pairs = urllib.parse.parse_qsl(self.request.query, keep_blank_values=True)
        query = urllib.parse.urlencode([*(pair for pair in pairs if pair[0] != "after"), ("after", cursor)])
        path = self.request.path.removeprefix(self.settings["config"].prefix).strip("/")
        url = self.url(*(urllib.parse.unquote(part) for part in path.split("/")))
        self.set_header("Link", f'<{url}?{query}>; rel="next"')


class TodosHandler(APIHandler):
    """All to-dos, or those that a filter selects."""

    query_parameters = {
        "GET": (*FILTERS, "sort", "limit", "after"),
        "PATCH": FILTERS,
        "DELETE": FILTERS,
    }

    async def get(self) -> None:
        which, page = filter_from_query(self.query), page_from_query(self.query)
        # The validator is read before the rows: too old a tag costs a request, too new a one an update.
        if self.not_modified(revision_etag(await self.queries.revision(which.list))):
            return
        todos = await self.queries.todos(which, page)
        if len(todos) > page.limit:
            todos.pop()
            self.link_next(make_cursor(page.sort, sort_value(todos[-1], page.sort), todos[-1].id))
        self.write_json([self.show(todo) for todo in todos])

    async def post(self) -> None:
        fields = read_fields(self.json_body(), TodoFields, required=["title"])
        written = await self.services.todos.create(self.user, fields, self._repeat())
        self.answer_written(written, written.result, 201)

    def _repeat(self) -> Repeat | None:
        key = self.request.headers.get("Idempotency-Key")
        if key is None:
            return None
        if not 1 <= len(key) <= 255 or not key.isprintable():
            message = "must be 1 to 255 printable characters"
            raise Malformed(f"Idempotency-Key {message}.", [field_error("Idempotency-Key", message)])
        request = f"{self.request.method} {self.request.path}\n".encode() + self.body()
        return Repeat(key, hashlib.sha256(request).hexdigest(), Todo)

    async def patch(self) -> None:
        fields = read_fields(self.json_body(), TodoFields)
        which = filter_from_query(self.query)
        written = await self.services.todos.patch_all(self.user, which, fields, self.if_match)
        self._answer_count(written)

    async def delete(self) -> None:
        written = await self.services.todos.delete_all(self.user, filter_from_query(self.query), self.if_match)
        self._answer_count(written)

    def _answer_count(self, written: Written) -> None:
        self.name_batch(written)
        self.write_json({"batch": written.batch, "count": written.result})


class TodoHandler(APIHandler):
    """One to-do; `deleted=true` addresses one in the trash."""

    query_parameters = {"GET": ("deleted",), "DELETE": ("deleted",)}

    async def get(self, todo_id: str) -> None:
        todo = await self.queries.todo(self.path_id(todo_id), self.query.get("deleted", False))
        if not self.not_modified(revision_etag(todo.revision)):
            self.write_json(self.show(todo))

    async def put(self, todo_id: str) -> None:
        try:
            todo_id = clean_id(todo_id)
        except ValueError as error:
            raise Invalid(f"The id {error}.", [field_error("id", str(error))]) from None
        fields = read_fields(self.json_body(), TodoFields, required=["title"])
        only_new = self.request.headers.get("If-None-Match", "").strip() == "*"
        written = await self.services.todos.replace(self.user, todo_id, fields, self.if_match, only_new)
        todo, made = written.result
        self.answer_written(written, todo, 201 if made else 200)

    async def patch(self, todo_id: str) -> None:
        fields = read_fields(self.json_body(), TodoFields)
        written = await self.services.todos.patch(self.user, self.path_id(todo_id), fields, self.if_match)
        self.answer_written(written, written.result)

    async def delete(self, todo_id: str) -> None:
        deleted = self.query.get("deleted", False)
        self.answer_nothing(
            await self.services.todos.delete(self.user, self.path_id(todo_id), self.if_match, deleted)
        )


class TodoHistoryHandler(APIHandler):
    """What happened to a to-do, newest first."""

    async def get(self, todo_id: str) -> None:
        self.write_json(await self.queries.history(self.path_id(todo_id)))


class TodoRestoreHandler(APIHandler):
    """Takes a to-do out of the trash."""

    async def post(self, todo_id: str) -> None:
        written = await self.services.todos.restore(self.user, self.path_id(todo_id))
        self.answer_written(written, written.result)


class ListsHandler(APIHandler):
    """All lists, or those in the trash."""

    query_parameters = {"GET": ("deleted",)}

    async def get(self) -> None:
        if self.not_modified(revision_etag(await self.queries.revision())):
            return
        lists = await self.queries.lists(self.query.get("deleted", False))
        self.write_json([self.show(todo_list) for todo_list in lists])

    async def post(self) -> None:
        fields = read_fields(self.json_body(), ListFields, required=["title"])
        written = await self.services.todos.create_list(self.user, fields)
        self.answer_written(written, written.result, 201)


class ListHandler(APIHandler):
    """One list; `deleted=true` addresses one in the trash."""

    query_parameters = {"DELETE": ("deleted",)}

    async def get(self, list_id: str) -> None:
        todo_list = await self.queries.todo_list(self.path_id(list_id, "list"))
        if not self.not_modified(revision_etag(todo_list.revision)):
            self.write_json(self.show(todo_list))

    async def patch(self, list_id: str) -> None:
        fields = read_fields(self.json_body(), ListFields)
        list_id = self.path_id(list_id, "list")
        written = await self.services.todos.patch_list(self.user, list_id, fields, self.if_match)
        self.answer_written(written, written.result)

    async def delete(self, list_id: str) -> None:
        list_id, deleted = self.path_id(list_id, "list"), self.query.get("deleted", False)
        self.answer_nothing(await self.services.todos.delete_list(self.user, list_id, self.if_match, deleted))


class ListRestoreHandler(APIHandler):
    """Takes a list with its to-dos out of the trash."""

    async def post(self, list_id: str) -> None:
        written = await self.services.todos.restore_list(self.user, self.path_id(list_id, "list"))
        self.answer_written(written, written.result)


class ChangesHandler(APIHandler):
    """The change log after a revision."""

    query_parameters = {"GET": ("since", "list", "limit")}

    async def get(self) -> None:
        since, most = self.query.get("since", 0), self.query.get("limit", 200)
        list_id = self.query.get("list")
        if list_id:
            await self.queries.todo_list(list_id)
        revision = await self.queries.revision()
        changes = await self.queries.changes(since, list_id, most + 1)
        more = len(changes) > most
        changes = changes[:most]
        if changes:
            revision = changes[-1].revision if more else max(revision, changes[-1].revision)
        self.write_json({"changes": changes, "revision": revision, "more": more})


class UndoHandler(APIHandler):
    """Undoes a batch, or the caller's last act."""

    async def post(self) -> None:
        fields = read_fields(self.json_body(), UndoFields) if self.body() else {}
        written = await self.services.todos.undo(self.user, fields.get("batch"))
        undone, todos, lists = written.result
        self.name_batch(written)
        shown = {"todos": [self.show(todo) for todo in todos], "lists": [self.show(entry) for entry in lists]}
        self.write_json({"batch": written.batch, "undone": undone, **shown})


class EventsHandler(BaseHandler, tornado.websocket.WebSocketHandler):
    """Committed changes as they happen, after those since a revision that the client knows."""

    query_parameters = {"GET": ("since",)}

    async def prepare(self) -> None:
        await super().prepare()
        if self.request.method == "GET" and self.request.headers.get("Upgrade", "").lower() != "websocket":
            raise Malformed("Open this address as a WebSocket.")

    def open(self) -> None:
        self._discount()  # a socket that stays open must not hold up a stop
        self._sender = asyncio.ensure_future(self._send_forever())

    def on_message(self, message: str | bytes) -> None:
        self.close(1003, "this socket only sends")

    def on_close(self) -> None:
        self._sender.cancel()

    async def _send_forever(self) -> None:
        try:
            with self.services.hub.subscribe(self.user, self.close) as subscription:
                await self._send(subscription)
        except (tornado.websocket.WebSocketClosedError, tornado.iostream.StreamClosedError):
            pass
        except TodoError as error:
            self.close(1011, error.title)

    async def _send(self, subscription: Subscription) -> None:
        queries = self.services.todos.queries(self.user)
        revision = await queries.revision()
        await self.write_message(msgspec.json.encode({"type": "hello", "revision": revision}).decode())
        revision = await self._replay(queries, self.query.get("since", revision), revision)
        while True:
            arrived, message = await subscription.take()
            if arrived > revision:
                await self.write_message(message.decode())

    async def _replay(self, queries: TodoQueries, since: int, revision: int) -> int:
        """Send what committed after `since`, and give the revision up to which all has been sent."""
        while changes := await queries.changes(since, None, CHANGES_IN_MESSAGE):
            await self.write_message(changes_message(changes).decode())
            since = changes[-1].revision
        return max(since, revision)


class DocumentsHandler(APIHandler):
    """The names of all documents, or of those that begin with a prefix."""

    query_parameters = {"GET": ("prefix", "limit", "after")}

    async def get(self) -> None:
        most, prefix = self.query.get("limit", 200), unicodedata.normalize("NFC", self.query.get("prefix", ""))
        sort, after, _ = self.query.get("after", ("name", "", ""))
        if sort != "name":
            raise Malformed("after belongs to another list.", [field_error("after", "belongs to another list")])
        entries = await self.services.documents.entries(self.user.id, prefix, after, most + 1)
        if len(entries) > most:
            entries = entries[:most]
            self.link_next(make_cursor("name", entries[-1].name, ""))
        self.write_json(
            [
                {
                    "name": entry.name,
                    "url": self.url("api", "documents", entry.name),
                    "size": entry.size,
                    "updated_at": timestamp(entry.updated_at),
                }
                for entry in entries
            ]
        )


class DocumentHandler(APIHandler):
    """One JSON document by name."""

    async def get(self, name: str) -> None:
        document = await self.services.documents.get(self.user.id, clean_document_name(name))
        if not self.not_modified(document.etag):
            self.set_header("Content-Type", "application/json")
            self.finish(document.body)

    async def post(self, name: str) -> None:
        name = clean_document_name(name)
        self.json_body()
        etag = await self.services.documents.put(self.user.id, name, self.body(), self.if_match)
        self.set_header("ETag", etag)
        self.set_status(204)

    put = post

    async def delete(self, name: str) -> None:
        await self.services.documents.delete(self.user.id, clean_document_name(name), self.if_match)
        self.set_status(204)


class RecordHandler(APIHandler):
    """One record: bytes by key, with their media type, for a while or for as long as there is room."""

    most_body = MAX_RECORD
    query_parameters = {"POST": ("ttl",), "PUT": ("ttl",)}
    # Whatever somebody has stored here, a browser that opens it runs nothing of it.
    content_security_policy = "sandbox; default-src 'none'; frame-ancestors 'none'"

    def _key(self, key: str) -> str:
        return f"{self.user.id}/{clean_record_key(key)}"

    async def get(self, key: str) -> None:
        record = await self.services.records.get(self._key(key))
        if record is None:
            raise NotFound(f"Missing record for key:{key}")
        self.set_header("Content-Type", record.content_type)
        self.finish(record.body)

    async def post(self, key: str) -> None:
        content_type = self.request.headers.get("Content-Type", "application/octet-stream")
        if len(content_type) > 200 or not (content_type.isascii() and content_type.isprintable()):
            message = "must be at most 200 printable ASCII characters"
            raise Malformed(f"The Content-Type {message}.", [field_error("Content-Type", message)])
        await self.services.records.set(self._key(key), Record(self.body(), content_type), self.query.get("ttl"))
        self.set_status(204)

    put = post

    async def delete(self, key: str) -> None:
        if not await self.services.records.delete(self._key(key)):
            raise NotFound(f"Missing record for key:{key}")
        self.set_status(204)


class WeatherHandler(APIHandler):
    """The weather now, as a sentence or as JSON."""

    async def get(self) -> None:
        report = await self.services.weather.report()
        self.set_header("Cache-Control", "private, max-age=60")
        self.set_header("Vary", "Accept")
        if "application/json" in self.request.headers.get("Accept", ""):
            self.write_json(report)
            return
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"Currently {report.temperature} degrees and {report.text} in {report.place}")


class HealthHandler(APIHandler):
    """How every engine is; 503 if one is not well."""

    public = True

    async def get(self) -> None:
        well, engines = await self.services.health()
        self.write_json({"status": "ok" if well else "failing", "engines": engines}, 200 if well else 503)


class LiveHandler(APIHandler):
    """Whether the process answers at all."""

    public = True

    async def get(self) -> None:
        self.write_json({"status": "ok"})


class PageHandler(BaseHandler):
    """The page."""

    query_parameters = None

    def set_default_headers(self) -> None:
        self.content_security_policy = self.settings["page"].policy
        super().set_default_headers()

    async def get(self) -> None:
        page = self.settings["page"]
        if not self.not_modified(page.etag):
            self.set_header("Content-Type", "text/html; charset=utf-8")
            self.finish(page.html)


class PageAssetHandler(BaseHandler):
    """The page's style sheet and script, under names that change with their bytes."""

    public = True
    query_parameters = None

    async def get(self, name: str) -> None:
        asset = self.settings["page"].assets.get(name)
        if asset is None:
            raise NotFound(STATUS_DETAILS[404])
        if not self.not_modified(f'"{name}"'):
            body, content_type = asset
            self.set_header("Content-Type", content_type)
            self.finish(body)
        self.set_header("Cache-Control", "public, max-age=31536000, immutable")


class StaticHandler(tornado.web.StaticFileHandler, BaseHandler):
    """The folder that STATIC_PATH names."""

    query_parameters = None
    content_security_policy = "frame-ancestors 'none'"

    def initialize(self, **options: Any) -> None:
        BaseHandler.initialize(self)
        tornado.web.StaticFileHandler.initialize(self, **options)

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "private, no-cache")


class PrefixHandler(BaseHandler):
    """Leads from the prefix without its slash to the page."""

    public = True

    async def get(self) -> None:
        self.redirect(self.settings["config"].prefix + "/", permanent=True)


# ==== page: calls nothing; HTML is a Tornado template, CSS and JavaScript go out as they stand =====

PAGE_HTML = r"""<!DOCTYPE html>
<html lang="en" data-base="{{ base }}" data-weather="{{ weather }}">
<head>
<meta charset="utf-8">
<title>Inbox · tornado_todo</title>
<meta name="viewport" content="width=device-width, initial-scale=1, viewport-fit=cover">
<meta name="description" content="A to-do list with lists, due dates, tags, history and undo.">
<meta name="color-scheme" content="light dark">
<meta name="theme-color" content="#edf1f0" media="(prefers-color-scheme: light)">
<meta name="theme-color" content="#11191c" media="(prefers-color-scheme: dark)">
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E%3Crect
 width='32' height='32' rx='8' fill='%230b5f69'/%3E%3Cg fill='none' stroke='%23fff' stroke-width='3'
 stroke-linecap='round'%3E%3Cpath d='M7 8h18M10 14h13M12 20h8'/%3E%3Cpath d='M13 26h2'
 stroke='%23ffd166'/%3E%3C/g%3E%3C/svg%3E">
<link rel="stylesheet" href="{{ css_url }}" integrity="{{ css_integrity }}">
<script src="{{ js_url }}" integrity="{{ js_integrity }}" defer></script>
</head>
<body>

<!-- Every icon is drawn once here and used by name, so that none needs a request or an inline style. -->
<svg class="icon-sheet" width="0" height="0" aria-hidden="true" focusable="false">
  <symbol id="icon-funnel" viewBox="0 0 24 24"><path d="M4 5h16M7 10h11M9 15h6"/>
    <path class="sun" d="M10 20h1.5"/></symbol>
  <symbol id="icon-inbox" viewBox="0 0 24 24"><path d="M4 13.5 6.2 6h11.6L20 13.5V18a1 1 0 0 1-1 1H5a1 1 0 0
    1-1-1zM4 13.5h4.5a3.5 3.5 0 0 0 7 0H20"/></symbol>
  <symbol id="icon-today" viewBox="0 0 24 24"><circle cx="12" cy="12" r="3.7"/><path d="M12 3.5v2M12 18.5v2M3.5
    12h2M18.5 12h2M6 6l1.4 1.4M16.6 16.6 18 18M18 6l-1.4 1.4M7.4 16.6 6 18"/></symbol>
  <symbol id="icon-all" viewBox="0 0 24 24"><path d="m12 4 8.5 4.3L12 12.6 3.5 8.3zM3.5 12.2 12 16.5l8.5-4.3M3.5
    15.9 12 20.2l8.5-4.3"/></symbol>
  <symbol id="icon-list" viewBox="0 0 24 24"><path d="M9 7h10M9 12h10M9 17h10M4.8 7h.01M4.8 12h.01M4.8
    17h.01"/></symbol>
  <symbol id="icon-trash" viewBox="0 0 24 24"><path d="M4.5 6.5h15M9.5 6.5V4.8c0-.7.5-1.3 1.2-1.3h2.6c.7 0 1.2.6
    1.2 1.3v1.7M6.5 6.5l.8 12.2c.1 1 .9 1.8 1.9 1.8h5.6c1 0 1.8-.8 1.9-1.8l.8-12.2M10 10.5v6M14 10.5v6"/></symbol>
  <symbol id="icon-plus" viewBox="0 0 24 24"><path d="M12 5v14M5 12h14"/></symbol>
  <symbol id="icon-search" viewBox="0 0 24 24"><circle cx="10.5" cy="10.5" r="6"/><path d="m15 15 5 5"/></symbol>
  <symbol id="icon-menu" viewBox="0 0 24 24"><path d="M4 7h16M4 12h16M4 17h10"/></symbol>
  <symbol id="icon-close" viewBox="0 0 24 24"><path d="m6.5 6.5 11 11M17.5 6.5l-11 11"/></symbol>
  <symbol id="icon-details" viewBox="0 0 24 24"><path d="m9.5 6 6 6-6 6"/></symbol>
  <symbol id="icon-grip" viewBox="0 0 24 24"><path d="M9.5 6.5h.01M14.5 6.5h.01M9.5 12h.01M14.5 12h.01M9.5
    17.5h.01M14.5 17.5h.01"/></symbol>
  <symbol id="icon-note" viewBox="0 0 24 24"><path d="M5 7h14M5 12h14M5 17h8"/></symbol>
  <symbol id="icon-calendar" viewBox="0 0 24 24"><rect x="4" y="5.5" width="16" height="14.5" rx="2.5"/><path
    d="M4 10h16M8.5 3.5v4M15.5 3.5v4"/></symbol>
  <symbol id="icon-pencil" viewBox="0 0 24 24"><path d="m14.5 5.8 3.7 3.7M5 19l.9-4L16 4.9c.7-.7 1.9-.7
    2.6 0l.5.5c.7.7.7 1.9 0 2.6L9 18.1z"/></symbol>
  <symbol id="icon-restore" viewBox="0 0 24 24"><path d="M5 5v5h5M5.5 10a7.5 7.5 0 1 1-.8 5"/></symbol>
  <symbol id="icon-help" viewBox="0 0 24 24"><path d="M9 9.2a3 3 0 1 1 4.3 2.7c-.8.4-1.3 1-1.3 1.9M12
    17.2h.01"/><circle cx="12" cy="12" r="8.8"/></symbol>
  <symbol id="icon-options" viewBox="0 0 24 24"><path d="M4 8h8M18 8h2M4 16h2M12 16h8"/><circle cx="15" cy="8"
    r="2.5"/><circle cx="9" cy="16" r="2.5"/></symbol>
</svg>

<button class="skip" type="button">Skip to the new to-do box</button>

<div class="shell">
  <nav class="sidebar" id="sidebar" aria-label="Lists">
    <div class="brand">
      <svg class="icon brand-mark" aria-hidden="true"><use href="#icon-funnel"/></svg>
      <span class="brand-name">tornado<span class="brand-tail">todo</span></span>
      <button class="icon-button close-drawer" type="button" aria-label="Close the lists">
        <svg class="icon" aria-hidden="true"><use href="#icon-close"/></svg>
      </button>
    </div>
    <ul class="views"></ul>
    <h2 class="sidebar-heading">My lists</h2>
    <ul class="lists"></ul>
    <button class="new-list-button" type="button">
      <svg class="icon" aria-hidden="true"><use href="#icon-plus"/></svg><span>New list</span>
    </button>
    <input class="new-list" type="text" aria-label="Name of the new list" placeholder="Name, then Enter"
           maxlength="500" autocomplete="off" dir="auto" hidden>
    <div class="sidebar-foot">
      <a class="place trash-link" href="#/trash">
        <svg class="icon" aria-hidden="true"><use href="#icon-trash"/></svg><span class="place-name">Trash</span>
      </a>
      <button class="place help-button" type="button">
        <svg class="icon" aria-hidden="true"><use href="#icon-help"/></svg><span
          class="place-name">Shortcuts</span><kbd>?</kbd>
      </button>
    </div>
  </nav>
  <div class="scrim" hidden></div>

  <main class="page">
    <div class="banner" role="status" hidden>
      <span class="banner-text"></span><button class="banner-retry" type="button">Try now</button>
    </div>

    <div class="top-bar">
      <button class="icon-button open-drawer" type="button" aria-label="Open the lists" aria-controls="sidebar"
              aria-expanded="false">
        <svg class="icon" aria-hidden="true"><use href="#icon-menu"/></svg>
      </button>
      <p class="eyebrow"><time class="today"></time><span class="weather" hidden></span></p>
      <div class="search-box">
        <svg class="icon" aria-hidden="true"><use href="#icon-search"/></svg>
        <input class="search" type="search" aria-label="Search to-dos" placeholder="Search" autocomplete="off"
               dir="auto" maxlength="200">
        <kbd class="search-key" aria-hidden="true">/</kbd>
      </div>
    </div>

    <section class="todoapp" aria-labelledby="view-title">
      <header class="header">
        <div class="title-row">
          <h1 id="view-title" dir="auto">Inbox</h1>
          <input class="rename-list" type="text" aria-label="Name of this list" autocomplete="off" dir="auto"
                 maxlength="500" hidden>
          <div class="list-tools" hidden>
            <button class="icon-button rename-list-button" type="button" aria-label="Rename this list">
              <svg class="icon" aria-hidden="true"><use href="#icon-pencil"/></svg>
            </button>
            <button class="icon-button delete-list-button" type="button" aria-label="Delete this list">
              <svg class="icon" aria-hidden="true"><use href="#icon-trash"/></svg>
            </button>
          </div>
          <button class="quiet-button empty-trash" type="button" hidden>Empty trash</button>
        </div>
        <progress class="progress" max="1" value="0" aria-label="Completed" hidden></progress>
        <div class="composer">
          <svg class="icon composer-plus" aria-hidden="true"><use href="#icon-plus"/></svg>
          <input class="new-todo" type="text" placeholder="What needs to be done?"
                 aria-label="What needs to be done?" autocomplete="off" enterkeyhint="done" dir="auto" autofocus>
          <button class="icon-button new-options-button" type="button" aria-expanded="false"
                  aria-controls="new-options" aria-label="Due date, priority and tags for the new to-do">
            <svg class="icon" aria-hidden="true"><use href="#icon-options"/></svg>
          </button>
          <div class="new-options" id="new-options" role="group" aria-label="For the new to-do" hidden>
            <p class="option"><label for="new-due">Due</label><input id="new-due" class="new-due" type="date"></p>
            <p class="option"><label for="new-priority">Priority</label>
              <select id="new-priority" class="new-priority">
                <option value="0">None</option><option value="1">Low</option>
                <option value="2">Medium</option><option value="3">High</option>
              </select></p>
            <p class="option option-wide"><label for="new-tags">Tags</label><input id="new-tags" class="new-tags"
              type="text" placeholder="home, errands" autocomplete="off" dir="auto"></p>
          </div>
        </div>
        <div class="active-filters" hidden></div>
      </header>

      <section class="main" aria-label="To-dos" hidden>
        <div class="list-bar">
          <span class="toggle-all-box">
            <input id="toggle-all" class="toggle-all" type="checkbox"><label for="toggle-all">Mark all as
            complete</label>
          </span>
          <span class="sort-box"><label for="sort">Sort</label>
            <select id="sort" class="sort">
              <option value="order">My order</option>
              <option value="due">Due date</option>
              <option value="-priority">Priority</option>
              <option value="-created_at">Newest</option>
              <option value="title">Title</option>
            </select></span>
        </div>
        <ul class="todo-list" aria-labelledby="view-title"></ul>
        <div class="more" hidden><button class="quiet-button more-button" type="button">Show more</button></div>
      </section>

      <section class="trash-view" aria-label="Trash" hidden>
        <p class="trash-hint">Nothing here is lost yet. Restore it, or delete it for good.</p>
        <ul class="trash-list"></ul>
        <div class="more" hidden><button class="quiet-button more-button" type="button">Show more</button></div>
      </section>

      <section class="empty" hidden>
        <svg class="empty-picture" viewBox="0 0 200 120" aria-hidden="true">
          <g class="wind"><path d="M52 22h92"/><path d="M68 42h66"/><path d="M80 62h40"/><path d="M86 82h20"/></g>
          <path class="sun" d="M92 102h6"/>
          <g class="breeze"><path d="M18 34h18"/><path d="M160 30h22"/><path d="M150 54h30"/><path d="M30
            58h26"/></g>
        </svg>
        <h2 class="empty-title"></h2>
        <p class="empty-text"></p>
        <p class="empty-action"></p>
      </section>

      <footer class="footer" hidden>
        <span class="todo-count"><strong>0</strong> items left</span>
        <ul class="filters" aria-label="Show">
          <li><a data-show="all" href="#/">All</a></li>
          <li><a data-show="active" href="#/active">Active</a></li>
          <li><a data-show="completed" href="#/completed">Completed</a></li>
        </ul>
        <button class="clear-completed" type="button" hidden>Clear completed</button>
      </footer>
    </section>
  </main>

  <aside class="detail" aria-label="Details of the to-do" hidden>
    <header class="detail-head">
      <span class="detail-state"></span>
      <button class="icon-button detail-close" type="button" aria-label="Close the details">
        <svg class="icon" aria-hidden="true"><use href="#icon-close"/></svg>
      </button>
    </header>
    <div class="detail-body">
      <textarea class="detail-title" rows="1" aria-label="Title" dir="auto" enterkeyhint="done"></textarea>
      <div class="field">
        <label for="detail-notes">Notes</label>
        <textarea id="detail-notes" class="detail-notes" rows="4" maxlength="20000" dir="auto"
                  placeholder="Anything worth remembering"></textarea>
      </div>
      <fieldset class="field">
        <legend>Due</legend>
        <div class="quick-due">
          <button class="chip-button" type="button" data-days="0">Today</button>
          <button class="chip-button" type="button" data-days="1">Tomorrow</button>
          <button class="chip-button" type="button" data-days="7">In a week</button>
          <button class="chip-button clear-due" type="button">No date</button>
        </div>
        <div class="due-inputs">
          <input class="detail-due" type="date" aria-label="Due date">
          <input class="detail-time" type="time" aria-label="Due time (optional)">
        </div>
      </fieldset>
      <fieldset class="field">
        <legend>Priority</legend>
        <div class="priorities">
          <label><input type="radio" name="priority" value="0"><span>None</span></label>
          <label><input type="radio" name="priority" value="1"><span>Low</span></label>
          <label><input type="radio" name="priority" value="2"><span>Medium</span></label>
          <label><input type="radio" name="priority" value="3"><span>High</span></label>
        </div>
      </fieldset>
      <div class="field">
        <label for="detail-tag">Tags</label>
        <div class="tag-editor">
          <span class="detail-tags"></span>
          <input id="detail-tag" class="detail-tag" type="text" list="known-tags" placeholder="Add a tag"
                 autocomplete="off" maxlength="50" dir="auto" enterkeyhint="done">
        </div>
        <datalist id="known-tags"></datalist>
      </div>
      <div class="field">
        <label for="detail-list">List</label>
        <select id="detail-list" class="detail-list"></select>
      </div>
      <details class="field history">
        <summary>History</summary>
        <ol class="history-list"></ol>
      </details>
    </div>
    <footer class="detail-foot">
      <span class="detail-created"></span>
      <button class="quiet-button danger detail-delete" type="button">Delete</button>
    </footer>
  </aside>
</div>

<div class="toasts" role="region" aria-label="Messages"></div>
<p class="announcer" role="status" aria-live="polite"></p>

<dialog class="dialog confirm" aria-labelledby="confirm-title">
  <h2 id="confirm-title"></h2>
  <p class="confirm-text"></p>
  <div class="dialog-buttons">
    <button class="quiet-button confirm-no" type="button">Keep</button>
    <button class="solid-button danger confirm-yes" type="button">Delete for good</button>
  </div>
</dialog>

<dialog class="dialog help" aria-labelledby="help-title">
  <h2 id="help-title">Shortcuts</h2>
  <dl class="keys"></dl>
  <p class="help-choice"><input id="single-keys" class="single-keys" type="checkbox"><label
    for="single-keys">Single-key shortcuts (<kbd>n</kbd> <kbd>/</kbd> <kbd>1</kbd> …)</label></p>
  <div class="dialog-buttons"><button class="solid-button help-close" type="button">Close</button></div>
</dialog>

<noscript><p class="no-script">This page needs JavaScript. The same to-dos are at
  <a href="{{ base }}/api/todos">{{ base }}/api/todos</a>.</p></noscript>
</body>
</html>
"""

PAGE_CSS = r"""<!doctype html><title>x</title>
"""

PAGE_JS = r"""// The page of tornado_todo. It shows what the server has, shows a change at once, and sends changes one
// after another, so that what is on the screen and what is in the database can be told apart only by a moment.
(() => {
  'use strict';

  // ---- Settings ----------------------------------------------------------------------------------------

  const base = document.documentElement.dataset.base;
  const weatherIsConfigured = document.documentElement.dataset.weather === 'True';
  const PAGE_SIZE = 100;
  const MAXIMUM_LIMIT = 1000;
  const TITLE_LENGTH = 500;
  const TAG_LENGTH = 50;
  const MAXIMUM_TAGS = 20;
  const TOAST_MILLISECONDS = 8000;
  const SEARCH_PAUSE = 220;
  const NOTES_PAUSE = 2000;
  const REFRESH_PAUSE = 200;
  const REQUEST_PATIENCE = 20000;
  const LONGEST_RETRY = 30000;
  const REFUSALS_BEFORE_GIVING_UP = 3;
  const WEATHER_INTERVAL = 15 * 60 * 1000;
  const PRIORITIES = ['None', 'Low', 'Medium', 'High'];
  const isApple = /Mac|iPhone|iPad/.test(navigator.platform);
  const narrowScreen = matchMedia('(max-width: 899px)');
  const coveringDetail = matchMedia('(max-width: 719px)');

  // ---- Small helpers -----------------------------------------------------------------------------------

  const find = (selector, root = document) => root.querySelector(selector);
  const findAll = (selector, root = document) => [...root.querySelectorAll(selector)];
  const sleep = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));

  // Data only ever enters the page as text or as a property, never as markup.
  function element(tag, properties = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name === 'dataset') Object.assign(node.dataset, value);
      else if (typeof value === 'function') node.addEventListener(name, value);
      else if (name.includes('-') || name === 'role' || name === 'list') node.setAttribute(name, value);
      else node[name] = value;
    }
    node.append(...children.filter(child => child !== null && child !== undefined));
    return node;
  }

  function icon(name) {
    const namespace = 'http://www.w3.org/2000/svg';
    const picture = document.createElementNS(namespace, 'svg');
    picture.setAttribute('class', 'icon');
    picture.setAttribute('aria-hidden', 'true');
    const use = document.createElementNS(namespace, 'use');
    use.setAttribute('href', `#icon-${name}`);
    picture.append(use);
    return picture;
  }

  function debounce(action, pause) {
    let timer = null;
    const later = () => {
      clearTimeout(timer);
      timer = setTimeout(() => { timer = null; action(); }, pause);
    };
    later.now = () => {
      if (timer === null) return;
      clearTimeout(timer);
      timer = null;
      action();
    };
    return later;
  }

  // A UUIDv7 sorts by its time, as the server's own do. getRandomValues works without https, randomUUID not.
  function newId() {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    let time = Date.now();
    for (let index = 5; index >= 0; index -= 1) {
      bytes[index] = time % 256;
      time = Math.floor(time / 256);
    }
    bytes[6] = (bytes[6] & 0x0f) | 0x70;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    const text = [...bytes].map(byte => byte.toString(16).padStart(2, '0')).join('');
    return text.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
  }

  // Storage can be forbidden or full; a preference is never worth an error.
  function remember(key, value) {
    try { localStorage.setItem(`tornado_todo.${key}`, JSON.stringify(value)); } catch { /* see above */ }
  }

  function recall(key, otherwise) {
    try { return JSON.parse(localStorage.getItem(`tornado_todo.${key}`)) ?? otherwise; } catch { return otherwise; }
  }

  const plural = (count, one, many) => `${count} ${count === 1 ? one : many}`;
  const lengthOf = text => [...text].length;
  const oneLine = text => text.replace(/\s*[\r\n]+\s*/g, ' ').trim();
  const quoted = title => `“${lengthOf(title) > 42 ? `${[...title].slice(0, 40).join('')}…` : title}”`;
  const isTextField = node => node instanceof HTMLElement
    && node.matches('textarea, select, input:not([type=checkbox], [type=radio], [type=button])');
  // The Enter that ends the composing of a Chinese or Japanese word isn't meant for the page.
  const isEnter = event => event.key === 'Enter' && !event.isComposing && event.keyCode !== 229;

  function announce(text) {
    const region = find('.announcer');
    // The same words twice are read twice only if the region was empty in between.
    region.textContent = '';
    setTimeout(() => { region.textContent = text; }, 30);
  }

  // ---- State -------------------------------------------------------------------------------------------

  const state = {
    lists: [], trashedLists: [], items: [], next: null, view: null, loaded: false, problem: null,
    matching: { active: 0, completed: 0, capped: false }, dueToday: { count: 0, capped: false },
    editing: null, open: null, drag: null, refreshWanted: false, ticket: 0, writes: 0,
    undoable: [], redoable: [], ownBatches: new Set(), away: false, revision: null, knownTags: new Set(),
  };
  const rows = new Map();

  const inbox = () => state.lists.find(list => list.inbox);
  const listById = id => state.lists.find(list => list.id === id);
  const isTrash = () => state.view.kind === 'trash';

  function currentList() {
    if (state.view.kind !== 'list') return null;
    return state.view.list === null ? inbox() : listById(state.view.list);
  }

  function viewTitle() {
    const titles = { all: 'Everything', today: 'Today', trash: 'Trash' };
    if (titles[state.view.kind]) return titles[state.view.kind];
    if (currentList()) return currentList().title;
    return state.view.list === null ? 'Inbox' : 'List';
  }

  // ---- Days and times ----------------------------------------------------------------------------------

  const pad = number => String(number).padStart(2, '0');
  const dayText = date => `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}`;
  const clockFormat = new Intl.DateTimeFormat(undefined, { hour: 'numeric', minute: '2-digit' });
  const weekdayFormat = new Intl.DateTimeFormat(undefined, { weekday: 'long' });
  const dayFormat = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short' });
  const yearFormat = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short', year: 'numeric' });
  const fullFormat = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' });
  const todayFormat = new Intl.DateTimeFormat(undefined, { weekday: 'long', day: 'numeric', month: 'long' });
  const relativeFormat = new Intl.RelativeTimeFormat(undefined, { numeric: 'auto' });

  function dayFromNow(days) {
    const date = new Date();
    date.setDate(date.getDate() + days);
    return dayText(date);
  }

  // A bare date is a day in the reader's own calendar, a date with a time is a moment.
  function dueMoment(due) {
    return due.includes('T') ? new Date(due) : new Date(`${due}T00:00:00`);
  }

  function friendlyDue(due) {
    const moment = dueMoment(due);
    const midnight = new Date(`${dayFromNow(0)}T00:00:00`);
    const days = Math.round((new Date(`${dayText(moment)}T00:00:00`) - midnight) / 86400000);
    const timed = due.includes('T');
    const late = days < 0 || (timed && moment < new Date());
    const time = timed ? `, ${clockFormat.format(moment)}` : '';
    const sameYear = moment.getFullYear() === midnight.getFullYear();
    let words = (sameYear ? dayFormat : yearFormat).format(moment);
    if (days === -1) words = 'Yesterday';
    else if (days === 0) words = 'Today';
    else if (days === 1) words = 'Tomorrow';
    else if (days > 1 && days < 7) words = weekdayFormat.format(moment);
    return { text: words + time, tone: late ? 'overdue' : days === 0 ? 'today' : '' };
  }

  function timeAgo(text) {
    const seconds = (new Date(text) - Date.now()) / 1000;
    if (Math.abs(seconds) < 45) return 'just now';
    if (Math.abs(seconds) < 3600) return relativeFormat.format(Math.round(seconds / 60), 'minute');
    if (Math.abs(seconds) < 86400) return relativeFormat.format(Math.round(seconds / 3600), 'hour');
    if (Math.abs(seconds) < 7 * 86400) return relativeFormat.format(Math.round(seconds / 86400), 'day');
    return fullFormat.format(new Date(text));
  }

  // The server takes a time only with its offset, so the offset of that very day is worked out.
  function dueOf(day, time) {
    if (!day) return null;
    if (!time) return day;
    const offset = -new Date(`${day}T${time}`).getTimezoneOffset();
    const size = Math.abs(offset);
    return `${day}T${time}:00${offset < 0 ? '-' : '+'}${pad(Math.floor(size / 60))}:${pad(size % 60)}`;
  }

  // ---- The server --------------------------------------------------------------------------------------

  class Problem extends Error {
    constructor(status, detail, retryAfter = null) {
      super(detail);
      this.status = status;
      this.retryAfter = retryAfter;
    }

    // A gateway's error says the same as no answer: the server behind it is away for now.
    get isAbsence() { return [0, 502, 504].includes(this.status); }
  }

  async function problemOf(response) {
    let told = {};
    try { told = await response.json(); } catch { /* not every proxy answers in JSON */ }
    const fields = (told.errors ?? []).map(error => error.message).filter(Boolean);
    const detail = told.detail || fields.join(' ') || told.title || `The server answered ${response.status}.`;
    return new Problem(response.status, detail, Number(response.headers.get('Retry-After')) || null);
  }

  async function send(method, path, { body, headers = {} } = {}) {
    const options = { method, headers: { Accept: 'application/json', ...headers } };
    options.signal = AbortSignal.timeout(REQUEST_PATIENCE);
    if (body !== undefined) {
      options.body = JSON.stringify(body);
      options.headers['Content-Type'] = 'application/json';
    }
    // A write outlives the page that sent it; browsers allow that for small bodies only.
    options.keepalive = method !== 'GET' && (options.body ?? '').length < 16000;
    let response;
    try {
      response = await fetch(base + path, options);
    } catch {
      throw new Problem(0, 'The server can’t be reached.');
    }
    if (!response.ok) throw await problemOf(response);
    return response;
  }

  async function getJson(path) {
    const response = await send('GET', path);
    return response.json();
  }

  // Only the query of the next page's address is used: behind a proxy its host may be another than ours.
  function nextQuery(response) {
    const match = /<([^>]+)>;\s*rel="?next"?/.exec(response.headers.get('Link') ?? '');
    return match ? new URL(match[1], location.href).search : null;
  }

  async function fetchPage(query) {
    const response = await send('GET', `/api/todos${query}`);
    return { items: await response.json(), next: nextQuery(response) };
  }

  // ---- Away and back -----------------------------------------------------------------------------------

  let wakeRetry = () => {};

  function showAway(detail, milliseconds) {
    state.away = true;
    const waiting = queue.jobs.length;
    const kept = waiting ? ` ${plural(waiting, 'change is', 'changes are')} kept here and will be sent.` : '';
    const seconds = Math.max(1, Math.round(milliseconds / 1000));
    find('.banner-text').textContent = `${detail}${kept} Trying again in ${seconds} s.`;
    find('.banner').hidden = false;
  }

  function showBack() {
    if (!state.away) return;
    state.away = false;
    find('.banner').hidden = true;
    announce('Connected again.');
    if (!state.loaded) loadView();
    else scheduleRefresh();
    if (live.socket === null) connect();
  }

  // Jitter keeps many pages from coming back in the same instant.
  const backoff = attempt => Math.min(LONGEST_RETRY, 500 * 2 ** attempt) * (0.6 + Math.random() * 0.4);

  function waitForRetry(milliseconds) {
    return Promise.race([sleep(milliseconds), new Promise(resolve => { wakeRetry = resolve; })]);
  }

  // ---- Writing -----------------------------------------------------------------------------------------
  // One queue, one write at a time: the order of acts is kept, an undo never overtakes what it undoes, and
  // while the server is away everything simply waits.

  const queue = { jobs: [], running: false, idle: Promise.resolve() };

  function write(job) {
    state.writes += 1;
    return new Promise(resolve => {
      queue.jobs.push({ ...job, resolve, sent: false });
      if (!queue.running) queue.idle = runQueue();
    });
  }

  async function runQueue() {
    queue.running = true;
    while (queue.jobs.length) {
      const job = queue.jobs[0];
      try {
        const response = await sendPatiently(job);
        const answer = response.status === 204 ? null : await response.json();
        queue.jobs.shift();
        finishWrite(job, answer, response.headers.get('Change-Batch') ?? answer?.batch ?? null);
      } catch (error) {
        queue.jobs.shift();
        failWrite(job, error);
      }
    }
    queue.running = false;
    render();
    scheduleListRefresh();
    if (state.refreshWanted) scheduleRefresh();
  }

  async function sendPatiently(job) {
    let refusals = 0;
    for (let attempt = 0; ; attempt += 1) {
      try {
        job.sent = true;
        const { method, path, body, headers } = job.request();
        const response = await send(method, path, { body, headers });
        showBack();
        return response;
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
        if (error.status === 503) refusals += 1;
        else if (!error.isAbsence) throw error;
        if (refusals > REFUSALS_BEFORE_GIVING_UP) throw error;
        const pause = error.retryAfter ? Math.min(error.retryAfter, 5) * 1000 : backoff(attempt);
        if (attempt > 0) showAway(error.message, pause);
        await waitForRetry(pause);
      }
    }
  }

  function finishWrite(job, answer, batch) {
    if (batch) state.ownBatches.add(batch);
    if (job.entry) job.entry.batch = batch;
    job.accept?.(answer, batch);
    job.resolve(true);
  }

  function failWrite(job, error) {
    if (job.entry) state.undoable = state.undoable.filter(entry => entry !== job.entry);
    job.revert?.(error);
    if (!job.failed?.(error)) showToast(error.message, { tone: 'bad' });
    if (!(error instanceof Problem)) console.error(error);
    state.refreshWanted = true;
    job.resolve(false);
  }

  // The entry is filled with its batch when the answer comes; the queue sees to it that undo comes later.
  function undoEntry(text) {
    const entry = { text, batch: null };
    state.undoable.push(entry);
    state.redoable = [];
    if (state.undoable.length > 100) state.undoable.shift();
    return entry;
  }

  // What is still to be sent outranks an older answer: two quick clicks must not flicker.
  function pendingFields(id) {
    return Object.assign({}, ...queue.jobs.filter(job => job.id === id).map(job => job.fields ?? {}));
  }

  // A closing page can't wait for one answer before the next request, so what is left goes out at once.
  function flushQueue() {
    for (const job of queue.jobs) {
      if (job.sent) continue;
      job.sent = true;
      const { method, path, body, headers } = job.request();
      send(method, path, { body, headers }).catch(() => {});
    }
  }

  // ---- The view in the address -------------------------------------------------------------------------

  function parseHash(hash) {
    const [path, query = ''] = hash.replace(/^#\/?/, '').split('?');
    const parts = path.split('/').filter(Boolean);
    const parameters = new URLSearchParams(query);
    const view = { kind: 'list', list: null, show: 'all', q: parameters.get('q') ?? '' };
    view.tags = parameters.getAll('tag');
    if (parts[0] === 'list') [, view.list = null] = parts.splice(0, 2);
    else if (['all', 'today', 'trash'].includes(parts[0])) view.kind = parts.shift();
    if (['active', 'completed'].includes(parts[0])) [view.show] = parts;
    return view;
  }

  function hashOf(view) {
    const parts = [];
    if (view.kind !== 'list') parts.push(view.kind);
    else if (view.list !== null) parts.push('list', view.list);
    if (view.show !== 'all' && view.kind !== 'trash') parts.push(view.show);
    const parameters = new URLSearchParams();
    if (view.q) parameters.set('q', view.q);
    for (const tag of view.tags) parameters.append('tag', tag);
    const query = parameters.toString();
    return `#/${parts.join('/')}${query ? `?${query}` : ''}`;
  }

  const samePlace = (one, other) => one && other && one.kind === other.kind && one.list === other.list;
  const isFiltered = () => state.view.q !== '' || state.view.tags.length > 0 || state.view.kind === 'today';
  const viewKey = () => state.view.kind === 'list' ? state.view.list ?? 'inbox' : state.view.kind;

  function sortOf() {
    return recall('sort', {})[viewKey()] ?? (state.view.kind === 'today' ? 'due' : 'order');
  }

  // The filters of the view without its limit and order, for reading and for acts on all that is shown.
  function selection(show) {
    const parameters = new URLSearchParams();
    const list = currentList();
    if (list) parameters.set('list', list.id);
    if (state.view.kind === 'today') parameters.set('due', `..${dayFromNow(0)}`);
    if (state.view.q.trim()) parameters.set('q', state.view.q.trim());
    for (const tag of state.view.tags) parameters.append('tag', tag);
    if (show !== 'all') parameters.set('completed', String(show === 'completed'));
    return parameters;
  }

  function viewQuery(limit) {
    const parameters = isTrash() ? new URLSearchParams({ deleted: 'true' }) : selection(state.view.show);
    if (isTrash() && state.view.q.trim()) parameters.set('q', state.view.q.trim());
    parameters.set('sort', isTrash() ? '-updated_at' : sortOf());
    parameters.set('limit', String(limit));
    return `?${parameters}`;
  }

  // Whether a to-do that was changed here still has its place in the view. What the search would say is the
  // server's to know, so a to-do that was found stays until the next answer.
  function belongs(item) {
    const { kind, show, tags } = state.view;
    const list = currentList();
    if (kind === 'list' && list && item.list && item.list !== list.id) return false;
    if (kind === 'today' && !(item.due && dayText(dueMoment(item.due)) <= dayFromNow(0))) return false;
    const own = item.tags.map(tag => tag.toLowerCase());
    if (!tags.every(tag => own.includes(tag.toLowerCase()))) return false;
    return show === 'all' || item.completed === (show === 'completed');
  }

  // ---- Loading -----------------------------------------------------------------------------------------

  async function loadLists() {
    state.lists = await getJson('/api/lists');
  }

  function noteTags(items) {
    for (const item of items) for (const tag of item.tags) state.knownTags.add(tag);
  }

  // A to-do that is still on its way to the server is in no answer yet, but it is on the screen.
  function adopt(items, next) {
    const known = new Set(items.map(item => item.id));
    const waiting = state.items.filter(item => item.pending && !known.has(item.id) && belongs(item));
    for (const item of items) Object.assign(item, pendingFields(item.id));
    state.items = [...items, ...waiting];
    state.next = next;
    noteTags(items);
    const open = items.find(item => item.id === state.open?.id);
    if (open) state.open = open;
  }

  async function loadView() {
    const ticket = ++state.ticket;
    state.problem = null;
    try {
      if (!state.lists.length) await loadLists();
      // An answer that doesn't know the last change yet would undo it on the screen for a moment.
      if (queue.running) await Promise.race([queue.idle, sleep(1500)]);
      if (ticket !== state.ticket) return;
      if (isTrash()) state.trashedLists = await getJson('/api/lists?deleted=true');
      else if (state.view.kind === 'list' && !currentList()) await loadLists();
      if (state.view.kind === 'list' && !currentList()) throw new Problem(404, 'This list is not there any more.');
      const page = await fetchPage(viewQuery(PAGE_SIZE));
      if (ticket !== state.ticket) return;
      adopt(page.items, page.next);
      state.loaded = true;
      if (isFiltered() && !isTrash()) await loadMatching();
    } catch (error) {
      if (ticket !== state.ticket) return;
      loadFailed(error);
    }
    render();
  }

  function loadFailed(error) {
    if (!(error instanceof Problem)) throw error;
    state.problem = error;
    state.items = state.items.filter(item => item.pending);
    state.next = null;
    if (error.isAbsence) probeLater(0);
  }

  // Only whole lists are counted by the server; what a filter selects is counted up to one page here.
  async function loadMatching() {
    const active = selection('active');
    active.set('limit', String(PAGE_SIZE));
    const completed = selection('completed');
    completed.set('limit', '1');
    const [open, done] = await Promise.all([fetchPage(`?${active}`), fetchPage(`?${completed}`)]);
    state.matching = { active: open.items.length, completed: done.items.length, capped: open.next !== null };
  }

  async function loadDueToday() {
    const query = new URLSearchParams({ due: `..${dayFromNow(0)}`, completed: 'false', limit: PAGE_SIZE });
    const page = await fetchPage(`?${query}`);
    state.dueToday = { count: page.items.length, capped: page.next !== null };
    renderSidebar();
  }

  let loadingMore = null;

  function loadMore() {
    if (!state.next || loadingMore) return loadingMore ?? Promise.resolve();
    const ticket = state.ticket;
    loadingMore = fetchPage(state.next).then(page => {
      if (ticket !== state.ticket) return;
      const fresh = new Set(page.items.map(item => item.id));
      const before = state.items.filter(item => !fresh.has(item.id));
      noteTags(page.items);
      state.items = [...before, ...page.items];
      state.next = page.next;
      render();
    }).catch(error => showToast(error.message, { tone: 'bad' })).finally(() => { loadingMore = null; });
    return loadingMore;
  }

  // Reads again as many to-dos as are on the screen.
  async function fetchWindow(wanted) {
    const first = await fetchPage(viewQuery(Math.min(MAXIMUM_LIMIT, Math.max(PAGE_SIZE, wanted))));
    const items = first.items;
    let { next } = first;
    while (next && items.length < wanted) {
      const page = await fetchPage(next);
      items.push(...page.items);
      next = page.next;
    }
    return { items, next };
  }

  const isOccupied = () => state.editing !== null || state.drag !== null || queue.running;

  async function refresh() {
    if (!state.view || !state.loaded) return;
    // Somebody who is typing or dragging is not to be disturbed; the end of it asks again.
    if (isOccupied()) { state.refreshWanted = true; return; }
    state.refreshWanted = false;
    const { ticket, writes } = state;
    try {
      const [lists, page] = await Promise.all([getJson('/api/lists'), fetchWindow(state.items.length)]);
      if (isTrash()) state.trashedLists = await getJson('/api/lists?deleted=true');
      if (ticket !== state.ticket) return;
      if (isOccupied() || writes !== state.writes) { state.refreshWanted = true; return; }
      state.lists = lists;
      adopt(page.items, page.next);
      if (isFiltered() && !isTrash()) await loadMatching();
      state.problem = null;
      if (state.open && !isOpenBusy()) await reloadOpen();
      loadDueToday().catch(() => {});
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (error.status === 404) return loadView();
    }
    render();
    return undefined;
  }

  const scheduleRefresh = debounce(refresh, REFRESH_PAUSE);

  const scheduleListRefresh = debounce(async () => {
    if (queue.running) return;
    const { writes } = state;
    try {
      const lists = await getJson('/api/lists');
      if (queue.running || writes !== state.writes) return;
      state.lists = lists;
      if (isFiltered() && !isTrash()) await loadMatching();
      loadDueToday().catch(() => {});
      render();
    } catch { /* the next write or the socket's return asks again */ }
  }, REFRESH_PAUSE);

  // ---- Counting ----------------------------------------------------------------------------------------

  function counts() {
    if (isFiltered()) return state.matching;
    const lists = state.view.kind === 'all' ? state.lists : [currentList()].filter(Boolean);
    if (!lists.length) {
      const active = state.items.filter(item => !item.completed).length;
      return { active, completed: state.items.length - active, capped: false };
    }
    const sum = field => lists.reduce((total, list) => total + list[field], 0);
    return { active: sum('active'), completed: sum('completed'), capped: false };
  }

  function adjustCounts(item, change) {
    const field = item.completed ? 'completed' : 'active';
    const list = item.list ? listById(item.list) : inbox();
    if (list) list[field] = Math.max(0, list[field] + change);
    state.matching[field] = Math.max(0, state.matching[field] + change);
  }

  // ---- Toasts ------------------------------------------------------------------------------------------

  let toastTimer = null;

  function hideToast() {
    clearTimeout(toastTimer);
    const toast = find('.toast');
    if (!toast) return;
    if (toast.contains(document.activeElement)) find('.new-todo').focus({ preventScroll: true });
    toast.remove();
  }

  // One at a time: the newest act is the one to take back, and Ctrl+Z reaches the older ones.
  function showToast(text, { label = null, action = null, tone = '' } = {}) {
    hideToast();
    const toast = element('div', { className: `toast ${tone}`, role: tone === 'bad' ? 'alert' : 'status' },
      element('span', { className: 'toast-text', dir: 'auto', textContent: text }));
    if (action) {
      toast.append(element('button', { type: 'button', className: 'toast-action', textContent: label,
        click: () => { hideToast(); action(); } }));
    }
    toast.append(element('button', { type: 'button', className: 'icon-button toast-close',
      'aria-label': 'Close this message', click: hideToast }, icon('close')));
    const start = () => { toastTimer = setTimeout(hideToast, TOAST_MILLISECONDS); };
    const pause = () => clearTimeout(toastTimer);
    for (const kind of ['pointerenter', 'focusin']) toast.addEventListener(kind, pause);
    for (const kind of ['pointerleave', 'focusout']) toast.addEventListener(kind, () => { pause(); start(); });
    find('.toasts').append(toast);
    start();
  }

  const offerUndo = entry => showToast(entry.text, { label: 'Undo', action: () => undo(entry) });

  // ---- Undo --------------------------------------------------------------------------------------------

  function undo(entry = state.undoable.at(-1)) {
    if (!entry) return announce('Nothing to undo.');
    state.undoable = state.undoable.filter(other => other !== entry);
    return takeBack(entry, 'Undone', state.redoable, redo);
  }

  function redo(entry = state.redoable.at(-1)) {
    if (!entry) return announce('Nothing to redo.');
    state.redoable = state.redoable.filter(other => other !== entry);
    return takeBack(entry, 'Done again', state.undoable, undo);
  }

  // An undo is itself a batch; undoing that one does the act again.
  function takeBack(entry, word, stack, opposite) {
    const back = { text: entry.text, batch: null };
    return write({
      request: () => ({ method: 'POST', path: '/api/undo', body: { batch: entry.batch } }),
      accept: (answer, batch) => {
        back.batch = batch;
        stack.push(back);
        const label = word === 'Undone' ? 'Redo' : 'Undo';
        showToast(`${word}: ${entry.text}`, { label, action: () => opposite(back) });
        state.refreshWanted = true;
      },
    });
  }

  // ---- To-dos: acts ------------------------------------------------------------------------------------

  function complainOfTitle(title) {
    if (lengthOf(title) <= TITLE_LENGTH) return false;
    showToast(`A title has at most ${TITLE_LENGTH} characters; this one has ${lengthOf(title)}.`, { tone: 'bad' });
    return true;
  }

  function splitTags(text) {
    const tags = [];
    for (const tag of text.split(',').map(part => part.trim().replace(/^#/, '')).filter(Boolean)) {
      if (!tags.some(other => other.toLowerCase() === tag.toLowerCase())) tags.push(tag);
    }
    return tags.slice(0, MAXIMUM_TAGS).map(tag => [...tag].slice(0, TAG_LENGTH).join(''));
  }

  // A new to-do takes what the view is about: its list, its tags, today's date.
  function newFields(title) {
    const fields = { title };
    const list = currentList();
    if (list && !list.inbox) fields.list = list.id;
    const due = find('.new-due').value || (state.view.kind === 'today' ? dayFromNow(0) : '');
    const priority = Number(find('.new-priority').value);
    const tags = splitTags([...state.view.tags, find('.new-tags').value].join(','));
    if (due) fields.due = due;
    if (priority) fields.priority = priority;
    if (tags.length) fields.tags = tags;
    return fields;
  }

  function clearComposer() {
    for (const name of ['.new-todo', '.new-due', '.new-tags']) find(name).value = '';
    find('.new-priority').value = '0';
  }

  function createTodo() {
    const title = oneLine(find('.new-todo').value);
    if (!title || isTrash() || complainOfTitle(title)) return;
    const fields = newFields(title);
    const item = { id: newId(), list: fields.list ?? inbox()?.id ?? null, completed: false, notes: '', due: null,
      priority: 0, tags: [], order: (state.items.at(-1)?.order ?? 0) + 1, pending: true, ...fields };
    clearComposer();
    const visible = belongs(item) && state.view.q === '';
    if (visible) state.items.push(item);
    else showToast(`Added ${quoted(title)}; this view doesn’t show it.`);
    adjustCounts(item, +1);
    write({
      id: item.id, entry: undoEntry(`Added ${quoted(title)}`),
      request: () => ({ method: 'PUT', path: `/api/todos/${item.id}`, body: fields }),
      accept: answer => { Object.assign(item, answer, pendingFields(item.id), { pending: false }); noteTags([item]); },
      revert: () => { adjustCounts(item, -1); state.items = state.items.filter(other => other !== item); },
      failed: error => giveBack(title, error),
    });
    render();
    announce(`Added ${title}.`);
    if (visible) rows.get(item.id)?.scrollIntoView({ block: 'nearest' });
  }

  // What somebody typed comes back to where it was typed, unless the next thing stands there already.
  function giveBack(title, error) {
    const input = find('.new-todo');
    const put = () => { input.value = title; input.focus(); };
    if (input.value === '') {
      put();
      return false;
    }
    showToast(`Not saved: ${quoted(title)}. ${error.message}`, { tone: 'bad', label: 'Edit it', action: put });
    return true;
  }

  function applyFields(item, fields) {
    adjustCounts(item, -1);
    Object.assign(item, fields);
    adjustCounts(item, +1);
    const shown = state.items.includes(item);
    if (shown && !belongs(item)) state.items = state.items.filter(other => other !== item);
  }

  function itemById(id) {
    return state.items.find(item => item.id === id) ?? (state.open?.id === id ? state.open : undefined);
  }

  function changeTodo(item, fields, text, { failed } = {}) {
    const before = Object.fromEntries(Object.keys(fields).map(name => [name, item[name]]));
    const place = state.items.indexOf(item);
    const entry = undoEntry(text);
    applyFields(item, fields);
    write({
      id: item.id, fields, entry, failed,
      request: () => ({ method: 'PATCH', path: `/api/todos/${item.id}`, body: fields }),
      accept: answer => {
        Object.assign(itemById(item.id) ?? item, answer, pendingFields(item.id));
        noteTags([answer]);
        if (sortOf() !== 'order' || state.view.q) state.refreshWanted = true;
        if (state.open?.id === item.id) loadHistory();
      },
      revert: () => {
        applyFields(item, before);
        if (place >= 0 && !state.items.includes(item)) state.items.splice(place, 0, item);
      },
    });
    render();
    return entry;
  }

  function toggleTodo(item) {
    const completed = !item.completed;
    changeTodo(item, { completed }, `${completed ? 'Completed' : 'Reopened'} ${quoted(item.title)}`);
    announce(`${item.title}: ${completed ? 'completed' : 'active'}.`);
  }

  function deleteTodo(item) {
    const place = state.items.indexOf(item);
    const entry = undoEntry(`Deleted ${quoted(item.title)}`);
    state.items = state.items.filter(other => other.id !== item.id);
    adjustCounts(item, -1);
    if (state.open?.id === item.id) closeDetail();
    write({
      id: item.id, entry,
      request: () => ({ method: 'DELETE', path: `/api/todos/${item.id}` }),
      revert: () => { adjustCounts(item, +1); if (place >= 0) state.items.splice(place, 0, item); },
    });
    render();
    offerUndo(entry);
  }

  // An act on all that the view selects; what isn't loaded is included, so the server does the selecting.
  function bulk({ method, show, body, text, change }) {
    const query = selection(show);
    const entry = undoEntry(text);
    change();
    write({
      entry,
      request: () => ({ method, path: `/api/todos?${query}`, body }),
      accept: () => { state.refreshWanted = true; },
    });
    render();
    offerUndo(entry);
  }

  function setCounts(change) {
    const list = currentList();
    const counted = state.view.kind === 'all' ? state.lists : [list].filter(Boolean);
    for (const each of isFiltered() ? [state.matching] : counted) Object.assign(each, change(each));
  }

  function toggleAll() {
    const completed = counts().active > 0;
    const amount = completed ? counts().active : counts().completed;
    const word = completed ? 'completed' : 'active';
    bulk({
      method: 'PATCH', show: completed ? 'active' : 'completed', body: { completed },
      text: `Marked ${isFiltered() ? 'all shown here' : plural(amount, 'to-do', 'to-dos')} as ${word}`,
      change: () => {
        setCounts(({ active, completed: done }) => completed
          ? { active: 0, completed: active + done } : { active: active + done, completed: 0 });
        for (const item of state.items) item.completed = completed;
        state.items = state.items.filter(belongs);
      },
    });
  }

  function clearCompleted() {
    const amount = counts().completed;
    bulk({
      method: 'DELETE', show: 'completed',
      text: isFiltered() ? 'Cleared what was completed' : `Cleared ${plural(amount, 'completed to-do', 'completed to-dos')}`,
      change: () => {
        setCounts(() => ({ completed: 0 }));
        if (state.open?.completed) closeDetail();
        state.items = state.items.filter(item => !item.completed);
      },
    });
    find('.new-todo').focus({ preventScroll: true });
  }

  // ---- To-dos: order -----------------------------------------------------------------------------------

  const canReorder = () => !isTrash() && sortOf() === 'order' && state.view.q === '';

  // The order is worked out when the write is sent: by then the neighbours' own moves are answered.
  function orderBetween(item) {
    const place = state.items.indexOf(item);
    const previous = state.items[place - 1];
    const following = state.items[place + 1];
    if (previous && following) return (previous.order + following.order) / 2;
    if (previous) return previous.order + 1;
    return following ? following.order - 1 : item.order;
  }

  async function moveTodo(item, target) {
    if (target >= state.items.length - 1 && state.next) await loadMore();
    const from = state.items.indexOf(item);
    if (from < 0 || target === from || target < 0 || target >= state.items.length) return;
    state.items.splice(from, 1);
    state.items.splice(target, 0, item);
    const before = item.order;
    let order = null;
    write({
      id: item.id, entry: undoEntry(`Moved ${quoted(item.title)}`),
      request: () => {
        order ??= orderBetween(item);
        item.order = order;
        return { method: 'PATCH', path: `/api/todos/${item.id}`, body: { order } };
      },
      accept: answer => Object.assign(itemById(item.id) ?? item, answer, pendingFields(item.id)),
      revert: () => { item.order = before; state.items.splice(state.items.indexOf(item), 1);
        state.items.splice(from, 0, item); },
    });
    render();
    announce(`${item.title}: moved to position ${target + 1} of ${state.items.length}.`);
  }

  function moveByKey(item, step) {
    if (!canReorder()) return announce('Choose “My order” and clear the search to move to-dos.');
    const target = state.items.indexOf(item) + step;
    if (target < 0) return announce('Already the first.');
    if (target >= state.items.length && !state.next) return announce('Already the last.');
    return moveTodo(item, target);
  }

  // ---- To-dos: rows ------------------------------------------------------------------------------------

  function createRow(item) {
    const label = element('label', { dir: 'auto' });
    const view = element('div', { className: 'view' },
      element('span', { className: 'grip', title: 'Drag to move', 'aria-hidden': 'true' }, icon('grip')),
      element('input', { type: 'checkbox', className: 'toggle' }),
      element('div', { className: 'words' }, label, element('div', { className: 'meta' })),
      element('button', { type: 'button', className: 'icon-button details-button' }, icon('details')),
      element('button', { type: 'button', className: 'icon-button destroy' }, icon('close')));
    const edit = element('input', { type: 'text', className: 'edit', 'aria-label': 'Edit the title',
      autocomplete: 'off', enterKeyHint: 'done', dir: 'auto' });
    return element('li', { dataset: { id: item.id } }, view, edit);
  }

  function rowSignature(item) {
    return JSON.stringify([item.title, item.completed, item.due, item.priority, item.tags, item.notes !== '',
      item.pending, state.view.kind === 'list' || listById(item.list)?.title, dayFromNow(0),
      state.open?.id === item.id, state.view.tags]);
  }

  function dueMark(due) {
    const { text, tone } = friendlyDue(due);
    const words = tone === 'overdue' ? `Overdue · ${text}` : text;
    return element('span', { className: `mark due ${tone}` }, icon('calendar'),
      element('time', { dateTime: due, textContent: words }));
  }

  function tagButton(tag) {
    const chosen = state.view.tags.some(other => other.toLowerCase() === tag.toLowerCase());
    return element('button', { type: 'button', className: `tag${chosen ? ' chosen' : ''}`, dir: 'auto',
      textContent: tag, 'aria-label': `Show only what is tagged ${tag}`, dataset: { tag } });
  }

  function priorityMark(priority) {
    return element('span', { className: `mark priority level-${priority}` },
      element('span', { className: 'bars', 'aria-hidden': 'true' }, element('i'), element('i'), element('i')),
      element('span', { textContent: PRIORITIES[priority] }));
  }

  function metaOf(item) {
    const marks = [];
    if (item.priority) marks.push(priorityMark(item.priority));
    if (item.due) marks.push(dueMark(item.due));
    if (state.view.kind !== 'list' && listById(item.list)) {
      marks.push(element('span', { className: 'mark in-list', dir: 'auto', textContent: listById(item.list).title }));
    }
    marks.push(...item.tags.map(tagButton));
    if (item.notes) {
      const note = element('span', { className: 'mark note', title: 'Has notes' }, icon('note'));
      note.append(element('span', { className: 'hidden-words', textContent: 'Has notes' }));
      marks.push(note);
    }
    return marks;
  }

  function updateRow(row, item) {
    const signature = rowSignature(item);
    if (row.signature === signature) return;
    row.signature = signature;
    row.classList.toggle('completed', item.completed);
    row.classList.toggle('pending', Boolean(item.pending));
    row.classList.toggle('open', state.open?.id === item.id);
    for (const level of [1, 2, 3]) row.classList.toggle(`priority-${level}`, item.priority === level);
    find('label', row).textContent = item.title;
    find('.toggle', row).checked = item.completed;
    find('.toggle', row).setAttribute('aria-label', item.title);
    find('.details-button', row).setAttribute('aria-label', `Details of ${item.title}`);
    find('.destroy', row).setAttribute('aria-label', `Delete ${item.title}`);
    find('.meta', row).replaceChildren(...metaOf(item));
  }

  // Rows are kept by id and moved only when they must be, so focus, scroll and running transitions survive.
  function renderRows() {
    const list = find('.todo-list');
    const focused = document.activeElement;
    const focusedPlace = [...list.children].findIndex(row => row.contains(focused));
    const shown = new Set(state.items.map(item => item.id));
    for (const [id, row] of rows) {
      if (shown.has(id) || row.classList.contains('editing')) continue;
      row.remove();
      rows.delete(id);
    }
    let cursor = list.firstElementChild;
    for (const item of state.items) {
      const row = rows.get(item.id) ?? createRow(item);
      rows.set(item.id, row);
      updateRow(row, item);
      if (row === cursor) cursor = cursor.nextElementSibling;
      else list.insertBefore(row, cursor);
    }
    if (focusedPlace >= 0) keepFocus(list, focused, focusedPlace);
  }

  function keepFocus(list, focused, place) {
    if (document.activeElement === focused) return;
    if (list.contains(focused)) return focused.focus({ preventScroll: true });
    const row = list.children[Math.min(place, list.children.length - 1)];
    return (row ? find('.toggle', row) : find('.new-todo')).focus({ preventScroll: true });
  }

  const rowOf = node => node instanceof Element ? node.closest('.todo-list li') : null;
  const itemOf = row => row ? itemById(row.dataset.id) : undefined;

  // ---- To-dos: editing in place ------------------------------------------------------------------------

  function startEdit(row, text = null) {
    const item = itemOf(row);
    if (!item || state.editing === item.id) return;
    state.editing = item.id;
    row.classList.add('editing');
    const edit = find('.edit', row);
    edit.value = text ?? item.title;
    edit.focus();
    edit.setSelectionRange(edit.value.length, edit.value.length);
  }

  function endEdit(row) {
    state.editing = null;
    row.classList.remove('editing');
    if (state.refreshWanted) scheduleRefresh();
  }

  function saveEdit(row) {
    const item = itemOf(row);
    const title = oneLine(find('.edit', row).value);
    if (!item) return endEdit(row);
    if (complainOfTitle(title)) return undefined;
    endEdit(row);
    if (!title) return deleteTodo(item);
    if (title === item.title) return undefined;
    const failed = error => {
      showToast(error.message, { tone: 'bad' });
      if (rows.has(item.id)) startEdit(rows.get(item.id), title);
      else find('.new-todo').value ||= title;
      return true;
    };
    return changeTodo(item, { title }, `Renamed ${quoted(item.title)}`, { failed });
  }

  function editKey(event, row) {
    if (isEnter(event)) {
      event.preventDefault();
      saveEdit(row);
    } else if (event.key === 'Escape' && !event.isComposing) {
      event.stopPropagation();
      endEdit(row);
    } else {
      return;
    }
    if (state.editing === null && row.isConnected) find('.toggle', row).focus({ preventScroll: true });
  }

  // ---- To-dos: events ----------------------------------------------------------------------------------

  function listClick(event) {
    const row = rowOf(event.target);
    const item = itemOf(row);
    if (!item) return;
    if (event.target.closest('.destroy')) deleteTodo(item);
    else if (event.target.closest('.details-button')) openDetail(item);
    else if (event.target.closest('.tag')) toggleTag(event.target.closest('.tag').dataset.tag);
    else if (event.target.closest('label')) {
      // A finger has no double-click worth the name; it gets the details, where the title can be edited too.
      const isFinger = event.pointerType === 'touch';
      if (isFinger || (state.open && state.open.id !== item.id)) openDetail(item, { takeFocus: isFinger });
    }
  }

  function listKey(event) {
    const row = rowOf(event.target);
    if (!row) return;
    if (event.target.matches('.edit')) { editKey(event, row); return; }
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (step && event.altKey) moveByKey(itemOf(row), step);
    else if (step && !event.ctrlKey && !event.metaKey) focusRow(row, step);
    else if (event.key === 'F2') startEdit(row);
    else if (event.key === 'Delete') deleteTodo(itemOf(row));
    else if (event.key === 'Enter' && event.target.matches('.toggle')) openDetail(itemOf(row));
    else return;
    event.preventDefault();
  }

  function focusRow(row, step) {
    const next = step < 0 ? row.previousElementSibling : row.nextElementSibling;
    if (next) find('.toggle', next).focus();
    else if (step < 0) find('.new-todo').focus();
  }

  function listenToList() {
    const list = find('.todo-list');
    list.addEventListener('click', listClick);
    list.addEventListener('keydown', listKey);
    list.addEventListener('change', event => {
      if (event.target.matches('.toggle')) toggleTodo(itemOf(rowOf(event.target)));
    });
    list.addEventListener('dblclick', event => {
      if (event.target.matches('label')) startEdit(rowOf(event.target));
    });
    list.addEventListener('focusout', event => {
      const row = rowOf(event.target);
      if (event.target.matches('.edit') && row.classList.contains('editing')) saveEdit(row);
    });
    list.addEventListener('pointerdown', startDrag);
  }

  // ---- To-dos: dragging --------------------------------------------------------------------------------
  // The dragged row follows the pointer by a transform and the others make room; the document itself changes
  // only at the drop, because a moved element would lose the pointer.

  function startDrag(event) {
    const grip = event.target.closest('.grip');
    if (!grip || event.button !== 0 || !canReorder()) return;
    const row = rowOf(grip);
    const all = findAll('.todo-list > li');
    const from = all.indexOf(row);
    state.drag = { row, all, from, to: from, startY: event.clientY, y: event.clientY, scroll: scrollY, grip,
      tops: all.map(each => each.offsetTop), heights: all.map(each => each.offsetHeight), place: null };
    event.preventDefault();
    grip.setPointerCapture(event.pointerId);
    row.classList.add('dragging');
    document.documentElement.classList.add('is-dragging');
    grip.addEventListener('pointermove', followDrag);
    grip.addEventListener('pointerup', dropDrag);
    grip.addEventListener('pointercancel', cancelDrag);
    requestAnimationFrame(scrollWhileDragging);
  }

  function followDrag(event) {
    const { drag } = state;
    if (!drag) return;
    drag.y = event.clientY;
    markDropPlace(document.elementFromPoint(event.clientX, event.clientY)?.closest('.place[data-list]') ?? null);
    shiftRows();
  }

  function markDropPlace(place) {
    const { drag } = state;
    if (drag.place === place) return;
    drag.place?.classList.remove('drop-here');
    place?.classList.add('drop-here');
    drag.place = place;
  }

  function shiftRows() {
    const { row, all, from, tops, heights, startY, y, scroll } = state.drag;
    const distance = y - startY + scrollY - scroll;
    const middle = tops[from] + heights[from] / 2 + distance;
    let to = from;
    while (to + 1 < all.length && middle > tops[to + 1] + heights[to + 1] / 2) to += 1;
    while (to > 0 && middle < tops[to - 1] + heights[to - 1] / 2) to -= 1;
    row.style.transform = `translateY(${distance}px)`;
    const [low, high] = [Math.min(from, to, state.drag.to), Math.max(from, to, state.drag.to)];
    for (let index = low; index <= high; index += 1) {
      if (index === from) continue;
      const down = index < from && index >= to;
      const up = index > from && index <= to;
      all[index].style.transform = down ? `translateY(${heights[from]}px)` : up ? `translateY(-${heights[from]}px)` : '';
    }
    state.drag.to = to;
  }

  function scrollWhileDragging() {
    const { drag } = state;
    if (!drag) return;
    const edge = 70;
    const over = drag.y < edge ? drag.y - edge : Math.max(0, drag.y - (innerHeight - edge));
    if (over !== 0 && drag.place === null) {
      scrollBy({ top: over / 5, behavior: 'instant' });
      shiftRows();
    }
    requestAnimationFrame(scrollWhileDragging);
  }

  function endDrag() {
    const { drag } = state;
    if (!drag) return null;
    markDropPlace(null);
    state.drag = null;
    for (const kind of ['pointermove', 'pointerup', 'pointercancel']) {
      for (const listener of [followDrag, dropDrag, cancelDrag]) drag.grip.removeEventListener(kind, listener);
    }
    // Without this the rows would glide back from where the transforms left them.
    document.documentElement.classList.remove('is-dragging');
    for (const row of drag.all) row.style.transform = '';
    drag.row.classList.remove('dragging');
    if (state.refreshWanted) scheduleRefresh();
    return drag;
  }

  function dropDrag() {
    const listId = state.drag?.place?.dataset.list;
    const drag = endDrag();
    const item = drag && itemOf(drag.row);
    if (!item) return;
    if (listId && listId !== item.list) moveToList(item, listId);
    else if (!listId && drag.to !== drag.from) moveTodo(item, drag.to);
  }

  function cancelDrag() { endDrag(); }

  function moveToList(item, listId) {
    const entry = changeTodo(item, { list: listId }, `Moved ${quoted(item.title)} to ${listById(listId).title}`);
    offerUndo(entry);
  }

  // ---- Lists -------------------------------------------------------------------------------------------

  function placeLink({ hash, name, iconName, count, current, list }) {
    const link = element('a', { className: 'place', href: hash }, icon(iconName),
      element('span', { className: 'place-name', dir: 'auto', textContent: name }));
    if (current) link.setAttribute('aria-current', 'page');
    if (list) link.dataset.list = list;
    if (count) {
      link.append(element('span', { className: 'place-count', 'aria-hidden': 'true', textContent: count }),
        element('span', { className: 'hidden-words', textContent: ` ${count} left` }));
    }
    return element('li', {}, link);
  }

  function places() {
    const plain = { list: null, show: 'all', q: '', tags: [] };
    const { kind } = state.view;
    const isInbox = kind === 'list' && (!state.view.list || currentList()?.inbox);
    const today = state.dueToday;
    const all = state.lists.reduce((sum, list) => sum + list.active, 0);
    const views = [
      { hash: '#/', name: inbox()?.title ?? 'Inbox', iconName: 'inbox', count: inbox()?.active, list: inbox()?.id,
        current: isInbox },
      { hash: hashOf({ ...plain, kind: 'today' }), name: 'Today', iconName: 'today',
        count: today.count ? `${today.count}${today.capped ? '+' : ''}` : 0, current: kind === 'today' },
      { hash: hashOf({ ...plain, kind: 'all' }), name: 'Everything', iconName: 'all', count: all,
        current: kind === 'all' }];
    const lists = state.lists.filter(list => !list.inbox).map(list => ({
      hash: hashOf({ ...plain, kind: 'list', list: list.id }), name: list.title, iconName: 'list',
      count: list.active, list: list.id, current: kind === 'list' && currentList() === list }));
    return { views, lists };
  }

  let sidebarSignature = '';

  function renderSidebar() {
    const { views, lists } = places();
    const signature = JSON.stringify([views, lists]);
    const trash = find('.trash-link');
    if (isTrash()) trash.setAttribute('aria-current', 'page');
    else trash.removeAttribute('aria-current');
    if (signature === sidebarSignature || state.drag) return;
    sidebarSignature = signature;
    const focused = document.activeElement.closest('.views a, .lists a')?.getAttribute('href');
    find('.views').replaceChildren(...views.map(placeLink));
    find('.lists').replaceChildren(...lists.map(placeLink));
    find('.sidebar-heading').hidden = lists.length === 0;
    if (focused) findAll('.views a, .lists a').find(link => link.getAttribute('href') === focused)?.focus();
  }

  function startNewList() {
    find('.new-list-button').hidden = true;
    const input = find('.new-list');
    input.hidden = false;
    input.focus();
  }

  function endNewList() {
    const input = find('.new-list');
    input.value = '';
    input.hidden = true;
    find('.new-list-button').hidden = false;
  }

  function createList() {
    const input = find('.new-list');
    const title = oneLine(input.value);
    if (!title) { endNewList(); return; }
    const key = newId();
    endNewList();
    write({
      entry: undoEntry(`Created the list ${quoted(title)}`),
      request: () => ({ method: 'POST', path: '/api/lists', body: { title }, headers: { 'Idempotency-Key': key } }),
      accept: answer => {
        if (!listById(answer.id)) state.lists.push(answer);
        closeDrawer();
        location.hash = `#/list/${answer.id}`;
        find('.new-todo').focus({ preventScroll: true });
      },
      revert: () => { startNewList(); find('.new-list').value = title; },
    });
  }

  function startRename() {
    const list = currentList();
    const input = find('.rename-list');
    input.value = list.title;
    find('h1').hidden = true;
    input.hidden = false;
    input.focus();
    input.select();
  }

  function endRename({ save }) {
    const input = find('.rename-list');
    if (input.hidden) return;
    const list = currentList();
    const title = oneLine(input.value);
    input.hidden = true;
    find('h1').hidden = false;
    if (!save || !list || !title || title === list.title || complainOfTitle(title)) return;
    const before = list.title;
    list.title = title;
    write({
      entry: undoEntry(`Renamed the list ${quoted(before)}`),
      request: () => ({ method: 'PATCH', path: `/api/lists/${list.id}`, body: { title } }),
      revert: () => { list.title = before; startRename(); input.value = title; },
    });
    render();
  }

  function deleteList() {
    const list = currentList();
    const entry = undoEntry(`Deleted the list ${quoted(list.title)}`);
    state.lists = state.lists.filter(other => other !== list);
    write({
      entry,
      request: () => ({ method: 'DELETE', path: `/api/lists/${list.id}` }),
      revert: () => { state.lists.push(list); },
    });
    location.hash = '#/';
    find('.new-todo').focus({ preventScroll: true });
    offerUndo(entry);
  }

  function openDrawer() {
    document.documentElement.classList.add('drawer-open');
    find('.scrim').hidden = false;
    find('.open-drawer').setAttribute('aria-expanded', 'true');
    settleLayout();
    (find('.sidebar [aria-current]') ?? find('.close-drawer')).focus();
  }

  function closeDrawer() {
    if (!document.documentElement.classList.contains('drawer-open')) return;
    document.documentElement.classList.remove('drawer-open');
    find('.scrim').hidden = true;
    find('.open-drawer').setAttribute('aria-expanded', 'false');
    settleLayout();
    find('.open-drawer').focus({ preventScroll: true });
  }

  // What lies under a drawer or a covering panel is out of reach for the keyboard and for screen readers too.
  function settleLayout() {
    const drawer = document.documentElement.classList.contains('drawer-open');
    const covered = state.open !== null && coveringDetail.matches;
    find('.sidebar').inert = covered || (narrowScreen.matches && !drawer);
    find('.page').inert = covered || drawer;
    find('.detail').inert = drawer;
    document.documentElement.classList.toggle('detail-open', state.open !== null);
  }

  // ---- Search, sort, tags ------------------------------------------------------------------------------

  function goTo(changes, { replace = false } = {}) {
    const hash = hashOf({ ...state.view, ...changes });
    if (replace) {
      history.replaceState(null, '', hash);
      followHash();
    } else {
      location.hash = hash;
    }
  }

  const search = debounce(() => {
    const q = find('.search').value;
    if (q !== state.view.q) goTo({ q }, { replace: true });
  }, SEARCH_PAUSE);

  function toggleTag(tag) {
    const has = state.view.tags.some(other => other.toLowerCase() === tag.toLowerCase());
    const tags = state.view.tags.filter(other => other.toLowerCase() !== tag.toLowerCase());
    goTo({ tags: has ? tags : [...tags, tag] });
  }

  function chooseSort() {
    remember('sort', { ...recall('sort', {}), [viewKey()]: find('.sort').value });
    loadView();
  }

  function filterChip(text, label, click) {
    return element('button', { type: 'button', className: 'filter-chip', 'aria-label': label, click },
      element('span', { dir: 'auto', textContent: text }), icon('close'));
  }

  function renderActiveFilters() {
    const { q, tags, kind } = state.view;
    const clearSearch = () => { find('.search').value = ''; goTo({ q: '' }); find('.search').focus(); };
    const chips = tags.map(tag => filterChip(`Tagged ${tag}`, `Stop showing only ${tag}`, () => toggleTag(tag)));
    if (q) chips.unshift(filterChip(`Search: ${q}`, 'Clear the search', clearSearch));
    if (chips.length && kind === 'list') {
      chips.push(element('a', { className: 'widen', href: hashOf({ ...state.view, kind: 'all', list: null }),
        textContent: 'Look in every list' }));
    }
    const box = find('.active-filters');
    const signature = JSON.stringify([q, tags, kind, state.view.list]);
    box.hidden = chips.length === 0;
    if (box.signature === signature) return;
    box.signature = signature;
    box.replaceChildren(...chips);
  }

  // ---- Rendering ---------------------------------------------------------------------------------------

  function renderHeader() {
    const title = viewTitle();
    const list = currentList();
    find('h1').textContent = title;
    document.title = `${title} · tornado_todo`;
    find('.list-tools').hidden = !list || list.inbox;
    find('.composer').hidden = isTrash();
    find('.empty-trash').hidden = !isTrash() || state.items.length === 0;
    const { active, completed } = counts();
    const progress = find('.progress');
    progress.hidden = isTrash() || isFiltered() || completed === 0;
    progress.max = Math.max(1, active + completed);
    progress.value = completed;
    progress.setAttribute('aria-valuetext', `${completed} of ${active + completed} completed`);
    find('.composer').classList.toggle('with-options', !find('.new-options').hidden);
    if (document.activeElement !== find('.search')) find('.search').value = state.view.q;
  }

  function renderFooter() {
    const { active, completed, capped } = counts();
    const total = active + completed;
    const isNarrowed = state.view.q !== '' || state.view.tags.length > 0;
    // A search that finds nothing isn't an empty list; its filters must stay in reach.
    const hasTodos = total > 0 || state.items.length > 0 || (isNarrowed && state.view.show !== 'all');
    find('.main').hidden = isTrash() || !hasTodos;
    find('.footer').hidden = isTrash() || !hasTodos;
    find('.toggle-all').checked = active === 0 && total > 0;
    find('.todo-count').replaceChildren(element('strong', { textContent: `${active}${capped ? '+' : ''}` }),
      ` ${active === 1 && !capped ? 'item' : 'items'} left`);
    find('.clear-completed').hidden = completed === 0;
    find('.list-bar').hidden = total === 0;
    for (const link of findAll('.filters a')) {
      const selected = link.dataset.show === state.view.show;
      link.setAttribute('href', hashOf({ ...state.view, show: link.dataset.show }));
      link.classList.toggle('selected', selected);
      if (selected) link.setAttribute('aria-current', 'true');
      else link.removeAttribute('aria-current');
    }
  }

  function emptyWords() {
    const { kind, show, q, tags } = state.view;
    if (state.problem) return ['Out of reach', state.problem.message, 'retry'];
    if (kind === 'trash') {
      return q ? ['Nothing found', 'Nothing in the trash has these words.'] : ['The trash is empty',
        'What you delete comes here first and can be restored.'];
    }
    if (q) return ['Nothing found', `Nothing here has the words ${quoted(q)}. Case and accents don’t matter.`];
    if (tags.length) return ['Nothing here', `No ${show === 'all' ? '' : `${show} `}to-do has ${quoted(tags.join(', '))}.`];
    const { active, completed } = counts();
    if (show === 'active' && completed > 0) return ['All done', 'Every single one. The rest of the day is yours.'];
    if (show === 'completed' && active > 0) return ['Nothing completed yet', 'Tick a to-do and it will be kept here.'];
    if (kind === 'today') return ['Clear skies', 'Nothing is due today, and nothing is late.'];
    return ['All clear', 'Type what is on your mind and press Enter.'];
  }

  function renderEmpty() {
    const box = find('.empty');
    const deletedLists = isTrash() ? state.trashedLists.length : 0;
    box.hidden = state.items.length > 0 || deletedLists > 0 || (!state.loaded && !state.problem);
    if (box.hidden) return;
    const [title, text, action] = emptyWords();
    find('.empty-title').textContent = title;
    find('.empty-text').textContent = text;
    const place = find('.empty-action');
    if (!action) { place.replaceChildren(); return; }
    if (place.firstChild) return;
    place.append(element('button', { type: 'button', className: 'quiet-button', textContent: 'Try again',
      click: () => loadView() }));
  }

  function render() {
    if (!state.view) return;
    renderSidebar();
    renderHeader();
    renderActiveFilters();
    if (isTrash()) renderTrash();
    else renderRows();
    find('.trash-view').hidden = !isTrash() || (state.items.length === 0 && state.trashedLists.length === 0);
    find('.todo-list').classList.toggle('sortable', canReorder());
    find('.sort').value = sortOf();
    renderFooter();
    renderEmpty();
    for (const more of findAll('.more')) more.hidden = state.next === null;
    renderDetail();
  }

  // ---- Trash -------------------------------------------------------------------------------------------

  function trashRow(item, { isList }) {
    const kind = isList ? 'list' : 'to-do';
    const where = isList ? 'List' : listById(item.list)?.title ?? 'a deleted list';
    const restore = element('button', { type: 'button', className: 'quiet-button restore',
      'aria-label': `Restore ${item.title}`, click: () => restoreFromTrash(item, isList) },
    icon('restore'), 'Restore');
    const purge = element('button', { type: 'button', className: 'icon-button purge',
      'aria-label': `Delete ${item.title} for good`, click: () => purgeTodo(item) }, icon('trash'));
    return element('li', { className: 'trash-row', dataset: { id: item.id, kind } },
      element('div', { className: 'words' },
        element('span', { className: 'trash-title', dir: 'auto', textContent: item.title }),
        element('span', { className: 'trash-when' }, `${where} · deleted `,
          element('time', { dateTime: item.deleted_at, textContent: timeAgo(item.deleted_at) }))),
      restore, isList ? null : purge);
  }

  function renderTrash() {
    const focusedRow = document.activeElement.closest('.trash-row');
    const place = focusedRow ? [...find('.trash-list').children].indexOf(focusedRow) : -1;
    find('.trash-list').replaceChildren(
      ...state.trashedLists.map(list => trashRow(list, { isList: true })),
      ...state.items.map(item => trashRow(item, { isList: false })));
    if (place < 0) return;
    const row = find('.trash-list').children[Math.min(place, find('.trash-list').children.length - 1)];
    (row ? find('.restore', row) : find('.open-drawer')).focus();
  }

  function restoreFromTrash(item, isList) {
    const name = isList ? 'trashedLists' : 'items';
    const place = state[name].indexOf(item);
    state[name] = state[name].filter(other => other !== item);
    write({
      entry: undoEntry(`Restored ${quoted(item.title)}`),
      request: () => ({ method: 'POST', path: `/api/${isList ? 'lists' : 'todos'}/${item.id}/restore` }),
      accept: () => { state.refreshWanted = true; showToast(`Restored ${quoted(item.title)}.`); },
      revert: () => { state[name].splice(place, 0, item); },
    });
    render();
  }

  async function purgeTodo(item) {
    const sure = await confirmed(`Delete ${quoted(item.title)} for good?`, 'This can’t be undone.');
    if (!sure) return;
    const place = state.items.indexOf(item);
    state.items = state.items.filter(other => other !== item);
    write({
      request: () => ({ method: 'DELETE', path: `/api/todos/${item.id}?deleted=true` }),
      revert: () => { state.items.splice(place, 0, item); },
      accept: () => announce(`${item.title}: deleted for good.`),
    });
    render();
  }

  async function emptyTrash() {
    const sure = await confirmed('Empty the trash?', 'Every to-do in it is deleted for good. This can’t be undone.');
    if (!sure) return;
    const kept = state.items;
    state.items = [];
    state.next = null;
    write({
      request: () => ({ method: 'DELETE', path: '/api/todos?deleted=true' }),
      accept: () => showToast('The trash is empty.'),
      revert: () => { state.items = kept; },
    });
    render();
  }

  function confirmed(title, text) {
    const dialog = find('.confirm');
    find('#confirm-title').textContent = title;
    find('.confirm-text').textContent = text;
    dialog.returnValue = '';
    dialog.showModal();
    find('.confirm-no').focus();
    return new Promise(resolve => {
      dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true });
    });
  }

  // ---- Details of a to-do ------------------------------------------------------------------------------

  let detailOpener = null;

  const isOpenBusy = () => find('.detail').contains(document.activeElement) && isTextField(document.activeElement);

  function openDetail(item, { takeFocus = true } = {}) {
    saveDetailTexts();
    state.open = item;
    detailOpener = item.id;
    find('.detail').hidden = false;
    find('.history-list').replaceChildren();
    settleLayout();
    render();
    fillTexts();
    loadHistory();
    find('.detail-body').scrollTop = 0;
    if (takeFocus) find(coveringDetail.matches ? '.detail-close' : '.detail-title').focus();
  }

  function closeDetail() {
    if (!state.open) return;
    saveDetailTexts();
    const hadFocus = find('.detail').contains(document.activeElement);
    state.open = null;
    find('.detail').hidden = true;
    settleLayout();
    render();
    const row = rows.get(detailOpener);
    if (hadFocus) (row ? find('.toggle', row) : find('.new-todo')).focus({ preventScroll: true });
  }

  async function reloadOpen() {
    try {
      const { id } = state.open;
      const fresh = state.items.find(item => item.id === id) ?? await getJson(`/api/todos/${id}`);
      if (state.open?.id !== id) return;
      state.open = fresh;
      fillTexts();
      loadHistory();
    } catch (error) {
      if (error.status === 404) closeDetail();
    }
  }

  function fillTexts() {
    const title = find('.detail-title');
    const notes = find('.detail-notes');
    if (document.activeElement !== title) title.value = state.open.title;
    if (document.activeElement !== notes) notes.value = state.open.notes;
    growTitle();
  }

  // Where field-sizing isn't known the title's box is fitted by hand.
  function growTitle() {
    const title = find('.detail-title');
    title.style.height = 'auto';
    title.style.height = `${title.scrollHeight}px`;
  }

  function renderDetail() {
    const item = state.open;
    if (!item) return;
    find('.detail-state').textContent = item.completed ? 'Completed' : 'Active';
    find('.detail').classList.toggle('is-completed', item.completed);
    const moment = item.due ? dueMoment(item.due) : null;
    const timed = item.due?.includes('T');
    setUnlessFocused('.detail-due', moment ? dayText(moment) : '');
    setUnlessFocused('.detail-time', timed ? `${pad(moment.getHours())}:${pad(moment.getMinutes())}` : '');
    find('.detail-time').disabled = !item.due;
    for (const button of findAll('.quick-due [data-days]')) {
      const chosen = moment !== null && dayText(moment) === dayFromNow(Number(button.dataset.days));
      button.setAttribute('aria-pressed', String(chosen));
    }
    find('.clear-due').setAttribute('aria-pressed', String(!item.due));
    find(`.priorities input[value="${item.priority}"]`).checked = true;
    find('.detail-tags').replaceChildren(...item.tags.map(tag => filterChip(tag, `Remove the tag ${tag}`,
      () => { saveTags(item.tags.filter(other => other !== tag)); find('.detail-tag').focus(); })));
    find('#known-tags').replaceChildren(...[...state.knownTags].slice(0, 200).map(tag => element('option',
      { value: tag })));
    find('.detail-list').replaceChildren(...state.lists.map(list => element('option',
      { value: list.id, textContent: list.title, selected: list.id === item.list })));
    find('.detail-created').textContent = item.created_at ? `Added ${timeAgo(item.created_at)}` : '';
  }

  function setUnlessFocused(selector, value) {
    const input = find(selector);
    if (document.activeElement !== input && input.value !== value) input.value = value;
  }

  function saveDetailTexts() {
    const item = state.open;
    if (!item) return;
    const title = oneLine(find('.detail-title').value);
    const notes = find('.detail-notes').value;
    if (!title) find('.detail-title').value = item.title;
    else if (title !== item.title && !complainOfTitle(title)) {
      changeTodo(item, { title }, `Renamed ${quoted(item.title)}`, { failed: keepTyped('.detail-title', item, title) });
    }
    if (notes !== item.notes) {
      changeTodo(item, { notes }, `Changed the notes of ${quoted(item.title)}`,
        { failed: keepTyped('.detail-notes', item, notes) });
    }
  }

  // The view rolls back to what the server has, the field keeps what was typed.
  function keepTyped(selector, item, text) {
    return () => {
      if (state.open?.id === item.id) find(selector).value = text;
      else navigator.clipboard?.writeText(text).catch(() => {});
      return false;
    };
  }

  const saveTextsSoon = debounce(saveDetailTexts, NOTES_PAUSE);

  function saveDue(due) {
    if (due === state.open.due) return;
    const words = due ? `Due ${friendlyDue(due).text}` : 'No due date';
    changeTodo(state.open, { due }, `${words}: ${quoted(state.open.title)}`);
    announce(`${words}.`);
  }

  function saveTags(tags) {
    const unique = splitTags(tags.join(','));
    changeTodo(state.open, { tags: unique }, `Changed the tags of ${quoted(state.open.title)}`);
  }

  function addTag() {
    const input = find('.detail-tag');
    const tags = splitTags(input.value);
    input.value = '';
    if (!tags.length || !state.open) return;
    const all = splitTags([...state.open.tags, ...tags].join(','));
    if (all.length > state.open.tags.length) saveTags(all);
  }

  function listenToDetailTexts() {
    const title = find('.detail-title');
    title.addEventListener('input', growTitle);
    title.addEventListener('keydown', event => {
      if (isEnter(event)) { event.preventDefault(); saveDetailTexts(); }
    });
    for (const field of [title, find('.detail-notes')]) {
      field.addEventListener('change', saveDetailTexts);
      field.addEventListener('keydown', event => {
        if (event.key !== 'Escape' || event.isComposing || field !== title) return;
        title.value = state.open.title;
      });
    }
    find('.detail-notes').addEventListener('input', saveTextsSoon);
    const tag = find('.detail-tag');
    tag.addEventListener('keydown', event => {
      if (isEnter(event) || event.key === ',') { event.preventDefault(); addTag(); }
      if (event.key === 'Backspace' && tag.value === '' && state.open.tags.length) {
        saveTags(state.open.tags.slice(0, -1));
      }
    });
    tag.addEventListener('change', addTag);
  }

  function listenToDetail() {
    listenToDetailTexts();
    find('.detail-close').addEventListener('click', closeDetail);
    find('.detail-delete').addEventListener('click', () => deleteTodo(itemById(state.open.id)));
    const readDue = () => saveDue(dueOf(find('.detail-due').value, find('.detail-time').value));
    find('.detail-due').addEventListener('change', readDue);
    find('.detail-time').addEventListener('change', readDue);
    find('.quick-due').addEventListener('click', event => {
      const button = event.target.closest('button');
      if (!button) return;
      const time = button.dataset.days ? find('.detail-time').value : '';
      saveDue(button.dataset.days ? dueOf(dayFromNow(Number(button.dataset.days)), time) : null);
    });
    find('.priorities').addEventListener('change', event => {
      const priority = Number(event.target.value);
      changeTodo(state.open, { priority }, `Priority ${PRIORITIES[priority].toLowerCase()}: ${quoted(state.open.title)}`);
    });
    find('.detail-list').addEventListener('change', event => moveToList(state.open, event.target.value));
    find('.history').addEventListener('toggle', loadHistory);
  }

  // ---- History -----------------------------------------------------------------------------------------

  const listName = id => listById(id)?.title ?? 'another list';

  const FIELD_WORDS = {
    title: (before, after) => `Renamed from ${quoted(before)} to ${quoted(after)}`,
    completed: (before, after) => after ? 'Completed' : 'Reopened',
    due: (before, after) => after ? `Due ${friendlyDue(after).text}` : 'Due date removed',
    priority: (before, after) => after ? `Priority ${PRIORITIES[after].toLowerCase()}` : 'Priority removed',
    tags: (before, after) => after.length ? `Tagged ${after.join(', ')}` : 'Tags removed',
    notes: (before, after) => after ? 'Notes changed' : 'Notes removed',
    list: (before, after) => `Moved to ${listName(after)}`,
    order: () => 'Reordered',
  };

  function describeChange({ action, before, after }) {
    const plain = { create: 'Created', delete: 'Moved to the trash', restore: 'Restored', purge: 'Deleted for good' };
    if (plain[action]) return plain[action];
    const changed = Object.keys(FIELD_WORDS).filter(name => before && after
      && JSON.stringify(before[name]) !== JSON.stringify(after[name]));
    const telling = changed.length > 1 ? changed.filter(name => name !== 'order') : changed;
    return telling.map(name => FIELD_WORDS[name](before[name], after[name])).join('; ') || 'Changed';
  }

  async function loadHistory() {
    const item = state.open;
    if (!item || item.pending || !find('.history').open) return;
    try {
      const changes = await getJson(`/api/todos/${item.id}/history`);
      if (state.open?.id !== item.id) return;
      find('.history-list').replaceChildren(...changes.map(change => element('li', {},
        element('span', { className: 'history-what', dir: 'auto', textContent: describeChange(change) }),
        element('time', { dateTime: change.at, title: fullFormat.format(new Date(change.at)),
          textContent: timeAgo(change.at) }))));
    } catch (error) {
      find('.history-list').replaceChildren(element('li', { textContent: error.message }));
    }
  }

  // ---- Live changes ------------------------------------------------------------------------------------

  const live = { socket: null, attempt: 0, timer: null };

  function connect() {
    clearTimeout(live.timer);
    const address = new URL(`${base}/api/events`, location.href);
    address.protocol = address.protocol === 'https:' ? 'wss:' : 'ws:';
    address.hash = '';
    if (state.revision !== null) address.searchParams.set('since', state.revision);
    live.socket = new WebSocket(address);
    live.socket.addEventListener('message', event => hear(JSON.parse(event.data)));
    live.socket.addEventListener('close', disconnected);
  }

  function disconnected() {
    live.socket = null;
    const pause = backoff(live.attempt);
    live.attempt += 1;
    clearTimeout(live.timer);
    live.timer = setTimeout(connect, pause);
    // A socket may fail alone, behind a proxy that knows none; only a failing request means an absent server.
    if (live.attempt > 1) probeLater(live.attempt);
  }

  let probing = false;

  async function probeLater(firstAttempt) {
    if (probing) return;
    probing = true;
    for (let attempt = firstAttempt; ; attempt += 1) {
      try {
        await send('GET', '/api/health/live');
        break;
      } catch (error) {
        if (!error.isAbsence) break;
        const pause = backoff(attempt);
        if (!queue.running) showAway(error.message, pause);
        await waitForRetry(pause);
      }
    }
    probing = false;
    showBack();
  }

  function hear(message) {
    live.attempt = 0;
    showBack();
    if (message.type === 'hello') hearHello(message.revision);
    if (message.type !== 'changes') return;
    state.revision = Math.max(state.revision ?? 0, message.revision);
    applyChanges(message.changes);
  }

  // The first hello only says where the log stands; anything newer than what was read has to be read again.
  function hearHello(revision) {
    const isFirst = state.revision === null;
    const wasReplaced = !isFirst && revision < state.revision;
    const newest = Math.max(0, ...state.lists.map(list => list.revision ?? 0),
      ...state.items.map(item => item.revision ?? 0));
    if (isFirst || wasReplaced) state.revision = revision;
    if (wasReplaced || (isFirst && state.loaded && revision > newest)) scheduleRefresh();
  }

  // The orders the server had to move are taken over at once, since the next move needs them; the rest of what
  // others did is read again when there is a quiet moment. Own changes are on the screen already.
  function applyChanges(changes) {
    const known = new Map(state.items.map(item => [item.id, item]));
    for (const change of changes) {
      const item = known.get(change.todo);
      if (item && change.action === 'reorder' && change.after && !pendingFields(item.id).order) {
        item.order = change.after.order;
      }
    }
    afterQueue(() => {
      if (changes.some(change => !state.ownBatches.has(change.batch))) scheduleRefresh();
      else scheduleListRefresh();
    });
  }

  // Whose batch it was is known for certain only when the answers to all writes are in.
  function afterQueue(action) {
    if (queue.running) queue.idle.then(action);
    else action();
  }

  // ---- Weather and the day -----------------------------------------------------------------------------

  async function showWeather() {
    const place = find('.weather');
    try {
      const { temperature, text, place: where } = await getJson('/api/weather');
      place.textContent = `${Math.round(Number(temperature))}° and ${text} in ${where}`;
      place.hidden = false;
    } catch {
      place.hidden = true;
    }
  }

  let shownDay = '';

  // A page left open over midnight must not call yesterday's to-dos due today.
  function showDay() {
    const day = dayFromNow(0);
    if (day === shownDay) return;
    const isNewDay = shownDay !== '';
    shownDay = day;
    find('.today').dateTime = day;
    find('.today').textContent = todayFormat.format(new Date());
    if (isNewDay) scheduleRefresh();
  }

  // ---- Shortcuts ---------------------------------------------------------------------------------------

  const modifier = isApple ? '⌘' : 'Ctrl';
  const SHORTCUTS = [
    [['n'], 'New to-do'], [['/'], 'Search'], [['1', '2', '3'], 'All, active, completed'],
    [['↑', '↓'], 'From to-do to to-do'], [['Space'], 'Complete the to-do'], [['Enter'], 'Its details'],
    [['F2'], 'Edit its title, as a double-click does'], [['Delete'], 'Move it to the trash'],
    [[isApple ? '⌥' : 'Alt', '↑ ↓'], 'Move it up or down'], [[modifier, 'Z'], 'Undo'],
    [[modifier, isApple ? '⇧' : 'Shift', 'Z'], 'Redo'], [['Esc'], 'Close, or discard an edit'], [['?'], 'This help'],
  ];

  function openHelp() {
    const terms = SHORTCUTS.flatMap(([keys, words]) => [
      element('dt', {}, ...keys.map(key => element('kbd', { textContent: key }))),
      element('dd', { textContent: words })]);
    find('.keys').replaceChildren(...terms);
    find('.single-keys').checked = recall('single-keys', true);
    find('.help').showModal();
  }

  function undoKey(event) {
    const isUndo = (event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === 'z';
    const isRedo = (isUndo && event.shiftKey) || (event.ctrlKey && event.key.toLowerCase() === 'y');
    if (!isUndo && !isRedo) return false;
    event.preventDefault();
    if (isRedo) redo();
    else undo();
    return true;
  }

  function escapeKey(event) {
    if (state.drag) cancelDrag();
    else if (document.documentElement.classList.contains('drawer-open')) closeDrawer();
    else if (event.target === find('.search')) leaveSearch();
    else if (state.open && event.target !== find('.new-todo')) closeDetail();
  }

  function leaveSearch() {
    find('.search').value = '';
    if (state.view.q) goTo({ q: '' }, { replace: true });
    find('.new-todo').focus();
  }

  const SINGLE_KEYS = {
    n: () => find('.new-todo').focus(),
    '/': () => find('.search').focus(),
    '?': openHelp,
    1: () => goTo({ show: 'all' }),
    2: () => goTo({ show: 'active' }),
    3: () => goTo({ show: 'completed' }),
  };

  function documentKey(event) {
    if (find('dialog[open]') || event.isComposing) return;
    if (event.key === 'Escape') { escapeKey(event); return; }
    if (isTextField(event.target) || undoKey(event)) return;
    if (event.ctrlKey || event.metaKey || event.altKey || !recall('single-keys', true)) return;
    if (!SINGLE_KEYS[event.key]) return;
    event.preventDefault();
    SINGLE_KEYS[event.key]();
  }

  // ---- Start -------------------------------------------------------------------------------------------

  function followHash() {
    const before = state.view;
    state.view = parseHash(location.hash);
    const moved = !samePlace(before, state.view);
    if (moved) {
      closeDetail();
      closeDrawer();
      endRename({ save: false });
      state.items = [];
      state.loaded = false;
      scrollTo({ top: 0, behavior: 'instant' });
    } else {
      // A narrower filter can be shown before its answer is here.
      state.items = state.items.filter(belongs);
    }
    state.next = null;
    state.problem = null;
    render();
    loadView();
  }

  function listenToComposer() {
    find('.new-todo').addEventListener('keydown', event => {
      if (isEnter(event)) { event.preventDefault(); createTodo(); }
      if (event.key === 'ArrowDown' && !event.isComposing) find('.todo-list .toggle')?.focus();
    });
    for (const name of ['.new-due', '.new-tags']) {
      find(name).addEventListener('keydown', event => { if (isEnter(event)) { event.preventDefault(); createTodo(); } });
    }
    find('.new-options-button').addEventListener('click', event => {
      const options = find('.new-options');
      options.hidden = !options.hidden;
      event.currentTarget.setAttribute('aria-expanded', String(!options.hidden));
      render();
    });
    find('.toggle-all').addEventListener('change', toggleAll);
    find('.clear-completed').addEventListener('click', clearCompleted);
    find('.sort').addEventListener('change', chooseSort);
    find('.search').addEventListener('input', search);
    find('.search').addEventListener('keydown', event => { if (isEnter(event)) search.now(); });
    find('.skip').addEventListener('click', () => find('.new-todo').focus());
  }

  function listenToLists() {
    find('.new-list-button').addEventListener('click', startNewList);
    const inputs = [['.new-list', createList, endNewList],
      ['.rename-list', () => endRename({ save: true }), () => endRename({ save: false })]];
    for (const [selector, save, discard] of inputs) {
      find(selector).addEventListener('keydown', event => {
        if (isEnter(event)) save();
        else if (event.key === 'Escape' && !event.isComposing) { event.stopPropagation(); discard(); }
      });
      find(selector).addEventListener('blur', () => { if (!find(selector).hidden) save(); });
    }
    find('.rename-list-button').addEventListener('click', startRename);
    find('h1').addEventListener('dblclick', () => { if (!find('.list-tools').hidden) startRename(); });
    find('.delete-list-button').addEventListener('click', deleteList);
    find('.open-drawer').addEventListener('click', openDrawer);
    find('.close-drawer').addEventListener('click', closeDrawer);
    find('.scrim').addEventListener('click', closeDrawer);
    find('.sidebar').addEventListener('click', event => { if (event.target.closest('a')) closeDrawer(); });
  }

  function listenToDialogs() {
    const confirmDialog = find('.confirm');
    find('.confirm-yes').addEventListener('click', () => confirmDialog.close('yes'));
    find('.confirm-no').addEventListener('click', () => confirmDialog.close());
    find('.empty-trash').addEventListener('click', emptyTrash);
    find('.help-button').addEventListener('click', openHelp);
    find('.help-close').addEventListener('click', () => find('.help').close());
    find('.single-keys').addEventListener('change', event => remember('single-keys', event.target.checked));
    for (const dialog of findAll('dialog')) {
      dialog.addEventListener('click', event => { if (event.target === dialog) dialog.close(); });
    }
  }

  function listenToWindow() {
    addEventListener('hashchange', followHash);
    addEventListener('online', () => wakeRetry());
    addEventListener('pagehide', () => { saveDetailTexts(); flushQueue(); });
    addEventListener('beforeunload', event => {
      // Only when a change can't be sent now is leaving a loss.
      if (state.away && queue.jobs.length) event.preventDefault();
    });
    document.addEventListener('visibilitychange', () => {
      if (document.hidden) saveDetailTexts();
      else if (live.socket === null) { live.attempt = 0; connect(); scheduleRefresh(); }
    });
    document.addEventListener('keydown', documentKey);
    narrowScreen.addEventListener('change', () => { closeDrawer(); settleLayout(); });
    coveringDetail.addEventListener('change', settleLayout);
    find('.banner-retry').addEventListener('click', () => wakeRetry());
    for (const button of findAll('.more-button')) button.addEventListener('click', loadMore);
    const watcher = new IntersectionObserver(entries => {
      if (entries.some(entry => entry.isIntersecting)) loadMore();
    }, { rootMargin: '600px' });
    for (const more of findAll('.more')) watcher.observe(more);
  }

  function start() {
    listenToComposer();
    listenToList();
    listenToLists();
    listenToDetail();
    listenToDialogs();
    listenToWindow();
    showDay();
    setInterval(showDay, 30000);
    settleLayout();
    followHash();
    find('.new-todo').focus({ preventScroll: true });
    connect();
    loadDueToday().catch(() => {});
    if (weatherIsConfigured) {
      showWeather();
      setInterval(showWeather, WEATHER_INTERVAL);
    }
  }

  start();
})();
"""


# ==== assembly: may call everything above =======================================================


class BuiltPage(NamedTuple):
    """The page ready to send: its HTML, validator and policy, and its assets by name."""

    html: bytes
    etag: str
    policy: str
    assets: dict[str, tuple[bytes, str]]


def build_page(config: Config) -> BuiltPage:
    """Render the page once: names that hold its assets' hashes, and a policy that lets nothing else run."""
    assets, values = {}, {}
    for kind, text, content_type in (("css", PAGE_CSS, "text/css"), ("js", PAGE_JS, "text/javascript")):
        digest = hashlib.sha256(text.encode()).digest()
        name = f"{digest.hex()[:20]}.{kind}"
        assets[name] = text.encode(), f"{content_type}; charset=utf-8"
        values[f"{kind}_url"] = f"{config.prefix}/page/{name}"
        values[f"{kind}_integrity"] = f"sha256-{base64.b64encode(digest).decode()}"
    template = tornado.template.Template(PAGE_HTML, name="page.html")
    html = template.generate(base=config.prefix, weather=bool(config.weather_uri), **values)
    policy = (
        f"default-src 'none'; script-src '{values['js_integrity']}'; style-src 'self' '{values['css_integrity']}';"
        " connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return BuiltPage(html, f'"{hashlib.sha256(html).hexdigest()[:20]}"', policy, assets)


def routes(config: Config) -> list[tornado.routing.Rule]:
    """Every address that the app serves, under its prefix."""
    table: list[tuple] = [
        ("/", PageHandler),
        (r"/page/([0-9a-f]+\.(?:css|js))", PageAssetHandler),
        ("/api/todos", TodosHandler),
        ("/api/todos/([^/]+)", TodoHandler),
        ("/api/todos/([^/]+)/history", TodoHistoryHandler),
        ("/api/todos/([^/]+)/restore", TodoRestoreHandler),
        ("/api/lists", ListsHandler),
        ("/api/lists/([^/]+)", ListHandler),
        ("/api/lists/([^/]+)/restore", ListRestoreHandler),
        ("/api/changes", ChangesHandler),
        ("/api/undo", UndoHandler),
        ("/api/events", EventsHandler),
        ("/api/documents", DocumentsHandler),
        ("/api/documents/([^/]+)", DocumentHandler),
        ("/api/records/([^/]+)", RecordHandler),
        ("/api/weather", WeatherHandler),
        ("/api/health", HealthHandler),
        ("/api/health/live", LiveHandler),
    ]
    if config.static_path:
        table.append(("/static/(.*)", StaticHandler, {"path": config.static_path, "default_filename": "index.html"}))
    if config.prefix:
        table.append(("", PrefixHandler))
    prefix = re.escape(config.prefix)
    return [tornado.web.url(prefix + pattern, *rest) for pattern, *rest in table]


def make_app(
    settings: Mapping[str, str] | None = None,
    *,
    prefix: str = "",
    get_user: GetUser | None = None,
    checks: Mapping[str, Check] | None = None,
    **overrides: str,
) -> tornado.web.Application:
    """Build the application: to listen on, or to mount in another one as `(r"/todo(?:/.*)?", app)`.

    `settings` maps the names in SETTINGS to strings (without it: the environment), and keyword
    arguments of the same names in lower case override them. `get_user(request)` is a coroutine that
    gives the user name behind an `HTTPServerRequest`, or None. `checks` are coroutine functions by
    name that join the health check. Does no I/O: the first request opens the stores, or
    `async with lifespan(app)` does. Raises Misconfigured.
    """
    environ = dict(os.environ if settings is None else settings)
    environ.update({name.upper(): str(value) for name, value in overrides.items()})
    if unknown := set(overrides) - {setting.name.lower() for setting in SETTINGS}:
        raise Misconfigured(f"unknown setting {', '.join(sorted(unknown))}")
    if prefix:
        environ["PREFIX"] = prefix
    config = Config.from_env(environ)
    services = Services(config, checks or {})
    return tornado.web.Application(
        routes(config),
        default_handler_class=NotFoundHandler,
        cross_origin_protection=True,
        websocket_ping_interval=30,
        websocket_max_message_size=1024,
        config=config,
        services=services,
        authenticator=Authenticator(config.auth, get_user, services.todos.store),
        page=build_page(config),
    )


@contextlib.asynccontextmanager
async def lifespan(app: tornado.web.Application) -> AsyncIterator[None]:
    """Open an app's stores now, and close them at the end. Raises Misconfigured or Unavailable."""
    services: Services = app.settings["services"]
    await services.open()
    try:
        yield
    finally:
        await services.close()


@contextlib.asynccontextmanager
async def listening(app: tornado.web.Application, sockets: list[socket.socket]) -> AsyncIterator[None]:
    """Serve an app on bound sockets, its stores open; at the end answer what was asked, then close."""
    services: Services = app.settings["services"]
    async with lifespan(app):
        server = tornado.httpserver.HTTPServer(app, max_header_size=16 * 1024, max_body_size=16 * MAX_BODY)
        server.add_sockets(sockets)
        try:
            yield
        finally:
            server.stop()
            await services.drain(5.0)
            services.hub.close()
            await server.close_all_connections()


@contextlib.contextmanager
def running(settings: Mapping[str, str] | None = None, **options: Any) -> Iterator[str]:
    """Run a server in a thread of its own, on a free port of the loopback, for scripts and tests.

    Takes what `make_app` takes and gives the server's URL; leaving the context stops the server.
    """
    app = make_app(settings, **options)
    sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
    started = threading.Event()
    state: dict[str, Any] = {}

    async def serve_until_stopped() -> None:
        stop = asyncio.Event()
        async with listening(app, sockets):
            state.update(loop=asyncio.get_running_loop(), stop=stop)
            started.set()
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(serve_until_stopped())
        except BaseException as error:
            state["error"] = error
        finally:
            started.set()

    thread = threading.Thread(target=run, name="tornado_todo", daemon=True)
    thread.start()
    started.wait()
    try:
        if "error" in state:
            raise state["error"]
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}{app.settings['config'].prefix}"
    finally:
        if "loop" in state and thread.is_alive():
            state["loop"].call_soon_threadsafe(state["stop"].set)
        thread.join()
        for each in sockets:
            each.close()


# ==== command line: may call everything above ===================================================


def argument_parser() -> argparse.ArgumentParser:
    """Options for every setting; each overrides the environment, which overrides the file .env."""
    parser = argparse.ArgumentParser(
        prog="tornado-todo",
        description="A to-do server: a page and a JSON API, kept in one SQLite file unless told otherwise.",
        epilog="Every option is also an environment variable, or a line of a file .env in the current folder:"
        " --server-port 8000, SERVER_PORT=8000. Options win over the environment, the environment over .env.",
    )
    parser.add_argument("--version", action="version", version=f"tornado_todo {__version__}")
    short = {"SERVER_HOST": ["--host"], "SERVER_PORT": ["--port"], "DATABASE_URL": ["--database"]}
    for setting in SETTINGS:
        names = [*short.get(setting.name, []), "--" + setting.name.lower().replace("_", "-")]
        default = f" (default: {setting.default})" if setting.default else ""
        parser.add_argument(
            *names, dest=setting.name, metavar="VALUE", help=f"{setting.help}{default}".replace("%", "%%")
        )
    return parser


def read_environment(argv: Sequence[str] | None) -> dict[str, str]:
    """Settings from options, the environment and .env, the first of them that gives a value."""
    options = vars(argument_parser().parse_args(argv))
    sources = (dotenv.dotenv_values(".env", interpolate=False), os.environ, options)
    return {name: value for source in sources for name, value in source.items() if value}


def bound_sockets(config: Config) -> list[socket.socket]:
    """Bound sockets for SERVER_HOST and SERVER_PORT. Raises Misconfigured."""
    where = f"{config.server_host} port {config.server_port}"
    try:
        return tornado.netutil.bind_sockets(config.server_port, config.server_host or None)
    except socket.gaierror:
        raise Misconfigured(f"SERVER_HOST: {config.server_host!r} is no address of this machine") from None
    except OSError as error:
        if "in use" in str(error):
            raise Misconfigured(f"SERVER_PORT: {where} is in use: stop what runs there, or give another --port") from None
        raise Misconfigured(f"SERVER_PORT: cannot listen on {where}: {os.strerror(error.errno or 0)}") from None


def public_address(config: Config, sockets: Sequence[socket.socket]) -> str:
    """The address that a person can open."""
    host = "localhost" if config.server_host in ("", "0.0.0.0", "::") else config.server_host
    host = f"[{host}]" if ":" in host else host
    return config.public_url + config.prefix or f"http://{host}:{sockets[0].getsockname()[1]}{config.prefix}"


async def serve(app: tornado.web.Application) -> None:
    """Serve until SIGINT or SIGTERM. Raises Misconfigured or Unavailable if it cannot start."""
    config: Config = app.settings["config"]
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl+C ends asyncio.run() by itself
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    sockets = bound_sockets(config)
    async with listening(app, sockets):
        print(f"tornado_todo {__version__} is at {public_address(config, sockets)}")
        print(app.settings["services"].describe())
        print("Press Ctrl+C to stop.", flush=True)
        await stop.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server from the command line; gives the exit code."""
    environ = read_environment(argv)
    try:
        app = make_app(environ)
        level = app.settings["config"].log_level
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        asyncio.run(serve(app))
    except (Misconfigured, Unavailable) as error:
        print(f"tornado_todo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
