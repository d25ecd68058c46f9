"""Secrets that sign webhooks; sealed values that name their own row."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute("""
    CREATE TABLE webhook_secrets (
        merchant_id uuid PRIMARY KEY REFERENCES merchants,
        secret bytea NOT NULL,
        previous_secret bytea,
        previous_expires_at timestamptz,
        made_at timestamptz NOT NULL,
        CHECK ((previous_secret IS NULL) = (previous_expires_at IS NULL))
    );
    COMMENT ON TABLE webhook_secrets IS
        'What signs a merchant''s webhooks, encrypted: commands/webhook_secrets.py. After a rotation both sign.';
    """)
    # Client secrets were sealed under the identity of a processor's row and cannot be opened under their own.
    # They are of use for the minutes in which a customer confirms a payment.
    op.execute("DELETE FROM client_secrets")


def downgrade() -> None:
    op.execute("DROP TABLE webhook_secrets")
