"""Webhooks of the processors, as they arrived; a replaced webhook secret, while it is still accepted."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute("""
    CREATE TABLE processor_events (
        id uuid PRIMARY KEY,
        merchant_id uuid NOT NULL,
        processor text NOT NULL,
        key text NOT NULL,
        event_id text NOT NULL,
        type text NOT NULL,
        order_id uuid,
        body text NOT NULL,
        effect text NOT NULL,
        deliveries int NOT NULL DEFAULT 1,
        received_at timestamptz NOT NULL,
        UNIQUE (merchant_id, processor, key)
    );
    COMMENT ON TABLE processor_events IS
        'Every event a processor sent under a right signature: commands/processor_events.py.';
    COMMENT ON COLUMN processor_events.key IS
        'Tells one event from another: its id where the signature covers it (Stripe), else a digest of the body.';
    COMMENT ON COLUMN processor_events.order_id IS 'The merchant''s order that it is about, null where there is none.';
    COMMENT ON COLUMN processor_events.body IS 'As it arrived, card numbers masked.';
    COMMENT ON COLUMN processor_events.effect IS
        'What became of it: received (not yet dealt with), applied, none (it told nothing new), contradiction, '
        'unmatched, unknown_order, unhandled.';
    COMMENT ON COLUMN processor_events.deliveries IS 'How often it was delivered.';
    CREATE INDEX processor_events_by_age ON processor_events (merchant_id, received_at);
    CREATE INDEX processor_events_by_order ON processor_events (order_id) WHERE order_id IS NOT NULL;
    CREATE INDEX processor_events_by_effect ON processor_events (effect, processor);
    """)
    op.execute("""
    ALTER TABLE processor_configs
        ADD COLUMN previous_webhook_secret bytea,
        ADD COLUMN previous_webhook_expires_at timestamptz,
        ADD CHECK ((previous_webhook_secret IS NULL) = (previous_webhook_expires_at IS NULL));
    COMMENT ON COLUMN processor_configs.previous_webhook_secret IS
        'The webhook secret before the present one, encrypted: accepted until it expires. commands/credentials.py.';
    """)
    # An event is matched with an order by the processor's reference where it names no order.
    op.execute("CREATE INDEX orders_by_processor_order ON orders (merchant_id, processor_order_id)")


def downgrade() -> None:
    op.execute("DROP INDEX orders_by_processor_order")
    op.execute(
        "ALTER TABLE processor_configs DROP COLUMN previous_webhook_secret, DROP COLUMN previous_webhook_expires_at"
    )
    op.execute("DROP TABLE processor_events")
