"""Merchants, their API keys and their processors: what must be replaceable stands here, not in the log."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("""
    CREATE TABLE merchants (
        id uuid PRIMARY KEY,
        name text NOT NULL,
        email text NOT NULL,
        password_hash text NOT NULL,
        token_version int NOT NULL DEFAULT 1,
        webhook_url text,
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL
    );
    CREATE UNIQUE INDEX merchants_by_email ON merchants (lower(email));
    COMMENT ON COLUMN merchants.token_version IS
        'Dashboard tokens name the version they were issued under: raising it ends all older ones.';
    """)
    op.execute("""
    CREATE TABLE api_keys (
        id uuid PRIMARY KEY,
        merchant_id uuid NOT NULL REFERENCES merchants,
        name text NOT NULL,
        prefix text NOT NULL UNIQUE,
        key_hash text NOT NULL,
        last_used_at timestamptz,
        expires_at timestamptz,
        revoked_at timestamptz,
        created_at timestamptz NOT NULL
    );
    CREATE INDEX api_keys_by_merchant ON api_keys (merchant_id, created_at);
    COMMENT ON COLUMN api_keys.prefix IS 'The public start of the key, by which its row is found.';
    COMMENT ON COLUMN api_keys.last_used_at IS 'To the minute.';
    """)
    op.execute("""
    CREATE TABLE processor_configs (
        id uuid PRIMARY KEY,
        merchant_id uuid NOT NULL REFERENCES merchants,
        processor text NOT NULL,
        enabled boolean NOT NULL,
        priority int NOT NULL CHECK (priority BETWEEN 1 AND 100),
        test_mode boolean NOT NULL,
        credentials bytea NOT NULL,
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        UNIQUE (merchant_id, processor)
    );
    COMMENT ON COLUMN processor_configs.credentials IS
        'AES-256-GCM bound to merchant and processor: commands/credentials.py.';
    """)


def downgrade() -> None:
    op.execute("DROP TABLE processor_configs, api_keys, merchants")
