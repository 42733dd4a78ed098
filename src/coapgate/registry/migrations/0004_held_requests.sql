-- Requests that wait for a sleeping device, and those whose outcome the bus does not have yet. Times
-- are Unix seconds; each gateway has its own, by its node.

CREATE TABLE held_request (
    node           INTEGER NOT NULL,
    number         INTEGER NOT NULL,
    tenant         TEXT    NOT NULL,
    device         TEXT    NOT NULL,
    method         TEXT    NOT NULL,  -- as the backend wrote it
    path           TEXT    NOT NULL,
    query          TEXT    NOT NULL,
    content_format INTEGER,
    payload        BLOB    NOT NULL,
    response_topic TEXT,              -- NULL: the outcome is an event
    correlation    BLOB,
    expires_at     REAL    NOT NULL,
    outcome        TEXT,              -- what the bus is still to be told; NULL: nothing is known yet
    PRIMARY KEY (node, number)
) STRICT;
