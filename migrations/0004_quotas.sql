-- Shared allowances: how much of a budget or a limit is used up, and which worker may still use how much

CREATE TABLE quota_allowances (
    name text PRIMARY KEY CHECK (name <> ''),
    opened_at timestamptz
);
COMMENT ON TABLE quota_allowances IS 'Budgets and limits, each for one subject. Whoever changes anything of one locks its row first, in the order of names.';
COMMENT ON COLUMN quota_allowances.opened_at IS 'When the ledger of a rolling window was counted; null where there is none.';

CREATE TABLE quota_buckets (
    allowance text NOT NULL,
    bucket timestamptz NOT NULL,
    settled numeric NOT NULL DEFAULT 0,
    leased numeric NOT NULL DEFAULT 0 CHECK (leased >= 0),
    is_opened boolean NOT NULL DEFAULT false,
    expires_at timestamptz,
    PRIMARY KEY (allowance, bucket)
) WITH (fillfactor = 50);
COMMENT ON TABLE quota_buckets IS 'What was used of an allowance: one row for each calendar window, several for a rolling one.';
COMMENT ON COLUMN quota_buckets.settled IS 'Used for certain: what the ledger has of it.';
COMMENT ON COLUMN quota_buckets.leased IS 'The sum of its quota_leases. Nothing is leased that would bring both over the cap.';
COMMENT ON COLUMN quota_buckets.is_opened IS 'Whether what the ledger had before the first lease is in settled.';

CREATE TABLE quota_leases (
    allowance text NOT NULL,
    bucket timestamptz NOT NULL,
    holder text NOT NULL,
    leased numeric NOT NULL CHECK (leased >= 0),
    PRIMARY KEY (allowance, bucket, holder)
) WITH (fillfactor = 50);
CREATE INDEX quota_leases_of_holder ON quota_leases (holder);
COMMENT ON TABLE quota_leases IS 'What a worker may use, or has used and not settled yet.';

CREATE TABLE quota_holders (
    holder text PRIMARY KEY,
    machine text NOT NULL,
    last_call bigint NOT NULL,
    answer json,
    seen_at timestamptz NOT NULL DEFAULT now(),
    released_at timestamptz
);
COMMENT ON TABLE quota_holders IS 'Workers that hold leases, by the name of their journal, until that has been replayed.';
COMMENT ON COLUMN quota_holders.released_at IS 'When all it held was released; a call of its that is still on its way gets nothing.';
COMMENT ON COLUMN quota_holders.last_call IS 'Number of the last call; one whose answer was lost is made again and answered again, not carried out twice.';

-- What allowances are held to

ALTER TABLE ledger_entries ADD COLUMN tags text[];
COMMENT ON COLUMN ledger_entries.tags IS 'The client''s; null in rows of older versions.';
CREATE INDEX ledger_entries_of_user ON ledger_entries (user_id, occurred_at) WHERE user_id IS NOT NULL;

CREATE FUNCTION llmproxy_ledger_sum(share json, first timestamptz, before timestamptz) RETURNS numeric LANGUAGE plpgsql AS $$
DECLARE
    field record;
    condition text := 'usage_provenance IS NOT NULL';
    amount text;
    total numeric;
BEGIN
    amount := CASE share ->> 'unit'
        WHEN 'usd' THEN 'amount_usd'
        WHEN 'requests' THEN '1'
        -- Whatever classes of tokens there are by now.
        ELSE '(SELECT sum(value::numeric) FROM jsonb_each_text(to_jsonb(entry)) WHERE key LIKE ''%\_tokens'')'
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
        'SELECT COALESCE(sum(%s), 0) FROM ledger_entries AS entry WHERE occurred_at >= $1 AND occurred_at < $2 AND %s',
        amount, condition
    ) INTO total USING first, before;
    RETURN total;
END
$$;
COMMENT ON FUNCTION llmproxy_ledger_sum(json, timestamptz, timestamptz) IS
    'What the ledger has of a share, {unit, column: value…}, in a span of time; an empty value stands for null.';

-- Taking and giving back

CREATE TYPE quota_want AS (
    number integer,
    allowance text,
    bucket timestamptz,
    since timestamptz,
    until timestamptz,
    step interval,
    expires_at timestamptz,
    cap numeric,
    least numeric,
    wanted numeric,
    extra numeric,
    given_back numeric,
    share json
);
COMMENT ON TYPE quota_want IS
    'number: the caller''s, for the answer; least: what is of any use; wanted: what is needed now; extra: what else would '
    'be taken; share: what of the ledger it is held to, and if that is null, an allowance that is used up once taken.';

CREATE FUNCTION llmproxy_open_quota(want quota_want) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    earlier timestamptz;
    known boolean;
