"""Taking an uploaded file in: read -> plan -> write, in the process that does it (:mod:`api.batches.clerk`).

The file is gone through once. Rows are copied to Postgres while they are read; as soon as something is wrong with
one, no further rows are, the rest of the file is only looked at, and what was copied is deleted.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import BinaryIO
from uuid import UUID

from api.batches.forms import Form, read_form
from api.batches.jsonlfile import looks_like_openai
from api.batches.opening import open_table
from api.batches.orders import Order, Taken
from api.batches.planning import Planner, Prompts, distinct_sizes
from api.batches.problems import Problems
from api.batches.quotas import RowQuota
from api.batches.records import Dialect, Table, Unreadable
from api.batches.rows import BatchDraft, Chunk, check_cost, write_batch
from api.batches.templates import Template, TemplateProblem, compile_template
from api.counters import Counters
from api.ratelimits import RateLimiter
from models.catalog import Catalog
from models.database import create_engine
from models.routing import Router

MICRO = Decimal("0.000001")
_PROMPT_COLUMN = "prompt"
_ID_COLUMN = "custom_id"
ENDPOINT = "/v1/chat/completions"


async def take_in(order: Order, file: BinaryIO, catalog: Catalog) -> Taken:
    """Write the batch of a file, or say what it would be if its form asks for that.

    Raises what a caller is to be told: ValidationFailed with the problems of the file, BudgetExceeded, ...
    """
    form = read_form(order.fields)
    reading = _Reading(order, form, file, catalog)
    if form.dry_run:
        return reading.look_through()
    draft = _draft(order, form)
    engine = create_engine(order.database_url, name="intake", pool_size=1)
    async with _row_quota(order, catalog) as quota:
        try:
            written = await write_batch(engine, draft, reading.chunks(draft, quota), distinct=True)
        except BaseException:
            await quota.give_back()
            raise
        finally:
            await engine.dispose()
        if written is None:
            await quota.give_back()
    return reading.taken(written)


@asynccontextmanager
async def _row_quota(order: Order, catalog: Catalog) -> AsyncIterator[RowQuota]:
    """What the plan of the order's key allows; the counters are asked only for a key that has one."""
    counters = Counters(order.redis_url, timeout_s=order.rate_limit_timeout_s)
    try:
        yield RowQuota(RateLimiter(catalog.plans, counters), order.plan, order.api_key_id, order.live_rows)
    finally:
        await counters.close()


class _Reading:
    """One passage through a file."""

    def __init__(self, order: Order, form: Form, file: BinaryIO, catalog: Catalog) -> None:
        self._order = order
        self._form = form
        self._file = file
        self._catalog = catalog
        self._problems = Problems()
        self._planner: Planner | None = None
        self._columns: list[str] = []
        self._dialect = Dialect()

    async def chunks(self, draft: BatchDraft, quota: RowQuota) -> AsyncIterator[Chunk]:
        """The rows to copy; the draft is complete after the last. Raises ValidationFailed, and RateLimited."""
        for chunk in self._read(str(draft.id)):
            if chunk is not None:
                yield chunk
            if self._planner is not None:
                quota.check(self._planner.totals.rows)
        assert self._planner is not None  # there are rows
        self._planner.complete(draft, self._columns, self._dialect)
        await quota.take(self._planner.totals.rows, self._planner.most_tokens)

    def look_through(self) -> Taken:
        """What the batch would be; raises ValidationFailed or CostCapExceeded."""
        for _ in self._read(None):
            pass
        taken = self.taken(None)
        check_cost(self._form.request.max_cost_usd, taken.worst_usd)
        return taken

    def taken(self, batch_id: UUID | None) -> Taken:
        """What was read, by now."""
        assert self._planner is not None  # there are rows
        totals = self._planner.totals
        distinct, prompt_bytes, worst = totals.rows, totals.prompt_bytes, totals.reserved
        if self._form.dedupe:
            distinct, prompt_bytes, worst = 0, 0, 0
            for size in distinct_sizes(totals):
                distinct, prompt_bytes, worst = distinct + 1, prompt_bytes + size, worst + self._planner.price(size)
        route = self._planner.route.llms
        return Taken(batch_id, totals.rows, distinct, prompt_bytes, worst * MICRO, route, self._columns)

    def _read(self, batch_id: str | None) -> Iterator[Chunk | None]:
        try:
            table = open_table(
                self._file,
                self._order.filename,
                self._problems,
                form=self._form.format,
                separator=self._form.separator,
                encoding=self._form.encoding,
            )
            self._columns = list(table.columns)
            self._dialect = table.dialect
            yield from self._plan(table, batch_id)
        except Unreadable as error:
            self._problems.add("file", error.message, error.line)
        if self._planner is not None:
            self._planner.ids.note_repeated(self._problems)
        elif not self._problems:
            self._problems.add("file", "There are no rows in the file.")
        if self._problems:
            raise self._problems.as_error()

    def _plan(self, table: Table, batch_id: str | None) -> Iterator[Chunk | None]:
        prompts = read_prompts(self._form, table.columns, self._problems)
        for group in table.groups:
            if self._planner is None and any(map(any, group.cells)):
                router = Router(self._catalog, self._order.vitals)
                self._planner = Planner(self._form, prompts, group, self._catalog, router, self._problems)
            if self._planner is not None:
                yield self._planner.plan(group, batch_id)
                if self._planner.totals.rows > self._order.max_rows:
                    most = f"{self._order.max_rows:,}"
                    raise Unreadable(f"The file has more than {most} rows; send it in parts.", group.lines[-1])


def read_prompts(form: Form, columns: Sequence[str], problems: Problems) -> Prompts:
    """The templates of a form for a file with these columns; what is wrong with them is noted."""
    if form.prompt is not None:
        user = _template("prompt", form.prompt, columns, problems)
    elif _PROMPT_COLUMN in columns:
        user = Template((list(columns).index(_PROMPT_COLUMN),))
    else:
        user = Template(())
        message = "There is no column 'prompt': send a prompt, such as 'Classify: {{text}}'."
        if looks_like_openai(columns):
            message = "This file is for OpenAI's Batch API: send it to /v1/files, and make a batch at /v1/batches."
        problems.add("prompt", message)
    system = None if form.system is None else _template("system", form.system, columns, problems)
    wanted = form.id_column or _ID_COLUMN
    id_place = list(columns).index(wanted) if wanted in columns else None
    if form.id_column is not None and id_place is None:
        problems.add("id_column", f"There is no column {form.id_column!r}.")
    return Prompts(user, system, id_place)


def _template(field_name: str, text: str, columns: Sequence[str], problems: Problems) -> Template:
    try:
        return compile_template(text, columns)
    except TemplateProblem as problem:
        problems.add(field_name, str(problem))
    return Template(())


def _draft(order: Order, form: Form) -> BatchDraft:
    return BatchDraft(
        tenant_id=order.tenant_id,
        api_key_id=order.api_key_id,
        endpoint=ENDPOINT,
        completion_window=form.completion_window,
        expires_in=form.window_s,
        name=form.name or order.filename[-256:] or None,
        dedupe=form.dedupe,
        max_parallel=form.max_parallel,
        end_user=form.request.user,
        team=form.request.team,
        labels=dict(form.request.metadata),
        max_cost_usd=form.request.max_cost_usd,
        idempotency_key=order.idempotency_key,
        request_hash=order.request_hash,
    )
