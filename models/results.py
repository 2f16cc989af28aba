"""What came of a batch's rows, as lines of JSON that Postgres writes: for OpenAI's output and error files, for our
JSONL, and for CSV (an array of cells). Of each row the answer of its latest round counts.

A row has a result once its job has ended, or once its batch has ended without running it; a row that was refused has
one from the beginning. A row that shares another's
answer (``same_as``) used nothing and cost nothing.

A line of JSON holds no character that any client splits lines at (:data:`LINE_SEPARATORS`).
"""

from sqlalchemy import TextClause, text

from models.base import usd_text
from models.errors import STATUS_OF_FAILURE

_STATUS_CODE = (
    "coalesce((error ->> 'status')::int, CASE error ->> 'code' "
    + " ".join(f"WHEN '{code.value}' THEN {status}" for code, status in STATUS_OF_FAILURE.items())
    + " ELSE 500 END)"
)

LINE_SEPARATORS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""The characters at which ``str.splitlines`` and others split a text and that JSON may hold as they are, with their
escapes. JSON escapes the other ones (line feed, carriage return, VT, FF, U+001C to U+001E) anyway."""


def _one_line(json: str) -> str:
    """SQL: a JSON value as text without line separators, which can only stand in its strings."""
    line = f"({json})::text"
    for separator, escape in LINE_SEPARATORS.items():
        line = f"replace({line}, chr({ord(separator)}), '{escape}')"
    return line


_USAGE = """json_build_object(
        'prompt_tokens', input_tokens, 'completion_tokens', output_tokens,
        'total_tokens', input_tokens::bigint + output_tokens,
        'prompt_tokens_details', json_build_object('cached_tokens', cached_tokens),
        'completion_tokens_details', json_build_object('reasoning_tokens', reasoning_tokens))"""

_DETAILS = """SELECT coalesce(sum(cached_input_tokens), 0) AS cached_tokens,
               coalesce(sum(reasoning_tokens), 0) AS reasoning_tokens
        FROM attempts WHERE job_id = j.id"""
"""SQL: the details of what a job ``j`` used, of all its attempts, as its tokens are."""

_CHAT = f"""json_build_object(
        'id', 'chatcmpl-' || replace(job_id::text, '-', ''), 'object', 'chat.completion',
        'created', extract(epoch FROM finished_at)::bigint, 'model', result ->> 'model',
        'service_tier', 'default', 'system_fingerprint', NULL,
        'choices', json_build_array(json_build_object(
            'index', 0,
            'message', json_build_object('role', 'assistant', 'content', result ->> 'text', 'refusal', NULL),
            'logprobs', NULL, 'finish_reason', result ->> 'finish_reason')),
        'usage', {_USAGE})"""

_EMBEDDINGS = """json_build_object(
        'object', 'list', 'model', result ->> 'model',
        'data', (SELECT json_agg(json_build_object('object', 'embedding', 'index', place - 1, 'embedding', embedding)
                                 ORDER BY place)
                 FROM jsonb_array_elements(result -> 'embeddings') WITH ORDINALITY AS e(embedding, place)),
        'usage', json_build_object('prompt_tokens', input_tokens, 'total_tokens', input_tokens))"""

_BODY = f"CASE WHEN result ? 'embeddings' THEN {_EMBEDDINGS} ELSE {_CHAT} END"
"""SQL: the answer of a completed job in OpenAI's form, from job_id, finished_at, result and the tokens."""

SELECT_ANSWER = text(f"""
    SELECT status, error, CASE WHEN status = 'completed' THEN {_BODY}::text END AS body
    FROM (SELECT id AS job_id, status, error, finished_at, result, input_tokens, output_tokens,
                 cached_tokens, reasoning_tokens
          FROM jobs j LEFT JOIN LATERAL ({_DETAILS} AND j.status = 'completed') u ON true
          WHERE id = :id AND tenant_id = :tenant_id) j
""")
"""The state of a tenant's job and, once it is completed, its answer as OpenAI's clients expect it."""

_COST = usd_text("(coalesce(j.cost_usd, 0) + coalesce(j.cost_rest_usd, 0))")

# Each row's job is looked up by itself (LIMIT): a join planned as a whole would read the batch for every page of it.
# Attempts are looked up only in a batch in which some attempt had cached or reasoning tokens.
_ANSWERS = f"""
    SELECT r.number, r.line, r.custom_id, r.cells, b.columns, b.id AS batch_id, j.id AS job_id, j.finished_at,
           j.result, CASE WHEN r.route < 0 THEN r.request -> 'refused' ELSE j.error END AS error,
           CASE WHEN r.route < 0 THEN 'failed' WHEN j.id IS NOT NULL THEN j.status
                WHEN b.status = 'expired' THEN 'expired' ELSE 'cancelled' END AS status,
           CASE WHEN r.same_as IS NULL THEN coalesce(j.input_tokens, 0) ELSE 0 END AS input_tokens,
           CASE WHEN r.same_as IS NULL THEN coalesce(j.output_tokens, 0) ELSE 0 END AS output_tokens,
           CASE WHEN r.same_as IS NULL THEN {_COST} ELSE '0.000000' END AS cost_usd, u.cached_tokens, u.reasoning_tokens
    FROM batches b
    JOIN batch_rows r ON r.batch_id = b.id AND r.number <= b.total
    LEFT JOIN LATERAL (
        SELECT * FROM jobs
        WHERE batch_id = r.batch_id AND batch_id IS NOT NULL AND batch_row = coalesce(r.same_as, r.number)
          AND batch_round = CASE WHEN r.same_as IS NULL THEN r.round
                                 ELSE (SELECT f.round FROM batch_rows f
                                       WHERE f.batch_id = r.batch_id AND f.number = r.same_as) END
        LIMIT 1
    ) j ON true
    CROSS JOIN LATERAL (
        {_DETAILS} AND r.same_as IS NULL
          AND (SELECT sum(cached_input_tokens + reasoning_tokens) FROM batch_counts WHERE batch_id = :batch_id) > 0
    ) u
    WHERE b.id = :batch_id
      AND (j.status NOT IN ('queued', 'in_progress') OR j.id IS NULL AND b.status IN ('expired', 'cancelled')
           OR r.route < 0)"""

