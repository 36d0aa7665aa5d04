"""What the entry points share: logging, and errors as one line with what to do."""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from rich.console import ConsoleRenderable
from rich.logging import RichHandler
from rich.markup import escape
from rich.text import Text

from reasonrl.util.errors import UserError
from reasonrl.util.progress import console

SWEEPER = "hydra/sweeper="
CONF = Path(__file__).resolve().parents[2] / "conf"
WITH_ESCAPES = ("dataset.prompt=", "dataset.stop=", "prompt.system=")
ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def run_app(main: Callable[[], None]) -> None:
    """Runs a Hydra entry point; ``one_line_errors`` handles what Hydra itself raises."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing
    sys.argv[1:] = left_to_runs([decoded(argument) for argument in sys.argv[1:]])
    set_up_logging()
    OmegaConf.register_new_resolver("group_options", _group_options, replace=True)
    with one_line_errors():
        main()


def decoded(argument: str) -> str:
    r"""An argument in which ``\n``, ``\t`` and ``\\`` of a prompt or a stop are what they mean.

    A shell hands them on as they are, and Hydra too.
    """
    if not argument.startswith(WITH_ESCAPES):
        return argument
    return re.sub(r"\\([nt\\])", lambda found: ESCAPES[found[1]], argument)


def left_to_runs(arguments: Sequence[str]) -> list[str]:
    """The arguments, where the keys of an option that is swept are swept too, over one value.

    Before a sweep Hydra composes the configuration once, without what is swept: it would look for
    the ``algorithm.kl_coef=0.1`` of ``-m algorithm=ppo,grpo`` in the default algorithm, which has
    no such key. A search (``hydra/sweeper``) sweeps over nothing but what it is told to search.
    """
    if not {"-m", "--multirun"} & {*arguments} or any(a.startswith(SWEEPER) for a in arguments):
        return list(arguments)
    values = [a for a in arguments if re.match(r"[\w/]+(\.\w+)*=.", a)]
    try:
        parsed = OverridesParser.create().parse_overrides(values)
    except HydraException:  # which Hydra reports
        return list(arguments)
    swept = {o.key_or_group for o in parsed if o.is_sweep_override()}
    kept = {
        str(o.input_line)
        for o in parsed
        if not o.is_sweep_override() and o.key_or_group.partition(".")[0] in swept
    }
    return [re.sub(r"=(.*)", r"=choice(\1)", a, flags=re.S) if a in kept else a for a in arguments]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A mistake of the user's is one line on stderr and exit code 2; a bug keeps its traceback.

    It belongs inside the task function too, for Hydra first reports in its own way whatever leaves
    that function.
    """
    try:
        yield
    except UserError as error:
        message = str(error)
    except (HydraException, OmegaConfBaseException) as error:
        message = _explain(error)
    except KeyboardInterrupt:
        message = "interrupted. The same command goes on from here."
    else:
        return
    console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)
    sys.exit(2)


def set_up_logging() -> None:
    """Sends what is logged to the terminal, without the chatter of libraries.

    transformers and huggingface_hub read their variables when they are imported, which must come
    later than this: it takes longer to import them than ``--help`` to print.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # It warns of each attempt, twice, where there is no network; what it raises is reported.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    handler = _Handler(console=console, show_path=False, show_time=False, show_level=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    for noisy in ("httpx", "datasets", "filelock", "matplotlib", "fsspec", "submitit"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _Handler(RichHandler):
    """Prints what is logged, and the level only of what isn't information."""

    def render_message(self, record: logging.LogRecord, message: str) -> ConsoleRenderable:
        shown = super().render_message(record, message)
        if record.levelno <= logging.INFO:
            return shown
        level = record.levelname.lower()
        return Text.assemble((f"{level}: ", f"logging.level.{level}"), shown)  # type: ignore[arg-type]


def _group_options(*, _root_: DictConfig) -> str:
    """The groups of this command's defaults list, each with its options, as ``--help`` shows them.

    Hydra's own list shows every folder of conf/, also those that only other files use and those of
    the other command.
    """
    loader = GlobalHydra.instance().config_loader()
    groups = [g for g in _root_.hydra.runtime.choices if "@" not in g and "/" not in g]
    width = max(map(len, groups))
    lines = [f"  {g:{width}}  {', '.join(loader.get_group_options(g))}" for g in sorted(groups)]
    return "\n".join(lines)


def _explain(error: Exception) -> str:
    """Hydra's message as one line, which lists the known keys or options where one is unknown."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option} must be one of {', '.join(error.options)}."
    unknown = error.__cause__
    if not isinstance(unknown, (ConfigAttributeError, ConfigKeyError)):
        cause = f": {unknown.msg}" if isinstance(unknown, OmegaConfBaseException) else ""
        return " ".join(f"{error}{cause}".split())
    keys = sorted({*unknown.parent_node} - {"name", "hydra"})
    close = difflib.get_close_matches(str(unknown.key), keys, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    full_key = str(unknown.full_key)
    group = full_key.rpartition(".")[0]
    if not close and (owners := _options_with(full_key)):
        hint += f" It is a key of {', '.join(owners)}."
    where = f"{group} has the keys" if group else "The keys and groups are"
    known = f"{where} {', '.join(keys)}" if keys else f"{group} has no keys as it is"
    return f"{full_key} must be a known key.{hint} {known}."


def _options_with(full_key: str) -> list[str]:
    """The options of the key's group that have the key, as ``prompt=chat``."""
    group, _, key = full_key.partition(".")
    if not key:
        return []
    if not GlobalHydra.instance().is_initialized():  # Hydra has ended, by the error
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return _options_with(full_key)
    above, _, last = full_key.rpartition(".")
    found = []
    for option in GlobalHydra.instance().config_loader().get_group_options(group):
        with suppress(HydraException):  # a folder that is no group of these commands
            node = OmegaConf.select(compose("train", [f"{group}={option}"]), above)
            if isinstance(node, DictConfig) and last in node.keys():  # noqa: SIM118, also null
                found.append(f"{group}={option}")
    return found
