-- Credentials over a device's life: keys that follow one another, keys derived from that of a
-- batch, what trust anchors accept, certificates revoked one by one, and what has changed.

CREATE TABLE new_psk_credential (
    identity       BLOB    NOT NULL CHECK (length(identity) BETWEEN 1 AND 128),
    slot           INTEGER NOT NULL CHECK (slot >= 1), -- up to 4: tried; above: kept for the record
    number         INTEGER NOT NULL UNIQUE,
    device         INTEGER NOT NULL REFERENCES device (number) ON DELETE CASCADE,
    secret         BLOB    NOT NULL,                   -- wrapped; empty: derived from the batch's
    state          TEXT    NOT NULL DEFAULT 'active'
                           CHECK (state IN ('active', 'backup', 'retiring', 'revoked')),
    not_before     REAL,
    not_after      REAL,
    retiring_until REAL,
    batch          INTEGER REFERENCES batch (number),
    follows        BLOB,                               -- of a backup: the identity it replaces keys of
    added_at       REAL    NOT NULL,
    PRIMARY KEY (identity, slot)
) STRICT, WITHOUT ROWID;

INSERT INTO new_psk_credential
    (identity, slot, number, device, secret, state, not_before, not_after, batch, added_at)
SELECT identity, slot, number, device, secret,
       CASE state WHEN 'pending' THEN 'backup' ELSE state END, not_before, not_after, batch, added_at
FROM psk_credential;

DROP TABLE psk_credential;
ALTER TABLE new_psk_credential RENAME TO psk_credential;

CREATE INDEX psk_credential_device ON psk_credential (device);
CREATE INDEX psk_credential_slot ON psk_credential (slot) WHERE slot > 1;
CREATE INDEX psk_credential_batch ON psk_credential (batch) WHERE batch IS NOT NULL;

CREATE TRIGGER psk_identity_has_one_device BEFORE INSERT ON psk_credential
WHEN EXISTS (SELECT 1 FROM psk_credential WHERE identity = NEW.identity AND device <> NEW.device)
BEGIN
    SELECT RAISE (ABORT, 'the identity belongs to another device');
END;

-- An identity of a batch is prefix, device, suffix.
ALTER TABLE batch ADD COLUMN prefix TEXT NOT NULL DEFAULT '';
ALTER TABLE batch ADD COLUMN suffix TEXT NOT NULL DEFAULT '';
ALTER TABLE batch ADD COLUMN max_devices INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batch ADD COLUMN device_count INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batch ADD COLUMN move_time REAL;

-- Counted as they come and go: a batch may have a million devices.
CREATE TRIGGER batch_gains_device AFTER INSERT ON psk_credential WHEN NEW.batch IS NOT NULL
BEGIN
    UPDATE batch SET device_count = device_count + 1 WHERE number = NEW.batch;
END;
CREATE TRIGGER batch_loses_device AFTER DELETE ON psk_credential WHEN OLD.batch IS NOT NULL
BEGIN
    UPDATE batch SET device_count = device_count - 1 WHERE number = OLD.batch;
END;

-- Identities of removed devices, for which no batch derives a key again. They count as its devices.
CREATE TABLE removed_identity (
    identity BLOB    PRIMARY KEY,
    batch    INTEGER NOT NULL REFERENCES batch (number)
) STRICT, WITHOUT ROWID;
CREATE INDEX removed_identity_batch ON removed_identity (batch);
CREATE TRIGGER batch_keeps_removed AFTER INSERT ON removed_identity
BEGIN
    UPDATE batch SET device_count = device_count + 1 WHERE number = NEW.batch;
END;
CREATE TRIGGER batch_forgets_removed AFTER DELETE ON removed_identity
BEGIN
    UPDATE batch SET device_count = device_count - 1 WHERE number = OLD.batch;
END;

-- One row, which every look-up of an identity reads: are the batches as they were?
CREATE TABLE batch_version (version INTEGER NOT NULL) STRICT;
INSERT INTO batch_version VALUES (0);
CREATE TRIGGER batch_added AFTER INSERT ON batch
BEGIN
    UPDATE batch_version SET version = version + 1;
END;
CREATE TRIGGER batch_differs AFTER UPDATE OF name, tenant, prefix, suffix, max_devices, state,
    not_before, not_after, move_time, secret ON batch
BEGIN
    UPDATE batch_version SET version = version + 1;
END;

