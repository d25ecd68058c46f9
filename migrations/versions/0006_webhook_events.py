"""Webhooks to merchants: what is to be told, and how far the telling has come."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute("""
    CREATE TABLE webhook_events (
        id uuid PRIMARY KEY,
        merchant_id uuid NOT NULL,
        order_id uuid NOT NULL,
        event_type text NOT NULL,
        status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'failed')),
        attempts int NOT NULL DEFAULT 0,
        last_attempt_at timestamptz,
        delivered_at timestamptz,
        created_at timestamptz NOT NULL,
        source_position bigint NOT NULL UNIQUE
    );
    COMMENT ON COLUMN webhook_events.source_position IS
        'Of the event in stored_events that it tells of: told once, however often the log is read.';
    CREATE INDEX webhook_events_by_age ON webhook_events (merchant_id, created_at, id);
    CREATE INDEX webhook_events_by_status ON webhook_events (merchant_id, status, created_at, id);
    """)


def downgrade() -> None:
    op.execute("DROP TABLE webhook_events")
