"""Support staff, and what they looked at."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute("""
    CREATE TABLE staff (
        id uuid PRIMARY KEY,
        name text NOT NULL,
        email text NOT NULL,
        password_hash text NOT NULL,
        created_at timestamptz NOT NULL,
        removed_at timestamptz
    );
    CREATE UNIQUE INDEX staff_by_email ON staff (lower(email)) WHERE removed_at IS NULL;
    COMMENT ON TABLE staff IS
        'People of the platform who may look at every merchant''s orders. Rows stay: staff_views names them.';
    """)
    op.execute("""
    CREATE TABLE staff_views (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        staff_id uuid NOT NULL REFERENCES staff,
        route text NOT NULL,
        order_id uuid,
        merchant_id uuid,
        query jsonb,
        viewed_at timestamptz NOT NULL,
        correlation_id text NOT NULL
    );
    COMMENT ON TABLE staff_views IS
        'What staff looked at, written before they see it. Rows are never updated and never deleted.';
    COMMENT ON COLUMN staff_views.merchant_id IS 'Whose order it is; of a search: the merchant it was limited to.';
    COMMENT ON COLUMN staff_views.query IS 'Of a search: what was looked for.';
    CREATE INDEX staff_views_by_staff ON staff_views (staff_id, id);
    CREATE INDEX staff_views_by_order ON staff_views (order_id, id) WHERE order_id IS NOT NULL;
    CREATE INDEX staff_views_by_merchant ON staff_views (merchant_id, id) WHERE merchant_id IS NOT NULL;
    CREATE TRIGGER staff_views_are_facts BEFORE UPDATE OR DELETE OR TRUNCATE ON staff_views
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
    """)


def downgrade() -> None:
    op.execute("DROP TABLE staff_views, staff")
