-- Where the window begins from a turn on: `cut` is how many messages at the front of its line are left out (NULL:
-- as its parent has it), `summary` the message that is sent in their place (JSON; NULL: none).
ALTER TABLE turns ADD COLUMN cut INTEGER;
ALTER TABLE turns ADD COLUMN summary BLOB;

-- How many tokens a model takes, as its upstream named it in an error, and when (ms since the epoch).
CREATE TABLE limits (
    tenant BLOB NOT NULL,
    upstream TEXT NOT NULL,
    model TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    learned INTEGER NOT NULL,
    PRIMARY KEY (tenant, upstream, model)
) STRICT, WITHOUT ROWID;
