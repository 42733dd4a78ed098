-- Devices, what proves them, and the trust anchors below which certificates are believed.
-- Times are Unix seconds; a NULL validity has no end.

CREATE TABLE device (
    number   INTEGER PRIMARY KEY,
    tenant   TEXT    NOT NULL,
    device   TEXT    NOT NULL,
    enabled  INTEGER NOT NULL DEFAULT 1 CHECK (enabled IN (0, 1)),
    labels   TEXT,                      -- a JSON object of strings; NULL: none
    added_at REAL    NOT NULL,
    UNIQUE (tenant, device)
) STRICT;

-- The keys of the key file that secrets were wrapped with, by their ids.
CREATE TABLE wrapping_key (
    key_id   BLOB PRIMARY KEY,
    added_at REAL NOT NULL
) STRICT, WITHOUT ROWID;

-- Devices whose keys are derived from one secret; a derived key has no row of its own.
CREATE TABLE batch (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant     TEXT NOT NULL,
    name       TEXT NOT NULL UNIQUE,
    secret     BLOB,                    -- wrapped
    state      TEXT NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'revoked')),
    not_before REAL,
    not_after  REAL,
    added_at   REAL NOT NULL
) STRICT;

-- The keys of PSK identities, kept in the order in which handshakes ask for them.
CREATE TABLE psk_credential (
    identity   BLOB    NOT NULL CHECK (length(identity) BETWEEN 1 AND 128),
    slot       INTEGER NOT NULL CHECK (slot >= 1), -- up to 4: tried; above: kept for the record
    number     INTEGER NOT NULL UNIQUE,
    device     INTEGER NOT NULL REFERENCES device (number) ON DELETE CASCADE,
    secret     BLOB    NOT NULL,                   -- wrapped
    state      TEXT    NOT NULL DEFAULT 'active'
                       CHECK (state IN ('active', 'pending', 'retiring', 'revoked')),
    not_before REAL,
    not_after  REAL,
    batch      INTEGER REFERENCES batch (number),
    added_at   REAL    NOT NULL,
    PRIMARY KEY (identity, slot)
) STRICT, WITHOUT ROWID;

CREATE INDEX psk_credential_device ON psk_credential (device);

-- Answers how many keys an identity has at most without reading a million of them.
CREATE INDEX psk_credential_slot ON psk_credential (slot) WHERE slot > 1;

-- An identity belongs to exactly one device over all tenants.
CREATE TRIGGER psk_identity_has_one_device BEFORE INSERT ON psk_credential
WHEN EXISTS (SELECT 1 FROM psk_credential WHERE identity = NEW.identity AND device <> NEW.device)
BEGIN
    SELECT RAISE (ABORT, 'the identity belongs to another device');
END;

-- Credential numbers are never used again, for logs say psk-7: the last one given.
CREATE TABLE psk_number (last INTEGER NOT NULL) STRICT;
INSERT INTO psk_number (last) VALUES (0);

-- One public key is one anchor.
CREATE TABLE anchor (
    name             TEXT    PRIMARY KEY,
    tenant           TEXT    NOT NULL,
    key_id           BLOB    NOT NULL UNIQUE CHECK (length(key_id) = 32),
    certificate      BLOB    NOT NULL,  -- DER
    device_id_source TEXT    NOT NULL,
    auto_provision   INTEGER NOT NULL CHECK (auto_provision IN (0, 1)),
    state            TEXT    NOT NULL DEFAULT 'active'
                             CHECK (state IN ('active', 'disabled')),
    added_at         REAL    NOT NULL
) STRICT, WITHOUT ROWID;

-- Which device a certificate value speaks for, below the anchor with this public key. By key and
-- not by name: an anchor that is removed and added again finds its fleet as it was.
CREATE TABLE certificate_device (
    key_id   BLOB    NOT NULL CHECK (length(key_id) = 32),
    value    TEXT    NOT NULL,
    device   INTEGER NOT NULL REFERENCES device (number) ON DELETE CASCADE,
    added_at REAL    NOT NULL,
    PRIMARY KEY (key_id, value)
) STRICT, WITHOUT ROWID;

CREATE INDEX certificate_device_device ON certificate_device (device);
