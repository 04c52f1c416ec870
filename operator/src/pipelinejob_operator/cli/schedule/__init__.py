"""`pipelinejob schedule`: micro-batch schedules listed, drawn and compared, without a job or a model."""

import typer

from pipelinejob_operator.cli.schedule.asked import EACH
from pipelinejob_operator.cli.schedule.compare import compare
from pipelinejob_operator.cli.schedule.listing import list_schedules
from pipelinejob_operator.cli.schedule.show import show

app = typer.Typer(help="List, draw and compare micro-batch schedules.", no_args_is_help=True, add_completion=False)
app.command("list")(list_schedules)
app.command(epilog=EACH)(show)
app.command(epilog=EACH)(compare)
