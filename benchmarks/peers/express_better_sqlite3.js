// Express with better-sqlite3: prepared statements, synchronous as its documentation advises, Express's own ETag.
const crypto = require('node:crypto')
const Database = require('better-sqlite3')
const express = require('express')

const INBOX = '0198c0de-0000-7000-9000-000000000000'
const database = new Database(process.env.BENCHMARK_DATABASE)
database.pragma('synchronous = NORMAL')
const selectTodos = database.prepare('SELECT * FROM todos ORDER BY "order", id LIMIT ?')
const selectTodo = database.prepare('SELECT * FROM todos WHERE id = ?')
const insertTodo = database.prepare(`
  INSERT INTO todos (id, list, title, completed, "order", notes, due, priority, tags, created_at, updated_at, revision)
  VALUES (@id, @list, @title, FALSE, (SELECT COALESCE(MAX("order"), 0) + 1 FROM todos),
    @notes, @due, @priority, @tags, @at, @at, 1) RETURNING *`)

const app = express()
app.use(express.json())

function shown(row, request) {
  const url = `${request.protocol}://${request.get('host')}/api/todos/${row.id}`
  return { ...row, url, completed: Boolean(row.completed), tags: JSON.parse(row.tags) }
}

app.get('/api/todos', (request, response) => {
  const rows = selectTodos.all(Number(request.query.limit ?? 200))
  response.json(rows.map((row) => shown(row, request)))
})

app.get('/api/todos/:id', (request, response) => {
  const row = selectTodo.get(request.params.id)
  if (!row) return response.sendStatus(404)
  response.json(shown(row, request))
})

app.post('/api/todos', (request, response) => {
  const { title, notes = '', due = null, priority = 0, tags = [] } = request.body
  const at = new Date().toISOString()
  const values = { id: crypto.randomUUID(), list: INBOX, title, notes, due, priority, tags: JSON.stringify(tags), at }
  response.status(201).json(shown(insertTodo.get(values), request))
})

app.patch('/api/todos/:id', (request, response) => {
  const values = { updated_at: new Date().toISOString() }
  for (const name of ['title', 'notes']) if (name in request.body) values[name] = request.body[name]
  if ('completed' in request.body) {
    values.completed = Number(request.body.completed)
    values.completed_at = request.body.completed ? values.updated_at : null
  }
  const columns = Object.keys(values).map((name) => `${name} = @${name}`).join(', ')
  const row = database
    .prepare(`UPDATE todos SET ${columns}, revision = revision + 1 WHERE id = @id RETURNING *`)
    .get({ ...values, id: request.params.id })
  if (!row) return response.sendStatus(404)
  response.json(shown(row, request))
})

app.listen(Number(process.argv[2]), '127.0.0.1')
