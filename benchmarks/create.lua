-- Creates to-dos, each with a title of its own.
dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "report.lua")
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local number = 0

function request()
  number = number + 1
  return wrk.format(nil, nil, nil, string.format('{"title": "Buy bread, number %d", "tags": ["shop"]}', number))
end
