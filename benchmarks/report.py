"""The figures as Markdown tables, and as a bar chart in SVG."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from calendars import Acts
from figures import Figures
from lines import LINES
from load import Row
from meanwhile import Meanwhile
from servers import REFERENCES, SERVERS
from targets import TARGETS
from timing import Timing
from works import COMMON, WORKS, Work

BY_NAME = {work.name: work for work in WORKS}
TITLES = {server.name: server.title for server in SERVERS}
MEBIBYTE = 2**20
CHARTED = ("list", "one", "create", "patch")
PANEL_WIDTH, BAR_HEIGHT, LABEL_WIDTH, TITLE_HEIGHT = 440, 18, 168, 34
# Greys and a blue that can be read on white as well as on a dark page.
INK, BAR, OUR_BAR = "#7a828c", "#9aa4b0", "#2f7de1"

Results = Mapping[str, Mapping[str, Row]]  # by work, then by server


def by_store(rows: Mapping[str, Row], store: str) -> dict[str, Row]:
    """The rows of the servers on one kind of database; the hello worlds stand beside those on SQLite."""
    wanted = {server.name for server in SERVERS if (server.store or "sqlite") == store}
    return {name: row for name, row in rows.items() if name in wanted}


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns but the first are aligned to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def references_in(
    work: Work, rows: Mapping[str, Row], store: str, base: Mapping[str, Row]
) -> dict[str, Mapping[str, Row]]:
    """What the ratios are to: by the title of a column, the row to compare with for each server.

    It is what the same server does in the work's base, and what the usual servers do in this work; where none of them
    can do it, Tornado's hello world.
    """
    names = [name for name in REFERENCES[store] if name in rows] or ([] if work.base else ["hello-tornado"])
    columns = {f"× {BY_NAME[work.base].title}": base} if base else {}
    return columns | {f"× {TITLES[name]}": dict.fromkeys(rows, rows.get(name)) for name in names}


def ratio(row: Row, reference: Row | None) -> str:
    """The ratio of the medians of two rows."""
    return f"{row.rate / reference.rate:.2f}" if reference and reference.samples and row.samples else "–"


def work_line(name: str, row: Row, references: Sequence[Row | None], with_instructions: bool) -> list[str]:
    """The line of one server in the table of a work."""
    if not row.samples:
        return [f"{TITLES[name]} (not run)", *["–"] * (6 + len(references) + with_instructions)]
    cells = [
        f"{row.rate:,.0f} ({min(row.rates):,.0f} to {max(row.rates):,.0f})",
        *(ratio(row, reference) for reference in references),
        f"{row.p50:.2f}",
        f"{row.p99:.2f}",
        f"{row.p99 / row.p50:.1f}",
        f"{row.processor_seconds * 1e6:.0f}",
        f"{row.memory / MEBIBYTE:.0f}",
    ]
    if with_instructions:
        cells.append("–" if row.instructions is None else f"{row.instructions / 1e3:,.0f}")
    return [TITLES[name], *cells]


def work_table(work: Work, rows: Mapping[str, Row], store: str, base: Mapping[str, Row]) -> str:
    """The table of one work on one kind of database, and what went wrong under it."""
    with_instructions = any(row.instructions is not None for row in rows.values())
    references = references_in(work, rows, store, base)
    title = work.title + (", on Postgres" if store == "postgres" else "")
    header = [title, "requests/s (min to max)", *references, "p50 ms", "p99 ms", "p99/p50", "CPU µs/request", "MiB"]
    header += ["1,000 instr./request"] if with_instructions else []
    lines = [
        work_line(name, row, [column.get(name) for column in references.values()], with_instructions)
        for name, row in rows.items()
    ]
    text = table(header, lines)
    for name, row in rows.items():
        if row.reason:
            text += f"\n\n{TITLES[name]}: {row.reason}."
        if row.silent_rounds:
            text += f"\n\n{TITLES[name]}: answered nothing in {row.silent_rounds} of the rounds."
        if row.errors:
            text += f"\n\n{TITLES[name]}: {row.errors:,} requests failed."
    return text


def overview(results: Results, store: str, works: Sequence[Work]) -> str:
    """Works on one kind of database in one table: requests a second, and the ratios to the references."""
    columns = {work.title: by_store(results.get(work.name, {}), store) for work in works}
    columns = {title: rows for title, rows in columns.items() if rows}
    lines = []
    for server in SERVERS:
        cells = []
        for rows in columns.values():
            row = rows.get(server.name, Row())
            ratios = [ratio(row, rows[name]) for name in REFERENCES[store] if name in rows]
            suffix = f" ({', '.join(ratios)})" if ratios else ""
            cells.append(f"{row.rate:,.0f}{suffix}" if row.samples else "")
        if any(cells):
            lines.append([server.title, *cells])
    title = f"requests/s ({', '.join(f'× {TITLES[name]}' for name in REFERENCES[store])})"
    return table([title, *columns], lines) if lines else ""


def load_tables(results: Results) -> list[str]:
    """Overviews, of the small tables and by size, and one table for each work, of each kind of database."""
    groups = [[work for work in WORKS if work.todos == 20]]
    groups += [[work for work in WORKS if work.todos != 20 and work.name.startswith(name)] for name in CHARTED]
    tables = []
    for store in REFERENCES:
        tables += [overview(results, store, group) for group in groups]
        for work in WORKS:
            if rows := by_store(results.get(work.name, {}), store):
                tables.append(work_table(work, rows, store, results.get(work.base, {})))
    return [text for text in tables if text]


def start_table(starts: Mapping[str, Sequence[float]], idle: Mapping[str, int]) -> str:
    """How long each server takes from its start to its first answer, and its memory after that."""
    hello = starts.get("hello-tornado")
    lines = []
    for name, seconds in starts.items():
        median = statistics.median(seconds)
        to_hello = f"{median / statistics.median(hello):.2f}" if hello else "–"
        spread = f"{median * 1e3:,.0f} ({min(seconds) * 1e3:,.0f} to {max(seconds) * 1e3:,.0f})"
        lines.append([TITLES[name], spread, to_hello, f"{idle[name] / MEBIBYTE:.0f}"])
    header = ["start to first answer", "ms (min to max)", f"× {TITLES['hello-tornado']}", "MiB idle"]
    return table(header, lines)


def found_by_lines(figures: Figures, kind: type) -> list[tuple[str, Any]]:
    """The titles of a line and of a server, and what was found there, for what is of a kind."""
    found = [(line.title, figures.lines.get(line.name, {})) for line in LINES]
    return [
        (f"{title}: {TITLES[name]}", value)
        for title, by_server in found
        for name, value in by_server.items()
        if isinstance(value, kind)
    ]


def timing_cells(timing: Timing) -> list[str]:
    times = [f"{time:,.1f}" for time in (timing.p50, timing.p99)]
    memory = [f"{size / MEBIBYTE:.0f}" for size in (timing.memory_before, timing.memory_peak)]
    return [*times, f"{timing.p99 / timing.p50:.1f}", *memory]


def timings_table(figures: Figures) -> str:
    """What one client waits for."""
    header = ["one client, one request after the other", "p50 ms", "p99 ms", "p99/p50", "MiB before", "MiB at most"]
    found = found_by_lines(figures, Timing)
    return table(header, [[title, *timing_cells(timing)] for title, timing in found]) if found else ""


def meanwhiles_table(figures: Figures) -> str:
    """How long other clients wait while something big goes on."""
    header = ["what others wait", "seconds in all", "their requests", "503", "longest ms"]
    header += ["p50 ms", "p99 ms", "p99/p50", "MiB before", "MiB at most"]
    lines = []
    for title, found in found_by_lines(figures, Meanwhile):
        others = found.others
        counts = [f"{len(others.milliseconds):,}", f"{found.refused:,}", f"{others.longest:,.0f}"]
        lines.append([title, f"{found.seconds:.1f}", *counts, *timing_cells(others)])
    return table(header, lines) if lines else ""


def calendar_tables(figures: Figures) -> Iterator[str]:
    """What a calendar app waits for, the servers beside each other."""
    for line in LINES:
        found = {name: its for name, its in figures.lines.get(line.name, {}).items() if isinstance(its, Acts)}
        header = [f"{line.title}: p50 ms (processor ms)", *(TITLES[name] for name in found)]
        titles = dict.fromkeys(title for its in found.values() for title in its.times)
        rows = [
            [title, *(f"{its.times[title].p50:,.1f} ({its.processor[title]:,.1f})" for its in found.values())]
            for title in titles
        ]
        yield table(header, rows) if found else ""


def page_tables(figures: Figures) -> Iterator[str]:
    """What the page takes in a browser."""
    for title, found in found_by_lines(figures, dict):
        lines = []
        for name, values in found.items():
            spread = f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})" if values else "–"
            lines.append([name, f"{len(values)}", spread])
        yield table([title, "number", "median (min to max)"], lines)


def quotient(figures: Figures, work: str, base: str, reference: str = "ours") -> list[str]:
    """The ratio of what ours does in a work to what it, or another server, does in a base; nothing if not measured."""
    rows = figures.results.get(work, {}).get("ours"), figures.results.get(base, {}).get(reference)
    return [f"{rows[0].rate / rows[1].rate:.2f} ×"] if all(row and row.samples for row in rows) else []


def milliseconds(figures: Figures, line: str) -> list[str]:
    """The p50 and p99 of a line on both our HTTP servers; nothing if it was not measured."""
    found = [value for value in figures.lines.get(line, {}).values() if isinstance(value, Timing)]
    return [f"{min(each.p50 for each in found):,.1f} ms (p99 {max(each.p99 for each in found):,.1f})"] if found else []


def started(figures: Figures, name: str) -> list[str]:
    """The median time from a server's start to its first answer; nothing if it was not measured."""
    return [f"{statistics.median(figures.starts[name]) * 1e3:,.0f} ms"] if name in figures.starts else []


