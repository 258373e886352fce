-- name: list_keys
SELECT id, workspace, name, key_sha256, models, feature, user_id, expires_at, revoked_at FROM virtual_keys;

-- name: list_workspaces
SELECT id, models, region, bodies, created_at FROM workspaces ORDER BY id;

-- name: page_of_keys
SELECT * FROM virtual_keys
WHERE ($1::text IS NULL OR workspace = $1)
    AND ($2::text IS NULL OR (created_at, id) > (SELECT created_at, id FROM virtual_keys WHERE id = $2))
ORDER BY created_at, id
LIMIT $3;

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
INSERT INTO workspaces (id, models, region, bodies)
VALUES ($1, $2, $3, $4)
ON CONFLICT (id) DO UPDATE SET models = excluded.models, region = excluded.region, bodies = excluded.bodies
RETURNING id, models, region, bodies, created_at;

-- name: delete_workspace
DELETE FROM workspaces WHERE id = $1;
