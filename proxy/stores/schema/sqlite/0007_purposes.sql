-- What a turn's cut was made for: the tokens that the prompt might have (0: no number was named) and, behind a space,
-- the upstream's host and the model. Empty: for whoever asks.
ALTER TABLE turns ADD COLUMN cut_for TEXT NOT NULL DEFAULT '';

-- By which the secret is told that this database belongs to: a keyed hash.
CREATE TABLE seal (id INTEGER PRIMARY KEY CHECK (id = 1), seal BLOB NOT NULL) STRICT;
