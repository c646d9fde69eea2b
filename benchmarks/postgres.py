"""Makes and drops databases for the benchmark: postgres.py create|drop NAME [COUNT], the URL on standard input.

run.py calls it in the environment that has asyncpg. The URL may hold a password, which no command line should show.
"""

import asyncio
import sys
import urllib.parse

import asyncpg
from installation import FOLDER
from todos import rows


async def main(action: str, name: str, count: str = "0") -> None:
    """Drop the database of this name; for `create` make it anew, with so many to-dos, and print its URL."""
    url = sys.stdin.read().strip()
    database = f"tornado_todo_benchmark_{name}".replace("-", "_")
    connection = await asyncpg.connect(url)
    await connection.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
    if action == "create":
        await connection.execute(f"CREATE DATABASE {database}")
    await connection.close()
    if action == "drop":
        return
    own_url = urllib.parse.urlsplit(url)._replace(path=f"/{database}").geturl()
    if int(count):
        connection = await asyncpg.connect(own_url)
        await connection.execute((FOLDER / "peers" / "schema.sql").read_text())
        await connection.copy_records_to_table("todos", records=list(rows(int(count))))
        await connection.close()
    print(own_url)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
