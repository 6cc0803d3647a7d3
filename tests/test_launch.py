"""Is this one process or one of several? By what each kind of launcher puts into the environment."""

import os
import re
import socket
import subprocess
import sys

import pytest
import tiny

from jtl import launch
from jtl.errors import UserError
from jtl.main import main

SLURM = {  # what every step of a job sees
    'SLURM_JOB_ID': '4711',
    'SLURM_STEP_NODELIST': 'node[1-2]',
    'SLURM_PROCID': '3',
    'SLURM_LOCALID': '1',
}
EXPLICIT = {'JAX_COORDINATOR_ADDRESS': 'node1:1234', 'JAX_NUM_PROCESSES': '4', 'JAX_PROCESS_ID': '3'}
GIVEN = {'coordinator_address': 'node1:1234', 'num_processes': 4, 'process_id': 3}
VM = {  # what the metadata server of a TPU VM says
    'worker-network-endpoints': 'unknown:unknown:10.0.0.2',
    'tpu-env': "ACCELERATOR_TYPE: 'v5litepod-8'\nTYPE: 'V5LITE_POD'\n",
}


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch):
    """Neither a TPU nor a metadata server, whatever machine the tests run on."""
    monkeypatch.setattr(launch, '_on_tpu', lambda: False)
    monkeypatch.setattr(launch, '_metadata', lambda key: '')


