"""What DVC says of a pipeline."""


def ran(printed: str) -> list[str]:
    """The stages that DVC ran, by what it printed; not `digests`, which runs every time."""
    stages = [line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage")]
    return [stage for stage in stages if not stage.endswith(":digests")]
