"""What other clients notice while one changes 100,000 to-dos, or while 1,000 wrong passwords arrive at once."""

import contextlib
import dataclasses
import json
import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from servers import NotRun, Running, Server
from sockets import wait_for_all
from timing import Timing
from todos import todo_id
from works import JSON, ask, send

BULK_TODOS, WRITERS = 100_000, 4
WRONG_SIGN_INS, SECONDS_FOR_ALL = 1000, 120.0
PAUSE = 0.002  # seconds between the requests of a client
ACCOUNT = {"name": "benchmark", "password": "correct horse battery staple"}
LIVE = "/api/health/live"
# Ours tells clients apart by the address in this header, so that not all attempts count as those of one client.
WITH_ACCOUNTS = {"AUTH": "accounts", "SIGNUP": "open", "TRUSTED_PROXIES": "127.0.0.1"}
ADDRESS = "X-Forwarded-For"


@dataclasses.dataclass(frozen=True)
class Meanwhile:
    """How long something big took, how long other clients waited meanwhile, and how many of them got a 503."""

    seconds: float
    others: Timing
    refused: int


def with_accounts(server: Server) -> Server:
    """The same server, in which everybody has to sign in."""
    return dataclasses.replace(server, settings={**server.settings, **WITH_ACCOUNTS})


def without_uvloop(server: Server) -> Server:
    """The same server with a module in uvloop's place that cannot be imported."""
    return dataclasses.replace(server, settings={**server.settings, "PYTHONPATH": "{peers}/without_uvloop:{root}"})


def keep_asking(running: Running, method: str, path: str, body: Callable[[int], str | None], pipe: Connection) -> None:
    """Send requests with short pauses until something is sent, and answer with their times and how many got a 503."""
    connection, times, refused = running.connect(SECONDS_FOR_ALL), [], 0
    ask(connection, "GET", LIVE, None, {})
    pipe.send("ready")
    while not pipe.poll(PAUSE):
        began = time.perf_counter()
        response, answer = ask(connection, method, path, body(len(times)), JSON)
        times.append((time.perf_counter() - began) * 1e3)
        refused += response.status == 503
        if response.status not in (200, 503):
            times = f"{method} {path} answers {response.status}: {answer[:300]!r}"
            break
    pipe.send((times, refused))


@contextlib.contextmanager
def others(running: Running, requests: list[tuple[str, str, Callable[[int], str | None]]]) -> Iterator[Callable]:
    """Clients in processes of their own; gives a function that ends them and returns what they measured."""
    context = multiprocessing.get_context("fork")
    clients = []
    for request in requests:
        pipe, end = context.Pipe()
        clients.append((context.Process(target=keep_asking, args=(running, *request, end), daemon=True), pipe))
        clients[-1][0].start()

    def end_all() -> tuple[list[float], int]:
        for _, pipe in clients:
            pipe.send("stop")
        results = [pipe.recv() for _, pipe in clients]
        if failed := [times for times, _ in results if isinstance(times, str)]:
            raise NotRun(failed[0])
        return [each for times, _ in results for each in times], sum(refused for _, refused in results)

    try:
        for _, pipe in clients:
            pipe.recv()
        yield end_all
    finally:
        for process, _ in clients:
            process.kill()
            process.join()


def while_clients_ask(running: Running, requests: list[tuple], act: Callable[[], None]) -> Meanwhile:
    """Measure `act()`, and what the clients that send `requests` notice of it. Raises NotRun."""
    before = running.memory()
    with others(running, requests) as end_all:
        began = time.perf_counter()
        act()
        seconds = time.perf_counter() - began
        times, refused = end_all()
    return Meanwhile(seconds, Timing(times, before, running.peak_memory()), refused)


def bulk(running: Running, quick: bool) -> Meanwhile:
    """Change all to-dos by one request while others change a single one each. Raises NotRun."""

    def act() -> None:
        connection = running.connect(SECONDS_FOR_ALL)
        _, answer = send(connection, "PATCH", "/api/todos", {"notes": "Changed together"})
        if (count := json.loads(answer)["count"]) != BULK_TODOS:
            raise NotRun(f"it changed {count} to-dos, not {BULK_TODOS}")

    paths = [f"/api/todos/{todo_id(number)}" for number in range(1, WRITERS + 1)]
    return while_clients_ask(
        running,
        [("PATCH", path, lambda number: json.dumps({"title": f"Changed alone, {number}"})) for path in paths],
        act,
    )


def sign_in_request(port: int, account: dict[str, str], address: str) -> bytes:
    """The bytes of a sign-in from an address."""
    body = json.dumps(account)
    head = f"POST /api/session HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}{ADDRESS}: {address}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def wrong_sign_ins(running: Running, quick: bool) -> Meanwhile:
    """Send wrong passwords, from an address each, while another client asks for something else. Raises NotRun."""
    send(running.connect(), "POST", "/api/users", ACCOUNT)
    wrong, connections = ACCOUNT | {"password": "incorrect"}, []

    def act() -> None:
        for number, connection in enumerate(connections):
            connection.sendall(sign_in_request(running.port, wrong, f"10.0.{number // 250}.{number % 250}"))
            connection.setblocking(False)
        answers = wait_for_all(connections, b"\r\n\r\n", SECONDS_FOR_ALL)
        if accepted := [answer for answer in answers if answer[9:12] not in (b"401", b"429", b"503")]:
            raise NotRun(f"it answers {accepted[0]!r} to a wrong password")

    with contextlib.ExitStack() as stack:
        for _ in range(WRONG_SIGN_INS):
            connections.append(stack.enter_context(socket.create_connection(("127.0.0.1", running.port))))
        return while_clients_ask(running, [("GET", LIVE, lambda number: None)], act)


def sign_ins(running: Running, count: int) -> Timing:
    """Sign in with the right password, from an address each time. Raises NotRun."""
    connection = running.connect()
    send(connection, "POST", "/api/users", ACCOUNT)
    before, times = running.memory(), []
    for number in range(count):
        began = time.perf_counter()
        send(connection, "POST", "/api/session", ACCOUNT, **{ADDRESS: f"10.1.0.{number}"})
        times.append((time.perf_counter() - began) * 1e3)
    return Timing(times, before, running.peak_memory())
