"""`mi-llm screen --open`: the screening pages as a service on this machine alone.

Reads what `transcribe` and `read` wrote, and the study's decisions folder; writes `decisions.csv` there, and corrected dialogs.
"""

from mi_llm.apps import web
from mi_llm.apps.screening.app import create
from mi_llm.study import Study

HOST = "127.0.0.1"


def serve(study: Study, port: int) -> None:
    """Run the pages until they are interrupted."""
    app = create(study)
    listening = web.listen(HOST, port)
    here = web.reached_at(listening, HOST, None)
    opened = f"Screening is open: {here}   Ctrl+C closes it. Decisions: {study.screen.decisions}/decisions.csv"
    web.run(app, listening, [], opened)
