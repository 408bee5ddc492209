"""The check that most tables share."""


def at_least(minimum: float, **values: float) -> None:
    """Raise ValueError for the first value below `minimum`."""
    for name, value in values.items():
        if not value >= minimum:
            raise ValueError(f"{name} = {value} must be at least {minimum:g}")
