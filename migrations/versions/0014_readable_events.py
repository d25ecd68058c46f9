"""The log as its readers have it: each event with the key to the personal data in it."""

from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    # Only the first event of a stream holds any, so that no other costs a look. As a subquery and not as a join,
    # which a planner might one day begin with all keys.
    op.execute("""
    CREATE VIEW readable_events AS
    SELECT notification_id, originator_id, originator_version, topic, state, merchant_id, recorded_at,
           CASE WHEN originator_version = 1 THEN
               (SELECT key FROM personal_keys k WHERE k.originator_id = e.originator_id)
           END AS personal_key
    FROM stored_events e;
    COMMENT ON VIEW readable_events IS
        'What happened, with the keys to the personal data: events/encoding.py. Events are appended to stored_events.';
    COMMENT ON COLUMN personal_keys.key IS
        'AES-256. Empty: dropped, and what it opened is erased, also where an older version stored it in plain.';
    """)


def downgrade() -> None:
    op.execute("DROP VIEW readable_events")
