-- name: stored_keys
-- What workers hold of each key: how to find it, and the rest as they read it when it is used.
SELECT
    id, key_sha256,
    json_build_object(
        'id', id, 'workspace', workspace, 'name', name, 'models', models, 'feature', feature, 'user_id', user_id,
        'expires_at', NULLIF(expires_at, 'infinity'), 'revoked_at', revoked_at
    )::text AS document
FROM virtual_keys WHERE {which};

-- name: stored_keys_after
id > $1 ORDER BY id LIMIT $2

-- name: stored_keys_named
id = ANY ($1)

-- name: stored_workspaces
SELECT id, models, region, bodies, bodies_retention_days FROM workspaces;

-- name: stored_workspaces_named
SELECT id, models, region, bodies, bodies_retention_days FROM workspaces WHERE id = ANY ($1);

-- name: page_of_workspaces
-- In the order of their bytes, as those of the configuration are put between them.
SELECT id, models, region, bodies, bodies_retention_days, created_at FROM workspaces
WHERE id COLLATE "C" > COALESCE($1, '')
ORDER BY id COLLATE "C"
LIMIT $2;

-- name: page_of_keys
SELECT * FROM virtual_keys
WHERE (created_at, id) > (COALESCE($1::timestamptz, '-infinity'), COALESCE($2::text, '')) {whose}
ORDER BY created_at, id
LIMIT $3;

-- name: keys_of_workspace
AND workspace = $4

-- name: find_key
SELECT * FROM virtual_keys WHERE id = $1;

-- name: create_key
INSERT INTO virtual_keys (id, workspace, name, key_sha256, key_hint, models, feature, user_id, metadata, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (key_sha256) DO NOTHING
RETURNING *;

-- name: update_key
-- Null leaves a column as it is; those that may become null have a flag in front of them.
UPDATE virtual_keys
SET name = COALESCE($2, name),
    models = COALESCE($3, models),
    feature = CASE WHEN $4::boolean THEN $5 ELSE feature END,
    user_id = CASE WHEN $6::boolean THEN $7 ELSE user_id END,
    metadata = COALESCE($8, metadata),
    expires_at = CASE WHEN $9::boolean THEN $10 ELSE expires_at END
WHERE id = $1
RETURNING *;

-- name: revoke_key
UPDATE virtual_keys SET revoked_at = COALESCE(revoked_at, now()) WHERE id = $1 RETURNING *;

-- name: lock_workspace
-- Keeps a workspace from being deleted while a key is made in it, and the other way round.
SELECT id FROM workspaces WHERE id = $1 FOR UPDATE;

-- name: count_active_keys
SELECT count(*) AS keys FROM virtual_keys
WHERE workspace = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now());

-- name: put_workspace
INSERT INTO workspaces (id, models, region, bodies, bodies_retention_days)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (id) DO UPDATE SET
    models = excluded.models, region = excluded.region, bodies = excluded.bodies,
    bodies_retention_days = excluded.bodies_retention_days
RETURNING id, models, region, bodies, bodies_retention_days, created_at;

-- name: delete_workspace
DELETE FROM workspaces WHERE id = $1;
