-- Who asked: `client` is the fingerprint of the software (8 bytes) and, where its list carried a history, of the
-- list's first message (8 more). `traits` are flags: 1 it had tools, 2 it asked for a stream, 4 its list carried a
-- reply of ours and a user's message behind it, 8 it is a side request, which no tip stands at.
ALTER TABLE turns ADD COLUMN client BLOB NOT NULL DEFAULT x'';
ALTER TABLE turns ADD COLUMN traits INTEGER NOT NULL DEFAULT 0;
