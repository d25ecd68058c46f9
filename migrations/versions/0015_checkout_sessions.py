"""Finding the checkout sessions that ended while nobody looked."""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.execute("""
    CREATE INDEX stored_events_checkout_sessions ON stored_events (recorded_at, originator_id)
        WHERE topic = 'checkout_session.created';
    """)


def downgrade() -> None:
    op.execute("DROP INDEX stored_events_checkout_sessions")
