-- name: lease_quotas
SELECT llmproxy_lease($1, $2, $3, $4, $5::text::json) AS answers;

-- name: open_allowance
SELECT llmproxy_open_allowance($1::text::json);

-- name: settle_quotas
SELECT llmproxy_settle_quotas($1::text::json);

-- name: release_leases
SELECT llmproxy_release_leases($1);

-- name: forgotten_holders
SELECT holder FROM quota_holders WHERE released_at IS NULL AND seen_at < now() - $1::interval;

-- name: purge_quotas
WITH gone AS (
    DELETE FROM quota_buckets WHERE expires_at < now() - interval '1 day' AND leased = 0
    RETURNING allowance, bucket
), forgotten AS (
    DELETE FROM quota_holders WHERE released_at < now() - interval '1 day'
)
DELETE FROM quota_leases USING gone WHERE (quota_leases.allowance, quota_leases.bucket) = (gone.allowance, gone.bucket);

-- name: quota_usage
SELECT allowance, bucket, settled, leased FROM quota_buckets WHERE starts_with(allowance, $1) ORDER BY allowance, bucket;

-- name: settled_quotas
SELECT allowance, bucket, settled FROM quota_buckets WHERE allowance = ANY ($1);

-- name: quota_holders
SELECT holder, machine, seen_at, allowance, bucket, leased
FROM quota_holders JOIN quota_leases USING (holder)
WHERE starts_with(allowance, $1) AND leased > 0
ORDER BY allowance, bucket, holder;
