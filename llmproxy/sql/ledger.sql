-- name: spend
-- Groups and their total come from one statement, so that they agree whatever is written meanwhile. A row with several
-- tags is in a group for each, and in the total once: `is_first` is true for one of its copies.
SELECT
    grouping(is_first) = 0 AS is_total,
    {names},
    COALESCE(sum(requests), 0)::bigint AS requests,
    COALESCE(sum(input_tokens), 0)::bigint AS input_tokens,
    COALESCE(sum(output_tokens), 0)::bigint AS output_tokens,
    COALESCE(sum(amount_usd), 0) AS amount_usd,
    COALESCE(sum(estimated_usd), 0) AS estimated_usd,
    COALESCE(sum(assumed_usd), 0) AS assumed_usd,
    COALESCE(sum(adjusted_usd), 0) AS adjusted_usd,
    COALESCE(sum(unpriced_requests), 0)::bigint AS unpriced_requests,
    COALESCE(sum(unpriced_attempts), 0)::bigint AS unpriced_attempts,
    COALESCE(sum(estimated_requests), 0)::bigint AS estimated_requests
FROM (
    SELECT {names}, is_first, {figures}
    FROM (
        SELECT {groups}, {is_first} AS is_first, {charged}
        FROM ledger_entries AS entry {joins}
        WHERE entry.occurred_at >= COALESCE($1::timestamptz, '-infinity')
            AND entry.occurred_at < COALESCE($2::timestamptz, 'infinity') {condition} {rest}
    ) AS charged
    {sums}
) AS entries
GROUP BY GROUPING SETS (({names}), (is_first))
HAVING grouping(is_first) = 1 OR is_first
ORDER BY is_total DESC, amount_usd DESC, {names}
LIMIT $3::bigint;

-- name: charged
-- What figures are made of, of one entry.
entry.kind, entry.amount_usd, entry.usage_provenance, entry.cost_provenance,
entry.uncached_input_tokens + entry.cache_read_input_tokens + entry.cache_write_5m_input_tokens
    + entry.cache_write_1h_input_tokens + entry.audio_input_tokens
    + COALESCE(entry.cache_read_audio_input_tokens, 0) + COALESCE(entry.image_input_tokens, 0) AS input_tokens,
entry.text_output_tokens + entry.reasoning_output_tokens + entry.audio_output_tokens
    + COALESCE(entry.image_output_tokens, 0) AS output_tokens,
entry.amount_usd IS NULL AND entry.usage_provenance IS NOT NULL AND NOT EXISTS (
    SELECT FROM ledger_entries AS later
    WHERE later.request_id = entry.request_id AND later.occurred_at = entry.occurred_at
        AND later.kind = 'adjustment' AND later.provider_name = entry.provider_name
        AND later.response_model = entry.response_model
        AND later.occurred_at >= COALESCE($1::timestamptz, '-infinity')
        AND later.occurred_at < COALESCE($2::timestamptz, 'infinity')
) AS is_unpriced

-- name: figures
-- What is summed up, of one entry.
CASE WHEN kind = 'exchange' THEN 1 ELSE 0 END AS requests,
input_tokens,
output_tokens,
amount_usd,
CASE WHEN cost_provenance = 'estimated' THEN amount_usd END AS estimated_usd,
CASE WHEN cost_provenance = 'assumed' THEN amount_usd END AS assumed_usd,
CASE WHEN kind = 'adjustment' THEN amount_usd END AS adjusted_usd,
CASE WHEN kind = 'exchange' AND is_unpriced THEN 1 ELSE 0 END AS unpriced_requests,
CASE WHEN kind = 'attempt' AND is_unpriced THEN 1 ELSE 0 END AS unpriced_attempts,
CASE WHEN kind = 'exchange' AND COALESCE(cost_provenance, usage_provenance) <> 'measured' THEN 1 ELSE 0 END
    AS estimated_requests

-- name: spend_sums
UNION ALL
SELECT
    {groups}, true, requests, input_tokens, output_tokens, amount_usd, estimated_usd, assumed_usd, adjusted_usd,
    unpriced_requests, unpriced_attempts, estimated_requests
FROM ledger_sums AS entry
WHERE entry.dimension = '{dimension}' AND entry.day = ANY ({days}::date[]) {condition}

-- name: spend_beside_sums
AND (entry.occurred_at < {first}::timestamptz OR entry.occurred_at >= {before}::timestamptz)

-- name: summed_days
SELECT llmproxy_summed_days($1, $2) AS days;

