CREATE TABLE budgets_raises (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    allowance text NOT NULL CHECK (allowance <> ''),
    cap numeric NOT NULL CHECK (cap > 0),
    expires_at timestamptz NOT NULL,
    reason text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE budgets_raises IS 'Caps that operators raised for a time, through the admin API.';

CREATE FUNCTION budgets_notify_raise() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('budgets_raises', '');
    RETURN NULL;
END
$$;
CREATE TRIGGER budgets_raises_notify AFTER INSERT ON budgets_raises
FOR EACH STATEMENT EXECUTE FUNCTION budgets_notify_raise();

CREATE TABLE budgets_alerts (
    allowance text NOT NULL,
    bucket timestamptz NOT NULL,
    threshold numeric NOT NULL,
    cap numeric NOT NULL,
    settled numeric NOT NULL,
    alerted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (allowance, bucket, threshold)
);
COMMENT ON TABLE budgets_alerts IS 'Thresholds that were passed: whichever worker writes the row tells the operator.';
