"""The object that downloads are tested with, and what is done to it."""

import hashlib
import json
import random
import threading

from ups.data.s3errors import Retry

MIB = 1 << 20
BUCKET = "pdebench"
QUICK = Retry(attempts=4, first_wait_s=0.01, max_wait_s=0.02, lasting_s=0)
CONTENT = random.Random(0).randbytes(5 * MIB + 12_345)  # six ranges, the last one short
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FIRST_ONLY = [f"bytes=0-{MIB - 1}"]  # asked for before the size is known


def replace_object(store, key, content, tmp_path):
    changed = tmp_path / "changed.bin"
    changed.write_bytes(content)
    return store.upload(changed, BUCKET, key)


def manifest_key(key):
    return key.replace("x.h5", "manifest.json")


def without_blocks(s3_client, key, bucket=BUCKET):
    """Have the manifest of an object be as it was written before there were blocks."""
    place = {"Bucket": bucket, "Key": f"{key.rpartition('/')[0]}/manifest.json"}
    manifest = json.loads(s3_client.get_object(**place)["Body"].read())
    for entry in manifest.values():
        del entry["blocks"]
    s3_client.put_object(**place, Body=json.dumps(manifest).encode())


def stop_after(num_bytes):
    """Options that stop a download when so much has arrived."""
    stop = threading.Event()
    return {"stop": stop, "progress": lambda done, _: stop.set() if done > num_bytes else None}


def leftovers(dest):
    return sorted(path.name for path in dest.parent.iterdir() if not path.name.endswith(".lock"))
