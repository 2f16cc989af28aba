"""The rows of the fields of embeddings, files and batches."""

from api.fields.table import Table, refused, table_of, used

TOKEN_IDS = (
    "Token ids are not supported: they mean something to one LLM's tokenizer only. Send text"
    " (LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))."
)
_OF_BATCH = "Send it with the batch, for all of its requests."
_IN_THE_TEXT = "Headrace does not pass it on; write what the LLM is to know of a text into the text."

EMBEDDING_ROWS = (
    used("input", "A text, or 1 to 2,048 texts. Token ids are refused: they are one tokenizer's."),
    used("model", "An LLM with `embeddings = true`, its tier, or `auto`."),
    used("encoding_format", "`float` if it is left out; OpenAI's client sends `base64` by itself."),
    used("dimensions"),
    used("user", "For attribution and budgets."),
    refused("input_type", _IN_THE_TEXT, by="NVIDIA, Cohere, Voyage"),
    refused("task", _IN_THE_TEXT, by="Jina"),
    refused("prompt_name", _IN_THE_TEXT, by="TEI"),
    refused("truncate", "Texts are not shortened; leave it out.", neutral=("NONE", "none", False), by="NVIDIA, TEI"),
    refused("extra_body", "Send its fields beside the others; OpenAI's client does so with its argument `extra_body`."),
)
EMBEDDING_TABLE = table_of(EMBEDDING_ROWS)
EMBEDDING_LINE_TABLE = table_of(
    EMBEDDING_ROWS,
    [refused(name, _OF_BATCH) for name in ("user", "metadata", "team", "priority", "expires_in", "max_cost_usd")],
)

_FOR_BATCHES = "Files are for batches in this version; send purpose `batch`."
FILE_ROWS = (
    used("file"),
    used("purpose"),
    used("purpose=batch"),
    *(refused(f"purpose={purpose}", _FOR_BATCHES) for purpose in ("assistants", "user_data", "vision")),
    refused("purpose=fine-tune", "Headrace trains no LLMs; files are for batches, purpose `batch`."),
    refused("purpose=evals", _FOR_BATCHES),
    used("expires_after", "The file is kept until it is deleted if it is left out."),
    used("expires_after.anchor", "`created_at`."),
    used("expires_after.seconds", "From an hour to 30 days."),
)
FILE_TABLE = table_of(FILE_ROWS)

FILE_LIST_ROWS = (
    used("after", "The last id of the page before."),
    used("limit", "1 to 10,000; 1,000 if it is left out."),
    used("order", "`asc` or `desc`, the default."),
    used("purpose", "Files of this purpose only."),
)
FILE_LIST_TABLE = table_of(FILE_LIST_ROWS)

_NO_ENDPOINT = "Batches are of /v1/chat/completions and /v1/embeddings."
BATCH_ROWS = (
    used("input_file_id"),
    used("endpoint"),
    used("endpoint=/v1/chat/completions"),
    used("endpoint=/v1/embeddings"),
    refused("endpoint=/v1/completions", f"{_NO_ENDPOINT} Send prompts as `messages` of chat completions."),
    refused("endpoint=/v1/responses", f"{_NO_ENDPOINT} Send `input` as `messages` of chat completions."),
    refused("endpoint=/v1/moderations", _NO_ENDPOINT),
    refused("endpoint=/v1/images/generations", _NO_ENDPOINT),
    refused("endpoint=/v1/images/edits", _NO_ENDPOINT),
    refused("endpoint=/v1/videos", _NO_ENDPOINT),
    used("completion_window", "`24h` as OpenAI's, or any such as `90m` or `7d`, of 30 days at most."),
    used("metadata", "Kept with the batch."),
    used("output_expires_after", "The output and error files are kept until they are deleted if it is left out."),
    used("output_expires_after.anchor", "`created_at`."),
    used("output_expires_after.seconds", "From an hour to 30 days."),
)
BATCH_TABLE = table_of(BATCH_ROWS)

BATCH_LIST_ROWS = (
    used("after", "The last id of the page before."),
    used("limit", "1 to 100; 20 if it is left out."),
)
BATCH_LIST_TABLE: Table = table_of(BATCH_LIST_ROWS)
