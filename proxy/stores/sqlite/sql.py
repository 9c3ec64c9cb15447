"""Names the SQL statements that the store sends; `store.py` sends them."""

from proxy.core.model import SIDE, TurnState

SESSION = "SELECT id, tip, touched, emptied FROM sessions WHERE tenant = ? AND session = ?"
TURNS = """
SELECT id, parent, name, state, system, asked, roles, reply, echo, model, finish_reason, usage, started, ended,
       layout, marks, form, request, resends, idempotency_key, cut, summary, told, client, traits, cut_for
FROM turns WHERE session = ? ORDER BY id
"""
# One statement does all for a turn, and for many turns in one step: each step of sqlite3 releases and re-acquires the
# GIL.
COLUMNS = (
    "turn, tenant, session, touched, parent, name, state, system, asked, roles, reply, echo, model, finish_reason, "
    "usage, started, ended, layout, marks, form, request, resends, idempotency_key, cut, summary, told, client, "
    "traits, cut_for, status, content_type, body"
)
INSERT_TURN = f"INSERT INTO arriving ({COLUMNS}) VALUES "  # noqa: S608
_BESIDE = f"(NEW.traits & {SIDE})"  # a side request: neither the tip nor the last answer
_IS_LAST = f"NEW.state <> '{TurnState.ADOPTED.value}'"  # of its transaction: what a list brings along precedes its turn
_SESSION = "(SELECT id FROM sessions WHERE tenant = NEW.tenant AND session = NEW.session)"
_ANSWER = """
    INSERT OR REPLACE INTO answers (session, slot, turn, status, content_type, body)
    SELECT id, {slot}, NEW.turn, NEW.status, NEW.content_type, NEW.body FROM sessions
    WHERE tenant = NEW.tenant AND session = NEW.session AND {wanted};
"""
INSERT_TURN_SETUP = (
    f"CREATE TEMP VIEW arriving ({COLUMNS}) AS SELECT {', '.join(['NULL'] * len(COLUMNS.split(',')))}",
    f"""
CREATE TEMP TRIGGER arrival INSTEAD OF INSERT ON arriving BEGIN
    INSERT INTO sessions (tenant, session, touched, tip)
    VALUES (NEW.tenant, NEW.session, NEW.touched, iif({_BESIDE}, NULL, NEW.turn))
    ON CONFLICT (tenant, session) DO UPDATE
    SET tip = iif({_BESIDE}, tip, excluded.tip), touched = excluded.touched, emptied = 0 WHERE {_IS_LAST};
    INSERT INTO turns (id, session, parent, name, state, system, asked, roles, reply, echo, model, finish_reason, usage,
                       started, ended, layout, marks, form, request, resends, idempotency_key, cut, summary,
                       told, client, traits, cut_for)
    SELECT NEW.turn, s.id, (SELECT id FROM turns WHERE session = s.id AND name = NEW.parent), NEW.name, NEW.state,
           NEW.system, NEW.asked, NEW.roles, NEW.reply, NEW.echo, NEW.model, NEW.finish_reason, NEW.usage, NEW.started,
           NEW.ended, NEW.layout, NEW.marks, NEW.form, NEW.request, NEW.resends, NEW.idempotency_key,
           NEW.cut, NEW.summary, NEW.told, NEW.client, NEW.traits, NEW.cut_for
    FROM sessions s WHERE s.tenant = NEW.tenant AND s.session = NEW.session;
    DELETE FROM answers WHERE slot = 0 AND NEW.status IS NULL AND {_IS_LAST} AND NOT {_BESIDE} AND session = {_SESSION};
    {_ANSWER.format(slot="0", wanted=f"NEW.status IS NOT NULL AND NOT {_BESIDE}")}
    {_ANSWER.format(slot="NEW.turn", wanted="NEW.status IS NOT NULL AND NEW.idempotency_key IS NOT NULL")}
END""",  # noqa: S608
)
DROP_ANSWERS = """
DELETE FROM answers WHERE slot > 0 AND turn = (
    SELECT t.id FROM turns t JOIN sessions s ON s.id = t.session WHERE t.name = ? AND s.tenant = ? AND s.session = ?
)
"""
DROP = "DELETE FROM turns WHERE name = ? AND session = (SELECT id FROM sessions WHERE tenant = ? AND session = ?)"
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
REFUSALS = "SELECT upstream, member FROM refusals"
LIMITS = "SELECT tenant, upstream, model, tokens, learned FROM limits"
LIMIT = "INSERT OR REPLACE INTO limits (tenant, upstream, model, tokens, learned) VALUES (?, ?, ?, ?, ?)"
EXPIRE_LIMITS = "DELETE FROM limits WHERE learned < ?"
TOUCH = "UPDATE sessions SET touched = max(touched, ?) WHERE tenant = ? AND session = ? AND emptied = 0"
# What was read before a write is waited for may have changed since: only the session that was seen goes.
EMPTY = "UPDATE sessions SET tip = NULL, emptied = 1 WHERE id = ? AND touched = ?"
WIPE = "DELETE FROM turns WHERE session IN (SELECT id FROM sessions WHERE id = ? AND touched = ? AND emptied = 1)"
WIPE_ANSWERS = WIPE.replace("turns", "answers", 1)
STALE = "SELECT id, touched, tenant, session FROM sessions WHERE touched < ? AND emptied = 0 ORDER BY touched LIMIT ?"
FORGET = "DELETE FROM sessions WHERE emptied = 1 AND touched < ?"
SEAL = "SELECT seal FROM seal"
SEALED = "INSERT OR IGNORE INTO seal (id, seal) VALUES (1, ?)"
RESEAL = "INSERT OR REPLACE INTO seal (id, seal) VALUES (1, ?)"
HEARTBEAT = "UPDATE pulse SET beat = beat + 1"
COUNT_SESSIONS = "SELECT count(*) FROM sessions WHERE touched >= ?"  # the index on `touched` answers it alone
