CREATE TABLE rate_limits_slots (
    name text NOT NULL,
    holder text NOT NULL,
    held integer NOT NULL CHECK (held >= 0),
    seen_at timestamptz NOT NULL,
    PRIMARY KEY (name, holder)
) WITH (fillfactor = 50);
CREATE INDEX rate_limits_slots_of_holder ON rate_limits_slots (holder);
COMMENT ON TABLE rate_limits_slots IS 'How many requests at the same time each worker may have of a limit; those in use are among them.';
COMMENT ON COLUMN rate_limits_slots.seen_at IS 'When the worker was last heard of: what a dead one held is free again.';

CREATE FUNCTION rate_limits_hold(
    limit_name text, worker text, needed integer, wanted integer, cap integer, lifetime interval
) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    others integer;
    granted integer;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('rate_limits:' || limit_name, 0));
    DELETE FROM rate_limits_slots WHERE name = limit_name AND seen_at < clock_timestamp() - lifetime;
    SELECT COALESCE(sum(held), 0) INTO others FROM rate_limits_slots WHERE name = limit_name AND holder <> worker;
    -- Beyond what it needs a worker gets an eighth of the rest at most, so that small limits stay exact.
    granted := greatest(least(needed, cap - others), 0);
    granted := granted + greatest(least(wanted - needed, (cap - others - granted) / 8), 0);
    INSERT INTO rate_limits_slots VALUES (limit_name, worker, granted, clock_timestamp())
    ON CONFLICT (name, holder) DO UPDATE SET held = granted, seen_at = clock_timestamp();
    IF granted < needed AND others > 0 THEN
        PERFORM pg_notify('rate_limits_slots', limit_name);
    END IF;
    RETURN granted;
END
$$;
COMMENT ON FUNCTION rate_limits_hold(text, text, integer, integer, integer, interval) IS
    'Sets how many slots of a limit a worker holds: what it asks for, as far as others leave room. They are told when not.';
