-- Which registry this is: drawn once. Credentials of every registry are numbered from 1, so what is
-- kept elsewhere by such a number must be known for that of this registry.

CREATE TABLE registry (id BLOB NOT NULL CHECK (length(id) = 16)) STRICT;
INSERT INTO registry (id) VALUES (randomblob(16));
