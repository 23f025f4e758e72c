"""The `modelpress` command: gathers the commands and turns every error into one clear sentence and an exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hub.errors import ModelPressError, Preempted
from leaderboard.text import terminal
from modelpress import (
    audit,
    bench,
    cancel,
    compare,
    compress,
    discover,
    doctor,
    hub_serve,
    jobs,
    measure,
    methods,
    pause,
    plan,
    prune,
    publish,
    recipes,
    replay,
    reproduce,
    resume,
    retire,
    retry,
    run,
    site,
    status,
    verify,
    work,
)
from modelpress.options import Options, echo
from modelpress.stopping import Terminated

UNEXPECTED = 70
INTERRUPTED = 130
AGAIN = "run the same command again to go on"


class Commands(TyperGroup):
    """The group that catches what its commands raise: a traceback is shown with --debug only."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; end with the error's own exit code, 130 on Ctrl-C, 19 on SIGTERM, 70 on an error nobody foresaw."""
        try:
            return super().invoke(ctx)
        except ModelPressError as error:
            if debugging():
                raise
            say(error.message, error.hint)
            raise typer.Exit(error.exit_code) from error
        except Terminated as error:
            say("the machine is taken away (SIGTERM): finished results are kept, what ran was put back", AGAIN)
            raise typer.Exit(Preempted.exit_code) from error
        except KeyboardInterrupt as error:
            say("interrupted: finished results are kept, what ran was put back", AGAIN)
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError as error:
            raise typer.Exit(0) from error
        except OSError as error:
            if debugging():
                raise
            say(
                f"{error.strerror or error}: {error.filename or 'no file named'}",
                "check permissions and free disk space (modelpress doctor)",
            )
            raise typer.Exit(1) from error
        except Exception as error:
            if debugging() or type(error).__module__.startswith(("typer", "click")):
                raise
            say(f"unexpected {type(error).__name__}: {error}", "this is a fault of ModelPress: run again with --debug and report it")
            raise typer.Exit(UNEXPECTED) from error


def debugging() -> bool:
    """Whether --debug stands on the command line before the command."""
    return "--debug" in sys.argv


def say(message: str, hint: str) -> None:
    """Print an error, and what to do next, to stderr."""
    typer.secho(terminal(f"error: {message}"), fg="red", err=True)
    if hint:
        echo(f"  what to do: {hint}", err=True)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Press popular Hub models smaller, prove what it costs on the published bytes, publish cards and a leaderboard.",
    epilog="First time? `modelpress run --quick` shows the whole path in a minute or two.",
)
app.command("discover")(discover.discover)
app.command("plan")(plan.plan)
app.command("work")(work.work)
app.command("publish")(publish.publish)
app.command("verify")(verify.verify)
app.command("audit")(audit.audit)
app.command("retire")(retire.retire)
app.command("site")(site.site)
app.command("run")(run.run)
app.command("status")(status.status)
app.add_typer(jobs.jobs_app, name="jobs")
app.command("retry")(retry.retry)
app.command("cancel")(cancel.cancel)
app.command("pause")(pause.pause)
app.command("resume")(resume.resume)
app.command("prune")(prune.prune)
app.command("compress")(compress.compress)
app.command("measure")(measure.measure)
app.command("compare")(compare.compare)
app.command("reproduce")(reproduce.reproduce)
app.command("replay")(replay.replay)
app.command("methods")(methods.methods)
app.command("recipes")(recipes.recipes)
app.command("doctor")(doctor.doctor)
app.command("bench")(bench.bench)
hub_app = typer.Typer(no_args_is_help=True, help="The embedded hub.")
hub_app.command("serve")(hub_serve.serve)
app.add_typer(hub_app, name="hub")


@app.callback()
def options(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option(help="Settings file; modelpress.toml in this folder when not given.")] = None,
    work_dir: Annotated[Path | None, typer.Option(help="Work folder; overrides press.work_dir.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Press popular Hub models smaller, prove what it costs on the published bytes, publish cards and a leaderboard."""
    ctx.obj = Options(config=config, work_dir=work_dir, debug=debug)


def main() -> None:
    """Entry point of the `modelpress` command."""
    # For torch here and in all jobs. Threads that spin long while they wait starve each other as soon as anything else runs (6 times
    # slower on two busy cores); threads that never spin are twice as slow where nothing else runs. So they spin shortly.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    app()


if __name__ == "__main__":
    main()
