"""Measures acts on lists of many to-dos in Chromium: page_acts.py URL COUNT ROUNDS [PART OF A NAME]; prints JSON.

For each act: the longest task of the page's main thread, on the clock and on the processor, in milliseconds. On a
machine that does something else as well, only the processor's time says something, and that is longer, too.
It makes its own lists and deletes them again; run.py does not call it, because a round takes four minutes.
"""

import json
import sys
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

KINDS = {"plain": {}, "subtasks": {}, "tags and dates": {"tags": ["home", "garden"], "priority": 2}}
SUBTASKS = 4  # of each parent
ARRAY = 1000
ROWS = "document.querySelectorAll('.todo-list li').length"
# Through everything that is read while the end of the list is in view.
TO_THE_END = """async () => {
  const pause = () => new Promise(resolve => setTimeout(resolve, 50));
  for (let since = 0; since < 10; since += 1) {
    const { length } = document.querySelectorAll('.todo-list li');
    scrollTo(0, document.documentElement.scrollHeight);
    await pause();
    const isBusy = !document.querySelector('.more').hidden;
    if (isBusy || length !== document.querySelectorAll('.todo-list li').length) since = 0;
  }
}"""
SCROLL = """() => new Promise(resolve => {
  scrollTo(0, 0);
  const step = left => {
    scrollBy(0, innerHeight);
    if (left) requestAnimationFrame(() => step(left - 1));
    else resolve();
  };
  step(60);
})"""
QUIET = """() => new Promise(resolve => {
  const look = () => document.querySelector('.todoapp').ariaBusy === 'false' ? resolve() : setTimeout(look, 50);
  look();
})"""
PLACE = """([selector, index]) => {
  document.querySelectorAll(selector)[index].scrollIntoView({ block: 'nearest', behavior: 'instant' });
  const { x, y, width, height } = document.querySelectorAll(selector)[index].getBoundingClientRect();
  return [x + width / 2, y + height / 2];
}"""
Act = Callable[[Page], Any]


class Api:
    """The server's API, for another client's writes."""

    def __init__(self, url: str):
        self.url = url

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read() or b"null")

    def make_list(self, kind: str, count: int) -> str:
        """A list of `count` to-dos of a kind, of which each third is completed; returns its id."""
        list_id = self.ask("POST", "/api/lists", {"title": kind})["id"]
        fields = {"list": list_id, **KINDS[kind]}
        parents = count // (SUBTASKS + 1) if kind == "subtasks" else count
        todos = [{**fields, "title": f"Water the roses, row {n}", "completed": n % 3 == 0} for n in range(parents)]
        if kind == "tags and dates":
            for number, todo in enumerate(todos):
                todo["due"] = f"2026-{1 + number % 12:02}-{1 + number % 28:02}"
        made = self.make(todos)
        if parents < count:
            below = [{**fields, "title": "Fetch a can", "parent": todo["id"]} for todo in made]
            self.make([todo for todo in below for _ in range(SUBTASKS)])
        return list_id

    def make(self, todos: list[dict]) -> list[dict]:
        arrays = (todos[start : start + ARRAY] for start in range(0, len(todos), ARRAY))
        return [made for array in arrays for made in self.ask("POST", "/api/todos", array)]


def wait_for_quiet(page: Page) -> None:
    page.wait_for_timeout(100)
    page.evaluate(QUIET)
    page.wait_for_timeout(500)


def read_all(page: Page) -> None:
    page.evaluate(TO_THE_END)
    page.evaluate("scrollTo(0, 0)")
    wait_for_quiet(page)


def longest_task(browser: Browser, page: Page, act: Act) -> tuple[float, float]:
    """The longest task of an act and all that follows from it: milliseconds on the clock and on the processor."""
    browser.start_tracing(page=page, categories=["-*", "toplevel", "disabled-by-default-devtools.timeline"])
    act(page)
    wait_for_quiet(page)
    events = json.loads(browser.stop_tracing())["traceEvents"]
    named = (event for event in events if event["name"] == "thread_name")
    mains = {(each["pid"], each["tid"]) for each in named if each["args"]["name"] == "CrRendererMain"}
    tasks = [each for each in events if each["name"].endswith("RunTask") and (each["pid"], each["tid"]) in mains]
    return tuple(max((each.get(field, 0) for each in tasks), default=0) / 1000 for field in ("dur", "tdur"))


def click(selector: str, index: int = 0) -> Act:
    """A click of the mouse. Playwright's own clicks search the page, which takes longer than many an act."""
    return lambda page: page.mouse.click(*page.evaluate(PLACE, [selector, index]))


def complete(selector: str) -> Act:
    """Click what completes to-dos, and answer the question about their subtasks, if there is one."""

    def act(page: Page) -> None:
        click(selector)(page)
        page.wait_for_timeout(100)
        if page.evaluate("document.querySelector('dialog[open]') !== null"):
            page.keyboard.press("Enter")

    return act


def drag(over: int) -> Act:
    """Drag the second to-do over a number of pixels."""

    def act(page: Page) -> None:
        x, y = page.evaluate(PLACE, [".todo-list .grip", 1])
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x, y + over, steps=20)
        page.wait_for_timeout(300)
        page.mouse.up()

    return act


