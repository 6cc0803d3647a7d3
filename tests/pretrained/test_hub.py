"""The hub's files, from a server that speaks as the hub does: found, pinned, cached, and missing in every way."""

import errno
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

from jtl.errors import UserError
from jtl.pretrained import hub, source

COMMITS = {'main': 'a' * 40, 'v1': 'b' * 40}


class Hub(http.server.ThreadingHTTPServer):
    """Repositories as `{id: {commit: {file: bytes}}}`; `asked` has the requests."""

    daemon_threads = True

    def __init__(self, repos, gated=()):
        super().__init__(('127.0.0.1', 0), Answer)
        self.repos, self.gated, self.asked = repos, gated, []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_address[1]}'

    def downloads(self):
        return [path.split('/')[-1] for verb, path in self.asked if verb == 'GET' and '/resolve/' in path]


class Answer(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, status, body=b'', **headers):
        self.send_response(status)
        for key, value in {'Content-Length': len(body), **headers}.items():
            self.send_header(key.replace('_', '-'), str(value))
        self.end_headers()
        if self.command == 'GET':
            self.wfile.write(body)

    def do_HEAD(self):
        self.server.asked.append((self.command, self.path))
        if self.path.startswith('/api/models/'):
            return self.api(self.path.removeprefix('/api/models/'))
        repo, _, rest = self.path[1:].partition('/resolve/')
        revision, _, file = rest.partition('/')
        if repo in self.server.gated:
            return self.answer(401, X_Error_Code='GatedRepo', X_Error_Message='Access is restricted.')
        if repo not in self.server.repos:
            return self.answer(401, X_Error_Code='RepoNotFound', X_Error_Message='Invalid username or password.')
        commit = COMMITS.get(revision, revision)
        if commit not in self.server.repos[repo]:
            return self.answer(404, X_Error_Code='RevisionNotFound', X_Error_Message='Invalid rev id')
        body = self.server.repos[repo][commit].get(file)
        if body is None:
            return self.answer(404, X_Error_Code='EntryNotFound', X_Repo_Commit=commit)
        self.answer(200, body, X_Repo_Commit=commit, ETag=f'"{hashlib.sha256(body).hexdigest()}"')

    do_GET = do_HEAD

    def api(self, rest):
        repo, _, verb = rest.partition('/refs')
        repo, _, rest = repo.partition('/tree/')
        if verb or self.path.endswith('/refs'):
            refs = [{'name': k, 'ref': f'refs/heads/{k}', 'targetCommit': v} for k, v in COMMITS.items()]
            return self.answer(200, json.dumps({'branches': refs, 'tags': [], 'converts': []}).encode())
        repo, _, revision = repo.partition('/revision/')
        revision = rest.split('?')[0] or revision
        files = self.server.repos[repo][COMMITS.get(revision, revision)]
        if rest:
            said = [{'type': 'file', 'path': f, 'size': len(b), 'oid': '0' * 40} for f, b in files.items()]
        else:
            said = {'id': repo, 'sha': COMMITS.get(revision), 'siblings': [{'rfilename': f} for f in files]}
        self.answer(200, json.dumps(said).encode(), Content_Type='application/json')


REPOS = {
    'timm/tiny': {
        COMMITS['main']: {
            'config.json': b'{"architecture": "resnet18"}',
            'model.safetensors': b'safe',
            'pytorch_model.bin': b'pickle',
        },
        COMMITS['v1']: {'config.json': b'{"architecture": "resnet10t"}', 'pytorch_model.bin': b'old'},
    },
    'google/vit': {
        COMMITS['main']: {
            'config.json': b'{"model_type": "vit"}',
            'preprocessor_config.json': b'{"size": 224}',
            'pytorch_model.bin': b'pickle',
        }
    },
    'org/bert': {
        COMMITS['main']: {
            'config.json': b'{"model_type": "bert", "vocab_size": 9}',
            'model.safetensors': b'safe',
            'tokenizer.json': b'{}',
            'vocab.txt': b'[PAD]',
            'README.md': b'#',
        }
    },
    'org/sharded': {
        COMMITS['main']: {
            'model.safetensors.index.json': b'{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}',
            'one.safetensors': b'1',
            'two.safetensors': b'2',
        }
    },
    'org/raw': {COMMITS['main']: {'B_16.npz': b'npz', 'README.md': b'#'}},
    'org/many': {COMMITS['main']: {'a.npz': b'a', 'sub/b.pth': b'b'}},
    'org/none': {COMMITS['main']: {'README.md': b'#'}},
    'org/liar': {COMMITS['main']: {'model.safetensors.index.json': b'{"weight_map": {"a": "../../etc/passwd"}}'}},
    'org/broken': {COMMITS['main']: {'config.json': b'{"a": ', 'model.safetensors': b'safe'}},
}


