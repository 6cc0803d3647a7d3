"""Several processes that train together: how they find each other, and how they end.

JAX's coordination service, in the first process, already watches over all of them, even while one hangs in a
collective. What it lacks is said here: where more than one process is meant, a line that a person understands when one
is lost, and an end that does not wait for those that will never come.
"""

import ctypes
import glob
import importlib.util
import os
import re
import signal
import socket
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Mapping

from jtl.errors import UserError

START = 300  # seconds in which all processes must have started
HEARTBEAT = 60  # seconds after which a silent process is lost
SHUTDOWN = 24 * 3600  # seconds to wait at the end for those that are still saving; the lost are found by heartbeat
HURT = 3  # exit statuses: done, but transfer hurt (`jtl.guard`)
STATUS = 4  # another process was lost
LOST = (
    'jtl: another process of this run was lost. The same command, again in every process, goes on from the last '
    'checkpoint.'
)
LATE = f'jtl: not every process of this run started within {START} s.'
_SIGNS = ('Gloo', 'NCCL', 'UNAVAILABLE', 'DEADLINE_EXCEEDED', 'ABORTED', 'CANCELLED')  # of a peer that went away
_handlers = []  # kept alive: C calls them


def together(command: Callable[[], int]) -> int:
    """`command()`, in one process or, where the environment says so, as one of several; its exit status.

    In several, whoever fails leaves at once, without the barrier at which JAX would wait, and the others then say that
    it was lost and end with status 4.
    """
    arguments = several(os.environ)
    if arguments is None:
        return command()
    import jax

    _say_at_abort(LATE)
    jax.config.update('jax_enable_preemption_service', False)  # it would take SIGTERM away from us
    if arguments.get('process_id') == 0:
        _check_port(arguments['coordinator_address'])
    jax.distributed.initialize(
        **arguments,
        initialization_timeout=START,
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=SHUTDOWN,
    )
    jax.devices()
    _say_at_abort(LOST)  # again, since a backend may have put its own handler there
    from jtl import hosts

    try:
        hosts.meet()
        status = command()
    except (jax.errors.JaxRuntimeError, ValueError) as e:  # what a failed collective raises, by how it was called
        if any(sign in str(e) for sign in _SIGNS):
            print(str(e).splitlines()[0], file=sys.stderr, flush=True)
            status = STATUS
        else:
            traceback.print_exc()
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    if status in (0, HURT):
        jax.distributed.shutdown()
        return status
    # JAX's threads have their say before the last line; and those that failed alike, before the first takes the service
    # with it.
    if status == STATUS or jax.process_index() == 0:
        time.sleep(2)
    if status == STATUS:
        print(LOST, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def several(env: Mapping[str, str]) -> dict | None:
    """Arguments of `jax.distributed.initialize`, which finds the rest by itself; None for a single process.

    Recognised are given addresses (`JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`), `mpirun`,
    `srun` with more than one task, and slices of more than one TPU host on Cloud TPU VMs and GKE.
    `JAX_NUM_PROCESSES=1` says one process, whatever else is set.

    Raises:
        UserError: an address without the rest, or the rest without an address.
    """
    number = lambda key: int(env.get(key) or 1)
    if env.get('JAX_NUM_PROCESSES') == '1':
        return None
    given = [env.get(key, '') for key in ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')]
    if any(given):
        address, count, process = given
        try:
            count, process = int(count), int(process)
        except ValueError as e:
            raise UserError(
                'JAX_COORDINATOR_ADDRESS (HOST:PORT of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID (whole '
                'numbers) go together: give all or none.'
            ) from e
        host, _, port = address.rpartition(':')
        if not (0 <= process < count and host and port.isdecimal() and 0 < int(port) < 1 << 16):
            raise UserError(
                f'JAX_COORDINATOR_ADDRESS={address} should be HOST:PORT, and JAX_PROCESS_ID={process} one of '
                f'0 … {count - 1}.'
            )
        return {'coordinator_address': address, 'num_processes': count, 'process_id': process}
    if 'OMPI_MCA_orte_hnp_uri' in env and number('OMPI_COMM_WORLD_SIZE') > 1:
        return {}
    tasks = number('SLURM_STEP_NUM_TASKS')  # of this srun; SLURM_NTASKS alone is also set in an interactive shell
    if 'SLURM_STEP_NODELIST' in env and tasks > 1 and tasks == number('SLURM_NTASKS'):
        return {}
    return {} if _on_tpu() and _tpu_hosts(env) > 1 else None


def _on_tpu() -> bool:
    chips = glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*')
    return bool(chips) and importlib.util.find_spec('libtpu') is not None


def _tpu_hosts(env: Mapping[str, str]) -> int:
    """How many hosts the slice has, over all slices: GKE says it in the environment, a TPU VM's metadata server."""
    hosts = env.get('TPU_PROCESS_ADDRESSES') or env.get('TPU_WORKER_HOSTNAMES')
    slices = int(env.get('MEGASCALE_NUM_SLICES') or 1)
    if hosts is None and 'TPU_SKIP_MDS_QUERY' not in env:
        hosts = _metadata('worker-network-endpoints')
        found = re.search(r"MEGASCALE_NUM_SLICES:\s*'?(\d+)", _metadata('tpu-env'))
        slices = int(found[1]) if found else slices
    return slices * len((hosts or '').split(','))


def _metadata(key: str) -> str:
    host = os.environ.get('GCE_METADATA_IP', 'metadata.google.internal')
    url = f'http://{host}/computeMetadata/v1/instance/attributes/{key}'
    request = urllib.request.Request(url, headers={'Metadata-Flavor': 'Google'})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ''


def _check_port(address: str) -> None:
    """A port in use would end this process by a fault, or, if another run's, that run."""
    port = int(address.rsplit(':', 1)[1])
    try:
        socket.create_server(('', port)).close()
    except OSError as e:
        why = os.strerror(e.errno)
        raise UserError(f'JAX_COORDINATOR_ADDRESS={address}: port {port} cannot be opened here: {why}.') from e


def _say_at_abort(line: str) -> None:
    """Has the C library say `line` at SIGABRT, by which JAX ends a process whose peer is lost, and exit.

    A Python handler would never run: `abort()` does not return to the interpreter.
    """

    def handler(number: int) -> None:
        os.write(2, f'\n{line}\n'.encode())
        os._exit(STATUS)

    _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(handler))
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(_handlers[-1], ctypes.c_void_p))
