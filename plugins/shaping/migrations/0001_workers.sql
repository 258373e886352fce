CREATE TABLE shaping_workers (
    worker text PRIMARY KEY,
    seen_at timestamptz NOT NULL
);
COMMENT ON TABLE shaping_workers IS 'Workers that share the vendors'' limits: each has an equal part of all those that were seen lately.';
