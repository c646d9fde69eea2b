-- The table that every peer serves, on SQLite and on Postgres. Its columns are, in order, the fields of the JSON.
CREATE TABLE todos (
    id TEXT PRIMARY KEY,
    list TEXT NOT NULL,
    title TEXT NOT NULL,
    completed BOOLEAN NOT NULL,
    completed_at TEXT,
    "order" DOUBLE PRECISION NOT NULL,
    notes TEXT NOT NULL,
    due TEXT,
    priority INTEGER NOT NULL,
    tags TEXT NOT NULL, -- a JSON array
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    deleted_at TEXT,
    revision INTEGER NOT NULL
);
CREATE INDEX todos_by_order ON todos ("order", id);
