-- Keys are listed page by page, oldest first: all of them, or a workspace's

CREATE INDEX virtual_keys_oldest ON virtual_keys (created_at, id);
CREATE INDEX virtual_keys_oldest_of_workspace ON virtual_keys (workspace, created_at, id);
DROP INDEX virtual_keys_workspace;

-- Sums over whole days of the ledger, made from its rows and from nothing else

CREATE TABLE ledger_summed_days (
    day date PRIMARY KEY
);
COMMENT ON TABLE ledger_summed_days IS 'UTC days whose ledger_sums hold what the rows of the day add up to; gone as soon as a row is added.';

CREATE TABLE ledger_sums (
    day date NOT NULL REFERENCES ledger_summed_days ON DELETE CASCADE,
    workspace text NOT NULL,
    feature text,
    provider_name text,
    model text,
    requests bigint NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    amount_usd numeric,
    estimated_usd numeric,
    assumed_usd numeric,
    adjusted_usd numeric,
    unpriced_requests bigint NOT NULL,
    unpriced_attempts bigint NOT NULL,
    estimated_requests bigint NOT NULL
);
CREATE INDEX ledger_sums_of_workspace ON ledger_sums (workspace, day);
CREATE INDEX ledger_sums_of_day ON ledger_sums (day);
COMMENT ON TABLE ledger_sums IS 'What spend is read from where a long time is asked for. It may be deleted at any time, and is made anew.';
COMMENT ON COLUMN ledger_sums.model IS '`provider/model`, or the model that was asked for where nobody answered.';

CREATE FUNCTION llmproxy_forget_sums() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM ledger_summed_days WHERE day IN (SELECT (occurred_at AT TIME ZONE 'UTC')::date FROM added);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION llmproxy_forget_sums() IS 'Takes away the sums of the days that rows are added to.';

CREATE TRIGGER forget_sums AFTER INSERT ON ledger_entries REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION llmproxy_forget_sums();
