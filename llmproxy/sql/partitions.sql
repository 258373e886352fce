-- name: create_partitions
SELECT llmproxy_create_partitions($1::date, $2::date);

-- name: drop_partitions
SELECT llmproxy_drop_partitions($1::text, $2::date);

-- name: has_older_partitions
-- Names are compared, not dates made of them: the condition may be put to every relation there is.
SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent IN ('requests'::regclass, 'attempts'::regclass) AND right(relname, 8) < to_char($1::date, 'YYYYMMDD')
LIMIT 1;

-- name: days_of_bodies
SELECT to_date(right(inhrelid::regclass::text, 8), 'YYYYMMDD') AS day FROM pg_inherits
WHERE inhparent = 'request_bodies'::regclass AND inhrelid::regclass::text ~ '_[0-9]{8}$'
ORDER BY day;

-- name: body_days_of_workspaces
SELECT id, bodies_retention_days FROM workspaces;

-- name: expire_bodies
-- Those of the workspaces named, or of all others, of one UTC day.
WITH expired AS (
    SELECT body.request_id, body.admitted_at FROM request_bodies AS body
    JOIN requests AS request ON request.id = body.request_id AND request.admitted_at = body.admitted_at
    WHERE body.admitted_at >= $1::date AND body.admitted_at < $1::date + 1
        AND request.admitted_at >= $1::date AND request.admitted_at < $1::date + 1
        AND (request.workspace = ANY ($2::text[])) = $3::boolean
    LIMIT $4
), erased AS (
    DELETE FROM request_bodies AS body USING expired
    WHERE body.request_id = expired.request_id AND body.admitted_at = expired.admitted_at
        AND body.admitted_at >= $1::date AND body.admitted_at < $1::date + 1
    RETURNING 1
)
SELECT count(*) AS bodies FROM erased;
