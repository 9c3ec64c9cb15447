-- A session is a name within a tenant and a pointer to its tip; turns form a tree by `parent`.
-- IDs are handed out by the one writer. Times are ms since the epoch, for people and for expiry.
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    tenant BLOB NOT NULL,
    session TEXT NOT NULL,
    tip INTEGER,
    touched INTEGER NOT NULL,
    emptied INTEGER NOT NULL DEFAULT 0,
    UNIQUE (tenant, session)
) STRICT;
CREATE INDEX sessions_touched ON sessions (touched);

-- `system` is objects joined by commas, `asked` a JSON array, `reply` and `echo` JSON objects:
-- the bytes as they came and as they are sent again.
CREATE TABLE turns (
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    parent INTEGER,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    system BLOB,
    asked BLOB NOT NULL,
    roles TEXT NOT NULL,
    reply BLOB NOT NULL,
    echo BLOB,
    model TEXT,
    finish_reason TEXT,
    usage BLOB,
    started INTEGER NOT NULL,
    ended INTEGER NOT NULL
) STRICT;
CREATE INDEX turns_session ON turns (session);

-- What a readiness check writes to.
CREATE TABLE pulse (id INTEGER PRIMARY KEY CHECK (id = 1), beat INTEGER NOT NULL) STRICT;
INSERT INTO pulse VALUES (1, 0);
