"""Finding orders of every merchant, for support staff."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.execute("""
    CREATE INDEX orders_by_external_id_anywhere ON orders (external_id);
    CREATE INDEX orders_by_customer_email ON orders (lower(customer_email)) WHERE customer_email IS NOT NULL;
    """)


def downgrade() -> None:
    op.execute("DROP INDEX orders_by_external_id_anywhere, orders_by_customer_email")
