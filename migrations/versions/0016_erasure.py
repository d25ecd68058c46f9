"""Erasing what is held of a customer outside of the log: webhooks by their order, and what staff searched for."""

from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.execute("CREATE INDEX webhook_events_by_order ON webhook_events (order_id)")
    op.execute("""
    DROP TRIGGER staff_views_are_facts ON staff_views;
    CREATE TRIGGER staff_views_are_facts BEFORE DELETE OR TRUNCATE ON staff_views
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
    CREATE TRIGGER staff_views_change_by_erasure_alone BEFORE UPDATE ON staff_views
        FOR EACH ROW WHEN (
            to_jsonb(NEW) - 'query' IS DISTINCT FROM to_jsonb(OLD) - 'query'
            OR NEW.query IS DISTINCT FROM OLD.query || '{"q": "[erased]"}'
        ) EXECUTE FUNCTION refuse_change();
    COMMENT ON TABLE staff_views IS
        'What staff looked at, written before they see it. Rows are never deleted, nor changed but by erasing q.';
    """)


def downgrade() -> None:
    op.execute("DROP INDEX webhook_events_by_order")
    op.execute("""
    DROP TRIGGER staff_views_change_by_erasure_alone ON staff_views;
    DROP TRIGGER staff_views_are_facts ON staff_views;
    CREATE TRIGGER staff_views_are_facts BEFORE UPDATE OR DELETE OR TRUNCATE ON staff_views
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
    """)
