CREATE TABLE runaway_trips (
    subject text PRIMARY KEY,
    reason text NOT NULL,
    tripped_at timestamptz NOT NULL DEFAULT now(),
    until timestamptz NOT NULL
);
COMMENT ON TABLE runaway_trips IS 'Sessions, users and keys that are held back, as all workers agree.';
COMMENT ON COLUMN runaway_trips.reason IS 'What was noticed, in numbers; never what a prompt said.';
