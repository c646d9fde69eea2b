"""One change to a thousand open WebSockets: how long until the last has it, and what a socket costs in memory."""

import base64
import json
import os
import selectors
import socket
import time

from servers import NotRun, Running
from timing import Timing
from works import JSON, ask

OPENED_AT_ONCE = 50
SECONDS_FOR_ALL = 20.0


def open_socket(port: int) -> socket.socket:
    """Connect and ask for the upgrade to a WebSocket; the answer is still to be read."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=SECONDS_FOR_ALL)
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    connection.setblocking(False)
    return connection


def read_some(selector: selectors.EpollSelector, read: dict[socket.socket, bytes], mark: bytes) -> None:
    """Read the sockets that have something; those that have got `mark` are done. Raises NotRun."""
    for key, _ in selector.select(1.0):
        data = key.fileobj.recv(65536)
        read[key.fileobj] += data
        if mark in read[key.fileobj]:
            selector.unregister(key.fileobj)
        elif not data:
            raise NotRun(f"it closed a socket after {read[key.fileobj][-300:]!r}")


def wait_for_all(sockets: list[socket.socket], mark: bytes, seconds: float = SECONDS_FOR_ALL) -> list[bytes]:
    """Read every socket until `mark` has come on it; gives what came. Raises NotRun.

    The frames are not parsed: they come unmasked and uncompressed, and the mark is in one of them
    only, so that the reader costs as little as it can of the time that it measures.
    """
    give_up = time.monotonic() + seconds
    read = dict.fromkeys(sockets, b"")
    with selectors.EpollSelector() as selector:
        for each in sockets:
            selector.register(each, selectors.EVENT_READ)
        while (waiting := len(selector.get_map())) and time.monotonic() < give_up:
            read_some(selector, read, mark)
    if waiting:
        raise NotRun(f"{waiting} sockets did not get {mark.decode()} in {seconds:.0f} s")
    return list(read.values())


def change_and_wait(running: Running, sockets: list[socket.socket], number: int) -> float:
    """Make one to-do; gives the milliseconds from the request to the last socket that was told."""
    mark = f"Told to all, {number}."
    connection = running.connect()
    connection.connect()
    began = time.perf_counter()
    connection.request("POST", "/api/todos", json.dumps({"title": mark}), JSON)
    wait_for_all(sockets, mark.encode())
    took = time.perf_counter() - began
    response = connection.getresponse()
    response.read()
    connection.close()
    if response.status != 201:
        raise NotRun(f"POST answers {response.status}")
    return took * 1e3


def fan_out(count: int, running: Running, quick: bool) -> Timing:
    """Open sockets, make changes, and time each until the last socket has it. Raises NotRun."""
    connection = running.connect()
    ask(connection, "GET", "/api/todos", None, {})
    connection.close()
    before = running.memory()
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            opened = [open_socket(running.port) for _ in range(min(OPENED_AT_ONCE, count - len(sockets)))]
            sockets += opened
            wait_for_all(opened, b'"hello"')
        memory = running.memory()
        times = [change_and_wait(running, sockets, number) for number in range(1, 6 if quick else 21)]
    finally:
        for each in sockets:
            each.close()
    return Timing(times, before, memory)
