-- Who may ask

CREATE TABLE workspaces (
    id text PRIMARY KEY CHECK (id <> ''),
    models text[] NOT NULL DEFAULT '{*}',
    region text,
    bodies text CHECK (bodies IN ('none', 'requests', 'responses', 'all')),
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE workspaces IS 'Tenants made through the admin API; others live in the configuration file.';
COMMENT ON COLUMN workspaces.models IS 'Shell-style patterns over model names that its keys may use.';
COMMENT ON COLUMN workspaces.region IS 'Where its requests have to stay; null means anywhere.';
COMMENT ON COLUMN workspaces.bodies IS 'Which bodies the audit keeps; null means what the configuration says.';

-- No reference to workspaces: a key may belong to one that only the configuration file knows.
CREATE TABLE virtual_keys (
    id text PRIMARY KEY CHECK (id <> ''),
    workspace text NOT NULL,
    name text NOT NULL DEFAULT '',
    key_sha256 text NOT NULL UNIQUE CHECK (key_sha256 ~ '^[0-9a-f]{64}$'),
    key_hint text NOT NULL,
    models text[] NOT NULL DEFAULT '{*}',
    feature text,
    user_id text,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX virtual_keys_workspace ON virtual_keys (workspace);
COMMENT ON TABLE virtual_keys IS 'Keys that clients send; the key itself is never stored.';
COMMENT ON COLUMN virtual_keys.key_sha256 IS 'SHA-256 of the whole key, 64 lower-case hexadecimal digits.';
COMMENT ON COLUMN virtual_keys.key_hint IS 'First characters of the key, for a person to recognise it by.';
COMMENT ON COLUMN virtual_keys.models IS 'Shell-style patterns over model names; the workspace''s must allow a model too.';
COMMENT ON COLUMN virtual_keys.feature IS 'When set, wins over the feature that a client claims.';
COMMENT ON COLUMN virtual_keys.user_id IS 'When set, wins over the user that a client claims.';

CREATE FUNCTION llmproxy_notify_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify(TG_ARGV[0], CASE TG_OP WHEN 'DELETE' THEN OLD.id ELSE NEW.id END);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION llmproxy_notify_change() IS 'Tells every worker the id of the row that changed, on the channel given.';

CREATE TRIGGER workspaces_notify AFTER INSERT OR UPDATE OR DELETE ON workspaces
    FOR EACH ROW EXECUTE FUNCTION llmproxy_notify_change('llmproxy_workspaces');
CREATE TRIGGER virtual_keys_notify AFTER INSERT OR UPDATE OR DELETE ON virtual_keys
    FOR EACH ROW EXECUTE FUNCTION llmproxy_notify_change('llmproxy_keys');

-- What was asked, what was tried, what it cost

CREATE TABLE requests (
    id uuid NOT NULL,
    admitted_at timestamptz NOT NULL,
    operation_name text NOT NULL,
    path text NOT NULL,
    is_stream boolean NOT NULL DEFAULT false,
    workspace text NOT NULL,
    key_id text,
    feature text,
    user_id text,
    session_id text,
    prompt_version text,
    tags text[] NOT NULL DEFAULT '{}',
    metadata jsonb NOT NULL DEFAULT '{}',
    trace_id text,
    request_model text,
    provider_name text,
    response_model text,
    region text,
    outcome text NOT NULL CHECK (outcome IN ('succeeded', 'refused', 'failed', 'disconnected', 'interrupted')),
    http_status integer,
    error_type text,
    error_code text,
    error_message text,
    finish_reasons text[] NOT NULL DEFAULT '{}',
    cache text,
    attempts integer NOT NULL DEFAULT 0,
    duration_seconds double precision,
    first_chunk_seconds double precision,
    request_bytes bigint,
    response_bytes bigint,
    uncached_input_tokens bigint NOT NULL DEFAULT 0,
    cache_read_input_tokens bigint NOT NULL DEFAULT 0,
    cache_write_5m_input_tokens bigint NOT NULL DEFAULT 0,
    cache_write_1h_input_tokens bigint NOT NULL DEFAULT 0,
    audio_input_tokens bigint NOT NULL DEFAULT 0,
    text_output_tokens bigint NOT NULL DEFAULT 0,
    reasoning_output_tokens bigint NOT NULL DEFAULT 0,
    audio_output_tokens bigint NOT NULL DEFAULT 0,
    usage_provenance text CHECK (usage_provenance IN ('measured', 'estimated', 'assumed')),
    cost_usd numeric,
    cost_provenance text CHECK (cost_provenance IN ('measured', 'estimated', 'assumed')),
    price_source text,
    decisions jsonb NOT NULL DEFAULT '[]',
    PRIMARY KEY (id, admitted_at)
) PARTITION BY RANGE (admitted_at);
CREATE INDEX requests_latest ON requests (admitted_at DESC);
CREATE INDEX requests_latest_of_workspace ON requests (workspace, admitted_at DESC);
COMMENT ON TABLE requests IS 'The audit: one row for every request that was let in.';
COMMENT ON COLUMN requests.outcome IS 'interrupted: the worker died before the request ended.';
COMMENT ON COLUMN requests.region IS 'The region of the target that answered, in the vendor''s own word.';
COMMENT ON COLUMN requests.cache IS 'What x-llmproxy-cache said; null when no cache took part.';
COMMENT ON COLUMN requests.attempts IS 'How many rows of attempts belong to it.';
COMMENT ON COLUMN requests.first_chunk_seconds IS 'From admission to the first byte of content sent to the client.';
COMMENT ON COLUMN requests.uncached_input_tokens IS 'The eight token classes are disjoint: their sum is the total.';
COMMENT ON COLUMN requests.usage_provenance IS 'measured by the provider, estimated by us, or assumed; null when there was no usage.';
COMMENT ON COLUMN requests.cost_usd IS 'Null when no price is known, which is not the same as free.';
COMMENT ON COLUMN requests.decisions IS 'Array of {by, what, why}: which rule decided what, in order.';

CREATE TABLE attempts (
    request_id uuid NOT NULL,
    admitted_at timestamptz NOT NULL,
    number integer NOT NULL,
    provider_name text NOT NULL,
    model text NOT NULL,
    region text,
    started_at timestamptz NOT NULL,
    duration_seconds double precision,
    first_chunk_seconds double precision,
    http_status integer,
    failure text,
    error_code text,
    error_message text,
    upstream_request_id text,
    finish_reasons text[] NOT NULL DEFAULT '{}',
    uncached_input_tokens bigint NOT NULL DEFAULT 0,
    cache_read_input_tokens bigint NOT NULL DEFAULT 0,
    cache_write_5m_input_tokens bigint NOT NULL DEFAULT 0,
    cache_write_1h_input_tokens bigint NOT NULL DEFAULT 0,
    audio_input_tokens bigint NOT NULL DEFAULT 0,
    text_output_tokens bigint NOT NULL DEFAULT 0,
    reasoning_output_tokens bigint NOT NULL DEFAULT 0,
    audio_output_tokens bigint NOT NULL DEFAULT 0,
    usage_provenance text CHECK (usage_provenance IN ('measured', 'estimated', 'assumed')),
    cost_usd numeric,
    cost_provenance text CHECK (cost_provenance IN ('measured', 'estimated', 'assumed')),
    PRIMARY KEY (request_id, admitted_at, number)
) PARTITION BY RANGE (admitted_at);
COMMENT ON TABLE attempts IS 'One row for each try at a provider.';
COMMENT ON COLUMN attempts.admitted_at IS 'The request''s, not the attempt''s, so that both lie in partitions of the same day.';
COMMENT ON COLUMN attempts.failure IS 'The class of the failure that failover decides by; null when the attempt succeeded.';
COMMENT ON COLUMN attempts.first_chunk_seconds IS 'From the start of the attempt.';
COMMENT ON COLUMN attempts.upstream_request_id IS 'The provider''s own id, to name in a support case.';

CREATE TABLE ledger_entries (
    request_id uuid NOT NULL,
    occurred_at timestamptz NOT NULL,
    entry integer NOT NULL DEFAULT 0,
    kind text NOT NULL CHECK (kind IN ('exchange', 'attempt', 'adjustment')),
    workspace text NOT NULL,
    key_id text,
    feature text,
    user_id text,
    operation_name text,
    request_model text,
    provider_name text,
    response_model text,
    uncached_input_tokens bigint NOT NULL DEFAULT 0,
    cache_read_input_tokens bigint NOT NULL DEFAULT 0,
    cache_write_5m_input_tokens bigint NOT NULL DEFAULT 0,
    cache_write_1h_input_tokens bigint NOT NULL DEFAULT 0,
    audio_input_tokens bigint NOT NULL DEFAULT 0,
    text_output_tokens bigint NOT NULL DEFAULT 0,
    reasoning_output_tokens bigint NOT NULL DEFAULT 0,
    audio_output_tokens bigint NOT NULL DEFAULT 0,
    usage_provenance text CHECK (usage_provenance IN ('measured', 'estimated', 'assumed')),
    amount_usd numeric,
    cost_provenance text CHECK (cost_provenance IN ('measured', 'estimated', 'assumed')),
    price_source text,
    PRIMARY KEY (request_id, occurred_at, entry)
) PARTITION BY RANGE (occurred_at);
CREATE INDEX ledger_entries_of_workspace ON ledger_entries (workspace, occurred_at);
COMMENT ON TABLE ledger_entries IS 'Append-only: what each exchange cost. Budgets are windows over it; it outlives the audit.';
COMMENT ON COLUMN ledger_entries.entry IS '0 for the exchange itself, counting up for adjustments to it.';
COMMENT ON COLUMN ledger_entries.amount_usd IS 'Null when no price is known, which is not the same as free.';
COMMENT ON COLUMN ledger_entries.price_source IS 'Where the price came from.';

CREATE TABLE request_bodies (
    request_id uuid NOT NULL,
    admitted_at timestamptz NOT NULL,
    request bytea,
    response bytea,
    request_truncated boolean NOT NULL DEFAULT false,
    response_truncated boolean NOT NULL DEFAULT false,
    PRIMARY KEY (request_id, admitted_at)
) PARTITION BY RANGE (admitted_at);
COMMENT ON TABLE request_bodies IS 'Bodies, where they are kept at all; apart from requests, to be dropped sooner.';
COMMENT ON COLUMN request_bodies.request IS 'As the guards left it, cut at audit.max_body_bytes.';

-- Partitions: one for each UTC day, named <table>_YYYYMMDD

CREATE FUNCTION llmproxy_create_partitions(first_day date, last_day date) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    parent text;
    child text;
    day date;
    created integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('llmproxy partitions', 0));
    FOREACH parent IN ARRAY ARRAY['requests', 'attempts', 'ledger_entries', 'request_bodies'] LOOP
        FOR day IN SELECT first_day + n FROM generate_series(0, last_day - first_day) AS n LOOP
            child := parent || '_' || to_char(day, 'YYYYMMDD');
            CONTINUE WHEN to_regclass(quote_ident(child)) IS NOT NULL;
            -- CREATE ... PARTITION OF would lock the parent against inserts; ATTACH does not.
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', child, parent);
            EXECUTE format(
                'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, child,
                to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00', to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00'
            );
            created := created + 1;
        END LOOP;
    END LOOP;
    RETURN created;
END
$$;
COMMENT ON FUNCTION llmproxy_create_partitions(date, date) IS
    'Makes the partitions of both days and all between that do not exist yet; returns how many. Safe to call at once from anywhere.';

-- lock_timeout: dropping has to wait for readers of the table, and inserts queue behind it; better to try again later.
CREATE FUNCTION llmproxy_drop_partitions(parent text, before date) RETURNS integer LANGUAGE plpgsql
SET lock_timeout = '2s' AS $$
DECLARE
    child regclass;
    dropped integer := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('llmproxy partitions', 0)) THEN
        RETURN 0;
    END IF;
    FOR child IN
        SELECT inhrelid::regclass FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = to_regclass(quote_ident(parent)) AND to_date(right(relname, 8), 'YYYYMMDD') < before
        ORDER BY relname
    LOOP
        EXECUTE format('DROP TABLE %s', child);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;
COMMENT ON FUNCTION llmproxy_drop_partitions(text, date) IS
    'Drops the partitions of one table that end before the day; returns how many. Does nothing while another call runs.';
