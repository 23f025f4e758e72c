"""LFS uploads: the batch call, one PUT (basic) or several (multipart), and the check at the end.

Source: the git-lfs batch API, and the multipart transfer as huggingface_hub's `lfs.py` speaks it. The PUTs carry no token:
their addresses are signed and expire.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from hub.local import repos
from hub.local.web import ApiError, Call

LIFETIME_S = 3600
MAX_PARTS = 10_000
_OID = re.compile(r"[0-9a-f]{64}")


def batch(call: Call) -> dict[str, Any]:
    """POST /{id}.git/info/lfs/objects/batch."""
    body = call.json()
    operation = body.get("operation")
    if operation not in ("upload", "download"):
        raise ApiError(400, f"'operation' must be upload or download, not {operation!r:.60}")
    with call.hub.database.read() as connection:
        repo = repos.visible(call, connection)
        if operation == "upload":
            repos.may_contribute(call)
        else:
            repos.may_download(call, connection, repo)
    multipart = "multipart" in (body.get("transfers") or [])
    objects = body.get("objects")
    if not isinstance(objects, list):
        raise ApiError(400, "'objects' must be a list")
    chosen = _upload if operation == "upload" else _download
    answers = [chosen(call, repo, item, multipart) for item in objects]
    used = any("chunk_size" in answer.get("actions", {}).get("upload", {}).get("header", {}) for answer in answers)
    return {"transfer": "multipart" if used else "basic", "objects": answers, "hash_algo": "sha256"}


def _checked(item: Any) -> tuple[str, int]:
    oid, size = (item.get("oid"), item.get("size")) if isinstance(item, dict) else (None, None)
    if not isinstance(oid, str) or not _OID.fullmatch(oid) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ApiError(400, f"An object must have a SHA-256 'oid' and a 'size', not {item!r:.120}")
    return oid, size


def _download(call: Call, _repo: repos.Repo, item: Any, _multipart: bool) -> dict[str, Any]:
    oid, size = _checked(item)
    if not call.hub.blobs.has(oid, size):
        return {"oid": oid, "size": size, "error": {"code": 404, "message": "Object does not exist"}}
    signature = call.hub.credentials.sign(f"get {oid}", LIFETIME_S)
    return {"oid": oid, "size": size, "actions": {"download": {"href": f"{call.base}/lfs/objects/{oid}?{signature}"}}}


def _upload(call: Call, repo: repos.Repo, item: Any, multipart: bool) -> dict[str, Any]:
    oid, size = _checked(item)
    if call.hub.blobs.has(oid):
        if not call.hub.blobs.has(oid, size):
            return {"oid": oid, "size": size, "error": {"code": 422, "message": "This object is known with another size"}}
        os.utime(call.hub.blobs.path(oid))  # so that the next collection does not take what is about to be committed
        return {"oid": oid, "size": size}
    free = shutil.disk_usage(call.hub.root).free
    if size > free:
        return {"oid": oid, "size": size, "error": {"code": 507, "message": f"{size} bytes do not fit: {free} are free on the hub's disk"}}
    verify = {"href": f"{call.base}/{repo.web_path}.git/info/lfs/objects/verify", "header": {}}
    config = call.hub.config
    if multipart and size > config.multipart_threshold:
        chunk = max(config.chunk_size, -(-size // MAX_PARTS))
        header = _parts(call, oid, size, chunk)
        upload: dict[str, Any] = {"href": header.pop("complete"), "header": header}
    else:
        signature = call.hub.credentials.sign(f"put {oid} {size}", LIFETIME_S)
        upload = {"href": f"{call.base}/lfs/objects/{oid}?size={size}&{signature}", "header": {}}
    return {"oid": oid, "size": size, "authenticated": True, "actions": {"upload": upload, "verify": verify}}


def _parts(call: Call, oid: str, size: int, chunk: int) -> dict[str, str]:
    upload = secrets.token_hex(16)
    sign = call.hub.credentials.sign
    header = {"chunk_size": str(chunk)}
    for number, start in enumerate(range(0, size, chunk), 1):
        length = min(chunk, size - start)
        signature = sign(f"part {upload} {number} {length}", LIFETIME_S)
        header[f"{number:05d}"] = f"{call.base}/lfs/parts/{upload}/{number}?size={length}&{signature}"
    count = -(-size // chunk)
    signature = sign(f"complete {upload} {oid} {size} {count}", LIFETIME_S)
    header["complete"] = f"{call.base}/lfs/complete/{upload}/{oid}?size={size}&count={count}&{quote(signature, safe='=&')}"
    return header


def _signed(request: Request, text: str) -> None:
    query = request.query_params
    if not request.app.state.hub.credentials.check(text, query.get("expires", ""), query.get("signature", "")):
        raise ApiError(403, "The address has expired or was not signed by this hub; ask the batch endpoint for a new one")


def _number(request: Request, key: str) -> int:
    text = request.query_params.get(key, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise ApiError(400, f"'{key}' must be a number, not {text!r:.60}")
    return int(text)


async def put_object(request: Request) -> Response:
    """PUT of a whole object; its bytes must have the promised size and SHA-256."""
    oid, size = request.path_params["oid"], _number(request, "size")
    _signed(request, f"put {oid} {size}")
    with request.app.state.hub.blobs.writer() as writer:
        async for chunk in request.stream():
            writer.write(chunk)
            if writer.size > size:
                break
        if writer.size != size or writer.sha256 != oid:
            raise ApiError(422, f"{writer.size} bytes with SHA-256 {writer.sha256} came, not {size} with {oid}")
    return Response(status_code=200, headers={"ETag": f'"{oid}"'})


async def put_part(request: Request) -> Response:
    """PUT of one part of a multipart upload; answers with the part's ETag."""
    upload, number, size = request.path_params["upload"], request.path_params["number"], _number(request, "size")
    _signed(request, f"part {upload} {number} {size}")
    folder: Path = request.app.state.hub.blobs.part_folder(upload)
    folder.mkdir(exist_ok=True)
    unfinished = folder / f"{number}.{secrets.token_hex(8)}"
    digest, received = hashlib.sha256(), 0
    with unfinished.open("wb") as file:
        async for chunk in request.stream():
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            if received > size:
                break
    if received != size:
        unfinished.unlink()
        raise ApiError(400, f"Part {number} has {received} bytes, not {size}")
    unfinished.replace(folder / f"{number}-{digest.hexdigest()}")
    return Response(status_code=200, headers={"ETag": f'"{digest.hexdigest()}"'})


