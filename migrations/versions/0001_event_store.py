"""The event store, the checkpoints of its readers, and idempotency keys."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("""
    CREATE TABLE stored_events (
        originator_id uuid NOT NULL,
        originator_version bigint NOT NULL CHECK (originator_version > 0),
        topic text NOT NULL,
        state bytea NOT NULL,
        notification_id bigint NOT NULL,
        merchant_id uuid NOT NULL,
        content_hash bytea NOT NULL,
        recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        PRIMARY KEY (originator_id, originator_version),
        UNIQUE (notification_id)
    );
    COMMENT ON TABLE stored_events IS 'What happened. Rows are never updated and never deleted.';
    COMMENT ON COLUMN stored_events.notification_id IS
        'Position in the global order: 1, 2, 3 … without gaps, in the order of commits. Given by append_events.';
    COMMENT ON COLUMN stored_events.content_hash IS
        'SHA-256 of originator_id, originator_version, topic and state: events/event_store.py, content_hash().';
    CREATE INDEX stored_events_by_merchant ON stored_events (merchant_id, notification_id);
    """)
    op.execute("""
    CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION '% on % refused: events are never updated and never deleted', TG_OP, TG_TABLE_NAME;
    END $$;
    CREATE TRIGGER stored_events_are_facts BEFORE UPDATE OR DELETE OR TRUNCATE ON stored_events
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
    """)
    op.execute("""
    CREATE TABLE idempotency_keys (
        merchant_id uuid NOT NULL,
        key text NOT NULL,
        fingerprint bytea NOT NULL,
        owner uuid NOT NULL,
        lease_expires_at timestamptz NOT NULL,
        response_status int,
        response_body bytea,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (merchant_id, key)
    );
    COMMENT ON COLUMN idempotency_keys.owner IS
        'The request that may answer. Another may take over when its lease has expired and no answer is stored.';
    CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
    """)
    op.execute("""
    CREATE FUNCTION append_events(
        event_append int[], event_stream uuid[], event_version bigint[], event_topic text[],
        event_state bytea[], event_merchant uuid[], event_hash bytea[],
        receipt_append int[], receipt_merchant uuid[], receipt_key text[], receipt_owner uuid[],
        receipt_status int[], receipt_body bytea[]
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
                                 event_merchant, event_hash)
                WITH ORDINALITY AS e (append, stream, version, topic, state, merchant, hash, place)
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
                                       merchant_id, content_hash)
            SELECT stream, version, topic, state, position, merchant, hash FROM kept ORDER BY place
        )
        SELECT p.append,
               CASE WHEN max(k.position) IS NOT NULL THEN 'appended'
                    WHEN bool_or(m.append IS NOT NULL) THEN 'moved'
                    ELSE 'answered' END,
               max(k.position)
        FROM proposed p LEFT JOIN kept k USING (place) LEFT JOIN moved m ON m.append = p.append
        GROUP BY p.append;
    END $$;
    COMMENT ON FUNCTION append_events IS
        'Appends a batch in one call. Each append is taken whole or dropped whole: moved (its stream has other '
        'events by now) or answered (its idempotency key was answered or taken over meanwhile).';
    """)
    op.execute("""
    CREATE TABLE checkpoints (
        name text PRIMARY KEY,
        position bigint NOT NULL DEFAULT 0,
        updated_at timestamptz NOT NULL DEFAULT now()
    );
    COMMENT ON TABLE checkpoints IS 'How far each reader of the log has come: every event up to position is done.';
    CREATE TABLE parked_events (
        reader text NOT NULL,
        position bigint NOT NULL,
        originator_id uuid NOT NULL,
        originator_version bigint NOT NULL,
        topic text NOT NULL,
        error text NOT NULL,
        parked_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (reader, position)
    );
    COMMENT ON TABLE parked_events IS 'Events a reader could not apply; it went on without them.';
    CREATE INDEX parked_events_by_stream ON parked_events (originator_id);
    """)
    op.execute("""
    CREATE TABLE client_secrets (
        order_id uuid PRIMARY KEY,
        secret bytea NOT NULL,
        kept_at timestamptz NOT NULL DEFAULT now()
    );
    COMMENT ON TABLE client_secrets IS
        'What a customer''s browser needs to finish a payment, encrypted: secrets stand in no event.';
    """)
