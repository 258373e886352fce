-- name: list_requests
-- With a condition for each thing that is asked for, and no other: one plan for all of them would be a poor one.
SELECT
    id, admitted_at, operation_name, is_stream, workspace, key_id, feature, user_id, session_id, origin, parent_id,
    request_model, provider_name, response_model, outcome, http_status, error_code, cache, attempts, duration_seconds,
    first_chunk_seconds,
    uncached_input_tokens + cache_read_input_tokens + cache_write_5m_input_tokens + cache_write_1h_input_tokens
        + audio_input_tokens + COALESCE(cache_read_audio_input_tokens, 0) + COALESCE(image_input_tokens, 0)
        AS input_tokens,
    text_output_tokens + reasoning_output_tokens + audio_output_tokens + COALESCE(image_output_tokens, 0)
        AS output_tokens,
    cost_usd, cost_provenance
FROM requests
WHERE true {conditions}
ORDER BY admitted_at DESC, id DESC
LIMIT $1;

-- name: requests_of_workspace
AND workspace = {value}

-- name: requests_of_model
AND {value} IN (request_model, response_model, provider_name || '/' || response_model)

-- name: requests_of_outcome
AND outcome = {value}

-- name: requests_since
AND admitted_at >= {value}

-- name: requests_until
AND admitted_at < {value}

-- name: requests_after
-- The first half says nothing new, but which partitions to look into.
AND admitted_at <= {value}::timestamptz AND (admitted_at, id) < ({value}, {id}::uuid)

-- name: find_request
-- The time that an id begins with leaves one partition to look in.
SELECT * FROM requests
WHERE id = $1 AND admitted_at >= $2::timestamptz AND admitted_at < $2::timestamptz + interval '1 millisecond';

-- name: attempts_of_request
SELECT * FROM attempts WHERE request_id = $1 AND admitted_at = $2 ORDER BY number;

-- name: bodies_of_request
SELECT request, response, request_truncated, response_truncated FROM request_bodies
WHERE request_id = $1 AND admitted_at = $2;
