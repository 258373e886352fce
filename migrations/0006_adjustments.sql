-- Corrections to the ledger: what a price depends on, and how budgets hear of them

ALTER TABLE ledger_entries ADD COLUMN service_tier text, ADD COLUMN service_region text;
COMMENT ON COLUMN ledger_entries.service_tier IS 'How the provider says it served, where that changes the price; null is the usual way.';
COMMENT ON COLUMN ledger_entries.service_region IS 'Where the provider says it served, where that changes the price.';
COMMENT ON COLUMN ledger_entries.entry IS
    '0 for the exchange itself, then the number of an attempt that was charged beside it, and adjustments after those.';
COMMENT ON COLUMN ledger_entries.amount_usd IS
    'Null when no price is known, which is not the same as free. Of an adjustment the difference, which may be negative.';

-- An adjustment is no request. (`entry` was the column of that name, and not the row, so that tokens had no sum.)
CREATE OR REPLACE FUNCTION llmproxy_ledger_sum(share json, first timestamptz, before timestamptz) RETURNS numeric LANGUAGE plpgsql AS $$
DECLARE
    field record;
    condition text := 'usage_provenance IS NOT NULL';
    amount text;
    total numeric;
BEGIN
    amount := CASE share ->> 'unit'
        WHEN 'usd' THEN 'amount_usd'
        WHEN 'requests' THEN '(kind <> ''adjustment'')::integer'
        -- Whatever classes of tokens there are by now.
        ELSE '(SELECT sum(value::numeric) FROM jsonb_each_text(to_jsonb(charged)) WHERE key LIKE ''%\_tokens'')'
    END;
    FOR field IN SELECT key, value FROM json_each_text(share) WHERE key <> 'unit' LOOP
        condition := condition || CASE
            WHEN field.key = 'tag' THEN format(' AND %L = ANY (tags)', field.value)
            WHEN field.key = 'model' THEN format(' AND provider_name || ''/'' || response_model = %L', field.value)
            WHEN field.value = '' THEN format(' AND %I IS NULL', field.key)
            ELSE format(' AND %I = %L', field.key, field.value)
        END;
    END LOOP;
    EXECUTE format(
        'SELECT COALESCE(sum(%s), 0) FROM ledger_entries AS charged WHERE occurred_at >= $1 AND occurred_at < $2 AND %s',
        amount, condition
    ) INTO total USING first, before;
    RETURN total;
END
$$;

-- What an allowance is held to is known only to who asks for it, so it is noted when somebody does.
ALTER TABLE quota_allowances ADD COLUMN share json;
COMMENT ON COLUMN quota_allowances.share IS 'What of the ledger it is held to; null for one that is used up once taken.';

ALTER FUNCTION llmproxy_open_quota(quota_want) RENAME TO llmproxy_open_bucket;
CREATE FUNCTION llmproxy_open_quota(want quota_want) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM llmproxy_open_bucket(want);
    UPDATE quota_allowances SET share = want.share
    WHERE name = want.allowance AND share::text IS DISTINCT FROM want.share::text;
END
$$;
COMMENT ON FUNCTION llmproxy_open_quota(quota_want) IS 'Opens the bucket, and notes what the allowance is held to.';

CREATE FUNCTION llmproxy_recount_quotas(first timestamptz, before timestamptz) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    affected text[];
BEGIN
    SELECT array_agg(name) INTO affected FROM (
        SELECT name FROM quota_allowances
        WHERE share ->> 'unit' = 'usd' AND EXISTS (
            SELECT FROM quota_buckets
            WHERE allowance = name AND bucket < before AND COALESCE(expires_at, 'infinity') > first
        )
        ORDER BY name
        FOR UPDATE
    ) AS held;
    UPDATE quota_allowances SET opened_at = NULL WHERE name = ANY (affected);
    UPDATE quota_buckets SET is_opened = false WHERE allowance = ANY (affected);
    PERFORM pg_notify('llmproxy_quotas', name) FROM unnest(affected) AS name;
    RETURN COALESCE(cardinality(affected), 0);
END
$$;
COMMENT ON FUNCTION llmproxy_recount_quotas(timestamptz, timestamptz) IS
    'Has every allowance in dollars whose windows reach into a span be counted anew from the ledger before more of it is '
    'leased; returns how many. Belongs into the transaction that writes adjustments of that span, at its end.';