CREATE TABLE new_anchor (
    name               TEXT    PRIMARY KEY,
    tenant             TEXT    NOT NULL,
    key_id             BLOB    NOT NULL UNIQUE CHECK (length(key_id) = 32),
    certificate        BLOB    NOT NULL,  -- DER
    device_id_source   TEXT    NOT NULL,
    auto_provision     INTEGER NOT NULL CHECK (auto_provision IN (0, 1)),
    state              TEXT    NOT NULL DEFAULT 'active'
                               CHECK (state IN ('staged', 'active', 'disabled')),
    device_id_template TEXT    NOT NULL DEFAULT '',
    tenant_template    TEXT    NOT NULL DEFAULT '',
    tenants            TEXT    NOT NULL DEFAULT '[]', -- a JSON array of strings
    labels             TEXT,                          -- as those of a device
    max_validity       REAL,                          -- seconds
    crl_files          TEXT    NOT NULL DEFAULT '[]', -- a JSON array of paths
    crl_mode           TEXT    NOT NULL DEFAULT 'soft' CHECK (crl_mode IN ('soft', 'hard')),
    proof_code         TEXT    NOT NULL DEFAULT '',
    added_at           REAL    NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO new_anchor (name, tenant, key_id, certificate, device_id_source, auto_provision,
                        state, added_at)
SELECT name, tenant, key_id, certificate, device_id_source, auto_provision, state, added_at
FROM anchor;

DROP TABLE anchor;
ALTER TABLE new_anchor RENAME TO anchor;

-- When a certificate of this value last let its device in, to within a day.
ALTER TABLE certificate_device ADD COLUMN used_at REAL;

-- Certificates below an anchor that are believed no longer: by their serial number, from the issuer
-- whose key has this SHA-256 (its first 8 octets; empty: whoever), or by the first octets of their
-- own SHA-256.
CREATE TABLE revoked_certificate (
    number      INTEGER PRIMARY KEY AUTOINCREMENT, -- the last one given tells a list from a longer
    key_id      BLOB NOT NULL CHECK (length(key_id) = 32),
    serial      BLOB NOT NULL DEFAULT x'' CHECK (length(serial) <= 20),
    issuer      BLOB NOT NULL DEFAULT x'' CHECK (length(issuer) IN (0, 8)),
    fingerprint BLOB NOT NULL DEFAULT x'' CHECK (length(fingerprint) IN (0, 8, 16)),
    added_at    REAL NOT NULL,
    UNIQUE (key_id, serial, issuer, fingerprint),
    CHECK ((serial = x'') <> (fingerprint = x''))
) STRICT;

-- What may end associations, in the order in which it happened. Filled by triggers, so that no
-- writer can forget it; of so many rows a reader that is slower reviews everything.
CREATE TABLE change (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    kind   TEXT NOT NULL CHECK (kind IN ('device', 'anchor', 'batch', 'certificate')),
    tenant TEXT,
    device TEXT,
    key_id BLOB,
    at     REAL NOT NULL DEFAULT ((julianday('now') - 2440587.5) * 86400.0)
) STRICT;

CREATE TRIGGER change_is_bounded AFTER INSERT ON change
BEGIN
    DELETE FROM change WHERE number <= NEW.number - 10000;
END;

CREATE TRIGGER device_changed AFTER UPDATE OF enabled ON device WHEN OLD.enabled <> NEW.enabled
BEGIN
    INSERT INTO change (kind, tenant, device) VALUES ('device', NEW.tenant, NEW.device);
END;
CREATE TRIGGER device_removed AFTER DELETE ON device
BEGIN
    INSERT INTO change (kind, tenant, device) VALUES ('device', OLD.tenant, OLD.device);
END;

-- A row that goes with its device finds none any more: that says so itself.
CREATE TRIGGER psk_changed AFTER UPDATE OF slot, state, not_before, not_after, retiring_until
ON psk_credential
BEGIN
    INSERT INTO change (kind, tenant, device)
    SELECT 'device', tenant, device FROM device WHERE number = NEW.device;
END;
CREATE TRIGGER psk_removed AFTER DELETE ON psk_credential
BEGIN
    INSERT INTO change (kind, tenant, device)
    SELECT 'device', tenant, device FROM device WHERE number = OLD.device;
END;
CREATE TRIGGER pair_changed AFTER UPDATE OF key_id, value, device ON certificate_device
BEGIN
    INSERT INTO change (kind, tenant, device)
    SELECT 'device', tenant, device FROM device WHERE number = OLD.device;
END;
CREATE TRIGGER pair_removed AFTER DELETE ON certificate_device
BEGIN
    INSERT INTO change (kind, tenant, device)
    SELECT 'device', tenant, device FROM device WHERE number = OLD.device;
END;

CREATE TRIGGER anchor_changed AFTER UPDATE ON anchor
BEGIN
    INSERT INTO change (kind, key_id) VALUES ('anchor', OLD.key_id);
END;
CREATE TRIGGER anchor_removed AFTER DELETE ON anchor
BEGIN
    INSERT INTO change (kind, key_id) VALUES ('anchor', OLD.key_id);
END;
CREATE TRIGGER certificate_revoked AFTER INSERT ON revoked_certificate
BEGIN
    INSERT INTO change (kind, key_id) VALUES ('certificate', NEW.key_id);
END;
CREATE TRIGGER batch_changed AFTER UPDATE OF state, not_before, not_after ON batch
BEGIN
    INSERT INTO change (kind, tenant) VALUES ('batch', NEW.tenant);
END;
