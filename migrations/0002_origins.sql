ALTER TABLE requests ADD COLUMN origin text, ADD COLUMN parent_id uuid;
COMMENT ON COLUMN requests.origin IS 'The plugin that asked in the gateway''s own name; null for clients.';
COMMENT ON COLUMN requests.parent_id IS 'The request for whose sake it asked.';

ALTER TABLE attempts ADD COLUMN credential text;
COMMENT ON COLUMN attempts.credential IS 'Which of the provider''s keys was used, by its label; null where there is one.';
