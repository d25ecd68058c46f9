"""A client secret belongs to one attempt to pay: a late report of an earlier one must not replace it."""

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.execute("""
    DELETE FROM client_secrets;
    ALTER TABLE client_secrets
        ADD COLUMN attempt int NOT NULL,
        DROP CONSTRAINT client_secrets_pkey,
        ADD PRIMARY KEY (order_id, attempt);
    """)
