"""One index of external ids, for merchants and for staff, where there were two.

Few orders of different merchants have the same external id, so that the merchant can come second.
"""

from alembic import op

revision = "0031"
down_revision = "0030"


def upgrade() -> None:
    op.execute("""
    DROP INDEX orders_by_external_id, orders_by_external_id_anywhere;
    CREATE INDEX orders_by_external_id ON orders (external_id, merchant_id, created_at, id);
    """)


def downgrade() -> None:
    op.execute("""
    DROP INDEX orders_by_external_id;
    CREATE INDEX orders_by_external_id ON orders (merchant_id, external_id, created_at, id);
    CREATE INDEX orders_by_external_id_anywhere ON orders (external_id);
    """)
