"""Files of the Hugging Face hub, through its own library: its cache, its offline mode, its tokens.

`HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they do elsewhere. What another program downloaded
is found, and what is downloaded here other programs find.
"""

import errno
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jtl.errors import UserError, nearest, printable, some
from jtl.files import read_json
from jtl.pretrained.formats import shards

CONFIG, PREPROCESSOR = 'config.json', 'preprocessor_config.json'
WEIGHTS = (  # the first that is there is taken
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)
TOKENIZER = (  # all that a tokenizer is made of: a run keeps them too
    'tokenizer.json',
    'vocab.txt',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'sentence_bert_config.json',  # the length that sentence-transformers cuts to
)
POOLING = '1_Pooling/config.json'  # how sentence-transformers makes one vector of a sentence
SUFFIXES = {  # of weights, and the scheme that reads them
    **dict.fromkeys(('.pth', '.th', '.pt', '.bin', '.ckpt', '.tar'), 'torch'),
    '.safetensors': 'safetensors',
    '.npz': 'npz',
    **dict.fromkeys(('.h5', '.hdf5', '.keras'), 'keras'),
}
MISSING = 'missing'
_NAME = re.compile(r'(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^:@]+))?(?::(?P<file>[^:]+))?')


class Snapshot(NamedTuple):
    """Files of one commit of a repository, in the cache.

    Attributes:
        repo: `OWNER/NAME`.
        commit: of all of them.
        files: by their names there.
        weights: the name of the weights, or of their index.
    """

    repo: str
    commit: str
    files: dict[str, Path]
    weights: str


class Unreachable(UserError):
    """The network does not answer, and the cache does not have the file."""


def parse(name: str) -> tuple[str, str, str]:
    """`OWNER/NAME[@REVISION][:FILE]` -> (repository, revision or `main`, file or '')."""
    found = _NAME.fullmatch(name)
    file = (found and found['file']) or ''
    if not found or file.startswith('/') or '..' in file.split('/'):
        raise UserError(
            f'hf:{name}: expected hf:OWNER/NAME[@REVISION][:FILE], e.g. hf:timm/resnet50.a1_in1k or '
            'hf:google-bert/bert-base-uncased@main:model.safetensors.'
        )
    return found['repo'], found['revision'] or 'main', file


def fetch(name: str) -> Snapshot:
    """Downloads what is needed of a repository, or finds it in the cache: weights of one kind, and their description.

    Args:
        name: `OWNER/NAME[@REVISION][:FILE]`; FILE picks one of several weights.

    Raises:
        UserError: what is missing, and what to do.
    """
    repo, revision, chosen = parse(name)
    files: dict[str, Path] = {}
    local = False  # whether the network has failed: asking again takes half a minute

    def take(file: str, needed: bool = True) -> Path | None:
        """All files are of the commit that the first one had, even if the branch moves on meanwhile."""
        nonlocal revision, local
        try:
            path = _get(repo, revision, file, local)
        except Unreachable:
            local = True
            if needed and not _absent(repo, revision, file):
                raise
            return None
        if path is not None:
            files[file] = path
            revision = _commit(path, file)
        return path

    _describe(take, ''.join(chosen.rpartition('/')[:2]))
    weights = chosen or _choose(repo, revision, take)
    if weights not in files and take(weights) is None:
        raise UserError(f'hf:{repo} has no file {weights!r} at {revision}: {nearest(weights, _list(repo, revision))}')
    if weights.endswith('.index.json'):
        for shard in shards.files(files[weights]):
            if take(str(PurePosixPath(weights).with_name(shard))) is None:
                raise UserError(f'hf:{repo}: {weights} names {shard}, which is not there.')
    return Snapshot(repo, revision, files, weights)


def _describe(take: Callable, folder: str) -> None:
    """Takes the files that describe the weights: those of their folder, or else of the repository."""
    path = take(folder + CONFIG) or (take(CONFIG) if folder else None)
    config = read_json(path) if path else {}
    if 'vocab_size' in config:  # text
        take(POOLING)
        found = [file for file in TOKENIZER if take(file, needed=False)]
        if 'tokenizer.json' not in found and 'vocab.txt' not in found:
            _ = take('tokenizer.json') or take('vocab.txt')  # with the error if nobody knows
    elif 'architecture' not in config:  # timm's config.json says it all
        _ = take(folder + PREPROCESSOR) or (take(PREPROCESSOR) if folder else None)


