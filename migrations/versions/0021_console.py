"""The support console: sessions that were signed out of, and finding what its pages show."""

from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    op.execute("""
    CREATE TABLE ended_staff_sessions (
        id uuid PRIMARY KEY,
        expires_at timestamptz NOT NULL
    );
    COMMENT ON TABLE ended_staff_sessions IS
        'Signed out of before their time: commands/staff_sessions.py. Once that has come, rows are deleted.';
    """)
    op.execute("""
    CREATE INDEX merchants_with_failing_webhooks ON merchants (webhook_failing_since)
        WHERE webhook_failing_since IS NOT NULL;
    CREATE INDEX processor_events_astray ON processor_events (effect, id)
        WHERE effect IN ('contradiction', 'unmatched', 'unknown_order');
    CREATE INDEX daily_volume_by_day ON daily_volume (day);
    """)


def downgrade() -> None:
    op.execute("DROP INDEX merchants_with_failing_webhooks, processor_events_astray, daily_volume_by_day")
    op.execute("DROP TABLE ended_staff_sessions")
