"""What the columns of a head stand for: label names in the order of the logits."""

from collections.abc import Mapping
from typing import Any

from jtl.errors import UserError, nearest, printable
from jtl.files import expanded, read_json


def class_names(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Label names in a config.json, Hugging Face's or timm's; () if there are none, or placeholders only.

    Raises:
        UserError: they are not one name for each of 0 … K - 1.
    """
    cfg = config.get('pretrained_cfg')
    for key, said in (
        ('id2label', config.get('id2label')),
        ('label_names', config.get('label_names') or (isinstance(cfg, dict) and cfg.get('label_names'))),
    ):
        if said:
            names = in_order(said, f'{where}: {key}')
            return () if all(name == f'LABEL_{i}' for i, name in enumerate(names)) else names
    return ()


def read_labels(path: str) -> tuple[str, ...]:
    """Class names from a file, in the order of the logits: a line each, or JSON.

    JSON is a list of names, an object of names by index, one of indices by name, or an object that has one of these as
    its `labels`.

    Raises:
        UserError: not such a file.
    """
    file = expanded(path)
    if not file.is_file():
        there = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        raise UserError(f'labels: {path} does not exist: {nearest(file.name, there[:30])}')
    if file.suffix.lower() == '.json':
        said = read_json(file, (dict, list))
        return in_order(said['labels'] if isinstance(said, dict) and 'labels' in said else said, path)
    try:
        lines = file.read_text(encoding='utf-8-sig').splitlines()
    except UnicodeDecodeError as e:
        raise UserError(f'labels: {path} is not a text in UTF-8: {e}.') from e
    names = tuple(line.strip() for line in lines)
    while names and not names[-1]:
        names = names[:-1]
    if not names or not all(names):
        raise UserError(f'labels: {path}: expected a class name a line, found {"an empty one" if names else "none"}.')
    return names


def in_order(said: Any, where: str) -> tuple[str, ...]:
    """A list of names, `{index: name}` or `{name: index}` -> names in the order of their indices."""
    if isinstance(said, dict):
        pairs = list(said.items())
        if all(type(value) is int for _, value in pairs):
            pairs = [(str(index), name) for name, index in pairs]
        order = {str(i): i for i in range(len(pairs))}
        if odd := sorted({key for key, _ in pairs} - set(order)) or (len(dict(pairs)) < len(pairs) and ['one twice']):
            raise UserError(f'{where}: expected a name for each of 0 … {len(pairs) - 1}, found {printable(odd[0])}.')
        said = [name for _, name in sorted(pairs, key=lambda pair: order[pair[0]])]
    if not isinstance(said, list) or not said or not all(isinstance(name, str) and name for name in said):
        raise UserError(f'{where}: expected a list of class names, or an object of names by index.')
    return tuple(said)
