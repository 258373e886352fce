-- What a key used in a window is counted by index, as what a user or a workspace did

CREATE INDEX ledger_entries_of_key ON ledger_entries (key_id, occurred_at) WHERE key_id IS NOT NULL;

-- Sums by key and by user, and of what budgets count; all are made anew

DELETE FROM ledger_summed_days;
ALTER TABLE ledger_sums
    ADD COLUMN dimension text NOT NULL CHECK (dimension IN ('feature', 'key', 'user')),
    ADD COLUMN key_id text,
    ADD COLUMN user_id text,
    ADD COLUMN charged_requests bigint NOT NULL;
COMMENT ON COLUMN ledger_sums.dimension IS
    'What a day is divided by, beside workspace, provider and model: the sums of each dimension are those of the whole day.';
COMMENT ON COLUMN ledger_sums.charged_requests IS 'What a budget in requests counts: all that used something.';
DROP INDEX ledger_sums_of_workspace, ledger_sums_of_day;
CREATE INDEX ledger_sums_of_day ON ledger_sums (day, dimension);
CREATE INDEX ledger_sums_of_workspace ON ledger_sums (workspace, dimension, day);
CREATE INDEX ledger_sums_of_key ON ledger_sums (key_id, day) WHERE dimension = 'key';
CREATE INDEX ledger_sums_of_user ON ledger_sums (user_id, day) WHERE dimension = 'user';

-- Names of partitions are compared, not dates made of them: the condition may be put to every relation there is.
CREATE FUNCTION llmproxy_summed_days(first timestamptz, before timestamptz) RETURNS date[] LANGUAGE sql STABLE AS $$
    WITH span AS (
        -- Null, as for what has no end, where there is none.
        SELECT to_char((first AT TIME ZONE 'UTC') + interval '1 day - 1 microsecond', 'YYYYMMDD') AS first_day,
            to_char(before AT TIME ZONE 'UTC', 'YYYYMMDD') AS day_after
    ), partitions AS (
        SELECT right(relname, 8) AS name
        FROM span, pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = 'ledger_entries'::regclass
            AND right(relname, 8) >= COALESCE(first_day, '') AND right(relname, 8) < COALESCE(day_after, '99999999')
    ), looked_up AS (
        SELECT name, to_char(day, 'YYYYMMDD') IS NOT NULL AS is_summed
        FROM partitions LEFT JOIN ledger_summed_days ON to_char(day, 'YYYYMMDD') = name
    ), runs AS (
        SELECT name, is_summed,
            row_number() OVER (ORDER BY name) - row_number() OVER (PARTITION BY is_summed ORDER BY name) AS run
        FROM looked_up
    )
    SELECT COALESCE((
        SELECT array_agg(to_date(name, 'YYYYMMDD') ORDER BY name) FROM runs
        WHERE is_summed GROUP BY run ORDER BY count(*) DESC, run LIMIT 1
    ), '{}')
$$;
COMMENT ON FUNCTION llmproxy_summed_days(timestamptz, timestamptz) IS
    'The longest run of UTC days wholly in a span that need not be read row by row, in order: between the first and the '
    'last there is no partition without sums.';

CREATE OR REPLACE FUNCTION llmproxy_ledger_sum(share json, first timestamptz, before timestamptz) RETURNS numeric LANGUAGE plpgsql STABLE AS $$
DECLARE
    field record;
    unit text := share ->> 'unit';
    divided_by text[] := ARRAY(SELECT key FROM json_each_text(share) WHERE key IN ('feature', 'key_id', 'user_id', 'tag'));
    days date[] := '{}';
    rest_before timestamptz := before;
    rest_from timestamptz := before;
    condition text := 'usage_provenance IS NOT NULL';
    condition_of_sums text;
    total numeric;
BEGIN
    IF divided_by <@ '{feature}' OR divided_by <@ '{key_id}' OR divided_by <@ '{user_id}' THEN
        condition_of_sums := format('dimension = %L', COALESCE(replace(divided_by[1], '_id', ''), 'feature'));
        IF before - first >= interval '1 day' THEN
            days := llmproxy_summed_days(first, before);
        END IF;
    END IF;
    IF days <> '{}' THEN
        rest_before := days[1]::timestamp AT TIME ZONE 'UTC';
        rest_from := (days[cardinality(days)] + 1)::timestamp AT TIME ZONE 'UTC';
    END IF;
    FOR field IN SELECT key, value FROM json_each_text(share) WHERE key <> 'unit' LOOP
        condition := condition || CASE
            WHEN field.key = 'tag' THEN format(' AND %L = ANY (tags)', field.value)
            WHEN field.key = 'model' THEN format(' AND provider_name || ''/'' || response_model = %L', field.value)
            WHEN field.value = '' THEN format(' AND %I IS NULL', field.key)
            ELSE format(' AND %I = %L', field.key, field.value)
        END;
        condition_of_sums := condition_of_sums || CASE
            -- Where nobody answered, it is what was asked for.
            WHEN field.key = 'model' THEN format(' AND provider_name IS NOT NULL AND model = %L', field.value)
            WHEN field.value = '' THEN format(' AND %I IS NULL', field.key)
            ELSE format(' AND %I = %L', field.key, field.value)
        END;
    END LOOP;
    EXECUTE format(
        'SELECT COALESCE(sum(%s), 0) FROM ledger_entries AS charged
        WHERE occurred_at >= $1 AND occurred_at < $2 AND (occurred_at < $3 OR occurred_at >= $4) AND %s',
        CASE unit
            WHEN 'usd' THEN 'amount_usd'
            WHEN 'requests' THEN '(kind <> ''adjustment'')::integer'
            -- Whatever classes of tokens there are by now.
            ELSE '(SELECT sum(value::numeric) FROM jsonb_each_text(to_jsonb(charged)) WHERE key LIKE ''%\_tokens'')'
        END,
        condition
    ) INTO total USING first, before, rest_before, rest_from;
    IF days = '{}' THEN
        RETURN total;
    END IF;
    EXECUTE format(
        'SELECT $1 + COALESCE(sum(%s), 0) FROM ledger_sums WHERE day = ANY ($2) AND %s',
        CASE unit
            WHEN 'usd' THEN 'amount_usd' WHEN 'requests' THEN 'charged_requests' ELSE 'input_tokens + output_tokens'
        END,
        condition_of_sums
    ) INTO total USING total, days;
    RETURN total;
END
$$;
COMMENT ON FUNCTION llmproxy_ledger_sum(json, timestamptz, timestamptz) IS
    'What the ledger has of a share, {unit, column: value…}, in a span of time; an empty value stands for null. Days that '
    'have sums are taken from those, which is the same to the last digit.';
