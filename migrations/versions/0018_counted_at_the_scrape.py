"""Indexes of the few rows that `GET /metrics` counts among many."""

from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.execute("""
    CREATE INDEX webhook_events_pending ON webhook_events (created_at) WHERE status = 'pending';
    CREATE INDEX merchants_with_webhooks_off ON merchants (webhook_off_at) WHERE webhook_off_at IS NOT NULL;
    """)


def downgrade() -> None:
    op.execute("DROP INDEX webhook_events_pending, merchants_with_webhooks_off")
