-- Counting what the ledger holds of a budget may take long, and is done apart from leasing, without a lock

ALTER TYPE quota_want ADD ATTRIBUTE opens boolean;
COMMENT ON COLUMN quota_want.opens IS 'Whether all that the ledger has is counted in the same call; null, as from workers of older versions, for true.';

-- It sees what the statement sees that asks.
ALTER FUNCTION llmproxy_ledger_sum(json, timestamptz, timestamptz) STABLE;

CREATE FUNCTION llmproxy_open_allowance(wanted json) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    want quota_want := json_populate_record(NULL::quota_want, wanted);
    buckets timestamptz[];
    counted numeric[];
    settled_before numeric[];
BEGIN
    IF EXISTS (SELECT FROM quota_buckets WHERE allowance = want.allowance AND bucket = want.bucket AND is_opened) THEN
        RETURN;
    END IF;
    -- One statement sees one moment: what was settled by then is in the ledger by then, for both are written together.
    SELECT array_agg(start),
        array_agg(llmproxy_ledger_sum(want.share, start, COALESCE(start + want.step, want.until))),
        array_agg(COALESCE((
            SELECT settled FROM quota_buckets WHERE allowance = want.allowance AND bucket = start
        ), 0))
    INTO buckets, counted, settled_before
    FROM (
        SELECT want.bucket AS start
        UNION ALL SELECT generate_series(want.since, want.bucket - want.step, want.step)
    ) AS starts;
    -- Locked only now, so that nobody who settles or leases waits for the counting.
    INSERT INTO quota_allowances (name) VALUES (want.allowance)
    ON CONFLICT (name) DO UPDATE SET name = EXCLUDED.name WHERE false;
    IF EXISTS (SELECT FROM quota_buckets WHERE allowance = want.allowance AND bucket = want.bucket AND is_opened) THEN
        RETURN;
    END IF;
    INSERT INTO quota_buckets (allowance, bucket) SELECT want.allowance, start FROM unnest(buckets) AS start
    ON CONFLICT DO NOTHING;
    -- What was settled meanwhile is not in what was counted.
    UPDATE quota_buckets AS known SET
        settled = known.settled + found.counted - found.settled_before, is_opened = true, expires_at = want.expires_at
    FROM unnest(buckets, counted, settled_before) AS found (start, counted, settled_before)
    WHERE known.allowance = want.allowance AND known.bucket = found.start AND NOT known.is_opened;
    UPDATE quota_allowances SET opened_at = now() WHERE name = want.allowance AND want.step IS NOT NULL;
END
$$;
COMMENT ON FUNCTION llmproxy_open_allowance(json) IS
    'Has an allowance begin with what the ledger holds of it, unless that is done already.';

CREATE FUNCTION llmproxy_is_quickly_opened(want quota_want) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT now() - want.bucket < interval '1 minute' AND (want.step IS NULL OR EXISTS (
        SELECT FROM quota_allowances WHERE name = want.allowance AND opened_at IS NOT NULL
    ))
$$;
COMMENT ON FUNCTION llmproxy_is_quickly_opened(quota_want) IS
    'Whether there can be little in the ledger: the bucket has just begun, and those before it are known.';

CREATE OR REPLACE FUNCTION llmproxy_lease(
    holder_id text, machine_name text, call_number bigint, begins_anew boolean, wants json
) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    earlier record;
    want quota_want;
    answers json[] := '{}';
    opened integer := 0;
BEGIN
    -- Before anything is read, so that whoever releases what the holder has waits for this, or this for them.
    PERFORM pg_advisory_xact_lock(hashtextextended('llmproxy quotas ' || holder_id, 0));
    INSERT INTO quota_holders (holder, machine, last_call) VALUES (holder_id, machine_name, 0) ON CONFLICT DO NOTHING;
    IF begins_anew THEN
        UPDATE quota_holders SET released_at = NULL WHERE holder = holder_id;
    END IF;
    SELECT last_call, answer, released_at INTO earlier FROM quota_holders WHERE holder = holder_id;
    IF earlier.released_at IS NOT NULL THEN
        RETURN NULL;
    END IF;
    IF earlier.last_call = call_number THEN
        RETURN earlier.answer;
    END IF;
    FOR want IN SELECT * FROM json_populate_recordset(NULL::quota_want, wants) ORDER BY allowance, bucket LOOP
        IF want.share IS NOT NULL AND NOT want.opens AND NOT EXISTS (
            SELECT FROM quota_buckets WHERE allowance = want.allowance AND bucket = want.bucket AND is_opened
        ) THEN
            -- A call must not take long, for all that the worker leases waits for it.
            IF opened >= 8 OR NOT llmproxy_is_quickly_opened(want) THEN
                answers := answers || json_build_object('number', want.number, 'is_opened', false);
                CONTINUE;
            END IF;
            opened := opened + 1;
        END IF;
        answers := answers || llmproxy_grant(holder_id, want);
    END LOOP;
    UPDATE quota_holders SET last_call = call_number, answer = array_to_json(answers), seen_at = now()
    WHERE holder = holder_id;
    RETURN array_to_json(answers);
END
$$;
