-- Which generation of kept answers is the current one, for every scope that was ever purged.
CREATE TABLE caching_generations (
    scope text PRIMARY KEY,
    generation text NOT NULL,
    began_at timestamptz NOT NULL DEFAULT now()
);
