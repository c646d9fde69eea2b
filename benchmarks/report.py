"""The figures as Markdown tables, and as a bar chart in SVG."""

import statistics
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from load import Row
from servers import REFERENCES, SERVERS
from sockets import FanOut
from works import WORKS, Work

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


def reference_in(rows: Mapping[str, Row], store: str) -> str:
    """Which server the ratios are to: where the usual one cannot do the work, Tornado's hello world."""
    return REFERENCES[store] if REFERENCES[store] in rows else "hello-tornado"


def ratio(row: Row, reference: Row | None) -> str:
    """The ratio of the medians of two rows."""
    return f"{row.rate / reference.rate:.2f}" if reference and reference.samples and row.samples else "–"


def work_line(name: str, row: Row, reference: Row | None, with_instructions: bool) -> list[str]:
    """The line of one server in the table of a work."""
    if not row.samples:
        return [f"{TITLES[name]} (not run)", *["–"] * (6 + with_instructions)]
    requests = sum(sample.requests for sample in row.samples)
    used = sum(sample.processor_seconds for sample in row.samples)
    cells = [
        f"{row.rate:,.0f} ({min(row.rates):,.0f} to {max(row.rates):,.0f})",
        ratio(row, reference),
        f"{row.median(lambda sample: sample.p50_milliseconds):.2f}",
        f"{row.median(lambda sample: sample.p99_milliseconds):.2f}",
        f"{used / requests * 1e6:.0f}",
        f"{row.memory / MEBIBYTE:.0f}",
    ]
    if with_instructions:
        cells.append("–" if row.instructions is None else f"{row.instructions / 1e3:,.0f}")
    return [TITLES[name], *cells]


def work_table(work: Work, rows: Mapping[str, Row], store: str, base: Mapping[str, Row]) -> str:
    """The table of one work on one kind of database, and what went wrong under it.

    Ratios are to the server that they are to, or to what the same server does in the work's base.
    """
    with_instructions = any(row.instructions is not None for row in rows.values())
    reference = reference_in(rows, store)
    references = {name: base.get(name) if work.base else rows.get(reference) for name in rows}
    compared = BY_NAME[work.base].title if work.base else TITLES[reference]
    title = work.title + (", on Postgres" if store == "postgres" else "")
    header = [title, "requests/s (min to max)", f"× {compared}", "p50 ms", "p99 ms", "CPU µs/request", "MiB"]
    header += ["1,000 instr./request"] if with_instructions else []
    lines = [work_line(name, row, references[name], with_instructions) for name, row in rows.items()]
    text = table(header, lines)
    for name, row in rows.items():
        if row.reason:
            text += f"\n\n{TITLES[name]}: {row.reason}."
        if row.silent_rounds:
            text += f"\n\n{TITLES[name]}: answered nothing in {row.silent_rounds} of the rounds."
        if row.errors:
            text += f"\n\n{TITLES[name]}: {row.errors:,} requests failed."
    return text


def overview(results: Results, store: str) -> str:
    """All works on one kind of database in one table: requests a second, and the ratio to the reference."""
    columns = {name: by_store(rows, store) for name, rows in results.items()}
    columns = {name: rows for name, rows in columns.items() if rows}
    lines = []
    for server in SERVERS:
        cells = []
        for rows in columns.values():
            row, reference = rows.get(server.name, Row()), rows.get(REFERENCES[store])
            suffix = f" ({ratio(row, reference)})" if reference else ""
            cells.append(f"{row.rate:,.0f}{suffix}" if row.samples else "")
        if any(cells):
            lines.append([server.title, *cells])
    title = f"requests/s (× {TITLES[REFERENCES[store]]})"
    return table([title, *(BY_NAME[name].title for name in columns)], lines) if lines else ""


def load_tables(results: Results) -> list[str]:
    """An overview, and one table for each work, of each kind of database."""
    tables = []
    for store in REFERENCES:
        tables.append(overview(results, store))
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


def sockets_table(fan_out: FanOut) -> str:
    """What a thousand sockets cost, and how fast a change reaches them."""
    times = fan_out.milliseconds
    header = [f"{fan_out.sockets:,} WebSockets", "ms to the last (min to max)", "MiB before", "MiB with", "KiB each"]
    spread = f"{fan_out.median:.0f} ({min(times):.0f} to {max(times):.0f})"
    memory = [f"{size / MEBIBYTE:.0f}" for size in (fan_out.memory_before, fan_out.memory_with)]
    return table(header, [[TITLES["ours"], spread, *memory, f"{fan_out.memory_each / 1024:.1f}"]])


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
