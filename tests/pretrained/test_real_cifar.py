"""CIFAR ResNets as their author trained them, on pictures that lie beside the checkout; skipped where they do not."""

import pytest
from real import SHARED

from jtl.cli import main
from jtl.predict import evaluate
from jtl.run import read

WEIGHTS, DATA = SHARED / 'weights' / 'cifar10_resnets', SHARED / 'data' / 'cifar10' / 'cifar10_10k_10k.zip'
CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.exists() or not DATA.exists(), reason='needs ../shared')
@pytest.mark.parametrize('file, accuracy', [('resnet20-12fca82f.th', 0.8103), ('resnet56-4bfd9763.th', 0.8320)])
def test_resnet_is_as_good_as_its_author_s(file, accuracy, tmp_path):
    """The accuracies are those that the original network has in PyTorch on these JPEG pictures (SOURCE.md there)."""
    (tmp_path / 'labels.txt').write_text('\n'.join(CLASSES))
    flags = [f'--to=run:{tmp_path / "run"}', f'--labels={tmp_path / "labels.txt"}']
    assert main(['convert', f'torch:{WEIGHTS / file}', *flags]) == 0
    _, values = evaluate(read(tmp_path / 'run'), f'folder:{DATA}', 'test')
    assert values['accuracy'] == pytest.approx(accuracy, abs=0.001)
