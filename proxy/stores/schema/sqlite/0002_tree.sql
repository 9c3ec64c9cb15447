-- A turn may branch off anywhere: `layout` says which of its parent's messages it keeps, and where its own
-- stand (JSON; NULL: all of them, then its own). `system` is empty for none, NULL for the parent's.
-- `marks` has 16 bytes for each message of `asked`, and for the echo. `form` names the habits under which
-- the echo was made, `request` is the digest of the request's body.
ALTER TABLE turns ADD COLUMN layout TEXT;
ALTER TABLE turns ADD COLUMN marks BLOB;
ALTER TABLE turns ADD COLUMN form TEXT NOT NULL DEFAULT '';
ALTER TABLE turns ADD COLUMN request BLOB NOT NULL DEFAULT x'';
ALTER TABLE turns ADD COLUMN resends INTEGER NOT NULL DEFAULT 0;
DROP INDEX turns_session;
CREATE UNIQUE INDEX turns_name ON turns (session, name);

-- Members of messages that an upstream was found to refuse.
CREATE TABLE refusals (upstream TEXT NOT NULL, member TEXT NOT NULL, PRIMARY KEY (upstream, member)) STRICT;
