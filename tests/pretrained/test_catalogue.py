"""The list of well-known names."""

import pytest

from jtl.errors import UserError
from jtl.pretrained import catalogue, hub, source


def test_catalogue_has_names_of_the_hub():
    assert len(catalogue.KNOWN) >= 30
    for name, uri in catalogue.KNOWN.items():
        repo, revision, file = hub.parse(uri.removeprefix('hf:'))
        assert repo.count('/') == 1 and (revision, file) == ('main', '')
        assert repo == name or repo.split('/')[1] == name


@pytest.mark.parametrize(
    'name, repo',
    [
        ('resnet50.a1_in1k', 'timm/resnet50.a1_in1k'),
        ('vit_base_patch16_224.augreg_in21k', 'timm/vit_base_patch16_224.augreg_in21k'),
        ('bert-base-uncased', 'google-bert/bert-base-uncased'),
        ('all-MiniLM-L6-v2', 'sentence-transformers/all-MiniLM-L6-v2'),
        ('google/vit-base-patch16-224', 'google/vit-base-patch16-224'),
    ],
)
def test_catalogue_resolves(name, repo):
    assert source.resolve(name) == ('hf', repo, '')


def test_catalogue_suggests_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'resnet50.a1_in1k'"):
        source.resolve('resnet50-a1_in1k')
    with pytest.raises(UserError, match='not a whole name. Did you mean resnet50.tv_in1k, resnet50.a1_in1k'):
        source.resolve('resnet50')
