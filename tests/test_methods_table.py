"""The table of ways to fine-tune, from hand-made comparisons."""

import json
import sys
from pathlib import Path

import pytest

from jtl.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / 'experiments'))
import methods_table  # noqa: E402

LINE = {'edge': False, 'mean': 0.5, 'half': 0.02, 'trained': 1234, 'bytes': 2e6, 'flops': 3.45e9}


def written(folder, lines):
    folder.mkdir()
    (folder / 'results.jsonl').write_text(''.join(json.dumps({**LINE, **line}) + '\n' for line in lines))
    (folder / 'RESULTS.md').write_text('# A\n\n- command: jtl compare --workdir=/home/someone/q\n- commit: abc\n')


def test_a_row_a_method_and_a_column_a_number_of_labels(tmp_path):
    few = {'trained': 5, 'bytes': 1e6}
    written(tmp_path / 'flowers', [
        {'method': 'finetune', 'across': 'all'},
        {'method': 'lora', 'across': 'all', 'mean': 0.625, 'edge': True, 'verdict': 'helps', **few},
    ])  # fmt: skip
    written(tmp_path / 'photos', [
        {'method': 'finetune', 'across': 4, 'half': None, 'trained': 9},
        {'method': 'scratch', 'across': 25, 'mean': 0.1, 'verdict': 'hurts'},
        {'method': 'finetune', 'across': 25, 'mean': None},
    ])  # fmt: skip
    rows = [[cell.strip() for cell in row.split('|')[1:-1]] for row in methods_table.table(tmp_path).splitlines()[:5]]
    assert rows[0][:4] == ['method', 'flowers', 'photos, 4 labels a class', 'photos, 25 labels a class']
    assert rows[2] == ['finetune', '50.0 ± 2.0', '50.0', '–', '1,234', '2', '3.45']
    assert rows[3] == ['lora', '62.5 ± 2.0* ↑', '–', '–', '5', '1', '3.45']
    assert rows[4][:4] == ['scratch', '–', '–', '10.0 ± 2.0 ↓']


def test_notes_say_where_numbers_are_from_and_no_path(tmp_path):
    written(tmp_path / 'flowers', [{'method': 'finetune', 'across': 'all'}])
    text = methods_table.table(tmp_path)
    assert 'flowers: command: jtl compare' in text and 'commit: abc' in text and '/home' not in text


def test_a_folder_without_comparisons_is_refused(tmp_path):
    with pytest.raises(UserError, match='no DATA/results.jsonl'):
        methods_table.table(tmp_path)