def aim(monkeypatch, url):
    """As HF_ENDPOINT does, which is read when the library is imported."""
    monkeypatch.setattr(constants, 'ENDPOINT', url)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', url + '/{repo_id}/resolve/{revision}/{filename}')


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Hub(REPOS, gated=('org/gated',))
    aim(monkeypatch, server.url)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'token'))
    monkeypatch.delenv('HF_TOKEN', raising=False)
    yield server
    server.shutdown()
    server.server_close()


def stop(server):
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    'name, expected',
    [
        ('timm/a.b_c', ('timm/a.b_c', 'main', '')),
        ('timm/a@v1', ('timm/a', 'v1', '')),
        ('timm/a@refs/pr/3:sub/x.npz', ('timm/a', 'refs/pr/3', 'sub/x.npz')),
        ('gpt2:x.bin', ('gpt2', 'main', 'x.bin')),
    ],
)
def test_parse(name, expected):
    assert hub.parse(name) == expected


@pytest.mark.parametrize('name', ['', 'a/b/c', 'a/b@', 'a/b:', 'a/b:/etc/passwd', 'a/b:../x', 'a b', 'a/b@c@d'])
def test_parse_refuses(name):
    with pytest.raises(UserError, match='expected hf:OWNER/NAME'):
        hub.parse(name)


def test_fetch_takes_one_kind_of_weights(server):
    got = hub.fetch('timm/tiny')
    assert got.weights == 'model.safetensors' and got.commit == COMMITS['main'] and got.repo == 'timm/tiny'
    assert {name: path.read_bytes() for name, path in got.files.items()} == {
        'config.json': b'{"architecture": "resnet18"}',
        'model.safetensors': b'safe',
    }
    assert server.downloads() == ['config.json', 'model.safetensors']


def test_fetch_pins_the_commit(server):
    hub.fetch('google/vit')
    asked = [path for _, path in server.asked if '/resolve/' in path]
    # After the first file, the branch is not asked again: it may have moved on.
    assert [COMMITS['main'] in path for path in asked].index(True) <= 2
    assert all(COMMITS['main'] in path for path in asked[2:])


def test_fetch_takes_a_revision_and_a_file(server):
    old = hub.fetch('timm/tiny@v1')
    assert (old.commit, old.weights, old.files['pytorch_model.bin'].read_bytes()) == (
        COMMITS['v1'],
        'pytorch_model.bin',
        b'old',
    )
    assert hub.fetch('timm/tiny:pytorch_model.bin').weights == 'pytorch_model.bin'
    assert 'sub/b.pth' in hub.fetch('org/many:sub/b.pth').files
    assert hub.fetch(f'timm/tiny@{COMMITS["v1"]}').commit == COMMITS['v1']


def test_fetch_takes_what_describes_the_weights(server):
    assert set(hub.fetch('google/vit').files) == {'config.json', 'preprocessor_config.json', 'pytorch_model.bin'}
    text = hub.fetch('org/bert')
    assert set(text.files) == {'config.json', 'model.safetensors', 'tokenizer.json', 'vocab.txt'}


def test_fetch_takes_all_shards(server):
    got = hub.fetch('org/sharded')
    assert got.weights == 'model.safetensors.index.json'
    assert {p.parent for p in got.files.values()} == {got.files[got.weights].parent}
    assert set(got.files) == {got.weights, 'one.safetensors', 'two.safetensors'}


def test_fetch_takes_the_only_other_weights(server):
    assert hub.fetch('org/raw').weights == 'B_16.npz'
    with pytest.raises(UserError, match='Name one of them: hf:org/many:a.npz, hf:org/many:sub/b.pth'):
        hub.fetch('org/many')
    with pytest.raises(UserError, match='has none of model.safetensors.* It has README.md'):
        hub.fetch('org/none')


@pytest.mark.parametrize('name', ['timm/tiny', 'google/vit', 'org/bert', 'org/sharded', 'org/raw', 'timm/tiny@v1'])
@pytest.mark.parametrize('how', ['down', 'offline'])
def test_fetch_needs_no_hub_the_second_time(server, monkeypatch, name, how):
    first = hub.fetch(name)
    asked = len(server.asked)
    if how == 'down':
        stop(server)
        waits = []
        monkeypatch.setattr('time.sleep', waits.append)
    else:
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert hub.fetch(name) == first
    assert len(server.asked) == asked
    assert how == 'offline' or len(waits) <= 10  # the library tries five times; a file and a listing, at most


