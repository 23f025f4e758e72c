"""The only door to the Hub: reads, checked downloads and atomic commits, each error one of `hub.errors`."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from hub import listing, names, transfer
from hub.commits import Commit, Content
from hub.domain import Candidate, HubFile, ModelRef
from hub.errors import HubCorrupt, HubError, HubNotFound, HubRefused, HubUnreachable, PolicyRefusal, UsageError
from hub.settings import check_endpoint
from hub.transport import calling, library, patiently

T = TypeVar("T")

_SHA = re.compile(r"[0-9a-f]{40}")
_TOKEN = re.compile(r"[!-~]+")
_LIBRARY = "modelpress"
_MAX_TEXT = 4 << 20
_DETAIL_THREADS = 8
_FILE_THREADS = 4
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Account:
    """Whom the token belongs to: name, organisations, and the token's role (read, write, fineGrained)."""

    name: str
    orgs: tuple[str, ...]
    role: str


class HubClient:
    """One Hub at `endpoint`, spoken to with `token` (None: without any; no token saved on this machine is used in its place).

    `cache_dir` holds downloads; `patience_s` bounds the retries of calls for which the Hub's library has none.
    Safe to use from several threads.
    """

    def __init__(self, *, endpoint: str, token: str | None, cache_dir: Path, patience_s: float = 30.0) -> None:
        """Name the Hub; nothing is asked yet. Raise `UsageError` for an address to which a token must not be sent, and for what is none."""
        try:
            self.endpoint = check_endpoint(endpoint)
        except ValueError as error:
            raise UsageError(f"the Hub's address {error}", hint="Set hub.endpoint in modelpress.toml.") from error
        if token and not _TOKEN.fullmatch(token):
            raise UsageError("the token for the Hub holds a space, a line's end or a letter that no token has", hint="Copy it again.")
        self.cache_dir = cache_dir
        self._token = token or None
        self._patience_s = patience_s
        self._account: Account | None = None

    # -- reading

    def popular(self, *, limit: int, sort: str, pipeline_tag: str | None) -> list[Candidate]:
        """Return the first `limit` models by `sort`, with details and files, in the Hub's order.

        A model that vanished or was closed since it was listed comes as `listing.unreadable`, so that policy can say so.
        """

        def listed() -> list[Any]:
            found = self._api().list_models(sort=sort, limit=limit, pipeline_tag=pipeline_tag)
            return list(islice(found, limit))

        models = self._ask(f"the list of models by {sort}", listed)
        with ThreadPoolExecutor(_DETAIL_THREADS) as pool:
            return list(pool.map(self._detailed, models))

    def candidate(self, repo_id: str, revision: str | None = None) -> Candidate:
        """Return a model as it is listed at `revision` (None: the default branch), with its files."""
        return self._candidate(repo_id, revision, trending_score=None)

    def exists(self, repo_id: str) -> bool:
        """Tell whether there is such a repository that the token may see."""
        return self.head(repo_id) is not None

    def head(self, repo_id: str) -> str | None:
        """Return the commit of the default branch, or None where there is no such repository."""
        try:
            sha = self._info(repo_id, None, files=False).sha
        except HubNotFound:
            return None
        return str(sha) if sha else None

    def files(self, repo_id: str, sha: str) -> tuple[HubFile, ...]:
        """Return all files at a commit, as listed: unscreened, in the Hub's order."""
        _require_repo_id(repo_id)

        def tree() -> tuple[HubFile, ...]:
            entries = self._api().list_repo_tree(repo_id, recursive=True, revision=sha)
            return tuple(listing.hub_file(entry) for entry in islice(entries, 2 * names.MAX_FILES) if hasattr(entry, "blob_id"))

        return self._ask(f"the files of {repo_id}", tree)

    def read_text(self, repo_id: str, sha: str, path: str, *, listed: Iterable[HubFile] | None = None) -> str | None:
        """Return a text file of at most 4 MiB, its checksum verified; None where there is none of this path.

        `listed` are the commit's files where they are known already.
        """
        snapshot, file = self._fetch_one(repo_id, sha, path, listed)
        if file is None:
            return None
        try:
            return (snapshot / file.path).read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise HubError(f"{path} of {repo_id} is not UTF-8 text: {error}", hint="Look at the file on the Hub.") from error

    def tensors(self, ref: ModelRef) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return dtype (as safetensors names it) and shape of every tensor by name, from the files' headers alone."""
        _require_commit(ref)
        found = self._ask(f"the tensors of {ref.repo_id}", lambda: self._api().get_safetensors_metadata(ref.repo_id, revision=ref.sha))
        files = found.files_metadata.values()
        return {name: (str(info.dtype), tuple(info.shape)) for file in files for name, info in file.tensors.items()}

    def account(self) -> Account:
        """Return whom the token belongs to, asked for once; raise `HubRefused` without a token or for a wrong one."""
        if self._account is not None:
            return self._account
        if self._token is None:
            raise HubRefused(
                f"{self.endpoint} wants a token to say whose it is, and there is none", hint="Put one into the environment as HF_TOKEN."
            )
        data = self._ask("the account of the token", lambda: self._api().whoami(token=self._token))
        with calling(self.endpoint, "the account of the token", secret=self._token):
            orgs = tuple(str(org["name"]) for org in data.get("orgs", ()))
            role = str((data.get("auth", {}).get("accessToken") or {}).get("role", ""))
            self._account = Account(name=str(data["name"]), orgs=orgs, role=role)
            return self._account

    def url(self, repo_id: str, sha: str | None = None) -> str:
        """Return the address of a model's page, at a commit where one is given."""
        return f"{self.endpoint}/{repo_id}" + (f"/tree/{sha}" if sha else "")

    def validate_card(self, text: str) -> list[str]:
        """Return what the Hub finds wrong in a README's front matter; empty where it takes it."""
        hub = library(self.endpoint)
        headers = hub.utils.build_hf_headers(token=self._token or False, library_name=_LIBRARY)

        def ask() -> list[str]:
            body = {"content": text, "repoType": "model"}
            answer = hub.utils.get_session().post(f"{self.endpoint}/api/validate-yaml", json=body, headers=headers)
            if answer.status_code != 400:
                hub.utils.hf_raise_for_status(answer)
            data = answer.json()
            errors = [str(error["message"]) for error in data.get("errors", ())]
            if answer.status_code == 400 and not errors:
                errors = [str(data.get("error") or "the Hub does not take the front matter")]
            return errors

        return self._ask("the check of a model card", ask)

    # -- downloading

    def download(self, ref: ModelRef, *, patterns: Sequence[str] | None = None, into: Path | None = None, linked: bool = False) -> Path:
        """Return a folder with the files of a commit (those that fit one of `patterns`), each verified against the Hub's listing.

        The folder is the cache's own, to be read only; `into` makes a plain copy instead, whole or not at all, or where it is `linked`
        the cache's files by other names, to be read only too. Files verified before are not asked for again. Raises `PolicyRefusal` for a
        name in the tree that is not let in, `OutOfDisk` before anything is fetched or copied, `HubCorrupt` for bytes that came wrong twice
        (they are deleted).
        """
        _require_commit(ref)
        subject = f"the files of {ref.repo_id}"
        marks = transfer.Marks(self.cache_dir, ref.repo_id, ref.sha)
        listed = marks.listing() or self.files(ref.repo_id, ref.sha)
        if fault := names.paths_fault(file.path for file in listed):
            raise PolicyRefusal(
                f"{ref.repo_id} is refused: {fault}", hint="Nothing of it was fetched. Add it to policy.banned to leave it out."
            )
        files = transfer.wanted(listed, patterns)
        if not files:
            raise HubNotFound(f"{ref.repo_id} has no file that fits {', '.join(patterns or ['*'])}", hint=f"It has {len(listed)} others.")
        with calling(self.endpoint, subject, secret=self._token):
            self._fetch(ref, files, marks, listed)
            return transfer.copy_out(self._snapshot(ref), files, into, linked=linked) if into else self._snapshot(ref)

    def dataset_file(self, repo_id: str, revision: str | None, path: str) -> tuple[str, Path]:
        """Return the commit of a dataset's revision (None: the default branch) and one of its files at it, verified; to be read only."""
        _require_repo_id(repo_id)
        if fault := names.path_fault(path):
            raise PolicyRefusal(f"{repo_id} is refused: {fault}")
        subject = f"{path} of the dataset {repo_id}"
        if revision is None or not _SHA.fullmatch(revision):
            revision = str(self._ask(subject, lambda: self._api().dataset_info(repo_id, revision=revision)).sha)
        found = self._ask(subject, lambda: self._api().get_paths_info(repo_id, [path], revision=revision, repo_type="dataset"))
        file = _listed(found, path)
        if file is None:
            raise HubNotFound(f"the dataset {repo_id} has no file {path} at {revision[:8]}", hint="Name one of its files.")
        transfer.require_room(self.cache_dir, file.size, subject)
        with calling(self.endpoint, subject, secret=self._token):
            return revision, self._fetch_verified(ModelRef(repo_id=repo_id, sha=revision), file, kind="dataset")

    def _fetch(self, ref: ModelRef, files: Sequence[HubFile], marks: transfer.Marks, listed: Iterable[HubFile]) -> None:
        snapshot = self._snapshot(ref)
        missing = [file for file in files if not marks.holds(file, snapshot / file.path)]
        if not missing:
            return
        transfer.sweep(snapshot.parent.parent / "blobs")
        absent = sum(max(file.size, 0) for file in missing if not (snapshot / file.path).exists())
        transfer.require_room(self.cache_dir, absent, ref.repo_id)
        pool = ThreadPoolExecutor(_FILE_THREADS)
        try:
            verified = dict(zip(missing, pool.map(lambda file: self._fetch_verified(ref, file), missing), strict=True))
        finally:
            pool.shutdown(cancel_futures=True)
        marks.add(listed, verified)

    def _fetch_verified(self, ref: ModelRef, file: HubFile, *, kind: str = "model") -> Path:
        path = self._snapshot(ref, kind) / file.path
        for _attempt in range(2):
            if self._ask(f"{file.path} of {ref.repo_id}", partial(self._fetch_file, ref, file.path, kind)) != path:
                raise HubCorrupt(f"{self.endpoint} gave {file.path} of another commit than {ref.sha}", hint="Run the command again.")
            found = transfer.sums(path)
            if found.match(file):
                return path
            _log.warning("%s of %s came wrong; deleted", file.path, ref.repo_id)
            transfer.forget(path, self.cache_dir)
        listed_sum = f"SHA-256 {file.sha256[:12]}" if file.sha256 else f"git SHA-1 {file.blob_id[:12]}"
        found_sum = f"SHA-256 {found.sha256[:12]}" if file.sha256 else f"git SHA-1 {found.blob_id[:12]}"
        raise HubCorrupt(
            f"{file.path} of {ref.repo_id} came wrong twice: {found.size} bytes, {found_sum}; listed are {file.size} bytes, {listed_sum}",
            hint="The wrong file was deleted. Run the command again; if it happens again, a proxy or the Hub damages it.",
        )

    def _fetch_file(self, ref: ModelRef, path: str, kind: str) -> Path:
        return Path(self._api().hf_hub_download(ref.repo_id, path, revision=ref.sha, cache_dir=self.cache_dir, repo_type=kind))

    def _fetch_one(self, repo_id: str, sha: str, path: str, listed: Iterable[HubFile] | None) -> tuple[Path, HubFile | None]:
        ref = ModelRef(repo_id=repo_id, sha=sha)
        _require_commit(ref)
        if fault := names.path_fault(path):
            raise PolicyRefusal(f"{repo_id} is refused: {fault}")
        if listed is None:
            file = _listed(self._ask(f"{path} of {repo_id}", lambda: self._api().get_paths_info(repo_id, [path], revision=sha)), path)
        else:
            file = next((one for one in listed if one.path == path), None)
        if file is not None and file.size > _MAX_TEXT:
            raise HubError(f"{path} of {repo_id} has {file.size} bytes; at most {_MAX_TEXT} are read as text")
        if file is not None:
            with calling(self.endpoint, f"{path} of {repo_id}", secret=self._token):
                self._fetch_verified(ref, file)
        return self._snapshot(ref), file

    def _snapshot(self, ref: ModelRef, kind: str = "model") -> Path:
        return self.cache_dir / f"{kind}s--{ref.repo_id.replace('/', '--')}" / "snapshots" / ref.sha

    # -- writing

    def create(self, repo_id: str, *, gated: str | None = None) -> None:
        """Make a model repository unless there is one; with `gated` ("auto", "manual") access to it must be asked for.

        Asks first whether it exists: the public Hub counts every attempt to create one.
        """
        if not self.exists(repo_id):
            self.call(f"the making of {repo_id}", lambda api: api.create_repo(repo_id, exist_ok=True))
        if gated and self._info(repo_id, None, files=False).gated != gated:
            self.call(f"the gate of {repo_id}", lambda api: api.update_repo_settings(repo_id, gated=gated))

    def delete(self, repo_id: str) -> None:
        """Delete a model repository with all that it holds, for ever; one that is gone already is left gone."""
        _require_repo_id(repo_id)
        self.call(f"the deletion of {repo_id}", lambda api: api.delete_repo(repo_id, missing_ok=True))

    def commit(self, repo_id: str, files: Mapping[str, Content], *, message: str, parent: str | None, deleted: Collection[str] = ()) -> str:
        """Put files into a repository, and take `deleted` paths out of it, in one atomic commit, and return its sha.

        `parent` is the commit that it must follow (None: whatever is there): `HubConflict` where the repository moved on. Where the
        answer was lost, the head's files are compared with ours before anything is sent again, so the commit is never made twice.
        """
        _require_repo_id(repo_id)
        commit = Commit(repo_id=repo_id, files=files, deleted=deleted, message=message, parent=parent or self.head(repo_id))
        return commit.send(self, self._patience_s)

    # -- the library

    def call(self, subject: str, action: Callable[[Any], T]) -> T:
        """Return what `action` gets from the library's API, its errors as ours; asked again where the answer was lost.

        The door for other modules of `hub`: only for what is safe to ask twice.
        """
        return self._ask(subject, lambda: action(self._api()))

    def once(self, subject: str, action: Callable[[Any], T]) -> T:
        """Return what `action` gets from the library's API, its errors as ours; asked once, for what is not safe to ask twice."""
        with calling(self.endpoint, subject, secret=self._token, patience_s=self._patience_s):
            return action(self._api())

    def _api(self) -> Any:
        hub = library(self.endpoint)
        return hub.HfApi(endpoint=self.endpoint, token=self._token or False, library_name=_LIBRARY)

    def _ask(self, subject: str, action: Callable[[], T]) -> T:
        def once() -> T:
            with calling(self.endpoint, subject, secret=self._token, patience_s=self._patience_s):
                return action()

        return patiently(once, patience_s=self._patience_s)

    def _info(self, repo_id: str, revision: str | None, *, files: bool) -> Any:
        _require_repo_id(repo_id)
        return self._ask(
            f"the model {repo_id}" + (f" at {revision}" if revision else ""),
            lambda: self._api().model_info(repo_id, revision=revision, files_metadata=files, timeout=60),
        )

    def _detailed(self, model: Any) -> Candidate:
        try:
            score = model.trending_score
            return self._candidate(str(model.id), None, trending_score=float(score) if isinstance(score, int | float) else None)
        except HubUnreachable:
            raise
        except (HubError, UsageError) as error:  # what one model is about ends no listing
            _log.warning("%s", error.message)
            return listing.unreadable(str(model.id))

    def _candidate(self, repo_id: str, revision: str | None, *, trending_score: float | None) -> Candidate:
        info = self._info(repo_id, revision, files=True)
        with calling(self.endpoint, f"the model {repo_id}", secret=self._token):
            found = listing.candidate(info, trending_score=trending_score)
            if listing.has_architecture(info) or not any(file.path == "config.json" for file in found.files):
                return found
            return listing.candidate(info, config=self._config(found.ref), trending_score=trending_score)

    def _config(self, ref: ModelRef) -> dict[str, Any]:
        """Return config.json where the Hub's summary of a model does not say its architecture; {} where it cannot be read."""
        try:
            config = json.loads(self.read_text(ref.repo_id, ref.sha, "config.json") or "{}")
        except HubUnreachable:
            raise
        except (HubError, ValueError, RecursionError):
            return {}
        return config if isinstance(config, dict) else {}


def _listed(entries: Iterable[Any], path: str) -> HubFile | None:
    return next((listing.hub_file(entry) for entry in entries if entry.path == path and hasattr(entry, "blob_id")), None)


def _require_repo_id(repo_id: str) -> None:
    if fault := names.repo_id_fault(repo_id):
        raise UsageError(fault, hint="Name a model as owner/name.")


def _require_commit(ref: ModelRef) -> None:
    _require_repo_id(ref.repo_id)
    if not _SHA.fullmatch(ref.sha):
        raise UsageError(
            f"{names.shown(ref.sha)} is not a commit of {ref.repo_id}; expected 40 hexadecimal digits", hint="Pin it by commit sha."
        )