@pytest.mark.parametrize(
    'env, expected',
    [
        ({}, None),  # a laptop
        ({'JAX_NUM_PROCESSES': '1'}, None),
        ({**SLURM, 'SLURM_NTASKS': '8', 'SLURM_STEP_NUM_TASKS': '8'}, {}),  # srun -n 8: JAX finds the rest
        ({**SLURM, 'SLURM_NTASKS': '1', 'SLURM_STEP_NUM_TASKS': '1'}, None),  # srun -n 1
        ({'SLURM_JOB_ID': '4711', 'SLURM_NTASKS': '8'}, None),  # salloc -n 8: a shell, or a script of sbatch
        ({**SLURM, 'SLURM_NTASKS': '8', 'SLURM_STEP_NUM_TASKS': '1'}, None),  # a shell in it by srun --pty
        ({**SLURM, 'SLURM_NTASKS': '8', 'SLURM_STEP_NUM_TASKS': '8', 'JAX_NUM_PROCESSES': '1'}, None),  # on demand
        ({**SLURM, 'SLURM_NTASKS': '8', 'SLURM_STEP_NUM_TASKS': '8', **EXPLICIT}, GIVEN),
        ({'OMPI_MCA_orte_hnp_uri': '1;tcp://10.0.0.1:1', 'OMPI_COMM_WORLD_SIZE': '8'}, {}),  # mpirun -n 8
        ({'OMPI_MCA_orte_hnp_uri': '1;tcp://10.0.0.1:1', 'OMPI_COMM_WORLD_SIZE': '1'}, None),
        (EXPLICIT, GIVEN),
        ({**EXPLICIT, 'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '0'}, None),
        ({**EXPLICIT, 'JAX_COORDINATOR_ADDRESS': '[::1]:80'}, {**GIVEN, 'coordinator_address': '[::1]:80'}),
        ({'TPU_WORKER_HOSTNAMES': 'a,b'}, None),  # the rest of an environment without its TPU
    ],
)
def test_several_knows_the_launcher_by_the_environment(env, expected):
    assert launch.several(env) == expected


@pytest.mark.parametrize(
    'env, metadata, expected',
    [
        ({}, VM, None),  # a TPU VM of its own
        ({}, {**VM, 'worker-network-endpoints': 'a:0:10.0.0.2,b:1:10.0.0.3'}, {}),  # a pod
        ({}, {**VM, 'tpu-env': "MEGASCALE_NUM_SLICES: '2'\n"}, {}),  # two slices of one host each
        ({}, {'worker-network-endpoints': '', 'tpu-env': ''}, None),  # nobody answers
        ({'TPU_SKIP_MDS_QUERY': '1'}, {**VM, 'worker-network-endpoints': 'a:0:10.0.0.2,b:1:10.0.0.3'}, None),
        ({'TPU_WORKER_HOSTNAMES': 'localhost'}, {}, None),  # GKE, one host
        ({'TPU_WORKER_HOSTNAMES': 'a.svc,b.svc'}, {}, {}),
        ({'TPU_PROCESS_ADDRESSES': 'a:8471,b:8471', 'TPU_WORKER_HOSTNAMES': 'localhost'}, {}, {}),
        ({'TPU_WORKER_HOSTNAMES': 'localhost', 'MEGASCALE_NUM_SLICES': '2'}, {}, {}),
        ({'TPU_WORKER_HOSTNAMES': 'a.svc,b.svc', 'JAX_NUM_PROCESSES': '1'}, {}, None),
    ],
)
def test_several_counts_the_hosts_of_a_tpu_slice(env, metadata, expected, monkeypatch):
    monkeypatch.setattr(launch, '_on_tpu', lambda: True)
    monkeypatch.setattr(launch, '_metadata', metadata.__getitem__)
    assert launch.several(env) == expected


@pytest.mark.parametrize(
    'env, message',
    [
        ({'JAX_COORDINATOR_ADDRESS': 'node1:1234'}, r'JAX_PROCESS_ID \(whole numbers\) go together: give all or none'),
        ({**EXPLICIT, 'JAX_PROCESS_ID': ''}, r'JAX_PROCESS_ID \(whole numbers\) go together'),
        ({**EXPLICIT, 'JAX_PROCESS_ID': 'three'}, r'JAX_PROCESS_ID \(whole numbers\) go together'),
        ({**EXPLICIT, 'JAX_NUM_PROCESSES': '4.0'}, r'JAX_PROCESS_ID \(whole numbers\) go together: give all or none'),
        ({**EXPLICIT, 'JAX_PROCESS_ID': '4'}, r'JAX_PROCESS_ID=4 one of 0 … 3'),
        ({**EXPLICIT, 'JAX_PROCESS_ID': '-1'}, r'JAX_PROCESS_ID=-1 one of 0 … 3'),
        ({**EXPLICIT, 'JAX_COORDINATOR_ADDRESS': 'node1'}, r'JAX_COORDINATOR_ADDRESS=node1 should be HOST:PORT'),
        ({**EXPLICIT, 'JAX_COORDINATOR_ADDRESS': 'node1:http'}, r'JAX_COORDINATOR_ADDRESS=node1:http should be HOST:'),
        (
            {'JAX_NUM_PROCESSES': '4', 'JAX_PROCESS_ID': '3'},
            r'JAX_COORDINATOR_ADDRESS= should be HOST:PORT',
        ),  # else each trains alone
        (
            {**EXPLICIT, 'JAX_COORDINATOR_ADDRESS': 'node1:99999'},
            r'JAX_COORDINATOR_ADDRESS=node1:99999 should be HOST:',
        ),
        ({'JAX_NUM_PROCESSES': '4'}, r'JAX_COORDINATOR_ADDRESS \(HOST:PORT of the first process\), JAX_NUM_PROCESSES'),
    ],
)
def test_main_refuses_an_environment_that_says_only_half(env, message, tmp_path, monkeypatch, capsys):
    for key in EXPLICIT:
        monkeypatch.delenv(key, raising=False)
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    config = tiny.write_config(tmp_path / 'config.py')
    assert main([f'--config={config}', f'--workdir={tmp_path / "run"}']) == 2
    said = capsys.readouterr().err
    assert re.search(f'^jtl: .*{message}', said) and 'Traceback' not in said
    assert not (tmp_path / 'run').exists()


def test_main_refuses_a_port_that_is_in_use(tmp_path):
    """The first process, which would serve there; a process of its own, since `together` changes how this one ends."""
    config = tiny.write_config(tmp_path / 'config.py')
    with socket.create_server(('', 0)) as server:
        port = server.getsockname()[1]
        env = {'JAX_COORDINATOR_ADDRESS': f'localhost:{port}', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0'}
        command = [sys.executable, '-m', 'jtl.main', f'--config={config}', f'--workdir={tmp_path / "run"}']
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(
        f'jtl: JAX_COORDINATOR_ADDRESS=localhost:{port}: port {port} cannot be opened here: Address already in use.'
    )
    assert not (tmp_path / 'run').exists()


def test_check_port_raises_for_a_busy_port_alone():
    with socket.create_server(('', 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=rf'port {port} cannot be opened here: Address already in use\.'):
            launch._check_port(f'localhost:{port}')
    launch._check_port(f'localhost:{port}')
