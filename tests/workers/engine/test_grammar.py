"""A JSON Schema becomes a grammar that lets valid answers through and, where it is exact, no others."""

import json
from typing import Any

import jsonschema_rs
import pytest

from tests.workers.engine.grammars import Derivations, takes
from tests.workers.engine.random_schemas import random_schema
from workers.engine.grammar import grammar_for, grammars_of, json_grammar, object_grammar
from workers.engine.schema_grammar import LOOSE, SHAPE, USUAL, Limits, convert_schema

Schema = dict[str, Any]


def field(schema: Any, name: str = "v") -> Schema:
    """An object with one required property."""
    return {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": False}


TREE = {
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {"n": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
            "required": ["n", "next"],
        }
    },
    "$ref": "#/$defs/Node",
}

EXACT: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "digits by shorthand": (
        field({"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"}),
        ["2026-11-27"],
        ["26-1-1", "2026-11-2x"],
    ),
    "word characters": (field({"type": "string", "pattern": r"^\w+\s\w*$"}), ["a_1 b", "x "], ["a-b c", "ab"]),
    "a pattern without anchors": (field({"type": "string", "pattern": "[a-z]+"}), ["1a1", "abc"], ["123", "ABC", ""]),
    "no space somewhere": (field({"type": "string", "pattern": r"\S"}), [" x ", "é"], ["", "  "]),
    "alternatives with anchors": (
        field({"pattern": "^(red|blue)$|^x", "type": "string"}),
        ["red", "xyz"],
        ["reds", "ax"],
    ),
    "an escaped quote in a class": (field({"type": "string", "pattern": '^["\\\\/]{2}$'}), ['"/', '\\"'], ["ab", '"']),
    "a pattern with lengths": (
        field({"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 4}),
        ["ab", "abcd"],
        ["a", "abcde", "AB"],
    ),
    "all of one reference": (
        {"$defs": {"C": {"type": "string", "enum": ["red", "blue"]}}}
        | field({"allOf": [{"$ref": "#/$defs/C"}], "default": "red"}),
        ["red", "blue"],
        ["green", {}, None],
    ),
    "a reference with siblings": (
        {"definitions": {"S": {"type": "string"}}} | field({"$ref": "#/definitions/S", "maxLength": 2}),
        ["", "ab"],
        ["abc", 1],
    ),
    "no type": (field({"title": "Data"}), [1, "x", None, [1, {"a": []}], {"b": True}], []),
    "true": (field(True), [1, "x", None, {}], []),
    "nullable enumeration": (
        field({"type": ["string", "null"], "enum": ["a", "b", None]}),
        ["a", "b", None],
        ["c", 1, ""],
    ),
    "one to five": (field({"type": "integer", "minimum": 1, "maximum": 5}), [1, 3, 5], [0, 6, 10, -1, "1"]),
    "exclusive bounds": (
        field({"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 12}),
        [-2, -1, 0, 9, 10, 11],
        [-3, 12, 100, -10],
    ),
    "draft 4's exclusive bound": (
        {"$schema": "http://json-schema.org/draft-04/schema#"}
        | field({"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 20}),
        [1, 20],
        [0, 21, -1],
    ),
    "from 1,234 on": (
        field({"type": "integer", "minimum": 1234}),
        [1234, 1235, 2000, 10_000, 10**9],
        [1233, 999, -5, 0],
    ),
    "a probability": (field({"type": "number", "minimum": 0, "maximum": 1}), [0, 1, 0.25, 0.999], [1.5, 2, -0.1, 10]),
    "above zero": (field({"type": "number", "exclusiveMinimum": 0}), [0.5, 1, 12.75, 0.001], [0, -1]),
    "below zero": (field({"type": "number", "exclusiveMaximum": 0, "minimum": -2}), [-0.5, -2, -1.9], [0, 1, -3, -2.5]),
    "from a half on": (field({"type": "number", "minimum": 0.5}), [0.5, 0.55, 1, 12.25], [0.49, 0, -1]),
    "below one and a half": (
        field({"type": "number", "exclusiveMaximum": 1.5, "minimum": -0.25}),
        [1.49, 1.4999, 0, 1, -0.25, -0.2],
        [1.5, 2, 1.51, -0.26, -1],
    ),
    "between decimals": (
        field({"type": "number", "exclusiveMinimum": 0.001, "maximum": 98.6}),
        [0.0011, 1, 98.6, 98.59, 98],
        [0.001, 0, 98.61, 99],
    ),
    "cents": (field({"type": "number", "multipleOf": 0.01}), [1, 1.1, 1.25, -3.05], [1.255]),
    "fives": (field({"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 50}), [0, 5, 50], [1, 55, -5]),
    "lengths": (field({"type": "string", "minLength": 2, "maxLength": 3}), ["ab", "abc", "é😀", '"\\'], ["a", "abcd"]),
    "numbers of items": (
        field({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3}),
        [[1], [1, 2, 3]],
        [[], [1, 2, 3, 4], ["x"]],
    ),
    "a tuple": (
        field(
            {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "minItems": 2, "maxItems": 2}
        ),
        [["a", 1]],
        [["a"], [1, "a"], ["a", 1, 2]],
    ),
    "a map": (
        field({"type": "object", "additionalProperties": {"type": "integer"}}),
        [{}, {"x": 1, "y": 2}],
        [{"x": "1"}],
    ),
    "a map of certain keys": (
        field({"type": "object", "propertyNames": {"pattern": "^[a-z]{2}$"}, "additionalProperties": {"type": "null"}}),
        [{}, {"de": None}],
        [{"deu": None}],
    ),
    "keys by pattern": (
        field({"type": "object", "patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": False}),
        [{}, {"x-a": 1}],
        [{"y": 1}],
    ),
    "a date": (field({"type": "string", "format": "date"}), ["2026-02-28", "2000-12-31"], ["2026-02-30", "2026-13-01"]),
    "an identifier": (
        field({"type": "string", "format": "uuid"}),
        ["f81d4fae-7dec-11d0-a765-00a0c91e6bf6"],
        ["f81d4fae-7dec-11d0-a765"],
    ),
    "a constant": (field({"const": {"a": [1, "é"]}}), [{"a": [1, "é"]}], [{"a": [1]}]),
    "type lists": (field({"type": ["integer", "null", "array"]}), [1, None, [1, "x"]], ["a", True]),
    "exclusive alternatives of other types": (
        field({"oneOf": [{"type": "string", "maxLength": 1}, {"type": "null"}]}),
        ["a", None],
        ["ab", 1],
    ),
    "alternatives told apart by a constant": (
        field(
            {
                "oneOf": [
                    {"type": "object", "properties": {"k": {"const": kind}, "v": value}, "required": ["k", "v"]}
                    for kind, value in (("i", {"type": "integer"}), ("s", {"type": "string"}))
                ]
            }
        ),
        [{"k": "i", "v": 1}, {"k": "s", "v": "x"}],
        [{"k": "i", "v": "x"}, {"k": "z", "v": 1}],
    ),
    "dependent names": (
        field(
            {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}}
            | {"dependentRequired": {"a": ["b"]}}
        ),
        [{}, {"b": None}, {"a": None, "b": None}],
        [{"a": None}],
    ),
    "draft 7's dependencies": (
        {"$schema": "http://json-schema.org/draft-07/schema#"}
        | field(
            {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": ["null", "integer"]}}}
            | {"dependencies": {"a": {"properties": {"b": {"type": "integer"}}, "required": ["b"]}}}
        ),
        [{}, {"b": None}, {"a": None, "b": 1}],
        [{"a": None}, {"a": None, "b": None}],
    ),
    "not both": (
        field(
            {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}}
            | {"not": {"required": ["a", "b"]}}
        ),
        [{}, {"a": None}, {"b": None}],
        [{"a": None, "b": None}],
    ),
    "not one of the values": (field({"enum": ["a", "b", 1], "not": {"enum": ["b", 1]}}), ["a"], ["b", 1]),
    "not null": (field({"not": {"type": "null"}}), [1, "a", [], {}, True], [None]),
    "if, then, else": (
        field(
            {"type": "object", "properties": {"k": {"enum": ["x", "y"]}, "v": True}, "required": ["k", "v"]}
            | {"if": {"properties": {"k": {"const": "x"}}, "required": ["k"]}}
            | {"then": {"properties": {"v": {"type": "integer"}}}, "else": {"properties": {"v": {"type": "string"}}}}
        ),
        [{"k": "x", "v": 1}, {"k": "y", "v": "1"}],
        [{"k": "x", "v": "1"}, {"k": "y", "v": 1}],
    ),
    "exclusive by what each requires": (
        field(
            {
                "oneOf": [
                    {"type": "object", "properties": {name: {"type": "null"}}, "required": [name]}
                    | {"additionalProperties": False}
                    for name in "ab"
                ]
            }
        ),
        [{"a": None}, {"b": None}],
        [{}, {"a": None, "b": None}],
    ),
    "exclusive by their bounds": (
        field({"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 7}]}),
        [3, 7, -1],
        [4, 6],
    ),
    "an anchor": (
        {"$defs": {"none": {"$anchor": "nothing", "type": "null"}}} | field({"$ref": "#nothing"}),
        [None],
        [0, "x"],
    ),
    "an identifier of the whole": (
        {"$id": "https://example.com/root", "$defs": {"none": {"type": "null"}}}
        | field({"$ref": "https://example.com/root#/$defs/none"}),
        [None],
        [0, "x"],
    ),
    "a reference into a list": (
        {"allOf": [{"type": "object"}, {"properties": {"w": {"type": "null"}}}]}
        | field({"$ref": "#/allOf/1/properties/w"}),
        [None],
        [0],
    ),
    "a long text": (field({"type": "string", "maxLength": 1700}), ["", "x" * 1700], ["x" * 1701]),
    "at least a long text": (field({"type": "string", "minLength": 1601}), ["x" * 1601], ["x" * 1600]),
    "an address": (
        field({"type": "string", "format": "uri"}),
        ["https://example.com/a?b=c#d", "mailto:a@b.org", "urn:isbn:12", "file:///etc/x"],
        ["no address", "/x", ""],
    ),
    "a host": (field({"type": "string", "format": "hostname"}), ["a-b.example.com", "x"], ["-a", "a..b", ""]),
    "an address of version 6": (
        field({"type": "string", "format": "ipv6"}),
        ["::", "::1", "2001:db8::8a2e:370:7334", "1:2:3:4:5:6:7:8"],
        ["1:2:3", ":::", "12345::"],
    ),
    "a duration": (field({"type": "string", "format": "duration"}), ["P1Y2M3D", "PT5M", "P2W"], ["P", "PT", "5M"]),
    "a format that nobody knows": (field({"type": "string", "format": "shoe-size"}), ["x", ""], [1]),
    "annotations": (
        field({"type": "null", "title": "t", "$comment": "c", "default": 1, "examples": [2], "deprecated": True}),
        [None],
        [1, 2],
    ),
    "any characters in constants": (
        field({"enum": ['a "quoted"\\ one', "two\nlines", "é😀", "\u2028", 1.5, None, {"k": [1]}]}),
        ['a "quoted"\\ one', "two\nlines", "é😀", "\u2028", 1.5, None, {"k": [1]}],
        ["a", 1, {}],
    ),
    "alternatives beside a base": (
        field({"type": "string", "anyOf": [{"maxLength": 1}, {"pattern": "^x+$"}]}),
        ["a", "xxx"],
        ["ab", 1],
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_what_a_grammar_can_say_it_says_exactly(name: str) -> None:
    schema, valid, invalid = EXACT[name]
    grammar = convert_schema(schema)
    assert grammar is not None
    assert grammar.exact
    check = jsonschema_rs.validator_for(schema, validate_formats=True)
    for value in valid:
        text = json.dumps({"v": value}, ensure_ascii=False)
        assert check.is_valid({"v": value}), text
        assert takes(grammar.text, text), text
    for value in invalid:
        text = json.dumps({"v": value}, ensure_ascii=False)
        assert not check.is_valid({"v": value}), text
        assert not takes(grammar.text, text), text


@pytest.mark.parametrize("name", EXACT)
def test_every_text_of_an_exact_grammar_follows_its_schema(name: str) -> None:
    schema, _, _ = EXACT[name]
    derivations = Derivations(schema)
    check = jsonschema_rs.validator_for(schema, validate_formats=True)
    texts = [text for seed in range(150) if (text := derivations.derive(seed)) is not None]
    assert texts
    for text in texts:
        assert check.is_valid(json.loads(text)), text


def test_a_schema_that_refers_to_itself_is_a_recursive_grammar() -> None:
    grammar = convert_schema(TREE)
    assert grammar is not None
    assert grammar.exact
    assert takes(grammar.text, '{"n": 1, "next": {"n": 2, "next": {"n": 3, "next": null}}}')
    assert not takes(grammar.text, '{"n": 1, "next": {"n": 2}}')


def test_one_of_two_groups_of_properties_must_be_there() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    }
    grammar = convert_schema(schema)
    assert grammar is not None
    assert grammar.exact
    assert [takes(grammar.text, text) for text in ('{"a": "x"}', '{"b": 1}', '{"a": "x", "b": 1}')] == [True] * 3
    assert not takes(grammar.text, "{}")


def test_properties_come_in_the_order_of_the_schema_each_there_or_not() -> None:
    integer = {"type": "integer"}
    schema = {"type": "object", "properties": dict.fromkeys("abcde", integer), "required": ["c"]}
    grammar = convert_schema(schema)
    assert grammar is not None
    for names, expected in (
        ("c", True),
        ("ac", True),
        ("abcde", True),
        ("ce", True),
        ("ab", False),
        ("ca", False),
        ("", False),
    ):
        assert takes(grammar.text, json.dumps(dict.fromkeys(names, 1))) is expected, names


def test_further_properties_have_other_names_than_those_of_the_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"id": {"type": "integer"}, "idea": {"type": "null"}},
        "additionalProperties": {"type": "string"},
    }
    grammar = convert_schema(schema)
    assert grammar is not None
    assert grammar.exact
    for value in (
        {},
        {"id": 1},
        {"id": 1, "i": "x"},
        {"ide": "x"},
        {"idea": None, "other": "x", "": "y"},
        {"ideas": "x"},
    ):
        assert takes(grammar.text, json.dumps(value)), value
    for value in ({"id": "x"}, {"idea": "x"}, {"i": 1}):
        assert not takes(grammar.text, json.dumps(value)), value
    assert not takes(grammar.text, r'{"\u0069d": "x"}')


LOOSENED: dict[str, tuple[Any, Any]] = {
    "absurdly long": ({"type": "string", "maxLength": 800_000_000}, "x"),
    "at least absurdly long": ({"type": "string", "minLength": 800_000_000}, "x"),
    "very many items": ({"type": "array", "items": {"type": "integer"}, "maxItems": 10**9}, [1, 2]),
    "look ahead": ({"type": "string", "pattern": "^(?=.*[0-9])[a-z0-9]+$"}, "a1"),
    "back reference": ({"type": "string", "pattern": r"^(a|b)\1$"}, "aa"),
    "property of Unicode": ({"type": "string", "pattern": r"^\p{L}+$"}, "é"),
    "no pattern at all": ({"type": "string", "pattern": "("}, "x"),
    "repeated optional": ({"type": "string", "pattern": "^(a*)*$"}, "aa"),
    "different items": ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, [1, 2]),
    "not": ({"type": "string", "not": {"const": "x"}}, "y"),
    "if some length": (
        {"type": "object", "properties": {"a": {"type": "array"}}, "if": {"properties": {"a": {"contains": True}}}}
        | {"then": {"required": ["b"]}},
        {},
    ),
    "half a bound within one": ({"type": "number", "minimum": 0.5, "maximum": 0.75}, 0.75),
    "sevens": ({"type": "integer", "multipleOf": 7}, 14),
    "exclusive alternatives": (
        {"oneOf": [{"type": "string", "maxLength": 3}, {"type": "string", "minLength": 2}]},
        "a",
    ),
    "a reference to nothing": ({"$ref": "#/$defs/missing"}, {"any": "thing"}),
    "a reference elsewhere": ({"$ref": "https://example.com/schema.json"}, 1),
    "itself and nothing else": ({"$ref": "#"}, {"any": ["thing"]}),
    "a circle": (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
        1,
    ),
    "nothing at all": (False, 1),
    "a contradiction": ({"type": "string", "minLength": 3, "maxLength": 2}, "abc"),
    "one type and another": ({"allOf": [{"type": "string"}, {"type": "integer"}]}, 1),
    "not a schema": ({"type": 5, "properties": [], "enum": {}, "required": "x", "anyOf": {}, "items": 3}, 1),
    "not a schema either": ([1, 2], 1),
}


@pytest.mark.parametrize("name", LOOSENED)
def test_what_a_grammar_cannot_say_is_left_to_the_check(name: str) -> None:
    schema, value = LOOSENED[name]
    grammar = convert_schema(schema)
    assert grammar is not None
    assert not grammar.exact
    assert takes(grammar.text, json.dumps(value, ensure_ascii=False))


@pytest.mark.parametrize("limits", [USUAL, LOOSE, SHAPE])
@pytest.mark.parametrize("name", EXACT)
def test_looser_grammars_let_the_same_answers_through(name: str, limits: Limits) -> None:
    schema, valid, _ = EXACT[name]
    grammar = convert_schema(schema, limits)
    assert grammar is not None
    for value in valid:
        assert takes(grammar.text, json.dumps({"v": value}, ensure_ascii=False)), value


def test_a_schema_that_always_needs_itself_again_becomes_any_json() -> None:
    """No answer follows it: its grammar would go on until the tokens are spent."""
    endless = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    assert convert_schema(endless) is None
    assert [level for level, _ in grammars_of(endless)] == [3]
    assert convert_schema({**endless, "required": []}) is not None


def test_joined_schemas_are_as_strict_as_each() -> None:
    schema = {
        "$defs": {"Named": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}},
        "allOf": [
            {"$ref": "#/$defs/Named"},
            {"properties": {"name": {"maxLength": 3}, "age": {"type": "integer"}}, "required": ["age"]},
        ],
    }
    grammar = convert_schema(schema)
    assert grammar is not None
    assert takes(grammar.text, '{"name": "Eve", "age": 3}')
    assert not takes(grammar.text, '{"name": "Evelyn", "age": 3}')
    assert not takes(grammar.text, '{"name": "Eve"}')


def test_items_and_first_items_of_joined_schemas_hold_side_by_side() -> None:
    first = {"type": "array", "prefixItems": [{"type": "integer"}, True], "minItems": 2}
    schema = {"allOf": [first, {"type": "array", "items": {"maxLength": 2, "type": ["string", "integer"]}}]}
    grammar = convert_schema(schema)
    assert grammar is not None
    assert grammar.exact
    assert takes(grammar.text, '[1, "ab", 3]')
    assert not takes(grammar.text, '[1, "abc"]')
    assert not takes(grammar.text, '["a", "b"]')
    assert not takes(grammar.text, "[1, null]")


@pytest.mark.parametrize("text", ["{}", '{"a": [1, {"b": null}]}', '{\n  "a": 1,\n  "b": true\n}'])
def test_any_object_is_an_object_of_anything(text: str) -> None:
    assert takes(object_grammar().text, text)
    assert takes(json_grammar().text, text)
    assert not takes(object_grammar().text, "[1]")


def test_no_text_nests_without_end() -> None:
    assert takes(json_grammar().text, "[" * 12 + "]" * 12)
    assert not takes(json_grammar().text, "[" * 40 + "]" * 40)


def test_a_response_format_names_its_grammar() -> None:
    assert grammar_for(None) is None
    assert grammar_for({"type": "text"}) is None
    assert grammar_for({"type": "json_object"}) == object_grammar().text
    schema = field({"type": "boolean"})
    tightest = convert_schema(schema)
    assert tightest is not None
    assert grammar_for({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}) == tightest.text
    assert [level for level, _ in grammars_of(schema)] == [0, 1, 2, 3]
    assert [level for level, _ in grammars_of(schema, 2)] == [2, 3]


def test_every_text_of_many_random_schemas_follows_them() -> None:
    exact = 0
    for seed in range(250):
        schema = random_schema(seed)
        try:
            check = jsonschema_rs.validator_for(schema, validate_formats=True)
        except ValueError:
            continue  # not a schema that anyone may use
        derivations = Derivations(schema)
        exact += derivations.grammar.exact
        for text in filter(None, map(derivations.derive, range(8 if derivations.grammar.exact else 0))):
            assert check.is_valid(json.loads(text)), (seed, text, schema)
    assert exact > 100
