-- name: contents_of_batch
-- What links are made of: the rows of these requests, which are of one day, as they are stored, and the place of each,
-- all in one row since that is cheapest for the worker. With it goes whether the last link that was made before has been
-- committed. Partitions are named, for finding them among hundreds costs more than all the rest.
SELECT
    array_agg(convert_to({request}, 'UTF8') ORDER BY wanted.position) AS requests,
    array_agg(convert_to({ledger}, 'UTF8') ORDER BY wanted.position) AS ledgers,
    array_agg(uuid_send(wanted.id) || timestamptz_send(wanted.admitted_at) ORDER BY wanted.position) AS places,
    EXISTS (
        SELECT FROM audit_chain{written_day}
        WHERE chain = $3::uuid AND number = $4::bigint AND admitted_at = $5::text::timestamptz
    ) AS is_committed
FROM unnest($1::text[]::uuid[], $2::text[]::timestamptz[]) WITH ORDINALITY AS wanted (id, admitted_at, position);

-- name: request_content
(
    SELECT json_build_array(
        json_build_array({requests}),
        array_to_json(ARRAY(
            SELECT json_build_array({attempts}) FROM attempts{day} AS attempts
            WHERE attempts.request_id = wanted.id AND attempts.admitted_at = wanted.admitted_at
            ORDER BY attempts.number
        ))
    )::text
    FROM requests{day} AS requests
    WHERE requests.id = wanted.id AND requests.admitted_at = wanted.admitted_at
)

-- name: ledger_content
-- Without adjustments, which are added later; the log vouches for those.
array_to_json(ARRAY(
    SELECT json_build_array({ledger_entries}) FROM ledger_entries{day} AS ledger_entries
    WHERE ledger_entries.request_id = wanted.id AND ledger_entries.occurred_at = wanted.admitted_at
        AND ledger_entries.kind <> 'adjustment'
    ORDER BY ledger_entries.entry
))::text

-- name: insert_links
INSERT INTO audit_chain (
    chain, number, recorded_at, request_id, admitted_at, request_sha256, ledger_sha256, link_sha256, signature
)
SELECT
    $1::uuid, $2::bigint + position, $3::timestamptz, id, admitted_at, request_sha256, ledger_sha256, link_sha256,
    CASE WHEN position = cardinality($4::text[]) THEN $9::bytea END
FROM unnest($4::text[]::uuid[], $5::text[]::timestamptz[], $6::bytea[], $7::bytea[], $8::bytea[]) WITH ORDINALITY
    AS link (id, admitted_at, request_sha256, ledger_sha256, link_sha256, position);

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
