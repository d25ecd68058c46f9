"""Finding orders of every merchant by what processors call them, by request, amount and time."""

from alembic import op

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    # Filled by version 2 of the projections, which builds its tables anew where there is something to build.
    op.execute("""
    UPDATE checkpoints SET version = 2
    WHERE name IN ('orders', 'daily_volume') AND NOT EXISTS (SELECT FROM stored_events);
    """)
    op.execute("""
    ALTER TABLE orders ADD correlation_id text, ADD cancel_correlation_id text;
    ALTER TABLE transactions ADD correlation_id text;
    ALTER TABLE payments ADD processor_order_id text, ADD processor_transaction_id text, ADD correlation_id text;
    COMMENT ON COLUMN payments.correlation_id IS 'Of the latest request of it: to pay, capture, void or cancel.';
    """)
    # Of what never changes, or once: an index more costs least there. Orders come by time: BRIN costs next to nothing.
    op.execute("""
    CREATE INDEX orders_by_request ON orders (correlation_id) WHERE correlation_id IS NOT NULL;
    CREATE INDEX orders_by_cancellation ON orders (cancel_correlation_id) WHERE cancel_correlation_id IS NOT NULL;
    CREATE INDEX orders_by_amount ON orders (amount, currency, id);
    CREATE INDEX orders_by_time_anywhere ON orders USING brin (created_at) WITH (pages_per_range = 32);
    CREATE INDEX transactions_by_request ON transactions (correlation_id) WHERE correlation_id IS NOT NULL;
    CREATE INDEX transactions_by_reference ON transactions (processor_transaction_id)
        WHERE processor_transaction_id IS NOT NULL;
    CREATE INDEX payments_by_request ON payments (correlation_id) WHERE correlation_id IS NOT NULL;
    CREATE INDEX payments_by_order_reference ON payments (processor_order_id) WHERE processor_order_id IS NOT NULL;
    CREATE INDEX payments_by_reference ON payments (processor_transaction_id)
        WHERE processor_transaction_id IS NOT NULL;
    CREATE INDEX processor_events_by_event ON processor_events (event_id);
    """)


def downgrade() -> None:
    op.execute("""
    DROP INDEX orders_by_request, orders_by_cancellation, orders_by_amount, orders_by_time_anywhere,
        transactions_by_request, transactions_by_reference,
        payments_by_request, payments_by_order_reference, payments_by_reference, processor_events_by_event
    """)
    op.execute("""
    ALTER TABLE orders DROP correlation_id, DROP cancel_correlation_id;
    ALTER TABLE transactions DROP correlation_id;
    ALTER TABLE payments DROP processor_order_id, DROP processor_transaction_id, DROP correlation_id;
    UPDATE checkpoints SET version = 1 WHERE name IN ('orders', 'daily_volume');
    """)
