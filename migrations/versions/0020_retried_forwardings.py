"""Parked events of subscribers are tried again when somebody asks for it."""

from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    op.execute("""
    ALTER TABLE parked_events ADD COLUMN retry boolean NOT NULL DEFAULT false;
    COMMENT ON COLUMN parked_events.retry IS 'Of a subscriber: it is to forward the event once more.';
    CREATE INDEX parked_events_to_retry ON parked_events (reader, position) WHERE retry;
    """)


def downgrade() -> None:
    op.execute("ALTER TABLE parked_events DROP COLUMN retry")
