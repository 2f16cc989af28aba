"""LLMs that may be absent: the catalogue without them is whole, and the same for everyone who is told the same."""

import importlib
import sys
from pathlib import Path

import pytest
import structlog

from models.catalog import EngineConfig, load_catalog, read_catalog
from models.errors import ConfigurationError
from models.routing import Ask, Router, Vitals
from models.settings import CatalogSettings
from models.sources import installed_optional_llms

CATALOG = """
[tiers.small]
queue = "small"
pool = "cpu"
[tiers.medium]
queue = "medium"
pool = "gpu"
[llms.always]
tier = "small"
provider = "mock"
context_window = 1000
input_price = "0"
output_price = "0"
fallbacks = ["perhaps", "file"]
[llms.perhaps]
optional = true
tier = "medium"
provider = "llamacpp"
source = "package:a_package_of_weights/model.gguf"
context_window = 8000
quality = 0.9
input_price = "0"
output_price = "0"
fallbacks = ["always"]
[llms.file]
optional = true
tier = "small"
provider = "llamacpp"
source = "model.gguf"
context_window = 2000
input_price = "0"
output_price = "0"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "catalog.toml"
    path.write_text(CATALOG)
    return path


def test_what_is_not_named_is_left_out_with_its_fallbacks_and_its_empty_tier(path: Path) -> None:
    catalog = load_catalog(path)
    assert list(catalog.llms) == ["always"]
    assert catalog.llms["always"].fallbacks == ()
    assert catalog.queues == ("small",)
    assert list(catalog.pools_in_use) == ["cpu"]
    assert Router(catalog).route(Ask("auto", None, ["hello"], 10)).llms == ("always",)


def test_what_is_named_is_there_with_its_tier(path: Path) -> None:
    catalog = load_catalog(path, ["perhaps"])
    assert list(catalog.llms) == ["always", "perhaps"]
    assert catalog.llms["always"].fallbacks == ("perhaps",)
    assert catalog.queues == ("medium", "small")
    assert Router(catalog).route(Ask("auto", None, ["hello"], 10)).llms == ("perhaps", "always")


def test_the_log_tells_what_is_left_out(path: Path) -> None:
    with structlog.testing.capture_logs() as said:
        load_catalog(path, ["file"])
    assert [(event["event"], event["llms"]) for event in said] == [("catalog.optional_left_out", ["perhaps"])]
    with structlog.testing.capture_logs() as said:
        load_catalog(path, ["file", "perhaps"])
    assert said == []


@pytest.mark.parametrize("name", ["always", "perhap"])
def test_a_name_that_is_no_optional_llm_is_a_mistake(path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"no optional LLM {name}"):
        load_catalog(path, [name])


def test_a_default_that_may_be_absent_is_a_mistake_even_where_it_is_there(path: Path) -> None:
    for default in ("medium", "perhaps"):
        path.write_text(f'default = "{default}"\n{CATALOG}')
        with pytest.raises(ConfigurationError, match="optional"):
            load_catalog(path, ["perhaps"])
    path.write_text(f'default = "small"\n{CATALOG}')
    assert load_catalog(path).default == "small"


def test_a_catalogue_of_nothing_but_absent_llms_is_a_mistake(path: Path) -> None:
    path.write_text(CATALOG.replace('provider = "mock"', 'optional = true\nprovider = "mock"'))
    with pytest.raises(ConfigurationError, match="without its optional LLMs"):
        load_catalog(path)


def test_installed_is_what_has_its_file(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    catalog = read_catalog(path)
    assert installed_optional_llms(catalog) == []
    package = tmp_path / "a_package_of_weights"
    package.mkdir()
    (package / "__init__.py").touch()
    importlib.invalidate_caches()
    assert installed_optional_llms(catalog) == []
    (package / "model.gguf").touch()
    assert installed_optional_llms(catalog) == ["perhaps"]
    (tmp_path / "model.gguf").touch()
    assert installed_optional_llms(catalog) == ["perhaps", "file"]


@pytest.mark.parametrize(
    ("variable", "names"), [("", ()), ("perhaps", ("perhaps",)), (" perhaps, file ,", ("perhaps", "file"))]
)
def test_the_setting_is_a_list_with_commas(monkeypatch: pytest.MonkeyPatch, variable: str, names: object) -> None:
    monkeypatch.setenv("HEADRACE_OPTIONAL_LLMS", variable)
    assert CatalogSettings().optional_llms == names


def test_the_shipped_llms_fall_back_to_each_other_where_both_are() -> None:
    both = load_catalog(optional=["gemma3-270m"])
    assert Router(both).route(Ask("medium", None, ["hello"], 10)).llms == ("gemma3-270m", "smollm2-135m")
    assert Router(both).route(Ask("small", None, ["hello"], 10)).llms == ("smollm2-135m", "gemma3-270m")
    assert load_catalog().llms["smollm2-135m"].fallbacks == ()


@pytest.mark.parametrize(
    ("changes", "words", "chosen"),
    [
        ({}, 5, "smollm2-135m"),
        ({"gemma3-270m": Vitals(tokens_per_s=400.0)}, 5, "gemma3-270m"),
        ({"smollm2-135m": Vitals(breaker_open=True)}, 5, "gemma3-270m"),
        ({}, 2000, "gemma3-270m"),
    ],
    ids=["the faster", "the faster now", "whose breaker is closed", "whose window is large enough"],
)
def test_auto_chooses_between_the_shipped_llms(changes: dict[str, Vitals], words: int, chosen: str) -> None:
    usual = {"smollm2-135m": Vitals(tokens_per_s=90.0), "gemma3-270m": Vitals(tokens_per_s=45.0)}
    router = Router(load_catalog(optional=["gemma3-270m"]), usual | changes)
    assert router.route(Ask("auto", None, ["mill " * words], 16)).chosen == chosen


@pytest.mark.parametrize("split", [(-1.0, 2.0), (0.0, 0.0)])
def test_shares_of_gpus_are_shares(split: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="shares"):
        EngineConfig(tensor_split=split)
