-- name: stored_contents
-- What links are made of, from the rows that the insertions gave back: nothing is looked for a second time, and the
-- worker sees of each request but 88 bytes.
, string_agg(
    uuid_send(id) || timestamptz_send(admitted_at)
        || sha256(convert_to(recorded.stored_row || COALESCE(made.stored_rows, ''), 'UTF8'))
        || sha256(convert_to(COALESCE(booked.stored_rows, ''), 'UTF8')),
    ''
) AS stored
FROM recorded
LEFT JOIN (
    SELECT request_id, string_agg(stored_row, '' ORDER BY number) AS stored_rows FROM attempted GROUP BY request_id
) AS made ON made.request_id = id
LEFT JOIN (
    SELECT request_id, string_agg(stored_row, '' ORDER BY entry) AS stored_rows FROM charged GROUP BY request_id
) AS booked ON booked.request_id = id

-- name: request_content
(
    SELECT ROW({requests})::text || COALESCE((
        SELECT string_agg(ROW({attempts})::text, '' ORDER BY attempts.number) FROM attempts
        WHERE attempts.request_id = wanted.id AND attempts.admitted_at = wanted.admitted_at
    ), '')
    FROM requests WHERE requests.id = wanted.id AND requests.admitted_at = wanted.admitted_at
)

-- name: ledger_content
-- Without adjustments, which are added later; the log vouches for those.
COALESCE((
    SELECT string_agg(ROW({ledger_entries})::text, '' ORDER BY ledger_entries.entry) FROM ledger_entries
    WHERE ledger_entries.request_id = wanted.id AND ledger_entries.occurred_at = wanted.admitted_at
        AND ledger_entries.kind <> 'adjustment'
), '')

-- name: insert_links
-- $6 is what `stored_contents` gave, $7 the hashes of the links, one behind the other as that is cheaper than an array.
INSERT INTO audit_chain (
    chain, number, recorded_at, request_id, admitted_at, request_sha256, ledger_sha256, link_sha256, signature
)
SELECT
    $1::uuid, $2::bigint + position, $3::timestamptz,
    id, timestamptz '2000-01-01 00:00:00+00' + microseconds * interval '1 microsecond',
    substr($6::bytea, 88 * position::integer - 63, 32), substr($6::bytea, 88 * position::integer - 31, 32),
    substr($7::bytea, 32 * position::integer - 31, 32),
    CASE WHEN position = cardinality($4::text[]) THEN $8::bytea END
FROM unnest($4::text[]::uuid[], $5::bigint[]) WITH ORDINALITY AS link (id, microseconds, position);

-- name: has_link
SELECT FROM audit_chain WHERE chain = $1 AND number = $2 AND admitted_at = $3::text::timestamptz;

-- name: links_of_chain
-- A page of links with what the tables hold of their requests now.
WITH wanted AS MATERIALIZED (
    SELECT *, request_id AS id FROM audit_chain
    WHERE chain = $1::uuid AND (number, admitted_at) > ($2::bigint, $3::timestamptz)
        AND recorded_at < COALESCE($4::timestamptz, 'infinity')
    ORDER BY number, admitted_at LIMIT $5
)
SELECT
    number, recorded_at, request_id, admitted_at, request_sha256, ledger_sha256, link_sha256, signature,
    {request} AS request,
    {ledger} AS ledger
FROM wanted ORDER BY number, admitted_at;

-- name: last_link_before
SELECT number, recorded_at, request_id, admitted_at, request_sha256, ledger_sha256, link_sha256, signature
FROM audit_chain WHERE chain = $1 AND recorded_at < $2 ORDER BY number DESC, admitted_at DESC LIMIT 1;

-- name: lock_log
-- A statement of its own: what is read after it has to see what the last holder wrote.
SELECT pg_advisory_xact_lock(hashtextextended('llmproxy audit log', 0));

-- name: head_of_log
SELECT number, entry_sha256 FROM audit_log ORDER BY number DESC LIMIT 1;

-- name: append_to_log
INSERT INTO audit_log (number, document, entry_sha256, key_id, signature) VALUES ($1, $2, $3, $4, $5);

-- name: page_of_log
SELECT number, document, entry_sha256, key_id, signature FROM audit_log WHERE number > $1 ORDER BY number LIMIT $2;

-- name: partition_days
SELECT DISTINCT to_date(right(inhrelid::regclass::text, 8), 'YYYYMMDD') AS day FROM pg_inherits
WHERE inhparent IN (
        'requests'::regclass, 'attempts'::regclass, 'ledger_entries'::regclass, 'audit_chain'::regclass,
        'request_bodies'::regclass
    ) AND inhrelid::regclass::text ~ '_[0-9]{8}$'
ORDER BY day;

-- name: chains_of_day
SELECT DISTINCT ON (chain) chain, number, request_id FROM audit_chain WHERE admitted_at >= $1 AND admitted_at < $2
ORDER BY chain, number;

-- name: strays_of_day
-- Rows that no link has.
SELECT stray.found_in, stray.request_id FROM (
    SELECT 'requests' AS found_in, id AS request_id, admitted_at AS at FROM requests
    WHERE admitted_at >= $1 AND admitted_at < $2
    UNION ALL
    SELECT 'attempts', request_id, admitted_at FROM attempts WHERE admitted_at >= $1 AND admitted_at < $2
    UNION ALL
    SELECT 'ledger_entries', request_id, occurred_at FROM ledger_entries WHERE occurred_at >= $1 AND occurred_at < $2
) AS stray
WHERE NOT EXISTS (
    SELECT FROM audit_chain AS link
    WHERE link.request_id = stray.request_id AND link.admitted_at = stray.at
        AND link.admitted_at >= $1 AND link.admitted_at < $2
)
ORDER BY stray.at, stray.request_id
LIMIT $3;

-- name: erase_bodies
WITH erased AS (
    DELETE FROM request_bodies AS body USING requests AS request
    WHERE request.id = body.request_id AND request.admitted_at = body.admitted_at
        AND request.workspace = $1 AND ($2::text IS NULL OR request.user_id = $2)
        AND body.admitted_at >= $3 AND body.admitted_at < $4 AND request.admitted_at >= $3 AND request.admitted_at < $4
    RETURNING body.request_id
)
SELECT count(*) AS bodies FROM erased;
