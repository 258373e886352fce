-- name: record_batch
-- One statement, so a batch is one round trip and goes in whole or not at all. The rest of a record goes in only
-- together with its request: whatever was recorded before, by whomever, is neither changed nor added to. Gives one row
-- about the requests that were not there yet. What was not used is not in a record: its columns are zero.
WITH recorded AS (
    INSERT INTO requests ({requests})
    SELECT {requests} FROM json_populate_recordset(json_populate_record(NULL::requests, '{zeros}'), $1::text::json)
    ON CONFLICT DO NOTHING
    RETURNING id{row_of_requests}
), attempted AS (
    INSERT INTO attempts ({attempts})
    SELECT {attempts} FROM json_populate_recordset(json_populate_record(NULL::attempts, '{zeros}'), $2::text::json)
    WHERE request_id IN (SELECT id FROM recorded)
    ON CONFLICT DO NOTHING{row_of_attempts}
), charged AS (
    INSERT INTO ledger_entries ({ledger_entries})
    SELECT {ledger_entries} FROM json_populate_recordset(json_populate_record(NULL::ledger_entries, '{zeros}'), $3::text::json)
    WHERE request_id IN (SELECT id FROM recorded)
    ON CONFLICT DO NOTHING{row_of_ledger_entries}
), bodied AS (
    INSERT INTO request_bodies (request_id, admitted_at, request, response, request_truncated, response_truncated)
    SELECT request_id, admitted_at, decode(request, 'base64'), decode(response, 'base64'), request_truncated, response_truncated
    FROM json_to_recordset($4::text::json) AS body (
        request_id uuid, admitted_at timestamptz, request text, response text, request_truncated boolean, response_truncated boolean
    )
    WHERE request_id IN (SELECT id FROM recorded)
    ON CONFLICT DO NOTHING
)
SELECT array_agg(id::text) AS ids{stored};
