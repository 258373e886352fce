-- name: list_requests
SELECT
    id, admitted_at, operation_name, is_stream, workspace, key_id, feature, user_id, session_id, request_model,
    provider_name, response_model, outcome, http_status, error_code, cache, attempts, duration_seconds,
    first_chunk_seconds,
    uncached_input_tokens + cache_read_input_tokens + cache_write_5m_input_tokens + cache_write_1h_input_tokens
        + audio_input_tokens + COALESCE(cache_read_audio_input_tokens, 0) + COALESCE(image_input_tokens, 0)
        AS input_tokens,
    text_output_tokens + reasoning_output_tokens + audio_output_tokens + COALESCE(image_output_tokens, 0)
        AS output_tokens,
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
