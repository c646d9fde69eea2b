"""Measures the page in Chromium: page.py URL COUNT ROUNDS, for a server with so many to-dos; prints JSON.

run.py calls it in the environment that has Playwright.
"""

import json
import os
import shutil
import sys

from playwright.sync_api import Browser, BrowserContext, Page, Playwright, sync_playwright

CHROMIUMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
SCREENS = 100
OPTIONS = ["--disable-gpu", "--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
WATCH_LONG_TASKS = """
  window.longTasks = [];
  new PerformanceObserver((list) => window.longTasks.push(...list.getEntries().map((task) => task.duration)))
    .observe({ type: 'longtask', buffered: true });
"""
FIRST_PAINT = """() => new Promise((resolve) => new PerformanceObserver((list) => {
  const [paint] = list.getEntriesByName('first-contentful-paint');
  if (paint) resolve(paint.startTime);
}).observe({ type: 'paint', buffered: true }))"""
ROWS = "document.querySelectorAll('.todo-list li').length"
FIRST_ROWS = f"""() => new Promise((resolve) => {{
  const look = () => ({ROWS} ? resolve(performance.now()) : requestAnimationFrame(look));
  look();
}})"""
# The page reads more to-dos when the end of the list comes into view.
READ_ALL = f"""(count) => new Promise((resolve) => {{
  const began = performance.now();
  const look = () => {{
    const passed = performance.now() - began;
    window.scrollTo(0, document.documentElement.scrollHeight);
    if ({ROWS} >= count || passed > 120000) resolve([{ROWS}, passed]);
    else requestAnimationFrame(look);
  }};
  look();
}})"""
# Through the list from its beginning, a screen in each frame; gives the milliseconds of each frame.
SCROLL = """(screens) => new Promise((resolve) => {
  window.scrollTo(0, 0);
  const times = [];
  const step = (now) => {
    times.push(now);
    window.scrollBy(0, innerHeight);
    if (times.length > screens) resolve(times.slice(1).map((time, index) => time - times[index]));
    else requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})"""
# From the key to the frame after the one in which the row was put into the list.
WATCH_ENTER = """(title) => {
  let began;
  const input = document.querySelector('.new-todo');
  input.addEventListener('keydown', () => { began = performance.now(); }, { once: true, capture: true });
  window.shown = new Promise((resolve) => {
    const watcher = new MutationObserver((records) => {
      const added = records.flatMap((record) => [...record.addedNodes]);
      if (!added.some((node) => node.textContent.includes(title))) return;
      watcher.disconnect();
      requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - began)));
    });
    watcher.observe(document.querySelector('.todo-list'), { childList: true, subtree: true });
  });
}"""


def launch(playwright: Playwright) -> Browser:
    """Chromium. It may use all processors: the server has nothing to do while the page is drawn."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if not path:
        sys.exit("there is no Chromium here (on Debian: apt-get install chromium-headless-shell)")
    return playwright.chromium.launch(executable_path=path, args=OPTIONS)


def open_page(context: BrowserContext, url: str) -> tuple[Page, dict]:
    """Open the page in a tab; gives it with what its first view took."""
    page, size = context.new_page(), []
    page.add_init_script(WATCH_LONG_TASKS)
    devtools = context.new_cdp_session(page)
    devtools.send("Network.enable")
    devtools.on("Network.loadingFinished", lambda event: size.append(event["encodedDataLength"]))
    page.goto(url)
    paint = page.evaluate(FIRST_PAINT)
    shown = page.evaluate(FIRST_ROWS)
    page.wait_for_load_state("networkidle")
    return page, {"bytes": sum(size), "first content, ms": paint, "to-dos shown, ms": shown}


def open_twice(browser: Browser, url: str) -> tuple[dict, dict]:
    """What the page takes for a new visitor, and for one who comes again."""
    context = browser.new_context()
    page, cold = open_page(context, url)
    page.close()
    _, warm = open_page(context, url)
    context.close()
    return cold, warm


def enter(page: Page, number: int) -> float:
    """Type a to-do; gives the milliseconds from Enter until it is shown."""
    title = f"Water the roses, row {number}."
    page.fill(".new-todo", title)
    page.evaluate(WATCH_ENTER, title)
    page.press(".new-todo", "Enter")
    return page.evaluate("shown")


def main(url: str, count: str, rounds: str) -> None:
    """Measure, and print the samples of each measurement."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        visits = [open_twice(browser, url) for _ in range(int(rounds))]
        page, _ = open_page(browser.new_context(), url)
        rows, read = page.evaluate(READ_ALL, int(count))
        if rows < int(count):
            sys.exit(f"the page shows {rows} of {count} to-dos after two minutes at their end")
        reading = page.evaluate("longTasks.splice(0)")
        frames = page.evaluate(SCROLL, SCREENS)
        scrolling = page.evaluate("longTasks.splice(0)")
        page.evaluate("window.scrollTo(0, 0)")
        entered = [enter(page, number) for number in range(4 * int(rounds))]
        found = {"to the last to-do, ms": [read], "long tasks on the way, ms": reading}
        found |= {"frames of scrolling, ms": frames, "long tasks of scrolling, ms": scrolling}
        found |= {"from Enter to shown, ms": entered}
        browser.close()
    for visit, samples in zip(("first visit", "second visit"), zip(*visits, strict=True), strict=True):
        found |= {f"{visit}: {name}": [sample[name] for sample in samples] for name in samples[0]}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
