"""What is said to the database, by name. Who says it, and when, stands in `sqlite.py`."""

SESSION = "SELECT id, tip, touched, emptied FROM sessions WHERE tenant = ? AND session = ?"
TURNS = """
SELECT id, parent, name, state, system, asked, roles, reply, echo, model, finish_reason, usage, started, ended,
       layout, marks, form, request, resends, idempotency_key
FROM turns WHERE session = ? ORDER BY id
"""
BEGIN = "INSERT OR IGNORE INTO sessions (tenant, session, touched) VALUES (:tenant, :session, :touched)"
APPEND = """
INSERT INTO turns (id, session, parent, name, state, system, asked, roles, reply, echo, model, finish_reason,
                   usage, started, ended, layout, marks, form, request, resends, idempotency_key)
SELECT :turn, s.id, (SELECT id FROM turns WHERE session = s.id AND name = :parent), :name, :state, :system, :asked,
       :roles, :reply, :echo, :model, :finish_reason, :usage, :started, :ended, :layout, :marks, :form, :request,
       :resends, :key FROM sessions s WHERE s.tenant = :tenant AND s.session = :session
"""
MOVE = "UPDATE sessions SET tip = :turn, touched = :touched, emptied = 0 WHERE tenant = :tenant AND session = :session"
DROP_ANSWERS = """
DELETE FROM answers WHERE slot > 0 AND turn = (
    SELECT t.id FROM turns t JOIN sessions s ON s.id = t.session WHERE t.name = ? AND s.tenant = ? AND s.session = ?
)
"""
DROP = "DELETE FROM turns WHERE name = ? AND session = (SELECT id FROM sessions WHERE tenant = ? AND session = ?)"
KEEP = """
INSERT OR REPLACE INTO answers (session, slot, turn, status, content_type, body)
SELECT id, :slot, :turn, :status, :content_type, packed(:body) FROM sessions
WHERE tenant = :tenant AND session = :session
"""
UNKEEP = """
DELETE FROM answers WHERE slot = 0
AND session = (SELECT id FROM sessions WHERE tenant = :tenant AND session = :session)
"""
ANSWER = """
SELECT a.status, a.content_type, a.body FROM answers a JOIN turns t ON t.id = a.turn
WHERE t.name = ? AND a.session = (SELECT id FROM sessions WHERE tenant = ? AND session = ?)
"""
DELETE = (
    "DELETE FROM answers WHERE session = (SELECT id FROM sessions WHERE tenant = ? AND session = ?)",
    "DELETE FROM turns WHERE session = (SELECT id FROM sessions WHERE tenant = ? AND session = ?)",
    "DELETE FROM sessions WHERE tenant = ? AND session = ?",
)
LEARN = "INSERT OR IGNORE INTO refusals (upstream, member) VALUES (?, ?)"
TOUCH = "UPDATE sessions SET touched = ? WHERE tenant = ? AND session = ? AND emptied = 0"
# What was read before a write is waited for may have changed since: only the session that was seen goes.
EMPTY = "UPDATE sessions SET tip = NULL, emptied = 1 WHERE id = ? AND touched = ?"
WIPE = "DELETE FROM turns WHERE session IN (SELECT id FROM sessions WHERE id = ? AND touched = ? AND emptied = 1)"
WIPE_ANSWERS = WIPE.replace("turns", "answers", 1)
STALE = "SELECT id, touched, tenant, session FROM sessions WHERE touched < ? AND emptied = 0 ORDER BY touched LIMIT ?"
FORGET = "DELETE FROM sessions WHERE emptied = 1 AND touched < ?"
BEAT = "UPDATE pulse SET beat = beat + 1"