def test_fetch_downloads_nothing_twice(server):
    first = hub.fetch('org/bert')
    downloads = len(server.downloads())
    assert hub.fetch('org/bert') == first
    assert len(server.downloads()) == downloads
    # What another program took is taken, rather than the other kind of weights.
    huggingface_hub.hf_hub_download('timm/tiny', 'pytorch_model.bin')
    assert hub.fetch('timm/tiny').weights == 'pytorch_model.bin'


def test_fetch_offline_says_what_is_missing(server, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(UserError, match='HF_HUB_OFFLINE is set, and config.json at main is not in the cache'):
        hub.fetch('timm/tiny')


def test_fetch_offline_does_not_do_without_a_description(server, monkeypatch):
    # Weights that another program left alone in the cache: without config.json they would be read in another way.
    huggingface_hub.hf_hub_download('timm/tiny', 'model.safetensors')
    huggingface_hub.hf_hub_download('google/vit', 'config.json')
    huggingface_hub.hf_hub_download('google/vit', 'pytorch_model.bin')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(UserError, match='config.json at main is not in the cache.*hf download timm/tiny'):
        hub.fetch('timm/tiny')
    with pytest.raises(UserError, match='preprocessor_config.json at a{40} is not in the cache'):
        hub.fetch('google/vit')


def whole_download(monkeypatch, repo):
    """As `hf download` leaves it: with the file that no model needs."""
    monkeypatch.setitem(REPOS[repo][COMMITS['main']], '.gitattributes', b'')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    huggingface_hub.hf_hub_download(repo, '.gitattributes')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)


def test_fetch_offline_takes_a_whole_download(server, monkeypatch):
    # `hf download` notes no absences: what is not there does not exist.
    huggingface_hub.hf_hub_download('org/sharded', 'model.safetensors.index.json')
    huggingface_hub.hf_hub_download('org/sharded', 'one.safetensors')
    huggingface_hub.hf_hub_download('org/sharded', 'two.safetensors')
    whole_download(monkeypatch, 'org/sharded')
    assert hub.fetch('org/sharded').weights == 'model.safetensors.index.json'


def test_fetch_offline_takes_the_tokenizer_that_is_there(server, monkeypatch):
    for file in ('config.json', 'model.safetensors', 'vocab.txt'):
        huggingface_hub.hf_hub_download('org/bert', file)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(UserError, match='1_Pooling/config.json at a{40} is not in the cache'):
        hub.fetch('org/bert')  # is it one of sentence-transformers?
    whole_download(monkeypatch, 'org/bert')
    assert set(hub.fetch('org/bert').files) == {'config.json', 'model.safetensors', 'vocab.txt'}


def test_fetch_without_a_tokenizer_in_the_cache(server, monkeypatch):
    for file in ('config.json', 'model.safetensors'):
        huggingface_hub.hf_hub_download('org/bert', file)
    with pytest.raises(huggingface_hub.errors.EntryNotFoundError):
        huggingface_hub.hf_hub_download('org/bert', '1_Pooling/config.json', revision=COMMITS['main'])
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(UserError, match='tokenizer.json at a{40} is not in the cache'):
        hub.fetch('org/bert')


@pytest.mark.parametrize(
    'name, message',
    [
        ('timm/absent', 'hf:timm/absent does not exist at http.*if it is private, log in with `hf auth login`'),
        ('org/gated', 'hf:org/gated is gated: accept its terms at http.*/org/gated; then log in'),
        ('timm/tiny@v2', "hf:timm/tiny has no revision 'v2': did you mean 'v1'"),
        ('timm/tiny:model.safetensor', "no file 'model.safetensor' at a{40}: did you mean 'model.safetensors'"),
        ('org/liar', "'../../etc/passwd' is no name of a file beside it"),
        ('org/broken', 'config.json is not JSON'),
        ('a..b/c', 'Expected hf:OWNER/NAME'),
    ],
)
def test_fetch_says_what_to_do(server, name, message):
    with pytest.raises(UserError, match=message):
        hub.fetch(name)


def test_fetch_speaks_of_the_token(server, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'hf_wrong')
    with pytest.raises(UserError, match='the token that is set may not see it'):
        hub.fetch('timm/absent')
    with pytest.raises(UserError, match='the token that is set has not been granted access'):
        hub.fetch('org/gated')