BEGIN
    SELECT is_opened INTO known FROM quota_buckets WHERE allowance = want.allowance AND bucket = want.bucket;
    IF known THEN
        RETURN;
    END IF;
    INSERT INTO quota_buckets (allowance, bucket, settled, is_opened, expires_at)
    VALUES (
        want.allowance, want.bucket,
        CASE WHEN want.share IS NULL THEN 0
            ELSE llmproxy_ledger_sum(want.share, want.bucket, COALESCE(want.bucket + want.step, want.until)) END,
        true, want.expires_at
    )
    ON CONFLICT (allowance, bucket) DO UPDATE
    SET settled = EXCLUDED.settled, is_opened = true, expires_at = EXCLUDED.expires_at;
    IF want.step IS NULL OR want.share IS NULL
        OR EXISTS (SELECT FROM quota_allowances WHERE name = want.allowance AND opened_at IS NOT NULL) THEN
        RETURN;
    END IF;
    UPDATE quota_allowances SET opened_at = now() WHERE name = want.allowance;
    FOR earlier IN SELECT generate_series(want.since, want.bucket - want.step, want.step) LOOP
        INSERT INTO quota_buckets (allowance, bucket, settled, is_opened, expires_at)
        VALUES (
            want.allowance, earlier, llmproxy_ledger_sum(want.share, earlier, earlier + want.step),
            true, want.expires_at
        )
        ON CONFLICT (allowance, bucket) DO UPDATE SET settled = EXCLUDED.settled, is_opened = true;
    END LOOP;
END
$$;
COMMENT ON FUNCTION llmproxy_open_quota(quota_want) IS
    'Has a bucket begin with what the ledger holds of it. Right at any time, for charges come with their ledger rows.';

CREATE FUNCTION llmproxy_give_back(holder_id text, want quota_want) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    returned numeric := want.given_back;
BEGIN
    IF want.share IS NULL THEN
        UPDATE quota_buckets SET settled = greatest(settled - returned, 0)
        WHERE allowance = want.allowance AND bucket = want.bucket;
        RETURN;
    END IF;
    SELECT least(returned, leased) INTO returned FROM quota_leases
    WHERE allowance = want.allowance AND bucket = want.bucket AND holder = holder_id;
    IF FOUND THEN
        UPDATE quota_leases SET leased = leased - returned
        WHERE allowance = want.allowance AND bucket = want.bucket AND holder = holder_id;
        UPDATE quota_buckets SET leased = leased - returned
        WHERE allowance = want.allowance AND bucket = want.bucket;
    END IF;
END
$$;
COMMENT ON FUNCTION llmproxy_give_back(text, quota_want) IS 'Takes back what a worker has leased and does not need.';

CREATE FUNCTION llmproxy_take(holder_id text, want quota_want, granted numeric) RETURNS void LANGUAGE sql AS $$
    INSERT INTO quota_leases (allowance, bucket, holder, leased)
    SELECT want.allowance, want.bucket, holder_id, granted WHERE want.share IS NOT NULL
    ON CONFLICT (allowance, bucket, holder) DO UPDATE SET leased = quota_leases.leased + EXCLUDED.leased;
    UPDATE quota_buckets SET
        settled = settled + CASE WHEN want.share IS NULL THEN granted ELSE 0 END,
        leased = leased + CASE WHEN want.share IS NULL THEN 0 ELSE granted END
    WHERE allowance = want.allowance AND bucket = want.bucket;
$$;
COMMENT ON FUNCTION llmproxy_take(text, quota_want, numeric) IS 'Notes what was granted.';

CREATE FUNCTION llmproxy_grant(holder_id text, want quota_want) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    used record;
    elsewhere numeric;
    room numeric;
    spare numeric;
    granted numeric := 0;
BEGIN
    INSERT INTO quota_allowances (name) VALUES (want.allowance)
    ON CONFLICT (name) DO UPDATE SET name = EXCLUDED.name WHERE false;
    PERFORM llmproxy_open_quota(want);
    IF want.given_back > 0 THEN
        PERFORM llmproxy_give_back(holder_id, want);
    END IF;
    SELECT COALESCE(sum(settled), 0) AS settled, COALESCE(sum(leased), 0) AS leased INTO used FROM quota_buckets
    WHERE allowance = want.allowance AND bucket >= want.since AND bucket < want.until;
    -- Without leases nobody knows how much of what was taken lies idle.
    elsewhere := CASE WHEN want.share IS NULL THEN used.settled ELSE used.leased - COALESCE((
        SELECT leased FROM quota_leases
        WHERE allowance = want.allowance AND bucket = want.bucket AND holder = holder_id
    ), 0) END;
    room := want.cap - used.settled - used.leased;
    IF room >= want.wanted THEN
        -- An eighth of the rest at most, so that slices shrink as it runs out, down to the one request.
        spare := trunc(least(want.extra, (room - want.wanted) / 8), 9);
        granted := want.wanted + CASE WHEN spare >= want.least THEN spare ELSE 0 END;
    ELSIF room >= want.least THEN
        granted := room;
    ELSIF want.least > 0 AND elsewhere > 0 THEN
        PERFORM pg_notify('llmproxy_quotas', want.allowance);
    END IF;
    IF granted > 0 THEN
        PERFORM llmproxy_take(holder_id, want, granted);
    END IF;
    RETURN json_build_object(
        'number', want.number, 'granted', granted::text, 'settled', used.settled::text,
        'leased', used.leased::text, 'elsewhere', elsewhere::text
    );
