"""Compares tornado_todo with what people would pick instead: python benchmarks/run.py --help.

Makes an environment of its own, starts the servers on this machine's loopback, loads them with wrk,
and prints Markdown tables. Needs Python's standard library, wrk, and for one of the peers Node.
"""

import argparse
import contextlib
import datetime
import itertools
import os
import platform
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path

import installation
import instructions
import load
import report
import todos
from figures import Figures
from lines import LINES, SOCKETS, Line
from load import Row
from servers import SERVERS, NotRun, Place, Running, Server, running
from works import WORKS, Work

ON_POSTGRES = [server.name for server in SERVERS if server.store == "postgres"]
START_SECONDS = 30.0


def say(text: str) -> None:
    """Tell a person how far it is; the tables alone go to standard output."""
    print(text, file=sys.stderr, flush=True)


def names_from(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of comma-separated names, which have to be known ones."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        return names

    return parse


def parse_options() -> argparse.Namespace:
    """The options of the command line, with their defaults."""
    servers, works = [server.name for server in SERVERS], [work.name for work in (*WORKS, *LINES)] + ["start"]
    parser = argparse.ArgumentParser(
        description="Compare tornado_todo with what people would pick instead. Prints Markdown.",
        epilog=f"Servers: {', '.join(servers)}. Works: {', '.join(works)}.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="2 rounds of 1 s, and no tables of 100 and of 100,000: a smoke test")
    add("--only", metavar="NAME,…", type=names_from(servers), default=servers, help="only these servers")
    add("--work", metavar="NAME,…", type=names_from(works), help="only these works")
    add("--seconds", type=int, metavar="N", help="seconds of load in a round (default 1)")
    add("--rounds", type=int, metavar="N", help="rounds of each work (default 3)")
    add("--postgres", metavar="URL", default="", help="compare on Postgres, too: databases are made on this server")
    add("--instructions", action="store_true", help="count instructions a request under valgrind, too")
    add("--chart", metavar="FILE", type=Path, help="where the chart goes (default benchmarks/.work/chart.svg)")
    options = parser.parse_args()
    if not options.postgres and all(name in ON_POSTGRES for name in options.only):
        parser.error("these servers need --postgres URL")
    options.seconds = options.seconds or 1
    options.rounds = options.rounds or (2 if options.quick else 3)
    options.work = options.work or [
        name for name in works if not (options.quick and name.endswith(("-100", "-100000")))
    ]
    options.chart = options.chart or installation.WORK_FOLDER / "chart.svg"
    return options


def processor_name() -> str:
    """What the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


class Benchmark:
    """One run: its options, its folder, and what it has found so far."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder = options, folder
        self.processors = installation.choose_processors()
        self.busy = os.getloadavg()[1]
        self.missing: dict[str, str] = {}
        self.figures = Figures()

    @property
    def servers(self) -> list[Server]:
        """The servers to compare."""
        chosen = [server for server in SERVERS if server.name in self.options.only]
        return [server for server in chosen if server.name not in ON_POSTGRES or self.options.postgres]

    def new_place(self, server: Server, count: int) -> Place:
        """A folder and a new database with that many to-dos (ours on Postgres gets them later). Raises NotRun."""
        if reason := self.missing.get(server.name):
            raise NotRun(reason)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        if server.store == "postgres":
            return Place(folder, todos.prepare_postgres(server, count, self.options.postgres))
        if server.store:
            shutil.copytree(self.filled_folder(server, count), folder, dirs_exist_ok=True)
        return Place(folder, todos.DATABASE)

    def filled_folder(self, server: Server, count: int) -> Path:
        """What the servers of one kind begin with, made once for all of them. Raises NotRun."""
        filled = self.folder / f"{server.kind}-{count}"
        if not filled.exists():
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            todos.fill_folder(server.kind, folder, count)
            if server.ours:
                with running(server, Place(folder, todos.DATABASE), self.processors_for(server)) as process:
                    process.wait(START_SECONDS)
                    todos.fill_ours(process, count)
                    todos.wait_for_index(folder / todos.DATABASE)
            folder.rename(filled)
        return filled

    @contextlib.contextmanager
    def started(self, server: Server, place: Place, count: int) -> Iterator[Running]:
        """A server that answers, with that many to-dos. Raises NotRun."""
        with running(server, place, self.processors_for(server)) as process:
            process.wait(START_SECONDS)
            if server.ours and server.store == "postgres":
                todos.fill_ours(process, count)
            yield process

    def fail(self, reason: str) -> None:
        """Note what could not be measured, for the report, too."""
        say(f"  {reason}")
        self.figures.failures.append(reason)

    def processors_for(self, server: Server) -> set[int]:
        """A processor for each of a server's workers. Raises NotRun."""
        free = self.processors.free[: server.workers - 1]
        if len(free) < server.workers - 1:
            needed = server.workers + 1
            raise NotRun(f"it takes {needed} processors, one of them for wrk; this machine has {os.cpu_count()}")
        return {self.processors.server, *free}

    def load(self, works: Sequence[Work]) -> None:
        """Load all servers that the works are for, in the same rounds."""
        contests = []
        with contextlib.ExitStack() as stack:
            for server, work in itertools.product(self.servers, works):
                if not work.servers(server) or server.only not in ("", work.name):
                    continue
                row = self.figures.results.setdefault(work.name, {}).setdefault(server.name, Row())
                try:
                    place = self.new_place(server, work.todos)
                    process = stack.enter_context(self.started(server, place, work.todos))
                    contests.append(load.Contest(work, process, row))
                except NotRun as error:
                    row.reason = str(error)
            load.measure(contests, self.options.seconds, self.options.rounds)

    def count_instructions(self, server: Server) -> None:
        """Count what one request takes, for each work that this server has been loaded with."""
        works = [work for work in WORKS if server.name in self.figures.results.get(work.name, {}) and work.todos == 20]
        short, long = (20, 60) if self.options.quick else (50, 250)
        try:
            place = self.new_place(server, 20)
            wrapper = instructions.wrapper(place.folder)
            with running(server, place, self.processors_for(server), wrapper) as process:
                process.wait(instructions.START_SECONDS)
                if server.ours and server.store == "postgres":
                    todos.fill_ours(process, 20)
                for work in works:
                    row = self.figures.results[work.name][server.name]
                    row.instructions = instructions.count_instructions(work, process, place.folder, short, long)
        except NotRun as error:
            self.fail(f"{server.plain_title}: {error}")

    def measure_starts(self) -> None:
        """Start every server several times, round by round, on a database that is there already."""
        places = {}
        for server in [server for server in self.servers if server.only in ("", "start")]:
            try:
                place = self.new_place(server, 20)
                with self.started(server, place, 20):
                    places[server.name] = place
            except NotRun as error:
                self.fail(f"{server.plain_title}: {error}")
        for server in [server for _ in range(self.options.rounds) for server in self.servers if server.name in places]:
            self._start_once(server, places[server.name])

    def _start_once(self, server: Server, place: Place) -> None:
        began = time.perf_counter()
        with running(server, place, self.processors_for(server)) as process:
            try:
                process.wait(START_SECONDS)
            except NotRun as error:
                self.fail(f"{server.plain_title}: {error}")
                return
            self.figures.starts.setdefault(server.name, []).append(time.perf_counter() - began)
            self.figures.idle[server.name] = process.memory()

    def measure_line(self, line: Line) -> None:
        """Measure a line on each server that it is for, which runs alone on a table of its own."""
        for server in filter(line.servers, self.servers):
            try:
                place = self.new_place(server, line.todos)
                with self.started(line.variant(server), place, line.todos) as process:
                    self.figures.lines.setdefault(line.name, {})[server.name] = line.measure(
                        process, self.options.quick
                    )
                shutil.rmtree(place.folder)
            except (NotRun, OSError, ValueError, HTTPException) as error:
                self.fail(f"{line.title}: {server.plain_title}: {error}")

    def run(self) -> None:
        """Measure all that the options ask for."""
        chosen = [work for work in WORKS if work.name in self.options.work]
        for work in chosen:
            if work.base not in self.options.work:
                group = [work, *(other for other in chosen if other.base == work.name)]
                say(f"{'; '.join(each.title for each in group)} …")
                self.load(group)
        for line in LINES:
            if line.name in self.options.work:
                say(f"{line.title} …")
                self.measure_line(line)
        if "start" in self.options.work:
            say("start to first answer, memory idle …")
            self.measure_starts()
        for server in self.servers if self.options.instructions else ():
            say(f"instructions: {server.plain_title} …")
            self.count_instructions(server)

    def prepare(self) -> None:
        """Install what is needed, and take this process and wrk to the processor that the servers do not run on."""
        installation.require_programs("wrk", *(("valgrind", "callgrind_control") if self.options.instructions else ()))
        installation.install_python_packages()
        if any(server.name == "express" for server in self.servers):
            self.missing["express"] = installation.install_node_packages()
        os.sched_setaffinity(0, {self.processors.client})
        # A thousand sockets here, and as many in the server, which inherits the bound.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4 * SOCKETS, most), most))

    def conditions(self) -> str:
        """On what, and how, this was measured."""
        where = f"processor {self.processors.server}, wrk on processor {self.processors.client}"
        if self.processors.shared:
            where = "the only processor, which wrk shares with them: the figures are lower than they should be"
        return (
            f"{datetime.date.today()}, {processor_name()}, {os.cpu_count()} processors, {platform.system()}"
            f" {platform.release()}; load average before the run {self.busy:.1f}. Servers on {where}."
            f" {self.options.rounds} rounds of {self.options.seconds} s, {load.CONNECTIONS} connections."
            f" {', '.join(installation.versions())}."
        )

    def markdown(self) -> str:
        """All tables."""
        return "\n\n".join([self.conditions(), *report.tables(self.figures)]) + "\n"


def main() -> int:
    """Run the benchmark; gives the exit code."""
    options, code = parse_options(), 0
    # A SIGTERM ends the run as Ctrl+C does, so that no server is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    installation.WORK_FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=installation.WORK_FOLDER) as folder:
        benchmark = Benchmark(options, Path(folder))
        benchmark.prepare()
        try:
            benchmark.run()
        except (KeyboardInterrupt, SystemExit):
            say("Ended early: the tables have what was measured before.")
            code = 143
        finally:
            todos.drop_databases(options.postgres, benchmark.servers)
    print(benchmark.markdown(), end="")
    if chart := report.chart(benchmark.figures.results):
        options.chart.write_text(chart, encoding="utf-8")
        say(f"The chart is in {options.chart}.")
    return code


if __name__ == "__main__":
    sys.exit(main())