def measurements(figures: Figures) -> str:
    """The table of single measurements in docs/performance.md."""
    listed = {
        "the list when the client already has it (304), to Tornado's hello world": quotient(
            figures, "conditional", "list", "hello-tornado"
        ),
        "a page of 50 among 100,000 to-dos, to the same among 100": quotient(figures, "list-100000", "list-100"),
        "the list for a signed-in user, to the list without sign-in": quotient(figures, "session", "browser"),
        "first answer after the start of the installed command": started(figures, "ours"),
        "first answer after `python tornado_todo.py`, which Python compiles each time": started(figures, "ours-file"),
    }
    shown = ("list-1000", "lists", "changes", "export", "search-rare", "search-two", "page--created_at-100000")
    for line in LINES:
        if line.name in (*shown, "page-title-100000", "sign-in", "sockets"):
            listed[line.title] = milliseconds(figures, line.name)
        found = [each for each in figures.lines.get(line.name, {}).values() if isinstance(each, Meanwhile)]
        if found:
            longest = max(each.others.p99 for each in found), max(each.others.longest for each in found)
            listed[line.title] = [f"others wait {longest[0]:,.0f} ms (p99), at most {longest[1]:,.0f} ms"]
    lines = [[title, *cells] for title, cells in listed.items() if cells]
    return table(["measurement", "result"], lines) if lines else ""


