"""What every test gets: the CPU, no windows, and folders of its own instead of the user's."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['MPLBACKEND'] = 'Agg'
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:  # many processes compile the same programs: one does for all
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='jtl-compiled-')
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
    atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)

import pytest  # noqa: E402


@pytest.fixture(scope='session', autouse=True)
def tfds_data_dir(tmp_path_factory):
    """One folder for the session, so that the bundled data is prepared once; pytest-xdist's workers share it."""
    base = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        base = base.parent
    folder = base / 'tensorflow_datasets'
    folder.mkdir(exist_ok=True)
    before = os.environ.get('TFDS_DATA_DIR')
    os.environ['TFDS_DATA_DIR'] = str(folder)
    yield folder
    if before is None:
        del os.environ['TFDS_DATA_DIR']
    else:
        os.environ['TFDS_DATA_DIR'] = before


@pytest.fixture(scope='session', autouse=True)
def cache_dir(tmp_path_factory):
    """Features that tests compute are kept for the session."""
    folder = tmp_path_factory.mktemp('cache')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JTL_CACHE', str(folder))
        yield folder
