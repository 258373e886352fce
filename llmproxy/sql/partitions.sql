-- name: create_partitions
SELECT llmproxy_create_partitions($1::date, $2::date);

-- name: drop_partitions
SELECT llmproxy_drop_partitions($1::text, $2::date);

-- name: has_older_partitions
-- Names are compared, not dates made of them: the condition may be put to every relation there is.
SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent IN ('requests'::regclass, 'attempts'::regclass) AND right(relname, 8) < to_char($1::date, 'YYYYMMDD')
LIMIT 1;