async def complete(request: Request) -> Response:
    """POST `{oid, parts: [{partNumber, etag}]}`: joins the parts; the whole must have the promised size and SHA-256."""
    upload, oid = request.path_params["upload"], request.path_params["oid"]
    size, count = _number(request, "size"), _number(request, "count")
    _signed(request, f"complete {upload} {oid} {size} {count}")
    body = await request.body()
    await run_in_threadpool(_join, request.app.state.hub, upload, oid, size, _part_names(body, count))
    return JSONResponse({"success": True})


def _part_names(body: bytes, count: int) -> list[str]:
    try:
        etags = {int(part["partNumber"]): str(part["etag"]).strip('"') for part in json.loads(body)["parts"]}
        names = [f"{number}-{etags[number]}" for number in range(1, count + 1)]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ApiError(400, f"'parts' must list partNumber and etag of all {count} parts") from error
    if len(etags) != count or not all(_OID.fullmatch(etag) for etag in etags.values()):
        raise ApiError(400, f"'parts' must list partNumber and etag of all {count} parts")
    return names


def _join(hub: Any, upload: str, oid: str, size: int, names: list[str]) -> None:
    if hub.blobs.has(oid, size):
        return  # the client asks again after a lost answer
    folder: Path = hub.blobs.part_folder(upload)
    with hub.blobs.writer() as writer:
        for name in names:
            try:
                with (folder / name).open("rb") as part:
                    while chunk := part.read(1 << 20):
                        writer.write(chunk)
            except FileNotFoundError as error:
                raise ApiError(400, f"Part {name.partition('-')[0]} was not uploaded with this ETag") from error
        if writer.size != size or writer.sha256 != oid:
            raise ApiError(422, f"The parts make {writer.size} bytes with SHA-256 {writer.sha256}, not {size} with {oid}")
    shutil.rmtree(folder, ignore_errors=True)


def verify(call: Call) -> dict[str, Any]:
    """POST /{id}.git/info/lfs/objects/verify."""
    oid, size = _checked(call.json())
    with call.hub.database.read() as connection:
        repos.visible(call, connection)
        repos.may_contribute(call)
    if not call.hub.blobs.has(oid, size):
        raise ApiError(404, f"The object {oid} of {size} bytes is not here")
    return {}


async def get_object(request: Request) -> Response:
    """GET of an object by its signed address, as git-lfs asks."""
    oid = request.path_params["oid"]
    _signed(request, f"get {oid}")
    return FileResponse(request.app.state.hub.blobs.path(oid), media_type="application/octet-stream")