END
$$;
COMMENT ON FUNCTION llmproxy_grant(text, quota_want) IS
    'One slice of one allowance, or nothing, and how it stood before. When others hold what is lacking, they are told.';

CREATE FUNCTION llmproxy_lease(
    holder_id text, machine_name text, call_number bigint, begins_anew boolean, wants json
) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    earlier record;
    want quota_want;
    answers json[] := '{}';
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
        answers := answers || llmproxy_grant(holder_id, want);
    END LOOP;
    UPDATE quota_holders SET last_call = call_number, answer = array_to_json(answers), seen_at = now()
    WHERE holder = holder_id;
    RETURN array_to_json(answers);
END
$$;
COMMENT ON FUNCTION llmproxy_lease(text, text, bigint, boolean, json) IS
    'Slices of allowances for a worker, null when the worker was written off.';

-- Settling

CREATE FUNCTION llmproxy_settle_quotas(charges json) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO quota_allowances (name)
    SELECT DISTINCT allowance FROM json_to_recordset(charges) AS charge (allowance text) ORDER BY 1
    ON CONFLICT (name) DO UPDATE SET name = EXCLUDED.name WHERE false;
    INSERT INTO quota_buckets (allowance, bucket, settled)
    SELECT allowance, bucket, sum(amount)
    FROM json_to_recordset(charges) AS charge (allowance text, bucket timestamptz, amount numeric)
    GROUP BY allowance, bucket
    ON CONFLICT (allowance, bucket) DO UPDATE SET settled = quota_buckets.settled + EXCLUDED.settled;
    -- A lease that was written off in the meantime has nothing to give.
    WITH used AS (
        SELECT allowance, bucket, holder, sum(leased) AS amount
        FROM json_to_recordset(charges) AS charge (allowance text, bucket timestamptz, holder text, leased numeric)
        GROUP BY allowance, bucket, holder
    ), taken AS (
        SELECT allowance, bucket, holder, least(used.amount, lease.leased) AS amount
        FROM used JOIN quota_leases AS lease USING (allowance, bucket, holder)
    ), lowered AS (
        UPDATE quota_leases AS lease SET leased = lease.leased - taken.amount
        FROM taken
        WHERE (lease.allowance, lease.bucket, lease.holder) = (taken.allowance, taken.bucket, taken.holder)
    )
    UPDATE quota_buckets AS used_up SET leased = used_up.leased - freed.amount
    FROM (SELECT allowance, bucket, sum(amount) AS amount FROM taken GROUP BY allowance, bucket) AS freed
    WHERE (used_up.allowance, used_up.bucket) = (freed.allowance, freed.bucket);
END
$$;
COMMENT ON FUNCTION llmproxy_settle_quotas(json) IS
    'Turns leased into settled: belongs into the transaction that writes the ledger rows of the same requests.';

CREATE FUNCTION llmproxy_release_leases(holder_id text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    lease record;
    returned numeric;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('llmproxy quotas ' || holder_id, 0));
    INSERT INTO quota_holders (holder, machine, last_call, released_at) VALUES (holder_id, '', 0, now())
    ON CONFLICT (holder) DO UPDATE SET released_at = now();
    FOR lease IN SELECT allowance, bucket FROM quota_leases WHERE holder = holder_id ORDER BY allowance, bucket LOOP
        PERFORM FROM quota_allowances WHERE name = lease.allowance FOR UPDATE;
        DELETE FROM quota_leases
        WHERE allowance = lease.allowance AND bucket = lease.bucket AND holder = holder_id
        RETURNING leased INTO returned;
        UPDATE quota_buckets SET leased = leased - COALESCE(returned, 0)
        WHERE allowance = lease.allowance AND bucket = lease.bucket;
    END LOOP;
END
$$;
COMMENT ON FUNCTION llmproxy_release_leases(text) IS
    'Gives back all that a worker holds: once everything it has used is settled, or when it is written off.';
