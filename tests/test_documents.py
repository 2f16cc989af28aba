"""Documents that can be checked are checked. ``python -m tests.test_documents`` writes them anew."""

import re
from pathlib import Path

from pydantic_settings import BaseSettings

from api.settings import ApiSettings
from tests.stack import ROOT
from workers.settings import RelaySettings, WorkerSettings

CONFIGURATION = ROOT / "docs" / "configuration.md"
PROCESSES: dict[str, type[BaseSettings]] = {
    "The API": ApiSettings,
    "A relay": RelaySettings,
    "A worker": WorkerSettings,
}


def configuration() -> str:
    """The reference of all settings, from the classes that read them."""
    lines = [
        "# Settings",
        "",
        "Read from the environment, each process only its own. Besides: `HEADRACE_DATA_DIR` (`.headrace`), where",
        "`headrace up` keeps everything, and `HEADRACE_LOG=json` for logs as JSON lines.",
        "",
        "`/metrics` and the parts of `/health` are for callers with an API key and for the networks of",
        "`HEADRACE_METRICS_ALLOW`. A Prometheus in another container or on another machine is best given a key",
        "(`authorization: {credentials_file: ...}`). The address of a container network is often that of everybody who",
        "comes from outside, through a published port.",
    ]
    for title, settings in PROCESSES.items():
        lines += ["", f"## {title}", "", "| variable | default | |", "|---|---|---|"]
        for name, field in settings.model_fields.items():
            given = "" if field.default in (None, ()) else f"`{field.default}`"
            default = "required" if field.is_required() else given
            lines.append(f"| `HEADRACE_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def test_every_setting_is_described() -> None:
    undescribed = [
        f"{settings.__name__}.{name}"
        for settings in PROCESSES.values()
        for name, field in settings.model_fields.items()
        if not field.description
    ]
    assert undescribed == []


def test_the_configuration_reference_is_that_of_the_classes() -> None:
    assert CONFIGURATION.read_text(encoding="utf-8") == configuration()


def test_what_the_readme_links_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [part.partition(")")[0] for part in text.split("](")[1:]]
    missing = [target for target in targets if not target.startswith("http") and not Path(ROOT, target).exists()]
    assert missing == []


if __name__ == "__main__":
    CONFIGURATION.write_text(configuration(), encoding="utf-8")


def test_every_test_that_a_document_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")))
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert named - set(re.findall(r"def (test_\w+)", sources)) == set()
