"""Where the file is that a catalogue's ``source`` names: the same rule for who installs and for who loads."""

from importlib.util import find_spec
from pathlib import Path

from models.catalog import Catalog
from models.errors import ConfigurationError

_PACKAGE = "package:"


def resolve_source(source: str) -> Path:
    """The file that a catalogue's ``source`` names: a path, or ``package:<package>/<file>``.

    Raises ConfigurationError when it is not there.
    """
    if not source.startswith(_PACKAGE):
        path = Path(source).expanduser()
    else:
        package, _, name = source.removeprefix(_PACKAGE).partition("/")
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigurationError(f"the package {package!r} of the model {name!r} is not installed")
        path = Path(spec.submodule_search_locations[0]) / name
    if not path.is_file():
        raise ConfigurationError(f"there is no model file {path}")
    return path


def installed_optional_llms(catalog: Catalog) -> list[str]:
    """Which of a catalogue's optional LLMs can run on this machine: one of their files is here, or they need none."""
    found = []
    for name, llm in catalog.llms.items():
        sources = [llm.source] if llm.source else list(llm.sources.values())
        if llm.optional and (not sources or any(map(_is_there, sources))):
            found.append(name)
    return found


def _is_there(source: str) -> bool:
    try:
        resolve_source(source)
    except ConfigurationError:
        return False
    return True