def tables(figures: Figures) -> list[str]:
    """All tables, and what could not be measured; those of docs/performance.md come first."""
    parts = [overview(figures.results, store, COMMON) for store in REFERENCES] + [measurements(figures)]
    parts += [*calendar_tables(figures), "---"]
    parts += [*load_tables(figures.results), timings_table(figures), meanwhiles_table(figures), *page_tables(figures)]
    parts += [start_table(figures.starts, figures.idle)] if figures.starts else []
    parts += [f"Not measured: {failure}" for failure in figures.failures]
    parts.append(table(["target", "bound", "measured", ""], [target.line(figures) for target in TARGETS]))
    return [part for part in parts if part]


def panel(title: str, rows: Mapping[str, Row], left: int, top: int) -> list[str]:
    """The bars of one work, the fastest first."""
    parts = [f'<text x="{left}" y="{top + 16}" font-weight="bold">{escape(title)}, requests a second</text>']
    most = max(row.rate for row in rows.values())
    space = PANEL_WIDTH - LABEL_WIDTH - 70  # 70 for the figure after the longest bar
    for index, (name, row) in enumerate(sorted(rows.items(), key=lambda item: -item[1].rate)):
        y = top + TITLE_HEIGHT + index * BAR_HEIGHT
        width = max(1, round(space * row.rate / most))
        label = escape(TITLES[name].replace("**", "").replace(", on uvicorn", " + uvicorn"))
        is_ours = name.startswith("ours")
        weight = ' font-weight="bold"' if is_ours else ""
        parts.append(f'<text x="{left + LABEL_WIDTH - 8}" y="{y + 10}" text-anchor="end"{weight}>{label}</text>')
        fill = OUR_BAR if is_ours else BAR
        parts.append(f'<rect x="{left + LABEL_WIDTH}" y="{y}" width="{width}" height="13" rx="2" fill="{fill}"/>')
        parts.append(f'<text x="{left + LABEL_WIDTH + width + 6}" y="{y + 10}"{weight}>{row.rate:,.0f}</text>')
    return parts


def chart(results: Results) -> str:
    """Bars for the four most common works on SQLite, two beside each other; empty if none of them was run."""
    charted = {}
    for name in CHARTED:
        rows = {server: row for server, row in by_store(results.get(name, {}), "sqlite").items() if row.samples}
        # The raw ASGI hello world would leave all others a stump.
        rows.pop("hello-asgi", None)
        if rows:
            charted[name] = rows
    if not charted:
        return ""
    height = TITLE_HEIGHT + 14 + BAR_HEIGHT * max(len(rows) for rows in charted.values())
    parts = []
    for index, (name, rows) in enumerate(charted.items()):
        parts += panel(BY_NAME[name].title, rows, index % 2 * PANEL_WIDTH, index // 2 * height)
    width, full_height = 2 * PANEL_WIDTH, height * ((len(charted) + 1) // 2)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {full_height}" width="{width}" role="img"'
        f' aria-label="Requests a second of each server" font-family="system-ui, sans-serif" font-size="12"'
        f' fill="{INK}">\n' + "\n".join(parts) + "\n</svg>\n"
    )
