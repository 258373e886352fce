-- name: create_partitions
SELECT llmproxy_create_partitions($1::date, $2::date);

-- name: drop_partitions
SELECT llmproxy_drop_partitions($1::text, $2::date);

-- name: has_older_partitions
SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent IN ('requests'::regclass, 'attempts'::regclass) AND to_date(right(relname, 8), 'YYYYMMDD') < $1::date
LIMIT 1;
