-- Bodies are kept as long as their workspace says

ALTER TABLE workspaces ADD COLUMN bodies_retention_days integer CHECK (bodies_retention_days > 0);
COMMENT ON COLUMN workspaces.bodies_retention_days IS 'Days after which kept bodies go; null means what the configuration says.';
