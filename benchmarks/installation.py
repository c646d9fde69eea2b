"""What a run needs: programs of this machine, a virtual environment and Node packages of its own."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
WORK_FOLDER = FOLDER / ".work"  # ignored by git; to delete it is harmless
PYTHON = WORK_FOLDER / "venv" / "bin" / "python"
NODE_FOLDER = WORK_FOLDER / "node"
NODE_PACKAGES = ("express", "better-sqlite3")
DEBIAN_PACKAGES = {"wrk": "wrk", "valgrind": "valgrind", "callgrind_control": "valgrind"}
SHOWN_PACKAGES = ("tornado", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "aiohttp", "flask", "gunicorn")
SHOWN_DRIVERS = ("aiosqlite", "sqlalchemy", "asyncpg", "msgspec", "pydantic")


@dataclasses.dataclass(frozen=True)
class Processors:
    """Which processor the servers run on, and which the load comes from; the same one if there is no other.

    Besides, those that nobody uses, for a server with several workers.
    """

    server: int
    client: int
    free: tuple[int, ...]

    @property
    def shared(self) -> bool:
        return self.server == self.client


def choose_processors() -> Processors:
    """Two of the processors that this process may use, as far apart as they can be."""
    usable = sorted(os.sched_getaffinity(0))
    return Processors(server=usable[0], client=usable[-1], free=tuple(usable[1:-1]))


def require_programs(*names: str) -> None:
    """End the run with the names of the packages to install, unless these programs are here."""
    packages = sorted({DEBIAN_PACKAGES[name] for name in names if not shutil.which(name)})
    if packages:
        sys.exit(f"Not here: {', '.join(packages)}. On Debian: apt-get install {' '.join(packages)}")


def once(stamp: Path, contents: str, install: Callable[[], None]) -> None:
    """Call `install` unless it has been called with the same contents before."""
    if stamp.exists() and stamp.read_text() == contents:
        return
    install()
    stamp.write_text(contents)


def install_python_packages() -> None:
    """Make the virtual environment with our requirements, uvloop and Postgres' driver, and with the peers."""
    requirements = FOLDER / "requirements.txt"

    def install() -> None:
        subprocess.run([sys.executable, "-m", "venv", "--clear", PYTHON.parent.parent], check=True)
        command = [PYTHON, "-m", "pip", "install", "-qq", "-e", f"{ROOT}[postgres,fast]", "-r", requirements]
        subprocess.run(command, check=True)

    contents = sys.version + (ROOT / "setup.cfg").read_text() + requirements.read_text()
    once(PYTHON.parent.parent / "installed", contents, install)


def install_node_packages() -> str:
    """Install Express and better-sqlite3. Gives the reason why it cannot be done, or nothing."""
    if not shutil.which("node") or not shutil.which("npm"):
        return "there is no Node here (on Debian: apt-get install nodejs npm)"

    def install() -> None:
        NODE_FOLDER.mkdir(exist_ok=True)
        (NODE_FOLDER / "package.json").write_text('{"private": true}')
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", *NODE_PACKAGES]
        headers = Path("/usr/include/node")
        # Debian's headers are beside its node; without them node-gyp would try to download some.
        environment = {**os.environ, **({"npm_config_nodedir": "/usr"} if headers.exists() else {})}
        subprocess.run(command, cwd=NODE_FOLDER, env=environment, check=True, timeout=900)
        subprocess.run(["node", "-e", "new (require('better-sqlite3'))(':memory:')"], cwd=NODE_FOLDER, check=True)

    try:
        once(NODE_FOLDER / "installed", " ".join(NODE_PACKAGES), install)
    except (subprocess.SubprocessError, OSError) as error:
        return f"its packages could not be installed ({error})"
    return ""


def versions() -> list[str]:
    """Name and version of the interpreters and packages that are compared."""
    script = (
        "import importlib.metadata, platform, sqlite3, sys;"
        "print('Python', platform.python_version()); print('SQLite', sqlite3.sqlite_version);"
        "[print(name, importlib.metadata.version(name)) for name in sys.argv[1:]]"
    )
    command = [PYTHON, "-c", script, *SHOWN_PACKAGES, *SHOWN_DRIVERS]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    if shutil.which("node"):
        version = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout
        found.append(f"Node {version.strip().removeprefix('v')}")
    for name in NODE_PACKAGES:
        package = NODE_FOLDER / "node_modules" / name / "package.json"
        if package.exists():
            found.append(f"{name} {json.loads(package.read_text())['version']}")
    return found
