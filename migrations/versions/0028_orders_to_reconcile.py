"""What `payloops reconcile` asks about every few minutes, without reading all orders for it."""

from alembic import op

revision = "0028"
down_revision = "0027"


def upgrade() -> None:
    op.execute("""
    CREATE INDEX orders_under_way ON orders (updated_at) WHERE status IN ('processing', 'requires_action');
    CREATE INDEX orders_by_change ON orders USING brin (updated_at) WITH (pages_per_range = 32);
    """)


def downgrade() -> None:
    op.execute("DROP INDEX orders_under_way, orders_by_change")
