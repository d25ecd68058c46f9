"""Orders and their transactions, as projected from the log: may be dropped and rebuilt at any time."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("""
    CREATE TABLE orders (
        id uuid PRIMARY KEY,
        merchant_id uuid NOT NULL,
        external_id text NOT NULL,
        amount bigint NOT NULL,
        currency text NOT NULL,
        status text NOT NULL,
        processor text,
        processor_order_id text,
        metadata json NOT NULL,
        customer_id text,
        customer_email text,
        description text,
        return_url text,
        cancel_url text,
        amount_captured bigint NOT NULL,
        amount_refunded bigint NOT NULL,
        attempt int NOT NULL,
        last_error_code text,
        last_error_message text,
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        version bigint NOT NULL
    ) WITH (fillfactor = 80);
    COMMENT ON COLUMN orders.version IS
        'The row holds every event of the order up to here. Less than the stream has: behind, or an event is parked.';
    COMMENT ON COLUMN orders.metadata IS 'json and not jsonb: the merchant gets back what it gave, in its order.';
    CREATE INDEX orders_by_age ON orders (merchant_id, created_at, id);
    CREATE INDEX orders_by_status ON orders (merchant_id, status, created_at, id);
    CREATE INDEX orders_by_currency ON orders (merchant_id, currency, created_at, id);
    CREATE INDEX orders_by_external_id ON orders (merchant_id, external_id, created_at, id);
    """)
    op.execute("""
    CREATE TABLE transactions (
        id uuid PRIMARY KEY,
        order_id uuid NOT NULL,
        merchant_id uuid NOT NULL,
        attempt int NOT NULL,
        type text NOT NULL,
        amount bigint NOT NULL,
        status text NOT NULL,
        processor_transaction_id text,
        error_code text,
        error_message text,
        reason text,
        refunds uuid,
        created_at timestamptz NOT NULL,
        version bigint NOT NULL
    ) WITH (fillfactor = 80);
    COMMENT ON COLUMN transactions.refunds IS 'Of a refund: the captured transaction that it gives back from.';
    COMMENT ON COLUMN transactions.version IS 'The order''s version that changed the row last.';
    CREATE INDEX transactions_by_order ON transactions (order_id, created_at, id);
    """)
    op.execute("INSERT INTO checkpoints (name) VALUES ('orders') ON CONFLICT DO NOTHING")


def downgrade() -> None:
    op.execute("DROP TABLE orders, transactions")
    op.execute("DELETE FROM checkpoints WHERE name = 'orders'")
    op.execute("DELETE FROM parked_events WHERE reader = 'orders'")
