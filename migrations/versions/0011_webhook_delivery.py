"""Delivering webhooks: what is sent, every attempt at it, and endpoints that are switched off."""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.execute("""
    ALTER TABLE webhook_events
        ALTER source_position DROP NOT NULL,
        ADD payload json NOT NULL DEFAULT '{}',
        ADD retries int NOT NULL DEFAULT 0,
        ADD error text;
    ALTER TABLE webhook_events ALTER payload DROP DEFAULT;
    COMMENT ON COLUMN webhook_events.source_position IS
        'Of the event in stored_events that it tells of: told once, however often the log is read. '
        'None where a workflow made it.';
    COMMENT ON COLUMN webhook_events.payload IS 'The body; json and not jsonb: nothing asks what is in it.';
    COMMENT ON COLUMN webhook_events.retries IS
        'How often the merchant had the schedule begin anew: workflow webhook-{id}-{retries} delivers it.';
    COMMENT ON COLUMN webhook_events.error IS 'Why it failed, where its schedule has ended.';
    """)
    op.execute("""
    CREATE TABLE webhook_attempts (
        webhook_event_id uuid NOT NULL REFERENCES webhook_events,
        number int NOT NULL,
        key text NOT NULL UNIQUE,
        url text NOT NULL,
        attempted_at timestamptz NOT NULL,
        duration_ms int NOT NULL,
        status_code int,
        error text,
        answer text,
        PRIMARY KEY (webhook_event_id, number)
    );
    COMMENT ON COLUMN webhook_attempts.key IS
        'Of the activity that made it: one that runs again finds its attempt and makes no other.';
    COMMENT ON COLUMN webhook_attempts.answer IS 'The first KiB of the answer''s body.';
    """)
    op.execute("""
    ALTER TABLE merchants
        ADD webhook_failing_since timestamptz,
        ADD webhook_off_at timestamptz,
        ADD webhook_off_reason text,
        ADD CHECK ((webhook_off_at IS NULL) = (webhook_off_reason IS NULL));
    COMMENT ON COLUMN merchants.webhook_failing_since IS
        'Of the first failed attempt at webhook_url after which none was successful.';
    COMMENT ON COLUMN merchants.webhook_off_at IS 'Since then nothing is sent to webhook_url, until it is set again.';
    """)
    # What happened before there were webhooks is told to nobody.
    op.execute("""
    INSERT INTO checkpoints (name, position)
    SELECT 'webhooks', coalesce(max(notification_id), 0) FROM stored_events ON CONFLICT DO NOTHING
    """)


def downgrade() -> None:
    op.execute("DELETE FROM checkpoints WHERE name = 'webhooks'")
    op.execute("DELETE FROM parked_events WHERE reader = 'webhooks'")
    op.execute("DROP TABLE webhook_attempts")
    op.execute(
        "ALTER TABLE merchants DROP webhook_failing_since, DROP webhook_off_at, DROP webhook_off_reason"
    )
    op.execute("DELETE FROM webhook_events WHERE source_position IS NULL")
    op.execute("""
    ALTER TABLE webhook_events ALTER source_position SET NOT NULL, DROP payload, DROP retries, DROP error
    """)
