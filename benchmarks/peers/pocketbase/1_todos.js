// PocketBase's collection of to-dos: the fields of the other peers, an index for each order of a list, open rules.
const field = (type, name, options) => ({ type, name, ...options });

migrate((app) => {
  const rules = { listRule: "", viewRule: "", createRule: "", updateRule: "", deleteRule: "" };
  const id = { system: true, primaryKey: true, required: true, autogeneratePattern: "[a-z0-9]{15}", min: 15, max: 36 };
  const columns = ["`order`", "title", "priority", "created_at", "updated_at", "due"];
  app.save(new Collection({
    type: "base",
    name: "todos",
    ...rules,
    fields: [
      field("text", "id", { ...id, pattern: "^[a-z0-9]+$" }),
      field("text", "list"),
      field("text", "title", { required: true }),
      field("bool", "completed"),
      field("date", "completed_at"),
      field("number", "order"),
      field("text", "notes"),
      field("date", "due"),
      field("number", "priority"),
      field("json", "tags"),
      field("autodate", "created_at", { onCreate: true }),
      field("autodate", "updated_at", { onCreate: true, onUpdate: true }),
      field("date", "deleted_at"),
      field("number", "revision"),
    ],
    indexes: columns.map((column, number) => `CREATE INDEX todos_by_${number} ON todos (${column}, id)`),
  }));
  const settings = app.settings();
  settings.logs.maxDays = 0; // no log of requests, because none of the others writes one
  app.save(settings);
});
