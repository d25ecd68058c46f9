"""Appending one event: what most batches are while few append, and what needs less than a batch does."""

from alembic import op

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    op.execute("""
    CREATE FUNCTION append_event(
        event_stream uuid, event_version bigint, event_topic text, event_state bytea, event_merchant uuid,
        event_hash bytea, event_mac bytea,
        receipt_merchant uuid, receipt_key text, receipt_owner uuid, receipt_status int, receipt_body bytea,
        key_key bytea, key_customer bytea, key_email bytea
    ) RETURNS bigint
    LANGUAGE plpgsql
    SET lock_timeout = '2s'
    SET enable_seqscan = off
    AS $$
    DECLARE
        -- Held until the commit, as append_events does it. What follows sees what was committed before.
        locked CONSTANT text := pg_advisory_xact_lock(1885431908);
        head bigint;
        version bigint;
    BEGIN
        SELECT coalesce((SELECT max(s.notification_id) FROM stored_events s), 0),
               coalesce((SELECT max(s.originator_version) FROM stored_events s
                         WHERE s.originator_id = event_stream), 0)
        INTO head, version;
        IF event_version <> version + 1 THEN
            RETURN NULL;
        END IF;
        IF receipt_owner IS NOT NULL THEN
            UPDATE idempotency_keys k SET response_status = receipt_status, response_body = receipt_body
            WHERE k.merchant_id = receipt_merchant AND k.key = receipt_key AND k.owner = receipt_owner
              AND k.response_status IS NULL;
            IF NOT FOUND THEN
                RETURN 0;
            END IF;
        END IF;
        INSERT INTO stored_events (originator_id, originator_version, topic, state, notification_id,
                                   merchant_id, content_hash, mac)
        VALUES (event_stream, event_version, event_topic, event_state, head + 1,
                event_merchant, event_hash, event_mac);
        IF key_key IS NOT NULL THEN
            INSERT INTO personal_keys (originator_id, merchant_id, key, customer_digest, email_digest)
            VALUES (event_stream, event_merchant, key_key, key_customer, key_email);
        END IF;
        RETURN head + 1;
    END $$;
    COMMENT ON FUNCTION append_event IS
        'What append_events does, for one event, in a third of its steps. Returns its position, or null: moved (its '
        'stream has other events by now), or 0: answered (its idempotency key was answered or taken over meanwhile).';
    """)


def downgrade() -> None:
    op.execute("DROP FUNCTION append_event")
