"""Seals over the log: by them it shows when a row was changed by hand."""

from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.execute("""
    CREATE TABLE seals (
        number bigint PRIMARY KEY CHECK (number > 0),
        first_position bigint NOT NULL,
        last_position bigint NOT NULL UNIQUE CHECK (last_position >= first_position),
        root bytea NOT NULL,
        previous bytea NOT NULL,
        sealed_at timestamptz NOT NULL,
        key_id text NOT NULL,
        signature bytea NOT NULL,
        leaves bytea NOT NULL
    );
    ALTER TABLE seals ALTER leaves SET STORAGE EXTERNAL;
    COMMENT ON TABLE seals IS
        'Signed Merkle roots over ranges of stored_events, each chained to the one before: events/seals.py. '
        'Rows are never updated and never deleted.';
    COMMENT ON COLUMN seals.leaves IS 'The leaf hashes of the range, 32 bytes each, in order.';
    CREATE TRIGGER seals_are_facts BEFORE UPDATE OR DELETE OR TRUNCATE ON seals
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
    """)


def downgrade() -> None:
    op.execute("DROP TABLE seals")
    op.execute("DELETE FROM checkpoints WHERE name = 'seals'")
