"""Payments, the attempts to pay an order, as projected from the log: may be dropped and rebuilt at any time."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute("""
    CREATE TABLE payments (
        id uuid PRIMARY KEY,
        order_id uuid NOT NULL,
        merchant_id uuid NOT NULL,
        attempt int NOT NULL,
        processor text NOT NULL,
        amount bigint NOT NULL,
        currency text NOT NULL,
        status text NOT NULL,
        amount_captured bigint NOT NULL,
        created_at timestamptz NOT NULL,
        captured_at timestamptz,
        version bigint NOT NULL
    ) WITH (fillfactor = 80);
    COMMENT ON TABLE payments IS 'One row for each attempt to pay an order: what the dashboard''s figures count.';
    COMMENT ON COLUMN payments.version IS 'The order''s version that changed the row last.';
    CREATE INDEX payments_by_age ON payments (merchant_id, created_at) INCLUDE (currency, status, processor);
    CREATE INDEX payments_by_capture ON payments (merchant_id, captured_at) INCLUDE (currency, amount_captured)
        WHERE captured_at IS NOT NULL;
    """)
    op.execute("INSERT INTO checkpoints (name) VALUES ('payments') ON CONFLICT DO NOTHING")


def downgrade() -> None:
    op.execute("DROP TABLE payments")
    op.execute("DELETE FROM checkpoints WHERE name = 'payments'")
    op.execute("DELETE FROM parked_events WHERE reader = 'payments'")
