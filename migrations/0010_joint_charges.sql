-- One charge may be to several allowances, of which the same was used.

CREATE TYPE quota_charge AS (allowance text, bucket timestamptz, holder text, amount numeric, leased numeric);

CREATE OR REPLACE FUNCTION llmproxy_settle_quotas(charges json) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    -- One for each lease that was used.
    charged quota_charge[] := ARRAY(
        SELECT ROW (part.allowance, part.bucket, charge.holder, sum(charge.amount), sum(charge.leased))::quota_charge
        FROM json_to_recordset(charges) AS charge
            (holder text, "of" json, amount numeric, leased numeric, allowance text, bucket timestamptz)
        -- Journals from before this migration have a charge for each allowance.
        CROSS JOIN json_to_recordset(
            COALESCE(charge."of", json_build_array(json_build_object('allowance', charge.allowance, 'bucket', charge.bucket)))
        ) AS part (allowance text, bucket timestamptz)
        GROUP BY part.allowance, part.bucket, charge.holder
    );
BEGIN
    INSERT INTO quota_allowances (name)
    SELECT DISTINCT allowance FROM unnest(charged) ORDER BY 1
    ON CONFLICT (name) DO UPDATE SET name = EXCLUDED.name WHERE false;
    INSERT INTO quota_buckets (allowance, bucket, settled)
    SELECT allowance, bucket, sum(amount) FROM unnest(charged) GROUP BY allowance, bucket
    ON CONFLICT (allowance, bucket) DO UPDATE SET settled = quota_buckets.settled + EXCLUDED.settled;
    -- A lease that was written off in the meantime has nothing to give.
    WITH taken AS (
        SELECT allowance, bucket, holder, least(used.leased, lease.leased) AS amount
        FROM unnest(charged) AS used JOIN quota_leases AS lease USING (allowance, bucket, holder)
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
