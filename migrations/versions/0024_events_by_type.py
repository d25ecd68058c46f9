"""A merchant's events of one type: of a rare one, without going through all of the merchant's."""

from alembic import op

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    op.execute("CREATE INDEX stored_events_by_type ON stored_events (merchant_id, topic, notification_id)")


def downgrade() -> None:
    op.execute("DROP INDEX stored_events_by_type")
