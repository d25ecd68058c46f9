"""Searching orders, and listing them by processor."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    # Of PostgreSQL's own extensions, and one that the owner of a database may create.
    op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    # The expression is projections/order_search.py's: the planner knows the index by it.
    op.execute("""
    CREATE INDEX orders_by_text ON orders USING gin (
        lower(id::text || chr(10) || external_id || chr(10) || coalesce(customer_email, '')) gin_trgm_ops
    );
    CREATE INDEX orders_by_processor ON orders (merchant_id, processor, created_at, id);
    """)


def downgrade() -> None:
    op.execute("DROP INDEX orders_by_text, orders_by_processor")
