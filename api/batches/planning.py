"""From records to rows: ids, prompts and prices are checked a group at a time.

A single job's submission (:mod:`api.submission`) checks fields, route and prices for each request. Here that is done
once for the whole batch. What is left for a row is how long its prompt is.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from hashlib import blake2b
from itertools import pairwise, repeat

from api.batches.forms import Form
from api.batches.problems import Problems
from api.batches.records import Dialect, Group
from api.batches.rows import BatchDraft, Chunk, encode_cells, encode_texts
from api.batches.templates import Template
from api.submission import is_structured, llm_request_of, prices_of, worst_answer
from models.catalog import Catalog
from models.database import dump_json
from models.errors import ContextLengthExceeded
from models.job import PRIORITIES
from models.routing import Ask, Route, Router
from models.tokens import LONGEST_TOKEN_BYTES, most_tokens

MAX_ID_CHARS = 512
_REMEMBERED_PRICES = 100_000
_MICRO = Decimal("0.000001")
_NOTHING = "\\N"


@dataclass(frozen=True, slots=True)
class Prompts:
    """What the rows' requests are made of: the user's message, and the system's if there is one."""

    user: Template
    system: Template | None
    id_place: int | None = None

    @property
    def templates(self) -> Sequence[Template]:
        """The templates that each row renders."""
        return [self.user] if self.system is None else [self.system, self.user]

    @property
    def system_differs(self) -> bool:
        """Whether the system's message is not the same for every row."""
        return self.system is not None and bool(self.system.places)


@dataclass(slots=True)
class Totals:
    """Sums over the rows: bytes of the prompts in UTF-8, reservations in millionths of a USD.

    ``marks`` has, for each row, a hash of what makes it unlike others; the arrays take 20 bytes a row.
    """

    rows: int = 0
    prompt_bytes: int = 0
    reserved: int = 0
    marks: "array[int]" = field(default_factory=lambda: array("q"))
    sizes: "array[int]" = field(default_factory=lambda: array("q"))


