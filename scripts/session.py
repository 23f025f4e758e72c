"""An open work folder: its settings, store, hub, farm and lock, each made when first asked for and closed together."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from hub.domain import ModelRef, Workspace
from hub.errors import BadCheckpoint, HubRefused, ModelPressError, OutOfDisk, SettingsError, WorkFolderBusy
from modelpress.progress import Reporter
from modelpress.stopping import Stopping

if TYPE_CHECKING:
    from hub.client import HubClient
    from hub.local.process import LocalHub
    from hub.settings import Settings
    from hub.store import Store
    from runners.checkpoint import ModelShape
    from runners.farm.local import LocalFarm
    from runners.farm.ray import RayFarm

# The Hub counts calls over five minutes, so a publisher that is asked to slow down waits rather than ends.
_PUBLISHER_PATIENCE_S = 120.0


class Session:
    """One command's hold on a work folder.

    `exclusive` commands change it, so only one of them runs at a time. A `helper` does jobs that are planned, beside an exclusive command
    and other helpers; commands that must be `alone` take away what a helper may be using. All three end in order on SIGTERM and Ctrl-C.
    """

    def __init__(self, settings: Settings, *, exclusive: bool = False, helper: bool = False, alone: bool = False) -> None:
        from hub.settings import forget_write_token

        forget_write_token()
        self.settings = settings
        self.folder = Path(settings.press.work_dir).resolve()
        self.report = Reporter()
        self._locks = [
            *([("lock", fcntl.LOCK_EX)] if exclusive or alone else []),
            *([("helpers.lock", fcntl.LOCK_SH if helper else fcntl.LOCK_EX)] if helper or alone else []),
        ]
        self.stopping = Stopping()
        # Why the Hub is not to be asked any more: it wished for a longer pause than a call waits for. For all stages of the session.
        self.hub_busy = ""
        self._closing = ExitStack()
        self._shapes: dict[ModelRef, ModelShape] = {}

    def __enter__(self) -> Session:
        if self._locks:
            self._make_folder()
            try:
                self._closing.enter_context(self.stopping)
                for name, kind in self._locks:
                    self._lock(name, kind)
            except BaseException:
                self._closing.close()
                raise
        return self

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unusable(self.folder, error) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.close()

    def _lock(self, name: str, kind: int) -> None:
        """Take a lock of the folder; the system drops it with the process, however that ends."""
        try:
            handle = self._closing.enter_context((self.folder / name).open("a+"))
        except OSError as error:
            raise unusable(self.folder, error) from error
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise WorkFolderBusy(
                f"another modelpress (process {holder}) is at work in {self.folder}",
                hint="wait for it to end, or use another folder with --work-dir",
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()

    @property
    def database(self) -> Path:
        """The SQLite file of this folder."""
        return self.folder / "modelpress.db"

    @property
    def artifacts(self) -> Path:
        """Where artifacts lie, one folder a variant."""
        return self.folder / "artifacts"

    @property
    def site(self) -> Path:
        """Where the site is built."""
        return self.folder / "site"

    @cached_property
    def store(self) -> Store:
        """The results database, migrated to this program's version."""
        from hub.store import Store

        self._make_folder()
        store = Store(self.settings.press.database or self.database)
        self._closing.callback(store.close)
        return store

    @cached_property
    def local_hub(self) -> LocalHub | None:
        """The embedded hub, started if nobody serves this folder's yet; None when the settings name another hub."""
        from hub.local.process import LocalHub

        if self.settings.hub.endpoint != "local":
            return None
        self._make_folder()
        return self._closing.enter_context(LocalHub(self.folder / "hub", port=self.settings.hub.port))

    @property
    def endpoint(self) -> str:
        """The hub's base address."""
        return self.local_hub.endpoint if self.local_hub else self.settings.hub.endpoint

    @property
    def page_url(self) -> str:
        """The hub's base address as links show it; the embedded one's is known before it runs, unless its port is taken by another."""
        if "local_hub" in self.__dict__:
            return self.endpoint
        return f"http://127.0.0.1:{self.settings.hub.port}" if self.settings.hub.endpoint == "local" else self.settings.hub.endpoint

    @cached_property
    def client(self) -> HubClient:
        """The only door to the hub, to read through."""
        return self._door(self._read_token)

    @cached_property
    def publisher(self) -> HubClient:
        """The door through which the publisher writes: it alone has the write token. Raises `HubRefused` where there is none."""
        token = self.settings.hub.write_token
        if self.local_hub:
            return self._door(self.local_hub.write_token, _PUBLISHER_PATIENCE_S)
        if token is None:
            raise HubRefused(
                f"there is no write token, so nothing can be published on {self.endpoint}",
                hint="Put one that may write into the environment variable MODELPRESS_WRITE_TOKEN; HF_TOKEN only reads.",
            )
        return self._door(token.get_secret_value(), _PUBLISHER_PATIENCE_S)

    @property
    def _read_token(self) -> str | None:
        if self.local_hub:
            return self.local_hub.read_token
        return self.settings.hub.token.get_secret_value() if self.settings.hub.token else None

    def _door(self, token: str | None, patience_s: float = 30.0) -> HubClient:
        from hub.client import HubClient

        self._make_folder()
        return HubClient(endpoint=self.endpoint, token=token, cache_dir=self.folder / "cache", patience_s=patience_s)

    def shape(self, model: ModelRef) -> ModelShape:
        """Return a hub model's shape from its config and safetensors headers; nothing else of it is fetched."""
        from runners.checkpoint import parse_config, shape_of
        from runners.headers import stated

        if model not in self._shapes:
            config = parse_config(self.client.read_text(model.repo_id, model.sha, "config.json") or "", where=model.repo_id)
            try:
                tensors = {name: stated(dtype, dims) for name, (dtype, dims) in self.client.tensors(model).items()}
            except ValueError as error:
                raise BadCheckpoint(f"{model.repo_id}: {error}.", hint="Choose another base model.") from error
            self._shapes[model] = shape_of(config, tensors, where=model.repo_id)
        return self._shapes[model]

    @property
    def threads(self) -> int:
        """The threads of a job."""
        from runners.environment import cores

        return self.settings.farm.threads or max(1, cores() // self.settings.farm.workers)

    @property
    def memory_bytes(self) -> int:
        """The most memory a job may use."""
        from runners.environment import memory_bytes

        return int(self.settings.farm.memory_gib * 2**30) or int(memory_bytes() * 0.8)

    @property
    def data_dir(self) -> str:
        """The folder with local copies of texts and task data as an absolute path; empty where the settings name none.

        Raises `SettingsError` where it is not there.
        """
        named = self.settings.press.data_dir
        if named and not Path(named).is_dir():
            raise SettingsError(f"press.data_dir names {named}, which is no folder.", hint="Make it, or leave press.data_dir out.")
        return str(Path(named).resolve()) if named else ""

    @property
    def workspace(self) -> Workspace:
        """Where jobs find and leave things, and what each may use."""
        return Workspace(
            endpoint=self.endpoint,
            cache_dir=str(self.folder / "cache"),
            artifacts_dir=str(self.artifacts),
            threads=self.threads,
            timeout_s=self.settings.farm.timeout_s,
            memory_bytes=self.memory_bytes,
            data_dir=self.data_dir,
        )

    @cached_property
    def farm(self) -> LocalFarm | RayFarm:
        """Where jobs run, by farm.kind: child processes of this machine, with a warm parent, or a Ray cluster."""
        settings, logs = self.settings.farm, self.folder / "logs"
        if settings.kind == "ray":
            from runners.farm.ray import RayFarm

            return self._closing.enter_context(RayFarm(self.workspace, logs, settings, read_token=self._read_token))
        from runners.farm.local import LocalFarm

        return self._closing.enter_context(LocalFarm(self.workspace, logs, slots=settings.workers, read_token=self._read_token))


def unusable(folder: Path, error: OSError) -> ModelPressError:
    """Return the error of a work folder that cannot be made or written: a full disk apart from all else."""
    kind = OutOfDisk if error.errno in (errno.ENOSPC, errno.EDQUOT) else SettingsError
    return kind(
        f"the work folder {folder} cannot be used: {error.strerror}",
        hint="choose one that you may write, with --work-dir or press.work_dir",
    )