_NOT_RUN = """json_build_object(
            'code', 'batch_' || status,
            'message', CASE status WHEN 'expired' THEN 'This request was not finished before the batch expired.'
                                   ELSE 'This request was not finished before the batch was cancelled.' END)"""

_ERROR_BODY = f"""json_build_object('error', json_build_object(
            'message', error ->> 'message', 'type', CASE WHEN {_STATUS_CODE} < 500 THEN 'invalid_request_error'
                                                         ELSE 'server_error' END,
            'param', error ->> 'param', 'code', error ->> 'code'))"""

_OPENAI = f"""json_build_object(
        'id', 'batch_req_' || replace(batch_id::text, '-', '') || '_' || number, 'custom_id', custom_id,
        'response', CASE status
            WHEN 'completed' THEN json_build_object(
                'status_code', 200, 'request_id', 'req_' || replace(job_id::text, '-', ''), 'body', {_BODY})
            WHEN 'failed' THEN json_build_object(
                'status_code', {_STATUS_CODE}, 'request_id', 'req_' || coalesce(
                    replace(job_id::text, '-', ''), replace(batch_id::text, '-', '') || '_' || number),
                'body', {_ERROR_BODY}) END,
        'error', CASE WHEN status IN ('expired', 'cancelled') THEN {_NOT_RUN} END)"""

_OUTPUT = "coalesce(result ->> 'text', result ->> 'embeddings')"

_JSONL = f"""json_build_object(
        'row', number, 'line', line, 'custom_id', custom_id, 'status', status,
        'input', CASE WHEN cells IS NOT NULL THEN json_object(columns, cells) END,
        'output', {_OUTPUT}, 'finish_reason', result ->> 'finish_reason',
        'error', CASE WHEN status IN ('expired', 'cancelled') THEN {_NOT_RUN} ELSE (error - 'status')::json END,
        'model', result ->> 'model', 'input_tokens', input_tokens, 'output_tokens', output_tokens,
        'cost_usd', cost_usd, 'job_id', 'job_' || replace(job_id::text, '-', ''))"""

_CSV = f"""json_build_array(
        coalesce(array_to_json(cells), json_build_array(custom_id)), {_OUTPUT},
        CASE status WHEN 'completed' THEN '' WHEN 'failed' THEN (error ->> 'code') || ': ' || (error ->> 'message')
                    ELSE 'batch_' || status END,
        result ->> 'model', input_tokens, output_tokens, cost_usd)"""

LINES = {"openai": _one_line(_OPENAI), "jsonl": _one_line(_JSONL), "csv": f"({_CSV})::text"}
WHICH = {"all": "true", "completed": "status = 'completed'", "failed": "status <> 'completed'"}

_RANGE = "AND r.number > :after AND r.number <= :last"
_CHOSEN = "AND r.number = ANY(CAST(:numbers AS int[]))"


def page(form: str, which: str, *, chosen: bool) -> TextClause:
    """The lines of some rows: those after ``after`` up to ``last``, or (``chosen``) those of ``numbers``.

    Ordered by number or as in ``numbers``. Once ``bytes`` of text have been given, the lines of further rows are
    null: they are to be asked for again, so that rows of a megabyte cannot add up in anyone's memory.
    """
    place = "array_position(CAST(:numbers AS int[]), number)" if chosen else "number"
    return text(f"""
        WITH page AS MATERIALIZED (
            SELECT {place} AS place, number, {LINES[form]} AS line
            FROM ({_ANSWERS} {_CHOSEN if chosen else _RANGE}) answers WHERE {WHICH[which]}
        ), sized AS (
            SELECT number, place, line,
                   sum(octet_length(line)) OVER (ORDER BY place) - octet_length(line) AS before
            FROM page
        )
        SELECT number, CASE WHEN before < :bytes THEN line END AS line FROM sized ORDER BY place
    """)


SELECT_SHEET = text("""
    SELECT id, total, columns, dialect, status FROM batches WHERE id = :id AND tenant_id = :tenant_id
""")
"""What the results of a tenant's batch look like."""

SELECT_TOTAL = text("SELECT total FROM batches WHERE id = :id")

SELECT_FINISHING_ORDER = text(f"""
    SELECT coalesce(string_agg(int4send(number), '' ORDER BY finished_at NULLS LAST, number), '') AS numbers
    FROM ({_ANSWERS}) answers
""")
"""The rows that have a result in the order in which they got it: four bytes each, the most significant first."""

OUTPUT_BYTES = {
    which: text(f"""
        SELECT coalesce(sum(octet_length({LINES["openai"]}) + 1), 0)::bigint AS bytes
        FROM ({_ANSWERS} {_RANGE}) answers WHERE {WHICH[which]}
    """)
    for which in ("completed", "failed")
}
"""The size of a part of a batch's output or error file."""
