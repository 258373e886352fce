-- What was recorded stays as it was recorded

CREATE TABLE audit_chain (
    chain uuid NOT NULL,
    number bigint NOT NULL,
    recorded_at timestamptz NOT NULL,
    request_id uuid NOT NULL,
    admitted_at timestamptz NOT NULL,
    request_sha256 bytea NOT NULL,
    ledger_sha256 bytea NOT NULL,
    link_sha256 bytea NOT NULL,
    signature bytea,
    PRIMARY KEY (chain, number, admitted_at)
) PARTITION BY RANGE (admitted_at);
COMMENT ON TABLE audit_chain IS 'One link for each request, in a chain for each run of a worker. Kept as long as the ledger.';
COMMENT ON COLUMN audit_chain.number IS 'Counts from 1 within the chain.';
COMMENT ON COLUMN audit_chain.recorded_at IS 'The same for all links of a transaction; never falls within the chain.';
COMMENT ON COLUMN audit_chain.request_sha256 IS 'Over the row of requests and its attempts, as they were stored.';
COMMENT ON COLUMN audit_chain.ledger_sha256 IS 'Over the rows of ledger_entries, as they were stored.';
COMMENT ON COLUMN audit_chain.link_sha256 IS 'Over this row and the link before it.';
COMMENT ON COLUMN audit_chain.signature IS 'Over the link; only the last one of each transaction has it.';

CREATE TABLE audit_log (
    number bigint PRIMARY KEY,
    document text NOT NULL,
    entry_sha256 bytea NOT NULL,
    key_id text NOT NULL,
    signature bytea NOT NULL
);
COMMENT ON TABLE audit_log IS 'Signed, and chained as a whole: chains that began and ended, how far they were, and what operators did.';
COMMENT ON COLUMN audit_log.document IS 'JSON, kept as text since the hash is over its bytes.';
COMMENT ON COLUMN audit_log.entry_sha256 IS 'Over the document and the entry before it.';

CREATE VIEW admin_actions AS
SELECT
    number,
    (document::json ->> 'at')::timestamptz AS occurred_at,
    document::json ->> 'actor' AS actor,
    document::json ->> 'action' AS action,
    document::json ->> 'subject' AS subject,
    document::json -> 'details' AS details
FROM audit_log
WHERE document::json ->> 'kind' = 'action';
COMMENT ON VIEW admin_actions IS 'What operators did, from the signed log.';

-- Append-only

CREATE FUNCTION llmproxy_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % is not possible', TG_TABLE_NAME, TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$;
COMMENT ON FUNCTION llmproxy_refuse_change() IS 'Keeps recorded rows from being changed or deleted; whole days are dropped as partitions.';

CREATE FUNCTION llmproxy_refuse_truncate(tables text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY tables LOOP
        EXECUTE format(
            'CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON %I EXECUTE FUNCTION llmproxy_refuse_change()', name
        );
    END LOOP;
END
$$;
COMMENT ON FUNCTION llmproxy_refuse_truncate(text[]) IS
    'Postgres hands row triggers on to partitions by itself, but none for TRUNCATE.';

DO $$
DECLARE
    name text;
    append_only text[] := ARRAY['requests', 'attempts', 'ledger_entries', 'audit_chain'];
BEGIN
    FOREACH name IN ARRAY array_append(append_only, 'audit_log') LOOP
        EXECUTE format(
            'CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON %I '
            'FOR EACH ROW EXECUTE FUNCTION llmproxy_refuse_change()', name
        );
    END LOOP;
    PERFORM llmproxy_refuse_truncate(array_append(append_only, 'audit_log'));
    PERFORM llmproxy_refuse_truncate(ARRAY(
        SELECT relname::text FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent IN (SELECT to_regclass(parent) FROM unnest(append_only) AS parent)
    ));
END
$$;

CREATE OR REPLACE FUNCTION llmproxy_create_partitions(first_day date, last_day date) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    parent text;
    child text;
    day date;
    created integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('llmproxy partitions', 0));
    FOREACH parent IN ARRAY ARRAY['requests', 'attempts', 'ledger_entries', 'request_bodies', 'audit_chain'] LOOP
        FOR day IN SELECT first_day + n FROM generate_series(0, last_day - first_day) AS n LOOP
            child := parent || '_' || to_char(day, 'YYYYMMDD');
            CONTINUE WHEN to_regclass(quote_ident(child)) IS NOT NULL;
            -- CREATE ... PARTITION OF would lock the parent against inserts; ATTACH does not.
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', child, parent);
            EXECUTE format(
                'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, child,
                to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00', to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00'
            );
            IF parent <> 'request_bodies' THEN
                PERFORM llmproxy_refuse_truncate(ARRAY[child]);
            END IF;
            created := created + 1;
        END LOOP;
    END LOOP;
    RETURN created;
END
$$;
