"""What growth asks of every family: that nothing gets smaller."""

from jtl.errors import UserError


def not_below(key: str, old: int, new: int, what: str = '') -> None:
    """Refuses a setting that is smaller than the weights'.

    Args:
        what: is counted, if the setting is not the number itself.
    """
    if new < old:
        unit = f' {what}' if what else ''
        raise UserError(f'config.model.{key}: {new}{unit} is below the {old} of the weights; growth only adds.')
