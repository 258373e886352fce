-- What is counted beside the first eight classes of tokens; null in rows from before

ALTER TABLE requests
    ADD COLUMN cache_read_audio_input_tokens bigint,
    ADD COLUMN image_input_tokens bigint,
    ADD COLUMN image_output_tokens bigint,
    ADD COLUMN web_searches bigint,
    ADD COLUMN images bigint,
    ADD COLUMN audio_seconds bigint,
    ADD COLUMN characters bigint;
COMMENT ON COLUMN requests.uncached_input_tokens IS 'The classes of tokens are disjoint: their sum is the total.';
COMMENT ON COLUMN requests.web_searches IS 'What follows is charged by the piece, whatever it has to do with tokens.';

ALTER TABLE attempts
    ADD COLUMN cache_read_audio_input_tokens bigint,
    ADD COLUMN image_input_tokens bigint,
    ADD COLUMN image_output_tokens bigint,
    ADD COLUMN web_searches bigint,
    ADD COLUMN images bigint,
    ADD COLUMN audio_seconds bigint,
    ADD COLUMN characters bigint;

ALTER TABLE ledger_entries
    ADD COLUMN cache_read_audio_input_tokens bigint,
    ADD COLUMN image_input_tokens bigint,
    ADD COLUMN image_output_tokens bigint,
    ADD COLUMN web_searches bigint,
    ADD COLUMN images bigint,
    ADD COLUMN audio_seconds bigint,
    ADD COLUMN characters bigint;
