-- How many of the messages that are left out `summary` tells of (NULL: all of them).
ALTER TABLE turns ADD COLUMN told INTEGER;
