"""Searching orders, and listing them by processor."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute("""
    CREATE INDEX orders_by_processor ON orders (merchant_id, processor, created_at, id);
    """)


def downgrade() -> None:
    op.execute("DROP INDEX orders_by_processor")