class Planner:
    """Plans the rows of one batch: made when its first group of records is there, to see how long they are."""

    def __init__(
        self, form: Form, prompts: Prompts, sample: Group, catalog: Catalog, router: Router, problems: Problems
    ) -> None:
        self.form = form
        self.totals = Totals()
        self.ids = Marks()
        self._prompts = prompts
        self._problems = problems
        self._request = form.request
        texts = _longest(sample, prompts)
        structured = is_structured(form.request)
        ask = Ask(form.request.model, form.request.fallbacks, texts, form.request.max_tokens, structured)
        self.route = router.route(ask)
        self._window = max(catalog.llms[name].context_window for name in self.route.llms)
        if form.request.max_tokens >= self._window and not form.request.adjust:
            raise ContextLengthExceeded(
                f"max_tokens is {form.request.max_tokens}; the largest context window of the route has {self._window}.",
                param="max_tokens",
            )
        self.tier = catalog.llms[self.route.chosen].tier
        self.queue = catalog.queue_of(self.route.chosen)
        self._own_bytes = [len(template.text.encode()) for template in prompts.templates]
        self._places = [place for template in prompts.templates for place in template.places]
        self.price = _pricing(form, self.route, catalog, len(prompts.templates))

    @property
    def most_tokens(self) -> int:
        """The most tokens that the rows so far may use, prompts and answers together."""
        around = most_tokens([""] * len(self._own_bytes))
        return self.totals.prompt_bytes + self.totals.rows * (around + self._request.max_tokens)

    def complete(self, draft: BatchDraft, columns: Sequence[str], dialect: Dialect) -> None:
        """Fill in what the batch has of its file and its route."""
        request = llm_request_of(self._request)
        del request["messages"]
        system = self._prompts.system
        if system is not None and not system.places:
            request["messages"] = [{"role": "system", "content": system.text}]
        draft.model = self._request.model
        draft.request = request
        draft.columns = columns
        draft.template = self._prompts.user.as_stored()
        draft.dialect = asdict(dialect) if dialect != Dialect() else None
        draft.priority = PRIORITIES[self._request.priority]
        draft.routes = [
            {
                "model": self._request.model,
                "route": list(self.route.llms),
                "routing": self.route.as_wire(),
                "tier": self.tier,
                "queue": self.queue,
            }
        ]

    def plan(self, group: Group, batch_id: str | None) -> Chunk | None:
        """The rows of a group, as a chunk to copy when ``batch_id`` is given and nothing is wrong so far."""
        cells, lines = _not_empty(group)
        if not lines:
            return None
        ids = self._take_ids(cells, lines)
        self._check_prompts(cells, lines)
        sizes = self._sizes(cells)
        self._check_fit(cells, sizes, lines)
        reserved = list(map(self.price, sizes))
        totals = self.totals
        first = totals.rows + 1
        totals.rows += len(lines)
        totals.prompt_bytes += sum(sizes)
        totals.reserved += (group_reserved := sum(reserved))
        digests = self._digests(cells) if self.form.dedupe else None
        if digests is not None:
            totals.marks.extend(map(hash, digests))
            totals.sizes.extend(sizes)
        if batch_id is None or self._problems:
            return None
        requests = self._requests(cells)
        fields = zip(
            lines,
            repeat(_NOTHING) if ids is None else encode_texts(ids),
            encode_cells(cells),
            repeat(_NOTHING) if requests is None else encode_texts(requests),
            reserved,
            repeat(_NOTHING) if digests is None else (f"\\\\x{digest.hex()}" for digest in digests),
            strict=False,
        )
        data = "".join(
            [
                f"{batch_id}\t{number}\t{line}\t{custom_id}\t0\t{row}\t{request}\t{micros}e-6\t{digest}\n"
                for number, (line, custom_id, row, request, micros, digest) in enumerate(fields, first)
            ]
        )
        return Chunk(data.encode(), len(lines), group_reserved * _MICRO)

    def _take_ids(self, cells: Sequence[Sequence[str]], lines: Sequence[int]) -> Sequence[str] | None:
        place = self._prompts.id_place
        if place is None:
            return None
        ids = [row[place] for row in cells]
        self.ids.take(ids, lines)
        if not all(ids) or max(map(len, ids)) > MAX_ID_CHARS:
            for custom_id, line in zip(ids, lines, strict=True):
                if not custom_id:
                    self._problems.add("custom_id", "The custom_id is empty.", line)
                elif len(custom_id) > MAX_ID_CHARS:
                    self._problems.add("custom_id", f"The custom_id has more than {MAX_ID_CHARS} characters.", line)
        return ids

    def _check_prompts(self, cells: Sequence[Sequence[str]], lines: Sequence[int]) -> None:
        """A prompt is empty when everything that it shows of its row is."""
        places = self._prompts.user.places
        if not places:
            return
        for row, line in zip(cells, lines, strict=True):
            if not row[places[0]].strip() and not any(row[place].strip() for place in places[1:]):
                self._problems.add("prompt", "The prompt is empty: so is every column that it shows.", line)

    def _sizes(self, cells: Sequence[Sequence[str]]) -> list[int]:
        """Each row's prompt in bytes of UTF-8, its messages together."""
        own, places = sum(self._own_bytes), self._places
        if len(places) == 1:
            place = places[0]
            return [own + (len(t) if (t := row[place]).isascii() else _encoded_size(t)) for row in cells]
        return [
            own + sum([len(t) if (t := row[place]).isascii() else _encoded_size(t) for place in places])
            for row in cells
        ]

    def _check_fit(self, cells: Sequence[Sequence[str]], sizes: Sequence[int], lines: Sequence[int]) -> None:
        """Refuse only what certainly fits no LLM of the route, as for a single job."""
        room = self._window - (1 if self._request.adjust else self._request.max_tokens)
        surely = (room - len(self._own_bytes)) * LONGEST_TOKEN_BYTES
        if max(sizes) <= surely:
            return
        for row, size, line in zip(cells, sizes, lines, strict=True):
            fewest = 0 if size <= surely else self._fewest_tokens(row)
            if fewest > room:
                message = (
                    f"The prompt has at least {fewest} tokens; with max_tokens {self._request.max_tokens} that is more"
                    f" than the largest context window of the route, {self._window}."
                )
                self._problems.add("prompt", message, line)

    def _fewest_tokens(self, row: Sequence[str]) -> int:
        sizes = [_encoded_size(template.render(row)) for template in self._prompts.templates]
        return sum(-(-size // LONGEST_TOKEN_BYTES) for size in sizes)

    def _digests(self, cells: Sequence[Sequence[str]]) -> list[bytes]:
        """What tells rows with equal requests: a hash of the messages, which are all that differs."""
        system = self._prompts.system if self._prompts.system_differs else None
        user = self._prompts.user
        if system is None:
            texts = [user.render(row) for row in cells]
        else:
            texts = [dump_json([system.render(row), user.render(row)]) for row in cells]
        return [blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]

    def _requests(self, cells: Sequence[Sequence[str]]) -> Sequence[str] | None:
        """The requests of rows whose system's message differs; else the batch's template says it all."""
        if not self._prompts.system_differs or self._prompts.system is None:
            return None
        system, user = self._prompts.system, self._prompts.user
        pairs = (((("system", system.render(row)), ("user", user.render(row)))) for row in cells)
        return [dump_json({"messages": [{"role": role, "content": text} for role, text in pair]}) for pair in pairs]


class Marks:
    """The custom ids of a file by their hashes, so that those of a million rows take 12 MB.

    Two ids are taken for one with a chance of 1 in 30 million for a million rows; hashes differ from process to
    process, so that trying again helps.
    """

    def __init__(self) -> None:
        self._hashes: array[int] = array("q")
        self._lines: array[int] = array("I")

    def take(self, ids: Sequence[str], lines: Sequence[int]) -> None:
        """Remember some rows' ids."""
        self._hashes.extend(map(hash, ids))
        self._lines.extend(lines)

    def note_repeated(self, problems: Problems) -> None:
        """Note every row whose id an earlier row has."""
        repeated = set(_repeated(self._hashes))
        if not repeated:
            return
        first: dict[int, int] = {}
        for mark, line in zip(self._hashes, self._lines, strict=True):
            if mark in repeated:
                if mark in first:
                    problems.add("custom_id", f"The custom_id is also that of line {first[mark]}.", line)
                else:
                    first[mark] = line


def distinct_sizes(totals: Totals) -> Iterator[int]:
    """The sizes of the rows that repeat no other row, for a batch that is to be deduplicated."""
    for of_part in _parts(len(totals.marks)):
        seen: set[int] = set()
        for mark, size in zip(totals.marks, totals.sizes, strict=True):
            if of_part(mark) and mark not in seen:
                seen.add(mark)
                yield size


_PART = 250_000


def _repeated(marks: Sequence[int]) -> Iterator[int]:
    """The marks that are there more than once, found a part at a time, so that no part takes much memory."""
    for of_part in _parts(len(marks)):
        part = sorted(filter(of_part, marks))
        yield from (one for one, next_one in pairwise(part) if one == next_one)


def _parts(size: int) -> Iterator[Callable[[int], bool]]:
    parts = size // _PART + 1
    for part in range(parts):
        yield lambda mark, part=part: mark % parts == part  # type: ignore[misc]  # a default binds the loop's value


def _pricing(form: Form, route: Route, catalog: Catalog, messages: int) -> Callable[[int], int]:
    """What a prompt of so many bytes costs at worst, in millionths of a USD."""
    request = form.request
    prices = prices_of(route, catalog, form.window_s)
    if not any(price.input or price.output or price.cached_input for price in prices):
        return lambda size: 0
    structured = is_structured(request)
    texts = [""] * messages
    if structured:
        texts.append(dump_json(llm_request_of(request)["response_format"]))
    around = most_tokens(texts)
    known: dict[int, int] = {}

    def price(size: int) -> int:
        found = known.get(size)
        if found is None:
            if len(known) >= _REMEMBERED_PRICES:
                known.clear()
            worst = worst_answer(size + around, request.max_tokens, prices, structured=structured)
            found = known[size] = int(worst.scaleb(6))
        return found

    return price


def _longest(sample: Group, prompts: Prompts) -> list[str]:
    """The longest prompt of some rows, by which the batch is routed."""
    place_sets = [template.places for template in prompts.templates]
    row = max(sample.cells, key=lambda cells: sum(len(cells[place]) for places in place_sets for place in places))
    return [template.render(row) for template in prompts.templates]


def _not_empty(group: Group) -> tuple[list[list[str]], list[int]]:
    """The rows that have something in some cell; spreadsheets end in many that have not."""
    if all(map(any, group.cells)):
        return group.cells, group.lines
    kept = [(row, line) for row, line in zip(group.cells, group.lines, strict=True) if any(row)]
    return [row for row, _ in kept], [line for _, line in kept]


def _encoded_size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
