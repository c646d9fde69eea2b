#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "tornado>=6.6", "aiosqlite>=0.20", "python-dotenv>=1.0", "msgspec>=0.19", "python-dateutil>=2.9", "tzdata>=2024.1",
# ]
# ///
"""A to-do server in one file.

Run it:     python tornado_todo.py            a page and a JSON API on http://localhost:8888
Embed it:   app = tornado_todo.make_app({"DATABASE_URL": "sqlite://"}, prefix="/todo")
Under ASGI: tornado_todo.asgi_app(app)        for uvicorn, or mounted in FastAPI or Starlette
Test with:  with tornado_todo.running({"DATABASE_URL": "sqlite://"}) as url: ...
Configure:  python tornado_todo.py --help     every setting is an environment variable too

The map. A line of code calls only upwards, so the file reads from top to bottom; search for
"# ====" to jump from section to section.

    configuration   the one table of settings, and the frozen Config that is read from it
    domain          to-dos, lists, changes, errors, and pure functions on them
    quick add       the date, tags and other fields in a line of text, in four languages
    texts           what errors and mails say, in the same languages
    databases       SQLite and Postgres, one writer each that commits in groups; know nothing of to-dos
    stores          to-dos with their change log and rights, accounts, documents, records
    live updates    listeners, which are woken after commits
    decisions       what a write changes, decided from loaded rows; undo, and bulk acts in slices
    service         the only writer: validate, store, publish; opening and closing of everything
    auth            passwords, throttles, sessions, and the caller of a request
    http            requests, responses, dispatch, and the adapters of Tornado's connection and of ASGI
    handlers        the resources: a method for each verb, with its contract in its signature
    page            the HTML, CSS and JavaScript of the page
    assembly        ROUTES, make_app(), lifespan(), running()
    copying         from one database to another, and backups
    command line    main()

One idea carries the whole, the change log: every write is one transaction that raises the
database's revision, changes rows and appends their old and new values to `changes`.
History, undo, trash, live updates, replay and ETags are all read from that one table.
Another carries the rights: each statement selects only what the caller (`$1`) may see or change.
"""

import gc

if __name__ == "__main__":
    gc.disable()  # imports make no garbage, and the search for it takes a tenth of the start; see main()

import argparse
import asyncio
import base64
import bisect
import collections
import concurrent.futures
import contextlib
import dataclasses
import datetime
import errno
import functools
import getpass
import gzip
import hashlib
import http.client
import importlib
import inspect
import io
import ipaddress
import itertools
import json
import logging
import math
import mimetypes
import operator
import os
import random
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import stat
import string
import struct
import sys
import tempfile
import threading
import time
import unicodedata
import urllib.parse
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from typing import (
    IO,
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    Protocol,
    Self,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import aiosqlite
import msgspec
import tornado.escape
import tornado.gen
import tornado.http1connection
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
__all__ = [
    *("Config", "Misconfigured", "SETTINGS", "TodoError"),
    *("asgi_app", "lifespan", "main", "make_app", "running"),
]

LOG = logging.getLogger("tornado_todo")
ACCESS_LOG = logging.getLogger("tornado_todo.access")


# ==== configuration: may call nothing below it ==================================================


class Misconfigured(Exception):
    """A setting cannot be used. The message is one line that explains how to correct it."""


def is_misspelt(text: str, word: str, mistakes: int) -> bool:
    """Whether a text is a word with at most n letters wrong, missing, added, or swapped with the next one."""
    same = len(os.path.commonprefix([text, word]))
    text, word = text[same:], word[same:]
    if not mistakes or not text or not word:
        return len(text) + len(word) <= mistakes
    rests = [(text[1:], word), (text, word[1:]), (text[1:], word[1:])]
    if text[:2] == word[1::-1]:
        rests.append((text[2:], word[2:]))
    return any(is_misspelt(*rest, mistakes - 1) for rest in rests)


def nearest_name(text: str, names: Iterable[str]) -> str | None:
    """The name that a text is a misspelling of, or None. (difflib rates MYSQL_USER above AUHT.)"""
    maximum = 2 if len(text) > 7 else 1  # two mistakes turn a short word into another one
    similar = [name for name in names if len(set(text) ^ set(name)) <= 2 * maximum]  # quick to compute
    found = (name for mistakes in range(maximum + 1) for name in similar if is_misspelt(text, name, mistakes))
    return next(found, None)


# ---- parsers of settings: each raises Misconfigured for a text that cannot be used

Value = TypeVar("Value")
Parser = Callable[[str], Any]


def parser(
    read: Callable[[str], Value],
    accepts: Callable[[Value], object],
    advice: str,
    pattern: str = "(?s:.*)",
    is_secret: bool = False,
) -> Callable[[str], Value]:
    """A parser that checks a text by a pattern, then by `read`, which may raise ValueError, then by `accepts`.

    The advice ends the message, which never shows a text that `is_secret`.
    """

    def parse(text: str) -> Value:
        fault = "" if is_secret else f"{text!r}: "
        try:
            if re.fullmatch(pattern, text) and accepts(value := read(text)):
                return value
        except ValueError as error:
            fault = f"{error}: "
        raise Misconfigured(fault + advice)

    return parse


def whole_number(minimum: int = 0, maximum: int = 999_999) -> Callable[[str], int]:
    advice = f"use a whole number from {minimum} to {maximum}"
    return parser(int, lambda number: minimum <= number <= maximum, advice, "[0-9]{1,6}")


def choice(*words: str, reason: str = "") -> Callable[[str], str]:
    """A parser for one of several words; the reason explains why others are not supported."""
    return parser(str.lower, words.__contains__, f"use {' or '.join(words)}{reason and ', since '}{reason}")


def split_list(text: str) -> list[str]:
    """The elements of a comma-separated list, without the empty ones."""
    return [part.strip() for part in text.split(",") if part.strip()]


def list_of(read: Callable[[str], str], advice: str) -> Callable[[str], frozenset[str]]:
    """A parser for a comma-separated list or `*`; `read` returns an empty text for an invalid element."""
    return parser(lambda text: frozenset(part if part == "*" else read(part) for part in split_list(text)), all, advice)


NO_ADDRESS = "0.0.0.0"  # stands for the client of a Unix socket, as in Tornado
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def read_network(text: str) -> Network:
    """An address or network, or `unix` for clients of a Unix socket; one in IPv4-mapped form becomes IPv4."""
    network = ipaddress.ip_network(NO_ADDRESS if text.lower() == "unix" else text)
    mapped = getattr(network.network_address, "ipv4_mapped", None)  # ::ffff:10.0.0.0/104 (RFC 4291, 2.5.5.2)
    return ipaddress.ip_network((mapped, network.prefixlen - 96)) if mapped and network.prefixlen >= 96 else network


PORT = whole_number(maximum=65535)
LINE = parser(str, str.isprintable, "use UTF-8 text of one line")
SECONDS = parser(float, bool, "use a number of seconds, such as 0.5", r"[0-9]{1,6}(\.[0-9]+)?")
FILE = parser(os.path.abspath, os.path.isfile, "there is no such file")
FOLDER = parser(
    lambda text: text and os.path.abspath(text), lambda path: not path or os.path.isdir(path), "not a folder"
)
SECRETS = parser(
    lambda text: tuple(split_list(text)),
    lambda secret_texts: all(len(each) >= 32 for each in secret_texts),
    "too short to keep anything secret: use at least 32 random characters",
    is_secret=True,
)
NETWORKS = parser(
    lambda text: tuple(map(read_network, split_list(text))),
    lambda networks: True,
    "use addresses or networks, such as 127.0.0.1, 10.0.0.0/8, or unix",
)


# ---- URLs


def ascii_host(host: str) -> str:
    """A host name as browsers send it: in lower case, with labels that are not ASCII as xn--… (UTS 46)."""
    lowered = "".join(map(str.lower, unicodedata.normalize("NFKC", host)))
    labels = unicodedata.normalize("NFKC", lowered).replace("\u3002", ".").rstrip(".").split(".")
    return ".".join(label if label.isascii() else "xn--" + label.encode("punycode").decode() for label in labels)


@functools.lru_cache(1000)
def origin_of(url: str) -> str:
    """The origin of a URL as browsers send it (RFC 6454, 6.2), without a default port; empty if there is none."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = ascii_host(parts.hostname or ""), parts.port
        host = f"[{ipaddress.ip_address(host)}]" if ":" in host else host
    except ValueError:
        return ""
    if not parts.scheme or "@" in parts.netloc or not re.fullmatch(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]", host):
        return ""
    is_default = port is None or port == {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}" + ("" if is_default else f":{port}")


def host_of(text: str) -> str:
    """The host of a URL or a Host header, in the form of `origin_of`, with its port; empty if there is none."""
    return origin_of(text if "://" in text else f"any://{text}").partition("://")[2]


def url_parts(text: str, *schemes: str) -> urllib.parse.SplitResult | None:
    """The parts of a URL with one of these schemes, or None."""
    try:
        parts = urllib.parse.urlsplit(text)
        # Several hosts are separated by commas, which only the driver can parse.
        is_valid = "," in parts.netloc.rpartition("@")[2] or parts.port != 0
    except ValueError:
        return None
    return parts if is_valid and parts.scheme in schemes and "\0" not in text else None


WEATHER_URL = parser(
    str,
    lambda text: not text or getattr(url_parts(text, "http", "https"), "hostname", ""),
    "not an http:// or https:// URL",
)
PREFIX_PATTERN = r"(/[A-Za-z0-9._~%-]+)*"
PREFIX = parser(
    lambda text: f"/{text.strip('/')}".rstrip("/"), re.compile(PREFIX_PATTERN).fullmatch, "write a path like /todo"
)


def parse_public_url(text: str) -> str:
    """Read a URL as its origin and path, without a slash at the end."""
    parts = url_parts(text, "http", "https")
    if text and (not parts or not origin_of(text) or parts.query or parts.fragment):
        raise Misconfigured("not the URL of a server: write https://todo.example.com, with a path if it has one")
    return origin_of(text) + PREFIX(urllib.parse.quote(urllib.parse.urlsplit(text).path, safe="/%"))


def frame_source(word: str) -> str:
    """One source of a frame-ancestors directive, in the form for the header; empty if it is not valid."""
    keyword = word.lower().strip("'")
    if keyword in ("self", "none", "*", "http:", "https:"):
        return f"'{keyword}'" if keyword.isalpha() else keyword
    pattern = r"((?:https?://)?)((?:\*\.)?)([^][*:/?#@;,'\"]+)(?:(:\*)|(:[0-9]{1,5}))?(?:/[^;]*)?"
    match = re.fullmatch(pattern, word, re.IGNORECASE)
    scheme, subdomains, host, any_port, port = match.groups("") if match else [""] * 5
    name = origin_of(f"{scheme or 'any://'}{host}{port}").partition("://")[2]
    return name and scheme.lower() + subdomains + name + any_port


def parse_frame_ancestors(text: str) -> str:
    """Read the sources of a frame-ancestors directive (CSP level 3, 6.4.2); `self` and `none` need no quotes."""
    sources = [frame_source(word) for word in text.replace(",", " ").split()]
    if not all(sources) or ("'none'" in sources and len(sources) > 1):
        raise Misconfigured(f"{text!r} is not a list of sources: write none, self or https://portal.example.com")
    return " ".join(sources)


def parse_options(query: str, known: Mapping[str, Parser], others: Parser | None = None) -> dict[str, Any]:
    """The options in the query of a server's URL, by name in lower case, parsed; `others` parses unknown ones.

    Raises Misconfigured, naming the option, if it is unknown, cannot be used or occurs twice.
    """
    try:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise Misconfigured("write its options as ?name=value&name=value") from None
    options: dict[str, Any] = {}
    for written, value in pairs:
        name = written.lower()
        if name in options:
            raise Misconfigured(f"the option {name!a} occurs twice")
        if not (parse := known.get(name, others)):
            nearest = nearest_name(name, known)
            hint = f"; did you mean {nearest}?" if nearest else " here"
            raise Misconfigured(f"the option {written!a} is not supported{hint}")
        try:
            options[name] = parse(value)
        except Misconfigured as error:
            raise Misconfigured(f"the option {name!a}: {error}") from None
    return options


def by_name(parsers: Mapping[Parser, str]) -> dict[str, Parser]:
    """A table of options by name, from one of parsers with the names of their options."""
    return {name: parse for parse, names in parsers.items() for name in names.split()}


# asyncpg would send these to the server as settings.
OWN_POSTGRES_OPTIONS = by_name(
    {
        whole_number(): "connect_timeout statement_cache_size",
        choice("true", "false"): "pgbouncer",
        choice("utf8", "utf-8", "auto", reason="all text is sent as UTF-8"): "client_encoding",
        choice("disable", "prefer", reason="asyncpg does not encrypt by GSSAPI"): "gssencmode",
        choice("postgres", reason="not every asyncpg can begin with TLS"): "sslnegotiation",
        choice("disable", "prefer", reason="asyncpg lacks it: use sslmode=verify-full instead"): "channel_binding",
    }
)
POSTGRES_OPTIONS = OWN_POSTGRES_OPTIONS | by_name(
    {
        str: "host port dbname database user password sslpassword krbsrvname application_name options search_path"
        " timezone ssl_min_protocol_version ssl_max_protocol_version statement_timeout lock_timeout"
        " idle_in_transaction_session_timeout",
        FILE: "passfile sslcert sslkey sslrootcert sslcrl",
        choice("disable", "allow", "prefer", "require", "verify-ca", "verify-full"): "sslmode",
        choice("gssapi", "sspi"): "gsslib",
        choice("any", "primary", "read-write", reason="the server must accept writes"): "target_session_attrs",
    }
)
# The driver checks its other options itself. Other values of these could lose acknowledged writes, or read old data.
MONGODB_OPTIONS = by_name(
    {
        choice("majority", reason="a write is acknowledged only when it cannot be lost any more"): "w",
        choice("true", reason="a write is acknowledged only when it cannot be lost any more"): "journal",
        choice("primary", reason="other members may not have the last writes yet"): "readpreference",
        choice("zlib", reason="the others need more packages"): "compressors",
    }
)
REDIS_OPTIONS = by_name(
    {
        str: "username password client_name ssl_ca_path",
        FILE: "ssl_ca_certs ssl_certfile ssl_keyfile",
        choice("none", "optional", "required"): "ssl_cert_reqs",
        choice("true", "false"): "ssl_check_hostname socket_keepalive retry_on_timeout",
        SECONDS: "timeout socket_timeout socket_connect_timeout",
        whole_number(): "health_check_interval db",
        whole_number(10): "max_connections",
        choice("2", "3"): "protocol",
    }
)


def check_twice(parts: urllib.parse.SplitResult, options: Mapping[str, Any]) -> None:
    """Raise Misconfigured if an option and the rest of the URL have different values for the same thing."""
    match = re.fullmatch(r"(?:([^:@]*)(?::(.*))?@)?(.*?)(?::([0-9]+))?", parts.netloc)
    values = dict(zip(("user", "password", "host", "port"), match.groups() if match else (), strict=False))
    name = parts.path.removeprefix("/") if parts.scheme != "unix" else ""
    values |= {"username": values.get("user"), "dbname": name, "database": name, "db": name}
    for option, value in values.items():
        if value and option in options and str(options[option]) != urllib.parse.unquote(value):
            raise Misconfigured(f"the option {option} and the rest of the URL differ: write it once")


def server_url(*schemes: str, options: Mapping[str, Parser], others: Parser | None = None) -> Callable[[str], str]:
    """A parser for URLs of these schemes, with these options. Its errors never show the URL and its password."""

    def parse(text: str) -> str:
        parts = url_parts(text, *schemes)
        # A slash, ? or # in a password that is not percent-encoded would end it early.
        if text and (not parts or "@" in parts.path + parts.query + parts.fragment or "%00" in text):
            raise Misconfigured(f"not a URL of the form {schemes[-1]}://user:password@host:port/name")
        if not parts:
            return text
        if parts.fragment:
            raise Misconfigured("a # begins a part that is never sent: write it as %23 if it belongs to a name")
        if options is REDIS_OPTIONS and parts.scheme != "unix" and not re.fullmatch(r"/?|/[0-9]+", parts.path):
            raise Misconfigured("the path is not the number of a database: write redis://host:port/0")
        check_twice(parts, parse_options(parts.query, options, others))
        return text

    return parse


def parse_database_url(text: str) -> str:
    """Check a database URL: `sqlite:///file.db`, `sqlite:////absolute/file.db`, `sqlite://` or `postgresql://…`."""
    if text.startswith(("postgres://", "postgresql://")):
        return server_url("postgres", "postgresql", options=POSTGRES_OPTIONS)(text)
    if not text.startswith("sqlite://"):
        raise Misconfigured("not a URL: use sqlite:///file.db, sqlite:// for memory, or postgresql://host/database")
    path = urllib.parse.unquote(text.removeprefix("sqlite://"))
    if path and not re.fullmatch(r"sqlite:///[^?#]+", text) or "\0" in path:
        raise Misconfigured("a SQLite URL has three slashes and a file name: sqlite:///file.db")
    return "sqlite://" if path == "/:memory:" else text


# ---- the table of settings


class Setting(NamedTuple):
    """One setting: its environment variable, default, parser and help and, if it has one, its short option."""

    name: str
    default: str
    parse: Parser
    help: str
    option: str = ""


def setting(parse: Callable[[str], Value], help: str, default: str = "", option: str = "") -> Value:
    """A field of Config. The default is a text, in the form of an environment variable."""
    field: Value = dataclasses.field(metadata={"default": default, "parse": parse, "help": help, "option": option})
    return field


OLD_NAMES = {"FRONT": "HTTP_SERVER"}  # they still work


def with_current_names(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Settings with current names instead of old ones, which are logged. Raises Misconfigured if both differ."""
    for old, name in OLD_NAMES.items():
        if value := environ.get(old):
            if environ.get(name) not in (None, "", value):
                raise Misconfigured(f"{name}: {old}, its old name, has another value: remove {old}")
            LOG.warning("the setting %s is now called %s: rename it", old, name)
            environ = {**environ, name: value, old: ""}
    return environ


@dataclasses.dataclass(frozen=True, repr=False)  # its text would show secrets
class Config:
    """Every setting, parsed and checked. Nothing else in the module reads the environment.

    A setting is one field. The environment variable, the option and `--help` are derived from it; tests compare
    .env.example and the table of docs/deploying.md with it.
    """

    server_host: str = setting(
        LINE, "host name or address to listen on; 0.0.0.0 for all of IPv4, * for IPv6 too", "localhost", "--host"
    )
    server_port: int = setting(PORT, "port to listen on; 0 picks a free one", "8888", "--port")
    database_url: str = setting(
        parse_database_url,
        "database of the to-dos, and the documents: sqlite:///file.db, sqlite:// (memory) or postgresql://…",
        *("sqlite:///tornado_todo.db", "--database"),
    )
    mongodb_uri: str = setting(
        server_url("mongodb+srv", "mongodb", options=MONGODB_OPTIONS, others=str),
        "MongoDB to keep the documents in, instead of that database",
    )
    redis_url: str = setting(
        server_url("rediss", "unix", "redis", options=REDIS_OPTIONS), "Redis for records and live updates"
    )
    redis_host: str = setting(LINE, "host of that Redis, instead of REDIS_URL")
    redis_port: int = setting(PORT, "port of that Redis", "6379")
    redis_prefix: str = setting(LINE, "prefix of all keys, in case other programs use the same Redis", "tornado_todo:")
    mysql_url: str = setting(server_url("mariadb", "mysql", options={}), "MySQL server that the health check includes")
    auth: str = setting(
        choice("auto", "accounts", "open"),
        "who has to sign in: everybody but the user of this machine (auto), everybody (accounts) or nobody (open)",
        "auto",
    )
    signup: str = setting(
        choice("open", "invite", "closed"),
        "who may make an account after the first: anybody (open), people with an invitation (invite), nobody (closed)",
        "invite",
    )
    cookie_secret: tuple[str, ...] = setting(
        SECRETS, "secret that signs cookies, 32 characters or more; new,old to change it; by default kept in a file"
    )
    allowed_hosts: frozenset[str] = setting(
        list_of(host_of, "write host names, such as todo.example.com"),
        "host names that the server answers to, comma-separated, besides its own; * for any",
    )
    cors_origins: frozenset[str] = setting(
        list_of(origin_of, "write origins, such as https://example.com"),
        "web origins, comma-separated, whose pages may use the API; * for any",
    )
    frame_ancestors: str = setting(parse_frame_ancestors, "sites that may show the page in a frame; self, none", "none")
    trusted_proxies: tuple[Network, ...] = setting(
        NETWORKS, "addresses of proxies whose X-Forwarded headers are trusted; unix for one at a Unix socket"
    )
    public_url: str = setting(
        parse_public_url, "URL at which browsers reach the server, if it is not the server's own address"
    )
    prefix: str = setting(PREFIX, "path that everything is served under, such as /todo, also if a proxy removes it")
    static_path: str = setting(FOLDER, "folder to serve at /static/")
    weather_uri: str = setting(WEATHER_URL, "Open-Meteo's (or Yahoo's older) current weather, for /api/weather")
    weather_place: str = setting(LINE, "name of the place, if the weather server does not send it")
    trash_days: int = setting(whole_number(1, 99_999), "days after which the trash is emptied for good", "30")
    workers: int = setting(whole_number(1, 999), "processes that share the port; more than one needs REDIS_URL", "1")
    http_server: str = setting(choice("tornado", "uvicorn"), "HTTP server: tornado, or the faster uvicorn", "tornado")
    max_connections: int = setting(
        whole_number(10), "open connections of each process; at the limit, the one idle for longest is closed", "4000"
    )
    keep_alive: int = setting(
        whole_number(1, 99_999), "seconds that idle connections are kept: more than a proxy in front keeps them", "75"
    )
    log_level: str = setting(choice("debug", "info", "warning", "error"), "debug, info, warning or error", "info")
    log_format: str = setting(choice("text", "json"), "text, or json: one object per line", "text")

    @classmethod
    def table(cls) -> tuple[Setting, ...]:
        """Every setting, in the order of the fields."""
        return tuple(Setting(field.name.upper(), **field.metadata) for field in dataclasses.fields(cls))

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Config":
        """Read the settings from a mapping such as `os.environ`; an empty value counts as not set.

        Raises Misconfigured, naming the setting, for a value that cannot be used.
        """
        environ = with_current_names(environ)
        values: dict[str, Any] = {}
        for row in cls.table():
            try:
                values[row.name.lower()] = row.parse(str(environ.get(row.name) or row.default))
            except Misconfigured as error:
                raise Misconfigured(f"{row.name}: {error}") from None
        # The path of a PUBLIC_URL is a prefix that a proxy removes. It may name the PREFIX, too.
        public, prefix = urllib.parse.urlsplit(values["public_url"]), values["prefix"]
        values["public_url"] = values["public_url"].removesuffix(public.path)
        values["prefix"] = public.path if public.path.endswith(prefix) else public.path + prefix
        return cls(**values)

    def __post_init__(self) -> None:
        """Raise Misconfigured for several processes that would not share a database, records and secret."""
        # Processes read the secret beside a shared SQLite file; with a database server each would make its own.
        shares_secret = self.cookie_secret or self.auth == "open" or self.database_url.startswith("sqlite:")
        faults = {
            "share a database in memory: set DATABASE_URL": self.database_url == "sqlite://",
            "share records in memory: set REDIS_URL": not self.redis,
            "verify each other's cookies: set COOKIE_SECRET": not shares_secret,
        }
        for fault, is_present in faults.items():
            if self.workers > 1 and is_present:
                raise Misconfigured(f"WORKERS: several processes cannot {fault}, or WORKERS=1")

    @property
    def redis(self) -> str:
        """The URL of the Redis server, from REDIS_URL or from host and port; empty if there is none."""
        host = f"[{self.redis_host}]" if ":" in self.redis_host else self.redis_host
        return self.redis_url or (f"redis://{host}:{self.redis_port}/0" if host else "")


SETTINGS = Config.table()
SETTING_NAMES = {row.name for row in SETTINGS} | OLD_NAMES.keys()


def without_variants(name: str) -> str:
    """A name in the singular, with synonyms replaced."""
    return re.sub("IES$", "Y", name).removesuffix("S").replace("URI", "URL").replace("MONGODB", "MONGO")


def nearest_setting(name: str) -> str | None:
    """The setting meant by a name in another letter case, an option's name, or a misspelling; or None."""
    plain = unicodedata.normalize("NFKC", name).upper()  # an input method may write letters of full width
    folded = re.sub("^(?:(?:TORNADO_)?TODO|ENV)_", "", re.sub("[^A-Z0-9]+", "_", plain).strip("_"))
    same = {row.option.removeprefix("--").upper(): row.name for row in SETTINGS if row.option}
    same |= {without_variants(row.name): row.name for row in SETTINGS}
    return (
        same.get(folded) or same.get(without_variants(folded)) or nearest_name(folded, [row.name for row in SETTINGS])
    )


# ==== domain: may call itself ===================================================================

MAX_BODY = 1024 * 1024  # bytes of a request's body
MAX_RECORD = 64 * 1024  # bytes of a record
MAX_ITEMS = 1000  # to-dos that one request makes
STATISTICS_DAYS = 84  # that the statistics show
MAX_STREAK = 366  # days in a row that they count
MAX_DEPTH = 32  # levels of nesting in a JSON body
MAX_TITLE, MAX_TAGS = 500, 20  # characters of a title, tags of a to-do
MAX_REMINDERS, MAX_BEFORE = 10, 366 * 24 * 60  # of a to-do, minutes
MAX_COMMENT, MAX_COMMENTS = 5000, 500  # characters of a comment, comments on a to-do
MAX_ORDER = 1e12  # beyond it too few doubles lie between two whole numbers
NO_DUE = 2**53  # the sort key of a to-do without a due date: after every date
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
EPOCH_DAY = EPOCH.toordinal()
DAY = 86_400_000  # milliseconds


def field_error(field: str, message: str) -> dict:
    return {"field": field, "message": message}


class TodoError(tornado.web.HTTPError):
    """An error that knows its HTTP status, to be shown as a problem document (RFC 9457)."""

    status, title = 500, "Internal error"

    def __init_subclass__(cls, status: int = 0, title: str = "") -> None:
        cls.status, cls.title = status or cls.status, title or cls.title

    def __init__(self, detail: str, errors: Sequence[dict] = (), headers: Mapping[str, str] | None = None):
        super().__init__(self.status, reason=self.title)
        self.detail, self.errors, self.headers = detail, list(errors), dict(headers or {})

    def __str__(self) -> str:
        return self.detail

    @classmethod
    def of(cls, field: str, message: str, subject: str = "") -> Self:
        """An error about one field, called `subject` in the detail."""
        return cls(f"{subject or field} {message}.", [field_error(field, message)])


class Malformed(TodoError, status=400, title="Malformed request"):
    """The request could not be read."""


class Unauthorized(TodoError, status=401, title="Not signed in"):
    """The caller has not signed in, or the account is unknown."""


class Forbidden(TodoError, status=403, title="Forbidden"):
    """The caller is known but may not do this, or the request comes from a page of another site."""


class NotFound(TodoError, status=404, title="Not found"):
    """It does not exist, or the caller may not see it."""


class MethodNotAllowed(TodoError, status=405, title="Method not allowed"):
    """The address does not support the method."""

    def __init__(self, allowed: Iterable[str]):
        detail = "This address does not support this method. The Allow header lists those that it supports."
        super().__init__(detail, headers={"Allow": ", ".join(allowed)})


class RequestTimeout(TodoError, status=408, title="Request timeout"):
    """The body of a request took too long to arrive."""


class Conflict(TodoError, status=409, title="Conflict"):
    """The request conflicts with the current state."""


class Gone(TodoError, status=410, title="Gone"):
    """The to-do, or the point in the change log, existed once but was removed (RFC 9110, section 15.5.11)."""


class PreconditionFailed(TodoError, status=412, title="Precondition failed"):
    """If-Match or If-None-Match did not hold (RFC 9110, section 13)."""


class TooLarge(TodoError, status=413, title="Content too large"):
    """The body is over its limit."""


class UnsupportedMediaType(TodoError, status=415, title="Unsupported media type"):
    """The body is not JSON."""


class BadRange(TodoError, status=416, title="Range not satisfiable"):
    """The file has no such part (RFC 9110, section 15.5.17)."""


class Misdirected(TodoError, status=421, title="Misdirected request"):
    """The request names a host that this server does not serve (RFC 9110, section 15.5.20)."""


class Invalid(TodoError, status=422, title="Invalid fields"):
    """The request could be read, but one or more of its fields cannot be used."""


class UpgradeRequired(TodoError, status=426, title="Upgrade required"):
    """The client uses another version of the WebSocket protocol."""


class TooManyRequests(TodoError, status=429, title="Too many attempts"):
    """There were too many attempts; the next is allowed after some seconds (RFC 6585, section 4)."""

    def __init__(self, seconds: float):
        wait = max(1, math.ceil(round(seconds, 3)))
        super().__init__(f"Too many attempts. Try again in {wait} s.", headers={"Retry-After": str(wait)})


class UpstreamFailed(TodoError, status=502, title="Upstream failed"):
    """Another server that this answer depends on returned nothing that can be used."""


class Unavailable(TodoError, status=503, title="Temporarily unavailable"):
    """An engine is unavailable or busy. The same request may succeed in a moment."""

    def __init__(self, detail: str):
        super().__init__(detail, headers={"Retry-After": "1"})


class UpstreamTimedOut(TodoError, status=504, title="Upstream timed out"):
    """Another server that this answer depends on did not answer in time."""


invalid = Invalid.of


def cleaned(clean: Callable[[str], Value], text: str, field: str, subject: str = "") -> Value:
    """The result of `clean(text)`. A ValueError becomes an Invalid about the field."""
    try:
        return clean(text)
    except ValueError as error:
        raise invalid(field, str(error), subject) from None


class Cache:
    """Values by key, bounded in number and in bytes: those used longest ago make room."""

    def __init__(self, max_items: int, max_bytes: float = math.inf, max_item_bytes: float = math.inf):
        self._max_items, self._max_bytes, self._max_item_bytes = max_items, max_bytes, max_item_bytes
        self._items: collections.OrderedDict[Any, tuple[Any, int]] = collections.OrderedDict()
        self._bytes = 0

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: Any) -> Any:
        """The value, marked as used last, or None."""
        item = self._items.get(key)
        if item is None:
            return None
        self._items.move_to_end(key)
        return item[0]

    def set(self, key: Any, value: Any, size: int = 0) -> None:
        """Keep a value of this many bytes, unless it is over the limit for one."""
        self.remove(key)
        if size > self._max_item_bytes:
            return
        self._items[key] = value, size
        self._bytes += size
        while len(self._items) > self._max_items or self._bytes > self._max_bytes:
            self.remove(next(iter(self._items)))

    def remove(self, key: Any) -> None:
        """Forget a value if it is kept."""
        if item := self._items.pop(key, None):
            self._bytes -= item[1]

    def clear(self) -> None:
        """Forget all values."""
        self._items.clear()
        self._bytes = 0


# ---- times, ids and text


def now_milliseconds() -> int:
    return time.time_ns() // 1_000_000


@functools.lru_cache(2000)  # a list shows the same times often, and a write has the same in five columns
def timestamp(epoch_milliseconds: int) -> str:
    """Epoch milliseconds as RFC 3339 UTC: 2026-11-22T09:30:00.123Z."""
    moment = EPOCH + datetime.timedelta(milliseconds=epoch_milliseconds)
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"


@functools.lru_cache(2000)
def milliseconds(moment: str | None) -> int | None:
    """The inverse of `timestamp`; None stays None."""
    if moment is None:
        return None
    return (datetime.datetime.fromisoformat(moment[:-1] + "+00:00") - EPOCH) // MILLISECOND


def uuid7() -> str:
    """A UUID version 7 (RFC 9562): sorts by the time it was made, 74 random bits."""
    moment, chance = f"{now_milliseconds():012x}", os.urandom(10).hex()
    variant = "89ab"[int(chance[3], 16) & 3]
    return f"{moment[:8]}-{moment[8:]}-7{chance[:3]}-{variant}{chance[4:7]}-{chance[7:19]}"


# Letters that Unicode does not decompose, and that people type without their stroke or hook.
UNDECOMPOSED = str.maketrans(
    {"ı": "i", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ŧ": "t", "œ": "oe", "æ": "ae"}
)


def is_accent(character: str) -> bool:
    """Whether a character is a mark that people leave out: accents, Hebrew points and Arabic vowels.

    The combining class decides. Vowel signs of Indic scripts and voicing marks of kana have other classes:
    without them it would be another word.
    """
    combining_class = unicodedata.combining(character)
    return combining_class >= 200 or 10 <= combining_class <= 35


def fold(text: str) -> str:
    """Text for comparing: without case, accents and compatibility forms, in any language."""
    if text.isascii():
        return " ".join(text.lower().split())
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    bare = "".join(character for character in decomposed if not is_accent(character))
    return " ".join(bare.translate(UNDECOMPOSED).split())


BOM = "\ufeff"  # a byte order mark, which browsers treat as space
SPACES = f"{BOM}\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def trim(text: str) -> str:
    """Text without surrounding space, as Python or browsers define it."""
    return text.strip(SPACES) if BOM in text else text.strip()


def clean_text(text: str) -> str:
    """Text as a browser's text area returns it: lines end with a newline, without a byte order mark."""
    return text.replace("\r\n", "\n").replace("\r", "\n").lstrip(BOM)


def clean_comment(text: str) -> str:
    """A comment without surrounding space; raise ValueError if it is empty."""
    if not (text := clean_text(text).strip()):
        raise ValueError("must not be empty")
    return text


def clean_line(text: str, limit: int) -> str:
    """Trim one line of text; raise ValueError if it is empty, too long, or has a control character."""
    text = trim(text)
    if not text:
        raise ValueError("must not be empty")
    if len(text) > limit:
        raise ValueError(f"must have at most {limit} characters, not {len(text)}")
    if text.isascii() and text.isprintable():
        return text
    categories = {unicodedata.category(character) for character in text}
    if categories & {"Cc", "Zl", "Zp"}:
        raise ValueError("must be one line, without control characters")
    if categories <= {"Cf", "Zs"}:
        raise ValueError("must have a character that can be seen")
    return text


Tags = list[str]  # an alias, since inside Todo `list` is a field


def clean_tags(tags: Tags | None) -> Tags:
    """Trim tags and drop those that differ only in case or accents from an earlier one."""
    kept: dict[str, str] = {}
    for tag in tags or []:
        tag = clean_line(tag, 50)
        if "," in tag:
            raise ValueError("a tag cannot contain a comma")
        kept.setdefault(fold(tag), tag)
    return [*kept.values()]


def more_tags(todo: "Todo", tags: Tags) -> Tags:
    """The tags of a to-do and these. Raises Invalid if they are too many."""
    together = clean_tags([*todo.tags, *tags])
    if len(together) > MAX_TAGS:
        raise invalid("tags", f"would be more than {MAX_TAGS} of {todo.title!r}")
    return together


def fold_user_name(name: str) -> str:
    """The stored form of an account's name: without case, compatibility forms and surrounding space."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", trim(name)).casefold())


# Letters and marks that are invisible (Unicode: Default_Ignorable_Code_Point), or only stretch a word.
INVISIBLE = re.compile(
    "[\u034f\u0640\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
# The scripts in use today (UAX 31, table 5), by the first word of their letters' names in Unicode.
EAST_ASIAN_SCRIPTS = {"BOPOMOFO", "CJK", "HANGUL", "HIRAGANA", "IDEOGRAPHIC", "KATAKANA", "KATAKANA-HIRAGANA"}
SCRIPTS_LIKE_LATIN = {"ARMENIAN", "CYRILLIC", "GREEK"}
MODERN_SCRIPTS = EAST_ASIAN_SCRIPTS | SCRIPTS_LIKE_LATIN
MODERN_SCRIPTS |= {"LATIN", "HEBREW", "ARABIC", "ARABIC-INDIC", "EXTENDED", "THAANA", "ETHIOPIC", "GEORGIAN", "TIBETAN"}
MODERN_SCRIPTS |= {"DEVANAGARI", "BENGALI", "GURMUKHI", "GUJARATI", "ORIYA", "TAMIL", "TELUGU", "KANNADA", "MALAYALAM"}
MODERN_SCRIPTS |= {"SINHALA", "THAI", "LAO", "MYANMAR", "KHMER"}
# Letters of these scripts that look alike, each group after its representative (UTS 39, confusables.txt).
CONFUSABLES = """6б 8ଃ৪੪ȣ 9੧୨৭൭ aɑαа cс dԁ eҽе fքẝ gɡցƍ hһհ iıɪɩιі jϳј lӏ nոռ oంಂംං०੦૦௦౦೦൦๐໐၀οσоჿօഠဝ০୦ዐଠ
pρр qԛգզ rг sƽѕ uʋυսሀ vνѵ wɯѡԝա xх yɣʏγуүყ
iꙇ o۵ס rᴦ yỿ þƿϸ ħћ ĸκк ƀѣҍ ƅь ƞη ƨꙅ ǝəә ȝʒӡჳ ȷյ ɍғ ɏұ ɔͻ ɛεєԑ ɜз ɢԍ ɦꚕ ɰպሣ ɵѳө ɸφф ʌᴧ ʍм ʔॽ ʙв ʜн
ͷи δծẟ πпᴨ τт ψѱ ωꙍ лᴫ ҷӌ ӈӊ ձኔ ۹१ ऽઽ २૨ ३૩ ४૪ ८૮ ॱൎ ৠৡ அ௮ ஈர உ௨ഉ எ௭ ஐஜജ க௧ ச௪ ணണ ய௰ ழഴ ஶശ అಅ ఆಆ ఇಇ
ఒಒ ఓಓ ఔಔ జಜ ఞಞ ణಣ యಯ ఱಱ లಲ ౧೧ ౨೨ ౯೯ ഌങ ഞൡ രറ ൪ർ ൯ൻ ජ෪ ද෫ ขฃ
คดต ฆม จຈ ชซ ฎฏ ฑท บບ ปປ ฝຝ พພ ฟຟ ภฦ ยຍ าๅ རཪ ၁ၥ ー一 អឣ く𡿨 へヘ イ亻 エ工 カ力
タ夕 ト卜 ニ二 ノ丿 ハ八 ロ口囗 oهہھە lاןו ىیي كکڪ ٠۰ ٢۲ ٣۳ ٧۷ ٨۸ ٩۹ りリ 才オ 千チ"""
# Letters that look like several, and marks that look like the first of their group.
COMPOUNDS = """æ=ae ӕ=ae œ=oe ҫ=c̦ ƃ=b̄ ƌ=d̄ ƒ=f̦ ƙ=k̔ ƞ=n̩ η=n̩ ƥ=p̔ ƭ=t̔ ƴ=y̔ ȥ=z̦ ɓ=b̔ ɖ=d̨ ɗ=d̔ ɠ=g̔ ɦ=h̔ ꚕ=h̔
ɭ=l̨ ɳ=n̨ ɼ=r̩ ɽ=r̨ ʂ=s̨ ʐ=z̨ ʠ=q̔ ы=ƅi ҋ=й̦ җ=ж̩ ҙ=ɜ̦ қ=ĸ̩ ң=ʜ̩ ӆ=л̦ ӊ=ʜ̦ ӈ=ʜ̦ ӎ=ʍ̦ ऄ=अॆ आ=अा ई=र्इ
ऍ=एॅ ऎ=एॆ ऐ=एे ऑ=अॉ ऒ=अाॆ ओ=अाे औ=अाै আ=অা ৠ=ঋৃ ৡ=ঋৃ ਆ=ਅਾ ਇ=ੲਿ ਈ=ੲੀ ਉ=ੳੁ ਊ=ੳੂ ਏ=ੲੇ ਐ=ਅੈ ਔ=ਅੌ આ=અા
ઍ=અૅ એ=અે ઐ=અૈ ઑ=અાૅ ઓ=અાે ઔ=અાૈ ଆ=ଅା ஊ=உள ௫=ஈு ௬=சு ௲=சூ ఓ=ఒౕ ಓ=ఒౕ ఔ=ఒౌ ಔ=ఒౌ ఠ=రּ ఢ=డ̣ థ=ధּ భ=బ̣
మ=వు ష=వ̣ హ=వా ౠ=ఋా ౡ=ఌా ೡ=ಌಾ ഈ=ഇൗ ഊ=உൗ ഌ=നു ങ=നു ഐ=എെ ഓ=ഒാ ഔ=ഒൗ ഺ=டி ൚=ന്മ ൪=ര് ർ=ര് ൫=ദ്ര ൬=ന്ന
൮=വ്ര ൯=ന് ൻ=ന് ൶=ഹ്മ ෩=෨ා ෯=෨ී แ=เเ ༀ=ཨོཾ က=ဂာ ဟ=ပာ ဩ=သြ ဪ=သြော် ၦ=ပှ ၯ=ပာှ ၰ=ဃှ ၾ=ၽှ ႁ=ဂှ װ=וו
ױ=וי ײ=יי"""
SIMILAR_MARKS = "302 311, 303 342, 304 305, 306 30c, 313 315, 331 320 332 333 347, 326 321 327, 328 322"
LOOKS_LIKE = {ord(letter): word[0] for word in CONFUSABLES.split() for letter in word[1:]}
LOOKS_LIKE |= {ord(word[0]): word[2:] for word in COMPOUNDS.split()}
LOOKS_LIKE |= {
    int(mark, 16): chr(int(marks.split()[0], 16)) for marks in SIMILAR_MARKS.split(",") for mark in marks.split()[1:]
}


def skeleton(name: str) -> str:
    """The same text for all names that look the same (UTS 39, section 4); for an ASCII name the name itself."""
    if name.isascii():
        return name
    text = unicodedata.normalize("NFD", name)
    for _ in range(2):  # a letter's look-alike may itself have one
        text = unicodedata.normalize("NFD", text.translate(LOOKS_LIKE))
    return re.sub("([ijl][\u0316-\u0333]*)\u0307", r"\1", text)  # the dot covers the letter's own, or is lost in an l


def script_of(character: str) -> str:
    """The script of a letter, digit or mark; empty if all scripts use it, `unusual` if names may not have it."""
    code, word = ord(character), unicodedata.name(character, "").split(" ")[0]
    if character.isascii() and not character.isalpha() or (word == "COMBINING" and code < 0x370):
        return "unusual" if 0x334 <= code <= 0x338 else ""  # strokes through a letter make it look like another
    # Latin letters of phonetics, and the clicks, which look like punctuation, are not for names.
    is_odd = word == "LATIN" and (0x1C0 <= code <= 0x1C3 or code >= 0x2B0 and not 0x1E00 <= code <= 0x1EFF)
    return word if word in MODERN_SCRIPTS and not is_odd else "unusual"


LOCAL_USER = "local"  # the name of the user of this machine, who need not sign in


def clean_user_name(name: str) -> str:
    """A name for an account; raises ValueError for letters that are invisible or can be mistaken for others."""
    name = fold_user_name(name)
    valid = all(character in "._-@+" or unicodedata.category(character)[0] in "LMN" for character in name)
    if not valid or not 1 <= len(name) <= 64 or name[0] in "._-@+" or INVISIBLE.search(name):
        raise ValueError("must be 1 to 64 letters, digits or . _ - @ +, and must not begin with . _ - @ or +")
    scripts = {script_of(character) for character in name} - {""}
    if "unusual" in scripts:
        raise ValueError("must have only letters and digits in use today")
    others = scripts - {"LATIN"} - EAST_ASIAN_SCRIPTS
    mixes_latin = "LATIN" in scripts and others & SCRIPTS_LIKE_LATIN
    if len(others) > 1 or (others and scripts & EAST_ASIAN_SCRIPTS) or mixes_latin:
        raise ValueError("must not mix letters of alphabets that look the same")
    if name == LOCAL_USER or skeleton(name) == LOCAL_USER:
        raise ValueError("is the name of this machine's own user: choose another")
    return name


UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


EMAIL_PART = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"


def clean_email(text: str) -> str:
    """An address of the form that browsers accept (WHATWG HTML, 4.10.5.1.5), its host in ASCII. Raises ValueError."""
    local, _, host = trim(text).rpartition("@")
    address = f"{local}@{ascii_host(host)}"
    form = rf"[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@(?:localhost|{EMAIL_PART}(?:\.{EMAIL_PART})+)"
    if len(address) > 254 or not re.fullmatch(form, address):
        raise ValueError("must be one address, like ann@example.com")
    return address


def clean_clock(text: str) -> str:
    """A time of the day. Raises ValueError."""
    if not re.fullmatch("(?:[01][0-9]|2[0-3]):[0-5][0-9]", text):
        raise ValueError("must be a time from 00:00 to 23:59, like 07:30")
    return text


def clean_id(text: str) -> str:
    if not UUID.fullmatch(text):
        raise ValueError("must be a UUID of 36 characters")
    return text.lower()


DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
DATE_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:[0-5]\d)", re.ASCII | re.IGNORECASE)


def parse_date_time(text: str) -> datetime.datetime:
    whole_seconds = re.sub(r"\.\d+", "", text.upper())
    return datetime.datetime.fromisoformat(whole_seconds.replace("Z", "+00:00"))


def clean_due(due: str | None) -> str | None:
    """A due date (2026-11-22) or time with an offset (2026-11-22T14:00:00+01:00), in canonical form."""
    if due is None:
        return None
    due = trim(due)
    try:
        if DATE.fullmatch(due):
            return datetime.date.fromisoformat(due).isoformat()
        if DATE_TIME.fullmatch(due):
            return parse_date_time(due).isoformat().replace("+00:00", "Z")
    except ValueError:
        raise ValueError("is not a day or time that exists") from None
    raise ValueError("must be a date like 2026-11-22, or a time like 2026-11-22T14:00:00+01:00")


def read_day(text: str) -> datetime.date:
    """A day without a time. Raises ValueError."""
    if not DATE.fullmatch(text):
        raise ValueError("must be a date like 2026-11-22")
    return datetime.date.fromisoformat(cast(str, clean_due(text)))


# ---- days in a time zone; a day is its ordinal (`date.toordinal`), a moment is in epoch milliseconds

MILLISECOND = datetime.timedelta(milliseconds=1)
ZONE_NAME = re.compile(r"(?!posix|right)[A-Za-z][A-Za-z0-9+_-]*(/[A-Za-z0-9+_-]+)*")


@functools.lru_cache(1000)
def zone_named(name: str) -> datetime.tzinfo:
    """The time zone of an IANA name. Raises ValueError if there is none."""
    if name == "UTC":  # also on a machine without the database of time zones
        return datetime.UTC
    import zoneinfo  # takes 3 ms, and most servers need it only after the start

    with contextlib.suppress(ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        if len(name) <= 64 and ZONE_NAME.fullmatch(name) and name not in ("localtime", "Factory"):
            return zoneinfo.ZoneInfo(name)
    raise ValueError("must be the name of a time zone, such as Europe/Berlin")


def clean_zone(name: str) -> str:
    """Check the name of a time zone, and return it. Raises ValueError for an unknown zone."""
    zone_named(name)
    return name


def end_of_day(day: int) -> int:
    """The last millisecond of a day in UTC, by which all-day to-dos are sorted in every zone."""
    return (day - EPOCH_DAY + 1) * DAY - 1


def due_sort_key(due: str | None) -> int:
    """Epoch milliseconds of a due time; a day without a time sorts at its end, no due date last."""
    if due is None:
        return NO_DUE
    if len(due) == 10:
        return end_of_day(datetime.date.fromisoformat(due).toordinal())
    return (parse_date_time(due) - EPOCH) // MILLISECOND


def is_all_day(due_at: int) -> bool:
    """Whether a sort key is that of a day: those of times are whole seconds."""
    return due_at % 1000 == 999


def offset(moment: datetime.datetime, zone: str) -> int:
    """Milliseconds by which a zone is ahead of UTC at a moment; a moment without a zone is in that zone."""
    local = moment.astimezone(zone_named(zone)) if moment.tzinfo else moment.replace(tzinfo=zone_named(zone))
    return (local.utcoffset() or datetime.timedelta()) // MILLISECOND


def start_of_day(day: int, zone: str) -> int:
    """The moment at which a day begins in a time zone."""
    midnight = datetime.datetime.fromordinal(min(max(day, 1), datetime.date.max.toordinal()))
    return (day - EPOCH_DAY) * DAY - offset(midnight, zone)


def day_of(moment: int, zone: str) -> int:
    """The day to which a moment belongs in a time zone."""
    known = EPOCH + min(max(moment, end_of_day(2)), end_of_day(datetime.date.max.toordinal() - 2)) * MILLISECOND
    return EPOCH_DAY + (moment + offset(known, zone)) // DAY


def due_moment(due_at: int, zone: str) -> int:
    """The moment by which a due date is sorted in a time zone: for a day, its end there."""
    if not is_all_day(due_at):
        return due_at
    return start_of_day(EPOCH_DAY + due_at // DAY + 1, zone) - 1


def due_bounds(cursor: int, zone: str) -> tuple[int, int]:
    """The sort keys after which a page begins, among times and among days, following a to-do with this key."""
    cursor = min(max(cursor, -NO_DUE), NO_DUE)
    if is_all_day(cursor) or cursor == NO_DUE:
        return due_moment(cursor, zone), cursor
    return cursor, end_of_day(day_of(cursor, zone)) - 1


def due_range(first: str, last: str, zone: str) -> tuple[int, int, int, int]:
    """The sort keys of the first and last day, and of the times from the first moment to before the last."""
    begin, end = (datetime.date.fromisoformat(day).toordinal() for day in (first, last))
    since = -NO_DUE if begin == 1 else start_of_day(begin, zone)
    until = NO_DUE if end == datetime.date.max.toordinal() else start_of_day(end + 1, zone)
    return end_of_day(begin), end_of_day(end), since, until


# ---- repeats: rules of iCalendar (RFC 5545, 3.3.10), of which a part is supported

FREQUENCIES, UNITS = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY"), ("days", "weeks", "months", "years")
WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
MONTH_DAYS = (-1, *range(1, 32))
# The parts of a rule, in their canonical order, with the values of each.
RULE_PARTS = {
    "FREQ": "|".join(FREQUENCIES),
    "INTERVAL": r"[1-9]\d{0,2}",
    "BYMONTH": r"[1-9]|1[0-2]",
    "BYMONTHDAY": rf"(?:{'|'.join(map(str, MONTH_DAYS))})(?:,(?:{'|'.join(map(str, MONTH_DAYS))}))*",
    "BYDAY": rf"(?:[1-4]|-1)?(?:{'|'.join(WEEKDAYS)})(?:,(?:[1-4]|-1)?(?:{'|'.join(WEEKDAYS)}))*",
    "COUNT": r"[1-9]\d{0,2}",
    "UNTIL": r"\d{8}(?:T\d{6}Z)?",
    "FROM": "COMPLETION",
}


class Rule(NamedTuple):
    """How a to-do repeats: the parts of a rule as they are written, without their names; empty if there are none."""

    freq: str
    interval: str = ""
    bymonth: str = ""
    bymonthday: str = ""
    byday: str = ""
    times: str = ""
    until: str = ""
    start: str = ""  # COMPLETION if the next is counted from when this one is completed, not from when it is due

    def __str__(self) -> str:
        return ";".join(f"{name}={value}" for name, value in zip(RULE_PARTS, self, strict=True) if value)


def rule_fault(rule: Rule) -> str:
    """The reason why parts of a rule, each of which is valid, do not go together; empty if they do."""
    has_ordinals, by_month_or_day = re.search(r"\d", rule.byday), rule.bymonth or rule.bymonthday
    if rule.times and rule.until:
        return "cannot have both COUNT and UNTIL"
    if rule.freq == "DAILY" and (rule.byday or by_month_or_day):
        return "cannot have BYDAY, BYMONTHDAY or BYMONTH with FREQ=DAILY"
    if rule.freq == "WEEKLY" and (has_ordinals or by_month_or_day):
        return "can have with FREQ=WEEKLY only days like BYDAY=MO,FR"
    if rule.freq == "MONTHLY" and (rule.bymonth or rule.byday and rule.bymonthday):
        return "can have with FREQ=MONTHLY either BYMONTHDAY or BYDAY"
    if rule.freq == "MONTHLY" and not all(re.match(r"-?\d", day) for day in filter(None, rule.byday.split(","))):
        return "needs with FREQ=MONTHLY days like BYDAY=2TU or BYDAY=-1FR"
    if rule.freq == "YEARLY" and (rule.byday or bool(rule.bymonth) != bool(rule.bymonthday)):
        return "can have with FREQ=YEARLY only BYMONTH and BYMONTHDAY together"
    return ""


@functools.lru_cache(1000)
def read_rule(text: str) -> Rule:
    """Read a rule. Raises ValueError for one that is not supported."""
    parts = dict.fromkeys(RULE_PARTS, "")
    for part in trim(text).upper().removeprefix("RRULE:").split(";"):
        name, _, value = part.partition("=")
        if name not in parts or parts[name]:
            raise ValueError(f"must be a rule like FREQ=WEEKLY;BYDAY=MO,FR, of the parts {', '.join(RULE_PARTS)}")
        if not re.fullmatch(RULE_PARTS[name], value, re.ASCII):
            raise ValueError(f"has a {name} that is not supported: {value[:40]!a}")
        parts[name] = value
    if not parts["FREQ"]:
        raise ValueError("must have a FREQ, such as FREQ=DAILY")
    parts["INTERVAL"] = parts["INTERVAL"].replace("1", "") if parts["INTERVAL"] == "1" else parts["INTERVAL"]
    rule = Rule(*parts.values())
    if fault := rule_fault(rule):
        raise ValueError(fault)
    if rule.until:
        try:
            datetime.datetime.fromisoformat(rule.until)
        except ValueError:
            raise ValueError("has an UNTIL that is not a day or time that exists") from None
    return rule


def clean_repeat(text: str | None) -> str | None:
    """A rule in canonical form. Raises ValueError for one that is not supported."""
    return None if text is None else str(read_rule(text))


def calendar_delta(weekday: tuple[int, int] | None = None, **parts: int) -> Any:
    """A difference between days that stays within a month, or leads to the n-th of a day of the week."""
    from dateutil import relativedelta  # takes 5 ms, and few requests need it

    return relativedelta.relativedelta(weekday=weekday and relativedelta.weekdays[weekday[0]](weekday[1]), **parts)


def period_of(rule: Rule, base: datetime.date, day: datetime.date) -> int:
    """How many periods of a rule (each as long as its interval) lie between those of two days."""
    months = 12 * (day.year - base.year) + day.month - base.month
    lengths = {"DAILY": (day - base).days, "WEEKLY": ((day - base).days + base.weekday()) // 7, "MONTHLY": months}
    return lengths.get(rule.freq, day.year - base.year) // int(rule.interval or 1)


def days_of_period(rule: Rule, base: datetime.date, number: int) -> list[datetime.date]:
    """The days of the n-th period after that of the base; a day that a month does not have is its last day."""
    steps, names = number * int(rule.interval or 1), [name for name in rule.byday.split(",") if name]
    if rule.freq == "DAILY":
        return [base + calendar_delta(days=steps)]
    if rule.freq == "WEEKLY":
        monday = base + calendar_delta(days=-base.weekday(), weeks=steps)
        weekdays = {WEEKDAYS.index(name) for name in names} or {base.weekday()}
        return [monday + calendar_delta(days=each) for each in sorted(weekdays)]
    first = base.replace(day=1, month=int(rule.bymonth or base.month))
    first += calendar_delta(months=steps if rule.freq == "MONTHLY" else 12 * steps)
    ordinals = [(int(name[:-2]), WEEKDAYS.index(name[-2:])) for name in names]  # such as 2TU and -1FR
    weekdays_of_month = [calendar_delta((day, each), day=1 if each > 0 else 31) for each, day in ordinals]
    numbers = [int(number) for number in rule.bymonthday.split(",") if number] or [base.day]
    days_of_month = [calendar_delta(day=31 if each < 0 else each) for each in numbers]
    return sorted({first + each for each in weekdays_of_month or days_of_month})


def rule_days(rule: Rule, base: datetime.date, since: datetime.date) -> Iterator[datetime.date]:
    """The days of a rule from one on, in periods that are counted from the base.

    Raises ValueError or OverflowError after the last year of the calendar.
    """
    for number in itertools.count(period_of(rule, base, since)):
        yield from (day for day in days_of_period(rule, base, number) if day >= since)


def time_in_zone(day: datetime.date, clock: datetime.time, zone: datetime.tzinfo) -> str:
    """A due time in a zone.

    In the hour that a clock skips it is the moment that the clock would show without skipping, and an hour that occurs
    twice is its first occurrence (RFC 5545, 3.3.5).
    """
    return datetime.datetime.combine(day, clock, zone).isoformat(timespec="seconds").replace("+00:00", "Z")


def due_in_zone(due: str, zone: str) -> tuple[datetime.date, datetime.time | None, datetime.tzinfo]:
    """The day and time that a due date has in a zone, or in its own zone if it was written in another one."""
    known = zone_named(zone or "UTC")
    if len(due) == 10:
        return datetime.date.fromisoformat(due), None, known
    moment = parse_date_time(due)
    wall = moment.replace(tzinfo=known)  # also in an hour that this zone skips: its next occurrence is not moved
    if moment.utcoffset() not in (wall.utcoffset(), wall.replace(fold=1).utcoffset()):
        wall = moment if moment.utcoffset() else moment.astimezone(known)
    return wall.date(), wall.time(), cast(datetime.tzinfo, wall.tzinfo)


def is_over(until: str, due: str) -> bool:
    """Whether a due date is after the day or time that ends a rule; empty if nothing ends it."""
    if not until:
        return False
    end = datetime.datetime.fromisoformat(until)
    return parse_date_time(due) > end if end.tzinfo and len(due) > 10 else due[:10] > end.date().isoformat()


def next_occurrence(due: str | None, repeat: str, at: str, zone: str) -> dict[str, str] | None:
    """The due date and the rule of the to-do that follows one, at a time (RFC 3339 UTC); None if none follows.

    It is due on the first day of the rule that is not over, so that a user who was away has nothing to make up for.
    """
    rule, present = read_rule(repeat), parse_date_time(at)
    try:
        day, clock, its_zone = due_in_zone(due, zone) if due else (None, None, zone_named(zone or "UTC"))
        today = present.astimezone(its_zone).date()
        base = today if day is None or rule.start else day
        days = rule_days(rule, base, max(base + datetime.timedelta(1), today))
        dates = (time_in_zone(each, clock, its_zone) if clock else each.isoformat() for each in days)
        following = next(each for each in dates if not clock or parse_date_time(each) > present)
    except (ValueError, OverflowError):
        return None
    if rule.times == "1" or is_over(rule.until, following):
        return None
    # After a shorter month it is the 31st again, or the 29th of February.
    is_cut = (base.day > 28 and rule.freq == "MONTHLY") or ((base.month, base.day) == (2, 29) and rule.freq == "YEARLY")
    if is_cut and not (rule.byday or rule.bymonthday or rule.start):
        month = str(base.month) if rule.freq == "YEARLY" else ""
        rule = rule._replace(bymonthday=str(base.day), bymonth=month)
    return {"due": following, "repeat": str(rule._replace(times=str(int(rule.times) - 1) if rule.times else ""))}


class Reminder(msgspec.Struct, frozen=True, omit_defaults=True):
    """When a reader is reminded: at a time, or minutes before the due date or the start, of which a day begins at 0:00.

    It is the TRIGGER of a VALARM (RFC 5545, 3.8.6.3): `before` is a duration with the opposite sign,
    and `of` is RELATED.
    """

    at: str | None = None
    before: Annotated[int, Meta(ge=-MAX_BEFORE, le=MAX_BEFORE)] | None = None
    of: Literal["due", "start"] = "due"


def clean_reminders(reminders: list[Reminder] | None) -> list[Reminder]:
    """Reminders in canonical form, each once. Raises ValueError unless each has a time or a number of minutes."""
    kept: dict[Reminder, None] = {}
    for each in reminders or []:
        if (each.at is None) == (each.before is None) or each.at is not None and each.of != "due":
            raise ValueError('each must be like {"at": "2026-11-22T14:00:00Z"} or {"before": 30, "of": "due"}')
        at = clean_due(each.at)
        if at is not None and len(at) == 10:
            raise ValueError("at must have a time, like 2026-11-22T14:00:00+01:00")
        kept[msgspec.structs.replace(each, at=at)] = None
    return [*kept]


def moved_by_days(moment: str, days: datetime.timedelta, zone: str) -> str | None:
    """A date or time some days later, at the same time of its zone; None where the calendar ends."""
    day, clock, its_zone = due_in_zone(moment, zone)
    try:
        day += days
    except OverflowError:
        return None
    return time_in_zone(day, clock, its_zone) if clock else day.isoformat()


def moved_rule(repeat: str, days: datetime.timedelta) -> str:
    """A rule that ends some days later, or not at all where the calendar ends."""
    rule = read_rule(repeat)
    end = moved_by_days(f"{rule.until[:4]}-{rule.until[4:6]}-{rule.until[6:8]}", days, "") if rule.until else None
    return str(rule._replace(until=end.replace("-", "") + rule.until[8:] if end else ""))


# ---- to-dos, lists and changes: one row a field


class Field(NamedTuple):
    """The declaration of a field, besides its name, type and default; everything else is derived from it."""

    help: str
    column: str = ""  # that stores it
    write: Callable[[Any], Any] | None = None  # the column's value from the field's, if they differ
    read: Callable[[Any], Any] | None = None  # and back
    of: str = ""  # the column of another field, from which this one is read
    derived: Mapping[str, Callable[[Any], Any]] = {}  # more columns, made from the whole for sorting and searching
    patch: Any = None  # its type where clients may set it; True if it is the type of the field
    clean: Callable[[Any], Any] | None = None  # returns their value in canonical form, or raises ValueError
    sort: str = ""  # the column by which it is sorted
    undo: bool = True


def declare(text: str, *arguments: Any, **options: Any) -> Meta:
    """The declaration of a field, for its annotation."""
    return Meta(description=text, extra={"field": Field(text, *arguments, **options)})


def declared_fields(struct: type[msgspec.Struct]) -> dict[str, Field]:
    """The declarations of a struct's fields, by name."""
    types = {each.name: each.type for each in msgspec.structs.fields(struct)}
    metas = {name: getattr(each, "__metadata__", ()) for name, each in types.items()}
    declared: dict[str, Field] = {
        name: meta[0].extra["field"] for name, meta in metas.items() if meta and meta[0].extra
    }
    for name, field in declared.items():
        if field.sort == (field.column or None) and type(None) in get_args(get_args(types[name])[0]):
            raise TypeError(f"{name}: no page would follow a null; sort by a derived column that is never null")
    return declared


TIME = {"write": milliseconds, "read": lambda value: None if value is None else timestamp(value)}
IMAGE = {"write": lambda image: bytes(image).decode(), "read": lambda text: msgspec.Raw(text.encode())}
WORDS = {"write": lambda words: msgspec.json.encode(words).decode(), "read": msgspec.json.decode}
COMPLETED = {"of": "completed_at", "read": lambda value: value is not None}
TITLE_KEY = {"title_key": lambda todo: fold(todo.title)[:100]}
SEARCH = {"search": lambda todo: f"{fold(todo.title)}\n{fold(todo.notes)}"}
TAG_KEYS = {"tag_keys": lambda todo: "".join(f"\n{fold(tag)}" for tag in todo.tags) + "\n"}
DUE_AT = {"due_at": lambda todo: due_sort_key(todo.due)}
START_AT = {"start_at": lambda todo: due_sort_key(todo.start)}
TITLE = {"patch": Annotated[str, Meta(max_length=2000)], "clean": functools.partial(clean_line, limit=MAX_TITLE)}
ORDER = {
    "patch": Annotated[float, Meta(ge=-MAX_ORDER, le=MAX_ORDER)],
    "clean": lambda order: order + 0.0,  # turns -0.0, which not every engine keeps, into 0.0
}
REPEAT = {"patch": Annotated[str, Meta(max_length=200)] | None, "clean": clean_repeat}
NOTES = {"patch": Annotated[str, Meta(max_length=20_000)] | None, "clean": lambda notes: clean_text(notes or "")}
PRIORITY = {"patch": Annotated[int, Meta(ge=0, le=3)] | None, "clean": lambda priority: priority or 0}
Colour = Literal["red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "grey"]
Reminders = list[Reminder]  # an alias, as `Tags`
REMINDERS = {
    "write": WORDS["write"],
    "read": functools.partial(msgspec.json.decode, type=Reminders),
    "patch": Annotated[Reminders, Meta(max_length=MAX_REMINDERS)] | None,
    "clean": clean_reminders,
}
ARCHIVED = {"write": int, "read": bool, "patch": bool}
TAGS = {"patch": Annotated[Tags, Meta(max_length=MAX_TAGS)] | None, "clean": clean_tags}
ASSIGNEE = {"patch": Annotated[str, Meta(max_length=200)] | None}
MAX_SUBTASK_DEPTH = 5  # of subtasks; a to-do without a parent has depth 1
PARENT = {"patch": str | None, "clean": lambda parent: parent and clean_id(parent)}


class Comment(msgspec.Struct, kw_only=True, frozen=True):
    """A comment on a to-do. The author is null after their account was deleted; a deleted comment has no text."""

    id: Annotated[str, declare("UUID", "id")]
    author: Annotated[str | None, declare("name of the user who wrote it", "user_id")]
    text: Annotated[str, declare("text of several lines", "text")]
    created_at: Annotated[str, declare("when it was written", "created_at", **TIME)]
    edited_at: Annotated[str | None, declare("when its text was changed", "edited_at", **TIME)] = None
    deleted_at: Annotated[str | None, declare("when it was deleted", "deleted_at", **TIME)] = None


class Todo(msgspec.Struct, kw_only=True, frozen=True):
    """A to-do as the API shows it. Times are RFC 3339 UTC; `url` is set only in responses."""

    id: Annotated[str, declare("UUID", "id", undo=False)]
    url: str | UnsetType = UNSET
    list: Annotated[str, declare("id of its list", "list_id", patch=str, clean=clean_id)]
    title: Annotated[str, declare("one line", "title", derived=TITLE_KEY | SEARCH, sort="title_key", **TITLE)]
    completed: Annotated[bool, declare("whether it is done", patch=bool, **COMPLETED)] = False
    completed_at: Annotated[str | None, declare("when it was done", "completed_at", **TIME)] = None
    order: Annotated[float, declare("its place in the list", "position", sort="position", **ORDER)]
    notes: Annotated[str, declare("text of several lines", "notes", derived=SEARCH, **NOTES)] = ""
    due: Annotated[
        str | None,
        declare(
            "date, or time with an offset", "due", derived=DUE_AT, patch=str | None, clean=clean_due, sort="due_at"
        ),
    ] = None
    start: Annotated[
        str | None,
        declare("date or time before which it can wait", "start", derived=START_AT, patch=str | None, clean=clean_due),
    ] = None
    reminders: Annotated[Reminders, declare("times, or minutes before due or start", "reminders", **REMINDERS)] = []
    repeat: Annotated[str | None, declare("rule (RFC 5545) by which it repeats", "repeat", **REPEAT)] = None
    priority: Annotated[int, declare("0 (none) to 3 (high)", "priority", sort="priority", **PRIORITY)] = 0
    tags: Annotated[Tags, declare("words", "tags", derived=TAG_KEYS, **WORDS, **TAGS)] = []
    # The user's id, also in images of the log; `show_all` and `TodoQueries._changes` put the name there.
    assignee: Annotated[str | None, declare("name of the user who is to do it", "assignee_id", **ASSIGNEE)] = None
    parent: Annotated[str | None, declare("id of the to-do that it is a subtask of", "parent_id", **PARENT)] = None
    comments: Annotated[int, declare("number of its comments", "comment_count", undo=False)] = 0
    comment: Comment | UnsetType = UNSET  # the one that a change in the log is about
    created_at: Annotated[str, declare("when it was made", "created_at", sort="created_at", undo=False, **TIME)]
    updated_at: Annotated[str, declare("when it was changed", "updated_at", sort="updated_at", undo=False, **TIME)]
    deleted_at: Annotated[str | None, declare("when it was put into the trash", "deleted_at", **TIME)] = None
    revision: Annotated[int, declare("raised by every change", "revision", undo=False)] = 0


class TodoList(msgspec.Struct, kw_only=True, frozen=True):
    """A list of to-dos. Its counts, its owner and the caller's role are set only in responses.

    Each reader of a shared list has an order, a colour and an archive of their own, see ARRANGED.
    """

    id: Annotated[str, declare("UUID", "id", undo=False)]
    url: str | UnsetType = UNSET
    title: Annotated[str, declare("one line", "title", **TITLE)]
    order: Annotated[float, declare("its place among the reader's lists", "position", **ORDER)]
    colour: Annotated[str | None, declare("the reader's colour for it", "colour", patch=Colour | None)] = None
    archived: Annotated[bool, declare("whether the reader has put it away", "archived", **ARCHIVED)] = False
    inbox: Annotated[bool, declare("whether to-dos go here by default", "inbox", int, bool, undo=False)] = False
    active: int | UnsetType = UNSET
    completed: int | UnsetType = UNSET
    owner: str | UnsetType = UNSET
    role: str | UnsetType = UNSET
    shared: bool | UnsetType = UNSET
    created_at: Annotated[str, declare("when it was made", "created_at", undo=False, **TIME)]
    updated_at: Annotated[str, declare("when it was changed", "updated_at", undo=False, **TIME)]
    deleted_at: Annotated[str | None, declare("when it was put into the trash", "deleted_at", **TIME)] = None
    revision: Annotated[int, declare("raised by every change", "revision", undo=False)] = 0


class SavedFilter(msgspec.Struct, kw_only=True, frozen=True):
    """A query string of `GET /api/todos` to which a user has given a name."""

    id: Annotated[str, declare("UUID", "id", undo=False)]
    url: str | UnsetType = UNSET
    title: Annotated[str, declare("one line", "title", **TITLE)]
    query: Annotated[str, declare("query string of `GET /api/todos`", "query", patch=str)]
    created_at: Annotated[str, declare("when it was made", "created_at", undo=False, **TIME)]
    updated_at: Annotated[str, declare("when it was changed", "updated_at", undo=False, **TIME)]
    revision: Annotated[int, declare("raised by every change", "revision", undo=False)] = 0


class Template(msgspec.Struct, kw_only=True, frozen=True):
    """A list without its identity, of which new lists are made: its colour, and the fields of its open to-dos.

    `day` is the first day among their dates, by which a new list's dates are counted.
    """

    id: Annotated[str, declare("UUID", "id", undo=False)]
    url: str | UnsetType = UNSET
    title: Annotated[str, declare("one line", "title", **TITLE)]
    colour: Annotated[str | None, declare("of its lists", "colour")] = None
    day: Annotated[str | None, declare("the first day among its dates", "first_day")] = None
    todos: Annotated[list[dict[str, Any]], declare("fields of to-dos", "todos", **WORDS)] = []
    created_at: Annotated[str, declare("when it was made", "created_at", undo=False, **TIME)]
    updated_at: Annotated[str, declare("when it was changed", "updated_at", undo=False, **TIME)]
    revision: Annotated[int, declare("raised by every change", "revision", undo=False)] = 0


ACTIONS = (
    "create, update, delete, restore, reorder, arrange, share, purge, filter, template,"
    " comment-added, comment-edited, comment-deleted, comment-restored"
)


class Change(msgspec.Struct, kw_only=True, frozen=True):
    """One row of the change log. An image is null if there was nothing that the caller may see."""

    revision: Annotated[int, declare("one more than that of the change before", "revision")]
    batch: Annotated[str, declare("what one request changed", "batch")]
    at: Annotated[str, declare("when", "at", **TIME)]
    user: Annotated[str | None, declare("name of the user who made it", "user_id")]
    list: Annotated[str, declare("id of the list", "list_id")]
    todo: Annotated[str | None, declare("id of the to-do; null where the list itself changed", "todo_id")]
    action: Annotated[str, declare(ACTIONS, "action")]
    before: Annotated[msgspec.Raw, declare("the to-do or list before", "before_image", **IMAGE)]
    after: Annotated[msgspec.Raw, declare("the to-do or list after", "after_image", **IMAGE)]


def optional(clean: Callable[[str], str]) -> Callable[[str | None], str | None]:
    """The same cleaning for a text that may be null; an empty one becomes null."""
    return lambda text: clean(text) if text else None


class Settings(msgspec.Struct, kw_only=True, frozen=True):
    """A user's settings, one field each. Null is the default of each device, unless its help says otherwise."""

    time_zone: Annotated[
        str | None,
        declare("IANA name of the zone whose days are meant; null: UTC", patch=str | None, clean=optional(clean_zone)),
    ] = None
    first_day: Annotated[
        Literal["monday", "sunday", "saturday"] | None,
        declare("first day of the week; null: that of the browser's region", patch=True),
    ] = None
    language: Annotated[
        Literal["en", "de", "pt", "es"] | None,
        declare("language of the page, errors and mails; null: that of the browser", patch=True),
    ] = None
    theme: Annotated[
        Literal["light", "dark"] | None, declare("colours of the page; null: those of the device", patch=True)
    ] = None
    default_list: Annotated[
        str | None,
        declare(
            "id of the list for to-dos that name none; null, or if it is gone: the Inbox",
            patch=str | None,
            clean=optional(clean_id),
        ),
    ] = None
    email: Annotated[
        str | None, declare("address for mails; null: none", patch=str | None, clean=optional(clean_email))
    ] = None
    digest: Annotated[
        str | None,
        declare("local time (HH:MM) of a daily mail; null: none", patch=str | None, clean=optional(clean_clock)),
    ] = None
    reminders_by_mail: Annotated[bool, declare("whether reminders are also sent by mail", patch=True)] = False


def patch_type(
    struct: type[msgspec.Struct], name: str, bases: tuple[type[msgspec.Struct], ...] = ()
) -> type[msgspec.Struct]:
    """The type of the fields that clients may set. Nothing is required; null clears a field where it is allowed."""
    own = {each.name: get_args(each.type)[0] for each in msgspec.structs.fields(struct) if get_args(each.type)}
    settable = {
        each: (own[each] if declared.patch is True else declared.patch, Meta(description=declared.help))
        for each, declared in declared_fields(struct).items()
        if declared.patch
    }
    types = [(each, Annotated[kind | UnsetType, meta], UNSET) for each, (kind, meta) in settable.items()]
    return msgspec.defstruct(name, types, bases=bases, kw_only=True)


TODO_FIELDS, LIST_FIELDS = declared_fields(Todo), declared_fields(TodoList)
TodoFields, ListFields = patch_type(Todo, "TodoFields"), patch_type(TodoList, "ListFields")
FilterFields = patch_type(SavedFilter, "FilterFields")
TODO_DEFAULTS: dict[str, Any] = {  # of the fields that clients may set, but need not
    each.name: each.default if each.default_factory is msgspec.NODEFAULT else each.default_factory()
    for each in msgspec.structs.fields(Todo)
    if each.name in TODO_FIELDS and TODO_FIELDS[each.name].patch and not each.required
}
TODO_UNDOABLE = tuple(name for name, declared in TODO_FIELDS.items() if declared.undo)
LIST_UNDOABLE = tuple(name for name, declared in LIST_FIELDS.items() if declared.undo)
ARRANGED = ("order", "colour", "archived")  # fields of a list that each of its readers has for themselves
SORT_COLUMNS = {name: declared.sort for name, declared in TODO_FIELDS.items() if declared.sort}
CLEANERS = {name: declared.clean for name, declared in TODO_FIELDS.items() if declared.clean} | {
    "text": clean_comment,
    "batch": clean_id,
    **{name: declared.clean for name, declared in declared_fields(Settings).items() if declared.clean},
}

EXAMPLE_ID, EXAMPLE_TIME = "01a21b9e-172a-7cb5-8084-324af7b2a529", "2026-11-27T05:43:26.837Z"
EXAMPLE_IDENTITY: dict[str, Any] = {
    "id": EXAMPLE_ID,
    "revision": 3,
    "created_at": EXAMPLE_TIME,
    "updated_at": EXAMPLE_TIME,
}
EXAMPLE_TODO = Todo(list=EXAMPLE_ID, title="Buy milk", due="2026-12-01", tags=["shop"], order=1.0, **EXAMPLE_IDENTITY)
EXAMPLE_LIST = TodoList(
    title="Garden", order=1.0, active=2, completed=1, owner="ann", role="owner", shared=True, **EXAMPLE_IDENTITY
)
EXAMPLE_SETTINGS = Settings(
    time_zone="Europe/Berlin", first_day="monday", language="de", email="ann@example.com", digest="07:30"
)


def sort_value(todo: Todo, sort: str) -> Any:
    """The value of the column by which a to-do is sorted."""
    declared = TODO_FIELDS[sort]
    if make := declared.derived.get(declared.sort):
        return make(todo)
    return declared.write(getattr(todo, sort)) if declared.write else getattr(todo, sort)


OWNER, EDITOR, VIEWER = "owner", "editor", "viewer"  # the roles in a list; each may do all that the next may


class User(msgspec.Struct, frozen=True):
    """An owner of lists, or the holder of a link to one."""

    id: str
    name: str
    settings: Settings = Settings()

    @property
    def time_zone(self) -> str:
        """The IANA name of the user's time zone, or empty."""
        return self.settings.time_zone or ""

    def with_settings(self, **settings: Any) -> "User":
        """The user with other settings."""
        return msgspec.structs.replace(self, settings=msgspec.structs.replace(self.settings, **settings))


class Member(msgspec.Struct, frozen=True):
    """A member of a list: the user's name, role, and since when."""

    name: str
    role: str
    since: str
    url: str | UnsetType = UNSET


Password = Annotated[str, Meta(max_length=1000)]


class TemplateFields(msgspec.Struct, kw_only=True):
    """The list that becomes a template, and the name of the template: by default that of the list."""

    list: str
    title: Annotated[str, Meta(max_length=2000)] | UnsetType = UNSET


class NewListFields(msgspec.Struct, kw_only=True):
    """The name of a list that a template makes, by default the template's, and its first day, by default today."""

    title: Annotated[str, Meta(max_length=2000)] | UnsetType = UNSET
    day: str | UnsetType = UNSET


class CommentFields(msgspec.Struct, kw_only=True):
    """The text of a comment."""

    text: Annotated[str, Meta(max_length=MAX_COMMENT)]


class UndoFields(msgspec.Struct, kw_only=True):
    """Which batch to undo; without one, the caller's last."""

    batch: str | UnsetType = UNSET


class SignInFields(msgspec.Struct, kw_only=True):
    """A name and a password, not checked by the rules for new ones, which would help an attacker to guess."""

    name: Annotated[str, Meta(max_length=1000)]
    password: Password


class SignUpFields(msgspec.Struct, kw_only=True):
    """The data of a new account."""

    name: str
    password: str
    invite: Annotated[str, Meta(max_length=200)] | UnsetType = UNSET
    take_local_todos: bool | UnsetType = UNSET


class PasswordFields(msgspec.Struct, kw_only=True):
    """The present password, as proof."""

    password: Password


class NewPasswordFields(msgspec.Struct, kw_only=True):
    """Another password, with the present one as proof."""

    password: Password | UnsetType = UNSET
    new_password: str | UnsetType = UNSET


# Changes of one's own account: of settings, or of the password.
UserFields = patch_type(Settings, "UserFields", bases=(NewPasswordFields,))


class TokenFields(msgspec.Struct, kw_only=True):
    """An API token's purpose, whether it may only read, and for how many days it is valid."""

    name: str
    read_only: bool | UnsetType = UNSET
    days: Annotated[int, Meta(ge=1, le=366)] | UnsetType = UNSET


class MemberFields(msgspec.Struct, kw_only=True):
    """The role of a member."""

    role: Literal["editor", "viewer"]


class NoFields(msgspec.Struct, kw_only=True):
    """An empty object."""


class TodoFilter(msgspec.Struct, kw_only=True, frozen=True):
    """A selection of to-dos, by the query parameters of these names; by default all outside the trash.

    Each condition narrows it. Days are those of a time zone, by its IANA name.
    """

    list: str | None = None
    id: Sequence[str] = ()
    completed: bool | None = None
    due: tuple[str, str] | str | None = None
    start: tuple[str, str] | str | None = None
    tag: Sequence[str] = ()
    priority: Sequence[int] = ()
    assignee: str = ""
    parent: Sequence[str] = ()
    q: Sequence[str] = ()
    deleted: bool = False
    archived: bool = False
    tz: str = "UTC"


class Tag(msgspec.Struct, frozen=True):
    """A tag, and the number of active to-dos that have it."""

    tag: str
    active: int


class Parent(msgspec.Struct, frozen=True):
    """A to-do that has subtasks, with the number of these and of those among them that are completed."""

    id: str
    parent: str | None
    list: str
    title: str
    completed: bool
    subtasks: int
    done: int


class CompletedDay(msgspec.Struct, frozen=True):
    """A day, and the number of to-dos that the user completed on it."""

    day: str
    completed: int


class Statistics(msgspec.Struct, frozen=True):
    """A user's completed to-dos of the last twelve weeks, and the number of days in a row until today or yesterday."""

    days: list[CompletedDay]
    streak: int

    @classmethod
    def of(cls, counts: Mapping[int, int], today: int) -> "Statistics":
        """From the numbers of completed to-dos by day (an ordinal)."""
        last = today if counts.get(today) else today - 1
        streak = next(length for length in itertools.count() if not counts.get(last - length))
        days = range(today - STATISTICS_DAYS + 1, today + 1)
        return cls(
            [CompletedDay(datetime.date.fromordinal(day).isoformat(), counts.get(day, 0)) for day in days], streak
        )


class Page(NamedTuple):
    """One page of a keyset-paged answer: sort key, direction, size, and the last item before it."""

    sort: str = "order"
    descending: bool = False
    limit: int = 200
    after: tuple[Any, str] | None = None


# ---- reading what clients send


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; raise Malformed for a key that occurs twice, since one value would be lost."""
    value = dict(pairs)
    if len(value) != len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        double = counts.most_common(1)[0][0].encode(errors="replace").decode()[:200]
        raise Malformed.of(double, "occurs twice", f"The key {double!r}")
    return value


# json.loads() would make one for each call. Python refuses to convert very many digits; 30 are far over 64 bits.
JSON_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys, parse_int=lambda digits: int(digits[:30]))


def text_fault(text: str) -> str | None:
    """The reason why not every engine could store a text, or None."""
    if "\0" in text:
        return "contains a NUL character"
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return "contains half a surrogate pair"
    return None


def json_fault(value: Any, depth: int = 0) -> tuple[str, str] | None:
    """The place and kind of a part of a JSON value that not every engine could store, or None."""
    if isinstance(value, str):
        fault = text_fault(value)
        return ("", fault) if fault else None
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**63 else ("", "is an integer beyond 64 bits")
    if isinstance(value, float):
        return None if math.isfinite(value) else ("", "is not a finite number")
    if depth == MAX_DEPTH:
        return "", f"is nested deeper than {MAX_DEPTH} levels"
    if isinstance(value, dict):
        for key in value:
            if fault := text_fault(key):
                return "", f"has a key that {fault}"
    for place, item in value.items() if isinstance(value, dict) else enumerate(value):
        if found := json_fault(item, depth + 1):
            path, message = found
            place = f"[{place}]" if isinstance(place, int) else place[:200]
            return place + ("." if path and not path.startswith("[") else "") + path, message
    return None


def parse_json(body: bytes) -> Any:
    """Parse a JSON body (RFC 8259) into plain values that every engine can keep exactly.

    Raises Malformed, naming the place, for anything else: bad syntax or UTF-8, duplicate keys,
    NaN and Infinity, integers beyond 64 bits, NUL and lone surrogates, more than 32 levels.
    """
    try:
        value = JSON_DECODER.decode(body.decode())
    except UnicodeDecodeError:
        raise Malformed("The body is not UTF-8.") from None
    except RecursionError:
        raise Malformed(f"The body is nested deeper than {MAX_DEPTH} levels.") from None
    except json.JSONDecodeError as error:
        problem = f"{error.msg}, line {error.lineno} column {error.colno}"
        raise Malformed(f"The body is not JSON: {problem}.") from None
    if fault := json_fault(value):
        path, message = fault
        raise Malformed.of(path, message, path or "The body")
    return value


def read_field(name: str, value: Any, field_type: Any) -> Any:
    """Convert one field; raise ValueError with a message for people if it does not fit."""
    try:
        value = msgspec.convert(value, field_type)
    except msgspec.ValidationError as error:
        message = str(error).replace("`", "").replace(" - at $", " at ").replace("Expected", "expected")
        raise ValueError(message.replace(" | null", " or null").replace("array", "list")) from None
    return CLEANERS[name](value) if name in CLEANERS else value


@functools.cache
def known_fields(fields_type: type[msgspec.Struct]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The types of a struct's fields by name, and the required ones; msgspec takes 60 µs to find them."""
    fields = msgspec.structs.fields(fields_type)
    return {each.name: each.type for each in fields}, tuple(each.name for each in fields if each.required)


def read_fields(body: Any, fields_type: type[msgspec.Struct], required: Iterable[str] = ()) -> dict[str, Any]:
    """The fields that a JSON object sets, checked and cleaned, as a dict.

    Raises Invalid with one entry for every field that is unknown, missing or cannot be used.
    """
    if not isinstance(body, dict):
        raise invalid("", "must be a JSON object", "The body")
    known, always = known_fields(fields_type)
    missing = [name for name in (*required, *always) if name not in body]
    values, errors = {}, [field_error(name, "is required") for name in missing]
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


@contextlib.contextmanager
def naming_item(index: int) -> Iterator[None]:
    """Put the index of an array's item, counted from 0, before the names of its fields in an Invalid."""
    try:
        yield
    except Invalid as error:
        errors = [field_error(f"{index}.{each['field']}".rstrip("."), each["message"]) for each in error.errors]
        raise Invalid(f"Item {index}: {error}", errors) from None


def read_items(body: list, fields_type: type[msgspec.Struct], required: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The fields of each object of a JSON array, as `read_fields` reads them.

    Raises Invalid for the first item that cannot be used, and unless there are 1 to MAX_ITEMS.
    """
    if not 1 <= len(body) <= MAX_ITEMS:
        raise invalid("", f"must have 1 to {MAX_ITEMS} items, not {len(body)}", "The array")
    items = []
    for index, item in enumerate(body):
        with naming_item(index):
            items.append(read_fields(item, fields_type, required))
    return items


# ---- reading query strings


def one_of(known: Sequence[str], text: str) -> str:
    """Read one of some words."""
    if text not in known:
        raise ValueError(f"must be {' or '.join(known)}")
    return text


def read_boolean(text: str) -> bool:
    return one_of(("true", "false"), text) == "true"


def read_whole_number(smallest: int, largest: int, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text) or not smallest <= int(text) <= largest:
        raise ValueError(f"must be a whole number from {smallest} to {largest}")
    return int(text)


FIRST_DAY = "0001-01-01"  # of the calendar
RELATIVE_DAY = re.compile(r"today(?:[ +-]\d{1,4})?")  # a + that is not percent-encoded is a space in a query string


def day_in_zone(day: str, zone: str) -> str:
    """A day; one that is counted from today (`today+7`) is so in a time zone."""
    if not day.startswith("today"):
        return day
    number = day_of(now_milliseconds(), zone) + int(day.removeprefix("today").replace(" ", "+") or 0)
    return datetime.date.fromordinal(min(max(number, 1), datetime.date.max.toordinal())).isoformat()


def read_due(text: str) -> tuple[str, str] | str:
    """A day, also counted from today, a range of days open at either end (`..today+7`), or `any` or `none`."""
    if text in ("any", "none"):
        return text
    first, dots, last = text.partition("..")
    days = [first, last if dots else first]
    for day in filter(None, days):
        if RELATIVE_DAY.fullmatch(day):
            continue
        if not DATE.fullmatch(day):
            raise ValueError("must be a day like 2026-11-22 or today+7, a range like 2026-11-01..today, any or none")
        read_day(day)
    if not any(days):
        raise ValueError("must name a day")
    return days[0] or FIRST_DAY, days[1] or "9999-12-31"


def read_tag(text: str) -> str:
    return fold(clean_line(text, 50))


def read_words(text: str) -> tuple[str, ...]:
    words = tuple(fold(trim(text)).split())
    if not words or len(text) > 200:
        raise ValueError("must be 1 to 200 characters with a word in them")
    return words


def read_ids(text: str) -> tuple[str, ...]:
    ids = tuple(clean_id(each) for each in text.split(","))
    if len(ids) > 200:
        raise ValueError("must be at most 200 ids")  # 8 kB, which proxies still accept in an address
    return ids


def read_parents(text: str) -> tuple[str, ...]:
    """Read `none`, or the ids of to-dos."""
    return (text,) if text == "none" else read_ids(text)


def read_priorities(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[0-3](,[0-3])*", text):
        raise ValueError("must be 0, 1, 2 or 3, or several separated by commas")
    return tuple(sorted({int(digit) for digit in text.split(",")}))


def read_sort(text: str) -> tuple[str, bool]:
    if text.removeprefix("-") not in SORT_COLUMNS:
        raise ValueError(f"must be one of {', '.join(SORT_COLUMNS)}, with - in front for descending")
    return text.removeprefix("-"), text.startswith("-")


CURSOR_KINDS: dict[str, type] = {"name": str, "parent": str, "revision": int} | {
    name: type(sort_value(EXAMPLE_TODO, name)) for name in SORT_COLUMNS
}


def read_cursor(text: str) -> list:
    """The inverse of `make_cursor`."""
    with contextlib.suppress(ValueError, TypeError, LookupError, RecursionError):
        values = json.loads(base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4)))
        sort, value, last_id, revision = values
        known = isinstance(last_id, str) and not text_fault(last_id) and not json_fault(value)
        known = known and type(revision) is int and 0 <= revision < 2**63
        if known and isinstance(value, CURSOR_KINDS[sort]):
            return values
    raise ValueError("is not a cursor of a Link header of this server")


def make_cursor(sort: str, value: Any, last_id: str, revision: int = 0) -> str:
    text = json.dumps([sort, value, last_id, revision], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_text(text: str) -> str:
    if not text or len(text) > 200:
        raise ValueError("must be 1 to 200 characters")
    return text


def read_query(parameters: Mapping[str, Callable[[str], Any]], query: str) -> Mapping[str, Any]:
    """Parse a query string; `tag` becomes a list, every other parameter may occur once.

    Raises Malformed with one entry for every parameter that is repeated, cannot be read or is unknown, since a
    mistyped filter of a bulk DELETE must never select everything. Raises Invalid for an unknown time zone.
    """
    if not query:
        return {}
    values: dict[str, Any] = {}
    errors = []
    try:
        if re.search("%(?![0-9A-Fa-f]{2})", query) or not query.strip("&"):
            raise ValueError
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=50)
    except ValueError:
        message = "The query string is empty, not percent-encoded UTF-8, or has over 50 parameters."
        raise Malformed(message) from None
    for name, text in pairs:
        try:
            if name not in parameters:
                raise ValueError(f"is unknown here; known are {', '.join(parameters) or 'none'}")
            if name in values and name != "tag":
                raise ValueError("occurs twice")
            if fault := text_fault(text):
                raise ValueError(fault)
            value = parameters[name](text)
            values.setdefault(name, []).append(value) if name == "tag" else values.update({name: value})
        except ValueError as error:
            errors.append(field_error(name, str(error)))
    if errors:
        raise Malformed("; ".join(f"{error['field']} {error['message']}" for error in errors) + ".", errors)
    return values


def filter_from_query(query: Mapping[str, Any], time_zone: str) -> TodoFilter:
    """The filter of a query; its days are those of the zone it names, else of the user's (empty: UTC)."""
    zone = query.get("tz") or time_zone or "UTC"
    ranges = {name: query[name] for name in ("due", "start") if isinstance(query.get(name), tuple)}
    days = {name: tuple(day_in_zone(day, zone) for day in each) for name, each in ranges.items()}
    return TodoFilter(**{**query, **days, "tz": zone})


# ---- names and validators


def clean_document_name(name: str) -> str:
    """A document's name in NFC; raises Invalid unless it is 1 to 200 letters, digits, `.`, `_` or `-`."""
    name = unicodedata.normalize("NFC", name)
    valid = all(character in "._-" or unicodedata.category(character)[0] in "LMN" for character in name)
    if not valid or not 1 <= len(name) <= 200 or name in (".", ".."):
        raise invalid("name", "must be 1 to 200 letters, digits, dots, underscores or hyphens", "The name")
    return name


def clean_record_key(key: str) -> str:
    """A record's key; raises Invalid unless it is 1 to 200 characters that can be printed."""
    if not 1 <= len(key) <= 200 or any(unicodedata.category(character)[0] == "C" for character in key):
        raise invalid("key", "must be 1 to 200 characters, none of them a control character", "The key")
    return key


def etag_matches(header: str, etag: str, weak: bool = False) -> bool:
    """Whether an If-Match header, or with `weak` an If-None-Match header, names a tag (RFC 9110, 8.8.3)."""
    tags = re.findall(r'((?:W/)?)("[^"]*")', header)
    return header.strip() == "*" or any(tag == etag and (weak or not prefix) for prefix, tag in tags)


def check_precondition(if_match: str | None, etag: str) -> None:
    """Raise PreconditionFailed unless an If-Match header, if there is one, names the tag (RFC 9110, 13.1.1)."""
    if if_match is None or etag_matches(if_match, etag):
        return
    if etag_matches(if_match, etag, weak=True):
        raise PreconditionFailed(
            f"Send {etag} without the W/ in front: If-Match needs strong tags; compressing proxies weaken them."
        )
    if '"' not in if_match:
        raise PreconditionFailed(f"If-Match takes tags in double quotes, as the ETag header has them: {etag}.")
    raise PreconditionFailed(f"It has changed: its ETag is now {etag}. Read it again, then decide.")


# ---- changing to-dos and lists


def changed(before: Any, at: str, **values: Any) -> Any:
    """The to-do or list with these fields set; the same object if nothing changed."""
    after = msgspec.structs.replace(before, **values)
    return before if after == before else msgspec.structs.replace(after, updated_at=at)


def changed_todo(before: Todo, fields: Mapping[str, Any], at: str) -> Todo:
    """The to-do with these fields set; completing and reopening also set `completed_at`.

    A completed to-do has no rule: it has passed it on to the next one, and does so only once.
    """
    values = dict(fields)
    if values.get("completed", before.completed):
        values["repeat"] = None
    if "completed" in values and values["completed"] != before.completed:
        values["completed_at"] = at if values["completed"] else None
    return changed(before, at, **values)


def reverted(current: Any, before: Any, after: Any, fields: Iterable[str], at: str) -> Any:
    """`current` with the fields that went from `before` to `after` set back.

    Raises Conflict if one of those fields has since been changed to something else.
    """
    altered = [name for name in fields if getattr(before, name) != getattr(after, name)]
    for name in altered:
        if getattr(current, name) != getattr(after, name):
            raise Conflict(f"{current.title!r} has been changed since ({name}), so nothing was undone.")
    values = {name: getattr(before, name) for name in altered}
    return msgspec.structs.replace(current, updated_at=at, **values)


def smallest_gap(order: float) -> float:
    """The distance below which neighbours are moved apart, far above the precision of a double."""
    return max(1e-6, abs(order) * 1e-12)


# ==== quick add: the words of a line that become fields of a to-do; may call the domain =========

# The words of each language, without accents: the alternatives of one meaning are separated by |, and meanings of a
# series by commas. Words after ~ are read only for a reader of the language, since others use them for other things.
ENGLISH = {
    "relative": "tonight|this evening,today,tomorrow|~tmr,(?:the )?day after tomorrow",
    "parts": "(?:in the )?morning,(?:in the )?afternoon,(?:in the |at )?(?:evening|night)",
    "next": "next week,next month,next year",
    "on": "on(?: the)?|by(?: the)?|this|due|until",
    "coming": "next",
    "following": "",
    "days": "monday,tuesday,wednesday,thursday,friday,saturday,sunday",
    "short_days": "~mon,~tues?,~wed,~thu(?:rs?)?,~fri,~sat,~sun",
    "plural_days": "mondays,tuesdays,wednesdays,thursdays,fridays,saturdays,sundays",
    "plural_on": "(?:on )?",
    "months": "january,february,march,april,may,june,july,august,september,october,november,december",
    "short_months": "~jan,~feb,~mar,~apr,~may,~june?,~july?,~aug,~sept?,~oct,~nov,~dec",
    "of": "of",
    "in": "in",
    "numbers": "an?|one,two,three,four,five,six,seven,eight,nine,ten",
    "units": "days?,weeks?,months?,years?,hours?|hrs?|h,min(?:ute)?s?",
    "at": "at",
    "noon": "noon|midday",
    "midnight": "midnight",
    "oclock": "o['’]clock",
    "half_past": "",
    "every": "every|each",
    "other": "other|second|2nd",
    "and": "and|&",
    "workdays": "weekdays?|workdays?",
    "bare_workdays": "(?:on )?weekdays|(?:on )?workdays",
    "ordinals": "first|1st,second|2nd,third|3rd,fourth|4th,last",
    "of_month": "of (?:the|each|every) month",
    "last_day": "last day",
    "month_day": r"(?P<month_day>\d\d?)(?:st|nd|rd|th)",
    "adverbs": "daily,weekly,monthly,yearly|annually",
    "until": "until|till",
    "times": "times",
    "remind": "remind(?: me)?|reminder",
    "before": "before(?:hand)?|earlier|ahead",
    "from": "~from(?: the)?|starting(?: on)?|not before",
}
GERMAN = {
    "relative": "heute abend,heute,(?<!guten.)(?<!jeden.)(?<!am.)morgen,(?:ue|u)bermorgen",
    "parts": "fr(?:ue|u)h|morgens?|vormittags?,nachmittags?,abends?|nachts?",
    "next": "n(?:ae|a)chste[rn]? woche,n(?:ae|a)chste[nr]? monat,n(?:ae|a)chste[sn]? jahr",
    "on": "am|bis(?: zum)?|diese[nrs]?|kommende[nrs]?|am kommenden|an|den",
    "coming": "(?:am )?n(?:ae|a)chste[nrs]?",
    "following": "",
    "days": "montag,dienstag,mittwoch,donnerstag,freitag,samstag|sonnabend,sonntag",
    "short_days": "~mo,~di,~mi,~do,~fr,~sa,~so",
    "plural_days": "montags,dienstags,mittwochs,donnerstags,freitags,samstags|sonnabends,sonntags",
    "plural_on": "(?:)",
    "months": "januar|janner,februar|feber,marz|maerz,april,~mai,juni,juli,august,september,oktober,november,dezember",
    "short_months": "~jan,~feb,~mrz|~mar,~apr,~mai,~jun,~jul,~aug,~sept?,~okt,~nov,~dez",
    "of": "des",
    "in": "in",
    "numbers": "eine[mnrs]?,zwei,drei,vier,f(?:ue|u)nf,sechs,sieben,acht,neun,zehn",
    "units": "tag(?:en?)?,wochen?,monat(?:en?)?,jahr(?:en?)?,stunden?|std\\.?|h,minuten?|min\\.?",
    "at": "um|ab|gegen",
    "noon": "mittags?",
    "midnight": "mitternacht",
    "oclock": "uhr",
    "half_past": "",
    "every": "jede[nrsm]?|alle",
    "other": "zweite[nrs]?",
    "and": "und|&",
    "workdays": "werktage?|arbeitstage?",
    "bare_workdays": "werktags",
    "ordinals": "erste[nrs]?|1\\.,zweite[nrs]?|2\\.,dritte[nrs]?|3\\.,vierte[nrs]?|4\\.,letzte[nrs]?",
    "of_month": "(?:im|des|jedes) monats?|im monat",
    "last_day": "letzten tag",
    "month_day": r"(?P<month_day>\d\d?)\.",
    "adverbs": "t(?:ae|a)glich,w(?:oe|o)chentlich,monatlich,j(?:ae|a)hrlich",
    "until": "bis(?: zum)?",
    "times": "mal",
    "remind": "erinnere(?: mich)?|erinnerung|erinnern",
    "before": "vorher|davor|fr(?:ue|u)her",
    "from": "ab(?: dem)?|nicht vor(?: dem)?",
}
PORTUGUESE = {
    "relative": "hoje a noite|~esta noite,hoje,amanha,depois de amanha",
    "parts": "(?:(?:d[ae]|pela) )?manhas?|cedo,(?:(?:a|d[ae]|pela) )?tardes?,(?:(?:a|d[ae]|pela) )?noites?",
    "next": "(?:[nd]a )?(?:proxima semana|semana que vem),(?:no )?(?:proximo mes|mes que vem),"
    "(?:no )?(?:proximo ano|ano que vem)",
    "on": "na|no|em|ate|este|esta|neste|nesta|(?:no )?dia",
    "coming": "(?:na |no )?proxim[ao]",
    "following": "que vem",
    "days": "segunda-feira,terca-feira,quarta-feira,quinta-feira,sexta-feira,sabado,domingo",
    "short_days": "~segunda|~seg,~terca|~ter,~quarta|~qua,~quinta|~qui,~sexta|~sex,~sab,~dom",
    "plural_days": "segundas(?:-feiras)?,tercas(?:-feiras)?,quartas(?:-feiras)?,quintas(?:-feiras)?,"
    "sextas(?:-feiras)?,sabados,domingos",
    "plural_on": "(?:[an]os|[an]?as) ",
    "months": "janeiro,fevereiro,~marco,abril,maio,junho,julho,agosto,setembro,outubro,novembro,dezembro",
    "short_months": "~jan,~fev,~mar,~abr,~mai,~jun,~jul,~ago,~set,~out,~nov,~dez",
    "of": "de",
    "in": "em|daqui a|dentro de",
    "numbers": "uma?,dois|duas,tres,quatro,cinco,seis,sete,oito,nove,dez",
    "units": "dias?,semanas?,mes(?:es)?,anos?,horas?|h,min(?:uto)?s?",
    "at": "as?",
    "noon": "(?:ao )?meio[- ]dia",
    "midnight": "(?:a )?meia[- ]noite",
    "oclock": "horas",
    "half_past": "e meia",
    "every": "(?:a )?cada|~todo|~toda|todos os|todas as",
    "other": "segund[oa]",
    "and": "e|&",
    "workdays": "dias? ute?is|dia util",
    "bare_workdays": "(?:nos )?dias uteis",
    "ordinals": "primeir[oa],segund[oa],terceir[oa],quart[oa],ultim[oa]",
    "of_month": "d[oe] (?:cada )?mes",
    "last_day": "ultimo dia",
    "month_day": r"dia (?P<month_day>\d\d?)o?",
    "adverbs": "diariamente,semanalmente,mensalmente,anualmente",
    "until": "ate(?: o)?",
    "times": "vezes",
    "remind": "lembr(?:ar|ete|a-me|e-me)|me lembr[ae]",
    "before": "antes",
    "from": "a partir d[aeo]|desde(?: [ao])?",
}
SPANISH = {
    "relative": "esta noche,hoy,(?<!la.)manana,pasado manana",
    "parts": "(?:(?:por|de|en|a) la )?mananas?|temprano,(?:(?:por|de|en|a) la )?tardes?,"
    "(?:(?:por|de|en|a) la )?noches?",
    "next": "(?:la )?(?:proxima semana|semana que viene),(?:el )?(?:proximo mes|mes que viene),"
    "(?:el )?(?:proximo ano|ano que viene)",
    "on": "el|este|para el|hasta el|hasta|en",
    "coming": "(?:el )?proximo",
    "following": "que viene|proximo",
    "days": "lunes,martes,miercoles,jueves,viernes,sabado,domingo",
    "short_days": "~lun,~mar,~mie,~jue,~vie,~sab,~dom",
    "plural_days": "lunes,martes,miercoles,jueves,viernes,sabados,domingos",
    "plural_on": "los ",
    "months": "enero,febrero,marzo,abril,mayo,junio,julio,agosto,sep?tiembre,octubre,noviembre,diciembre",
    "short_months": "~ene,~feb,~mar,~abr,~may,~jun,~jul,~ago,~sept?|~set,~oct,~nov,~dic",
    "of": "del?",
    "in": "en|dentro de",
    "numbers": "una?,dos,tres,cuatro,cinco,seis,siete,ocho,nueve,diez",
    "units": "dias?,semanas?,mes(?:es)?,anos?,horas?|h,min(?:uto)?s?",
    "at": "a las?|a",
    "noon": "(?:al )?mediodia",
    "midnight": "(?:a )?medianoche",
    "oclock": "horas",
    "half_past": "y media",
    "every": "cada|todos los|todas las",
    "other": "segund[oa]",
    "and": "y|&",
    "workdays": "dias? (?:laborables?|habil(?:es)?)",
    "bare_workdays": "entre semana",
    "ordinals": "primer[oa]?,segund[oa],tercer[oa]?,cuart[oa],ultim[oa]",
    "of_month": "del? (?:cada )?mes",
    "last_day": "ultimo dia",
    "month_day": r"dia (?P<month_day>\d\d?)o?",
    "adverbs": "diariamente|a diario,semanalmente,mensualmente,anualmente",
    "until": "hasta(?: el)?",
    "times": "veces",
    "remind": "recorda(?:r|rme|torio)|recuerdame|avisa(?:me|r)",
    "before": "antes",
    "from": "a partir del?|desde(?: el)?",
}
LANGUAGES = {"en": ENGLISH, "de": GERMAN, "pt": PORTUGUESE, "es": SPANISH}
# The surroundings of a phrase; \0 marks text that an earlier phrase has taken.
LEFT, RIGHT = r"(?<![^\s(\[,;\0])", r"(?![^\s)\],;.:!?\0]|[.,:!?]+[^\s)\].,:!?\0])"
ANY_DAY = "(?:(?:%(plural_days)s|%(days)s|%(short_days)s)\\b)"
SERIES = "(?:(?:, ?| %(and)s |, %(and)s )(?:%(every)s )?{0})*"  # of more than one
DATE_SUFFIX = r"(?:st|nd|rd|th|o|\.)?"
DAY_PHRASE = rf"""(?:
(?:(?P<named>{ANY_DAY}\.?,? (?:(?:%(on)s|the) )?)?(?:
(?P<date>\d\d?){DATE_SUFFIX}(?: %(of)s)? (?P<month>%(months)s|%(short_months)s)\.?(?:,?(?: %(of)s)? (?P<year>\d{{4}}))?
|(?P<month_2>%(months)s|%(short_months)s)\.? (?P<date_2>\d\d?){DATE_SUFFIX}(?:,? (?P<year_2>\d{{4}}))?
|(?P<iso>\d{{4}}-\d\d-\d\d)
|(?P<first>\d\d?)(?P<separator>(?P<slash>/)|\. ?)(?P<second>\d\d?)
(?:(?P=separator)(?P<year_3>\d{{4}}|\d\d)|(?P<dot>\.)|(?(named)(?(slash)|(?!))))
|%(month_day)s(?: %(of_month)s)?
))
|(?:(?P<day_before>{ANY_DAY}),? (?:%(of)s )?)?(?P<next>%(next)s)(?:,? (?:%(on)s )?(?P<day_after>{ANY_DAY}))?
|(?:(?P<relative>%(relative)s)
|(?:(?P<coming>%(coming)s) )?(?:(?P<day>%(days)s)|(?P<short>%(short_days)s)(?:\.(?= ))?)
(?P<following> (?:%(following)s))?
)(?: ?(?P<part>%(parts)s))?
|%(in)s (?P<number>\d\d?\d?|%(numbers)s) ?(?P<unit>%(units)s)
)"""
TIME_PHRASE = r"""(?:(?P<at>%(at)s) )?(?:(?P<noon>%(noon)s)|(?P<midnight>%(midnight)s)
|(?P<hour>\d\d?)(?:(?P<colon>[:.h])(?P<minute>[0-5]\d))?
(?: ?(?:(?P<half>[ap])\.?m\.?|(?P<h>hs?)|(?P<oclock>%(oclock)s)))?)
(?P<half_past> %(half_past)s)?(?: (?!%(relative)s\b)(?P<of_day>%(parts)s))?"""
# A phrase of another language than the reader's has at least one of these.
KEY_WORD = "(?:%(relative)s|%(next)s|%(days)s|%(units)s|%(months)s|%(noon)s|%(midnight)s|%(every)s|%(adverbs)s"
KEY_WORD += "|%(bare_workdays)s|%(plural_days)s|%(until)s|%(times)s|%(remind)s|\\d\\d? ?%(oclock)s)"
PHRASES = {
    "any_day": ANY_DAY,
    "repeat": rf"""(?:%(every)s(?P<restart>!)? (?:
(?P<nth>%(ordinals)s) (?P<nth_day>%(days)s|%(short_days)s)(?: %(of_month)s)?
|%(last_day)s(?P<last>)(?: %(of_month)s)?
|(?:dia )?(?P<date>\d\d?){DATE_SUFFIX}(?: %(of)s)? (?P<month>%(months)s|%(short_months)s)\.?
|(?P<month_2>%(months)s|%(short_months)s)\.? (?P<date_2>\d\d?){DATE_SUFFIX}
|(?:the )?(?P<month_days>%(month_day)s{SERIES.format("%(other_month_day)s")})(?: %(of_month)s)?
(?! %(times)s| %(units)s| %(days)s)
|(?P<workdays>%(workdays)s)
|(?P<part>%(parts)s)
|(?:(?P<other>%(other)s) |(?P<number>\d\d?\d?{DATE_SUFFIX}|%(numbers)s|%(ordinals)s) )?(?P<unit>%(units)s)
(?: (?:%(on)s )?(?P<on_days>{ANY_DAY}{SERIES.format(ANY_DAY)}))?
|(?:(?P<other_2>%(other)s) )?(?P<days>{ANY_DAY}{SERIES.format(ANY_DAY)})
)|(?P<adverb>%(adverbs)s)|(?P<bare_workdays>%(bare_workdays)s)
|(?:%(on)s )?(?:(?P<nth_2>%(ordinals)s) (?P<nth_day_2>%(days)s|%(short_days)s)|%(last_day)s
|(?P<monthly>%(other_month_day)s|\d\d?)) (?P<each>%(of_month)s)
|%(plural_on)s(?P<plural>%(plural_days)s(?:(?:, ?| %(and)s |, %(and)s )(?:%(plural_on)s)?%(plural_days)s)*))""",
    "until": rf"(?P<on>%(until)s) {DAY_PHRASE}",
    "count": r"(?P<count>\d\d?\d?) %(times)s",
    "day": rf"(?:(?P<on>%(on)s) )?{DAY_PHRASE}",
    "time": TIME_PHRASE,
    "start": rf"%(from)s (?:(?P<on>%(on)s) )?{DAY_PHRASE}",
    "reminder": rf"""(?:%(remind)s (?P<amount>\d\d?\d?|%(numbers)s) ?(?P<size>%(units)s) %(before)s
|(?P<amount_2>\d\d?\d?|%(numbers)s) ?(?P<size_2>%(units)s) %(before)s %(remind)s
|%(remind)s (?:(?P<when>(?:(?P<on>%(on)s) )?{DAY_PHRASE}) )?{TIME_PHRASE})""",
}
TAG_SIGN = LEFT + r"#(?=[\w\x80-\U0010ffff])(?!\d+(?:\s|$))[^\s,#\0\1]*[^\s,#\0\1.;:!?)\]]"


def folded_letters(text: str) -> tuple[str, Sequence[int]]:
    """A text folded letter by letter, and for each letter, and the end, its place in the text."""
    if text.isascii():
        return text.lower(), range(len(text) + 1)
    letters: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        folded = " " if character.isspace() else fold(character).replace(" ", "")
        letters.append(folded)
        places += [place] * len(folded)
    return "".join(letters), [*places, len(text)]


class Language:
    """The words of a language, for its own readers or for others."""

    def __init__(self, name: str, own: bool):
        self.name, self.own = name, own
        self.items = {
            key: [
                "|".join(word.removeprefix("~") for word in item.split("|") if own or not word.startswith("~"))
                for item in text.split(",")
            ]
            for key, text in LANGUAGES[name].items()
        }
        self._words = {key: f"(?:{'|'.join(filter(None, items)) or '(?!)'})" for key, items in self.items.items()}
        month_day = self._words["month_day"].replace("?P<month_day>", "?:")
        self._words["other_month_day"] = month_day.replace("dia ", "(?:dia )?")
        self._key_word = self._compiled(KEY_WORD)
        self._phrases: dict[str, re.Pattern[str]] = {}

    def _compiled(self, phrase: str) -> re.Pattern[str]:
        text = (phrase % self._words).replace("\n", "").replace(" ?", r"\s*").replace(" ", r"\s+")
        return re.compile(LEFT + text + RIGHT, re.ASCII)

    def phrase(self, name: str) -> re.Pattern[str]:
        """The pattern of a phrase, compiled when it is first needed, which takes some ms."""
        return self._phrases.get(name) or self._phrases.setdefault(name, self._compiled(PHRASES[name]))

    def occurs(self, letters: str) -> bool:
        """Whether a text can have a phrase of the language."""
        return self.own or bool(self._key_word.search(letters))

    def place(self, key: str, text: str) -> int:
        """The place of a word in its series, from 0; -1 if it is not there."""
        places = (place for place, item in enumerate(self.items[key]) if re.fullmatch(item, text))
        return next(places, -1)

    def weekday(self, text: str) -> int:
        """The number of a day of the week, from 0 for Monday."""
        return max(self.place(key, text) for key in ("days", "short_days", "plural_days"))

    def number(self, text: str) -> int:
        """A number in digits or as a word; 0 for the first and the last of a series."""
        if (place := self.place("ordinals", text)) >= 0:
            return (place + 1) % 5 if place else 0
        return int(text.rstrip(".stndrho")) if text[0].isdecimal() else self.place("numbers", text) + 1

    def month(self, text: str) -> int:
        """The number of a month, from 1."""
        return max(self.place(key, text) for key in ("months", "short_months")) + 1


@functools.cache
def languages_for(reader: str) -> list[Language]:
    """The language of a reader, then the others."""
    return [Language(name, name == reader) for name in sorted(LANGUAGES, key=lambda name: name != reader)]


def nearest_date(year: int | None, month: int, day: int, today: datetime.date) -> datetime.date | None:
    """A date; without a year, the next one that exists. None if there is none."""
    for each in [year] if year is not None else range(today.year, today.year + 9):
        try:
            date = datetime.date(each, month, day)
        except ValueError:
            continue
        if year is not None or date >= today:
            return date
    return None


class Reader(NamedTuple):
    """The reader of a line: their language, whether 3/4 is in March for them, and the present time in their zone."""

    language: str
    month_first: bool
    now: datetime.datetime


class Span(msgspec.Struct, frozen=True):
    """A part of a text that becomes a field; its place is counted in characters (Unicode code points)."""

    kind: str
    start: int
    end: int
    text: str


class DayTime(NamedTuple):
    """A day, and a time if the words for the day imply one."""

    day: datetime.date
    clock: datetime.time | None = None
    is_exact: bool = False  # whether no other time can be meant


KINDS = ("day", "time", "start", "repeat", "reminder", "tag", "priority", "list")
MINUTES = (1440, 10_080, 0, 0, 60, 1)  # of the `units`; a month has no fixed number
EVENING = datetime.time(20)
PART_TIMES = (datetime.time(9), datetime.time(15), EVENING)  # of the `parts` of a day


def clock_in_part(clock: datetime.time, part: datetime.time | None) -> datetime.time:
    """A time of which a part of the day says the half: tonight at 9 is 21:00, but at 3 it is 3:00."""
    first = {PART_TIMES[1]: 1, EVENING: 5}.get(cast(datetime.time, part), 12)
    return clock.replace(hour=clock.hour + 12) if first <= clock.hour < 12 else clock


class FoundReminder(NamedTuple):
    """Minutes before the due date, or a time, on a day or on that of the due date."""

    before: int | None
    day: DayTime | None = None
    time: tuple[datetime.time, int] | None = None


class QuickAdd:
    """Reads one line: the title of a to-do with words for its other fields.

    A phrase that has been taken is masked by \\0, one that is to be left by \\1, so that no other phrase contains it.
    Of several phrases for one field the last is taken; where phrases of languages overlap, the reader's own.
    """

    def __init__(
        self,
        text: str,
        reader: Reader,
        lists: Mapping[str, str],
        tags: Sequence[str],
        keep: Collection[str | tuple[int, int]],
    ):
        self.text, self.reader, self.lists, self.tags, self.keep = text, reader, lists, tags, keep
        self.today = self.first = reader.now.date()
        self.letters, self.places = folded_letters(text)
        self.languages = [each for each in languages_for(reader.language) if each.occurs(self.letters)]
        self.spans: list[Span] = []

    def read(self) -> dict[str, Any]:
        """Find all phrases, and return their fields."""
        for span in (each for each in self.keep if not isinstance(each, str)):
            first, end = (min(bisect.bisect_left(self.places, place), len(self.letters)) for place in span)
            self._mask(first, max(first, end), "\1")
        for match in re.finditer(r"(?<!\S)\\[#!*]", self.letters):
            self._take("escape", match.start(), match.start() + 1)
            self._mask(*match.span(), "\1")
        fields = self._read_signs()
        reminder = self._find("reminder", "reminder", self._read_reminder)
        start = self._find("start", "start", self._read_start)
        rule, part = self._find("repeat", "repeat", self._read_repeat) or ("", None)
        if rule:
            end = self._find("repeat", "until", self._read_until) or self._find("repeat", "count", self._read_count)
            fields["repeat"] = clean_repeat(f"{rule};{end}" if end else rule)
        if start := start or self._find("start", "start", self._read_start):
            fields["start"] = self._due(start, None)
            self.first = max(self.first, start.day)
        day = self._find("day", "day", self._read_day)
        time = None if day and day.is_exact else self._find("time", "time", self._read_time)
        day, time = (value if kind not in self.keep else None for kind, value in (("day", day), ("time", time)))
        repeat, part = (fields.get("repeat"), part) if "repeat" not in self.keep else (None, None)
        if day or time or repeat:
            try:
                fields["due"] = clean_due(self._due(day, time, repeat, part))
            except (ValueError, OverflowError):  # a year that has no days, or an offset in seconds
                self.spans = [span for span in self.spans if span.kind not in ("day", "time")]
        if reminder:
            at = None if reminder.before is not None else clean_due(self._due(reminder.day or day, reminder.time))
            fields["reminders"] = [Reminder(at, reminder.before)]
        return {name: value for name, value in fields.items() if name.removesuffix("s") not in self.keep}

    def title(self) -> str:
        """The text without the phrases that were taken, and without brackets and commas that enclosed only these."""
        title, rest = "", self.text
        for span in sorted(self.spans, key=lambda span: span.start):
            title += rest[: span.start - len(self.text) + len(rest)]
            rest = self.text[span.end :]
            if span.kind != "escape":
                title, rest = title.rstrip(), rest.lstrip()
                enclosing = title.rstrip(" ,;")
                if enclosing[-1:] + rest[:1] in ("()", "[]"):
                    title, rest = enclosing[:-1].rstrip(), rest[1:].lstrip()
                title = title.rstrip(" ,;") if rest[:1] in tuple(",.;:!?)") else f"{title} "
        return (title + rest).strip(" ,;") if self.spans else self.text

    def _mask(self, start: int, end: int, character: str) -> None:
        self.letters = self.letters[:start] + character * (end - start) + self.letters[end:]

    def _take(self, kind: str, start: int, end: int) -> bool:
        """Take a phrase, unless this kind is to be left as text."""
        is_kept = kind in self.keep
        self._mask(start, end, "\1" if is_kept else "\0")
        if not is_kept:
            first, last = self.places[start], self.places[end]
            self.spans.append(Span(kind, first, last, self.text[first:last]))
        return not is_kept

    def _find(self, kind: str, name: str, read: Callable[[Language, re.Match[str]], Any]) -> Any:
        """The value of the last phrase that can be read, which is then taken; None if there is none."""
        found = [
            (match.end(), -match.start(), language.own, value)
            for language in self.languages
            for match in language.phrase(name).finditer(self.letters)
            if (value := read(language, match)) is not None
        ]
        if not found:
            return None
        end, start, *_ = max(found, key=operator.itemgetter(0, 1))
        own = [each for each in found if each[2] and each[0] > -start and -each[1] < end]
        end, start, _, value = max(own or found, key=operator.itemgetter(0, 1))
        self._take(kind, -start, end)
        return value

    def _read_signs(self) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        tags = {fold(tag): tag for tag in self.tags}
        for match in re.finditer(TAG_SIGN, self.letters):
            try:
                (tag,) = clean_tags([self.text[self.places[match.start()] + 1 : self.places[match.end()]]])
            except ValueError:
                continue
            if len(tags.keys() | {fold(tag)}) <= MAX_TAGS and self._take("tag", *match.span()):
                tags.setdefault(fold(tag), tag)
                fields["tags"] = [*tags.values()]
        priorities = [*re.finditer(f"{LEFT}!([0-3]){RIGHT}", self.letters)]
        if priorities and self._take("priority", *priorities[-1].span()):
            fields["priority"] = int(priorities[-1][1])
        for title in sorted(self.lists, key=len, reverse=True):
            found = [*re.finditer(rf"{LEFT}\*{re.escape(title)}{RIGHT}", self.letters)]
            if found and self._take("list", *found[-1].span()):
                return {**fields, "list": self.lists[title]}
        return fields

    def _read_repeat(self, language: Language, match: re.Match[str]) -> tuple[str, datetime.time | None] | None:
        """The rule of a phrase, and the time if it names a part of the day."""
        rule, part = self._rule(language, match), match["part"]
        clock = PART_TIMES[language.place("parts", part)] if part else None
        return (rule + (";FROM=COMPLETION" if match["restart"] else ""), clock) if rule else None

    def _rule(self, language: Language, match: re.Match[str]) -> str | None:
        """The rule of a phrase (RFC 5545), or None."""
        if match["each"] and not any(re.search(item, match["each"]) for item in language.items["every"]):
            return None
        if month := match["month"] or match["month_2"]:
            number, day = language.month(month), int(match["date"] or match["date_2"])
            exists = nearest_date(2028, number, day, self.today)
            return f"FREQ=YEARLY;BYMONTH={number};BYMONTHDAY={day}" if exists else None
        days = match["days"] or match["on_days"] or match["plural"]
        names = [language.weekday(name[0]) for name in language.phrase("any_day").finditer(days or "")]
        by_day = f";BYDAY={','.join(WEEKDAYS[number] for number in dict.fromkeys(names))}" if days else ""
        if match["unit"]:
            number, unit = language.number(match["number"] or "1"), language.place("units", match["unit"])
            every = f";INTERVAL={2 if match['other'] else number}"
            return (
                f"FREQ={FREQUENCIES[unit]}{every}{by_day}" if unit < 4 and number and (unit == 1 or not days) else None
            )
        if nth := match["nth"] or match["nth_2"]:
            number, day = language.place("ordinals", nth), language.weekday(match["nth_day"] or match["nth_day_2"])
            return f"FREQ=MONTHLY;BYDAY={number + 1 if number < 4 else -1}{WEEKDAYS[day]}"
        if match["last"] is not None or match["month_days"] or match["each"]:
            numbers = [*map(int, re.findall(r"-?\d+", match["month_days"] or match["monthly"] or "-1"))]
            are_days = all(each in MONTH_DAYS for each in numbers)
            return f"FREQ=MONTHLY;BYMONTHDAY={','.join(map(str, numbers))}" if are_days else None
        if match["part"]:
            return "FREQ=DAILY"
        weekly = f"FREQ=WEEKLY{';INTERVAL=2' if match['other_2'] else ''}{by_day or ';BYDAY=MO,TU,WE,TH,FR'}"
        if match["workdays"] or match["days"]:
            return weekly
        if not self._ends(match.end()):
            return None
        return f"FREQ={FREQUENCIES[language.place('adverbs', match['adverb'])]}" if match["adverb"] else weekly

    def _read_until(self, language: Language, match: re.Match[str]) -> str | None:
        found = self._read_day(language, match)
        return found and f"UNTIL={found.day.isoformat().replace('-', '')}"

    def _read_count(self, language: Language, match: re.Match[str]) -> str | None:
        return f"COUNT={int(match['count'])}" if int(match["count"]) else None

    def _read_start(self, language: Language, match: re.Match[str]) -> DayTime | None:
        return self._read_day(language, match) if self._ends(match.end()) and not match["part"] else None

    def _read_reminder(self, language: Language, match: re.Match[str]) -> FoundReminder | None:
        if size := match["size"] or match["size_2"]:
            minutes = MINUTES[language.place("units", size)] * language.number(match["amount"] or match["amount_2"])
            return FoundReminder(minutes) if minutes else None
        day = self._read_day(language, match) if match["when"] else None
        time = self._read_time(language, match)
        return FoundReminder(None, day, time) if time and bool(day) == bool(match["when"]) else None

    # ---- days and times

    def _ends(self, end: int) -> bool:
        """Whether a phrase ends the line, apart from phrases that have been taken and days and times."""
        end += len(self.letters[end:]) - len(self.letters[end:].lstrip())
        if self.letters[end : end + 1] in ("", "\0"):
            return True
        return any(self.languages[0].phrase(name).match(self.letters, end) for name in ("day", "time", "until"))

    def _read_day(self, language: Language, match: re.Match[str]) -> DayTime | None:
        readers: tuple[tuple[str, Callable[[Language, re.Match[str]], Any]], ...] = (
            ("relative", self._read_relative),
            ("next", self._read_next),
            ("day", self._read_weekday),
            ("short", self._read_weekday),
            ("unit", self._read_interval),
            ("iso", self._read_iso),
            ("separator", self._read_numbers),
        )
        for name, read in readers:
            if match[name]:
                try:
                    found = read(language, match)
                except (ValueError, OverflowError):
                    return None
                found = DayTime(found) if isinstance(found, datetime.date) else found
                if found and match["part"]:
                    return cast(DayTime, found)._replace(clock=PART_TIMES[language.place("parts", match["part"])])
                return found
        if match["month_day"]:
            return self._read_month_day(match)
        year, month = match["year"] or match["year_2"], language.month(match["month"] or match["month_2"])
        date = nearest_date(int(year) if year else None, month, int(match["date"] or match["date_2"]), self.today)
        return DayTime(date) if date else None

    def _read_relative(self, language: Language, match: re.Match[str]) -> DayTime:
        days = language.place("relative", match["relative"])
        return DayTime(self.today + datetime.timedelta(max(days - 1, 0)), None if days else EVENING)

    def _monday(self) -> datetime.date:
        return self.today - datetime.timedelta(self.today.weekday())

    def _read_next(self, language: Language, match: re.Match[str]) -> datetime.date | None:
        """The first day of the next week, month or year, or a day of the next week."""
        unit, day = language.place("next", match["next"]), match["day_before"] or match["day_after"]
        if unit == 0:
            return self._monday() + datetime.timedelta(7 + (language.weekday(day) if day else 0))
        if day:
            return None
        return datetime.date(
            self.today.year + (unit == 2 or self.today.month == 12), 1 if unit == 2 else self.today.month % 12 + 1, 1
        )

    def _read_weekday(self, language: Language, match: re.Match[str]) -> datetime.date | None:
        """The next day of this name after today, or that of the next week."""
        number, coming = language.weekday(match["day"] or match["short"]), match["coming"] or match["following"]
        if match["short"] and not (match["on"] or coming or self._ends(match.end())):
            return None
        if coming:
            return self._monday() + datetime.timedelta(7 + number)
        return self.today + datetime.timedelta((number - self.today.weekday() - 1) % 7 + 1)

    def _read_interval(self, language: Language, match: re.Match[str]) -> datetime.date | DayTime:
        number, unit = language.number(match["number"]), language.place("units", match["unit"])
        if unit < 4:
            return self.today + calendar_delta(None, **{UNITS[unit]: number})
        seconds = number * (3600 if unit == 4 else 60)
        moment = self.reader.now.astimezone(datetime.UTC) + datetime.timedelta(seconds=seconds)
        local = moment.astimezone(self.reader.now.tzinfo).replace(second=0, microsecond=0)
        return DayTime(local.date(), local.time(), is_exact=True)

    def _read_month_day(self, match: re.Match[str]) -> DayTime | None:
        """The next day of this number, if a preposition says that it is a day."""
        if match[0][0].isdigit():
            return None
        first = self.today.replace(day=1)
        months = ((first + calendar_delta(months=number)).replace(day=1) for number in range(3))
        found = (nearest_date(each.year, each.month, int(match["month_day"]), self.today) for each in months)
        return next((DayTime(date) for date in found if date and date >= self.today), None)

    def _read_iso(self, _: Language, match: re.Match[str]) -> datetime.date:
        return datetime.date.fromisoformat(match["iso"])

    def _read_numbers(self, language: Language, match: re.Match[str]) -> datetime.date | None:
        """24/12, 24.12. or 24/12/2026; where either may be the month, with a preposition, a year or at the end."""
        first, second, year = int(match["first"]), int(match["second"]), match["year_3"]
        is_named = match["on"] or match["named"]
        is_certain = year or is_named or (max(first, second) > 12 or self._ends(match.end()))
        has_dots = not match["slash"] and not (match["dot"] or year or is_named or language.name == "de")
        has_space = match["separator"][-1:].isspace() and not (match["dot"] or year)
        if not is_certain or has_dots or has_space or (first, second) == (24, 7):
            return None
        if match["slash"] and (second > 12 or self.reader.month_first and first <= 12):
            first, second = second, first
        full_year = None if year is None else int(year) + (2000 if len(year) == 2 else 0)
        return nearest_date(full_year, second, first, self.today)

    def _read_time(self, language: Language, match: re.Match[str]) -> tuple[datetime.time, int] | None:
        """A time, and the days after the day that it belongs to: midnight is the end of a day."""
        minute = int(match["minute"] or (30 if match["half_past"] else 0))
        if match["noon"] or match["midnight"]:
            return (datetime.time(12, minute), 0) if match["noon"] else (datetime.time(0, minute), 1)
        hour, half = int(match["hour"]), match["half"]
        is_at = match["at"] and language.own
        follows = self.letters[: match.start()].rstrip()[-1:] == "\0"
        is_time = (
            half or match["oclock"] or is_at or match["colon"] in (":", "h") or match["h"] and (hour > 12 or follows)
        )
        if not is_time or hour > 24 or hour == 24 and minute or half and not 1 <= hour <= 12:
            return None
        if half:
            hour = hour % 12 + (12 if half == "p" else 0)
        part = PART_TIMES[language.place("parts", match["of_day"])] if match["of_day"] else None
        return clock_in_part(datetime.time(hour % 24, minute), part), hour // 24

    def _due(
        self,
        day: DayTime | None,
        time: tuple[datetime.time, int] | None,
        repeat: str | None = None,
        part: datetime.time | None = None,
    ) -> str:
        """The due date or time; without a day, the next one that comes, of those of the rule if there is one."""
        now, zone = self.reader.now, cast(datetime.tzinfo, self.reader.now.tzinfo)
        part = day.clock if day and day.clock else part
        clock, after = (clock_in_part(time[0], part), time[1]) if time else (part, 0)
        days = [day.day] if day else rule_days(read_rule(repeat or "FREQ=DAILY"), self.first, self.first)
        for date in (each + datetime.timedelta(after) for each in days):
            if clock is None:
                return date.isoformat()
            if day or datetime.datetime.combine(date, clock, zone) > now:
                return time_in_zone(date, clock, zone)
        raise ValueError


def read_keep(text: str) -> tuple[str | tuple[int, int], ...]:
    """Kinds and places of the phrases that stay in a title, separated by commas."""
    kept: list[str | tuple[int, int]] = []
    for part in text.split(","):
        place = re.fullmatch(r"([0-9]{1,4})-([0-9]{1,4})", part)
        if not place and part not in KINDS:
            raise ValueError(f"must be several of {', '.join(KINDS)}, or places like 5-13, separated by commas")
        kept.append((int(place[1]), int(place[2])) if place else part)
    return tuple(kept)


@functools.lru_cache(100)
def read_language(header: str) -> tuple[str, bool]:
    """The supported language that an Accept-Language header prefers, and whether 3/4 is a day in March in it."""
    choices = [each.replace(" ", "").lower().partition(";q=") for each in header.split(",")]
    weighted = [(tag, float(weight) if re.fullmatch(r"[01](\.[0-9]*)?", weight) else 1.0) for tag, _, weight in choices]
    for tag, weight in sorted(weighted, key=lambda choice: -choice[1]):
        name = tag.partition("-")[0].replace("*", "en")
        if weight and name in LANGUAGES:
            return name, tag in ("en", "en-us", "*")
    return "en", True


def parse_title(
    fields: Mapping[str, Any], reader: Reader, lists: Mapping[str, str], keep: Collection[str | tuple[int, int]] = ()
) -> tuple[dict[str, Any], list[Span]]:
    """The fields of a to-do, of which the title may have words for others, and those parts of the title.

    `lists` has ids by folded title. The title stays unchanged if no other text would remain. Words replace the
    fields that were sent, except that tags are added.
    """
    line = QuickAdd(fields["title"], reader, lists, fields.get("tags") or (), keep)
    found, title = line.read(), line.title()
    if not title.strip(string.punctuation + " "):
        return dict(fields), []
    try:
        title = clean_line(title, MAX_TITLE)
    except ValueError:
        return dict(fields), []
    shown = [span for span in line.spans if span.kind != "escape"]
    return {**fields, **found, "title": title}, sorted(shown, key=lambda span: span.start)


# ==== texts: what errors and mails say, by language; calls nothing ================================

# A text in English, which is also its key, and below it its translations. `{}` is a hole for data, `{text}` one for
# another text; a translation may number them, from 0, to change their order. Lines that go on are indented further.
ERROR_TEXTS = r"""
Bad Request
  de Fehlerhafte Anfrage
  pt Pedido incorreto
  es Petición incorrecta
Conflict
  de Konflikt
  pt Conflito
  es Conflicto
Content too large
  de Inhalt zu groß
  pt Conteúdo grande demais
  es Contenido demasiado grande
Forbidden
  de Nicht erlaubt
  pt Não permitido
  es No permitido
Gone
  de Nicht mehr vorhanden
  pt Já não existe
  es Ya no existe
Internal Server Error
  de Interner Fehler des Servers
  pt Erro interno do servidor
  es Error interno del servidor
Invalid fields
  de Ungültige Felder
  pt Campos inválidos
  es Campos no válidos
Malformed request
  de Nicht lesbare Anfrage
  pt Pedido ilegível
  es Petición ilegible
Method not allowed
  de Methode nicht erlaubt
  pt Método não permitido
  es Método no permitido
Misdirected request
  de Falsch gerichtete Anfrage
  pt Pedido mal dirigido
  es Petición mal dirigida
Not found
  de Nicht gefunden
  pt Não encontrado
  es No encontrado
Not signed in
  de Nicht angemeldet
  pt Sessão não iniciada
  es Sesión no iniciada
Precondition failed
  de Vorbedingung nicht erfüllt
  pt Condição prévia não cumprida
  es Condición previa no cumplida
Range not satisfiable
  de Bereich nicht vorhanden
  pt Intervalo inexistente
  es Intervalo inexistente
Request timeout
  de Anfrage zu langsam
  pt Pedido lento demais
  es Petición demasiado lenta
Temporarily unavailable
  de Vorübergehend nicht verfügbar
  pt Temporariamente indisponível
  es No disponible temporalmente
Too many attempts
  de Zu viele Versuche
  pt Tentativas demais
  es Demasiados intentos
Unsupported media type
  de Medientyp nicht unterstützt
  pt Tipo de mídia não suportado
  es Tipo de contenido no admitido
Upgrade required
  de Anderes Protokoll nötig
  pt Outro protocolo necessário
  es Se necesita otro protocolo
Upstream failed
  de Fehler eines anderen Servers
  pt Falha de outro servidor
  es Fallo de otro servidor
Upstream timed out
  de Anderer Server antwortet nicht
  pt Outro servidor não responde
  es Otro servidor no responde
"""

MAIL_TEXTS = r"""
"""

HOLE = re.compile(r"\{(text|[0-9]?)\}")
MAX_TRANSLATED = 10_000  # characters of a text that is compared with texts that have holes


class Wording(NamedTuple):
    """A text in English, what it matches, and its translations by language."""

    english: str
    pattern: re.Pattern[str]
    translations: Mapping[str, str]


def read_texts(table: str) -> Iterator[Wording]:
    """The rows of a table of texts."""
    for block in re.split(r"\n(?! )", table.strip("\n")):
        english, *rest = re.sub(r"\n {3,}", " ", block).split("\n")
        parts = [re.escape(part) for part in re.split(r"\{(?:text)?\}", english)]
        yield Wording(english, re.compile("(.*)".join(parts), re.DOTALL), {line[2:4]: line[5:] for line in rest})


@functools.cache
def wordings() -> tuple[Mapping[str, Wording], Sequence[Wording]]:
    """All texts by their English, and those with holes, with most words first."""
    rows = [*read_texts(ERROR_TEXTS), *read_texts(MAIL_TEXTS)]
    with_holes = [row for row in rows if HOLE.search(row.english)]
    return {row.english: row for row in rows}, sorted(with_holes, key=lambda row: -len(HOLE.sub("", row.english)))


def fill(text: str, values: Sequence[str]) -> str:
    """A text with its holes filled, which are numbered or in the order of the values."""
    following = iter(values)
    return HOLE.sub(lambda hole: values[int(hole[1])] if hole[1] else next(following), text)


def translated(text: str, language: str) -> str:
    """A text in a language. It stays in English if no table has it; an English text with holes keeps them.

    Its holes may be filled. What fills a hole for data is kept; what fills one for a text is translated too.
    """
    if language == "en":
        return text
    exact, with_holes = wordings()
    if row := exact.get(text):
        return row.translations[language]
    for row in with_holes if len(text) <= MAX_TRANSLATED else ():
        if match := row.pattern.fullmatch(text):
            kinds = HOLE.findall(row.english)
            filled = [
                translated(each, language) if kind else each for kind, each in zip(kinds, match.groups(), strict=True)
            ]
            return fill(row.translations[language], filled)
    return text


# ==== databases: may call the domain's errors; know nothing of to-dos ===========================

MAX_WAITING = 10_000  # writes; more are refused at once
MAX_IN_GROUP = 64  # writes committed together
ROWS_IN_LOOP = 8  # that one statement writes before other requests get a turn
REFUSALS_IN_LOOP = 8  # of waiting writes before other requests get a turn
QUEUE_SECONDS = 1.5  # that a write waits for its turn before it is refused
LOCK_SECONDS = 1.0  # to wait for another process's lock on a SQLite file
CONNECT_SECONDS = 1.0  # to wait for a connection to Postgres
PROBE_SECONDS = 0.3  # to wait for the first answer on a new connection while there are others
FEWER_SECONDS = 30  # before another attempt to connect to a Postgres that allows no more connections
IDLE_CONNECTION_SECONDS = 300  # after which one is not reused: a firewall may have dropped it
TRY_AGAIN_SECONDS = 5.0  # between test writes of the health check after a write has failed
MIN_FREE_BYTES = 256 * 1024  # on the disk; with less the next large write fails
QUERY_SECONDS = 1.2  # to wait for an answer from Postgres: a frozen server must not block this one
BULK_SECONDS = 60.0  # to wait for a statement on a whole list; meanwhile other writes get a 503 at the usual time
INDEX_SECONDS = 1.0  # between looks whether the search index lags behind
INDEX_STALE_SECONDS = 3600.0  # after which the search index is made again if rows were deleted
INDEX_STEP_SECONDS = 0.005  # that a step of the index may keep writes waiting, approximately
MAX_CANDIDATES = 1500  # rows that the search index may name; if there are more, their order finds a page sooner

NOTHING_CHANGED = "Nothing was changed; try again."

Rows = list[tuple[Any, ...]]


async def end_tasks(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended: a driver may take a cancellation for a time-out and go on."""
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=0.2)


class Probe(NamedTuple):
    """How to check that a database works, for code that does not know its tables."""

    tables: Mapping[str, Sequence[str]]  # that must be readable and writable, and their columns
    counters: str  # SQL for rows of a name and a number
    is_continued: Callable[[Mapping[str, int], Mapping[str, int]], bool]  # whether counters can follow earlier ones
    write: str  # SQL that stores $1, a number


class Searched(NamedTuple):
    """A text that is searched for parts of words, and the log that has a numbered entry for each change to a row."""

    name: str  # of its index
    former: str  # name of an index of another text, which is removed
    table: str
    key: str
    text: str  # SQL
    log: str
    number: str
    logged_key: str


def escape_like(text: str) -> str:
    return re.sub("([!%_])", r"!\1", text)


class RepeatAlone(Exception):
    """A short write must be repeated alone after its group: it takes long, or may have made the group fail."""


class Source:
    """Where rows are read: a database, a transaction, or a snapshot."""

    name = ""  # of a database
    is_shared = False  # by a group of short writes, which a long one would delay

    async def fetch(self, sql: str, *arguments: Any, seconds: float | None = None) -> Rows:
        """Run one statement and return its rows; many rows may need more seconds than usual.

        A database reads committed rows, and raises Unavailable if it cannot be read.
        """
        raise NotImplementedError

    async def narrowed(self, searched: Searched, words: Sequence[str], bound: Callable[[Any], str]) -> str:
        """SQL for what to select from: the table, or the few rows of it in which an index finds all these words.

        It may find a row that lacks them, but misses none. `bound(value)` returns the placeholder of an argument.
        """
        return searched.table


class Transaction(Source):
    """The base of both databases' transactions."""

    rows_at_once = 1000  # rows of execute_many before other requests get a turn

    @property
    def in_transaction(self) -> bool:
        """Whether the transaction is still open."""
        raise NotImplementedError

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run one statement for every row of arguments."""
        for first in range(0, len(rows), self.rows_at_once):
            if first:
                await asyncio.sleep(0)
            await self._execute_many(sql, rows[first : first + self.rows_at_once])

    async def _execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        raise NotImplementedError

    async def commit(self) -> None:
        """Make the transaction durable. Raises Unavailable if it is unknown whether it is."""
        raise NotImplementedError

    async def compute(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a slow synchronous function without blocking the loop."""
        return function(*arguments)


async def check_columns(source: Source, tables: Mapping[str, Collection[str]]) -> None:
    """Raise the engine's error for a table or column that is missing or cannot be read."""
    parts = (f"(SELECT {', '.join(columns)} FROM {table} LIMIT 1)" for table, columns in tables.items())
    await source.fetch(" UNION ALL ".join(f"SELECT 1 FROM {part} AS part" for part in parts))


Take = Callable[[], Awaitable[Sequence[Any]]]  # returns the items of a group, to which others may have been added
GroupRunner = Callable[[Transaction, Take], Awaitable[Sequence[Any]]]


async def run_alone(transaction: Transaction, take: Take) -> list[Any]:
    """Run one operation: the GroupRunner of writes that share no transaction."""
    return [await operation(transaction) for operation in await take()]


class Write:
    """A write that waits for its turn."""

    def __init__(self, run: GroupRunner, item: Any, committed: Callable[[Any], None] | None, is_short: bool):
        self.run, self.item, self.committed, self.is_short = run, item, committed, is_short
        loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = loop.create_future()
        self.refused_at = loop.time() + QUEUE_SECONDS  # unless it has begun

    def finish(self, answer: Any) -> None:
        """Report an answer, or an exception, to the caller."""
        if self.committed and not isinstance(answer, BaseException):
            try:
                self.committed(answer)
            except Exception:
                LOG.exception("a listener failed after a commit")
        if not self.future.done():
            self.future.set_exception(answer) if isinstance(answer, BaseException) else self.future.set_result(answer)


class Database(Source):
    """The base of both databases: one task commits short writes in groups, and others alone.

    A write is acknowledged after its commit, when it is durable. One that fails does not affect the others.
    """

    engine_errors: tuple[type[BaseException], ...] = ()  # that the driver raises
    contradictions: tuple[type[BaseException], ...] = ()  # those of them for a violated constraint

    def __init__(self) -> None:
        self._waiting: collections.deque[Write] = collections.deque()
        self._arrived = asyncio.Event()
        self._refusal: asyncio.TimerHandle | None = None  # of the longest waiting write, or one that was before it
        self._writer_task: asyncio.Task[None] | None = None
        self._is_writing = False
        self._failure: Unavailable | None = None  # of the last write, if the engine was the reason
        self._try_again_at = 0.0
        self._probe: Probe | None = None

    async def open(self, probe: Probe | None = None) -> None:
        """Connect. Raises Misconfigured if that can never work, Unavailable if it may work in a moment."""
        self._arrived, self._refusal, self._probe = asyncio.Event(), None, probe
        try:
            await self._connect()
        except BaseException as error:
            self._failure = error if isinstance(error, Unavailable) else None
            await self._disconnect()
            raise
        self._failure = None
        self._writer_task = asyncio.ensure_future(self._write_forever())

    async def close(self) -> None:
        """Finish the writes that wait, then disconnect."""
        writer_task, self._writer_task = self._writer_task, None  # from now on new writes are refused
        if writer_task:
            self._arrived.set()
            await asyncio.wait([writer_task])
        await self._disconnect()

    def version(self) -> int | None:
        """A number that changes with every commit of any process; None if it is unknown. Raises Unavailable."""
        return None

    async def transaction(
        self, operation: Callable[[Transaction], Awaitable[Any]], committed: Callable[[Any], None] | None = None
    ) -> Any:
        """Run `await operation(transaction)` as one transaction, and return its answer; see `write`."""
        return await self.write(run_alone, operation, committed, is_short=False)

    async def write(
        self, run: GroupRunner, item: Any, committed: Callable[[Any], None] | None = None, is_short: bool = True
    ) -> Any:
        """Commit what `await run(transaction, take)` does for an item, and return its answer for it.

        If the write is short, items of others that name the same `run` are in the same transaction: `await take()`
        returns all that there are by then. For each, `run` returns an answer, or the exception by which it was refused
        before it wrote anything; RepeatAlone repeats it alone. If `run` raises, it is repeated for each item.
        `committed(answer)` is called right after the commit, in the order of commits, whether or not
        the caller still waits. Raises what `run` raises, with nothing written, or Unavailable.
        """
        if self._writer_task is None:
            raise Unavailable("The database is closed.")
        if len(self._waiting) >= MAX_WAITING:
            raise Unavailable(f"Too many writes are waiting. {NOTHING_CHANGED}")
        write = Write(run, item, committed, is_short)
        self._waiting.append(write)
        self._refusal = self._refusal or asyncio.get_running_loop().call_at(write.refused_at, self._refuse_late)
        self._arrived.set()
        return await write.future

    def _refuse_late(self) -> None:
        """Refuse the writes that have waited too long; one timer for all of them, since they wait in order."""
        loop = asyncio.get_running_loop()
        for _ in range(REFUSALS_IN_LOOP):
            if self._waiting and self._waiting[0].refused_at <= loop.time():
                self._waiting.popleft().finish(Unavailable(f"The database is busy. {NOTHING_CHANGED}"))
        self._refusal = loop.call_at(self._waiting[0].refused_at, self._refuse_late) if self._waiting else None

    async def _write_forever(self) -> None:
        while self._waiting or self._writer_task:
            group: list[Write] = []
            self._fill(group)
            if group:
                await self._commit_group(group, group[0].is_short)
            elif self._writer_task:  # not at the end, if the last callers gave up
                self._arrived.clear()
                await self._arrived.wait()

    def _fill(self, group: list[Write]) -> None:
        """Add the next write, and if it is short the short ones behind it: they share one commit."""
        while self._waiting and len(group) < MAX_IN_GROUP:
            write = self._waiting[0]
            if group and not (write.is_short and group[0].is_short and write.run == group[0].run):
                break
            self._waiting.popleft()
            if not write.future.done():  # by a caller that has given up
                group.append(write)

    async def _commit_group(self, group: list[Write], is_shared: bool) -> None:
        """Run a group of writes in one transaction, or each alone if that fails, and report to their callers."""
        self._is_writing = True
        try:
            answers = await self._run(group, is_shared)
        except Exception as error:
            answers = [self._explained(error) for _ in group]
        self._is_writing = False
        self._failure = next((answer for answer in answers if isinstance(answer, Unavailable)), None)
        to_repeat = []
        for write, answer in zip(group, answers, strict=True):
            to_repeat.append(write) if isinstance(answer, RepeatAlone) else write.finish(answer)
        for write in to_repeat:
            await self._commit_group([write], is_shared=False)

    async def _run(self, group: list[Write], is_shared: bool) -> Sequence[Any]:
        """The answers of writes that were carried out in one transaction."""

        async def take() -> list[Any]:
            if is_shared:
                if not self._waiting:
                    await asyncio.sleep(0)
                self._fill(group)
            return [write.item for write in group]

        async with self._session() as session:
            session.is_shared = is_shared
            try:
                answers = await group[0].run(session, take)
            except Exception as error:
                # Otherwise the engine has undone the whole group itself, as SQLite does on a full disk, or has failed.
                if len(group) > 1 and session.in_transaction and not isinstance(error, OSError):
                    return [RepeatAlone() for _ in group]
                raise
            await session.commit()
        return answers

    def _explained(self, error: BaseException) -> BaseException:
        """The error for the client: general terms for the engine's, any other unchanged."""
        if not isinstance(error, self.engine_errors):
            return error
        if isinstance(error, self.contradictions):
            LOG.warning("%s: %s", self.name, error)
            return Conflict("This conflicts with the stored data, so nothing was changed.")
        reason = self._reason(error) or (str(error) if self.is_damage(error) else None)
        LOG.warning("%s: %s", self.name, reason or repr(error), exc_info=None if reason else error)
        return Unavailable(f"The database cannot be used right now. {NOTHING_CHANGED}")

    async def ping(self) -> None:
        """Raise unless the tables have their columns, can be read and, as far as can be checked without it, written.

        Faults that only a write can show, such as a quota, are known from the last write. If that failed, a number
        is written every few seconds until that succeeds.
        """
        if self._writer_task is None and self._failure:  # it could not be opened
            raise self._failure
        if self._probe is None:
            raise Unavailable("The database is closed.")
        await self._look(self._probe)
        tables = self._probe.tables
        await check_columns(self, tables)
        if self._is_writing or (self._failure and time.monotonic() < self._try_again_at):
            if self._failure:
                raise self._failure
            return
        statement: tuple[Any, ...] = (f"DELETE FROM {next(iter(tables))} WHERE 1 = 0",)
        if self._failure:
            self._try_again_at = time.monotonic() + TRY_AGAIN_SECONDS
            # A new number each time: SQLite does not write an unchanged value.
            statement = self._probe.write, time.time_ns()
        await self.transaction(lambda transaction: transaction.fetch(*statement))

    async def index(self, searched: Searched) -> None:
        """Have an index for `narrowed`, if the engine offers one; to be called when the tables are there."""

    # ---- what a subclass implements

    async def _look(self, probe: Probe) -> None:
        """Raise unless the database can be read, and no obstacle to writing is known."""
        raise NotImplementedError

    async def identity(self) -> tuple[Any, ...] | None:
        """A value unique to the database, whatever its URL; None if it is unknown until the database is open."""
        raise NotImplementedError

    async def _connect(self) -> None:
        raise NotImplementedError

    async def _disconnect(self) -> None:
        raise NotImplementedError

    async def snapshot(self, operation: Callable[[Source], Awaitable[None]]) -> None:
        """Run `await operation(source)`; all reads through the source see the same moment.

        Writes go on meanwhile. The operation must wait for nothing else, since old rows are kept until it ends.
        Raises Unavailable if the database cannot be read.
        """
        raise NotImplementedError

    def _session(self) -> contextlib.AbstractAsyncContextManager[Transaction]:
        """A transaction that has begun, and is rolled back unless it is committed."""
        raise NotImplementedError

    def is_damage(self, error: BaseException) -> bool:
        """Whether an error reports that tables or columns are missing, duplicate or unreadable."""
        raise NotImplementedError

    def _reason(self, error: BaseException) -> str | None:
        """An error of the engine in one line for the log; None for an unexpected one."""
        raise NotImplementedError


# ---- SQLite


@functools.lru_cache(1000)
def sqlite_statement(sql: str) -> tuple[str, Callable[[Sequence[Any]], Sequence[Any]] | None]:
    """A Postgres statement in SQLite's form, and a function that orders its arguments for the `?`, if necessary.

    To SQLite `$1` is a name: looking 18 of them up takes 10 µs, and `?1` with a sequence is deprecated in
    Python 3.12.0 to 3.12.3 by mistake (gh-117995).
    """
    # SQLite compares bytes anyway; Postgres would compare by the locale of the database. And only an
    # INTEGER PRIMARY KEY is SQLite's own key of a row, which needs no index.
    sql = sql.replace(' COLLATE "C"', "").replace("BIGINT PRIMARY KEY", "INTEGER PRIMARY KEY")
    if "ALTER COLUMN" in sql:  # migrations alter only the collation of a column
        sql = "SELECT 1 WHERE 0"
    places = [int(place) - 1 for place in re.findall(r"\$(\d+)", sql)]
    is_in_order = places == list(range(len(places)))
    return re.sub(r"\$\d+", "?", sql), None if is_in_order else operator.itemgetter(*places)


class SQLiteTransaction(Transaction):
    """A transaction on the write connection. Its coroutines never wait, except for a commit in another thread."""

    def __init__(self, connection: sqlite3.Connection, in_thread: Callable[..., Awaitable[Any]] | None):
        self._connection, self._in_thread = connection, in_thread
        if in_thread:
            self.rows_at_once = ROWS_IN_LOOP

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    async def fetch(self, sql: str, *arguments: Any, seconds: float | None = None) -> Rows:
        sql, arrange = sqlite_statement(sql)
        values = arrange(arguments) if arrange else arguments
        return self._connection.execute(sql, values).fetchall()  # a file needs no time limit

    async def _execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        sql, arrange = sqlite_statement(sql)
        self._connection.executemany(sql, map(arrange, rows) if arrange else rows)

    async def commit(self) -> None:
        if self._in_thread:
            await self._in_thread(self._connection.execute, "COMMIT")
        else:
            self._connection.execute("COMMIT")


class SQLiteSnapshot(Source):
    """Reads in one transaction on a connection of their own."""

    def __init__(self, connection: aiosqlite.Connection):
        self._connection = connection

    async def fetch(self, sql: str, *arguments: Any, seconds: float | None = None) -> Rows:
        sql, arrange = sqlite_statement(sql)
        rows: Any = await self._connection.execute_fetchall(sql, arrange(arguments) if arrange else arguments)
        return [*rows]


def run_without_waiting(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that may yield but never waits, to its end in this thread, without a loop."""
    try:
        while True:
            waits_for = coroutine.send(None)
            if waits_for is not None:
                raise RuntimeError(f"a write waits for {waits_for!r}, but it runs outside the loop")
    except StopIteration as end:
        return end.value


DATABASE_ENDINGS = ("", "-wal", "-shm", "-journal")  # of the file names of one database


def file_uri(path: str, query: str) -> str:
    """The URI for SQLite to open a file with these options (https://sqlite.org/uri.html)."""
    return f"file:{urllib.parse.quote(os.path.abspath(path))}?{query}"


def database_files(path: str) -> list[str]:
    """The files that a SQLite database in use consists of: the database, its log and the index of the log."""
    real_path = os.path.realpath(path)  # SQLite puts the others beside the file that a symbolic link names
    return [path, f"{real_path}-wal", f"{real_path}-shm"]


def is_open_elsewhere(path: str) -> bool:
    """Whether another process has a SQLite database open, even if the file is damaged or was removed.

    Every connection in WAL mode holds a shared lock on the file and one on the index of the log
    (https://sqlite.org/src/file/src/os_unix.c). Where there are no such locks, on Windows, an open file cannot be
    replaced anyway.
    """
    try:
        fcntl = importlib.import_module("fcntl")
    except ImportError:
        return False
    for file, place, length in ((path, 0x40000002, 510), (f"{path}-shm", 128, 1)):
        try:
            with open(file, "r+b") as opened:
                fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB, length, place)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES) and os.access(file, os.W_OK):
                return True
    return False


def make_private(path: str) -> None:
    """Make a SQLite database and its log readable only by its owner; create it if it is missing.

    A group that may write the file keeps that right: several users may share it on purpose.
    """
    with contextlib.suppress(OSError):  # SQLite itself reports why it cannot use the file
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    for file in (path, f"{path}-wal", f"{path}-shm"):
        with contextlib.suppress(OSError):  # it is missing, or another user's
            mode = os.stat(file).st_mode
            kept = 0o770 if mode & 0o020 else 0o700
            # A folder or a device named by mistake is left unchanged.
            if stat.S_ISREG(mode) and mode & 0o777 & ~kept:
                os.chmod(file, mode & kept)


class FilesLost(Unavailable):
    """A file of a SQLite database was removed, replaced, emptied or overwritten while it was open."""

    def __init__(self, file: str):
        super().__init__(f"{file} has been moved, deleted or replaced. Put it back, or start the server again.")


# The first bytes of a SQLite database's log (https://sqlite.org/fileformat2.html#walformat), and the size to which
# SQLite may truncate a log when it restarts it; it never cuts what it still needs.
LOG_MAGIC = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
LOG_LIMIT = 64 * MAX_BODY
LOG_STEP = 8 * 2**20  # bytes of the log that are copied into the database together


class Log(NamedTuple):
    """A log: its header, its size in bytes, where its last commit ends, and the last frame of that commit."""

    header: bytes = b""
    size: int = 0
    end: int = 32
    frame: bytes = b""


def is_whole(header: bytes, before: bytes, frame: bytes) -> bool:
    """Whether a frame of a log is as SQLite has written it; `before` is the previous frame's checksum."""
    order = ">" if header[3:4] == LOG_MAGIC[1][3:] else "<"
    words = struct.unpack(f"{order}{len(frame) // 4 - 4}I", frame[:8] + frame[24:])
    first, second = struct.unpack(">2I", before)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) % 2**32
        second = (second + odd + first) % 2**32
    return frame[16:24] == struct.pack(">2I", first, second)


def look_at_log(file: str, seen: Log) -> tuple[Log, bool]:
    """The log's present state, and whether the frame seen last is still intact, if the header is the same."""
    with open(file, "rb", buffering=0) as log:

        def read(place: int, length: int) -> bytes:
            log.seek(place)
            return log.read(length)

        size, length = os.fstat(log.fileno()).st_size, len(seen.frame)
        frame = read(seen.end - length, length)
        header = read(0, 32)  # after the frame: a restarted log gets its new header first
        now = Log(header, size, seen.end, frame) if header == seen.header else Log(header, size)
        is_same = frame == seen.frame
        if not is_same and len(frame) == length:  # it may have been read while another process was writing it
            is_first = seen.end == 32 + length
            is_same = is_whole(header, header[24:] if is_first else read(seen.end - 2 * length + 16, 8), frame)
        length, place = 24 + int.from_bytes(header[8:12], "big"), now.end
        while place + length <= size and (start := read(place, 24))[8:16] == header[16:24]:
            place += length
            if any(start[4:8]):  # the last one of a commit
                now = Log(header, size, place, read(place - length, length))
        return now, is_same


class SQLiteFiles:
    """Notices when the files of an open database are removed, replaced, emptied, overwritten or cut.

    SQLite does not check until it opens them again, and would acknowledge lost writes. The methods `check…`
    raise FilesLost, and `database`, `log` and `index` are the paths.
    """

    def __init__(self, path: str, probe: Probe | None):
        self._probe = probe
        self.database, self.log, self.index = self.paths = database_files(path)
        self._opened = {file: os.stat(file) for file in self.paths}
        self._last_look: tuple[int, int] | None = None  # when the database was last written, and its size then
        self._counters: Mapping[str, int] | None = None  # in the database itself, without the log, at that time
        self._is_overwritten = self.is_copying = False  # the latter during a checkpoint of this process
        self._log_before = Log()
        self.log_is_damaged = False
        self.check_database()

    def _check_file(self, file: str) -> os.stat_result:
        try:
            status = os.stat(file)
        except OSError as error:
            raise FilesLost(file) from error
        if not os.path.samestat(status, self._opened[file]):
            raise FilesLost(file)
        return status

    def check(self) -> None:
        """Check all files."""
        self.check_database()
        self._check_file(self.index)
        self.check_log()

    def check_database(self) -> None:
        """Check that the database is the file that was opened, and that no other was copied over it."""
        status = self._check_file(self.database)
        # An emptied file gets back what the log has, see save_log(); SQLite would begin a new database there.
        if not status.st_size:
            raise FilesLost(self.database)
        look = status.st_mtime_ns, status.st_size
        if look != self._last_look and not self.is_copying:  # only a checkpoint writes to the file, and rarely
            is_continued, size_before = self._is_continued(), self._last_look[1] if self._last_look else 0
            if is_continued is not None or status.st_size < size_before:
                self._is_overwritten = not is_continued
                self._last_look = None if self._is_overwritten else look
        if self._is_overwritten:
            raise FilesLost(self.database)

    def _is_continued(self) -> bool | None:
        """Whether the file has its earlier contents, or later ones, read without the log.

        None if they cannot be read, as during a checkpoint of another process or after one that was
        killed: the first page counts pages not yet written. Then the log must not be lost.
        """
        if self._probe is None:
            return True
        before = self._counters
        try:
            with contextlib.closing(sqlite3.connect(file_uri(self.database, "immutable=1"), uri=True)) as connection:
                counters = dict(connection.execute(self._probe.counters))
        except sqlite3.Error as error:
            is_strange = getattr(error, "sqlite_errorcode", 0) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
            if before and not is_strange:
                return None
            counters = {}  # another program's file, or everything is still in the log
        if before is not None and not self._probe.is_continued(before, counters):
            return False
        self._counters = counters
        return True

    @property
    def log_end(self) -> int:
        """The bytes of the log up to the last commit that was checked."""
        return self._log_before.end

    def check_log(self) -> None:
        """Check that the log was neither emptied nor cut nor overwritten."""
        before = self._log_before  # read before the file: another thread may write and check meanwhile
        self._check_file(self.log)
        try:
            now, is_same = look_at_log(self.log, before)
        except OSError as error:
            raise FilesLost(self.log) from error
        if now.header == before.header:
            self.log_is_damaged |= now.size < min(before.size, LOG_LIMIT) or not is_same
        elif now.header:
            self.log_is_damaged |= now.header[:4] not in LOG_MAGIC
        else:  # a checkpoint of another process may have emptied it
            self.log_is_damaged |= self._log_has_frames() and not os.path.getsize(self.log)
        if self.log_is_damaged:
            raise FilesLost(self.log)
        self._log_before = now

    def _log_has_frames(self) -> bool:
        """Whether the log has frames, according to SQLite's index of the log."""
        try:
            with contextlib.closing(sqlite3.connect(self.database, timeout=0, isolation_level=None)) as connection:
                connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
                return bool(connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1] > 0)
        except sqlite3.Error:  # the frames in the index cannot be read
            return True

    def save_log(self, writer: sqlite3.Connection) -> None:
        """Copy the log into the file that was opened, so that it is neither lost nor applied to another file.

        The log must not be applied to a file that was overwritten by another. SQLite would copy all of a damaged log;
        but when it opens the log again, it takes the intact frames, if the header fits.
        """
        with contextlib.suppress(sqlite3.Error, OSError):
            if self.log_is_damaged:
                self._restore_log()
            elif self._is_overwritten:
                os.truncate(self.log, 0)
            elif not writer.in_transaction:
                writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _restore_log(self) -> None:
        header, _, end, frame = self._log_before
        with open(self.log, "r+b") as log:
            if log.read(48)[40:] == header[16:24]:  # the first frame has the salt of its header
                for place, content in ((0, header), (end - len(frame), frame)):
                    log.seek(place)
                    log.write(content)


def is_sqlite_damage(error: BaseException | None) -> bool:
    """Whether SQLite reports that tables or columns are missing, duplicate or unreadable."""
    damage = r"malformed|not a database|no such|has no column|duplicate column|constraint failed|mismatch"
    return isinstance(error, sqlite3.Error) and bool(re.search(damage, str(error)))


class SQLiteIndex:
    """An index of all sequences of three characters in a column, by SQLite's FTS5.

    FTS5 writes what it has to add at the end of every statement, so maintaining the index with each write would take
    as long as the write itself; a hundred rows at once take 5 microseconds each. So the index follows the log while
    there are no writes, and a search reads the rest of the log. It keeps no texts, and nothing is removed from it: a
    row that it finds has to be compared.
    """

    def __init__(self, searched: Searched):
        self.name, self._former, table, key, text, log, number, logged_key = searched
        self._state = f"{self.name}_state"
        self.must_be_made = False
        self.made_at = 0.0
        self._entries = 100  # of the log in a step
        self._table = table
        self._terms = f"{self.name}_terms"
        self._rest = rest = f"FROM {log} WHERE {number} > (SELECT end_number FROM {self._state})"
        self.has_rest, self.is_stale = f"SELECT 1 {rest} LIMIT 1", f"SELECT 1 FROM {self._state} WHERE is_stale = 1"
        self._logged = f"SELECT rowid FROM {table} WHERE {key} IN (SELECT {logged_key} {rest})"
        self._end = f"SELECT max({number}) FROM (SELECT {number} {rest} ORDER BY {number} LIMIT $1)"
        self._add = (
            f"INSERT INTO {self.name} (rowid, text) SELECT rowid, {text} || char(10, 10) FROM {table}"
            f" WHERE {key} IN (SELECT {logged_key} {rest} AND {number} <= $1) ORDER BY rowid"
        )
        self._last_row = f"SELECT COALESCE(max(rowid), 0) FROM {table}"

    def lookup(self, words: Sequence[str]) -> tuple[str, str, str]:
        """An argument for texts with all these words, a query that counts them, and what to select from.

        At most twelve sequences are enough to find few rows, and each frequent one takes a millisecond. Without a word
        of three characters, the sequences that begin with the longest one are looked up; a text ends with two line
        feeds in the index, so that its last characters begin some, too.
        """
        threes = [*dict.fromkeys(word[place : place + 3] for word in words for place in range(len(word) - 2))]
        argument = " ".join('"{}"'.format(three.replace('"', '""')) for three in threes[:: len(threes) // 12 + 1])
        found = f"SELECT rowid AS place FROM {self.name} WHERE {self.name} MATCH {{0}}"
        if not threes:
            argument = max(words, key=len)
            ends = "{0} AND {0} || char(1114111, 1114111)"
            found = f"SELECT doc AS place FROM {self._terms} WHERE term BETWEEN {ends}"
        parts = (found.format("$1"), f"SELECT 1 {self._rest}")
        counts = (f"SELECT count(*) FROM ({part} LIMIT {MAX_CANDIDATES + 1})" for part in parts)
        # CROSS JOIN has SQLite begin with the candidates; otherwise it reads all rows in the order of a page.
        rows = f"({found} UNION {self._logged}) AS candidates CROSS JOIN {self._table} ON {self._table}.rowid = place"
        return argument, f"SELECT ({') + ('.join(counts)})", rows

    async def make(self, transaction: Transaction) -> bool:
        """Make the index unless there is one that fits the table; returns whether this SQLite can use it."""
        table, how = self._table, "content = '', columnsize = 0, detail = none, tokenize = 'trigram case_sensitive 1'"
        try:
            if self.must_be_made or not await self._fits(transaction):
                for sql in (
                    *(f"DROP TRIGGER IF EXISTS {name}_deleted" for name in (self._former, self.name)),
                    *(
                        f"DROP TABLE IF EXISTS {name}{end}"
                        for name in (self._former, self.name)
                        for end in ("_terms", "", "_state")
                    ),
                    f"CREATE VIRTUAL TABLE {self.name} USING fts5(text, {how})",
                    f"CREATE VIRTUAL TABLE {self._terms} USING fts5vocab({self.name}, instance)",
                    f"CREATE TABLE {self._state} AS SELECT 0 AS end_number, 0 AS last_row, 0 AS is_stale",
                    # The index must not keep the text of deleted rows for long.
                    f"CREATE TRIGGER {self.name}_deleted AFTER DELETE ON {table} BEGIN"
                    f" UPDATE {self._state} SET is_stale = 1 WHERE is_stale = 0; END",
                ):
                    await transaction.fetch(sql)
        except sqlite3.OperationalError as error:  # there is no FTS5
            LOG.info("a search reads every row: %s", error)
            return False
        self.must_be_made, self.made_at = False, time.monotonic()
        return True

    async def _fits(self, transaction: Transaction) -> bool:
        """Whether there is an intact index without deleted rows, and SQLite's numbers for rows are those of the index.

        A database that was made again from the output of `.dump` has numbers without gaps, so the last is smaller.
        """
        tables = "SELECT name FROM sqlite_schema WHERE name IN ($1, $2, $3)"
        if len(await transaction.fetch(tables, self.name, self._state, self._terms)) < 3:
            return False
        try:
            for word in ("abc", "a"):
                argument, count, _ = self.lookup([word])
                await transaction.fetch(count, argument)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            return False
        fits = f"SELECT NOT is_stale AND last_row <= ({self._last_row}) FROM {self._state}"
        return bool((await transaction.fetch(fits))[0][0])

    def note_damage(self, error: BaseException | None) -> None:
        """Have the index made again if this error reports that it is damaged."""
        if is_sqlite_damage(error):
            LOG.warning("the search index is damaged, and is made again: %s", error)
            self.must_be_made = True

    async def follow(self, transaction: Transaction) -> float:
        """Add the rows in the next entries of the log; returns the seconds that this took, 0 if there are none."""
        started = time.perf_counter()
        if self.must_be_made:
            await self.make(transaction)
        end = (await transaction.fetch(self._end, self._entries))[0][0]
        if end is None:
            return 0.0
        try:
            await transaction.fetch(self._add, end)
        except sqlite3.DatabaseError as error:
            self.note_damage(error)
            raise
        await transaction.fetch(f"UPDATE {self._state} SET end_number = $1, last_row = ({self._last_row})", end)
        seconds = time.perf_counter() - started
        self._entries = max(10, min(1000, int(self._entries * INDEX_STEP_SECONDS / seconds)))
        return seconds


class SQLiteDatabase(Database):
    """One SQLite file (or memory): WAL, `synchronous=FULL`, one write connection, readers of their own.

    Handlers never share a connection, where one's rollback would undo another's write. Short writes
    run in the loop, which takes them a tenth of a millisecond each, and less than two threads that wait
    for each other at every statement; the commit, which waits for the disk, runs in the writer's thread.
    Long writes run there as a whole, and leave the loop to the others. The log is copied into the database beside
    the commits, by another connection; SQLite begins it again in the commit that finds little left to copy.
    """

    engine_errors = (sqlite3.Error,)
    contradictions = (sqlite3.IntegrityError,)

    def __init__(self, path: str | None, readers: int = 2):
        super().__init__()
        self.path = path
        self.name = f"SQLite {os.path.basename(path)}" if path else "SQLite in memory"
        self._reader_count = readers if path else 0
        self._readers: list[aiosqlite.Connection] = []
        self._idle_readers: list[aiosqlite.Connection] = []
        self._reader_turns = self._snapshot_turns = asyncio.Semaphore(0)
        self._copier: aiosqlite.Connection | None = None
        self._copying: asyncio.Task[None] | None = None
        self._copied_to = 0  # the end of the log when it was last copied
        self._writer: Any = None
        self._writer_thread: concurrent.futures.ThreadPoolExecutor | None = None
        self._writes_in_loop = False
        self._files: SQLiteFiles | None = None
        self._index: SQLiteIndex | None = None
        self._index_task: asyncio.Task[None] | None = None
        self._monitor: Any = None
        self._version_now: int | None = None
        self._version_until = 0.0

    async def identity(self) -> tuple[Any, ...] | None:
        """The device and number of the file, or None without a file."""
        try:
            status = os.stat(self.path or "")
        except OSError:
            return None
        return status.st_dev, status.st_ino

    async def _connect(self) -> None:
        if sqlite3.sqlite_version_info < (3, 35):
            raise Misconfigured(f"SQLite {sqlite3.sqlite_version} is too old: 3.35 or later is needed")
        # Semaphores give turns in the order of requests, which a queue does not.
        self._reader_turns, self._snapshot_turns = asyncio.Semaphore(self._reader_count), asyncio.Semaphore(2)
        self._writer_thread = concurrent.futures.ThreadPoolExecutor(1, "sqlite_writer")
        try:
            await self._in_writer_thread(self._open_writer)
            if self.path:
                self._monitor = sqlite3.connect(self.path, timeout=0, isolation_level=None)
                self._files = SQLiteFiles(self.path, self._probe)
            for _ in range(self._reader_count):
                reader = await self._connection(self.path or "")
                self._readers.append(reader)
                await reader.execute_fetchall("PRAGMA query_only=ON")
            self._idle_readers = [*self._readers]
            self._copier = await self._connection(self.path) if self.path else None
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise Unavailable(f"{self.path} is locked by another process.") from error
            raise Misconfigured(f"DATABASE_URL: cannot use {self.path}: {error}") from error

    def _open_writer(self) -> None:
        if self.path:
            make_private(self.path)
        self._writer = sqlite3.connect(
            self.path or ":memory:", timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
        )
        for sql in (
            "PRAGMA foreign_keys=ON",
            "PRAGMA journal_mode=WAL",
            "PRAGMA synchronous=FULL",
            f"PRAGMA journal_size_limit={LOG_LIMIT}",
            f"PRAGMA wal_autocheckpoint={4 * LOG_STEP // 4096}",
            "BEGIN IMMEDIATE",  # journal_mode=WAL alone succeeds on a file that cannot be written
            "ROLLBACK",
            "PRAGMA busy_timeout=0",  # _begin() waits, with jitter
        ):
            self._writer.execute(sql)
        for file in database_files(self.path) if self.path else ():
            if not os.access(file, os.W_OK):  # SQLite reads it all the same, and fails at the first write
                raise Misconfigured(f"DATABASE_URL: {file} cannot be written by the user that runs this")

    async def _in_writer_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._writer_thread, call, *arguments)

    async def _connection(self, path: str) -> aiosqlite.Connection:
        connection = aiosqlite.connect(path, timeout=LOCK_SECONDS, isolation_level=None)
        # aiosqlite's thread is not a daemon since 0.22: a program that embeds the app and ends without
        # lifespan() would hang at its exit. Every acknowledged write is committed, so none is lost.
        thread: threading.Thread = getattr(connection, "_thread", connection)  # type: ignore[arg-type]
        thread.daemon = True
        try:
            await connection
        except BaseException:
            # It ends its thread, but does not wait for it; the thread would outlive the loop it reports to.
            await asyncio.to_thread(thread.join, LOCK_SECONDS)
            raise
        await connection.execute_fetchall("PRAGMA foreign_keys=ON")
        return connection

    async def close(self) -> None:
        if self._index_task:
            await end_tasks([self._index_task])
        self._index = self._index_task = None
        await super().close()

    async def _disconnect(self) -> None:
        await self._end_copying()
        for connection in (*self._readers, *([self._copier] if self._copier else [])):
            await connection.close()
        with contextlib.suppress(FilesLost):  # closing would apply the log to another file
            await self._check_files()
        if self._writer:
            await self._in_writer_thread(self._writer.close)
        if self._writer_thread:
            self._writer_thread.shutdown()
        if self._monitor:
            if self._files and self._files.log_is_damaged and hasattr(self._monitor, "setconfig"):  # since Python 3.12
                self._monitor.setconfig(vars(sqlite3)["SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE"], True)
            self._monitor.close()
        self._readers, self._writer, self._writer_thread, self._monitor = [], None, None, None
        self._copier, self._copied_to = None, 0
        self._files, self._version_until = None, 0.0

    async def fetch(self, sql: str, *arguments: Any, seconds: float | None = None) -> Rows:
        if not self._reader_count:  # memory has one connection only, so reads take their turn with writes
            rows: Rows = await self.transaction(lambda transaction: transaction.fetch(sql, *arguments))
            return rows
        if self._files:
            self._files.check_database()
        return await self._read(sql, *arguments)

    async def index(self, searched: Searched) -> None:
        index = SQLiteIndex(searched)
        if self.path and await self.transaction(index.make):
            self._index, self._index_task = index, asyncio.ensure_future(self._follow_forever(index))

    async def _follow_forever(self, index: SQLiteIndex) -> None:
        while True:
            await asyncio.sleep(INDEX_SECONDS)
            with contextlib.suppress(TodoError):  # the next look tries again
                if time.monotonic() > index.made_at + INDEX_STALE_SECONDS and await self.fetch(index.is_stale):
                    index.must_be_made = True
                while not self._waiting and (index.must_be_made or await self.fetch(index.has_rest)):
                    # Another process may wait for the lock.
                    await asyncio.sleep(await self.transaction(index.follow))

    async def narrowed(self, searched: Searched, words: Sequence[str], bound: Callable[[Any], str]) -> str:
        if not self._index:
            return searched.table
        argument, count_rows, candidates = self._index.lookup(words)
        try:
            count = (await self.fetch(count_rows, argument))[0][0]
        except Unavailable as error:
            self._index.note_damage(error.__cause__)
            return searched.table
        return candidates.format(bound(argument)) if count <= MAX_CANDIDATES else searched.table

    def version(self) -> int | None:
        """The number of `PRAGMA data_version`.

        Read once per turn of the loop, or `list` takes 18 % longer; callers learn of a commit in a later turn.
        """
        if time.monotonic() > self._version_until:
            if self._files:
                self._files.check_database()
            try:
                self._version_now = self._monitor.execute("PRAGMA data_version").fetchone()[0]
            except (AttributeError, sqlite3.Error):  # closed, or being deleted
                self._version_now = None
            self._version_until = time.monotonic() + 0.01  # in case the loop ends before its next turn
            asyncio.get_running_loop().call_soon(self._end_version)
        return self._version_now

    def _end_version(self) -> None:
        self._version_until = 0.0

    async def _read(self, sql: str, *arguments: Any) -> Rows:
        idle_readers = self._idle_readers
        async with self._reader_turns:
            if self._writer_task is None:
                raise Unavailable("The database is closed.")
            reader = idle_readers.pop()
            try:
                return await SQLiteSnapshot(reader).fetch(sql, *arguments)
            except sqlite3.Error as error:
                raise self._explained(error) from error
            except asyncio.CancelledError:
                # Its thread goes on, and must have reported before the loop may be closed.
                await reader.execute_fetchall("SELECT 1")
                raise
            finally:
                idle_readers.append(reader)

    async def snapshot(self, operation: Callable[[Source], Awaitable[None]]) -> None:
        if not self._files:
            await self.transaction(operation)
            return
        async with self._snapshot_turns:
            self._files.check()
            connection = await self._connection(self._files.database)
            try:
                await connection.execute_fetchall("BEGIN")
                await operation(SQLiteSnapshot(connection))
            except sqlite3.Error as error:
                raise self._explained(error) from error
            finally:
                await connection.close()

    async def _check_files(self) -> None:
        if self._files:
            try:
                self._files.check()
            except FilesLost:
                await self._save_log(self._files)
                raise

    async def _save_log(self, files: SQLiteFiles) -> None:
        await self._end_copying()
        await self._in_writer_thread(files.save_log, self._writer)

    async def _end_copying(self) -> None:
        if self._copying:
            await asyncio.wait([self._copying])

    def _copy_log(self, files: SQLiteFiles, copier: aiosqlite.Connection) -> None:
        """Begin a checkpoint if the log has grown by a step since the last one."""
        is_over = self._copying is None or self._copying.done()
        if files.log_end < self._copied_to:  # SQLite has begun the log again
            self._copied_to = 0
        if is_over and files.log_end >= self._copied_to + LOG_STEP:
            self._copied_to = files.log_end
            self._copying = asyncio.ensure_future(self._checkpoint(files, copier))

    @staticmethod
    async def _checkpoint(files: SQLiteFiles, copier: aiosqlite.Connection) -> None:
        with contextlib.suppress(sqlite3.Error, FilesLost):  # the next commit reports the fault
            files.check()
            files.is_copying = True
            try:
                await copier.execute_fetchall("PRAGMA wal_checkpoint(PASSIVE)")
            finally:
                files.is_copying = False

    async def _look(self, probe: Probe) -> None:
        """Raise unless the files are there, can be read and written, and have room to grow."""
        await self._check_files()
        if self._files:
            for file in self._files.paths:
                if not os.access(file, os.W_OK):
                    raise Unavailable(f"{file} cannot be written.")
            if shutil.disk_usage(os.path.dirname(self._files.log)).free < MIN_FREE_BYTES:
                raise Unavailable(f"The disk that has {self.path} is full.")
        await (self._read if self._reader_count else self.fetch)(probe.counters)

    async def _run(self, group: list[Write], is_shared: bool) -> Sequence[Any]:
        self._writes_in_loop = is_shared and self._begin_at_once()
        try:
            if self._writes_in_loop:
                return await super()._run(group, is_shared)
            answers: Sequence[Any] = await self._in_writer_thread(run_without_waiting, super()._run(group, False))
            return answers
        except FilesLost:
            if self._files:
                await self._save_log(self._files)
            raise
        finally:
            if self._files and self._copier:
                self._copy_log(self._files, self._copier)

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[SQLiteTransaction]:
        try:
            if self._files:
                self._files.check()
            if not self._writer.in_transaction:
                self._begin()
            yield SQLiteTransaction(self._writer, self._in_writer_thread if self._writes_in_loop else None)
            if self._files:
                self._files.check_log()  # a commit to a damaged log is not acknowledged
        finally:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")

    def _begin_at_once(self) -> bool:
        """Take the write lock unless another process has it."""
        try:
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            return False
        return True

    def _begin(self) -> None:
        """Take the write lock, trying for a second if another process has it."""
        give_up = time.monotonic() + LOCK_SECONDS
        while not self._begin_at_once():
            if time.monotonic() > give_up:
                raise Unavailable(f"Another process is writing to the database. {NOTHING_CHANGED}")
            # Jitter keeps two waiting processes from colliding at every try.
            time.sleep(random.uniform(0.005, 0.025))

    def is_damage(self, error: BaseException) -> bool:
        return is_sqlite_damage(error)

    def _reason(self, error: BaseException) -> str | None:
        return str(error) if isinstance(error, sqlite3.OperationalError) else None


# ---- Postgres


def driver(module: str, setting: str, extra: str) -> Any:
    """Import an optional driver. Raises Misconfigured, naming the extra to install, if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        message = f"{setting} needs the driver {module.partition('.')[0]}: pip install 'tornado-todo[{extra}]'"
        raise Misconfigured(message) from None


def asyncpg_driver() -> Any:
    """The module asyncpg, imported only where it is needed."""
    return driver("asyncpg", "DATABASE_URL", "postgres")


def without_password(url: str) -> str:
    """A server's URL with nothing secret in it: its hosts, port and database."""
    parts = urllib.parse.urlsplit(url)
    hosts = parts.netloc.rpartition("@")[2]
    socket_folder = urllib.parse.parse_qs(parts.query).get("host", [""])[0]
    return f"{hosts or socket_folder or 'localhost'}{parts.path}"


BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"  # also with a stricter default: a write holds a lock, and is not retried


class PostgresTransaction(Transaction):
    """A transaction on a connection."""

    def __init__(self, connection: Any):
        self._connection = connection

    @property
    def in_transaction(self) -> bool:
        return not self._connection.is_closed() and self._connection.is_in_transaction()

    async def fetch(self, sql: str, *arguments: Any, seconds: float | None = None) -> Rows:
        if sql.lstrip().startswith(("ALTER", "CREATE", "DROP")):  # unprepared, which saves a round trip
            await self._connection.execute(sql, timeout=seconds)
            return []
        return [tuple(row) for row in await self._connection.fetch(sql, *arguments, timeout=seconds)]

    async def _execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        if len(rows) == 1:  # without the transaction that asyncpg begins around many
            await self._connection.fetch(sql, *rows[0])
        else:  # many need more time
            await self._connection.executemany(sql, rows, timeout=QUERY_SECONDS + len(rows) / 2000)

    async def commit(self) -> None:
        try:
            await self._connection.execute("COMMIT")
        except Exception as error:
            # A rollback could only wait longer, and its failure would report that nothing was changed.
            self._connection.terminate()
            raise Unavailable(
                "The connection to the database was lost during the commit, so this may or may not have been done."
                " Repeating it is harmless if it names an id or an Idempotency-Key."
            ) from error

    async def compute(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.to_thread(function, *arguments)

    async def roll_back(self) -> None:
        """Undo the transaction unless it has ended."""
        try:
            if self.in_transaction:
                await self._connection.execute("ROLLBACK")
        except Exception:  # the server rolls back when its client is gone
            self._connection.terminate()


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error reports that a connection has ended, so that a new one may work."""
    asyncpg = asyncpg_driver()
    # An InternalClientError is what asyncpg raises when the connection ends between two of its steps.
    own = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError)
    lost = (*own, asyncpg.OperatorInterventionError, ConnectionError)
    # asyncpg reports an argument that cannot be sent as an InterfaceError and a ValueError.
    return isinstance(error, lost) and not isinstance(error, (ValueError, asyncpg.QueryCanceledError))


class TooManyConnections(ConnectionError):
    """The server or a pooler allows no more connections at the moment."""


class ConnectionPool:
    """Connections to Postgres, each for one at a time, in the order of requests.

    asyncpg's own pool keeps no order: the slowest 1 % of reads took 200 ms, and take 10 ms with this one. It also
    makes two tasks for each use: 60 to 100 microseconds more, of the 300 that a read of one to-do takes.
    """

    def __init__(self, url: str, size: int = 10, connect_seconds: float | None = None):
        self._url, self._size, self._connect_seconds = url, size, connect_seconds
        self.options: dict[str, Any] = {}  # of asyncpg.connect()
        self._turns = asyncio.Semaphore(size)
        self._users = self._missing_turns = 0
        self._idle: collections.deque[tuple[Any, float]] = collections.deque()  # and since when, longest idle first
        self._is_closed = False

    @contextlib.asynccontextmanager
    async def connection(self, fresh: bool = False) -> AsyncIterator[Any]:
        """A connection, if `fresh` a new one.

        Raises TimeoutError if there is none in time, Unavailable if the pool has been closed, and
        asyncpg's error if it cannot connect.
        """
        connection, give_up = None, time.monotonic() + CONNECT_SECONDS
        while connection is None:
            async with asyncio.timeout(CONNECT_SECONDS) if self._turns.locked() else contextlib.nullcontext():
                await self._turns.acquire()
            self._users += 1
            try:
                if self._is_closed:
                    raise Unavailable("The database is closed.")
                if fresh:  # the server may have ended the idle ones, too
                    self._end_idle()
                connection = self._take_idle() or await self._connect(give_up)
            except BaseException as error:
                self._users -= 1
                if not isinstance(error, TooManyConnections) or not (self._idle or self._users):
                    self._turns.release()
                    raise
                # For a while, all callers wait for the existing connections.
                give_up = time.monotonic() + CONNECT_SECONDS
                self._missing_turns += 1
                asyncio.get_running_loop().call_later(FEWER_SECONDS, self._add_turn)
        try:
            yield connection
        except BaseException as error:
            # The connection has ended, or it still waits for the server.
            if is_lost_connection(error) or isinstance(error, TimeoutError) or not isinstance(error, Exception):
                connection.terminate()
            raise
        finally:
            if not connection.is_closed() and (self._is_closed or connection.is_in_transaction()):
                connection.terminate()
            if not connection.is_closed():
                self._idle.append((connection, time.monotonic()))
            self._users -= 1
            self._turns.release()

    def _add_turn(self) -> None:
        self._missing_turns -= 1
        self._turns.release()

    async def _connect(self, give_up: float) -> Any:
        asyncpg, seconds = asyncpg_driver(), self._connect_seconds or max(give_up - time.monotonic(), 0.01)
        try:
            connection = await asyncpg.connect(
                self._url, timeout=seconds, command_timeout=QUERY_SECONDS, **self.options
            )
        except asyncpg.PostgresError as error:
            if isinstance(error, asyncpg.TooManyConnectionsError) or "no more connections" in str(error):
                raise TooManyConnections(str(error)) from error
            raise
        try:
            has_others = self._idle or self._users > 1
            await connection.execute("SELECT 1", timeout=min(seconds, PROBE_SECONDS) if has_others else seconds)
        except TimeoutError as error:  # a pooler signs in every client, and lets it wait for one of its connections
            connection.terminate()
            raise TooManyConnections("a new connection is not served") from error
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _take_idle(self) -> Any:
        """The idle connection that was used last, or None; those idle for too long are ended."""
        longest_ago = time.monotonic() - IDLE_CONNECTION_SECONDS
        while self._idle and self._idle[0][1] < longest_ago:
            self._idle.popleft()[0].terminate()
        while self._idle:
            connection, _ = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    def _end_idle(self) -> None:
        while self._idle:
            self._idle.pop()[0].terminate()

    async def close(self) -> None:
        """End all connections; those that are in use have two seconds to be returned."""
        self._is_closed = True
        try:
            async with asyncio.timeout(2.0):
                for _ in range(self._size - self._missing_turns):
                    await self._turns.acquire()
                await asyncio.gather(*(connection.close() for connection, _ in self._idle))
        except Exception:  # the server does not answer
            self._end_idle()


class PostgresDatabase(Database):
    """A Postgres database, or any that speaks its protocol, directly or through a pooler such as PgBouncer.

    A pooler may use another connection to the server for each transaction. Then no prepared statement outlives its
    transaction, and a read is a transaction, too, since asyncpg takes two steps for it.
    """

    def __init__(self, url: str):
        super().__init__()
        asyncpg = asyncpg_driver()  # if it is missing, that is reported at the start, not at the first request
        errors = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
        self.engine_errors = (*errors, TimeoutError, OSError)
        self.contradictions = (asyncpg.IntegrityConstraintViolationError,)
        self._url = url
        self.name = f"Postgres {without_password(url)}"
        self._pool: ConnectionPool | None = None
        self._is_pooled = False

    async def identity(self) -> tuple[Any, ...] | None:
        """When its server was started, to the microsecond, and its name and schema there; None if it is not open."""
        if self._pool is None:
            return None
        identity = "SELECT pg_postmaster_start_time(), current_database(), current_schema()"
        return (await self.fetch(identity))[0]

    def _open_pool(self) -> ConnectionPool:
        address, _, query = self._url.partition("?")
        options = parse_options(query, POSTGRES_OPTIONS)
        own = {name: options.pop(name) for name in OWN_POSTGRES_OPTIONS if name in options}
        cache_size = 0 if own.get("pgbouncer") == "true" else own.get("statement_cache_size")
        self._is_pooled = cache_size == 0
        url = f"{address}?{urllib.parse.urlencode(options)}" if options else address
        pool = ConnectionPool(url, connect_seconds=own.get("connect_timeout"))
        if cache_size is not None:
            pool.options["statement_cache_size"] = cache_size
        return pool

    async def _connect(self) -> None:
        try:
            self._pool = self._open_pool()
            await self._check_server(self._pool)
        except (Misconfigured, Unavailable):
            raise
        except Exception as error:
            raise self._connect_failure(error) from error

    async def _check_server(self, pool: ConnectionPool) -> None:
        """Find out whether there is a pooler, unless the URL states it. Raises Misconfigured or Unavailable."""
        is_known = bool(pool.options)
        # Nothing may be left in a server's connection before it is known whether there is a pooler.
        pool.options.setdefault("statement_cache_size", 0)
        async with pool.connection() as connection:
            await connection.execute(BEGIN)
            names = ("server_encoding", "synchronous_commit", "transaction_read_only", "search_path")
            settings = ", ".join(f"current_setting('{name}')" for name in names)
            process, *values = (await connection.fetch(f"SELECT pg_backend_pid(), {settings}, current_schema()"))[0]
            await connection.execute("COMMIT")
            self._check_settings(*values)
            if not is_known:
                # A pooler reports its own process id for cancelling queries, not the server's.
                self._is_pooled = process != connection.get_server_pid()
            if not is_known and not self._is_pooled:
                del pool.options["statement_cache_size"]
                await connection.close()

    def _check_settings(self, encoding: str, commit: str, read_only: str, path: str, schema: str | None) -> None:
        """Raise Misconfigured or Unavailable for settings with which writes fail or may be lost."""
        advice = "make one with createdb -E UTF8 -T template0"
        faults = {
            f"its encoding is {encoding}, which cannot keep every text; {advice}": encoding != "UTF8",
            "with synchronous_commit=off an acknowledged write can be lost; set it to on": commit == "off",
            f"it has no schema of its search_path {path}": schema is None,
        }
        for fault, is_present in faults.items():
            if is_present:
                raise Misconfigured(f"DATABASE_URL: {self.name}: {fault}")
        if read_only == "on":
            raise Unavailable(f"{self.name} is read-only: default_transaction_read_only is on, or it is a standby.")

    def _connect_failure(self, error: Exception) -> Exception:
        asyncpg = asyncpg_driver()
        reason = (str(error).splitlines() or [""])[0]
        if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
            password = urllib.parse.urlsplit(self._url).password or ""
            hint = ""
            if re.fullmatch(r"md5[0-9a-f]{32}", urllib.parse.unquote(password)):
                hint = ". The password looks like a stored md5 hash: the URL needs the password itself,"
                hint += " the hash is what the server keeps"
            return Misconfigured(f"DATABASE_URL: {self.name} refuses to sign in{hint}")
        if isinstance(error, asyncpg.InvalidCatalogNameError):
            return Misconfigured(f"DATABASE_URL: {self.name}: there is no such database; make it with createdb")
        if isinstance(error, (asyncpg.ClientConfigurationError, ValueError)):
            return Misconfigured(f"DATABASE_URL: {self.name}: cannot use this URL: {reason}")
        if "statement pooling mode" in reason:
            return Misconfigured(
                f"DATABASE_URL: {self.name} is a pooler in statement mode: use transaction or session mode"
            )
        # Poolers have one code for refusals and for lost connections.
        wording = 'startup parameter|no such (user|database)|database ".*" does not exist|rejected SSL upgrade'
        refusals = (asyncpg.DataError, asyncpg.SyntaxOrAccessError, asyncpg.ObjectNotInPrerequisiteStateError)
        if isinstance(error, refusals) or re.search(wording, reason):
            return Misconfigured(f"DATABASE_URL: {self.name} refuses the connection: {reason}")
        return Unavailable(f"{self.name} cannot be reached ({type(error).__name__}).")

    async def _disconnect(self) -> None:
        pool, self._pool = self._pool, None
        if pool:
            await pool.close()

    async def fetch(self, sql: str, *arguments: Any, seconds: float | None = None) -> Rows:
        for last_try in (False, True):
            try:
                return await self._read(last_try, sql, arguments, seconds)
            except Exception as error:
                # A read may be repeated: the connection was old and the server has been restarted.
                if last_try or not is_lost_connection(error):
                    raise self._explained(error) from error
        raise AssertionError("the last try either returns or raises")

    async def _read(self, fresh: bool, sql: str, arguments: Sequence[Any], seconds: float | None) -> Rows:
        async with self._connected(fresh) as connection:
            if self._is_pooled:
                await connection.execute(BEGIN)
            rows = await connection.fetch(sql, *arguments, timeout=seconds)
            if self._is_pooled:
                await connection.execute("COMMIT")
            return [tuple(row) for row in rows]

    async def snapshot(self, operation: Callable[[Source], Awaitable[None]]) -> None:
        try:
            async with (
                self._connected() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                await operation(PostgresTransaction(connection))
        except Exception as error:
            raise self._explained(error) from error

    def _connected(self, fresh: bool = False) -> contextlib.AbstractAsyncContextManager[Any]:
        """A connection of the pool. Raises Unavailable if the database is closed."""
        if self._pool is None:
            raise Unavailable("The database is closed.")
        return self._pool.connection(fresh)

    @staticmethod
    async def _begin(connection: Any, last_try: bool) -> bool:
        """Begin a transaction; False if the connection was lost before, so that a new one may work."""
        try:
            await connection.execute(BEGIN)
            return True
        except Exception as error:
            if last_try or not is_lost_connection(error):
                raise
            connection.terminate()
            return False

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[PostgresTransaction]:
        for last_try in (False, True):
            async with self._connected(fresh=last_try) as connection:
                if not await self._begin(connection, last_try):
                    continue
                transaction = PostgresTransaction(connection)
                try:
                    yield transaction
                finally:
                    await transaction.roll_back()
                return

    async def index(self, searched: Searched) -> None:
        """See the base class. It needs the extension pg_trgm, and the right to create it if it is not there."""
        table, name = searched.table, searched.name
        if (await self.fetch("SELECT to_regclass($1)::text", name))[0][0]:
            return
        create = f"CREATE INDEX IF NOT EXISTS {name} ON {table} USING gin ({self._text_of(searched)} gin_trgm_ops)"
        try:
            async with self._session() as transaction:
                await transaction.fetch("SELECT pg_advisory_xact_lock(hashtext($1))", name, seconds=BULK_SECONDS)
                await transaction.fetch(f"DROP INDEX IF EXISTS {searched.former}", seconds=BULK_SECONDS)
                await transaction.fetch("CREATE EXTENSION IF NOT EXISTS pg_trgm")
                await transaction.fetch(create, seconds=BULK_SECONDS)
                await transaction.fetch(f"ANALYZE {table}", seconds=BULK_SECONDS)  # as `narrowed` needs estimates
                await transaction.commit()
        except self.engine_errors as error:
            LOG.info("a search reads every row: %s", error)

    @staticmethod
    def _text_of(searched: Searched) -> str:
        """The indexed text, by an expression that no other statement has.

        Postgres may reuse the plan of a statement for all words, so one that can use the index uses it for a
        word that is in every row, too, which takes 300 ms in 100,000 rows.
        """
        return f"({searched.text} || '')"

    async def narrowed(self, searched: Searched, words: Sequence[str], bound: Callable[[Any], str]) -> str:
        """See the base class. Postgres estimates the number of rows, and whether the index helps."""
        patterns = [f"%{escape_like(word)}%" for word in words if len(word) > 2]
        if not patterns:
            return searched.table

        def having(places: Iterable[str]) -> str:
            tests = " AND ".join(f"{self._text_of(searched)} LIKE {place} ESCAPE '!'" for place in places)
            return f"SELECT * FROM {searched.table} WHERE {tests}"

        numbered = (f"${number}" for number in range(1, len(patterns) + 1))
        plan = (await self.fetch(f"EXPLAIN {having(numbered)}", *patterns))[0][0]
        estimate = re.match(r"Bitmap Heap Scan .* rows=(\d+)", plan)
        if not estimate or int(estimate[1]) > MAX_CANDIDATES:
            return searched.table
        # Materialized, or a generic plan, which does not know the words, could read the whole table.
        return f"(WITH found AS MATERIALIZED ({having(map(bound, patterns))}) SELECT * FROM found) AS {searched.table}"

    async def _look(self, probe: Probe) -> None:
        """Raise unless all rows of the tables may be read and written."""
        await self.fetch(probe.counters)
        rights = ("SELECT", "INSERT", "UPDATE", "DELETE")
        has_rights = " AND ".join(f"has_table_privilege(name, '{right}')" for right in rights)
        refused = await self.fetch(
            f"SELECT name FROM unnest($1::text[]) AS name WHERE NOT ({has_rights}) OR row_security_active(name)",
            [*probe.tables],
        )
        if refused:
            names = ", ".join(sorted(row[0] for row in refused))
            raise Unavailable(f"{self.name}: no right to read and write all rows of {names}.")

    def is_damage(self, error: BaseException) -> bool:
        asyncpg = asyncpg_driver()
        kinds = (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.DuplicateColumnError)
        return isinstance(error, (*kinds, asyncpg.DataCorruptedError))

    def _reason(self, error: BaseException) -> str | None:
        asyncpg = asyncpg_driver()
        kinds = (asyncpg.InvalidTransactionStateError, asyncpg.InsufficientPrivilegeError)
        others = (asyncpg.InsufficientResourcesError, asyncpg.ObjectNotInPrerequisiteStateError)
        expected = (OSError, *kinds, *others, asyncpg.OperatorInterventionError)  # a TimeoutError is an OSError
        if is_lost_connection(error) or isinstance(error, expected):
            return f"{type(error).__name__}: {error}".rstrip(": ")
        return None


def open_database(url: str) -> Database:
    """The database that a checked DATABASE_URL names; not yet opened. Raises Misconfigured."""
    if not url.startswith("sqlite:"):
        return PostgresDatabase(url)
    path = urllib.parse.unquote(url.removeprefix("sqlite://")[1:])
    if path.startswith("file:"):  # which SQLite itself would read as a URI, and open another file
        raise Misconfigured(f"DATABASE_URL: write the path without file: as in sqlite:///{path.removeprefix('file:')}")
    return SQLiteDatabase(os.path.abspath(path) if path else None)


# ==== stores: may call databases and domain =====================================================

# Which to-dos are due at a time, and which on a day, or not at all.
TIMED, UNTIMED = "length(due) > 10", "COALESCE(length(due), 10) <= 10"

NEXT_REVISION = "revision = (SELECT value + 1 FROM counters WHERE name = 'revision')"
# One entry for each version of the schema. Never change a released one: append another.
MIGRATIONS = (
    """
    CREATE TABLE users (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, created_at BIGINT NOT NULL, revision BIGINT NOT NULL);
    CREATE TABLE lists (
        id TEXT COLLATE "C" PRIMARY KEY, owner_id TEXT NOT NULL REFERENCES users(id), title TEXT NOT NULL,
        position DOUBLE PRECISION NOT NULL, inbox BIGINT NOT NULL, created_at BIGINT NOT NULL,
        updated_at BIGINT NOT NULL, deleted_at BIGINT, revision BIGINT NOT NULL);
    CREATE UNIQUE INDEX one_inbox ON lists (owner_id) WHERE inbox = 1;
    CREATE INDEX lists_by_owner ON lists (owner_id, position, id);
    CREATE TABLE todos (
        id TEXT COLLATE "C" PRIMARY KEY, owner_id TEXT NOT NULL REFERENCES users(id),
        list_id TEXT NOT NULL REFERENCES lists(id), title TEXT NOT NULL, completed_at BIGINT,
        position DOUBLE PRECISION NOT NULL, notes TEXT NOT NULL, due TEXT, priority BIGINT NOT NULL,
        tags TEXT NOT NULL, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, deleted_at BIGINT,
        revision BIGINT NOT NULL, due_at BIGINT NOT NULL, title_key TEXT COLLATE "C" NOT NULL, search TEXT NOT NULL,
        tag_keys TEXT NOT NULL);
    CREATE INDEX todos_by_list ON todos (list_id, position, id) WHERE deleted_at IS NULL;
    CREATE INDEX todos_by_owner ON todos (owner_id, position, id) WHERE deleted_at IS NULL;
    CREATE INDEX todos_by_due ON todos (owner_id, due_at, id) WHERE deleted_at IS NULL;
    CREATE INDEX todos_by_title ON todos (owner_id, title_key, id) WHERE deleted_at IS NULL;
    CREATE INDEX todos_by_priority ON todos (owner_id, priority, id) WHERE deleted_at IS NULL;
    CREATE INDEX todos_by_creation ON todos (owner_id, created_at, id) WHERE deleted_at IS NULL;
    CREATE INDEX todos_by_update ON todos (owner_id, updated_at, id) WHERE deleted_at IS NULL;
    CREATE INDEX todos_to_count ON todos (owner_id, list_id, completed_at) WHERE deleted_at IS NULL;
    CREATE INDEX todos_in_trash ON todos (owner_id, updated_at, id) WHERE deleted_at IS NOT NULL;
    CREATE INDEX todos_to_purge ON todos (deleted_at) WHERE deleted_at IS NOT NULL;
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
        todo_id TEXT NOT NULL, at BIGINT NOT NULL, PRIMARY KEY (user_id, key));
    CREATE INDEX idempotency_keys_by_todo ON idempotency_keys (todo_id);
    CREATE TABLE documents (
        owner_id TEXT NOT NULL REFERENCES users(id), name TEXT COLLATE "C" NOT NULL, body TEXT NOT NULL,
        size BIGINT NOT NULL, etag TEXT NOT NULL, updated_at BIGINT NOT NULL, PRIMARY KEY (owner_id, name));
    """,
    """
    ALTER TABLE users ADD COLUMN password TEXT;
    CREATE TABLE members (
        id TEXT COLLATE "C" PRIMARY KEY, list_id TEXT NOT NULL REFERENCES lists(id),
        user_id TEXT NOT NULL REFERENCES users(id), role TEXT NOT NULL, created_at BIGINT NOT NULL,
        since_revision BIGINT NOT NULL, UNIQUE (list_id, user_id));
    CREATE INDEX members_by_user ON members (user_id, list_id, role);
    CREATE TABLE credentials (
        id TEXT COLLATE "C" PRIMARY KEY, kind TEXT NOT NULL, secret_hash TEXT NOT NULL UNIQUE,
        user_id TEXT NOT NULL REFERENCES users(id), list_id TEXT REFERENCES lists(id), name TEXT NOT NULL,
        read_only BIGINT NOT NULL, created_at BIGINT NOT NULL, used_at BIGINT NOT NULL, expires_at BIGINT NOT NULL);
    CREATE INDEX credentials_by_user ON credentials (user_id, kind);
    CREATE INDEX credentials_by_list ON credentials (list_id) WHERE list_id IS NOT NULL;
    ALTER TABLE changes ADD COLUMN from_owner_id TEXT;
    CREATE INDEX changes_by_user ON changes (user_id, revision);
    CREATE INDEX changes_by_list ON changes (list_id, revision);
    CREATE INDEX changes_from_list ON changes (from_list_id, revision) WHERE from_list_id <> list_id;
    CREATE INDEX changes_from_owner ON changes (from_owner_id, revision) WHERE from_owner_id IS NOT NULL;
    INSERT INTO counters (name, value) VALUES ('access', 0);
    """,
    # Postgres uses an index only for comparisons in its collation: without this, each page of a list read
    # all to-dos.
    """
    ALTER TABLE todos ALTER COLUMN list_id TYPE TEXT COLLATE "C";
    ALTER TABLE members ALTER COLUMN list_id TYPE TEXT COLLATE "C";
    ALTER TABLE credentials ALTER COLUMN list_id TYPE TEXT COLLATE "C";
    ALTER TABLE changes ALTER COLUMN list_id TYPE TEXT COLLATE "C";
    ALTER TABLE changes ALTER COLUMN from_list_id TYPE TEXT COLLATE "C";
    ALTER TABLE changes ALTER COLUMN todo_id TYPE TEXT COLLATE "C";
    ALTER TABLE idempotency_keys ALTER COLUMN todo_id TYPE TEXT COLLATE "C";
    """,
    # Revisions between these two may have been issued for changes that a restored database no longer has.
    """
    CREATE TABLE revision_gaps (after_revision BIGINT PRIMARY KEY, before_revision BIGINT NOT NULL);
    """,
    # An undo without a batch skips the revisions between passed_from and passed_to, which could not be undone. To-dos
    # with a time and those without have an index each, since the time zone decides how they are merged.
    # Stored text and orders become as clean_text(), trim() and MAX_ORDER make them now, with a revision that was
    # never issued, so that no earlier ETag matches them.
    f"""
    ALTER TABLE users ADD COLUMN passed_from BIGINT NOT NULL DEFAULT 0;
    ALTER TABLE users ADD COLUMN passed_to BIGINT NOT NULL DEFAULT 0;
    ALTER TABLE users ADD COLUMN time_zone TEXT NOT NULL DEFAULT '';
    DROP INDEX todos_by_due;
    CREATE INDEX todos_by_time ON todos (owner_id, due_at, id) WHERE deleted_at IS NULL AND {TIMED};
    CREATE INDEX todos_by_day ON todos (owner_id, due_at, id) WHERE deleted_at IS NULL AND {UNTIMED};
    CREATE INDEX todos_by_list_and_time ON todos (list_id, due_at, id) WHERE deleted_at IS NULL AND {TIMED};
    CREATE INDEX todos_by_list_and_day ON todos (list_id, due_at, id) WHERE deleted_at IS NULL AND {UNTIMED};
    UPDATE todos SET {NEXT_REVISION}, notes = replace(replace(ltrim(notes, '{BOM}'), '\r\n', '\n'), '\r', '\n')
        WHERE notes LIKE '%\r%' OR notes LIKE '{BOM}%';
    UPDATE todos SET {NEXT_REVISION}, title = ltrim(rtrim(title, '{BOM} '), '{BOM} '),
        title_key = ltrim(title_key, '{BOM} ') WHERE title LIKE '{BOM}%' OR title LIKE '%{BOM}';
    UPDATE todos SET {NEXT_REVISION}, tags = replace(replace(tags, '"{BOM}', '"'), '{BOM}"', '"'),
        tag_keys = replace(replace(tag_keys, '\n{BOM}', '\n'), '{BOM}\n', '\n') WHERE tags LIKE '%{BOM}%';
    UPDATE lists SET {NEXT_REVISION}, title = ltrim(rtrim(title, '{BOM} '), '{BOM} ')
        WHERE title LIKE '{BOM}%' OR title LIKE '%{BOM}';
    UPDATE todos SET {NEXT_REVISION}, position = numbered.place FROM (SELECT id, row_number() OVER
        (PARTITION BY list_id ORDER BY position, id) AS place FROM todos WHERE list_id IN (SELECT list_id FROM todos
        WHERE position > {MAX_ORDER!r} OR position < -{MAX_ORDER!r})) AS numbered WHERE numbered.id = todos.id;
    """,
    # Failed sign-ins by name and address, unless Redis counts them.
    """
    CREATE TABLE throttles (key TEXT PRIMARY KEY, value BIGINT NOT NULL, expires_at BIGINT NOT NULL);
    """,
    # Few reads used these indexes, and every write of a to-do maintained them: without one, 100,000 to-dos are sorted
    # by title in 50 ms. The index of a list now counts completed to-dos, too, and the log's has only changes in lists
    # of other users. SQLite prefers the newer of two equal indexes, so those for due dates are created last.
    f"""
    DROP INDEX todos_by_title;
    DROP INDEX todos_by_priority;
    DROP INDEX todos_by_creation;
    DROP INDEX todos_by_update;
    DROP INDEX todos_to_count;
    DROP INDEX todos_by_list;
    CREATE INDEX todos_by_list ON todos (list_id, position, id, completed_at) WHERE deleted_at IS NULL;
    DROP INDEX todos_by_list_and_time;
    DROP INDEX todos_by_list_and_day;
    CREATE INDEX todos_by_list_and_time ON todos (list_id, due_at, id) WHERE deleted_at IS NULL AND {TIMED};
    CREATE INDEX todos_by_list_and_day ON todos (list_id, due_at, id) WHERE deleted_at IS NULL AND {UNTIMED};
    DROP INDEX changes_by_user;
    CREATE INDEX changes_by_user ON changes (user_id, revision) WHERE user_id <> owner_id;
    """,
    """
    ALTER TABLE todos ADD COLUMN repeat TEXT;
    """,
    f"""
    ALTER TABLE todos ADD COLUMN start TEXT;
    ALTER TABLE todos ADD COLUMN start_at BIGINT NOT NULL DEFAULT {NO_DUE};
    """,
    # Lists of others come after a member's own, as they did, until the member moves them.
    """
    ALTER TABLE lists ADD COLUMN colour TEXT;
    ALTER TABLE lists ADD COLUMN archived BIGINT NOT NULL DEFAULT 0;
    ALTER TABLE members ADD COLUMN position DOUBLE PRECISION NOT NULL DEFAULT 0;
    ALTER TABLE members ADD COLUMN colour TEXT;
    ALTER TABLE members ADD COLUMN archived BIGINT NOT NULL DEFAULT 0;
    UPDATE members SET position = numbered.place
        + COALESCE((SELECT max(lists.position) FROM lists WHERE lists.owner_id = members.user_id), 0)
        FROM (SELECT members.id, row_number() OVER (PARTITION BY user_id ORDER BY lists.position, lists.id) AS place
        FROM members JOIN lists ON lists.id = list_id) AS numbered WHERE numbered.id = members.id;
    """,
    """
    ALTER TABLE todos ADD COLUMN reminders TEXT NOT NULL DEFAULT '[]';
    """,
    """
    CREATE TABLE filters (
        id TEXT COLLATE "C" PRIMARY KEY, owner_id TEXT NOT NULL REFERENCES users(id), title TEXT NOT NULL,
        query TEXT NOT NULL, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, revision BIGINT NOT NULL);
    CREATE INDEX filters_by_owner ON filters (owner_id, id);
    CREATE TABLE templates (
        id TEXT COLLATE "C" PRIMARY KEY, owner_id TEXT NOT NULL REFERENCES users(id), title TEXT NOT NULL, colour TEXT,
        first_day TEXT, todos TEXT NOT NULL, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL,
        revision BIGINT NOT NULL);
    CREATE INDEX templates_by_owner ON templates (owner_id, id);
    """,
    """
    ALTER TABLE todos ADD COLUMN assignee_id TEXT;
    CREATE INDEX todos_by_assignee ON todos (assignee_id, position, id) WHERE assignee_id IS NOT NULL;
    """,
    # `said` has the texts of the comments, folded for searches.
    """
    ALTER TABLE todos ADD COLUMN comment_count BIGINT NOT NULL DEFAULT 0;
    ALTER TABLE todos ADD COLUMN said TEXT NOT NULL DEFAULT '';
    CREATE TABLE comments (
        id TEXT COLLATE "C" PRIMARY KEY, todo_id TEXT COLLATE "C" NOT NULL, user_id TEXT, text TEXT NOT NULL,
        created_at BIGINT NOT NULL, edited_at BIGINT, deleted_at BIGINT);
    CREATE INDEX comments_by_todo ON comments (todo_id, id);
    """,
    # Bulk acts that are not done, and their slices.
    """
    CREATE TABLE acts (batch TEXT PRIMARY KEY, user_id TEXT NOT NULL, act TEXT NOT NULL, next_slice BIGINT NOT NULL,
        done BIGINT NOT NULL, held_by TEXT NOT NULL, held_until BIGINT NOT NULL);
    CREATE TABLE slices (id TEXT PRIMARY KEY, user_id TEXT NOT NULL, items TEXT NOT NULL);
    """,
    """
    ALTER TABLE todos ADD COLUMN parent_id TEXT;
    CREATE INDEX todos_by_parent ON todos (parent_id, position, id) WHERE parent_id IS NOT NULL;
    """,
    """
    ALTER TABLE members ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;
    """,
    """
    ALTER TABLE users ADD COLUMN settings TEXT NOT NULL DEFAULT '{}';
    UPDATE users SET settings = '{"time_zone":"' || time_zone || '"}' WHERE time_zone <> '';
    ALTER TABLE users DROP COLUMN time_zone;
    """,
)


def schema_tables() -> dict[str, list[str]]:
    """The columns of all tables."""
    tables = {"counters": ["name", "value"]}
    statement = r"CREATE TABLE (\w+) \((.*?)\);|ALTER TABLE (\w+) ADD COLUMN (\w+ \w+)"
    for new, columns, table, column in re.findall(statement, " ".join(MIGRATIONS), re.DOTALL):
        tables.setdefault(new or table, []).extend(re.findall(r"(\w+) (?:TEXT|BIGINT|DOUBLE)\b", columns or column))
    for table, column in re.findall(r"ALTER TABLE (\w+) DROP COLUMN (\w+)", " ".join(MIGRATIONS)):
        tables[table].remove(column)
    return tables


def can_follow(before: Mapping[str, int], after: Mapping[str, int]) -> bool:
    """Whether the first counters can have become the second, which are not older, nor those of a copy."""
    is_copy = "copied" in after.keys() - before.keys()
    return not is_copy and after.get("revision", -1) >= before.get("revision", -1)


# The parts are separated by line breaks, which no word has.
SEARCHED = Searched(
    *("todos_texts", "todos_search", "todos", "id", "search || tag_keys || said"),
    log="changes",
    number="revision",
    logged_key="todo_id",
)
PROBE = Probe(
    tables=schema_tables(),
    counters="SELECT name, CAST(value AS BIGINT) FROM counters",
    is_continued=can_follow,
    write="INSERT INTO counters (name, value) VALUES ('tried', $1)"
    " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
)


# ---- rights: in every statement, `$1` is the caller

LINK_NAME = "link/"  # begins the names of the holders of links, and no account's
# A list in the trash is visible to its owner only, until it is restored.
MEMBERSHIPS = "SELECT list_id FROM members JOIN lists ON lists.id = list_id WHERE user_id = $1 AND deleted_at IS NULL"


def editing(role: str) -> str:
    """The SQL condition that narrows memberships to those with this role."""
    return " AND role = 'editor'" if role == EDITOR else ""


def may(role: str, list_column: str) -> str:
    """SQL for whether the caller has at least this role in the list of a row, which also has its owner."""
    if role == OWNER:
        return "owner_id = $1"
    return f"(owner_id = $1 OR {list_column} IN ({MEMBERSHIPS}{editing(role)}))"


def role_in(list_column: str) -> str:
    """SQL for the caller's role in the list of a row that `may` let through; the column with its table's name."""
    mine = f"SELECT role FROM members WHERE user_id = $1 AND list_id = {list_column}"
    return f"CASE WHEN owner_id = $1 THEN '{OWNER}' ELSE ({mine}) END"


def check_role(wanted: str, role: str) -> None:
    """Raise Forbidden unless a role is enough."""
    if role == VIEWER and wanted == EDITOR:
        raise Forbidden("You may read this list, but not change what is in it. Ask its owner.")
    if role != OWNER and wanted == OWNER:
        raise Forbidden("Only the owner of this list may do that.")


# ---- rows


class Table:
    """How a struct is stored, from the declarations of its fields; all of it is worked out at import.

    The functions that read and make rows are generated, since a loop over the fields takes twice as long.
    """

    def __init__(self, struct: type[msgspec.Struct]):
        declared = declared_fields(struct)
        stored = {name: each for name, each in declared.items() if each.column}
        columns = [each.column for each in stored.values()]
        self.columns = ", ".join(columns)  # of the rows that `read` takes, more of which may follow
        self.width = len(columns)
        self._names: dict[str, Any] = {"struct": struct}
        # How each column is made of a `thing`, by the field that it depends on.
        self.makers_of = {name: self._makers(name, each) for name, each in stored.items()}
        self.makers = {column: maker for makers in self.makers_of.values() for column, maker in makers.items()}
        places = {name: columns.index(each.column or each.of) for name, each in declared.items()}
        self._names |= {f"read_{name}": each.read for name, each in declared.items() if each.read}
        values = (
            f"{n}=read_{n}(row[{at}])" if f"read_{n}" in self._names else f"{n}=row[{at}]" for n, at in places.items()
        )
        # The struct in a row that begins with `columns`, and the values of all columns that `makers` makes.
        self.read: Callable[[Sequence[Any]], Any] = eval(f"lambda row: struct({', '.join(values)})", self._names)
        self.row = self.row_maker(self.makers)

    def _makers(self, name: str, field: Field) -> dict[str, str]:
        self._names |= {f"make_{column}": make for column, make in field.derived.items()}
        self._names[f"write_{name}"] = field.write
        own = f"write_{name}(thing.{name})" if field.write else f"thing.{name}"
        return {field.column: own, **{column: f"make_{column}(thing)" for column in field.derived}}

    def row_maker(self, columns: Iterable[str]) -> Callable[[Any], tuple[Any, ...]]:
        """A function that makes the values of some columns."""
        values = "".join(f"{self.makers[column]}, " for column in columns)
        maker: Callable[[Any], tuple[Any, ...]] = eval(f"lambda thing: ({values})", self._names)
        return maker


def placeholders(count: int, first: int = 1) -> str:
    return ", ".join(f"${number}" for number in range(first, first + count))


def insert(table: str, columns: str) -> str:
    """SQL that inserts a row, with an argument for each column."""
    return f"INSERT INTO {table} ({columns}) VALUES ({placeholders(columns.count(',') + 1)})"


TODOS, LISTS, CHANGES, COMMENTS = Table(Todo), Table(TodoList), Table(Change), Table(Comment)
TODO_COLUMNS, LIST_COLUMNS, CHANGE_COLUMNS = TODOS.columns, LISTS.columns, CHANGES.columns
STORED_FIELDS = operator.attrgetter(*TODOS.makers_of)  # of a to-do
STORED_TODO_COLUMNS = f"{', '.join(TODOS.makers)}, owner_id"
STORED_COMMENT_COLUMNS = f"{COMMENTS.columns}, todo_id"
STORED_LIST_COLUMNS = f"{LIST_COLUMNS}, owner_id"
# A member's own order, colour and archive have their own revision: for the others the list does not change.
ARRANGED_COLUMNS = (*(LIST_FIELDS[name].column for name in ARRANGED), "revision")
MEMBER_COLUMNS = f"id, list_id, user_id, role, created_at, since_revision, {', '.join(ARRANGED_COLUMNS)}"
arrange_list = LISTS.row_maker(ARRANGED_COLUMNS)
ARRANGE_LIST = "UPDATE members SET {} WHERE user_id = $1 AND list_id = $2".format(
    ", ".join(f"{column} = ${number}" for number, column in enumerate(ARRANGED_COLUMNS, 3))
)


def arranged(column: str) -> str:
    """SQL for a column of ARRANGED_COLUMNS as the reader of a list has it."""
    value = "CASE WHEN members.revision > lists.revision THEN members.revision ELSE lists.revision END"
    own = f"SELECT {value if column == 'revision' else column} FROM members WHERE user_id = $1 AND list_id = lists.id"
    return f"CASE WHEN owner_id = $1 THEN lists.{column} ELSE ({own}) END"


SEEN_LIST_COLUMNS = ", ".join(
    f"{arranged(column)} AS {column}" if column in ARRANGED_COLUMNS else column for column in LISTS.makers
)
STORED_CHANGE_COLUMNS = f"{CHANGE_COLUMNS}, undoes, owner_id, from_list_id, from_owner_id"
INSERT_TODO = insert("todos", STORED_TODO_COLUMNS)
INSERT_USER = insert("users", "id, name, created_at, revision")
SAVE_CHANGE = insert("changes", STORED_CHANGE_COLUMNS)
SAVE_COMMENT = (
    f"{insert('comments', STORED_COMMENT_COLUMNS)} ON CONFLICT (id) DO UPDATE"
    " SET text = excluded.text, edited_at = excluded.edited_at, deleted_at = excluded.deleted_at"
)
SET_SAID = "UPDATE todos SET said = $2 WHERE id = $1"
SAVE_LIST = (
    f"{insert('lists', STORED_LIST_COLUMNS)} ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(
        f"{column} = excluded.{column}" for column in LISTS.makers if column not in ("id", "inbox", "created_at")
    )
    + " WHERE lists.owner_id = excluded.owner_id"
)


class Kind(NamedTuple):
    """A kind of things that a user keeps beside lists: their table, how they are stored, and what undo sets back."""

    name: str
    table: str
    rows: Table
    undoable: tuple[str, ...]


KINDS_KEPT: dict[type[Any], Kind] = {
    SavedFilter: Kind("filter", "filters", Table(SavedFilter), ("title", "query")),
    Template: Kind("template", "templates", Table(Template), ("title",)),
}
Kept = SavedFilter | Template
MAX_KEPT = 200  # of a kind for a user
IN_A_LIVING_LIST = "EXISTS (SELECT 1 FROM lists WHERE lists.id = list_id AND lists.deleted_at IS NULL)"
PUT_AWAY = "SELECT id FROM lists WHERE owner_id = $1 AND (deleted_at IS NOT NULL{})"


def row_from_todo(todo: Todo, owner_id: str) -> tuple:
    """The arguments of INSERT_TODO."""
    return (*TODOS.row(todo), owner_id)


@functools.lru_cache(1000)
def update_todo(fields: tuple[str, ...]) -> tuple[str, Callable[[Todo], tuple[Any, ...]]]:
    """The statement that writes some fields of a to-do, and a function for its arguments from `$3` on.

    Before them come the to-do's id and the caller; after them, if it moves to another list, that list's owner.
    Columns that did not change are not written, which spares most of a to-do's indexes.
    """
    columns = dict.fromkeys(column for field in fields for column in TODOS.makers_of[field])
    names = [*columns, *(["owner_id"] if "list" in fields else [])]
    settings = ", ".join(f"{name} = ${number}" for number, name in enumerate(names, 3))
    mine = "SELECT list_id FROM members WHERE user_id = $2 AND role = 'editor'"
    sql = f"UPDATE todos SET {settings} WHERE id = $1 AND (owner_id = $2 OR list_id IN ({mine}))"
    return sql, TODOS.row_maker(columns)


# A change as a reader sees it: with its author's name, and of its images only those that were in a list which
# the reader may see. Sharing a list does not share what a to-do said before it was moved there, nor what
# the owner had removed before.
def since_member(list_column: str) -> str:
    """SQL for whether a change was made while the caller was a member of the list in one of its columns."""
    mine = f"members.user_id = $1 AND members.list_id = changes.{list_column}"
    mine += " AND members.since_revision < changes.revision"
    living = "SELECT id FROM lists WHERE deleted_at IS NULL"
    return f"EXISTS (SELECT 1 FROM members WHERE {mine} AND members.list_id IN ({living} AND id = members.list_id))"


SEES_AFTER = f"(owner_id = $1 OR {since_member('list_id')})"
SEES_BEFORE = f"(COALESCE(from_owner_id, owner_id) = $1 OR {since_member('from_list_id')})"
OWN_IF_ARRANGED = "(action <> 'arrange' OR user_id = $1)"
NAMED_CHANGE = CHANGE_COLUMNS.replace("user_id", "(SELECT name FROM users WHERE users.id = changes.user_id)")
SEEN_CHANGE = NAMED_CHANGE.replace(
    "before_image", f"CASE WHEN {SEES_BEFORE} THEN before_image ELSE 'null' END"
).replace("after_image", f"CASE WHEN {SEES_AFTER} THEN after_image ELSE 'null' END")


# The ids of users in an image; in a text of a client, the quotation marks would be escaped.
USER_IN_IMAGE = re.compile(rb'("(?:assignee|author)":)"([0-9a-f-]{36})"')
OF_OTHERS = "user_id = $1 AND user_id <> owner_id"  # the caller's changes in lists of others, as `changes_by_user`


async def in_batches(items: Iterable[Any]) -> AsyncIterator[Any]:
    """The items, with a pause for other requests after every few hundred: a bulk change must not stop the loop."""
    for index, item in enumerate(items, 1):
        yield item
        if index % 250 == 0:
            await asyncio.sleep(0)


def in_parts(ids: Sequence[Value], first: int) -> Iterator[tuple[str, Sequence[Value]]]:
    """The placeholders, from `first` on, and the ids, for each statement on at most 500 of the ids."""
    for start in range(0, len(ids), 500):
        part = ids[start : start + 500]
        yield placeholders(len(part), first), part


async def fetch_by_ids(source: Source, sql: str, ids: Collection[Any], *arguments: Any) -> Rows:
    """The rows of a statement with `{}` in place of some ids, which follow the arguments."""
    rows = []
    for places, part in in_parts(sorted(ids), len(arguments) + 1):
        rows += await source.fetch(sql.format(places), *arguments, *part)
    return rows


def first_row(rows: Sequence[Value], missing: str) -> Value:
    """The first row. Raises NotFound with a message if there is none."""
    if not rows:
        raise NotFound(missing)
    return rows[0]


async def raise_access(transaction: Transaction) -> None:
    """Note that a user gained or lost a right, so that every process checks its listeners again."""
    await transaction.fetch("UPDATE counters SET value = value + 1 WHERE name = 'access'")


async def end_sharing(transaction: Transaction, lists: str, *arguments: Any) -> list[str]:
    """Remove members and links of the lists that a SELECT names; returns the ids of the users who were members."""
    links, members = [
        await transaction.fetch(f"DELETE FROM {table} WHERE list_id IN ({lists}) RETURNING user_id", *arguments)
        for table in ("credentials", "members")
    ]
    await transaction.execute_many("DELETE FROM users WHERE id = $1", links)
    return [row[0] for row in members]


def forget_answers(ids: str, column: str = "todo_id") -> str:
    """SQL to forget the stored answers that show a to-do (or, by the column of lists, a list) that a SELECT names.

    Then an Idempotency-Key neither repeats the text of a purged to-do nor makes the to-do again.
    """
    batches = f"SELECT batch FROM changes WHERE {column} IN ({ids})"
    return f"UPDATE idempotency_keys SET answer = '' WHERE answer <> '' AND todo_id IN ({ids} UNION ALL {batches})"


# A user by name: an account in any spelling of its name, but a host program's user by exactly that name.
NAMED = (
    f"SELECT id, name FROM users WHERE name IN ({{0}}, {{1}}) AND name NOT LIKE '{LINK_NAME}%'"
    " ORDER BY CASE WHEN name = {0} THEN 0 ELSE 1 END LIMIT 1"
)
NAMES = "SELECT id, name FROM users WHERE id IN ({})"
USERS = NAMES.replace("name", "name, settings")
SAVE_ANSWER = insert("idempotency_keys", "user_id, key, fingerprint, answer, todo_id, at")
SET_COUNTER = "UPDATE counters SET value = $2 WHERE name = $1"
SET_LIST_REVISION = "UPDATE lists SET revision = $2 WHERE id = $1"
SET_USER_REVISION = "UPDATE users SET revision = $2 WHERE id = $1"
# A reader of two lists gets the revision of the one changed last, which may be written first.
SET_READERS_REVISION = (
    "UPDATE users SET revision = $2 WHERE revision < $2 AND id IN (SELECT owner_id FROM lists WHERE id = $1"
    " UNION ALL SELECT user_id FROM members WHERE list_id = $1)"
)


@functools.cache
def select_todos(count: int = 1, hidden: bool = False) -> str:
    """SQL for to-dos by their ids, in the trash or not, with the owner and the caller's role.

    Only of those that the caller may see; with `hidden` also of others, and the role is null.
    """
    # No condition on deleted_at: on a table that it has not analysed yet, Postgres would use an index for that.
    which, role = f"id IN ({placeholders(count, 2)})", role_in("todos.list_id")
    right = f"{may(VIEWER, 'list_id')} AND {IN_A_LIVING_LIST}"
    if hidden:
        return f"SELECT {TODO_COLUMNS}, owner_id, CASE WHEN {right} THEN {role} END FROM todos WHERE {which}"
    return f"SELECT {TODO_COLUMNS}, owner_id, {role} FROM todos WHERE {which} AND {right}"


def revision_etag(revision: int) -> str:
    return f'"{revision}"'


class SeenTodo(NamedTuple):
    """A to-do, the owner of its list, and the caller's role in it: None if the caller may not see it."""

    todo: Todo
    owner_id: str
    role: str | None


def visible_todo(seen: SeenTodo | None, deleted: bool | None, role: str) -> Todo:
    """The to-do, which must be outside the trash (False), in it (True) or anywhere (None), for a sufficient role.

    Raises NotFound or Forbidden.
    """
    if seen is None or seen.role is None or deleted not in (None, seen.todo.deleted_at is not None):
        raise NotFound("There is no such to-do." if not deleted else "There is no such to-do in the trash.")
    check_role(role, seen.role)
    return seen.todo


INDEXED_SORTS = ("order", "due")  # in which an index has to-dos; the others sort all that are selected
LIVING = "deleted_at IS NULL"
# Where no index has an order, the ids alone are sorted, which takes SQLite less time than whole rows. A page of the
# newest skips rows that are older than all of the last ones by position, which saves a third of the time.
NEWEST = (
    " AND {0} >= (SELECT min(value) FROM (SELECT {0} AS value FROM todos WHERE {{0}}"
    " ORDER BY position DESC, id DESC{1}) AS last)"
)


class EndOfList(msgspec.Struct):
    """Where to-dos of a list are added: the list, its owner, the caller's role, and the greatest order, if any."""

    list_id: str
    owner_id: str
    role: str
    order: float | None


class TodoQueries:
    """Reads what one user may see, through a database or inside a transaction: both have `fetch`.

    Every statement carries the caller's right. Rows that the caller may not see are not found; those that the
    caller may see, but not change, are Forbidden where a `role` asks for more.
    """

    def __init__(self, source: Source, user: User):
        self.source, self.user = source, user
        self.owners: dict[str, str] = {}  # of the lists that have been read
        self.knows_names = not user.name.startswith(LINK_NAME)  # the holder of a link does not learn who did what

    async def fetch(self, sql: str, *arguments: Any, **options: Any) -> list[tuple]:
        """Run a statement in which `$1` is the caller, and the arguments follow from `$2`."""
        return await self.source.fetch(sql, self.user.id, *arguments, **options)

    async def _select_todos(self, which: str, *arguments: Any, **options: Any) -> list[Todo]:
        """The to-dos that the end of a statement selects."""
        rows = await self.fetch(f"SELECT {TODO_COLUMNS}, owner_id FROM todos WHERE {which}", *arguments, **options)
        return [self._todo(row) for row in rows]

    def _todo(self, row: Sequence[Any]) -> Todo:
        """The to-do in a row of TODO_COLUMNS and its owner."""
        todo: Todo = TODOS.read(row)
        self.owners[todo.list] = row[TODOS.width]
        return todo

    async def _select_lists(self, which: str, *arguments: Any) -> list[TodoList]:
        """The lists that the end of a statement selects."""
        rows = await self.fetch(f"SELECT {SEEN_LIST_COLUMNS} FROM lists WHERE {which}", *arguments)
        return [LISTS.read(row) for row in rows]

    async def revision(self, list_id: str | None = None) -> int:
        """The revision of the newest change to a list, or to any list. Raises NotFound."""
        if list_id is None:
            return (await self.fetch("SELECT revision FROM users WHERE id = $1"))[0][0]
        return (await self.todo_list(list_id)).revision

    async def todo(self, todo_id: str, deleted: bool = False, role: str = VIEWER) -> Todo:
        """One to-do, outside the trash or in it. Raises NotFound or Forbidden."""
        rows = await self.source.fetch(select_todos(), self.user.id, todo_id)
        return visible_todo(SeenTodo(TODOS.read(rows[0]), *rows[0][-2:]) if rows else None, deleted, role)

    async def seen_todos(self, *ids: str) -> dict[str, SeenTodo]:
        """To-dos by their ids, in the trash or not, including those that the caller may not see."""
        padding = ids[:1] * (next(size for size in (1, 8, MAX_IN_GROUP) if size >= len(ids)) - len(ids))
        rows = await self.fetch(select_todos(len(ids) + len(padding), hidden=True), *ids, *padding)
        return {row[0]: SeenTodo(TODOS.read(row), *row[-2:]) for row in rows}

    async def subtasks(self, todo_id: str) -> list[Todo]:
        """The subtasks of a to-do at every depth, in the trash or not, by their order."""
        # The limit of the depth ends the search even in a cycle, which only a database changed by hand can have.
        below = (
            "WITH RECURSIVE below(id, depth) AS (SELECT id, 1 FROM todos WHERE parent_id = $2"
            " UNION ALL SELECT todos.id, depth + 1 FROM todos JOIN below ON todos.parent_id = below.id"
            f" WHERE depth < {2 * MAX_SUBTASK_DEPTH}) SELECT id FROM below"
        )
        return await self._select_todos(f"id IN ({below}) AND {may(VIEWER, 'list_id')} ORDER BY position, id", todo_id)

    def _conditions(self, which: TodoFilter, bound: Callable[[Any], str]) -> list[str]:
        """SQL conditions for a filter, which binds its arguments."""
        words: dict[Any, bool] = {"any": True, "none": False}
        filled = {
            "deleted_at": which.deleted,
            "completed_at": which.completed,
            "due": words.get(which.due),
            "start": words.get(which.start),
            "assignee_id": False if which.assignee == "none" else None,
            "parent_id": False if "none" in which.parent else None,
        }
        conditions = [f"{name} IS {'NOT NULL' if it else 'NULL'}" for name, it in filled.items() if it is not None]
        if isinstance(which.start, tuple):
            first, last, since, until = map(bound, due_range(*which.start, which.tz))
            timed, untimed = f"start_at >= {since} AND start_at < {until}", f"start_at BETWEEN {first} AND {last}"
            # A to-do without a start has started before every day.
            always = "start IS NULL OR " if which.start[0] == FIRST_DAY else ""
            conditions.append(f"({always}CASE WHEN length(start) > 10 THEN {timed} ELSE {untimed} END)")
        for name, values in (("todos.id", which.id), ("priority", which.priority), ("parent_id", which.parent)):
            if values and "none" not in values:
                conditions.append(f"{name} IN ({', '.join(map(bound, values))})")
        if which.assignee == "me":
            conditions.append("assignee_id = $1")
        elif which.assignee and which.assignee != "none":
            named = NAMED.format(bound(which.assignee), bound(fold_user_name(which.assignee)))
            known = "" if self.knows_names else " AND 1 = 0"
            conditions.append(f"assignee_id = (SELECT id FROM ({named}) AS named){known}")
        for tag in which.tag:
            conditions.append(f"tag_keys LIKE {bound(chr(10).join(['%', escape_like(tag), '%']))} ESCAPE '!'")
        for word in which.q:
            conditions.append(f"{SEARCHED.text} LIKE {bound('%' + escape_like(word) + '%')} ESCAPE '!'")
        return conditions

    async def todos(self, which: TodoFilter, page: Page | None = None, role: str = VIEWER) -> list[Todo]:
        """The to-dos that a filter selects: all of them, or one page and one more if there are more.

        Only those in lists in which the caller has at least this role.
        """
        arguments: list[Any] = []

        def bound(value: Any) -> str:
            arguments.append(value)
            return f"${len(arguments) + 1}"

        conditions = self._conditions(which, bound)
        column = SORT_COLUMNS[page.sort] if page else "position"
        direction = "DESC" if page and page.descending else "ASC"
        tail = f" LIMIT {page.limit + 1}" if page else ""
        ways = self._ways(which, role, bound)
        table = await self.source.narrowed(SEARCHED, which.q, bound) if page and which.q else SEARCHED.table
        if table != SEARCHED.table:  # the rows that a search found are sorted anyway
            ways = [("found", f"({' OR '.join(right for _, right, _ in ways)})", "")]
        by_zone = page is not None and page.sort == "due"
        order = f"ORDER BY {column} {direction}, id {direction}{tail}"
        is_slow = page and page.sort not in INDEXED_SORTS and table == SEARCHED.table
        newest = NEWEST.format(column, tail) if page and page.descending and conditions == [LIVING] else ""
        first = f"SELECT id FROM todos WHERE {{0}}{newest} {order}"
        part = f"id IN (SELECT id FROM ({first}) AS first)" if is_slow else "{0}"
        # One part for each way to a right, so that an index yields each of them in order.
        parts = [
            f"SELECT * FROM (SELECT {TODO_COLUMNS}, owner_id, {column} AS sort_key FROM {table}"
            f" WHERE {part.format(' AND '.join([right, *conditions, *narrowing]))} {order}) AS {name}_{number}{gate}"
            for name, right, gate in ways
            for number, narrowing in enumerate(self._narrowings(which, page, bound))
        ]
        merge = "" if by_zone or len(parts) == 1 else f" ORDER BY sort_key {direction}, id {direction}{tail}"
        sql = " UNION ALL ".join(parts) + merge
        rows = await self.fetch(sql, *arguments, **({} if page else {"seconds": BULK_SECONDS}))
        if page and by_zone:
            rows = sorted(
                rows, key=lambda row: (due_moment(row[-1], which.tz), row[-1], row[0]), reverse=page.descending
            )[: page.limit + 1]
        return [self._todo(row) async for row in in_batches(rows)]

    @staticmethod
    def _narrowings(which: TodoFilter, page: Page | None, bound: Callable[[Any], str]) -> list[list[str]]:
        """SQL conditions for days and the place of the page, one list for each part that an index has in order.

        To-dos that are due at a time and those that are due on a day are sorted by the same column, but
        the time zone decides in which order they come among each other.
        """
        timed, untimed, due = [TIMED], [UNTIMED], isinstance(which.due, tuple)
        if isinstance(which.due, tuple):
            first, last, since, until = map(bound, due_range(which.due[0], which.due[1], which.tz))
            timed += [f"due_at >= {since}", f"due_at < {until}"]
            untimed += [f"due_at BETWEEN {first} AND {last}"]
        if page is None or page.sort != "due":
            both = [f"({' AND '.join(timed)} OR {' AND '.join(untimed)})"] if due else []
            return [[*both, *TodoQueries._after(page, page.after, bound)] if page and page.after else both]
        if page.after is None:
            return [timed, untimed]
        return [
            [*part, *TodoQueries._after(page, (value, page.after[1]), bound)]
            for part, value in zip((timed, untimed), due_bounds(page.after[0], which.tz), strict=True)
        ]

    @staticmethod
    def _after(page: Page, after: tuple[Any, str], bound: Callable[[Any], str]) -> list[str]:
        """The SQL condition that rows come after one with this value and id."""
        comparison = "<" if page.descending else ">"
        return [f"({SORT_COLUMNS[page.sort]}, id) {comparison} ({', '.join(map(bound, after))})"]

    @staticmethod
    def _ways(which: TodoFilter, role: str, bound: Callable[[Any], str]) -> list[tuple[str, str, str]]:
        """Conditions that each select to-dos to which the caller has a right, without overlap.

        Each has a name, and a condition for it to select anything at all, which Postgres evaluates before
        it prepares a search among everybody's to-dos.
        """
        if which.list:
            here = f"id = {bound(which.list)} AND {may(role, 'id')} AND deleted_at IS NULL"
            return [("of_list", f"list_id = (SELECT id FROM lists WHERE {here})", "")]
        where, lists = f"NOT IN ({PUT_AWAY.format('' if which.deleted else ' OR archived = 1')})", MEMBERSHIPS
        if which.archived:
            where = "IN (SELECT id FROM lists WHERE owner_id = $1 AND deleted_at IS NULL AND archived = 1)"
        if which.archived or not which.deleted:
            lists += f" AND members.archived = {int(which.archived)}"
        own, lists = ("own", f"owner_id = $1 AND list_id {where}", ""), lists + editing(role)
        return [own] if role == OWNER else [own, ("others", f"list_id IN ({lists})", f" WHERE EXISTS ({lists})")]

    async def comments(self, todo_id: str) -> list[Comment]:
        """The comments on a to-do, in the trash or not, oldest first, with the authors' ids. Raises NotFound."""
        seen = f"SELECT id FROM todos WHERE id = $2 AND {may(VIEWER, 'list_id')} AND {IN_A_LIVING_LIST}"
        sql = f"SELECT {COMMENTS.columns} FROM comments WHERE todo_id IN ({seen}) ORDER BY id"
        comments = [COMMENTS.read(row) for row in await self.fetch(sql, todo_id)]
        if not comments:
            first_row(await self.fetch(select_todos(), todo_id), "There is no such to-do.")
        return comments

    async def own_comments(self, after: str, limit: int) -> list[tuple[str, Comment]]:
        """The comments on the caller's own to-dos by id, after one of them, each with the to-do's id."""
        own = "todo_id IN (SELECT id FROM todos WHERE owner_id = $1)"
        sql = f"SELECT {STORED_COMMENT_COLUMNS} FROM comments WHERE {own} AND id > $2 ORDER BY id LIMIT {limit}"
        return [(row[-1], COMMENTS.read(row)) for row in await self.fetch(sql, after)]

    async def own_todos(self, after: str, limit: int) -> list[Todo]:
        """The to-dos in the caller's own lists, in the trash or not, by id, after one of them."""
        return await self._select_todos(f"owner_id = $1 AND id > $2 ORDER BY id LIMIT {limit}", after)

    async def todo_list(self, list_id: str, deleted: bool | None = False, role: str = VIEWER) -> TodoList:
        """One list, outside the trash or, for its owner, in it or anywhere. Raises NotFound or Forbidden."""
        rows = await self.fetch(
            f"SELECT {SEEN_LIST_COLUMNS}, owner_id, {role_in('lists.id')} FROM lists"
            f" WHERE id = $2 AND {self._seen_lists(deleted)}",
            list_id,
        )
        row = first_row(rows, "There is no such list.")
        *_, self.owners[list_id], its_role = row
        check_role(role, its_role)
        return LISTS.read(row)

    @staticmethod
    def _seen_lists(deleted: bool | None) -> str:
        """SQL for the lists that the caller may see, outside the trash, in it or anywhere."""
        outside = f"{may(VIEWER, 'id')} AND deleted_at IS NULL"
        inside = f"{may(OWNER, 'id')} AND deleted_at IS NOT NULL"
        return f"({outside} OR {inside})" if deleted is None else inside if deleted else outside

    async def lists(self, deleted: bool = False, archived: bool | None = None) -> list[TodoList]:
        """The lists that the caller may see, or those in the caller's trash: the Inbox, then the others by order."""
        lists = await self._select_lists(f"{self._seen_lists(deleted)} ORDER BY inbox DESC, position, id")
        return await self.described([each for each in lists if archived in (None, each.archived)])

    async def tags(self) -> list[Tag]:
        """The tags of the active to-dos that the caller may see, sorted; spellings that differ in case count as one."""
        rows = await self.fetch(
            "SELECT tags, count(*) FROM todos WHERE deleted_at IS NULL AND completed_at IS NULL AND tags <> '[]'"
            f" AND list_id IN (SELECT id FROM lists WHERE {self._seen_lists(deleted=False)}"
            f" AND {arranged('archived')} = 0) GROUP BY tags ORDER BY tags"
        )
        names: dict[str, str] = {}
        counts = collections.Counter[str]()
        for tags, count in rows:
            for tag in msgspec.json.decode(tags, type=list[str]):
                counts[fold(tag)] += count
                names.setdefault(fold(tag), tag)
        return [Tag(names[key], counts[key]) for key in sorted(counts)]

    async def parents(self, after: str, limit: int) -> list[Parent]:
        """The to-dos with subtasks that the caller may see, sorted by id, from an id on, without the trash."""
        fields = "upper.id, upper.parent_id, upper.list_id, upper.title, upper.completed_at"
        rows = await self.fetch(
            f"SELECT {fields}, count(*), count(lower.completed_at) FROM todos AS upper"
            " JOIN todos AS lower ON lower.parent_id = upper.id"
            " WHERE upper.id > $2 AND upper.deleted_at IS NULL AND lower.deleted_at IS NULL"
            f" AND upper.list_id IN (SELECT id FROM lists WHERE {self._seen_lists(deleted=False)})"
            f" GROUP BY {fields} ORDER BY upper.id LIMIT {limit}",
            after,
        )
        return [
            Parent(id, parent, list_id, title, bool(at), *counts) for id, parent, list_id, title, at, *counts in rows
        ]

    async def completed_days(self, today: int, zone: str) -> dict[int, int]:
        """How many to-dos the user has completed on each day, by its ordinal; one that was opened again is not counted.

        Read from the log of the longest streak that is counted.
        """
        done = "CASE WHEN {}_image LIKE '%\"completed\":true%' THEN 1 ELSE 0 END"
        before, after = done.format("before"), done.format("after")
        since = "(SELECT revision FROM changes WHERE {0} AND at < $2 ORDER BY revision DESC LIMIT 1)"
        ways = ("owner_id = $1 AND user_id = $1", "user_id = $1 AND user_id <> owner_id")
        parts = " UNION ALL ".join(
            f"SELECT revision, todo_id, at, {after} FROM changes WHERE {way} AND todo_id IS NOT NULL"
            f" AND revision > coalesce({since.format(way)}, 0) AND {before} <> {after}"
            for way in ways
        )
        rows = await self.fetch(parts, start_of_day(today - MAX_STREAK, zone))
        days = {todo_id: day_of(at, zone) if is_done else None for _, todo_id, at, is_done in sorted(rows)}
        return collections.Counter(day for day in days.values() if day is not None)

    async def own_lists(self) -> list[TodoList]:
        """The caller's own lists except the Inbox, in their order, as they are stored."""
        return await self._select_lists("owner_id = $1 AND deleted_at IS NULL AND inbox = 0 ORDER BY position, id")

    async def described(self, lists: Sequence[TodoList]) -> list[TodoList]:
        """Lists with the number of their to-dos, their owner and the caller's role, without those lost meanwhile."""
        # Each count reads one index; to count for all lists in one query, Postgres would read whole tables.
        in_list = "FROM todos WHERE todos.list_id = lists.id AND todos.deleted_at IS NULL"
        only = [lists[0].id] if len(lists) == 1 else []
        rows = await self.fetch(
            f"SELECT id, (SELECT name FROM users WHERE users.id = owner_id), {role_in('lists.id')},"
            " EXISTS (SELECT 1 FROM members WHERE members.list_id = lists.id),"
            f" (SELECT count(*) {in_list}), (SELECT count(completed_at) {in_list})"
            f" FROM lists WHERE {may(VIEWER, 'id')}{' AND id = $2' if only else ''}",
            *only,
        )
        facts = {
            list_id: {"owner": owner, "role": role, "shared": bool(shared), "active": total - done, "completed": done}
            for list_id, owner, role, shared, total, done in rows
        }
        return [msgspec.structs.replace(each, **facts[each.id]) for each in lists if each.id in facts]

    async def kept(self, kind: type[Any], thing_id: str = "") -> list[Any]:
        """The caller's filters or templates, or the one of an id, by name."""
        _, table, rows, _ = KINDS_KEPT[kind]
        which = " AND id = $2" if thing_id else ""
        found = await self.fetch(
            f"SELECT {rows.columns} FROM {table} WHERE owner_id = $1{which}", *([thing_id] if thing_id else [])
        )
        return sorted(map(rows.read, found), key=lambda thing: (fold(thing.title), thing.id))

    async def kept_one(self, kind: type[Any], thing_id: str) -> Any:
        """One of the caller's filters or templates. Raises NotFound."""
        things = await self.kept(kind, thing_id)
        if not things:
            raise NotFound(f"There is no such {KINDS_KEPT[kind].name}.")
        return things[0]

    async def writable_lists(self) -> dict[str, str]:
        """The ids of the lists in which the caller may write, by folded title; of equal titles the caller's own.

        Without those in the caller's archive, where a new to-do would not be noticed.
        """
        order = "CASE WHEN owner_id = $1 THEN 1 ELSE 0 END, inbox, position DESC, id DESC"
        rows = await self.fetch(
            f"SELECT title, id FROM lists WHERE {may(EDITOR, 'id')} AND deleted_at IS NULL"
            f" AND {arranged('archived')} = 0 ORDER BY {order}"
        )
        return {fold(title): list_id for title, list_id in rows}

    async def inbox(self) -> str:
        """The id of the list that to-dos go to when none is named."""
        return (await self.fetch("SELECT id FROM lists WHERE owner_id = $1 AND inbox = 1"))[0][0]

    async def end_of_list(self, list_id: str | None) -> EndOfList | None:
        """The end of a list, or of the caller's default one if none is named; None if the caller may not see it.

        To-dos go to the Inbox if the caller may not write in the default list any more, or has put it away.
        """
        which, default = "id = $2", None if list_id else self.user.settings.default_list
        if not list_id:
            writable = f"id = $2 AND {may(EDITOR, 'id')} AND {arranged('archived')} = 0 OR " if default else ""
            which = f"({writable}owner_id = $1 AND inbox = 1)"
        rows = await self.fetch(
            f"SELECT id, owner_id, {role_in('lists.id')}, (SELECT max(position) FROM todos"
            " WHERE todos.list_id = lists.id AND todos.deleted_at IS NULL)"
            f" FROM lists WHERE {which} AND {self._seen_lists(deleted=False)}"
            f"{' ORDER BY CASE WHEN id = $2 THEN 0 ELSE 1 END' if default else ''}",
            *([list_id or default] if list_id or default else []),
        )
        return EndOfList(*rows[0]) if rows else None

    _IN_LIST = f"list_id = (SELECT id FROM lists WHERE id = $2 AND {may(VIEWER, 'id')}) AND deleted_at IS NULL"

    async def neighbours(self, list_id: str, order: float, limit: int) -> tuple[list[Todo], list[Todo]]:
        """The to-dos of a list below and above an order, nearest first."""
        parts = " UNION ALL ".join(
            f"SELECT * FROM (SELECT {TODO_COLUMNS} FROM todos WHERE {self._IN_LIST} AND position {comparison} $3"
            f" ORDER BY position {direction}, id {direction} LIMIT {limit}) AS {direction}_part"
            for comparison, direction in (("<", "DESC"), (">", "ASC"))
        )
        todos = [TODOS.read(row) for row in await self.fetch(parts, list_id, order)]
        todos.sort(key=lambda todo: (todo.order, todo.id))
        return [todo for todo in reversed(todos) if todo.order < order], [todo for todo in todos if todo.order > order]

    async def far_out(self, list_id: str, sign: int) -> tuple[list[Todo], float]:
        """The to-dos of a list with an order nearer to one limit than to 0, and the next order, or 0 without one.

        With a sign of 1 those above, in their sequence, and with -1 those below, in reverse.
        """
        here, direction = f"{self._IN_LIST} AND position * {sign}", "ASC" if sign > 0 else "DESC"
        order = f"ORDER BY position {direction}, id {direction}"
        todos = await self._select_todos(f"{here} > $3 {order}", list_id, MAX_ORDER / 2, seconds=BULK_SECONDS)
        rest = await self.fetch(f"SELECT max(position * {sign}) FROM todos WHERE {here} <= $3", list_id, MAX_ORDER / 2)
        return todos, sign * (rest[0][0] or 0.0)

    async def changes(self, since: int, list_id: str | None, limit: int) -> list[Change]:
        """Changes after a revision, oldest first, to one list or to all."""
        ways = ["list_id = $3", "from_list_id = $3"]
        if not list_id:
            ways = [f"list_id IN ({MEMBERSHIPS})", f"from_list_id IN ({MEMBERSHIPS})"]
        ways = [f"{ways[0]} AND {SEES_AFTER}", f"{ways[1]} AND from_list_id <> list_id AND {SEES_BEFORE}"]
        if not list_id:
            ways += ["owner_id = $1", "from_owner_id = $1"]
        parts = " UNION ".join(
            f"SELECT revision FROM (SELECT revision FROM changes WHERE {way} AND {OWN_IF_ARRANGED} AND revision > $2"
            f" ORDER BY revision LIMIT {limit}) AS part{number}"
            for number, way in enumerate(ways)
        )
        return await self._changes(
            f"revision IN ({parts}) AND ({SEES_AFTER} OR {SEES_BEFORE}) ORDER BY revision LIMIT {limit}",
            *((since, list_id) if list_id else (since,)),
        )

    async def _changes(self, which: str, *arguments: Any) -> list[Change]:
        """The changes that the end of a statement selects, with the names of users."""
        rows = await self.fetch(f"SELECT {SEEN_CHANGE} FROM changes WHERE {which}", *arguments)
        changes: list[Change] = [CHANGES.read(row) for row in rows]
        images = [bytes(side) for change in changes for side in (change.before, change.after)]
        names = await self.names({user_id.decode() for side in images for _, user_id in USER_IN_IMAGE.findall(side)})
        if self.knows_names and not names:
            return changes

        def named(match: re.Match[bytes]) -> bytes:
            return match[1] + msgspec.json.encode(names.get(match[2].decode()))

        shown = []
        for change in changes:
            before, after = (
                msgspec.Raw(USER_IN_IMAGE.sub(named, bytes(side))) for side in (change.before, change.after)
            )
            user = change.user if self.knows_names else None
            shown.append(msgspec.structs.replace(change, user=user, before=before, after=after))
        return shown

    async def names(self, ids: Collection[str | None]) -> dict[str | None, str]:
        """The names of users by their ids; none for the holder of a link."""
        known = {*ids} - {None} if self.knows_names else set()
        return {row[0]: row[1] for row in await fetch_by_ids(self.source, NAMES, known)}

    async def check_revision(self, revision: int) -> None:
        """Raise Gone for a revision that this database never had: it was restored from a backup, or made again."""
        lost = (
            "SELECT 1 FROM revision_gaps WHERE after_revision < $1 AND before_revision >= $1"
            " UNION ALL SELECT 1 FROM counters WHERE name = 'revision' AND value < $1"
        )
        if await self.source.fetch(lost, revision):
            raise Gone(
                "The database was restored from a backup, or made again, and does not have what you know."
                " Read everything again from the beginning."
            )

    async def history(self, todo_id: str, before: int = 2**63 - 1, limit: int = 1000) -> list[Change]:
        """The changes to a to-do before a revision that the caller may see, newest first. Raises NotFound."""
        which = f"todo_id = $2 AND ({SEES_AFTER} OR {SEES_BEFORE}) AND revision < $3"
        changes = await self._changes(f"{which} ORDER BY revision DESC LIMIT {limit}", todo_id, before)
        if not changes:
            first_row(await self.fetch(select_todos(), todo_id), "There is no such to-do.")
        return changes

    async def members(self, list_id: str) -> list[Member]:
        """The users who may see a list, its owner first, without the holders of links. Raises NotFound."""
        await self.todo_list(list_id)
        return [Member(name, role, timestamp(since)) for _, name, role, since in await self._members(list_id)]

    async def _members(self, list_id: str) -> list[tuple]:
        seen = f"lists.id = $2 AND {may(VIEWER, 'lists.id')}"
        return await self.fetch(
            f"SELECT users.id, name, '{OWNER}', lists.created_at FROM lists JOIN users ON users.id = owner_id"
            f" WHERE {seen} UNION ALL SELECT id, name, role, created_at FROM"
            " (SELECT users.id, users.name, members.role, members.created_at"
            " FROM members JOIN users ON users.id = members.user_id JOIN lists ON lists.id = members.list_id"
            f" WHERE {seen} AND users.name NOT LIKE '{LINK_NAME}%' ORDER BY users.name) AS others",
            list_id,
        )

    async def readers(self, list_id: str) -> dict[str, str]:
        """The ids of the users who may see a list, by name; empty if the caller may not see it."""
        return {name: user_id for user_id, name, *_ in await self._members(list_id)}

    async def last_batch(self) -> str:
        """The caller's newest batch that is neither an undo, nor undone, nor passed over. Raises Conflict."""
        newest = "ORDER BY revision DESC LIMIT 1"
        undoable = (
            f"undoes IS NULL AND ({may(EDITOR, 'list_id')} OR action = 'arrange' AND {may(VIEWER, 'list_id')})"
            " AND action NOT IN ('purge', 'share')"
            " AND NOT EXISTS (SELECT 1 FROM users"
            " WHERE users.id = $1 AND changes.revision BETWEEN passed_from AND passed_to)"
            " AND batch NOT IN (SELECT undoes FROM changes WHERE undoes IS NOT NULL)"
        )
        # Each part is read in the order of an index: changes in the caller's own lists, and in other users' lists.
        parts = " UNION ALL ".join(
            f"SELECT * FROM (SELECT revision, batch FROM changes WHERE {way} AND {undoable} {newest}) AS {name}"
            for name, way in (("own", "owner_id = $1 AND user_id = $1"), ("others", OF_OTHERS))
        )
        rows = await self.fetch(f"SELECT batch FROM ({parts}) AS parts {newest}")
        if not rows:
            raise Conflict("There is nothing to undo.")
        return rows[0][0]

    async def expired(self, before: str, limit: int) -> tuple[list[Todo], list[TodoList]]:
        """The to-dos, up to a limit, and all lists that were put in the trash before a time (RFC 3339 UTC)."""
        old, moment = "owner_id = $1 AND deleted_at < $2", milliseconds(before)
        return await self._select_todos(f"{old} LIMIT {limit}", moment), await self._select_lists(old, moment)

    async def changeable_todos(self, ids: Iterable[str], role: str = EDITOR) -> dict[str, Todo]:
        """Those of some to-dos that the caller may change, in the trash or not, by id."""
        sql = f"SELECT {TODO_COLUMNS}, owner_id FROM todos WHERE {may(role, 'list_id')} AND id IN ({{}})"
        return {row[0]: self._todo(row) for row in await fetch_by_ids(self.source, sql, {*ids}, self.user.id)}

    async def batch_todos(self, changes: Sequence[Change]) -> dict[str, Todo]:
        """The to-dos of changes that the caller may change, as they are now, in the trash or not, by id."""
        from_lists = "SELECT from_list_id FROM changes WHERE revision IN ({})"
        owners = f"SELECT id, owner_id FROM lists WHERE {may(EDITOR, 'id')} AND id IN ({from_lists})"
        revisions = [change.revision for change in changes]
        self.owners.update(await fetch_by_ids(self.source, owners, revisions, self.user.id))
        return await self.changeable_todos({change.todo for change in changes if change.todo})

    async def changed_by(self, batch: str, ids: Sequence[str]) -> set[str]:
        """Those of some to-dos that a batch has changed."""
        sql = "SELECT todo_id FROM changes WHERE batch = $1 AND todo_id IN"
        parts = [await self.source.fetch(f"{sql} ({places})", batch, *part) for places, part in in_parts(ids, 2)]
        return {todo_id for rows in parts for (todo_id,) in rows}

    async def kept_answer(self, key: str) -> tuple | None:
        """The fingerprint and the answer of the request with an Idempotency-Key; None if there was none."""
        kept = "SELECT fingerprint, answer FROM idempotency_keys WHERE user_id = $1 AND key = $2"
        return next(iter(await self.fetch(kept, key)), None)

    async def batch_revisions(self, batch: str) -> tuple[list[tuple[int, str | None]], bool]:
        """Revision and to-do of a batch's changes, newest first, and whether it is itself an undo. Raises NotFound."""
        rows = await self.fetch(
            "SELECT revision, todo_id, undoes FROM changes WHERE user_id = $1 AND batch = $2 ORDER BY revision DESC",
            batch,
            seconds=BULK_SECONDS,
        )
        is_undo = first_row(rows, "There is no such batch of yours.")[-1] is not None
        return [row[:2] for row in rows], is_undo

    async def changes_to_undo(self, revisions: Sequence[int]) -> list[Change]:
        """The caller's changes with these revisions, newest first."""
        sql = f"SELECT {CHANGE_COLUMNS} FROM changes WHERE user_id = $1 AND revision IN ({{}})"
        changes = map(CHANGES.read, await fetch_by_ids(self.source, sql, revisions, self.user.id))
        return sorted(changes, key=operator.attrgetter("revision"), reverse=True)


SESSION_IDLE = 7 * DAY
SESSION_LIFETIME = 30 * DAY
INVITE_LIFETIME = 7 * DAY
LINK_LIFETIME = 100 * 365 * DAY  # until it is revoked
MAX_CREDENTIALS = 100  # of a kind for a user, and of links to a list
MAX_MEMBERS = 1000  # of a list
NOTE_USE = 300_000  # milliseconds; a use so soon after the last one is not stored


class Credential(NamedTuple):
    """A secret that stands for a user: a session, an API token, a list's link or an invitation.

    Times in epoch milliseconds. The secret itself, 256 bits, is shown once and only its hash is stored.
    """

    id: str
    kind: str
    name: str
    read_only: bool
    created_at: int
    used_at: int
    expires_at: int
    user: User

    def is_over(self, now: int) -> bool:
        """Whether it has expired, at a time in epoch milliseconds."""
        idle = self.kind == "session" and now >= self.used_at + SESSION_IDLE
        return idle or now >= self.expires_at


def hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


STORED_CREDENTIAL_COLUMNS = "id, kind, name, read_only, created_at, used_at, expires_at, user_id, list_id, secret_hash"
CREDENTIAL_COLUMNS = (
    "credentials.id, kind, credentials.name, read_only, credentials.created_at, used_at, expires_at,"
    " users.id, users.name, users.settings"
)


def user_from_row(row: Sequence[str]) -> User:
    """The user in a row that begins with their id, name and settings."""
    return User(row[0], row[1], msgspec.json.decode(row[2], type=Settings))


def credential_from_row(row: Sequence[Any]) -> Credential:
    """The credential in a row of CREDENTIAL_COLUMNS."""
    return Credential._make([*row[:3], bool(row[3]), *row[4:7], user_from_row(row[7:])])


def new_credential(kind: str, user: User, lifetime: int, name: str = "", read_only: bool = False) -> Credential:
    """A credential that begins now, with a lifetime in milliseconds."""
    now = now_milliseconds()
    return Credential(uuid7(), kind, name, read_only, now, now, now + lifetime, user)


async def insert_credential(transaction: Transaction, credential: Credential, list_id: str | None = None) -> str:
    """Store a credential and return its secret, which cannot be read again."""
    secret = f"todo_{credential.kind}_{secrets.token_urlsafe(32)}"
    await transaction.fetch(
        insert("credentials", STORED_CREDENTIAL_COLUMNS),
        *(*credential[:3], int(credential.read_only), *credential[4:7], credential.user.id, list_id),
        hash_secret(secret),
    )
    return secret


async def lock_revision(transaction: Transaction) -> int:
    """Wait until no other write is under way, and return the newest revision.

    Every write begins with this. On Postgres it makes the writers of all processes take turns, as those on
    SQLite do anyway, and since all take this lock first, they cannot wait for each other in a ring.
    It is held until the commit, for the other writes of the group.
    """
    lock = "UPDATE counters SET value = value WHERE name = 'revision' RETURNING value"
    return (await transaction.fetch(lock))[0][0]


async def run_checked(transaction: Transaction, take: Take) -> list[Any]:
    """Carry out operations in one transaction: each checks first, and raises a TodoError only before it writes."""
    answers: list[Any] = []
    await lock_revision(transaction)
    while new := (await take())[len(answers) :]:
        for operation in new:
            try:
                answers.append(await operation(transaction))
            except TodoError as error:
                answers.append(error)
    return answers


async def raise_revision(transaction: Transaction, unless_unused: bool = False) -> int:
    """Raise the revision above all that were ever issued, to the time in microseconds, keep the gap, and return it.

    The database may be an older copy put in place of the real one, and the revisions after the
    copy's would be issued again for other changes. `check_revision` refuses those in the gap.
    """
    counted = "SELECT value FROM counters WHERE name = 'revision' UNION ALL SELECT max(revision) FROM changes"
    revision = max(row[0] or 0 for row in await transaction.fetch(counted))
    if unless_unused and not revision:
        return 0
    raised: int = max(time.time_ns() // 1000, revision + 1_000_000)
    # Nothing was written since it was raised the last time, so this is one gap.
    extend = "UPDATE revision_gaps SET before_revision = $2 WHERE before_revision = $1 RETURNING after_revision"
    if not await transaction.fetch(extend, revision, raised):
        await transaction.fetch(insert("revision_gaps", "after_revision, before_revision"), revision, raised)
    await transaction.fetch(SET_COUNTER, "revision", raised)
    return raised


async def carry_out(transaction: Transaction, operation: Callable | str, *arguments: Any) -> Any:
    """Run `operation(transaction, *arguments)`, or one statement, after locking the revision."""
    await lock_revision(transaction)
    if isinstance(operation, str):
        return await transaction.fetch(operation, *arguments)
    return await operation(transaction, *arguments)


async def write_locked(database: Database, operation: Callable | str, *arguments: Any) -> Any:
    """Run `operation(transaction, *arguments)`, or one statement, in a transaction that has locked the revision."""
    return await database.transaction(lambda transaction: carry_out(transaction, operation, *arguments))


async def remove(transaction: Transaction, *conditions: str, arguments: Sequence[Any]) -> None:
    """Delete the rows of tables, each named with a condition."""
    for condition in conditions:
        await transaction.fetch(f"DELETE FROM {condition}", *arguments, seconds=BULK_SECONDS)


async def purge_todos(transaction: Transaction, which: str, *arguments: Any) -> None:
    """Remove the to-dos that a condition selects with their history for good."""
    purged = f"SELECT id FROM todos WHERE {which}"
    await transaction.fetch(forget_answers(purged), *arguments, seconds=BULK_SECONDS)
    # The history of a to-do goes with the to-do, even if it was in other lists before.
    its = (f"{table} WHERE todo_id IN ({purged})" for table in ("changes", "comments"))
    await remove(transaction, *its, f"todos WHERE {which}", arguments=arguments)


PURGED_AT_ONCE = 500  # rows that one of many transactions removes, while other writes wait


async def purge_in_parts(database: Database, which: str, *arguments: Any) -> None:
    """Remove the to-dos that a condition selects with their history for good, in short transactions."""
    beyond, last = f"{which} AND id > ${len(arguments) + 1}", ""
    some = f"SELECT id FROM todos WHERE {beyond} ORDER BY id LIMIT {PURGED_AT_ONCE}"
    part = f"{beyond} AND id <= ${len(arguments) + 2}"
    while rows := await database.fetch(some, *arguments, last):
        first, last = last, rows[-1][0]
        await write_locked(database, purge_todos, part, *arguments, first, last)


def image(thing: Todo | TodoList | None) -> str:
    return msgspec.json.encode(thing).decode()


class WriteResult(NamedTuple, Generic[Value]):
    """The operation's result, its batch (None if nothing changed), and what the commit wrote."""

    result: Value
    batch: str | None
    revision: int = 0  # of its newest change; 0 if nothing was written
    changes_access: bool = False


class Repeat(NamedTuple):
    """An Idempotency-Key, a fingerprint of its request, and the type of the answer."""

    key: str
    fingerprint: str
    answer_type: Any


class Missing(Exception):
    """A decision needs a query that has not been loaded. The query is loaded, and the decision made again."""

    def __init__(self, query: Callable, user: User, *arguments: Any):
        super().__init__()
        self.need = query, user, *arguments


WRITES_IN_LOOP = 8  # decided before other requests get a turn


class ShortWrite(NamedTuple):
    """A write that is decided from loaded rows."""

    needs: Sequence[tuple]  # the queries of TodoQueries that are known beforehand, each with a user and an argument
    decide: "Callable[[Loaded], Any]"


class Loaded:
    """The rows from which the writes of one transaction are decided, as changed by the earlier decisions.

    Writes of a group mostly go to the same list, and often to the same to-dos. Their rows are read for all of
    them, and each is written once: a group of 32 takes some ten statements. No other writer is active meanwhile,
    and a write that changes rights is alone in its transaction.
    """

    def __init__(self, transaction: Transaction, revision: int):
        self.transaction = transaction
        self.revision = revision  # the newest of all
        self._users: set[str] = set()  # that have asked for to-dos
        self.answers: dict[Callable, dict[tuple, Any]] = collections.defaultdict(dict)  # of queries, by arguments
        self._changed: dict[str, tuple[Todo | None, SeenTodo, str]] = {}  # to-dos: before, now, and by whom
        self.rows: dict[str, list[tuple]] = collections.defaultdict(list)  # to be inserted, by statement
        self.revisions: dict[str, dict[str, int | str]] = collections.defaultdict(dict)  # and said: by statement, key

    def answer(self, query: Callable, user: User, *arguments: Any) -> Any:
        """The answer of a query. Raises Missing if it has not been loaded."""
        try:
            return self.answers[query][user.id, *arguments]
        except KeyError:
            raise Missing(query, user, *arguments) from None

    async def load(self, query: Callable, user: User, *arguments: Any) -> None:
        """Ask a query, after saving everything that was decided."""
        await self.save()
        await self._ask(query, user, *arguments)

    async def _ask(self, query: Callable, user: User, *arguments: Any) -> None:
        answer, answers = await query(TodoQueries(self.transaction, user), *arguments), self.answers[query]
        if query is TodoQueries.seen_todos:
            self._users.add(user.id)
            answers.update({(user.id, todo_id): answer.get(todo_id) for todo_id in arguments})
        else:
            answers[user.id, *arguments] = answer

    async def load_for(self, writes: Sequence[ShortWrite]) -> None:
        """Load what writes declare that they need, with one statement for all to-dos of a user."""
        ids: dict[User, list[str]] = {}
        for query, user, argument in dict.fromkeys(need for write in writes for need in write.needs):
            if (user.id, argument) in self.answers[query]:
                continue
            if query is not TodoQueries.seen_todos:
                await self.load(query, user, argument)
            elif argument not in self._changed:
                ids.setdefault(user, []).append(argument)
        for user, its_ids in ids.items():
            await self._ask(TodoQueries.seen_todos, user, *its_ids)

    async def settle(self, decide: Callable[..., Any], *arguments: Any) -> Any:
        """Return `decide(*arguments)`, loading the queries that it misses."""
        while True:
            try:
                if self.transaction.is_shared:
                    return decide(*arguments)
                return await self.transaction.compute(decide, *arguments)
            except Missing as missing:
                need = missing.need
            await self.load(*need)

    def add(self, batch: "TodoBatch") -> None:
        """Add the decisions of a write."""
        user_id, self.revision = batch.user.id, batch.revision
        for before, after in batch.todos:
            owner_id = batch.owner(after.list)
            seen = SeenTodo(after, owner_id, OWNER if owner_id == user_id else EDITOR)
            first = self._changed[after.id][0] if after.id in self._changed else before
            self._changed[after.id] = first, seen, user_id
            for other_id in self._users:
                self.answers[TodoQueries.seen_todos].pop((other_id, after.id), None)
            self.answers[TodoQueries.seen_todos][user_id, after.id] = seen
            self._note_place(before, after)
        self.rows[SAVE_CHANGE].extend(batch.log)
        if batch.todos:
            self.answers.pop(TodoQueries.subtasks, None)
        for todo_id, comment, said in batch.comments:
            self.rows[SAVE_COMMENT].append((*COMMENTS.row(comment), todo_id))
            self.revisions[SET_SAID][todo_id] = said
            self.answers.pop(TodoQueries.comments, None)
        for list_id, revision in batch.touched.items():
            self.revisions[SET_LIST_REVISION][list_id] = revision
            self.revisions[SET_READERS_REVISION][list_id] = batch.revision
        self.revisions[SET_COUNTER]["revision"] = batch.revision

    def _note_place(self, before: Todo | None, after: Todo) -> None:
        """After a to-do was placed, correct the ends of lists and forget the neighbours."""
        ends = self.answers[TodoQueries.end_of_list]
        if before and (before.list, before.order, before.deleted_at) == (after.list, after.order, after.deleted_at):
            return
        self.answers.pop(TodoQueries.neighbours, None)
        self.answers.pop(TodoQueries.far_out, None)
        if before:
            ends.clear()
        for end in ends.values():
            if end and end.list_id == after.list:
                end.order = after.order if end.order is None else max(end.order, after.order)

    async def save(self) -> None:
        """Write all decisions, with one `execute_many` for each statement."""
        if not self.rows:
            return
        rows: dict[str, list[tuple]] = {}
        for change in self._changed.values():
            sql, row = self._statement(*change)
            rows.setdefault(sql, []).append(row)
        rows |= self.rows | {sql: [*values.items()] for sql, values in self.revisions.items()}
        for waiting in (self._changed, self.rows, self.revisions):
            waiting.clear()
        for sql, its_rows in rows.items():
            await self.transaction.execute_many(sql, its_rows)

    @staticmethod
    def _statement(before: Todo | None, seen: SeenTodo, user_id: str) -> tuple[str, tuple]:
        """The statement that writes a to-do; of one that existed, only the fields that changed."""
        after = seen.todo
        if before is None:
            return INSERT_TODO, row_from_todo(after, seen.owner_id)
        differences = map(operator.ne, STORED_FIELDS(before), STORED_FIELDS(after))
        changed = tuple(itertools.compress(TODOS.makers_of, differences))
        sql, make_row = update_todo(changed)
        row = (after.id, user_id, *make_row(after))
        return sql, (*row, seen.owner_id) if "list" in changed else row


class TodoBatch:
    """One write: to-dos before and after it, and its changes in the log. It only decides; `Loaded` writes.

    Since writers take turns, revisions have neither gaps nor doubles.
    """

    def __init__(self, loaded: Loaded, user: User):
        self.loaded, self.user = loaded, user
        self.id, self._now = uuid7(), now_milliseconds()
        self.at, self.revision = timestamp(self._now), loaded.revision
        self.undoes: str | None = None  # the batch that this one undoes
        self.owners: dict[str, str] = {}  # of the lists that have been read
        self.log: list[tuple] = []  # rows of the change log
        self.todos: list[tuple[Todo | None, Todo]] = []
        self.saved: dict[str, Todo] = {}  # the newest states of to-dos, by id
        self.comments: list[tuple[str, Comment, str]] = []  # the to-do, a comment, and the folded text of all
        self.touched: dict[str, int] = {}  # the newest revision of lists, by list
        self.inbox = ""  # the list under which a change of a filter or template is logged
        self.ends: dict[str, float] = {}  # the greatest orders in the lists to which this adds to-dos

    async def settle(self, decide: Callable[..., Any], *arguments: Any) -> Any:
        """Return `decide(self, *arguments)`, which is quick, loading the queries that it misses.

        When it misses one, what it has saved is dropped, since it starts over.
        """
        kept = [(rows, len(rows)) for rows in (self.log, self.todos, self.comments)]
        revision, touched, ends = self.revision, {**self.touched}, {**self.ends}
        while True:
            try:
                return decide(self, *arguments)
            except Missing as missing:
                need = missing.need
            for rows, length in kept:
                del rows[length:]
            self.revision, self.touched, self.ends = revision, {**touched}, {**ends}
            self.saved = {after.id: after for _, after in self.todos}
            await self.loaded.load(*need)

    def ask(self, query: Callable, *arguments: Any) -> Any:
        """The answer of a query of TodoQueries, as changed by earlier decisions. Raises Missing."""
        return self.loaded.answer(query, self.user, *arguments)

    def check_size(self, count: int) -> None:
        """Raise RepeatAlone if the write changes many rows while others wait for it."""
        if count > 200 and self.loaded.transaction.is_shared:
            raise RepeatAlone

    def seen_todo(self, todo_id: str) -> SeenTodo | None:
        """A to-do, in the trash or not, even if the caller may not see it; None if there is none."""
        seen: SeenTodo | None = self.ask(TodoQueries.seen_todos, todo_id)
        if seen:
            self.owners[seen.todo.list] = seen.owner_id
        return seen

    def todo(self, todo_id: str, deleted: bool | None = False, if_match: str | None = None) -> Todo:
        """A to-do that the caller may change, outside the trash, in it or anywhere.

        Raises NotFound, Forbidden, or PreconditionFailed unless it has the ETag in `if_match`.
        """
        todo = visible_todo(self.seen_todo(todo_id), deleted, EDITOR)
        check_precondition(if_match, revision_etag(todo.revision))
        return todo

    def now(self, todo_id: str) -> Todo | None:
        """A to-do outside the trash as this write has left it; None if the caller may not see it."""
        todo = self.saved.get(todo_id)
        if todo is None and (seen := self.seen_todo(todo_id)) and seen.role:
            todo = seen.todo
        return todo if todo and not todo.deleted_at else None

    def subtasks(self, todo_id: str) -> list[Todo]:
        """The subtasks of a to-do at every depth, in the trash or not, as this write has left them, by their order."""
        todos = {each.id: each for each in self.ask(TodoQueries.subtasks, todo_id)} | self.saved
        ids = below = {todo_id}
        while below := {each.id for each in todos.values() if each.parent in below} - ids:
            ids = ids | below
        return sorted((todos[each] for each in ids - {todo_id}), key=lambda todo: (todo.order, todo.id))

    def parent_fault(self, todo_id: str, parent_id: str, list_id: str, is_new: bool = False) -> str | None:
        """Why a to-do cannot be a subtask of another, or None if it can."""
        depths, place, above = {todo_id: 0}, 1, self.now(parent_id)
        if above is None or above.list != list_id:
            return "names no to-do outside the trash in the same list"
        while above and place <= 2 * MAX_SUBTASK_DEPTH:
            if above.id == todo_id:
                return "is the to-do itself or one of its subtasks"
            place, above = place + 1, self.now(above.parent) if above.parent else None
        # By repeated passes, since a subtask can come before its parent in the order.
        children = [] if is_new else self.subtasks(todo_id)
        for _ in range(MAX_SUBTASK_DEPTH if children else 0):
            depths |= {each.id: depths[each.parent] + 1 for each in children if each.parent in depths}
        if place + max(depths.values()) > MAX_SUBTASK_DEPTH:
            return f"is too deep: subtasks go down to depth {MAX_SUBTASK_DEPTH}"
        return None

    def owner(self, list_id: str) -> str:
        """The owner of a list. One that was not read is being made or purged, by its owner."""
        return self.owners.get(list_id, self.user.id)

    def earlier_answer(self, repeat: Repeat | None) -> WriteResult | None:
        """The answer to the same request before. Raises Invalid if it was another request, or Gone if it was purged."""
        kept = repeat and self.loaded.answer(TodoQueries.kept_answer, self.user, repeat.key)
        if not (repeat and kept):
            return None
        fingerprint, answer = kept
        if fingerprint != repeat.fingerprint:
            raise invalid("Idempotency-Key", "was used for another request: use a new one for this")
        if not answer:
            raise Gone("This request was carried out before, and what it was about has been removed for good.")
        result, batch_id = msgspec.json.decode(answer, type=tuple[msgspec.Raw, str | None])
        return WriteResult(msgspec.json.decode(result, type=repeat.answer_type), batch_id)

    def record(self, before: Any, after: Any, action: str | None = None) -> Any:
        """Append a change of a to-do or list to the log, and return its new state with the revision."""
        self.revision += 1
        if after:
            after = msgspec.structs.replace(after, revision=self.revision)
        if action is None:
            is_toggled = before and bool(before.deleted_at) != bool(after.deleted_at)
            action = ("delete" if after.deleted_at else "restore") if is_toggled else "update" if before else "create"
        thing = after or before
        list_id, todo_id = (thing.list, thing.id) if isinstance(thing, Todo) else (self.inbox or thing.id, None)
        from_list = before.list if isinstance(before, Todo) else list_id
        owner_id = self.owner(list_id)
        from_owner_id = owner_id if from_list == list_id else self.owner(from_list)
        self.touched[from_list] = self.touched[list_id] = self.revision
        self.log.append(
            (
                *(self.revision, self.id, self._now, self.user.id, list_id, todo_id, action),
                *(image(before if action != "purge" else None), image(after), self.undoes, owner_id, from_list),
                from_owner_id if from_owner_id != owner_id else None,
            )
        )
        return after

    def save_todo(self, before: Todo | None, after: Todo, action: str | None = None) -> Todo:
        """Have a to-do written, unless nothing has changed. Returns it with its new revision."""
        if after == before:
            return before
        is_assigned = after.assignee and (
            before is None or (after.list, after.assignee) != (before.list, before.assignee)
        )
        # It was moved, or undone after the user left the list.
        if is_assigned and after.assignee not in self.ask(TodoQueries.readers, after.list).values():
            after = msgspec.structs.replace(after, assignee=None)
        # An undo can bring back a parent that has since been moved, removed, or put below this.
        is_put = before and after.parent != before.parent and not after.deleted_at
        if is_put and after.parent and self.parent_fault(after.id, after.parent, after.list):
            after = msgspec.structs.replace(after, parent=None)
        after = self.record(before, after, action)
        self.todos.append((before, after))
        self.saved[after.id] = after
        if after.order > self.ends.get(after.list, after.order):
            self.ends[after.list] = after.order
        return after

    def save_comment(self, todo: Todo, before: Comment | None, after: Comment) -> Todo:
        """Have a comment written, as a change of its to-do. Returns the to-do with its new revision."""
        its = {each.id: each for each in self.ask(TodoQueries.comments, todo.id)} | {after.id: after}
        texts = [fold(each.text) for each in its.values() if not each.deleted_at]
        past = (
            "deleted" if after.deleted_at else "added" if not before else "restored" if before.deleted_at else "edited"
        )
        now = changed(todo, self.at, comments=len(texts), comment=after)
        saved = self.record(msgspec.structs.replace(todo, comment=before or UNSET), now, f"comment-{past}")
        self.saved[todo.id] = msgspec.structs.replace(saved, comment=UNSET)
        self.todos.append((todo, self.saved[todo.id]))
        self.comments.append((todo.id, after, "\n".join(texts)))
        return self.saved[todo.id]

    def written(self, result: Any, repeat: Repeat | None) -> WriteResult:
        """Add everything to `Loaded`, and return the result of the write."""
        written: WriteResult = WriteResult(result, None)
        if self.log:
            written = WriteResult(result, self.id, self.revision)
            self.loaded.add(self)
        if repeat:
            answer = msgspec.json.encode((result, written.batch)).decode()
            about = written.batch or getattr(result, "id", "")  # so it is found when a to-do in it is purged
            row = self.user.id, repeat.key, repeat.fingerprint, answer, about, self._now
            self.loaded.rows[SAVE_ANSWER].append(row)
            self.loaded.answers[TodoQueries.kept_answer][row[:2]] = row[2:4]
        return written


class LongBatch(TodoBatch):
    """A write of many rows, or of rights. It is alone in its transaction, and reads and removes through it."""

    def __init__(self, loaded: Loaded, user: User):
        super().__init__(loaded, user)
        self.source, self.queries = loaded.transaction, TodoQueries(loaded.transaction, user)
        self.fetch, self.owners = self.queries.fetch, self.queries.owners
        self._lists: list[TodoList] = []
        self._toggled_lists: list[str] = []  # that were moved to the trash or restored
        self._purged_todos: list[str] = []
        self.concerned: list[str] = []  # users who gained or lost a right
        self._purges_list = self._arranges = False

    def save_list(self, before: TodoList | None, after: TodoList) -> TodoList:
        """Have a list written, unless nothing has changed. Returns it with its new revision."""
        if after == before:
            return before
        if before and before.deleted_at != after.deleted_at:
            self._toggled_lists.append(after.id)
        arranged = {name: getattr(after, name) for name in ("updated_at", *ARRANGED)}
        is_arranged = before and msgspec.structs.replace(before, **arranged) == after
        touched = {**self.touched}
        after = self.record(before, after, "arrange" if is_arranged else None)
        if is_arranged and self.owner(after.id) != self.user.id:
            self.touched, self._arranges = touched, True
        self._lists.append(after)
        return after

    async def keep(self, kind: type[Any], before: Kept | None, after: Kept | None) -> Any:
        """Write a filter or template, or remove it. Returns it with its new revision. Raises Conflict."""
        name, table, rows, _ = KINDS_KEPT[kind]
        if after == before:
            return after
        if before is None and len(await self.queries.kept(kind)) >= MAX_KEPT:
            raise Conflict(f"There are {MAX_KEPT} {table} already: delete one first.")
        self.inbox = await self.queries.inbox()
        after, self.inbox = self.record(before, after, name), ""
        if before:
            await remove(self.source, f"{table} WHERE owner_id = $1 AND id = $2", arguments=(self.user.id, before.id))
        if after:
            await self.source.fetch(insert(table, f"{rows.columns}, owner_id"), *rows.row(after), self.user.id)
        return after

    async def reassign(self, user_id: str, assignee: str | None, where: str = "", *arguments: Any) -> None:
        """Record another assignee in the to-dos of a user who leaves or is renamed.

        The user may have lost the right to change them, so this does not check it, and it cannot be undone alone.
        """
        sql = f"SELECT {TODO_COLUMNS}, owner_id FROM todos WHERE assignee_id = $1 {where}"
        rows = await self.source.fetch(sql, user_id, *arguments, seconds=BULK_SECONDS)
        released = []
        async for row in in_batches(rows):
            before: Todo = TODOS.read(row)
            self.owners[before.list] = row[TODOS.width]
            after = self.record(before, changed(before, self.at, assignee=assignee), "share")
            released.append((after.id, assignee, milliseconds(after.updated_at), after.revision))
        sql = "UPDATE todos SET assignee_id = $2, updated_at = $3, revision = $4 WHERE id = $1"
        await self.source.execute_many(sql, released)

    def purge_todo(self, todo: Todo) -> None:
        """Remove a to-do and its history for good; the log keeps only that it existed."""
        self.record(todo, None, "purge")
        self._purged_todos.append(todo.id)

    async def purge_list(self, todo_list: TodoList) -> None:
        """Remove a list with all its to-dos and their history for good."""
        self.record(todo_list, None, "purge")
        self._purges_list = True
        here = "owner_id = $1 AND list_id = $2"
        of_mine = "SELECT id FROM lists WHERE owner_id = $1 AND id = $2"
        both = self.user.id, todo_list.id
        await self.source.fetch(forget_answers(of_mine, "list_id"), *both, seconds=BULK_SECONDS)
        await purge_todos(self.source, here, *both)
        await remove(self.source, f"changes WHERE {here} AND todo_id IS NULL", arguments=both)
        for user_id in await end_sharing(self.source, of_mine, *both):
            await self.change_access(user_id)
        await remove(self.source, "lists WHERE owner_id = $1 AND id = $2", arguments=both)

    async def put_member(self, list_id: str, name: str, role: str) -> tuple[Member, bool]:
        """Make a user a member, or change their role; also returns whether they are new. Raises Invalid."""
        named = f"SELECT id, name FROM ({NAMED.format('$1', '$2')}) AS named"
        rows = await self.source.fetch(named, name, fold_user_name(name))
        if not rows:
            raise Invalid("Nobody here has this name.", [field_error("name", "is nobody's here")])
        user_id, its_name = rows[0]
        if user_id == self.user.id:
            raise Invalid("The list is yours already.", [field_error("name", "is your own")])
        await self._check_room("members WHERE list_id = $1", list_id, MAX_MEMBERS, "members, and cannot have more")
        was_one = await self.source.fetch(
            "SELECT created_at FROM members WHERE list_id = $1 AND user_id = $2", list_id, user_id
        )
        await self._put_member(list_id, user_id, role)
        since = timestamp(was_one[0][0]) if was_one else self.at
        return Member(its_name, role, since), not was_one

    async def _check_room(self, which: str, list_id: str, limit: int, message: str) -> None:
        """Raise Conflict if a list has its maximum of rows."""
        if (await self.source.fetch(f"SELECT count(*) FROM {which}", list_id))[0][0] >= limit:
            raise Conflict(f"This list has {limit} {message}.")

    async def _put_member(self, list_id: str, user_id: str, role: str) -> None:
        await self.fetch(
            f"INSERT INTO members ({MEMBER_COLUMNS})"
            " SELECT CAST($2 AS TEXT), id, CAST($4 AS TEXT), CAST($5 AS TEXT), CAST($6 AS BIGINT), CAST($7 AS BIGINT),"
            " (SELECT COALESCE(max(position), 0) + 1 FROM (SELECT position FROM lists WHERE owner_id = $4"
            " UNION ALL SELECT position FROM members WHERE user_id = $4) AS places), colour, 0, 0"
            " FROM lists WHERE id = $3 AND owner_id = $1"
            " ON CONFLICT (list_id, user_id) DO UPDATE SET role = excluded.role",
            *(uuid7(), list_id, user_id, role, self._now, self.revision),
        )
        await self.change_access(user_id)

    async def remove_member(self, list_id: str, name: str) -> None:
        """End a membership of the caller's list, or the caller's own membership. Raises NotFound."""
        rows = await self.fetch(
            "DELETE FROM members WHERE list_id = $2"
            f" AND user_id IN (SELECT id FROM ({NAMED.format('$3', '$4')}) AS named)"
            " AND (user_id = $1 OR list_id IN (SELECT id FROM lists WHERE owner_id = $1)) RETURNING user_id",
            *(list_id, name, fold_user_name(name)),
        )
        (user_id,) = first_row(rows, "There is no such member.")
        await self.reassign(user_id, None, "AND list_id = $2", list_id)
        await self.change_access(user_id)

    async def add_link(self, list_id: str) -> tuple[Credential, str]:
        """Make a link to the caller's list: a user who can only read it, and the secret that stands for them."""
        links = "credentials WHERE list_id = $1"
        await self._check_room(links, list_id, MAX_CREDENTIALS, "links already: revoke one first")
        holder_id = uuid7()
        credential = new_credential("link", User(holder_id, LINK_NAME + holder_id), LINK_LIFETIME, read_only=True)
        await self.source.fetch(INSERT_USER, holder_id, credential.user.name, self._now, 0)
        await self._put_member(list_id, holder_id, VIEWER)
        return credential, await insert_credential(self.source, credential, list_id)

    async def remove_link(self, list_id: str, link_id: str) -> None:
        """Revoke a link to the caller's list. Raises NotFound."""
        rows = await self.fetch(
            "DELETE FROM credentials WHERE id = $2 AND kind = 'link'"
            " AND list_id IN (SELECT id FROM lists WHERE id = $3 AND owner_id = $1) RETURNING user_id",
            *(link_id, list_id),
        )
        holder = first_row(rows, "There is no such link.")
        await remove(self.source, "members WHERE user_id = $1", "users WHERE id = $1", arguments=holder)
        await self.change_access(holder[0])

    async def change_access(self, user_id: str) -> None:
        """Note that a user gained or lost a right, which may change everything that they see."""
        if not self.concerned:
            await raise_access(self.source)
        self.concerned.append(user_id)

    async def finish(self) -> None:
        """Write everything except to-dos, and remove the purged to-dos."""
        for list_id in self._toggled_lists:
            for (user_id,) in await self.source.fetch("SELECT user_id FROM members WHERE list_id = $1", list_id):
                await self.change_access(user_id)
        own = [each for each in self._lists if self.owner(each.id) == self.user.id]
        for sql, rows in (
            (SAVE_LIST, [(*LISTS.row(each), self.user.id) for each in own]),
            (ARRANGE_LIST, [(self.user.id, each.id, *arrange_list(each)) for each in self._lists if each not in own]),
        ):
            if rows:
                await self.source.execute_many(sql, rows)
        for places, part in in_parts(self._purged_todos, 2):
            await purge_todos(self.source, f"owner_id = $1 AND id IN ({places})", self.user.id, *part)
        # The caller is among the readers of a list, unless it no longer exists, or changed for the caller alone.
        for user_id in (*self.concerned, *([self.user.id] if self._purges_list or self._arranges else [])):
            self.loaded.revisions[SET_USER_REVISION][user_id] = self.revision


async def make_inbox(transaction: Transaction, user: User) -> None:
    """Make the first list of a user."""
    at = timestamp(now_milliseconds())
    inbox = TodoList(id=uuid7(), title="Inbox", order=0.0, inbox=True, created_at=at, updated_at=at)
    await transaction.fetch(SAVE_LIST, *LISTS.row(inbox), user.id)


POLL_SECONDS = 0.5  # between checks for other processes' changes, should no message announce them
MAX_KNOWN = 2000  # users, sessions and tokens that a process remembers
RECENT_SECONDS = 2 * POLL_SECONDS  # for which a known row is used without reading it again
KNOWN_SECONDS = 3600  # for which a known row is enough while the database is away
AWAY_SECONDS = 0.3  # to wait for the next answer of a database that has not answered
USER_BY_NAME = "SELECT id, name, settings, name FROM users WHERE name"
CREDENTIAL_BY_HASH = (
    f"SELECT {CREDENTIAL_COLUMNS}, secret_hash FROM credentials JOIN users ON users.id = user_id WHERE secret_hash"
)


class KnownUsers:
    """Users and credentials that have been read, for requests that need nothing else of a database that is away.

    Each is one row by a key, which is also its last column. `forget()` follows every commit that removes
    rights, in this process or another, and `confirm()` reads again what had been known until then.
    Callers who lost their right before the outage are refused.
    """

    def __init__(self, database: Database):
        self._database = database
        self._rows = Cache(MAX_KNOWN)  # by statement and key
        self._doubtful: set[tuple[str, str]] = set()  # keys of rows known before the last change of rights
        self._version = 0  # of the rights
        self.is_away = False  # whether the database did not answer last time
        self._confirmed_at = -math.inf

    def __bool__(self) -> bool:
        return bool(self._rows or self._doubtful)

    def recent(self, sql: str, key: str) -> tuple | None:
        """A row that was read a moment ago; None if it has to be read again."""
        is_recent = time.monotonic() - self._confirmed_at < RECENT_SECONDS
        return self._rows.get((sql, key)) if is_recent else None

    async def find(self, sql: str, key: str) -> tuple | None:
        """The row of a key, or None; while the database is away, the last known row.

        Raises Unavailable if the database is away and has been for too long, or the key is not known.
        """
        version = self._version
        try:
            async with asyncio.timeout(AWAY_SECONDS) if self.is_away else contextlib.nullcontext():
                rows = await self._database.fetch(f"{sql} = $1", key)
        except (Unavailable, TimeoutError) as error:
            self.is_away = True
            row = self._rows.get((sql, key))
            if row is None or time.monotonic() - self._confirmed_at > KNOWN_SECONDS:
                raise Unavailable("The database that keeps the users cannot be used right now.") from error
            return row
        self.is_away = False
        self._rows.remove((sql, key))
        if rows and version == self._version:
            self._rows.set((sql, key), rows[0])
        return rows[0] if rows else None

    def forget(self) -> None:
        """Trust no known row until `confirm()`, since a user lost a right."""
        self._version += 1
        self._doubtful |= set(self._rows)
        self._rows.clear()

    async def confirm(self) -> None:
        """Read the doubtful rows again; to be called also when rights are found unchanged. Raises Unavailable."""
        while self._doubtful:
            version, doubtful, self._doubtful = self._version, self._doubtful, set()
            rows = await self._read(doubtful)
            if version != self._version:  # rights have changed again meanwhile
                self._doubtful |= doubtful
                continue
            for key, row in rows.items():
                if self._rows.get(key) is None:
                    self._rows.set(key, row)
        self.is_away, self._confirmed_at = False, time.monotonic()

    async def _read(self, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], tuple]:
        rows = {}
        for sql in {sql for sql, _ in keys}:
            found = await fetch_by_ids(self._database, f"{sql} IN ({{}})", [key for its, key in keys if its == sql])
            rows.update({(sql, row[-1]): row for row in found})
        return rows


class TodoStore:
    """Users, lists, to-dos and the change log in a database."""

    def __init__(self, database: Database):
        self.database = database
        self.known = KnownUsers(database)
        self._newest = 0  # revision that was committed here

    async def open(self) -> None:
        """Open the database and bring its schema up to date. Raises Misconfigured or Unavailable."""
        await self.database.open(PROBE)
        try:
            try:
                version = await self.database.transaction(self._migrate)
            except (Conflict, Unavailable):
                # On Postgres two processes that start together may both make the first table, and one fails.
                await asyncio.sleep(random.uniform(0.05, 0.2))
                version = await self.database.transaction(self._migrate)
            await self.database.index(SEARCHED)
        except BaseException:
            await self.database.close()
            raise
        if 0 < version < len(MIGRATIONS):
            LOG.info("%s: the schema was brought from %d to %d", self.database.name, version, len(MIGRATIONS))

    async def _migrate(self, transaction: Transaction) -> int:
        """Bring the schema up to date; returns its version until now, 0 for a new database. Raises Misconfigured."""
        try:
            return await self._bring_up_to_date(transaction)
        except Exception as error:
            if self.database.is_damage(error):
                raise self._damaged(str(error).splitlines()[0]) from error
            raise

    def _damaged(self, reason: str) -> Misconfigured:
        return Misconfigured(f"DATABASE_URL: {self.database.name} is damaged ({reason}): restore a backup")

    async def _check_counters(self, transaction: Transaction, *names: str) -> None:
        """Raise Misconfigured for counters that this program cannot have written."""
        counters = {row[0]: row[1] for row in await transaction.fetch("SELECT name, value FROM counters")}
        for name in names:
            if type(value := counters.get(name)) is not int or not 0 <= value < 2**53:
                raise self._damaged(f"its counter {name!r} is {'missing' if value is None else repr(value)[:40]}")

    async def _bring_up_to_date(self, transaction: Transaction) -> int:
        await transaction.fetch("CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value BIGINT NOT NULL)")
        # An update takes the row's lock, so that processes that start together take turns.
        rows = await transaction.fetch("UPDATE counters SET value = value WHERE name = 'schema' RETURNING value")
        if rows:
            await self._check_counters(transaction, "schema")
        version: int = rows[0][0] if rows else 0
        if rows and not version:
            raise self._damaged("its counter 'schema' is 0")
        if version > len(MIGRATIONS):
            raise Misconfigured(
                f"DATABASE_URL: {self.database.name} was written by a newer tornado_todo"
                f" (schema {version}, this one knows {len(MIGRATIONS)}): upgrade tornado_todo"
            )
        for statement in ";".join(MIGRATIONS[version:]).split(";"):
            if statement.strip():
                await self._define(transaction, statement, version)
        if version == 0:
            await transaction.fetch("INSERT INTO counters (name, value) VALUES ('schema', 0), ('revision', 0)")
        await transaction.fetch(SET_COUNTER, "schema", len(MIGRATIONS))
        added = re.findall(r"INSERT INTO counters .* VALUES \('(\w+)'", " ".join(MIGRATIONS))
        await self._check_counters(transaction, "schema", "revision", *added)
        await check_columns(transaction, PROBE.tables)
        await transaction.fetch("DELETE FROM counters WHERE name = 'copied'")
        await raise_revision(transaction, unless_unused=True)
        return version

    async def _define(self, transaction: Transaction, statement: str, version: int) -> None:
        try:
            await transaction.fetch(statement, seconds=BULK_SECONDS)
        except Exception as error:
            if "already exists" not in str(error) and not type(error).__name__.startswith("Duplicate"):
                raise
            if version:
                raise self._damaged(f"its counter 'schema' is {version}, but it has more") from error
            message = f"{self.database.name} has tables of another program: give a database of its own"
            raise Misconfigured(f"DATABASE_URL: {message}") from error

    async def close(self) -> None:
        """Close the database."""
        await self.database.close()
        self.known.forget()
        self._newest = 0

    async def renew(self) -> None:
        """End all sessions and set a new revision everywhere, which no earlier validator matches. Raises TodoError."""

        async def run(transaction: Transaction) -> None:
            await raise_revision(transaction)
            revision = await lock_revision(transaction) + 1
            await transaction.fetch("DELETE FROM credentials WHERE kind = 'session'")
            for table in ("users", "lists", "todos"):
                await transaction.fetch(f"UPDATE {table} SET revision = $1", revision)
            await transaction.fetch(SET_COUNTER, "revision", revision)

        await self.database.transaction(run)

    async def user(self, name: str) -> User:
        """The user of this name, made with an Inbox when first seen."""
        row = self.known.recent(USER_BY_NAME, name)
        while not (row := row or await self.known.find(USER_BY_NAME, name)):
            await write_locked(self.database, functools.partial(self._make_user, name))
        return user_from_row(row)

    @staticmethod
    async def _make_user(name: str, transaction: Transaction) -> None:
        values = uuid7(), name, now_milliseconds(), 0
        await transaction.fetch(f"{INSERT_USER} ON CONFLICT (name) DO NOTHING", *values)
        user = User((await transaction.fetch("SELECT id FROM users WHERE name = $1", name))[0][0], name)
        if not await transaction.fetch("SELECT id FROM lists WHERE owner_id = $1 AND inbox = 1", user.id):
            await make_inbox(transaction, user)

    async def decide(
        self,
        need: tuple,
        user: User,
        decide: Callable[[TodoBatch], Any],
        committed: Callable[[WriteResult], None],
        repeat: Repeat | None = None,
    ) -> WriteResult:
        """Commit what `decide(batch)` decides from loaded rows, together with other short writes.

        `need` is its first query: a method of TodoQueries and its argument. Each further query takes another
        statement, after which `decide` is called again, so it must have no effect except on the batch.
        With `repeat`, a request that was answered before gets the same answer and writes nothing;
        raises Invalid if the key came with another request, or Gone if its result has been purged.
        """

        def run(loaded: Loaded) -> WriteResult:
            batch = TodoBatch(loaded, user)
            return batch.earlier_answer(repeat) or batch.written(decide(batch), repeat)

        needs = [(need[0], user, need[1]), *([(TodoQueries.kept_answer, user, repeat.key)] if repeat else [])]
        return await self.database.write(
            self._run_group, ShortWrite(needs, run), functools.partial(self._note, committed)
        )

    async def write(
        self,
        user: User,
        operation: Callable[[LongBatch], Awaitable[Any]],
        committed: Callable[[WriteResult], None],
        repeat: Repeat | None = None,
    ) -> WriteResult:
        """Run `await operation(batch)` as one transaction, with its changes; see `decide`."""

        async def run(transaction: Transaction) -> WriteResult:
            loaded = await self._begin(transaction)
            batch = LongBatch(loaded, user)
            if earlier := await loaded.settle(batch.earlier_answer, repeat):
                return earlier
            result = await operation(batch)
            await batch.finish()
            written = batch.written(result, repeat)
            await loaded.save()
            return written._replace(changes_access=bool(batch.concerned))

        return await self.database.transaction(run, functools.partial(self._note, committed))

    async def _begin(self, transaction: Transaction) -> Loaded:
        revision = await lock_revision(transaction)
        if revision < self._newest:
            # The database is older than the last commit here, as after a failover to a standby that lags.
            revision = await raise_revision(transaction)
        return Loaded(transaction, revision)

    async def _run_group(self, transaction: Transaction, take: Take) -> list[Any]:
        """Carry out short writes: load for all, decide each, save. Returns their answers, or exceptions."""
        loaded = await self._begin(transaction)
        answers: list[Any] = []
        while new := (await take())[len(answers) :]:
            await loaded.load_for(new)
            for index, write in enumerate(new, 1):
                if index % WRITES_IN_LOOP == 0:
                    await asyncio.sleep(0)
                try:
                    answers.append(await loaded.settle(write.decide, loaded))
                except (TodoError, RepeatAlone) as error:
                    answers.append(error)
        await loaded.save()
        return answers

    def _note(self, committed: Callable[[WriteResult], None], written: WriteResult) -> None:
        self._newest = written.revision or self._newest
        committed(written)

    async def pass_over(self, user: User, batch: str) -> None:
        """Skip a batch, which could not be undone, in searches for the user's last batch."""
        # Everything between this batch and those skipped before has been undone.
        await write_locked(
            self.database,
            "UPDATE users SET passed_from = its.first, passed_to = CASE WHEN its.last < passed_from"
            " THEN passed_to ELSE its.last END FROM (SELECT min(revision) AS first, max(revision) AS last"
            " FROM changes WHERE batch = $2) AS its WHERE id = $1",
            *(user.id, batch),
        )

    async def users_with_expired_trash(self, before: int) -> list[User]:
        """The users with something in their trash since before a time (epoch milliseconds)."""
        rows = await self.database.fetch(
            "SELECT id, name FROM users WHERE id IN (SELECT owner_id FROM todos WHERE deleted_at < $1"
            " UNION SELECT owner_id FROM lists WHERE deleted_at < $1)",
            before,
        )
        return [User(*row) for row in rows]

    async def newest_revision(self) -> int:
        """The revision of the newest write of all."""
        return (await self.database.fetch("SELECT value FROM counters WHERE name = 'revision'"))[0][0]

    async def counters(self) -> tuple[int, int]:
        """The newest revision of all, and a number that is raised whenever rights change."""
        rows = await self.database.fetch(
            "SELECT value FROM counters WHERE name IN ('access', 'revision') ORDER BY name DESC"
        )
        return rows[0][0], rows[1][0]

    async def users_changed_since(self, revision: int) -> list[str]:
        """The ids of the users for whom something has changed after a revision."""
        return [row[0] for row in await self.database.fetch("SELECT id FROM users WHERE revision > $1", revision)]

    async def memberships(self) -> dict[str, dict[str, str]]:
        """The lists that users are members of, and their roles there, by the users' ids."""
        found: dict[str, dict[str, str]] = {}
        living = "SELECT user_id, list_id, role FROM members JOIN lists ON lists.id = list_id WHERE deleted_at IS NULL"
        for user_id, list_id, role in await self.database.fetch(living):
            found.setdefault(user_id, {})[list_id] = role
        return found

    async def forget_answers(self, before: int) -> None:
        """Forget the idempotency keys from before a time (epoch milliseconds)."""
        await write_locked(self.database, "DELETE FROM idempotency_keys WHERE at < $1", before)


class ThrottleStore:
    """Counters and claims that expire, in a table beside the to-dos, so that a restart does not forget them."""

    def __init__(self, database: Database):
        self._database = database

    async def _write(self, sql: str, *arguments: Any) -> list[tuple]:
        return await self._database.transaction(lambda transaction: transaction.fetch(sql, *arguments))

    async def increment(self, key: str, by: int, ttl: float) -> int:
        """Add to a counter, which ends `ttl` seconds after it began, and return the sum."""
        now = now_milliseconds()
        going_on = "CASE WHEN throttles.expires_at > $4 THEN"
        rows = await self._write(
            f"{insert('throttles', 'key, value, expires_at')} ON CONFLICT (key) DO UPDATE"
            f" SET value = {going_on} throttles.value + excluded.value ELSE excluded.value END,"
            f" expires_at = {going_on} throttles.expires_at ELSE excluded.expires_at END RETURNING value",
            *(key, by, now + int(ttl * 1000), now),
        )
        return rows[0][0]

    async def claim(self, key: str, ttl: float) -> float:
        """Take a key for `ttl` seconds: 0 if it was free, otherwise for how many seconds it is still taken."""
        now = now_milliseconds()
        if await self._write(
            "INSERT INTO throttles (key, value, expires_at) VALUES ($1, 0, $2) ON CONFLICT (key) DO UPDATE"
            " SET expires_at = excluded.expires_at WHERE throttles.expires_at <= $3 RETURNING key",
            *(key, now + int(ttl * 1000), now),
        ):
            return 0.0
        rows = await self._database.fetch("SELECT expires_at FROM throttles WHERE key = $1", key)
        return max(rows[0][0] - now, 1) / 1000 if rows else 0.0

    async def delete(self, key: str) -> None:
        """Forget a counter or claim."""
        await self._write("DELETE FROM throttles WHERE key = $1", key)

    async def forget_expired(self) -> None:
        """Remove what has expired."""
        await self._write("DELETE FROM throttles WHERE expires_at <= $1", now_milliseconds())


async def reassign(transaction: Transaction, user: User, assignee: str | None, where: str = "") -> int:
    """See `LongBatch.reassign`; returns the newest revision."""
    loaded = Loaded(transaction, await lock_revision(transaction))
    batch = LongBatch(loaded, user)
    await batch.reassign(user.id, assignee, where)
    batch.written(None, None)
    await loaded.save()
    return loaded.revision


class AccountStore:
    """Users who have a password, and the credentials of all users.

    `rights_changed()` is called after a commit that removed a right.
    """

    def __init__(self, database: Database, known: KnownUsers, rights_changed: Callable[[], None]):
        self.database, self._known, self._rights_changed = database, known, rights_changed

    async def _remove_right(self, operation: Callable | str, *arguments: Any) -> Any:
        """Run an operation, or one statement, that removes a right, unless it returns an empty list of rows."""

        async def run(transaction: Transaction) -> Any:
            answer = await carry_out(transaction, operation, *arguments)
            if answer != []:
                await raise_access(transaction)
            return answer

        answer = await self.database.transaction(run, lambda answer: self._rights_changed())
        with contextlib.suppress(Unavailable):  # it is away again, and no row is trusted
            await self._known.confirm()
        return answer

    # ---- accounts

    async def any_account(self) -> bool:
        """Whether there is an account."""
        return bool(await self.database.fetch("SELECT 1 FROM users WHERE password IS NOT NULL LIMIT 1"))

    async def account(self, name: str) -> tuple[User, str] | None:
        """The user of this name and their password's hash, or None without such an account."""
        rows = await self.database.fetch(
            "SELECT id, name, settings, password FROM users WHERE name = $1 AND password IS NOT NULL", name
        )
        return (user_from_row(rows[0]), rows[0][3]) if rows else None

    async def users(self) -> list[tuple[str, int, int]]:
        """Every user's name, when they were added (epoch milliseconds), and whether they have a password (1 or 0)."""
        has_password = "CASE WHEN password IS NULL THEN 0 ELSE 1 END"
        holders = "SELECT user_id FROM credentials WHERE kind = 'link'"  # of links are not people
        return await self.database.fetch(
            f"SELECT name, created_at, {has_password} FROM users WHERE id NOT IN ({holders}) ORDER BY name"
        )

    async def user(self, name: str) -> User:
        """The user of this name, with an account or without. Raises NotFound."""
        rows = await self.database.fetch("SELECT id, name FROM users WHERE name = $1", name)
        return User(*first_row(rows, f"There is no user {name}."))

    async def created_at(self, user: User) -> int:
        """When a user was added, in epoch milliseconds."""
        return (await self.database.fetch("SELECT created_at FROM users WHERE id = $1", user.id))[0][0]

    async def local_todos(self) -> int:
        """The number of to-dos of the machine's own user, without the trash."""
        local = "SELECT id FROM users WHERE name = $1"
        counted = f"SELECT count(*) FROM todos WHERE deleted_at IS NULL AND owner_id = ({local})"
        return (await self.database.fetch(counted, LOCAL_USER))[0][0]

    async def add(
        self, name: str, password: str, sign_up: str = "open", invite: str = "", takes_local: bool = False
    ) -> User:
        """Make an account with a hashed password, by the rules of SIGNUP; an invitation is used up.

        The first may always be made. With `takes_local` the machine's own user becomes the account,
        with everything that is theirs. Raises Forbidden, Invalid or Conflict.
        """

        async def operation(transaction: Transaction) -> User:
            if await transaction.fetch("SELECT 1 FROM users WHERE password IS NOT NULL LIMIT 1"):
                await self._check_sign_up(transaction, sign_up, invite)
            await self._check_free(transaction, name)
            renamed = "UPDATE users SET name = $2, password = $3 WHERE name = $1 RETURNING id, name, settings"
            if takes_local and (rows := await transaction.fetch(renamed, LOCAL_USER, name, password)):
                user = user_from_row(rows[0])
                await reassign(transaction, user, user.id)
                return user
            user = User(uuid7(), name)
            columns = "id, name, created_at, revision, password"
            await transaction.fetch(insert("users", columns), user.id, name, now_milliseconds(), 0, password)
            await make_inbox(transaction, user)
            return user

        if takes_local:
            return await self._remove_right(operation)
        return await write_locked(self.database, operation)

    @staticmethod
    async def _check_free(transaction: Transaction, name: str, old: str = "") -> None:
        """Raise Conflict if a name is taken, or looks like the name of an account other than the renamed one."""
        message = ""
        if await transaction.fetch("SELECT 1 FROM users WHERE name = $1", name):
            message = "is taken: choose another"
        names = [row[0] for row in await transaction.fetch("SELECT name FROM users WHERE password IS NOT NULL")]
        look = skeleton(name)
        # Those in ASCII look different from each other when read closely.
        if any(skeleton(each) == look for each in names if each != old and not (each.isascii() and name.isascii())):
            message = "looks like that of another account: choose another"
        if message:
            raise Conflict(f"The name {message}.", [field_error("name", message)])

    @staticmethod
    async def _check_sign_up(transaction: Transaction, sign_up: str, invite: str) -> None:
        if sign_up == "closed":
            raise Forbidden("This server does not accept new accounts. Ask its operator.")
        used = "DELETE FROM credentials WHERE secret_hash = $1 AND kind = 'invite' AND expires_at > $2 RETURNING id"
        if sign_up == "invite" and not await transaction.fetch(used, hash_secret(invite), now_milliseconds()):
            raise invalid("invite", "is not one that is still good: ask for another", "The invitation")

    async def set_password(self, user: User, password: str) -> None:
        """Set another password (hashed) for a user, which ends all their sessions."""

        async def operation(transaction: Transaction) -> None:
            await transaction.fetch("UPDATE users SET password = $2 WHERE id = $1", user.id, password)
            await transaction.fetch("DELETE FROM credentials WHERE user_id = $1 AND kind = 'session'", user.id)

        await self._remove_right(operation)

    async def change_settings(self, user: User, changes: Mapping[str, Any]) -> User:
        """Change some of a user's settings; returns the user with all of them. Raises NotFound."""

        async def operation(transaction: Transaction) -> User:
            rows = await fetch_by_ids(transaction, USERS, [user.id])
            changed = user_from_row(first_row(rows, "There is no such user.")).with_settings(**changes)
            settings = msgspec.json.encode(changed.settings).decode()
            await transaction.fetch("UPDATE users SET settings = $2 WHERE id = $1", user.id, settings)
            return changed

        # As if a right were removed, so that every process reads the user again.
        return await self._remove_right(operation)

    async def rehash_password(self, user: User, old: str, new: str) -> None:
        """Store the same password with a stronger hash, unless it has been changed meanwhile."""
        await write_locked(
            self.database, "UPDATE users SET password = $3 WHERE id = $1 AND password = $2", user.id, old, new
        )

    async def rename(self, old: str, new: str) -> None:
        """Rename a user. Raises NotFound, or Conflict if the name is taken."""

        async def operation(transaction: Transaction) -> None:
            await self._check_free(transaction, new, old)
            renamed = "UPDATE users SET name = $2 WHERE name = $1 RETURNING id"
            (user_id,) = first_row(await transaction.fetch(renamed, old, new), f"There is no user {old}.")
            await reassign(transaction, User(user_id, new), user_id)

        await self._remove_right(operation)

    async def delete_account(self, user: User) -> None:
        """Remove a user with everything that is in the database: lists, to-dos, history, documents, credentials.

        Their changes in the lists of others stay, without their name.
        """
        mine = "SELECT id FROM lists WHERE owner_id = $1"
        others = "SELECT list_id FROM members WHERE user_id = $1"

        async def operation(transaction: Transaction) -> None:
            # Everything looks different now to members, and to the owners of lists that this user was a member
            # of: they get the next revision, which stands for no change.
            revision = await reassign(transaction, user, None, "AND owner_id <> $1") + 1
            owners = await transaction.fetch(f"SELECT owner_id FROM lists WHERE id IN ({others})", user.id)
            concerned = [*await end_sharing(transaction, mine, user.id), *(row[0] for row in owners)]
            await transaction.fetch(f"UPDATE lists SET revision = $2 WHERE id IN ({others})", user.id, revision)
            await transaction.execute_many(SET_USER_REVISION, [(user_id, revision) for user_id in concerned])
            await purge_todos(transaction, "owner_id = $1", user.id)
            by_owner = ("changes", "lists", "documents", *(each.table for each in KINDS_KEPT.values()))
            by_user = ("idempotency_keys", "members", "credentials", "acts", "slices")
            await remove(
                transaction,
                *(f"{table} WHERE user_id = $1" for table in by_user),
                *(f"{table} WHERE owner_id = $1" for table in by_owner),
                arguments=[user.id],
            )
            await transaction.fetch(f"UPDATE changes SET user_id = NULL WHERE {OF_OTHERS}", user.id)
            await transaction.fetch("UPDATE comments SET user_id = NULL WHERE user_id = $1", user.id)
            # To-dos that were moved from there into another's list lose their earlier history.
            await transaction.fetch(
                "UPDATE changes SET before_image = 'null', from_list_id = list_id, from_owner_id = NULL"
                " WHERE from_owner_id = $1",
                user.id,
            )
            await remove(transaction, "users WHERE id = $1", arguments=[user.id])
            await transaction.fetch(SET_COUNTER, "revision", revision)

        await self._purge_most_of(user)
        await self._remove_right(operation)

    async def _purge_most_of(self, user: User) -> None:
        """Remove a user's to-dos and changes in short transactions, so that others can write meanwhile."""
        await purge_in_parts(self.database, "owner_id = $1", user.id)
        some = f"SELECT revision FROM changes WHERE owner_id = $1 LIMIT {PURGED_AT_ONCE}"
        sql = f"DELETE FROM changes WHERE revision IN ({some}) RETURNING revision"
        while await write_locked(self.database, sql, user.id):
            pass

    # ---- credentials

    async def issue(self, credential: Credential, password: str | None = None) -> str:
        """Store a credential and return its secret, which cannot be read again.

        With the hash of the password that was shown for it, only if that is still the user's: raises
        Unauthorized if it has been changed meanwhile. Raises Conflict if the user has too many of the kind.
        """
        user_id, kind = credential.user.id, credential.kind

        async def operation(transaction: Transaction) -> str:
            if password is not None and not await transaction.fetch(
                "SELECT 1 FROM users WHERE id = $1 AND password = $2", user_id, password
            ):
                raise Unauthorized("The password has just been changed.")
            mine = "FROM credentials WHERE user_id = $1 AND kind = $2"
            too_many = (await transaction.fetch(f"SELECT count(*) {mine}", user_id, kind))[0][0] + 1 - MAX_CREDENTIALS
            if too_many > 0 and kind != "session":
                raise Conflict(f"There are {MAX_CREDENTIALS} of these already: revoke one first.")
            if too_many > 0:  # the session unused for longest has to sign in again
                longest_ago = f"SELECT id {mine} ORDER BY used_at, id LIMIT {too_many}"
                await transaction.fetch(f"DELETE FROM credentials WHERE id IN ({longest_ago})", user_id, kind)
            return await insert_credential(transaction, credential)

        secret = await write_locked(self.database, operation)
        with contextlib.suppress(Unavailable):  # from now on the user is known
            await self._known.find(CREDENTIAL_BY_HASH, hash_secret(secret))
        return secret

    async def find(self, secret: str, *kinds: str) -> Credential | None:
        """The credential of one of these kinds with this secret; None if there is none, or it has expired."""
        row = await self._known.find(CREDENTIAL_BY_HASH, hash_secret(secret))
        if row is None or row[1] not in kinds:
            return None
        credential, now = credential_from_row(row), now_milliseconds()
        if credential.is_over(now):
            # It is removed, so that a clock that is set back does not revive it.
            with contextlib.suppress(NotFound, Unavailable):  # another request has come first, or the next will do it
                await self.end(credential.user, credential.kind, credential.id)
            return None
        if credential.kind == "session" and now < credential.used_at - 2 * NOTE_USE:
            return None  # the clock is wrong, and the session's age unknown
        if now - credential.used_at > NOTE_USE and not self._known.is_away:
            with contextlib.suppress(Unavailable):  # a database that can only be read is enough to be let in
                await write_locked(
                    self.database, "UPDATE credentials SET used_at = $2 WHERE id = $1", credential.id, now
                )
        return credential

    async def credentials(self, user: User, kind: str) -> list[Credential]:
        """A user's credentials of a kind, the last used first."""
        return await self._credentials("credentials.user_id = $1 AND kind = $2", user.id, kind)

    async def links(self, user: User, list_id: str) -> list[Credential]:
        """The links of a list that is the user's own."""
        own = "credentials.list_id IN (SELECT id FROM lists WHERE owner_id = $1 AND id = $2)"
        return await self._credentials(f"{own} AND kind = 'link'", user.id, list_id)

    async def _credentials(self, which: str, *arguments: str) -> list[Credential]:
        rows = await self.database.fetch(
            f"SELECT {CREDENTIAL_COLUMNS} FROM credentials JOIN users ON users.id = credentials.user_id"
            f" WHERE {which} ORDER BY used_at DESC, credentials.id DESC",
            *arguments,
        )
        now = now_milliseconds()
        return [found for found in map(credential_from_row, rows) if not found.is_over(now)]

    async def end(self, user: User, kind: str, credential_id: str | None = None) -> None:
        """End one of a user's credentials of a kind, or all of them. Raises NotFound."""
        which, arguments = "user_id = $1 AND kind = $2", [user.id, kind]
        if credential_id:
            which, arguments = f"{which} AND id = $3", [*arguments, credential_id]
        rows = await self._remove_right(f"DELETE FROM credentials WHERE {which} RETURNING id", *arguments)
        if credential_id:
            first_row(rows, f"There is no such {kind}.")

    async def living(self, credential_ids: Collection[str]) -> set[str]:
        """The credentials among these that are still valid."""
        living = (
            "SELECT id FROM credentials WHERE expires_at > $1 AND (kind <> 'session' OR used_at > $2) AND id IN ({})"
        )
        now = now_milliseconds()
        return {row[0] for row in await fetch_by_ids(self.database, living, credential_ids, now, now - SESSION_IDLE)}

    async def present(self, users: Collection[User]) -> dict[str, User]:
        """These users as they are now, by id, without those that no longer exist."""
        rows = await fetch_by_ids(self.database, USERS, {user.id for user in users})
        return {row[0]: user_from_row(row) for row in rows}

    async def forget_expired(self) -> None:
        """Remove expired credentials."""
        over = "credentials WHERE expires_at <= $1 OR (kind = 'session' AND used_at <= $2)"
        now = now_milliseconds()
        if await self.database.fetch(f"SELECT 1 FROM {over} LIMIT 1", now, now - SESSION_IDLE):
            await self._remove_right(f"DELETE FROM {over} RETURNING id", now, now - SESSION_IDLE)


class Document(NamedTuple):
    """A JSON document's text in UTF-8, and its validator."""

    body: bytes
    etag: str


class DocumentEntry(NamedTuple):
    """A document as the listing shows it; `size` in bytes, `updated_at` in epoch milliseconds."""

    name: str
    size: int
    updated_at: int


def document_etag(body: bytes) -> str:
    return f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'


def missing_document(name: str) -> str:
    return f"Missing collection: {name}"


class Precondition(NamedTuple):
    """When a document may be put: only one of this ETag, or only where there is none."""

    if_match: str | None = None
    only_new: bool = False


ALWAYS = Precondition()


def document_exists() -> PreconditionFailed:
    return PreconditionFailed("There is a document of this name already.")


class SQLDocumentStore:
    """JSON documents by name, each user's apart, in a table beside the to-dos."""

    _PUT = insert("documents", "owner_id, name, body, size, etag, updated_at") + (
        " ON CONFLICT (owner_id, name) DO UPDATE SET body = excluded.body, size = excluded.size, etag = excluded.etag,"
        " updated_at = excluded.updated_at"
    )
    _ONE = "FROM documents WHERE owner_id = $1 AND name = $2"

    def __init__(self, database: Database):
        self.database, self.name = database, database.name

    async def close(self) -> None:
        """The database is closed by its owner."""

    async def ping(self) -> None:
        """Raise unless the store can be read."""
        await self.database.fetch("SELECT 1 FROM documents LIMIT 1")

    async def get(self, owner_id: str, name: str) -> Document:
        """One document. Raises NotFound."""
        rows = await self.database.fetch(f"SELECT body, etag {self._ONE}", owner_id, name)
        body, etag = first_row(rows, missing_document(name))
        return Document(body.encode(), etag)

    async def put(
        self, owner_id: str, name: str, body: bytes, precondition: Precondition = ALWAYS, at: int | None = None
    ) -> str:
        """Store a document, new or instead of the old one, and return its ETag. Raises PreconditionFailed."""
        etag = document_etag(body)

        async def upsert(transaction: Transaction) -> None:
            await self._check(transaction, owner_id, name, precondition.if_match)
            if precondition.only_new and await transaction.fetch(f"SELECT 1 {self._ONE}", owner_id, name):
                raise document_exists()
            values = owner_id, name, body.decode(), len(body), etag, at or now_milliseconds()
            await transaction.fetch(self._PUT, *values)

        await self.database.write(run_checked, upsert)
        return etag

    async def delete(self, owner_id: str, name: str, if_match: str | None = None) -> None:
        """Remove a document. Raises NotFound or PreconditionFailed."""

        async def delete(transaction: Transaction) -> list[tuple]:
            await self._check(transaction, owner_id, name, if_match)
            return await transaction.fetch(f"DELETE {self._ONE} RETURNING name", owner_id, name)

        rows = await self.database.write(run_checked, delete)
        first_row(rows, missing_document(name))

    async def delete_all(self, owner_id: str) -> None:
        """Remove all documents of a user."""
        await write_locked(self.database, "DELETE FROM documents WHERE owner_id = $1", owner_id)

    async def _check(self, transaction: Transaction, owner_id: str, name: str, if_match: str | None) -> None:
        if if_match is not None:
            rows = await transaction.fetch(f"SELECT etag {self._ONE}", owner_id, name)
            check_precondition(if_match, first_row(rows, missing_document(name))[0])

    async def entries(self, owner_id: str, prefix: str, after: str, limit: int) -> list[DocumentEntry]:
        """Names that begin with `prefix` and come after `after`, in code point order."""
        rows = await self.database.fetch(
            "SELECT name, size, updated_at FROM documents WHERE owner_id = $1"
            f" AND name >= $2 AND name < $3 AND name > $4 ORDER BY name LIMIT {limit}",
            *(owner_id, prefix, prefix + "\U0010ffff", after),
        )
        return [DocumentEntry(*row) for row in rows]


SAFE_WRITES = {"w": "majority", "journal": True}


class MongoDocumentStore:
    """Does the same as SQLDocumentStore, in MongoDB. Motor is in maintenance only, so nothing else imports it."""

    def __init__(self, uri: str):
        self._motor = driver("motor.motor_asyncio", "MONGODB_URI", "mongo")
        self._errors = driver("pymongo.errors", "MONGODB_URI", "mongo")
        self._options = self._checked_options(uri)
        self.name = f"MongoDB {without_password(uri)}"
        self._uri = uri
        self._client: Any = None
        self._indexed = False

    def _checked_options(self, uri: str) -> Collection[str]:
        """The names of the options in the URI. Raises Misconfigured for one that the driver would leave out."""
        parse_uri = driver("pymongo.uri_parser", "MONGODB_URI", "mongo").parse_uri
        # mongodb+srv would look the host up in DNS; the options that belong to it begin with srv.
        is_srv = uri.startswith("mongodb+srv:")
        address, _, query = uri.replace("mongodb+srv:", "mongodb:").partition("?")
        pairs = [pair for pair in query.split("&") if pair and not (is_srv and pair.lower().startswith("srv"))]
        if is_srv and re.search("[:,]", urllib.parse.urlsplit(uri).netloc.rpartition("@")[2]):
            raise Misconfigured("MONGODB_URI: a mongodb+srv:// URL has one host and no port")
        client = driver("pymongo", "MONGODB_URI", "mongo").MongoClient
        # Only a client notices options that contradict each other. It gets another name and password.
        masked = re.sub(r"(?<=//)[^/@]*(?=@)", lambda match: re.sub("[^:]+", "x", match[0]), address)
        try:
            for pair in pairs:
                reason = f"the option {pair.partition('=')[0]!a} cannot be used"
                parse_uri(f"mongodb://localhost/?{pair}", warn=False)
            reason = "its parts cannot be used together"
            client(f"{masked}?{'&'.join(pairs)}", connect=False, **SAFE_WRITES).close()
            reason = "the name or the password has to be percent-encoded"
            parse_uri(address)
        except (self._errors.PyMongoError, ValueError, TypeError, OSError) as error:
            raise Misconfigured(f"MONGODB_URI: {reason}: {error}") from None
        return parse_options(query, {}, str).keys()

    async def close(self) -> None:
        """Disconnect."""
        if self._client:
            self._client.close()
            self._client, self._indexed = None, False

    @contextlib.asynccontextmanager
    async def _documents(self) -> AsyncIterator[Any]:
        """The collection, connected and indexed; errors of the driver become Unavailable."""
        try:
            if self._client is None:
                limits = {"serverSelectionTimeoutMS": 800, "timeoutMS": 1500}
                limits = {name: value for name, value in limits.items() if name.lower() not in self._options}
                self._client = self._motor.AsyncIOMotorClient(self._uri, **SAFE_WRITES, **limits)
            documents = self._client.get_default_database("tornado_todo")["documents"]
            if not self._indexed:
                await documents.create_index([("owner_id", 1), ("name", 1)], unique=True)
                self._indexed = True
            yield documents
        except self._errors.ConfigurationError as error:
            raise Misconfigured(f"MONGODB_URI: cannot be used: {type(error).__name__}") from error
        except self._errors.PyMongoError as error:
            LOG.warning("%s: %s", self.name, type(error).__name__)
            raise Unavailable(f"The document store cannot be used right now. {NOTHING_CHANGED}") from error

    async def ping(self) -> None:
        """Raise unless the server takes writes, by one that finds nothing to change."""
        async with self._documents() as documents:
            await documents.delete_one(self._one("", ""))

    @staticmethod
    def _one(owner_id: str, name: str) -> dict:
        # $eq: the argument is matched as a value, never read as an operator.
        return {"owner_id": {"$eq": owner_id}, "name": {"$eq": name}}

    async def get(self, owner_id: str, name: str) -> Document:
        async with self._documents() as documents:
            document = await documents.find_one(self._one(owner_id, name), {"text": 1, "etag": 1})
        if document is None:
            raise NotFound(missing_document(name))
        return Document(document["text"].encode(), document["etag"])

    async def put(
        self, owner_id: str, name: str, body: bytes, precondition: Precondition = ALWAYS, at: int | None = None
    ) -> str:
        etag = document_etag(body)
        which = await self._which(owner_id, name, precondition.if_match)
        document = {"owner_id": owner_id, "name": name, "size": len(body), "etag": etag}
        document["updated_at"] = at or now_milliseconds()
        # The text is the answer: BSON returns some values, such as {"$ref", "$id"}, in another form.
        # The tree is for people who read their documents with MongoDB's own tools.
        document.update(text=body.decode(), body=json.loads(body))
        async with self._documents() as documents:
            try:
                if precondition.only_new:
                    await documents.insert_one(document)
                    return etag
                result = await documents.replace_one(which, document, upsert=precondition.if_match is None)
            except self._errors.DuplicateKeyError:
                if precondition.only_new:
                    raise document_exists() from None
                # Another request has just made it, so now it is replaced.
                result = await documents.replace_one(which, document, upsert=True)
        if precondition.if_match is not None and not result.matched_count:
            raise PreconditionFailed("It has changed in this very moment. Read it again, then decide.")
        return etag

    async def delete(self, owner_id: str, name: str, if_match: str | None = None) -> None:
        which = await self._which(owner_id, name, if_match)
        async with self._documents() as documents:
            result = await documents.delete_one(which)
        if not result.deleted_count:
            raise NotFound(missing_document(name))

    async def delete_all(self, owner_id: str) -> None:
        async with self._documents() as documents:
            await documents.delete_many({"owner_id": {"$eq": owner_id}})

    async def _which(self, owner_id: str, name: str, if_match: str | None) -> dict:
        """The query for a document, in the version that If-Match names, if there is one."""
        if if_match is None:
            return self._one(owner_id, name)
        etag = (await self.get(owner_id, name)).etag
        check_precondition(if_match, etag)
        return {**self._one(owner_id, name), "etag": {"$eq": etag}}

    async def entries(self, owner_id: str, prefix: str, after: str, limit: int) -> list[DocumentEntry]:
        names = {"$gte": prefix, "$lt": prefix + "\U0010ffff", "$gt": after}
        which, shown = {"owner_id": {"$eq": owner_id}, "name": names}, {"name": 1, "size": 1, "updated_at": 1}
        async with self._documents() as documents:
            entries = await documents.find(which, shown).sort("name", 1).limit(limit).to_list(limit)
        return [DocumentEntry(entry["name"], int(entry["size"]), int(entry["updated_at"])) for entry in entries]


DocumentStore = SQLDocumentStore | MongoDocumentStore


async def read_documents(store: DocumentStore, owners: Iterable[str]) -> AsyncIterator[Rows]:
    """The documents of these owners in batches: owner, name, time of the last change, and text."""
    for owner_id in owners:
        after = ""
        while entries := await store.entries(owner_id, "", after, 20):
            texts = [(await store.get(owner_id, entry.name)).body for entry in entries]
            yield [(owner_id, entry.name, entry.updated_at, text) for entry, text in zip(entries, texts, strict=True)]
            after = entries[-1].name


class Record(NamedTuple):
    """Bytes and their media type."""

    body: bytes
    content_type: str


class DictRecordStore:
    """Records in memory: bounded in number and bytes, each may expire."""

    name = "in memory"

    def __init__(
        self, max_items: int = 10_000, max_bytes: int = 64 * 1024 * 1024, clock: Callable[[], float] = time.monotonic
    ):
        # A monotonic clock: setting the machine's time must neither revive nor end a record.
        self._clock = clock
        self._entries = Cache(max_items, max_bytes)  # of (record, when it expires)

    async def close(self) -> None:
        """There is nothing to close."""

    async def ping(self) -> None:
        """Memory is always there."""

    def _find(self, key: str) -> tuple[Record, float] | None:
        """A record and for how many more seconds it lasts."""
        record, expires = self._entries.get(key) or (None, 0.0)
        if record is None or expires <= self._clock():
            self._entries.remove(key)
            return None
        return record, expires - self._clock()

    async def get(self, key: str) -> Record | None:
        """The record, or None if there is none or it has expired."""
        found = self._find(key)
        return found and found[0]

    async def set(self, key: str, record: Record, ttl: float | None = None) -> None:
        """Store a record for `ttl` seconds, or until others take its room."""
        expires = math.inf if ttl is None else self._clock() + ttl
        self._entries.set(key, (record, expires), len(key) + len(record.body) + len(record.content_type))

    async def delete(self, key: str) -> bool:
        """Remove a record; returns whether there was one."""
        was_there = self._find(key) is not None
        self._entries.remove(key)
        return was_there

    async def delete_all(self, prefix: str) -> None:
        """Remove every record with a key that begins with this text."""
        for key in [key for key in self._entries if key.startswith(prefix)]:
            self._entries.remove(key)

    async def increment(self, key: str, by: int, ttl: float) -> int:
        """Add to a counter, which ends `ttl` seconds after it began, and return the sum."""
        record, left = self._find(key) or (Record(b"0", ""), ttl)
        count = by + int(record.body)
        await self.set(key, Record(str(count).encode(), ""), left)
        return count

    async def claim(self, key: str, ttl: float) -> float:
        """Take a key for `ttl` seconds: 0 if it was free, otherwise for how many seconds it is still taken."""
        if found := self._find(key):
            return found[1]
        await self.set(key, Record(b"", ""), ttl)
        return 0.0


class RedisRecordStore:
    """Does the same as DictRecordStore, in Redis, which ends records; the media type is in front of the bytes."""

    def __init__(self, url: str, prefix: str):
        self._prefix = f"{prefix}record:"  # the server may be shared
        redis = driver("redis.asyncio", "REDIS_URL", "redis")
        self._errors = driver("redis.exceptions", "REDIS_URL", "redis")
        self.name = f"Redis {without_password(url)}"
        backoff = driver("redis.backoff", "REDIS_URL", "redis").NoBackoff()
        retry = driver("redis.asyncio.retry", "REDIS_URL", "redis").Retry(backoff, 0)
        limits = {"timeout": 0.5, "socket_timeout": 0.5, "socket_connect_timeout": 0.5}
        try:
            pool = redis.BlockingConnectionPool.from_url(url, max_connections=20, retry=retry, **limits)
            pool.make_connection()  # which checks the options in the URL only now
        except (TypeError, ValueError) as error:
            # It ends with the name of the option, if this kind of connection does not have it.
            name = str(error).rpartition(" ")[2] if isinstance(error, TypeError) else ""
            raise Misconfigured(f"REDIS_URL: cannot be used: {type(error).__name__} {name}".strip()) from None
        self.client = redis.Redis.from_pool(pool)

    async def close(self) -> None:
        """Disconnect."""
        await self.client.aclose()

    async def ping(self) -> None:
        """Raise unless the server takes writes, by one that finds nothing to change."""
        await self._send("SET", self._prefix, b"", "XX")

    async def _send(self, *command: Any, repeatable: bool = True) -> Any:
        """Send one command. One that may be repeated is, when its connection turns out to be broken."""
        for last_try in (not repeatable, True):
            try:
                return await self.client.execute_command(*command)
            except self._errors.RedisError as error:
                timed_out = isinstance(error, self._errors.TimeoutError)
                if last_try or timed_out or not isinstance(error, self._errors.ConnectionError):
                    raise self._unavailable(error) from error
        raise AssertionError("the last try either returns or raises")

    def _unavailable(self, error: Exception) -> Unavailable:
        reason = f": {error}" if isinstance(error, self._errors.ResponseError) else ""
        LOG.warning("%s: %s%s", self.name, type(error).__name__, reason)
        return Unavailable("The record store cannot be used right now; try again.")

    async def get(self, key: str) -> Record | None:
        value = await self._send("GET", self._prefix + key)
        if value is None:
            return None
        content_type, _, body = value.partition(b"\0")
        return Record(body, content_type.decode())

    async def set(self, key: str, record: Record, ttl: float | None = None) -> None:
        value = record.content_type.encode() + b"\0" + record.body
        expiry = () if ttl is None else ("PX", int(ttl * 1000))
        await self._send("SET", self._prefix + key, value, *expiry)

    async def delete(self, key: str) -> bool:
        # A repeated command would report that there was none.
        return bool(await self._send("DEL", self._prefix + key, repeatable=False))

    async def delete_all(self, prefix: str) -> None:
        pattern = re.sub(r"([][*?\\])", r"\\\1", self._prefix + prefix) + "*"
        cursor: Any = 0
        while True:
            cursor, keys = await self._send("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            if keys:
                await self._send("UNLINK", *keys)
            if not int(cursor):
                return

    async def increment(self, key: str, by: int, ttl: float) -> int:
        # Together: one that ends between its beginning and the addition would come back without an end.
        async with self.client.pipeline(transaction=True) as together:
            together.set(self._prefix + key, 0, nx=True, px=int(ttl * 1000)).incrby(self._prefix + key, by)
            try:
                return int((await together.execute())[1])
            except self._errors.RedisError as error:
                raise self._unavailable(error) from error

    async def claim(self, key: str, ttl: float) -> float:
        if await self._send("SET", self._prefix + key, b"", "NX", "PX", int(ttl * 1000), repeatable=False):
            return 0.0
        return max(await self._send("PTTL", self._prefix + key), 1) / 1000


RecordStore = DictRecordStore | RedisRecordStore


# ==== live updates: may call stores and domain ==================================================

CHANGES_IN_MESSAGE = 100  # of the event socket
RIGHTS_CHANGED = "access", '{"type":"access"}'


class Listener:
    """One event socket. Its only state is the last revision that it has read.

    `end(code, reason)` is called when it must stop: its credential (None for the machine's own user) is no
    longer valid, or the server is stopping.
    """

    def __init__(self, hub: "EventHub", user: User, end: Callable[[int, str], None], credential_id: str | None):
        self.user, self.end, self.credential_id = user, end, credential_id
        self.since = 0
        self._hub = hub
        self._woken = asyncio.Event()
        self._woken.set()  # earlier commits are read first
        self._notices: dict[str, str] = {}  # messages other than changes that are still to be sent, by kind

    def wake(self, notice: tuple[str, str] | None = None) -> None:
        """Report that there may be new changes, or with a notice its kind and message."""
        self._notices |= [notice] if notice else []
        self._woken.set()

    async def next_message(self, seconds: float) -> str | None:
        """The next message after the revision `since`, or None after this time. Raises Unavailable."""
        while True:
            try:
                async with asyncio.timeout(seconds):
                    await self._woken.wait()
            except TimeoutError:
                return None
            if self._notices:
                return self._notices.pop(next(iter(self._notices)))
            self._woken.clear()  # a commit after this wakes it again
            changes, text = await self._hub.read(self.user, self.since)
            if len(changes) == CHANGES_IN_MESSAGE:
                self._woken.set()
            if changes:
                self.since = changes[-1].revision
                return text


class RedisRelay:
    """Wakes the other processes through Redis after a commit, and reports their commits.

    The message contains no changes: the other processes read them from the database.
    """

    def __init__(self, client: Any, prefix: str):
        self._client, self._channel = client, f"{prefix}revision"
        self._task: asyncio.Task[None] | None = None
        self._commits = False
        self._rights = False

    def announce(self, rights: bool) -> None:
        """Announce a commit, and whether it changed rights; commits in quick succession share a message."""
        self._commits, self._rights = True, self._rights or rights
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._announce())

    async def _announce(self) -> None:
        while self._commits:
            message, self._commits, self._rights = b"rights" if self._rights else b"", False, False
            try:
                await self._client.publish(self._channel, message)
            except Exception as error:  # the other processes poll
                LOG.debug("redis: not announced: %s", error)

    async def listen_forever(self, heard: Callable[[bool], None]) -> None:
        """Call `heard(rights)` for every announcement, and after every connection."""
        level = logging.WARNING
        while True:
            try:
                async with self._client.pubsub(ignore_subscribe_messages=True) as subscriber:
                    await subscriber.subscribe(self._channel)
                    level = logging.WARNING
                    await self._listen(subscriber, heard)
            except Exception as error:
                LOG.log(level, "redis: cannot receive announcements, polling instead: %s", type(error).__name__)
                level = logging.DEBUG  # reported once, not at every attempt
            await asyncio.sleep(random.uniform(0.3, 0.7))

    @staticmethod
    async def _listen(subscriber: Any, heard: Callable[[bool], None]) -> None:
        heard(False)
        awaits_pong = False
        while True:
            if message := await subscriber.get_message(timeout=5.0):  # an announcement, or the answer to our ping
                awaits_pong = False
                heard(message["data"] == b"rights")
            elif awaits_pong:
                raise ConnectionError("no answer")
            else:  # the only way to detect a dead connection without an error
                awaits_pong = True
                await subscriber.ping()


class EventHub:
    """Wakes the listeners of this process after commits of any process that concern them.

    Commits of other processes are announced by Redis if there is one, and found by polling in any case.
    The poll also finds changed rights.
    """

    def __init__(self, store: TodoStore, relay: RedisRelay | None):
        self._store, self._relay = store, relay
        self.accounts = AccountStore(store.database, store.known, functools.partial(self._announce, rights=True))
        self._listeners: dict[str, set[Listener]] = {}  # by the user's id
        self._latest: dict[str, tuple[int, list[Change], str]] = {}  # the last result for a user, and its `since`
        self._tasks: list[asyncio.Task[None]] = []
        self._news, self._looking = asyncio.Event(), asyncio.Lock()
        self._revision = self._access = 0  # at the last poll
        self._memberships: dict[str, dict[str, str]] = {}

    async def open(self) -> None:
        """Start polling."""
        self._news, self._looking = asyncio.Event(), asyncio.Lock()
        await self._look()
        self._tasks = [asyncio.ensure_future(self._look_forever())]
        if self._relay:
            self._tasks.append(asyncio.ensure_future(self._relay.listen_forever(self._heard)))

    async def close(self) -> None:
        """End all listeners, and stop polling."""
        self.end_listeners()
        await end_tasks(self._tasks)
        self._tasks = []

    def end_listeners(self) -> None:
        """End all listeners."""
        for listener in self._all_listeners():
            listener.end(1001, "the server is stopping")

    def _all_listeners(self) -> list[Listener]:
        return [*itertools.chain.from_iterable(self._listeners.values())]

    def count(self, user: User) -> int:
        """The number of a user's listeners."""
        return len(self._listeners.get(user.id, ()))

    @contextlib.asynccontextmanager
    async def listen(
        self, user: User, end: Callable[[int, str], None], credential_id: str | None
    ) -> AsyncIterator[Listener]:
        """A listener to the changes that a user may see, for as long as the context lasts. Raises Unavailable."""
        await self._look()  # otherwise the first listener would be woken for earlier changes of rights
        listener = Listener(self, user, end, credential_id)
        self._listeners.setdefault(user.id, set()).add(listener)
        try:
            # The credential may have ended between the authentication and this registration.
            await self._check_users([listener])
            yield listener
        finally:
            self._listeners[user.id].discard(listener)
            if not self._listeners[user.id]:
                del self._listeners[user.id]
                self._latest.pop(user.id, None)

    async def read(self, user: User, since: int) -> tuple[list[Change], str]:
        """The changes after a revision that a user may see, oldest first, also as a message of the event socket.

        They are read once for all up-to-date listeners of a user, before these are woken. Raises Unavailable.
        """
        latest_since, changes, text = self._latest.get(user.id, (-1, [], ""))
        return (changes, text) if latest_since == since else await self._read(user, since)

    async def _read(self, user: User, since: int) -> tuple[list[Change], str]:
        changes = await TodoQueries(self._store.database, user).changes(since, None, CHANGES_IN_MESSAGE)
        revision = changes[-1].revision if changes else since
        return changes, msgspec.json.encode({"type": "changes", "changes": changes, "revision": revision}).decode()

    def committed(self, written: WriteResult[Any]) -> None:
        """Wake listeners after a commit of this process."""
        if written.revision:
            self._announce(written.changes_access)

    def _announce(self, rights: bool) -> None:
        """Wake listeners, or have them check their rights, here and in other processes."""
        if rights or self._listeners:
            self._heard(rights)
        if self._relay:
            self._relay.announce(rights)

    def _heard(self, rights: bool) -> None:
        if rights:
            self._store.known.forget()
        self._news.set()

    async def _look_forever(self) -> None:
        known = self._store.known
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._news.wait()
            self._news.clear()
            try:
                if known or self._listeners:
                    await self._look()
            except Exception as error:  # the next poll tries again
                known.is_away = isinstance(error, Unavailable)
                LOG.debug("polling for changes failed: %s", error)

    async def _look(self) -> None:
        """Wake the listeners that a commit since the last poll concerns. Raises Unavailable."""
        async with self._looking:  # otherwise an older read could replace a newer one
            revision, access = await self._store.counters()
            if access != self._access:
                self._store.known.forget()
            await self._store.known.confirm()
            if access != self._access:
                await self._look_at_rights()
                self._access = access
            if self._listeners and revision != self._revision:
                await self._look_at_changes()
            self._revision = revision

    async def _look_at_changes(self) -> None:
        for user_id in await self._store.users_changed_since(self._revision):
            if listeners := self._listeners.get(user_id):
                newest = max(listeners, key=lambda listener: listener.since)
                self._latest[user_id] = newest.since, *await self._read(newest.user, newest.since)
                self._wake(user_id)

    async def _look_at_rights(self) -> None:
        self._latest.clear()
        before, self._memberships = self._memberships, await self._store.memberships()
        for user_id in [*self._listeners]:
            if before.get(user_id) != self._memberships.get(user_id):
                self._wake(user_id, RIGHTS_CHANGED)
        await self._check_users(self._all_listeners())

    def _wake(self, user_id: str, notice: tuple[str, str] | None = None) -> None:
        for listener in self._listeners.get(user_id, ()):
            listener.wake(notice)

    async def _check_users(self, listeners: Collection[Listener]) -> None:
        """End listeners with an invalid credential, and those without one if their user was renamed.

        The others receive the settings of their user, if these have changed.
        """
        valid = await self.accounts.living({each.credential_id for each in listeners if each.credential_id})
        present = await self.accounts.present({each.user for each in listeners})
        for listener in listeners:
            before, user = listener.user, present.get(listener.user.id)
            is_same = listener.credential_id in valid if listener.credential_id else user and user.name == before.name
            if not user or not is_same:
                listener.end(4401, "signed out")
            elif user.settings != before.settings:
                listener.user = user
                message = msgspec.json.encode({"type": "settings", "settings": user.settings}).decode()
                listener.wake(("settings", message))


# ==== decisions: may call stores and live updates ===============================================


def collection_etag(user: User, revision: int) -> str:
    """The validator of a user's to-dos: a database made again counts from 1 again, but has other user ids."""
    return f'"{revision}.{user.id[-8:]}"'


MAX_SHOWN = 1000  # to-dos in the answer to an undo


class Undone(msgspec.Struct, frozen=True):
    """The batch that was undone, the number of its to-dos, the first of them as they are now, and its lists."""

    batch: str
    count: int
    todos: list[Todo]
    lists: list[TodoList]


def decoded_image(side: msgspec.Raw, kind: Any) -> Any:
    """The to-do or list of an image, or None. Its text is cleaned as if it came in now: the log has it as it came."""
    thing = msgspec.json.decode(side, type=kind | None)
    if thing is None:
        return None
    texts = {"notes": clean_text(thing.notes), "tags": [trim(tag) for tag in thing.tags]} if kind is Todo else {}
    return msgspec.structs.replace(thing, title=trim(thing.title), **texts)


def undo_change(batch: TodoBatch, change: Change, present: Mapping[str, Todo]) -> Todo:
    """Revert what a change did to a to-do, and return the to-do. Raises Conflict."""
    todo_id = change.todo or ""
    current = batch.saved.get(todo_id) or present.get(todo_id)
    if current is None or change.action == "purge":
        raise Conflict("What was removed for good, or is no longer yours to change, cannot be brought back.")
    before, after = (decoded_image(side, Todo) for side in (change.before, change.after))
    if after and (comment := after.comment):
        if comment not in batch.ask(TodoQueries.comments, todo_id):
            raise Conflict("The comment has been changed since, so nothing was undone.")
        deleted = msgspec.structs.replace(comment, text="", deleted_at=batch.at)
        return batch.save_comment(current, comment, (before and before.comment) or deleted)
    if before is None and change.action != "create":
        raise Conflict("What this was before has gone with the account that it came from.")
    if before is None:
        if after.repeat and current.completed:
            raise Conflict(
                f"{current.title!r} has been completed since, and was followed by the next: undo that first."
            )
        before = msgspec.structs.replace(after, deleted_at=batch.at)
        if current.deleted_at:
            return current
    if change.action == "reorder" and current.order != after.order:
        return current
    todo = reverted(current, before, after, TODO_UNDOABLE, batch.at)
    return batch.save_todo(current, msgspec.structs.replace(todo, repeat=None) if todo.completed else todo)


async def undo_kept(batch: LongBatch, change: Change) -> None:
    """Revert what a change did to a filter or template. Raises Conflict."""
    kind, (_, _, _, fields) = next(each for each in KINDS_KEPT.items() if each[1].name == change.action)
    before, after = (msgspec.json.decode(side, type=kind | None) for side in (change.before, change.after))
    current = next(iter(await batch.queries.kept(kind, (before or after).id)), None)
    if bool(current) != bool(after):
        raise Conflict(f"{(before or after).title!r} has been changed since, so nothing was undone.")
    if before and after:
        before = reverted(current, before, after, fields, batch.at)
    await batch.keep(kind, current, before)


async def undo_list_change(batch: LongBatch, change: Change) -> TodoList:
    """Revert what a change did to a list, and return the list. Raises Conflict."""
    before, after = (decoded_image(side, TodoList) for side in (change.before, change.after))
    if after is None:
        raise Conflict("What was removed for good cannot be brought back.")
    if change.action == "share":
        raise Conflict("Who may see a list cannot be undone: change its members or links instead.")
    try:
        role = VIEWER if change.action == "arrange" else OWNER
        current = await batch.queries.todo_list(change.list, deleted=after.deleted_at is not None, role=role)
    except NotFound:
        raise Conflict(f"{after.title!r} has been changed since, so nothing was undone.") from None
    before = before or msgspec.structs.replace(after, deleted_at=batch.at)
    return batch.save_list(current, reverted(current, before, after, LIST_UNDOABLE, batch.at))


# ---- decisions: pure functions of loaded rows


def refuse_order(fields: Mapping[str, Any]) -> None:
    """Raise Invalid for an `order` in a request for several to-dos."""
    if "order" in fields:
        raise invalid("order", "is set of one to-do at a time")


def check_move(batch: TodoBatch | TodoQueries, todo: Todo, list_id: str) -> None:
    """Raise Forbidden for an editor who would take a to-do away from the owner of its list."""
    owner_id = batch.owners[todo.list]
    if owner_id not in (batch.owners[list_id], batch.user.id):
        check_role(OWNER, EDITOR)


def reorder(batch: TodoBatch, before: Todo, order: float) -> None:
    """Set the order of a to-do."""
    batch.save_todo(before, msgspec.structs.replace(before, order=order, updated_at=batch.at), "reorder")


def renumber(batch: TodoBatch, list_id: str, sign: int, moved: Todo | None = None) -> float:
    """Move the to-dos near a limit of orders back to the others, and return the outermost order.

    They keep their sequence, with whole numbers, and `moved` keeps its new place among them.
    """
    far_out, order = batch.ask(TodoQueries.far_out, list_id, sign)
    batch.check_size(len(far_out))
    todos = {todo.id: batch.saved.get(todo.id, todo) for todo in [*far_out, *([moved] if moved else [])]}
    for before in sorted(todos.values(), key=lambda todo: (todo.order, todo.id), reverse=sign < 0):
        order = (math.floor(order) if sign > 0 else math.ceil(order)) + float(sign)
        reorder(batch, before, order)
    return order


def next_todos(batch: TodoBatch, todo: Todo, side: int, count: int) -> list[Todo]:
    """Up to n to-dos below one in its list (side 0) or above it (side 1), nearest first, and one more if there are."""
    batch.check_size(count)
    found = batch.ask(TodoQueries.neighbours, todo.list, todo.order, count + 2)[side]
    return [each for each in found if each.id != todo.id][: count + 1]


def make_room(batch: TodoBatch, todo: Todo) -> Todo:
    """Move neighbours that have come too close away, keeping their sequence. Returns the to-do.

    A client that places a to-do halves the gap between two others. A double can be halved some
    fifty times; well before that, enough neighbours are spread out evenly, twice as many at each
    try, which keeps the cost of n moves at O(n log n). Without room below a limit of orders, all to-dos near it
    are moved away from it, including this one.
    """
    for side, sign in enumerate((-1, 1)):
        count = 8
        neighbours = next_todos(batch, todo, side, count)
        if not neighbours or abs(neighbours[0].order - todo.order) >= smallest_gap(todo.order):
            continue
        while True:
            movable = neighbours[:count]
            open_end = todo.order + sign * (len(movable) + 1)
            if len(neighbours) > count:
                edge = neighbours[count].order
            else:  # nothing lies beyond, so there is room
                edge = sign * max(sign * movable[-1].order, sign * open_end)
                if abs(edge) > MAX_ORDER:
                    renumber(batch, todo.list, sign, todo)
                    return batch.saved[todo.id]
            step = (edge - todo.order) / (len(movable) + 1)
            if abs(step) >= 1000 * smallest_gap(todo.order) or len(neighbours) <= count:
                break
            count *= 2
            neighbours = next_todos(batch, todo, side, count)
        for index, before in enumerate(movable, 1):
            reorder(batch, before, todo.order + step * index)
    return todo


MAX_ADDED = 1e6  # to-dos that one write adds to a list


def find_place(batch: TodoBatch, list_id: str | None, grows: bool = True) -> tuple[str, float]:
    """A list and its greatest order, after making room for to-dos if it `grows`. Raises Invalid or Forbidden."""
    end: EndOfList | None = batch.ask(TodoQueries.end_of_list, list_id)
    if end is None:
        raise invalid("list", "names no list of yours")
    check_role(EDITOR, end.role)
    batch.owners[end.list_id] = end.owner_id
    last = batch.ends.get(end.list_id, end.order or 0.0)
    if grows and end.list_id not in batch.ends:
        last = batch.ends[end.list_id] = renumber(batch, end.list_id, 1) if last > MAX_ORDER - MAX_ADDED else last
    return end.list_id, last


def with_assignee(batch: TodoBatch, fields: Mapping[str, Any], list_id: str) -> Mapping[str, Any]:
    """The fields with the id of the user whom `assignee` names. Raises Invalid unless they may see the list."""
    if (name := fields.get("assignee")) is None:
        return fields
    readers = batch.ask(TodoQueries.readers, list_id)
    user_id = readers.get(name) or readers.get(fold_user_name(name))
    if not user_id:
        raise invalid("assignee", "names nobody who may see this list; share the list with them first")
    return {**fields, "assignee": user_id}


def check_parent(batch: TodoBatch, todo_id: str, fields: Mapping[str, Any], list_id: str, is_new: bool = True) -> None:
    """Raise Invalid for a `parent` of which the to-do cannot be a subtask."""
    if fields.get("parent") and (fault := batch.parent_fault(todo_id, fields["parent"], list_id, is_new)):
        raise invalid("parent", fault)


def with_subtasks(batch: TodoBatch, before: Todo) -> list[Todo]:
    """A to-do and its subtasks: those outside the trash or, if it is in the trash, those that went there with it."""
    here = [
        each for each in batch.subtasks(before.id) if (each.list, each.deleted_at) == (before.list, before.deleted_at)
    ]
    return [before, *here]


def trash(batch: TodoBatch, before: Todo) -> int:
    """Move a to-do with its subtasks to the trash; returns their number."""
    found = with_subtasks(batch, before)
    for each in found:
        batch.save_todo(each, changed(each, batch.at, deleted_at=batch.at))
    return len(found)


def save_new(batch: TodoBatch, todo_id: str, fields: Mapping[str, Any]) -> Todo:
    """Make a to-do of fields that name its list and its order."""
    todo = Todo(id=todo_id, created_at=batch.at, updated_at=batch.at, **{"title": "", **fields})
    done = {"completed_at": batch.at, "repeat": None}
    return batch.save_todo(None, changed(todo, batch.at, **done) if todo.completed else todo)


def create_todo(batch: TodoBatch, todo_id: str, fields: Mapping[str, Any]) -> Todo:
    """Make a to-do at the end of its list, unless `order` is set. Raises Invalid for a list that does not exist.

    It goes to the list of its parent if it names none.
    """
    if fields.get("parent") and "list" not in fields and (parent := batch.now(fields["parent"])):
        fields = {**fields, "list": parent.list}
    list_id, last = find_place(batch, fields.get("list"), "order" not in fields)
    fields = with_assignee(batch, fields, list_id)
    check_parent(batch, todo_id, fields, list_id)
    todo = save_new(batch, todo_id, {"order": last + 1, **fields, "list": list_id})
    return make_room(batch, todo) if "order" in fields else todo


# The fields that a template keeps. Its dates, ends of rules and reminders at a time are moved when it is used.
TEMPLATE_FIELDS = ("title", *(TODO_DEFAULTS.keys() - {"completed", "assignee", "parent"}))


def template_of(todo: Todo) -> dict[str, Any]:
    return {name: getattr(todo, name) for name in TEMPLATE_FIELDS}


def moved_fields(fields: Mapping[str, Any], days: datetime.timedelta, zone: str) -> dict[str, Any]:
    """The fields of a template's to-do with their dates some days later."""
    moved = {name: moved_by_days(fields[name], days, zone) for name in ("due", "start") if fields.get(name)}
    if fields.get("repeat"):
        moved["repeat"] = moved_rule(fields["repeat"], days)
    reminders = msgspec.convert(fields.get("reminders", []), Reminders)
    times = [(each, moved_by_days(each.at, days, zone) if each.at else None) for each in reminders]
    # The calendar may have no such day.
    kept = [Reminder(at, each.before, each.of) for each, at in times if at or not each.at]
    return {**fields, **moved, "reminders": kept}


def days_until(due: str, todo: Todo, batch: TodoBatch) -> datetime.timedelta:
    """The days from the due date of a to-do, or else from its start or today, to another."""
    zone = batch.user.time_zone
    return due_in_zone(due, zone)[0] - due_in_zone(todo.due or todo.start or batch.at, zone)[0]


def following_fields(todo: Todo, repeat: str, batch: TodoBatch) -> dict[str, Any]:
    """The due date, start, rule and reminders of the to-do that follows one; empty if none follows.

    The start and reminders at a time keep their distance from the due date.
    """
    zone = batch.user.time_zone
    found = next_occurrence(todo.due, repeat, batch.at, zone)
    if not found:
        return {}
    moved = moved_fields(
        {"start": todo.start, "reminders": todo.reminders}, days_until(found["due"], todo, batch), zone
    )
    return {**moved, **found}


def save_following(batch: TodoBatch, todo: Todo, repeat: str, subtasks: str) -> None:
    """Make the next of a completed to-do that repeats, in the same place, with its subtasks.

    Those that stay open go over to it. The others are copied, one of each series: these share title and place.
    """
    following = following_fields(todo, repeat, batch)
    if not following:
        return
    new = {"id": uuid7(), "created_at": batch.at, "completed": False, "completed_at": None, "comments": 0}
    made = batch.save_todo(None, msgspec.structs.replace(todo, **new, **following))
    days, below = days_until(made.due or batch.at, todo, batch), collections.defaultdict(list)
    for each in with_subtasks(batch, todo)[1:]:
        below[each.parent].append(each)
    parents = [(todo.id, made.id)]
    for old_id, new_id in parents:
        series = set()
        for each in sorted(below[old_id], key=lambda each: each.completed):
            if subtasks == "keep" and not each.completed:
                batch.save_todo(each, changed(each, batch.at, parent=new_id))
            elif (each.title, each.order) not in series:
                place = {"list": each.list, "order": each.order, "parent": new_id, "assignee": each.assignee}
                fields = moved_fields(template_of(each), days, batch.user.time_zone)
                parents.append((each.id, save_new(batch, uuid7(), {**fields, **place}).id))
            series.add((each.title, each.order))


def change_todo(batch: TodoBatch, before: Todo, fields: Mapping[str, Any], subtasks: str = "keep") -> Todo:
    """Save a to-do with these fields; moved to another list, it goes to the end unless `order` is set.

    Its subtasks move with it. If this completes one that repeats, the next is made in the same place. With
    "complete", its open subtasks are completed with it, and end if they repeat.
    """
    list_id = fields.get("list", before.list)
    values = fields = with_assignee(batch, fields, list_id)
    others = with_subtasks(batch, before)[1:] if list_id != before.list else []
    if list_id != before.list:
        _, last = find_place(batch, list_id, "order" not in fields or bool(others))
        check_move(batch, before, list_id)
        values = {"order": last + 1, "parent": None, **fields}
    if (list_id, values.get("parent", before.parent)) != (before.list, before.parent):
        check_parent(batch, before.id, values, list_id, is_new=False)
    after = batch.save_todo(before, changed_todo(before, values, batch.at))
    for each in others:
        batch.save_todo(each, changed(each, batch.at, list=list_id, order=batch.ends[list_id] + 1))
    is_completed, repeat = after.completed and not before.completed, values.get("repeat", before.repeat)
    if is_completed and repeat:
        save_following(batch, after, repeat, subtasks)
    for each in with_subtasks(batch, after)[1:] if is_completed and subtasks == "complete" else []:
        batch.save_todo(each, changed_todo(each, {"completed": True}, batch.at))
    return make_room(batch, after) if "order" in fields and after is not before else after


async def add_list(batch: LongBatch, fields: Mapping[str, Any]) -> TodoList:
    """Make a list, the last of the caller's unless `order` is set."""
    at, last = batch.at, max(entry.order for entry in await batch.queries.lists())
    if last + 1 > MAX_ORDER:
        last = 0.0
        for entry in await batch.queries.own_lists():
            last += 1
            batch.save_list(entry, changed(entry, at, order=last))
    values = {"order": last + 1, **fields}
    return batch.save_list(None, TodoList(id=uuid7(), created_at=at, updated_at=at, **values))


def template_fields(todo_list: TodoList, todos: Sequence[Todo], zone: str) -> dict[str, Any]:
    """The fields of a template of a list and its open to-dos in their sequence, but no default values."""
    times = [each.at for todo in todos for each in todo.reminders if each.at]
    dates = [due_in_zone(each, zone)[0] for todo in todos for each in (todo.due, todo.start) if each]
    dates = dates or [due_in_zone(each, zone)[0] for each in times]
    shown = [
        {name: value for name, value in template_of(todo).items() if value != TODO_DEFAULTS.get(name)} for todo in todos
    ]
    places = {todo.id: index for index, todo in enumerate(todos)}
    for fields, todo in zip(shown, todos, strict=True):
        if todo.parent in places:
            fields["parent"] = places[todo.parent]  # it has no id yet
    day = min(dates).isoformat() if dates else None
    return {"title": todo_list.title, "colour": todo_list.colour, "day": day, "todos": msgspec.to_builtins(shown)}


# ---- bulk acts

SLICE = 200  # to-dos that one transaction of a bulk act changes, while other writes wait
HELD_SECONDS = 15  # after a slice, until another process may go on with the act


class Act(msgspec.Struct, kw_only=True):
    """A bulk act on more to-dos than one transaction may change: in slices that commit, as one batch.

    It is kept, with the slices that are not done, so that it is carried out to its end whatever happens.
    """

    kind: Literal["patch", "delete", "undo"]
    user: User
    batch: str = ""
    slices: int = 0
    fields: dict[str, Any] = {}  # that a patch sets
    add_tags: bool = False  # whether its tags are added to those of each to-do
    subtasks: str = "keep"  # or "complete", when it completes their parents
    deleted: bool = False  # whether it is about to-dos in the trash
    undone: str = ""  # the batch that an undo reverts
    undoes: str | None = None  # this batch, unless it is itself an undo
    shown: list[str] = []  # ids of the to-dos in the answer to an undo
    key: tuple[str, str] | None = None  # the Idempotency-Key of the request, and its fingerprint

    def repeat(self, number: int) -> Repeat | None:
        """The Repeat with which a slice is written: the answer to the request is that of the last one."""
        return Repeat(*self.key, Undone) if self.key and number == self.slices - 1 else None


def sequence_of(parents: Mapping[str, str | None], act: Act) -> list[str]:
    """The ids of the to-dos of a bulk act in the sequence in which it changes them; `parents` has their parents.

    Subtasks move with their parents, so parents come first. They are completed before their parents, or the next
    of a parent that repeats would take them along as open ones.
    """

    def depth(todo_id: str) -> int:
        above, count = parents[todo_id], 0
        while above and above in parents and count < MAX_SUBTASK_DEPTH:
            above, count = parents[above], count + 1
        return count

    return sorted(parents, key=depth, reverse="completed" in act.fields and "list" not in act.fields)


async def patch_some(batch: LongBatch, act: Act, todos: Sequence[Todo]) -> int:
    """Set the fields of a bulk act; returns the number of these to-dos that it changed."""
    fields = act.fields
    if "list" in fields:
        await batch.loaded.settle(find_place, batch, fields["list"])
    by_id = {todo.id: todo for todo in todos}
    sequence = sequence_of({todo.id: todo.parent for todo in todos}, act)
    async for each in in_batches([by_id[todo_id] for todo_id in sequence]):
        before = batch.saved.get(each.id, each)
        is_added = act.add_tags and "tags" in fields
        values = {**fields, "tags": more_tags(before, fields["tags"])} if is_added else fields
        await batch.settle(change_todo, before, values, act.subtasks)
    return sum(each.id in batch.saved for each in todos)


async def delete_some(batch: LongBatch, act: Act, todos: Sequence[Todo]) -> int:
    """Move to-dos to the trash, or delete those in the trash for good; returns their number."""
    count, purged = 0, set[str]()
    for before in todos:
        if not act.deleted and before.id not in batch.saved:
            count += await batch.settle(trash, before)
        elif act.deleted and before.id not in purged:
            found = await batch.settle(with_subtasks, before)
            found = [each for each in found if each.id not in purged]
            purged |= {each.id for each in found}
            count += len(found)
            for each in found:
                batch.purge_todo(each)
    return count


def keep_with_parent(batch: TodoBatch, before: Todo, todo: Todo, undone: str) -> Todo:
    """Have the present subtasks of a to-do follow what an undo did to it; without its parent, it is top level.

    In slices, the parent may still be where the undo has found this to-do, and subtasks may have their turn later.
    """
    todo = batch.saved.get(todo.id, todo)
    place = {"list": todo.list, "deleted_at": todo.deleted_at}
    is_moved = place != {"list": before.list, "deleted_at": before.deleted_at}
    others = with_subtasks(batch, before)[1:] if is_moved else []
    its_own = {todo_id for _, todo_id in batch.ask(TodoQueries.batch_revisions, undone)[0]} if others else set()
    for each in others:
        if each.id not in its_own:
            batch.save_todo(each, changed(each, batch.at, **place))
    if not todo.parent or todo.deleted_at:
        return todo
    seen = batch.seen_todo(todo.parent)
    parent = batch.saved.get(todo.parent) or (seen and seen.todo)
    is_waiting = parent and (parent.list, parent.deleted_at) == (before.list, before.deleted_at)
    if is_waiting or not batch.parent_fault(todo.id, todo.parent, todo.list):
        return todo
    return batch.save_todo(todo, changed(todo, batch.at, parent=None))


async def revert_some(
    batch: TodoBatch, queries: TodoQueries, changes: Sequence[Change], lists: Sequence[TodoList] = ()
) -> list[Todo]:
    """Revert changes of to-dos, and return these; `lists` come back with them. Raises Conflict or Forbidden."""
    present = await queries.batch_todos(changes)
    batch.owners = queries.owners
    todos = [await batch.settle(undo_change, change, present) async for change in in_batches(changes)]
    todos = [
        await batch.settle(keep_with_parent, present[todo.id], todo, changes[0].batch)
        async for todo in in_batches(todos)
    ]
    for list_id in {todo.list for todo in todos} - {todo_list.id for todo_list in lists}:
        try:
            await queries.todo_list(list_id, role=EDITOR)
        except NotFound:
            raise Conflict("The list that this was in has been deleted. Restore the list first.") from None
    for todo in todos:
        check_move(batch, present[todo.id], todo.list)
    return todos


ACT_STATE = "next_slice, done, held_by, held_until"
NOTE_SLICE = "UPDATE acts SET next_slice = $2, done = done + $3, held_by = $4, held_until = $5 WHERE batch = $1"


def slice_id(act: Act, number: int) -> str:
    return f"{act.batch}/{number:06}"


class TooMany(Exception):
    """A write of more than SLICE to-dos has to be carried out in slices."""


class BulkActs:
    """The bulk acts that are being carried out, here or by other processes, each in slices.

    A slice changes its to-dos, and removes itself, in one transaction. So after a crash an act goes on where it was:
    the process that carries it out holds it for some seconds after each slice, and then any process may.
    """

    def __init__(self, store: TodoStore, hub: EventHub):
        self.store, self.hub = store, hub
        self._holder = uuid7()
        self._tasks: dict[str, asyncio.Task[WriteResult]] = {}  # by batch

    async def of_user(self, source: Source, user: User) -> list[Act]:
        """A user's acts that are not done."""
        rows = await source.fetch("SELECT act FROM acts WHERE user_id = $1", user.id)
        return [msgspec.json.decode(row[0], type=Act) for row in rows]

    async def start(self, act: Act, items: Sequence[Any], check: Callable[[LongBatch], Awaitable[None]]) -> WriteResult:
        """Carry out an act on ids of to-dos, or groups of revisions; returns when it is done.

        The first slice is committed with the act, after a check, so that an error in either leaves nothing behind.
        It is carried out to its end even if the caller does not wait. Raises Unavailable if the server is stopped
        meanwhile, or the database is: the act goes on when they are back.
        """
        slices = [items[start : start + SLICE] for start in range(0, len(items), SLICE)]
        act.slices = len(slices)

        async def begin(batch: LongBatch) -> int:
            await check(batch)
            act.batch = batch.id
            kept = act.batch, act.user.id, msgspec.json.encode(act).decode(), 1, 0, self._holder, self._end_of_hold()
            await batch.source.fetch(insert("acts", f"batch, user_id, act, {ACT_STATE}"), *kept)
            rows = [(slice_id(act, n), act.user.id, json.dumps(slices[n])) for n in range(1, len(slices))]
            await batch.source.execute_many(insert("slices", "id, user_id, items"), rows)
            return await self._carry_out(batch, act, 0, slices[0])

        first = await self.store.write(act.user, begin, self.hub.committed, act.repeat(0))
        return await asyncio.shield(self._go_on(act, 1, first))

    def _go_on(self, act: Act, number: int, first: WriteResult | None = None) -> asyncio.Task[WriteResult]:
        task = self._tasks[act.batch] = asyncio.ensure_future(self._finish(act, number, first))
        task.add_done_callback(lambda task: self._tasks.pop(act.batch) and (task.cancelled() or task.exception()))
        return task

    async def _finish(self, act: Act, number: int, written: WriteResult | None) -> WriteResult:
        """Carry out all slices from a number on. Raises Unavailable, or what ends the act."""
        batch = written and written.batch
        for each in range(number, act.slices):
            try:
                written = await self._next(act, each)
                batch = batch or written.batch  # a slice can find all its to-dos changed with their parents
            except Unavailable as error:
                error.detail += " What was begun goes on automatically: look at its result before you repeat it."
                raise
            except asyncio.CancelledError:
                raise Unavailable("The server is stopping. It goes on with this when it is started again.") from None
            except Exception:
                await write_locked(self.store.database, functools.partial(self._forget, act))
                raise
        assert written
        return written._replace(batch=batch)

    async def _next(self, act: Act, number: int) -> WriteResult:
        """Carry out a slice. An undo leaves out to-dos that have changed so that it would be a conflict."""
        repeat = act.repeat(number)
        operation = functools.partial(self._run_slice, act, number)
        try:
            return await self.store.write(act.user, operation, self.hub.committed, repeat)
        except (Conflict, Forbidden):
            if act.kind != "undo":
                raise
        return await self.store.write(act.user, functools.partial(operation, careful=True), self.hub.committed, repeat)

    async def _run_slice(self, act: Act, number: int, batch: LongBatch, careful: bool = False) -> Any:
        rows = await batch.source.fetch("DELETE FROM slices WHERE id = $1 RETURNING items", slice_id(act, number))
        if not rows:
            raise Unavailable("Another process has taken over.")
        items = json.loads(rows[0][0])
        if careful:
            items = [each for each in items if await self._is_undoable(act, batch, each)]
        return await self._carry_out(batch, act, number, items)

    async def _carry_out(self, batch: LongBatch, act: Act, number: int, items: Sequence[Any]) -> Any:
        """Change the to-dos of a slice; returns the number of all so far, or after the last of an undo Undone."""
        batch.id = act.batch
        if act.kind == "undo":
            batch.undoes = act.undoes
            changes = await batch.queries.changes_to_undo([*itertools.chain(*items)])
            done = len(await revert_some(batch, batch.queries, changes))
        else:
            todos = await batch.queries.changeable_todos(items, OWNER if act.deleted else EDITOR)
            chosen = [todos[each] for each in items if each in todos]
            chosen = [todo for todo in chosen if bool(todo.deleted_at) == act.deleted]
            done = await {"patch": patch_some, "delete": delete_some}[act.kind](batch, act, chosen)
            if "list" in act.fields:  # with which subtasks of later slices are moved, too
                others = [each.id for each in chosen if each.id not in batch.saved]
                done += len(await batch.queries.changed_by(act.batch, others))
        is_last = number == act.slices - 1
        sql = "DELETE FROM acts WHERE batch = $1" if is_last else NOTE_SLICE
        state = [] if is_last else [number + 1, done, self._holder, self._end_of_hold()]
        so_far = await batch.source.fetch(f"{sql} RETURNING done", act.batch, *state)
        if not so_far:
            raise NotFound("The account was deleted.")
        total = so_far[0][0] + done * is_last
        if not is_last or act.kind != "undo":
            return total
        todos = await batch.queries.changeable_todos(act.shown) | batch.saved
        return Undone(act.undone, total, [todos[each] for each in act.shown if each in todos], [])

    async def _is_undoable(self, act: Act, batch: LongBatch, revisions: Sequence[int]) -> bool:
        try:
            await self.try_undo(batch.queries, revisions)
        except (Conflict, Forbidden):
            return False
        return True

    @staticmethod
    async def try_undo(queries: TodoQueries, revisions: Sequence[int]) -> None:
        """Raise Conflict or Forbidden if changes cannot be reverted."""
        nothing = TodoBatch(Loaded(cast(Transaction, queries.source), 0), queries.user)  # which only reads
        await revert_some(nothing, queries, await queries.changes_to_undo(revisions))

    async def _forget(self, act: Act, transaction: Transaction) -> None:
        its_slices, its_act = "slices WHERE substr(id, 1, 36) = $1", "acts WHERE batch = $1"
        await remove(transaction, its_slices, its_act, arguments=[act.batch])

    @staticmethod
    def _end_of_hold() -> int:
        return now_milliseconds() + HELD_SECONDS * 1000

    async def go_on_forever(self) -> None:
        """Go on with the acts of processes that have ended."""
        while True:
            try:
                await self._take_over()
            except Exception as error:
                LOG.warning("looking for unfinished bulk changes failed and is tried again: %s", error)
            await asyncio.sleep(HELD_SECONDS / 3)

    async def _take_over(self) -> None:
        free, now = "held_until < $1", now_milliseconds()
        if not await self.store.database.fetch(f"SELECT 1 FROM acts WHERE {free}", now):
            return
        take = f"UPDATE acts SET held_by = $2, held_until = $3 WHERE {free} RETURNING act, next_slice"
        taken = await write_locked(self.store.database, take, now, self._holder, self._end_of_hold())
        for text, number in taken:
            act = msgspec.json.decode(text, type=Act)
            act.fields = read_fields(act.fields, TodoFields)
            if act.batch not in self._tasks:
                LOG.info("going on with a bulk change of %s at slice %d of %d", act.user.name, number, act.slices)
                self._go_on(act, number)

    async def close(self) -> None:
        """Stop after the current slices. The acts continue after the next start."""
        await end_tasks([*self._tasks.values()])


# ==== service: may call decisions, stores and live updates ======================================


def transactional(
    query: Callable | None = None, argument: Callable[..., Any] = lambda todo_id, *_: todo_id
) -> Callable:
    """Make a method that works on a batch one that a user calls, with `repeat` for an Idempotency-Key.

    It runs in a transaction and publishes after the commit. With a `query`, its first one, it is a short write,
    decided from loaded rows; `argument` makes the query's argument from its own. Without, it is a coroutine.
    """

    def decorate(run: Callable[..., Any]) -> Callable[..., Awaitable[WriteResult]]:
        @functools.wraps(run)
        async def write(
            self: "TodoService", user: User, *arguments: Any, repeat: Repeat | None = None, **options: Any
        ) -> WriteResult:
            act = functools.partial(self.store.decide, (query, argument(*arguments))) if query else self.store.write
            return await act(user, lambda batch: run(self, batch, *arguments, **options), self.hub.committed, repeat)

        return write

    return decorate


class TodoService:
    """The only writer. The operations take the user first, and return a WriteResult."""

    def __init__(self, store: TodoStore, hub: EventHub):
        self.store, self.hub = store, hub
        self.acts = BulkActs(store, hub)

    def queries(self, user: User) -> TodoQueries:
        """Reads for this user."""
        return TodoQueries(self.store.database, user)

    # ---- one to-do

    @transactional(TodoQueries.end_of_list, lambda fields: fields.get("list"))
    def create(self, batch: TodoBatch, fields: Mapping[str, Any]) -> Todo:
        """Make a to-do. Raises Invalid for a list that does not exist."""
        return create_todo(batch, uuid7(), fields)

    @transactional(TodoQueries.seen_todos)
    def replace(
        self,
        batch: TodoBatch,
        todo_id: str,
        fields: Mapping[str, Any],
        if_match: str | None,
        only_new: bool = False,
        subtasks: str = "keep",
    ) -> tuple[Todo, bool]:
        """Make the to-do of this id, or set all its fields; also returns whether it was made.

        Fields that are not sent get their defaults, except `list` and `order`, which stay. To repeat
        the request that made it answers as that did. Raises Conflict for an id in the trash or in use.
        """
        seen = batch.seen_todo(todo_id)
        if seen is None:
            if if_match is not None:
                raise PreconditionFailed("There is no such to-do.")
            return create_todo(batch, todo_id, fields), True
        if seen.role is None:
            raise Conflict("This id is in use already. Make a new UUID.")
        check_role(EDITOR, seen.role)
        before = seen.todo
        if only_new:
            raise PreconditionFailed("There is a to-do of this id already.")
        if before.deleted_at:
            raise Conflict("This to-do is in the trash. Restore it first.")
        check_precondition(if_match, revision_etag(before.revision))
        after = change_todo(batch, before, {**TODO_DEFAULTS, **fields}, subtasks)
        untouched_since_made = after is before and before.created_at == before.updated_at
        return after, untouched_since_made

    @transactional(TodoQueries.seen_todos)
    def patch(
        self, batch: TodoBatch, todo_id: str, fields: Mapping[str, Any], if_match: str | None, subtasks: str = "keep"
    ) -> Todo:
        """Set these fields of a to-do. Raises NotFound or PreconditionFailed."""
        return change_todo(batch, batch.todo(todo_id, if_match=if_match), fields, subtasks)

    @transactional(TodoQueries.seen_todos)
    def skip(self, batch: TodoBatch, todo_id: str, if_match: str | None) -> Todo:
        """Move a to-do that repeats to its next due date. Raises NotFound, PreconditionFailed or Conflict."""
        before = batch.todo(todo_id, if_match=if_match)
        if not before.repeat:
            raise Conflict("This to-do does not repeat.")
        following = following_fields(before, before.repeat, batch)
        if not following:
            raise Conflict("This is the last one of its series. Complete it, or move it to the trash.")
        return batch.save_todo(before, changed(before, batch.at, **following))

    async def delete(self, user: User, todo_id: str, if_match: str | None, deleted: bool = False) -> WriteResult[None]:
        """Move a to-do to the trash, or delete one in the trash for good. Raises NotFound."""
        return await (self._purge if deleted else self._delete)(user, todo_id, if_match)

    @transactional(TodoQueries.seen_todos)
    def _delete(self, batch: TodoBatch, todo_id: str, if_match: str | None) -> None:
        trash(batch, batch.todo(todo_id, if_match=if_match))

    @transactional()
    async def _purge(self, batch: LongBatch, todo_id: str, if_match: str | None) -> None:
        before = await batch.queries.todo(todo_id, deleted=True, role=OWNER)
        check_precondition(if_match, revision_etag(before.revision))
        await delete_some(batch, Act(kind="delete", user=batch.user, deleted=True), [before])

    @transactional(TodoQueries.seen_todos)
    def restore(self, batch: TodoBatch, todo_id: str) -> Todo:
        """Take a to-do out of the trash, if it is there, with the subtasks that went there with it. Raises NotFound.

        Without its parent it comes back at the top level.
        """
        before = batch.todo(todo_id, deleted=None)
        if not before.deleted_at:
            return before
        is_alone = before.parent and batch.parent_fault(before.id, before.parent, before.list)
        parent_id = None if is_alone else before.parent
        _, *others = with_subtasks(batch, before)
        after = batch.save_todo(before, changed(before, batch.at, deleted_at=None, parent=parent_id))
        for each in others:
            batch.save_todo(each, changed(each, batch.at, deleted_at=None))
        return after

    # ---- comments

    @transactional(TodoQueries.seen_todos)
    def add_comment(self, batch: TodoBatch, todo_id: str, text: str) -> Comment:
        """Add a comment to a to-do. Raises NotFound, Forbidden, or Conflict if there are too many."""
        todo = batch.todo(todo_id)
        if len(batch.ask(TodoQueries.comments, todo_id)) >= MAX_COMMENTS:
            raise Conflict(f"This to-do has {MAX_COMMENTS} comments, and cannot have more.")
        comment = Comment(id=uuid7(), author=batch.user.id, text=text, created_at=batch.at)
        batch.save_comment(todo, None, comment)
        return comment

    @transactional(TodoQueries.seen_todos)
    def change_comment(self, batch: TodoBatch, todo_id: str, comment_id: str, text: str | None) -> Comment | None:
        """Set the text of a comment, or delete it if that is None. Raises NotFound or Forbidden."""
        todo = batch.todo(todo_id)
        its = {each.id: each for each in batch.ask(TodoQueries.comments, todo_id) if not each.deleted_at}
        before = its.get(comment_id)
        if before is None:
            raise NotFound("There is no such comment.")
        if before.author != batch.user.id and (text is not None or batch.owners[todo.list] != batch.user.id):
            raise Forbidden("Only its author may change a comment, and only its author or the list's owner delete it.")
        if text == before.text:
            return before
        values = {"text": "", "deleted_at": batch.at} if text is None else {"text": text, "edited_at": batch.at}
        after = msgspec.structs.replace(before, **values)
        batch.save_comment(todo, before, after)
        return None if text is None else after

    # ---- many to-dos

    @transactional()
    async def create_all(self, batch: LongBatch, items: Sequence[Mapping[str, Any]]) -> list[Todo]:
        """Make a to-do of each item, in their sequence, as one batch.

        Raises Invalid, and makes none, for a list that does not exist and for an `order`.
        """
        todos: list[Todo] = []
        ids = sorted(uuid7() for _ in items)  # to-dos that are equal otherwise are sorted by id
        async for index, fields in in_batches(enumerate(items)):
            with naming_item(index):
                refuse_order(fields)
                todos.append(await batch.settle(create_todo, ids[index], fields))
        return todos

    async def patch_all(
        self,
        user: User,
        which: TodoFilter,
        fields: Mapping[str, Any],
        if_match: str | None,
        add_tags: bool = False,
        subtasks: str = "keep",
    ) -> WriteResult:
        """Set these fields of all to-dos that a filter selects, as one batch; the result is their number."""
        refuse_order(fields)
        if fields.get("parent"):
            raise invalid("parent", "is set of one to-do at a time; null makes all of them top level")
        act = Act(kind="patch", user=user, fields=dict(fields), add_tags=add_tags, subtasks=subtasks)
        return await self._act_on(act, which, if_match)

    async def delete_all(self, user: User, which: TodoFilter, if_match: str | None) -> WriteResult:
        """Move all that a filter selects to the trash, or delete what it selects there for good."""
        return await self._act_on(Act(kind="delete", user=user, deleted=which.deleted), which, if_match)

    async def _act_on(self, act: Act, which: TodoFilter, if_match: str | None) -> WriteResult:
        role = OWNER if act.deleted else EDITOR
        try:
            return await self._act_at_once(act.user, act, which, if_match, role)
        except TooMany:
            items = await self._select(act, which, role)

        async def check(batch: LongBatch) -> None:
            check_precondition(if_match, collection_etag(batch.user, await batch.queries.revision(which.list)))

        return await self.acts.start(act, items, check)

    @transactional()
    async def _act_at_once(self, batch: LongBatch, act: Act, which: TodoFilter, if_match: str | None, role: str) -> int:
        if which.list:
            await batch.queries.todo_list(which.list, role=role)
        check_precondition(if_match, collection_etag(batch.user, await batch.queries.revision(which.list)))
        todos = await batch.queries.todos(which, Page(limit=SLICE), role)
        if len(todos) > SLICE:
            raise TooMany
        return await (delete_some if act.kind == "delete" else patch_some)(batch, act, todos)

    async def _select(self, act: Act, which: TodoFilter, role: str) -> list[str]:
        """The ids of all to-dos that a filter selects, in the sequence in which the act changes them.

        Raises Forbidden if one may not be moved as the act would.
        """
        queries, parents, page = self.queries(act.user), dict[str, str | None](), Page(limit=1000)
        target = "list" in act.fields and await queries.end_of_list(act.fields["list"])
        if target:
            queries.owners[target.list_id] = target.owner_id
        while True:
            todos = await queries.todos(which, page, role)
            for todo in todos[: page.limit]:
                if target and todo.list != target.list_id:
                    check_move(queries, todo, target.list_id)
                parents[todo.id] = todo.parent
            if len(todos) <= page.limit:
                return sequence_of(parents, act)
            last = todos[page.limit - 1]
            page = page._replace(after=(sort_value(last, page.sort), last.id))

    # ---- lists

    @transactional()
    async def create_list(self, batch: LongBatch, fields: Mapping[str, Any]) -> TodoList:
        """Make a list."""
        return await add_list(batch, fields)

    @transactional()
    async def patch_list(
        self, batch: LongBatch, list_id: str, fields: Mapping[str, Any], if_match: str | None
    ) -> TodoList:
        """Set these fields of a list: its title only for the owner. Raises NotFound, PreconditionFailed or Conflict."""
        is_arranged = fields and fields.keys() <= set(ARRANGED)
        before = await batch.queries.todo_list(list_id, role=VIEWER if is_arranged else OWNER)
        check_precondition(if_match, revision_etag(before.revision))
        if before.inbox and fields.get("archived"):
            raise Conflict("The Inbox cannot be archived: to-dos without a list go there.")
        return batch.save_list(before, changed(before, batch.at, **fields))

    async def delete_list(
        self, user: User, list_id: str, if_match: str | None, deleted: bool = False
    ) -> WriteResult[None]:
        """Move a list with its to-dos to the trash, or delete one in the trash for good."""
        if deleted:
            before = await self.queries(user).todo_list(list_id, deleted, role=OWNER)
            check_precondition(if_match, revision_etag(before.revision))
            await self._purge_todos_of(user, before, now_milliseconds())
        return await self._delete_list(user, list_id, if_match, deleted)

    async def _purge_todos_of(self, user: User, todo_list: TodoList, before: int) -> None:
        """Remove the to-dos of a list that is in the trash since before a time, while others can write."""
        trashed = "SELECT id FROM lists WHERE deleted_at <= $3"
        which = f"owner_id = $1 AND list_id = $2 AND list_id IN ({trashed})"
        await purge_in_parts(self.store.database, which, user.id, todo_list.id, before)

    @transactional()
    async def _delete_list(self, batch: LongBatch, list_id: str, if_match: str | None, deleted: bool) -> None:
        before = await batch.queries.todo_list(list_id, deleted, role=OWNER)
        if before.inbox:
            raise Conflict("The Inbox always exists: to-dos without a list go there.")
        check_precondition(if_match, revision_etag(before.revision))
        if deleted:
            await batch.purge_list(before)
        else:
            batch.save_list(before, changed(before, batch.at, deleted_at=batch.at))

    @transactional()
    async def restore_list(self, batch: LongBatch, list_id: str) -> TodoList:
        """Take a list with its to-dos out of the trash, if it is there. Raises NotFound or Forbidden."""
        before = await batch.queries.todo_list(list_id, deleted=None, role=OWNER)
        return batch.save_list(before, changed(before, batch.at, deleted_at=None))

    # ---- filters and templates

    @transactional()
    async def keep(
        self, batch: LongBatch, kind: type[Any], thing_id: str, fields: Mapping[str, Any], if_match: str | None = None
    ) -> Any:
        """Make a filter or template, or with an id set these fields of one. Raises NotFound or PreconditionFailed."""
        if not thing_id:
            new: dict[str, Any] = {"id": uuid7(), "created_at": batch.at, "updated_at": batch.at}
            return await batch.keep(kind, None, kind(**new, **fields))
        before = await batch.queries.kept_one(kind, thing_id)
        check_precondition(if_match, revision_etag(before.revision))
        return await batch.keep(kind, before, changed(before, batch.at, **fields))

    @transactional()
    async def forget(self, batch: LongBatch, kind: type[Any], thing_id: str, if_match: str | None) -> None:
        """Delete a filter or template. Raises NotFound or PreconditionFailed."""
        before = await batch.queries.kept_one(kind, thing_id)
        check_precondition(if_match, revision_etag(before.revision))
        await batch.keep(kind, before, None)

    @transactional()
    async def use_template(self, batch: LongBatch, template_id: str, title: str, day: datetime.date) -> TodoList:
        """Make a list from a template. Its first date is on this day, and the others keep their distance from it."""
        template = await batch.queries.kept_one(Template, template_id)
        fields = {"title": title or template.title, "colour": template.colour}
        made = await add_list(batch, fields)
        days = day - datetime.date.fromisoformat(template.day or day.isoformat())
        ids = sorted(uuid7() for _ in template.todos)
        async for index, todo in in_batches(enumerate(template.todos)):
            moved = moved_fields(todo, days, batch.user.time_zone)
            if "parent" in moved:
                moved["parent"] = ids[moved["parent"]]
            save_new(batch, ids[index], {**moved, "list": made.id, "order": index + 1.0})
        return made

    # ---- sharing

    @transactional()
    async def share(self, batch: LongBatch, list_id: str, name: str, role: str) -> tuple[Member, bool]:
        """Make a user a member of a list, or change their role; also returns whether they are new.

        Raises NotFound, Forbidden, Conflict for the Inbox, or Invalid for an unknown name.
        """
        return await self._share(batch, list_id, batch.put_member, name, role)

    @transactional()
    async def make_link(self, batch: LongBatch, list_id: str) -> tuple[Credential, str]:
        """Make a link by which a list can be read; also returns its secret."""
        return await self._share(batch, list_id, batch.add_link)

    @transactional()
    async def end_link(self, batch: LongBatch, list_id: str, link_id: str) -> None:
        """Revoke a link. Raises NotFound or Forbidden."""
        await self._share(batch, list_id, batch.remove_link, link_id)

    @transactional()
    async def unshare(self, batch: LongBatch, list_id: str, name: str) -> None:
        """End a membership: the owner anybody's, a member their own. Raises NotFound or Forbidden."""
        role = VIEWER if fold_user_name(name) == fold_user_name(batch.user.name) else OWNER
        await self._share(batch, list_id, batch.remove_member, name, role=role)

    @staticmethod
    async def _share(batch: LongBatch, list_id: str, act: Callable, *arguments: Any, role: str = OWNER) -> Any:
        todo_list = await batch.queries.todo_list(list_id, role=role)
        if todo_list.inbox:
            raise Conflict("The Inbox is yours alone. Make a list, and share that.")
        answer = await act(list_id, *arguments)
        batch.record(todo_list, todo_list, "share")  # its readers see that members or links have changed
        return answer

    # ---- undo

    async def undo(self, user: User, target: str | None, repeat: Repeat | None = None) -> WriteResult:
        """Revert what a batch changed (by default the caller's last one), as another batch.

        The result is Undone. Raises NotFound, Conflict if there is nothing to undo or the same fields have
        since been changed, or Forbidden if the caller may not set them. The error names the batch;
        where it was the caller's last, the next undo without a batch takes the one before it.
        """
        refused: list[str] = []
        try:
            try:
                return await self._undo(user, target, refused, repeat=repeat)
            except TooMany as error:
                refused.append(error.args[0])
                return await self._undo_in_slices(user, repeat, *error.args)
        except (Conflict, Forbidden) as error:
            if refused:
                error.errors = [field_error("batch", f"{refused[-1]} cannot be undone")]
            if refused and not target:
                await self.store.pass_over(user, refused[-1])
                error.detail += " Undo again to undo what you did before it."
            raise

    @transactional()
    async def _undo(self, batch: LongBatch, target: str | None, refused: list[str]) -> Undone:
        for act in await self.acts.of_user(batch.source, batch.user):
            if target in (None, act.batch, act.undone):
                raise Unavailable("A change of many to-dos is still being made: try again when it is done.")
        undone = target or await batch.queries.last_batch()
        try:
            return await self._revert(batch, undone)
        except (Conflict, Forbidden):
            refused.append(undone)
            raise

    async def _revert(self, batch: LongBatch, undone: str) -> Undone:
        revisions, is_undo = await batch.queries.batch_revisions(undone)
        if len(revisions) > SLICE and all(todo_id for _, todo_id in revisions):
            raise TooMany(undone, revisions, is_undo)
        # The undo of an undo can be undone again.
        batch.undoes = None if is_undo else undone
        changes = await batch.queries.changes_to_undo([revision for revision, _ in revisions])
        for change in [each for each in changes if each.action in ("filter", "template")]:
            await undo_kept(batch, change)
            changes.remove(change)
        lists = [await undo_list_change(batch, change) for change in changes if change.todo is None]
        todos = await revert_some(batch, batch.queries, [each for each in changes if each.todo], lists)
        return Undone(undone, len(todos), todos[:MAX_SHOWN], lists)

    async def _undo_in_slices(
        self, user: User, repeat: Repeat | None, undone: str, revisions: Sequence[tuple[int, str]], is_undo: bool
    ) -> WriteResult[Undone]:
        """Undo a batch of more than SLICE changes, after a look whether all of it can be undone."""
        by_todo: dict[str, list[int]] = {}
        for revision, todo_id in revisions:
            by_todo.setdefault(todo_id, []).append(revision)
        groups = [*by_todo.values()]
        for start in range(0, len(groups), SLICE):
            await self.acts.try_undo(self.queries(user), [*itertools.chain(*groups[start : start + SLICE])])
        key = (repeat.key, repeat.fingerprint) if repeat else None
        undoes, shown = None if is_undo else undone, [*by_todo][:MAX_SHOWN]
        act = Act(kind="undo", user=user, undone=undone, undoes=undoes, shown=shown, key=key)

        async def check(batch: LongBatch) -> None:
            if any(each.undone == undone for each in await self.acts.of_user(batch.source, user)):
                raise Unavailable("This is being undone already: try again when that is done.")

        return await self.acts.start(act, groups, check)

    # ---- once an hour

    async def empty_old_trash(self, before: int) -> None:
        """Delete for good what has been in the trash since before a time (epoch milliseconds)."""
        for user in await self.store.users_with_expired_trash(before):
            _, lists = await self.queries(user).expired(timestamp(before), 0)
            for todo_list in lists:
                await self._purge_todos_of(user, todo_list, before - 1)
            while (await self._purge_expired(user, timestamp(before), PURGED_AT_ONCE)).result:
                pass

    @transactional()
    async def _purge_expired(self, batch: LongBatch, before: str, limit: int) -> bool:
        """Delete expired to-dos up to a limit, and all expired lists; returns whether there may be more."""
        todos, lists = await batch.queries.expired(before, limit)
        for todo in todos:
            batch.purge_todo(todo)
        for todo_list in lists:
            await batch.purge_list(todo_list)
        return len(todos) == limit


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
WEATHER_SECONDS = 600  # in which an answer is used again


class WeatherReport(msgspec.Struct, frozen=True):
    """The weather in one place now; the temperature in the degrees that the upstream uses."""

    temperature: str
    text: str
    place: str


def weather_report(degrees: Any, text: str, place: str) -> WeatherReport:
    """A report of checked values. Raises ValueError or TypeError."""
    if not math.isfinite(float(degrees)) or text_fault(text) or text_fault(place):
        raise ValueError("not a temperature or not a text")
    return WeatherReport(f"{float(degrees):g}", clean_line(text, 100), clean_line(place, 100))


def open_meteo_report(answer: Any, place: str) -> WeatherReport:
    """Read Open-Meteo's current weather, of today's form or the older. Raises LookupError, TypeError, ValueError."""
    current = answer["current"] if "current" in answer else answer["current_weather"]
    degrees = current["temperature_2m"] if "temperature_2m" in current else current["temperature"]
    code = current["weather_code"] if "weather_code" in current else current["weathercode"]
    if not place:
        zone = answer.get("timezone", "")
        place = zone.rpartition("/")[2].replace("_", " ") if "/" in zone else ""
    place = place or f"{float(answer['latitude']):.2f}, {float(answer['longitude']):.2f}"
    return weather_report(degrees, WEATHER_WORDS[int(code)], place)


def condition_report(answer: Any, place: str) -> WeatherReport:
    """Read the older `query.results.channel.item.condition` form. Raises LookupError, TypeError, ValueError."""
    channel = answer["query"]["results"]["channel"]
    condition = channel["item"]["condition"]
    place = place or channel.get("location", {}).get("city") or "the place asked for"
    return weather_report(condition["temp"], condition["text"], place)


class Weather:
    """The weather server's report, fetched at most once in ten minutes."""

    def __init__(self, uri: str, place: str, records: RecordStore):
        self.uri, self._place, self._records = uri, place, records
        # Programs that share a Redis may use different servers.
        self._key = "weather/" + hashlib.sha256(f"{uri}\n{place}".encode()).hexdigest()[:16]
        self._fetching: asyncio.Task | None = None

    async def report(self) -> WeatherReport:
        """The weather now. Raises NotFound if none is configured, UpstreamFailed or UpstreamTimedOut."""
        if not self.uri:
            raise NotFound("No weather server is configured. Set WEATHER_URI.")
        with contextlib.suppress(Unavailable):  # without the cache the weather can still be fetched
            if record := await self._records.get(self._key):
                return msgspec.json.decode(record.body, type=WeatherReport)
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.ensure_future(self._fetch())
        return await asyncio.shield(self._fetching)

    async def _fetch(self) -> WeatherReport:
        # force_instance: the limits are this client's own, and closing it affects no other.
        client = tornado.httpclient.AsyncHTTPClient(force_instance=True, max_body_size=256 * 1024)
        request = tornado.httpclient.HTTPRequest(
            self.uri, connect_timeout=3, request_timeout=3, follow_redirects=False, decompress_response=False
        )
        try:
            response = await asyncio.wait_for(client.fetch(request, raise_error=False), 3.5)
        except (TimeoutError, OSError, tornado.httpclient.HTTPError) as error:
            raise self._failure(error) from error
        finally:
            client.close()
        if response.error:
            raise self._failure(response.error)
        report = self._read(response.body)
        with contextlib.suppress(Unavailable):
            record = Record(msgspec.json.encode(report), "application/json")
            await self._records.set(self._key, record, WEATHER_SECONDS)
        return report

    def _read(self, body: bytes) -> WeatherReport:
        try:
            answer = json.loads(body)
            return (condition_report if "query" in answer else open_meteo_report)(answer, self._place)
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
            LOG.warning("weather: cannot read the answer: %r", error)
            raise UpstreamFailed("The weather server's answer is of no form that is known here.") from None

    @staticmethod
    def _failure(error: BaseException) -> TodoError:
        LOG.warning("weather: %s", type(error).__name__)
        if isinstance(error, TimeoutError) or "imeout" in str(error):
            return UpstreamTimedOut("The weather server did not answer within 3 seconds.")
        if (code := getattr(error, "code", 599)) != 599:
            return UpstreamFailed(f"The weather server answered {code}.")
        return UpstreamFailed("The weather server cannot be reached, or its answer is too large.")


# ---- everything that the app opens

MAX_ANSWER_BYTES = 8 * 1024 * 1024  # of all kept answers together; one may take a thirty-second of it
OPEN_SECONDS = 2.5  # that a request waits for the stores to open, which may go on for longer
Check = Callable[[], Any]
GetUser = Callable[[tornado.httputil.HTTPServerRequest], Awaitable[str | None] | str | None]


async def call_host(function: Callable, *arguments: Any) -> Any:
    """Call a function of the program that this is embedded in, which may be a coroutine function."""
    try:
        result = function(*arguments)
        return await result if inspect.isawaitable(result) else result
    except tornado.web.HTTPError as error:
        if 400 <= error.status_code <= 599:
            raise
        raise ValueError(f"{function} raised {error!r}, which is not an error") from error
    except asyncio.CancelledError as error:
        if getattr(asyncio.current_task(), "cancelling", int)():
            raise
        raise RuntimeError(f"something that {function} waited for was cancelled") from error


def mysql_check(url: str) -> Check:
    """A check of a MySQL or MariaDB server, for programs beside this one that need it: sign in and run a query."""
    aiomysql, parts = driver("aiomysql", "MYSQL_URL", "mysql"), urllib.parse.urlsplit(url)

    async def ping() -> None:
        connection = await aiomysql.connect(
            host=parts.hostname or "localhost",
            port=parts.port or 3306,
            user=urllib.parse.unquote(parts.username or "root"),
            password=urllib.parse.unquote(parts.password or ""),
            db=urllib.parse.unquote(parts.path[1:]) or None,
            connect_timeout=1,
        )
        with contextlib.closing(connection):
            async with connection.cursor() as cursor:
                await cursor.execute("SELECT 1")
                await cursor.fetchall()

    return ping


class Services:
    """Everything that an app opens: once, when first needed, and tried again if it failed."""

    def __init__(self, config: Config, checks: Mapping[str, Check]):
        self.config = config
        self.database = open_database(config.database_url)
        self.records: RecordStore = DictRecordStore()
        relay = None
        if config.redis:
            self.records = records = RedisRecordStore(config.redis, config.redis_prefix)
            relay = RedisRelay(records.client, config.redis_prefix)
        self.documents: DocumentStore = SQLDocumentStore(self.database)
        if config.mongodb_uri:
            self.documents = MongoDocumentStore(config.mongodb_uri)
        store = TodoStore(self.database)
        self.hub = EventHub(store, relay)
        self.accounts, self.throttles = self.hub.accounts, ThrottleStore(self.database)
        self.todos = TodoService(store, self.hub)
        # Encoded answers by user, request and revision, so that none can be stale.
        self.answers = Cache(10_000, MAX_ANSWER_BYTES, MAX_ANSWER_BYTES / 32)
        self.weather = Weather(config.weather_uri, config.weather_place, self.records)
        self._checks: dict[str, tuple[str, Check]] = {
            "todos": (self.database.name, self.database.ping),
            "documents": (self.documents.name, self.documents.ping),
            "records": (self.records.name, self.records.ping),
        }
        if config.mysql_url:
            self._checks["mysql"] = f"MySQL {without_password(config.mysql_url)}", mysql_check(config.mysql_url)
        if taken := checks.keys() & self._checks.keys():
            raise Misconfigured(f"checks: {', '.join(sorted(taken))} is one of our own: use another name")
        self._checks |= {name: (name, check) for name, check in checks.items()}
        self._opened = self._closing = False
        self._opening: asyncio.Task | None = None
        self._tasks: list[asyncio.Task] = []
        self.closers: list[Callable[[], None]] = []  # called, too, when everything is closed
        self.requests = 0  # being answered now
        self.sockets = 0  # that are open

    async def open(self, seconds: float | None = OPEN_SECONDS) -> None:
        """Open everything; callers that come together share one try. Raises Misconfigured or Unavailable.

        A request waits for some seconds at most; a start that no client waits for takes None.
        """
        if self._opened:
            return
        if self._closing:
            raise Unavailable("The server is being stopped.")
        if self._opening is None or self._opening.done():
            self._opening = asyncio.ensure_future(self._open())
            # If it fails when no request waits for it, the next request tries again.
            self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        opened, _ = await asyncio.wait([self._opening], timeout=seconds)
        if not opened:
            raise self._slow_to_open()
        self._opening.result()

    def _slow_to_open(self) -> Unavailable:
        return Unavailable(f"{self.database.name} is taking long to open.")

    async def _open(self) -> None:
        await self.todos.store.open()
        await self.hub.open()
        self._tasks = [*map(asyncio.ensure_future, (self._tidy_forever(), self.todos.acts.go_on_forever()))]
        self._opened = True

    async def close(self) -> None:
        """Close everything that was opened."""
        self._closing = True
        try:
            if self._opening:
                await asyncio.wait([self._opening])
            if self._opened:
                self._opened = False
                await end_tasks(self._tasks)
                await self.todos.acts.close()
                await self.hub.close()
                await self.todos.store.close()
            await self.documents.close()
            await self.records.close()
            for closer in self.closers:
                closer()
        finally:
            self._closing = False

    async def delete_user(self, user: User) -> None:
        """Remove a user with everything in all stores. Raises Unavailable, after which it can be repeated."""
        await self.documents.delete_all(user.id)
        await self.records.delete_all(f"{user.id}/")
        await self.accounts.delete_account(user)

    async def drain(self, seconds: float) -> None:
        """Wait until no request is being answered, but not longer than this; bulk acts go on after the next start."""
        await self.todos.acts.close()
        give_up = time.monotonic() + seconds
        while self.requests and time.monotonic() < give_up:
            await asyncio.sleep(0.01)

    async def _tidy_forever(self) -> None:
        """Every hour empty the old trash and forget old idempotency keys, sessions and tokens."""
        while True:
            try:
                now = now_milliseconds()
                await self.todos.empty_old_trash(now - self.config.trash_days * DAY)
                await self.todos.store.forget_answers(now - DAY)
                await self.accounts.forget_expired()
                await self.throttles.forget_expired()
            except Exception as error:
                LOG.warning("tidying failed and is tried again in an hour: %s", error)
            await asyncio.sleep(3600)

    async def health(self, seconds: float = 1.0, known: str = "") -> tuple[bool, dict[str, dict]]:
        """Ping every engine in parallel, each for at most this long: whether all are well, and the state of each.

        Each failure is logged once for all stores of an engine, unless its reason is `known` to the reader.
        """
        cause: Exception | None = None  # why the database does not open and its stores fail
        try:
            await asyncio.wait_for(self.open(), seconds)
        except TimeoutError:
            cause = self._slow_to_open()
        except Exception as error:
            cause = error
        checked = await asyncio.gather(*(self._check(*check, seconds) for check in self._checks.values()))
        failed = [(entry["engine"], error) for entry, error in checked if error]
        reasons = [(engine, str(cause if cause and engine == self.database.name else why)) for engine, why in failed]
        for engine, reason in dict.fromkeys(reasons):
            if reason != known:
                LOG.warning("health: %s: %s", engine, reason)
        engines = dict(zip(self._checks, (entry for entry, _ in checked), strict=True))
        return all(entry["state"] == "ok" for entry in engines.values()), engines

    @staticmethod
    async def _check(engine: str, ping: Check, seconds: float) -> tuple[dict, BaseException | None]:
        started = time.perf_counter()
        pinging = asyncio.ensure_future(call_host(ping))
        # Not wait_for(), which goes on waiting for a check that does not end when it is cancelled.
        await asyncio.wait([pinging], timeout=seconds)
        error = pinging.exception() if pinging.done() else None
        state = ("failing" if error else "ok") if pinging.done() else "no answer"
        pinging.cancel()
        return {
            "engine": engine,
            "state": state,
            "milliseconds": round((time.perf_counter() - started) * 1000, 1),
        }, error


# ==== auth: may call service and stores =========================================================

# ---- a request, whichever server has read it

HEAD_SECONDS = 10  # that a client has to send the head of a request
BODY_SECONDS = 15  # that a client has to send the body of a request
MAX_HEAD = 16 * 1024  # bytes
MAX_DISCARDED = 100_000_000  # bytes of a refused body that are read and dropped, so that the client reads why
BodyReader = Callable[[Callable[[bytes], object]], Awaitable[None]]


class ClientGone(Exception):
    """The client has closed the connection, so that no response can be sent."""


def read_headers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by name in lower case; repeated ones are joined with commas (RFC 9110, 5.3)."""
    headers: dict[str, str] = {}
    for name, value in pairs:
        name = name.lower()
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+;=:\[\]-]++|%[0-9A-Fa-f]{2})*+")  # as in Tornado and RFC 3986


def path_of_target(method: str, target: str, headers: MutableMapping[str, str]) -> str:
    """A request target without scheme and host, which become the Host header (RFC 9112, 3.2); `*` for the server.

    Raises HTTPInputError for any other target.
    """
    if target == "*" and method == "OPTIONS":
        return target
    address = re.fullmatch(r"https?://([^/?#@]+)(/[^?]*)?(\?.*)?", target, re.IGNORECASE)
    if not address:
        raise tornado.httputil.HTTPInputError("The target is neither a path nor an address that begins with http")
    host, path, query = address.groups("")
    headers["host"] = host
    return "*" if method == "OPTIONS" and not (path or query) else (path or "/") + query


def content_length(headers: Mapping[str, str]) -> int:
    """The number of bytes that Content-Length announces, 0 without it. Raises HTTPInputError."""
    digits = headers.get("content-length", "0").partition(",")[0]  # Tornado checks that repeated ones are equal
    if not re.fullmatch(r"[0-9]+", digits):
        raise tornado.httputil.HTTPInputError("Content-Length is not a whole number")
    return int(digits.lstrip("0")[:20] or "0")  # more digits are too long in any case


def body_too_large(limit: int) -> TooLarge:
    return TooLarge.of("", f"must have at most {limit:,} bytes", "The body")


class Request:
    """One HTTP request. Raises HTTPInputError for one without a valid target and host."""

    def __init__(self, method: str, target: str, version: str, headers: dict[str, str], remote_ip: str, protocol: str):
        if not target.startswith("/"):
            target = path_of_target(method, target, headers)
        self.method, self.version, self.headers = method, version, headers
        self.path, _, self.query = target.partition("?")
        self.remote_ip, self.protocol, self.root_path = remote_ip, protocol, ""
        host = headers.get("host", "127.0.0.1" if version == "HTTP/1.0" else None)
        if host is None or not HOST.fullmatch(host):
            raise tornado.httputil.HTTPInputError(f"{'Missing' if host is None else 'Invalid'} Host header")
        self.host = host
        self.is_upgrade = False  # whether the connection can become a WebSocket
        # Whether there is an unread body, or a part of one; with a GET only if the headers announce one.
        self.has_body = method not in ("GET", "HEAD") or "content-length" in headers or "transfer-encoding" in headers
        self.length = content_length(headers) if self.has_body else 0
        self.receive_body: BodyReader | None = None
        self.began, self.id = time.monotonic(), os.urandom(8).hex()

    @property
    def waits_to_send(self) -> bool:
        """Whether the client waits for a 100 before it sends the body (RFC 9110, 10.1.1)."""
        return self.headers.get("expect", "").lower() == "100-continue"

    async def read_body(self, limit: int) -> bytes:
        """The body. Raises TooLarge, which leaves it unread if it is very long or not sent yet, or RequestTimeout."""
        if not self.has_body or self.receive_body is None:
            return b""
        if self.length > (limit if self.waits_to_send else MAX_DISCARDED):
            raise body_too_large(limit)
        body, size = bytearray(), 0

        def take(chunk: bytes) -> None:
            nonlocal size
            size += len(chunk)
            if size <= limit:
                body.extend(chunk)

        try:
            async with asyncio.timeout(BODY_SECONDS):
                await self.receive_body(take)
        except TimeoutError:
            raise RequestTimeout(f"The body did not arrive within {BODY_SECONDS} seconds. Send it again.") from None
        self.has_body = False
        self._check_is_whole(size)
        if size > limit:
            raise body_too_large(limit)
        return bytes(body)

    def _check_is_whole(self, size: int) -> None:
        """Raise Malformed if the server has lost the body, as uvicorn does when a request asks for an upgrade."""
        if "content-length" in self.headers and size != self.length:
            raise Malformed(
                f"Content-Length announces {self.length:,} bytes, but {size:,} arrived, and nothing was changed."
            )
        if not size and "transfer-encoding" in self.headers and "upgrade" in self.headers:
            raise Malformed("No body arrived, and nothing was changed. Send the request without an Upgrade header.")

    async def discard_body(self) -> None:
        """Read the body and drop it. If the connection were closed instead, the client could not read the response."""
        if not self.waits_to_send:
            with contextlib.suppress(TodoError):
                await self.read_body(0)

    def for_host(self) -> tornado.httputil.HTTPServerRequest:
        """The request as Tornado's type, for functions of the embedding program."""
        target = f"{self.path}?{self.query}" if self.query else self.path
        start_line = tornado.httputil.RequestStartLine(self.method, target, self.version)
        request = tornado.httputil.HTTPServerRequest(
            start_line=start_line, headers=tornado.httputil.HTTPHeaders({"host": self.host, **self.headers})
        )
        request.remote_ip, request.protocol = self.remote_ip, self.protocol
        return request


# Headers in which proxies, load balancers and content delivery networks identify themselves and their
# clients: X-Forwarded-For, CF-Connecting-IP and others that end in IP, Via, and similar ones.
FORWARDING_HEADER = re.compile(
    r".*forward.*|.*-ip(v[46])?|.*(client|socket)ip|.*remote-(addr|user)|(x-)?via|front-end-https|x-(url-)?scheme"
    r"|(cdn|cf|cloudfront|akamai|fastly|surrogate|tailscale)-.+"
    r"|x-(amzn?|arr|cdn|cloud-trace|envoy|nginx|original|proxy|request-start|traefik|varnish|vercel)(-.+)?",
    re.IGNORECASE,
)
is_forwarding_header = functools.lru_cache(1000)(FORWARDING_HEADER.fullmatch)


@functools.lru_cache(1000)
def split_host(host: str) -> tuple[str, str]:
    """A Host header's name, in lower case, without brackets and final dot, and its port; empty if it is malformed."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", host)
    return (match[1].strip("[]").lower().rstrip("."), match[2] or "") if match else ("", "")


@functools.lru_cache(1000)
def parse_address(text: str | None) -> Address | None:
    """An IP address, IPv4 also if it is written as IPv6 (::ffff:127.0.0.1); None for anything else."""
    try:
        address = ipaddress.ip_address(text or "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(address: str | None) -> bool:
    """Whether an address is this machine's own: 127.0.0.0/8 or ::1."""
    parsed = parse_address(address)
    return bool(parsed and parsed.is_loopback)


def is_loopback_name(host: str) -> bool:
    """Whether a Host header names this machine's loopback: localhost, 127.0.0.0/8 or [::1], any port."""
    name, _ = split_host(host)
    return is_loopback(name) or name == "localhost" or name.endswith(".localhost")


def is_local(request: Request) -> bool:
    """Whether a request truly comes from this machine.

    The Host must name the loopback too, since a foreign web page can let its own name resolve to 127.0.0.1 (DNS
    rebinding). A forwarding header shows a proxy in between, and so does HTTP/1.0, which nginx speaks by default.
    """
    forwarded = request.version == "HTTP/1.0" or any(map(is_forwarding_header, request.headers))
    return is_loopback(request.remote_ip) and not forwarded and is_loopback_name(request.headers.get("host", ""))


@functools.lru_cache(1000)
def hop_address(text: str) -> Address | None:
    """The address in one element of X-Forwarded-For, or None.

    Some proxies add a port, brackets or quotes (RFC 7239, 6): `203.0.113.9:4711`, `"[2001:db8::1]:4711"`.
    """
    match = re.fullmatch(r'"?(?:\[([^\]]+)\](?::[0-9]+)?|([0-9.]+):[0-9]+|([^"]*))"?', text.strip())
    return parse_address(match[1] or match[2] or match[3].strip()) if match else None


PROXY_HEADERS = {"x-forwarded-for", "x-forwarded-proto"}  # that are read from trusted proxies


class Proxies:
    """Reads the client's address and protocol from what trusted proxies report (TRUSTED_PROXIES)."""

    def __init__(self, trusted: Sequence[Network]):
        self._trusted = trusted
        self._has_warned = False

    def _is_trusted(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._trusted)

    def read(self, request: Request) -> None:
        """Set a request's client address and protocol to those that trusted proxies report.

        The client is the rightmost address in X-Forwarded-For that is not a trusted proxy: it may have forged
        everything to the left of it. X-Forwarded-Host is ignored, since most proxies pass on the client's.
        """
        if not self._trusted and (self._has_warned or not request.headers.keys() & PROXY_HEADERS):
            return
        if not self._is_trusted(parse_address(request.remote_ip)):
            self._warn(request)
            return
        for hop in reversed(request.headers.get("x-forwarded-for", "").split(",")):
            address = hop_address(hop)
            if hop.strip() and address is None:
                break
            if address:
                request.remote_ip = str(address)
                if not self._is_trusted(address):
                    break
        protocol = request.headers.get("x-forwarded-proto", "").rpartition(",")[2].strip().lower()
        protocol = {"ws": "http", "wss": "https"}.get(protocol, protocol)  # some proxies report these for a WebSocket
        if protocol in ("http", "https"):
            request.protocol = protocol

    def _warn(self, request: Request) -> None:
        """Log once that TRUSTED_PROXIES may lack a proxy, if its address is private or this machine's."""
        address, sent = parse_address(request.remote_ip), PROXY_HEADERS & request.headers.keys()
        if self._has_warned or address is None or address.is_global or not sent:
            return
        self._has_warned = True
        name = "unix" if str(address) == NO_ADDRESS else address
        LOG.warning(
            "TRUSTED_PROXIES does not list %s, which sends %s, so the header is ignored: all clients that"
            " come through it count as one, and https is not recognized. If it is your proxy, set TRUSTED_PROXIES=%s.",
            *(name, " and ".join(sorted(each.title() for each in sent)), name),
        )


def is_of_host(origin: str, host: str) -> bool:
    """Whether an origin has the host and port of a Host header, with any scheme: TLS may end at a proxy."""
    reduced = origin_of(origin)
    return bool(reduced) and reduced == origin_of(f"{reduced.partition('://')[0]}://{host}")


class Origins:
    """The server's host names with ALLOWED_HOSTS, and the web origins that may use the API, with CORS_ORIGINS."""

    def __init__(self, config: Config, any_host: bool):
        public = urllib.parse.urlsplit(config.public_url).hostname or ""
        self._hosts = {*config.allowed_hosts, public, ascii_host(config.server_host)} - {"", "*"}
        self._any_host = any_host or "*" in config.allowed_hosts
        self._public = origin_of(config.public_url)
        self._named = config.cors_origins - {"*"}
        self._any = "*" in config.cors_origins

    def check_host(self, host: str) -> None:
        """Raise Misdirected unless the Host header has a name of the server.

        A page of another site can let its own name resolve to the server's address (DNS rebinding). Its requests then
        look same-origin to the browser, but their Host header has that name. Addresses cannot be misused this way.
        """
        name, port = split_host(host)
        ports = (port,) if port else ("80", "443")
        if self._any_host or (name and not self._hosts.isdisjoint((name, *(f"{name}:{each}" for each in ports)))):
            return
        if not name or not (parse_address(name) or is_loopback_name(host)):
            raise Misdirected(f"{name or host[:100]!r} is not a name of this server. ALLOWED_HOSTS lists its names.")

    def is_own(self, origin: str, request: Request) -> bool:
        """Whether an origin is that of the server's own pages. Behind a proxy the Host header need not show it."""
        reduced = origin_of(origin)
        return bool(reduced) and reduced in (origin_of(f"{request.protocol}://{request.host}"), self._public)

    def is_named(self, origin: str) -> bool:
        """Whether CORS_ORIGINS lists an origin by its name."""
        return origin_of(origin) in self._named

    def allows(self, origin: str) -> bool:
        """Whether CORS_ORIGINS lists an origin, by its name or as `*`."""
        return bool(origin) and (self._any or self.is_named(origin))

    def is_let_in_by_star(self, request: Request) -> bool:
        """Whether only the `*` allows the page of a request: then its cookies and address grant no rights."""
        origin = request.headers.get("origin") if self._any else None
        return origin is not None and not self.is_named(origin) and not self.is_own(origin, request)


# ---- passwords

SCRYPT = {"log_n": 15, "r": 8, "p": 3}  # a quarter of a second, and 32 MiB
SCRYPT_MAX_MEMORY = 64 * 1024 * 1024
MAX_HASHING = 12  # passwords that wait; more would only time out
# Words in the passwords that attackers try first, from the frequency lists of zxcvbn (MIT), without vulgar ones.
COMMON_WORDS = """
abcd access admin administrator airborne airplane alexander amanda america andrew angel anthony arsenal ashley austin
azerty babygirl banana barcelona baseball basketball batman bigdaddy blah blink boston brooklyn budlight bulldog
buster cadillac camaro canada captain carolina champion changeme charlie cheese chelsea cherokee chicago chicken
chocolate cocacola coffee colorado computer cookie corvette cowboys creative dakota dallas daniel darkness defender
diablo diamond dolphin donkey dragon eagle einstein electric elephant engineer explorer facebook falcon ferrari flower
football forever freedom gandalf garfield gateway george gfhjkm ghbdtn ginger godzilla golden golf google greenday
guest guinness guitar hallo hannah happy harley hello hercules hockey honda hunter icecream iloveyou internet jackson
jasmine jennifer jessica jordan joshua juventus kawasaki killer lacrosse lakers lasvegas letmein liverpool login
logitech london love loveyou lucky madison maggie manchester marlboro master matrix matthew maverick mercedes merlin
metallica michael michelle michigan microsoft midnight minecraft money monkey monster motorola mountain mustang
natasha newyork nicole nintendo nirvana nissan nokia orange packers pakistan panther paradise passport password
passwort patriots peanut pepper phoenix platinum pokemon porsche precious princess purple qazxsw qwerty qwertz rabbit
raiders rainbow ranger rangers redskins redwings robert rockstar root samantha samsung scorpion secret security shadow
silver simpsons slipknot snickers sniper snoopy snowball soccer softball sophie spiderman squirrel stargate startrek
starwars steelers success summer sunshine super superman svetlana swordfish tennis test testing thomas thunder tiger
tigger toyota trinity trustno user warcraft warrior welcome whatever william winter wizard wolverine yamaha yankees
yellow
"""
COMMON_PATTERN = f"(({'|'.join(COMMON_WORDS.split())})s?){{1,2}}"
LOOK_ALIKES = str.maketrans("013457@$!", "oieastasi")
KEY_RUNS = (
    "1234567890 qwertyuiop asdfghjkl zxcvbnm abcdefghijklmnopqrstuvwxyz !@#$%^&*() azerty 12qwaszx qweasdzxc"
    " qazwsxedcrfvtgbyhnujm 1qaz2wsx3edc4rfv5tgb6yhn7ujm 1qazxsw23edcvfr4 1q2w3e4r5t6y7u8i9o0p q1w2e3r4t5y6u7i8o9p0"
    " 1a2b3c4d5e6f a1b2c3d4e5f6 1a2s3d4f5g a1s2d3f4g5"
)
KEY_RUNS += f" {KEY_RUNS[::-1]}"


def scrypt_hash(password: str, salt: bytes, log_n: int, r: int, p: int, length: int = 32) -> bytes:
    """The scrypt hash (RFC 7914) of a password in NFKC, so that it is the same from every keyboard."""
    text = unicodedata.normalize("NFKC", password).encode(errors="replace")
    return hashlib.scrypt(text, salt=salt, n=2**log_n, r=r, p=p, maxmem=SCRYPT_MAX_MEMORY, dklen=length)


def phc_string(salt: bytes, digest: bytes, log_n: int, r: int, p: int) -> str:
    """A hash with its parameters, in the PHC string format: `$scrypt$ln=15,r=8,p=3$salt$hash`."""
    parts = [base64.b64encode(part).decode().rstrip("=") for part in (salt, digest)]
    return f"$scrypt$ln={log_n},r={r},p={p}${parts[0]}${parts[1]}"


def parse_phc(text: str) -> tuple[bytes, bytes, dict[str, int]]:
    """The inverse of `phc_string`: salt, hash and parameters."""
    _, _, parameters, salt, digest = text.split("$")
    log_n, r, p = (int(part.partition("=")[2]) for part in parameters.split(","))
    parts = [base64.b64decode(part + "=" * (-len(part) % 4)) for part in (salt, digest)]
    return parts[0], parts[1], {"log_n": log_n, "r": r, "p": p}


# The password of an unknown name is checked against this one, so that the response takes as long.
UNKNOWN_PASSWORD = phc_string(bytes(16), bytes(32), **SCRYPT)


def hash_password(password: str) -> str:
    """A new hash of a password, as a PHC string. Takes a quarter of a second."""
    salt = secrets.token_bytes(16)
    return phc_string(salt, scrypt_hash(password, salt, **SCRYPT), **SCRYPT)


def verify_password(password: str, kept: str) -> bool:
    """Whether a password is the one of a PHC string. Takes a quarter of a second."""
    salt, digest, parameters = parse_phc(kept)
    return secrets.compare_digest(scrypt_hash(password, salt, **parameters, length=len(digest)), digest)


def is_key_run(text: str) -> bool:
    """Whether a text consists of pieces of KEY_RUNS, each of three characters or more: `1234qwer`, `abcabc`."""
    piece = ""
    for character in text:
        if piece + character in KEY_RUNS:
            piece += character
        elif len(piece) < 3:
            return False
        else:
            piece = character
    return len(piece) >= 3


def is_common(password: str) -> bool:
    """Whether attackers try a password early: neighbouring keys, or common words with digits and symbols around."""
    text = password.casefold()
    word = text.strip(string.digits + string.punctuation)
    return is_key_run(text) or any(re.fullmatch(COMMON_PATTERN, each) for each in (word, word.translate(LOOK_ALIKES)))


def check_new_password(password: str, name: str, field: str) -> None:
    """Raise Invalid for a password that is too short, too long or easy to guess."""
    password = unicodedata.normalize("NFKC", password)  # the form that is hashed
    if not 8 <= len(password) <= 128:
        message = f"must have 8 to 128 characters, not {len(password)}"
    elif password.isdecimal():
        message = "must not consist of digits only"
    elif is_common(password):
        message = "is one of the most common passwords, which attackers try first"
    elif fold_user_name(password) == name:
        message = "must not be the name"
    elif len(set(password)) < 4:
        message = "must have at least 4 different characters"
    else:
        return
    raise invalid(field, message, "The password")


def lower_priority() -> None:
    """Let the thread of the event loop run before this one, where the system allows it."""
    if sys.platform == "linux":  # elsewhere a priority belongs to a whole process
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + 5)


class PasswordHasher:
    """Hashes passwords in a thread, one after the other, with a limit on those waiting."""

    def __init__(self) -> None:
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None
        self._pending = 0

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Reserve a place among the passwords to be hashed. Raises Unavailable if too many wait."""
        if self._pending >= MAX_HASHING:
            raise Unavailable("Too many people are signing in right now. Try again in a moment.")
        self._pending += 1
        try:
            yield
        finally:
            self._pending -= 1

    async def run(self, work: Callable[..., Value], *arguments: Any) -> Value:
        """Run `hash_password` or `verify_password` in the thread."""
        self._thread = self._thread or concurrent.futures.ThreadPoolExecutor(1, "password", lower_priority)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def close(self) -> None:
        """End the thread."""
        if self._thread:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._thread = None


# ---- throttling

FREE_FAILURES = 5  # for an account and address
MAX_DELAY = 900  # seconds
FAILURES_KEPT = 86_400  # seconds
ATTEMPTS_A_MINUTE = 20  # for an address


def throttled_network(address: str | None) -> str:
    """The network that counts as one client: an IPv4 address, or a subscriber's /64 of IPv6."""
    parsed = parse_address(address)
    if parsed is None:
        return "unknown"
    return str(parsed) if parsed.version == 4 else str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))


class Throttle:
    """Slows down clients that try passwords. All processes share the counts.

    Failures are kept in the store `failures`, which survives a restart, or else among the records.
    """

    def __init__(self, records: RecordStore, failures: ThrottleStore | None = None):
        self._records, self._failures = records, failures or records

    async def count_address(self, address: str | None) -> None:
        """Count an attempt from an address. Raises TooManyRequests past 20 within a minute."""
        key = f"throttle/{throttled_network(address)}"
        left = await self._records.claim(f"{key}/minute", 60)
        if await self._records.increment(f"{key}/attempts", 1, 60) > ATTEMPTS_A_MINUTE:
            raise TooManyRequests(left or 60)

    async def count_attempt(self, name: str, address: str | None) -> None:
        """Count an attempt to sign in, before it is known whether it fails. Raises TooManyRequests.

        After five failures the delay doubles with each attempt.
        """
        await self.count_address(address)
        key = self._key(name, address)
        attempts = await self._failures.increment(f"{key}/failures", 1, FAILURES_KEPT)
        if attempts < FREE_FAILURES:
            return
        delay = min(MAX_DELAY, 2.0 ** min(attempts - FREE_FAILURES, 20))
        if (left := await self._failures.claim(f"{key}/delay", delay)) and attempts > FREE_FAILURES:
            await self._failures.increment(f"{key}/failures", -1, FAILURES_KEPT)  # it was not tried
            raise TooManyRequests(left)

    async def forget(self, name: str, address: str | None) -> None:
        """Forget the failures of a user after a successful sign-in."""
        for part in ("failures", "delay"):
            await self._failures.delete(f"{self._key(name, address)}/{part}")

    @staticmethod
    def _key(name: str, address: str | None) -> str:
        return f"throttle/{throttled_network(address)}/{hashlib.sha256(name.encode()).hexdigest()[:16]}"


# ---- accounts


def device_name(user_agent: str) -> str:
    """A browser's name for people: `Firefox on Linux`."""
    browsers = {"Edg": "Edge", "OPR": "Opera", "Firefox": "Firefox", "Chrome": "Chrome", "Safari": "Safari"}
    systems = ("Android", "iPhone", "iPad", "Windows", "Mac", "Linux")
    browser = next((name for word, name in browsers.items() if f"{word}/" in user_agent), "")
    system = next((name for name in systems if name in user_agent), "")
    plain = re.sub(r"[^ -~]", "", user_agent)[:40].partition("/")[0]
    return " on ".join(part for part in (browser or plain, system) if part) or "An unknown program"


class Accounts:
    """Signing up and in, and changing a password."""

    def __init__(self, store: AccountStore, throttle: Throttle, hasher: PasswordHasher, sign_up: str):
        self.store, self._throttle, self._hasher, self._sign_up = store, throttle, hasher, sign_up

    async def sign_up_rule(self) -> str:
        """The present rule for new accounts: open, invite, closed, or first until the first account is made."""
        return self._sign_up if await self.store.any_account() else "first"

    async def sign_in(self, name: str, password: str, request: Request) -> tuple[Credential, str]:
        """Begin a session. Raises Unauthorized, TooManyRequests or Unavailable."""
        verified = await self._verified(name, password, request.remote_ip)
        if verified is None:
            raise Unauthorized("The name or the password is wrong.")
        return await self.begin_session(*verified, request)

    async def _verified(self, name: str, password: str, address: str | None) -> tuple[User, str] | None:
        """The user with this name and password, and the password's hash, or None. Unknown names take equally long."""
        name = fold_user_name(name)
        with self._hasher.turn():  # before the count, which is a write: a thousand of them would delay everybody else's
            await self._throttle.count_attempt(name, address)
            user, kept = await self.store.account(name) or (None, UNKNOWN_PASSWORD)
            if not await self._hasher.run(verify_password, password, kept) or user is None:
                return None
        await self._throttle.forget(name, address)
        if parse_phc(kept)[2] != SCRYPT:
            stronger = await self._hasher.run(hash_password, password)
            await self.store.rehash_password(user, kept, stronger)
            kept = stronger
        return user, kept

    async def begin_session(self, user: User, password: str, request: Request) -> tuple[Credential, str]:
        """Begin a session for a user with this verified password hash; return it and the secret for its cookie.

        Raises Unauthorized if the password has changed since.
        """
        device = device_name(request.headers.get("user-agent", ""))
        credential = new_credential("session", user, SESSION_LIFETIME, device)
        return credential, await self.store.issue(credential, password)

    async def sign_up(
        self, name: str, password: str, invite: str, address: str | None, takes_local: bool = False
    ) -> tuple[User, str]:
        """Make an account (from the machine's own user if `takes_local`); return the user and the password's hash.

        Raises Invalid, Conflict, Forbidden, TooManyRequests or Unavailable.
        """
        name = cleaned(clean_user_name, name, "name", "The name")
        check_new_password(password, name, "password")
        await self._throttle.count_address(address)
        rule = await self.sign_up_rule()
        if not invite and rule == "invite":
            raise Forbidden.of("invite", "is required: any account holder can make one", "An invitation")
        if rule == "closed":
            raise Forbidden("This server does not accept new accounts. Ask its operator.")
        with self._hasher.turn():
            hashed = await self._hasher.run(hash_password, password)
        return await self.store.add(name, hashed, self._sign_up, invite, takes_local), hashed

    async def check_password(self, user: User, password: str, address: str | None) -> None:
        """Raise Unauthorized unless this is the user's password."""
        if await self._verified(user.name, password, address) is None:
            raise Unauthorized.of("password", "is wrong", "The password")

    async def change_password(self, user: User, password: str, new_password: str, address: str | None) -> str:
        """Change a user's password, end all their sessions, and return the hash.

        Raises Invalid, Unauthorized, TooManyRequests or Unavailable.
        """
        check_new_password(new_password, user.name, "new_password")
        await self.check_password(user, password, address)
        with self._hasher.turn():
            hashed = await self._hasher.run(hash_password, new_password)
        await self.store.set_password(user, hashed)
        return hashed


# ---- the caller of a request


class Caller(NamedTuple):
    """The caller of a request, and how it was identified: local, open, host, session, token or link."""

    user: User
    kind: str
    read_only: bool = False
    credential_id: str | None = None


def bearer_secret(request: Request) -> str | None:
    """The secret in an Authorization header (RFC 6750), or in the sub-protocol of a WebSocket from a page."""
    headers = request.headers
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return secret.strip()
    if "sec-websocket-protocol" not in headers:
        return None
    offered = headers["sec-websocket-protocol"].split(",")  # the only header of a WebSocket that a page can set
    return next((part.strip()[7:] for part in offered if part.strip().startswith("bearer.")), None)


SESSION_COOKIE_OF_0_1 = "__Host-todo_session"  # over https


class SessionCookies:
    """The signed cookie with a session's secret. The signature saves a look-up of a forged one.

    The keys come from COOKIE_SECRET, or from a file beside the database, made when first needed.
    """

    def __init__(self, config: Config, origins: Origins):
        self._config, self._origins = config, origins
        public = urllib.parse.urlsplit(config.public_url)
        self._port = str(public.port or {"http": 80, "https": 443}.get(public.scheme) or "")  # that browsers see
        self._read = functools.lru_cache(200)(self._check_signature)

    def name(self, request: Request) -> str:
        """The cookie's name, unique by port and prefix: browsers send a cookie to all servers of a host.

        Over https no other host can set the cookie (RFC 6265bis, 4.1.3).
        """
        is_https = request.protocol == "https"
        port = self._port or split_host(request.host)[1] or (443 if is_https else 80)
        return f"{'__Host-' if is_https else ''}todo_session_{port}{self._config.prefix.replace('/', '!')}"

    def read(self, request: Request) -> str | None:
        """The secret in a request's cookie; empty if the signature is wrong, None without a cookie."""
        if "cookie" not in request.headers or self._origins.is_let_in_by_star(request):
            return None
        return self._read(request.headers["cookie"], self.name(request), int(time.time()) // 60)

    def _check_signature(self, cookies: str, name: str, minute: int) -> str | None:
        """The result of `read`, which within a minute is the same for the same cookies."""
        found, keys, days = tornado.httputil.parse_cookie(cookies), self.keys, SESSION_LIFETIME / DAY
        # Sessions of 0.1.0 remain valid. All servers of a host shared that cookie, so check that we signed it.
        old_names = [SESSION_COOKIE_OF_0_1] if name.startswith(SESSION_COOKIE_OF_0_1) else []
        for each in (name, *old_names):
            if found.get(each):
                secret = tornado.web.decode_signed_value(keys, each, found[each], days, min_version=2)
                return secret.decode(errors="replace") if secret else "" if each == name else None
        return None

    def value(self, request: Request, secret: str) -> str:
        """The value of a cookie with this secret."""
        name, newest = self.name(request), next(iter(self.keys))
        return tornado.web.create_signed_value(self.keys, name, secret, key_version=newest).decode()

    @functools.cached_property
    def keys(self) -> dict[int, str]:
        """The signing keys, newest first, by a number that does not depend on the other keys."""
        texts = self._config.cookie_secret or (self._kept_secret(),)
        return {int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1: text for text in texts}

    def _kept_secret(self) -> str:
        """The secret in the file beside the database, which is made if there is none. Raises Misconfigured."""
        url = self._config.database_url
        if url == "sqlite://":
            return secrets.token_hex(32)
        path = "tornado_todo" if not url.startswith("sqlite:") else urllib.parse.unquote(url.removeprefix("sqlite:///"))
        path += ".secret"
        try:
            if not os.path.exists(path):
                self._make_secret_file(path)
            os.chmod(path, 0o600)
            with open(path, encoding="ascii") as file:
                return file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Misconfigured(f"COOKIE_SECRET: set it, since {path} cannot be used: {error}") from error

    @staticmethod
    def _make_secret_file(path: str) -> None:
        unfinished = f"{path}.{secrets.token_hex(4)}"  # so that a reader finds the whole file or none
        with open(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        try:
            with contextlib.suppress(FileExistsError):  # another process made it first
                os.link(unfinished, path)
        finally:
            os.unlink(unfinished)


class Authenticator:
    """Identifies the caller: by `get_user`, a token, a session, or as the user of this machine."""

    def __init__(
        self, config: Config, get_user: GetUser | None, services: "Services", cookies: SessionCookies, origins: Origins
    ):
        self._auth, self._get_user, self._origins = config.auth, get_user, origins
        self.asks_host = get_user is not None  # whether the program around this app identifies the caller
        self.has_accounts = not self.asks_host and config.auth != "open"  # whether users sign in to this app
        self._store, self._accounts, self._cookies = services.todos.store, services.accounts, cookies

    async def caller(self, request: Request) -> Caller | None:
        """The caller of a request, or None. Raises Unauthorized for a token that is not valid."""
        if self._get_user:
            name = await call_host(self._get_user, request.for_host())
            if name and (not isinstance(name, str) or text_fault(name)):
                raise TypeError(f"get_user returned {name!a}: it must return the user's name, or None")
            return Caller(await self._store.user(name), "host") if name else None
        if self._auth == "open":
            return Caller(await self._store.user(LOCAL_USER), "open")
        secret = bearer_secret(request)
        if secret is not None:
            # No other identity replaces an invalid token: requests with one skip the checks against other sites.
            if caller := await self._from_credential(secret, "token", "link"):
                return caller
            raise Unauthorized("This token or link is not valid, or has expired.")
        secret = self._cookies.read(request)
        if secret is not None:
            # Nor an ended session: its user's pending writes belong to no other user.
            return await self._from_credential(secret, "session")
        return await self.local_caller(request)

    async def local_caller(self, request: Request) -> Caller | None:
        """The user of this machine, if the request comes from it and AUTH allows it without a sign-in."""
        if self._get_user or self._auth != "auto" or not is_local(request) or self._origins.is_let_in_by_star(request):
            return None
        return Caller(await self._store.user(LOCAL_USER), "local")

    async def _from_credential(self, secret: str, *kinds: str) -> Caller | None:
        credential = await self._accounts.find(secret, *kinds) if secret else None
        if credential is None:
            return None
        return Caller(credential.user, credential.kind, credential.read_only, credential.id)


# ==== http: may call service and auth ===========================================================

RESPONSE_HEADERS = {
    "X-Request-Id": "identifies the request in the log",
    "ETag": "the validator of the resource, for If-Match and If-None-Match",
    "Change-Batch": "the batch by which the write can be undone",
    "Link": "the next page, with rel=next",
    "Location": "the URL of the created resource",
    "Retry-After": "seconds after which to try again",
}
ALLOWED_HEADERS = "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match"
METHODS = ("GET", "POST", "DELETE", "PATCH", "PUT")
MAX_UNEXPECTED_BODY = 64 * 1024  # bytes that are read for a method that takes no body
NOT_FOUND = "Nothing is served at this address."
INTERNAL_ERROR = "The server failed to carry out your request. Its log has the error under this request id."
API_POLICY = "default-src 'none'"
# The page needs none of these features of browsers.
PERMISSIONS = """accelerometer camera display-capture geolocation gyroscope hid magnetometer microphone midi payment
publickey-credentials-get screen-wake-lock serial usb"""
PERMISSIONS_POLICY = ", ".join(f"{name}=()" for name in PERMISSIONS.split())


date_header = functools.lru_cache(2)(tornado.httputil.format_timestamp)  # of a whole second (RFC 9110, 6.6.1)


@functools.lru_cache(100)
def policy_headers(policy: str, frame_ancestors: str, protocol: str) -> Mapping[str, str]:
    """The headers of every response, with this Content-Security-Policy."""
    headers = {
        "Content-Security-Policy": f"{policy}; frame-ancestors {frame_ancestors}",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Permissions-Policy": PERMISSIONS_POLICY,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    return headers | ({"Strict-Transport-Security": "max-age=31536000"} if protocol == "https" else {})


# ---- responses


class FileBody(NamedTuple):
    """A body that is read from an open file while it is sent; bytes beyond the announced size are not read."""

    file: IO[bytes]
    size: int | None  # None if unknown, for a HEAD

    def chunks(self) -> Iterator[bytes]:
        """The bytes."""
        left = self.size or 0
        while left > 0 and (chunk := self.file.read(min(left, 65536))):
            left -= len(chunk)
            yield chunk


class Socket(Protocol):
    """A WebSocket of any HTTP server. Messages after the first are not needed, since it only sends."""

    async def receive(self) -> str | bytes | None:
        """The first message; None when the socket has been closed."""

    async def send(self, text: str) -> None:
        """Send a message. Raises ClientGone."""

    def close(self, code: int, reason: str) -> None:
        """Close the socket soon."""


class Response(Generic[Value]):
    """A response, or the part that a method decides: `Value` is the type of the value that its body encodes."""

    __slots__ = ("body", "headers", "status", "socket")

    def __init__(
        self,
        body: bytes | FileBody = b"",
        media_type: str = "",
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ):
        self.body, self.status = body, status
        self.headers = {**({"Content-Type": media_type} if media_type else {}), **(headers or {})}
        self.socket: Callable[[Socket], Awaitable[None]] | None = None  # runs the WebSocket that begins with a 101


class Problem(msgspec.Struct, frozen=True):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[dict[str, str]] | UnsetType = UNSET


class NotModified(Exception):
    """The client has the response already."""


def input_error_status(error: tornado.httputil.HTTPInputError) -> int:
    """The status for a request that is not valid HTTP, or is over one of Tornado's limits."""
    text = str(error)
    if text.startswith("Unsupported Transfer-Encoding"):
        return 501
    if "too long" in text or "too large" in text:
        return 431 if "head" in text else 413
    return 400


def response_bytes(response: Response[Any]) -> bytes:
    """The bytes of a response in HTTP/1.1. Its body must be bytes."""
    fields = map(": ".join, response.headers.items())
    status = f"HTTP/1.1 {response.status} {http.client.responses.get(response.status, 'Unknown')}"
    return "\r\n".join([status, *fields, "", ""]).encode() + cast(bytes, response.body)


def refusal(status: int, detail: str) -> Response[Any]:
    """The problem document (RFC 9457) for a request that reaches no handler; it is logged."""
    request_id = os.urandom(8).hex()
    LOG.info("%s refused a request that is not valid HTTP or is over a limit: %d", request_id, status)
    body = msgspec.json.encode(Problem("about:blank", http.client.responses[status], status, detail, request_id))
    headers = {"X-Request-Id": request_id, "Date": date_header(int(time.time()))}
    headers |= policy_headers(API_POLICY, "'none'", "http")
    headers |= {"Content-Length": str(len(body)), "Connection": "close"}
    return Response(body, "application/problem+json", status=status, headers=headers)


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The first byte and the end of the part that a Range header names; None for the whole. Raises BadRange."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if not match or not any(match.groups()):
        return None
    first, last = (int(digits[:18]) if digits else None for digits in match.groups())
    if first is None:
        first, last = max(0, size - (last or 0)), size - 1
    end = size if last is None else min(last + 1, size)
    if first >= size or first >= end:
        raise BadRange("The file has no such part.", headers={"Content-Range": f"bytes */{size}"})
    return first, end


def media_type_of(name: str) -> str:
    """The media type of a file by its name."""
    media_type, encoding = mimetypes.guess_type(name)
    if encoding:  # only gzip has a media type (RFC 6713)
        return "application/gzip" if encoding == "gzip" else "application/octet-stream"
    return media_type or "application/octet-stream"


# ---- signatures of the handlers' methods


class Parameter(NamedTuple):
    """How an argument is read from its text in the path, the query or a header, and how OpenAPI describes it."""

    help: str
    schema: Mapping[str, Any] = {"type": "string"}
    example: Any = None
    reader: Callable[[str], Any] | None = None  # by default derived from the schema
    header: str = ""  # the name of its header, if it has one

    @property
    def read(self) -> Callable[[str], Any]:
        """The function that reads a text, and raises ValueError or TodoError for an invalid one."""
        if self.reader:
            return self.reader
        if self.schema.get("type") == "integer":
            bounds = self.schema.get("minimum", 0), self.schema.get("maximum", 2**63 - 1)
            return functools.partial(read_whole_number, *bounds)
        if "enum" in self.schema:
            return functools.partial(one_of, self.schema["enum"])
        return read_boolean if self.schema.get("type") == "boolean" else str


class Fields(NamedTuple):
    """A JSON body with the fields of a struct; the argument is a dict of the fields that were sent."""

    struct: type[msgspec.Struct]
    required: tuple[str, ...] = ()  # besides those that the struct requires
    optional: bool = False  # whether the body may be left out
    many: bool = False  # whether it may be an array

    def read(self, body: bytes) -> Any:
        """The argument. Raises Malformed or Invalid."""
        if self.optional and not body:
            return {}
        value = parse_json(body)
        if self.many and isinstance(value, list):
            return read_items(value, self.struct, self.required)
        return read_fields(value, self.struct, self.required)


class Bytes(NamedTuple):
    """Any body, or any JSON; the argument is its bytes."""

    is_json: bool = False

    def read(self, body: bytes) -> bytes:
        """The argument. Raises Malformed."""
        if self.is_json:
            parse_json(body)
        return body


class Operation(NamedTuple):
    """One method of a handler, as its signature declares it."""

    function: Callable[..., Awaitable[Any]]
    parameters: tuple[tuple[str, str, Parameter], ...]  # source (path, query or header), name, declaration
    read_path: tuple[Callable[[str], Any], ...]
    read_query: Callable[[str], Mapping[str, Any]]
    headers: tuple[tuple[str, str], ...]  # keywords, and their headers
    body: Fields | Bytes | None
    statuses: tuple[int, ...]  # of success; the first is the default
    result: Any  # the type of the value that is sent, or None


def marker(annotation: Any, kind: type | tuple[type, ...]) -> Any:
    """The metadata of a kind in an `Annotated[...]`, or None."""
    return next((each for each in getattr(annotation, "__metadata__", ()) if isinstance(each, kind)), None)


def value_type(annotation: Any) -> Any:
    """The type of the value that a method's response encodes, or None."""
    annotation = getattr(annotation, "__origin__", annotation) if hasattr(annotation, "__metadata__") else annotation
    if get_origin(annotation) in (Response, WriteResult):
        (annotation,) = get_args(annotation)
    return None if annotation is type(None) else annotation


def declared_parameters(function: Callable[..., Any]) -> Iterator[tuple[str, str, Parameter]]:
    """The source (path, query or header), name and declaration of each argument of a handler's method."""
    for each in inspect.signature(function).parameters.values():
        hints = {each.name: each.annotation} if each.name not in ("self", "body") else {}
        if each.kind is each.VAR_KEYWORD:  # **filters: Unpack[Filters]
            hints = get_type_hints(get_args(each.annotation)[0], include_extras=True)
        place = "path" if each.kind is each.POSITIONAL_OR_KEYWORD else "query"
        for name, hint in hints.items():
            kind = "boolean" if hint is bool else "integer" if hint is int else "string"
            parameter = marker(hint, Parameter) or Parameter("", {"type": kind})
            yield "header" if parameter.header else place, name, parameter


def operation_of(function: Callable[..., Awaitable[Any]]) -> Operation:
    """Read the signature of a handler's method."""
    parameters = tuple(declared_parameters(function))
    readers = {name: parameter.read for place, name, parameter in parameters if place == "query"}
    signature = inspect.signature(function)
    body, returned = signature.parameters.get("body"), signature.return_annotation
    result = value_type(returned)
    statuses = tuple(each for each in getattr(returned, "__metadata__", ()) if isinstance(each, int))
    return Operation(
        function,
        parameters,
        tuple(parameter.read for place, _, parameter in parameters if place == "path"),
        functools.lru_cache(500)(functools.partial(read_query, readers)),  # the page sends the same queries often
        tuple((name, parameter.header.lower()) for place, name, parameter in parameters if place == "header"),
        marker(body.annotation, (Fields, Bytes)) if body else None,
        statuses or ((204,) if result is None else (200,)),
        result,
    )


def path_text(part: str) -> str:
    """A percent-encoded part of a path, decoded. Raises Malformed."""
    if "%" not in part:
        return part
    try:
        return urllib.parse.unquote(part, errors="strict")
    except UnicodeDecodeError:
        raise Malformed("The address is not percent-encoded UTF-8.") from None


@functools.lru_cache(100)
def quoted_path(parts: tuple[str, ...]) -> str:
    """Parts of a path, percent-encoded."""
    return "/".join(urllib.parse.quote(part, safe="") for part in parts)


JSON_TYPE = re.compile(r"application/([a-z0-9.-]+\+)?json")  # or a format written in it (RFC 6839)


class Handler:
    """One resource: a method for each verb. The signature of a method is its contract.

    Arguments from the path are positional; query parameters and headers are keyword-only; `body` is the
    decoded body. A method returns a value, which is sent as JSON, or a Response. It may set `status` and `headers`.
    """

    public = False  # deny by default
    needs_session = False  # whether a token, a link or this machine's own user is not enough
    unsigned_methods: tuple[str, ...] = ()  # for which a user who does not sign in here is enough
    has_head = True
    any_query = False  # whether unknown query parameters are ignored
    takes_json = True  # whether a body must be JSON
    max_body = MAX_BODY
    errors: tuple[int, ...] = ()  # statuses that the signatures do not imply
    content_security_policy = API_POLICY
    caller: Caller
    user: User

    def __init__(self, app: "App", request: Request):
        self.app, self.request, self.services = app, request, app.services
        self.headers: dict[str, str] = {}
        self.status = 0
        self.body = b""  # the bytes of the body
        self.validator = ""  # the ETag by which the client may know the response
        self.who: Caller | None = None  # the caller, for the log

    @classmethod
    @functools.cache
    def operations(cls) -> dict[str, Operation]:
        """Its operations, by HTTP method."""
        functions = {name: getattr(cls, name.lower(), None) for name in METHODS}
        found = {name: operation_of(function) for name, function in functions.items() if function}
        return found | ({"HEAD": found["GET"]} if "GET" in found and cls.has_head else {})

    async def respond(self, parts: Sequence[str]) -> Response[Any]:
        """Carry the request out. Raises TodoError, HTTPError or NotModified."""
        method = self.request.method
        known = self.operations()
        if method == "OPTIONS":
            return self._options((*known, "OPTIONS"))
        operation = known.get(method)
        if operation is None:
            raise MethodNotAllowed((*known, "OPTIONS"))
        await self.admit()
        query = {} if self.any_query else operation.read_query(self.request.query)
        if self.takes_json and method not in ("GET", "HEAD") and "content-type" in self.request.headers:
            self._check_media_type()
        arguments = [read(path_text(part)) for read, part in zip(operation.read_path, parts, strict=True)]
        keywords = dict(query)
        for keyword, name in operation.headers:
            if name in self.request.headers:
                keywords[keyword] = self.request.headers[name]
        if self.request.has_body:
            self.body = await self.request.read_body(self.max_body if operation.body else MAX_UNEXPECTED_BODY)
        if operation.body:
            if self.takes_json and (self.body or not getattr(operation.body, "optional", False)):
                self._check_media_type()
            keywords["body"] = operation.body.read(self.body)
        self.status = operation.statuses[0]
        result = await operation.function(self, *arguments, **keywords)
        return result if isinstance(result, Response) else await self.encode(result)

    def _options(self, methods: Sequence[str]) -> Response[None]:
        allowed = ", ".join(methods)
        headers = {"Allow": allowed}
        if self.app.origins.allows(self.request.headers.get("origin", "")):
            headers["Access-Control-Allow-Methods"] = allowed
            headers["Access-Control-Allow-Headers"] = ALLOWED_HEADERS
            headers["Access-Control-Max-Age"] = "600"
        return Response(status=204, headers=headers)

    async def admit(self) -> None:
        """Authenticate the caller, unless the handler is public. Raises Unauthorized or Forbidden."""
        if self.public:
            return
        await self.services.open()
        caller = self.who = await self.app.authenticator.caller(self.request)
        if caller is None:
            raise Unauthorized("Sign in first.")
        self.caller, self.user = caller, caller.user
        if caller.read_only and self.request.method not in ("GET", "HEAD"):
            raise Forbidden(f"This {caller.kind} may only read.")
        is_unsigned = caller.kind in ("local", "open", "host")
        if self.needs_session and not (is_unsigned and self.request.method in self.unsigned_methods):
            self.check_session()

    def check_session(self) -> None:
        """Raise Forbidden unless the caller has signed in."""
        if self.caller.kind != "session":
            raise Forbidden("This requires a session: sign in on the page, or with POST /api/session.")

    def is_from_own_site(self) -> bool:
        """Whether a request comes from no page, from the app's own, or from an origin in CORS_ORIGINS."""
        site, origin = self.request.headers.get("sec-fetch-site"), self.request.headers.get("origin")
        if site in ("same-origin", "none") or (site is None and origin is None):
            return True
        if not origin:
            return False
        is_ours = site is None and is_of_host(origin, self.request.host)
        return is_ours or self.app.origins.allows(origin) or self.app.origins.is_own(origin, self.request)

    def check_site(self) -> None:
        """Raise Forbidden for a write by a page of another site."""
        # Browsers do not add tokens automatically, and an invalid token is refused later. A public handler accepts no
        # token, but may read a cookie.
        takes_token = not self.public and self.app.authenticator.has_accounts
        if takes_token and "authorization" in self.request.headers and bearer_secret(self.request) is not None:
            return
        if not self.is_from_own_site():
            raise Forbidden(
                "A page of another site may not write here. CORS_ORIGINS lists the sites that may. If this is the"
                " server's own page behind a proxy, set PUBLIC_URL to its address."
            )

    def _check_media_type(self) -> None:
        media_type = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not JSON_TYPE.fullmatch(media_type):
            message = f"is {media_type or 'missing'}; it must be application/json"
            raise UnsupportedMediaType.of("Content-Type", message, "The Content-Type")

    async def encode(self, result: Any) -> Response[Any]:
        """The response with a method's result."""
        if result is None:
            return Response(status=self.status)
        return Response(msgspec.json.encode(result), "application/json", status=self.status)

    def validate(self, etag: str) -> None:
        """Set the ETag of the response. Raises NotModified if the client has it already."""
        self.headers["ETag"] = self.validator = etag
        known = self.request.headers.get("if-none-match")
        if known is not None and self.request.method in ("GET", "HEAD") and etag_matches(known, etag, weak=True):
            raise NotModified

    def url(self, *path: str) -> str:
        """The absolute URL, for the client, of a path below the prefix."""
        config = self.app.config
        base = config.public_url or f"{self.request.protocol}://{self.request.host}"
        return f"{base}{config.prefix}/{quoted_path(path)}"


class ServerHandler(Handler):
    """The server as a whole, with the target `*` (RFC 9110, 9.3.7)."""

    public = True

    async def respond(self, parts: Sequence[str]) -> Response[Any]:
        return self._options((*METHODS, "HEAD", "OPTIONS"))


# ---- routes


class Route(NamedTuple):
    """An address below the prefix, such as `/api/todos/{todo_id}`, and its handler."""

    path: str
    handler: type[Handler]
    accounts_only: bool = False  # whether it is served only if users sign in

    @property
    def pattern(self) -> str:
        """The path as a regular expression. `{name:regex}` has its own for a name."""
        return re.sub(r"\{\w+(?::([^{}]*))?\}", lambda part: f"({part[1] or '[^/]+'})", self.path)


class Router:
    """Finds the handler of a path below the prefix, of which a proxy or framework may have removed a part."""

    def __init__(self, routes: Sequence[Route], prefix: str):
        self.prefix, self.routes = prefix, routes
        # A proxy, or a mount of an older Starlette, may have removed the beginning of the prefix. An ASGI server may
        # have added its root_path to a path from which a proxy removed nothing.
        rests = [prefix[slash.start() :] for slash in re.finditer("/", prefix)][1:]
        self._rests = [2 * prefix, *rests, ""] if prefix else []
        self._reported: set[str] = set()  # wrong mounts
        self._fixed = {prefix + route.path: route.handler for route in routes if "{" not in route.path}
        self._fixed["*"] = ServerHandler
        patterns = [(route.pattern, route.handler) for route in routes if "{" in route.path]
        self._patterns = [(re.compile(re.escape(prefix) + pattern), handler) for pattern, handler in patterns]

    def find(self, app: "App", request: Request) -> tuple[Handler, Sequence[str]]:
        """The handler for a request, and the parts of its path. Raises NotFound."""
        mount = request.root_path
        if mount and not self.prefix.endswith(mount):
            hint = self._prefix_hint(mount, "is")
            if mount not in self._reported:
                self._reported.add(mount)
                LOG.error("%s", hint)
            raise NotFound(f"{NOT_FOUND} {hint}")
        found = self._match(request.path)
        for rest in () if found else self._rests:
            path = self.prefix + request.path.removeprefix(rest)
            if found := self._match(path):
                request.path = path
                break
        if not found:
            raise NotFound(f"{NOT_FOUND} {self._mount_hint(request.path)}".rstrip())
        return found[0](app, request), found[1]

    def _match(self, path: str) -> tuple[type[Handler], Sequence[str]] | None:
        if handler := self._fixed.get(path):
            return handler, ()
        for pattern, handler in self._patterns:
            if match := pattern.fullmatch(path):
                return handler, match.groups()
        return None

    def _mount_hint(self, path: str) -> str:
        """The setting to change, if the address would exist without the beginning of its path."""
        for slash in list(re.finditer("/", path))[1:10]:
            mount = path[: slash.start()]
            if re.fullmatch(PREFIX_PATTERN, mount) and self._match(self.prefix + path[slash.start() :]):
                return self._prefix_hint(mount, "may be")
        return ""

    def _prefix_hint(self, mount: str, verb: str) -> str:
        made_for = f"was made for {self.prefix}" if self.prefix else "was made without a prefix"
        return (
            f"The to-do application {verb} mounted at {mount}, but {made_for}: call make_app(prefix={mount!r}),"
            f" or set PREFIX={mount}."
        )


# ---- OpenAPI


EXAMPLES: dict[Any, Any] = {
    Todo: EXAMPLE_TODO,
    TodoList: EXAMPLE_LIST,
    Change: {
        **dict.fromkeys(("batch", "list", "todo"), EXAMPLE_ID),
        **{"revision": 3, "at": EXAMPLE_TIME, "user": "ann", "action": "create", "before": None, "after": EXAMPLE_TODO},
    },
    TodoFields: {"title": "Buy milk", "due": "2026-12-01", "tags": ["shop"]},
    ListFields: {"title": "Garden"},
    FilterFields: {"title": "Shopping", "query": "completed=false&tag=shop&due=..today+7"},
    TemplateFields: {"list": EXAMPLE_ID},
    NewListFields: {"title": "Trip to Rome", "day": "2026-12-01"},
    Comment: {"id": EXAMPLE_ID, "author": "ann", "text": "Done.", "created_at": EXAMPLE_TIME},
    CommentFields: {"text": "Done."},
    Statistics: {"days": [{"day": "2026-11-28", "completed": 3}], "streak": 4},
    Settings: EXAMPLE_SETTINGS,
    UserFields: {"theme": "dark", "first_day": "monday"},
}
EXAMPLE_VALUES: dict[str, Any] = {  # by the name of a field
    **dict.fromkeys(("id", "batch", "undone"), EXAMPLE_ID),
    **{"url": f"http://localhost:8888/api/…/{EXAMPLE_ID}", "format": "tornado_todo"},
    **dict.fromkeys(("created_at", "updated_at", "used_at", "expires_at", "exported_at", "since"), EXAMPLE_TIME),
    **{"user": "ann", "name": "ann", "password": "correct horse battery", "new_password": "battery horse correct"},
    **{"role": "editor", "kind": "session", "sign_up": "invite", "days": 30, "time_zone": "Europe/Berlin"},
    **{"settings": EXAMPLE_SETTINGS},
    **{"status": "ok", "engines": {"todos": {"engine": "SQLite", "state": "ok", "milliseconds": 0.2}}},
    **{"documents": [{"name": "groceries", "document": {"items": ["milk"]}}]},
    **{"comments": [{"todo": EXAMPLE_ID, "id": EXAMPLE_ID, "author": "ann", "text": "Done."}]},
    **{"temperature": "7", "text": "light rain", "place": "Berlin"},
}


def example_of(kind: Any, name: str = "") -> Any:
    """An example of a type: one of those above, or composed of examples of its fields or parts."""
    kind, parts = (kind.__origin__ if hasattr(kind, "__metadata__") else kind), get_args(kind)
    if kind in EXAMPLES or name in EXAMPLE_VALUES:
        return EXAMPLES.get(kind) or EXAMPLE_VALUES[name]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = [each for each in msgspec.structs.fields(kind) if each.required or each.name in EXAMPLE_VALUES]
        return {each.name: example_of(each.type, each.name) for each in fields}
    if get_origin(kind) in (list, dict):
        return [example_of(parts[0])] if get_origin(kind) is list else {}
    return example_of(parts[0], name) if parts else {bool: False, int: 1, str: "…"}.get(kind)


def error_statuses(route: Route, method: str, operation: Operation) -> set[int]:
    """The statuses of a method's errors, as its signature implies."""
    names = {name for _, name, _ in operation.parameters}
    applies = {
        401: route.handler.public is not True,
        403: route.handler.public is not True or method != "GET",
        404: bool(operation.read_path) or "list" in names or route.accounts_only,
        408: operation.body is not None,
        409: method != "GET",
        410: not names.isdisjoint(("after", "since", "idempotency_key")),
        412: not names.isdisjoint(("if_match", "if_none_match")),
        413: operation.body is not None,
        415: method not in ("GET", "HEAD") and route.handler.takes_json,
        422: isinstance(operation.body, Fields) or bool(operation.read_path) or "tz" in names,
    }
    applies[304] = method in ("GET", "HEAD")
    return {400, 421, 500, 503, *(status for status, does in applies.items() if does), *route.handler.errors}


class OpenAPI:
    """Describes the API (OpenAPI 3.1), as routes, signatures, types and docstrings declare it."""

    def __init__(self, routes: Sequence[Route], url: str):
        self._types: dict[Any, None] = {Problem: None}
        self._errors: set[int] = set()
        shown = [route for route in routes if route.path.startswith("/api/")]
        paths = {
            route.path: {
                name.lower(): self._operation(route, name, each) for name, each in route.handler.operations().items()
            }
            for route in shown
        }
        _, schemas = msgspec.json.schema_components(self._types, ref_template="#/components/schemas/{name}")
        for name in schemas:
            schemas[name] |= {"additionalProperties": False} if name.endswith("Fields") else {}  # others are refused
        self.document: dict[str, Any] = {
            "openapi": "3.1.0",
            "info": {"title": "tornado_todo", "version": __version__},
            "servers": [{"url": url}],
            "security": [{}, {"token": []}],
            "paths": paths,
            "components": {
                "schemas": schemas,
                "responses": {str(status): self._error(status) for status in sorted(self._errors)},
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
                "headers": {
                    name: {"description": text, "schema": {"type": "string"}} for name, text in RESPONSE_HEADERS.items()
                },
            },
        }

    def _operation(self, route: Route, method: str, operation: Operation) -> dict[str, Any]:
        summary, _, text = (inspect.getdoc(operation.function) or "").partition("\n")
        words = re.findall(r"\w+", route.path.removeprefix("/api"))
        errors = error_statuses(route, method, operation) - set(operation.statuses)
        self._errors |= errors
        described = {
            "operationId": "_".join([method.lower(), *words]),
            "tags": [words[0]],
            "summary": summary,
            "description": text.strip() or inspect.getdoc(route.handler) or "",
            "parameters": self._parameters(operation),
            "responses": {
                **{str(status): self._success(status, method, operation) for status in operation.statuses},
                **{str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(errors)},
            },
        }
        if operation.body:
            described["requestBody"] = self._body(operation.body)
        return described

    @staticmethod
    def _parameters(operation: Operation) -> list[dict[str, Any]]:
        return [
            {
                **{"name": parameter.header or name, "in": place, "required": place == "path"},
                **{"description": parameter.help, "schema": parameter.schema},
                **({"example": parameter.example} if parameter.example is not None else {}),
            }
            for place, name, parameter in operation.parameters
        ]

    def _body(self, fields: Fields | Bytes) -> dict[str, Any]:
        if isinstance(fields, Bytes):
            media_type = "application/json" if fields.is_json else "*/*"
            return {"content": {media_type: {"schema": {}}}, "required": fields.is_json}
        schema = self._schema(fields.struct)
        schema |= {"required": list(fields.required)} if fields.required else {}
        if fields.many:
            schema = {"oneOf": [schema, {"type": "array", "items": schema, "minItems": 1, "maxItems": MAX_ITEMS}]}
        content = {"schema": schema, "example": example_of(fields.struct)}
        return {"content": {"application/json": content}, "required": not fields.optional}

    def _success(self, status: int, method: str, operation: Operation) -> dict[str, Any]:
        if method == "HEAD" or status in (101, 204, 301) or operation.result is None:
            return self._response(http.client.responses[status])
        media_type = {bytes: "*/*", str: "text/html"}.get(operation.result, "application/json")
        content: dict[str, Any] = {"schema": {}}
        if operation.result not in (bytes, str, Any):
            example = msgspec.json.encode(example_of(operation.result))
            content = {"schema": self._schema(operation.result), "example": msgspec.json.decode(example)}
        return self._response(http.client.responses[status], {media_type: content})

    def _error(self, status: int) -> dict[str, Any]:
        kinds = [(kind.title, str(kind.__doc__)) for kind in TodoError.__subclasses__() if kind.status == status]
        title, meaning = [*kinds, (http.client.responses[status], "")][0]
        example = {"type": "about:blank", "title": title, "status": status, "detail": meaning, "request_id": "5f0c2d6b"}
        content = {"schema": self._schema(Problem), "example": example}
        return self._response(f"{title}: {meaning}", {"application/problem+json": content})

    def _schema(self, kind: Any) -> dict[str, Any]:
        """The schema of a type, by references to those of its structs, which are added to the document."""
        self._types[kind] = None
        (schema,), _ = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
        return schema

    @staticmethod
    def _response(text: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
        headers = {name: {"$ref": f"#/components/headers/{name}"} for name in RESPONSE_HEADERS}
        return {"description": text, "headers": headers} | ({"content": content} if content else {})


DOCS_STYLE = """
:root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}
body{max-width:60rem;margin:2rem auto;padding:0 1rem}
summary{cursor:pointer;padding:.4rem 0}
code{font:0.95em ui-monospace,monospace}
b{display:inline-block;min-width:4.5rem}
table{border-collapse:collapse;margin:.5rem 0 1rem}
td,th{border:1px solid #8886;padding:.2rem .6rem;text-align:left;vertical-align:top}
"""
DOCS_DIGEST = base64.b64encode(hashlib.sha256(DOCS_STYLE.encode()).digest()).decode()
DOCS = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>API · tornado_todo</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{% raw style %}</style></head>
<body><h1>tornado_todo {{ document["info"]["version"] }}</h1>
<p>Errors are <code>application/problem+json</code>. Programs read <a href="openapi.json">openapi.json</a>.</p>
{% for path, methods in document["paths"].items() %}<h2><code>{{ path }}</code></h2>
{% for method, each in methods.items() %}{% if method != "head" %}<details>
<summary><b>{{ method.upper() }}</b> {{ each["summary"] }}</summary><p>{{ each["description"] }}</p>
{% if each["parameters"] %}<table><tr><th>parameter</th><th>in</th><th>meaning</th></tr>
{% for one in each["parameters"] %}<tr><td><code>{{ one["name"] }}</code></td><td>{{ one["in"] }}</td>
<td>{{ one["description"] }}</td></tr>{% end %}</table>{% end %}
{% if "requestBody" in each %}<p>Body:</p><pre><code>{{ text(each["requestBody"]["content"]) }}</code></pre>{% end %}
<table><tr><th>status</th><th>meaning</th></tr>{% for status, one in each["responses"].items() %}
<tr><td>{{ status }}</td><td>{{ (one if "description" in one else shared[status])["description"] }}</td></tr>
{% end %}</table></details>
{% end %}{% end %}{% end %}
<h2>Schemas</h2>{% for name, each in document["components"]["schemas"].items() %}
<details><summary><code>{{ name }}</code></summary><pre><code>{{ text(each) }}</code></pre></details>{% end %}
</body></html>
"""


# ---- dispatch


class App(NamedTuple):
    """The parts of an app that answer requests."""

    config: Config
    services: Services
    authenticator: Authenticator
    cookies: SessionCookies
    accounts: Accounts
    proxies: Proxies
    origins: Origins
    page: Callable[[], "BuiltPage"]  # built when first needed
    router: Router
    openapi: Callable[[], OpenAPI]  # made when first needed


def log_request(
    status: int, request: Any, caller: Caller | None = None, request_id: str = "", began: float = 0
) -> None:
    """Log one line for a request, without its query, headers and body, and with nothing that is not printable."""
    level = logging.INFO if status < 500 else logging.WARNING
    if not ACCESS_LOG.isEnabledFor(level):
        return
    facts = {
        "request_id": request_id,
        "user": caller.user.name if caller else None,
        "method": request.method,
        "path": request.path[:300],
        "status": status,
        "milliseconds": round((time.monotonic() - began) * 1000, 1),
        "address": request.remote_ip,
    }
    ACCESS_LOG.log(level, "%s", " ".join(json.dumps(value) for value in facts.values()), extra={"facts": facts})


def log_error(request: Request, error: Exception) -> None:
    """Log an error, unless it is the client's mistake."""
    if isinstance(error, Misconfigured):
        LOG.error("%s", error)
    elif not isinstance(error, tornado.web.HTTPError):
        LOG.error("%s %s %r failed", request.id, request.method, request.path[:300], exc_info=error)
    elif isinstance(error, TodoError) and error.status >= 500:
        LOG.warning("%s %s: %s", request.id, error.title, error)
    elif error.log_message:
        LOG.warning("%s %s", request.id, error)


def translated_detail(detail: str, errors: Sequence[dict], language: str) -> tuple[str, list[dict[str, str]]]:
    """The detail of an error, which may repeat the messages about its fields, and those messages in a language."""
    messages = {error["message"]: translated(error["message"], language) for error in errors}
    if messages:
        longest_first = "|".join(map(re.escape, sorted(messages, key=len, reverse=True)))
        detail = re.sub(longest_first, lambda found: messages[found[0]], detail)
    return translated(detail, language), [error | {"message": messages[error["message"]]} for error in errors]


def problem_response(request: Request, error: Exception) -> Response[Any]:
    """An error as a problem document (RFC 9457)."""
    if isinstance(error, Misconfigured):
        error = Unavailable("The server cannot open its database because of its configuration; see the log.")
    # The reasons of other errors may be internal.
    status = error.status_code if isinstance(error, tornado.web.HTTPError) else 500
    title = http.client.responses.get(status, "Unknown")
    headers = {"WWW-Authenticate": 'Bearer realm="tornado_todo"'} if status == 401 else {}
    errors: list[dict[str, str]] = []
    if isinstance(error, TodoError):
        title, detail, errors = error.title, error.detail, error.errors
        headers |= error.headers
    else:
        detail = (error.reason if isinstance(error, tornado.web.HTTPError) else INTERNAL_ERROR) or title
    language, _ = read_language(request.headers.get("accept-language", ""))
    headers["Content-Language"] = language  # errors are never cached, so that they need no Vary
    if language != "en":
        detail, errors = translated_detail(detail, errors, language)
    problem = Problem("about:blank", translated(title, language), status, detail, request.id, errors or UNSET)
    return Response(msgspec.json.encode(problem), "application/problem+json", status=status, headers=headers)


def cors_headers(app: App, origin: str) -> dict[str, str]:
    """The headers that let the pages of an origin read the response, if CORS_ORIGINS lists it."""
    if not app.origins.allows(origin):
        return {"Vary": "Origin"}
    # Cookies are only for origins that are listed by name.
    allowed = {"Origin": origin, "Credentials": "true"} if app.origins.is_named(origin) else {"Origin": "*"}
    return {
        "Vary": "Origin",
        "Access-Control-Expose-Headers": ", ".join(RESPONSE_HEADERS),
        "Cross-Origin-Resource-Policy": "cross-origin",
        **{f"Access-Control-Allow-{name}": value for name, value in allowed.items()},
    }


def finish_headers(app: App, request: Request, handler: Handler | None, response: Response[Any]) -> None:
    """Add the headers of every response. Raises ValueError for a value that could begin another header."""
    own, body = response.headers, response.body
    if not (all(map(str.isascii, own.values())) and all(map(str.isprintable, own.values()))):
        raise ValueError(f"headers that cannot be sent: {own!r}")
    policy = handler.content_security_policy if handler else API_POLICY
    headers = {
        **policy_headers(policy, app.config.frame_ancestors, request.protocol),
        "X-Request-Id": request.id,
        "Date": date_header(int(time.time())),
        **(cors_headers(app, request.headers.get("origin", "")) if app.config.cors_origins else {}),
        **own,
    }
    if response.status in (204, 304) or response.socket:
        response.body = b""
    elif isinstance(body, bytes):
        headers["Content-Length"] = str(len(body))
        response.body = b"" if request.method == "HEAD" else body
    elif body.size is not None:
        headers["Content-Length"] = str(body.size)
    if request.has_body:  # otherwise the unread body would be taken for the next request
        headers["Connection"] = "close"
    response.headers = headers


async def respond(app: App, request: Request) -> tuple[Response[Any], Caller | None]:
    """The response to a request, also for any error, and the caller, if known. Raises ClientGone."""
    handler: Handler | None = None
    try:
        app.proxies.read(request)
        app.origins.check_host(request.headers.get("host", ""))
        handler, parts = app.router.find(app, request)
        if request.method not in ("GET", "HEAD", "OPTIONS"):
            handler.check_site()
        try:
            response = await handler.respond(parts)
        except NotModified:
            response = Response(status=304)
        response.headers = {**handler.headers, **response.headers}
        finish_headers(app, request, handler, response)
    except ClientGone:
        raise
    except Exception as error:
        log_error(request, error)
        if request.has_body:
            await request.discard_body()
        response = problem_response(request, error)
        finish_headers(app, request, handler, response)
    return response, handler.who if handler else None


async def exchange(app: App, request: Request, write: Callable[[Response[Any]], Awaitable[None]]) -> None:
    """Answer a request, have the response written, and log it. The server stops only after this."""
    app.services.requests += 1
    response = None
    try:
        response, caller = await respond(app, request)
        log_request(response.status, request, caller, request.id, request.began)
        if response.socket:  # it stays open, and the server must not wait for it to stop
            app.services.requests -= 1
        await write(response)
    except ClientGone:
        LOG.debug("%s: the client disconnected before its response", request.id)
    except Exception:
        LOG.exception("%s: the response could not be sent", request.id)
    finally:
        if not (response and response.socket):
            app.services.requests -= 1
        if response and isinstance(response.body, FileBody):
            response.body.file.close()


# ---- Tornado's connection


class WireHeaders(dict[str, str]):
    """Headers by name, each once: a tenth of the cost of HTTPHeaders, with what Tornado's connection needs."""

    get_all = dict.items


class TornadoSocket(tornado.websocket.WebSocketHandler):
    """A WebSocket of Tornado's, as a Socket."""

    def initialize(self, response: Response[Any]) -> None:
        self._run = cast(Callable[[Socket], Awaitable[None]], response.socket)
        self.clear_header("Server")
        for name, value in response.headers.items():
            self.set_header(name, value)

    def check_origin(self, origin: str) -> bool:
        """Accept pages of every origin: the handler has checked it."""
        return True

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """`todo`, if it is offered: a page that sends a link's secret as another needs a response with one."""
        return "todo" if "todo" in subprotocols else None

    def open(self, *_: str, **__: str) -> None:
        self._message: asyncio.Future[str | bytes | None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.ensure_future(self._run(self))

    def on_message(self, message: str | bytes | None) -> None:
        if not self._message.done():
            self._message.set_result(message)

    def on_close(self) -> None:
        self.on_message(None)

    async def receive(self) -> str | bytes | None:
        return await self._message

    async def send(self, text: str) -> None:
        try:
            await self.write_message(text)
        except (tornado.websocket.WebSocketClosedError, tornado.iostream.StreamClosedError):
            raise ClientGone from None


WEBSOCKET_KEY = re.compile("[A-Za-z0-9+/]{22}==")  # 16 bytes (RFC 6455, 4.2.1)


def asks_for_socket(headers: Mapping[str, str]) -> bool:
    """Whether these headers ask for a WebSocket, of any version and perhaps incompletely."""
    return headers.get("upgrade", "").lower() == "websocket" and "upgrade" in headers.get("connection", "").lower()


def opens_socket(headers: Mapping[str, str]) -> bool:
    """Whether these headers open a WebSocket, with a key of 16 bytes (RFC 6455, 4.2.1) and without a body."""
    return (
        asks_for_socket(headers)
        and not headers.get("content-length", "").strip("0")
        and "transfer-encoding" not in headers
        and bool(WEBSOCKET_KEY.fullmatch(headers.get("sec-websocket-key", "")))
    )


class TornadoExchange(tornado.httputil.HTTPMessageDelegate):
    """One request on a connection of Tornado's, and its response."""

    def __init__(self, application: tornado.web.Application, app: App, connection: Any):
        self._application, self._app, self._connection = application, app, connection
        self._take: Callable[[bytes], object] | None = None
        self._body_wanted: asyncio.Future[None] | None = None
        self._body_end: asyncio.Future[None] | None = None

    def headers_received(self, start_line: Any, headers: tornado.httputil.HTTPHeaders) -> Awaitable[None] | None:
        """Begin to answer a request. If it has a body, the future is done when the body should be read."""
        if "Expect" in headers:
            # Tornado supports only this spelling, and HTTP/1.0 has no such response (RFC 9110, 10.1.1).
            is_known = headers["Expect"].lower() == "100-continue" and start_line.version != "HTTP/1.0"
            headers["Expect"] = "100-continue" if is_known else ""
        context, read = self._connection.context, read_headers(headers.get_all())
        request = Request(
            start_line.method, start_line.path, start_line.version, read, context.remote_ip, context.protocol
        )
        self._method, self._head = request.method, (start_line, headers)
        request.is_upgrade = "upgrade" in read and opens_socket(read)
        self._task = asyncio.get_running_loop().create_task(exchange(self._app, request, self._write))
        if not request.has_body:
            return None
        self._connection.set_max_body_size(2**60)  # Request has its own limits
        self._connection.set_body_timeout(None)
        request.receive_body = self._receive_body
        self._body_wanted = asyncio.get_running_loop().create_future()
        self._task.add_done_callback(self._ask_for_body)
        return self._body_wanted

    def _ask_for_body(self, _: Any = None) -> None:
        if self._body_wanted and not self._body_wanted.done():
            self._body_wanted.set_result(None)

    async def _receive_body(self, take: Callable[[bytes], object]) -> None:
        self._take, self._body_end = take, asyncio.get_running_loop().create_future()
        self._ask_for_body()
        try:
            await self._body_end
        finally:
            self._take = None

    def data_received(self, chunk: bytes) -> None:
        if self._take:
            self._take(chunk)

    def finish(self) -> None:
        if self._body_end and not self._body_end.done():
            self._body_end.set_result(None)

    def on_connection_close(self) -> None:
        """Note that the client has disconnected, or has sent malformed HTTP."""
        if self._body_end and not self._body_end.done():
            self._body_end.set_exception(ClientGone())

    async def _write(self, response: Response[Any]) -> None:
        if response.socket:
            self._upgrade(response)
            return
        connection, headers, is_last = self._connection, WireHeaders(response.headers), "Connection" in response.headers
        reason = http.client.responses.get(response.status, "Unknown")
        start_line = tornado.httputil.ResponseStartLine("", response.status, reason)
        if is_last:
            connection.stream.lingers = True  # a client that is still sending can then read the response
        try:
            if isinstance(response.body, bytes):
                sent = connection.write_headers(start_line, headers, response.body or None)
            else:
                sent = connection.write_headers(start_line, headers)
                for chunk in response.body.chunks() if self._method != "HEAD" else ():
                    await connection.write(chunk)
            connection.finish()
            if is_last:
                await sent
                connection.close()
        except tornado.iostream.StreamClosedError:
            raise ClientGone from None
        except Exception:
            connection.close()  # so that the client notices that the response is incomplete
            raise

    def _upgrade(self, response: Response[Any]) -> None:
        start_line, headers = self._head
        request = tornado.httputil.HTTPServerRequest(
            start_line=start_line, headers=headers, connection=self._connection
        )
        handling = self._application.get_handler_delegate(request, TornadoSocket, target_kwargs={"response": response})
        handling.finish()


# ---- ASGI


class ASGISocket:
    """The WebSocket of an ASGI server, which frames and pings."""

    def __init__(self, receive: Callable[..., Any], send: Callable[..., Any]):
        self._receive, self._send, self._is_closing = receive, send, False
        self._closing: asyncio.Future[None] | None = None

    async def receive(self) -> str | bytes | None:
        message = await self._receive()
        if message["type"] == "websocket.receive":
            return message.get("text") or message.get("bytes") or ""
        self._is_closing = True
        return None

    async def send(self, text: str) -> None:
        try:
            await self._send({"type": "websocket.send", "text": text})
        except Exception as error:  # servers raise different errors when the client is gone
            raise ClientGone from error

    def close(self, code: int, reason: str) -> None:
        if not self._is_closing:
            self._is_closing = True
            message = {"type": "websocket.close", "code": code, "reason": reason}
            self._closing = asyncio.ensure_future(self._send(message))
            self._closing.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may be gone already

    async def end(self) -> None:
        """Wait until the close has been sent: otherwise the server would close with another code."""
        if self._closing:
            await asyncio.wait([self._closing])


# An extension of ASGI by UvicornConnection: a function that takes a response as a whole, or returns False.
WRITE_WHOLE = "tornado_todo.write_whole"


class ASGIExchange:
    """One request of an ASGI server (ASGI 3.0), and its response."""

    def __init__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]):
        self._scope, self._receive, self._send = scope, receive, send
        self._is_socket = scope["type"] == "websocket"
        self._has_begun = False
        self._write_whole = (scope.get("extensions") or {}).get(WRITE_WHOLE)

    async def answer(self, app: App) -> None:
        """Have the app answer the request."""
        try:
            request = self._request()
            if self._is_socket:
                await self._receive()  # websocket.connect
            await exchange(app, request, self._write)
        except tornado.httputil.HTTPInputError as error:
            await self._write(refusal(input_error_status(error), f"{error}."))
        except asyncio.CancelledError:  # the server is being stopped, and would log a traceback for this
            if not self._has_begun:
                await self._write(refusal(503, "The server is being stopped. Try again in a moment."))

    def _request(self) -> Request:
        scope = self._scope
        target = (scope.get("raw_path") or urllib.parse.quote(scope["path"]).encode()).decode("latin-1")
        if scope.get("query_string"):
            target += "?" + scope["query_string"].decode("latin-1")
        size = len(target) + sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > MAX_HEAD:
            raise tornado.httputil.HTTPInputError(f"The headers are too long: at most {MAX_HEAD:,} bytes are read")
        pairs = ((name.decode("latin-1"), value.decode("latin-1").strip(" \t")) for name, value in scope["headers"])
        scheme = scope.get("scheme") or "http"
        request = Request(
            scope.get("method", "GET"),
            target,
            "HTTP/1.0" if scope.get("http_version") == "1.0" else "HTTP/1.1",
            read_headers(pairs),
            (scope.get("client") or ("",))[0] or NO_ADDRESS,
            {"ws": "http", "wss": "https"}.get(scheme, scheme),
        )
        request.root_path, request.is_upgrade = (scope.get("root_path") or "").rstrip("/"), self._is_socket
        if request.has_body:
            if "transfer-encoding" in request.headers:  # encodings other than chunked are refused
                tornado.http1connection.is_transfer_encoding_chunked(tornado.httputil.HTTPHeaders(request.headers))
            request.receive_body = self._receive_body
        return request

    async def _receive_body(self, take: Callable[[bytes], object]) -> None:
        has_more = True
        while has_more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            if body := message.get("body"):
                take(body)
            has_more = message.get("more_body", False)

    async def _write(self, response: Response[Any]) -> None:
        if isinstance(response.body, bytes) and self._write_whole and self._write_whole(response):
            return
        if response.socket:
            await self._run_socket(response.socket)
            return
        kind = "websocket.http.response" if self._is_socket else "http.response"
        try:
            if self._is_socket and "websocket.http.response" not in (self._scope.get("extensions") or {}):
                await self._send({"type": "websocket.close", "code": 1008})  # the only refusal that ASGI offers
                return
            self._has_begun = True
            headers = [(name.lower().encode(), text.encode("latin-1")) for name, text in response.headers.items()]
            await self._send({"type": f"{kind}.start", "status": response.status, "headers": headers})
            if isinstance(response.body, bytes):
                await self._send({"type": f"{kind}.body", "body": response.body, "more_body": False})
                return
            for chunk in response.body.chunks() if self._scope["method"] != "HEAD" else ():
                await self._send({"type": f"{kind}.body", "body": chunk, "more_body": True})
            await self._send({"type": f"{kind}.body", "body": b"", "more_body": False})
        except OSError:  # how a server reports that the client has gone (ASGI, HTTP spec 2.4)
            raise ClientGone from None

    async def _run_socket(self, run: Callable[[Socket], Awaitable[None]]) -> None:
        self._has_begun = True
        offered = self._scope.get("subprotocols") or []
        await self._send({"type": "websocket.accept", "subprotocol": "todo" if "todo" in offered else None})
        socket = ASGISocket(self._receive, self._send)
        await run(socket)
        await socket.end()


# ==== handlers: may call http, service and auth =================================================


def path_id(kind: str, text: str) -> str:
    """An id from the path. Raises NotFound for a text that is not a UUID."""
    try:
        return clean_id(text)
    except ValueError:
        raise NotFound(f"There is no such {kind}.") from None


ID, TEXT = {"type": "string", "format": "uuid"}, {"type": "string", "minLength": 1, "maxLength": 200}
TAG, BOOLEAN = TEXT | {"maxLength": 50}, {"type": "boolean"}
PRIORITIES = {"type": "string", "pattern": "^[0-3](,[0-3])*$"}
EXAMPLE_CURSOR = make_cursor("order", 1.0, EXAMPLE_ID, 3)
SORTS = {"enum": [sign + name for name in SORT_COLUMNS for sign in ("", "-")]}
A_DAY = r"(\d{4}-\d\d-\d\d|today([ +-]\d{1,4})?)"
DUE = {"type": "string", "pattern": rf"^(any|none|{A_DAY}(\.\.({A_DAY})?)?|\.\.{A_DAY})$"}


KEPT_PART = f"({'|'.join(KINDS)}|[0-9]{{1,4}}-[0-9]{{1,4}})"
KEPT = {"type": "string", "pattern": f"^{KEPT_PART}(,{KEPT_PART})*$"}


def whole(minimum: int, maximum: int) -> dict[str, Any]:
    """The schema of a whole number."""
    return {"type": "integer", "minimum": minimum, "maximum": maximum}


TodoId = Annotated[str, Parameter("a to-do's id", ID, EXAMPLE_ID, functools.partial(path_id, "to-do"))]
READ_NEW_ID = functools.partial(cleaned, clean_id, field="id", subject="The id")
NewTodoId = Annotated[str, Parameter("the to-do's id, made by the client", ID, EXAMPLE_ID, READ_NEW_ID)]
ListId = Annotated[str, Parameter("a list's id", ID, EXAMPLE_ID, functools.partial(path_id, "list"))]
FilterId = Annotated[str, Parameter("a filter's id", ID, EXAMPLE_ID, functools.partial(path_id, "filter"))]
TemplateId = Annotated[str, Parameter("a template's id", ID, EXAMPLE_ID, functools.partial(path_id, "template"))]
CommentId = Annotated[str, Parameter("a comment's id", ID, EXAMPLE_ID, functools.partial(path_id, "comment"))]
LinkId = Annotated[str, Parameter("a link's id", ID, EXAMPLE_ID, functools.partial(path_id, "link"))]
CredentialId = Annotated[str, Parameter("the id of a session, token or invitation", ID, EXAMPLE_ID, str)]
UserName = Annotated[str, Parameter("a user's name", example="ann")]
DocumentName = Annotated[
    str, Parameter("1 to 200 letters, digits, dots, underscores or hyphens", TEXT, "groceries", clean_document_name)
]
RecordKey = Annotated[str, Parameter("1 to 200 characters that can be printed", TEXT, "greeting", clean_record_key)]
PathText = Annotated[str, Parameter("a file")]

IfMatch = Annotated[
    str | None, Parameter("carry out only if the ETag is still the same", example='"3"', header="If-Match")
]
IfNoneMatch = Annotated[
    str | None, Parameter("`*`: write only if it does not exist yet", example="*", header="If-None-Match")
]
IdempotencyKey = Annotated[
    str | None,
    Parameter(
        "a repeated request with the same key is carried out only once", example="7f3c", header="Idempotency-Key"
    ),
]

Archived = Annotated[bool, Parameter("only those in archived lists, instead of in all others", BOOLEAN, False)]
Limit = Annotated[int, Parameter("maximum number of results", whole(1, 1000), 100)]
Cursor = Annotated[
    list[Any] | None, Parameter("where the page begins, from a Link header", example=EXAMPLE_CURSOR, reader=read_cursor)
]
Deleted = Annotated[bool, Parameter("whether to address the trash", BOOLEAN, False)]
Sort = Annotated[tuple[str, bool], Parameter("the order; a leading - means descending", SORTS, "-due", read_sort)]
Parse = Annotated[bool, Parameter("whether words of the title are read as other fields", BOOLEAN, False)]
Keep = Annotated[
    tuple[Any, ...], Parameter("what stays in the title: kinds, or places like 5-13", KEPT, "tag,5-13", read_keep)
]
AddTags = Annotated[
    bool, Parameter("whether tags are added to those of each to-do, not put in their place", BOOLEAN, False)
]
SubtasksToo = Annotated[
    str,
    Parameter(
        "whether completing a to-do completes its open subtasks (`complete`), or not (`keep`)",
        {"type": "string", "enum": ["keep", "complete"]},
        "complete",
    ),
]
TimeZone = Annotated[
    str,
    Parameter(
        "the IANA time zone whose days are meant",
        TEXT,
        "Europe/Berlin",
        functools.partial(cleaned, clean_zone, field="tz"),
    ),
]
AcceptLanguage = Annotated[
    str, Parameter("whose words are read, and whether 3/4 is in March", example="de", header="Accept-Language")
]
Revision = Annotated[int | None, Parameter("only changes after this revision", whole(0, 2**63 - 1), 0)]
ListFilter = Annotated[str | None, Parameter("only those of this list", ID, EXAMPLE_ID, clean_id)]
Lifetime = Annotated[int | None, Parameter("in seconds", whole(1, 366 * 86_400), 3600)]

Body = dict[str, Any]  # the fields that were sent
NewTodo = Annotated[Body, Fields(TodoFields, ("title",))]
NewTodos = Annotated[Body | list[Body], Fields(TodoFields, ("title",), many=True)]
TodoPatch = Annotated[Body, Fields(TodoFields)]
NewList = Annotated[Body, Fields(ListFields, ("title",))]
ListPatch = Annotated[Body, Fields(ListFields)]
Nothing = Annotated[Body, Fields(NoFields, optional=True)]


class Filters(TypedDict, total=False):
    """Conditions that select to-dos; without any, all are selected."""

    list: ListFilter
    id: Annotated[
        str, Parameter("only those with one of up to 200 ids, separated by commas", TEXT, EXAMPLE_ID, read_ids)
    ]
    completed: Annotated[bool, Parameter("only those that are completed, or not", BOOLEAN, False)]
    due: Annotated[str, Parameter("a day, days like 2026-11-01..today+7, any, none", DUE, "..2026-12-31", read_due)]
    start: Annotated[
        str, Parameter("the same for starts; without a first day also what has none", DUE, "..2026-12-31", read_due)
    ]
    tag: Annotated[str, Parameter("only those with this tag; may be repeated", TAG, "shop", read_tag)]
    priority: Annotated[str, Parameter("several separated by commas", PRIORITIES, "2,3", read_priorities)]
    assignee: Annotated[str, Parameter("`me`, `none` or a user's name", TEXT, "me", read_text)]
    parent: Annotated[
        str, Parameter("ids of up to 200 to-dos whose subtasks are meant, or `none`", TEXT, "none", read_parents)
    ]
    q: Annotated[str, Parameter("words in the title, the notes, the tags or the comments", TEXT, "milk", read_words)]
    archived: Archived
    tz: TimeZone


class AllFilters(Filters, total=False):
    """Filters, and the trash."""

    deleted: Deleted


class Parsing(TypedDict, total=False):
    """How words of titles are read."""

    keep: Keep
    tz: TimeZone
    accept_language: AcceptLanguage


class BulkResult(msgspec.Struct, frozen=True):
    """The number of to-dos that a write changed, and the batch to undo it."""

    batch: str | None
    count: int


class APIHandler(Handler):
    """The base of the resources of the API."""

    @property
    def queries(self) -> TodoQueries:
        """Queries with the caller's rights."""
        return self.services.todos.queries(self.user)

    def repeat(self, key: str | None, answer_type: Any) -> Repeat | None:
        """The key and the digest of a request with an Idempotency-Key. Raises Malformed."""
        if key is None:
            return None
        if not 1 <= len(key) <= 255 or not key.isprintable():
            raise Malformed.of("Idempotency-Key", "must be 1 to 255 printable characters")
        query = f"?{self.request.query}" if self.request.query else ""
        request = f"{self.request.method} {self.request.path}{query}\n".encode() + self.body
        return Repeat(key, hashlib.sha256(request).hexdigest(), answer_type)

    def user_in(self, zone: str) -> User:
        """The caller, in the time zone that a request names, if it does."""
        return self.user.with_settings(time_zone=zone) if zone else self.user

    async def show(self, thing: Value) -> Value:
        """A to-do or list with its URL."""
        return cast(Value, (await self.show_all([thing]))[0])

    async def show_all(self, things: Sequence[Any], queries: TodoQueries | None = None) -> list[Any]:
        """To-dos, lists, filters or templates with their URLs, or comments, with the names of users."""
        kind = type(things[0]) if things else Todo
        field = "author" if kind is Comment else "assignee" if kind is Todo else ""
        users = {getattr(thing, field) for thing in things} - {None} if field else set()
        names = await (queries or self.queries).names(users)
        named: dict[str, dict[str, Any]] = {user_id: {field: names.get(user_id)} for user_id in users}
        if users:
            things = [msgspec.structs.replace(thing, **named.get(getattr(thing, field), {})) for thing in things]
        if kind is Comment:
            return [*things]
        base = self.url("api", "todos" if kind is Todo else "lists" if kind is TodoList else KINDS_KEPT[kind].table, "")
        return [msgspec.structs.replace(thing, url=base + thing.id) for thing in things]

    async def encode(self, result: Any) -> Response[Any]:
        """The response with a method's result; after a write, also with the batch to undo it."""
        if not isinstance(result, WriteResult):
            return await super().encode(result)
        if result.batch:
            self.headers["Change-Batch"] = result.batch
        result = BulkResult(result.batch, result.result) if isinstance(result.result, int) else result.result
        if isinstance(result, list):
            return await super().encode(await self.show_all(result))
        if isinstance(result, TodoList):  # with its counts of to-dos
            result = next(iter(await self.queries.described([result])), result)
        if isinstance(result, Todo | TodoList | Kept | Comment):
            result = await self.show(result)
        if isinstance(result, Todo | TodoList | Kept):
            self.headers["ETag"] = revision_etag(result.revision)
            if self.status == 201:
                self.headers["Location"] = cast(str, result.url)
        return await super().encode(result)

    def page(self, rows: list[Value], limit: int, cursor_after: Callable[[Value], str]) -> list[Value]:
        """At most `limit` of these rows; if there are more, set the Link header of the next page (RFC 8288)."""
        if len(rows) <= limit:
            return rows
        cursor = cursor_after(rows[limit - 1])
        pairs = urllib.parse.parse_qsl(self.request.query, keep_blank_values=True)
        query = urllib.parse.urlencode([*(pair for pair in pairs if pair[0] != "after"), ("after", cursor)])
        path = self.request.path.removeprefix(self.app.config.prefix).strip("/")
        url = self.url(*(urllib.parse.unquote(part) for part in path.split("/")))
        self.headers["Link"] = f'<{url}?{query}>; rel="next"'
        return rows[:limit]


def is_relative(filters: Mapping[str, Any]) -> bool:
    """Whether filters count days from today, so that their results change without a write."""
    return "today" in f"{filters.get('due')} {filters.get('start')}"


def keep_answers(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Keep the responses of a GET that depends on nothing but the database, until any process changes that."""

    @functools.wraps(method)
    async def get(self: APIHandler, *arguments: Any, **keywords: Any) -> Response[Any]:
        if is_relative(keywords):
            return cast(Response[Any], await method(self, *arguments, **keywords))
        version = self.services.database.version()
        key = (method, self.user, self.url(""), self.request.path, self.request.query)
        known = self.services.answers.get(key)
        if known and known[0] == version:
            _, body, self.headers, validator = known
            if validator:
                self.validate(validator)
            return Response(body, "application/json")
        result = await method(self, *arguments, **keywords)
        response = result if isinstance(result, Response) else await self.encode(result)
        if version is not None:
            body = cast(bytes, response.body)
            self.services.answers.set(key, (version, body, self.headers, self.validator), len(body))
        return response

    return get


def check_cursor(after: Sequence[Any], sort: str) -> None:
    """Raise Malformed for the cursor of another order."""
    if after[0] != sort:
        raise Malformed.of("after", f"belongs to results sorted by {after[0]}")


class ParsedTodo(msgspec.Struct, frozen=True):
    """A to-do that words of a title would make, ready to be sent, and the parts of the title that would be taken."""

    todo: TodoFields  # type: ignore[valid-type]
    text: str
    spans: list[Span]


class ParsingHandler(APIHandler):
    """The base of the handlers that read words of titles."""

    async def parsed(
        self, items: Sequence[Body], keep: Sequence[Any] = (), tz: str = "", accept_language: str = ""
    ) -> list[tuple[Body, list[Span]]]:
        """For new to-dos the fields, for which titles may have words, and those parts of the titles."""
        now = (EPOCH + now_milliseconds() * MILLISECOND).astimezone(zone_named(tz or self.user.time_zone or "UTC"))
        lists = await self.queries.writable_lists() if any("*" in item["title"] for item in items) else {}
        reader = Reader(*read_language(accept_language), now)
        parsed = []
        for item in items:
            parsed.append(parse_title(item, reader, lists, keep))
            await asyncio.sleep(0)  # an odd title takes some ms, and an array has up to 1,000
        return parsed


class ParseHandler(ParsingHandler):
    """The words of a title."""

    async def post(self, body: NewTodo, **parsing: Unpack[Parsing]) -> ParsedTodo:
        """Show what `POST /api/todos?parse=true` would make, and which parts of the title it would take."""
        ((fields, spans),) = await self.parsed([body], **parsing)
        return ParsedTodo(TodoFields(**fields), body["title"], spans)


class TodosHandler(ParsingHandler):
    """All to-dos, or those that a filter selects."""

    @keep_answers
    async def get(
        self, *, sort: Sort = ("order", False), limit: Limit = 200, after: Cursor = None, **filters: Unpack[AllFilters]
    ) -> Response[list[Todo]]:
        """Read all to-dos, or those that filters select, a page at a time."""
        if after:
            check_cursor(after, sort[0])
        page = Page(*sort, limit, (after[1], after[2]) if after else None)
        which = filter_from_query(filters, self.user.time_zone)
        # Read the validator before the rows: a tag that is too old costs a request, one too new hides an update.
        revision = await self.queries.revision(which.list)
        if after:
            await self.queries.check_revision(after[-1])
        etag = collection_etag(self.user, revision)
        # Midnight, and another time zone of the account, change the days, but not the revision.
        by_zone = which.tz != filters.get("tz", "UTC") and (which.due or which.start or page.sort == "due")
        if by_zone or is_relative(filters):
            self.headers["ETag"] = etag
        else:
            self.validate(etag)
        key = (self.user.id, etag, self.url(""), self.request.query, which.tz, which.due, which.start)
        answer = self.services.answers.get(key)
        if answer is None:
            answer = await self._encoded(which, page, revision), self.headers.get("Link", "")
            self.services.answers.set(key, answer, len(answer[0]))
        body, link = answer
        self.headers.update({"Link": link} if link else {})
        return Response(body, "application/json")

    async def _encoded(self, which: TodoFilter, page: Page, revision: int) -> bytes:
        """A page of to-dos of a revision as JSON; also set the Link header."""
        # Only callers who could restore to-dos see them in a list's trash.
        todos = await self.queries.todos(which, page, EDITOR if which.deleted else VIEWER)

        def cursor(last: Todo) -> str:
            return make_cursor(page.sort, sort_value(last, page.sort), last.id, revision)

        return msgspec.json.encode(await self.show_all(self.page(todos, page.limit, cursor)))

    async def post(
        self,
        body: NewTodos,
        *,
        parse: Parse = False,
        idempotency_key: IdempotencyKey = None,
        **parsing: Unpack[Parsing],
    ) -> Annotated[WriteResult[Todo | list[Todo]], 201]:
        """Create a to-do, or all of an array of 1 to 1,000, as one batch; words of titles can become fields."""
        if parse:
            items = body if isinstance(body, list) else [body]
            parsed = [fields for fields, _ in await self.parsed(items, **parsing)]
            body = parsed if isinstance(body, list) else parsed[0]
        if isinstance(body, list):
            repeat = self.repeat(idempotency_key, list[Todo])
            return await self.services.todos.create_all(self.user, body, repeat=repeat)
        return await self.services.todos.create(self.user, body, repeat=self.repeat(idempotency_key, Todo))

    async def patch(
        self,
        body: TodoPatch,
        *,
        add_tags: AddTags = False,
        subtasks: SubtasksToo = "keep",
        if_match: IfMatch = None,
        **filters: Unpack[Filters],
    ) -> WriteResult[BulkResult]:
        """Change all to-dos that the filters select."""
        which = filter_from_query(filters, self.user.time_zone)
        user = self.user_in(filters.get("tz", ""))
        return await self.services.todos.patch_all(user, which, body, if_match, add_tags, subtasks)

    async def delete(self, *, if_match: IfMatch = None, **filters: Unpack[AllFilters]) -> WriteResult[BulkResult]:
        """Move all to-dos that the filters select to the trash, or delete those in the trash for good."""
        which = filter_from_query(filters, self.user.time_zone)
        return await self.services.todos.delete_all(self.user, which, if_match)


class TodoHandler(ParsingHandler):
    """One to-do."""

    @keep_answers
    async def get(self, todo_id: TodoId, *, deleted: Deleted = False) -> Response[Todo]:
        """Read a to-do."""
        todo = await self.queries.todo(todo_id, deleted, EDITOR if deleted else VIEWER)
        self.validate(revision_etag(todo.revision))
        return Response(msgspec.json.encode(await self.show(todo)), "application/json")

    async def put(
        self,
        todo_id: NewTodoId,
        body: NewTodo,
        *,
        parse: Parse = False,
        subtasks: SubtasksToo = "keep",
        if_match: IfMatch = None,
        if_none_match: IfNoneMatch = None,
        **parsing: Unpack[Parsing],
    ) -> Annotated[WriteResult[Todo], 200, 201]:
        """Create a to-do under an id made by the client, or replace it; words of the title can become fields."""
        if parse:
            ((body, _),) = await self.parsed([body], **parsing)
        user, only_new = self.user_in(parsing.get("tz", "")), (if_none_match or "").strip() == "*"
        written = await self.services.todos.replace(user, todo_id, body, if_match, only_new, subtasks)
        todo, made = written.result
        self.status = 201 if made else 200
        return written._replace(result=todo)

    async def patch(
        self,
        todo_id: TodoId,
        body: TodoPatch,
        *,
        subtasks: SubtasksToo = "keep",
        tz: TimeZone = "",
        if_match: IfMatch = None,
    ) -> WriteResult[Todo]:
        """Change some fields of a to-do; completing one that repeats makes the next."""
        return await self.services.todos.patch(self.user_in(tz), todo_id, body, if_match, subtasks)

    async def delete(self, todo_id: TodoId, *, deleted: Deleted = False, if_match: IfMatch = None) -> WriteResult[None]:
        """Move a to-do to the trash, or delete one in the trash for good."""
        return await self.services.todos.delete(self.user, todo_id, if_match, deleted)


class TodoHistoryHandler(APIHandler):
    """The history of a to-do."""

    async def get(self, todo_id: TodoId, *, limit: Limit = 1000, after: Cursor = None) -> list[Change]:
        """Read the changes of a to-do, newest first."""
        after = after or ["revision", 2**63 - 1, "", 0]
        check_cursor(after, "revision")
        await self.queries.check_revision(after[-1])
        changes = await self.queries.history(todo_id, after[1], limit + 1)
        return self.page(changes, limit, lambda last: make_cursor("revision", last.revision, "", last.revision))


class CommentsHandler(APIHandler):
    """The comments on a to-do."""

    async def get(self, todo_id: TodoId) -> list[Comment]:
        """Read the comments on a to-do, oldest first; of deleted ones only who wrote them and when."""
        return await self.show_all(await self.queries.comments(todo_id))

    async def post(
        self, todo_id: TodoId, body: Annotated[Body, Fields(CommentFields)], *, idempotency_key: IdempotencyKey = None
    ) -> Annotated[WriteResult[Comment], 201]:
        """Add a comment to a to-do."""
        repeat = self.repeat(idempotency_key, Comment)
        return await self.services.todos.add_comment(self.user, todo_id, body["text"], repeat=repeat)


class CommentHandler(APIHandler):
    """One comment on a to-do."""

    async def patch(
        self, todo_id: TodoId, comment_id: CommentId, body: Annotated[Body, Fields(CommentFields)]
    ) -> WriteResult[Comment]:
        """Change the text of a comment; only its author may."""
        return await self.services.todos.change_comment(self.user, todo_id, comment_id, body["text"])

    async def delete(self, todo_id: TodoId, comment_id: CommentId) -> WriteResult[None]:
        """Delete a comment; its author and the list's owner may."""
        return await self.services.todos.change_comment(self.user, todo_id, comment_id, None)


class TodoRestoreHandler(APIHandler):
    """A to-do in the trash, to be restored."""

    async def post(self, todo_id: TodoId) -> WriteResult[Todo]:
        """Take a to-do out of the trash; outside the trash it stays unchanged."""
        return await self.services.todos.restore(self.user, todo_id)


class TodoSkipHandler(APIHandler):
    """A to-do that repeats, to be skipped once."""

    async def post(self, todo_id: TodoId, *, tz: TimeZone = "", if_match: IfMatch = None) -> WriteResult[Todo]:
        """Move a to-do that repeats to its next due date."""
        return await self.services.todos.skip(self.user_in(tz), todo_id, if_match)


class TagsHandler(APIHandler):
    """The tags in use."""

    async def get(self) -> list[Tag]:
        """List the tags of active to-dos, with the number of to-dos of each."""
        return await self.queries.tags()


class StatisticsHandler(APIHandler):
    """The caller's completed to-dos."""

    async def get(self, *, tz: TimeZone = "") -> Statistics:
        """Count the to-dos that the caller completed on each day of the last twelve weeks, and the days in a row."""
        zone = self.user_in(tz).time_zone or "UTC"
        today = day_of(now_milliseconds(), zone)
        return Statistics.of(await self.queries.completed_days(today, zone), today)


class ParentsHandler(APIHandler):
    """The to-dos that have subtasks."""

    @keep_answers
    async def get(self, *, limit: Limit = 1000, after: Cursor = None) -> list[Parent]:
        """List the to-dos that have subtasks, with the number of these and of the completed ones."""
        after = after or ["parent", "", "", 0]
        check_cursor(after, "parent")
        revision = await self.queries.revision()
        await self.queries.check_revision(after[-1])
        self.validate(collection_etag(self.user, revision))
        parents = await self.queries.parents(after[2], limit + 1)
        return self.page(parents, limit, lambda last: make_cursor("parent", "", last.id, revision))


class ListsHandler(APIHandler):
    """All lists, or those in the trash."""

    @keep_answers
    async def get(
        self,
        *,
        deleted: Deleted = False,
        archived: Annotated[bool | None, Parameter("only those that are archived, or not", BOOLEAN, False)] = None,
    ) -> list[TodoList]:
        """Read all lists, or those in the trash, by their order."""
        self.validate(collection_etag(self.user, await self.queries.revision()))
        return await self.show_all(await self.queries.lists(deleted, archived))

    async def post(
        self, body: NewList, *, idempotency_key: IdempotencyKey = None
    ) -> Annotated[WriteResult[TodoList], 201]:
        """Create a list."""
        repeat = self.repeat(idempotency_key, TodoList)
        return await self.services.todos.create_list(self.user, body, repeat=repeat)


class ListHandler(APIHandler):
    """One list."""

    @keep_answers
    async def get(self, list_id: ListId, *, deleted: Deleted = False) -> TodoList:
        """Read a list."""
        todo_list = await self.queries.todo_list(list_id, deleted)
        self.validate(revision_etag(todo_list.revision))
        return await self.show(first_row(await self.queries.described([todo_list]), "There is no such list."))

    async def patch(self, list_id: ListId, body: ListPatch, *, if_match: IfMatch = None) -> WriteResult[TodoList]:
        """Change a list: its title for all, if the caller owns it; its order, colour and archive for the caller."""
        return await self.services.todos.patch_list(self.user, list_id, body, if_match)

    async def delete(self, list_id: ListId, *, deleted: Deleted = False, if_match: IfMatch = None) -> WriteResult[None]:
        """Move a list with its to-dos to the trash, or delete one in the trash for good."""
        return await self.services.todos.delete_list(self.user, list_id, if_match, deleted)


class ListRestoreHandler(APIHandler):
    """A list in the trash, to be restored."""

    async def post(self, list_id: ListId) -> WriteResult[TodoList]:
        """Take a list with its to-dos out of the trash."""
        return await self.services.todos.restore_list(self.user, list_id)


def filter_query(text: str) -> str:
    """A query string of filters and a sort, without a leading `?`. Raises Invalid, as it names no unknown parameter."""
    text = text.removeprefix("?")
    try:
        if not len(text) <= 2000:
            raise Malformed("must have at most 2,000 characters.")
        FILTER_OPERATION.read_query(text)
    except TodoError as error:
        raise invalid("query", error.detail.rstrip(".")) from None
    return text


async def select_saved(*, sort: Sort = ("order", False), **filters: Unpack[AllFilters]) -> None:
    """The query parameters of a saved filter."""


FILTER_OPERATION = operation_of(select_saved)


class KeptHandler(APIHandler):
    """The base of the handlers of filters and templates."""

    kind: type[Any] = SavedFilter

    async def all_kept(self) -> list[Any]:
        """All of the handler's kind, by name."""
        self.validate(collection_etag(self.user, await self.queries.revision()))
        return await self.show_all(await self.queries.kept(self.kind))

    async def one_kept(self, thing_id: str) -> Any:
        """One of the handler's kind. Raises NotFound."""
        thing = await self.queries.kept_one(self.kind, thing_id)
        self.validate(revision_etag(thing.revision))
        return await self.show(thing)


class FiltersHandler(KeptHandler):
    """The saved filters."""

    async def get(self) -> list[SavedFilter]:
        """Read the saved filters, by name."""
        return await self.all_kept()

    async def post(
        self, body: Annotated[Body, Fields(FilterFields, ("title", "query"))], *, idempotency_key: IdempotencyKey = None
    ) -> Annotated[WriteResult[SavedFilter], 201]:
        """Save a filter: a name for a query string of `GET /api/todos`."""
        body["query"] = filter_query(body["query"])
        repeat = self.repeat(idempotency_key, SavedFilter)
        return await self.services.todos.keep(self.user, SavedFilter, "", body, repeat=repeat)


class FilterHandler(KeptHandler):
    """One saved filter."""

    async def get(self, filter_id: FilterId) -> SavedFilter:
        """Read a saved filter."""
        return await self.one_kept(filter_id)

    async def patch(
        self, filter_id: FilterId, body: Annotated[Body, Fields(FilterFields)], *, if_match: IfMatch = None
    ) -> WriteResult[SavedFilter]:
        """Change the name or the query of a saved filter."""
        if "query" in body:
            body["query"] = filter_query(body["query"])
        return await self.services.todos.keep(self.user, SavedFilter, filter_id, body, if_match)

    async def delete(self, filter_id: FilterId, *, if_match: IfMatch = None) -> WriteResult[None]:
        """Delete a saved filter."""
        return await self.services.todos.forget(self.user, SavedFilter, filter_id, if_match)


class TemplatesHandler(KeptHandler):
    """The templates."""

    kind = Template

    async def get(self) -> list[Template]:
        """Read the templates, by name."""
        return await self.all_kept()

    async def post(
        self,
        body: Annotated[Body, Fields(TemplateFields)],
        *,
        tz: TimeZone = "",
        idempotency_key: IdempotencyKey = None,
    ) -> Annotated[WriteResult[Template], 201]:
        """Make a template of a list and its open to-dos."""
        try:
            todo_list = await self.queries.todo_list(body["list"])
        except NotFound:
            raise invalid("list", "names no list of yours") from None
        which = TodoFilter(list=todo_list.id, completed=False)
        todos = await self.queries.todos(which, Page(limit=MAX_ITEMS))
        if len(todos) > MAX_ITEMS:
            raise invalid("list", f"has more than {MAX_ITEMS} open to-dos")
        zone = tz or self.user.time_zone
        fields = template_fields(todo_list, todos, zone) | ({"title": body["title"]} if "title" in body else {})
        if len(msgspec.json.encode(fields)) > MAX_BODY:
            raise TooLarge("The to-dos of the list have more text than a template may have.")
        repeat = self.repeat(idempotency_key, Template)
        return await self.services.todos.keep(self.user, Template, "", fields, repeat=repeat)


class TemplateHandler(KeptHandler):
    """One template."""

    kind = Template

    async def get(self, template_id: TemplateId) -> Template:
        """Read a template."""
        return await self.one_kept(template_id)

    async def delete(self, template_id: TemplateId, *, if_match: IfMatch = None) -> WriteResult[None]:
        """Delete a template."""
        return await self.services.todos.forget(self.user, Template, template_id, if_match)


class TemplateListsHandler(APIHandler):
    """The lists that a template makes."""

    async def post(
        self,
        template_id: TemplateId,
        body: Annotated[Body, Fields(NewListFields, optional=True)],
        *,
        tz: TimeZone = "",
        idempotency_key: IdempotencyKey = None,
    ) -> Annotated[WriteResult[TodoList], 201]:
        """Make a list from a template. Its dates begin today, or on the `day` in the body."""
        user = self.user_in(tz)
        today = datetime.date.fromordinal(day_of(now_milliseconds(), user.time_zone or "UTC"))
        day = cleaned(read_day, body["day"], "day") if "day" in body else today
        repeat = self.repeat(idempotency_key, TodoList)
        return await self.services.todos.use_template(user, template_id, body.get("title", ""), day, repeat=repeat)


class Changes(msgspec.Struct, frozen=True):
    """Changes, oldest first, the last revision they cover, and whether there are more."""

    changes: list[Change]
    revision: int
    more: bool


class ChangesHandler(APIHandler):
    """The change log."""

    async def get(self, *, since: Revision = None, list: ListFilter = None, limit: Limit = 200) -> Changes:
        """Read what changed after a revision, oldest first."""
        if list and list not in {entry.id for entry in await self.queries.lists(deleted=True)}:
            await self.queries.todo_list(list)
        since = since or 0
        await self.queries.check_revision(since)
        revision = await self.queries.revision()
        changes = await self.queries.changes(since, list, limit + 1)
        more = len(changes) > limit
        changes = changes[:limit]
        if changes:
            revision = changes[-1].revision if more else max(revision, changes[-1].revision)
        return Changes(changes, revision, more)


class UndoResult(msgspec.Struct, frozen=True):
    """A new batch that undid a batch, and the first of the to-dos and lists that it changed."""

    batch: str | None
    undone: str
    count: int
    todos: list[Todo]
    lists: list[TodoList]


class UndoHandler(APIHandler):
    """Undo."""

    errors = (404,)

    async def post(
        self, body: Annotated[Body, Fields(UndoFields, optional=True)], *, idempotency_key: IdempotencyKey = None
    ) -> WriteResult[UndoResult]:
        """Undo the caller's last batch, or the one named in a `Change-Batch` header."""
        repeat = self.repeat(idempotency_key, Undone)
        written = await self.services.todos.undo(self.user, body.get("batch"), repeat)
        undone: Undone = written.result
        lists = await self.show_all(await self.queries.described(undone.lists))
        result = UndoResult(written.batch, undone.batch, undone.count, await self.show_all(undone.todos), lists)
        return written._replace(result=result)


# Browsers report neither pings nor a broken connection: a page detects one by missing heartbeats.
HEARTBEAT_SECONDS = 15.0

# One user may have this fraction of a process's sockets; a link can be held by anybody.
SHARE_OF_SOCKETS = {"session": 4, "token": 4, "host": 4, "link": 10}


class EventsHandler(APIHandler):
    """Committed changes as they happen."""

    has_head = False

    async def get(self, *, since: Revision = None) -> Annotated[Response[None], 101]:
        """Open a WebSocket that sends the changes after a revision, each later change, and heartbeats."""
        headers = self.request.headers
        if asks_for_socket(headers) and headers.get("sec-websocket-version") != "13":
            raise UpgradeRequired("Use version 13 of the WebSocket protocol.", headers={"Sec-WebSocket-Version": "13"})
        if not self.is_from_own_site():
            raise Forbidden("A page of another site may not listen here. CORS_ORIGINS lists the sites that may.")
        if not self.request.is_upgrade or self.request.version == "HTTP/1.0":  # which has no upgrade (RFC 6455, 4.1)
            raise Malformed(
                "Open this address as a WebSocket, with a Sec-WebSocket-Key of 16 bytes and without a body.",
                headers={"Connection": "close"} if "upgrade" in headers else None,
            )
        limit, share = self.app.config.max_connections, SHARE_OF_SOCKETS.get(self.caller.kind, 1)
        if self.services.sockets >= limit or self.services.hub.count(self.user) >= limit // share:
            raise Unavailable("Too many sockets are open. Close some, or try again in a moment.")
        response: Response[None] = Response(status=101)
        response.socket = functools.partial(self._run, since)
        return response

    async def _run(self, since: int | None, socket: Socket) -> None:
        self.services.sockets += 1
        sender = asyncio.ensure_future(self._send_forever(socket, since))
        try:
            if await socket.receive() is not None:
                socket.close(1003, "this socket only sends")
        finally:
            self.services.sockets -= 1
            sender.cancel()

    async def _send_forever(self, socket: Socket, since: int | None) -> None:
        try:
            async with self.services.hub.listen(self.user, socket.close, self.caller.credential_id) as listener:
                listener.since = await self._greet(socket, since)
                while True:
                    await socket.send(await listener.next_message(HEARTBEAT_SECONDS) or '{"type":"heartbeat"}')
        except ClientGone:
            pass
        except TodoError as error:
            socket.close(1011, error.title)

    async def _greet(self, socket: Socket, since: int | None) -> int:
        """Send the first message; return the revision after which the client reads."""
        revision = await self.queries.revision()
        hello: dict[str, Any] = {"type": "hello", "revision": revision, "page": self.app.page().version}
        since = revision if since is None else since
        try:
            await self.queries.check_revision(since)
        except Gone:
            # Not an HTTP error, since a browser hides the status and text of one from the page.
            hello["reset"], since = True, revision
        await socket.send(msgspec.json.encode(hello).decode())
        return min(since, revision)


class MembersHandler(APIHandler):
    """The members of a list."""

    async def admit(self) -> None:
        await super().admit()
        if self.caller.kind == "link":
            raise Forbidden("A link shows a list, but not its members.")

    def show_member(self, list_id: str, member: Member) -> Member:
        """A member with its URL."""
        return msgspec.structs.replace(member, url=self.url("api", "lists", list_id, "members", member.name))

    async def get(self, list_id: ListId) -> list[Member]:
        """Read the members of a list, its owner first."""
        return [self.show_member(list_id, member) for member in await self.queries.members(list_id)]


class MemberHandler(MembersHandler):
    """One member of a list."""

    async def get(self, list_id: ListId, name: UserName) -> Member:  # type: ignore[override]
        """Read a member."""
        for member in await self.queries.members(list_id):
            if member.name in (name, fold_user_name(name)):
                return self.show_member(list_id, member)
        raise NotFound("There is no such member.")

    async def put(
        self, list_id: ListId, name: UserName, body: Annotated[Body, Fields(MemberFields)]
    ) -> Annotated[Member, 200, 201]:
        """Share a list with a user, or change a member's role."""
        written = await self.services.todos.share(self.user, list_id, name, body["role"])
        member, is_new = written.result
        self.status = 201 if is_new else 200
        return self.show_member(list_id, member)

    async def delete(self, list_id: ListId, name: UserName) -> None:
        """End a membership; members may end their own."""
        await self.services.todos.unshare(self.user, list_id, name)


class ShownCredential(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A session, token, invitation or link; its secret is shown once, when it is made."""

    id: str
    url: str
    created_at: str
    used_at: str
    expires_at: str | None = None
    device: str | None = None
    current: bool | UnsetType = UNSET
    name: str | None = None
    read_only: bool | UnsetType = UNSET
    token: str | None = None
    link: str | None = None


class CredentialHandler(APIHandler):
    """The base of the handlers of sessions, tokens, invitations and links."""

    kind = "session"

    def show_credential(self, credential: Credential, *path: str, **secret: Any) -> ShownCredential:
        """A credential as the API shows it, with its secret only when it is made."""
        times: dict[str, Any] = {
            name: timestamp(getattr(credential, name)) for name in ("created_at", "used_at", "expires_at")
        }
        more: dict[str, dict[str, Any]] = {
            "session": {"device": credential.name, "current": credential.id == self.caller.credential_id},
            "token": {"name": credential.name, "read_only": credential.read_only},
            "link": {"expires_at": None},
        }
        url = self.url("api", *path, f"{credential.kind}s", credential.id)
        own = more.get(credential.kind, {})
        return ShownCredential(**{"id": credential.id, "url": url, **times, **own, **secret})

    async def all_shown(self) -> list[ShownCredential]:
        """The caller's credentials of the handler's kind."""
        return [self.show_credential(each) for each in await self.services.accounts.credentials(self.user, self.kind)]

    def page_url(self, *fragment: str) -> str:
        """The address of a view of the page. The part after the # is never sent to a server."""
        return f"{self.url('')}#/{'/'.join(fragment)}"


class LinksHandler(CredentialHandler):
    """The links to a list; anybody with one can read it."""

    async def get(self, list_id: ListId) -> list[ShownCredential]:
        """Read the links of a list."""
        await self.queries.todo_list(list_id, role=OWNER)
        links = await self.services.accounts.links(self.user, list_id)
        return [self.show_credential(link, "lists", list_id) for link in links]

    async def post(self, list_id: ListId, body: Nothing) -> Annotated[ShownCredential, 201]:
        """Make a link, with which anybody can read the list."""
        credential, secret = (await self.services.todos.make_link(self.user, list_id)).result
        return self.show_credential(credential, "lists", list_id, link=self.page_url("link", secret))


class LinkHandler(APIHandler):
    """One link to a list."""

    async def delete(self, list_id: ListId, link_id: LinkId) -> None:
        """Revoke a link."""
        await self.services.todos.end_link(self.user, list_id, link_id)


class SessionDocument(msgspec.Struct, kw_only=True, frozen=True):
    """The caller, and how to sign in or up."""

    user: str | None
    time_zone: str | None
    settings: Settings | None
    kind: str | None
    read_only: bool
    accounts: bool
    sign_up: str
    encrypted: bool
    local_todos: int | None


class AccountHandler(CredentialHandler):
    """The base of the handlers of accounts and sessions, which begin and end sessions."""

    max_body = 4096  # for anonymous callers
    errors = (401, 403, 404, 429)

    async def admit(self) -> None:
        await self.services.open()
        await super().admit()

    @property
    def accounts(self) -> Accounts:
        """The accounts. Raises NotFound if users do not sign in to this app."""
        if not self.app.authenticator.has_accounts:
            raise NotFound("This server has no sign-in: it is open to all, or part of a program that identifies users.")
        return self.app.accounts

    async def session_document(self, caller: Caller | None) -> SessionDocument:
        """The caller, and how to sign in or up."""
        authenticator = self.app.authenticator
        has_accounts = authenticator.has_accounts
        is_here = has_accounts and await authenticator.local_caller(self.request) is not None
        return SessionDocument(
            user=caller.user.name if caller and caller.kind != "link" else None,
            time_zone=caller.user.settings.time_zone if caller else None,
            settings=caller.user.settings if caller else None,
            kind=caller.kind if caller else None,
            read_only=bool(caller and caller.read_only),
            accounts=has_accounts,
            sign_up=await self.app.accounts.sign_up_rule() if has_accounts else "closed",
            encrypted=self.request.protocol == "https" or is_local(self.request),
            local_todos=await self.services.accounts.local_todos() if is_here else None,
        )

    async def start_session(self, credential: Credential, secret: str) -> Caller:
        """Set the cookie of a new session, and end the client's earlier one."""
        await self.end_session(self.app.cookies.read(self.request))
        self.who = Caller(credential.user, "session", credential_id=credential.id)
        self._set_cookie(self.app.cookies.value(self.request, secret), f"Max-Age={SESSION_LIFETIME // 1000}")
        return self.who

    async def end_session(self, secret: str | None) -> None:
        """End the session that has this secret, if there is one."""
        session = await self.services.accounts.find(secret, "session") if secret else None
        if session:
            with contextlib.suppress(NotFound):  # it has just been ended elsewhere
                await self.services.accounts.end(session.user, "session", session.id)

    def _set_cookie(self, value: str, lifetime: str) -> None:
        name, secure = self.app.cookies.name(self.request), "; Secure" if self.request.protocol == "https" else ""
        self.headers["Set-Cookie"] = f'{name}="{value}"; HttpOnly; {lifetime}; Path=/; SameSite=Lax{secure}'

    def drop_cookie(self) -> None:
        """Drop the client's session cookie."""
        self._set_cookie("", "expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0")


class SessionHandler(AccountHandler):
    """The caller's session, and signing in and out."""

    public = True

    async def get(self) -> SessionDocument:
        """Read who is signed in, and how to sign in."""
        authenticator = self.app.authenticator
        # After a session has ended, the caller is that of the same request without a cookie.
        self.who = await authenticator.caller(self.request) or await authenticator.local_caller(self.request)
        return await self.session_document(self.who)

    async def post(self, body: Annotated[Body, Fields(SignInFields)]) -> SessionDocument:
        """Sign in."""
        session = await self.accounts.sign_in(body["name"], body["password"], self.request)
        return await self.session_document(await self.start_session(*session))

    async def delete(
        self, *, ended: Annotated[bool, Parameter("only if the session has ended", BOOLEAN, True)] = False
    ) -> None:
        """Sign out.

        With `ended=true` only drop the cookie of a session that has ended: a page that forgets an old session must
        not end a new one that has begun meanwhile.
        """
        secret = self.app.cookies.read(self.request) if self.accounts else None
        # Drop no cookie unless the request had one: the browser may have a new one by now.
        if ended and (not secret or await self.services.accounts.find(secret, "session")):
            return
        await self.end_session(secret)
        self.drop_cookie()


class SignUpHandler(AccountHandler):
    """Making an account."""

    public = True

    async def post(self, body: Annotated[Body, Fields(SignUpFields)]) -> Annotated[SessionDocument, 201]:
        """Make an account and sign in."""
        takes_local = body.get("take_local_todos", False)
        if takes_local and not await self.app.authenticator.local_caller(self.request):
            raise Forbidden.of("take_local_todos", "works only on the server's own machine, with AUTH=auto")
        user, hashed = await self.accounts.sign_up(
            body["name"], body["password"], body.get("invite", ""), self.request.remote_ip, takes_local
        )
        session = await self.accounts.begin_session(user, hashed, self.request)
        return await self.session_document(await self.start_session(*session))


class ShownUser(Settings, kw_only=True, frozen=True):
    """An account with its settings, for its owner."""

    name: str
    created_at: str


class UserHandler(AccountHandler):
    """The caller's own account, or the settings of a caller who has none."""

    needs_session = True
    unsigned_methods = ("GET", "HEAD", "PATCH")

    async def get(self) -> ShownUser:
        """Read the account and its settings."""
        created_at = timestamp(await self.services.accounts.created_at(self.user))
        return ShownUser(name=self.user.name, created_at=created_at, **msgspec.structs.asdict(self.user.settings))

    async def patch(self, body: Annotated[Body, Fields(UserFields)]) -> Annotated[ShownUser | None, 200, 204]:
        """Change settings, or the password, which ends all other sessions."""
        settings = {name: value for name, value in body.items() if name in Settings.__struct_fields__}
        if not settings or len(settings) < len(body):
            read_fields(body, UserFields, ("password", "new_password"))  # now both are required
            self.check_session()
        await self._check_default_list(settings.get("default_list"))
        if len(settings) < len(body):
            passwords = body["password"], body["new_password"]
            hashed = await self.accounts.change_password(self.user, *passwords, self.request.remote_ip)
            await self.start_session(*await self.accounts.begin_session(self.user, hashed, self.request))
        if not settings:
            self.status = 204
            return None
        self.user = await self.services.accounts.change_settings(self.user, settings)
        return await self.get()

    async def _check_default_list(self, list_id: str | None) -> None:
        """Raise Invalid for a list in which the caller may not write."""
        try:
            if list_id:
                await self.queries.todo_list(list_id, role=EDITOR)
        except (NotFound, Forbidden):
            raise invalid("default_list", "names no list that you may write in") from None

    async def delete(self, body: Annotated[Body, Fields(PasswordFields)]) -> None:
        """Delete the account with everything that belongs to it."""
        await self.accounts.check_password(self.user, body["password"], self.request.remote_ip)
        await self.services.delete_user(self.user)
        self.drop_cookie()


class SessionsHandler(AccountHandler):
    """The caller's sessions."""

    needs_session = True

    async def get(self) -> list[ShownCredential]:
        """Read the caller's sessions."""
        return await self.all_shown()

    async def delete(self) -> None:
        """Sign out everywhere."""
        await self.services.accounts.end(self.user, "session")
        self.drop_cookie()


class EndCredentialHandler(APIHandler):
    """One session, API token or invitation of the caller's."""

    needs_session = True

    async def delete(self, credential_id: CredentialId) -> None:
        """End a session, or revoke a token or an invitation."""
        kind = self.request.path.split("/")[-2].removesuffix("s")
        await self.services.accounts.end(self.user, kind, path_id(kind, credential_id))


class TokensHandler(CredentialHandler):
    """The caller's API tokens."""

    needs_session = True
    kind = "token"

    async def get(self) -> list[ShownCredential]:
        """Read the tokens."""
        return await self.all_shown()

    async def post(self, body: Annotated[Body, Fields(TokenFields)]) -> Annotated[ShownCredential, 201]:
        """Make a token for scripts."""
        name = cleaned(functools.partial(clean_line, limit=100), body["name"], "name")
        lifetime = body.get("days", 90) * DAY
        token = new_credential("token", self.user, lifetime, name, body.get("read_only", False))
        return self.show_credential(token, token=await self.services.accounts.issue(token))


class InvitesHandler(CredentialHandler):
    """The caller's unused invitations."""

    needs_session = True
    kind = "invite"

    async def get(self) -> list[ShownCredential]:
        """Read the invitations."""
        return await self.all_shown()

    async def post(self, body: Nothing) -> Annotated[ShownCredential, 201]:
        """Make an invitation to sign up."""
        invite = new_credential("invite", self.user, INVITE_LIFETIME)
        return self.show_credential(invite, link=self.page_url("sign-up", await self.services.accounts.issue(invite)))


class Export(msgspec.Struct, frozen=True):
    """Everything that belongs to a user."""

    format: str
    version: int
    user: str
    settings: Settings
    exported_at: str
    lists: list[TodoList]
    todos: list[Todo]
    comments: list[dict[str, Any]]
    filters: list[SavedFilter]
    templates: list[Template]
    documents: list[dict[str, Any]]


class ExportHandler(APIHandler):
    """Everything that belongs to the caller."""

    async def get(self) -> Response[Export]:
        """Download settings, lists, to-dos with their comments, the trash and documents as one JSON file."""
        self.headers["Content-Disposition"] = 'attachment; filename="todos.json"'
        # The file is complete before it is sent, so that a slow reader keeps no transaction open.
        file: IO[bytes] = tempfile.SpooledTemporaryFile(MAX_BODY)  # noqa: SIM115  # closed when it has been sent
        if self.request.method == "HEAD":
            return Response(FileBody(file, None), "application/json")
        try:
            await self._write(file)
        except BaseException:
            file.close()
            raise
        size = file.tell()
        file.seek(0)
        return Response(FileBody(file, size), "application/json")

    async def _write(self, file: IO[bytes]) -> None:
        head = {"format": "tornado_todo", "version": 1, "user": self.user.name, "settings": self.user.settings}
        file.write(msgspec.json.encode({**head, "exported_at": timestamp(now_milliseconds())})[:-1])
        documents = self.services.documents
        await self.services.database.snapshot(functools.partial(self._write_moment, file))
        if not isinstance(documents, SQLDocumentStore):  # a snapshot must not wait for another engine
            await self._write_parts(file, documents=self._documents(documents))
        file.write(b"}\n")

    async def _write_moment(self, file: IO[bytes], source: Source) -> None:
        """Write everything from the database, as of one moment."""
        queries = TodoQueries(source, self.user)
        kept = {each.table: self._kept(queries, kind) for kind, each in KINDS_KEPT.items()}
        parts = {"lists": self._lists(queries), "todos": self._todos(queries), "comments": self._comments(queries)}
        await self._write_parts(file, **parts, **kept)
        if isinstance(self.services.documents, SQLDocumentStore):
            await self._write_parts(file, documents=self._documents(SQLDocumentStore(cast(Database, source))))

    @staticmethod
    async def _write_parts(file: IO[bytes], **parts: AsyncIterator[list[Any]]) -> None:
        """Write lists page by page."""
        for name, pages in parts.items():
            separator = b""
            file.write(f',\n"{name}": ['.encode())
            async for page in pages:
                file.write(separator + b",\n".join(map(msgspec.json.encode, page)))
                separator = b",\n"
            file.write(b"]")

    async def _lists(self, queries: TodoQueries) -> AsyncIterator[list[Any]]:
        lists = [*await queries.lists(), *await queries.lists(deleted=True)]
        yield await self.show_all([each for each in lists if each.role == OWNER])

    async def _kept(self, queries: TodoQueries, kind: type[Any]) -> AsyncIterator[list[Any]]:
        if things := await queries.kept(kind):
            yield await self.show_all(things)

    async def _todos(self, queries: TodoQueries) -> AsyncIterator[list[Any]]:
        after = ""
        while todos := await queries.own_todos(after, 1000):
            yield await self.show_all(todos, queries)
            after = todos[-1].id

    async def _comments(self, queries: TodoQueries) -> AsyncIterator[list[Any]]:
        after = ""
        while found := await queries.own_comments(after, 1000):
            names = await queries.names({each.author for _, each in found})
            yield [
                {"todo": todo_id, **msgspec.structs.asdict(each), "author": names.get(each.author)}
                for todo_id, each in found
            ]
            after = found[-1][1].id

    async def _documents(self, store: DocumentStore) -> AsyncIterator[list[Any]]:
        async for documents in read_documents(store, [self.user.id]):
            yield [{"name": name, "document": msgspec.Raw(text)} for _, name, _, text in documents]


class ShownDocument(msgspec.Struct, frozen=True):
    """A document's name, size in bytes and age."""

    name: str
    url: str
    size: int
    updated_at: str


class DocumentsHandler(APIHandler):
    """The names of all documents."""

    async def get(
        self,
        *,
        prefix: Annotated[str, Parameter("only names with this prefix", TEXT, "gro", read_text)] = "",
        limit: Limit = 200,
        after: Cursor = None,
    ) -> list[ShownDocument]:
        """Read the names of documents, in order."""
        after, prefix = after or ["name", "", "", 0], unicodedata.normalize("NFC", prefix)
        check_cursor(after, "name")
        entries = await self.services.documents.entries(self.user.id, prefix, after[1], limit + 1)
        return [
            ShownDocument(each.name, self.url("api", "documents", each.name), each.size, timestamp(each.updated_at))
            for each in self.page(entries, limit, lambda last: make_cursor("name", last.name, ""))
        ]


class DocumentHandler(APIHandler):
    """One JSON document."""

    async def get(self, name: DocumentName) -> Response[Any]:
        """Read a document."""
        document = await self.services.documents.get(self.user.id, name)
        self.validate(document.etag)
        return Response(document.body, "application/json")

    async def post(
        self,
        name: DocumentName,
        body: Annotated[bytes, Bytes(is_json=True)],
        *,
        if_match: IfMatch = None,
        if_none_match: IfNoneMatch = None,
    ) -> None:
        """Write a document."""
        precondition = Precondition(if_match, (if_none_match or "").strip() == "*")
        self.headers["ETag"] = await self.services.documents.put(self.user.id, name, body, precondition)

    put = post

    async def delete(self, name: DocumentName, *, if_match: IfMatch = None) -> None:
        """Delete a document."""
        await self.services.documents.delete(self.user.id, name, if_match)


# Sec-Fetch-Dest of requests with which a page would run a record, or apply it as a style (Fetch Metadata).
ACTIVE_DESTINATIONS = ("script", "style", "worker", "sharedworker", "serviceworker", "object", "embed")


class RecordHandler(APIHandler):
    """One record: bytes with their media type, kept until they expire or room is needed."""

    max_body = MAX_RECORD
    takes_json = False
    # A browser that opens a record must not run it, since anybody may have stored it.
    content_security_policy = "sandbox; default-src 'none'"

    async def get(self, key: RecordKey) -> Response[bytes]:
        """Read a record."""
        if self.request.headers.get("sec-fetch-dest", "empty") in ACTIVE_DESTINATIONS:
            raise Forbidden("A record is data: a page may read it, but not use it as a script or style.")
        record = await self.services.records.get(f"{self.user.id}/{key}")
        if record is None:
            raise NotFound(f"Missing record for key:{key}")
        return Response(record.body, record.content_type)

    async def post(self, key: RecordKey, body: Annotated[bytes, Bytes()], *, ttl: Lifetime = None) -> None:
        """Write a record."""
        content_type = self.request.headers.get("content-type", "application/octet-stream")
        if len(content_type) > 200 or not (content_type.isascii() and content_type.isprintable()):
            raise Malformed.of("Content-Type", "must be at most 200 printable ASCII characters", "The Content-Type")
        await self.services.records.set(f"{self.user.id}/{key}", Record(body, content_type), ttl)

    put = post

    async def delete(self, key: RecordKey) -> None:
        """Delete a record."""
        if not await self.services.records.delete(f"{self.user.id}/{key}"):
            raise NotFound(f"Missing record for key:{key}")


class WeatherHandler(APIHandler):
    """The weather."""

    errors = (404, 502, 504)

    async def get(self) -> Response[WeatherReport]:
        """Read the current weather as a sentence or, if Accept has application/json, as JSON."""
        report = await self.services.weather.report()
        self.headers.update({"Cache-Control": "private, max-age=60", "Vary": "Accept, Origin"})
        if "application/json" in self.request.headers.get("accept", ""):
            return Response(msgspec.json.encode(report), "application/json")
        text = f"Currently {report.temperature} degrees and {report.text} in {report.place}"
        return Response(text.encode(), "text/plain; charset=utf-8")


class Health(msgspec.Struct, frozen=True):
    """Whether all engines work, and the state of each."""

    status: str
    engines: dict[str, dict[str, Any]] | UnsetType = UNSET


class HealthHandler(APIHandler):
    """The health of every engine."""

    public = True

    async def get(self) -> Annotated[Health, 200, 503]:
        """Check every engine; 503 if one does not work.

        Anonymous callers get only the kinds of the engines.
        """
        well, engines = await self.services.health()
        if engines["todos"]["state"] != "ok" or not await self._knows_caller():
            engines = {name: {**entry, "engine": entry["engine"].split()[0]} for name, entry in engines.items()}
        if not well:
            self.status, self.headers["Retry-After"] = 503, "1"
        return Health("ok" if well else "failing", engines)

    async def _knows_caller(self) -> bool:
        """Whether the caller has signed in, or uses this machine: others get no hosts, ports and file names."""
        try:
            caller = await self.app.authenticator.caller(self.request)
        except TodoError:
            return False
        return caller is not None and (caller.kind != "open" or is_local(self.request)) and caller.kind != "link"


class LiveHandler(APIHandler):
    """Whether the process answers."""

    public = True

    async def get(self) -> Health:
        """Check that the process answers."""
        return Health("ok")


class OpenAPIHandler(Handler):
    """The description of the API (OpenAPI 3.1)."""

    public = True

    async def get(self) -> dict[str, Any]:
        """Read this description, with every parameter, header, status and schema."""
        return self.app.openapi().document


class DocsHandler(Handler):
    """The description of the API for people."""

    public = True
    content_security_policy = f"default-src 'none'; style-src 'sha256-{DOCS_DIGEST}'"

    async def get(self) -> Response[str]:
        """Read this description as a page."""
        text = functools.partial(json.dumps, indent=2)
        template = tornado.template.Template(DOCS)
        document = self.app.openapi().document
        shared = document["components"]["responses"]
        html = template.generate(document=document, shared=shared, style=DOCS_STYLE, text=text)
        return Response(html, "text/html; charset=utf-8")


class Packed(NamedTuple):
    """A file of the page, with its bytes by content coding; an empty one stands for the plain bytes."""

    media_type: str
    etag: str
    bodies: dict[str, bytes]


@functools.cache
def content_codings() -> dict[str, Callable[[bytes], bytes]]:
    """How to compress by content coding, the best first: Brotli only if its package is installed."""
    codings: dict[str, Callable[[bytes], bytes]] = {"gzip": functools.partial(gzip.compress, mtime=0)}
    with contextlib.suppress(ImportError):
        codings = {"br": importlib.import_module("brotli").compress, **codings}
    return codings


async def send_packed(handler: Handler, packed: Packed) -> Response[bytes]:
    """The response with the best content coding that the client accepts (RFC 9110, 12.5.3). Raises NotModified."""
    accepted = {}
    for part in handler.request.headers.get("accept-encoding", "").lower().split(","):
        coding, _, weight = part.replace(" ", "").partition(";q=")
        accepted[coding] = not re.fullmatch(r"0(\.0*)?", weight)
    coding = next((each for each in content_codings() if accepted.get(each)), "")
    handler.headers["Vary"] = "Accept-Encoding, Origin"
    handler.validate(f'"{packed.etag}{coding and "-" + coding}"')
    if coding:
        handler.headers["Content-Encoding"] = coding
    if coding not in packed.bodies:  # Brotli takes half a second for the script, and others must not wait
        packed.bodies[coding] = await asyncio.to_thread(content_codings()[coding], packed.bodies[""])
    return Response(packed.bodies[coding], packed.media_type)


class PageHandler(Handler):
    """The page. It has no private data: it reads everything that it shows from the API."""

    any_query = True

    @property
    def public(self) -> bool:  # type: ignore[override]
        """Whether anonymous callers get the page to sign in: not if another program identifies users."""
        return not self.app.authenticator.asks_host

    @property
    def content_security_policy(self) -> str:  # type: ignore[override]
        """The policy that allows the page's own script and style, and nothing else."""
        return self.app.page().policy

    async def get(self) -> Response[bytes]:
        """Read the page."""
        self.headers["Cache-Control"] = "private, no-cache"
        return await send_packed(self, self.app.page().html)


class PageAssetHandler(Handler):
    """The page's style sheet, script and icon, under names that change with their bytes."""

    public = True
    any_query = True
    cache_control = "public, max-age=31536000, immutable"
    content_security_policy = "default-src 'none'; connect-src 'self'"  # the worker reads the page

    async def get(self, name: PathText) -> Response[bytes]:
        """Read a file of the page's."""
        asset = self.app.page().assets.get(name)
        if asset is None:
            raise NotFound(NOT_FOUND)
        self.headers["Cache-Control"] = self.cache_control
        return await send_packed(self, asset)


class PageFileHandler(PageAssetHandler):
    """The page's service worker and manifest, under fixed names."""

    cache_control = "no-cache"


class StaticHandler(Handler):
    """The folder that STATIC_PATH names."""

    any_query = True
    content_security_policy = "object-src 'none'"

    async def get(self, path: PathText) -> Response[bytes]:
        """Read a file, or a part of it, or the file index.html of a folder."""
        root = os.path.realpath(self.app.config.static_path)
        try:
            name = os.path.realpath(os.path.join(root, path.replace("/", os.sep)))
            inside = os.path.relpath(name, root)
            if inside != "." and any(part.startswith(".") for part in inside.split(os.sep)):  # outside, or hidden
                raise NotFound(NOT_FOUND)
            if os.path.isdir(name):
                if not self.request.path.endswith("/"):
                    return Response(status=301, headers={"Location": f"{self.request.path}/"})
                name = os.path.join(name, "index.html")
            return self._file(name)
        except (OSError, ValueError):  # missing, not a file, or not a possible name
            raise NotFound(NOT_FOUND) from None

    def _file(self, name: str) -> Response[bytes]:
        """The file, or the part that Range names. Raises OSError, NotModified, PreconditionFailed or BadRange."""
        headers, file = self.request.headers, open(name, "rb")  # noqa: SIM115  # closed when it has been sent
        try:
            facts = os.fstat(file.fileno())
            etag = f'"{facts.st_mtime_ns:x}-{facts.st_ctime_ns:x}-{facts.st_ino:x}-{facts.st_size:x}"'
            modified = tornado.httputil.format_timestamp(int(facts.st_mtime))
            self.headers.update({"Last-Modified": modified, "Accept-Ranges": "bytes"})
            self.headers["Cache-Control"] = "private, no-cache"
            check_precondition(headers.get("if-match"), etag)
            self.validate(etag)
            if "if-none-match" not in headers and headers.get("if-modified-since") == modified:
                raise NotModified
            # A range of a changed file would not match the client's part of the old one (RFC 9110, 13.1.5).
            known = headers.get("if-range", "").strip()
            is_settled = time.time() - facts.st_mtime > 2  # otherwise it could change again within the second
            applies = not known or known == etag or (known == modified and is_settled)
            part = byte_range(headers.get("range") if applies else None, facts.st_size)
            first, end = part or (0, facts.st_size)
            file.seek(first)
        except BaseException:
            file.close()
            raise
        sent = {"Content-Range": f"bytes {first}-{end - 1}/{facts.st_size}"} if part else {}
        return Response(FileBody(file, end - first), media_type_of(name), status=206 if part else 200, headers=sent)


class PrefixHandler(Handler):
    """The prefix without its slash."""

    public = True

    async def get(self) -> Annotated[Response[None], 301]:
        """Redirect to the page."""
        return Response(status=301, headers={"Location": self.app.config.prefix + "/"})


# ==== page: calls nothing; HTML is a Tornado template, CSS and JavaScript are sent unchanged ========

PAGE_HTML = r"""<!DOCTYPE html>
{% set icon = '<svg class="icon" aria-hidden="true"><use href="#icon-%s"/></svg>' %}
{% set brand = icon % 'funnel' + '<b>tornado <em>todo</em></b>' %}
{% set tool = lambda kind, action, label, drawing, more='': (
  '<button class="icon-button %s" data-action="%s" aria-label="%s" %s>%s</button>'
  % (kind, action, label, more, icon % drawing)) %}
{% set close = lambda *words: tool(*words, 'close') %}
{% set dialog = lambda name, title='': (
  '<dialog class="%s" aria-labelledby="%s-title"><div class="dialog-head row apart"><h2 id="%s-title" dir="auto">%s'
  '</h2>%s</div><p class="said" role="status"></p>'
  % (name, name, name, title, close('dialog-close', 'closeDialog', 'Close'))) %}
{% set part = lambda name, title, more='': (
  '<details class="part %s-part" name="account-part" %s><summary>%s</summary>' % (name, more, title)) %}
{% set entries = lambda kind, make='': '<ul class="entries %s-entries"></ul>' % kind + (make and (
  '<div class="secret-place"></div><button class="button make-%s" data-action="makeEntry" data-value="%s">%s</button>'
  % (kind, kind, make))) %}
{% set input = lambda kind, label, more='': (
  '<input class="%s control" type="text" aria-label="%s" autocomplete="off" dir="auto" %s>' % (kind, label, more)) %}
{% set options = lambda choices: ''.join('<option value="%s">%s</option>' % choice for choice in choices.items()) %}
{% set select = lambda kind, label, choices=dict(), more='': (
  '<select class="%s" aria-label="%s" %s>%s</select>' % (kind, label, more, options(choices))) %}
{% set field = lambda id, label, attributes, hint='', kind='', box='%s': (
  '<div class="field %s"><label for="%s">%s</label>%s%s</div>'
  % (kind, id, label, box % '<input id="%s" %s %s>' % (id, attributes, hint and 'aria-describedby="%s-hint"' % id),
     hint and '<p class="soft" id="%s-hint">%s</p>' % (id, hint))) %}
{% set password = lambda id, label, name='password', kind='current', hint='': (
  field(id, label, 'name="%s" type="password" autocomplete="%s-password" required' % (name, kind), hint,
        box='<div class="password-box">%s<button class="show-password" type="button" data-action="showPassword">Show'
            '<span class="hidden-words"> the password</span></button></div>')) %}
{% set choose = lambda id, label, attributes, choices=dict(), kind='': (
  '<div class="field %s"><label for="%s">%s</label><select id="%s" %s>%s</select></div>'
  % (kind, id, label, id, attributes, options(choices))) %}
{% set fieldset = lambda legend, more='class="field"': '<fieldset %s><legend>%s</legend>' % (more, legend) %}
{% set segments = lambda more, attributes, choices: '<div %s>%s</div>' % (more, ''.join(
  '<label><input %s value="%s"><span>%s</span></label>' % (attributes, *choice) for choice in choices.items())) %}
{% set plain = 'type="text" autocomplete="off" dir="auto"' %}
{% set user_name = ('name="name" type="text" autocapitalize="none" spellcheck="false" dir="auto" maxlength="64"'
                    ' required ') %}
{% set username = ('<input class="account-username" name="username" type="text" autocomplete="username" readonly hidden'
                   ' aria-label="Name">') %}
{% set date = 'type="date" min="1000-01-01" max="9999-12-31"' %}
{% set priorities = dict(enumerate(('None', 'Low', 'Medium', 'High'))) %}
<html lang="en" class="is-starting" data-base="{{ base }}" data-version="{{ version }}" data-weather="{{ weather }}">
<head>
<meta charset="utf-8">
<title>Inbox · tornado_todo</title>
<meta name="viewport" content="width=device-width, initial-scale=1, viewport-fit=cover">
<meta name="description" content="A to-do list with lists, due dates, tags, history and undo.">
<meta name="color-scheme" content="light dark">
<meta name="theme-color" content="#edf1f0" media="(prefers-color-scheme: light)">
<meta name="theme-color" content="#11191c" media="(prefers-color-scheme: dark)">
<link rel="icon" href="{{ svg_url }}">
<link rel="manifest" href="{{ base }}/manifest.webmanifest">
<link rel="stylesheet" href="{{ css_url }}" integrity="{{ css_integrity }}">
<script src="{{ js_url }}" integrity="{{ js_integrity }}" defer></script>
</head>
<body>

<!-- Every icon is drawn once here and used by name, so that none needs a request or an inline style. -->
<svg class="icon-sheet" width="0" height="0" aria-hidden="true" focusable="false">
{% for name, lines in (
  ('inbox', 'M4 13.5 6.2 6h11.6L20 13.5V18a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1zM4 13.5h4.5a3.5 3.5 0 0 0 7 0H20'),
  ('today', 'M8.3 12a3.7 3.7 0 1 0 7.4 0 3.7 3.7 0 1 0-7.4 0M12 3.5v2M12 18.5v2M3.5 12h2M18.5 12h2M6 6l1.4 1.4'
            'M16.6 16.6 18 18M18 6l-1.4 1.4M7.4 16.6 6 18'),
  ('later', 'M3.2 12a8.8 8.8 0 1 0 17.6 0 8.8 8.8 0 1 0-17.6 0M12 7v5.5l3.5 2'),
  ('tag', 'M4 4.5h7.5l8 8-7 7-8-8zM8 8.5h.01'),
  ('filter', 'M4 5.5h16l-6.2 7.3v6.2l-3.6-2v-4.2z'),
  ('dot', 'M7 12a5 5 0 1 0 10 0 5 5 0 1 0-10 0'),
  ('bell', 'M6 16.5V11a6 6 0 0 1 12 0v5.5l1.5 1.5h-15zM10 20.5h4'),
  ('all', 'm12 4 8.5 4.3L12 12.6 3.5 8.3zM3.5 12.2 12 16.5l8.5-4.3M3.5 15.9 12 20.2l8.5-4.3'),
  ('list', 'M9 7h10M9 12h10M9 17h10M4.8 7h.01M4.8 12h.01M4.8 17h.01'),
  ('trash', 'M4.5 6.5h15M9.5 6.5V4.8c0-.7.5-1.3 1.2-1.3h2.6c.7 0 1.2.6 1.2 1.3v1.7M10 10.5v6M14 10.5v6'
            'M6.5 6.5l.8 12.2c.1 1 .9 1.8 1.9 1.8h5.6c1 0 1.8-.8 1.9-1.8l.8-12.2'),
  ('plus', 'M12 5v14M5 12h14'),
  ('search', 'M4.5 10.5a6 6 0 1 0 12 0 6 6 0 1 0-12 0M15 15l5 5'),
  ('menu', 'M4 7h16M4 12h16M4 17h10'),
  ('close', 'm6.5 6.5 11 11M17.5 6.5l-11 11'),
  ('details', 'm9.5 6 6 6-6 6'),
  ('flag', 'M6 20.5v-16h11.5l-2.5 4 2.5 4H6'),
  ('grip', 'M9.5 6.5h.01M14.5 6.5h.01M9.5 12h.01M14.5 12h.01M9.5 17.5h.01M14.5 17.5h.01'),
  ('note', 'M5 7h14M5 12h14M5 17h8'),
  ('parent', 'M6 4.5v9.5h11.5M13 9.5l4.5 4.5-4.5 4.5'),
  ('comment', 'M5 5.5h14v10h-7.5L7.5 19v-3.5H5z'),
  ('calendar', 'M6.5 5.5h11A2.5 2.5 0 0 1 20 8v9.5a2.5 2.5 0 0 1-2.5 2.5h-11A2.5 2.5 0 0 1 4 17.5V8a2.5 2.5 0 0 1 2.5'
               '-2.5zM4 10h16M8.5 3.5v4M15.5 3.5v4'),
  ('repeat', 'm17 3.5 3 3-3 3M4 11.5V10a3.5 3.5 0 0 1 3.5-3.5H20M7 20.5l-3-3 3-3M20 12.5V14a3.5 3.5 0 0 1-3.5 3.5H4'),
  ('pencil', 'm14.5 5.8 3.7 3.7M5 19l.9-4L16 4.9c.7-.7 1.9-.7 2.6 0l.5.5c.7.7.7 1.9 0 2.6L9 18.1z'),
  ('restore', 'M5 5v5h5M5.5 10a7.5 7.5 0 1 1-.8 5'),
  ('help', 'M3.2 12a8.8 8.8 0 1 0 17.6 0 8.8 8.8 0 1 0-17.6 0M9 9.2a3 3 0 1 1 4.3 2.7c-.8.4-1.3 1-1.3 1.9M12 17.2h.01'),
  ('options', 'M4 8h8M18 8h2M4 16h2M12 16h8M12.5 8a2.5 2.5 0 1 0 5 0 2.5 2.5 0 1 0-5 0'
              'M6.5 16a2.5 2.5 0 1 0 5 0 2.5 2.5 0 1 0-5 0'),
  ('person', 'M8.3 8.2a3.7 3.7 0 1 0 7.4 0 3.7 3.7 0 1 0-7.4 0M4.8 19.5c.7-3.6 3.5-5.6 7.2-5.6s6.5 2 7.2 5.6'),
  ('people', 'M5.8 8.6a3.2 3.2 0 1 0 6.4 0 3.2 3.2 0 1 0-6.4 0M3 18.5c.5-3.1 2.8-4.9 6-4.9s5.5 1.8 6 4.9'
             'M15.2 5.7a3.2 3.2 0 0 1 0 5.8M17.3 14c2 .7 3.3 2.2 3.7 4.5'),
  ('share', 'M6.3 8.6a3.2 3.2 0 1 0 6.4 0 3.2 3.2 0 1 0-6.4 0M3.5 18.5c.5-3.1 2.8-4.9 6-4.9s5.5 1.8 6 4.9'
            'M18.5 6.5v6M15.5 9.5h6'),
  ('leave', 'M13.5 5H7a1.5 1.5 0 0 0-1.5 1.5v11A1.5 1.5 0 0 0 7 19h6.5M10.5 12H20M16.5 8.5 20 12l-3.5 3.5'),
) %}<symbol id="icon-{{ name }}" viewBox="0 0 24 24"><path d="{{ lines }}"/></symbol>{% end %}
  <symbol id="icon-funnel" viewBox="0 0 24 24">
    <path d="M4 5h16M7 10h11M9 15h6"/><path class="sun" d="M10 20h1.5"/></symbol>
</svg>

<button class="skip button solid" data-action="focusStart">Skip to the new to-do box</button>

<div class="banner notice row" role="status" hidden>
  <span class="banner-text"></span><button class="banner-retry link" data-action="wakeRetry">Try now</button>
</div>

<div class="shell">
  <nav class="sidebar" id="sidebar" aria-label="Lists">
    <div class="brand row">{% raw brand %}{% raw close('close-drawer', 'closeDrawer', 'Close the lists') %}</div>
    <ul class="views"></ul>
    <h2 class="sidebar-heading">My lists</h2>
    <ul class="lists"></ul>
    <button class="place row new-list-button" data-action="startNewList">
      {% raw icon % 'plus' %}<span>New list</span></button>
    {% raw input('new-list', 'Name of the new list', 'placeholder="Name, then Enter" maxlength="500" hidden') %}
    {% for kind, title in (('shared-lists', 'Shared with me'), ('filter-places', 'Filters'), ('tag-places', 'Tags')) %}
    <h2 class="sidebar-heading">{{ title }}</h2>
    <ul class="{{ kind }}"></ul>
    {% end %}
    <details class="archived">
      <summary class="sidebar-heading">Archived</summary>
      <ul class="archived-lists"></ul>
    </details>
    <div class="sidebar-foot">
      <button class="place row templates-button" data-action="openDialog" data-value=".templates"
              aria-haspopup="dialog">{% raw icon % 'note' %}<span class="place-name">Templates</span></button>
      <a class="place row trash-link" data-action="visitPlace" href="#/trash">{% raw icon % 'trash' %}
        <span class="place-name">Trash</span></a>
      <button class="place row help-button" data-action="openHelp">{% raw icon % 'help' %}
        <span class="place-name">Shortcuts</span><kbd>?</kbd></button>
      <button class="place row account-button" data-action="openDialog" data-value=".account" aria-haspopup="dialog"
              hidden>
        {% raw icon % 'person' %}<span class="hidden-words">Account of </span>
        <span class="place-name account-name" dir="auto"></span></button>
      <button class="place row sign-in-button" data-action="changeUser" hidden>{% raw icon % 'person' %}
        <span class="place-name">Sign in</span></button>
    </div>
  </nav>
  <div class="scrim" data-action="closeDrawer" hidden></div>

  <main class="page">
    <div class="top-bar row wrap">
      {% raw tool('open-drawer', 'openDrawer', 'Open the lists', 'menu',
                  'aria-controls="sidebar" aria-expanded="false"') %}
      <p class="eyebrow soft"><time class="today"></time><span class="weather" hidden></span></p>
      <div class="search-box">
        {% raw icon % 'search' %}
        <input class="search control" type="search" aria-label="Search to-dos" placeholder="Search"
               autocomplete="off" dir="auto" maxlength="200">
        <kbd class="search-key" aria-hidden="true">/</kbd>
      </div>
    </div>

    <section class="todoapp" aria-labelledby="view-title">
      <header class="header">
        <div class="title-row row">
          <h1 id="view-title" dir="auto" tabindex="-1">Inbox</h1>
          {% raw input('rename-list', 'Name of this list', 'maxlength="500" hidden') %}
          <div class="list-tools row" hidden>
            {% for words in (
              ('share-button', 'openSharing', 'Share this list', 'share',
               'title="Share" aria-haspopup="dialog" hidden'),
              ('', 'openDialog', 'Colour, place and archive of this list', 'options',
               'data-value=".list-options" title="Colour, place and archive" aria-haspopup="dialog"'),
              ('rename-list-button', 'startRename', 'Rename this list', 'pencil'),
              ('delete-list-button', 'deleteList', 'Delete this list', 'trash'),
              ('leave-button', 'leaveList', 'Leave this list', 'leave', 'title="Leave this list" hidden'),
            ) %}{% raw tool(*words) %}{% end %}
          </div>
          <div class="filter-tools row" hidden>
            {% raw tool('', 'renameFilter', 'Rename this filter', 'pencil') %}
            {% raw tool('', 'deleteFilter', 'Delete this filter', 'trash') %}
          </div>
          <button class="button empty-trash" data-action="emptyTrash" hidden>Empty trash</button>
        </div>
        <p class="share-note soft" hidden><span class="share-words" dir="auto"></span>
          <a class="own-lists link" href="#/" hidden>Back to my lists</a></p>
        <progress class="progress" max="1" value="0" aria-label="Completed" hidden></progress>
        <div class="composer card">
          {% raw icon % 'plus' %}
          <input class="new-todo" {% raw plain %} placeholder="What needs to be done?" enterkeyhint="done"
                 aria-label="What needs to be done?">
          {% raw tool('new-options-button', 'toggleOptions', 'Due date, priority and tags for the new to-do',
                      'options', 'aria-expanded="false" aria-controls="new-options"') %}
          <div class="understood row wrap" role="group" aria-label="Read from the title" aria-live="polite"></div>
          <div class="new-options" id="new-options" role="group" aria-label="For the new to-do" hidden>
            <label class="soft" for="new-due">Due</label>
            <input id="new-due" class="new-due control" {% raw date %} autocomplete="off">
            <label class="soft" for="new-priority">Priority</label>
            <select id="new-priority" class="new-priority control"
                    autocomplete="off">{% raw options(priorities) %}</select>
            <label class="soft" for="new-tags">Tags</label>
            <input id="new-tags" class="new-tags control" {% raw plain %} placeholder="home, errands">
          </div>
        </div>
        <div class="active-filters row wrap"></div>
      </header>

      <section class="main" aria-label="To-dos" hidden>
        <div class="list-bar row soft">
          <span class="toggle-all-box row"><input id="toggle-all" class="toggle-all" data-action="toggleAll"
            type="checkbox"><label for="toggle-all">Mark all as complete</label></span>
          <label class="sort-label" for="sort">Sort</label>
          {% raw select('sort', 'Sort', {'order': 'My order', 'due': 'Due date', '-priority': 'Priority',
                        '-created_at': 'Newest', 'title': 'Title'}, 'id="sort" data-action="chooseSort"') %}
        </div>
        <div class="todo-list stack"></div>
      </section>

      <div class="trash-view stack" hidden>
        <p class="soft">Nothing here is lost yet. Restore it, or delete it for good.</p>
        <ul class="trash-list entries card"></ul>
      </div>

      <div class="more" hidden><button class="button" data-action="loadMore">Show more</button></div>

      <p class="print-note" hidden></p>

      <section class="empty" hidden>
        <svg class="empty-picture" viewBox="0 0 200 120" aria-hidden="true">
          <g class="wind"><path d="M52 22h92"/><path d="M68 42h66"/><path d="M80 62h40"/><path d="M86 82h20"/></g>
          <path class="sun" d="M92 102h6"/>
          <path class="breeze" d="M18 34h18M160 30h22M150 54h30M30 58h26"/>
        </svg>
        <h2 class="empty-title"></h2>
        <p class="empty-text soft"></p>
        <p class="empty-action"></p>
      </section>

      <div class="selection row wrap card" role="group" aria-label="Selected to-dos" hidden>
        <b class="selection-count"></b>
        <button class="button select-complete" data-action="completeSelected"></button>
        {% raw select('control select-due', 'Due date of the selected to-dos',
                      {'': 'Due …', 0: 'Today', 1: 'Tomorrow', 7: 'In a week', 'none': 'No date'},
                      'data-action="dateSelected"') %}
        {% raw select('control select-list', 'Move the selected to-dos', more='data-action="moveSelected"') %}
        {% raw select('control select-assignee', 'Assign the selected to-dos', more='data-action="assignSelected"') %}
        {% raw input('select-tag', 'Add a tag to the selected to-dos', 'data-action="tagSelected" list="known-tags"'
                     ' placeholder="Add a tag" maxlength="50" enterkeyhint="done"') %}
        {% raw tool('destroy', 'deleteSelected', 'Delete the selected to-dos', 'trash') %}
        {% raw close('', 'endSelection', 'End the selection') %}
      </div>

      <footer class="footer soft" hidden>
        <span class="todo-count"><strong>0</strong> items left</span>
        <ul class="filters segments" aria-label="Show">
          {% for show, words in (('all', 'All'), ('active', 'Active'), ('completed', 'Completed')) %}
          <li><a data-show="{{ show }}" href="#/">{{ words }}</a></li>{% end %}
        </ul>
        <button class="clear-completed link" data-action="clearCompleted" hidden>Clear completed</button>
      </footer>
    </section>
  </main>

  <aside class="detail" aria-label="Details of the to-do" hidden>
    <header class="detail-head row apart soft">
      <span class="detail-state row"></span>{% raw close('detail-close', 'closeDetail', 'Close the details') %}
    </header>
    <div class="detail-body">
      <p class="detail-note soft" dir="auto" hidden></p>
      <textarea class="detail-title" data-field="title" rows="1" aria-label="Title" dir="auto"
                enterkeyhint="done"></textarea>
      <section class="subtasks-part" aria-labelledby="subtasks-title">
        <p id="subtasks-title"></p>
        <ul class="subtasks"></ul>
        {% raw input('new-subtask', 'Add a subtask', 'placeholder="Add a subtask" enterkeyhint="done"') %}
        <button class="link soft nest" data-action="nestOpen">Make it a subtask of the to-do above</button>
        <button class="link soft lift" data-action="liftOpen">Move it to the top level</button>
      </section>
      <div class="field"><label for="detail-notes">Notes</label>
        <div class="notes-box">
          <div class="notes-view" dir="auto"></div>
          <textarea id="detail-notes" class="detail-notes" data-field="notes" rows="4" maxlength="20000" dir="auto"
                    placeholder="Anything worth remembering"></textarea></div></div>
      {% for name, legend, time in (('due', 'Due', 'detail-time'), ('start', 'Start', 'detail-start-time')) %}
      {% raw fieldset(legend, 'class="field" data-field="%s"' % name) %}
        {% if name == 'due' %}
        <div class="quick-due row wrap">
          {% for days, words in ((0, 'Today'), (1, 'Tomorrow'), (7, 'In a week')) %}
          <button class="chip" data-action="quickDue" data-days="{{ days }}">{{ words }}</button>{% end %}
          <button class="chip clear-due" data-action="quickDue">No date</button>
        </div>
        {% end %}
        <div class="field-row row wrap">
          <input class="detail-{{ name }}" {% raw date %} aria-label="{{ legend }} date">
          <input class="{{ time }}" type="time" aria-label="{{ legend }} time (optional)">
        </div>
      </fieldset>
      {% end %}
      {% raw fieldset('Repeat', 'class="field repeat-field" data-field="repeat"') %}
        <p class="repeat-words soft" dir="auto"></p>
        <div class="field-row row wrap">
          {% raw select('repeat-unit', 'Repeat', {
            '': 'Never', 'DAILY': 'Every day', 'MO,TU,WE,TH,FR': 'Every weekday', 'WEEKLY': 'Every week',
            'MONTHLY': 'Every month', 'YEARLY': 'Every year'}) %}
          <label class="repeat-every row soft">Every <input type="number" min="1" max="999">
            <span class="repeat-units"></span></label>
          {% raw select('repeat-on', 'On') %}
        </div>
        {% raw segments('class="repeat-days segments" role="group" aria-label="On"', 'type="checkbox"',
                        dict.fromkeys('MO TU WE TH FR SA SU'.split(), '')) %}
        <div class="repeat-rest field-row row wrap">
          {% raw select('repeat-end', 'Ends', {'': 'Without end', 'COUNT': 'Number of times',
                                               'UNTIL': 'Until a day'}) %}
          <input class="repeat-count" type="number" min="1" max="999" aria-label="Number of times">
          <input class="repeat-until" {% raw date %} aria-label="Last day">
          {% raw select('repeat-from', 'Counted', {'': 'From its date', 'COMPLETION': 'From when it is done'}) %}
        </div>
        <div class="repeat-acts row wrap">
          <button class="button" data-action="skipOpen">Skip this one</button>
          <button class="button" data-action="endSeries">End the series</button>
        </div>
      </fieldset>
      {% raw fieldset('Reminders') %}
        <div class="reminders row wrap"></div>
        {% raw select('new-reminder control', 'Add a reminder', more='data-action="addReminder"') %}
        <div class="row wrap">
          <input class="reminder-at control" type="datetime-local" max="9999-12-31T23:59" aria-label="Remind me at">
          <button class="button" data-action="addReminderAt">Add this time</button>
        </div>
      </fieldset>
      {% raw fieldset('Priority') + segments('class="priorities segments"',
        'type="radio" name="priority" data-action="choosePriority"', priorities) %}</fieldset>
      <div class="field"><label for="detail-tag">Tags</label>
        <div class="tag-editor row wrap">
          <span class="detail-tags row wrap"></span>
          <input id="detail-tag" class="detail-tag" {% raw plain %} list="known-tags" placeholder="Add a tag"
                 maxlength="50" enterkeyhint="done"></div>
        <datalist id="known-tags"></datalist>
      </div>
      {% raw choose('detail-list', 'List', 'class="detail-list" data-action="chooseList"') %}
      {% raw choose('detail-assignee', 'Assigned to', 'class="detail-assignee" data-action="chooseAssignee"',
                    kind='assignee-field') %}
      <details class="part comments">
        <summary class="comments-title"></summary>
        <ol class="comment-list stack"></ol>
        <form class="comment-form stack" data-action="sayComment">
          <textarea class="control" name="text" rows="2" maxlength="5000" aria-label="Comment" placeholder="Comment"
                    dir="auto" required></textarea>
          <p class="said" role="status"></p>
          <div class="row"><button class="button comment-send"></button></div>
        </form>
      </details>
      <details class="part history">
        <summary>History</summary>
        <ol class="history-list"></ol>
        <button class="button history-more" data-action="moreHistory" hidden>Show more</button>
      </details>
    </div>
    <footer class="detail-foot row apart soft">
      <span class="detail-created"></span>
      <button class="button danger detail-delete" data-action="deleteOpen">Delete</button>
    </footer>
  </aside>
</div>

<div class="toasts" role="region" aria-label="Messages" aria-live="polite"></div>
<p class="announcer hidden-words" role="status" aria-live="polite"></p>

<section class="gate" aria-labelledby="gate-title" hidden>
  <div class="gate-card card stack">
    <div class="brand row">{% raw brand %}</div>
    <h2 id="gate-title">Sign in</h2>
    <p class="gate-words soft" hidden></p>
    <p class="gate-warning notice" hidden>This connection isn’t encrypted: on its way, a password can be read by
      others. Sign in over https if you can.</p>
    <form class="sign-in-form" data-action="signIn" method="post" novalidate>
      {% raw field('sign-in-name', 'Name', user_name + 'autocomplete="username"') %}
      {% raw password('sign-in-password', 'Password') %}
      <p class="said" role="status"></p>
      <button class="button solid" type="submit">Sign in</button>
    </form>
    <form class="sign-up-form" data-action="signUp" method="post" novalidate hidden>
      {% raw field('sign-up-name', 'Name', user_name + 'autocomplete="username"', 'Letters, digits and . _ - @ +') %}
      {% raw password('sign-up-password', 'Password', kind='new', hint='At least 8 characters') %}
      {% raw field('sign-up-invite', 'Invitation', 'name="invite" type="text" autocomplete="off" autocapitalize="none"'
                   ' spellcheck="false"', kind='invite-field') %}
      <div class="take-field" hidden>
        <p class="choice row"><input id="sign-up-take" type="checkbox" aria-describedby="sign-up-take-hint"><label
          for="sign-up-take"></label></p>
        <p class="soft" id="sign-up-take-hint">Otherwise they stay where they are: this computer shows them to
          whoever is not signed in.</p>
      </div>
      <p class="said" role="status"></p>
      <button class="button solid" type="submit">Make the account</button>
    </form>
    <p class="row wrap soft"><span class="gate-hint"></span>
      <button class="link gate-switch" data-action="switchForm">Make an account</button>
      <button class="link gate-back" data-action="leaveGate" hidden>Go on without signing in</button></p>
  </div>
</section>

{% raw dialog('account',
              '<span class="hidden-words">Account of </span> <span class="account-name" dir="auto"></span>') %}
  {% raw part('sessions', 'Where you are signed in') + entries('session') %}
    <button class="button danger end-all" data-action="signOut" data-value="/api/sessions">Sign out everywhere</button>
  </details>
  {% raw part('tokens', 'API tokens') %}
    <p class="soft">With a token, a program acts in your name without knowing your password.</p>
    {% raw entries('token') %}
    <div class="secret-place"></div>
    <form class="token-form" data-action="makeToken" novalidate>
      {% raw field('token-name', 'Name of the new token',
                   plain + ' name="name" placeholder="Backup script" maxlength="100" required') %}
      <div class="field-row row wrap">
        {% raw choose('token-may', 'It may', 'name="may"', {'read': 'read', 'write': 'read and change'}) %}
        {% raw field('token-days', 'Days it is valid for',
                     'name="days" type="number" inputmode="numeric" min="1" max="366" value="90" required') %}
      </div>
      <button class="button" type="submit">Make a token</button>
    </form>
  </details>
  {% raw part('invites', 'Invitations', 'hidden') %}
    <p class="soft">An invitation link is valid for one account and for seven days.</p>
    {% raw entries('invite', 'Make an invitation') %}
  </details>
  {% raw part('password', 'Password') %}
    <form class="password-form" data-action="changePassword" method="post" novalidate>
      {% raw username + password('old-password', 'Present password') %}
      {% raw password('new-password', 'New password', 'new_password', 'new',
                      'At least 8 characters. All other devices are signed out.') %}
      <button class="button" type="submit">Change the password</button>
    </form>
  </details>
  {% raw part('data', 'Your data') %}
    <p class="soft">Everything you have here, in one file.</p>
    <a class="button export-link" href="{{ base }}/api/export" download>Download everything</a>
    <form class="delete-form" data-action="deleteAccount" method="post" novalidate>
      <h3>Delete the account</h3>
      <p class="soft">The account goes with all its lists, to-dos, history, tokens and links, for you and for everybody
        you share a list with. This can’t be undone, so download everything first.</p>
      {% raw username + password('delete-password', 'Password') %}
      <button class="button danger" type="submit">Delete the account</button>
    </form>
  </details>
  <div class="dialog-buttons row wrap">
    <button class="button solid sign-out" data-action="signOut" data-value="/api/session">Sign out</button></div>
</dialog>

{% raw dialog('share') %}
  <h3>People</h3>
  {% raw entries('member') %}
  <form class="member-form field-row row wrap" data-action="addMember" novalidate>
    {% raw field('member-name', 'Share with', user_name + 'placeholder="Their name here" autocomplete="off"') %}
    {% raw choose('member-role', 'They can', 'name="role"', {'viewer': 'read', 'editor': 'change to-dos'}) %}
    <button class="button solid" type="submit">Share</button>
  </form>
  <div class="links-part stack">
    <h3>Link to read</h3>
    <p class="soft">Anyone with the link can read this list, without an account, until you revoke it.</p>
    {% raw entries('link', 'Make a link') %}
  </div>
</dialog>

<dialog class="dispute" aria-labelledby="dispute-title" aria-describedby="dispute-text">
  <h2 id="dispute-title" tabindex="-1">Two versions</h2>
  <p id="dispute-text" class="soft"></p>
  <div class="field-row row wrap">
    {% for name, title, keep in (('mine', 'Yours', 'Keep yours'), ('theirs', 'The other', 'Keep the other')) %}
    <section class="version {{ name }} stack" aria-labelledby="version-{{ name }}">
      <h3 id="version-{{ name }}">{{ title }}</h3>
      <p class="version-text control" dir="auto" tabindex="0"></p>
      <button class="button {{ 'solid' if name == 'mine' else '' }}" data-action="closeDialog"
              value="{{ name }}">{{ keep }}</button>
    </section>
    {% end %}
  </div>
</dialog>

{% raw dialog('list-options') %}
  {% raw fieldset('Colour') %}
    <div class="colours row wrap">
      {% for name in ('none', *colours) %}
      <input type="radio" name="colour" value="{{ name }}" data-colour="{{ name }}" data-action="chooseColour"
             aria-label="{{ name.title() }}" title="{{ name.title() }}">
      {% end %}
    </div>
  </fieldset>
  <div class="row wrap">
    <button class="button" data-action="moveListBy" data-value="-1">Move up</button>
    <button class="button" data-action="moveListBy" data-value="1">Move down</button>
    <button class="button archive-list" data-action="archiveList"></button>
    <button class="button" data-action="saveTemplate">Save as template</button>
  </div>
  <p class="soft">Only you see this colour and place, and only for you the list is archived.</p>
</dialog>

{% raw dialog('templates', 'Templates') %}
  <p class="soft">A template has the open to-dos of a list. The first date of a new list is today, and the others keep
    their distance. To make one, choose “Save as template” in the options of a list.</p>
  {% raw entries('template') %}
</dialog>

<dialog class="confirm" aria-labelledby="confirm-title">
  <h2 id="confirm-title"></h2>
  <p class="confirm-text soft"></p>
  <form data-action="answer" novalidate>
    {% raw field('ask-name', 'Name', plain + ' name="name" maxlength="500"') %}
    <p class="said" role="status"></p>
    <div class="dialog-buttons row wrap">
      <button class="button confirm-no" type="button" data-action="closeDialog" value="no">Keep</button>
      <button class="button solid confirm-yes" type="submit">Delete for good</button>
    </div>
  </form>
</dialog>

<dialog class="help" aria-labelledby="help-title">
  <h2 id="help-title">Shortcuts</h2>
  <dl class="keys"></dl>
  <p class="choice row">
    <input id="single-keys" class="single-keys" data-action="chooseSingleKeys" type="checkbox">
    <label for="single-keys">Single-key shortcuts (<kbd>n</kbd> <kbd>/</kbd> <kbd>1</kbd> …)</label></p>
  <div class="dialog-buttons row wrap">
    <button class="button solid help-close" data-action="closeDialog">Close</button></div>
</dialog>

<noscript><p class="no-script">This page needs JavaScript. The same to-dos are at
  <a href="{{ base }}/api/todos">{{ base }}/api/todos</a>.</p></noscript>
</body>
</html>
"""

# A mask may cut the corners of the square, so the drawing stays within the inner four fifths.
PAGE_ICON = r"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<rect width="32" height="32" rx="8" fill="#0b5f69"/>
<g fill="none" stroke="#fff" stroke-width="3" stroke-linecap="round">
<path d="M7 8h18M10 14h13M12 20h8"/>
<path d="M13 26h2" stroke="#ffd166"/>
</g>
</svg>
"""

# Addresses are relative to the manifest's own, so that they have the prefix.
PAGE_MANIFEST = {
    "id": "./",
    "name": "tornado_todo",
    "short_name": "to-do",
    "description": "A to-do list with lists, due dates, tags, history and undo.",
    "start_url": "./",
    "scope": "./",
    "display": "standalone",
    "background_color": "#edf1f0",
    "theme_color": "#edf1f0",
    "categories": ["productivity"],
    "shortcuts": [{"name": "Today", "url": "./#/today"}, {"name": "Upcoming", "url": "./#/upcoming"}],
}

# The page and its assets are kept together in one cache for each scope, since one origin may have several apps.
PAGE_WORKER = r"""// The service worker of tornado_todo: it keeps the page, so that it opens without the server.
// It never touches the API: the page itself keeps what it has read, for the user who has read it.
'use strict';

const { scope } = self.registration;
const CACHE = `tornado_todo:${scope}`;
const NETWORK_PATIENCE = 3000; // ms until a dead connection counts as none

const ASSET = /\/(page\/[0-9a-f]{20}\.(?:css|js|svg))/g;

const assetsIn = html => [...new Set(Array.from(html.matchAll(ASSET), ([, path]) => scope + path))];

// A network that wants a sign-in of its own answers in the server's place, with another page.
async function keepPage(response) {
  const assets = assetsIn(await response.clone().text());
  if (!response.ok || response.redirected || assets.length === 0) return false;
  const cache = await caches.open(CACHE);
  const known = new Set((await cache.keys()).map(({ url }) => url));
  await cache.addAll(assets.filter(url => !known.has(url)));
  await cache.put(scope, response);
  const isOld = url => url !== scope && !assets.includes(url);
  await Promise.all([...known].filter(isOld).map(url => cache.delete(url)));
  return true;
}

async function fetchPage(request) {
  const response = await fetch(request);
  const isPage = response.ok ? await keepPage(response.clone()).catch(() => true) : response.status < 500;
  if (!isPage) throw new Error('This is not the page.');
  return response;
}

async function openPage(event) {
  const fresh = fetchPage(event.request);
  event.waitUntil(fresh.catch(() => {}));
  const kept = await keptCopy(scope);
  if (!kept) return fresh.catch(() => fetch(event.request));
  const late = new Promise(resolve => setTimeout(resolve, NETWORK_PATIENCE, kept));
  return Promise.race([fresh.catch(() => kept), late]);
}

const keptCopy = request => caches.match(request, { cacheName: CACHE }).catch(() => undefined);
const openAsset = async request => (await keptCopy(request)) ?? fetch(request);

self.addEventListener('install', event => {
  self.skipWaiting();
  event.waitUntil(fetch(scope).then(keepPage));
});

self.addEventListener('activate', event => event.waitUntil(self.clients.claim()));

self.addEventListener('fetch', event => {
  const { request } = event;
  const [address] = request.url.split(/[?#]/);
  if (request.method !== 'GET') return;
  if (request.mode === 'navigate' && address === scope) event.respondWith(openPage(event));
  else if (address.startsWith(`${scope}page/`)) event.respondWith(openAsset(request));
});
"""

PAGE_CSS = r"""/* The page of tornado_todo: the colours of the sky after a storm. Below the tokens every length, colour
   and time is one of them or follows from them. */

:root {
  color-scheme: light dark;

  /* Spaces, sizes of text, radii, heights of controls: one that a finger must hit is 44 px high. */
  --s1: 0.25rem;
  --s2: 0.5rem;
  --s3: 0.75rem;
  --s4: 1rem;
  --s5: 1.5rem;
  --s6: 3rem;
  --small: 0.875rem;
  --text: 1rem;
  --large: 1.375rem;
  --huge: clamp(2rem, 1.4rem + 2.4vw, 2.75rem);
  --slight: 0.375rem;
  --round: 0.875rem;
  --pill: 99rem;
  --low: 2.25rem;
  --high: 2.5rem;

  /* Parts of the page. A row is as high as one line of a title with its padding. */
  --icon: 1.25rem;
  --row: calc(1.5rem + 2 * var(--s4));
  --hair: 1px;
  --ring: 2px;
  --edge: max(var(--s4), min(4vw, var(--s6)));
  --check: 2.75rem;
  --bar: 4.5rem;
  --footer: var(--bar);
  --selection: calc(2.5 * var(--bar) + env(safe-area-inset-bottom));
  --narrow: 9rem;
  --wide: 14rem;
  --sidebar: 17rem;
  --detail: 25rem;
  --dialog: 32rem;
  --column: 44rem;
  --banner-height: 0px;

  --ground: light-dark(#edf1f0, #11191c);
  --deep: light-dark(#e2e9e8, #0c1315);
  --surface: light-dark(#fbfdfc, #192428);
  --hover: light-dark(#f2f7f6, #1f2c30);
  --ink: light-dark(#14262b, #e4edee);
  --soft: light-dark(#4a5e65, #9db0b5);
  --line: light-dark(#d6dfde, #2b3a3f);
  --strong: light-dark(#71868b, #6d8288);
  --accent: light-dark(#0b6570, #74ccd2);
  --accent-ink: light-dark(#084a52, #9be0e4);
  --wash: light-dark(#d6e8e8, #1d3b40);
  --on-accent: light-dark(#fff, #06272b);
  --sun: light-dark(#e0a100, #f1c04c);
  --sun-edge: light-dark(#a06f00, #f1c04c);
  --sun-ink: light-dark(#6b4a00, #f5d588);
  --sun-wash: light-dark(#fdf0c9, #3a3115);
  --storm: light-dark(#a8331c, #ff9c86);
  --storm-wash: light-dark(#fbe3dc, #44221b);
  --veil: light-dark(rgb(20 38 43 / 38%), rgb(0 0 0 / 58%));
  --shade: light-dark(rgb(20 38 43 / 8%), rgb(0 0 0 / 30%));
  --shadow: 0 1px 2px var(--shade), 0 6px 24px var(--shade);
  --shadow-high: 0 4px 12px var(--shade), 0 16px 48px var(--veil);

  --sans: ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', sans-serif;
  --serif: 'Iowan Old Style', Charter, 'Sitka Text', 'Palatino Linotype', Palatino, 'Noto Serif', 'DejaVu Serif', serif;
  --tick: url("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24'%3E%3Cpath fill='none'\
 stroke='%23000' stroke-width='3.5' stroke-linecap='round' d='m5 12.5 4.8 4.8L19.5 7'/%3E%3C/svg%3E");
  --quick: 140ms ease-out;
  --calm: 260ms cubic-bezier(0.2, 0.8, 0.2, 1);

  @media (hover: none) {
    --low: 2.75rem;
    --high: 2.75rem;
  }
  @media (width < 600px) {
    --footer: 7rem;
  }
}

[data-colour=red] { --dot: light-dark(#c0392b, #ff8a7a); }
[data-colour=orange] { --dot: light-dark(#b4530f, #ffab66); }
[data-colour=yellow] { --dot: light-dark(#8f6b00, #f1c84c); }
[data-colour=green] { --dot: light-dark(#2f7d32, #7fd483); }
[data-colour=teal] { --dot: light-dark(#0f766e, #5fd0c5); }
[data-colour=blue] { --dot: light-dark(#2563c9, #8ab4ff); }
[data-colour=purple] { --dot: light-dark(#7441c9, #c2a6ff); }
[data-colour=pink] { --dot: light-dark(#c2255c, #ff9ac0); }
[data-colour=grey] { --dot: light-dark(#5b6b70, #a3b3b8); }

/* ---- Ground rules ---- */

*, ::before, ::after { box-sizing: border-box; }

/* Hidden must win over every display below, or a rule could show an element that the script has hidden. */
[hidden] { display: none !important; }

/* An element that is scrolled to, or gets the focus, must not lie under the banner or the sticky footer. */
html {
  scroll-padding-block: var(--banner-height) calc(var(--footer) + env(safe-area-inset-bottom));
  background: var(--ground);
  color: var(--ink);
  font: var(--text) / 1.5 var(--sans);
  overflow-wrap: break-word;
  -webkit-text-size-adjust: 100%;
  -webkit-tap-highlight-color: transparent;
}

body, h1, h2, h3, p, ul, ol, dl, dd, fieldset, legend, button {
  margin: 0;
  padding: 0;
  border: 0;
}

h1, h2, .detail-title {
  font: 600 var(--large) / 1.25 var(--serif);
  letter-spacing: -0.01em;
}

h3 { font: 600 var(--text) / 1.5 var(--sans); }
:is(h2, h3) + .soft { margin-block-start: calc(-1 * var(--s2)); }
h1, h2, .words, .toast-text, .chip, .history-entry, .comment-text, .notes-view, .subtask { overflow-wrap: anywhere; }
.comment-text, .notes-view, .notes-view pre, .version-text { white-space: pre-wrap; }
ul, ol { list-style: none; }
summary { cursor: pointer; }
button, a, li, .segments span { transition: background var(--quick); }

button, input, select, textarea {
  margin: 0;
  font: inherit;
  color: inherit;
}

button {
  background: none;
  cursor: pointer;
}

:is(button, .toggle, .toggle-all):disabled {
  cursor: default;
  opacity: 0.6;
}

::placeholder {
  color: var(--soft);
  opacity: 1;
}

:focus-visible {
  outline: var(--ring) solid var(--accent);
  outline-offset: var(--ring);
}

::selection, .tag:is(:hover, .chosen) {
  background: var(--accent);
  color: var(--on-accent);
}

kbd {
  padding-inline: 0.5em;
  border-radius: var(--slight);
  background: var(--surface);
  color: var(--soft);
  font: var(--small) / 1.5 var(--sans);
}

:is(.active-filters, .understood, .detail-tags):empty, .sidebar-heading:has(+ ul:empty), .archived:has(ul:empty) {
  display: none;
}

.icon {
  width: var(--icon);
  height: var(--icon);
  flex: none;
  fill: none;
  stroke: currentColor;
  stroke-width: 1.7;
  stroke-linecap: round;
  stroke-linejoin: round;
}

.icon-sheet { position: absolute; }
.sun { stroke: var(--sun); }

.hidden-words {
  position: absolute;
  width: var(--hair);
  height: var(--hair);
  overflow: hidden;
  clip-path: inset(50%);
  white-space: nowrap;
}

/* ---- Primitives ---- */

.control, .field :is(input, select, textarea), .detail-title, .card, dialog, .notice, .said, .secret-place, .place,
.show-password, .dragging { border-radius: var(--round); }

.button, .chip, .icon-button, .search, .toast-action, .progress, .progress::-webkit-progress-value, .toggle::before,
.segments, .segments :is(a, span), .history-entry::before, .colours input { border-radius: var(--pill); }

.row {
  display: flex;
  align-items: center;
  gap: var(--s2);
}

.wrap { flex-wrap: wrap; }
.apart { justify-content: space-between; }

.stack, form, .field, dialog[open] {
  display: grid;
  gap: var(--s4);
  > .button { justify-self: start; }
}

.page, .todoapp, .sidebar, .detail, .detail-body {
  display: flex;
  flex-direction: column;
}

.page, .todoapp, .eyebrow, .detail-state, .subtask, .words, .place-name, .toast-text, .toggle-all-box {
  flex: 1;
  min-width: 0;
}

.sidebar, .detail-body, .gate {
  overflow-y: auto;
  overscroll-behavior: contain;
}

.soft, .complaint {
  color: var(--soft);
  font-size: var(--small);
}

.complaint { color: var(--storm); }

.sidebar-heading, .field > :is(label, legend), #subtasks-title {
  color: var(--soft);
  font: 600 var(--small) / 1.5 var(--sans);
}

.control, .field :is(input, select, textarea) {
  width: 100%;
  min-width: 0;
  min-height: var(--high);
  padding: var(--s1) var(--s3);
  background: var(--ground);
  &:hover:enabled { border-color: var(--strong); }
  &:focus-visible { outline-offset: calc(-1 * var(--hair)); }
  &[aria-invalid] { border-color: var(--storm); }
}

.control, .field :is(input, select, textarea), .button, .selection, kbd { border: var(--hair) solid var(--line); }

.chunk + .chunk, .todo-list li + li, .entry + .entry, .part + .part, .detail-foot {
  border-block-start: var(--hair) solid var(--line);
}

.card, dialog, .dragging {
  background: var(--surface);
  box-shadow: var(--shadow);
}

.chip {
  display: inline-flex;
  align-items: center;
  gap: var(--s1);
  max-width: 100%;
  padding-inline: var(--s2);
  background: var(--wash);
  color: var(--accent-ink);
  font-size: var(--small);
  text-align: start;
}

.button {
  display: inline-flex;
  align-items: center;
  justify-content: center;
  gap: var(--s2);
  min-height: var(--high);
  padding: var(--s1) var(--s4);
  background: var(--surface);
  color: var(--accent-ink);
  font-weight: 600;
  text-decoration: none;
  white-space: nowrap;
  &:hover {
    border-color: currentColor;
    background: var(--wash);
  }
  &.danger { color: var(--storm); }
  &.danger:hover { background: var(--storm-wash); }
  &.solid {
    border-color: transparent;
    background: var(--accent);
    color: var(--on-accent);
  }
  &.solid.danger { background: var(--storm); }
  &.solid:hover { filter: brightness(1.1); }
}

.icon-button {
  display: inline-grid;
  place-items: center;
  width: var(--high);
  height: var(--high);
  flex: none;
  color: var(--soft);
  &:hover, &[aria-expanded='true'] {
    background: var(--wash);
    color: var(--accent-ink);
  }
}

.link {
  display: inline-block;
  color: inherit;
  line-height: var(--high);
  text-decoration: underline var(--strong);
  text-underline-offset: 0.25em;
  white-space: nowrap;
  &:hover { text-decoration-color: currentColor; }
}

.notice, .said:not(:empty), .secret-place:not(:empty) {
  padding: var(--s2) var(--s3);
  background: var(--sun-wash);
  color: var(--sun-ink);
  font-size: var(--small);
}

.icon-button:is(.destroy, .purge, .delete-list-button):hover, .segments [value='3']:checked + span,
.said.bad:not(:empty) {
  background: var(--storm-wash);
  color: var(--storm);
}

/* Exclusive choices side by side. */
.segments {
  display: flex;
  padding: var(--s1);
  background: var(--deep);
  > * {
    position: relative;
    flex: 1;
  }
  input {
    position: absolute;
    inset: 0;
    min-height: 0;
    opacity: 0;
    cursor: pointer;
  }
  :is(a, span) {
    display: grid;
    place-items: center;
    min-height: var(--low);
    padding-inline: var(--s3);
    color: var(--soft);
    font-size: var(--small);
    text-decoration: none;
  }
  a:hover { color: var(--ink); }
  a.selected, :checked + span {
    background: var(--surface);
    color: var(--ink);
    font-weight: 600;
    box-shadow: var(--shadow);
  }
  :focus-visible + span { outline: var(--ring) solid var(--accent); }
  [value='2']:checked + span {
    background: var(--sun-wash);
    color: var(--sun-ink);
  }
  .locked & input { cursor: default; }
}

/* ---- Shell ---- */

.skip {
  position: fixed;
  z-index: 60;
  inset: var(--s4) auto auto var(--s4);
  &:not(:focus) { transform: translateY(-200%); }
  .gate-open & { display: none; }
}

/* Overlays leave room for it, too. */
.banner {
  position: sticky;
  z-index: 45;
  top: 0;
  justify-content: center;
  max-height: 50vh;
  overflow-y: auto;
  border-radius: 0;
}

.shell {
  display: grid;
  grid-template-columns: var(--sidebar) minmax(0, 1fr);
  min-height: 100dvh;
  transition: padding var(--calm);
  /* Show nothing until the user is known; a short wait needs no sign. */
  .is-starting & { opacity: 0; }
  /* A link shows only one list, so it needs no navigation. */
  .is-link & {
    grid-template-columns: minmax(0, 1fr);
    :is(.sidebar, .open-drawer) { display: none; }
  }
}

.page {
  width: 100%;
  max-width: calc(var(--column) + 2 * var(--edge));
  margin-inline: auto;
  padding-inline: var(--edge);
}

/* ---- Sidebar ---- */

.sidebar {
  position: sticky;
  inset-block: var(--banner-height) 0;
  height: calc(100dvh - var(--banner-height));
  padding: var(--s5) var(--s3) var(--s3);
  background: var(--deep);
  .sidebar-heading { padding: var(--s5) var(--s3) var(--s1); }
  .sidebar-foot {
    margin-block-start: auto;
    padding-block-start: var(--s5);
  }
}

.brand {
  margin-block-end: var(--s5);
  padding-inline-start: var(--s3);
  font: 600 var(--large) / 1 var(--serif);
  > .icon {
    --icon: 1.5em;
    color: var(--accent);
    stroke-width: 2.3;
  }
  b {
    flex: 1;
    font-weight: inherit;
    white-space: nowrap;
  }
  em {
    color: var(--soft);
    font-weight: 400;
  }
}

.place {
  gap: var(--s3);
  width: 100%;
  min-height: var(--high);
  padding-inline: var(--s3);
  color: inherit;
  text-align: start;
  text-decoration: none;
  .icon, .place-count, &.new-list-button { color: var(--soft); }
  &:hover { background: var(--hover); }
  &[aria-current] {
    background: var(--surface);
    font-weight: 600;
    box-shadow: var(--shadow);
    > .icon { color: var(--accent); }
  }
  &[data-colour] > .icon {
    fill: var(--dot);
    color: var(--dot);
  }
  .place-shared { display: flex; }
  .place-count {
    font-size: var(--small);
    font-weight: 400;
    font-variant-numeric: tabular-nums;
  }
}

.place-shared, .chip .icon, .mark .icon { --icon: var(--s4); }
.place.drop-here { background: var(--wash); }
:is(.place, .group).drop-here { outline: var(--ring) dashed var(--accent); }

.place-name {
  overflow: hidden;
  text-overflow: ellipsis;
  white-space: nowrap;
}

.scrim, .gate {
  position: fixed;
  z-index: 30;
  inset: 0;
  background: var(--veil);
}

/* ---- Top ---- */

.top-bar { min-height: var(--bar); }
.weather::before { content: ' · '; }

.search-box {
  position: relative;
  width: var(--wide);
  .icon, kbd {
    position: absolute;
    inset-block: 0;
    margin-block: auto;
    color: var(--soft);
    pointer-events: none;
  }
  .icon { inset-inline-start: var(--s3); }
  kbd {
    inset-inline-end: var(--s3);
    height: fit-content;
  }
}

.search {
  padding-inline: calc(var(--icon) + var(--s5)) var(--s6);
  background: none;
  appearance: none;
  &::-webkit-search-cancel-button { appearance: none; }
  &:is(:hover, :focus) { background: var(--surface); }
  &:is(:focus, :not(:placeholder-shown)) + .search-key { display: none; }
}

.title-row {
  min-height: var(--row);
  h1 {
    font-size: var(--huge);
    /* It takes the focus only where there is no box for a new to-do, to read on from there. */
    &:focus { outline: none; }
  }
  .rename-list { font: 600 var(--large) / 1.25 var(--serif); }
  .empty-trash { margin-inline-start: auto; }
}

.progress {
  display: block;
  width: 100%;
  height: var(--s1);
  margin-block-start: var(--s2);
  overflow: hidden;
  border: 0;
  background: var(--line);
  appearance: none;
  &::-webkit-progress-bar { background: none; }
  &::-webkit-progress-value {
    background: var(--accent);
    transition: width var(--calm);
  }
  &::-moz-progress-bar { background: var(--accent); }
}

/* ---- The box for a new to-do, and the list: cards with the same columns ---- */

.todoapp {
  --grip: var(--s5);
  --indent: var(--s5);
}

.composer {
  display: grid;
  grid-template-columns: var(--check) minmax(0, 1fr) auto;
  align-items: center;
  margin-block-start: var(--s4);
  padding-inline: var(--grip) var(--s2);
  border: var(--hair) solid transparent;
  transition: border-color var(--quick);
  &:focus-within { border-color: var(--accent); }
  > .icon {
    justify-self: center;
    color: var(--accent);
    stroke-width: 2.3;
  }
  .new-todo {
    min-width: 0;
    min-height: var(--row);
    padding: 0;
    border: 0;
    background: none;
    /* The whole card takes the focus colour, so it needs no second ring inside. */
    &:focus-visible { outline: none; }
  }
}

.new-options {
  display: grid;
  grid-template-columns: auto minmax(0, 1fr) auto minmax(0, 1fr);
  align-items: center;
  gap: var(--s2) var(--s3);
}

.new-options, .new-tags, .understood { grid-column: 2 / -1; }
.new-options, .understood { padding-block-end: var(--s3); }
.active-filters { margin-block-start: var(--s3); }

.filter-chip {
  min-height: var(--low);
  padding-inline: var(--s3) var(--s2);
  &:hover { background: var(--line); }
}

.list-bar {
  min-height: var(--row);
  padding-inline-start: var(--grip);
}

.toggle-all-box, .list-tools { gap: 0; }
.toggle-all-box:hover { color: var(--ink); }

.sort {
  min-height: var(--high);
  border: 0;
  border-radius: var(--slight);
  background: none;
  color: var(--ink);
  &:hover { background: var(--deep); }
  option { background: var(--surface); }
}

.todo-list {
  position: relative;
  /* Chunks far away aren't laid out, which keeps thousands of rows cheap. */
  .chunk {
    position: relative;
    content-visibility: auto;
    contain-intrinsic-block-size: auto calc(25 * var(--row));
    &:has(.dragging, .shifted) { content-visibility: visible; }
    &:first-child > :first-child { border-radius: var(--round) var(--round) 0 0; }
    &:last-child > :last-child { border-radius: 0 0 var(--round) var(--round); }
    &:only-child > :only-child { border-radius: var(--round); }
  }
  li {
    position: relative;
    padding-inline: calc(var(--grip) + var(--depth, 0) * var(--indent)) var(--s2);
    &:is(:hover, :focus-within) { background: var(--hover); }
    &:is(.open, .selected) { background: color-mix(in srgb, var(--wash) 50%, var(--surface)); }
    &.selected { box-shadow: inset var(--s1) 0 var(--accent); }
    &.selected:dir(rtl) { box-shadow: inset calc(-1 * var(--s1)) 0 var(--accent); }
    &.swiped { background: var(--wash); }
    &[aria-level='2'] { --depth: 1; }
    &[aria-level='3'] { --depth: 2; }
    &[aria-level='4'] { --depth: 3; }
    &[aria-level='5'] { --depth: 4; }
    /* What hovering or the focus shows; a finger can't hover. */
    @media (hover: hover) {
      &:not(:hover) .grip,
      &:not(:hover, :focus-within) .icon-button:not(.open .details-button) { opacity: 0; }
    }
  }
  .view {
    display: grid;
    grid-template-columns: var(--check) minmax(0, 1fr) auto auto;
    align-items: start;
    .icon-button { margin-block-start: calc((var(--row) - var(--high)) / 2); }
  }
  .words {
    padding-block: var(--s4);
    .pending & { opacity: 0.75; }
  }
  label {
    display: block;
    text-align: start;
    unicode-bidi: plaintext;
  }
  .edit {
    display: block;
    width: calc(100% - var(--check));
    margin: var(--s2) 0 var(--s2) auto;
    border-color: var(--accent);
  }
  li:not(.editing) > .edit, .editing > .view { display: none; }
  .dragging {
    z-index: 5;
    transition: none;
    pointer-events: none;
  }
  .grip {
    position: absolute;
    inset-block: 0;
    inset-inline-start: calc(var(--depth, 0) * var(--indent));
    display: none;
    place-items: start center;
    width: var(--grip);
    padding-block-start: calc((var(--row) - var(--icon)) / 2);
    color: var(--strong);
    cursor: grab;
    touch-action: none;
    &:active { cursor: grabbing; }
    .icon { stroke-width: 2.3; }
    .sortable li:not(.locked) & { display: grid; }
  }
  .shifted { transition: transform var(--calm); }
}

.group {
  border-radius: var(--round);
  > .card:empty { display: none; }
  .group-head {
    padding: 0 var(--grip) var(--s1);
    font: 600 var(--text) / 1.5 var(--sans);
    [data-day=''] > & { color: var(--storm); }
  }
  .group-toggle {
    min-height: var(--high);
    font-weight: inherit;
  }
}

:is(.group-toggle, .branch) {
  .icon:dir(rtl) { transform: scaleX(-1); }
  &[aria-expanded='true'] .icon { transform: rotate(90deg); }
}

/* The circle stands on the first line of the title, however long the title is. */
.toggle, .toggle-all {
  --size: var(--s5);
  display: grid;
  place-items: center;
  width: var(--check);
  height: var(--row);
  appearance: none;
  cursor: pointer;
  &::before, &::after {
    content: '';
    grid-area: 1 / 1;
    width: var(--size);
    height: var(--size);
  }
  &::before {
    border: var(--ring) solid var(--strong);
    background: var(--surface);
    transition: all var(--quick);
  }
  /* The tick is drawn from left to right, as a hand would. */
  &::after {
    background: var(--on-accent);
    mask: var(--tick) center / 66% no-repeat;
    clip-path: inset(0 100% 0 0);
    transition: clip-path var(--calm);
  }
  &:hover:enabled::before {
    border-color: var(--accent);
    background: var(--wash);
  }
  &:active:enabled::before { transform: scale(0.88); }
  .priority-2 &::before {
    border-color: var(--sun-edge);
    background: var(--sun-wash);
  }
  .priority-3 &::before {
    border-color: var(--storm);
    background: var(--storm-wash);
  }
  &:checked::before, &:checked:hover:enabled::before {
    border-color: var(--accent);
    background: var(--accent);
  }
  &:checked::after { clip-path: inset(0); }
  &:focus-visible { outline: none; }
  &:focus-visible::before {
    outline: var(--ring) solid var(--accent);
    outline-offset: var(--ring);
  }
}

.toggle-all {
  --size: var(--icon);
  &::before { border-radius: var(--slight); }
}

.words {
  display: grid;
  grid-template-columns: minmax(0, 1fr);
}

:is(.words, .notes-view) a { color: var(--accent-ink); }

.completed .words label, .completed > .subtask, .is-completed .detail-title {
  color: var(--soft);
  text-decoration: line-through var(--strong);
}

.meta {
  gap: var(--s1) var(--s3);
  &:not(:empty) { margin-block-start: var(--s1); }
}

.mark {
  gap: var(--s1);
  min-width: 0;
  max-width: 100%;
  &.level-2 .icon { color: var(--sun-edge); }
  &:is(.level-3, .overdue) { color: var(--storm); }
  &.today { color: var(--sun-ink); }
  &:is(.today, .overdue) { font-weight: 600; }
  &:is(.branch, .parent):hover { color: var(--accent-ink); }
}

/* A finger hits more than is drawn. */
.tag, .branch, .parent {
  position: relative;
  &::after {
    content: '';
    position: absolute;
    inset: calc(50% - var(--low) / 2) 0;
  }
}

.footer, .selection {
  position: sticky;
  z-index: 10;
  inset-block-end: 0;
}

.footer {
  display: grid;
  grid-template-columns: 1fr auto 1fr;
  align-items: center;
  gap: var(--s2);
  margin: auto calc(-1 * var(--s4)) 0;
  padding: var(--s4) var(--s5) max(var(--s3), env(safe-area-inset-bottom));
  background: linear-gradient(transparent, var(--ground) var(--s4));
  strong { color: var(--ink); }
  .clear-completed {
    justify-self: end;
    &:hover { color: var(--storm); }
  }
}

.selection {
  inset-block-end: var(--s3);
  margin-block: auto var(--s3);
  padding: var(--s2) var(--s4);
  .control { flex: 1 1 var(--narrow); }
}

/* What gets the focus must not lie under it. */
.is-selecting {
  scroll-padding-block-end: var(--selection);
  .toasts { inset-block-end: var(--selection); }
}

/* ---- Empty views ---- */

.more, .no-script, .empty { text-align: center; }
.more { padding: var(--s4); }
.no-script { padding: var(--s5); }

.empty {
  display: grid;
  flex: 1;
  place-content: center;
  justify-items: center;
  gap: var(--s2);
  padding-block: var(--s5) var(--s6);
  .empty-text {
    max-width: var(--detail);
    font-size: var(--text);
  }
  .empty-picture {
    width: var(--wide);
    fill: none;
    stroke: var(--accent);
    stroke-width: 6;
    stroke-linecap: round;
    .breeze {
      stroke: var(--strong);
      stroke-width: 2.5;
      opacity: 0.6;
    }
    .wind path {
      animation: sway 5s ease-in-out infinite alternate;
      &:nth-child(2) { animation-delay: -1.2s; }
      &:nth-child(3) { animation-delay: -2.4s; }
      &:nth-child(4) { animation-delay: -3.6s; }
    }
  }
}

@keyframes sway {
  from { transform: translateX(calc(-1 * var(--s1))); }
  to { transform: translateX(var(--s1)); }
}

/* ---- Details ---- */

.detail {
  position: fixed;
  z-index: 20;
  inset: var(--banner-height) 0 0 auto;
  width: min(var(--detail), 100%);
  background: var(--surface);
  box-shadow: var(--shadow-high);
  animation: arrive var(--calm);
  &:dir(rtl) { inset: var(--banner-height) auto 0 0; }
  .detail-head { padding: var(--s3) var(--s3) 0 var(--s5); }
  .detail-foot { padding: var(--s3) var(--s5) max(var(--s3), env(safe-area-inset-bottom)); }
  .detail-body {
    flex: 1;
    gap: var(--s4);
    padding: var(--s1) var(--s5) var(--s5);
  }
  .detail-title {
    flex: none;
    max-height: 50vh;
    margin-inline: calc(-1 * var(--s2));
    padding: var(--s1) var(--s2);
    overflow-y: auto;
    border: var(--hair) solid transparent;
    background: none;
    resize: none;
    &:hover:read-write { border-color: var(--line); }
  }
}

.field {
  gap: var(--s1);
  min-width: 0;
  textarea { resize: vertical; }
}

.field > :is(label, legend), #subtasks-title { padding-block-end: var(--s1); }

/* Notes are shown with their forms, and as they were typed while one edits them. */
.notes-box {
  display: grid;
  min-width: 0;
  > * { grid-area: 1 / 1; }
}

.notes-view {
  padding: var(--s1) var(--s3);
  cursor: text;
  &:empty, &:has(+ :focus) { visibility: hidden; }
  &:not(:empty) + :not(:focus) {
    opacity: 0;
    pointer-events: none;
  }
  :is(ul, ol) { padding-inline-start: var(--s5); }
  ul { list-style: disc; }
  ol { list-style: decimal; }
  :is(code, pre) { background: var(--deep); }
  pre {
    margin: 0;
    padding: var(--s2);
  }
  .nested { margin-inline-start: var(--s5); }
  .task {
    list-style: none;
    input { margin-inline-start: calc(-1 * var(--s5)); }
    :checked ~ * { color: var(--soft); }
  }
}

.subtasks {
  margin-inline-start: calc(-1 * var(--s2));
  .row { gap: 0; }
  .toggle { height: var(--high); }
  .subtask {
    min-height: var(--high);
    padding-block: var(--s1);
    text-align: start;
  }
}

.quick-due {
  gap: var(--s1);
  .locked & { display: none; }
  .chip {
    min-height: var(--low);
    &:not(:hover, [aria-pressed='true']) { background: var(--ground); }
    &[aria-pressed='true'] { font-weight: 600; }
  }
}

.detail-tag { flex: 1 1 var(--narrow); }
.locked .field:has(> .tag-editor > .detail-tags:empty) { display: none; }
.repeat-every { flex: 1 1 auto; }
.repeat-every input { width: var(--bar); }
.repeat-days span { padding-inline: 0; }
.repeat-acts .button { padding-inline: var(--s3); }

.part {
  &[open] { padding-block-end: var(--s5); }
  + .part { margin-block-start: calc(-1 * var(--s4)); }
  summary {
    min-height: var(--check);
    align-content: center;
    font-weight: 600;
    &::marker { color: var(--strong); }
  }
  > :not(summary) + * { margin-block-start: var(--s3); }
}

/* A line with a dot for each change. */
.history-entry {
  position: relative;
  display: grid;
  margin-inline-start: var(--s1);
  padding: 0 var(--s4) var(--s1);
  border-inline-start: var(--hair) solid var(--line);
  font-size: var(--small);
  &::before {
    content: '';
    position: absolute;
    inset-block-start: var(--s2);
    inset-inline-start: calc(-0.5 * var(--s2));
    width: var(--s2);
    height: var(--s2);
    background: var(--accent);
  }
}

.history-day {
  padding-block: var(--s3) var(--s1);
  font-weight: 600;
}

.comment-text a { color: inherit; }

/* ---- Messages and dialogs ---- */

@keyframes arrive {
  from {
    opacity: 0;
    transform: translateY(calc(-1 * var(--s2)));
  }
}

.toasts {
  position: fixed;
  z-index: 50;
  inset: auto 0 calc(var(--footer) + env(safe-area-inset-bottom));
  display: grid;
  justify-items: center;
  padding: var(--s3) var(--s4);
  pointer-events: none;
}

/* Dark in both themes. */
.toast {
  color-scheme: dark;
  max-width: min(var(--dialog), 100%);
  padding: var(--s1) var(--s1) var(--s1) var(--s4);
  background: var(--wash);
  color: var(--ink);
  box-shadow: var(--shadow-high);
  pointer-events: auto;
  animation: arrive var(--calm);
  &.bad { border-inline-start: var(--s1) solid var(--sun); }
  .icon-button:hover, .toast-action:hover { background: var(--veil); }
  :focus-visible { outline-color: var(--sun); }
  .toast-text { padding-block: var(--s2); }
  .toast-action {
    min-height: var(--high);
    margin-inline-start: var(--s2);
    padding-inline: var(--s3);
    color: var(--sun);
    font-weight: 600;
    white-space: nowrap;
  }
}

dialog {
  width: min(var(--dialog), 100vw - 2 * var(--s4));
  max-height: calc(100dvh - 2 * var(--s4));
  padding: var(--s5);
  border: 0;
  color: var(--ink);
  &[open] { animation: arrive var(--calm); }
  &::backdrop { background: var(--veil); }
  .dialog-head {
    align-items: start;
    .icon-button { margin: calc(-1 * var(--s1)) calc(-1 * var(--s2)) 0 0; }
  }
  .dialog-buttons { justify-content: end; }
}

/* An empty place takes no room between its neighbours, but is there for screen readers before it is filled. */
.said {
  &:empty { position: absolute; }
  &:not(:empty) {
    background: var(--wash);
    color: var(--accent-ink);
  }
  /* The result of an act must be visible at the end of a long dialog, too. */
  dialog > &:not(:empty) {
    position: sticky;
    z-index: 1;
    top: 0;
  }
}

.keys {
  display: grid;
  grid-template-columns: auto 1fr;
  gap: var(--s2) var(--s5);
  dt {
    display: flex;
    align-items: start;
    gap: var(--s1);
  }
}

.colours input {
  width: var(--low);
  height: var(--low);
  border: var(--hair) solid var(--strong);
  appearance: none;
  background: var(--dot, transparent);
  forced-color-adjust: none;
  &:checked { box-shadow: inset 0 0 0 var(--s1) var(--surface), 0 0 0 var(--ring) var(--ink); }
}

/* ---- Forms ---- */

.choice input, .task input {
  width: var(--icon);
  height: var(--icon);
  min-height: 0;
  flex: none;
  accent-color: var(--accent);
}

.field-row {
  align-items: end;
  gap: var(--s3);
  > :not(.button) { flex: 1 1 var(--narrow); }
}

.password-box {
  position: relative;
  input { padding-inline-end: var(--bar); }
  .show-password {
    position: absolute;
    inset-block: 0;
    inset-inline-end: 0;
    padding-inline: var(--s3);
    color: var(--accent-ink);
    font-size: var(--small);
  }
}

/* ---- Signing in ---- */

.gate {
  z-index: 60;
  display: grid;
  padding: var(--s4);
  background: var(--ground);
  .brand {
    margin: 0;
    padding: 0;
  }
  form > .solid { justify-self: stretch; }
  .gate-back { margin-inline-start: auto; }
  .gate-card {
    width: min(var(--detail), 100%);
    margin: auto;
    padding: var(--s5);
    animation: arrive var(--calm);
  }
}

/* ---- Account and sharing ---- */

.entry {
  gap: var(--s1) var(--s2);
  padding-block: var(--s2);
  .words { flex: 1 1 var(--narrow); }
  .role { width: auto; }
  &.trash-row {
    padding-inline: var(--s4);
    .words { flex-basis: var(--wide); }
  }
}

.secret-line {
  margin-block-start: var(--s2);
  .secret {
    background: var(--surface);
    color: var(--ink);
    font-family: ui-monospace, monospace;
  }
}

.version {
  grid-template-rows: auto 1fr auto;
  align-self: stretch;
  .version-text {
    max-height: 50vh;
    overflow: auto;
  }
}

/* ---- Widths, heights and media ---- */

/* Room for the details beside the list; below that they lie over it. */
@media (width >= 1180px) {
  .toasts { inset-inline-start: var(--sidebar); }
  .is-link .toasts { inset-inline-start: 0; }
  .detail { box-shadow: none; }
  .detail-open {
    .shell { padding-inline-end: var(--detail); }
    .toasts { inset-inline-end: var(--detail); }
  }
}

@media (width >= 900px) {
  .open-drawer, .close-drawer { display: none; }
}

@media (width < 900px) {
  .shell { grid-template-columns: minmax(0, 1fr); }
  .sidebar {
    position: fixed;
    z-index: 40;
    width: min(var(--sidebar), 86vw);
    transition: transform var(--calm), visibility var(--calm);
    html:not(.drawer-open) & {
      visibility: hidden;
      transform: translateX(-100%);
      &:dir(rtl) { transform: translateX(100%); }
    }
  }
  .drawer-open body { overflow: hidden; }
}

@media (width < 720px) {
  .detail { width: 100%; }
  .detail-open body { overflow: hidden; }
}

.gate-open body { overflow: hidden; }

@media (width < 600px) {
  .top-bar { padding-block: var(--s3); }
  .eyebrow {
    order: 3;
    flex-basis: 100%;
  }
  .search-box { flex: 1; }
  .search { padding-inline-end: var(--s3); }
  .search-key, .sidebar kbd, .sort-label { display: none; }
  .todoapp {
    --grip: var(--s2);
    --indent: var(--s4);
  }
  .todo-list, .trash-list {
    --round: 0px;
    margin-inline: calc(-1 * var(--edge));
  }
  .new-options, .understood {
    grid-column: 1 / -1;
    grid-template-columns: auto minmax(0, 1fr);
    padding-inline-start: var(--s3);
  }
  .footer { grid-template-columns: 1fr auto; }
  .filters { grid-area: 2 / 1 / auto / -1; }
}

/* In a low window, or an enlarged one, only the banner stays fixed over the text. */
@media (height <= 32rem) {
  :root {
    --footer: 0px;
    --selection: env(safe-area-inset-bottom);
  }
  .footer { position: static; }
  .selection {
    flex-wrap: nowrap;
    overflow-x: auto;
    > :nth-child(n) { flex: none; }
    .control { width: var(--narrow); }
  }
  .detail {
    display: block;
    overflow-y: auto;
  }
  .detail-body { overflow: visible; }
}

@media (hover: none) {
  .task label { min-height: var(--low); }
  /* A swipe to the side and a long press are the page's. */
  .todo-list li {
    touch-action: pan-y pinch-zoom;
    user-select: none;
    -webkit-user-select: none;
  }
  /* The grip is at the end, wide enough for a finger. */
  .sortable {
    .grip {
      inset-inline: auto 0;
      width: var(--high);
    }
    li:not(.locked) { padding-inline-end: var(--high); }
  }
  /* On a small touch screen a row has room for one button; deleting is in the details. */
  @media (width < 600px) {
    .todo-list .destroy { display: none; }
  }
}

@media (prefers-reduced-motion: reduce) {
  *, ::before, ::after, ::backdrop {
    animation: none !important;
    transition: none !important;
  }
}

/* High contrast modes drop background colours, and with them an unframed tick. */
@media (forced-colors: active) {
  .toggle::after, .toggle-all::after { background: CanvasText; }
  .progress::-webkit-progress-value { background: Highlight; }
  .footer { background: Canvas; }
  .selected, :checked + span, [aria-current], [aria-pressed='true'] {
    outline: var(--ring) solid Highlight;
    outline-offset: calc(-1 * var(--ring));
  }
}

@media print {
  :root { color-scheme: light; }
  .banner, .sidebar, .top-bar, .composer, .list-bar, .footer, .toasts, .detail, .grip, .button, .icon-button, .more,
  .trash-view > .soft { display: none !important; }
  .shell { display: block; }
  body { overflow: visible !important; }
}

@media not print {
  .print-note { display: none; }
}
"""

PAGE_JS = r"""// The page of tornado_todo. `saved` is what the server has, `state` what is shown: `saved` with the
// commands that wait to be sent. `render()` brings the document in line with `state`, `command()` makes every
// change, and `sync()` reads everything. The tables BINDINGS, ACTIONS, EVENTS and KEYS connect both sides.
(() => {
  'use strict';

  // ---- Settings ----------------------------------------------------------------------------------------

  const { base: root, version, weather } = document.documentElement.dataset;
  const PAGE_SIZE = 100;
  const MAXIMUM_LIMIT = 1000;
  const MAXIMUM_SELECTED = 200; // of which the ids still fit into an address
  const LONG_PRESS = 500;
  const SWIPE = 80; // pixels
  const CHUNK = 25; // rows that are laid out together
  const TITLE_LENGTH = 500;
  const TAG_LENGTH = 50;
  const MAXIMUM_TAGS = 20;
  const TOAST_MILLISECONDS = 8000;
  const SEARCH_PAUSE = 220;
  const NOTES_PAUSE = 60000; // a session of editing with pauses for thought is one entry of the history
  const SYNC_PAUSE = 200;
  const STASH_PAUSE = 500;
  const READ_PAUSE = 15;
  const DOUBLE_CLICK = 250;
  const PRESS_PATIENCE = 1000;
  const DUE_PAUSE = 2000;
  const RECENT_CHANGES = 200;
  const RECENT_MILLISECONDS = 60 * 60 * 1000;
  const REQUEST_PATIENCE = 20000;
  const CHECK_PATIENCE = 4000;
  const SLOW_START = 1500;
  const COPY_SLICE = 100; // to-dos that are written to it in one task
  const COPY_PAUSE = 2000; // ms after a reading until the copy on the device is renewed
  const COPY_SIZE = 5000; // to-dos in it, those that were changed last
  const MAXIMUM_SILENCE = 35000; // the server sends a heartbeat every 15 s
  const CONNECTIONS_OF_BROWSER = 6; // to one server, with HTTP/1.1
  const LONGEST_RETRY = 30000;
  const REFUSALS_BEFORE_GIVING_UP = 3;
  const SIGNED_OUT = 4401; // the code that the server closes a socket with
  const CLOCK_INTERVAL = 5000;
  const WEATHER_INTERVAL = 15 * 60 * 1000;
  const PRIORITIES = ['None', 'Low', 'Medium', 'High'];
  const ROLES = { viewer: 'read', editor: 'change to-dos' };
  const isApple = /Mac|iPhone|iPad/.test(navigator.platform);
  const narrowScreen = matchMedia('(max-width: 899px)');
  const coveringDetail = matchMedia('(max-width: 719px)');
  const canHover = matchMedia('(hover: hover)');

  // ---- Small helpers -----------------------------------------------------------------------------------

  // The parts of the page are found once: with thousands of rows, looking for each of them takes milliseconds.
  const parts = new Map();

  function find(selector, within = document) {
    if (within !== document || !/^[.#][\w-]+$/.test(selector)) return within.querySelector(selector);
    if (!parts.get(selector)?.isConnected) parts.set(selector, document.querySelector(selector));
    return parts.get(selector);
  }

  const findAll = (selector, within = document) => [...within.querySelectorAll(selector)];
  const sleep = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));
  const byId = (things, id) => things.find(thing => thing.id === id);
  const renewed = (things, id, fields) => things.map(thing => (thing.id === id ? { ...thing, ...fields } : thing));
  const sum = (things, field) => things.reduce((total, thing) => total + thing[field], 0);
  const isSameWord = (one, other) => one.toLowerCase() === other.toLowerCase();

  function debounce(action, pause) {
    let timer = null;
    return () => {
      clearTimeout(timer);
      timer = setTimeout(action, pause);
    };
  }

  // Who calls while the work is under way waits for the same end.
  function shared(work) {
    let running = null;
    return () => (running ??= work().finally(() => (running = null)));
  }

  // A UUIDv7 sorts by its time, as the server's own do. getRandomValues works without https, randomUUID not.
  function newId() {
    const random = [...crypto.getRandomValues(new Uint8Array(10))].map(byte => pad(byte.toString(16))).join('');
    const time = pad(Date.now().toString(16), 12);
    const variant = '89ab'[parseInt(random[18], 16) % 4];
    const parts = [time.slice(0, 8), time.slice(8), `7${random.slice(0, 3)}`, variant + random.slice(3, 6)];
    return [...parts, random.slice(6, 18)].join('-');
  }

  // For what may fail without harm, such as a storage that is forbidden or full.
  function quietly(act, otherwise = null) {
    try {
      return act() ?? otherwise;
    } catch {
      return otherwise;
    }
  }

  const storageKey = key => `tornado_todo.${key}`;
  const remember = (key, value) => quietly(() => localStorage.setItem(storageKey(key), JSON.stringify(value)));
  const recall = (key, otherwise) => quietly(() => JSON.parse(localStorage.getItem(storageKey(key))), otherwise);

  // A query of the parameters that have a value.
  function queryOf(parameters) {
    const filled = Object.entries(parameters).filter(([, value]) => value && value.length !== 0);
    return filled.length ? `?${new URLSearchParams(filled)}` : '';
  }

  const plural = (count, one, many) => `${count} ${count === 1 ? one : many}`;
  const todosText = count => plural(count, 'to-do', 'to-dos');
  const changesText = count => `${plural(count, 'change is', 'changes are')}`;
  const lengthOf = text => [...text].length;
  const oneLine = text => text.replace(/\s*[\r\n]+\s*/g, ' ').trim();

  // A character as people see it: an emoji or a letter with its marks is never cut in two.
  const graphemes = text => Array.from(new Intl.Segmenter().segment(text), ({ segment }) => segment);

  function quoted(title) {
    const parts = graphemes(title);
    return `“${parts.length > 42 ? `${parts.slice(0, 40).join('')}…` : title}”`;
  }

  function shortened(text, length) {
    let kept = '';
    for (const part of graphemes(text)) {
      if (lengthOf(kept + part) > length) break;
      kept += part;
    }
    return kept || [...text].slice(0, length).join('');
  }

  function splitTags(text) {
    const tags = text.split(',').map(part => shortened(part.trim().replace(/^#/, ''), TAG_LENGTH)).filter(Boolean);
    const isFirst = (tag, index) => tags.findIndex(other => isSameWord(other, tag)) === index;
    return tags.filter(isFirst).slice(0, MAXIMUM_TAGS);
  }

  // ---- Elements ----------------------------------------------------------------------------------------
  // A view describes an element: its tag with classes, its properties, its children. Data only ever enters the
  // page as text or as a property, never as markup.

  const h = (name, properties = {}, ...children) => ({ name, properties, children });
  const icon = name => h('svg.icon', { 'aria-hidden': 'true' }, h('use', { href: `#icon-${name}` }));
  const hiddenWords = text => h('span.hidden-words', {}, text);
  const button = (name, properties, ...children) => h(`button.${name}`, { type: 'button', ...properties }, ...children);
  // What a control does: a function of ACTIONS by its name, with the value that it gets, or any function.
  const action = (what, value = null) =>
    typeof what === 'string' ? { 'data-action': what, 'data-value': value } : { 'data-action': '', act: what };
  // A button of which screen readers read more than its text.
  const labelled = (name, label, act, ...children) =>
    button(name, { 'aria-label': label, ...action(act) }, ...children);
  const keyOf = view => view?.properties?.key;

  function isViewOf(view, node) {
    return node?.view !== undefined && keyOf(node.view) === keyOf(view) && node.view.name === view.name;
  }

  // A name with a dot is a class that is there or not, and `children` are views.
  function set(node, name, value) {
    if (name === 'key') return;
    if (name === 'children') patch(node, value);
    else if (name.startsWith('.')) node.classList.toggle(name.slice(1), Boolean(value));
    else if (!/-|^(?:role|list|href)$/.test(name)) {
      if (node[name] !== value) node[name] = value;
    } else if (value === null || value === undefined) node.removeAttribute(name);
    else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
  }

  const setAll = (node, properties) => Object.entries(properties).forEach(([name, value]) => set(node, name, value));

  function create(view) {
    if (typeof view === 'string') return update(document.createTextNode(''), view);
    const [tag, ...classes] = view.name.split('.');
    const isDrawing = ['svg', 'use'].includes(tag);
    const node = isDrawing ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
    if (classes.length) node.setAttribute('class', classes.join(' '));
    return update(node, view);
  }

  function update(node, view) {
    const before = node.view;
    if (before === view) return node;
    node.view = view;
    if (typeof view === 'string') node.data = view;
    else {
      setAll(node, view.properties);
      if (before?.children !== view.children) patch(node, view.children);
    }
    return node;
  }

  // Gives an element the children of these views. Children are kept by key, or else by place, and moved only
  // when they must be, so that focus, selections and running transitions survive. `keyed` finds them.
  function patch(parent, views) {
    const wanted = views.flat(Infinity).filter(Boolean);
    const keys = new Set(wanted.map(keyOf));
    const keyed = new Map();
    for (const node of [...parent.childNodes]) {
      if (keys.has(keyOf(node.view))) keyed.set(keyOf(node.view), node);
      else node.remove();
    }
    let cursor = parent.firstChild;
    for (const view of wanted) {
      const kept = keyOf(view) === undefined ? cursor : keyed.get(keyOf(view));
      const node = isViewOf(view, kept) ? update(kept, view) : create(view);
      keyed.set(keyOf(view), node);
      // A child that was moved to a later place is passed over here, so that the others need not move.
      if (keyOf(cursor?.view) !== undefined && node === cursor.nextSibling) cursor = node;
      if (node === cursor) cursor = cursor.nextSibling;
      else parent.insertBefore(node, cursor);
    }
    while (cursor) {
      const { nextSibling } = cursor;
      cursor.remove();
      cursor = nextSibling;
    }
    parent.keyed = keyed;
  }

  // ---- Links in texts, and Markdown's simple forms in notes ----------------------------------------------
  // Texts become views, never markup, and an address is one of http or https. No part of the expressions can
  // match in two ways, so that they take no longer for a text that was made to be slow.

  const IN_ADDRESS = String.raw`\([^\s<>"()]*\)`;
  const ADDRESS = String.raw`(?<link>https?:\/\/(?:${IN_ADDRESS}|[^\s<>"()])*(?:${IN_ADDRESS}|[^\s<>"().,:;!?'*\]]))`;
  const LINKS = new RegExp(ADDRESS, 'gi');
  const FORMS = new RegExp(String.raw`\x60(?<code>[^\x60\n]+)\x60|\*\*(?<bold>[^*\n]+)\*\*|${ADDRESS}`, 'gi');
  const NOTES_LINE = /^(?<indent> *)(?:[-*+]|(?<number>\d{1,3}[.)])) +(?:\[(?<box>[ xX])\] +)?(?<text>.*)$/;

  function formView({ code, bold, link }) {
    if (code) return h('code', {}, code);
    if (bold) return h('strong', {}, formed(bold, FORMS));
    return h('a', { href: link, target: '_blank', rel: 'noopener noreferrer', dir: 'ltr' }, link);
  }

  function formed(text, forms) {
    let end = 0;
    const views = [...text.matchAll(forms)].flatMap(({ 0: { length }, index, groups }) => {
      const before = text.slice(end, index);
      end = index + length;
      return [before, formView(groups)];
    });
    return [...views, text.slice(end)];
  }

  function notesItem({ indent, box, text }, tick) {
    const views = formed(text, FORMS);
    const task = { type: 'checkbox', checked: box !== ' ', disabled: !tick, ...action(tick ?? '') };
    return h('li', { '.task': box, '.nested': indent.length > 1 },
      box ? h('label.row', {}, h('input', task), h('span', {}, views)) : views);
  }

  // `tick` changes the check box of a line; without it nothing can be changed.
  function notesViews(notes, tick) {
    const blocks = [];
    let isCode = false;
    for (const [number, line] of notes ? notes.split('\n').entries() : []) {
      const isFence = line.startsWith('```');
      const item = !isCode && NOTES_LINE.exec(line)?.groups;
      const name = isCode || isFence ? 'pre' : !item ? 'p' : item.number ? 'ol' : 'ul';
      if (isFence) isCode = !isCode;
      if (isFence ? isCode : blocks.at(-1)?.name !== name) blocks.push({ name, lines: [] });
      if (!isFence) blocks.at(-1).lines.push(item ? notesItem(item, tick && (() => tick(number))) : line);
    }
    const contents = { p: lines => formed(lines.join('\n'), FORMS), pre: lines => lines.join('\n') };
    return blocks.map(({ name, lines }) => h(name, {}, contents[name]?.(lines) ?? lines));
  }

  // ---- State -------------------------------------------------------------------------------------------

  // What the server has, as far as it was read.
  const saved = {
    lists: [],
    trashedLists: [],
    filters: [],
    items: [],
    comments: [], // of the to-do of the details
    next: null, // the query of the page after those that were read
    matching: { active: 0, completed: 0, capped: false },
    open: null, // the to-do of the details
    subtasks: [], // of that one
    parents: new Map(), // the to-dos with subtasks by their ids, with the numbers of these
  };

  const state = {
    ...saved,
    view: null,
    viewCounts: {}, // of views of the sidebar, by kind
    tags: [], // with the numbers of their active to-dos
    loaded: false,
    loading: true, // from the start: an earlier command does not end it
    problem: null,
    stale: '', // what has to be read again in a quiet moment: 'counts' or 'all'
    editing: null,
    isPrinting: false,
    selected: new Set(), // ids
    anchor: null, // the id from which Shift selects
    drag: null,
    hasDrawer: false,
    members: {}, // names of the members of shared lists, as far as they were read
    commenting: null, // the id of the comment that is edited
    history: [],
    nextHistory: null, // the query of the page after those that are shown
    writes: 0,
    undoable: [],
    redoable: [],
    ownBatches: new Set(),
    away: null, // while the server can't be reached: the reason, and the seconds until the next attempt
    hasKept: false, // whether changes that were kept meanwhile may still have to be sent
    hasOwnLists: false, // whether the reader of a link has lists to go back to
    revision: null,
    weather: null,
    collections: {}, // the entries of dialogs, by kind
    secret: null, // a new token or link, shown once
  };

  // One command is sent at a time: the order of acts is kept, an undo never overtakes its act, and while the
  // server is away everything simply waits.
  const queue = { jobs: [], running: false, idle: Promise.resolve() };
  const gate = { resolve: null, session: {}, isSignUp: false };
  // Typed texts that are neither in a field nor in a command, each with its cause: 'field' waits until its field is
  // shown again, 'view' is of an earlier page and waits for the view, 'page' for the next page, as the box for new
  // to-dos is filled, and after an Error the user chooses.
  const waiting = new Map();

  function project() {
    const draft = { ...saved, lists: saved.lists.map(list => ({ ...list })), matching: { ...saved.matching } };
    draft.parents = new Map(saved.parents);
    state.lists = draft.lists;
    shown = null;
    for (const job of queue.jobs) job.apply?.(draft);
    if (draft.open) draft.open = itemIn(draft, draft.open.id);
    Object.assign(state, draft);
  }

  function keep(fields) {
    Object.assign(saved, fields);
    project();
  }

  // A link's address holds its secret behind the #, which is never part of a request.
  const linkOf = hash => /^#\/link\/([\w.~-]+)/.exec(hash)?.[1] ?? null;
  const inviteOf = hash => /^#\/sign-up\/([\w.~-]+)/.exec(hash)?.[1] ?? null;

  // The user or link. A page never changes it: for another one it is reloaded.
  const access = { session: null, link: linkOf(location.hash), hasForgotten: false, leaving: false, renewing: null };
  const inbox = ({ lists } = state) => lists.find(list => list.inbox);
  const listById = id => byId(state.lists, id);
  const listOf = (item, draft = state) => (item.list ? byId(draft.lists, item.list) : inbox(draft));
  const itemIn = (draft, id) =>
    byId(draft.items, id) ?? (draft.open?.id === id ? draft.open : byId(draft.subtasks, id));
  const itemById = id => itemIn(state, id);
  const isTrash = () => state.view.kind === 'trash';
  const viewNow = () => VIEWS[state.view.kind];
  const filterNow = () => byId(saved.filters, state.view.filter);
  const filterParameters = () => new URLSearchParams(filterNow()?.query);

  function currentList() {
    if (state.view.kind !== 'list') return null;
    if (access.link) return state.lists[0] ?? null;
    return state.view.list === null ? (inbox() ?? null) : (listById(state.view.list) ?? null);
  }

  function viewTitle() {
    const otherwise = state.view.list === null && !access.link ? 'Inbox' : 'List';
    return (filterNow() ?? currentList() ?? viewNow()).title ?? otherwise;
  }

  // A shared list has its owner's rules; a to-do whose list isn't known is the user's own.
  const isOthers = list => ['editor', 'viewer'].includes(list?.role);
  const isLockedList = list => list?.role === 'viewer' || access.link !== null;
  const isLocked = item => isLockedList(listOf(item));
  const isLockedView = () => isLockedList(currentList());
  const isShared = list => Boolean(list?.shared) || isOthers(list);

  // An editor changes the to-dos of a list, but can't move them out of the owner's lists.
  function mayMove(item, list) {
    const from = listOf(item);
    return from === list || (!isLockedList(list) && (!isOthers(from) || from.owner === list.owner));
  }

  function shareWords(list) {
    return isOthers(list) ? `${list.owner} shares this list with you${list.role === 'viewer' ? ' to read' : ''}.` : '';
  }

  const lockWords = item => shareWords(listById(item.list)) || 'This is read-only.';

  // Explains why nothing happens when a key or a finger would change something read-only.
  function refuses(item) {
    if (isLocked(item)) announce(lockWords(item));
    return isLocked(item);
  }

  // ---- Days and times ----------------------------------------------------------------------------------

  const pad = (number, size = 2) => String(number).padStart(size, '0');
  const dayText = date => `${pad(date.getFullYear(), 4)}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}`;
  const timeText = date => `${pad(date.getHours())}:${pad(date.getMinutes())}`;

  function formatter(options) {
    const format = new Intl.DateTimeFormat(undefined, options);
    return date => format.format(new Date(date));
  }

  const clockFormat = formatter({ hour: 'numeric', minute: '2-digit' });
  const weekdayFormat = formatter({ weekday: 'long' });
  const shortWeekdayFormat = formatter({ weekday: 'short' });
  const monthFormat = formatter({ month: 'long' });
  const dayFormat = formatter({ day: 'numeric', month: 'short' });
  const yearFormat = formatter({ day: 'numeric', month: 'short', year: 'numeric' });
  const fullFormat = formatter({ dateStyle: 'medium', timeStyle: 'short' });
  const todayFormat = formatter({ weekday: 'long', day: 'numeric', month: 'long' });
  const relativeFormat = new Intl.RelativeTimeFormat(undefined, { numeric: 'auto' });

  // The days of the view Today, and of due dates in every filter and order, are those of the user's zone.
  const readersZone = () => new Intl.DateTimeFormat().resolvedOptions().timeZone ?? '';
  const zoneAtStart = readersZone();
  let zone = zoneAtStart;
  const zoneQuery = () => queryOf({ tz: zone });

  function dayFromNow(days, from = Date.now()) {
    const date = new Date(from);
    date.setDate(date.getDate() + days);
    return dayText(date);
  }

  const midnightOf = day => new Date(`${day}T00:00:00`);

  // A bare date is a day in the reader's own calendar, a date with a time is a moment.
  const dueMoment = due => (due.includes('T') ? new Date(due) : midnightOf(due));

  const dueTexts = new Map(); // what is shown for a due date, and until when

  function friendlyDue(due) {
    const known = dueTexts.get(due);
    if (known?.until > Date.now()) return known;
    const moment = dueMoment(due);
    const midnight = midnightOf(dayFromNow(0));
    const days = Math.round((midnightOf(dayText(moment)) - midnight) / 86400000);
    const isTimed = due.includes('T');
    const isLate = days < 0 || (isTimed && moment < new Date());
    const near = { '-1': 'Yesterday', 0: 'Today', 1: 'Tomorrow' }[days];
    const plain = moment.getFullYear() === midnight.getFullYear() ? dayFormat : yearFormat;
    const words = near ?? (days > 1 && days < 7 ? weekdayFormat : plain)(moment);
    const tone = isLate ? 'overdue' : days === 0 ? 'today' : '';
    const until = Math.min(midnightOf(dayFromNow(1)), isTimed && !isLate ? moment : Infinity);
    dueTexts.set(due, { text: isTimed ? `${words}, ${clockFormat(moment)}` : words, tone, until });
    return dueTexts.get(due);
  }

  function timeAgo(at) {
    const seconds = (new Date(at) - Date.now()) / 1000;
    if (Math.abs(seconds) < 45) return 'just now';
    for (const [unit, size, limit] of [['minute', 60, 3600], ['hour', 3600, 86400], ['day', 86400, 7 * 86400]])
      if (Math.abs(seconds) < limit) return relativeFormat.format(Math.round(seconds / size), unit);
    return fullFormat(at);
  }

  // The words move on with the clock, see `tick`.
  const agoTime = at => h('time.ago', { dateTime: at, title: fullFormat(at) }, timeAgo(at));

  // The server takes a time only with its offset, so the offset of that very moment is worked out. A time
  // that daylight saving skips is the moment that the clock shows after it: 2:30 is 3:30.
  function dueOf(day, time) {
    if (!day || !time) return day || null;
    const moment = new Date(`${day}T${time}`);
    const offset = -moment.getTimezoneOffset();
    const size = Math.abs(offset);
    const sign = offset < 0 ? '-' : '+';
    const tail = offset ? `${sign}${pad(Math.floor(size / 60))}:${pad(size % 60)}` : 'Z'; // as the server has it
    return `${dayText(moment)}T${timeText(moment)}:00${tail}`;
  }

  // ---- Repeats: rules as the server has them, such as FREQ=MONTHLY;BYDAY=-1FR ----------------------------

  const UNITS = { DAILY: 'day', WEEKLY: 'week', MONTHLY: 'month', YEARLY: 'year' };
  const WEEKDAYS = ['MO', 'TU', 'WE', 'TH', 'FR', 'SA', 'SU'];
  const WORKDAYS = String(WEEKDAYS.slice(0, 5));
  const ORDINALS = { '-1': 'last', 1: 'first', 2: 'second', 3: 'third', 4: 'fourth' };
  const listed = new Intl.ListFormat('en');
  const hasDates = unit => ['MONTHLY', 'YEARLY'].includes(unit);

  const readRule = rule => Object.fromEntries((rule || 'FREQ=').split(';').map(part => part.split('=')));
  const ruleText = parts => Object.entries(parts).map(part => part.join('=')).join(';');

  // The first of January 2024 was a Monday.
  const weekdayName = (code, format = weekdayFormat) => format(new Date(2024, 0, 1 + WEEKDAYS.indexOf(code.slice(-2))));

  // The words for the days of a rule, by its parts BYDAY, BYMONTHDAY and BYMONTH.
  function ruleDays({ BYDAY, BYMONTHDAY, BYMONTH }) {
    const weekday = code => `${code.length > 2 ? `the ${ORDINALS[code.slice(0, -2)]} ` : ''}${weekdayName(code)}`;
    const day = number => (number === '-1' ? 'the last day' : `day ${number}`);
    if (BYMONTH && BYMONTHDAY > 0) return dayFormat(new Date(2024, BYMONTH - 1, BYMONTHDAY)); // a leap year
    const days = BYDAY?.split(',').map(weekday) ?? BYMONTHDAY?.split(',').map(day) ?? [];
    return listed.format(days) + (BYMONTH ? ` of ${monthFormat(new Date(2024, BYMONTH - 1))}` : '');
  }

  const untilDay = until => until.replace(/^(\d{4})(\d\d)(\d\d).*/, '$1-$2-$3');

  function repeatWords(rule) {
    const { FREQ, INTERVAL = 1, COUNT, UNTIL, FROM, ...on } = readRule(rule);
    const isWorkdays = on.BYDAY === WORKDAYS && INTERVAL === 1;
    const days = !isWorkdays && ruleDays(on);
    return [
      INTERVAL > 1 ? `Every ${INTERVAL} ${UNITS[FREQ]}s` : `Every ${isWorkdays ? 'weekday' : UNITS[FREQ]}`,
      days && ` on ${days}`,
      FROM && ' from when it is done',
      COUNT && `, ${plural(COUNT, 'time', 'times')}`,
      UNTIL && `, until ${yearFormat(midnightOf(untilDay(UNTIL)))}`,
    ].filter(Boolean).join('');
  }

  // A rule as the texts of the inputs of its fieldset, and back.
  function showRepeat(rule) {
    const { FREQ, INTERVAL = '1', COUNT = '', UNTIL = '', FROM = '', ...on } = readRule(rule);
    const days = FREQ === 'WEEKLY' ? (on.BYDAY ?? '').split(',') : [];
    const end = COUNT ? 'COUNT' : UNTIL && 'UNTIL';
    return [
      on.BYDAY === WORKDAYS && INTERVAL === '1' ? WORKDAYS : FREQ,
      INTERVAL,
      FREQ === 'WEEKLY' ? '' : ruleText(on),
      ...WEEKDAYS.map(day => (days.includes(day) ? day : '')),
      end, COUNT, UNTIL && untilDay(UNTIL), FROM,
    ];
  }

  function readRepeat([unit, interval, on, ...more]) {
    const isWorkdays = unit === WORKDAYS;
    const days = isWorkdays ? WORKDAYS : unit === 'WEEKLY' && more.slice(0, 7).filter(Boolean).join();
    const [end, count, until, from] = more.slice(7);
    const parts = [
      `FREQ=${isWorkdays ? 'WEEKLY' : unit}`,
      interval > 1 && !isWorkdays && `INTERVAL=${interval}`,
      hasDates(unit) && on,
      days && `BYDAY=${days}`,
      end === 'COUNT' && count && `COUNT=${count}`,
      end === 'UNTIL' && until && `UNTIL=${until.replaceAll('-', '')}`,
      from && `FROM=${from}`,
    ];
    return unit ? parts.filter(Boolean).join(';') : null;
  }

  // The choice between days of a month that fit the due date, and those that the rule has already.
  function repeatOn({ due, repeat }) {
    const { value } = find('.repeat-on');
    const field = find('.repeat-field');
    const isChosen = drafts.get(field)?.id === state.open.id && isTyped(field);
    const [known, , on] = showRepeat(repeat);
    const unit = isChosen ? find('.repeat-unit').value : known;
    const day = due ? dueMoment(due) : new Date();
    const weekday = WEEKDAYS[(day.getDay() + 6) % 7];
    const ordinal = Math.ceil(day.getDate() / 7);
    const isLast = new Date(day.getFullYear(), day.getMonth(), day.getDate() + 7).getMonth() !== day.getMonth();
    const fitting = [ordinal < 5 && `BYDAY=${ordinal}${weekday}`, isLast && `BYDAY=-1${weekday}`, 'BYMONTHDAY=-1'];
    // What is shown stays until the field is filled, or it would count as typed.
    const values = new Set([...(unit === 'MONTHLY' ? fitting : []), unit === known && on, !isChosen && value]);
    const days = [...values].filter(Boolean).map(each => option(each, `on ${ruleDays(readRule(each))}`));
    return { children: [option('', 'on its day'), ...days], value: values.has(value) ? value : '' };
  }

  // ---- The server --------------------------------------------------------------------------------------

  class Problem extends Error {
    constructor(status, detail, retryAfter = null, errors = []) {
      super(detail);
      const isAbsence = [0, 502, 504].includes(status); // a gateway's error: the server behind it is unavailable
      const isTemporary = isAbsence || [429, 503].includes(status);
      Object.assign(this, { status, retryAfter, errors, isAbsence, isTemporary });
    }
  }

  async function problemOf(response) {
    const told = await response.json().catch(() => ({})); // not every proxy answers in JSON
    const errors = (told.errors ?? []).filter(error => error.message);
    const words = errors.map(error => error.message).join(' ');
    const detail = told.detail || words || told.title || `The server answered ${response.status}.`;
    return new Problem(response.status, detail, Number(response.headers.get('Retry-After')) || null, errors);
  }

  // Problems are shown; any other error is a fault of the page.
  function expected(error) {
    if (!(error instanceof Problem)) throw error;
    return error;
  }

  // With a link, requests use only its token, except those for the user who opened it (asSelf).
  async function send(method, path, { body, headers, asSelf = false, patience = REQUEST_PATIENCE } = {}) {
    // A page that is being left has no user any more and must not act for the next one.
    if (access.leaving) await new Promise(() => {});
    const text = JSON.stringify(body);
    const options = { method, body: text, headers: new Headers({ Accept: 'application/json', ...headers }) };
    if (text) options.headers.set('Content-Type', 'application/json');
    if (access.link && !asSelf) options.headers.set('Authorization', `Bearer ${access.link}`);
    // A write outlives the page that sent it; browsers allow that for small bodies only.
    options.keepalive = method !== 'GET' && (text ?? '').length < 16000;
    const response = await fetchInTime(root + path, options, patience);
    const isOurs = response.status === 204 || response.headers.get('Content-Type')?.includes('json');
    if (response.ok && !isOurs) throw new Problem(0, 'The network answers for the server. It may want a sign-in.');
    if (response.ok) return response;
    const problem = await problemOf(response);
    // A wrong password is reported at its field, or when signing in; any other 401 is the end of the session.
    if (problem.status === 401 && !problem.errors.length && path !== '/api/session') noteSignedOut();
    throw problem;
  }

  const requests = new Set();

  async function fetchInTime(address, options, patience) {
    const abort = new AbortController();
    const request = { method: options.method, started: Date.now(), abort };
    const timer = setTimeout(() => abort.abort(), patience);
    requests.add(request);
    try {
      const response = await fetch(address, { ...options, signal: abort.signal });
      const body = await response.blob(); // in time as well
      return new Response(body.size ? body : null, response);
    } catch {
      throw new Problem(0, 'The server can’t be reached.');
    } finally {
      clearTimeout(timer);
      requests.delete(request);
    }
  }

  // On a dead connection, waiting is useless: reading begins again, and so does a late write.
  function abortRequests() {
    const isLate = ({ started }) => Date.now() - started >= CHECK_PATIENCE;
    for (const request of requests) if (request.method === 'GET' || isLate(request)) request.abort.abort();
  }

  async function getJson(path, options) {
    const response = await send('GET', path, options);
    return response.json();
  }

  // Only the query of the next page's address is used: behind a proxy its host may be another than ours.
  async function getPage(path) {
    const response = await send('GET', path);
    const match = /<([^>]+)>;\s*rel="?next"?/.exec(response.headers.get('Link') ?? '');
    return { items: await response.json(), next: match ? new URL(match[1], location.href).search : null };
  }

  async function getParents(query = '') {
    const { items, next } = await getPage(`/api/parents${query}`);
    return next ? [...items, ...(await getParents(next))] : items;
  }

  async function getTodos(query) {
    try {
      return await getPage(`/api/todos${query}`);
    } catch (error) {
      // A zone that this server does not know, such as one that is newer than its own table: days are UTC's then.
      if (!zone || !error.errors?.some(({ field }) => field === 'tz')) throw error;
      zone = '';
      const parameters = new URLSearchParams(query);
      parameters.delete('tz');
      return getTodos(`?${parameters}`);
    }
  }

  // ---- Away and back -----------------------------------------------------------------------------------

  let wakeUp = Promise.withResolvers();

  // Everything that waits for another attempt continues at once.
  function wakeRetry() {
    wakeUp.resolve();
    wakeUp = Promise.withResolvers();
  }

  const waitForRetry = milliseconds => Promise.race([sleep(milliseconds), wakeUp.promise]);

  // Jitter keeps many pages from coming back in the same instant.
  const backoff = attempt => Math.min(LONGEST_RETRY, 500 * 2 ** attempt) * (0.6 + Math.random() * 0.4);

  const pauseAfter = ({ retryAfter }, attempt) => (retryAfter ? Math.min(retryAfter, 5) * 1000 : backoff(attempt));

  // Tries until the server answers. The banner shows from attempt `quiet` on that it does not.
  async function patiently(act, { attempt = 0, quiet = 1 } = {}) {
    for (let number = attempt; ; number += 1) {
      try {
        const answer = await act();
        showBack();
        return answer;
      } catch (error) {
        if (!expected(error).isTemporary) throw error;
        const pause = pauseAfter(error, number);
        if (number >= quiet) {
          state.away = { detail: error.message, seconds: Math.max(1, Math.round(pause / 1000)) };
          state.hasKept = true;
          render();
        }
        await waitForRetry(pause);
      }
    }
  }

  function showBack() {
    if (!state.away) return;
    state.away = null;
    render();
    announce('Connected again.');
    wakeRetry();
    if (!access.session) return; // the start is still waiting for its answer, and continues automatically
    if (state.loaded) want('all');
    else sync({ moved: true });
    if (live.socket === null) connect();
  }

  function awayWords() {
    if (!state.away) return 'Connected again. Sending what was kept here …';
    const waiting = queue.jobs.length;
    const kept = waiting ? ` ${changesText(waiting)} kept here and will be sent.` : '';
    return `${state.away.detail}${kept} Trying again in ${state.away.seconds} s.`;
  }

  // Waits for a server that does not answer, and goes on with what was left undone.
  const probe = shared(async () => {
    const quiet = queue.running ? Infinity : 0; // the queue's own attempts show it
    const ask = () => send('GET', '/api/health/live', { patience: 2 * CHECK_PATIENCE });
    await patiently(ask, { attempt: live.attempt, quiet }).catch(expected);
    showBack();
    if (state.problem?.isTemporary) sync({ moved: true });
    else want();
    // A socket that is refused from the start doesn't report that the session has ended.
    if (live.socket === null) checkSession();
  });

  // ---- Commands ----------------------------------------------------------------------------------------
  // A command has the request, the words of its undo, and `apply`: that is done to what is shown at once, and to
  // what the server has when it has accepted the command. One that fails is simply left out from then on.

  function command(job) {
    state.writes += 1;
    if (job.words) Object.assign(state, { undoable: [...state.undoable.slice(-99), job], redoable: [] });
    queue.jobs.push(job);
    project();
    stash();
    render();
    if (!queue.running) queue.idle = runQueue();
  }

  async function runQueue() {
    queue.running = true;
    const started = Date.now();
    showBusy();
    while (queue.jobs.length) {
      const [job] = queue.jobs;
      try {
        const response = await deliver(job);
        const answer = response.status === 204 ? null : await response.json();
        queue.jobs.shift();
        finish(job, answer, response.headers.get('Change-Batch') ?? answer?.batch ?? null);
      } catch (error) {
        if (queue.jobs[0] === job) queue.jobs.shift();
        fail(job, error);
      }
      project();
      stash();
      if (state.hasKept) render();
    }
    queue.running = false;
    showBusy();
    render();
    want('counts');
    // The socket reports one's own writes as well, if it works.
    setTimeout(() => live.heard < started && catchUp(), CHECK_PATIENCE);
  }

  function showBusy() {
    find('.todoapp').setAttribute('aria-busy', String(queue.running || state.loading));
  }

  function sendJob(job) {
    job.sent = true;
    const { method, path, ...more } = requestOf(job);
    return send(method, path, more);
  }

  async function attempt(job, outdated) {
    if (outdated && !(await job.recheck())) throw outdated;
    const timer = setTimeout(catchUp, CHECK_PATIENCE);
    return sendJob(job).finally(() => clearTimeout(timer));
  }

  async function deliver(job) {
    let refusals = 0;
    let { outdated } = job;
    for (;;) {
      try {
        return await patiently(() => attempt(job, outdated));
      } catch (error) {
        const isSignedOut = error.status === 401 && Boolean(access.session?.accounts) && !access.link;
        if (isSignedOut) refusals += 1;
        if (error.status === 412 && job.recheck && error !== outdated) outdated = error;
        else if (isSignedOut && refusals <= REFUSALS_BEFORE_GIVING_UP) await regainSession();
        else throw error;
      }
    }
  }

  function finish(job, answer, batch) {
    if (batch) state.ownBatches.add(batch);
    else forgetAct(job); // nothing was changed
    job.batch = batch;
    job.apply?.(saved);
    if (job.kind && answer) absorb(job.kind, answer);
    if (job.rereads) state.stale = 'all';
    job.accept?.(answer, batch);
    if (job.said) announce(job.said);
    if (job.toast) showToast(job.toast);
    if (job.offersUndo && state.undoable.includes(job)) showToast(job.words, { label: 'Undo', act: () => undo(job) });
  }

  function fail(job, error) {
    forgetAct(job);
    project();
    if (!job.failed?.(error)) showToast(error.message, { tone: 'bad' });
    if (!(error instanceof Problem)) console.error(error);
    state.stale = 'all';
  }

  // A closing page can't wait for one answer before the next request, so what is left goes out at once.
  function flushQueue() {
    // Another user may have signed in meanwhile.
    if (gate.resolve || access.leaving) return;
    // A text that another user has changed as well has no request; it waits for the next start, see `stash`.
    for (const job of queue.jobs.filter(({ sent }) => !sent)) quietly(() => sendJob(job))?.catch(() => {});
  }

  // The parts of a command that creates something once, even if it is sent again, also by the next page.
  function postedOnce(path, body) {
    return { request: { method: 'POST', path, body, headers: { 'Idempotency-Key': newId() } } };
  }

  // ---- What commands do to what is shown, and to what the server has -----------------------------------

  const seen = new Map(); // the server's version of what is edited, also where the view does not have it

  const savedThing = (kind, id) => (kind === 'lists' ? byId(saved.lists, id) : itemIn(saved, id)) ?? seen.get(id);

  function absorb(kind, thing) {
    seen.set(thing.id, thing);
    const renew = each => (each.id === thing.id ? { ...each, pending: false, ...thing } : each);
    if (kind !== 'todos') saved[kind] = saved[kind].map(renew);
    else for (const name of ['items', 'subtasks']) saved[name] = saved[name].map(renew);
    if (saved.open?.id === thing.id) saved.open = renew(saved.open);
    project();
  }

  function count(draft, item, change) {
    const field = item.completed ? 'completed' : 'active';
    for (const counted of [listOf(item, draft), draft.matching])
      if (counted) counted[field] = Math.max(0, counted[field] + change);
    const above = draft.parents.get(item.parent) ?? (item.parent && itemIn(draft, item.parent));
    if (!above) return;
    const { id, subtasks = 0, done = 0 } = above;
    draft.parents.set(id, { ...above, subtasks: subtasks + change, done: done + (item.completed ? change : 0) });
  }

  const isParent = (item, draft = state) => draft.parents.get(item.id)?.subtasks > 0;

  // The subtasks of a to-do that are on the page, in the trash also those of others there.
  const subtasksIn = (draft, item) =>
    isTrash() || isParent(item, draft)
      ? [...draft.items, ...draft.subtasks].filter(({ parent }) => parent === item.id)
      : [];

  function noteSubtask(draft, item) {
    const known = draft.subtasks.map(each => (each.id === item.id ? item : each));
    const all = byId(known, item.id) ? known : [...known, item];
    draft.subtasks = all.filter(({ parent }) => draft.open && parent === draft.open.id);
  }

  function insertIn(draft, item) {
    if (itemIn(draft, item.id)) return;
    count(draft, item, +1);
    noteSubtask(draft, item);
    // A new to-do comes last, or first where the newest come first. Before the end of a long list is loaded
    // its place isn't on the page.
    const isFirst = sortOf() === '-created_at';
    const hasPlace = isFirst || draft.next === null || (isTree() && byId(draft.items, item.parent));
    if (!belongs(item) || state.view.q !== '' || !hasPlace) return;
    draft.items = isFirst ? [item, ...draft.items] : [...draft.items, item];
  }

  function changeIn(draft, kind, id, fields) {
    if (kind !== 'todos') {
      draft[kind] = renewed(draft[kind], id, fields);
      return;
    }
    const before = itemIn(draft, id);
    if (!before) return;
    const isTaken = Boolean(fields.list) && fields.list !== before.list; // to another list, with its subtasks
    const after = { ...before, ...(isTaken && { parent: null }), ...fields };
    count(draft, before, -1);
    count(draft, after, +1);
    if (draft.open?.id === id) draft.open = after;
    noteSubtask(draft, after);
    const place = draft.items.indexOf(before);
    if (place >= 0) draft.items = belongs(after) ? draft.items.with(place, after) : draft.items.toSpliced(place, 1);
    for (const each of isTaken ? subtasksIn(draft, after) : [])
      changeIn(draft, kind, each.id, { list: fields.list, parent: id });
  }

  function removeIn(draft, name, id) {
    const gone = byId(draft[name], id) ?? (name === 'items' ? itemIn(draft, id) : undefined);
    if (gone && name === 'items' && !isTrash()) count(draft, gone, -1);
    draft[name] = draft[name].filter(thing => thing.id !== id);
    if (!gone || name !== 'items') return;
    draft.subtasks = draft.subtasks.filter(each => each.id !== id);
    for (const each of subtasksIn(draft, gone)) removeIn(draft, name, each.id);
  }

  function moveIn(draft, id, previous, following) {
    const item = byId(draft.items, id);
    if (!item) return;
    const items = draft.items.filter(other => other !== item);
    const after = items.findIndex(other => other.id === previous) + 1;
    const before = items.findIndex(other => other.id === following);
    draft.items = items.toSpliced(after || (before < 0 ? items.length : before), 0, item);
  }

  // ---- Views -------------------------------------------------------------------------------------------

  const dayOf = due => (due?.includes('T') ? dayText(dueMoment(due)) : (due ?? ''));
  const dueDay = item => dayOf(item.due);
  const hasStarted = item => !item.start || dayOf(item.start) <= dayFromNow(0);
  const untilToday = () => `..${dayFromNow(0)}`;

  // From this table follow the sidebar, titles, queries and words. `query` has the view's filters for the server,
  // and `has` decides the same here. `group` is the heading of a to-do: a day, or '' for those that are overdue;
  // `days` are the headings that are shown without any. A new to-do gets the `fields`.
  const VIEWS = {
    list: {
      query: () => ({ ...(currentList() && { list: currentList().id }), start: untilToday() }),
      has: item => hasStarted(item) && (!currentList() || !item.list || item.list === currentList().id),
      fields: () => (state.view.list === null ? {} : { list: state.view.list }),
    },
    today: {
      title: 'Today',
      icon: 'today',
      sort: 'due',
      counts: true,
      query: () => ({ due: untilToday(), start: untilToday() }),
      has: item => Boolean(item.due) && dueDay(item) <= dayFromNow(0) && hasStarted(item),
      group: item => (dueDay(item) < dayFromNow(0) ? '' : dayFromNow(0)),
      days: () => [],
      fields: () => ({ due: dayFromNow(0) }),
      empty: ['Clear skies', 'Nothing is due today, and nothing is late.'],
    },
    upcoming: {
      title: 'Upcoming',
      icon: 'calendar',
      sort: 'due',
      query: () => ({ due: `${dayFromNow(0)}..` }),
      has: item => dueDay(item) >= dayFromNow(0),
      group: dueDay,
      days: () => [0, 1, 2, 3, 4, 5, 6].map(days => dayFromNow(days)),
      fields: () => ({ due: dayFromNow(0) }),
      empty: ['Nothing ahead', 'No to-do has a date from today on.'],
    },
    later: {
      title: 'Later',
      icon: 'later',
      counts: true,
      isOptional: true, // in the sidebar only with to-dos
      query: () => ({ start: `${dayFromNow(1)}..` }),
      has: item => !hasStarted(item),
      fields: () => ({ start: dayFromNow(1) }),
      empty: ['Nothing waits', 'A to-do with a later start is kept here until that day.'],
    },
    assigned: {
      title: 'Assigned to me',
      icon: 'person',
      counts: true,
      isOptional: true,
      query: () => ({ assignee: 'me' }),
      has: item => item.assignee === access.session?.user,
      fields: () => ({ assignee: access.session?.user }),
      empty: ['Nothing is assigned to you', 'In a shared list, the details of a to-do say who is to do it.'],
    },
    all: { title: 'Everything', icon: 'all', query: () => ({ start: untilToday() }), has: hasStarted },
    filter: { title: 'Filter', query: filterParameters, isHidden: true }, // it has places of its own
    trash: { title: 'Trash', query: () => ({ deleted: 'true' }), sort: '-updated_at', isHidden: true },
  };

  const dayTitleFormat = formatter({ weekday: 'long', day: 'numeric', month: 'short' });

  function groupTitle(day) {
    if (!day) return 'Overdue';
    const { text } = friendlyDue(day);
    const full = dayTitleFormat(midnightOf(day));
    return dayFromNow(2) > day ? `${text} · ${full}` : full;
  }

  const recallHere = (name, key = viewKey()) => recall(name, {})[key];
  const rememberHere = (name, value) => remember(name, { ...recall(name, {}), [viewKey()]: value });
  const isDoneOpen = () => recallHere('done') === true;

  // A list in the user's own order shows subtasks below their parents.
  const isTree = () =>
    state.view.kind === 'list' && sortOf() === 'order' && !searched() && state.view.tags.length === 0;

  let tree = new Map(); // by to-do: its depth, the shown parent's id, and whether its subtasks are shown, if it has any

  // To-dos in the sequence of their tree, in O(n); one whose parent is not among them stands by itself.
  function inTree(items) {
    if (!isTree() || !items.some(({ parent }) => parent)) return items;
    const ids = new Set(items.map(({ id }) => id));
    const aboveOf = ({ parent }) => (ids.has(parent) ? parent : null);
    const below = Map.groupBy(items, aboveOf);
    const closed = new Set(recall('closed', []));
    const found = [];
    const place = (item, depth, isShown) => {
      if (tree.has(item)) return;
      const lower = below.get(item.id) ?? [];
      // Completed parents hide nothing that is open.
      const isOpen = !closed.has(item.id) || (item.completed && lower.some(each => !each.completed));
      tree.set(item, { depth, above: aboveOf(item), isOpen: lower.length ? isOpen : undefined });
      if (isShown) found.push(item);
      for (const each of lower) place(each, depth + 1, isShown && isOpen);
    };
    // Those that are left over have each other as parents, while two windows move them at once.
    for (const item of [...(below.get(null) ?? []), ...items]) place(item, 1, true);
    return found;
  }

  function toggleBranch({ id }, isOpen) {
    const rest = recall('closed', []).filter(other => other !== id);
    remember('closed', isOpen ? rest : [...rest, id].slice(-MAXIMUM_LIMIT));
    render();
  }

  let shown = null; // the groups, until anything changes
  const groups = () => (shown ??= makeGroups());

  // The to-dos of the view with the headings that they stand under.
  function makeGroups() {
    tree = new Map();
    const { group, days, sort } = viewNow();
    const isDone = item => state.view.show === 'active' && item.completed;
    const open = state.items.filter(item => !isDone(item));
    const { completed } = counts();
    const found = [{ key: 'all', items: inTree(open) }];
    if (group && sortOf() === sort) {
      const byDay = Map.groupBy(open, group);
      const filled = new Set([...(searched() || !state.loaded ? [] : days()), ...byDay.keys()]);
      const ofDay = day => ({ key: `day${day}`, day, title: groupTitle(day), items: byDay.get(day) ?? [] });
      found.splice(0, 1, ...[...filled].sort().map(ofDay));
    }
    if (state.view.show !== 'active' || completed === 0) return found;
    const items = isDoneOpen() ? inTree(state.items.filter(isDone)) : [];
    return [...found, { key: 'done', title: `Completed (${completed})`, isOpen: isDoneOpen(), items }];
  }

  function toggleDone() {
    rememberHere('done', !isDoneOpen());
    sync({ moved: true });
  }

  const plainView = { kind: 'list', list: null, filter: null, show: 'all', q: '', tags: [] };

  function parseHash(hash) {
    const [path, query = ''] = hash.replace(/^#\/?/, '').split('?');
    const parts = path.split('/').filter(Boolean);
    const parameters = new URLSearchParams(query);
    const view = { ...plainView, q: parameters.get('q') ?? '', tags: parameters.getAll('tag') };
    if (parts[0] === 'link') parts.splice(0, 2);
    else if (parts[0] === 'list') [, view.list = null] = parts.splice(0, 2);
    else if (Object.hasOwn(VIEWS, parts[0])) view.kind = parts.shift();
    if (view.kind === 'filter') view.filter = parts.shift() ?? null;
    if (['active', 'completed'].includes(parts[0])) [view.show] = parts;
    return view;
  }

  function hashOf(view) {
    const parts = access.link ? ['link', access.link] : [];
    if (view.kind !== 'list') parts.push(view.kind);
    else if (view.list !== null) parts.push('list', view.list);
    if (view.filter) parts.push(view.filter);
    if (view.show !== 'all' && view.kind !== 'trash') parts.push(view.show);
    const parameters = new URLSearchParams(view.tags.map(tag => ['tag', tag]));
    if (view.q) parameters.set('q', view.q);
    const query = parameters.toString();
    return `#/${parts.join('/')}${query ? `?${query}` : ''}`;
  }

  const todoOf = hash => /^#\/(?:link\/[^/]+\/)?todo\/([\w-]+)/.exec(hash)?.[1] ?? null;
  const hashOfTodo = ({ id }) => `#/${access.link ? `link/${access.link}/` : ''}todo/${id}`;
  // The server counts whole lists; what a filter leaves of them is counted separately.
  const isNarrow = () => ['today', 'upcoming', 'later', 'filter'].includes(state.view.kind);
  const isFiltered = () =>
    state.view.q !== '' || state.view.tags.length > 0 || isNarrow() || Boolean(state.viewCounts.later?.count);
  const searched = () => state.view.q.trim();

  function viewKey({ kind, list, filter } = state.view) {
    if (kind !== 'list') return filter ?? kind;
    return access.link ? 'link' : (list ?? 'inbox');
  }

  // A view opens with the filter that was chosen in it last. In views of many lists completed to-dos would pile up.
  function placeOf(fields) {
    const view = { ...plainView, ...fields };
    return hashOf({ ...view, show: recallHere('show', viewKey(view)) ?? (VIEWS[view.kind].empty ? 'active' : 'all') });
  }

  const hashOfList = id => placeOf({ list: id });
  const sortOf = () => recallHere('sort') ?? filterParameters().get('sort') ?? viewNow().sort ?? 'order';
  const hasTag = (item, tag) => item.tags.some(other => isSameWord(other, tag));

  // The filters of the view without its limit and order, for reading and for acts on all that is shown.
  function selection(show, more = {}) {
    const parameters = new URLSearchParams(viewNow().query());
    parameters.delete('sort'); // of a saved filter, see `sortOf`
    const own = { ...more, ...(zone && { tz: zone }), ...(searched() && { q: searched() }) };
    for (const [name, value] of Object.entries(own)) parameters.set(name, value);
    for (const tag of state.view.tags) parameters.append('tag', tag);
    if (show !== 'all') parameters.set('completed', String(show === 'completed'));
    return `?${parameters}`;
  }

  function viewQuery(limit) {
    return selection(isTrash() ? 'all' : shownState(), { sort: sortOf(), limit });
  }

  const shownState = () => (state.view.show === 'active' && isDoneOpen() ? 'all' : state.view.show);

  // Whether a to-do that was changed here still has its place in the view. Only the server knows the search's
  // result, so a found to-do stays until the next answer.
  function belonging() {
    const show = shownState();
    const { has = () => true } = viewNow();
    return item => has(item) && state.view.tags.every(tag => hasTag(item, tag)) &&
      (show === 'all' || item.completed === (show === 'completed'));
  }

  const belongs = item => belonging()(item);

  // ---- Reading -----------------------------------------------------------------------------------------

  const reading = { ticket: 0, running: false, isAway: false };
  const isOccupied = () => queue.running || Boolean(itemById(state.editing)) || state.drag !== null;
  const syncSoon = debounce(() => sync(), SYNC_PAUSE);

  // Has the counts, or everything, read again in a quiet moment.
  function want(what = state.stale) {
    if (state.stale !== 'all') state.stale = what;
    if (state.stale) syncSoon();
  }

  // Everything that is shown is read here: after a change of the view (`moved`), of others' changes and own
  // commands, after a sleep, and when the socket opens. A new view does not wait for an earlier reading, and
  // that one's answers are dropped. Typing, dragging and the first loading are not disturbed; their end reads again.
  async function sync({ moved = false } = {}) {
    const what = moved ? 'all' : state.stale;
    if (!moved && (!state.loaded || reading.running || queue.running || (what === 'all' && isOccupied()))) return;
    const ticket = reading.ticket + 1;
    const isLater = () => ticket !== reading.ticket;
    Object.assign(reading, { ticket, running: true, isAway: false });
    Object.assign(state, { stale: '' }, moved && { loading: true, problem: null });
    showBusy();
    const showEarly = () => showCopy(() => isLater() || !reading.running).then(isShown => isShown && probe());
    const copying = moved ? setTimeout(showEarly, access.isAssumed ? 0 : SLOW_START) : null;
    try {
      const answer = await readAfterCommands(what, moved, isLater);
      if (isLater()) return;
      if (!moved && what === 'all' && isOccupied()) state.stale = 'all';
      else adopt(answer);
      if (moved) state.loaded = true;
    } catch (error) {
      if (!isLater()) await readingFailed(expected(error), moved, isLater);
    } finally {
      clearTimeout(copying);
      if (!isLater()) endReading(moved);
    }
  }

  function endReading(moved) {
    reading.running = false;
    if (moved) state.loading = false;
    showBusy();
    render();
    if (reading.isAway) return; // the probe has it read again
    want();
    renewCopySoon();
  }

  // An answer that was on its way while something was written may not know of it: it would take a new to-do off
  // the screen again, or leave it out of the counts.
  async function readAfterCommands(what, moved, isLater) {
    for (let number = 0; ; number += 1) {
      if (queue.running) await Promise.race([queue.idle, sleep(SLOW_START)]);
      const { writes } = state;
      const answer = await read(what, moved ? PAGE_SIZE : windowSize());
      if (writes === state.writes || number === 3 || isLater()) return answer;
    }
  }

  // A list that was loaded to its end is loaded to its new end, too.
  const windowSize = () => Math.max(PAGE_SIZE, saved.items.length + (saved.next === null ? PAGE_SIZE : 0));

  async function read(what, size) {
    const places = Promise.all([getJson('/api/lists'), access.link ? [] : getJson('/api/filters')]);
    if (!saved.lists.length || (state.view.filter && !filterNow())) {
      const [lists, filters] = await places;
      keep({ lists, filters });
    }
    const parents = getParents();
    const answer = {
      places,
      parents,
      trashedLists: isTrash() ? getJson('/api/lists?deleted=true') : [],
      matching: isFiltered() && !isTrash() ? countMatching() : saved.matching,
      ...(!access.link && { viewCounts: countViews(), tags: getJson('/api/tags') }),
      ...(what === 'all' && readItems(size, parents)),
    };
    // All are awaited together, so that none fails unnoticed.
    const values = await Promise.all(Object.values(answer));
    return Object.fromEntries(Object.keys(answer).map((name, index) => [name, values[index]]));
  }

  // Reads as many to-dos as are on the screen.
  async function readWindow(size) {
    const { list, kind, filter } = state.view;
    if (filter && !filterNow()) throw new Problem(404, 'This filter is not there any more.');
    if (kind === 'list' && list !== null && !currentList()) throw new Problem(404, 'This list is not there any more.');
    const page = await getTodos(viewQuery(Math.min(MAXIMUM_LIMIT, size)));
    while (page.next && page.items.length < size) {
      const { items, next } = await getTodos(page.next);
      page.items.push(...items);
      page.next = next;
    }
    return page;
  }

  // In a list that is not read to its end, subtasks can be far from their parents.
  async function withSubtasks({ items, next }, parents) {
    const found = new Map(items.map(item => [item.id, item]));
    const asked = new Set();
    while (next && isTree()) {
      const read = Map.groupBy(found.values(), ({ parent }) => parent);
      const lacks = ({ id, subtasks }) => found.has(id) && !asked.has(id) && !(read.get(id)?.length >= subtasks);
      const ids = parents.filter(lacks).slice(0, MAXIMUM_SELECTED).map(({ id }) => id);
      if (!ids.length) break;
      ids.forEach(id => asked.add(id));
      const page = await getTodos(selection(shownState(), { parent: ids, sort: 'order', limit: MAXIMUM_LIMIT }));
      for (const item of page.items) if (!found.has(item.id)) found.set(item.id, item);
    }
    return { items: [...found.values()], next };
  }

  function readItems(size, parents) {
    const page = readWindow(size).then(async found => withSubtasks(found, await parents));
    return { page, open: page.then(readOpen) };
  }

  // The open to-do is read alone where the view does not have it. Without `item` it is gone.
  async function readOpen({ items }) {
    const { id, pending } = saved.open ?? {};
    if (!id || pending) return {};
    try {
      return { id, item: byId(items, id) ?? (await getJson(`/api/todos/${id}`)) };
    } catch (error) {
      if (error.status !== 404) throw error;
      return { id };
    }
  }

  // Only whole lists are counted by the server; what a filter selects is counted up to one page here.
  async function countMatching() {
    const [open, done] = await Promise.all([
      getTodos(selection('active', { limit: PAGE_SIZE })),
      getTodos(selection('completed', { limit: 1 })),
    ]);
    return { active: open.items.length, completed: done.items.length, capped: open.next !== null };
  }

  async function countViews() {
    const kinds = Object.keys(VIEWS).filter(kind => VIEWS[kind].counts);
    const counted = kinds.map(async kind => {
      const query = { ...VIEWS[kind].query(), completed: 'false', limit: PAGE_SIZE, ...(zone && { tz: zone }) };
      const page = await getTodos(`?${new URLSearchParams(query)}`).catch(() => null);
      return [kind, page ? { count: page.items.length, capped: page.next !== null } : state.viewCounts[kind]];
    });
    return Object.fromEntries(await Promise.all(counted));
  }

  // A to-do that has not changed stays the same object, so that its row need not be compared.
  function adopt({ places, trashedLists, matching, viewCounts = {}, tags = [], page, open, ...more }) {
    const [lists, filters] = places;
    const query = filterNow()?.query;
    const parents = new Map(more.parents.map(each => [each.id, each]));
    Object.assign(saved, { lists, filters, trashedLists, matching, parents });
    if (filterNow()?.query !== query) state.stale = 'all'; // another window has changed it
    Object.assign(state, { viewCounts, tags });
    if (page) {
      const known = new Map(saved.items.map(item => [item.id, item]));
      const isSame = (one, other) => one?.revision === other.revision && one.order === other.order;
      saved.items = page.items.map(item => (isSame(known.get(item.id), item) ? known.get(item.id) : item));
      saved.next = page.next;
      for (const item of [...saved.items, open.item]) if (seen.has(item?.id)) seen.set(item.id, item);
      // Closed before it is forgotten, so that what was typed into it is sent: the answer reports the refusal.
      const isOpen = saved.open !== null && saved.open.id === open.id;
      if (isOpen && open.item) saved.open = open.item;
      else if (isOpen) closeDetail();
    }
    state.problem = null;
    // An answer that began while commands were on their way may lack them.
    if (queue.running) state.stale = 'all';
    project();
    if (leaveGoneList() || !page || !state.open) return;
    // A text typed before the to-do became read-only is sent as well: the answer reports the refusal.
    if (isLocked(state.open)) saveDetails();
    loadHistory();
    loadPeople();
  }

  async function readingFailed(error, moved, isLater) {
    if (error.isTemporary) {
      state.stale = 'all';
      reading.isAway = true;
      if (error.isAbsence) probe();
      else waitForRetry(pauseAfter(error, 1)).then(probe);
    }
    if (!moved) return void (error.status === 404 && sync({ moved: true }));
    if (error.isTemporary && (await showCopy(isLater))) return;
    if (error.status === 404 && (await findsOtherLists())) return;
    if (isLater()) return;
    state.problem = error;
    // After signing in again, the user finds everything unchanged.
    if (error.status !== 401 || !access.session?.accounts) keep({ items: [], next: null });
  }

  // The lists that the page knows may be outdated: one was deleted, or an account took all of them over.
  async function findsOtherLists() {
    const known = currentList();
    await getJson('/api/lists').then(lists => keep({ lists }), expected);
    if (leaveGoneList()) return true;
    const hasOther = Boolean(currentList()) && currentList().id !== known?.id;
    if (hasOther) sync({ moved: true });
    return hasOther;
  }

  // A list that was deleted, or is not shared any more, is left. Its last version has the words for that.
  let shownList = null;

  function leaveGoneList() {
    const { list: id } = state.view;
    if (id === null || shownList?.id !== id || listById(id)) return false;
    location.replace('#/'); // or Back would lead here again
    closeDetail();
    const what = isOthers(shownList) ? 'shared with you' : 'there';
    showToast(`${quoted(shownList.title)} is not ${what} any more.`);
    return true;
  }

  const moreWatcher = new IntersectionObserver(
    entries => entries.some(entry => entry.isIntersecting) && saved.next && loadMore(),
    { rootMargin: '600px' },
  );

  // Observing again reports at once, so a page too short to push the mark out of sight doesn't end loading.
  function watchForMore() {
    moreWatcher.unobserve(find('.more'));
    moreWatcher.observe(find('.more'));
  }

  // The further the user scrolls, the more is loaded at a time, so that the end of a long list is in reach.
  function widened(query) {
    const parameters = new URLSearchParams(query);
    parameters.set('limit', Math.min(MAXIMUM_LIMIT, Math.max(PAGE_SIZE, saved.items.length)));
    return `?${parameters}`;
  }

  const loadMore = shared(async () => {
    if (!saved.next) return;
    const { ticket } = reading;
    try {
      const { items, next } = await withSubtasks(await getTodos(widened(saved.next)), [...saved.parents.values()]);
      const fresh = new Set(items.map(item => item.id));
      if (ticket === reading.ticket) {
        keep({ items: [...saved.items.filter(item => !fresh.has(item.id)), ...items], next });
        render();
      }
    } catch (error) {
      complain(expected(error).message);
    }
    watchForMore();
  });

  async function printAll() {
    const place = () => `${state.next} ${reading.ticket}`; // a reading that began meanwhile takes the page back
    for (let before; state.next && place() !== before; ) {
      before = place();
      await loadMore();
    }
    for (const chunks of [lateChunks, movedChunks]) renewChunks(chunks, whenIdle, Infinity);
    print();
  }

  // ---- The copy on this device --------------------------------------------------------------------------
  // The copy has the to-dos outside the trash, the lists and the filters at a revision of the log, for times without
  // the server. The log keeps it up to date. It belongs to one user and is emptied for another.

  const COPY = `tornado_todo:${root}`;

  const answerOfRequest = request =>
    new Promise((resolve, reject) => {
      request.onsuccess = () => resolve(request.result);
      request.onerror = request.onblocked = () => reject(request.error);
    });

  async function openCopy() {
    const request = indexedDB.open(COPY, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore('todos', { keyPath: 'id' });
      request.result.createObjectStore('about');
    };
    const database = await answerOfRequest(request);
    database.onversionchange = () => database.close();
    return database;
  }

  let copyOpened = null;

  // Acts on the stores of the copy; without one, or where the storage is full or forbidden, the answer is null.
  async function withCopy(mode, act) {
    try {
      copyOpened ??= openCopy();
      const transaction = (await copyOpened).transaction(['todos', 'about'], mode, { durability: 'strict' });
      return await act({ todos: transaction.objectStore('todos'), about: transaction.objectStore('about') });
    } catch {
      return null;
    }
  }

  const aboutCopy = () => withCopy('readonly', ({ about }) => answerOfRequest(about.get('about')));

  // Returns null where the log does not have all that changed for the user, also after a restored backup.
  async function changesOfCopy(revision) {
    const items = new Map();
    for (let number = 0; number < COPY_SIZE / MAXIMUM_LIMIT; number += 1) {
      const page = await getJson(`/api/changes?since=${revision}&limit=${MAXIMUM_LIMIT}`).catch(unlessGone);
      const hasMore = ({ todo, action }) => !todo && ['share', 'restore'].includes(action);
      if (!page || page.changes.some(hasMore)) break;
      for (const { todo, after } of page.changes) if (todo) items.set(todo, after?.deleted_at ? null : after);
      revision = page.revision;
      if (!page.more) return { revision, items };
    }
    return null;
  }

  function unlessGone(error) {
    if (error.status !== 410) throw error;
    return null;
  }

  // The changes that come while it is read are read again by the next renewal.
  async function wholeCopy() {
    const { revision } = state;
    const items = new Map();
    let next = `?${new URLSearchParams({ sort: '-updated_at', limit: MAXIMUM_LIMIT })}`;
    while (next && items.size < COPY_SIZE) {
      await new Promise(whenIdle);
      const page = await getTodos(next);
      for (const item of page.items) items.set(item.id, item);
      next = page.next;
    }
    return { revision, items, isWhole: true };
  }

  const renewCopy = shared(async () => {
    if (access.link || access.leaving || state.revision === null) return;
    const owner = stashOwner();
    const known = await aboutCopy();
    const isOwn = known?.owner === owner && known.revision <= state.revision;
    const news = (isOwn && (await changesOfCopy(known.revision))) || (await wholeCopy());
    if (owner !== stashOwner()) return;
    const { lists, filters } = saved;
    await withCopy('readwrite', async ({ todos, about }) => {
      if (news.isWhole) todos.clear();
      let number = 0;
      for (const [id, item] of news.items) {
        const request = item ? todos.put(item) : todos.delete(id);
        if ((number += 1) % COPY_SLICE === 0) await answerOfRequest(request); // other tasks have their turn
      }
      about.put({ owner, session: access.session, revision: news.revision, lists, filters }, 'about');
    });
  });

  const renewCopySoon = debounce(() => renewCopy().catch(expected), COPY_PAUSE);

  const forgetCopy = async () => answerOfRequest(indexedDB.deleteDatabase(COPY)).catch(() => {});

  const COPY_SORTS = {
    order: item => item.order,
    title: item => item.title.toLowerCase(),
    due: item => (item.due ? dueMoment(item.due).getTime() : Infinity),
    priority: item => item.priority,
    created_at: item => item.created_at,
    updated_at: item => item.updated_at,
  };

  function sortedAsShown(items) {
    const sign = sortOf().startsWith('-') ? -1 : 1;
    const key = COPY_SORTS[sortOf().replace('-', '')];
    const rank = (one, other) => (one < other ? -1 : Number(one > other));
    return items.toSorted((a, b) => sign * (rank(key(a), key(b)) || rank(a.id, b.id)));
  }

  function isFound({ title, notes, tags }) {
    const text = [title, notes, ...tags].join('\n').toLowerCase();
    return searched().toLowerCase().split(/\s+/).every(word => text.includes(word));
  }

  function parentsAmong(items) {
    const known = new Map(items.map(item => [item.id, item]));
    const below = Map.groupBy(items.filter(({ parent }) => known.has(parent)), ({ parent }) => parent);
    return [...below].map(([id, subtasks]) => {
      const { parent, list, title, completed } = known.get(id);
      const done = subtasks.filter(each => each.completed).length;
      return { id, parent, list, title, completed, subtasks: subtasks.length, done };
    });
  }

  // The copy as `read` would return it, or null where it cannot replace the server.
  async function readCopy(isLater) {
    const read = ({ todos, about }) => Promise.all([todos.getAll(), about.get('about')].map(answerOfRequest));
    const [all, known] = (await withCopy('readonly', read)) ?? [];
    if (known?.owner !== stashOwner() || access.link || isTrash() || state.view.filter) return null;
    const { lists, filters } = known;
    if (isLater()) return null; // the server's answer has newer lists
    keep({ lists, filters });
    const ids = new Set(lists.map(({ id }) => id));
    const items = all.filter(({ list }) => ids.has(list));
    const open = items.filter(({ completed }) => !completed);
    const tags = Map.groupBy(open.flatMap(item => item.tags), tag => tag);
    const found = items.filter(item => belongs(item) && isFound(item));
    const active = found.filter(({ completed }) => !completed).length;
    return {
      places: [lists, filters],
      matching: { active, completed: found.length - active, capped: false },
      viewCounts: { ...state.viewCounts },
      tags: [...tags].map(([tag, { length }]) => ({ tag, active: length })),
      parents: parentsAmong(items),
      page: { items: sortedAsShown(found), next: null },
      open: { id: saved.open?.id, item: byId(items, saved.open?.id) ?? saved.open },
    };
  }

  // Shows the copy until the server answers. Returns whether there is one.
  async function showCopy(isLater) {
    const answer = await readCopy(isLater);
    if (!answer || isLater()) return false;
    adopt({ trashedLists: saved.trashedLists, ...answer });
    state.loaded = true;
    takeUpTexts();
    render();
    return true;
  }

  // The last user of this device, if the page has their copy. A crash may have taken the name from the storage.
  async function keptSession() {
    const { owner, session = null } = (await aboutCopy()) ?? {};
    const [last] = recall(OWNERS, [owner]);
    if (last !== owner) return null;
    remember(OWNERS, recall(OWNERS, [owner]));
    return session;
  }

  // ---- Counting ----------------------------------------------------------------------------------------

  function counts() {
    if (isFiltered()) return state.matching;
    const lists = state.view.kind === 'all' ? livingLists() : [currentList()].filter(Boolean);
    if (lists.length) return { active: sum(lists, 'active'), completed: sum(lists, 'completed'), capped: false };
    const active = state.items.filter(item => !item.completed).length;
    return { active, completed: state.items.length - active, capped: false };
  }

  // The to-dos that a bulk act can change: in a view of many lists some may be read-only.
  function changeableCounts() {
    const { active, completed } = counts();
    const isWhole = state.view.kind === 'all' && !isFiltered();
    const lists = isWhole ? livingLists().filter(isLockedList) : [];
    const items = isWhole ? [] : state.items.filter(isLocked);
    const done = items.filter(item => item.completed).length;
    return {
      active: Math.max(0, active - sum(lists, 'active') - (items.length - done)),
      completed: Math.max(0, completed - sum(lists, 'completed') - done),
    };
  }

  // ---- Messages ----------------------------------------------------------------------------------------

  function announce(text) {
    const region = find('.announcer');
    // The same words twice are read twice only if the region was empty in between.
    region.textContent = '';
    setTimeout(() => (region.textContent = text), 30);
  }

  function hideToast() {
    if (find('.toasts').contains(document.activeElement)) focusStart();
    find('.toasts').replaceChildren();
  }

  // A message under the pointer, or with the focus, stays.
  const hideToastLater = debounce(() => {
    const isHeld = (canHover.matches && find('.toast:hover')) || find('.toast:focus-within');
    (isHeld ? hideToastLater : hideToast)();
  }, TOAST_MILLISECONDS);

  // One at a time: it offers to undo the newest act, and Ctrl+Z reaches the older ones.
  function showToast(text, { label, act, tone = '' } = {}) {
    hideToast();
    const actAndHide = () => {
      hideToast();
      act();
    };
    const toast = h(
      'div.toast.row.card',
      { '.bad': tone === 'bad', role: tone === 'bad' ? 'alert' : null }, // the region is polite; errors may interrupt
      h('span.toast-text', { dir: 'auto' }, text),
      act && button('toast-action', action(actAndHide), label),
      labelled('icon-button.toast-close', 'Close this message', 'hideToast', icon('close')),
    );
    find('.toasts').append(create(toast));
    hideToastLater();
  }

  const complain = (text, more = {}) => showToast(text, { tone: 'bad', ...more });

  // ---- Undo --------------------------------------------------------------------------------------------

  // An act is a command with words. Its answer fills in the batch; the queue ensures that an undo is sent after it.
  function forgetAct(act) {
    for (const stack of ['undoable', 'redoable']) state[stack] = state[stack].filter(other => other !== act);
  }

  const undo = (act = state.undoable.at(-1)) => (act ? takeBack(act) : undoEarlier());
  const redo = (act = state.redoable.at(-1)) => (act ? takeBack(act, true) : announce('Nothing to redo.'));

  // The server knows acts from before the page was loaded. An act of long ago is hardly meant.
  async function undoEarlier() {
    const since = Math.max(0, (state.revision ?? newestRevision()) - RECENT_CHANGES);
    const { user } = access.session ?? {};
    try {
      const { changes } = await getJson(`/api/changes?since=${since}&limit=${RECENT_CHANGES}`);
      const own = changes.filter(change => change.user === user);
      const isRecent = own.length > 0 && Date.now() - new Date(own.at(-1).at) < RECENT_MILLISECONDS;
      if (access.link || !isRecent) announce('Nothing to undo.');
      else takeBack({ changes: own });
    } catch (error) {
      complain(expected(error).message);
    }
  }

  function describeBatch(changes) {
    if (!changes.length) return 'what you did last';
    const { title } = changes[0].after ?? changes[0].before ?? {};
    const more = changes.length > 1 ? ` and ${changes.length - 1} more` : '';
    return `${describeChange(changes[0])}${title ? ` (${quoted(title)})` : ''}${more}`;
  }

  // An undo is itself a batch; undoing that one does the act again.
  function takeBack(done, isRedo = false) {
    forgetAct(done);
    if (queue.jobs.includes(done) && !done.sent) return takeOut(done);
    return command({
      typed: done.batch ? undefined : null,
      request: () => ({ method: 'POST', path: '/api/undo', body: { batch: done.batch } }),
      rereads: true,
      accept: (answer, batch) => {
        const words = done.words ?? describeBatch(done.changes.filter(change => change.batch === answer.undone));
        const back = { words, batch };
        state[isRedo ? 'undoable' : 'redoable'].push(back);
        const again = isRedo ? { label: 'Undo', act: () => undo(back) } : { label: 'Redo', act: () => redo(back) };
        showToast(`${isRedo ? 'Done again' : 'Undone'}: ${words}`, again);
      },
    });
  }

  // An act that is not sent yet is taken back without the server.
  function takeOut(job) {
    queue.jobs.splice(queue.jobs.indexOf(job), 1);
    project();
    stash();
    render();
    showToast(`Undone: ${job.words}`);
  }

  // ---- To-dos: acts ------------------------------------------------------------------------------------

  function complainOfTitle(title) {
    const isLong = lengthOf(title) > TITLE_LENGTH;
    if (isLong) complain(`A title has at most ${TITLE_LENGTH} characters; this one has ${lengthOf(title)}.`);
    return isLong;
  }

  function complainOfDate() {
    if (isWholeDate(find('.new-due'))) return false;
    complain('The date is not complete.');
    find('.new-due').focus();
    return true;
  }

  // A new to-do gets the view's list, its tags, or today's date.
  function newFields(title) {
    const { kind, list, tags: shown } = state.view;
    const due = find('.new-due').value;
    const priority = Number(find('.new-priority').value);
    const tags = splitTags([...shown, find('.new-tags').value].join(','));
    return {
      title,
      ...viewNow().fields?.(),
      ...(due && { due }),
      ...(priority && { priority }),
      ...(tags.length && { tags }),
    };
  }

  function empty(field) {
    field.value = '';
    typedIn.delete(field);
  }

  // ---- Quick add: the server reads words of a title as other fields --------------------------------------
  // `answer` is what it has read, for `asked`. A phrase that the user refuses stays in the title.

  const quick = { asked: '', answer: null, refused: new Set() };

  // The request for what has been typed; with `parse`, it is read on arrival.
  function newRequest(more = {}) {
    const title = oneLine(find('.new-todo').value);
    const escaped = [...quick.refused].map(phrase => phrase.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&'));
    const places = escaped.length ? title.matchAll(new RegExp(`(?:${escaped.join('|')})(?![\\p{L}\\p{N}])`, 'gu')) : [];
    const keep = Array.from(places, ({ 0: phrase, index }) => {
      const start = lengthOf(title.slice(0, index)); // the server counts code points
      return `${start}-${start + lengthOf(phrase)}`;
    });
    return { query: queryOf({ keep, tz: zone, ...more }), body: newFields(title) };
  }

  // One request at a time, always for the newest text. What cannot be read now is read on arrival.
  const readTitle = shared(async () => {
    for (let asked = ''; asked !== JSON.stringify(newRequest()); ) {
      const { query, body } = newRequest();
      asked = JSON.stringify({ query, body });
      const isAsked = body.title && !state.away && access.session;
      const answer = isAsked ? await send('POST', `/api/parse${query}`, { body }).catch(expected) : null;
      Object.assign(quick, { asked, answer: answer?.ok ? await answer.json() : null });
      if (!body.title) quick.refused.clear();
    }
    render();
  });

  const readTitleSoon = debounce(readTitle, READ_PAUSE);

  const CHIP_ICONS = { start: 'later', repeat: 'repeat', reminder: 'bell', tag: null, priority: 'flag', list: 'list' };

  function chipWords({ kind, text }, todo, kinds) {
    if (kind === 'tag') return text.slice(1);
    if (kind === 'reminder') return reminderText(todo.reminders[0], todo);
    if (!['day', 'time'].includes(kind)) return valueWords(kind, todo[kind]) || text;
    const moment = dueMoment(todo.due);
    if (!kinds.includes('day') || !kinds.includes('time')) return friendlyDue(todo.due).text;
    return kind === 'time' ? clockFormat(moment) : friendlyDue(dayText(moment)).text;
  }

  // One chip a field, such as for a repeat and its end, but one for each tag.
  function quickChips() {
    const { todo, spans = [] } = quick.answer ?? {};
    const kinds = spans.map(({ kind }) => kind);
    return spans.map((span, index) => {
      const { kind } = span;
      const texts = spans.filter(each => (kind === 'tag' ? each === span : each.kind === kind)).map(({ text }) => text);
      const acts = action(() => refusePhrases(texts));
      const label = `${texts.join(' ')}: keep it in the title`;
      return (kind === 'tag' || kinds.indexOf(kind) === index) &&
        filterChip(chipWords(span, todo, kinds), label, acts, kind in CHIP_ICONS ? CHIP_ICONS[kind] : 'calendar');
    });
  }

  function refusePhrases(texts) {
    texts.forEach(text => quick.refused.add(text));
    find('.new-todo').focus();
    return readTitle();
  }

  function createTodo() {
    const typed = oneLine(find('.new-todo').value);
    if (!typed || isTrash() || isLockedView() || complainOfDate()) return;
    const isRead = quick.answer && quick.asked === JSON.stringify(newRequest());
    const { query, body } = isRead ? { query: '', body: quick.answer.todo } : newRequest({ parse: true });
    if (complainOfTitle(body.title)) return;
    for (const name of ['.new-todo', '.new-due', '.new-tags']) empty(find(name));
    find('.new-priority').value = '0';
    Object.assign(quick, { answer: null, refused: new Set() });
    let isSeen = false;
    const id = putTodo(body, query, {
      accept: answer => {
        if (sortOf() !== 'order' || !belongs(answer)) state.stale = 'all';
        reportAdded(answer, isSeen && belongs(answer));
      },
      failed: error => giveBack(typed, error),
    });
    isSeen = reveal(rowOf(id));
  }

  // Creates a to-do with an id of this page, or else an answer that is lost would create a second one.
  function putTodo(body, query, more) {
    const item = newItem(newId(), body);
    const request = { method: 'PUT', path: `/api/todos/${item.id}${query}`, body };
    const words = `Added ${quoted(body.title)}`;
    command({
      kind: 'todos',
      words,
      typed: { request: { ...request, headers: { 'If-None-Match': '*' } }, words },
      request,
      apply: draft => insertIn(draft, item),
      ...more,
    });
    return item.id;
  }

  function newItem(id, body) {
    const plain = { list: inbox()?.id ?? null, completed: false, notes: '', due: null, start: null, repeat: null };
    const order = (state.items.at(-1)?.order ?? 0) + 1;
    return { id, ...plain, parent: null, priority: 0, tags: [], order, pending: true, ...body };
  }

  // A line of a list as other programs write it: a bullet or a number, a check box, and the title.
  const BULLET = /(?:[•‣◦▪●○·]\s*|(?:[-*+–—]|\d{1,3}[.)])(?:\s+|$))/u;
  const CHECK_BOX = /(?<box>\[[\sxX✓✔]?\](?=\s|$)|[☐☑☒✓✔✅⬜]\uFE0F?)\s*/u;
  const LIST_LINE = new RegExp(`^${BULLET.source}?(?:${CHECK_BOX.source})?(?<title>.*)$`, 'u');

  function readLines(text) {
    const lines = text.split(/[\r\n\v\f\u0085\u2028\u2029]+/).map(line => LIST_LINE.exec(line.trim()).groups);
    const filled = lines.filter(({ title }) => title !== '');
    return filled.map(({ box, title }) => ({ title, completed: /[xX✓✔☑☒✅]/u.test(box ?? '') }));
  }

  // Several lines, pasted or dropped, are most often several to-dos; the user can still make one.
  async function takeLines(input, event) {
    const text = (event.clipboardData ?? event.dataTransfer).getData('text/plain');
    const lines = readLines(text);
    if (lines.length < 2) return;
    event.preventDefault();
    if (lines.length > MAXIMUM_LIMIT) {
      complain(`These are ${lines.length} lines. At most ${MAXIMUM_LIMIT} to-dos are added at once.`);
      return;
    }
    const { value: before, selectionStart: from, selectionEnd: to } = input;
    input.setRangeText(oneLine(text), from, to, 'end'); // there it outlives the page
    input.dispatchEvent(new Event('input', { bubbles: true }));
    const amount = `Add ${lines.length} to-dos`;
    const first = lines.slice(0, 3).map(line => quoted(line.title)).join(', ');
    const choice = { yes: amount, no: 'Keep as one', isSafe: true };
    const isEach = await confirmed(`${amount}, one for each line?`, `${first}${lines.length > 3 ? ' …' : ''}`, choice);
    input.focus();
    input.value = before;
    if (isEach && !complainOfDate() && !lines.some(line => complainOfTitle(line.title))) {
      typedIn.delete(input); // so that Ctrl+Z undoes the to-dos
      createTodos(lines, oneLine(text));
    } else input.setRangeText(oneLine(text), from, to, 'end');
  }

  function createTodos(lines, text) {
    command({
      words: `Added ${lines.length} to-dos`,
      ...postedOnce('/api/todos', lines.map(line => ({ ...newFields(line.title), completed: line.completed }))),
      offersUndo: true,
      rereads: true,
      failed: error => giveBack(text, error),
    });
  }

  // Scrolls only as far as the composer stays in sight, because the next key would scroll back to it.
  // Returns whether the row can be seen.
  function reveal(row) {
    if (!row) return false;
    const edge = selector => find(selector).getBoundingClientRect();
    const { top, bottom } = row.getBoundingClientRect();
    const ceiling = Math.max(0, edge('.banner').bottom);
    const distance = Math.max(0, bottom - Math.min(innerHeight, edge('.footer').top));
    if (top < ceiling || (distance > 0 && edge('.composer').top - distance < ceiling)) return false;
    scrollBy({ top: distance, behavior: 'instant' });
    return true;
  }

  function reportAdded(item, isSeen) {
    if (isSeen) return announce(`Added ${item.title}.`);
    const where = belongs(item) ? '.' : '; this view doesn’t show it.';
    return showToast(`Added ${quoted(item.title)}${where}`, { label: 'Show', act: () => showTodo(item) });
  }

  function showTodo(item) {
    const row = rowOf(item.id);
    if (!row) return openDetail(item);
    row.scrollIntoView({ block: 'nearest' });
    return focusIn(row);
  }

  // A typed text returns to its field, unless the field has the next text already.
  function giveBack(text, error, field = null) {
    const input = field || find('.new-todo');
    const isFree = input.value === '';
    const put = () => {
      input.value = text;
      input.focus();
      readTitle();
    };
    if (isFree) put();
    else complain(`Not saved: ${quoted(text)}. ${error.message}`, { label: 'Edit it', act: put });
    return !isFree;
  }

  // Changes fields of a to-do or a list.
  function change(kind, thing, fields, words, { query = '', ...more } = {}) {
    const { id } = thing;
    const [[name, text], ...others] = Object.entries(fields);
    const isOneField = !others.length && !query && (name in EDITORS || ['priority', 'assignee'].includes(name));
    command({
      kind,
      words,
      typed: isOneField ? { ...draftOf(kind, thing, name), text, words } : undefined,
      request: { method: 'PATCH', path: `/api/${kind}/${id}${query}`, body: fields },
      apply: draft => changeIn(draft, kind, id, fields),
      accept: answer => kind === 'todos' && noteChanged(answer),
      ...more,
    });
  }

  function noteChanged(item) {
    if (sortOf() !== 'order' || state.view.q) state.stale = 'all';
    if (state.open?.id === item.id) loadHistory();
  }

  // Changes or deletes these to-dos as one batch, which one undo takes back.
  function changeTodos(items, act, { method = 'PATCH', query = {}, fields, apply, ...more }) {
    const ids = items.map(({ id }) => id);
    if (!ids.length) return;
    const change = apply ?? ((draft, { id }) => changeIn(draft, 'todos', id, fields));
    const isOne = ids.length === 1 && !query.add_tags;
    const where = isOne ? `/${ids}${queryOf(query)}` : queryOf({ id: ids, ...query });
    command({
      words: `${act} ${ids.length === 1 ? quoted(items[0].title) : todosText(ids.length)}`,
      offersUndo: true,
      rereads: true,
      request: { method, path: `/api/todos${where}`, body: fields },
      apply: draft => items.forEach(item => change(draft, item)),
      ...more,
    });
  }

  const toggleTodo = item => refuses(item) || completeTodos([item]);

  // Completes to-dos, or reopens them if all are completed. Returns whether the user wants that.
  async function completeTodos(items) {
    const open = items.filter(item => !item.completed);
    const completed = open.length > 0;
    const subtasks = await subtasksToo(open);
    if (subtasks === null) return false;
    // Its subtasks, and the next of its series, are written in the same batch.
    const isPlain = items.length === 1 && !subtasks && !(completed && items[0].repeat);
    const said = `${items[0]?.title}: ${completed ? 'completed' : 'active'}.`;
    changeTodos(items, completed ? 'Completed' : 'Reopened', {
      query: { tz: zone, subtasks },
      fields: { completed },
      apply: (draft, item) => completeIn(draft, item, completed, subtasks),
      ...(isPlain && { kind: 'todos', said, offersUndo: false, rereads: false, accept: noteChanged }),
    });
    return true;
  }

  function completeIn(draft, { id }, completed, subtasks) {
    changeIn(draft, 'todos', id, { completed });
    for (const each of subtasks ? subtasksIn(draft, { id }) : [])
      if (!each.completed) completeIn(draft, each, completed, subtasks);
  }

  // The number of open subtasks of these to-dos at every depth, without these themselves.
  function openBelow(items) {
    const ids = new Set(items.map(({ id }) => id));
    for (let size = 0; size < ids.size; ) {
      size = ids.size;
      for (const { id, parent } of state.parents.values()) if (ids.has(parent)) ids.add(id);
    }
    const open = [...ids].map(id => state.parents.get(id) ?? { subtasks: 0, done: 0 });
    const own = items.filter(item => !item.completed && ids.has(item.parent));
    return sum(open, 'subtasks') - sum(open, 'done') - own.length;
  }

  // Asks what is to be done with open subtasks before their parents are completed. Returns the word of the query for
  // that, or null after Escape.
  async function subtasksToo(items) {
    const open = openBelow(items);
    if (!open) return '';
    const one = items.length === 1;
    const what = one ? quoted(items[0].title) : todosText(items.length);
    const text = `${what} ${one ? 'has' : 'have'} ${plural(open, 'open subtask', 'open subtasks')}.`;
    const choices = { yes: 'Complete all', no: `Only ${one ? 'this one' : 'these'}`, isSafe: true };
    const choice = await chosen('Complete subtasks, too?', text, choices);
    if (choice) return choice === 'yes' ? 'complete' : '';
    items.forEach(item => rowViews.delete(item)); // or a box would stay checked
    render();
    return null;
  }

  const deleteTodo = item => refuses(item) || deleteTodos([item]);

  function deleteTodos(items) {
    if (byId(items, state.open?.id)) closeDetail();
    const apply = (draft, { id }) => removeIn(draft, 'items', id);
    changeTodos(items, 'Deleted', { method: 'DELETE', apply, rereads: items.length > 1 });
  }

  // An act on all to-dos of the view, including those not loaded: the server selects those that are completed, or not.
  // They get the `fields`, or else are deleted.
  function bulk(words, isDone, fields) {
    const [show, other] = isDone ? ['completed', 'active'] : ['active', 'completed'];
    const isNarrowed = isFiltered();
    const lists = state.view.kind === 'all' ? livingLists().filter(list => !isLockedList(list)) : [currentList()];
    const ids = new Set(lists.map(list => list?.id));
    const isOther = item => isLocked(item) || item.completed !== isDone;
    const renew = item => (isOther(item) ? item : fields && { ...item, ...fields });
    command({
      words,
      offersUndo: true,
      rereads: true,
      request: { method: fields ? 'PATCH' : 'DELETE', path: `/api/todos${selection(show)}`, body: fields },
      apply: draft => {
        for (const each of isNarrowed ? [draft.matching] : draft.lists.filter(({ id }) => ids.has(id)))
          Object.assign(each, { [show]: 0, ...(fields && { [other]: each.active + each.completed }) });
        const isHere = belonging();
        draft.items = draft.items.map(renew).filter(item => item && isHere(item));
        draft.open &&= renew(draft.open) ?? draft.open;
      },
    });
  }

  function toggleAll() {
    const { active, completed } = changeableCounts();
    const isDone = active === 0;
    const what = isFiltered() ? 'all shown here' : todosText(active || completed);
    bulk(`Marked ${what} as ${isDone ? 'active' : 'completed'}`, isDone, { completed: !isDone });
  }

  async function clearCompleted() {
    const isHere = ({ list, completed }) => completed && list === (currentList()?.id ?? list);
    const open = openBelow([...state.parents.values()].filter(isHere));
    const text = `${plural(open, 'of them is', 'of them are')} still open.`;
    const choices = { yes: 'Clear all', no: 'Keep' };
    if (open && !(await confirmed('Clear completed to-dos with their subtasks?', text, choices))) return;
    const what = plural(changeableCounts().completed, 'completed to-do', 'completed to-dos');
    if (state.open?.completed && !isLocked(state.open)) closeDetail();
    bulk(isFiltered() ? 'Cleared the completed to-dos' : `Cleared ${what}`, true);
    focusStart();
  }

  // ---- To-dos: several at once -------------------------------------------------------------------------

  const selectedItems = () => state.items.filter(({ id }) => state.selected.has(id));
  // The list of all that are selected, if it is one.
  function commonList() {
    const [list, ...others] = new Set(selectedItems().map(item => item.list));
    return others.length ? null : list;
  }

  const shownItems = () => groups().flatMap(({ items }) => items);

  function select(ids, anchor) {
    if (ids.size > MAXIMUM_SELECTED) return complain(`At most ${MAXIMUM_SELECTED} to-dos can be selected at once.`);
    Object.assign(state, { selected: ids, anchor });
    render();
    if (commonList() && !membersOf(commonList()).length) loadMembers(commonList());
    return announce(ids.size ? `${ids.size} selected.` : 'Nothing is selected.');
  }

  function toggleSelected(item) {
    const ids = new Set(state.selected);
    if (!ids.delete(item.id)) ids.add(item.id);
    if (!refuses(item)) select(ids, item.id);
  }

  function selectTo(item) {
    const items = shownItems();
    const places = [state.anchor ?? item.id, item.id].map(id => items.findIndex(each => each.id === id));
    const range = items.slice(Math.min(...places), Math.max(...places) + 1).filter(each => !isLocked(each));
    select(new Set(range.map(({ id }) => id)), state.anchor ?? item.id);
  }

  function selectByKey(node, key) {
    state.anchor ??= itemOf(node).id;
    stepToRow(node, key.replace('Shift+', ''));
    selectTo(itemOf(document.activeElement) ?? itemOf(node));
  }

  function endSelection() {
    if (state.selected.size) select(new Set(), null);
  }

  function changeSelected(act, fields, more) {
    changeTodos(selectedItems(), act, { query: { tz: zone }, fields, ...more });
    leaveSelection();
  }

  function leaveSelection() {
    endSelection();
    focusStart();
  }

  const completeSelected = async () => (await completeTodos(selectedItems())) && leaveSelection();

  function deleteSelected() {
    deleteTodos(selectedItems());
    leaveSelection();
  }

  function dateSelected(value) {
    const due = value === 'none' ? null : dayFromNow(Number(value));
    changeSelected(due ? `Due ${friendlyDue(due).text}:` : 'Removed the due date of', { due });
  }

  function assignSelected(value) {
    const assignee = value === 'none' ? null : value.slice(1);
    changeSelected(assignee ? `Assigned to ${assignee}:` : 'Assigned to nobody:', { assignee });
  }

  function moveSelected(list) {
    const isMovable = selectedItems().every(item => mayMove(item, listById(list)));
    if (isMovable) return changeSelected(`Moved to ${listById(list).title}:`, { list });
    complain('Only its owner can take a to-do out of a list.');
    return render();
  }

  function tagSelected(value, field) {
    const tags = splitTags(value);
    const addTo = ({ tags: known = [] } = {}) => ({ tags: splitTags([...known, ...tags].join(',')) });
    const apply = (draft, { id }) => changeIn(draft, 'todos', id, addTo(itemIn(draft, id)));
    const more = { query: { tz: zone, add_tags: true }, apply };
    empty(field);
    if (tags.length) changeSelected(`Tagged ${tags.join(', ')}:`, { tags }, more);
  }

  // A finger selects by a long press, and completes by a swipe towards the end of the line.
  const touch = { row: null, timer: null, isHeld: false, x: 0, y: 0, distance: 0 };

  function beginTouch(row, event) {
    touch.isHeld = false;
    if (event.pointerType !== 'touch' || event.target.closest('.grip, .edit')) return;
    const timer = setTimeout(() => {
      touch.isHeld = true;
      toggleSelected(itemOf(row));
      endTouch();
    }, LONG_PRESS);
    Object.assign(touch, { row, timer, x: event.clientX, y: event.clientY, distance: 0 });
  }

  function followTouch(row, { clientX, clientY }) {
    if (touch.row !== row) return;
    const [across, down] = [clientX - touch.x, clientY - touch.y];
    if (Math.hypot(across, down) > 10) clearTimeout(touch.timer);
    if (Math.abs(down) > Math.abs(across)) return;
    touch.distance = Math.max(0, getComputedStyle(row).direction === 'rtl' ? -across : across);
    row.classList.toggle('swiped', touch.distance > SWIPE);
    row.style.transform = `translateX(${Math.sign(across) * touch.distance}px)`;
  }

  function endTouch(node, event) {
    const { row, timer, distance } = touch;
    clearTimeout(timer);
    touch.row = null;
    if (!row) return;
    row.style.transform = '';
    row.classList.remove('swiped');
    if (event?.type === 'pointerup' && distance > SWIPE) toggleTodo(itemOf(row));
  }

  // ---- To-dos: order -----------------------------------------------------------------------------------

  const canReorder = () => !isTrash() && !isLockedView() && sortOf() === 'order' && state.view.q === '';

  const hasDays = () => Boolean(viewNow().group) && sortOf() === viewNow().sort;

  // To another day, at the same time.
  function moveToDay(item, day) {
    if (!day || day === dueDay(item)) return;
    const due = dueOf(day, item.due?.includes('T') ? timeText(dueMoment(item.due)) : '');
    const words = `${quoted(item.title)} is due ${friendlyDue(due).text}`;
    choose(item, 'due', due, { words, said: `${words}.`, offersUndo: true });
  }

  function moveDayByKey(item, days) {
    const from = dueDay(item) < dayFromNow(0) ? dayFromNow(-1) : dueDay(item);
    const day = dayFromNow(days, midnightOf(from));
    if (day < dayFromNow(0)) announce('Already the first day.');
    else moveToDay(item, day);
  }

  // The order between two neighbours, of which one may be missing; then also beside the nearest of `others`.
  function orderBetween(previous, following, otherwise, others = []) {
    if (!previous && !following) return otherwise;
    const orders = others.map(({ order }) => order);
    const low = previous?.order ?? Math.max(...orders.filter(order => order < following.order));
    const high = following?.order ?? Math.min(...orders.filter(order => order > low));
    if (low === -Infinity) return high - 1;
    return high === Infinity ? low + 1 : (low + high) / 2;
  }

  // Those among which a to-do can be moved: with the same parent in the same group.
  function siblingsOf(item) {
    const { items } = groups().find(each => each.items.includes(item)) ?? { items: [] };
    const above = tree.get(item)?.above;
    return items.filter(each => tree.get(each)?.above === above);
  }

  async function moveTodo({ id, parent }, target) {
    if (target >= siblingsOf(itemById(id)).length - 1) await loadMore();
    const item = itemById(id);
    const siblings = item ? siblingsOf(item) : [];
    const from = siblings.indexOf(item);
    const others = siblings.toSpliced(from, 1);
    if (from < 0 || target === from || target < 0 || target > others.length) return;
    const said = `${item.title}: moved to position ${target + 1} of ${siblings.length}.`;
    placeTodo(item, parent, others[target - 1]?.id, others[target]?.id, { said });
  }

  // Between these two, which are subtasks of the parent, or on the top level.
  function placeTodo(item, parent, previous, following, { words = `Moved ${quoted(item.title)}`, ...more }) {
    const isSame = parent === item.parent;
    const body = isSame ? {} : { parent };
    command({
      kind: 'todos',
      words,
      said: `${words}.`,
      apply: draft => {
        if (!isSame) changeIn(draft, 'todos', item.id, body);
        moveIn(draft, item.id, previous, following);
      },
      // The order is worked out when the command is sent: by then the neighbours' own moves are answered.
      request: () => {
        const [before, after] = [previous, following].map(id => byId(saved.items, id));
        body.order ??= orderBetween(before, after, item.order, saved.items);
        return { method: 'PATCH', path: `/api/todos/${item.id}`, body };
      },
      ...more,
    });
  }

  // The to-do above on the same level, of which one can become a subtask.
  const upperOf = item => siblingsOf(item).findLast((each, index, all) => all[index + 1] === item);

  function nestTodo(item, more = {}) {
    const upper = upperOf(item);
    if (refuses(item)) return;
    if (!isTree()) return announce('Choose “My order” of a list and clear the search to make subtasks.');
    if (!upper) return announce('There is no to-do above it on its level.');
    toggleBranch(upper, true);
    const last = state.items.findLast(({ parent }) => parent === upper.id)?.id;
    const words = `Made ${quoted(item.title)} a subtask of ${quoted(upper.title)}`;
    const failed = ({ status }) => status === 422 && !complain('Subtasks go down to five levels.');
    return placeTodo(item, upper.id, last, null, { words, failed, ...more });
  }

  // Up by a level, or to the top, behind the to-do that it was below.
  function liftTodo(item, { isTop = false, ...more } = {}) {
    if (refuses(item)) return;
    const parentOf = ({ parent }) => itemById(parent) ?? state.parents.get(parent);
    let upper = parentOf(item);
    if (!upper) return announce('It is on the top level already.');
    while (isTop && parentOf(upper)) upper = parentOf(upper);
    const siblings = byId(state.items, upper.id) ? siblingsOf(upper) : [];
    const following = siblings[siblings.indexOf(upper) + 1]?.id;
    const words = `Moved ${quoted(item.title)} ${parentOf(upper) ? 'up a level' : 'to the top level'}`;
    const previous = siblings.length ? upper.id : null;
    return placeTodo(item, upper.parent ?? null, previous, following, { words, ...more });
  }

  const isInward = (node, key) => key.endsWith(getComputedStyle(node).direction === 'rtl' ? 'Left' : 'Right');
  const nestByKey = (node, key) => (isInward(node, key) ? nestTodo : liftTodo)(itemOf(node));

  function branchByKey(node, key) {
    const isOpen = tree.get(itemOf(node))?.isOpen;
    return isOpen === !isInward(node, key) && toggleBranch(itemOf(node), !isOpen);
  }

  function moveByKey(node, key) {
    const item = itemOf(node);
    if (refuses(item)) return undefined;
    if (hasDays()) return moveDayByKey(item, key === 'ArrowUp' ? -1 : +1);
    if (!canReorder()) return announce('Choose “My order” and clear the search to move to-dos.');
    const siblings = siblingsOf(item);
    const target = siblings.indexOf(item) + (key === 'ArrowUp' ? -1 : +1);
    if (target < 0) return announce('Already the first.');
    if (target >= siblings.length && !state.next) return announce('Already the last.');
    return moveTodo(item, target);
  }

  function moveToList(item, listId) {
    const list = listById(listId);
    if (mayMove(item, list)) {
      choose(item, 'list', listId, { words: `Moved ${quoted(item.title)} to ${list.title}`, offersUndo: true });
    } else {
      complain('Only its owner can take a to-do out of this list.');
      render();
    }
  }

  // ---- To-dos: rows ------------------------------------------------------------------------------------

  const shownRows = () => findAll('.todo-list li, .trash-row');
  const chunksNow = () => [...find('.todo-list').children].flatMap(({ lastChild }) => [...lastChild.children]);
  const rowOf = id => chunksNow().map(({ keyed }) => keyed.get(id)).find(Boolean);
  const itemOf = node => itemById(node.closest('.todo-list li')?.dataset.id);

  // The box of a read-only to-do takes no focus; its details do.
  const ROW_FOCUS = '.toggle:enabled, .details-button, .restore';

  function focusIn(row) {
    if (row && !find(ROW_FOCUS, row)) update(row, rowView(itemOf(row), true));
    if (row) find(ROW_FOCUS, row).focus({ preventScroll: true });
    return Boolean(row);
  }

  const mark = (iconName, words, classes = '', properties = {}) =>
    h(`span.mark.row${classes}`, properties, icon(iconName), words);
  // An icon, whose words are a title for the eyes and text for screen readers.
  const iconMark = (name, title) => mark(name, hiddenWords(title), `.${name}-mark`, { title });

  function dueMark({ due, completed }) {
    const { text, tone } = friendlyDue(due);
    const [isLate, isToday] = ['overdue', 'today'].map(each => each === tone && !completed);
    const words = h('time', { dateTime: due }, isLate ? `Overdue · ${text}` : text);
    return mark('calendar', words, '.due', { '.overdue': isLate, '.today': isToday });
  }

  function tagButton(tag) {
    const isChosen = state.view.tags.some(other => isSameWord(other, tag));
    const label = `Show only to-dos tagged ${tag}`;
    return button('chip.tag', { '.chosen': isChosen, dir: 'auto', 'aria-label': label, ...action('toggleTag', tag) },
      tag);
  }

  const reminderWords = item => `Reminders: ${item.reminders.map(each => reminderText(each, item)).join('; ')}`;

  function assigneeMark(name) {
    const initials = name.split(/[^\p{L}\p{N}]+/u).filter(Boolean).slice(0, 2).map(word => [...word][0]).join('');
    const title = `Assigned to ${name}`;
    const words = [h('span', { 'aria-hidden': 'true' }, initials.toUpperCase()), hiddenWords(title)];
    return mark('person', words, '.assignee', { title });
  }

  function commentsMark({ comments }) {
    const words = [String(comments), hiddenWords(comments === 1 ? ' comment' : ' comments')];
    return mark('comment', words, '', { title: 'Comments' });
  }

  // A press hides or shows the subtasks that stand below.
  function progressMark(item) {
    const words = progress(item);
    const { isOpen } = tree.get(item) ?? {};
    if (isOpen === undefined) return mark('list', words);
    const acts = action(() => toggleBranch(item, !isOpen));
    return button('mark.row.branch', { 'aria-expanded': isOpen, ...acts }, icon('details'), words);
  }

  function progressWords({ id }) {
    const { subtasks, done } = state.parents.get(id);
    return `${done} of ${plural(subtasks, 'subtask', 'subtasks')} completed`;
  }

  function progress(item) {
    const { subtasks, done } = state.parents.get(item.id);
    return [h('span', { 'aria-hidden': 'true' }, `${done}/${subtasks}`), hiddenWords(progressWords(item))];
  }

  function parentMark(title, id) {
    const words = h('span.place-name', { dir: 'auto' }, title);
    return labelled('mark.row.parent', `Subtask of ${title}`, () => openById(id), icon('parent'), words);
  }

  function marksOf(item) {
    const list = state.view.kind !== 'list' && listById(item.list);
    const parent = !tree.get(item)?.above && state.parents.get(item.parent)?.title;
    return [
      parent && parentMark(parent, item.parent),
      isParent(item) && progressMark(item),
      item.priority > 0 && mark('flag', PRIORITIES[item.priority], `.priority.level-${item.priority}`),
      item.due && dueMark(item),
      item.reminders?.length > 0 && iconMark('bell', reminderWords(item)),
      !hasStarted(item) && mark('later', `From ${friendlyDue(item.start).text}`),
      item.repeat && iconMark('repeat', repeatWords(item.repeat)),
      list && h('span.mark.row.in-list', { dir: 'auto' }, list.title),
      item.tags.map(tagButton),
      state.selected.has(item.id) && hiddenWords('Selected'),
      item.assignee && assigneeMark(item.assignee),
      item.comments > 0 && commentsMark(item),
      item.notes && iconMark('note', 'Has notes'),
    ];
  }

  function newRowView(item, { isOpen, isEditing, isSelected, isWhole }) {
    const { id, title, completed, priority, pending } = item;
    const locked = isLocked(item);
    const classes = { '.completed': completed, '.pending': pending, '.locked': locked, '.open': isOpen };
    classes['.selected'] = isSelected;
    for (const level of [1, 2, 3]) classes[`.priority-${level}`] = priority === level;
    const label = h('label', { dir: 'auto' }, formed(title, LINKS));
    const row = { key: id, 'data-id': id, ...classes, '.editing': isEditing, 'aria-level': tree.get(item)?.depth };
    if (!isWhole) return h('li', row, h('div.view', {}, h('div.words', { key: 'words' }, label)));
    const toggle = { ...action('toggleRow'), type: 'checkbox', disabled: locked, checked: completed };
    const details = { ...action('openRow'), 'aria-label': `Details of ${title}` };
    const destroy = { ...action('deleteRow'), hidden: locked, 'aria-label': `Delete ${title}` };
    const edit = { type: 'text', autocomplete: 'off', enterKeyHint: 'done', dir: 'auto' };
    return h('li', row,
      h('div.view', {},
        h('span.grip', { title: 'Drag to move', 'aria-hidden': 'true' }, icon('grip')),
        h('input.toggle', { ...toggle, 'aria-label': title }),
        h('div.words', { key: 'words' }, label, h('div.meta.row.wrap.soft', {}, marksOf(item))),
        button('icon-button.details-button', details, icon('details')),
        button('icon-button.destroy', destroy, icon('trash'))),
      h('input.edit.control', { ...edit, 'aria-label': 'Edit the title' }));
  }

  const rowViews = new WeakMap();
  let rowContext = { text: '' }; // what rows show of everything but their to-do

  function branchText(item) {
    if (!state.parents.size) return '';
    const { depth, above, isOpen } = tree.get(item) ?? {};
    const { subtasks, done } = state.parents.get(item.id) ?? {};
    return `${depth} ${isOpen} ${subtasks} ${done} ${above ? '' : state.parents.get(item.parent)?.title}`;
  }

  // A row is described again only when its to-do, or what it shows of everything else, is another.
  function rowView(item, isNear) {
    const { open, editing, selected } = state;
    const flags = { isOpen: open?.id === item.id, isEditing: editing === item.id, isSelected: selected.has(item.id) };
    flags.isWhole = isNear || flags.isEditing;
    const due = flags.isWhole && item.due && friendlyDue(item.due);
    const signature = `${Object.values(flags)} ${due?.text} ${due?.tone} ${branchText(item)}`;
    const known = rowViews.get(item);
    if (known?.context === rowContext && known.signature === signature) return known.view;
    const view = newRowView(item, flags);
    rowViews.set(item, { context: rowContext, signature, view });
    return view;
  }

  // Browsers lay out only the chunks near the window, and report which these are. In the others a row only has its
  // title, for search in the page and for screen readers, and keeps that until `renewChunks` comes to it: thousands
  // of rows take too long for one task.
  const nearChunks = new Set();
  const lateChunks = new Set();
  const movedChunks = new Set();
  // Frames that are drawn only for chunks far from the window would make an act wait. WebKit has no such callback.
  const whenIdle = window.requestIdleCallback ?? (act => setTimeout(act, 20));

  function chunkView(items, key, label, before, isLate = false) {
    const isNear = nearChunks.has(key) || state.isPrinting || items.isFirst;
    const properties = { key, items, 'aria-labelledby': label };
    if (isLate && !isNear) return { ...(before ?? h('ul.chunk')), properties };
    const children = items.map(item => rowView(item, isNear));
    const isSame = (row, index) => row === children[index];
    const isKept = before?.children.length === children.length && before.children.every(isSame);
    return isKept ? before : { ...h('ul.chunk', properties), children };
  }

  function renewLater(chunks, when, ...more) {
    if (!chunks.size) when(() => renewChunks(chunks, when));
    for (const chunk of more) chunks.add(chunk);
  }

  function moveChunk(chunk, { skipped }) {
    nearChunks[skipped ? 'delete' : 'add'](keyOf(chunk.view));
    if (skipped) renewLater(lateChunks, whenIdle, chunk);
    else renewLater(movedChunks, requestAnimationFrame, chunk);
  }

  // What takes longer than `patience` milliseconds waits for the next turn: the layout takes longer than this.
  function renewChunks(chunks, when, patience = 4) {
    const start = performance.now();
    for (const chunk of chunks) {
      if (performance.now() - start > patience) return when(() => renewChunks(chunks, when, patience));
      chunks.delete(chunk);
      const { key, items, 'aria-labelledby': label } = chunk.view.properties;
      if (chunk.isConnected) update(chunk, chunkView(items, key, label, chunk.view));
    }
    return null;
  }

  function groupView({ key, day, title, isOpen, items }, first) {
    const known = find('.todo-list').keyed?.get(key)?.lastChild.keyed;
    const chunks = [];
    for (let start = 0; start < items.length; start += CHUNK) {
      const name = `${key} ${start}`;
      const isFirst = first.has(items[start]); // whole before the browser reports anything
      const chunk = Object.assign(items.slice(start, start + CHUNK), { isFirst });
      chunks.push(chunkView(chunk, name, title ? `group-${key}` : 'view-title', known?.get(name)?.view, true));
    }
    const head = { id: `group-${key}`, ...(isOpen === undefined ? {} : { 'aria-expanded': isOpen }) };
    return h('section.group', { key, 'data-day': day },
      title && h('h2.group-head.soft', { key: 'head', ...(isOpen === undefined && head) }, isOpen === undefined ? title
        : button('group-toggle.row', { ...head, ...action('toggleDone') }, icon('details'), title)),
      h('div.card', { key: 'card' }, chunks));
  }

  function rowsView() {
    if (isTrash()) return [];
    const { kind, tags } = state.view;
    const text = JSON.stringify([kind, tags, access.link, state.lists.map(({ id, title, role }) => [id, title, role])]);
    if (text !== rowContext.text) rowContext = { text };
    const first = new Set(shownItems().slice(0, CHUNK));
    return groups().map(group => groupView(group, first));
  }

  // ---- Fields that are edited ---------------------------------------------------------------------------
  // A draft has what identifies an edited field of a to-do or list, and the content that the user saw. Only what
  // was typed is written, and only over that content; an untouched field follows other users' changes.

  const drafts = new Map(); // by the field of the page

  // The texts of a field's inputs for a value, and the value of these texts.
  const EDITORS = {
    title: { show: title => [title], read: ([text]) => oneLine(text) },
    notes: { show: notes => [notes], read: ([text]) => text },
    due: { show: showMoment, read: texts => dueOf(...texts) },
    start: { show: showMoment, read: texts => dueOf(...texts) },
    repeat: { show: showRepeat, read: readRepeat },
  };

  const isText = name => ['title', 'notes', 'tags'].includes(name);
  const inputsOf = field => (field.matches('fieldset') ? findAll('input, select', field) : [field]);
  const textOf = input => (input.type === 'checkbox' && !input.checked ? '' : input.value);
  const textsOf = field => inputsOf(field).map(textOf);
  const shownIn = field => JSON.stringify(textsOf(field));
  const valueOf = field => EDITORS[drafts.get(field).name].read(textsOf(field));
  const isTyped = field => drafts.has(field) && shownIn(field) !== drafts.get(field).shown;

  function setTexts(field, texts) {
    for (const [index, input] of inputsOf(field).entries()) {
      if (input.type === 'checkbox') input.checked = texts[index] !== '';
      else if (input.value !== texts[index] || input.validity.badInput) input.value = texts[index];
    }
  }

  const showValue = (field, name, value) => setTexts(field, EDITORS[name].show(value));

  function draftOf(kind, thing, name, base = thing[name]) {
    seen.set(thing.id, savedThing(kind, thing.id) ?? thing);
    return { kind, id: thing.id, name, base, title: thing.title, list: thing.list };
  }

  function beginText(field, draft) {
    showValue(field, draft.name, draft.base);
    inputsOf(field).forEach(input => typedIn.delete(input));
    drafts.set(field, { ...draft, shown: shownIn(field) });
  }

  function fillText(field, draft) {
    const before = drafts.get(field);
    const isSame = before?.id === draft.id;
    if (isSame && (isTyped(field) || isHalfTyped(field) || before.base === draft.base)) return;
    const { selectionStart, selectionEnd, scrollTop } = field;
    if (isTyped(field)) waiting.set({ ...before, text: valueOf(field) }, 'field');
    beginText(field, draft);
    const isOfField = ([typed, cause]) => cause === 'field' && typed.id === draft.id && typed.name === draft.name;
    const [typed] = [...waiting].find(isOfField) ?? [];
    if (waiting.delete(typed)) {
      drafts.set(field, { ...typed, shown: shownIn(field) });
      showValue(field, draft.name, typed.text);
    }
    if (!isSame || document.activeElement !== field) return;
    field.setSelectionRange(selectionStart, selectionEnd);
    field.scrollTop = scrollTop;
  }

  // The user decides on a text that conflicts with other users' changes.
  function changeText(draft, text, failed, { words, ...more } = {}) {
    const { kind, name, title } = draft;
    const act = { title: 'Renamed', notes: 'Changed the notes of' }[name] ?? `${fieldWords(name, text)}:`;
    const typed = { ...draft, text };
    change(kind, draft, { [name]: text }, words ?? `${act} ${kind === 'lists' ? 'the list ' : ''}${quoted(title)}`, {
      ...guarded(typed),
      failed: error => {
        const isLost = isText(name) && [403, 404].includes(error.status);
        return !failed || isLost || error.status === 412 ? dispute(typed, error) : failed(error);
      },
      ...more,
    });
  }

  const CHANGED = new Problem(412, 'Another person has changed it.');

  // The parts of a command that goes through only over the version that is known. Where another field has changed
  // or only an answer was lost, it is sent again.
  function overKnown(kind, id, renew, isAgreed = () => true) {
    const path = `/api/${kind}/${id}`;
    return {
      request: () => {
        if (!isAgreed()) throw new Problem(412, CHANGED.message);
        const known = savedThing(kind, id);
        return { method: 'PATCH', path, body: renew(known), headers: { 'If-Match': `"${known.revision}"` } };
      },
      recheck: async () => {
        absorb(kind, await getJson(path));
        return isAgreed();
      },
    };
  }

  // Over the text that was edited.
  function guarded(typed) {
    const { kind, id, name, base, text } = typed;
    const isAgreed = () => [base, text].includes(savedThing(kind, id)?.[name]);
    return { typed, ...overKnown(kind, id, () => ({ [name]: text }), isAgreed) };
  }

  // On leaving, an emptied title deletes nothing.
  function saveInPlace() {
    for (const field of drafts.keys()) if (field.matches('.edit, .rename-list')) endInPlace(field, { deletes: false });
  }

  // ---- Two texts of one field --------------------------------------------------------------------------

  function dispute(typed, error) {
    waiting.set(typed, error);
    settleDisputes();
    return true;
  }

  const isDisputed = ([, cause]) => cause instanceof Error;

  const settleDisputes = shared(async () => {
    for (let next; !gate.resolve && (next = [...waiting].find(isDisputed)); ) {
      const [typed, error] = next;
      const way = await wayToSave(typed, error);
      if (gate.resolve) break;
      const choice = way === 'none' ? 'theirs' : await chosenText(typed, error, way);
      if (!choice) continue;
      if (choice === 'mine') insist(typed, way);
      waiting.delete(typed);
      stash();
    }
  });

  // Over the other text, at the address that restores a deleted to-do, or else only as a new one. What an earlier
  // page has saved before others changed it again need not be saved.
  async function wayToSave(typed, error) {
    const { kind, id, list } = typed;
    if (error.status === 412) return error === CHANGED && (await wasSaved(typed)) ? 'none' : 'over';
    if (error.status !== 404) return 'new';
    const read = path => getJson(`${path}?deleted=true`).catch(() => null);
    const listId = kind === 'lists' ? id : (savedThing(kind, id)?.list ?? list);
    if (byId((await read('/api/lists')) ?? [], listId)) return `/api/lists/${listId}/restore`;
    return kind === 'todos' && (await read(`/api/todos/${id}`)) ? `/api/todos/${id}/restore` : 'new';
  }

  function insist(typed, way) {
    if (way === 'new') return keepAsNew(typed);
    const { kind, id, name, text } = typed;
    if (way === 'over') return changeText({ ...typed, base: savedThing(kind, id)?.[name] }, text);
    command({ request: { method: 'POST', path: way }, rereads: true });
    return changeAgain(typed);
  }

  // A title that is too long for one goes into the notes as well.
  function keepAsNew(typed) {
    const { kind, name, text, title } = typed;
    const body = { ...(name !== 'title' && { [name]: name === 'tags' ? splitTags(text) : text }) };
    body.title = shortened(oneLine(name === 'title' ? text : title), TITLE_LENGTH);
    if (name === 'title' && lengthOf(text) > TITLE_LENGTH && kind === 'todos') body.notes = text;
    const words = `Added ${quoted(body.title)}`;
    const failed = error => dispute(typed, error);
    command({ words, ...postedOnce(`/api/${kind}`, body), offersUndo: true, rereads: true, failed });
  }

  function disputeWords(typed, error, way) {
    const field = typed.kind === 'lists' ? 'name of the list' : `${typed.name === 'due' ? 'due date' : typed.name} of`;
    const what = `the ${field} ${quoted(typed.title)}`;
    if (way === 'over')
      return `While you changed ${what}, it was changed in another window, too. Choose the text to keep.`;
    const gone = typed.kind === 'todos' && way.startsWith('/api/lists') ? 'its list' : 'it';
    if (way !== 'new') return `While you changed ${what}, ${gone} was deleted. Keep your text to restore it.`;
    const why = error.status === 404 ? 'It was deleted for good, or is not shared with you any more.' : error.message;
    return `Your change of ${what} can’t be saved. ${why}`;
  }

  function chosenText(typed, error, way) {
    const { kind, id, name, text } = typed;
    const isNew = way === 'new';
    const isGone = error.status === 404;
    const words = value => (isText(name) ? String(value ?? '') : valueWords(name, value)) || 'Nothing';
    const other = savedThing(kind, id)?.[name];
    // A user who is still typing must not choose by accident, so that the title has the focus.
    return answerOf('.dispute', '#dispute-title', {
      '#dispute-text': disputeWords(typed, error, way),
      '.mine .version-text': words(text),
      '.theirs .version-text': isGone ? (isNew ? 'Not there any more' : 'Deleted') : words(other),
      '[value=mine]': isNew ? `Keep as a new ${kind === 'lists' ? 'list' : 'to-do'}` : 'Keep yours',
      '[value=theirs]': isNew && isGone ? 'Discard yours' : 'Keep the other',
    });
  }

  // ---- What is typed outlives the page -----------------------------------------------------------------
  // One entry of the storage has the unfinished texts and the pending commands: it is written again whenever
  // that changes. The tab has it for its next page, the browser for the next window once this one is gone: a
  // window holds a lock while it lives. Without locks (plain http) the browser has it while nobody sees the page.

  const STASH = `tornado_todo.typed:${root}:`;
  const ownStash = STASH + newId(); // all windows share the browser's storage
  const STASHED_FIELDS = ['.new-todo', '.new-due', '.new-priority', '.new-tags', '.new-list'];
  const isFilled = ([, text]) => !['', '0'].includes(text);

  // Until the page knows its user, it assumes the last one. After that come those whose to-dos the account took over.
  const OWNERS = `owners:${root}`;
  const ownerOf = session => JSON.stringify([session.user, isLocalUser(session)]);
  const stashOwner = () => (access.session ? ownerOf(access.session) : recall(OWNERS, [null])[0]);

  let hasStashed = false;
  const stashes = () => quietly(() => [sessionStorage, localStorage], []);

  let letGo = () => {};

  function holdStash() {
    navigator.locks?.request(ownStash, () => new Promise(resolve => (letGo = resolve))).catch(() => {});
  }

  function typedTexts() {
    const isKept = ([field, { name }]) => isTyped(field) && !isHalfTyped(field) && (name !== 'title' || valueOf(field));
    const tags = find('.detail-tag').value;
    const fields = STASHED_FIELDS.map(selector => [selector, find(selector).value]);
    return [
      fields.some(isFilled) && { fields },
      ...waiting.keys(),
      ...[...drafts].filter(isKept).map(([field, draft]) => ({ ...draft, text: valueOf(field) })),
      ...(state.open && tags ? [typedTags(state.open, tags)] : []),
      ...queue.jobs.map(keptJob),
    ].filter(Boolean);
  }

  const requestOf = ({ request }) => (typeof request === 'function' ? request() : request);

  // The part of a command that the next page needs to send it again, or null for an undo of an act without an answer.
  function keptJob(job) {
    if (job.typed !== undefined) return job.typed;
    return quietly(() => ({ request: requestOf(job), words: job.words }));
  }

  // Returns whether all of it is kept.
  function stash({ isLeft = document.hidden } = {}) {
    if (access.leaving || access.link) return true;
    const texts = typedTexts();
    const entry = JSON.stringify({ owner: stashOwner(), texts });
    stashDurably(texts.length > 0 && entry);
    const kept = stashes().filter(storage => {
      const isWanted = storage === sessionStorage || isLeft || navigator.locks;
      if (!texts.length || !isWanted) return storage.removeItem(ownStash);
      return quietly(() => storage.setItem(ownStash, entry) ?? true); // there may be no room
    });
    return !texts.length || kept.length > 0;
  }

  // Browsers write their storages some seconds late; a database is there after a crash, too.
  function stashDurably(entry) {
    const write = ({ about }) => (entry ? about.put(entry, ownStash) : about.delete(ownStash));
    if (entry || hasStashed) withCopy('readwrite', write);
    hasStashed = Boolean(entry);
  }

  const stashSoon = shared(async () => {
    await sleep(STASH_PAUSE);
    stash();
  });

  const stashKeys = storage => Object.keys(storage).filter(key => key.startsWith(STASH));

  function forgetStashes() {
    for (const storage of stashes())
      for (const key of [...stashKeys(storage), `tornado_todo.${OWNERS}`]) storage.removeItem(key);
  }

  // Takes over the texts of this tab and of closed windows. Of two new to-dos one waits for the next page.
  async function takeUp() {
    if (access.link || !stashes().length) return;
    if (recall(OWNERS, [null])[0] !== stashOwner()) {
      remember(OWNERS, [stashOwner()]);
      withCopy('readwrite', ({ todos, about }) => [todos.clear(), about.delete('about')]);
    }
    const { held = [] } = (await navigator.locks?.query().catch(() => null)) ?? {};
    const durable = await durableStashes();
    const left = [...stashKeys(localStorage), ...durable.keys()].filter(key => !held.some(({ name }) => name === key));
    const keys = new Set([...left, ...stashKeys(sessionStorage)]);
    keys.delete(ownStash);
    const entryOf = key => sessionStorage.getItem(key) ?? localStorage.getItem(key) ?? durable.get(key);
    for (const key of keys) quietly(() => takeUpEntry(entryOf(key))); // that of another version may be unreadable
    stash();
    for (const storage of stashes()) for (const key of keys) storage.removeItem(key);
    withCopy('readwrite', ({ about }) => keys.forEach(key => about.delete(key)));
  }

  async function durableStashes() {
    const read = ({ about }) => Promise.all([about.getAllKeys(), about.getAll()].map(answerOfRequest));
    const [keys, entries] = (await withCopy('readonly', read)) ?? [[], []];
    return new Map(keys.map((key, index) => [key, entries[index]]).filter(([key]) => key.startsWith(STASH)));
  }

  function takeUpEntry(entry) {
    const { owner, texts } = JSON.parse(entry);
    if (!recall(OWNERS, []).includes(owner)) return;
    for (const typed of texts) {
      if (typed.request || (typed.id && typed.name)) waiting.set(typed, 'view');
      if (typed.fields && !takeUpFields(typed.fields)) waiting.set(typed, 'page');
    }
  }

  function takeUpFields(fields) {
    const filled = fields.filter(isFilled);
    if (filled.some(([selector]) => isFilled([selector, find(selector).value]))) return false;
    for (const [selector, text] of filled) find(selector).value = text;
    readTitle();
    if (fields.slice(1, 4).some(isFilled) && find('.new-options').hidden) toggleOptions();
    if (find('.new-list').value) showNewList(true);
    return true;
  }

  function takeUpTexts() {
    const texts = [...waiting].filter(([, cause]) => cause === 'view').map(([typed]) => typed);
    for (const typed of texts) {
      waiting.delete(typed);
      (typed.request ? makeAgain : changeAgain)(typed);
    }
  }

  // The id or key prevents creating anything twice.
  function makeAgain(typed) {
    const { request, words } = typed;
    const texts = [request.body ?? []].flat().map(({ title, text }) => title ?? text).filter(Boolean);
    const isNew = ['PUT', 'POST'].includes(request.method);
    command({
      typed,
      request,
      words,
      rereads: true,
      apply: applying(request),
      failed: error => {
        if (isNew && [409, 410, 412].includes(error.status)) return true;
        if (isNew && texts.length) return giveBack(texts.join(' '), error);
        complain(`Not saved: ${words ?? request.path}. ${error.message}`);
        return true;
      },
    });
  }

  // The effect of an earlier page's request on the to-dos that are shown.
  function applying({ method, path, body }) {
    const [, kind, one] = /^\/api\/(todos|lists|filters)(?:\/([\w-]+))?(?:\?|$)/.exec(path) ?? [];
    const ids = one ? [one] : (new URLSearchParams(path.split('?')[1]).get('id')?.split(',') ?? []);
    const item = kind === 'todos' && method === 'PUT' && newItem(one, body);
    if (item) return draft => insertIn(draft, item);
    if (method === 'PATCH') return draft => ids.forEach(id => changeIn(draft, kind, id, body));
    if (method === 'DELETE') return draft => ids.forEach(id => removeIn(draft, kind === 'todos' ? 'items' : kind, id));
    return undefined;
  }

  // The version on the server is read first, see `deliver`.
  function changeAgain(typed) {
    const more = { outdated: CHANGED, words: typed.words, failed: error => dispute(typed, error) };
    if (typed.name === 'tags') addTags({ ...typed, tags: typed.base }, typed.text, more);
    else changeText(typed, typed.text, null, more);
  }

  // Compares only texts after the edited one: typing an earlier text again is a change as well.
  async function wasSaved({ kind, id, name, base, text }) {
    if (kind === 'lists' || name === 'tags') return false;
    const changes = await getJson(`/api/todos/${id}/history`).catch(() => []);
    const edited = changes.findIndex(({ after }) => after?.[name] === base);
    return changes.some(({ after }, place) => after?.[name] === text && (edited < 0 || place < edited));
  }

  // ---- Titles that are edited in place -----------------------------------------------------------------

  // Edits the title of a to-do in its row, or the name of the list in the heading.
  function startEdit(kind, thing, text) {
    if (!thing || state.editing === thing.id || (kind === 'todos' && refuses(thing))) return;
    state.editing = thing.id;
    paint();
    const field = kind === 'lists' ? find('.rename-list') : find('.edit', rowOf(thing.id));
    beginText(field, draftOf(kind, thing, 'title'));
    field.value = text ?? field.value;
    field.focus();
    field.setSelectionRange(kind === 'lists' ? 0 : field.value.length, field.value.length);
  }

  function endInPlace(field, { saves = true, deletes = true } = {}) {
    const draft = drafts.get(field);
    const title = oneLine(field.value);
    const isChanged = saves && isTyped(field) && title !== draft.base;
    if (!draft || (isChanged && complainOfTitle(title))) return;
    drafts.delete(field);
    const row = field.closest('li');
    const hadFocus = row?.contains(document.activeElement);
    if (state.editing === draft.id) state.editing = null;
    paint();
    if (hadFocus) focusIn(row);
    want();
    if (isChanged && title) changeText(draft, title, error => editAgain(draft, title, error));
    else if (isChanged && deletes && draft.kind === 'todos') deleteTodo(itemById(draft.id));
  }

  function editAgain({ kind, id }, title, error) {
    complain(error.message);
    if (rowOf(id) || currentList()?.id === id) startEdit(kind, savedThing(kind, id), title);
    else find('.new-todo').value ||= title;
    return true;
  }

  // ---- To-dos: dragging --------------------------------------------------------------------------------
  // The dragged row follows the pointer by a transform and the others make room; the document itself changes
  // only at the drop, because a moved element would lose the pointer.

  function startDrag(grip, event) {
    const row = grip.closest('li');
    if (event.button !== 0 || !(canReorder() || hasDays()) || isLocked(itemOf(row))) return;
    const all = hasDays() ? [[row]] : blocksOf(itemOf(row));
    const from = all.findIndex(([first]) => first === row);
    state.drag = { row, all, from, to: from, startY: event.clientY, y: event.clientY, scroll: scrollY };
    event.preventDefault();
    grip.setPointerCapture(event.pointerId);
    all[from].forEach(each => each.classList.add('dragging'));
    requestAnimationFrame(scrollWhileDragging);
  }

  // The rows of each sibling with those of its subtasks.
  function blocksOf(item) {
    const ids = new Set(siblingsOf(item).map(({ id }) => id));
    const { depth } = tree.get(item) ?? {};
    const blocks = [];
    for (const row of shownRows()) {
      if (ids.has(row.dataset.id)) blocks.push([row]);
      else if (row.getAttribute('aria-level') > depth) blocks.at(-1)?.push(row);
      else if (blocks.length) break;
    }
    return blocks;
  }

  function followDrag(grip, event) {
    if (!state.drag) return;
    state.drag.y = event.clientY;
    const target = document.elementFromPoint(event.clientX, event.clientY);
    markDropPlace(target?.closest(`.place[data-list]${hasDays() ? ', .group[data-day]' : ''}`) ?? null);
    shiftRows();
  }

  let dropPlace = null; // where what is dragged would be dropped, such as a list of the sidebar

  function markDropPlace(place) {
    if (place === dropPlace) return;
    dropPlace?.classList.remove('drop-here');
    place?.classList.add('drop-here');
    dropPlace = place;
  }

  function shiftRows() {
    const { all, from, to: before, startY, y, scroll } = state.drag;
    const distance = y - startY + scrollY - scroll;
    const topOf = each => each.parentNode.offsetTop + each.offsetTop; // without transforms
    const bottomOf = block => topOf(block.at(-1)) + block.at(-1).offsetHeight;
    const middleOf = block => (topOf(block[0]) + bottomOf(block)) / 2;
    const [top, bottom] = [topOf(all[from][0]), bottomOf(all[from])].map(edge => edge + distance);
    const height = bottom - top;
    const shift = (block, way) => block.forEach(each => (each.style.transform = way && `translateY(${way}px)`));
    let to = from;
    while (to + 1 < all.length && bottom > middleOf(all[to + 1])) to += 1;
    while (to > 0 && top < middleOf(all[to - 1])) to -= 1;
    shift(all[from], distance);
    if (hasDays()) return; // the order follows from the date
    for (let index = Math.min(from, to, before); index <= Math.max(from, to, before); index += 1) {
      if (index === from) continue;
      all[index].forEach(each => each.classList.add('shifted'));
      shift(all[index], index < from && index >= to ? height : index > from && index <= to ? -height : '');
    }
    state.drag.to = to;
  }

  function scrollWhileDragging() {
    const { drag } = state;
    if (!drag) return;
    const edge = 70;
    const over = drag.y < edge ? drag.y - edge : Math.max(0, drag.y - (innerHeight - edge));
    if (over !== 0 && !dropPlace?.dataset.list) {
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
    // Without their classes the rows don't glide back from where the transforms left them.
    for (const row of findAll('.todo-list :is(.dragging, .shifted)')) {
      row.classList.remove('dragging', 'shifted');
      row.style.transform = '';
    }
    want();
    return drag;
  }

  function dropDrag() {
    const { list: listId, day } = (state.drag && dropPlace?.dataset) ?? {};
    const drag = endDrag();
    const item = drag && itemOf(drag.row);
    if (!item) return;
    if (hasDays() && !listId) return void moveToDay(item, day);
    if (listId && listId !== item.list) moveToList(item, listId);
    else if (!listId && drag.to !== drag.from) moveTodo(item, drag.to);
  }

  // ---- Lists -------------------------------------------------------------------------------------------

  function placeView({ hash, key = hash, name, iconName, count: left, current, list, owner, shared, id, colour }) {
    const link = {
      'data-id': id,
      'data-colour': colour,
      href: hash,
      title: owner ? `Shared by ${owner}` : '',
      'aria-current': current ? 'page' : null,
      'data-list': list,
      ...action('visitPlace'),
    };
    return h('li', { key }, h('a.place.row', link,
      icon(iconName),
      h('span.place-name', { dir: 'auto' }, name),
      owner && hiddenWords(`, shared by ${owner},`),
      shared && [h('span.place-shared', { title: 'Shared' }, icon('people')), hiddenWords(', shared,')],
      left && [h('span.place-count', { 'aria-hidden': 'true' }, String(left)), hiddenWords(` ${left} left`)]));
  }

  function viewPlaces() {
    const { title = 'Inbox', active, id } = inbox() ?? {};
    const isInbox = state.view.kind === 'list' && (!state.view.list || Boolean(currentList()?.inbox));
    const all = { count: sum(livingLists(), 'active') };
    const places = Object.entries(VIEWS).map(([kind, view]) => {
      const { count: left, capped } = kind === 'all' ? all : (state.viewCounts[kind] ?? {});
      const isShown = view.title && !view.isHidden && (!view.isOptional || left || state.view.kind === kind);
      const current = state.view.kind === kind && (kind !== 'all' || !isTagPlace());
      const count = left && `${left}${capped ? '+' : ''}`;
      return isShown && { hash: placeOf({ kind }), key: kind, name: view.title, iconName: view.icon, count, current };
    });
    const first = { hash: placeOf({}), key: 'inbox', name: title, iconName: 'inbox', count: active, list: id };
    return [{ ...first, current: isInbox }, ...places].filter(Boolean).map(placeView);
  }

  const isTagPlace = () => state.view.kind === 'all' && state.view.tags.length === 1 && !state.view.q;

  const tagPlaces = () => state.tags.map(({ tag, active: count }) => {
    const hash = hashOf({ ...plainView, kind: 'all', tags: [tag], show: 'active' });
    const current = isTagPlace() && isSameWord(state.view.tags[0], tag);
    return placeView({ hash, name: tag, iconName: 'tag', count, current });
  });

  const filterPlaces = () => state.filters.map(({ id, title: name }) => {
    const hash = hashOf({ ...plainView, kind: 'filter', filter: id });
    return placeView({ hash, name, iconName: 'filter', current: state.view.filter === id });
  });

  // What is shown as a query, in which the days near today move on with it.
  function savedQuery() {
    const parameters = new URLSearchParams(selection(state.view.show, { sort: sortOf() }));
    parameters.delete('tz');
    for (const name of ['due', 'start']) {
      const days = parameters.get(name)?.replace(dayFromNow(0), 'today').replace(dayFromNow(1), 'today+1');
      if (days) parameters.set(name, days);
    }
    return parameters.toString();
  }

  // Creates a list, filter or template, and shows the list or filter when the server has it.
  function make(kind, title, words, body, more = {}, path = `/api/${kind}`) {
    const shows = answer => showMade(kind, answer);
    command({ words: `${words} ${quoted(title)}`, ...postedOnce(path, body), accept: shows, ...more });
  }

  function showMade(kind, thing) {
    if (!byId(saved[kind], thing.id)) keep({ [kind]: [...saved[kind], { active: 0, completed: 0, ...thing }] });
    visit(kind === 'lists' ? hashOfList(thing.id) : placeOf({ kind: 'filter', filter: thing.id }));
    closeDrawer();
    focusStart();
  }

  // Removes a list or filter; with the path of a member, the user only leaves the list.
  function drop(kind, { id }, more, path = `/api/${kind}/${id}`) {
    command({ request: { method: 'DELETE', path }, apply: draft => removeIn(draft, kind, id), ...more });
    location.hash = '#/';
    focusStart();
  }

  async function saveFilter() {
    const [query, { q, tags }] = [savedQuery(), state.view];
    const title = await asked('Save as filter', [q.trim(), ...tags].filter(Boolean).join(' '));
    if (title) make('filters', title, 'Saved the filter', { title, query });
  }

  async function renameFilter() {
    const filter = filterNow();
    const title = await asked('Rename the filter', filter.title);
    if (title) change('filters', filter, { title }, `Renamed the filter ${quoted(filter.title)}`);
  }

  function deleteFilter() {
    drop('filters', filterNow(), { words: `Deleted the filter ${quoted(filterNow().title)}`, offersUndo: true });
  }

  async function saveTemplate() {
    const { id: list, title: before } = currentList();
    find('.list-options').close();
    const title = await asked('Save as template', before);
    const more = { accept: null, toast: `Saved the template ${quoted(title)}.` };
    if (title) make('templates', title, 'Saved the template', { list, title }, more, `/api/templates${zoneQuery()}`);
  }

  function useTemplate({ id, title }) {
    find('.templates').close();
    make('lists', title, 'Created the list', {}, {}, `/api/templates/${id}/lists${zoneQuery()}`);
  }

  const livingLists = () => state.lists.filter(list => !list.archived);
  const archivedLists = () => state.lists.filter(list => list.archived);
  const namedLists = areOthers =>
    livingLists().filter(list => !list.inbox && isOthers(list) === areOthers).toSorted((a, b) => a.order - b.order);

  function listPlaces(areOthers, lists = namedLists(areOthers)) {
    return lists.map(list => {
      const { id, title: name, colour, active: count, owner } = list;
      const iconName = colour ? 'dot' : areOthers ? 'people' : 'list';
      const others = areOthers ? { owner } : { shared: isShared(list) };
      const place = { hash: hashOfList(id), key: id, id, name, colour, count, iconName };
      // A place without an id accepts no dropped to-do.
      return placeView({ ...place, ...others, list: isLockedList(list) ? null : id, current: currentList() === list });
    });
  }

  // A list takes the place of another one of its group, which makes room on the side that it comes from.
  function moveList(list, other) {
    const lists = namedLists(isOthers(list));
    const [from, to] = [lists.indexOf(list), lists.indexOf(other)];
    if (from < 0 || to < 0 || from === to) return;
    const rest = lists.toSpliced(from, 1);
    change('lists', list, { order: orderBetween(rest[to - 1], rest[to], list.order) }, `Moved ${quoted(list.title)}`, {
      said: `${list.title}: moved to position ${to + 1} of ${lists.length}.`,
    });
  }

  function moveListBy(list, step) {
    const lists = namedLists(isOthers(list));
    const other = lists[lists.indexOf(list) + step];
    if (other) moveList(list, other);
    else announce(`Already the ${step < 0 ? 'first' : 'last'}.`);
  }

  let draggedList = null; // by the browser's own drag and drop

  function dragListOver(place, event) {
    const [list, other] = [draggedList, place.dataset.id].map(listById);
    if (!list || !other || other.archived || isOthers(list) !== isOthers(other)) return;
    event.preventDefault();
    if (event.type === 'drop') moveList(list, other);
    markDropPlace(event.type === 'drop' ? null : place);
  }

  function endListDrag() {
    draggedList = null;
    markDropPlace(null);
  }

  function chooseColour(value) {
    const list = currentList();
    change('lists', list, { colour: value === 'none' ? null : value }, `Changed the colour of ${quoted(list.title)}`);
  }

  function archiveList() {
    const list = currentList();
    const archived = !list.archived;
    find('.list-options').close();
    const words = `${archived ? 'Archived' : 'Took out of the archive:'} ${quoted(list.title)}`;
    change('lists', list, { archived }, words, { offersUndo: true });
    if (archived) location.hash = '#/';
  }

  function toggleOptions() {
    const options = find('.new-options');
    options.hidden = !options.hidden;
    find('.new-options-button').setAttribute('aria-expanded', String(!options.hidden));
  }

  function showNewList(isShown) {
    find('.new-list-button').hidden = isShown;
    find('.new-list').hidden = !isShown;
  }

  function startNewList() {
    showNewList(true);
    find('.new-list').focus();
  }

  function endNewList() {
    find('.new-list').value = '';
    showNewList(false);
  }

  function createList() {
    const title = oneLine(find('.new-list').value);
    endNewList();
    if (!title) return;
    const failed = () => {
      startNewList();
      find('.new-list').value = title;
    };
    make('lists', title, 'Created the list', { title }, { failed });
  }

  function deleteList() {
    const list = currentList();
    drop('lists', list, { words: `Deleted the list ${quoted(list.title)}`, offersUndo: true });
  }

  async function leaveList() {
    const list = currentList();
    const text = `Only ${list.owner} can share it with you again.`;
    if (!(await confirmed(`Leave ${quoted(list.title)}?`, text, { yes: 'Leave', no: 'Stay' }))) return;
    const path = `/api/lists/${list.id}/members/${encodeURIComponent(access.session.user)}`;
    drop('lists', list, { toast: `You have left ${quoted(list.title)}.` }, path);
  }

  // ---- Drawer and panel --------------------------------------------------------------------------------

  function openDrawer() {
    state.hasDrawer = true;
    settleLayout();
    (find('.sidebar [aria-current]') ?? find('.close-drawer')).focus();
  }

  function closeDrawer() {
    if (!state.hasDrawer) return;
    state.hasDrawer = false;
    settleLayout();
    find('.open-drawer').focus({ preventScroll: true });
  }

  const isCovered = () => state.open !== null && coveringDetail.matches;

  // Back closes the details and the drawer: an entry of the browser's history stands for them, that of a to-do with
  // its address. Closed in another way, they take the entry along; until that has happened nothing is added.
  let isStepping = false;

  function settleLayout() {
    paint();
    const { open } = state;
    const covers = open !== null || state.hasDrawer;
    const hasEntry = Boolean(history.state?.covers);
    const hash = open && !open.pending ? hashOfTodo(open) : hashOf(state.view);
    if (isStepping || (!covers && !hasEntry)) return;
    isStepping = !covers;
    if (!covers) history.back();
    else if (!hasEntry) {
      history.replaceState({ isUnder: true }, '');
      history.pushState({ covers }, '', hash);
    }
    else if (hash !== location.hash) history.replaceState({ covers }, '', hash);
  }

  function historyMoved() {
    if (!isStepping && history.state === null) return; // a new address, see followHash
    const isBack = !isStepping && Boolean(history.state?.isUnder);
    isStepping = false;
    if (isBack) closeDrawer();
    if (isBack) closeDetail();
    settleLayout();
  }

  // Shows the to-do of an address over its list.
  async function openAddress(id) {
    let item = null;
    try {
      item = await getJson(`/api/todos/${id}`);
    } catch (error) {
      const isGone = error.status === 404;
      complain(isGone ? 'This to-do was deleted, or it isn’t shared with you.' : expected(error).message);
    }
    const list = item && !listById(item.list)?.inbox && !access.link ? item.list : null;
    const view = { ...plainView, list, ...(item?.start && !hasStarted(item) && { kind: 'later', list: null }) };
    const hash = item ? hashOf(view) : placeOf({});
    // After a reload the entry of the to-do is there already.
    if (!item || !history.state?.covers) history.replaceState(null, '', hash);
    await followHash(hash);
    if (item) openDetail(item);
  }

  // A link in an overlay replaces its entry, or going back would need one step more.
  function visit(hash) {
    if (isStepping) addEventListener('popstate', () => visit(hash), { once: true });
    else if (history.state?.covers) location.replace(hash);
    else location.hash = hash;
  }

  function visitPlace(value, link, event) {
    const isPlain = !event.ctrlKey && !event.metaKey && !event.shiftKey;
    if (isPlain && link.hash !== (location.hash || '#/')) {
      event.preventDefault();
      visit(link.hash);
    }
    closeDrawer();
  }

  // ---- Search, sort, tags ------------------------------------------------------------------------------

  function goTo(changes, { replace = false } = {}) {
    const hash = hashOf({ ...state.view, ...changes });
    if (!replace) return visit(hash);
    history.replaceState(null, '', hash);
    return followHash();
  }

  function search() {
    const q = find('.search').value;
    if (q !== state.view.q) goTo({ q }, { replace: true });
  }

  const searchSoon = debounce(search, SEARCH_PAUSE);

  function endSearch(goOn, more) {
    find('.search').value = '';
    if (state.view.q) goTo({ q: '' }, more);
    goOn();
  }

  const focusSearch = () => find('.search').focus();
  const clearSearch = () => endSearch(focusSearch);

  function toggleTag(tag) {
    const tags = state.view.tags.filter(other => !isSameWord(other, tag));
    goTo({ tags: tags.length < state.view.tags.length ? tags : [...tags, tag] });
  }

  function chooseSort(sort) {
    rememberHere('sort', sort);
    sync({ moved: true });
  }

  // The label contains the text that is seen, because voice control uses it as the button's name.
  function filterChip(text, label, acts, iconName) {
    return button('chip.filter-chip', { 'aria-label': label, ...acts },
      iconName && icon(iconName), h('span', { dir: 'auto' }, text), icon('close'));
  }

  function activeFilters() {
    const { q, tags, kind } = state.view;
    const chips = tags.map(tag =>
      filterChip(`Tagged ${tag}`, `Tagged ${tag}: remove this filter`, action('toggleTag', tag)),
    );
    if (q) chips.unshift(filterChip(`Search: ${q}`, `Search: ${q} – clear it`, action('clearSearch')));
    const isWidenable = chips.length > 0 && kind === 'list' && !access.link;
    const everywhere = hashOf({ ...state.view, kind: 'all', list: null });
    const isSavable = chips.length > 0 && kind !== 'trash' && !access.link;
    const save = button('link.save-filter', action('saveFilter'), 'Save as filter');
    return [...chips, isSavable && save, isWidenable && h('a.widen.link', { href: everywhere }, 'Look in every list')];
  }

  // ---- Rendering ---------------------------------------------------------------------------------------

  function emptyWords() {
    const { kind, show, q, tags } = state.view;
    const { problem } = state;
    if (problem?.status === 401 && access.link)
      return ['This link is no longer valid', 'Ask the sender for a new one.'];
    if (problem) return [problem.status === 401 ? 'Not signed in' : 'Out of reach', problem.message, 'retry'];
    if (kind === 'trash') {
      return q
        ? ['Nothing found', 'Nothing in the trash has these words.']
        : ['The trash is empty', 'What you delete comes here first and can be restored.'];
    }
    if (q) return ['Nothing found', `Nothing here has the words ${quoted(q)}. Case and accents don’t matter.`];
    const which = show === 'all' ? '' : `${show} `;
    if (tags.length) return ['Nothing here', `No ${which}to-do has ${quoted(tags.join(', '))}.`];
    const { active, completed } = counts();
    if (viewNow().empty && active === 0 && show !== 'completed') return viewNow().empty;
    if (show === 'active' && completed > 0) return ['All done', 'Every single one. The rest of the day is yours.'];
    if (show === 'completed' && active > 0)
      return ['Nothing completed yet', 'Tick a to-do and it will be kept here.'];
    if (isLockedView()) return ['All clear', 'There is nothing on this list yet.'];
    return ['All clear', `Type what is on your mind and press Enter.${localTodosWords()}`];
  }

  function localTodosWords() {
    const { kind, local_todos: count } = access.session ?? {};
    if (kind !== 'session' || !count) return '';
    return ` The ${localTodos(access.session)} ${count === 1 ? 'is' : 'are'} shown when you sign out.`;
  }

  function localTodos({ local_todos: count }) {
    const number = count?.toLocaleString('en');
    return `${number} ${count === 1 ? 'to-do' : 'to-dos'} of this computer’s own user`;
  }

  // What several bindings need, worked out once.
  function facts() {
    const { active, completed, capped } = counts();
    const changeable = changeableCounts();
    const total = active + completed;
    const isNarrowed = state.view.q !== '' || state.view.tags.length > 0;
    const hasTrash = state.items.length > 0 || state.trashedLists.length > 0;
    const isEmpty = state.items.length === 0 && !(isTrash() && hasTrash) && (state.loaded || state.problem !== null);
    if (!state.away && !queue.jobs.length) state.hasKept = false;
    if (currentList()) shownList = currentList();
    return {
      list: currentList(), item: state.open, active, completed, capped, total, changeable, hasTrash,
      canChange: changeable.active + changeable.completed > 0,
      // A search that finds nothing isn't an empty list; its filters must stay in reach.
      hasTodos: total > 0 || state.items.length > 0 || (isNarrowed && state.view.show !== 'all'),
      isEmpty, empty: isEmpty ? emptyWords() : [],
      hasComposer: !isTrash() && !isLockedView(),
      isFixed: state.open !== null && isLocked(state.open),
      session: access.session ?? {},
    };
  }

  const each = (values, selectorOf, properties) =>
    Object.fromEntries(values.map(value => [selectorOf(value), known => properties(value, known)]));

  const option = (value, text, selected = false) => h('option', { key: value, value, selected }, text);

  // The properties of elements that follow from the state.
  const BINDINGS = {
    html: ({ item }) => ({
      '.is-link': access.link !== null,
      '.drawer-open': state.hasDrawer,
      '.detail-open': item !== null,
      '.is-selecting': state.selected.size > 0,
      '.gate-open': gate.resolve !== null,
    }),
    '.banner': () => ({ hidden: !state.hasKept }),
    '.banner-text': () => ({ children: [state.hasKept ? awayWords() : ''] }),
    '.banner-retry': () => ({ hidden: !state.away }),
    '.skip': ({ hasComposer }) => ({ children: [`Skip to the ${hasComposer ? 'new to-do box' : 'title'}`] }),
    '.shell': () => ({ inert: gate.resolve !== null }),
    '.sidebar': () => ({ inert: isCovered() || (narrowScreen.matches && !state.hasDrawer) }),
    '.page': () => ({ inert: isCovered() || state.hasDrawer }),
    '.scrim': () => ({ hidden: !state.hasDrawer }),
    '.open-drawer': () => ({ 'aria-expanded': state.hasDrawer }),
    '.views': () => ({ children: access.link ? [] : viewPlaces() }),
    '.lists': () => ({ children: access.link ? [] : listPlaces(false) }),
    '.shared-lists': () => ({ children: access.link ? [] : listPlaces(true) }),
    '.filter-places': () => ({ children: filterPlaces() }),
    '.filter-tools': () => ({ hidden: !filterNow() }),
    '.templates-button': () => ({ hidden: access.link !== null }),
    '.tag-places': () => ({ children: access.link ? [] : tagPlaces() }),
    '.trash-link': () => ({ 'aria-current': isTrash() ? 'page' : null }),
    '.account-button': ({ session }) => ({ hidden: session.kind !== 'session' }),
    '.account-name': ({ session }) => ({ children: [session.user ?? ''] }),
    '.sign-in-button': ({ session }) => ({ hidden: !session.accounts || session.kind !== 'local' }),
    'time.today': () => ({ dateTime: dayFromNow(0), children: [todayFormat(new Date())] }),
    '.weather': () => ({ hidden: !state.weather, children: [state.weather] }),
    h1: ({ list }) => ({ children: [viewTitle()], '.hidden-words': list && state.editing === list.id }),
    '.rename-list': ({ list }) => ({ hidden: !list || state.editing !== list.id }),
    '.list-tools': ({ list }) => ({ hidden: !list || list.inbox || access.link !== null }),
    '.rename-list-button, .delete-list-button': ({ list }) => ({ hidden: isOthers(list) }),
    '.share-button': ({ list, session }) => ({
      hidden: list?.role !== 'owner' || session.kind === 'open' || access.link !== null,
    }),
    '.leave-button': ({ list }) => ({ hidden: !isOthers(list) }),
    '.empty-trash': () => ({ hidden: !isTrash() || state.items.length === 0 }),
    '.header .share-note': ({ list }) => ({ hidden: !isOthers(list) && !state.hasOwnLists && !list?.archived }),
    '.share-words': ({ list }) => ({ children: [shareWords(list), list?.archived ? ' This list is archived.' : ''] }),
    '.archived-lists': () => ({ children: access.link ? [] : listPlaces(null, archivedLists()) }),
    '#list-options-title': ({ list }) => ({ children: [list?.title] }),
    '.archive-list': ({ list }) => ({ children: [list?.archived ? 'Take out of the archive' : 'Archive'] }),
    '[data-action=moveListBy]': ({ list }) => ({ hidden: Boolean(list?.archived) }),
    ...each(
      findAll('.colours input').map(input => input.value),
      colour => `.colours [value=${colour}]`,
      (colour, { list }) => ({ checked: (list?.colour ?? 'none') === colour }),
    ),
    '.own-lists': () => ({ hidden: !state.hasOwnLists }),
    '.progress': ({ completed, total }) => ({
      hidden: isTrash() || isFiltered() || completed === 0,
      max: Math.max(1, total),
      value: completed,
      'aria-valuetext': `${completed} of ${total} completed`,
    }),
    '.composer': ({ hasComposer }) => ({ hidden: !hasComposer }),
    '.understood': () => ({ children: quickChips() }),
    '.search': () => ({ value: document.activeElement === find('.search') ? find('.search').value : state.view.q }),
    '.active-filters': () => ({ children: activeFilters() }),
    '.main': ({ hasTodos }) => ({ hidden: isTrash() || !hasTodos }),
    '.footer': ({ hasTodos }) => ({ hidden: isTrash() || !hasTodos || state.selected.size > 0 }),
    '.selection': () => ({ hidden: state.selected.size === 0 }),
    '.selection-count': () => ({ children: [`${state.selected.size} selected`] }),
    '.select-complete': () => ({
      children: [selectedItems().some(item => !item.completed) ? 'Complete' : 'Reopen'],
    }),
    '.select-due': () => ({ value: '' }),
    '.select-assignee': () => ({
      hidden: membersOf(commonList()).length < 2,
      children: [
        option('', 'Assign to …'),
        ...membersOf(commonList()).map(name => option(`@${name}`, name)),
        option('none', 'Nobody'),
      ],
      value: '',
    }),
    '.select-list': () => ({
      children: [
        option('', 'Move to …'),
        ...state.lists.filter(list => !isLockedList(list)).map(({ id, title }) => option(id, title)),
      ],
      value: '',
    }),
    '.list-bar': ({ total }) => ({ hidden: total === 0 }),
    '.toggle-all': ({ changeable, canChange }) => ({ checked: changeable.active === 0 && canChange }),
    '.toggle-all-box': ({ total, canChange }) => ({ hidden: total > 0 && !canChange }),
    '.sort': () => ({ value: sortOf() }),
    '.todo-list': () => ({ '.sortable': canReorder() || hasDays(), children: rowsView() }),
    '.trash-view': ({ hasTrash }) => ({ hidden: !isTrash() || !hasTrash }),
    '.trash-list': () => ({ children: trashView() }),
    '.more': () => ({ hidden: state.next === null }),
    '.print-note': () => ({
      hidden: state.next === null,
      children: [
        `Only the first ${state.items.length} to-dos are printed.`,
        ` Press ${isApple ? '⌘' : 'Ctrl+'}P in the list to print all of them.`,
      ],
    }),
    '.empty': ({ isEmpty }) => ({ hidden: !isEmpty }),
    '.empty-title': ({ empty: [title = ''] }) => ({ children: [title] }),
    '.empty-text': ({ empty: [, text = ''] }) => ({ children: [text] }),
    '.empty-action': ({ empty: [, , retry] }) => ({
      children: [retry && button('button', action('loadAgain'), 'Try again')],
    }),
    '.todo-count': ({ active, capped }) => ({
      children: [
        h('strong', {}, `${active}${capped ? '+' : ''}`),
        ` ${active === 1 && !capped ? 'item' : 'items'} left`,
      ],
    }),
    '.clear-completed': ({ changeable }) => ({ hidden: changeable.completed === 0 }),
    ...each(['all', 'active', 'completed'], show => `.filters [data-show=${show}]`, show => ({
      href: hashOf({ ...state.view, show }),
      '.selected': show === state.view.show,
      'aria-current': show === state.view.show ? 'true' : null,
    })),
    '.detail': ({ item, isFixed }) => ({
      hidden: !item,
      inert: state.hasDrawer,
      '.is-completed': item?.completed,
      '.locked': isFixed,
    }),
    // Texts stay selectable where they can't be changed, everything else is switched off.
    '.detail-title, .detail-notes': ({ isFixed }) => ({ readOnly: isFixed }),
    '.notes-view': ({ item, isFixed }) => ({ children: item ? notesView(isFixed) : [] }),
    '.detail-notes': ({ isFixed }) => ({ placeholder: isFixed ? 'No notes' : 'Anything worth remembering' }),
    '.detail fieldset, .detail-list': ({ isFixed }) => ({ disabled: isFixed }),
    '.detail-tag, .detail-delete': ({ isFixed }) => ({ hidden: isFixed }),
    '.detail-note': ({ item, isFixed }) => ({ hidden: !isFixed, children: [isFixed && lockWords(item)] }),
    '.detail-state': ({ item }) => {
      const parent = state.parents.get(item?.parent);
      return { children: [item?.completed ? 'Completed' : 'Active', parent && parentMark(parent.title, parent.id)] };
    },
    '.subtasks-part': ({ item, isFixed }) => ({ hidden: !item || (isFixed && !isParent(item)) }),
    '#subtasks-title': ({ item }) => ({ children: [item && isParent(item) ? progressWords(item) : 'Subtasks'] }),
    '.subtasks': ({ item }) => ({ children: item ? state.subtasks.map(subtaskView) : [] }),
    '.new-subtask': ({ isFixed }) => ({ hidden: isFixed }),
    '.nest': ({ item, isFixed }) => ({ hidden: !item || isFixed || !isTree() || !upperOf(item) }),
    '.lift': ({ item, isFixed }) => ({ hidden: !item?.parent || isFixed }),
    ...each([0, 1, 7], days => `.quick-due [data-days="${days}"]`, (days, { item }) => ({
      'aria-pressed': Boolean(item?.due) && dayText(dueMoment(item.due)) === dayFromNow(days),
    })),
    ...each([0, 1, 2, 3], level => `.priorities [value="${level}"]`, (level, { item }) => ({
      checked: (item?.priority ?? 0) === level,
    })),
    '.clear-due': ({ item }) => ({ 'aria-pressed': !item?.due }),
    ...each(['due', 'start-'], name => `.detail-${name === 'due' ? '' : name}time`, (name, { isFixed }) => ({
      disabled: isFixed || !find(`.detail-${name.replace('-', '')}`).value,
    })),
    '.repeat-words': ({ item }) => {
      const rule = item && valueOf(find('.repeat-field'));
      return { hidden: !rule, children: [rule && repeatWords(rule)] };
    },
    '.repeat-rest': () => ({ hidden: !find('.repeat-unit').value }),
    '.repeat-every': () => ({ hidden: !UNITS[find('.repeat-unit').value] }),
    '.repeat-units': () => ({ children: [`${UNITS[find('.repeat-unit').value]}s`] }),
    '.repeat-days': () => ({ hidden: find('.repeat-unit').value !== 'WEEKLY' }),
    ...each(WEEKDAYS, day => `.repeat-days [value=${day}] + span`, day => ({
      children: [weekdayName(day, shortWeekdayFormat)],
    })),
    '.repeat-on': () => ({ hidden: !hasDates(find('.repeat-unit').value) || find('.repeat-on').options.length < 2 }),
    ...each(['count', 'until'], end => `.repeat-${end}`, end => {
      const isShown = find('.repeat-end').value === end.toUpperCase();
      return { hidden: !isShown, required: isShown };
    }),
    '.repeat-acts': ({ item, isFixed }) => ({ hidden: !item?.repeat || isFixed }),
    '.reminders': ({ item }) => ({ children: (item?.reminders ?? []).map(reminderChip) }),
    '.new-reminder': ({ item }) => ({
      hidden: !commonReminders(item).length,
      children: [
        option('', 'Add a reminder'),
        ...commonReminders(item).map(each => option(each.before, reminderText(each, item))),
      ],
      value: '',
    }),
    '.detail-tags': ({ item, isFixed }) => ({ children: item?.tags.map(isFixed ? tagButton : removableTag) ?? [] }),
    '#known-tags': () => ({ children: state.tags.slice(0, 200).map(({ tag }) => option(tag)) }),
    '.detail-list': ({ item }) => ({
      children: state.lists
        .filter(list => item && mayMove(item, list) && (!list.archived || list.id === item.list))
        .map(({ id, title }) => option(id, title)),
      value: item?.list ?? '',
    }),
    '.assignee-field': ({ item }) => ({ hidden: !item?.assignee && membersOf(item?.list).length < 2 }),
    '.detail-assignee': ({ item, isFixed }) => ({
      disabled: isFixed,
      children: [option('', 'Nobody'), ...assignable(item).map(name => option(name, name))],
      value: item?.assignee ?? '',
    }),
    '.comments-title': ({ item }) => ({ children: [`Comments${item?.comments ? ` (${item.comments})` : ''}`] }),
    '.comment-list': () => ({ children: state.open ? state.comments.map(commentView) : [] }),
    '.comment-form': ({ isFixed }) => ({ hidden: isFixed }),
    '.comment-send': () => ({ children: [state.commenting ? 'Save' : 'Comment'] }),
    '.history-list': () => ({ children: state.open ? historyView() : [] }),
    '.history-more': () => ({ hidden: state.nextHistory === null }),
    '.detail-created': ({ item }) => ({ children: item?.created_at ? ['Added ', agoTime(item.created_at)] : [] }),
    '.gate': () => ({ hidden: gate.resolve === null }),
    '#gate-title': () => ({ children: [gateTitle()] }),
    '.gate-words': () => ({ hidden: !gateWords(), children: [gateWords()] }),
    '.gate-warning': () => ({ hidden: gate.session.encrypted !== false }),
    '.sign-in-form': () => ({ hidden: gate.isSignUp }),
    '.sign-up-form': () => ({ hidden: !gate.isSignUp }),
    '.invite-field': () => ({ hidden: gate.session.sign_up !== 'invite' && inviteOf(location.hash) === null }),
    '#sign-up-invite': () => ({ required: gate.session.sign_up === 'invite' }),
    '.take-field': () => ({ hidden: !gate.session.local_todos }),
    '.take-field label': () => ({ children: [`Take along the ${localTodos(gate.session)}`] }),
    '.gate-hint': () => ({ children: [gateHint()] }),
    '.gate-switch': () => ({
      hidden: !gate.isSignUp && !['open', 'first'].includes(gate.session.sign_up),
      children: [gate.isSignUp ? 'Sign in' : makingWords()],
    }),
    '.gate-back': () => ({ hidden: !isLocalUser(gate.session) }),
    '.invites-part': ({ session }) => ({ hidden: session.sign_up !== 'invite' }),
    '.account-username': ({ session }) => ({ value: session.user ?? '' }),
    '.links-part': ({ session }) => ({ hidden: !session.accounts }), // a link's header is read only with accounts
    '#share-title': () => ({ children: [sharedList && `Share ${quoted(sharedList.title)}`] }),
    ...each(['session', 'token', 'invite', 'member', 'link', 'template'], kind => `.${kind}-entries`, kind => ({
      children: (state.collections[kind] ?? []).map(thing => entryView(kind, thing)),
    })),
    ...each(['token', 'invite', 'link'], kind => `.${kind}-entries ~ .secret-place`, kind => ({
      children: state.secret?.kind === kind ? secretView(state.secret) : [],
    })),
  };

  let bound = null; // the elements of BINDINGS, with the functions of their properties

  // A pressed element must not move before its release, or the click hits something else.
  const press = { until: 0, rendersLater: false };

  function endPress() {
    press.until = 0;
    if (press.rendersLater) setTimeout(render);
  }

  function render() {
    press.rendersLater = Date.now() < press.until;
    if (press.rendersLater) setTimeout(() => press.rendersLater && render(), PRESS_PATIENCE);
    else paint();
  }

  // Where the composer isn't, the title is the place to begin from.
  function focusStart() {
    find(find('.composer').hidden ? 'h1' : '.new-todo').focus({ preventScroll: true });
  }

  function paint() {
    const focused = document.activeElement;
    const row = focused.closest('.todo-list li, .trash-row');
    const place = row && shownRows().indexOf(row);
    const known = facts();
    shown = null;
    bound ??= Object.entries(BINDINGS).map(([selector, properties]) => [findAll(selector), properties]);
    fillDetails();
    for (const [nodes, properties] of bound) {
      const values = properties(known);
      for (const node of nodes) setAll(node, values);
    }
    renewLater(lateChunks, whenIdle, ...chunksNow());
    growTitle();
    document.title = `${gate.resolve ? gateTitle() : viewTitle()} · tornado_todo`;
    if (document.activeElement === focused) return;
    if (focused.isConnected) focused.focus({ preventScroll: true });
    else if (!row || !focusIn(rowOf(row.dataset.id) ?? shownRows().slice(0, place + 1).at(-1))) focusStart();
  }

  // ---- Trash -------------------------------------------------------------------------------------------

  function trashRow(kind, item) {
    const { id, title, deleted_at: at } = item;
    const list = listById(item.list);
    const where = kind === 'lists' ? 'List' : (list?.title ?? 'a deleted list');
    const isFixed = kind === 'todos' && isLocked(item);
    // A deleted list can only be restored; the server removes it automatically later. To-dos in
    // another user's list can be deleted for good only by its owner.
    const isOwn = kind === 'todos' && !isOthers(list);
    return lineView('.trash-row', id, title, [`${where} · deleted `, agoTime(at)],
      !isFixed && labelled('button.restore', `Restore ${title}`, () => restoreFromTrash(kind, item), icon('restore'),
        'Restore'),
      !isFixed && isOwn &&
        labelled('icon-button.purge', `Delete ${title} for good`, () => purgeTodo(item), icon('trash')));
  }

  function trashView() {
    if (!isTrash()) return [];
    const lists = state.trashedLists.map(list => trashRow('lists', list));
    return [...lists, ...state.items.map(item => trashRow('todos', item))];
  }

  function restoreFromTrash(kind, { id, title }) {
    command({
      words: `Restored ${quoted(title)}`,
      request: { method: 'POST', path: `/api/${kind}/${id}/restore` },
      apply: draft => removeIn(draft, kind === 'lists' ? 'trashedLists' : 'items', id),
      rereads: true,
      toast: `Restored ${quoted(title)}.`,
    });
  }

  async function purgeTodo({ id, title }) {
    if (!(await confirmed(`Delete ${quoted(title)} for good?`, 'This can’t be undone.'))) return;
    command({
      request: { method: 'DELETE', path: `/api/todos/${id}?deleted=true` },
      apply: draft => removeIn(draft, 'items', id),
      said: `${title}: deleted for good.`,
    });
  }

  async function emptyTrash() {
    const text = 'Every to-do in it is deleted for good. This can’t be undone.';
    if (!(await confirmed('Empty the trash?', text))) return;
    command({
      request: { method: 'DELETE', path: '/api/todos?deleted=true' },
      apply: draft => {
        if (!isTrash()) return;
        draft.items = draft.items.filter(item => isOthers(listById(item.list)));
        draft.next = null;
      },
      rereads: true,
      toast: 'The trash is empty.',
    });
  }

  // ---- Dialogs -----------------------------------------------------------------------------------------

  // Shows a dialog with these texts and this element focused; returns the value of the button that closes it.
  function answerOf(selector, focus, texts = {}) {
    const dialog = find(selector);
    for (const [part, text] of Object.entries(texts)) find(part, dialog).textContent = text;
    dialog.returnValue = '';
    dialog.showModal();
    find(focus, dialog).focus();
    return new Promise(resolve => {
      dialog.addEventListener('close', () => resolve(dialog.returnValue), { once: true });
    });
  }

  // The answer is yes, no, or empty after Escape. With `name`, the user edits that, and it is the result.
  function chosen(title, text, { yes = 'Delete for good', no = 'Keep', isSafe = false, name = null } = {}) {
    const field = find('#ask-name');
    Object.assign(field, { value: name, required: name !== null });
    field.closest('.field').hidden = name === null;
    find('.confirm-text').hidden = !text;
    find('.confirm-yes').classList.toggle('danger', !isSafe);
    find('.confirm-no').value = name === null ? 'no' : '';
    const texts = { '#confirm-title': title, '.confirm-text': text, '.confirm-yes': yes, '.confirm-no': no };
    return answerOf('.confirm', name !== null ? '#ask-name' : isSafe ? '.confirm-yes' : '.confirm-no', texts);
  }

  const confirmed = async (...question) => (await chosen(...question)) === 'yes';
  const asked = (title, name) => chosen(title, '', { yes: 'Save', no: 'Cancel', isSafe: true, name });

  // Only a press that begins on the veil closes: a drag over a text may end there.
  let isOnVeil = false;

  function pressDialog(dialog, event) {
    const { left, right, top, bottom } = dialog.getBoundingClientRect();
    const { clientX: x, clientY: y } = event;
    isOnVeil = event.target === dialog && (x < left || x > right || y < top || y > bottom);
  }

  function clickDialog(dialog, event) {
    if (event.target === dialog && isOnVeil) dialog.close();
  }

  // ---- Details of a to-do ------------------------------------------------------------------------------

  function openDetail(item, { takeFocus = true } = {}) {
    saveDetails();
    Object.assign(state, { history: [], nextHistory: null, commenting: null });
    find('.comment-form').reset();
    const subtasks = isParent(item) ? state.items.filter(({ parent }) => parent === item.id) : [];
    keep({ open: savedThing('todos', item.id) ?? item, comments: [], subtasks });
    settleLayout();
    loadHistory();
    loadPeople();
    for (const part of findAll('.detail, .detail-body')) part.scrollTop = 0;
    if (!takeFocus) return;
    find(coveringDetail.matches ? '.detail-close' : '.detail-title').focus();
    find('.detail-title').setSelectionRange(0, 0);
    find('.detail-title').scrollTop = 0;
  }

  function closeDetail() {
    if (!saved.open) return;
    saveDetails();
    const hadFocus = find('.detail').contains(document.activeElement);
    const row = rowOf(saved.open.id);
    keep({ open: null, subtasks: [] });
    settleLayout();
    if (!hadFocus) return;
    if (row?.isConnected) focusIn(row);
    else focusStart();
  }

  // Opens a to-do that the view may not have.
  async function openById(id) {
    const item = itemById(id) ?? (await getJson(`/api/todos/${id}`).catch(error => complain(expected(error).message)));
    if (item) openDetail(item);
  }

  function addSubtask() {
    const field = find('.new-subtask');
    const title = oneLine(field.value);
    if (!title || complainOfTitle(title)) return;
    empty(field);
    const { id: parent, list } = state.open;
    putTodo({ title, parent, list }, '', {
      said: `Added ${title}.`,
      failed: () => void (field.value ||= title),
    });
  }

  function subtaskView(item) {
    const { id, title, completed } = item;
    const box = { type: 'checkbox', 'aria-label': title, checked: completed, disabled: isLocked(item) };
    return h('li.row', { key: id, '.completed': completed },
      h('input.toggle', { ...box, ...action(() => toggleTodo(itemById(id))) }),
      button('subtask', { dir: 'auto', ...action(() => openById(id)) }, title),
      isParent(item) && h('span.soft', {}, progress(item)));
  }

  // Where field-sizing isn't known the title's box is fitted by hand.
  let grownFor = '';

  function growTitle() {
    const title = find('.detail-title');
    if (!state.open || title.value === grownFor) return;
    grownFor = title.value;
    title.style.height = 'auto';
    title.style.height = `${title.scrollHeight}px`;
  }

  const removableTag = tag => filterChip(tag, `Remove the tag ${tag}`, { key: tag, ...action('removeTag', tag) });
  const detailFields = () => findAll('.detail [data-field]');

  function fillDetails() {
    if (!state.open) return;
    setAll(find('.repeat-on'), repeatOn(state.open));
    for (const field of detailFields()) fillText(field, draftOf('todos', state.open, field.dataset.field));
  }

  function saveDetails() {
    if (!state.open) return;
    addTag();
    addSubtask();
    detailFields().forEach(saveField);
  }

  function saveField(field) {
    const draft = drafts.get(field);
    if (!draft || (isHalfTyped(field) ? complainOfHalf(field) : !isTyped(field))) return;
    const value = valueOf(field);
    const isTitle = draft.name === 'title';
    if (isTitle && !value) field.value = draft.base;
    if (isTitle && (!value || complainOfTitle(value))) return;
    const typed = textsOf(field);
    showValue(field, draft.name, value);
    drafts.set(field, { ...draft, base: value, shown: shownIn(field) });
    if (value === draft.base) return;
    changeText(draft, value, () => {
      // The view rolls back to the server's state, the field keeps what was typed.
      if (drafts.get(field)?.id === draft.id) {
        setTexts(field, typed);
        drafts.set(field, draft);
      } else waiting.set({ ...draft, text: value }, 'field');
      return false;
    });
  }

  let shownNotes = {}; // described again only when they have changed

  function notesView(isFixed) {
    const text = find('.detail-notes').value;
    const isSame = text === shownNotes.text && isFixed === shownNotes.isFixed;
    if (!isSame) shownNotes = { text, isFixed, views: notesViews(text, isFixed ? null : tickNote) };
    return shownNotes.views;
  }

  function tickNote(number) {
    const field = find('.detail-notes');
    const lines = field.value.split('\n');
    lines[number] = lines[number].replace(/\[([ xX])\]/, (box, mark) => (mark === ' ' ? '[x]' : '[ ]'));
    field.value = lines.join('\n');
    saveField(field);
  }

  const clickNotes = (view, { target }) =>
    target.closest('a, label') || !getSelection().isCollapsed || isLocked(state.open) || find('.detail-notes').focus();

  const saveNotesSoon = debounce(() => saveField(find('.detail-notes')), NOTES_PAUSE);

  // A year of two digits is in this century. A past one is probably half of a year, such as the 20 of
  // 2031; the field's limits refuse it.
  function isWholeDate(field) {
    const [, year, rest] = /^00(\d\d)(-.*)$/.exec(field.value) ?? [];
    if (2000 + Number(year) >= new Date().getFullYear()) field.value = `20${year}${rest}`;
    return field.validity.valid;
  }

  const isHalfTyped = field => field.matches('fieldset') && !inputsOf(field).every(isWholeDate);

  // A half-typed value stays while the cursor is in it, also while another window has the focus.
  function complainOfHalf(field) {
    if (field.contains(document.activeElement)) return true;
    const what = drafts.get(field).name === 'repeat' ? 'repeat' : 'date';
    complain(`The ${what} is not complete. The previous one was kept.`);
    beginText(field, drafts.get(field));
    return true;
  }

  // A browser reports a date after each key: the year 2026 is also the years 2, 20 and 202. The fields of a
  // fieldset are read when it is left, at Enter, or after a pause.
  function typeField() {
    paint();
    saveFieldsSoon();
  }

  const saveFieldsSoon = debounce(() => findAll('fieldset[data-field]').forEach(saveField), DUE_PAUSE);

  function showMoment(value) {
    const isTimed = value?.includes('T');
    return [value ? dayText(dueMoment(value)) : '', isTimed ? timeText(dueMoment(value)) : ''];
  }

  // A choice, like a text, replaces only the one that the user saw.
  function choose(item, name, value, more) {
    changeText(draftOf('todos', item, name), value, () => false, more);
  }

  // A button replaces what is half typed in the fields beside it.
  function chooseIn(field, value) {
    const { name } = drafts.get(field);
    beginText(field, drafts.get(field));
    if (value !== state.open[name]) choose(state.open, name, value, { said: `${fieldWords(name, value)}.` });
  }

  function quickDue(value, chip) {
    const { days } = chip.dataset;
    const time = find('.detail-time').value;
    chooseIn(chip.closest('fieldset'), days ? dueOf(dayFromNow(Number(days)), time) : null);
  }

  function skipOpen() {
    saveDetails();
    const { id, title, revision } = state.open;
    const request = { method: 'POST', path: `/api/todos/${id}/skip${zoneQuery()}` };
    const words = `Skipped ${quoted(title)} once`;
    command({
      kind: 'todos',
      words,
      offersUndo: true,
      // Sent again by the next page, it must not skip once more.
      typed: { request: { ...request, headers: { 'If-Match': `"${revision}"` } }, words },
      request,
      accept: () => loadHistory(),
    });
  }

  // Minutes before a day are read as a time on that day or on one before it.
  function reminderText({ at, before, of }, item) {
    if (at) return friendlyDue(at).text;
    const moment = item[of ?? 'due'];
    const tail = of ? ' the start' : '';
    if (moment && !moment.includes('T')) {
      const days = Math.ceil(before / 1440);
      const count = plural(Math.abs(days), 'day', 'days');
      const day = days ? `${count} ${days > 0 ? 'before' : 'after'}${tail}` : `On the day${of ? ' of the start' : ''}`;
      return `${day}, ${clockFormat(new Date(2000, 0, 1, 0, days * 1440 - before))}`;
    }
    if (before === 0) return of ? 'At the start' : 'When it is due';
    const [unit, size] = [['day', 1440], ['hour', 60], ['minute', 1]].find(([, length]) => before % length === 0);
    return `${plural(Math.abs(before) / size, unit, `${unit}s`)} ${before > 0 ? 'before' : 'after'}${tail}`;
  }

  function commonReminders(item) {
    if (!item?.due) return [];
    return (item.due.includes('T') ? [0, 10, 30, 60, 1440] : [-540, 900, 9540]).map(before => ({ before }));
  }

  function changeReminders(renew) {
    const item = state.open;
    const reminders = renew(item.reminders ?? []);
    change('todos', item, { reminders }, `Changed the reminders of ${quoted(item.title)}`);
  }

  function addReminder(before) {
    if (before) changeReminders(reminders => [...reminders, { before: Number(before) }]);
  }

  function addReminderAt() {
    const field = find('.reminder-at');
    const [day, time] = field.value.split('T');
    if (time) changeReminders(reminders => [...reminders, { at: dueOf(day, time) }]);
    else complain('Choose a day and a time first.');
    field.value = '';
  }

  function reminderChip(reminder, index) {
    const text = reminderText(reminder, state.open);
    const remove = () => changeReminders(reminders => reminders.toSpliced(index, 1));
    return filterChip(text, `Remove the reminder ${text}`, { key: index, ...action(remove) }, 'bell');
  }

  const typedTags = (item, text) => ({ ...draftOf('todos', item, 'tags'), text });

  // Takes or adds single tags, so that other users' new tags stay.
  function changeTags(item, renew, typed, more) {
    const changed = ({ tags }) => ({ tags: splitTags(renew(tags).join(',')) });
    seen.set(item.id, savedThing('todos', item.id) ?? item);
    const words = `Changed the tags of ${quoted(item.title)}`;
    change('todos', item, changed(item), words, { typed, ...overKnown('todos', item.id, changed), ...more });
  }

  function addTag() {
    const input = find('.detail-tag');
    const { value } = input;
    empty(input);
    if (state.open) addTags(state.open, value);
  }

  function addTags(item, text, more) {
    const all = known => splitTags([...known, text].join(','));
    if (all(item.tags).length > item.tags.length) changeTags(item, all, typedTags(item, text), more);
  }

  function removeTag(tag) {
    changeTags(state.open, tags => tags.filter(other => other !== tag));
    find('.detail-tag').focus();
  }

  // ---- History -----------------------------------------------------------------------------------------

  // The words follow from the names and values that the API has, so that a new field needs none here.
  const VALUES = {
    priority: level => PRIORITIES[level],
    list: id => listById(id)?.title ?? 'another list',
    parent: id => quoted((itemById(id) ?? state.parents.get(id))?.title ?? 'another to-do'),
    repeat: repeatWords,
    reminders: reminders => reminders.map(each => reminderText(each, {})).join(', '),
  };
  const isNothing = value => !value || value.length === 0;
  const capitalised = text => text.charAt(0).toUpperCase() + text.slice(1);
  const fieldName = name => capitalised(name.replaceAll('_', ' '));

  function momentWords(value) {
    const moment = dueMoment(value);
    const day = (moment.getFullYear() === new Date().getFullYear() ? dayFormat : yearFormat)(moment);
    return value.includes('T') ? `${day}, ${clockFormat(moment)}` : day;
  }

  function valueWords(name, value) {
    if (isNothing(value)) return '';
    if (VALUES[name]) return VALUES[name](value);
    if (Array.isArray(value)) return value.join(', ');
    if (/^\d{4}-\d\d-\d\d(?:T|$)/.test(value)) return momentWords(value);
    return typeof value === 'string' ? quoted(value) : String(value);
  }

  function fieldWords(name, value) {
    return isNothing(value) ? `${fieldName(name)} removed` : `${fieldName(name)} ${valueWords(name, value)}`;
  }

  const ACTION_WORDS = {
    create: 'created it',
    delete: 'moved it to the trash',
    restore: 'restored it',
    purge: 'deleted it for good',
  };
  const BESIDE = /_at$|^(?:id|url|revision|order|comments)$/; // follow from other changes

  function fieldSentence(name, before, after) {
    const [from, to] = [before, after].map(value => valueWords(name, value));
    if (name === 'completed') return after ? 'completed it' : 'reopened it';
    if (!from) return `set ${fieldName(name)} to ${to}`;
    return to ? `changed ${fieldName(name)} from ${from} to ${to}` : `removed ${fieldName(name)}, which was ${from}`;
  }

  function changeSentence({ action, before, after }) {
    if (ACTION_WORDS[action]) return ACTION_WORDS[action];
    const { text } = (after ?? before)?.comment ?? {};
    if (action.startsWith('comment-')) return `${action.slice(8)} a comment${text ? `: ${quoted(text)}` : ''}`;
    if (!before || !after) return before ? 'moved it to another list' : 'moved it here from another list';
    const isChanged = name => !BESIDE.test(name) && JSON.stringify(before[name]) !== JSON.stringify(after[name]);
    const changed = Object.keys({ ...before, ...after }).filter(isChanged);
    return changed.map(name => fieldSentence(name, before[name], after[name])).join('; ') || 'moved it within the list';
  }

  const describeChange = change => capitalised(changeSentence(change));

  // In a list of one's own it was always oneself.
  function whoDid({ user }) {
    if (!isShared(listById(state.open?.list)) || user === undefined) return '';
    return user === access.session?.user && !access.link ? 'You' : (user ?? 'A deleted user');
  }

  function historyEntry(change) {
    const who = whoDid(change);
    const what = change.problem ?? (who ? `${who} ${changeSentence(change)}` : describeChange(change));
    const undoIt = () => undo({ words: what, batch: change.batch });
    return h('li.history-entry', { key: change.revision },
      h('span.history-what', { dir: 'auto' }, what),
      change.at && h('span.row.apart.soft', {},
        h('time', { dateTime: change.at, title: fullFormat(change.at) }, clockFormat(change.at)),
        !isLocked(state.open) && labelled('link', `Undo: ${what}`, undoIt, 'Undo')));
  }

  function historyView() {
    const dayOf = ({ at }) => at && dayText(new Date(at));
    return state.history.flatMap((change, index, all) => [
      change.at && dayOf(change) !== dayOf(all[index - 1] ?? {}) &&
        h('li.history-day.soft', { key: dayOf(change) }, friendlyDue(dayOf(change)).text),
      historyEntry(change),
    ]);
  }

  async function loadHistory(query = `?limit=${PAGE_SIZE}`) {
    const item = state.open;
    if (!item || item.pending || !find('.history').open) return;
    const isMore = query === state.nextHistory;
    try {
      const { items, next } = await getPage(`/api/todos/${item.id}/history${query}`);
      if (state.open?.id !== item.id || (isMore && query !== state.nextHistory)) return;
      Object.assign(state, { history: isMore ? [...state.history, ...items] : items, nextHistory: next });
    } catch (error) {
      if (isMore) announce(error.message);
      else Object.assign(state, { history: [{ problem: error.message }], nextHistory: null });
    }
    render();
  }

  // ---- Who does it, and comments -----------------------------------------------------------------------

  // Nobody but the members of the list is offered: no other name is known here.
  const membersOf = list => state.members[list] ?? [];
  const assignable = item => [...new Set([...membersOf(item?.list), item?.assignee])].filter(Boolean);

  async function loadMembers(list) {
    if (!isShared(listById(list)) || access.link) return;
    const members = await getJson(`/api/lists/${list}/members`).catch(() => []);
    state.members = { ...state.members, [list]: members.map(({ name }) => name) };
    render();
  }

  async function loadPeople() {
    const item = state.open;
    if (!item || item.pending) return;
    loadMembers(item.list);
    const hasComments = item.comments > 0 || saved.comments.length > 0;
    const hasSubtasks = isParent(item) || saved.subtasks.length > 0;
    if (!hasComments && !hasSubtasks) return;
    const { writes } = state;
    const [comments, subtasks] = await Promise.all([
      hasComments ? getJson(`/api/todos/${item.id}/comments`) : [],
      hasSubtasks ? getJson(`/api/todos?parent=${item.id}&limit=${MAXIMUM_LIMIT}`) : [],
    ]).catch(() => [saved.comments, saved.subtasks]);
    if (state.open?.id !== item.id) return;
    if (writes === state.writes && !queue.running) keep({ comments, subtasks });
    else queue.idle.then(loadPeople);
    render();
  }

  function commentView({ id, author, text, created_at: at, edited_at: edited, deleted_at: deleted }) {
    const isMine = !deleted && author === access.session?.user && !isLocked(state.open);
    const mayRemove = isMine || (!deleted && !isOthers(listById(state.open.list)) && !isLocked(state.open));
    return h('li', { key: id },
      h('div.row.wrap.soft', {},
        h('strong', { dir: 'auto' }, author ?? 'Somebody'), agoTime(at), edited && !deleted && 'edited',
        isMine && labelled('link', `Edit: ${text}`, () => editComment(id, text), 'Edit'),
        mayRemove && labelled('link', `Delete: ${text}`, () => removeComment(id), 'Delete')),
      deleted ? h('em.soft', {}, 'This comment was deleted.')
        : h('div.comment-text', { dir: 'auto' }, formed(text, LINKS)));
  }

  function editComment(id, text) {
    state.commenting = id;
    const field = find('.comment-form textarea');
    field.value = text;
    render();
    field.focus();
  }

  // Adds a comment with these fields, or changes the fields of the one with this id.
  function changeComments(method, id, fields, { body, ...more }) {
    const { id: todo, comments: count } = state.open;
    const path = `/api/todos/${todo}/comments${id && `/${id}`}`;
    state.commenting = null;
    command({
      ...(id ? { request: { method, path, body } } : postedOnce(path, body)),
      rereads: true,
      apply: draft => {
        const comments = id ? renewed(draft.comments, id, fields) : [...draft.comments, fields];
        if (draft.open?.id === todo) Object.assign(draft, { comments });
        changeIn(draft, 'todos', todo, { comments: count + { POST: 1, PATCH: 0, DELETE: -1 }[method] });
      },
      failed: body && (error => giveBack(body.text, error, state.open?.id === todo && find('.comment-form textarea'))),
      ...more,
    });
  }

  function sayComment({ text }) {
    const { commenting: id } = state;
    const made = { id: newId(), author: access.session?.user, text, created_at: new Date().toISOString() };
    const accept = answer => keep({ comments: renewed(saved.comments, made.id, answer) });
    if (id) changeComments('PATCH', id, { text }, { body: { text }, words: 'Changed a comment' });
    else changeComments('POST', '', made, { body: { text }, words: 'Added a comment', accept });
  }

  function removeComment(id) {
    const deleted_at = new Date().toISOString();
    changeComments('DELETE', id, { deleted_at }, { words: 'Deleted a comment', offersUndo: true });
  }

  // ---- Who is here -------------------------------------------------------------------------------------

  const NO_ACCOUNTS = { user: null, kind: null, accounts: false, sign_up: 'closed', encrypted: true };
  const isLocalUser = session => session?.kind === 'local';

  // An expired link may be detected already here. The next request will report it in the view.
  function askSession() {
    return patiently(() => getJson('/api/session')).catch(error => {
      if (!access.link) console.error(expected(error));
      return { ...NO_ACCOUNTS, read_only: access.link !== null };
    });
  }

  function isSameUser(session) {
    const known = access.session;
    return known !== null && session.user === known.user && isLocalUser(session) === isLocalUser(known);
  }

  // Nothing of one user may be left for the next, neither in memory nor in the page nor unsent: a reload
  // clears it. Some browsers fill the fields again, so they are emptied before.
  // An account that takes along what a user had takes along what they are typing: the next page knows whether
  // one does, once the window that makes the account has its answer.
  async function leave(session = null) {
    if (session) await alone(() => stash({ isLeft: true }));
    else forgetStashes();
    access.leaving = true;
    await Promise.race([forgetCopy(), sleep(SLOW_START)]);
    document.documentElement.classList.add('is-starting');
    queue.jobs.length = 0;
    for (const field of findAll('input, textarea')) field.value = '';
    keep({ open: null, subtasks: [] });
    history.replaceState(null, '', '#/');
    location.reload();
    return new Promise(() => {});
  }

  // Returns whether the page handles it: by signing in again, or with the text that a link has expired.
  function noteSignedOut() {
    if (access.link) endLink();
    else if (access.session?.accounts) regainSession();
    else return false;
    return true;
  }

  // Kept when the same user is here again. For another one the page is left, and it is kept never.
  const regainSession = shared(async () => {
    // A new password, or an account made of this computer's own user, ends the session and its socket before
    // the answer with the cookie of the new one arrives.
    await access.renewing?.catch(() => {});
    let session = await askSession();
    if (access.leaving) return; // by the user who has just signed out: the page is loaded again
    // Even without a required sign-in, a signed-in user is not the machine's own.
    const hasEnded = session.user === null || (isLocalUser(session) && !isLocalUser(access.session));
    const isAsked = session.accounts && hasEnded;
    if (isAsked) session = (await openGate(session)) ?? (await forgetSession());
    // Nothing but the cookie of an ended session keeps the machine's own user out.
    const isStale = isLocalUser(session) && !access.hasForgotten;
    if (isStale) session = await forgetSession();
    if (!isSameUser(session)) await leave(session);
    access.session = session;
    if (live.socket === null) connectLater();
    if (isAsked || isStale) sync({ moved: true });
  });

  // The windows of a browser begin and forget sessions one after another: the later answer has its cookie.
  const alone = act => navigator.locks?.request(`tornado_todo.session:${root}`, act) ?? act();

  // To go on without signing in, the cookie of the ended session has to go. A session that another window, or
  // this one, has begun in the meantime stays.
  async function forgetSession() {
    access.hasForgotten = true;
    await alone(() => send('DELETE', '/api/session?ended=true').catch(() => {}));
    return askSession();
  }

  // Another tab may have signed out, or in as another user.
  async function checkSession() {
    if (access.link || !(access.session ?? gate.session)?.accounts) return;
    const session = await getJson('/api/session').catch(() => null);
    if (session === null) return;
    if (!gate.resolve && !isSameUser(session)) regainSession();
    else if (gate.resolve && session.kind === 'session') closeGate(session);
  }

  async function endSession(path) {
    saveDetails();
    if (queue.running) await Promise.race([queue.idle, sleep(3000)]);
    if (queue.jobs.length) {
      const lost = `${changesText(queue.jobs.length)} not sent yet and would be lost.`;
      if (!(await confirmed('Sign out anyway?', lost, { yes: 'Sign out', no: 'Stay' }))) return;
    }
    await send('DELETE', path);
    await leave();
  }

  // ---- Forms -------------------------------------------------------------------------------------------

  function say(part, text, tone = '') {
    const place = find('.said', part.closest('dialog') ?? part);
    place.className = `said ${tone}`;
    place.textContent = text;
  }

  function clearComplaints(form) {
    say(form, '');
    for (const complaint of findAll('.complaint', form)) complaint.remove();
    for (const field of findAll('[aria-invalid]', form)) {
      field.removeAttribute('aria-invalid');
      describe(field);
    }
  }

  function describe(field, ...more) {
    const ids = [find(`#${field.id}-hint`)?.id, ...more].filter(Boolean).join(' ');
    set(field, 'aria-describedby', ids || null);
  }

  // Each error stands at its field and is read with it; the first one takes the focus.
  function complainAt(field, message) {
    const id = `${field.id}-complaint`;
    field.closest('.field').append(create(h('p.complaint', { id, dir: 'auto' }, message)));
    field.setAttribute('aria-invalid', 'true');
    describe(field, id);
    const first = find('[aria-invalid]', field.form);
    first.focus();
    first.select?.();
  }

  function findMissing(form) {
    const missing = findAll('[required]', form).filter(field => !field.value.trim());
    for (const field of missing)
      complainAt(field, field.validity.badInput ? 'This is not a number.' : 'This is missing.');
    return missing.length > 0;
  }

  function showRefusal(form, error) {
    const errors = error.status === 401 ? [{ field: 'password', message: error.message }] : error.errors;
    const told = errors.filter(({ field }) => form.elements[field]?.closest('[hidden]') === null);
    for (const { field, message } of told) {
      // For one field the server sends a sentence, for several only the rest of each sentence.
      const { labels } = form.elements[field];
      const words = errors.length === 1 ? error.message : `${labels[0].textContent} ${message}.`;
      complainAt(form.elements[field], capitalised(words));
    }
    if (error.status === 429) holdBack(form, error.retryAfter ?? 30);
    if (error.status === 503) say(form, `${error.message} Try again in a moment.`, 'bad');
    else if (!told.length) say(form, error.message, 'bad');
  }

  // The button counts down the seconds until the next try, and then works.
  async function holdBack(form, seconds) {
    const submit = find('[type=submit]', form);
    const words = submit.textContent;
    submit.disabled = true;
    const end = Date.now() + seconds * 1000;
    for (let left = seconds; left > 0; left = Math.ceil((end - Date.now()) / 1000)) {
      submit.textContent = `${words} (in ${left < 120 ? `${left} s` : `${Math.ceil(left / 60)} min`})`;
      await sleep(1000);
    }
    submit.textContent = words;
    submit.disabled = false;
    say(form, 'You can try again now.');
  }

  // The policy of the page lets no form be sent, and none needs to be: its fields go out as JSON.
  async function submitForm(form, event) {
    event.preventDefault();
    // Password managers look at what is sent, and it must not stay readable after that.
    for (const shown of findAll('.show-password', form)) showPassword(shown, false);
    clearComplaints(form);
    if (form.hasAttribute('aria-busy') || findMissing(form)) return;
    form.setAttribute('aria-busy', 'true');
    try {
      const words = await ACTIONS[form.dataset.action](Object.fromEntries(new FormData(form)));
      form.reset();
      paint();
      if (words) say(form, words);
    } catch (error) {
      showRefusal(form, expected(error));
    } finally {
      form.removeAttribute('aria-busy');
    }
  }

  function showPassword(shown, isShown = shown.previousSibling.type === 'password') {
    shown.previousSibling.type = isShown ? 'text' : 'password';
    patch(shown, [isShown ? 'Hide' : 'Show', hiddenWords(' the password')]);
  }

  // ---- Sign-in view ------------------------------------------------------------------------------------

  // Returns the new session, or null if the user continues without one.
  function openGate(session) {
    for (const dialog of findAll('dialog[open]')) dialog.close();
    hideToast();
    const isAgain = access.session?.kind === 'session';
    if (isAgain) find('#sign-in-name').value = access.session.user;
    find('#sign-up-invite').value = inviteOf(location.hash) ?? '';
    const answer = new Promise(resolve => (gate.resolve = resolve));
    showGate(session, !isAgain && (inviteOf(location.hash) !== null || session.sign_up === 'first'));
    return answer;
  }

  function showGate(session, isSignUp) {
    Object.assign(gate, { session, isSignUp });
    paint();
    const fields = findAll(`.sign-${isSignUp ? 'up' : 'in'}-form input`);
    (fields.find(input => !input.value) ?? fields[0]).focus();
  }

  const leaveGate = () => closeGate(null);

  function closeGate(session) {
    if (!gate.resolve) return;
    for (const field of findAll('.gate input')) field.value = '';
    if (inviteOf(location.hash)) history.replaceState(null, '', '#/');
    const { resolve } = gate;
    gate.resolve = null;
    settleDisputes();
    paint();
    focusStart();
    resolve(session);
  }

  const makingWords = () => (gate.session.sign_up === 'first' ? 'Make the first account' : 'Make an account');
  const gateTitle = () => (gate.isSignUp ? makingWords() : 'Sign in');

  function gateHint() {
    if (gate.isSignUp) return 'Have an account?';
    const hints = { closed: '', invite: 'New here? Anyone with an account can send you an invitation link.' };
    return hints[gate.session.sign_up] ?? 'New here?';
  }

  function gateWords() {
    const isFirst = gate.session.sign_up === 'first';
    if (gate.isSignUp) return isFirst ? 'Welcome. There is no account here yet: make the first one.' : '';
    if (access.session?.kind !== 'session') return '';
    const waiting = queue.jobs.length;
    const kept = waiting ? `; ${changesText(waiting)} kept here and will be sent.` : '.';
    return `You have been signed out. Sign in again to go on${kept}`;
  }

  function renewSession(method, path, body, accept = () => {}) {
    access.renewing = alone(async () => {
      const response = await send(method, path, { body });
      const session = response.status === 204 ? null : await response.json();
      accept(session);
      return session;
    });
    return access.renewing;
  }

  const signIn = async fields => closeGate(await renewSession('POST', '/api/session', fields));

  async function signUp({ name, password, invite }) {
    const body = { name, password };
    if (invite.trim()) body.invite = invite.trim();
    if (gate.session.local_todos && find('#sign-up-take').checked) body.take_local_todos = true;
    const owners = session => body.take_local_todos && remember(OWNERS, [session, gate.session].map(ownerOf));
    try {
      closeGate(await renewSession('POST', '/api/users', body, owners));
    } catch (error) {
      if (error.status === 403 || error.errors?.some(({ field }) => field === 'invite')) await showGateAgain();
      throw error;
    }
  }

  // Another browser, or another window of this one, was faster to make the first account.
  async function showGateAgain() {
    const session = await askSession();
    if (session.kind === 'session') closeGate(session);
    else showGate(session, true);
  }

  // An invitation is for users without an account.
  async function invited() {
    if (!access.session && !gate.resolve) return; // the start handles it
    if (gate.resolve) {
      find('#sign-up-invite').value = inviteOf(location.hash);
      showGate(gate.session, true);
    } else if (isLocalUser(access.session) && access.session.accounts) {
      await changeUser();
    } else {
      history.replaceState(null, '', hashOf(state.view));
      showToast('You have an account already. An invitation is for people without one.');
    }
  }

  // From the machine's own user to an account. The former's pending commands have to be sent first.
  async function changeUser() {
    closeDrawer();
    saveDetails();
    await queue.idle;
    // Since the page was loaded, another user may have made the first account.
    const session = await openGate(await askSession());
    if (session) await leave(session);
    find('.sign-in-button').focus();
  }

  // ---- Collections in dialogs: sessions, tokens, invitations, members, links ---------------------------

  // The server counts the making as the first use, and notes later ones only now and then.
  const isUsed = ({ used_at: used, created_at: made }) => Boolean(used) && used !== made;
  const madeAgo = ({ created_at: made }) => h('span', {}, 'made ', agoTime(made));
  const usedAgo = ({ used_at: used }) => h('span', {}, 'last used ', agoTime(used));
  const since = at => `since ${yearFormat(at)}`;
  const expiry = ({ expires_at: end }) => end && `good until ${yearFormat(end)}`;
  let sharedList = null;

  // The texts of an entry of each collection. The button `act` removes it, and its label for screen readers ends
  // with `of`; `gone` is reported afterwards.
  const COLLECTIONS = {
    session: session => ({
      name: session.device,
      mark: session.current && 'this one',
      notes: [usedAgo(session), since(session.created_at)],
      act: 'Sign out',
      of: session.current ? 'here' : session.device,
      gone: `${session.device}: signed out.`,
    }),
    token: token => ({
      name: token.name,
      mark: token.read_only ? 'reads' : 'reads and changes',
      notes: [isUsed(token) ? usedAgo(token) : madeAgo(token), expiry(token)],
      act: 'Revoke',
      of: `the token ${token.name}`,
      gone: `${token.name} is revoked.`,
    }),
    invite: invite => ({
      name: 'Invitation',
      notes: [madeAgo(invite), expiry(invite)],
      act: 'Revoke',
      of: `the invitation made ${timeAgo(invite.created_at)}`,
      gone: 'The invitation is revoked.',
    }),
    template: template => ({
      name: template.title,
      notes: [todosText(template.todos.length), madeAgo(template)],
      choice: button('button', action(() => useTemplate(template)), 'New list', hiddenWords(` of ${template.title}`)),
      act: 'Delete',
      of: `the template ${template.title}`,
      gone: `The template ${template.title} is deleted.`,
    }),
    member: ({ name, role, since: at }) => ({
      name,
      ...(role === 'owner' ? { mark: role } : { notes: [since(at)], choice: roleChoice(name, role), act: 'Remove' }),
      of: name,
      gone: `${name} can’t see this list any more.`,
    }),
    link: link => ({
      name: 'Link',
      notes: [madeAgo(link), isUsed(link) && usedAgo(link)],
      act: 'Revoke',
      of: `the link made ${timeAgo(link.created_at)}`,
      gone: 'The link is revoked.',
    }),
  };

  // The label, the text and the words of a secret that is shown only once.
  const SECRETS = {
    token: ({ name, token }) =>
      [`The token ${name}`, token, 'This is the token. Copy it now: it is not shown again.'],
    invite: ({ link }) =>
      ['The invitation link', addressHere(link), 'Send this link to one person. Copy it now: it is not shown again.'],
    link: ({ link }) => ['The link to read this list', addressHere(link), 'Copy the link now: it is not shown again.'],
  };

  const entriesPath = kind => `/api/${['member', 'link'].includes(kind) ? `lists/${sharedList.id}/` : ''}${kind}s`;
  const entryPath = (kind, { id, name }) => `${entriesPath(kind)}/${encodeURIComponent(id ?? name)}`;

  function lineView(kind, key, name, notes, ...controls) {
    const words = h('div.words', {}, h('span.entry-name', { dir: 'auto' }, name), h('span.soft', {}, notes));
    return h(`li${kind}.entry.row.wrap`, { key, 'data-id': key }, words, controls);
  }

  function entryView(kind, thing) {
    const { name, mark, notes = [], choice, act, of, gone } = COLLECTIONS[kind](thing);
    const texts = notes.filter(Boolean).flatMap((note, index) => (index ? [' · ', note] : [note]));
    const remove = (value, node) => removeEntry(kind, thing, gone, node);
    return lineView('', thing.id ?? name, [name, mark && [' ', h('span.chip', {}, mark)]], texts,
      choice, act && labelled('button', `${act} ${of}`, remove, act));
  }

  async function loadEntries(kind) {
    try {
      state.collections[kind] = await getJson(entriesPath(kind));
      render();
    } catch (error) {
      say(find(`.${kind}-entries`), expected(error).message, 'bad');
    }
  }

  // The entries that a dialog, or an opened part of it, shows.
  function loadShown(part) {
    const isShown = kind => find(`.${kind}-entries`, part)?.closest('.part:not([open]), [hidden]') === null;
    Object.keys(COLLECTIONS).filter(isShown).forEach(loadEntries);
  }

  // The focus goes to the neighbour, from where the next one can be removed just as well.
  function removeEntry(kind, thing, gone, node) {
    if (thing.current) return inDialog(node, () => endSession('/api/session'));
    return inDialog(node, async () => {
      const [row, dialog] = [node.closest('li'), node.closest('dialog')];
      const next = row.nextElementSibling ?? row.previousElementSibling;
      await send('DELETE', entryPath(kind, thing)).catch(error => {
        if (error.status !== 404) throw error;
      });
      state.collections[kind] = state.collections[kind].filter(other => other !== thing);
      paint();
      (find('button', next ?? dialog) ?? find('.dialog-close', dialog)).focus();
      return gone;
    });
  }

  async function makeEntry(kind, body = {}) {
    const response = await send('POST', entriesPath(kind), { body });
    const thing = await response.json();
    const [label, text, words] = SECRETS[kind](thing);
    state.collections[kind] = [thing, ...(state.collections[kind] ?? [])];
    state.secret = { kind, label, text, words };
    paint();
    find('dialog[open] .copy').focus();
    want('counts');
  }

  function secretView({ label, text, words }) {
    const field = { type: 'text', readOnly: true, value: text, 'aria-label': label };
    return [
      h('p.secret-words', { role: 'status' }, words),
      h('div.secret-line.row', {},
        h('input.secret.control', field),
        button('button.solid.copy', { key: text, ...action('copy'), 'aria-live': 'polite' }, 'Copy')),
    ];
  }

  // The server's own address can differ from the one the browser uses, so only its tail is used.
  const addressHere = link => new URL(new URL(link).hash, location.href).href;

  async function copy(value, node) {
    const field = node.previousSibling;
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
    } catch {
      // Without https there is no clipboard API, but the old command works.
      if (!document.execCommand('copy')) return;
    }
    node.textContent = 'Copied';
  }

  // A dialog opens as if for the first time: without messages, typed texts and earlier secrets.
  function openDialog(selector) {
    const dialog = find(selector);
    for (const form of findAll('form', dialog)) {
      form.reset();
      clearComplaints(form);
    }
    for (const part of findAll('.part', dialog)) part.open = false;
    Object.assign(state, { collections: {}, secret: null });
    say(dialog, '');
    paint();
    dialog.showModal();
    loadShown(dialog);
  }

  // The result of an act in a dialog is shown in the dialog: everything else lies behind it.
  async function inDialog(part, act) {
    const dialog = part.closest('dialog');
    try {
      say(dialog, (await act()) ?? '');
    } catch (error) {
      say(dialog, expected(error).message, 'bad');
      paint(); // a choice that was refused is taken back
    }
  }

  // ---- Account -----------------------------------------------------------------------------------------

  const makeToken = ({ name, may, days }) =>
    makeEntry('token', { name: oneLine(name), read_only: may === 'read', days: Number(days) });

  async function changePassword({ password, new_password }) {
    await renewSession('PATCH', '/api/user', { password, new_password });
    return 'The password is changed. All other devices are signed out.';
  }

  async function deleteAccount({ password }) {
    await send('DELETE', '/api/user', { body: { password } });
    await leave();
  }

  // ---- Sharing -----------------------------------------------------------------------------------------

  // A signed-in user who opens a link has lists to go back to.
  async function offerOwnLists() {
    const session = await getJson('/api/session', { asSelf: true }).catch(() => null);
    state.hasOwnLists = Boolean(session?.user);
    render();
  }

  function endLink() {
    closeDetail();
    keep({ lists: [], items: [], next: null });
    state.problem = new Problem(401, 'This link is no longer valid.');
    live.isOver = true;
    render();
  }

  function openSharing() {
    sharedList = currentList();
    openDialog('.share');
    find('#member-name').focus();
  }

  function roleChoice(name, role) {
    const acts = action((chosen, field) => inDialog(field, () => putMember(name, chosen)));
    const options = Object.entries(ROLES).map(([value, words]) => option(value, `can ${words}`, value === role));
    return h('select.role.control', { ...acts, 'aria-label': `What ${name} can do` }, options);
  }

  async function putMember(name, role) {
    await send('PUT', entryPath('member', { name }), { body: { role } });
    await loadEntries('member');
    want('counts');
    return `${name} can ${ROLES[role]} now.`;
  }

  async function addMember({ name, role }) {
    const words = await putMember(name.trim(), role);
    find('#member-name').focus();
    return words;
  }

  // ---- Live changes ------------------------------------------------------------------------------------

  const live = { socket: null, attempt: 0, timer: null, isOver: false, heard: 0, watched: Date.now() };

  function connect() {
    clearTimeout(live.timer);
    if (live.isOver || gate.resolve) return; // signing in again connects
    const address = new URL(`${root}/api/events`, location.href);
    address.protocol = address.protocol === 'https:' ? 'wss:' : 'ws:';
    address.hash = '';
    if (state.revision !== null) address.searchParams.set('since', state.revision);
    // A socket can send no header, so a link's secret goes as one of its protocols.
    const socket = new WebSocket(address, access.link ? ['todo', `bearer.${access.link}`] : []);
    live.socket = socket;
    live.heard = Date.now();
    socket.addEventListener('message', event => socket === live.socket && hear(JSON.parse(event.data)));
    socket.addEventListener('close', event => socket === live.socket && disconnected(event));
  }

  function reconnect() {
    const { socket } = live;
    live.socket = null;
    socket?.close();
    abortRequests();
    connect();
  }

  function connectLater() {
    if (live.isOver) return;
    const pause = backoff(live.attempt);
    live.attempt += 1;
    clearTimeout(live.timer);
    live.timer = setTimeout(connect, pause);
  }

  function disconnected(event) {
    live.socket = null;
    if (event.code === SIGNED_OUT && noteSignedOut()) return;
    connectLater();
    // A socket may fail alone, behind a proxy without WebSockets; only a failing request means an unavailable server.
    if (live.attempt > 1) probe();
  }

  // A connection that died in a sleep stays open for the browser, the socket as well as the connections that it
  // keeps for requests. So the server is asked, and connections without an answer are given up.
  const catchUp = shared(async () => {
    if (!access.session || gate.resolve || live.isOver) return;
    try {
      const { changes, more, revision } = await askChanges(state.revision ?? newestRevision());
      const missed = changes.filter(change => change.revision > (state.revision ?? 0));
      state.revision = Math.max(state.revision ?? 0, revision);
      if (missed.length && live.socket?.readyState === WebSocket.OPEN) reconnect();
      if (more) want('all');
      else if (missed.length) applyChanges(missed);
    } catch (error) {
      if (expected(error).isTemporary) {
        state.stale = 'all';
        probe();
      } else if (error.status === 410) {
        state.revision = null;
        reconnect();
        want('all');
      }
    }
  });

  async function askChanges(after) {
    const ask = () => getJson(`/api/changes?since=${after}`, { patience: CHECK_PATIENCE });
    try {
      return await ask();
    } catch (error) {
      if (!error.isAbsence) throw error;
      reconnect();
      // Enough to have the browser drop all connections that are dead; the request after them gets a new one.
      return Promise.any(Array.from({ length: CONNECTIONS_OF_BROWSER }, ask)).catch(ask);
    }
  }

  function hear(message) {
    live.attempt = 0;
    live.heard = Date.now();
    if (message.type !== 'heartbeat') showBack();
    if (message.type === 'hello') hearHello(message);
    if (message.type === 'access') queue.idle.then(reloadAccess);
    if (message.type !== 'changes') return;
    state.revision = Math.max(state.revision ?? 0, message.revision);
    applyChanges(message.changes);
  }

  // The first hello only reports the log's revision; newer changes than those read have to be read again.
  function hearHello({ revision, reset, page }) {
    if (page !== version) renewPage();
    const isFirst = state.revision === null;
    const wasReplaced = reset || (!isFirst && revision < state.revision);
    if (isFirst || wasReplaced) state.revision = revision;
    if (wasReplaced || (isFirst && state.loaded && revision > newestRevision())) want('all');
    else if (isFirst) want('counts');
  }

  const newestRevision = () => Math.max(0, ...[...saved.lists, ...saved.items].map(({ revision }) => revision ?? 0));

  // The orders the server had to move are taken over at once, since the next move needs them; the rest of
  // other users' changes are read again in a quiet moment. Own changes are on the screen already.
  function applyChanges(changes) {
    const moved = changes.filter(({ action, after }) => action === 'reorder' && after);
    const orders = new Map(moved.map(({ todo, after }) => [todo, after.order]));
    const withOrder = item => (orders.has(item.id) ? { ...item, order: orders.get(item.id) } : item);
    keep({ items: saved.items.map(withOrder) });
    // The page knows its own batches for certain only after the answers to all commands.
    queue.idle.then(() => want(changes.some(change => !state.ownBatches.has(change.batch)) ? 'all' : 'counts'));
  }

  // A list was added, removed, or became read-only.
  async function reloadAccess() {
    if (state.problem || access.link) await sync({ moved: true });
    else {
      state.stale ||= 'counts';
      await sync();
      want('all');
    }
    if (state.open && isLocked(state.open)) saveDetails();
    if (find('.share').open && !find('.share .entries :focus')) loadShown(find('.share'));
  }

  // ---- A newer version of the page -----------------------------------------------------------------------

  const RENEWAL_PAUSE = 10_000; // ms without typing, after which the page is replaced by a newer version
  let lastTyped = 0;

  // Typed texts outlive the page, but nobody is interrupted while typing or answering a dialog.
  const renewPage = shared(async () => {
    const isBusy = () => queue.running || Date.now() - lastTyped < RENEWAL_PAUSE;
    while (isBusy() || document.querySelector('dialog[open]')) await sleep(RENEWAL_PAUSE / 5);
    location.reload();
  });

  // ---- Weather and the clock ---------------------------------------------------------------------------

  async function showWeather() {
    const { temperature, text, place } = await getJson('/api/weather').catch(() => ({}));
    state.weather = text ? `${Math.round(Number(temperature))}° and ${text} in ${place}` : null;
    render();
  }

  let shownDay = dayFromNow(0);

  // Relative times, overdue marks and the day must stay true.
  function followClock() {
    // A page left open over midnight must not call yesterday's to-dos due today.
    if (shownDay !== dayFromNow(0)) want('all');
    shownDay = dayFromNow(0);
    if (document.hidden) return;
    // After a change of the time zone the page is reloaded: all its formats are of the zone at its start.
    if (readersZone() !== zoneAtStart && !queue.jobs.length) location.reload();
    if (!state.drag) render();
  }

  // A jump of the clock shows that the computer was asleep.
  function tick() {
    followClock();
    const now = Date.now();
    const isJump = Math.abs(now - live.watched) > 3 * CLOCK_INTERVAL && !document.hidden;
    live.watched = now;
    if (isJump) wake();
    else if (live.socket && now - live.heard > MAXIMUM_SILENCE) {
      reconnect();
      catchUp();
    }
  }

  // ---- What the user does ------------------------------------------------------------------------------

  // A field undoes its own typing. An empty composer, or a field that was only filled
  // by the page, has nothing to undo.
  const typedIn = new WeakSet();
  const hasOwnUndo = field =>
    typedIn.has(field) && field.matches(TEXT_FIELD) && !field.matches('select, [type=date], [type=time]');

  // The functions that `data-action` names. They get the value of the element, or a form's fields, then the element
  // and the event.
  const ACTIONS = {
    addMember, addReminder, addReminderAt, archiveList, assignSelected, changePassword, changeUser, chooseColour,
    chooseSort, clearCompleted, clearSearch, closeDetail, closeDrawer, completeSelected, copy, dateSelected,
    deleteAccount, deleteFilter, deleteList, deleteSelected, emptyTrash, endSelection, focusStart, hideToast, leaveGate,
    leaveList, loadMore, makeToken, moveSelected, openDialog, openDrawer, openHelp, openSharing, quickDue, removeTag,
    renameFilter, saveFilter, saveTemplate, sayComment, signIn, signUp, skipOpen, startNewList,
    tagSelected, toggleAll, toggleDone, toggleOptions, toggleTag, visitPlace, wakeRetry,
    answer: ({ name }) => find('.confirm').close(oneLine(name) || 'yes'),
    closeDialog: (value, node) => node.closest('dialog').close(node.value),
    makeEntry: (kind, node) => inDialog(node, () => makeEntry(kind)),
    signOut: (path, node) => inDialog(node, () => endSession(path)),
    moveListBy: step => moveListBy(currentList(), Number(step)),
    showPassword: (value, node) => showPassword(node),
    switchForm: () => showGate(gate.session, !gate.isSignUp),
    startRename: () => startEdit('lists', currentList()),
    loadAgain: () => sync({ moved: true }),
    moreHistory: () => loadHistory(state.nextHistory),
    toggleRow: (value, node) => toggleTodo(itemOf(node)),
    openRow: (value, node) => openDetail(itemOf(node)),
    deleteRow: (value, node) => deleteTodo(itemOf(node)),
    deleteOpen: () => deleteTodo(state.open),
    nestOpen: () => nestTodo(itemById(state.open.id), { offersUndo: true }),
    liftOpen: () => liftTodo(state.open, { isTop: true, offersUndo: true }),
    chooseAssignee: name => choose(state.open, 'assignee', name || null),
    chooseList: list => moveToList(state.open, list),
    choosePriority: level => choose(state.open, 'priority', Number(level)),
    chooseSingleKeys: isChosen => remember('single-keys', isChosen),
    endSeries: (value, node) => chooseIn(node.closest('fieldset'), null),
  };

  function act(node, event) {
    const chosen = node.type === 'checkbox' ? node.checked : node.matches('input, select') ? node.value : undefined;
    return (node.act ?? ACTIONS[node.dataset.action])(node.dataset.value ?? chosen, node, event);
  }

  // A click on a title opens its details, a double click edits it. Where opening would move the row, a click of a
  // mouse waits for a second one; with a finger, double clicks are unreliable, and the details can be edited.
  let clicked = null;

  // Whether a click selects: with these keys, and with a finger once something is selected.
  const isPick = ({ shiftKey, ctrlKey, metaKey, pointerType }) =>
    shiftKey || ctrlKey || metaKey || (pointerType === 'touch' && state.selected.size > 0);

  function clickTitle(label, event) {
    clearTimeout(clicked);
    if (isPick(event) || event.target.closest('a') || event.detail > 1 || !getSelection().isCollapsed) return;
    const { id } = itemOf(label);
    const isFinger = event.pointerType === 'touch';
    const open = () => itemById(id) && state.open?.id !== id && openDetail(itemById(id), { takeFocus: isFinger });
    if (isFinger || state.open) open();
    else clicked = setTimeout(open, DOUBLE_CLICK);
  }

  function editTitle(label, event) {
    clearTimeout(clicked);
    if (!event.target.closest('a')) startEdit('todos', itemOf(label));
  }

  function pickRow(row, event) {
    // The end of a long press may count as a click.
    if (!isPick(event) || touch.isHeld || event.target.closest('button, input, a')) return;
    getSelection().removeAllRanges();
    (event.shiftKey ? selectTo : toggleSelected)(itemOf(row));
  }

  // The page's listeners: kinds of events, selector (or none), and what is done with the element.
  const EVENTS = [
    ['click', '[data-action]:not(input, select, form)', act],
    ['change', ':is(input, select)[data-action]', act],
    ['submit', 'form', submitForm],
    ['click', '.todo-list label', clickTitle],
    ['click', '.todo-list li', pickRow],
    ['pointerdown', '.todo-list li', beginTouch],
    ['pointermove', '.todo-list li', followTouch],
    ['pointerup', '.todo-list li', endTouch],
    ['pointercancel', '*', endTouch],
    ['contextmenu', '.todo-list li', (row, event) => event.pointerType === 'touch' && event.preventDefault()],
    ['dblclick', '.todo-list label', editTitle],
    ['click', '.notes-view', clickNotes],
    ['dblclick', 'h1', () => !find('.list-tools').hidden && !isOthers(currentList()) && ACTIONS.startRename()],
    ['focusout', '.edit, .rename-list', field => endInPlace(field)],
    ['focusout', '.new-list', field => field.hidden || createList()],
    ['focusout', 'fieldset[data-field]', (field, event) => field.contains(event.relatedTarget) || saveField(field)],
    ['paste drop', '.new-todo', takeLines],
    ['dragstart', '.place[data-id]', ({ dataset }) => (draggedList = dataset.id)],
    ['dragover drop', '.place[data-id]', dragListOver],
    ['dragend', '*', endListDrag],
    ['input', '.composer :is(input, select)', (field, event) => event.isComposing || readTitleSoon()],
    ['compositionend', '.new-todo', () => readTitleSoon()],
    ['input', '.search', searchSoon],
    ['input', '.detail-title', growTitle],
    ['input', '.detail-notes', () => saveNotesSoon()],
    ['input', 'fieldset[data-field]', typeField],
    ['change', '.detail-title, .detail-notes', saveDetails],
    ['change', '.detail-tag', addTag],
    ['change', '.new-subtask', addSubtask],
    ['toggle', '.history', () => loadHistory()],
    ['toggle', '.part', loadShown],
    ['pointerdown', '.grip', startDrag],
    ['pointermove', '.grip', followDrag],
    ['pointerup', '.grip', dropDrag],
    ['pointercancel', '.grip', endDrag],
    ['pointerdown', 'dialog:not(.dispute)', pressDialog],
    ['click', 'dialog:not(.dispute)', clickDialog],
    ['cancel', '.dispute', (dialog, event) => event.preventDefault()],
    ['close', '.share', () => want('counts')],
    ['keydown', '*', pressKey],
    ['contentvisibilityautostatechange', '.chunk', moveChunk],
    ['input', '*', field => typedIn.add(field)],
    ['input', '*', () => (lastTyped = Date.now())],
    // A press, a key, or an entry may change what has to outlive the page.
    ['input keydown click', '*', stashSoon],
    ['pointerdown', '*', () => (press.until = Date.now() + PRESS_PATIENCE)],
    ['pointerup pointercancel', '*', endPress],
    // Of the window and the document.
    ['hashchange', null, hashChanged],
    ['popstate', null, historyMoved],
    ['online', null, wake],
    ['beforeprint afterprint', null, notePrinting],
    ['pagehide', null, leavePage],
    ['pageshow', null, returnToPage],
    ['beforeunload', null, (page, event) => stash() || event.preventDefault()], // or what is kept here would be lost
    ['visibilitychange', null, noteVisibility],
  ].flatMap(([kinds, ...row]) => kinds.split(' ').map(kind => [kind, ...row]));

  function dispatch(event) {
    for (const [kind, selector, handle] of EVENTS) {
      if (kind !== event.type) continue;
      const node = selector ? event.target.closest?.(selector) : event.target;
      if (node) handle(node, event);
    }
  }

  // ---- Keys --------------------------------------------------------------------------------------------

  const ROW = '.todo-list li :not(.edit)';
  const TEXT_FIELD = 'textarea, select, input:not([type=checkbox], [type=radio], [type=button])';
  const FREE = `:not(${TEXT_FIELD})`;
  const SHOWS = { 1: 'all', 2: 'active', 3: 'completed' };

  // Keys, where they work, what they do (false leaves the key to the browser), and words for the help.
  const KEYS = [
    [['n'], FREE, focusStart, 'New to-do'],
    [['/'], FREE, focusSearch, 'Search'],
    [['1', '2', '3'], FREE, (node, key) => goTo({ show: SHOWS[key] }), 'All, active, completed'],
    [['Enter'], '.new-todo, .new-due, .new-tags', createTodo],
    [['ArrowDown'], '.new-todo', () => focusIn(find('.todo-list li'))],
    [['ArrowUp', 'ArrowDown'], ROW, stepToRow, 'From to-do to to-do'],
    [['Shift+ArrowUp', 'Shift+ArrowDown'], ROW, selectByKey, 'Select several; then Esc ends that'],
    [['x'], ROW, node => recall('single-keys', true) && toggleSelected(itemOf(node)), 'Select it, or not'],
    [['Mod+a'], ROW, node => select(new Set(shownItems().map(({ id }) => id)), itemOf(node).id), 'Select all shown'],
    [['Space'], ROW, () => false, 'Complete the to-do'],
    [['Enter'], '.todo-list .toggle', node => openDetail(itemOf(node)), 'Its details'],
    [['F2'], ROW, node => startEdit('todos', itemOf(node)), 'Edit its title, as a double-click does'],
    [['Delete'], ROW, node => (state.selected.size ? deleteSelected() : deleteTodo(itemOf(node))),
      'Move it to the trash'],
    [['Alt+ArrowUp', 'Alt+ArrowDown'], ROW, moveByKey, 'Move it up or down'],
    [['Alt+ArrowRight', 'Alt+ArrowLeft'], ROW, nestByKey, 'Make it a subtask of the to-do above, or undo that'],
    [['ArrowRight', 'ArrowLeft'], ROW, branchByKey, 'Show or hide its subtasks'],
    [['Alt+ArrowUp', 'Alt+ArrowDown'], '.place[data-id]', (node, key) =>
      moveListBy(listById(node.dataset.id), key === 'ArrowUp' ? -1 : +1)],
    [['Enter'], '.edit, .rename-list', field => endInPlace(field)],
    [['Escape'], '.edit, .rename-list', field => endInPlace(field, { saves: false })],
    [['Enter'], '.new-list', createList],
    [['Escape'], '.new-list', endNewList],
    [['Enter'], '.search', search],
    [['Enter'], '.detail-title', saveDetails],
    [['Escape'], '.detail-title', discardTitle],
    [['Enter'], '.detail fieldset input', input => saveField(input.closest('fieldset'))],
    [['Enter', ','], '.detail-tag', addTag],
    [['Enter'], '.new-subtask', addSubtask],
    [['Backspace'], '.detail-tag', removeLastTag],
    [['Mod+z'], '*', node => takeBackByKey(node, undo), 'Undo'],
    [['Mod+Shift+z'], '*', node => takeBackByKey(node, redo), 'Redo'],
    [['Ctrl+y'], '*', node => takeBackByKey(node, redo)],
    [['Escape'], '*', escape, 'Close, or discard an edit'],
    [['Mod+p'], '*', printAll, 'Print the whole list'],
    [['?'], FREE, openHelp, 'This help'],
  ];

  // The key of a shortcut. A layout without Latin letters has the shortcut where a US keyboard has it.
  function shortcutKey({ key, code, shiftKey }) {
    if (key === ' ') return 'Space';
    if (/^[\p{ASCII}\p{Script=Latin}]/u.test(key)) return key.length === 1 ? key.toLowerCase() : key;
    if (code === 'Slash') return shiftKey ? '?' : '/';
    return /^(?:Key|Digit|Numpad)(.)$/.exec(code)?.[1].toLowerCase() ?? key;
  }

  function pressKey(node, event) {
    // The Enter that ends the composing of a Chinese or Japanese word isn't meant for the page.
    if (event.isComposing || event.keyCode === 229 || find('dialog[open]')) return;
    if (gate.resolve) {
      if (event.key === 'Escape' && !find('.gate-back').hidden) leaveGate();
      return;
    }
    const key = shortcutKey(event);
    const mark = event.ctrlKey || event.metaKey;
    const isPlain = !mark && !event.altKey;
    const names = isPlain || key.length > 1 ? [key] : [];
    const extra = event.altKey ? 'Alt+' : event.shiftKey ? 'Shift+' : '';
    if (extra && key.startsWith('Arrow')) names.splice(0, 1, `${extra}${key}`);
    if (mark && !event.altKey) names.push(`Mod+${event.shiftKey ? 'Shift+' : ''}${key}`);
    if (event.ctrlKey) names.push(`Ctrl+${key}`);
    for (const [keys, selector, handle] of KEYS) {
      if (!keys.some(name => names.includes(name)) || !event.target.matches(selector)) continue;
      if (selector === FREE && !recall('single-keys', true)) continue;
      if (handle(event.target, key) === false) continue;
      event.preventDefault();
      return;
    }
  }

  function takeBackByKey(node, turn) {
    if (hasOwnUndo(node)) return false;
    saveDetails();
    turn();
    return true;
  }

  function stepToRow(node, key) {
    const all = shownRows();
    const row = all[all.indexOf(node.closest('li')) + (key === 'ArrowUp' ? -1 : +1)];
    row?.scrollIntoView({ block: 'nearest', behavior: 'instant' });
    if (!focusIn(row) && key === 'ArrowUp') focusStart();
  }

  function discardTitle(field) {
    beginText(field, drafts.get(field));
    return false;
  }

  function removeLastTag(field) {
    if (field.value !== '' || !state.open.tags.length) return false;
    removeTag(state.open.tags.at(-1));
    return true;
  }

  function escape(node) {
    if (state.drag) endDrag();
    else if (state.hasDrawer) closeDrawer();
    else if (state.selected.size) endSelection();
    else if (node.matches('.search')) endSearch(focusStart, { replace: true });
    else if (state.open && !node.matches('.new-todo')) closeDetail();
    else return false;
    return true;
  }

  function openHelp() {
    const apple = { Mod: '⌘', Shift: '⇧', Alt: '⌥' };
    const arrows = { ArrowUp: '↑', ArrowDown: '↓', ArrowLeft: '←', ArrowRight: '→' };
    const names = { Mod: 'Ctrl', Escape: 'Esc', z: 'Z', ...arrows, ...(isApple && apple) };
    const rows = KEYS.filter(([, , , words]) => words).flatMap(([keys, , , words]) => [
      h('dt', {}, [...new Set(keys.flatMap(key => key.split('+')))].map(key => h('kbd', {}, names[key] ?? key))),
      h('dd', {}, words),
    ]);
    patch(find('.keys'), rows);
    find('.single-keys').checked = recall('single-keys', true);
    answerOf('.help', '.help-close');
  }

  // ---- Start -------------------------------------------------------------------------------------------

  // The secret in the address identifies the caller, so another one is another page.
  function hashChanged() {
    if (linkOf(location.hash) !== access.link) location.reload();
    else if (inviteOf(location.hash)) invited();
    else if (!todoOf(location.hash)) followHash();
    else if (!isStepping && todoOf(location.hash) !== state.open?.id) openAddress(todoOf(location.hash));
  }

  function followHash(hash = location.hash) {
    const before = state.view;
    const view = parseHash(hash);
    if (state.loaded && hashOf(view) === hashOf(before)) return null; // only the details were closed
    saveDetails();
    saveInPlace();
    state.view = view;
    endSelection();
    const isMoved = viewKey(before) !== viewKey();
    // Only what was chosen: the ids of all lists that were looked at would outlive the session.
    if (!isMoved && before.show !== view.show) rememberHere('show', view.show);
    if (isMoved) {
      closeDetail();
      closeDrawer();
      state.loaded = false;
      scrollTo({ top: 0, behavior: 'instant' });
    }
    // A narrower filter can be shown before its answer is here.
    keep({ items: isMoved ? [] : saved.items.filter(belonging()).slice(0, PAGE_SIZE), next: null });
    const ended = sync({ moved: true });
    if (state.open) settleLayout();
    else render();
    return ended;
  }

  function leavePage() {
    if (access.leaving) return;
    const createTyped = () => find('.new-list').hidden || createList();
    for (const part of [saveDetails, saveInPlace, createTyped, flushQueue, () => stash({ isLeft: true }), letGo]) {
      try {
        part();
      } catch (error) {
        reportError(error); // the other parts must work all the same
      }
    }
  }

  // A page that "back" restores from the browser's memory may belong to another user by now.
  function returnToPage(page, { persisted }) {
    if (!persisted) return;
    holdStash();
    wake();
  }

  function noteVisibility() {
    if (document.hidden) saveDetails();
    else wake();
    stash();
  }

  function notePrinting(page, { type }) {
    state.isPrinting = type === 'beforeprint';
    paint();
  }

  function wake() {
    wakeRetry();
    followClock();
    checkSession();
    if (!access.session || gate.resolve) return;
    live.attempt = 0;
    if (live.socket === null) connect();
    catchUp();
  }

  function listen() {
    for (const kind of new Set(EVENTS.map(([name]) => name))) addEventListener(kind, dispatch, true);
    narrowScreen.addEventListener('change', () => (state.hasDrawer ? closeDrawer() : settleLayout()));
    coveringDetail.addEventListener('change', settleLayout);
    // Elements fixed to the top of the window begin below the banner.
    const banner = find('.banner');
    const { style } = document.documentElement;
    new ResizeObserver(() => style.setProperty('--banner-height', `${banner.offsetHeight}px`)).observe(banner);
  }

  // Requests for private data wait until the user is known.
  function confirmSession(session) {
    access.isAssumed = false;
    if (isSameUser(session)) access.session = session;
    else regainSession();
  }

  async function begin() {
    const asked = askSession();
    // A signed-in user sees the page at once, even while an answer is slow.
    const early = await Promise.race([asked, sleep(SLOW_START)]);
    document.documentElement.classList.remove('is-starting');
    const assumed = early || access.link ? null : await keptSession();
    let session = assumed ?? (await asked);
    const wantsAccount = inviteOf(location.hash) && session.accounts && session.kind !== 'session';
    if ((session.accounts && session.user === null && !access.link) || wantsAccount) {
      session = (await openGate(session)) ?? session;
    }
    access.session = session;
    access.isAssumed = assumed !== null;
    if (assumed) asked.then(confirmSession);
    render();
    await takeUp();
    const id = todoOf(location.hash);
    (id ? openAddress(id) : sync({ moved: true })).then(takeUpTexts);
    connect();
    if (access.link) offerOwnLists();
    else if (weather === 'True') {
      showWeather();
      setInterval(showWeather, WEATHER_INTERVAL);
    }
  }

  function start() {
    listen();
    navigator.serviceWorker?.register(`${root}/worker.js`).catch(() => {}); // some windows forbid it
    holdStash();
    if (!location.hash) history.replaceState(null, '', placeOf({}));
    state.view = parseHash(todoOf(location.hash) ? '' : location.hash);
    if (!todoOf(location.hash)) settleLayout();
    watchForMore();
    focusStart();
    setInterval(tick, CLOCK_INTERVAL);
    begin();
  }

  start();
})();
"""

PAGE_ASSETS = (("css", PAGE_CSS, "text/css"), ("js", PAGE_JS, "text/javascript"), ("svg", PAGE_ICON, "image/svg+xml"))


# ==== assembly: may call everything above =======================================================


class BuiltPage(NamedTuple):
    """The page ready to send: its HTML, validator and policy, its version, and its assets by name."""

    html: Packed
    policy: str
    version: str
    assets: dict[str, Packed]


def page_file(body: bytes, media_type: str) -> Packed:
    """A file of the page, not compressed yet."""
    return Packed(f"{media_type}; charset=utf-8", hashlib.sha256(body).hexdigest()[:20], {"": body})


def build_page(config: Config) -> BuiltPage:
    """Render the page, with asset names that contain their hashes, and a policy that allows only these assets."""
    assets, values = {}, {}
    for kind, source, content_type in PAGE_ASSETS:
        # Comments, indentation and empty lines are a fifth of the compressed bytes.
        text = re.sub(r"(?ms)^ *//[^\n]*$|^ */\*.*?\*/$|^ +| // [^\n]*$", "", source)
        text = re.sub(r"\n+", "\n", text)
        digest = hashlib.sha256(text.encode()).digest()
        name = f"{digest.hex()[:20]}.{kind}"
        assets[name] = page_file(text.encode(), content_type)
        values[f"{kind}_url"] = f"{config.prefix}/page/{name}"
        values[f"{kind}_integrity"] = f"sha256-{base64.b64encode(digest).decode()}"
    version = hashlib.sha256(f"{PAGE_HTML}{values}".encode()).hexdigest()[:20]
    template = tornado.template.Template(PAGE_HTML, name="page.html")
    more = {"weather": bool(config.weather_uri), "colours": get_args(Colour), "version": version}
    html = template.generate(base=config.prefix, **more, **values)
    policy = (
        f"default-src 'none'; script-src 'self' '{values['js_integrity']}';"
        f" style-src 'self' '{values['css_integrity']}'; worker-src 'self'; manifest-src 'self';"
        " connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'"
    )
    icon = {"src": values["svg_url"], "type": "image/svg+xml", "sizes": "any"}
    manifest = {**PAGE_MANIFEST, "icons": [{**icon, "purpose": purpose} for purpose in ("any", "maskable")]}
    assets["manifest.webmanifest"] = page_file(msgspec.json.encode(manifest), "application/manifest+json")
    assets["worker.js"] = page_file(PAGE_WORKER.encode(), "text/javascript")
    return BuiltPage(page_file(html, "text/html"), policy, version, assets)


ROUTES = (
    Route("/", PageHandler),
    Route(r"/page/{name:[0-9a-f]+\.(?:css|js|svg)}", PageAssetHandler),
    Route(r"/{name:worker\.js|manifest\.webmanifest}", PageFileHandler),
    Route("/api/todos", TodosHandler),
    Route("/api/parse", ParseHandler),
    Route("/api/todos/{todo_id}", TodoHandler),
    Route("/api/todos/{todo_id}/history", TodoHistoryHandler),
    Route("/api/todos/{todo_id}/comments", CommentsHandler),
    Route("/api/todos/{todo_id}/comments/{comment_id}", CommentHandler),
    Route("/api/todos/{todo_id}/restore", TodoRestoreHandler),
    Route("/api/todos/{todo_id}/skip", TodoSkipHandler),
    Route("/api/tags", TagsHandler),
    Route("/api/parents", ParentsHandler),
    Route("/api/statistics", StatisticsHandler),
    Route("/api/lists", ListsHandler),
    Route("/api/lists/{list_id}", ListHandler),
    Route("/api/lists/{list_id}/restore", ListRestoreHandler),
    Route("/api/lists/{list_id}/members", MembersHandler),
    Route("/api/lists/{list_id}/members/{name}", MemberHandler),
    Route("/api/filters", FiltersHandler),
    Route("/api/filters/{filter_id}", FilterHandler),
    Route("/api/templates", TemplatesHandler),
    Route("/api/templates/{template_id}", TemplateHandler),
    Route("/api/templates/{template_id}/lists", TemplateListsHandler),
    Route("/api/changes", ChangesHandler),
    Route("/api/undo", UndoHandler),
    Route("/api/events", EventsHandler),
    Route("/api/documents", DocumentsHandler),
    Route("/api/documents/{name}", DocumentHandler),
    Route("/api/records/{key}", RecordHandler),
    Route("/api/weather", WeatherHandler),
    Route("/api/health", HealthHandler),
    Route("/api/health/live", LiveHandler),
    Route("/api/export", ExportHandler),
    Route("/api/session", SessionHandler),
    Route("/api/user", UserHandler),
    Route("/api/openapi.json", OpenAPIHandler),
    Route("/api/docs", DocsHandler),
    Route("/api/sessions", SessionsHandler, accounts_only=True),
    Route("/api/sessions/{credential_id}", EndCredentialHandler, accounts_only=True),
    Route("/api/users", SignUpHandler, accounts_only=True),
    Route("/api/tokens", TokensHandler, accounts_only=True),
    Route("/api/tokens/{credential_id}", EndCredentialHandler, accounts_only=True),
    Route("/api/invites", InvitesHandler, accounts_only=True),
    Route("/api/invites/{credential_id}", EndCredentialHandler, accounts_only=True),
    Route("/api/lists/{list_id}/links", LinksHandler, accounts_only=True),
    Route("/api/lists/{list_id}/links/{link_id}", LinkHandler, accounts_only=True),
)


def served_routes(config: Config, has_accounts: bool) -> list[Route]:
    """Every address that an app serves."""
    served = [route for route in ROUTES if has_accounts or not route.accounts_only]
    served += [Route("/static/{path:.*}", StaticHandler)] if config.static_path else []
    return served + ([Route("", PrefixHandler)] if config.prefix else [])


class TodoApplication(tornado.web.Application):
    """Tornado's Application: `state` answers its requests, except those for an embedder's handlers."""

    # Jupyter's server reads from each target of a route which methods need no sign-in to Jupyter.
    SUPPORTED_METHODS: tuple[str, ...] = ()

    def __init__(self, state: App, **settings: Any):
        super().__init__([], **settings)
        self.state = state

    def _has_added(self) -> bool:
        return len(self.default_router.rules) > 1 or bool(self.wildcard_router.rules)

    def start_request(self, server_conn: object, request_conn: Any) -> tornado.httputil.HTTPMessageDelegate:
        """The delegate that receives a request."""
        if self._has_added():
            return super().start_request(server_conn, request_conn)
        return TornadoExchange(self, self.state, request_conn)

    def find_handler(self, request: Any, **options: Any) -> Any:
        """The delegate for a request from another application's router."""
        if self._has_added() and (added := self.default_router.find_handler(request, **options)):
            return added
        return TornadoExchange(self, self.state, request.connection)


def log_added(handler: tornado.web.RequestHandler) -> None:
    """Log a request that an embedder's handler has answered."""
    if not isinstance(handler, TornadoSocket):
        began = time.monotonic() - handler.request.request_time()
        log_request(handler.get_status(), handler.request, began=began)


def check_names(names: Iterable[object], spell: Callable[[str], str]) -> None:
    """Raise Misconfigured for a name that is not a setting in upper or lower case, with the nearest one."""
    for name in map(str, names):
        if name not in map(spell, SETTING_NAMES):
            nearest = nearest_setting(name)
            hint = f"did you mean {spell(nearest)}?" if nearest else "see SETTINGS"
            raise Misconfigured(f"{name!r} is not a setting; {hint}")


def app_config(settings: Mapping[str, str], prefix: str, overrides: Mapping[str, str]) -> Config:
    """The configuration from the arguments of `make_app`. Raises Misconfigured."""
    environ = {**settings, **{name.upper(): str(value) for name, value in overrides.items()}}
    check_names(overrides, str.lower)
    if prefix:
        environ["PREFIX"] = prefix
    if tornado.version_info < (6, 6):  # it would ignore cross_origin_protection
        raise Misconfigured(f"Tornado {tornado.version} is too old: 6.6 or later is needed")
    return Config.from_env(environ)


def app_state(config: Config, get_user: GetUser | None, checks: Mapping[str, Check]) -> App:
    """The parts of an app that answer requests."""
    services = Services(config, checks)
    origins = Origins(config, any_host=get_user is not None)
    cookies = SessionCookies(config, origins)
    authenticator = Authenticator(config, get_user, services, cookies, origins)
    hasher = PasswordHasher()
    services.closers.append(hasher.close)
    # A separate store, since a user with many records could evict the counts from the other one.
    records = services.records if config.redis else DictRecordStore(max_items=100_000)
    routes = served_routes(config, authenticator.has_accounts)
    throttle = Throttle(records, None if config.redis else services.throttles)
    return App(
        config,
        services,
        authenticator,
        cookies,
        accounts=Accounts(services.accounts, throttle, hasher, config.signup),
        proxies=Proxies(config.trusted_proxies),
        origins=origins,
        page=functools.cache(functools.partial(build_page, config)),
        router=Router(routes, config.prefix),
        openapi=functools.cache(functools.partial(OpenAPI, routes, config.public_url + config.prefix or "/")),
    )


def make_app(
    settings: Mapping[str, str] | None = None,
    *,
    prefix: str = "",
    get_user: GetUser | None = None,
    checks: Mapping[str, Check] | None = None,
    **overrides: str,
) -> TodoApplication:
    """Build the application: to listen on, or to mount in another one as `(r"/todo(?:/.*)?", app)`.

    `settings` maps the names in SETTINGS to strings; by default it is the environment. Keyword arguments of
    the same names in lower case override them. `get_user(request)` identifies the caller instead of a sign-in: from
    an `HTTPServerRequest` it returns the user's name, or None, or it raises `tornado.web.HTTPError`; its `reason` is
    shown to the caller. `checks` maps names to functions that the health check calls, too; they raise an error if
    something is wrong. All these functions may be coroutine functions. This function does no I/O: the first request
    opens the stores, or `async with lifespan(app)` does. Raises Misconfigured.
    """
    # The settings may be a copy of the environment, with variables of other programs.
    check_names((settings or {}).keys() - os.environ.keys(), str.upper)
    config = app_config(os.environ if settings is None else settings, prefix, overrides)
    given = {"get_user": get_user} if get_user is not None else {}
    for name, function in {**given, **(checks or {})}.items():
        if not callable(function):
            raise Misconfigured(f"{name} must be a function, not {function!r}")
    return TodoApplication(
        app_state(config, get_user, checks or {}),
        log_function=log_added,
        cross_origin_protection=True,
        websocket_ping_interval=30,
        websocket_max_message_size=1024,
    )


@contextlib.asynccontextmanager
async def lifespan(app: TodoApplication) -> AsyncIterator[None]:
    """Open an app's stores now, and close them at the end. Raises Misconfigured or Unavailable."""
    services: Services = app.state.services
    await services.open(None)
    try:
        yield
    finally:
        await services.close()


BACKLOG = 2048  # connections that wait to be accepted
CONNECTIONS_A_TURN = 4
LINGER_SECONDS = 2  # that a client has to read a refusal before its connection is closed


class ConnectionLimits:
    """Limits on a server's connections: their number, their idle time, and the time for the head of a request.

    Above the `maximum`, the connection that has been idle longest is closed, or, if none is idle, the one with the
    oldest request. So slow connections displace each other. A connection is identified by its method `close`.
    """

    def __init__(self, maximum: int, keep_alive: int):
        self.maximum, self._keep_alive = maximum, keep_alive
        self._idle: dict[Callable[[], object], None] = {}  # without a complete head, longest first
        self._busy: dict[Callable[[], object], None] = {}
        self._deadlines: dict[Callable[[], object], float] = {}  # of the loop's time
        self._timer: asyncio.TimerHandle | None = None
        self._lingering: set[asyncio.Task[None]] = set()
        self._beginning: collections.deque[Callable[[], object]] = collections.deque()

    def begin(self, start: Callable[[], object]) -> None:
        """Call `start` to begin a new connection's first request, soon: only a few begin in each turn of the loop.

        Otherwise a thousand that arrive together would delay those of older connections by a third of a second.
        """
        self._beginning.append(start)
        if len(self._beginning) == 1:
            asyncio.get_running_loop().call_soon(self._begin_some)

    def _begin_some(self) -> None:
        for _ in range(min(CONNECTIONS_A_TURN, len(self._beginning))):
            self._beginning.popleft()()
        if self._beginning:
            asyncio.get_running_loop().call_soon(self._begin_some)

    def _close_after(self, seconds: float, close: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        self._deadlines[close] = loop.time() + seconds
        self._timer = self._timer or loop.call_later(1.0, self._close_late)

    def _close_late(self) -> None:
        """Close late connections, once a second: timers for each request would cost five times as much."""
        loop = asyncio.get_running_loop()
        for close in [each for each, deadline in self._deadlines.items() if deadline <= loop.time()]:
            self.leave(close)
            close()
        self._timer = loop.call_later(1.0, self._close_late) if self._deadlines else None

    def become_idle(self, close: Callable[[], object], seconds: float | None = None) -> None:
        """Start the time limit for a connection that is idle, by default one after a response."""
        self._busy.pop(close, None)
        self._idle[close] = None
        self._close_after(seconds or self._keep_alive, close)

    def begin_head(self, close: Callable[[], object]) -> None:
        """Start the time limit for the head of a request when its first bytes arrive."""
        self._close_after(HEAD_SECONDS, close)

    def become_busy(self, close: Callable[[], object]) -> None:
        """Stop the time limits: the whole head of a request has arrived."""
        self._idle.pop(close, None)
        self._deadlines.pop(close, None)
        self._busy[close] = None

    def leave(self, close: Callable[[], object]) -> None:
        """Forget a connection that has ended or become a WebSocket."""
        for kept in (self._idle, self._busy):
            kept.pop(close, None)
        self._deadlines.pop(close, None)

    def make_room(self) -> None:
        """Close connections to make room for another one."""
        too_many = len(self._idle) + len(self._busy) + 1 - self.maximum
        for close in list(itertools.islice(itertools.chain(self._idle, self._busy), max(0, too_many))):
            self.leave(close)
            close()

    def linger(self, connection: socket.socket) -> None:
        """Close a connection after a refusal; an immediate close could lose it for a client that is still sending."""
        task = asyncio.get_running_loop().create_task(self._discard(connection))
        self._lingering.add(task)
        task.add_done_callback(self._lingering.discard)

    async def _discard(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, TimeoutError), connection:
            connection.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(LINGER_SECONDS):
                while await asyncio.get_running_loop().sock_recv(connection, 65536):
                    pass


def size_of_chunk(line: bytes) -> bytes:
    """The line of a chunk's size, without extensions (RFC 9112, 7.1.1). Raises HTTPInputError."""
    size, semicolon, extensions = line.removesuffix(b"\r\n").partition(b";")
    if re.search(rb"[\0-\x08\x0a-\x1f\x7f]", extensions):
        raise tornado.httputil.HTTPInputError("A chunk extension has control characters")
    return (size.rstrip(b" \t") if semicolon else size) + b"\r\n"


class ClientStream(tornado.iostream.IOStream):
    """A client's connection with limits, and with parts of RFC 9112 that Tornado lacks.

    These are chunk extensions, trailers, and responses to all requests that are malformed or too long.
    """

    def __init__(self, connection: socket.socket, limits: ConnectionLimits):
        super().__init__(connection)
        self._limits = limits
        self._is_new, self._is_idle, self._reads_head, self._is_body_over = True, False, True, False
        self._is_ahead = False  # whether bytes arrived during the last response
        self.lingers = False  # whether to end the sending side first, because the client may still be sending
        limits.become_idle(self.close, HEAD_SECONDS)

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """Read the head of a request: Tornado reads nothing else with this method."""
        self._reads_head = True
        if not self._is_new:
            self._is_idle = True
            self._limits.become_idle(self.close)
        head = cast("asyncio.Future[bytes]", super().read_until_regex(regex, max_bytes))
        if head.done():
            self._take_head(head)
        else:
            head.add_done_callback(self._take_head)
            if self._is_idle and self._is_ahead:
                self._limits.begin_head(self.close)
            elif self._is_new:
                return self._in_turn(head)
        return head

    async def _in_turn(self, head: Awaitable[bytes]) -> bytes:
        """The head of a connection's first request, when the request may begin; see ConnectionLimits.begin()."""
        text, turn = await head, asyncio.Event()
        self._limits.begin(turn.set)
        await turn.wait()
        return text

    def _take_head(self, head: asyncio.Future[bytes]) -> None:
        self._is_new = self._is_idle = self._reads_head = self._is_ahead = False
        if not head.cancelled() and head.exception() is None:
            self._limits.become_busy(self.close)

    def read_from_fd(self, buffer: bytearray | memoryview) -> int | None:
        size = super().read_from_fd(buffer)
        self._is_ahead |= bool(size) and not self.reading()
        if size and self._is_idle:
            self._is_idle = False
            self._limits.begin_head(self.close)
        return size

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """Read the size of a chunk: Tornado reads nothing else with this method."""
        line = cast("asyncio.Future[bytes]", super().read_until(delimiter, MAX_HEAD))
        if line.done() and not line.exception() and re.fullmatch(rb"0*[1-9A-Fa-f][0-9A-Fa-f]*\r\n", line.result()):
            return line
        return asyncio.ensure_future(self._read_size(line))

    async def _read_size(self, line: Awaitable[bytes]) -> bytes:
        size = size_of_chunk(await line)
        if re.fullmatch(rb"0+\r\n", size):
            await self._skip_trailers()
            self._is_body_over = True
        return size

    async def _skip_trailers(self) -> None:
        room = MAX_HEAD
        while (field := await super().read_until(b"\r\n", max(room, 2))) != b"\r\n":
            room -= len(field)
            if not re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\0-\x08\x0a-\x1f\x7f]*\r\n", field):
                raise tornado.httputil.HTTPInputError("A trailer is malformed")

    def read_bytes(self, num_bytes: int, partial: bool = False) -> Awaitable[bytes]:
        """Read a number of bytes; after the last chunk the end of a line, which has been read with the trailers."""
        if not self._is_body_over:
            return super().read_bytes(num_bytes, partial)
        self._is_body_over = False
        end: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        end.set_result(b"\r\n")
        return end

    def write(self, data: bytes | memoryview) -> asyncio.Future[None]:
        """Write; send a problem document where Tornado answers a malformed request with a bare status."""
        error = sys.exception()
        if isinstance(error, tornado.httputil.HTTPInputError):
            data, self.lingers = response_bytes(refusal(input_error_status(error), f"{error}.")), True
        return super().write(data)

    def close(self, exc_info: Any = False) -> None:
        """Close the connection, after a response if the request was too long to be read."""
        if not self.closed():
            if isinstance(exc_info, tornado.iostream.UnsatisfiableReadError):
                status, what = (431, "The headers are") if self._reads_head else (400, "A line of a chunk is")
                response = refusal(status, f"{what} too long: at most {MAX_HEAD:,} bytes are read.")
                super().write(response_bytes(response))
                self.lingers = True
            if self.lingers and self.socket is not None:
                self._limits.linger(self.socket.dup())
        super().close(exc_info)


class Server(tornado.httpserver.HTTPServer):
    """An HTTPServer with connection limits."""

    def initialize(  # type: ignore[override]
        self, app: TodoApplication, limits: ConnectionLimits, **options: Any
    ) -> None:
        super().initialize(app, **options)
        self.conn_params.header_timeout = None  # Tornado's own has a timer for each request, which costs 30 µs
        self._limits = limits

    def handle_stream(self, stream: Any, address: tuple[Any, ...]) -> None:
        self._limits.begin(functools.partial(self._begin, stream.socket, address))

    def _begin(self, connection: socket.socket, address: tuple[Any, ...]) -> None:
        self._limits.make_room()
        super().handle_stream(ClientStream(connection, self._limits), address)

    def on_close(self, server_conn: Any) -> None:
        self._limits.leave(server_conn.stream.close)
        super().on_close(server_conn)


def room_for_connections(wanted: int) -> int:
    """The number of connections that are possible, after raising the limit of file descriptors as necessary."""
    if sys.platform == "win32":
        return wanted
    import resource

    own = 100  # files, databases and others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 2 * wanted + own  # WebSockets need descriptors, too
    if soft != resource.RLIM_INFINITY and soft < enough:
        soft = enough if hard == resource.RLIM_INFINITY else min(enough, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if soft == resource.RLIM_INFINITY else max(10, min(wanted, (soft - own) // 2))


def asgi_app(app: TodoApplication) -> Callable[..., Awaitable[None]]:
    """An app of `make_app` for ASGI servers, such as uvicorn, or to be mounted in FastAPI or Starlette.

    Mount it at the prefix of the app; elsewhere all responses are 404 and name the setting to change. Servers with the
    lifespan protocol open and close its stores; otherwise the first request opens them.
    """
    services: Services = app.state.services

    async def answer(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] != "lifespan":
            await ASGIExchange(scope, receive, send).answer(app.state)
            return
        await receive()
        try:
            await services.open(None)
        except (Misconfigured, Unavailable) as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await services.close()
        await send({"type": "lifespan.shutdown.complete"})

    return answer


OfUvicorn: Any = object  # a placeholder for uvicorn's classes, which are imported only with HTTP_SERVER=uvicorn


class UvicornConnection(OfUvicorn):  # type: ignore[misc]
    """Adds to uvicorn's HttpToolsProtocol limits, and a problem document for every request that it refuses.

    A request for an upgrade to another protocol than WebSocket is treated as a plain request (RFC 9110, 7.8). Otherwise
    the parser would stop at the end of the head, and lose the body.
    """

    limits: ConnectionLimits
    upgrade_error: type[Exception]  # of the parser
    parse_error: type[Exception]
    parser: Any
    headers: list[tuple[bytes, bytes]]
    url: bytes

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.limits.make_room()
        super().connection_made(transport)
        self._extensions = {WRITE_WHOLE: self._write_whole}
        self._be_lenient()
        self._unanswered: collections.deque[Any] = collections.deque()  # requests, the oldest first
        self._head_size = 0  # bytes of an incomplete head
        self._is_reading_head = self._is_reading_body = self._is_refused = False
        self._has_head_limit = True
        self._is_new, self._early = True, b""  # the first bytes, until its turn
        self.limits.become_idle(self.close, HEAD_SECONDS)

    def connection_lost(self, error: Exception | None) -> None:
        self.limits.leave(self.close)
        self.close()
        super().connection_lost(error)

    def close(self) -> None:
        """Close the connection at once: a client that reads nothing could delay a graceful close forever."""
        for cycle in self._unanswered:  # uvicorn does this only for the last one; others would still write
            cycle.disconnected = True
        self.transport.abort()

    def _be_lenient(self) -> None:
        # Spaces before a chunk's extension are legal (RFC 9112, 7.1.1). uvicorn itself sets the other one.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True, lenient_spaces_after_chunk_size=True)

    def data_received(self, data: bytes) -> None:
        if self._is_new:
            if not self._early:
                self.flow.pause_reading()
                self.limits.begin(self._begin)
            self._early += data
            return
        if self._is_refused:
            return
        try:
            self.parser.feed_data(data)
        except self.upgrade_error as upgrade:
            if not self._should_upgrade():
                self._read_without_upgrade(data[upgrade.args[0] :])
            elif len(self.headers) > 100 or any(len(name) + len(text) > 8000 for name, text in self.headers):
                self._refuse(431, "The headers are too long, or too many, for a WebSocket.")  # the library's own limits
            else:
                self.limits.leave(self.close)
                self.handle_websocket_upgrade()
            return
        except self.parse_error as error:
            self._refuse(400, f"The request is not valid HTTP: {error.__context__ or error}.")
            return
        self._limit_head(len(data))

    def _begin(self) -> None:
        self._is_new = False
        if not self.transport.is_closing():
            self.flow.resume_reading()
            early, self._early = self._early, b""
            self.data_received(early)

    def _limit_head(self, size: int) -> None:
        if not self._is_reading_head and (self._unanswered or self._is_reading_body):
            return
        if not self._has_head_limit:
            self._has_head_limit = True
            self.limits.begin_head(self.close)
        self._head_size += size
        if self._head_size > MAX_HEAD:
            self._refuse(431, f"The headers are too long: at most {MAX_HEAD:,} bytes are read.")

    def _read_without_upgrade(self, rest: bytes) -> None:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self._refuse(400, "This server is not a proxy.")
            return
        upgrade = [field for field in self.headers if field[0] == b"upgrade"]
        fields = [b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        self.parser = type(self.parser)(self)
        self._be_lenient()
        self.data_received(b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(fields)))
        if upgrade[-1][1].lower() == b"websocket":  # so that the handler can report the fault
            self.scope["headers"].extend(upgrade)
        if rest:
            self.data_received(rest)

    def _should_upgrade(self) -> bool:
        """Whether the request opens a WebSocket of version 13 (RFC 6455, 4.2.1)."""
        headers = read_headers((name.decode("latin-1"), text.decode("latin-1")) for name, text in self.headers)
        return (
            not self._unanswered  # otherwise the socket would begin in the middle of a response
            and (self.parser.get_method(), self.parser.get_http_version()) == (b"GET", "1.1")
            and headers.get("sec-websocket-version") == "13"
            and opens_socket(headers)
        )

    # ---- called by the parser

    def on_message_begin(self) -> None:
        self._is_reading_head = True
        super().on_message_begin()
        self.scope["extensions"] = self._extensions

    def on_headers_complete(self) -> None:
        self._is_reading_head = self._has_head_limit = False
        self._head_size = 0
        self.limits.become_busy(self.close)
        is_socket = self.parser.should_upgrade()
        if is_socket and not self._should_upgrade():
            return  # data_received continues
        if not self.url.startswith(b"/"):
            found: dict[str, str] = {}
            target = path_of_target(self.parser.get_method().decode(), self.url.decode(), found)
            self.url, host = target.encode(), found.get("host", "").encode()
            self.headers[:] = [(name, host if name == b"host" and host else text) for name, text in self.headers]
        super().on_headers_complete()
        if not is_socket:
            self._unanswered.append(self.cycle)
            self._is_reading_body = True
            self.headers = []  # where uvicorn puts the trailers, which are dropped (RFC 9110, 6.5.1)
            if self.parser.get_http_version() == "1.0":
                self.cycle.waiting_for_100_continue = False

    def _write_whole(self, response: Response[Any]) -> bool:
        """Write the response to the oldest request, as uvicorn would in two parts after checking every header again."""
        cycle = self._unanswered[0]
        if response.socket or cycle.disconnected or self.flow.write_paused:
            return False
        if not cycle.keep_alive:
            response.headers["Connection"] = "close"
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        self.transport.write(response_bytes(response))
        if "Connection" in response.headers:
            self.transport.close()
        self.on_response_complete()
        return True

    def on_message_complete(self) -> None:
        self._is_reading_body = False
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, without uvicorn's timer for each."""
        self._unanswered.popleft()
        if self.transport.is_closing() and self._is_reading_body:
            self._linger()
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
        else:
            self.server_state.total_requests += 1
            self.flow.resume_reading()
            self.limits.become_idle(self.close)

    def _refuse(self, status: int, detail: str) -> None:
        """Answer a malformed request, and close the connection."""
        self._is_refused = True
        if self._unanswered and self._unanswered[-1].more_body:  # the body of that request is malformed
            cycle = self._unanswered.pop()
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        if self._unanswered:  # the requests before it are answered first
            self._unanswered[-1].keep_alive = False
            return
        self.transport.write(response_bytes(refusal(status, detail)))
        self._linger()
        self.transport.close()

    def _linger(self) -> None:
        self.limits.linger(self.transport.get_extra_info("socket").dup())


class UvicornSocket(OfUvicorn):  # type: ignore[misc]
    """Keeps uvicorn's WebSocketsSansIOProtocol from logging a traceback for text that is not UTF-8."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.logger = logging.Logger("uvicorn.error", logging.CRITICAL)


@contextlib.asynccontextmanager
async def uvicorn_listening(
    app: TodoApplication, sockets: list[socket.socket], limits: ConnectionLimits
) -> AsyncIterator[None]:
    """Serve an app on bound sockets with uvicorn; at the end finish the open requests. Raises Misconfigured."""
    uvicorn = driver("uvicorn", "HTTP_SERVER", "fast")
    httptools = driver("httptools", "HTTP_SERVER", "fast")
    protocols = "uvicorn.protocols."
    connection = importlib.import_module(f"{protocols}http.httptools_impl").HttpToolsProtocol
    web_socket = importlib.import_module(f"{protocols}websockets.websockets_sansio_impl").WebSocketsSansIOProtocol
    errors = {"upgrade_error": httptools.HttpParserUpgrade, "parse_error": httptools.HttpParserError}
    front = uvicorn.Config(
        asgi_app(app),
        http=type("Connection", (UvicornConnection, connection), {"limits": limits, **errors}),
        ws=type("Socket", (UvicornSocket, web_socket), {}),
        **{"lifespan": "off", "log_config": None, "access_log": False, "proxy_headers": False},
        **{"server_header": False, "date_header": False},
        **{"ws_max_size": 1024, "timeout_graceful_shutdown": 5, "backlog": CONNECTIONS_A_TURN},
    )
    # The embedding program handles signals.
    server = type("Front", (uvicorn.Server,), {"capture_signals": lambda self: contextlib.nullcontext()})(front)
    serving = asyncio.ensure_future(server.serve(sockets))
    try:
        while not (server.started or serving.done()):
            await asyncio.sleep(0.005)
        for each in sockets:
            each.listen(BACKLOG)  # the one above is also the number that asyncio accepts in a turn of the loop
        yield
    finally:
        app.state.services.hub.end_listeners()
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def listening(
    app: TodoApplication, sockets: list[socket.socket], maximum: int | None = None
) -> AsyncIterator[None]:
    """Serve an app on bound sockets; at the end finish the open requests, then close its stores."""
    services: Services = app.state.services
    config: Config = app.state.config
    limits = ConnectionLimits(maximum or config.max_connections, config.keep_alive)
    if config.http_server == "uvicorn":
        try:
            async with uvicorn_listening(app, sockets, limits):
                yield
        finally:
            await services.close()
        return
    server = Server(
        app, limits=limits, max_header_size=MAX_HEAD, max_body_size=MAX_UNEXPECTED_BODY, body_timeout=BODY_SECONDS
    )
    server.add_sockets(sockets)
    try:
        yield
    finally:
        server.stop()
        await services.drain(5.0)
        services.hub.end_listeners()
        await server.close_all_connections()
        await services.close()


@contextlib.contextmanager
def running(settings: Mapping[str, str] | None = None, **options: Any) -> Iterator[str]:
    """Run a server in a new thread, on a free port of the loopback, for scripts and tests.

    The arguments are those of `make_app`, the value is the server's URL. Leaving the context stops the server.
    """
    app = make_app(settings, **options)
    sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
    started: concurrent.futures.Future[Callable[[], object]] = concurrent.futures.Future()  # a function that stops it

    async def serve_until_stopped() -> None:
        stop = asyncio.Event()
        async with listening(app, sockets):
            await app.state.services.open(None)
            started.set_result(functools.partial(asyncio.get_running_loop().call_soon_threadsafe, stop.set))
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(serve_until_stopped())
        except BaseException as error:
            if not started.done():
                started.set_exception(error)

    thread = threading.Thread(target=run, name="tornado_todo", daemon=True)
    thread.start()
    with contextlib.ExitStack() as stack:
        for each in sockets:
            stack.callback(each.close)
        stop = started.result()
        for leave in (thread.join, stop):  # called in the reverse order
            stack.callback(leave)
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}{app.state.config.prefix}"


# ==== copying: may call service, stores and databases ====================================================

COPY_ROWS = 1000  # in one transaction
# Tables, each after those it refers to: their columns, and the key by which they are read.
COPIED_TABLES = {
    table: (", ".join(PROBE.tables[table]), {"changes": "revision", "acts": "batch"}.get(table, "id"))
    for table in (
        *("users", "lists", "todos", "comments", "changes", "members"),
        *("filters", "templates", "acts", "slices", "credentials"),
    )
}
Progress = Callable[[str, int, int], None]


async def read_table(database: Database, table: str, after: Any = None) -> AsyncIterator[Rows]:
    """The rows of a table in the order of its key, after one of them, in batches."""
    columns, key = COPIED_TABLES[table]
    where, arguments = ("", []) if after is None else (f"WHERE {key} > $1", [after])
    select = "SELECT {} FROM {} {} ORDER BY {} LIMIT {}"
    while rows := await database.fetch(select.format(columns, table, where, key, COPY_ROWS), *arguments):
        yield rows
        where, arguments = f"WHERE {key} > $1", [rows[-1][columns.split(", ").index(key)]]


async def checksum(batches: AsyncIterator[Rows]) -> tuple[int, int]:
    """The number of rows, and a sum that does not depend on their order, since engines sort differently."""
    count = total = 0
    async for rows in batches:
        digests = (hashlib.blake2b(msgspec.json.encode(row), digest_size=8).digest() for row in rows)
        total += sum(int.from_bytes(digest, "big") for digest in digests)
        count += len(rows)
    return count, total % 2**64


async def copy_table(source: Database, target: Database, table: str, progress: Progress) -> None:
    """Copy the rows of a table that the target does not have yet."""
    columns, key = COPIED_TABLES[table]
    sql = f"{insert(table, columns)} ON CONFLICT ({key}) DO NOTHING"
    total = (await source.fetch(f"SELECT count(*) FROM {table}"))[0][0]
    done, last = (await target.fetch(f"SELECT count(*), max({key}) FROM {table}"))[0]
    progress(table, done, total)
    async for rows in read_table(source, table, last):
        await target.transaction(operator.methodcaller("execute_many", sql, rows))
        done += len(rows)
        progress(table, done, total)


async def copy_documents(source: Services, target: Services, owners: Sequence[str], progress: Progress) -> None:
    """Copy the documents of these owners, except those that the target has already."""
    done = 0
    async for rows in read_documents(source.documents, owners):
        for owner_id, name, updated_at, text in rows:
            with contextlib.suppress(PreconditionFailed):
                await target.documents.put(owner_id, name, text, Precondition(only_new=True), updated_at)
        done += len(rows)
        progress("documents", done, done + 1)
    progress("documents", done, done)


async def check_ends(source: Services, target: Services) -> None:
    """Raise Misconfigured if both are the same database, as far as known."""
    identity = await source.database.identity()
    if identity is not None and identity == await target.database.identity():
        raise Misconfigured("the copy would have the same source and target: name another with --from URL or --to URL")


async def check_target(source: Services, target: Services, resume: bool) -> None:
    """Raise Conflict unless the target is empty, or has only data of an interrupted copy."""
    if not await source.database.fetch("SELECT id FROM users LIMIT 1"):
        raise Conflict(f"{source.database.name} is empty: there is nothing to copy.")
    if not resume and await target.database.fetch("SELECT id FROM users LIMIT 1"):
        raise Conflict(
            f"{target.database.name} is not empty. Copy to an empty one, or add --resume to continue a copy."
        )
    newest = "SELECT max(revision) FROM changes"
    ours, theirs = [(await side.database.fetch(newest))[0][0] or 0 for side in (source, target)]
    if theirs > ours:
        raise Conflict(f"{target.database.name} has been written to since: it has changes that the source lacks.")


async def copy_all(source: Services, target: Services, resume: bool, progress: Progress) -> list[str]:
    """Copy users, lists, to-dos, history, trash, revisions and documents; return the tables that differ.

    Raises Misconfigured if both are the same database, Conflict if the target has users already (unless an earlier
    copy is resumed) or has been written to since.
    """
    await check_ends(source, target)  # SQLite must not open a file under two names, since each would get its own log
    await source.open()
    await target.open()
    await check_ends(source, target)
    await check_target(source, target, resume)
    for table in COPIED_TABLES:
        await copy_table(source.database, target.database, table, progress)
    owners = [row[0] for row in await source.database.fetch("SELECT id FROM users")]
    await copy_documents(source, target, owners, progress)
    newest = await source.todos.store.newest_revision()
    gaps = await source.database.fetch("SELECT after_revision, before_revision FROM revision_gaps")

    async def set_revision(transaction: Transaction) -> None:
        await transaction.fetch("UPDATE counters SET value = $1 WHERE name = 'revision' AND value < $1", newest)
        await transaction.execute_many("INSERT INTO revision_gaps VALUES ($1, $2) ON CONFLICT DO NOTHING", gaps)

    await target.database.transaction(set_revision)
    sums = []
    for side in (source, target):
        parts = {table: read_table(side.database, table) for table in COPIED_TABLES}
        documents = read_documents(side.documents, owners)
        # Engines write JSON with different spaces.
        parts["documents"] = ([(*row[:3], json.loads(row[3])) for row in rows] async for rows in documents)
        sums.append({part: await checksum(batches) for part, batches in parts.items()})
    return [part for part in sums[0] if sums[0][part] != sums[1][part]]


# ---- backups of a SQLite file


def remove_database(path: str) -> None:
    """Remove the existing files of a SQLite database."""
    for ending in DATABASE_ENDINGS:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path + ending)


def copy_file(source: str, target: str, hint: str) -> None:
    """Copy a SQLite database into a new file, consistently, also while it is used.

    Raises Misconfigured, with the hint if the source is not our database.
    """
    if not os.path.isfile(source):
        raise Misconfigured(f"there is no file {source}")
    folder = os.path.dirname(os.path.abspath(target))
    if not os.path.isdir(folder):
        raise Misconfigured(f"the folder {folder} does not exist: create it, or use another one")
    # In a read-only folder there are no writers, and SQLite could not create the files by which it notices them.
    how = "mode=rw" if os.access(os.path.dirname(os.path.abspath(source)), os.W_OK) else "mode=ro&immutable=1"
    try:
        remove_database(target)  # the remains of an interrupted copy
        make_private(target)
        with (
            contextlib.closing(sqlite3.connect(file_uri(source, how), uri=True)) as reading,
            contextlib.closing(sqlite3.connect(target)) as writing,
        ):
            reading.execute("SELECT value FROM counters")  # fails if it is not our database
            reading.backup(writing)
    except (sqlite3.Error, OSError) as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
            kind = "SQLite database" if code == sqlite3.SQLITE_NOTADB else "database of tornado_todo"
            raise Misconfigured(f"{source} is not a {kind}: {hint}") from error
        raise Misconfigured(f"cannot copy {source} to {target}: {error}") from error


def backup(path: str, target: str) -> None:
    """Copy a SQLite database that may be in use into a new file. Raises Misconfigured."""
    if os.path.exists(target):
        raise Misconfigured(f"{target} exists already: name a new file")
    unfinished = f"{target}.unfinished"
    copy_file(path, unfinished, "set DATABASE_URL to the database of the server")
    with contextlib.closing(sqlite3.connect(unfinished)) as connection, connection:
        if connection.execute("PRAGMA integrity_check(1)").fetchall() != [("ok",)]:
            raise Misconfigured(f"{path} is damaged, and so is the copy {unfinished}: keep your earlier backups")
        connection.execute("INSERT INTO counters VALUES ('copied', 1)")  # marks the copy for a running server
    os.replace(unfinished, target)


async def renew(path: str) -> None:
    """Check that a copy of a database is intact and can be opened, and renew its revisions. Raises Misconfigured."""
    store = TodoStore(SQLiteDatabase(path))
    await store.open()
    try:
        faults = await store.database.transaction(lambda transaction: transaction.fetch("PRAGMA integrity_check(1)"))
        if faults != [("ok",)]:
            raise Misconfigured(f"it is damaged: {faults[0][0].splitlines()[-1]}")
        orphans = await store.database.transaction(lambda transaction: transaction.fetch("PRAGMA foreign_key_check"))
        if orphans:
            raise Misconfigured(f"it is damaged: {orphans[0][0]} refer to {orphans[0][2]} that are missing")
        await store.renew()
    finally:
        await store.close()


def refuse_open(path: str) -> None:
    """Raise Misconfigured if a server has the database open: its further writes would be lost."""
    if is_open_elsewhere(path):
        raise Misconfigured(f"{path} is in use: stop the server first. Nothing was changed")


def put_aside(path: str) -> str | None:
    """Rename a database with its other files, which SQLite would apply to another one; return its new path."""
    aside = f"{path}.before-restore-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    found = [ending for ending in DATABASE_ENDINGS if os.path.lexists(path + ending)]
    for ending in found:
        os.rename(path + ending, aside + ending)
    return aside if found else None


def restore(file: str, path: str) -> str | None:
    """Replace a SQLite database by a backup; return the new path of the old one.

    The backup is checked before anything is replaced. The old file is put aside, even if it is damaged or a folder.
    Raises Misconfigured.
    """
    path = os.path.realpath(path)
    refuse_open(path)
    unfinished = f"{path}.unfinished"
    try:
        copy_file(file, unfinished, "name a file that `tornado-todo backup` made")
        try:
            asyncio.run(renew(unfinished))
        except (TodoError, Misconfigured) as error:
            raise Misconfigured(f"{file} cannot be restored, and nothing was changed: {error}") from error
        model = os.stat(path if os.path.isfile(path) else os.path.dirname(path))
        if (model.st_uid, model.st_gid) != (os.stat(unfinished).st_uid, os.stat(unfinished).st_gid):
            os.chown(unfinished, model.st_uid, model.st_gid)  # otherwise another user's server could not write to it
        refuse_open(path)
        aside = put_aside(path)
        os.replace(unfinished, path)
        return aside
    except OSError as error:
        raise Misconfigured(f"cannot restore {path}: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # copy_file() has reported it
            remove_database(unfinished)


# ==== command line: may call everything above ===================================================

# ---- logging


def printable(text: str) -> str:
    """Text without characters that move a terminal's cursor or end a line."""
    return "".join(character if character.isprintable() else " " for character in text)


class LineFormatter(logging.Formatter):
    """One line per record; lines of a traceback are indented, so that they do not look like records."""

    def format(self, record: logging.LogRecord) -> str:
        first, *rest = super().format(record).splitlines() or [""]
        message_lines = record.getMessage().count("\n")
        lines = [" ".join([first, *rest[:message_lines]]), *rest[message_lines:]]
        return "\n    | ".join(map(printable, lines))


class JSONFormatter(logging.Formatter):
    """One JSON object per line, for programs that collect logs."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": timestamp(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            **(getattr(record, "facts", None) or {"message": record.getMessage()}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def set_up_logging(config: Config) -> None:
    """Log to the standard error stream, by LOG_LEVEL and LOG_FORMAT."""
    handler = logging.StreamHandler()
    line = LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JSONFormatter() if config.log_format == "json" else line)
    level = logging.getLevelName(config.log_level.upper())
    LOG.setLevel(level)
    # Drivers' debug messages contain users' texts.
    logging.basicConfig(level=max(level, logging.INFO), handlers=[handler], force=True)


def say(line: str, level: int = logging.INFO) -> None:
    """Print a line, warnings and errors on the standard error stream; as an object with LOG_FORMAT=json."""
    for handler in logging.root.handlers:
        if isinstance(handler.formatter, JSONFormatter):
            line = handler.formatter.format(logging.LogRecord(LOG.name, level, "", 0, line, None, None))
            break
    with contextlib.suppress(OSError):  # no reader, or a full disk: the server can still serve
        print(line, file=sys.stderr if level > logging.INFO else sys.stdout, flush=True)


# ---- settings


def env_fault(text: str, name: str | None, value: str | None) -> str | None:
    """The fault in a statement that python-dotenv has read from .env, or None. It never contains a value."""
    begun = re.findall(r"^\s*(?:export\s+)?(\w+)\s*=", text, re.MULTILINE)
    if name is None:
        return f"{begun[0] if begun else 'this'} cannot be read; write NAME=value, and close every quote"
    is_ours = name in SETTING_NAMES
    if not is_ours and (nearest := nearest_setting(name)):
        return f"{name!a} is not a setting; did you mean {nearest}?"
    if value is None:
        is_foreign = not is_ours and re.fullmatch(r"[A-Z_][A-Z0-9_]*", name)
        return None if is_foreign else "has no value; write NAME=value on one line"
    if is_ours and "\n" in value or SETTING_NAMES & set(begun[1:]):
        return f"{name} continues on the next line; close its quote"
    quotes, written = ("'", '"'), text.partition("=")[2].lstrip()
    # python-dotenv keeps a quote that is only at the end of a value.
    if is_ours and value.endswith(quotes) and value.count(value[-1]) % 2 and not written.startswith(quotes):
        return f"{name} ends with a quote, but does not begin with one"
    return None


def read_env_file(path: str) -> dict[str, str | None]:
    """The settings in a file of NAME=value lines. Raises Misconfigured, naming the first invalid line."""
    try:
        with open(path, encoding="utf-8-sig") as file:  # some editors put a byte order mark in front
            text = file.read()
        if "\0" in text:
            raise ValueError("it has zero bytes")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{error}; save it as UTF-8"
        raise Misconfigured(f"{path} cannot be read: {reason}") from error
    values: dict[str, str | None] = {}
    # Imported only when needed: it takes a tenth of the start.
    for name, value, original, is_error in importlib.import_module("dotenv.parser").parse_stream(io.StringIO(text)):
        statement = original.string.lstrip()
        if (name or is_error) and (fault := env_fault(statement, name, value)):
            blank_lines = original.string[: len(original.string) - len(statement)].count("\n")
            raise Misconfigured(f"{path}, line {original.line + blank_lines}: {fault}")
        if name in SETTING_NAMES and values.get(name, value) != value:
            raise Misconfigured(f"{path}: {name} occurs twice, with different values: remove one")
        values[name] = value
    return values


def option_name(name: str) -> str:
    return "--" + name.lower().strip("_").replace("_", "-")


def read_environment(options: Mapping[str, Any], logs: bool = False) -> dict[str, str]:
    """Settings from options, the environment and .env; the first one with a value counts.

    With `logs`, set up the log with them, before anything is logged. Raises Misconfigured.
    """
    file = read_env_file(".env") if os.path.lexists(".env") else {}
    sources = (file, os.environ, options)
    environ = {name: value for source in sources for name, value in source.items() if value and name in SETTING_NAMES}
    if logs:
        for names in (("LOG_FORMAT",), ("LOG_FORMAT", "LOG_LEVEL")):  # so that errors of LOG_LEVEL have the format
            set_up_logging(Config.from_env({name: environ.get(name, "") for name in names}))
    for name in sorted(os.environ.keys() - SETTING_NAMES):
        nearest = nearest_setting(name)
        # Other programs may read HOST and PORT, or a similar name; no warning is needed if ours is set. And for
        # a service named todo, Kubernetes sets TODO_PORT.
        option = option_name(name.removeprefix("TORNADO_").removeprefix("TODO_"))
        if nearest and nearest not in environ and option not in {row.option for row in SETTINGS}:
            LOG.warning("the environment has %a, which is not a setting; did you mean %s?", name, nearest)
    return dict(with_current_names(environ))


# ---- one process that serves


def bound_sockets(config: Config) -> list[socket.socket]:
    """Bound sockets for SERVER_HOST and SERVER_PORT. Raises Misconfigured."""
    where = f"{config.server_host} port {config.server_port}"
    try:
        if config.server_host != "*":
            return tornado.netutil.bind_sockets(config.server_port, config.server_host or None)
        with contextlib.suppress(OSError):  # without IPv6, or if the port is in use, which the next line notices
            return tornado.netutil.bind_sockets(config.server_port)
        return tornado.netutil.bind_sockets(config.server_port, "0.0.0.0")
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            fault = f"SERVER_PORT: {where} is in use: stop the program that uses it, or choose another --port"
        elif isinstance(error, PermissionError):
            fault = f"SERVER_PORT: cannot listen on {where}: {error.strerror}"
        else:
            fault = f"SERVER_HOST: {config.server_host!r} is not an address of this machine"
        raise Misconfigured(fault) from None


def announce(services: Services, sockets: Sequence[socket.socket]) -> None:
    """Print the address for a browser, and the engines in use."""
    config = services.config
    host = "localhost" if config.server_host in ("", "*", "0.0.0.0", "::") else config.server_host
    host = f"[{host}]" if ":" in host else host
    address = config.public_url or f"http://{host}:{sockets[0].getsockname()[1]}"
    process = f" (process {os.getpid()})" if config.log_format == "json" else ""
    say(f"tornado_todo {__version__} is at {address}{config.prefix}{process}")
    stores = {"to-dos": services.database, "documents": services.documents, "records": services.records}
    say(" · ".join(f"{name}: {store.name}" for name, store in stores.items()))
    say("Press Ctrl+C to stop.")


async def open_at_start(services: Services, is_check: bool = False) -> bool:
    """Open the stores, and report the engines that fail; for a check print a line for every engine.

    Returns whether all work. Raises Misconfigured, unless it is a check.
    """
    known = ""
    try:
        await services.open()
    except (Misconfigured, Unavailable) as error:
        if isinstance(error, Misconfigured) and not is_check:
            raise
        known = str(error)
        advice = "" if is_check else " Answering 503 until it can be used."
        say(f"tornado_todo: {known}{advice}", logging.ERROR if is_check else logging.WARNING)
    well, engines = await services.health(5.0 if is_check else 1.0, known)
    for name, entry in engines.items():
        if is_check:
            print(f"{name:10} {entry['state']:10} {entry['milliseconds']:8.1f} ms  {entry['engine']}")
        elif entry["engine"] != services.database.name and entry["state"] != "ok":
            say(f"tornado_todo: {entry['engine']} ({name}): {entry['state']}.", logging.WARNING)
    return well


def ended_children() -> Iterator[tuple[int, int]]:
    """The ids of the child processes that have ended, with their exit codes, each returned once.

    Some may not be our own: those of a shell that has become this process and, as process 1 of a container, orphans.
    """
    with contextlib.suppress(ChildProcessError, AttributeError):  # there are no children; Windows
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended[0], os.waitstatus_to_exitcode(ended[1])


async def serve(app: TodoApplication, sockets: list[socket.socket], parent: int = 0) -> None:
    """Serve until SIGINT or SIGTERM, then answer the open requests. Raises Misconfigured.

    A worker also ends when `parent`, the process that started it, is gone. Without one, the start is announced.
    """
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # on Windows Ctrl+C ends asyncio.run()
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    services = app.state.services
    async with listening(app, sockets, room_for_connections(services.config.max_connections)):
        await open_at_start(services)
        if not parent:
            announce(services, sockets)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1.0)
            with contextlib.suppress(Unavailable):  # tried until it can be used, with or without requests
                await services.open()
            collections.deque(ended_children(), 0)
            if parent and os.getppid() != parent:  # the process that would restart this one has been killed
                stop.set()


def run_loop(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end in a loop of uvloop's if that is installed, since it is faster, or of asyncio's."""
    try:
        new_loop = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        new_loop = asyncio.SelectorEventLoop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(coroutine)


# ---- several processes


def fork(work: Callable[[], int]) -> int:
    """Run `work()` in a new process, which ends with its result as the exit code; returns the process id."""
    if process := os.fork():
        return process
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os._exit(work())
    finally:
        os._exit(1)  # the child must never continue with the parent's code


def run_workers(count: int, work: Callable[[], int]) -> int:
    """Run `work()` in `count` processes until SIGINT or SIGTERM, which is passed on to all of them.

    A worker that dies is restarted. Returns 2 if a worker is misconfigured, else 0.
    """
    signal.signal(signal.SIGCHLD, lambda *_: None)  # otherwise a system may discard it
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until sigwait() takes them
    workers = {fork(work): time.monotonic() for _ in range(count)}  # when each process was started, by its id
    exit_code, is_stopping = 0, False
    while workers:
        for worker, code in ended_children():
            started = workers.pop(worker, None)
            if code == 2 and started:
                exit_code, is_stopping = 2, True
            if started and not is_stopping:
                LOG.error("worker %d ended (%d) and is restarted", worker, code)
                time.sleep(max(0.0, started + 1.0 - time.monotonic()))  # for one that dies at once
                workers[fork(work)] = time.monotonic()
        for worker in workers if is_stopping else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGTERM)
        is_stopping |= bool(workers) and signal.sigwait(signals) != signal.SIGCHLD
    return exit_code


def report_errors(run: Callable[[], int | None]) -> int:
    """Run a command; print an expected error as one line. Returns the exit code."""
    try:
        return run() or 0
    except (Misconfigured, TodoError) as error:
        say(f"tornado_todo: {error}", logging.ERROR)
        return 2 if isinstance(error, Misconfigured) else 1
    except KeyboardInterrupt:
        return 0


# ---- the commands: a parameter is an argument, a keyword-only one an option, and `environ` has the settings

Environ = Mapping[str, str]
OfDatabase = Annotated[Environ, {"DATABASE_URL"}]  # the settings that a command has options for
NameArgument = Annotated[str, "the user's name"]
FileArgument = Annotated[str, "the backup"]


def serve_command(
    *,
    check: Annotated[bool, "check every engine once, print its state, and exit"] = False,
    environ: Annotated[Environ, SETTING_NAMES],
) -> int:
    """A to-do server: a page and a JSON API, kept in one SQLite file unless the settings name another database.

    Every option is also an environment variable, or a line of a file .env in the current folder:
    --server-port 8000, SERVER_PORT=8000. Options win over the environment, the environment over .env.
    """
    app = make_app(environ)
    services = app.state.services
    config = services.config

    async def open_and_close() -> bool:
        try:
            return await open_at_start(services, check)
        finally:
            await services.close()

    if check:
        return 0 if asyncio.run(open_and_close()) else 1
    sockets = bound_sockets(config)
    if config.workers == 1:
        run_loop(serve(app, sockets))
        return 0
    asyncio.run(open_and_close())  # so that a fault is reported once, not by each worker
    announce(services, sockets)
    parent = os.getpid()

    def work() -> int:  # a new app, since connections and locks must not be shared across a fork
        return report_errors(lambda: run_loop(serve(make_app(environ), sockets, parent)))

    return run_workers(config.workers, work)


def print_progress(part: str, done: int, total: int) -> None:
    """Show the progress of a copy: a bar on a terminal, one line at the end of each part elsewhere."""
    share = min(done / total, 1.0) if total else 1.0
    line = f"{part:11} [{'#' * int(share * 30):30}] {done:,} of {total:,}"
    if sys.stderr.isatty():
        print(f"\r{line}", end="\n" if done >= total else "", file=sys.stderr, flush=True)
    elif done >= total:
        print(line, file=sys.stderr, flush=True)


def copy_side(database: str | None, documents: str | None, environ: Environ) -> Services:
    """One side of a copy: named by its options, or else by the settings. Raises Misconfigured."""
    if database is None and documents is None:
        database, documents = environ.get("DATABASE_URL"), environ.get("MONGODB_URI")
    return Services(Config.from_env({"DATABASE_URL": database or "", "MONGODB_URI": documents or ""}), {})


def copy_command(
    *,
    from_: Annotated[str | None, "URL of the database to read"] = None,
    to: Annotated[str | None, "URL of the database to fill"] = None,
    from_documents: Annotated[str | None, "URL of the MongoDB that has the documents"] = None,
    to_documents: Annotated[str | None, "URL of the MongoDB to put the documents into"] = None,
    resume: Annotated[bool, "continue an interrupted copy"] = False,
    environ: Annotated[Environ, ()],
) -> int:
    """Copy users, lists, to-dos, history, trash and documents into an empty database, then compare.

    A side without an option is the one in the settings (environment or .env). Put a URL with a password there,
    since other users can see a command line. First stop the servers that write.
    """
    source, target = copy_side(from_, from_documents, environ), copy_side(to, to_documents, environ)
    if isinstance(source.database, SQLiteDatabase) and not os.path.isfile(source.database.path or ""):
        raise Misconfigured(f"--from: there is no file {source.database.path}")

    async def copy() -> list[str]:
        try:
            return await copy_all(source, target, resume, print_progress)
        finally:
            await source.close()
            await target.close()

    if different := asyncio.run(copy()):
        print(f"tornado_todo: the copy differs in {', '.join(different)}", file=sys.stderr)
        return 1
    print("Copied. Counts and checksums are the same on both sides.")
    return 0


def sqlite_path(environ: Environ) -> str:
    """The path of the SQLite file that the settings name. Raises Misconfigured if they name another database."""
    database = open_database(Config.from_env(environ).database_url)
    if not isinstance(database, SQLiteDatabase) or database.path is None:
        raise Misconfigured("DATABASE_URL: this command is only for a SQLite file; Postgres has pg_dump and pg_restore")
    return database.path


def backup_command(file: FileArgument, *, environ: OfDatabase) -> None:
    """Copy the SQLite database into a new file. The server may run meanwhile."""
    path = sqlite_path(environ)
    backup(path, file)
    print(f"Copied {path} to {file}.")


def restore_command(file: FileArgument, *, environ: OfDatabase) -> None:
    """Replace the SQLite database by a backup, and keep the old one under another name. Stop the server first."""
    path = sqlite_path(environ)
    aside = restore(file, path)
    print(f"{file} is restored to {path}. All users have to sign in again.")
    print("Tokens, links, members and passwords are those of the backup: repeat later revocations.")
    if aside:
        print(f"The previous database is kept as {aside}. Remove it when you no longer need it.")


def on_stores(environ: Environ, act: Callable[[Services], Awaitable[Value]]) -> Value:
    """Open the stores that the settings name, and run a coroutine function on them."""
    app = make_app(environ)

    async def run() -> Value:
        async with lifespan(app):
            return await act(app.state.services)

    return asyncio.run(run())


def clean_argument(name: str) -> str:
    """A name for a user. Raises Misconfigured."""
    try:
        return clean_user_name(name)
    except ValueError as error:
        raise Misconfigured(f"the name {error}") from None


def ask_password(name: str) -> str:
    """Ask for a user's new password without showing it, or read a line from a pipe; return its hash. Raises Invalid."""
    if sys.stdin.isatty():
        password = getpass.getpass(f"Password for {name}: ")
        if password != getpass.getpass(f"Password for {name} again: "):
            raise Misconfigured("the two passwords differ")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    check_new_password(password, name, "password")
    return hash_password(password)


def add_user(name: NameArgument, *, environ: OfDatabase) -> None:
    """Make an account. Its password is asked for, or read from a pipe."""
    name = clean_argument(name)
    hashed = ask_password(name)
    on_stores(environ, lambda services: services.accounts.add(name, hashed))
    print(f"{name} can sign in now.")


def change_password(name: NameArgument, *, environ: OfDatabase) -> None:
    """Change a user's password, which is asked for, or read from a pipe. That signs the user out everywhere."""
    user = on_stores(environ, lambda services: services.accounts.user(fold_user_name(name)))
    hashed = ask_password(user.name)
    on_stores(environ, lambda services: services.accounts.set_password(user, hashed))
    print(f"{user.name} can sign in with the new password, and is signed out everywhere.")


def rename_user(name: NameArgument, new_name: Annotated[str, "the name from now on"], *, environ: OfDatabase) -> None:
    """Rename a user, such as `local`, the user of this machine. Stop the server first."""
    name, new_name = fold_user_name(name), clean_argument(new_name)
    on_stores(environ, lambda services: services.accounts.rename(name, new_name))
    print(f"{name} is {new_name} now. To let {new_name} sign in: tornado-todo user password {new_name}")


def delete_user(name: NameArgument, *, yes: Annotated[bool, "do not ask"] = False, environ: OfDatabase) -> None:
    """Delete a user with all their data, after asking."""
    user = on_stores(environ, lambda services: services.accounts.user(fold_user_name(name)))
    if not yes and not sys.stdin.isatty():
        raise Misconfigured(f"nothing was deleted: there is no terminal to ask on; add --yes to delete {user.name}")
    question = f"Delete {user.name} with all their data, for good? Type yes: "
    try:
        answer = "yes" if yes else input(question)
    except (EOFError, KeyboardInterrupt):
        answer = ""
    if answer.strip().lower() != "yes":
        raise Misconfigured("nothing was deleted")
    on_stores(environ, lambda services: services.delete_user(user))
    print(f"{user.name} is deleted with all their data.")


def list_users(*, environ: OfDatabase) -> None:
    """Show all users, with and without a password."""
    for name, created_at, has_password in on_stores(environ, lambda services: services.accounts.users()):
        kind = "" if has_password else "  (this machine's own user)" if name == LOCAL_USER else "  (no password)"
        print(f"{timestamp(created_at)}  {name}{kind}")


COMMANDS: dict[str, Callable[..., int | None]] = {
    "": serve_command,
    "user add": add_user,
    "user password": change_password,
    "user rename": rename_user,
    "user delete": delete_user,
    "user list": list_users,
    "copy": copy_command,
    "backup": backup_command,
    "restore": restore_command,
}


def add_settings(parser: argparse.ArgumentParser, names: Collection[str]) -> None:
    """Add an option for each of these settings, hidden for an old name."""
    for row in SETTINGS:
        if row.name in names:
            options = filter(None, (row.option, option_name(row.name)))
            detail = f"{row.help} (default: {row.default})" if row.default else row.help
            parser.add_argument(*options, dest=row.name, metavar="VALUE", help=detail.replace("%", "%%"))
    for name in OLD_NAMES.keys() & names:
        parser.add_argument(option_name(name), dest=name, help=argparse.SUPPRESS)


def command_parser(name: str) -> argparse.ArgumentParser:
    """A parser of the arguments in a command's signature; for a group, such as `user`, only for its help."""
    command = COMMANDS.get(name)
    others = [each for each in COMMANDS if each.startswith(name) and each != name]
    listed = [f"\n  {each:15} {str(COMMANDS[each].__doc__).splitlines()[0]}" for each in others]
    parser = argparse.ArgumentParser(
        prog=f"tornado-todo {name}".strip(),
        description=inspect.getdoc(command) if command else None,
        epilog=f"{'Other commands' if command else 'Commands'}, each with --help:{''.join(listed)}" if listed else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tornado_todo {__version__}")
    for parameter in inspect.signature(command).parameters.values() if command else ():
        kind, (detail,) = parameter.annotation.__origin__, parameter.annotation.__metadata__
        if parameter.name == "environ":
            add_settings(parser, detail)
        elif kind is bool:
            parser.add_argument(option_name(parameter.name), action="store_true", help=detail)
        else:
            options: dict[str, Any] = {"metavar": parameter.name.upper(), "type": kind if kind is int else str}
            name = parameter.name
            if parameter.kind is parameter.KEYWORD_ONLY:
                options |= {"metavar": "VALUE", "dest": name, "default": parameter.default}
                name = option_name(name)
            parser.add_argument(name, help=detail, **options)
    return parser


def find_command(words: Sequence[str]) -> str:
    """The name of the command, or group of commands, that arguments begin with; empty for the server.

    Raises Misconfigured.
    """
    named = [name for name in COMMANDS if name and name.split() == [*words[: len(name.split())]]]
    groups = {name.partition(" ")[0] for name in COMMANDS if " " in name}
    if named or not words or words[0].startswith("-"):
        return named[0] if named else ""
    if words[-1] in ("-h", "--help"):
        return words[0] if words[0] in groups else ""
    text = " ".join(words[:2]) if words[0] in groups else words[0]
    names = [name for name in COMMANDS if name]
    nearest = nearest_name(text.lower(), [*names, *groups - {text}])
    hint = f"; did you mean {nearest}?" if nearest else "."
    raise Misconfigured(f"{text!a} is not a command{hint} There are {', '.join(names)}; without one the server starts")


def run_command(words: Sequence[str]) -> int | None:
    """Run the command that the first arguments name, or else the server. Raises Misconfigured if there is none."""
    name = find_command(words)
    arguments = vars(command_parser(name).parse_args(words[len(name.split()) :]))
    settings = {key: arguments.pop(key) for key in SETTING_NAMES & arguments.keys()}
    command = COMMANDS[name]
    if "environ" in inspect.signature(command).parameters:
        arguments["environ"] = read_environment(settings, logs=not name)
    return command(**arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command from the command line, the server unless another is named; returns the exit code."""
    if not gc.isenabled():
        gc.freeze()  # the imported modules stay
        gc.enable()
    if hasattr(sys.stdout, "reconfigure"):  # a database's name may have letters that a terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    return report_errors(lambda: run_command(arguments))


if __name__ == "__main__":
    sys.exit(main())
