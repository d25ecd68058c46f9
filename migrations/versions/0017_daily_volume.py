"""Payments counted by day; which version of a projection made its tables."""

from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.execute("""
    ALTER TABLE checkpoints ADD COLUMN version int NOT NULL DEFAULT 1;
    COMMENT ON COLUMN checkpoints.version IS
        'Of a projection: which version of it made the tables. Projectors of other versions leave them alone.';
    """)
    op.execute("""
    CREATE TABLE daily_volume (
        merchant_id uuid NOT NULL,
        day date NOT NULL,
        currency text NOT NULL,
        processor text NOT NULL,
        status text NOT NULL,
        begun bigint NOT NULL,
        captured bigint NOT NULL,
        volume numeric NOT NULL,
        PRIMARY KEY (merchant_id, day, currency, processor, status)
    ) WITH (fillfactor = 80);
    COMMENT ON TABLE daily_volume IS 'Payments by day in UTC, as of projections/daily_volume.py.';
    CREATE INDEX daily_volume_of_nothing ON daily_volume (day) WHERE begun = 0 AND captured = 0 AND volume = 0;
    """)
    # Payments are this projection's from now on: it takes over where they are, and counts what is there.
    op.execute("""
    SELECT FROM checkpoints WHERE name = 'payments' FOR UPDATE;
    INSERT INTO daily_volume
    SELECT merchant_id, day, currency, processor, status, sum(begun), sum(captured), sum(volume)
    FROM (
        SELECT merchant_id, (created_at AT TIME ZONE 'UTC')::date, currency, processor, status, 1, 0, 0 FROM payments
        UNION ALL
        SELECT merchant_id, (captured_at AT TIME ZONE 'UTC')::date, currency, processor, 'captured', 0, 1,
               amount_captured
        FROM payments WHERE captured_at IS NOT NULL
    ) AS c (merchant_id, day, currency, processor, status, begun, captured, volume)
    GROUP BY merchant_id, day, currency, processor, status;
    INSERT INTO checkpoints (name, position) SELECT 'daily_volume', position FROM checkpoints WHERE name = 'payments';
    UPDATE parked_events SET reader = 'daily_volume' WHERE reader = 'payments';
    DELETE FROM checkpoints WHERE name = 'payments';
    """)
