"""Webhooks that are being sent, so that an attempt is known whose sender did not live to record it."""

from alembic import op

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    op.execute("""
    CREATE TABLE webhook_sendings (
        key text PRIMARY KEY,
        url text NOT NULL,
        began_at timestamptz NOT NULL
    );
    COMMENT ON TABLE webhook_sendings IS
        'Attempts that have begun, and have not ended or died with their sender; see webhook_attempts.key.';
    """)


def downgrade() -> None:
    op.execute("DROP TABLE webhook_sendings")
