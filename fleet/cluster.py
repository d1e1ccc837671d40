"""Who does the work: Ray, on this machine or a cluster, or a thread of this process."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arguments import ManyOptions
from fleet.work import ROOT, State, Stopped, Work, do, sees_not
from utils.cores import usable_cores
from utils.errors import UserError, one_line

POLL = 0.5  # seconds
HERE = {"env_vars": {"PYTHONPATH": str(ROOT)}}  # where workers find this program
Tell = Callable[[], None]  # is called every now and then


def run_locally(works: Sequence[Work], tell: Tell) -> dict[str, State]:
    """One after the other; their last states by name.

    Raises:
        KeyboardInterrupt: all is stopped, in order.
    """
    stop, over, ended = threading.Event(), threading.Event(), {}

    def work() -> None:
        try:
            for one in works:
                ended[one.name] = do(one, stop)
        except Stopped:
            pass
        finally:
            over.set()

    threading.Thread(target=work).start()
    try:
        # Not `join`: interrupted, it takes the thread for ended (Python 3.11).
        while not over.wait(POLL):
            tell()
    except BaseException:
        _say_stopping()
        stop.set()
        over.wait()
        raise
    return ended


def run_on_ray(works: Sequence[Work], options: ManyOptions, tell: Tell) -> dict[str, State]:
    """As Ray tasks, each with its share of a machine, and again elsewhere if that is lost; their last states by name.

    Raises:
        UserError: there is no Ray, or no cluster, or no machine has what a subject asks for.
        KeyboardInterrupt: all is stopped, in order.
    """
    with _connected(options) as ray:
        _check_machines(ray, _fit(ray, options), works[0])
        task = ray.remote(do).options(
            num_cpus=options.cpus,
            num_gpus=options.gpus,
            memory=int(options.memory * 1e9) or None,
            max_retries=options.retries,
            runtime_env=HERE,
        )
        pending = {task.remote(one): one.name for one in works}
        ended: dict[str, State] = {}
        try:
            while pending:
                ready, _ = ray.wait(list(pending), timeout=POLL)
                for one in ready:
                    name = pending.pop(one)
                    try:
                        ended[name] = ray.get(one)
                    except ray.exceptions.RayTaskError as error:
                        ended[name] = {"name": name, "state": "failed", "reason": _short(error.cause)}
                    except ray.exceptions.RayError as error:
                        reason = f"its machine or worker was lost {options.retries + 1} times ({_short(error)})"
                        ended[name] = {"name": name, "state": "failed", "reason": reason}
                tell()
        except BaseException:
            _say_stopping()
            for one in pending:
                ray.cancel(one)  # a KeyboardInterrupt there, on which the child saves
            while pending:
                ready, _ = ray.wait(list(pending), timeout=POLL)
                for one in ready:
                    pending.pop(one)
            raise
    return ended


@contextmanager
def _connected(options: ManyOptions) -> Iterator[Any]:
    """Ray, started on this machine alone or joined, until the end of the context."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not options.address:
        # Whoever reaches Ray's ports may run code: none of them is to be reached from outside. That is what it does by
        # itself on Windows and macOS; elsewhere it puts the machine's address in place of a 127.0.0.1 that it is given.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "Ray is not installed: pip install -r requirements-cluster.txt, or train one subject after the other "
            "with --local"
        ) from error
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if options.address:
        _knock(options.address)
        settings["address"] = options.address
    else:
        settings |= {"address": "local", "num_cpus": usable_cores(), "include_dashboard": False}
    on_sigterm = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    try:
        ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if not options.address:
            raise UserError(f"Ray cannot start on this machine ({_short(error)}): use --local without it") from error
        raise UserError(
            f"cannot join the Ray cluster {options.address} ({_short(error)}): it needs the same versions of Ray and "
            "Python, and if it was started with a token, RAY_AUTH_MODE=token in the environment here, and the token"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's would abort the process 3 seconds later, saved or not
    try:
        yield ray
    finally:
        ray.shutdown()


def _say_stopping() -> None:
    print("stopping: what trains saves first; the same command goes on from there", file=sys.stderr, flush=True)


def _knock(address: str) -> None:
    """Ray tries for minutes where nobody listens; UserError at once instead."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()
        except (OSError, OverflowError) as error:
            raise UserError(
                f"nothing answers at --address {address} ({error}): give HOST:PORT as `ray start --head` said "
                "it on the first machine"
            ) from error


def _fit(ray: Any, options: ManyOptions) -> list[Any]:
    """The machines that can hold a subject; without one, its task would wait without end."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": options.cpus, "GPU": options.gpus, "memory": options.memory * 1e9}
    fit = [node for node in nodes if all(node["Resources"].get(name, 0) >= part for name, part in wanted.items())]
    if not fit:
        have = "; ".join(
            f"{node['Resources'].get('CPU', 0):g} CPUs, {node['Resources'].get('GPU', 0):g} GPUs" for node in nodes
        )
        raise UserError(
            f"no machine has --cpus {options.cpus:g}, --gpus {options.gpus:g} and --memory {options.memory:g} GB for "
            f"a subject (there are: {have}): ask for less"
        )
    return fit


def _check_machines(ray: Any, nodes: Sequence[Any], work: Work) -> None:
    """Each of them must have this program, and see the output: one that does not would fail subject after subject."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(sees_not)
    asked = {}
    for node in nodes:
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        there = ask.options(num_cpus=0, max_retries=0, runtime_env=HERE, scheduling_strategy=place)
        asked[there.remote(str(Path(work.folder).parent), work.mark)] = node["NodeManagerHostname"]
    for answer, name in asked.items():
        try:
            blind = ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            raise UserError(
                f"the machine {name} cannot run {ROOT} ({_short(error.cause)}): all machines need this repository and "
                "its requirements at the same path"
            ) from error
        except ray.exceptions.RayError:  # it has just been lost
            continue
        if blind:
            raise UserError(blind)


def _short(error: BaseException) -> str:
    return one_line(str(error).strip() or type(error).__name__)[:300]