def _choose(repo: str, revision: str, take: Callable[[str], Path | None]) -> str:
    """The name of a repository's weights: what lies in the cache first, so that nothing is downloaded twice."""
    cached = [file for file in WEIGHTS if isinstance(_cached(repo, revision, file), Path)]
    for file in cached + [file for file in WEIGHTS if file not in cached]:
        if take(file) is not None:
            return file
    names = _list(repo, revision)
    readable = [name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if len(readable) != 1:
        said = f'It has {some(names, 20) or "no files"}.'
        said = f'Name one of them: {some([f"hf:{repo}:{n}" for n in readable], 10)}.' if readable else said
        raise UserError(f'hf:{repo} has none of {", ".join(WEIGHTS)}. {said}')
    return readable[0]


def _get(repo: str, revision: str, file: str, local: bool = False) -> Path | None:
    """A file of a repository in the cache, downloaded if need be; None if the repository has no such file.

    Args:
        local: the cache alone is asked.

    Raises:
        UserError: anything else, `Unreachable` if the network did not answer.
    """
    from huggingface_hub import constants, errors, get_token, hf_hub_download

    try:
        if re.fullmatch('[0-9a-f]{40}', revision) and (known := _cached(repo, revision, file)):  # commits do not change
            return None if known is MISSING else known
        return Path(hf_hub_download(repo, file, revision=revision, local_files_only=local))
    except errors.LocalEntryNotFoundError as e:
        why = f'{constants.ENDPOINT} does not answer'
        if constants.HF_HUB_OFFLINE:
            why = 'HF_HUB_OFFLINE is set'
        elif e.__cause__ and not local:
            why += f' ({_first_line(e.__cause__)})'
        raise Unreachable(
            f'hf:{repo}: {why}, and {file} at {revision} is not in the cache {constants.HF_HUB_CACHE}. '
            f'With a network: `hf download {repo}`; then copy that cache here, or set HF_HOME to where it is.'
        ) from e
    except errors.EntryNotFoundError:
        return None
    except errors.RevisionNotFoundError as e:
        raise UserError(f'hf:{repo} has no revision {revision!r}: {nearest(revision, _revisions(repo))}') from e
    except errors.GatedRepoError as e:
        login = 'the token that is set has not' if get_token() else 'then log in with `hf auth login` or set HF_TOKEN'
        raise UserError(
            f'hf:{repo} is gated: accept its terms at {constants.ENDPOINT}/{repo}; {login}'
            f'{" been granted access" if get_token() else ""}.'
        ) from e
    except errors.RepositoryNotFoundError as e:
        token = 'the token that is set may not see it' if get_token() else 'log in with `hf auth login` or set HF_TOKEN'
        raise UserError(f'hf:{repo} does not exist at {constants.ENDPOINT}; or, if it is private, {token}.') from e
    except errors.HFValidationError as e:
        raise UserError(f'hf:{repo}: {e} Expected hf:OWNER/NAME, e.g. hf:timm/resnet50.a1_in1k.') from e
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise UserError(
                f'hf:{repo}: no space left for {file} in {constants.HF_HUB_CACHE}: make room (`hf cache ls`), or set '
                'HF_HOME to a folder on another disk.'
            ) from e
        raise UserError(f'hf:{repo}: {file} was not downloaded: {_first_line(e)}') from e
    except _network_errors() as e:
        raise UserError(f'hf:{repo}: {file} was not downloaded: {_first_line(e)} Try again: it goes on.') from e


def _cached(repo: str, revision: str, file: str) -> Path | str | None:
    """A file in the cache, `MISSING` if it is known that there is none, None if nothing is known."""
    from huggingface_hub import try_to_load_from_cache

    known = try_to_load_from_cache(repo, file, revision=revision)
    return Path(known) if isinstance(known, str) else known and MISSING


def _absent(repo: str, revision: str, file: str) -> bool:
    """Whether the cache knows that there is no such file: the hub said so, or all that there is was downloaded."""
    whole = _cached(repo, revision, '.gitattributes')  # every repository has it, and only `hf download` takes it
    return _cached(repo, revision, file) == MISSING or isinstance(whole, Path)


def _network_errors() -> tuple[type[Exception], ...]:
    """What the library's HTTP client raises when a connection breaks; the client has changed and will again."""
    from huggingface_hub import errors

    return tuple(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == 'HTTPError' and base is not OSError)


def _list(repo: str, revision: str) -> list[str]:
    """The names of a repository's files, or of those in the cache if the hub cannot be asked."""
    from huggingface_hub import HfApi, constants

    try:
        return sorted(HfApi().list_repo_files(repo, revision=revision))
    except Exception:  # only a help: whatever is wrong with the hub was said before, or will be
        cache = Path(constants.HF_HUB_CACHE, f'models--{repo.replace("/", "--")}')
        branch = cache / 'refs' / revision
        snapshot = cache / 'snapshots' / (branch.read_text() if branch.is_file() else revision)
        return sorted(str(p.relative_to(snapshot)) for p in snapshot.rglob('*') if p.is_file())


def _revisions(repo: str) -> list[str]:
    from huggingface_hub import HfApi

    try:
        refs = HfApi().list_repo_refs(repo)
        return [ref.name for ref in (*refs.branches, *refs.tags)]
    except Exception:  # only a help
        return ['main']


def _commit(path: Path, file: str) -> str:
    """The cache keeps `snapshots/COMMIT/FILE`."""
    return path.parents[len(PurePosixPath(file).parts) - 1].name


def _first_line(error: BaseException) -> str:
    return printable((str(error).strip() or type(error).__name__).splitlines()[0], 500)
