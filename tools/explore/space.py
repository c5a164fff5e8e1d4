"""The space of configurations that is swept, as a TOML file gives it.

::

    base = "mac256"                # a preset or a JSON file (default: mac256)
    models = ["resnet8", "vww"]    # generated networks of `celosia bench`, or ONNX files beside this one

    [knobs]                        # every combination; those that are no configuration are left out, and counted
    rows = [8, 16, 32]
    cols = [8, 16]
    weight_rows = [2, 4]
"""

import dataclasses
import itertools
import tomllib
from dataclasses import dataclass
from pathlib import Path

from celosia.rtl.config import BadConfig as Impossible
from celosia.rtl.config import EngineConfig
from celosia.tools.bench.networks import network
from celosia.tools.errors import BadConfig, BadFile

__all__ = ["DEFAULT", "Space", "read_space"]

KNOBS = {field.name for field in dataclasses.fields(EngineConfig)} - {"name"}


@dataclass(frozen=True)
class Space:
    """Configurations to evaluate.

    Parameters
    ----------
    configs : tuple of EngineConfig
        Named by what differs from the base.
    models : tuple of str
        Names of generated networks, or paths of ONNX files.
    refused : int
        Combinations that are no configuration.
    """

    configs: tuple
    models: tuple
    refused: int


DEFAULT = {
    "base": "mac256",
    "models": ["resnet8", "dscnn", "vww"],
    "knobs": {"rows": [8, 16, 32], "cols": [8, 16], "weight_rows": [2, 4], "lanes": [4, 8, 16], "unfold_streams": [4, 8]},
}
"""What is swept where no file is given."""


def read_space(path=None, models=None):
    """Return the :class:`Space` of a TOML file, or of :data:`DEFAULT`; ``models`` take the place of the file's.

    Raises
    ------
    BadFile, BadConfig
        If the file cannot be read, or says what makes no sense; the sentence names the key.
    """
    facts, where = DEFAULT, "the default space"
    if path is not None:
        where = str(path)
        try:
            facts = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise BadFile(path, f"cannot be read: {error.strerror or error}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadFile(path, f"must be TOML: {error}") from None
    for key in facts:
        if key not in DEFAULT:
            raise BadConfig(f"{where}: {key!r} is not known; a space has the keys {', '.join(DEFAULT)}")
    base = EngineConfig.load(facts.get("base", DEFAULT["base"]))
    knobs = facts.get("knobs", {})
    if not isinstance(knobs, dict):
        raise BadConfig(f"{where}: knobs must be a table of lists")
    for knob, values in knobs.items():
        if knob not in KNOBS:
            raise BadConfig(f"{where}: {knob!r} is not a knob of the engine (known: {', '.join(sorted(KNOBS))})")
        if not isinstance(values, list) or not values or not all(type(value) is int for value in values):
            raise BadConfig(f"{where}: knob {knob} must be a list of integers, not {values!r}")
    configs, refused = {}, 0
    for values in itertools.product(*knobs.values()):
        name = "-".join([base.name, *(f"{knob}{value}" for knob, value in zip(knobs, values))])
        try:
            config = dataclasses.replace(base, **dict(zip(knobs, values)), name=name)
        except Impossible:
            refused += 1
            continue
        configs.setdefault(config.digest, config)
    if not configs:
        raise BadConfig(f"{where}: none of its {refused} combinations is a configuration; `celosia engines` and docs/configuration.md say what is")
    return Space(tuple(configs.values()), _models(models or facts.get("models", DEFAULT["models"]), path, where), refused)


def _models(models, path, where):
    """Check the models' names; files are found from the space's folder."""
    if not isinstance(models, list) or not models or not all(isinstance(name, str) for name in models):
        raise BadConfig(f"{where}: models must be a list of names, not {models!r}")
    found = []
    for name in models:
        if name.endswith(".onnx"):
            file = Path(name) if Path(name).exists() or path is None else Path(path).parent / name
            if not file.exists():
                raise BadFile(name, "no such file")
            found.append(str(file.resolve()))
        else:
            network(name)
            found.append(name)
    return tuple(dict.fromkeys(found))
