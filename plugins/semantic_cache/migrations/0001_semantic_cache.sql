DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector') THEN
        RAISE EXCEPTION 'the plugin semantic_cache needs the extension pgvector, which this server does not have; '
            'install it there, or disable the plugin';
    END IF;
END
$$;
CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE semantic_cache_entries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workspace text NOT NULL,
    model text NOT NULL,
    scope bytea NOT NULL,
    question bytea NOT NULL,
    embedding vector NOT NULL,
    body bytea NOT NULL,
    provider text NOT NULL,
    target text NOT NULL,
    tokens bigint NOT NULL,
    cost_usd numeric,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    UNIQUE (workspace, scope, question)
);
CREATE INDEX semantic_cache_entries_by_age ON semantic_cache_entries (workspace, created_at, id);
CREATE INDEX semantic_cache_entries_by_end ON semantic_cache_entries (expires_at);
COMMENT ON TABLE semantic_cache_entries IS 'Answers, found by how near two questions are that agree in all else.';
COMMENT ON COLUMN semantic_cache_entries.scope IS 'SHA-256 of all that must be the same: only within it are questions compared.';
COMMENT ON COLUMN semantic_cache_entries.question IS 'SHA-256 of the question, so that it is kept once.';

CREATE TABLE semantic_cache_purges (
    workspace text NOT NULL,
    model text NOT NULL,
    purged_at timestamptz NOT NULL,
    PRIMARY KEY (workspace, model)
);
COMMENT ON TABLE semantic_cache_purges IS 'The last purge of each scope, empty for any: no older request may be kept.';

CREATE TABLE semantic_cache_trials (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at timestamptz NOT NULL,
    workspace text NOT NULL,
    model text NOT NULL,
    similarity double precision,
    answer_similarity double precision,
    is_same boolean
);
CREATE INDEX semantic_cache_trials_by_age ON semantic_cache_trials (created_at);
COMMENT ON TABLE semantic_cache_trials IS 'What shadow mode would have done: how near the nearest question was, and its answer to the real one.';
COMMENT ON COLUMN semantic_cache_trials.is_same IS 'What the judge model said of the two answers; null when none was asked.';
