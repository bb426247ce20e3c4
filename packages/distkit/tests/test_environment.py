"""Who this process is, from every launcher's variables."""

from __future__ import annotations

import pytest
from distkit import DistEnv, EnvironmentIncomplete, fill_env
from distkit.environment import first_host
from hypothesis import given
from hypothesis import strategies as st

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}


def test_nothing_set_is_a_single_process():
    assert DistEnv.read({}) == DistEnv(0, 0, 1, None, None, "single")


def test_torchrun():
    assert DistEnv.read(TORCHRUN) == DistEnv(3, 1, 4, "10.0.0.1", 29500, "torchrun")


def test_read_is_not_cached(monkeypatch):
    assert DistEnv.read().world_size == 1
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert DistEnv.read().rank == 3


@given(st.sets(st.sampled_from(sorted(TORCHRUN)), min_size=1, max_size=4))
def test_a_partial_environment_names_what_is_missing(dropped):
    env = {k: v for k, v in TORCHRUN.items() if k not in dropped}
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & env.keys():
        assert DistEnv.read(env).source == "single"  # a stray MASTER_ADDR means nothing
        return
    with pytest.raises(EnvironmentIncomplete) as e:
        DistEnv.read(env)
    said = str(e.value).split("but not ")[1].split(".")[0]
    assert set(said.split(", ")) == dropped


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("RANK", "x", "RANK must be a whole number, found 'x'"),
        ("WORLD_SIZE", "-1", "WORLD_SIZE must not be negative"),
        ("RANK", "4", "rank 4 is not one of 4 ranks"),
    ],
)
def test_a_bad_number_names_its_variable(name, value, words):
    with pytest.raises(ValueError, match=words):
        DistEnv.read({**TORCHRUN, name: value})


def test_slurm_step():
    env = {
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_NODELIST": "gpu[03-06]",
        "SLURM_JOB_ID": "123456",
    }
    found = DistEnv.read(env)
    assert found == DistEnv(5, 1, 8, "gpu03", 20000 + 123456 % 20000, "slurm")
    assert DistEnv.read({**env, "MASTER_ADDR": "a", "MASTER_PORT": "9"}).master_port == 9


def test_a_slurm_batch_script_is_a_single_process():
    assert DistEnv.read({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}).world_size == 1


def test_slurm_without_nodes_names_what_is_missing():
    with pytest.raises(EnvironmentIncomplete, match="SLURM_STEP_NODELIST"):
        DistEnv.read({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2"})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("a", "a"), ("a,b", "a"), ("n[1-3]", "n1"), ("n[08,11]", "n08"), ("n-[2]x.example,m", "n-2x.example")],
)
def test_first_host(nodes, host):
    assert first_host(nodes) == host


def test_open_mpi_and_mpich():
    env = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    with pytest.raises(EnvironmentIncomplete, match="MASTER_ADDR, MASTER_PORT"):
        DistEnv.read(env)
    meet = {"MASTER_ADDR": "h", "MASTER_PORT": "1234"}
    assert DistEnv.read(env | meet) == DistEnv(1, 1, 2, "h", 1234, "mpi")
    env = {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0"}
    assert DistEnv.read(env | meet).source == "mpi"


@pytest.mark.parametrize("present", [{}, {"RANK": "0"}, {"MASTER_PORT": "4000"}, {"WORLD_SIZE": "1"}])
def test_fill_env_fills_each_variable_on_its_own(present):
    env = dict(present)
    found = fill_env(env)
    assert (found.rank, found.world_size, found.local_rank) == (0, 1, 0)
    assert found.source == "torchrun"
    assert set(env) == set(TORCHRUN)
    assert present.items() <= env.items()


@pytest.mark.parametrize("present", [{"WORLD_SIZE": "2"}, {"RANK": "1"}])
def test_fill_env_does_not_guess_ranks(present):
    env = dict(present)
    with pytest.raises(EnvironmentIncomplete):
        fill_env(env)
    assert env == present


def test_fill_env_translates_slurm():
    env = {
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "n[1-2]",
    }
    fill_env(env)
    assert (env["RANK"], env["WORLD_SIZE"], env["MASTER_ADDR"]) == ("1", "2", "n1")
