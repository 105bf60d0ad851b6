"""`mi-llm desk`: the desk as a service on one machine, its links, and the export into the files that the stage `code` reads.

Reads the packets' folder and, where there are any, a training folder and hidden gold codes; writes `desk.sqlite` in the data
folder.
"""

from contextlib import suppress
from pathlib import Path

from mi_llm import storage
from mi_llm.apps import web
from mi_llm.apps.desk import agreement
from mi_llm.apps.desk.app import create
from mi_llm.apps.desk.drift import KAPPA
from mi_llm.apps.desk.store import Store
from mi_llm.codebook.packets import COORDINATOR, Packets, read
from mi_llm.problem import Problem


def serve(
    packets: Path,
    data: Path,
    host: str,
    port: int,
    *,
    training: Path | None = None,
    training_first: bool = False,
    gold: Path | None = None,
    threshold: float = KAPPA,
    address: str | None = None,
    proxies: str = "",
) -> None:
    """Run the desk until it is interrupted. Links of people who have none are made and printed, once.

    `training_first`: a rater's packets open when all exercises are finished. `gold`: a file of gold codes of some packets, which
    nothing shows to raters. Agreement (κ) below `threshold` is a warning on the coordinator's page. `address` is where people
    reach the desk, where that is not host and port: for instance an https proxy. `proxies` are the proxies' addresses and
    networks.
    """
    known = web.trusted(proxies)
    if training_first and training is None:
        raise Problem("--training-first", "no --training", "a folder of exercises", "name it with --training")
    desk = read(packets, training, gold)
    listening = web.listen(host, port)
    store = Store(data)
    store.pin(desk)
    here = web.reached_at(listening, host, address)
    made = _links(store, desk, here, renew=False)
    if made:
        print("Personal links, shown only once; give each to its person:\n", *made, "", sep="\n", flush=True)
    else:
        print("Everybody already has a link; `mi-llm desk links --renew NAME` makes a new one.")
    web.warn("Links and codes", host, here, known)
    opened = f"The desk is open: {here}   Ctrl+C closes it; saved work stays in {store.path}"
    try:
        with suppress(KeyboardInterrupt):  # which a shell's background process does not get
            web.run(create(desk, store, training_first=training_first, threshold=threshold), listening, known, opened)
    finally:
        store.close()
    print("\nThe desk is closed.")


def links(packets: Path, data: Path, address: str, renew: str | None = None) -> None:
    """Print links of people who have none, or a new link for one person, which replaces the old one."""
    desk, store = read(packets), Store(data)
    if renew is not None and renew not in _people(desk):
        raise Problem(renew, "nobody at this desk", ", ".join(_people(desk)), "correct the name")
    made = _links(store, desk, address, renew=renew is not None, only=renew)
    print("\n".join(made) or "Everybody already has a link; --renew NAME makes a new one.")
    store.close()


def export(packets: Path, data: Path, out: Path) -> None:
    """Write `codes.csv`, `globals.csv`, `guesses.csv` and `consensus.csv` of the packets that all their raters finished."""
    if not (data / "desk.sqlite").is_file():
        raise Problem(str(data / "desk.sqlite"), "no such file", "a desk's data", "correct --data")
    desk, store = read(packets), Store(data)
    store.pin(desk)
    states = store.states()
    files = agreement.export(desk, states)
    for name, text in files.items():
        storage.write_text(out / name, text)
    written = ", ".join(str(out / name) for name in files)
    print(f"{len(agreement.released(desk, states))} of {len(desk.study)} packets are finished by all their raters: {written}")
    store.close()


def _people(desk: Packets) -> list[str]:
    return [*desk.raters, COORDINATOR]


def _links(store: Store, desk: Packets, address: str, *, renew: bool, only: str | None = None) -> list[str]:
    made = {person: store.link(person, renew=renew) for person in _people(desk) if only in (None, person)}
    width = max(map(len, _people(desk)))
    return [f"{person:{width}}  {address.rstrip('/')}/in/{token}" for person, token in made.items() if token]
