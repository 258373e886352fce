CREATE TABLE fallback_cool_downs (
    provider text NOT NULL,
    model text NOT NULL,
    credential text NOT NULL,
    reason text NOT NULL,
    until timestamptz NOT NULL,
    repeats integer NOT NULL,
    PRIMARY KEY (provider, model, credential)
);
COMMENT ON TABLE fallback_cool_downs IS 'Targets that are left alone, as all workers agree. A target without a row is well.';
COMMENT ON COLUMN fallback_cool_downs.credential IS 'The label of the key; empty where the provider has only one.';
COMMENT ON COLUMN fallback_cool_downs.until IS 'From then on single requests try whether the target is back.';
COMMENT ON COLUMN fallback_cool_downs.repeats IS 'Cool-downs before this one that were not long ago.';
