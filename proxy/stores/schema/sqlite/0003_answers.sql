-- What clients were given: of a session's last turn (slot 0), and of each turn that has an idempotency key
-- (slot: its ID). `body` is compressed with zlib.
ALTER TABLE turns ADD COLUMN idempotency_key TEXT;
CREATE TABLE answers (
    session INTEGER NOT NULL,
    slot INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    status INTEGER NOT NULL,
    content_type TEXT,
    body BLOB NOT NULL,
    PRIMARY KEY (session, slot)
) STRICT, WITHOUT ROWID;