def type_in(selector: str, text: str, end: str = "Enter") -> Act:
    def act(page: Page) -> None:
        page.evaluate("selector => document.querySelector(selector).select()", selector)
        page.keyboard.press("Delete")
        page.keyboard.type(text, delay=30)
        page.keyboard.press(end)

    return act


def select(count: int) -> Act:
    """Select so many rows from the second on."""

    def act(page: Page) -> None:
        for held, index in (("Control", 1), ("Shift", count)):
            page.keyboard.down(held)
            click(".todo-list li .words > label", index)(page)
            page.keyboard.up(held)

    return act


def key(name: str) -> Act:
    """A key in the second to-do."""

    def act(page: Page) -> None:
        page.evaluate("document.querySelectorAll('.todo-list .toggle')[1].focus()")
        page.keyboard.press(name)

    return act


def show(state: str) -> Act:
    return click(f".filters [data-show={state}]")


def sort(field: str) -> Act:
    change = "field => { const node = document.querySelector('.sort'); node.value = field; "
    change += "node.dispatchEvent(new Event('change', { bubbles: true })); }"
    return lambda page: page.evaluate(change, field)


def elsewhere(write: Callable[[], Any]) -> Act:
    """Another client's write. The page reads everything again in a quiet moment, and shows no sign of that."""

    def act(page: Page) -> None:
        write()
        page.wait_for_timeout(2500)

    return act


def acts_on(kind: str, api: Api, list_id: str) -> Iterator[tuple[str, Act]]:
    """Names and acts in their sequence. Before an act whose name ends in a star the list is not read to its end."""
    yield "read to the end*", lambda page: page.evaluate(TO_THE_END)
    yield "scroll", lambda page: page.evaluate(SCROLL)
    yield "type and add", type_in(".new-todo", "Buy bulbs tomorrow")
    yield "tick", click(".todo-list .toggle", 2)
    yield "undo", lambda page: page.keyboard.press("Control+z")
    yield "open details", click(".todo-list .details-button", 2)
    yield "close details", lambda page: page.keyboard.press("Escape")
    yield "edit in place", key("F2")
    yield "end of editing", lambda page: page.keyboard.press("Escape")
    yield "drag", drag(150)
    yield "drag with scrolling", drag(600)
    yield "move by key", key("Alt+ArrowDown")
    if kind == "subtasks":
        yield "collapse", click(".branch", 1)
        yield "expand", click(".branch", 1)
    yield "select two", select(2)
    yield "select 100", select(100)
    yield "complete 100", complete(".select-complete")
    yield "undo that", lambda page: page.keyboard.press("Control+z")
    yield "select 100 again", select(100)
    yield "end of selection", lambda page: page.keyboard.press("Escape")
    yield "select all", key("Control+a")
    yield "clock", lambda page: page.wait_for_timeout(6000)
    first = api.ask("GET", f"/api/todos?list={list_id}&limit=3")[2]["id"]
    yield "live change", elsewhere(lambda: api.ask("PATCH", f"/api/todos/{first}", {"title": "Changed elsewhere"}))
    yield "live change of all", elsewhere(lambda: api.ask("PATCH", f"/api/todos?list={list_id}", {"priority": 1}))
    for state in ("active", "completed", "all"):
        yield f"filter {state}", show(state)
    yield "filter active once more", show("active")
    yield "open completed", click(".group-toggle")
    yield "close completed", click(".group-toggle")
    yield "filter all again", show("all")
    for field in ("title", "due", "order"):
        yield f"sort by {field}", sort(field)
    yield "search", type_in(".search", "row 7")
    yield "end of search*", type_in(".search", "")
    yield "to Today", click(".views a", 1)
    yield "back*", lambda page: page.evaluate("history.back()")
    yield "complete all", complete(".toggle-all-box label")
    yield "undo it", lambda page: page.keyboard.press("Control+z")
    yield "to Everything", click(".views a", 3)


def measure(browser: Browser, url: str, count: int, rounds: int, part: str = "") -> dict[str, list[float]]:
    """The longest task of each act on each kind of list, in each round."""
    api, found = Api(url.rstrip("/")), {}
    for kind in KINDS:
        for _ in range(rounds):
            list_id = api.make_list(kind, count)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(f"{api.url}/#/list/{list_id}")
            wait_for_quiet(page)
            for name, act in acts_on(kind, api, list_id):
                if not name.endswith("*") and page.evaluate("!document.querySelector('.more').hidden"):
                    read_all(page)
                wall, processor = longest_task(browser, page, act)
                print(f"{kind}: {name}: {wall:.1f} ms, {processor:.1f} of the processor", file=sys.stderr)
                if part in name:
                    found.setdefault(f"{kind}: {name.rstrip('*')}, ms", []).append(wall)
                    found.setdefault(f"{kind}: {name.rstrip('*')}, ms of the processor", []).append(processor)
            page.close()
            api.ask("DELETE", f"/api/lists/{list_id}")
    return found


if __name__ == "__main__":
    from page import launch

    with sync_playwright() as playwright:
        browser = launch(playwright)
        given_url, given_count, given_rounds, *more = sys.argv[1:]
        print(json.dumps(measure(browser, given_url, int(given_count), int(given_rounds), *more)))
