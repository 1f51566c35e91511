"""The command line: Hydra composes, the typed config is checked, the pipeline runs."""

import os
import sys
import warnings
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from paft.command.choices import CONF
from paft.command.compose import register_schemas, to_config, with_new_tasks
from paft.command.failures import Failures
from paft.command.grid import is_grid
from paft.command.help import show_help, topics
from paft.command.launchers import refuse_single_run
from paft.command.mistakes import explain, is_mistake
from paft.command.search import objective, refuse_training, trial_command
from paft.command.sweep import Sweep, unwrapped
from paft.command.unread import refuse_unused
from paft.command.words import flag_first
from paft.graph.build import build
from paft.plan import show_plan
from paft.process.interrupt import Interrupted, ignore_signals, stop_on_signals
from paft.process.slurm import requeued, require_nodes


def main() -> int:
    """Exit code 0; 2 after a message for a wrong command or input, and for a grid with cells that failed; other
    failures keep their traceback.

    130 after Ctrl-C and 143 after SIGTERM: what was begun is kept, and the same command goes on with it.
    """
    stop_on_signals()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach us whole, and we word them
    # OpenMP threads soon sleep while they wait: where processes share cores, spinning ones cost several times
    # the work itself, and with a short spin an idle machine is as fast as with a long one
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # conf/hydra/launcher/ray.yaml has the plugin's name on purpose
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/ray' is validated against ConfigStore schema")
    register_schemas()
    asked = topics(sys.argv[1:])
    sys.argv[1:] = with_new_tasks(flag_first(sys.argv[1:]))
    try:
        for topic in asked:
            show_help(topic)
        if asked:
            return 0
        with Sweep.reported(), unwrapped():
            _hydra_main()
    except Interrupted as stop:
        ignore_signals()
        print(
            f"stopped by {stop}: give the same command again to go on; nothing finished is lost",
            file=sys.stderr,
        )
        return stop.exit_code
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        if os.environ.get("PAFT_TRACEBACK") or not is_mistake(error):
            raise
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    return 0


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def _hydra_main(cfg: DictConfig) -> float | None:
    """What a search makes larger: `evaluate.objective`, minus it where lower is better; None of a plan.

    A cell of a grid that fails is named and kept for the end of the grid, which goes on.
    """
    job = HydraConfig.get()
    if job.mode is hydra.types.RunMode.RUN or not is_grid(job.sweeper):
        return _run(cfg, None)
    failures = Failures(Path(job.sweep.dir))
    try:
        return _run(cfg, failures)
    except Exception as error:
        mistake = is_mistake(error) and not os.environ.get("PAFT_TRACEBACK")
        failures.add(job.job.num, job.overrides.task, error, mistake=mistake)
        return None


def _run(cfg: DictConfig, failures: Failures | None) -> float | None:
    config = to_config(cfg)
    job = HydraConfig.get()
    alone = job.mode is hydra.types.RunMode.RUN
    if alone:
        refuse_single_run(job.launcher)
        refuse_unused(job.overrides.task, [config])
    cell = build(config)
    if config.plan:
        if alone:  # a grid is planned as a whole, see Sweep
            show_plan([(config, cell)])
        return None
    if config.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # of rows and of the items of tasks too
    refuse_training(config, cell, trial_command(job))
    from paft.command.pipeline import run_cell, write_report

    require_nodes(config.trainer.num_nodes)
    with requeued():
        folder = run_cell(config, cell, failures)
    if alone:
        write_report([config])
    return objective(config, folder)
