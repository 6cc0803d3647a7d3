"""`jtl prepare tfds:NAME`: download a TensorFlow Datasets data set and prepare it so that jtl can read it.

Preparing is done once, may need TensorFlow (`pip install 'jtl[tfds]'`) and the network; reading needs neither.
"""

import argparse
import os
import re
from collections.abc import Sequence

import requests
import tensorflow_datasets as tfds

from jtl.data.sources import tfds as tfds_source
from jtl.errors import UserError


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog='jtl prepare', description=__doc__)
    parser.add_argument('uri', help='tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:VERSION, as in config.data.name')
    parser.add_argument('--data-dir', help='where to put it (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)')
    args = parser.parse_args(argv)
    scheme, _, name = args.uri.partition(':')
    if scheme != 'tfds' or not name:
        raise UserError(f'{args.uri!r} needs no preparation or does not exist: expected tfds:NAME.')
    folder = prepare(name, args.data_dir or tfds_source.data_dir())
    print(f'{args.uri} is ready in {folder}')
    if args.data_dir:
        print(f'To use it: export TFDS_DATA_DIR={args.data_dir}')


def prepare(name: str, data_dir: str) -> str:
    """Download and prepare a data set of the TFDS catalogue as array_record.

    Args:
        name: `NAME[/CONFIG][:VERSION]`.
        data_dir: the folder of all prepared data sets.

    Returns:
        The folder of this one.
    """
    tfds_source.refuse_unknown(name.partition(':')[0].partition('/')[0])
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format='array_record', try_gcs=False)
        folder = str(builder.data_path)
        if not os.path.exists(folder):
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except ImportError as e:
        found = re.search(r"No module named '(\w+)", str(e))
        package = found[1] if found else str(e)
        other = '' if package == 'tensorflow' else f', and if that is not enough, pip install {package}'
        raise UserError(
            f"preparing tfds:{name} needs the Python package {package}: pip install 'jtl[tfds]'{other}."
        ) from e
    except (requests.RequestException, tfds.download.DownloadError, OSError) as e:
        raise UserError(f'cannot prepare tfds:{name} in {data_dir}: {e} (is there a network, and space?).') from e
    except (AssertionError, ValueError) as e:  # no such version or config; files that must be downloaded by hand
        raise UserError(f'cannot prepare tfds:{name}: {e}') from e
    tfds_source.check_array_record(folder, name)
    return folder