-- name: unsummed_days
-- The days before one that have a partition and no sums.
SELECT to_date(right(relname, 8), 'YYYYMMDD') AS day
FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent = 'ledger_entries'::regclass AND right(relname, 8) < to_char($1::date, 'YYYYMMDD')
    AND NOT EXISTS (SELECT FROM ledger_summed_days WHERE to_char(day, 'YYYYMMDD') = right(relname, 8))
ORDER BY day;

-- name: try_to_sum_up
SELECT pg_try_advisory_xact_lock(hashtextextended('llmproxy ledger sums', 0)) AS is_alone;

-- name: hold_ledger_day
-- Whoever adds rows to the day waits, and then takes away the sums that do not have them; so nobody waits long for them.
SET LOCAL lock_timeout = '2s';
LOCK TABLE {partition} IN SHARE MODE;

-- name: summed_day
SELECT FROM ledger_summed_days WHERE day = $1;

-- name: sum_up_day
WITH summed AS (
    INSERT INTO ledger_summed_days (day) VALUES (($1::timestamptz AT TIME ZONE 'UTC')::date) RETURNING day
)
INSERT INTO ledger_sums (
    day, dimension, workspace, provider_name, model, feature, key_id, user_id, requests, input_tokens, output_tokens,
    amount_usd, estimated_usd, assumed_usd, adjusted_usd, unpriced_requests, unpriced_attempts, estimated_requests,
    charged_requests
)
SELECT
    (SELECT day FROM summed),
    CASE WHEN grouping(feature) = 0 THEN 'feature' WHEN grouping(key_id) = 0 THEN 'key' ELSE 'user' END,
    workspace, provider_name, model, feature, key_id, user_id, sum(requests), sum(input_tokens), sum(output_tokens),
    sum(amount_usd), sum(estimated_usd), sum(assumed_usd), sum(adjusted_usd), sum(unpriced_requests),
    sum(unpriced_attempts), sum(estimated_requests),
    count(*) FILTER (WHERE kind <> 'adjustment' AND usage_provenance IS NOT NULL)
FROM (
    SELECT workspace, provider_name, model, feature, key_id, user_id, kind, usage_provenance, {figures}
    FROM (
        SELECT entry.workspace, entry.provider_name, {model} AS model, entry.feature, entry.key_id, entry.user_id, {charged}
        FROM ledger_entries AS entry
        WHERE entry.occurred_at >= $1 AND entry.occurred_at < $2
    ) AS charged
) AS entries
GROUP BY workspace, provider_name, model, GROUPING SETS (feature, key_id, user_id);

-- name: spend_of_workspace
AND entry.workspace = $4

-- name: spend_by_workspace
entry.workspace

-- name: spend_by_feature
entry.feature

-- name: spend_by_user
entry.user_id

-- name: spend_by_model
COALESCE(entry.provider_name || '/' || entry.response_model, entry.request_model)

-- name: spend_by_key
entry.key_id

-- name: spend_by_provider
entry.provider_name

-- name: spend_by_day
(entry.occurred_at AT TIME ZONE 'UTC')::date

-- name: spend_by_tag
tagged.tag

-- name: spend_sums_by_workspace
entry.workspace

-- name: spend_sums_by_feature
entry.feature

-- name: spend_sums_by_model
entry.model

-- name: spend_sums_by_key
entry.key_id

-- name: spend_sums_by_user
entry.user_id

-- name: spend_sums_by_provider
entry.provider_name

-- name: spend_sums_by_day
entry.day

-- name: spend_join_tag
LEFT JOIN LATERAL (
    SELECT tag, row_number() OVER (ORDER BY tag) = 1 AS is_first FROM (SELECT DISTINCT unnest(entry.tags) AS tag) AS own
) AS tagged ON true

-- name: spend_first_tag
COALESCE(tagged.is_first, true)

-- name: spend_by_prompt_version
request.prompt_version

-- name: spend_join_prompt_version
-- What a request was sent with is known as long as its row is kept.
LEFT JOIN requests AS request ON request.id = entry.request_id AND request.admitted_at = entry.occurred_at
    AND request.admitted_at >= COALESCE($1::timestamptz, '-infinity')
    AND request.admitted_at < COALESCE($2::timestamptz, 'infinity')

-- name: ledger_days
-- The days that have a partition, of those that reach into a span. Names are compared, not dates made of them: the
-- condition may be put to every relation there is.
SELECT to_date(right(relname, 8), 'YYYYMMDD') AS day
FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent = 'ledger_entries'::regclass
    AND right(relname, 8) >= COALESCE(to_char($1::timestamptz AT TIME ZONE 'UTC', 'YYYYMMDD'), '')
    AND right(relname, 8) <= COALESCE(to_char($2::timestamptz AT TIME ZONE 'UTC', 'YYYYMMDD'), '99999999')
