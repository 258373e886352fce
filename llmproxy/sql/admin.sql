-- name: list_requests
SELECT
    id, admitted_at, operation_name, is_stream, workspace, key_id, feature, user_id, session_id, request_model,
    provider_name, response_model, outcome, http_status, error_code, cache, attempts, duration_seconds,
    first_chunk_seconds,
    uncached_input_tokens + cache_read_input_tokens + cache_write_5m_input_tokens + cache_write_1h_input_tokens
        + audio_input_tokens AS input_tokens,
    text_output_tokens + reasoning_output_tokens + audio_output_tokens AS output_tokens,
    cost_usd, cost_provenance
FROM requests
WHERE ($1::text IS NULL OR workspace = $1)
    AND ($2::text IS NULL OR $2 IN (request_model, response_model, provider_name || '/' || response_model))
    AND ($3::text IS NULL OR outcome = $3)
    AND admitted_at >= COALESCE($4::timestamptz, '-infinity')
    AND admitted_at < COALESCE($5::timestamptz, 'infinity')
    AND ($6::timestamptz IS NULL OR (admitted_at, id) < ($6, $7::uuid))
ORDER BY admitted_at DESC, id DESC
LIMIT $8;

-- name: find_request
-- The time that an id begins with leaves one partition to look in.
SELECT * FROM requests
WHERE id = $1 AND admitted_at >= $2::timestamptz AND admitted_at < $2::timestamptz + interval '1 millisecond';

-- name: attempts_of_request
SELECT * FROM attempts WHERE request_id = $1 AND admitted_at = $2 ORDER BY number;

-- name: bodies_of_request
SELECT request, response, request_truncated, response_truncated FROM request_bodies
WHERE request_id = $1 AND admitted_at = $2;

-- name: spend
-- Groups and their total come from one statement, so that they agree whatever is written meanwhile.
SELECT
    grouping(entry_group) = 1 AS is_total,
    entry_group,
    count(*) FILTER (WHERE kind = 'exchange') AS requests,
    COALESCE(sum(input_tokens), 0)::bigint AS input_tokens,
    COALESCE(sum(output_tokens), 0)::bigint AS output_tokens,
    COALESCE(sum(amount_usd), 0) AS amount_usd,
    count(*) FILTER (WHERE kind = 'exchange' AND amount_usd IS NULL AND usage_provenance IS NOT NULL)
        AS unpriced_requests,
    count(*) FILTER (WHERE kind = 'exchange' AND COALESCE(cost_provenance, usage_provenance) <> 'measured')
        AS estimated_requests
FROM (
    SELECT
        CASE $1::text
            WHEN 'workspace' THEN workspace
            WHEN 'feature' THEN feature
            WHEN 'user' THEN user_id
            WHEN 'model' THEN COALESCE(provider_name || '/' || response_model, request_model)
            WHEN 'key' THEN key_id
            WHEN 'provider' THEN provider_name
        END AS entry_group,
        kind, amount_usd, usage_provenance, cost_provenance,
        uncached_input_tokens + cache_read_input_tokens + cache_write_5m_input_tokens + cache_write_1h_input_tokens
            + audio_input_tokens AS input_tokens,
        text_output_tokens + reasoning_output_tokens + audio_output_tokens AS output_tokens
    FROM ledger_entries
    WHERE occurred_at >= COALESCE($2::timestamptz, '-infinity') AND occurred_at < COALESCE($3::timestamptz, 'infinity')
) AS entries
GROUP BY GROUPING SETS ((entry_group), ())
ORDER BY is_total DESC, amount_usd DESC, entry_group
LIMIT $4;
