-- name: create_partitions
SELECT llmproxy_create_partitions($1::date, $2::date);

-- name: drop_partitions
SELECT llmproxy_drop_partitions($1::text, $2::date);
