"""Events that only the application can write, and keys to the personal data in them."""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute("""
    ALTER TABLE stored_events ADD mac bytea;
    COMMENT ON COLUMN stored_events.mac IS
        'HMAC-SHA256 under a key of AUDIT_KEY: events/authenticity.py. Null where an older version wrote the event.';
    COMMENT ON COLUMN stored_events.content_hash IS
        'SHA-256 of originator_id, originator_version, topic and state: events/authenticity.py, content_hash().';
    """)
    op.execute("""
    CREATE TABLE personal_keys (
        originator_id uuid PRIMARY KEY,
        merchant_id uuid NOT NULL,
        key bytea NOT NULL,
        customer_digest bytea,
        email_digest bytea
    );
    COMMENT ON TABLE personal_keys IS
        'Keys to the personal data in the first events of streams: events/personal_data.py. Erasing is deleting here.';
    COMMENT ON COLUMN personal_keys.customer_digest IS
        'Of merchant and customerId: all that is held of a customer is found by it.';
    COMMENT ON COLUMN personal_keys.email_digest IS 'Of merchant and lower-cased email.';
    CREATE INDEX personal_keys_by_customer ON personal_keys (customer_digest) WHERE customer_digest IS NOT NULL;
    CREATE INDEX personal_keys_by_email ON personal_keys (email_digest) WHERE email_digest IS NOT NULL;
    """)
    op.execute("""
    CREATE FUNCTION append_events(
        event_append int[], event_stream uuid[], event_version bigint[], event_topic text[],
        event_state bytea[], event_merchant uuid[], event_hash bytea[], event_mac bytea[],
        receipt_append int[], receipt_merchant uuid[], receipt_key text[], receipt_owner uuid[],
        receipt_status int[], receipt_body bytea[],
        key_append int[], key_stream uuid[], key_merchant uuid[], key_key bytea[],
        key_customer bytea[], key_email bytea[]
    ) RETURNS TABLE (append int, outcome text, last_position bigint)
    LANGUAGE plpgsql
    SET lock_timeout = '2s'
    SET enable_seqscan = off
    AS $$
    #variable_conflict use_column
    DECLARE
        head bigint;
    BEGIN
        -- Held until the commit, so that positions become visible in their own order and without gaps.
        PERFORM pg_advisory_xact_lock(1885431908);
        SELECT coalesce(max(notification_id), 0) INTO head FROM stored_events;
        RETURN QUERY
        WITH proposed AS MATERIALIZED (
            SELECT * FROM unnest(event_append, event_stream, event_version, event_topic, event_state,
                                 event_merchant, event_hash, event_mac)
                WITH ORDINALITY AS e (append, stream, version, topic, state, merchant, hash, mac, place)
        ), touched AS (
            SELECT append, stream, min(version) AS first_version,
                   row_number() OVER (PARTITION BY stream ORDER BY append) AS turn
            FROM proposed GROUP BY append, stream
        ), moved AS MATERIALIZED (
            SELECT DISTINCT append FROM touched
            WHERE turn > 1 OR first_version <> 1 + (
                SELECT coalesce(max(s.originator_version), 0) FROM stored_events s WHERE s.originator_id = stream
            )
        ), receipts AS MATERIALIZED (
            SELECT * FROM unnest(receipt_append, receipt_merchant, receipt_key, receipt_owner,
                                 receipt_status, receipt_body)
                AS r (append, merchant, key, owner, status, body)
        ), answered AS (
            UPDATE idempotency_keys k SET response_status = r.status, response_body = r.body
            FROM receipts r
            WHERE k.merchant_id = r.merchant AND k.key = r.key AND k.owner = r.owner
              AND k.response_status IS NULL
              AND r.append NOT IN (SELECT m.append FROM moved m)
            RETURNING r.append
        ), kept AS (
            SELECT *, head + row_number() OVER (ORDER BY place) AS position FROM proposed p
            WHERE p.append NOT IN (SELECT m.append FROM moved m)
              AND (p.append IN (SELECT a.append FROM answered a)
                   OR p.append NOT IN (SELECT r.append FROM receipts r))
        ), inserted AS (
            INSERT INTO stored_events (originator_id, originator_version, topic, state, notification_id,
                                       merchant_id, content_hash, mac)
            SELECT stream, version, topic, state, position, merchant, hash, mac FROM kept ORDER BY place
        ), keyed AS (
            INSERT INTO personal_keys (originator_id, merchant_id, key, customer_digest, email_digest)
            SELECT k.stream, k.merchant, k.key, k.customer, k.email
            FROM unnest(key_append, key_stream, key_merchant, key_key, key_customer, key_email)
                AS k (append, stream, merchant, key, customer, email)
            WHERE k.append IN (SELECT append FROM kept)
        )
        SELECT p.append,
               CASE WHEN max(k.position) IS NOT NULL THEN 'appended'
                    WHEN bool_or(m.append IS NOT NULL) THEN 'moved'
                    ELSE 'answered' END,
               max(k.position)
        FROM proposed p LEFT JOIN kept k USING (place) LEFT JOIN moved m ON m.append = p.append
        GROUP BY p.append;
    END $$;
    COMMENT ON FUNCTION append_events(
        int[], uuid[], bigint[], text[], bytea[], uuid[], bytea[], bytea[],
        int[], uuid[], text[], uuid[], int[], bytea[],
        int[], uuid[], uuid[], bytea[], bytea[], bytea[]
    ) IS
        'Appends a batch in one call. Each append is taken whole or dropped whole: moved (its stream has other '
        'events by now) or answered (its idempotency key was answered or taken over meanwhile).';
    """)
    # Processes of the version before this one append on, until they are replaced.
    op.execute("""
    CREATE OR REPLACE FUNCTION append_events(
        event_append int[], event_stream uuid[], event_version bigint[], event_topic text[],
        event_state bytea[], event_merchant uuid[], event_hash bytea[],
        receipt_append int[], receipt_merchant uuid[], receipt_key text[], receipt_owner uuid[],
        receipt_status int[], receipt_body bytea[]
    ) RETURNS TABLE (append int, outcome text, last_position bigint)
    LANGUAGE sql
    AS $$
        SELECT append, outcome, last_position FROM append_events(
            event_append, event_stream, event_version, event_topic, event_state, event_merchant, event_hash,
            NULL::bytea[],
            receipt_append, receipt_merchant, receipt_key, receipt_owner, receipt_status, receipt_body,
            NULL::int[], NULL::uuid[], NULL::uuid[], NULL::bytea[], NULL::bytea[], NULL::bytea[])
    $$;
    """)
