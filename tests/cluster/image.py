#!/usr/bin/env python3
"""Writes a container image as one tar file, without a registry, an engine or a network.

The same input gives the same bytes: entries are sorted, times are 0, owners are root. The file is an OCI image layout that also
carries the `manifest.json` of `docker save`, so ctr, podman, skopeo, kind and docker all read it.

    image.py OUT.tar --name weft.test/weft:dev --file target/weft:/usr/local/bin/weft --program /usr/sbin/nft --entrypoint /usr/local/bin/weft
"""

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile

EPOCH = "1970-01-01T00:00:00Z"


def libraries(program):
    """The shared libraries of a program, loader included, as {path in the image: path here}."""
    listing = subprocess.run(["ldd", program], capture_output=True, text=True)
    if listing.returncode != 0:  # "not a dynamic executable", which ldd says on either stream
        return {}
    if "not found" in listing.stdout:
        sys.exit(f"image: {program} lacks a library:\n{listing.stdout}")
    paths = re.findall(r"(/\S+) \(0x", listing.stdout)
    return {path: os.path.realpath(path) for path in paths}


def contents(args):
    """{path in the image: (bytes, mode)}."""
    wanted = {}
    for spec in args.file:
        source, _, target = spec.partition(":")
        wanted[target or source] = source
    for program in args.program:
        wanted[program] = os.path.realpath(program)
    for source in list(wanted.values()):
        if os.access(source, os.X_OK):
            for path, real in libraries(source).items():
                wanted.setdefault(path, real)
    files = {}
    for target, source in wanted.items():
        with open(source, "rb") as file:
            files[target.lstrip("/")] = (file.read(), 0o755 if os.access(source, os.X_OK) else 0o644)
    return files


def entry(tar, name, data=b"", mode=0o644, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.mtime = kind, mode, len(data), 0
    tar.addfile(info, io.BytesIO(data))


def layer(files, empty_directories):
    """One layer: every parent directory before what is in it, all sorted."""
    directories = {}
    for path in [*files, *(name.strip("/") + "/" for name in empty_directories)]:
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            directory = "/".join(parts[:depth])
            directories[directory] = 0o1777 if directory == "tmp" else 0o755
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted([*files, *directories]):
            if path in directories:
                entry(tar, path + "/", mode=directories[path], kind=tarfile.DIRTYPE)
            else:
                entry(tar, path, *files[path])
    return out.getvalue()


def image(args):
    """The blobs of the image, and the two indexes that name them."""
    blobs = {}

    def blob(data, media_type):
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def encode(value):
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    rootfs = blob(layer(contents(args), args.directory), "application/vnd.oci.image.layer.v1.tar")
    config = {"Env": args.env, "WorkingDir": args.workdir, "User": args.user, "Entrypoint": args.entrypoint, "Cmd": args.cmd}
    config["Labels"] = dict(label.split("=", 1) for label in args.label)
    config = blob(encode({
        "architecture": args.arch, "os": "linux", "created": EPOCH,
        "config": {key: value for key, value in config.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [rootfs["digest"]]},
        "history": [{"created": EPOCH, "created_by": "image.py"}],
    }), "application/vnd.oci.image.config.v1+json")
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = blob(encode({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [rootfs]}), media_type)

    def named(name):  # containerd takes the full name from its own annotation, others the tag from the standard one
        annotations = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rsplit(":", 1)[-1]}
        return {**manifest, "annotations": annotations, "platform": {"architecture": args.arch, "os": "linux"}}

    def path(descriptor):
        return "blobs/sha256/" + descriptor["digest"].removeprefix("sha256:")

    return {
        **blobs,
        "oci-layout": encode({"imageLayoutVersion": "1.0.0"}),
        "index.json": encode({"schemaVersion": 2, "manifests": [named(name) for name in args.name]}),
        "manifest.json": encode([{"Config": path(config), "RepoTags": args.name, "Layers": [path(rootfs)]}]),
    }


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="the tar file to write")
    parser.add_argument("--name", action="append", required=True, help="REGISTRY/NAME:TAG, repeatable")
    parser.add_argument("--file", action="append", default=[], metavar="SOURCE:PATH", help="a file; a program's libraries come with it")
    parser.add_argument("--program", action="append", default=[], metavar="PATH", help="a program of this machine at its own path")
    parser.add_argument("--directory", action="append", default=[], metavar="PATH", help="an empty directory")
    parser.add_argument("--entrypoint", action="append", default=[])
    parser.add_argument("--cmd", action="append", default=[])
    parser.add_argument("--env", action="append", default=["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--user", default="")
    parser.add_argument("--workdir", default="/")
    parser.add_argument("--arch", default="amd64")
    return parser.parse_args()


def main():
    args = arguments()
    parts = image(args)
    temporary = f"{args.out}.{os.getpid()}.tmp"
    with tarfile.open(temporary, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in sorted(parts):
            entry(tar, name, parts[name])
    os.replace(temporary, args.out)  # readers never see half a file


if __name__ == "__main__":
    main()