@pytest.mark.parametrize(
    'error, message',
    [
        (OSError(errno.ENOSPC, 'No space left on device'), 'no space left for config.json in .*cache.*HF_HOME'),
        (OSError('Consistency check failed: file should be of size 4'), 'not downloaded: Consistency check failed'),
        (OSError('\x1b[2J' * 200), r'not downloaded: (\\x1b\[2J){125}…$'),
    ],
)
def test_fetch_tells_of_the_disk(server, monkeypatch, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', fail)
    with pytest.raises(UserError, match=message):
        hub.fetch('timm/tiny')


def test_fetch_says_what_a_repository_has_without_control_characters(server, monkeypatch):
    monkeypatch.setitem(REPOS, 'org/odd', {COMMITS['main']: {'a\x1b[2J.txt': b''}})
    with pytest.raises(UserError, match=r'It has a\\x1b\[2J\.txt') as e:
        hub.fetch('org/odd')
    assert str(e.value).isprintable()
    monkeypatch.setitem(REPOS, 'org/odd', {COMMITS['main']: {'a\x1b[2J.ckpt': b'', 'b.pth.TAR': b''}})
    with pytest.raises(UserError, match=r'Name one of them: hf:org/odd:a\\x1b\[2J\.ckpt, hf:org/odd:b\.pth\.TAR') as e:
        hub.fetch('org/odd')
    assert str(e.value).isprintable()


def test_fetch_tells_of_a_broken_connection(server, monkeypatch):
    # Promises more bytes than it sends, each time.
    monkeypatch.setitem(REPOS['timm/tiny'], COMMITS['main'], {'config.json': b'{}', 'model.safetensors': b'x' * 64})
    whole = Answer.answer

    def short(self, status, body=b'', **headers):
        if self.command == 'GET' and body.startswith(b'xx'):
            whole(self, status, body[:8], **headers, Content_Length=64)
            self.close_connection = True
        else:
            whole(self, status, body, **headers)

    monkeypatch.setattr(Answer, 'answer', short)
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    with pytest.raises(UserError, match='hf:timm/tiny: model.safetensors was not downloaded'):
        hub.fetch('timm/tiny')


def test_read_takes_tensors_from_the_hub(server, monkeypatch):
    def safetensors(name, x):
        header = json.dumps({name: {'dtype': 'F32', 'shape': x.shape, 'data_offsets': [0, x.nbytes]}}).encode()
        return len(header).to_bytes(8, 'little') + header + x.tobytes()

    weights = {'fc.weight': np.arange(6, dtype=np.float32).reshape(2, 3), 'fc.bias': np.float32([1, 2])}
    files = {f'{name}.safetensors': safetensors(name, x) for name, x in weights.items()}
    index = {'weight_map': {name: f'{name}.safetensors' for name in weights}}
    description = {'model_type': 'vit', 'id2label': {'0': 'cat', '1': 'dog'}}
    files['model.safetensors.index.json'] = json.dumps(index).encode()
    files['config.json'] = json.dumps(description).encode()
    files['preprocessor_config.json'] = b'{"size": 32}'
    monkeypatch.setitem(REPOS, 'org/net', {COMMITS['v1']: files})
    found = source.read('hf:org/net@v1')
    assert found.config == description and found.classes == ('cat', 'dog') and found.preprocess['size'] == 32
    assert sorted(found.files) == sorted(f'hf:org/net@{COMMITS["v1"]}:{name}' for name in files)
    for name, x in weights.items():
        np.testing.assert_array_equal(found.tensors[name], x)


def test_hub_obeys_the_environment(server, tmp_path):
    code = "from jtl.pretrained import hub; print(hub.fetch('timm/tiny').files['config.json'])"
    environ = {**os.environ, 'HF_ENDPOINT': server.url, 'HF_HOME': str(tmp_path / 'home')}

    def run(**more):
        return subprocess.run([sys.executable, '-c', code], env={**environ, **more}, capture_output=True, text=True)

    assert run().stdout.startswith(str(tmp_path / 'home' / 'hub'))
    asked = len(server.asked)
    assert run(HF_HUB_OFFLINE='1').returncode == 0 and len(server.asked) == asked
    assert 'HF_HUB_OFFLINE is set' in run(HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path / 'empty')).stderr


def test_hub_is_not_imported_until_it_is_needed():
    code = "import sys, jtl.pretrained.hub; assert 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, '-c', code], check=True)


def test_fetch_with_nobody_there(server, monkeypatch):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        aim(monkeypatch, f'http://127.0.0.1:{free.getsockname()[1]}')
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # the library tries five times
    with pytest.raises(
        UserError, match=r'http://127.0.0.1:.* does not answer \(.*refused.*\), and config.json at main is not in'
    ):
        hub.fetch('timm/tiny')
