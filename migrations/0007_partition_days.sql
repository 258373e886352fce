-- A condition on a name may be put to every relation there is, whatever it is joined with; text can be compared so, a
-- date made of it cannot.
CREATE OR REPLACE FUNCTION llmproxy_drop_partitions(parent text, before date) RETURNS integer LANGUAGE plpgsql
SET lock_timeout = '2s' AS $$
DECLARE
    child regclass;
    dropped integer := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('llmproxy partitions', 0)) THEN
        RETURN 0;
    END IF;
    FOR child IN
        SELECT inhrelid::regclass FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = to_regclass(quote_ident(parent)) AND right(relname, 8) < to_char(before, 'YYYYMMDD')
        ORDER BY relname
    LOOP
        EXECUTE format('DROP TABLE %s', child);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;
