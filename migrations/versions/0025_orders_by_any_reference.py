"""Orders are found by the references of all their payments: the index of the latest one's goes."""

from alembic import op

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    op.execute("DROP INDEX orders_by_processor_order")


def downgrade() -> None:
    op.execute("CREATE INDEX orders_by_processor_order ON orders (merchant_id, processor_order_id)")
