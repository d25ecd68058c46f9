"""Appending a batch in plain steps: each taken only where the batch needs it."""

from alembic import op

revision = "0030"
down_revision = "0029"


def upgrade() -> None:
    # append_events stays, for processes of the version before this one.
    op.execute("""
    CREATE FUNCTION append_batch(
        first_append int[], first_stream uuid[], first_version bigint[],
        event_append int[], event_stream uuid[], event_version bigint[], event_topic text[],
        event_state bytea[], event_merchant uuid[], event_hash bytea[], event_mac bytea[],
        receipt_append int[], receipt_merchant uuid[], receipt_key text[], receipt_owner uuid[],
        receipt_status int[], receipt_body bytea[],
        key_append int[], key_stream uuid[], key_merchant uuid[], key_key bytea[],
        key_customer bytea[], key_email bytea[],
        OUT head bigint, OUT moved int[], OUT answered int[]
    )
    LANGUAGE plpgsql
    SET lock_timeout = '2s'
    SET enable_seqscan = off
    AS $$
    DECLARE
        -- Held until the commit, so that positions become visible in their own order and without gaps.
        -- What follows sees what was committed before.
        locked CONSTANT text := pg_advisory_xact_lock(1885431908);
        dropped int[];
    BEGIN
        SELECT coalesce((SELECT max(s.notification_id) FROM stored_events s), 0),
               (SELECT array_agg(f.append)
                FROM unnest(first_append, first_stream, first_version) AS f (append, stream, version)
                WHERE f.version <> 1 + coalesce((SELECT max(s.originator_version) FROM stored_events s
                                                 WHERE s.originator_id = f.stream), 0))
        INTO head, moved;
        IF receipt_append <> '{}' THEN
            WITH receipts AS MATERIALIZED (
                SELECT * FROM unnest(receipt_append, receipt_merchant, receipt_key, receipt_owner,
                                     receipt_status, receipt_body)
                    AS r (append, merchant, key, owner, status, body)
                WHERE moved IS NULL OR r.append <> ALL (moved)
            ), given AS (
                UPDATE idempotency_keys k SET response_status = r.status, response_body = r.body
                FROM receipts r
                WHERE k.merchant_id = r.merchant AND k.key = r.key AND k.owner = r.owner
                  AND k.response_status IS NULL
                RETURNING r.append
            )
            SELECT array_agg(r.append) INTO answered
            FROM receipts r WHERE r.append NOT IN (SELECT g.append FROM given g);
        END IF;
        dropped := moved || answered;
        IF dropped IS NOT NULL THEN
            SELECT array_agg(e.stream), array_agg(e.version), array_agg(e.topic), array_agg(e.state),
                   array_agg(e.merchant), array_agg(e.hash), array_agg(e.mac)
            INTO event_stream, event_version, event_topic, event_state, event_merchant, event_hash, event_mac
            FROM unnest(event_append, event_stream, event_version, event_topic, event_state,
                        event_merchant, event_hash, event_mac)
                AS e (append, stream, version, topic, state, merchant, hash, mac)
            WHERE e.append <> ALL (dropped);
        END IF;
        INSERT INTO stored_events (originator_id, originator_version, topic, state, notification_id,
                                   merchant_id, content_hash, mac)
        SELECT e.stream, e.version, e.topic, e.state, head + e.place, e.merchant, e.hash, e.mac
        FROM unnest(event_stream, event_version, event_topic, event_state, event_merchant, event_hash, event_mac)
            WITH ORDINALITY AS e (stream, version, topic, state, merchant, hash, mac, place);
        IF key_append <> '{}' THEN
            INSERT INTO personal_keys (originator_id, merchant_id, key, customer_digest, email_digest)
            SELECT k.stream, k.merchant, k.key, k.customer, k.email
            FROM unnest(key_append, key_stream, key_merchant, key_key, key_customer, key_email)
                AS k (append, stream, merchant, key, customer, email)
            WHERE dropped IS NULL OR k.append <> ALL (dropped);
        END IF;
    END $$;
    COMMENT ON FUNCTION append_batch IS
        'Appends a batch in one call. Each append is taken whole or dropped whole: moved (one of its streams, the '
        'first event of each of which is named, has other events by now) or answered (its idempotency key was '
        'answered or taken over meanwhile). No two appends are of the same stream. The events of those that are '
        'neither have the positions after head, in their order.';
    """)


def downgrade() -> None:
    op.execute("DROP FUNCTION append_batch")