ORDER BY day;

-- name: ledger_snapshot
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;

-- name: ledger_page
-- Within one day the primary key's own order.
SELECT {columns} FROM ledger_entries
WHERE occurred_at >= $1 AND occurred_at < $2 AND (request_id, occurred_at) > ($3::uuid, $4::timestamptz)
ORDER BY request_id, occurred_at, entry
LIMIT $5;

-- name: started_at
-- An attempt is priced as of its beginning, which is known as long as the audit has it. Of the attempts of the entry for
-- the exchange the one that answered counts, else the last.
COALESCE((
    SELECT started_at FROM attempts
    WHERE attempts.request_id = ledger_entries.request_id AND attempts.admitted_at = ledger_entries.occurred_at
        AND attempts.admitted_at >= $1 AND attempts.admitted_at < $2
        AND attempts.provider_name = ledger_entries.provider_name AND attempts.model = ledger_entries.response_model
        AND (ledger_entries.entry = 0 OR attempts.number = ledger_entries.entry)
    ORDER BY attempts.failure IS NULL DESC, attempts.number DESC
    LIMIT 1
), occurred_at) AS started_at

-- name: lock_adjusting
SELECT pg_advisory_xact_lock(hashtextextended('llmproxy adjustments', 0));

-- name: insert_adjustments
INSERT INTO ledger_entries (
    request_id, occurred_at, entry, kind, workspace, key_id, feature, user_id, operation_name, request_model,
    provider_name, response_model, usage_provenance, amount_usd, cost_provenance, price_source, tags, service_tier,
    service_region
)
SELECT
    base.request_id, base.occurred_at, adjustment.entry, 'adjustment', base.workspace, base.key_id, base.feature,
    base.user_id, base.operation_name, base.request_model, base.provider_name, base.response_model,
    base.usage_provenance, adjustment.amount_usd, adjustment.cost_provenance, adjustment.price_source, base.tags,
    base.service_tier, base.service_region
FROM unnest($3::uuid[], $4::timestamptz[], $5::integer[], $6::integer[], $7::numeric[], $8::text[], $9::text[])
    AS adjustment (request_id, occurred_at, of_entry, entry, amount_usd, cost_provenance, price_source)
JOIN ledger_entries AS base ON base.request_id = adjustment.request_id AND base.occurred_at = adjustment.occurred_at
    AND base.entry = adjustment.of_entry
WHERE base.occurred_at >= $1 AND base.occurred_at < $2;

-- name: recount_quotas
SELECT llmproxy_recount_quotas($1::timestamptz, $2::timestamptz);

-- name: adjustments_of_day
SELECT
    count(*) AS adjustments,
    COALESCE(sum(amount_usd), 0) AS amount_usd,
    encode(sha256(COALESCE(string_agg(
        sha256(convert_to(json_build_array(
            request_id, occurred_at, entry, workspace, key_id, feature, user_id, operation_name, request_model,
            provider_name, response_model, usage_provenance, amount_usd, cost_provenance, price_source, tags
        )::text, 'UTF8')), '' ORDER BY request_id, occurred_at, entry
    ), '')), 'hex') AS sha256
FROM ledger_entries
WHERE kind = 'adjustment' AND occurred_at >= $1 AND occurred_at < $2;

-- name: provider_spend
SELECT
    (occurred_at AT TIME ZONE 'UTC')::date AS day,
    response_model AS model,
    sum(
        uncached_input_tokens + cache_read_input_tokens + cache_write_5m_input_tokens + cache_write_1h_input_tokens
            + audio_input_tokens + COALESCE(cache_read_audio_input_tokens, 0) + COALESCE(image_input_tokens, 0)
    )::bigint AS input_tokens,
    sum(
        text_output_tokens + reasoning_output_tokens + audio_output_tokens + COALESCE(image_output_tokens, 0)
    )::bigint AS output_tokens,
    COALESCE(sum(amount_usd), 0) AS amount_usd,
    count(*) FILTER (WHERE amount_usd IS NULL AND usage_provenance IS NOT NULL AND NOT EXISTS (
        SELECT FROM ledger_entries AS later
        WHERE later.request_id = entry.request_id AND later.occurred_at = entry.occurred_at
            AND later.kind = 'adjustment' AND later.provider_name = $1 AND later.response_model = entry.response_model
            AND later.occurred_at >= $2 AND later.occurred_at < $3
    )) AS unpriced
FROM ledger_entries AS entry
WHERE provider_name = $1 AND occurred_at >= $2 AND occurred_at < $3
GROUP BY day, model
ORDER BY day, model;
